//! Inodes (`struct xfs_dinode`): whether they are in use and whole, what `stat`
//! tells of them, and their two forks.
//!
//! The idea: an inode number says where the inode lies, so an inode costs one
//! read of its own bytes. Since version 5 an inode tells its own number and has
//! a checksum; before, the AG's inode tree is asked whether it is one
//! ([`super::allocation`]). The rest of its bytes are the forks: content or
//! extents of the file, and of its attributes.

use super::Xfs;
use super::field::{le32_at, slice_at, u8_at, u16_at, u32_at, u64_at};
use super::superblock::checksum;
use crate::error::{Error, Result};
use crate::filesystem::{Attr, FileType, Time};

/// `di_magic`.
pub(super) const MAGIC: u16 = 0x494e;

/// Where the checksum lies (`di_crc`, version 3 of the inode).
pub(super) const CRC: usize = 100;

/// `di_flags`: the content lies on the realtime device.
const REALTIME: u16 = 0x1;

/// `di_flags2`: times count nanoseconds; counters of extents are wide; of the
/// metadata directory tree.
const BIG_TIME: u64 = 0x8;
const WIDE_COUNTERS: u64 = 0x10;
const METADATA: u64 = 0x20;

/// `di_format`: how a fork keeps what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// The number of a device.
    Device,
    /// The content itself.
    Local,
    /// A list of extents.
    Extents,
    /// The root of a tree of extents.
    Tree,
}

impl Format {
    fn of(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Device,
            1 => Self::Local,
            2 => Self::Extents,
            3 => Self::Tree,
            _ => return None,
        })
    }
}

/// One of the two things that an inode has.
#[derive(Clone, Copy)]
pub(super) struct Fork<'a> {
    pub(super) format: Format,
    pub(super) bytes: &'a [u8],
    /// How many extents it has.
    pub(super) extents: u64,
}

/// An inode in use, verified.
pub(super) struct Inode {
    pub(super) ino: u64,
    pub(super) raw: Vec<u8>,
    pub(super) kind: FileType,
    mode: u16,
    /// `di_version`: 1, 2 or 3.
    version: u8,
    pub(super) size: u64,
    /// Blocks allocated.
    pub(super) blocks: u64,
    nlink: u32,
    flags: u16,
    flags2: u64,
}

/// How errors call an inode.
pub(super) fn what(ino: u64) -> String {
    format!("XFS inode {ino}")
}

/// Where the forks begin in an inode of `version`.
pub(super) fn core_len(version: u8) -> usize {
    if version >= 3 { 176 } else { 100 }
}

/// Where the fork of attributes begins, if there is one: `di_forkoff` counts 8
/// bytes.
pub(super) fn attribute_fork(raw: &[u8], version: u8) -> Option<usize> {
    let units = u8_at(raw, 82).filter(|units| *units != 0)?;
    Some(core_len(version).saturating_add(usize::from(units).saturating_mul(8)))
}

impl Inode {
    pub(super) fn what(&self) -> String {
        what(self.ino)
    }

    /// An error that says what is wrong with it.
    pub(super) fn corrupt(&self, reason: impl Into<String>) -> Error {
        Error::corrupt(self.what(), reason)
    }

    /// Reads one from its bytes; `None` if it is not in use.
    fn parse(ino: u64, raw: Vec<u8>) -> std::result::Result<Option<Self>, String> {
        let short = || "it is cut off".to_owned();
        let (n8, n16) = (|at| u8_at(&raw, at), |at| u16_at(&raw, at));
        let (n32, n64) = (|at| u32_at(&raw, at), |at| u64_at(&raw, at));
        let version = n8(4).ok_or_else(short)?;
        if !(1..=3).contains(&version) {
            return Err(format!("its version {version} is not known"));
        }
        let mode = n16(2).ok_or_else(short)?;
        let nlink = match version {
            1 => n16(6).map(u32::from),
            _ => n32(16),
        };
        let nlink = nlink.ok_or_else(short)?;
        let flags2 = if version >= 3 { n64(120) } else { Some(0) }.ok_or_else(short)?;
        if mode == 0 || nlink == 0 || flags2 & METADATA != 0 {
            return Ok(None);
        }
        let kind =
            FileType::of_mode(mode).ok_or_else(|| format!("mode {mode:o} is no file type"))?;
        let size = n64(56).ok_or_else(short)?;
        if size > i64::MAX.unsigned_abs() {
            return Err("its size is negative".into());
        }
        Ok(Some(Self {
            ino,
            kind,
            mode,
            version,
            size,
            blocks: n64(64).ok_or_else(short)?,
            nlink,
            flags: n16(90).ok_or_else(short)?,
            flags2,
            raw,
        }))
    }

    /// Whether its content lies on the realtime device.
    pub(super) fn is_realtime(&self) -> bool {
        self.flags & REALTIME != 0
    }

