//! Guest file systems: one trait, one module per format.
//!
//! The idea: a reader answers by inode number and keeps nothing that the block
//! cache below it does not keep. File data does not pass through a reader:
//! it says in which [`Extent`]s a range lies, and the caller reads those from
//! the disk in large parallel pieces.
//!
//! Times are [`Time`]: seconds and nanoseconds since 1970, signed, because
//! guests hold dates from 1601 to 2446 and beyond.

pub mod btrfs;
mod check;
pub mod ext;
pub mod fat;
mod field;
mod file_type;
pub mod ntfs;
mod options;
mod windows_name;
pub mod xfs;

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::error::Result;
use crate::image::BlockRead;
pub use check::Check;
pub use file_type::FileType;
pub use options::{Options, parse_time_zone};

/// A point in time: seconds since 1970-01-01 UTC, and nanoseconds (0..10⁹).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    /// Whole seconds; negative before 1970.
    pub seconds: i64,
    /// 0 to 999,999,999, added to the seconds.
    pub nanoseconds: u32,
}

/// What `stat` tells of a file in the guest.
#[derive(Debug, Clone)]
pub struct Attr {
    /// Inode number within the file system.
    pub ino: u64,
    /// File type.
    pub kind: FileType,
    /// The lower 12 bits of the mode.
    pub mode: u16,
    /// Length in bytes.
    pub size: u64,
    /// Allocated, in units of 512 bytes.
    pub blocks: u64,
    /// Hard links.
    pub nlink: u32,
    /// Owner in the guest.
    pub uid: u32,
    /// Group in the guest.
    pub gid: u32,
    /// Device number of a device file, in Linux's `dev_t` encoding.
    pub rdev: u64,
    /// Last read.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Creation, where the format keeps it.
    pub btime: Option<Time>,
    /// Whether the inode may have extended attributes. False must be certain
    /// and cheap to know: it spares a look-up for each file of `ls -l`.
    pub may_have_xattrs: bool,
}

/// One entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Inode number within the file system.
    pub ino: u64,
    /// The name: raw bytes, never `.` or `..`, never empty, no `/`, no NUL.
    pub name: &'a [u8],
    /// Type, where the folder itself tells it.
    pub kind: Option<FileType>,
    /// Where to go on after this entry; never 0.
    pub next: u64,
}

/// Whether a name on disk can be one on Linux.
pub(crate) fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// A piece of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// `len` bytes that lie on the volume from byte `offset`.
    Volume {
        /// Byte offset on the volume.
        offset: u64,
        /// Length in bytes, more than 0.
        len: u64,
    },
    /// As [`Extent::Volume`], where the format tells whether the bytes are right.
    /// If they are not, [`FileSystem::read`] has them from another copy, or says
    /// that there is none.
    Checked {
        /// Byte offset on the volume.
        offset: u64,
        /// Length in bytes, more than 0.
        len: u64,
        /// To be asked with all of the bytes.
        check: Check,
    },
    /// `len` bytes of zeros that take no space.
    Hole {
        /// Length in bytes, more than 0.
        len: u64,
    },
    /// Bytes that the reader has at hand (inline data).
    Bytes(bytes::Bytes),
    /// `len` bytes that only [`FileSystem::read`] can produce (compressed).
    Decode {
        /// Length in bytes, more than 0.
        len: u64,
    },
}

impl Extent {
    /// Appends it to `out`, joined with the last one where it goes on from there.
    fn append_to(self, out: &mut Vec<Self>) {
        match (out.last_mut(), &self) {
            (Some(Self::Hole { len }), Self::Hole { len: more })
            | (Some(Self::Decode { len }), Self::Decode { len: more }) => {
                *len = len.saturating_add(*more);
            }
            (
                Some(Self::Volume { offset, len }),
                Self::Volume {
                    offset: next,
                    len: more,
                },
            ) if offset.checked_add(*len) == Some(*next) => *len = len.saturating_add(*more),
            _ => out.push(self),
        }
    }
}

/// The most bytes of a file that are read at once.
pub const LARGEST_READ: u64 = 8 * 1024 * 1024;

/// What a file system says of itself.
#[derive(Debug, Clone, Default)]
pub struct Description {
    /// The name that `blkid` uses: `ext4`, `ntfs`, `xfs`, …
    pub kind: &'static str,
    /// The label, raw bytes, empty if there is none.
    pub label: Vec<u8>,
    /// UUID or serial number as text, empty if there is none.
    pub uuid: String,
    /// Bytes per allocation unit.
    pub block_size: u32,
    /// Allocation units in all.
    pub blocks: u64,
    /// Allocation units free.
    pub blocks_free: u64,
    /// Inodes in all (0: the format has no fixed number).
    pub files: u64,
    /// Inodes free.
    pub files_free: u64,
    /// What a user should know, for example that the journal was not replayed.
    /// One sentence each.
    pub notes: Vec<String>,
}

