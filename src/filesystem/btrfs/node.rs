//! Nodes of B-trees: read, verified, and a few of them kept.
//!
//! The idea: nothing is believed before the node's checksum, its address, its
//! UUID and the order of its keys were verified, and whoever points to a node
//! says what it expects there (level, generation, first key). So a search always
//! goes down, a scan always goes forward, and a stale copy is not taken.
//!
//! ```text
//! 0x00 csum[32]   0x30 bytenr   0x50 generation   0x60 nritems u32
//! 0x20 fsid[16]   0x38 flags    0x58 owner        0x64 level u8
//! 0x65 leaf: key[17], data offset u32 (from 0x65), data size u32
//!      above: key[17], block pointer u64, generation u64
//! ```

use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::checksum::Checksum;
use super::chunk::{Chunks, Piece};
use super::superblock::Superblock;
use crate::error::{Error, Result};
use crate::filesystem::field::{index, slice_at, u8_at, u32_at, u64_at};
use crate::image::BlockRead;

/// Bytes of verified nodes that one file system keeps.
const CAPACITY: usize = 4 << 20;

const HEADER: usize = 0x65;

/// What items are found by, in this order (`struct btrfs_key`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) objectid: u64,
    pub(super) kind: u8,
    pub(super) offset: u64,
}

impl Key {
    pub(super) const fn new(objectid: u64, kind: u8, offset: u64) -> Self {
        Self {
            objectid,
            kind,
            offset,
        }
    }

    /// From the 17 bytes at `at`.
    pub(super) fn parse(bytes: &[u8], at: usize) -> Option<Self> {
        let raw = slice_at(bytes, at, 17)?;
        Some(Self::new(u64_at(raw, 0)?, u8_at(raw, 8)?, u64_at(raw, 9)?))
    }
}

/// A verified node.
pub(super) struct Node {
    bytes: Box<[u8]>,
    pub(super) level: u8,
    /// Number of items or children.
    pub(super) count: usize,
    generation: u64,
}

impl Node {
    fn slot(&self, slot: usize) -> Option<&[u8]> {
        let len: usize = if self.level == 0 { 25 } else { 33 };
        let at = slot.checked_mul(len)?.checked_add(HEADER)?;
        slice_at(&self.bytes, at, len).filter(|_| slot < self.count)
    }

    /// Key of an item or child.
    pub(super) fn key(&self, slot: usize) -> Option<Key> {
        Key::parse(self.slot(slot)?, 0)
    }

    /// What an item holds; `None` if it is not in the node.
    pub(super) fn data(&self, slot: usize) -> Option<&[u8]> {
        let raw = self.slot(slot).filter(|_| self.level == 0)?;
        let at = index(u32_at(raw, 17)?).checked_add(HEADER)?;
        slice_at(&self.bytes, at, index(u32_at(raw, 21)?))
    }

    /// Logical byte of a child, and what is expected there.
    pub(super) fn child(&self, slot: usize) -> Option<(u64, Expected)> {
        let raw = self.slot(slot)?;
        Some((
            u64_at(raw, 17)?,
            Expected {
                level: self.level.checked_sub(1)?,
                generation: u64_at(raw, 25)?,
                first: Some(Key::parse(raw, 0)?),
            },
        ))
    }

    /// How many keys are smaller than `key`.
    pub(super) fn smaller(&self, key: Key) -> usize {
        let (mut low, mut high) = (0usize, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle).is_some_and(|found| found < key) {
                low = middle.saturating_add(1);
            } else {
                high = middle;
            }
        }
        low
    }
}

/// What a pointer says of the node that it points to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    pub(super) level: u8,
    pub(super) generation: u64,
    pub(super) first: Option<Key>,
}

impl Expected {
    /// What is wrong with `node`, if anything is.
    fn objection(&self, node: &Node) -> Option<&'static str> {
        if node.level != self.level {
            Some("its level is not the expected one")
        } else if node.generation != self.generation {
            Some("its generation is not the expected one")
        } else if self.first.is_some() && node.key(0) != self.first {
            Some("its first key is not the expected one")
        } else {
            None
        }
    }
}

/// How bytes of the volume are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the block cache.
    Cached,
    /// Past it.
    Direct,
}

/// All nodes of the file system.
pub(super) struct Nodes {
    pub(super) volume: Arc<dyn BlockRead>,
    pub(super) chunks: Chunks,
    pub(super) checksum: Checksum,
    pub(super) sector_size: u32,
    pub(super) node_size: usize,
    fsid: [u8; 16],
    kept: Mutex<LruCache<u64, Arc<Node>>>,
}

