//! The types of files, and the numbers that Linux's own formats have for them.

/// The type of a file, as `st_mode` and `d_type` tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A unix socket.
    Socket,
}

impl FileType {
    /// By the upper bits of a mode, as `st_mode` has them; `None` for a number
    /// that is no type.
    pub(crate) fn of_mode(mode: u16) -> Option<Self> {
        Some(match mode >> 12 {
            0o01 => Self::Fifo,
            0o02 => Self::CharDevice,
            0o04 => Self::Directory,
            0o06 => Self::BlockDevice,
            0o10 => Self::Regular,
            0o12 => Self::Symlink,
            0o14 => Self::Socket,
            _ => return None,
        })
    }

    /// By the number that an entry of a folder has for it, the same for ext
    /// (`EXT4_FT_…`), XFS (`XFS_DIR3_FT_…`) and btrfs (`BTRFS_FT_…`).
    pub(crate) fn of_entry(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::CharDevice,
            4 => Self::BlockDevice,
            5 => Self::Fifo,
            6 => Self::Socket,
            7 => Self::Symlink,
            _ => return None,
        })
    }
}
