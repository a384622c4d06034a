//! What an entry says of a file, in either family.

use super::chain::Chain;
use super::stamp::Stamp;

/// Bits of the attributes.
pub(super) mod flag {
    pub(in super::super) const READ_ONLY: u16 = 0x01;
    pub(in super::super) const LABEL: u16 = 0x08;
    pub(in super::super) const DIRECTORY: u16 = 0x10;
    /// An entry with these is a piece of a long name …
    pub(in super::super) const LONG_NAME: u16 = 0x0f;
    /// … whatever the other bits are.
    pub(in super::super) const LONG_NAME_MASK: u16 = 0x3f;
}

/// A file or folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) attributes: u16,
    /// Length in bytes (FAT: 0 for folders).
    pub(super) size: u64,
    /// How much of that was written; the rest is zeros.
    pub(super) written: u64,
    /// Its clusters; `None` if it has none.
    pub(super) chain: Option<Chain>,
    pub(super) created: Option<Stamp>,
    pub(super) modified: Stamp,
    pub(super) accessed: Option<Stamp>,
    /// Why its content cannot be told.
    pub(super) sealed: Option<&'static str>,
}

impl Entry {
    pub(super) fn is_directory(&self) -> bool {
        self.attributes & flag::DIRECTORY != 0
    }
}

/// An entry with its name, come upon in a folder.
pub(super) struct Found<'a> {
    /// Inode number.
    pub(super) ino: u64,
    /// The name as it is shown: UTF-16.
    pub(super) name: &'a [u16],
    /// FAT: the short name as on disk, if the other one is a long one.
    pub(super) alias: Option<&'a [u8; 11]>,
    pub(super) entry: &'a Entry,
    /// Number of the slot after it.
    pub(super) next: u64,
}

/// Whether a name can be shown as one component of a path.
pub(super) fn is_name(name: &[u16]) -> bool {
    const DOT: u16 = 0x2e;
    !matches!(name, [] | [DOT] | [DOT, DOT]) && !name.iter().any(|unit| matches!(unit, 0 | 0x2f))
}