    /// The fork of the content.
    pub(super) fn data(&self) -> Result<Fork<'_>> {
        let start = core_len(self.version);
        let end = attribute_fork(&self.raw, self.version).unwrap_or(self.raw.len());
        let wide = self.flags2 & WIDE_COUNTERS != 0;
        let extents = if wide {
            u64_at(&self.raw, 24)
        } else {
            u32_at(&self.raw, 76).map(u64::from)
        };
        let format = u8_at(&self.raw, 5).and_then(Format::of);
        match (format, self.raw.get(start..end), extents) {
            (Some(format), Some(bytes), Some(extents)) => Ok(Fork {
                format,
                bytes,
                extents,
            }),
            _ => Err(self.corrupt("it does not say how its content is kept")),
        }
    }

    /// The fork of the attributes, if there is one.
    pub(super) fn attributes(&self) -> Result<Option<Fork<'_>>> {
        let Some(start) = attribute_fork(&self.raw, self.version) else {
            return Ok(None);
        };
        let wide = self.flags2 & WIDE_COUNTERS != 0;
        let extents = if wide {
            u32_at(&self.raw, 76).map(u64::from)
        } else {
            u16_at(&self.raw, 80).map(u64::from)
        };
        let format = u8_at(&self.raw, 83).and_then(Format::of);
        match (format, self.raw.get(start..), extents) {
            (Some(format), Some(bytes), Some(extents)) => Ok(Some(Fork {
                format,
                bytes,
                extents,
            })),
            _ => Err(self.corrupt("it does not say how its attributes are kept")),
        }
    }

    /// A time: nanoseconds since 1901-12-13T20:45:52, or seconds and nanoseconds
    /// since 1970 of 32 bits each.
    fn time(&self, at: usize) -> Time {
        const SECOND: u64 = 1_000_000_000;
        let whole = u64_at(&self.raw, at).unwrap_or_default();
        if self.flags2 & BIG_TIME != 0 {
            let seconds = i64::try_from(whole / SECOND).unwrap_or_default();
            Time {
                seconds: seconds.saturating_add(i64::from(i32::MIN)),
                nanoseconds: u32::try_from(whole % SECOND).unwrap_or_default(),
            }
        } else {
            let seconds = u32_at(&self.raw, at).unwrap_or_default().cast_signed();
            let nanoseconds = u32_at(&self.raw, at.saturating_add(4)).unwrap_or_default();
            Time {
                seconds: i64::from(seconds),
                nanoseconds: nanoseconds.min(999_999_999),
            }
        }
    }

    /// The device's number: 14 bits of major, 18 bits of minor.
    fn device(&self) -> u64 {
        let raw = u32_at(&self.raw, core_len(self.version)).unwrap_or_default();
        libc::makedev((raw >> 18) & 0x3fff, raw & 0x3_ffff)
    }
}

impl Xfs {
    /// Reads an inode.
    ///
    /// # Errors
    /// `NotFound` if it is not in use or is one of those that no name leads to
    /// (quotas, for example); `Corrupt`.
    pub(super) fn inode(&self, ino: u64) -> Result<Inode> {
        let superblock = &self.store.superblock;
        let missing = || Error::not_found(what(ino));
        let Some((ag, within, offset)) = superblock.inode_place(ino) else {
            return Err(missing());
        };
        if ino == 0 || superblock.hidden.contains(&ino) {
            return Err(missing());
        }
        if !superblock.v5 && self.trees_are_current && !self.is_allocated(ag, within)? {
            return Err(missing());
        }
        let mut raw = vec![0; superblock.inode_size()];
        self.store.read(offset, &mut raw)?;
        // What was never an inode, or is not this one.
        if u16_at(&raw, 0) != Some(MAGIC) {
            return Err(missing());
        }
        let damaged = |reason: String| Error::corrupt(what(ino), reason);
        if superblock.v5 {
            if le32_at(&raw, CRC) != Some(checksum(&raw, CRC)) {
                return Err(damaged("its checksum is wrong".into()));
            }
            let own = u64_at(&raw, 152) == Some(ino)
                && slice_at(&raw, 160, 16) == Some(&superblock.meta_uuid)
                && u8_at(&raw, 4) == Some(3);
            if !own {
                return Err(missing());
            }
        } else if u8_at(&raw, 4) == Some(3) {
            return Err(damaged("its version is that of another format".into()));
        }
        Inode::parse(ino, raw).map_err(damaged)?.ok_or_else(missing)
    }

    /// The inode of a folder.
    pub(super) fn folder(&self, ino: u64) -> Result<Inode> {
        let inode = self.inode(ino)?;
        if inode.kind != FileType::Directory {
            return Err(Error::NotADirectory { what: inode.what() });
        }
        Ok(inode)
    }

    /// What `stat` tells.
    pub(super) fn stat(&self, inode: &Inode) -> Attr {
        let number = |at| u32_at(&inode.raw, at).unwrap_or_default();
        let rdev = match inode.kind {
            FileType::CharDevice | FileType::BlockDevice => inode.device(),
            _ => 0,
        };
        let per_block = self.store.superblock.block_size() / 512;
        Attr {
            ino: inode.ino,
            kind: inode.kind,
            mode: inode.mode & 0o7777,
            size: inode.size,
            blocks: inode.blocks.saturating_mul(per_block),
            nlink: inode.nlink,
            uid: number(8),
            gid: number(12),
            rdev,
            atime: inode.time(32),
            mtime: inode.time(40),
            ctime: inode.time(48),
            btime: (inode.version >= 3).then(|| inode.time(144)),
            may_have_xattrs: self.may_have_attributes(inode),
        }
    }
}
