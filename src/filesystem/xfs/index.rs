//! The index of names that folders and attributes share: a tree of hashes
//! (`xfs_da_btree`).
//!
//! The idea: nodes lead to the leaf that holds a hash; leaves are chained, so
//! that equal hashes may run over into the next. What a leaf's entry of 8 bytes
//! says besides its hash is the caller's.

use std::ops::ControlFlow;

use super::Xfs;
use super::field::{index, partition, slice_at, u16_at, u32_at};
use super::inode::{Fork, Inode};
use super::map::Run;
use super::store::{Block, Fault, INDEX, Layout};
use crate::error::Result;
use crate::image::patience;

/// The most levels (`XFS_DA_NODE_MAXDEPTH`), the leaf included, and one to spare.
const MAX_DEPTH: usize = 6;

/// Bytes of an entry of a node or leaf.
const ENTRY: usize = 8;

/// `magic` of version 4; that of version 5 differs in the upper bits.
pub(super) const DIR_LEAF1: u16 = 0xd2f1;
pub(super) const DIR_LEAF: u16 = 0xd2ff;
pub(super) const ATTR_LEAF: u16 = 0xfbee;
const NODE: u16 = 0xfebe;

/// An index: the fork that holds it, from which block on, and how many blocks
/// are one of its own.
#[derive(Clone, Copy)]
pub(super) struct Index<'a> {
    pub(super) inode: &'a Inode,
    pub(super) fork: Fork<'a>,
    pub(super) start: u64,
    pub(super) blocks: u64,
    /// The `magic` that a leaf may have, of version 4.
    pub(super) leaf: &'static [u16],
}

/// A leaf, and where its entries begin.
pub(super) struct Leaf {
    pub(super) bytes: Vec<u8>,
    start: usize,
    count: usize,
    /// The block of the next one, 0 at the end.
    next: u64,
}

impl Leaf {
    /// The hash and the place of an entry.
    fn entry(&self, nr: usize) -> Option<(u32, usize)> {
        let at = self.start.saturating_add(nr.checked_mul(ENTRY)?);
        (nr < self.count).then_some((u32_at(&self.bytes, at)?, at))
    }
}

/// What a visitor of leaves is given: a leaf, and the place of an entry in it.
type Visitor<'a> = dyn FnMut(&Leaf, usize) -> std::result::Result<ControlFlow<()>, Fault> + 'a;

/// The hash of a name (`xfs_da_hashname`).
pub(super) fn hash(name: &[u8]) -> u32 {
    let mut hash = 0u32;
    let mut chunks = name.chunks_exact(4);
    for chunk in &mut chunks {
        let mut word = 0u32;
        for byte in chunk {
            word = word.wrapping_shl(7) ^ u32::from(*byte);
        }
        hash = word ^ hash.rotate_left(28);
    }
    let rest = chunks.remainder();
    let mut word = 0u32;
    for byte in rest {
        word = word.wrapping_shl(7) ^ u32::from(*byte);
    }
    match rest.len() {
        0 => hash,
        1 => word ^ hash.rotate_left(7),
        2 => word ^ hash.rotate_left(14),
        _ => word ^ hash.rotate_left(21),
    }
}

impl Xfs {
    /// Metadata that lies in `runs`, verified.
    pub(super) fn gather(
        &self,
        runs: &[Run],
        layout: &Layout,
        owner: u64,
    ) -> std::result::Result<Vec<u8>, Fault> {
        let superblock = &self.store.superblock;
        let mut whole = Block {
            bytes: Vec::new(),
            offset: 0,
            changed: false,
        };
        for run in runs {
            let part = self
                .store
                .block(run.physical, index(superblock.bytes(run.len)))?;
            if whole.bytes.is_empty() {
                whole = part;
            } else {
                whole.bytes.extend(part.bytes);
                whole.changed |= part.changed;
            }
        }
        self.store.verify(&whole, layout, owner)?;
        Ok(whole.bytes)
    }

    fn index_block(&self, tree: &Index<'_>, number: u64) -> std::result::Result<Vec<u8>, Fault> {
        let end = number.saturating_add(tree.blocks);
        let runs = self.mapped(tree.inode, &tree.fork, number..end)?;
        self.gather(&runs, &INDEX, tree.inode.ino)
    }