/// A guest file system, read-only, addressed by inode number.
///
/// All methods may read through the block cache; they may be called from many
/// threads at once. Errors name the inode. Foreign data never makes them panic,
/// loop for ever or take more than a bounded amount of memory.
pub trait FileSystem: Send + Sync {
    /// The root folder's inode number (never 0).
    fn root(&self) -> u64;

    /// One more than the largest inode number there can be, where it may exceed
    /// one for each 128 bytes of the volume. It follows from the volume's content
    /// alone.
    fn inode_bound(&self) -> Option<u64> {
        None
    }

    /// What the file system says of itself.
    fn description(&self) -> &Description;

    /// Attributes of an inode.
    ///
    /// # Errors
    /// `NotFound` if there is no such inode in use.
    fn attr(&self, ino: u64) -> Result<Attr>;

    /// The inode number that `name` has in folder `dir`.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`.
    fn lookup(&self, dir: u64, name: &[u8]) -> Result<u64>;

    /// The folder that holds folder `dir`; the root's is itself.
    ///
    /// # Errors
    /// `NotADirectory`.
    fn parent(&self, dir: u64) -> Result<u64>;

    /// Calls `each` with the entries of `dir` in on-disk order, from `position`
    /// (0, or an earlier entry's `next`), until it breaks. Positions stay valid
    /// for ever: over calls, eviction and restart. `.` and `..` are left out.
    ///
    /// # Errors
    /// `NotADirectory`; `Corrupt` after the entries that could be read.
    fn read_dir(
        &self,
        dir: u64,
        position: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()>;

    /// Appends to `out` the extents of bytes `offset..offset + len` of a regular
    /// file, in order, without gaps, cut at the end of the file; adjacent pieces
    /// are joined. What is allocated but unwritten is a hole. Who asks for more
    /// than [`LARGEST_READ`] wants the map and not the bytes: nothing of the answer
    /// is [`Extent::Checked`].
    ///
    /// # Errors
    /// `IsADirectory`; `Unsupported` (an encrypted file, say).
    fn extents(&self, ino: u64, offset: u64, len: u64, out: &mut Vec<Extent>) -> Result<()>;

    /// Reads what [`Extent::Decode`] stands for, or what [`Extent::Checked`] was
    /// not: fills as much of `buf` as the file has from `offset`; returns the number
    /// of bytes.
    ///
    /// # Errors
    /// `Unsupported` for formats that never answer `Decode`.
    fn read(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize>;

    /// The target of a symbolic link, raw bytes.
    ///
    /// # Errors
    /// `Invalid` if the inode is not one.
    fn read_link(&self, ino: u64) -> Result<Vec<u8>>;

    /// The names of an inode's extended attributes as Linux shows them
    /// (`user.…`, `security.…`, `system.posix_acl_access`, …).
    ///
    /// # Errors
    /// From below.
    fn xattr_names(&self, ino: u64) -> Result<Vec<Vec<u8>>>;

    /// The value of one extended attribute, as the kernel's `getxattr` gives it.
    ///
    /// # Errors
    /// From below; an attribute that is not there is `None`.
    fn xattr(&self, ino: u64, name: &[u8]) -> Result<Option<Vec<u8>>>;
}

/// What a file system is read from.
#[derive(Clone)]
pub struct Source {
    /// Its bytes, through the block cache.
    pub volume: Arc<dyn BlockRead>,
    /// For a format that spans devices by itself (btrfs): the lengths in bytes of
    /// the devices that `volume` consists of, one after the other. Else empty.
    pub members: Vec<u64>,
}

/// Opens the file system that `kind` (a signature's name, as `blkid` tells it)
/// names.
///
/// # Errors
/// `Unsupported` for a format without a reader, `Corrupt` for a damaged one.
pub fn open(kind: &str, source: Source, options: &Options) -> Result<Box<dyn FileSystem>> {
    let volume = Arc::clone(&source.volume);
    match kind {
        "btrfs" => Ok(Box::new(btrfs::Btrfs::open(source)?)),
        "ext2" | "ext3" | "ext4" => Ok(Box::new(ext::Ext::open(volume)?)),
        "vfat" => Ok(Box::new(fat::Fat::open_vfat(volume, options.clone())?)),
        "exfat" => Ok(Box::new(fat::Fat::open_exfat(volume, options.clone())?)),
        "ntfs" => Ok(Box::new(ntfs::Ntfs::open_with(volume, options.clone())?)),
        "xfs" => Ok(Box::new(xfs::Xfs::open(volume)?)),
        other => Err(crate::Error::Unsupported {
            what: format!("file system {other}"),
            reason: "there is no reader for this format yet".into(),
        }),
    }
}
