//! ext2, ext3 and ext4, as `mount -o ro,noload` shows them.
//!
//! The idea: nothing is kept. Opening reads the superblock; each call then reads
//! exactly the structures it needs (an inode is one read of its own bytes)
//! through the block cache below, and verifies the checksum of each. The
//! journal is never replayed, because a reader must not hold an unbounded shadow
//! of the disk: [`Description::notes`] says so where it matters.
//!
//! - [`inode`]: from an inode number to attributes;
//! - [`map`]: from a file's blocks to the volume's (extent trees, block maps);
//! - [`directory`] and [`htree`]: names;
//! - [`xattr`]: extended attributes, ACLs, and where inline data is kept.
//!
//! The crate `fs_ext4` parses the single structures and computes checksums and
//! name hashes. It never sees the disk: each call passes bytes that were read
//! here through [`border`].
#![deny(clippy::arithmetic_side_effects)]

mod directory;
mod htree;
mod inode;
mod map;
#[cfg(test)]
pub(super) mod tests;
mod xattr;

use std::num::{NonZeroU32, NonZeroU64};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use fs_ext4::checksum::Checksummer;
use fs_ext4::features::{Compat, Incompat, RoCompat, SUPPORTED_INCOMPAT};
use fs_ext4::superblock::{
    EXT4_ERROR_FS, EXT4_MAGIC, EXT4_VALID_FS, SUPERBLOCK_OFFSET, Superblock,
};

use super::{Attr, Description, DirEntry, Extent, FileSystem, FileType};
use crate::error::{Error, Result};
use crate::image::BlockRead;

/// The root folder, by definition (`EXT4_ROOT_INO`).
const ROOT: u64 = 2;

/// How many group descriptors are remembered: 8 KiB, enough for 128 GiB of
/// 4 KiB blocks at once.
const DESCRIPTORS: usize = 1024;

/// ext2, ext3 or ext4.
pub struct Ext {
    volume: Arc<dyn BlockRead>,
    superblock: Superblock,
    checksum: Checksummer,
    description: Description,
    /// Block size as a power of two: 10 to 16.
    block_bits: u32,
    inodes_per_group: NonZeroU32,
    /// Where groups keep their inode tables: see [`Ext::inode_table`].
    descriptors: Box<[AtomicU64]>,
}

impl Ext {
    /// Opens it; reads the superblock and nothing else.
    ///
    /// # Errors
    /// `Corrupt` for a superblock that contradicts itself, `Unsupported` for
    /// features that the Linux kernel does not read either.
    pub fn open(volume: Arc<dyn BlockRead>) -> Result<Self> {
        const WHAT: &str = "ext4 superblock";
        let mut raw = vec![0; 1024];
        volume.read_at(SUPERBLOCK_OFFSET, &mut raw)?;
        let label = raw.get(0x78..0x88).unwrap_or_default();
        let label = label
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default()
            .to_vec();
        let unsupported = |reason| Error::Unsupported {
            what: "ext4".into(),
            reason,
        };
        let is_journal = le32(&raw, 0x60).unwrap_or(0) & Incompat::JOURNAL_DEV.bits() != 0;
        if is_journal && le16(&raw, 0x38) == Some(EXT4_MAGIC) {
            return Err(unsupported(
                "this is the journal of another file system".into(),
            ));
        }
        let superblock = border(|| WHAT.into(), || Superblock::parse(raw))?;
        let checksum = Checksummer::from_superblock(&superblock);
        if !checksum.verify_superblock(&superblock.raw) {
            return Err(Error::corrupt(WHAT, "its checksum is wrong"));
        }
        let unknown = superblock.feature_incompat & !SUPPORTED_INCOMPAT;
        if unknown != 0 {
            let reason = format!("it uses features that are not known (incompat {unknown:#x})");
            return Err(unsupported(reason));
        }
        // The crate leaves these to its callers.
        let block_bits = superblock.log_block_size.saturating_add(10);
        let block_size = superblock.block_size();
        let inode_size = u32::from(superblock.inode_size);
        if !(128..=block_size).contains(&inode_size) || !inode_size.is_power_of_two() {
            return Err(Error::corrupt(
                WHAT,
                format!("an inode cannot be {inode_size} bytes long"),
            ));
        }
        let inodes_per_group = NonZeroU32::new(superblock.inodes_per_group)
            .ok_or_else(|| Error::corrupt(WHAT, "there are no inodes in a group"))?;
        let groups = superblock.inodes_count.div_ceil(inodes_per_group.get());
        let slots = usize::try_from(groups)
            .unwrap_or(DESCRIPTORS)
            .clamp(1, DESCRIPTORS);
        let descriptors = (0..slots).map(|_| AtomicU64::new(0)).collect();
        let description = describe(&superblock, label, volume.size());
        Ok(Self {
            volume,
            superblock,
            checksum,
            description,
            block_bits,
            inodes_per_group,
            descriptors,
        })
    }

    /// Bytes per block.
    fn block_size(&self) -> u64 {
        1u64.wrapping_shl(self.block_bits)
    }

    /// The block that holds byte `offset`.
    fn block_of(&self, offset: u64) -> u64 {
        offset.wrapping_shr(self.block_bits)
    }

