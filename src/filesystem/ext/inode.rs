//! Inodes: where they lie, whether they are whole, what `stat` tells of them.
//!
//! The idea: an inode costs one read of its own bytes. The only thing that is
//! remembered is where the groups' inode tables begin, in a small table without
//! locks that forgets when it is too small for the volume.

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;

use fs_ext4::bgd::BlockGroupDescriptor;
use fs_ext4::checksum::group_desc_csum;
use fs_ext4::features::{Incompat, RoCompat};
use fs_ext4::inode::{self as disk, InodeFlags};

use super::{Ext, ROOT, border, le16, le32};
use crate::error::{Error, Result};
use crate::filesystem::{Attr, FileType, Time};

/// Length of the part that every inode has (`EXT4_GOOD_OLD_INODE_SIZE`).
const BASE_SIZE: usize = 128;

/// An inode in use, its checksum verified.
pub(super) struct Inode {
    /// Its number.
    pub(super) ino: u32,
    /// Its bytes: the in-inode xattrs follow what the crate parses.
    pub(super) raw: Vec<u8>,
    /// Its fields.
    pub(super) disk: disk::Inode,
    /// Length in bytes (see [`Ext::inode`]).
    pub(super) size: u64,
}

impl Inode {
    /// How errors call it.
    pub(super) fn what(&self) -> String {
        format!("ext4 inode {}", self.ino)
    }

    /// An error that says what is wrong with it.
    pub(super) fn corrupt(&self, reason: impl Into<String>) -> Error {
        Error::corrupt(self.what(), reason)
    }

    /// An error that says that it is encrypted.
    pub(super) fn refuse_encrypted(&self) -> Result<()> {
        if !self.has(InodeFlags::ENCRYPT) {
            return Ok(());
        }
        Err(Error::Unsupported {
            what: self.what(),
            reason: "it is encrypted (fscrypt), and the key is not in the image".into(),
        })
    }

    pub(super) fn has(&self, flag: InodeFlags) -> bool {
        self.disk.flags & flag.bits() != 0
    }

    pub(super) fn kind(&self) -> Result<FileType> {
        FileType::of_mode(self.disk.mode)
            .ok_or_else(|| self.corrupt(format!("mode {:o} is no file type", self.disk.mode)))
    }

    /// Length in bytes of the fields past the base that are in use
    /// (`i_extra_isize`).
    pub(super) fn extra_size(&self) -> usize {
        le16(&self.raw, BASE_SIZE).map_or(0, usize::from)
    }

    /// Where the fields end and in-inode xattrs may begin; `None` if no fields
    /// are in use past the base, because then there are no xattrs either.
    pub(super) fn fields_end(&self) -> Option<usize> {
        let extra = self.extra_size();
        (extra != 0).then(|| extra.saturating_add(BASE_SIZE))
    }

    /// The device number: `i_block[0]` holds Linux's old 16-bit encoding, or
    /// is 0 and `i_block[1]` holds the new one.
    fn device(&self) -> u64 {
        let word = |at| le32(&self.disk.block, at).unwrap_or_default();
        let (old, new) = (word(0), word(4));
        let (major, minor) = if old != 0 {
            ((old >> 8) & 0xff, old & 0xff)
        } else {
            (
                (new & 0xf_ff00) >> 8,
                (new & 0xff) | ((new >> 12) & 0xf_ff00),
            )
        };
        libc::makedev(major, minor)
    }
}

impl Ext {
    /// Reads an inode.
    ///
    /// # Errors
    /// `NotFound` if it is not in use or is one of those that no name leads to
    /// (the journal, for example); `Corrupt`.
    pub(super) fn inode(&self, ino: u64) -> Result<Inode> {
        let what = || format!("ext4 inode {ino}");
        let number = u32::try_from(ino).ok().filter(|number| {
            let first = if ino == ROOT {
                1
            } else {
                self.superblock.first_inode
            };
            (first..=self.superblock.inodes_count).contains(number)
        });
        let Some(number) = number else {
            return Err(Error::not_found(what()));
        };
        let (group, index) = {
            let index = number.saturating_sub(1);
            (index / self.inodes_per_group, index % self.inodes_per_group)
        };
        let size = self.superblock.inode_size;
        let offset = u64::from(index).saturating_mul(u64::from(size));
        let offset = offset.saturating_add(self.byte_of(self.inode_table(group)?));
        let mut raw = vec![0; usize::from(size)];
        self.volume.read_at(offset, &mut raw)?;

        // Before anything else, because what was never used has no checksum.
        let (mode, links) = (le16(&raw, 0).unwrap_or(0), le16(&raw, 0x1a).unwrap_or(0));
        if mode == 0 || links == 0 {
            return Err(Error::not_found(what()));
        }
        let (disk, sound) = border(what, || {
            let disk = disk::Inode::parse(&raw)?;
            let sound = self.checksum.verify_inode(number, disk.generation, &raw);
            Ok((disk, sound))
        })?;
        if !sound {
            return Err(Error::corrupt(what(), "its checksum is wrong"));
        }
        // What is the upper half of the size of others was, in folders of old,
        // the number of an ACL's block.
        let regular = disk.mode & disk::S_IFMT == disk::S_IFREG;
        let size = if regular || self.has_incompat(Incompat::LARGEDIR) {
            disk.size
        } else {
            disk.size & u64::from(u32::MAX)
        };
        if size > i64::MAX.unsigned_abs() {
            return Err(Error::corrupt(what(), "its size is negative"));
        }
        Ok(Inode {
            ino: number,
            raw,
            disk,
            size,
        })
    }

