//! Inodes: `struct btrfs_inode_item`, and what `stat` tells of it.
//!
//! ```text
//! 16 size    40 nlink u32  52 mode u32  112 atime  136 mtime
//! 24 nbytes  44 uid u32    56 rdev      124 ctime  148 otime
//!            48 gid u32    64 flags     each: seconds i64, nanoseconds u32
//! ```

use super::Btrfs;
use super::node::Key;
use super::subvolume::{Place, Subvolume};
use super::xattr::XATTR_ITEM;
use crate::error::{Error, Result};
use crate::filesystem::field::{array_at, u32_at, u64_at};
use crate::filesystem::{Attr, FileType, Time};

pub(super) const INODE_ITEM: u8 = 1;

/// `BTRFS_INODE_NODATASUM`: its data has no checksums.
const NO_CHECKSUMS: u64 = 1;

/// An inode that is there.
pub(super) struct Inode<'a> {
    pub(super) number: u64,
    pub(super) subvolume: &'a Subvolume,
    pub(super) objectid: u64,
    pub(super) size: u64,
    pub(super) kind: FileType,
    pub(super) has_checksums: bool,
    attr: Attr,
}

impl Inode<'_> {
    /// How errors call it.
    pub(super) fn what(&self) -> String {
        what(self.subvolume.id, self.objectid)
    }

    /// An error that says what is wrong with it.
    pub(super) fn corrupt(&self, reason: impl Into<String>) -> Error {
        Error::corrupt(self.what(), reason)
    }

    /// The key of one of its items.
    pub(super) fn key(&self, kind: u8, offset: u64) -> Key {
        Key::new(self.objectid, kind, offset)
    }
}

fn what(subvolume: u64, objectid: u64) -> String {
    format!("btrfs inode {objectid} of subvolume {subvolume}")
}

impl Btrfs {
    /// Reads the inode at a place. That of a stub is the folder it lies in.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`; from below.
    pub(super) fn inode<'a>(&self, place: &Place<'a>) -> Result<Inode<'a>> {
        let &Place {
            subvolume,
            objectid,
            ..
        } = place;
        let what = || what(subvolume.id, objectid);
        let wanted = Key::new(objectid, INODE_ITEM, 0);
        let mut cursor = self.nodes.seek_back(&subvolume.tree, wanted)?;
        let Some((_, item)) = cursor.next_in_leaf()?.filter(|(key, _)| *key == wanted) else {
            return Err(Error::not_found(what()));
        };
        let number = subvolume.number(objectid);
        let (kind, flags, mut attr) = parse(item, u64::from(self.nodes.sector_size))
            .ok_or_else(|| Error::corrupt(what(), "its item is too short, or its type is none"))?;
        attr.ino = number;
        if attr.size > i64::MAX.unsigned_abs() {
            return Err(Error::corrupt(what(), "its size is negative"));
        }
        // Items of one inode follow each other, attributes before content. What
        // goes on in the next leaf may have some.
        attr.may_have_xattrs = loop {
            match cursor.next_in_leaf()? {
                Some((key, _)) if key.objectid != objectid || key.kind > XATTR_ITEM => break false,
                Some((key, _)) if key.kind < XATTR_ITEM => {}
                _ => break true,
            }
        };
        Ok(Inode {
            number,
            subvolume,
            objectid,
            size: attr.size,
            kind,
            has_checksums: flags & NO_CHECKSUMS == 0,
            attr,
        })
    }

    /// What `stat` tells of a place.
    ///
    /// # Errors
    /// As [`Btrfs::inode`].
    pub(super) fn attributes(&self, place: &Place<'_>) -> Result<Attr> {
        let inode = self.inode(place)?;
        let Some(stub) = place.stub else {
            return Ok(inode.attr);
        };
        // As the kernel makes it up, but with the times of the folder that it
        // lies in: the kernel takes the time of day.
        Ok(Attr {
            ino: inode.subvolume.stub(inode.objectid, stub),
            kind: FileType::Directory,
            mode: 0o755,
            size: 0,
            blocks: 0,
            nlink: 1,
            may_have_xattrs: false,
            ..inode.attr
        })
    }
}

fn parse(item: &[u8], sector: u64) -> Option<(FileType, u64, Attr)> {
    let time = |at| {
        Some(Time {
            seconds: array_at(item, at).map(i64::from_le_bytes)?,
            nanoseconds: u32_at(item, usize::checked_add(at, 8)?)?.min(999_999_999),
        })
    };
    let mode = u32_at(item, 52)?;
    let kind = FileType::of_mode(u16::try_from(mode & 0xffff).ok()?)?;
    // Linux's own form of a device number: 12 bits, 20 bits.
    let device = u32::try_from(u64_at(item, 56)?).unwrap_or(0);
    let rdev = match kind {
        FileType::CharDevice | FileType::BlockDevice => {
            libc::makedev(device >> 20, device & 0xf_ffff)
        }
        _ => 0,
    };
    let attr = Attr {
        ino: 0,
        kind,
        mode: u16::try_from(mode & 0o7777).unwrap_or(0),
        size: u64_at(item, 16)?,
        blocks: u64_at(item, 24)?
            .checked_next_multiple_of(sector)
            .unwrap_or(0)
            >> 9,
        nlink: u32_at(item, 40)?,
        uid: u32_at(item, 44)?,
        gid: u32_at(item, 48)?,
        rdev,
        atime: time(112)?,
        mtime: time(136)?,
        ctime: time(124)?,
        btime: Some(time(148)?),
        may_have_xattrs: true,
    };
    Some((kind, u64_at(item, 64)?, attr))
}
