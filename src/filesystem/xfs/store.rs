//! The volume with the log's changes over it, and metadata blocks that are what
//! they say.
//!
//! The idea: since version 5 a block of metadata tells its own place, its owner
//! and its checksum ([`Layout`]). All of it is verified at each read, except the
//! checksum where the log has changed the block: the kernel would have computed
//! it when it wrote the block back. (The log's records have checksums too.)

use std::sync::Arc;

use super::field::{le32_at, slice_at, u64_at};
use super::overlay::Overlay;
use super::superblock::{Superblock, checksum};
use crate::error::{Error, Result};
use crate::image::BlockRead;

/// Where a block of version 5 says what it is: byte offsets.
pub(super) struct Layout {
    crc: usize,
    /// Its place, in units of 512 bytes.
    place: usize,
    uuid: usize,
    /// The inode that it belongs to, where that can be relied on.
    owner: Option<usize>,
}

/// Blocks of a folder that hold entries (`struct xfs_dir3_blk_hdr`).
pub(super) const DIR_DATA: Layout = Layout {
    crc: 4,
    place: 8,
    uuid: 24,
    owner: Some(40),
};

/// Nodes and leaves of folders and attributes (`struct xfs_da3_blkinfo`).
pub(super) const INDEX: Layout = Layout {
    crc: 12,
    place: 16,
    uuid: 32,
    owner: Some(48),
};

/// Blocks of a file's extent tree (`struct xfs_btree_block_lhdr`). Programs that
/// swap the content of two files leave the old owner.
pub(super) const EXTENT_TREE: Layout = Layout {
    crc: 64,
    place: 24,
    uuid: 40,
    owner: None,
};

/// Blocks of an AG's inode tree (`struct xfs_btree_block_shdr`).
pub(super) const INODE_TREE: Layout = Layout {
    crc: 52,
    place: 16,
    uuid: 32,
    owner: None,
};

/// Values of attributes and targets of links in blocks of their own
/// (`struct xfs_attr3_rmt_hdr`, `struct xfs_dsymlink_hdr`).
pub(super) const REMOTE: Layout = Layout {
    crc: 12,
    place: 40,
    uuid: 16,
    owner: Some(32),
};

/// A metadata block and the place it was read from.
pub(super) struct Block {
    pub(super) bytes: Vec<u8>,
    /// Byte offset of its beginning.
    pub(super) offset: u64,
    /// Whether the log has changed it.
    pub(super) changed: bool,
}

/// What everything is read from.
pub(super) struct Store {
    pub(super) volume: Arc<dyn BlockRead>,
    pub(super) superblock: Superblock,
    pub(super) overlay: Overlay,
}

impl Store {
    /// Fills `buf` from byte `offset`; tells whether the log has changed any of
    /// it.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<bool> {
        self.volume.read_at(offset, buf)?;
        Ok(self.overlay.apply(offset, buf))
    }

    /// `len` bytes from a linear block on.
    pub(super) fn block(&self, block: u64, len: usize) -> Result<Block> {
        let mut bytes = vec![0; len];
        let offset = self.superblock.bytes(block);
        let changed = self.read(offset, &mut bytes)?;
        Ok(Block {
            bytes,
            offset,
            changed,
        })
    }

    /// Verifies that a block is what it should be; says what is wrong with it.
    pub(super) fn verify(
        &self,
        block: &Block,
        layout: &Layout,
        owner: u64,
    ) -> std::result::Result<(), String> {
        if !self.superblock.v5 {
            return Ok(());
        }
        let (bytes, at) = (&block.bytes, block.offset);
        if !block.changed && le32_at(bytes, layout.crc) != Some(checksum(bytes, layout.crc)) {
            return Err(format!("the checksum of the block at byte {at} is wrong"));
        }
        let place = u64_at(bytes, layout.place).and_then(|place| place.checked_mul(512));
        if place != Some(at) || slice_at(bytes, layout.uuid, 16) != Some(&self.superblock.meta_uuid)
        {
            return Err(format!("the block at byte {at} belongs elsewhere"));
        }
        match layout.owner.map(|field| u64_at(bytes, field)) {
            Some(found) if found != Some(owner) => Err(format!(
                "the block at byte {at} belongs to another inode ({})",
                found.unwrap_or_default()
            )),
            _ => Ok(()),
        }
    }
}

/// What went wrong where the caller names the object: an error from below, or a
/// reason for [`Error::Corrupt`].
pub(super) enum Fault {
    Below(Error),
    Damage(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Below(error)
    }
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Damage(reason)
    }
}

impl From<&str> for Fault {
    fn from(reason: &str) -> Self {
        Self::Damage(reason.into())
    }
}

impl Fault {
    /// The error that names the object.
    pub(super) fn named(self, what: impl FnOnce() -> String) -> Error {
        match self {
            Self::Below(error) => error,
            Self::Damage(reason) => Error::corrupt(what(), reason),
        }
    }
}