    /// Number of blocks that hold `bytes` bytes.
    fn blocks_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(NonZeroU64::MIN.get().max(self.block_size()))
    }

    /// First byte of a block; saturates, so that a wild number ends past the
    /// volume, where reading is an error.
    fn byte_of(&self, block: u64) -> u64 {
        block.saturating_mul(self.block_size())
    }

    /// Reads one whole block.
    fn read_block(&self, block: u64) -> Result<Vec<u8>> {
        let size = usize::try_from(self.block_size()).unwrap_or_default();
        let mut bytes = vec![0; size];
        self.volume.read_at(self.byte_of(block), &mut bytes)?;
        Ok(bytes)
    }

    fn has_incompat(&self, feature: Incompat) -> bool {
        self.superblock.feature_incompat & feature.bits() != 0
    }

    fn has_ro_compat(&self, feature: RoCompat) -> bool {
        self.superblock.feature_ro_compat & feature.bits() != 0
    }

    fn has_compat(&self, feature: Compat) -> bool {
        self.superblock.feature_compat & feature.bits() != 0
    }
}

impl FileSystem for Ext {
    fn root(&self) -> u64 {
        ROOT
    }

    fn description(&self) -> &Description {
        &self.description
    }

    fn attr(&self, ino: u64) -> Result<Attr> {
        let inode = self.inode(ino)?;
        self.attributes(&inode)
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<u64> {
        let folder = self.folder(dir)?;
        match name {
            b"." => Ok(dir),
            b".." => self.parent(dir),
            _ => self.find(&folder, name)?.ok_or_else(|| {
                Error::not_found(format!("{} in {}", name.escape_ascii(), folder.what()))
            }),
        }
    }

    fn parent(&self, dir: u64) -> Result<u64> {
        if dir == ROOT {
            Ok(ROOT)
        } else {
            self.parent_of(&self.folder(dir)?)
        }
    }

    fn read_dir(
        &self,
        dir: u64,
        position: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.entries(&self.folder(dir)?, position, each)
    }

    fn extents(&self, ino: u64, offset: u64, len: u64, out: &mut Vec<Extent>) -> Result<()> {
        let inode = self.inode(ino)?;
        match inode.kind()? {
            FileType::Regular => self.file_extents(&inode, offset, len, out),
            FileType::Directory => Err(Error::IsADirectory { what: inode.what() }),
            _ => Err(Error::Invalid(format!(
                "{}: not a regular file",
                inode.what()
            ))),
        }
    }

    fn read(&self, ino: u64, _offset: u64, _buf: &mut [u8]) -> Result<usize> {
        Err(Error::Unsupported {
            what: format!("ext4 inode {ino}"),
            reason: "nothing in ext4 has to be decoded".into(),
        })
    }

    fn read_link(&self, ino: u64) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        match inode.kind()? {
            FileType::Symlink => self.link_target(&inode),
            _ => Err(Error::Invalid(format!(
                "{}: not a symbolic link",
                inode.what()
            ))),
        }
    }

    fn xattr_names(&self, ino: u64) -> Result<Vec<Vec<u8>>> {
        self.attribute_names(&self.inode(ino)?)
    }

    fn xattr(&self, ino: u64, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.attribute(&self.inode(ino)?, name)
    }
}

/// Calls into the parser crate: its error becomes ours, and so does a panic.
fn border<T>(
    what: impl FnOnce() -> String,
    parse: impl FnOnce() -> fs_ext4::error::Result<T>,
) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(parse)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::corrupt(what(), error.to_string())),
        Err(_) => Err(Error::corrupt(
            what(),
            "its parser could not make sense of it",
        )),
    }
}

/// A little-endian number of two bytes at `at`; `None` past the end.
fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|raw| u16::from_le_bytes(*raw))
}

/// A little-endian number of four bytes at `at`; `None` past the end.
fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|raw| u32::from_le_bytes(*raw))
}

fn describe(superblock: &Superblock, label: Vec<u8>, volume: u64) -> Description {
    let mut notes = Vec::new();
    if superblock.feature_incompat & Incompat::RECOVER.bits() != 0 {
        notes.push(
            "The journal was not replayed: the file system was in use when the image was taken, \
             and its last changes before that may be missing or half done."
                .into(),
        );
    } else if superblock.state & EXT4_VALID_FS == 0 {
        notes.push(
            "The file system was not unmounted cleanly: its last changes may be missing or half \
             done."
                .into(),
        );
    }
    if superblock.state & EXT4_ERROR_FS != 0 {
        notes.push("The guest's kernel found errors in this file system; it needs fsck.".into());
    }
    let block_size = superblock.block_size();
    let missing = superblock
        .blocks_count
        .saturating_mul(u64::from(block_size));
    let missing = missing.saturating_sub(volume);
    if missing > 0 {
        notes.push(format!(
            "The volume is {missing} bytes shorter than its file system: what lies there cannot \
             be read."
        ));
    }
    let uuid = uuid::Uuid::from_bytes(superblock.uuid);
    Description {
        kind: kind(superblock),
        label,
        uuid: if uuid.is_nil() {
            String::new()
        } else {
            uuid.to_string()
        },
        block_size,
        blocks: superblock.blocks_count,
        blocks_free: superblock.free_blocks_count,
        files: u64::from(superblock.inodes_count),
        files_free: u64::from(superblock.free_inodes_count),
        notes,
    }
}

/// The name that `blkid` gives: ext4 is what has a feature that ext3 does not
/// know; of the others, ext3 is what has a journal.
fn kind(superblock: &Superblock) -> &'static str {
    let ext3_incompat = Incompat::FILETYPE | Incompat::RECOVER | Incompat::META_BG;
    let ext3_ro_compat = RoCompat::SPARSE_SUPER | RoCompat::LARGE_FILE | RoCompat::BTREE_DIR;
    if superblock.feature_incompat & !ext3_incompat.bits() != 0
        || superblock.feature_ro_compat & !ext3_ro_compat.bits() != 0
    {
        "ext4"
    } else if superblock.feature_compat & Compat::HAS_JOURNAL.bits() != 0 {
        "ext3"
    } else {
        "ext2"
    }
}