impl Nodes {
    pub(super) fn new(volume: Arc<dyn BlockRead>, chunks: Chunks, superblock: &Superblock) -> Self {
        Self {
            volume,
            chunks,
            checksum: superblock.checksum,
            sector_size: superblock.sector_size,
            node_size: index(superblock.node_size),
            fsid: superblock.metadata_uuid,
            kept: Mutex::new(LruCache::unbounded()),
        }
    }

    /// Logical bytes of the nodes that are kept.
    #[cfg(test)]
    pub(super) fn addresses(&self) -> Vec<u64> {
        self.kept
            .lock()
            .iter()
            .map(|(logical, _)| *logical)
            .collect()
    }

    /// The node at a logical byte, from the first copy that is as expected.
    ///
    /// # Errors
    /// `Corrupt` if no copy is; from below.
    pub(super) fn node(&self, logical: u64, expected: Expected) -> Result<Arc<Node>> {
        let what = || format!("btrfs node {logical}");
        if let Some(node) = self.kept.lock().get(&logical) {
            return match expected.objection(node) {
                None => Ok(Arc::clone(node)),
                Some(objection) => Err(Error::corrupt(what(), objection)),
            };
        }
        let mut trouble = None;
        for copy in 0..self.chunks.copies(logical)? {
            let mut bytes = vec![0; self.node_size];
            let outcome = self
                .read(logical, copy, Way::Cached, &mut bytes)
                .and_then(|()| {
                    let node = self.verify(logical, bytes)?;
                    match expected.objection(&node) {
                        None => Ok(node),
                        Some(objection) => Err(Error::corrupt(what(), objection)),
                    }
                });
            match outcome {
                Ok(node) => {
                    let node = Arc::new(node);
                    let mut kept = self.kept.lock();
                    kept.put(logical, Arc::clone(&node));
                    while kept.len().saturating_mul(self.node_size) > CAPACITY {
                        kept.pop_lru();
                    }
                    return Ok(node);
                }
                Err(error @ (Error::Corrupt { .. } | Error::Unsupported { .. })) => {
                    trouble = trouble.or(Some(error));
                }
                Err(error) => return Err(error),
            }
        }
        Err(trouble.unwrap_or_else(|| Error::corrupt(what(), "there is no copy of it")))
    }

    /// Fills `buf` from a logical byte, from copy number `copy` where that is
    /// there.
    ///
    /// # Errors
    /// As [`Chunks::map`]; from below.
    pub(super) fn read(&self, logical: u64, copy: u16, way: Way, buf: &mut [u8]) -> Result<()> {
        let mut pieces = Vec::new();
        self.chunks
            .map(logical, buf.len() as u64, copy, &mut pieces)?;
        let mut rest = buf;
        for Piece { offset, len } in pieces {
            let Some((part, after)) = rest.split_at_mut_checked(index(len)) else {
                break;
            };
            match way {
                Way::Cached => self.volume.read_at(offset, part)?,
                Way::Direct => self.volume.read_data_at(offset, part)?,
            }
            rest = after;
        }
        Ok(())
    }

    fn verify(&self, logical: u64, bytes: Vec<u8>) -> Result<Node> {
        let corrupt = |reason: &str| Error::corrupt(format!("btrfs node {logical}"), reason);
        let short = || corrupt("it is too short");
        let summed = bytes.get(32..).ok_or_else(short)?;
        if !self.checksum.matches(&bytes, summed) {
            return Err(corrupt("its checksum is wrong"));
        }
        if slice_at(&bytes, 0x20, 16) != Some(&self.fsid) || u64_at(&bytes, 0x30) != Some(logical) {
            return Err(corrupt("something else lies there"));
        }
        let node = Node {
            level: u8_at(&bytes, 0x64).ok_or_else(short)?,
            count: index(u32_at(&bytes, 0x60).ok_or_else(short)?),
            generation: u64_at(&bytes, 0x50).ok_or_else(short)?,
            bytes: bytes.into(),
        };
        let mut last = None;
        for slot in 0..node.count {
            let key = node.key(slot);
            if key.is_none() || key <= last {
                return Err(corrupt("its keys are not in order"));
            }
            last = key;
        }
        if node.count == 0 && node.level > 0 {
            return Err(corrupt("it has no children"));
        }
        Ok(node)
    }
}
