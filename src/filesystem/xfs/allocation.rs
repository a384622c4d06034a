//! Which inodes there are: the inode tree of an AG (`inobt`).
//!
//! Asked before version 5 only, where an inode does not prove by itself that it
//! is one: what lies there may be somebody's data.

use super::Xfs;
use super::field::{index, partition, slice_at, u16_at, u32_at, u64_at};
use super::store::{Block, Fault, INODE_TREE};
use crate::error::Result;

/// Inodes in a record of the tree.
const CHUNK: u32 = 64;

/// The most levels that a tree of 2³² inodes has.
const MAX_DEPTH: u32 = 9;

impl Xfs {
    /// Whether inode `number` of AG `ag` is in use.
    pub(super) fn is_allocated(&self, ag: u64, number: u32) -> Result<bool> {
        self.search_inode_tree(ag, number)
            .map_err(|fault| fault.named(|| format!("XFS inode tree of AG {ag}")))
    }

    fn search_inode_tree(&self, ag: u64, number: u32) -> std::result::Result<bool, Fault> {
        let superblock = &self.store.superblock;
        let first = ag.saturating_mul(u64::from(superblock.ag_blocks));
        // `struct xfs_agi`, in the third sector.
        let mut head = vec![0; 512];
        let sector = u64::from(superblock.sector_size);
        let offset = superblock
            .bytes(first)
            .saturating_add(sector.saturating_mul(2));
        self.store.read(offset, &mut head)?;
        if slice_at(&head, 0, 4) != Some(b"XAGI") {
            return Err("its head is not there".into());
        }
        let root = u32_at(&head, 20).zip(u32_at(&head, 24));
        let (mut block, mut levels) = root.ok_or("its head is cut off")?;
        if levels > MAX_DEPTH {
            return Err(format!("it cannot be {levels} deep").into());
        }
        loop {
            levels = levels.checked_sub(1).ok_or("it has no leaves")?;
            let node = self.inode_tree_block(ag, first, block)?;
            let bytes = &node.bytes;
            let level = u16_at(bytes, 4).map(u32::from);
            let count = usize::from(u16_at(bytes, 6).unwrap_or_default());
            let start = if superblock.v5 { 56 } else { 16 };
            let room = bytes.len().saturating_sub(start);
            let stride: usize = if levels == 0 { 16 } else { 4 };
            let fits = if levels == 0 { room / 16 } else { room / 8 };
            if level != Some(levels) || count > fits {
                return Err(format!("block {block} of it is not one").into());
            }
            let at = |nr: usize, stride: usize| start.saturating_add(nr.saturating_mul(stride));
            // The last one that begins at or before the number.
            let after = partition(count, |nr| {
                u32_at(bytes, at(nr, stride)).is_some_and(|key| key <= number)
            });
            let Some(nr) = after.checked_sub(1) else {
                return Ok(false);
            };
            if levels > 0 {
                let pointers = fits.saturating_mul(4);
                block = u32_at(bytes, at(nr, 4).saturating_add(pointers)).unwrap_or_default();
                continue;
            }
            // `struct xfs_inobt_rec`: first inode, count, a bit for each free one.
            let record = at(nr, 16);
            let within = number.saturating_sub(u32_at(bytes, record).unwrap_or_default());
            let free = u64_at(bytes, record.saturating_add(8)).unwrap_or(u64::MAX);
            return Ok(within < CHUNK && free.wrapping_shr(within) & 1 == 0);
        }
    }

    fn inode_tree_block(
        &self,
        ag: u64,
        first: u64,
        block: u32,
    ) -> std::result::Result<Block, Fault> {
        let superblock = &self.store.superblock;
        if u64::from(block) >= superblock.ag_len(ag) {
            return Err(format!("block {block} cannot be").into());
        }
        let place = first.saturating_add(u64::from(block));
        let node = self.store.block(place, index(superblock.block_size()))?;
        let magic = if superblock.v5 { b"IAB3" } else { b"IABT" };
        if slice_at(&node.bytes, 0, 4) != Some(magic) {
            return Err(format!("block {block} of it is not one").into());
        }
        self.store.verify(&node, &INODE_TREE, 0)?;
        Ok(node)
    }
}