    /// The first block of a group's inode table.
    ///
    /// A slot of the table serves every 1024th group and holds, in 64 bits that
    /// are read and written at once, which of them it knows (16 bits, 0: none)
    /// and the block number (48 bits, as many as ext4 has).
    fn inode_table(&self, group: u32) -> Result<u64> {
        const BLOCK: u64 = 0xffff_ffff_ffff;
        let slots = u32::try_from(self.descriptors.len())
            .ok()
            .and_then(NonZeroU32::new);
        let slots = slots.unwrap_or(NonZeroU32::MIN);
        let slot = self
            .descriptors
            .get(usize::try_from(group % slots).unwrap_or_default());
        let tag = u64::from(group / slots).saturating_add(1);
        if let Some(slot) = slot {
            let known = slot.load(Ordering::Relaxed);
            if known >> 48 == tag {
                return Ok(known & BLOCK);
            }
        }
        let table = self.read_descriptor(group)?;
        if let Some(slot) = slot
            && tag <= 0xffff
            && table <= BLOCK
        {
            slot.store((tag << 48) | table, Ordering::Relaxed);
        }
        Ok(table)
    }

    fn read_descriptor(&self, group: u32) -> Result<u64> {
        let what = || format!("ext4 descriptor of group {group}");
        let size = self.superblock.desc_size;
        let (block, within) = border(what, || {
            Ok(self.superblock.descriptor_location(u64::from(group)))
        })?;
        let offset = u64::try_from(within).unwrap_or(u64::MAX);
        let offset = offset.saturating_add(self.byte_of(block));
        let mut raw = vec![0; usize::from(size)];
        self.volume.read_at(offset, &mut raw)?;
        let (descriptor, expected) = border(what, || {
            let descriptor = BlockGroupDescriptor::parse(&raw, size)?;
            Ok((
                descriptor,
                group_desc_csum(&self.superblock, &self.checksum, group, &raw),
            ))
        })?;
        if expected.is_some_and(|expected| expected != descriptor.checksum) {
            return Err(Error::corrupt(what(), "its checksum is wrong"));
        }
        let table = descriptor.inode_table;
        if table == 0 || table >= self.superblock.blocks_count {
            return Err(Error::corrupt(
                what(),
                format!("the inode table cannot begin at block {table}"),
            ));
        }
        Ok(table)
    }

    /// What `stat` tells.
    pub(super) fn attributes(&self, inode: &Inode) -> Result<Attr> {
        let disk = &inode.disk;
        let kind = inode.kind()?;
        let time = |seconds, nanoseconds: u32| Time {
            seconds,
            nanoseconds: nanoseconds.min(999_999_999),
        };
        // Past the base, what `i_extra_isize` does not reach is not there.
        let has_btime = inode.fields_end().is_some_and(|end| end >= 0x94);
        let rdev = match kind {
            FileType::CharDevice | FileType::BlockDevice => inode.device(),
            _ => 0,
        };
        Ok(Attr {
            ino: u64::from(inode.ino),
            kind,
            mode: disk.mode & 0o7777,
            size: inode.size,
            blocks: self.allocated(inode, kind),
            nlink: u32::from(disk.links_count),
            uid: disk.uid,
            gid: disk.gid,
            rdev,
            atime: time(disk.atime, disk.atime_nsec),
            mtime: time(disk.mtime, disk.mtime_nsec),
            ctime: time(disk.ctime, disk.ctime_nsec),
            btime: has_btime.then(|| time(disk.crtime, disk.crtime_nsec)),
            may_have_xattrs: self.may_have_attributes(inode),
        })
    }

    /// `st_blocks`, in units of 512 bytes.
    fn allocated(&self, inode: &Inode, kind: FileType) -> u64 {
        let blocks = self.sectors(inode);
        if kind == FileType::Regular && inode.has(InodeFlags::INLINE_DATA) {
            // The kernel counts inline content too.
            blocks.saturating_add(inode.size.div_ceil(512))
        } else {
            blocks
        }
    }

    /// `i_blocks` in units of 512 bytes: a huge file counts file-system blocks,
    /// and without the feature there is no upper half.
    pub(super) fn sectors(&self, inode: &Inode) -> u64 {
        if !self.has_ro_compat(RoCompat::HUGE_FILE) {
            inode.disk.blocks & u64::from(u32::MAX)
        } else if inode.has(InodeFlags::HUGE_FILE) {
            inode.disk.blocks.saturating_mul(self.block_size() >> 9)
        } else {
            inode.disk.blocks
        }
    }

    /// The inode of a folder whose names can be read.
    pub(super) fn folder(&self, ino: u64) -> Result<Inode> {
        let inode = self.inode(ino)?;
        if inode.kind()? != FileType::Directory {
            return Err(Error::NotADirectory { what: inode.what() });
        }
        Ok(inode)
    }
}