    /// The leaf that holds the first entry whose hash is `target` or more.
    fn leaf(&self, tree: &Index<'_>, target: u32) -> std::result::Result<Option<Leaf>, Fault> {
        let mut number = tree.start;
        for _ in 0..MAX_DEPTH {
            patience::spend()?;
            let bytes = self.index_block(tree, number)?;
            if let Some(leaf) = self.as_leaf(tree, number, &bytes)? {
                return Ok(Some(Leaf { bytes, ..leaf }));
            }
            let (count_at, start) = if self.store.superblock.v5 {
                (56, 64)
            } else {
                (12, 16)
            };
            let count = usize::from(u16_at(&bytes, count_at).unwrap_or_default());
            let entries = slice_at(&bytes, start, count.saturating_mul(ENTRY));
            let entries = entries.ok_or("a node of its index is longer than its block")?;
            let nr = partition(count, |nr| {
                u32_at(entries, nr.saturating_mul(ENTRY)).is_some_and(|hash| hash < target)
            });
            let child = nr.saturating_mul(ENTRY).saturating_add(4);
            match u32_at(entries, child) {
                Some(child) => number = u64::from(child),
                None => return Ok(None),
            }
        }
        Err("its index is too deep".into())
    }

    /// What of `bytes` is a leaf; `None` for a node.
    fn as_leaf(
        &self,
        tree: &Index<'_>,
        number: u64,
        bytes: &[u8],
    ) -> std::result::Result<Option<Leaf>, Fault> {
        let v5 = self.store.superblock.v5;
        let magic = |known: u16| if v5 { (known & 0xff) | 0x3d00 } else { known };
        // Attributes and nodes have another upper half than folders.
        let others = |known: u16| if v5 { (known & 0xff) | 0x3b00 } else { known };
        let found = u16_at(bytes, 8).unwrap_or_default();
        if found == if v5 { 0x3ebe } else { NODE } {
            return Ok(None);
        }
        let is_leaf = tree.leaf.iter().any(|known| match *known {
            ATTR_LEAF => found == others(ATTR_LEAF),
            known => found == magic(known),
        });
        if !is_leaf {
            return Err(format!("block {number} is none of its index").into());
        }
        let attribute = found == others(ATTR_LEAF);
        let (count_at, start) = match (v5, attribute) {
            (false, false) => (12, 16),
            (false, true) => (12, 32),
            (true, false) => (56, 64),
            (true, true) => (56, 80),
        };
        let count = usize::from(u16_at(bytes, count_at).unwrap_or_default());
        if slice_at(bytes, start, count.saturating_mul(ENTRY)).is_none() {
            return Err("a leaf of its index is longer than its block".into());
        }
        Ok(Some(Leaf {
            bytes: Vec::new(),
            start,
            count,
            next: u32_at(bytes, 0).map(u64::from).unwrap_or_default(),
        }))
    }

    /// Calls `visit` with the leaf and the place of each entry of hash `target`,
    /// or of all entries in order, until it breaks.
    pub(super) fn visit_index(
        &self,
        tree: &Index<'_>,
        target: Option<u32>,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        self.walk_leaves(tree, target, visit)
            .map_err(|fault| fault.named(|| tree.inode.what()))
    }

    fn walk_leaves(
        &self,
        tree: &Index<'_>,
        target: Option<u32>,
        visit: &mut Visitor<'_>,
    ) -> std::result::Result<(), Fault> {
        let from = target.unwrap_or(0);
        let Some(mut leaf) = self.leaf(tree, from)? else {
            return Ok(());
        };
        // There cannot be more leaves than blocks: a chain in a circle ends.
        for _ in 0..=tree.inode.blocks {
            let first = partition(leaf.count, |nr| {
                leaf.entry(nr).is_some_and(|(hash, _)| hash < from)
            });
            for nr in first..leaf.count {
                patience::spend()?;
                match leaf.entry(nr) {
                    Some((hash, at)) if target.is_none_or(|target| hash == target) => {
                        if visit(&leaf, at)?.is_break() {
                            return Ok(());
                        }
                    }
                    _ => return Ok(()),
                }
            }
            if leaf.next == 0 {
                return Ok(());
            }
            let bytes = self.index_block(tree, leaf.next)?;
            let next = self.as_leaf(tree, leaf.next, &bytes)?;
            let next = next.ok_or("a leaf of its index leads to a node")?;
            leaf = Leaf { bytes, ..next };
        }
        Err("the leaves of its index lead in a circle".into())
    }
}
