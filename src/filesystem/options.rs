//! How files look whose format keeps no owner, mode or time zone.

/// What a format leaves open, for all volumes of such a format.
#[derive(Debug, Clone)]
pub struct Options {
    /// Owner of all files.
    pub uid: u32,
    /// Group of all files.
    pub gid: u32,
    /// Mode of files; those that are read-only lose their write bits.
    pub file_mode: u16,
    /// Mode of folders.
    pub directory_mode: u16,
    /// Whether [`super::FileSystem::lookup`] finds names that differ in case,
    /// where the guest's system would.
    pub ignore_case: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            uid: 0,
            gid: 0,
            file_mode: 0o644,
            directory_mode: 0o755,
            ignore_case: false,
        }
    }
}
