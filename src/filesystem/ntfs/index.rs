//! Indexes: B+trees whose root stands in the MFT record ($INDEX_ROOT) and whose
//! other nodes are blocks of an allocation ($INDEX_ALLOCATION). Folders are
//! indexes of file names ($I30).
//!
//! A look-up goes down the tree. A listing does not: it reads the root's entries
//! and then those of each block that the index's bitmap says is in use, in the
//! order of the disk. So nothing can go round in circles, the blocks are read
//! one after the other, and a position is a place on the disk, which stays.
#![deny(clippy::arithmetic_side_effects)]

use std::cmp::Ordering;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::attribute;
use super::mft::{File, Mft};
use super::record::restore;
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::filesystem::field::{index, slice_at, u8_at, u16_at, u32_at, u64_at};

/// The name of a folder's index, as on disk.
pub(super) const I30: &[u8] = b"$\0I\x003\x000\0";

/// Offset of the node's head in the value of $INDEX_ROOT.
const IN_ROOT: usize = 16;

/// Offset of the node's head in a block.
const IN_BLOCK: usize = 24;

/// The largest block, in bytes.
const MAX_BLOCK: u64 = 64 << 10;

/// The longest bitmap of an index that is read: 32 GiB of blocks.
const MAX_BITMAP: u64 = 1 << 20;

/// Levels of a tree; each has at least twice the blocks of the one above.
const MAX_DEPTH: u32 = 32;

/// Blocks that one look-up may read.
const MAX_VISITS: u32 = 1024;

/// After so many blocks that cannot be read, a listing gives up.
const MAX_DAMAGED: u32 = 64;

/// How far a listing is announced, in bytes: the blocks of a folder that grew
/// slowly lie far apart, and waiting for one after the other takes long.
const AHEAD: u64 = 1 << 20;

/// In a position, the bits that say where in the node; the rest says which node.
const IN_NODE: u32 = 20;

/// One entry of an index.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    bytes: &'a [u8],
    /// Offset of the entry's end in the node's bytes.
    end: usize,
    /// What it is found by; for $I30 a $FILE_NAME.
    pub(super) key: &'a [u8],
    child: Option<u64>,
    last: bool,
}

impl<'a> Entry<'a> {
    /// The file reference that an entry of $I30 has.
    pub(super) fn reference(&self) -> u64 {
        u64_at(self.bytes, 0).unwrap_or(0)
    }

    /// The data that an entry of another index has.
    pub(super) fn data(&self) -> &'a [u8] {
        let at = |at| index(u16_at(self.bytes, at).unwrap_or(0));
        slice_at(self.bytes, at(0), at(2)).unwrap_or_default()
    }
}

/// The entries of the node whose head is at `head`; `None` ends a damaged one.
fn entries(node: &[u8], head: usize) -> impl Iterator<Item = Option<Entry<'_>>> {
    let place = |at: usize| {
        let offset = index(u32_at(node, head.saturating_add(at))?);
        head.checked_add(offset)
    };
    let mut at = place(0).unwrap_or(usize::MAX);
    let end = place(4).unwrap_or(0);
    let node = node.get(..end);
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        let entry = node.and_then(|node| entry(node, at));
        match &entry {
            Some(entry) => {
                at = entry.end;
                done = entry.last;
            }
            None => done = true,
        }
        Some(entry)
    })
}

fn entry(node: &[u8], at: usize) -> Option<Entry<'_>> {
    let rest = node.get(at..)?;
    let len = index(u16_at(rest, 8)?);
    let bytes = rest.get(..len).filter(|_| len >= 16)?;
    let flags = u8_at(bytes, 12)?;
    let child = match flags & 1 {
        0 => None,
        _ => Some(u64_at(bytes, len.checked_sub(8)?)?),
    };
    let last = flags & 2 != 0;
    let key = if last {
        &[][..]
    } else {
        slice_at(bytes, 16, index(u16_at(bytes, 10)?))?
    };
    Some(Entry {
        bytes,
        end: at.checked_add(len)?,
        key,
        child,
        last,
    })
}

/// An index, ready to be searched.
pub(super) struct Index<'a> {
    mft: &'a Mft,
    file: &'a File,
    name: &'a [u8],
    /// The value of $INDEX_ROOT.
    root: Vec<u8>,
    /// Bytes per block.
    block: u64,
    /// Bytes that a block's number counts.
    unit: u64,
    allocation: Option<Arc<Stream>>,
}

impl<'a> Index<'a> {
    /// Index `name` of `file`, if it has one.
    pub(super) fn open(mft: &'a Mft, file: &'a File, name: &'a [u8]) -> Result<Option<Self>> {
        let Some(root) = mft.resident(file, attribute::INDEX_ROOT, name)? else {
            return Ok(None);
        };
        let block = u64::from(u32_at(&root, 8).unwrap_or(0));
        if !block.is_power_of_two() || !(512..=MAX_BLOCK).contains(&block) {
            let what = format!("index of {}", file.record.what());
            return Err(Error::corrupt(
                what,
                "its blocks have no size that blocks can have",
            ));
        }
        let cluster = mft.volume.boot.cluster;
        let unit = if cluster <= block { cluster } else { 512 };
        // Bit 0 of the node's flags: there are blocks besides the root.
        let large = u8_at(&root, IN_ROOT.saturating_add(12)).unwrap_or(0) & 1 != 0;
        let allocation = match large {
            true => mft.stream(file, attribute::INDEX_ALLOCATION, name)?,
            false => None,
        };
        Ok(Some(Self {
            mft,
            file,
            name,
            root,
            block,
            unit,
            allocation,
        }))
    }

    fn damaged(&self, reason: impl Into<String>) -> Error {
        Error::corrupt(format!("index of {}", self.file.record.what()), reason)
    }

    /// Reads the block at byte `offset` of the allocation into `block`.
    fn read_block(&self, offset: u64, block: &mut Vec<u8>) -> Result<()> {
        let allocation = self
            .allocation
            .as_ref()
            .ok_or_else(|| self.damaged("it has no blocks"))?;
        block.resize(index(self.block), 0);
        if allocation.read(&self.mft.volume, offset, block, None)? != block.len() {
            return Err(self.damaged("it has no such block"));
        }
        restore(block, b"INDX", || {
            format!("index block of {}", self.file.record.what())
        })?;
        if u64_at(block, 16).and_then(|vcn| vcn.checked_mul(self.unit)) != Some(offset) {
            return Err(self.damaged("a block is not where it says it is"));
        }
        Ok(())
    }

    /// Calls `found` with the entries whose key compares as equal, in the tree's
    /// order, until it breaks.
    pub(super) fn search(
        &self,
        compare: &dyn Fn(&[u8]) -> Ordering,
        found: &mut dyn FnMut(&Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut search = Search {
            index: self,
            compare,
            found,
            visits: 0,
        };
        search.node(&self.root, IN_ROOT, 0).map(|_| ())
    }

    /// Calls `each` with the entries from `position` on, and with the position
    /// after each, until it breaks.
    pub(super) fn list(
        &self,
        position: u64,
        each: &mut dyn FnMut(&Entry<'_>, u64) -> ControlFlow<()>,
    ) -> Result<()> {
        let slot = position.wrapping_shr(IN_NODE);
        if let Some(allocation) = &self.allocation {
            let from = slot.saturating_sub(1).saturating_mul(self.block);
            allocation.will_need(&self.mft.volume, from, AHEAD);
        }
        let mut skip = index(position & 1u64.wrapping_shl(IN_NODE).wrapping_sub(1));
        let mut failed = None;
        if slot == 0 {
            match self.list_node(&self.root, IN_ROOT, 0, skip, each) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return Ok(()),
                Err(error) => failed = Some(error),
            }
            skip = 0;
        }
        let Some(allocation) = &self.allocation else {
            return failed.map_or(Ok(()), Err);
        };
        let bitmap = self
            .mft
            .value(self.file, attribute::BITMAP, self.name, MAX_BITMAP)?;
        let bitmap = bitmap.ok_or_else(|| self.damaged("its bitmap is missing"))?;
        let blocks = allocation.size().checked_div(self.block).unwrap_or(0);
        let mut block = Vec::new();
        let mut damaged = 0u32;
        for number in slot.saturating_sub(1)..blocks {
            let byte = bitmap.get(index(number.wrapping_shr(3)));
            let Some(byte) = byte else { break };
            if byte.wrapping_shr(u32::try_from(number & 7).unwrap_or(0)) & 1 == 0 {
                skip = 0;
                continue;
            }
            let slot = number.saturating_add(1);
            let listed = self
                .read_block(number.saturating_mul(self.block), &mut block)
                .and_then(|()| self.list_node(&block, IN_BLOCK, slot, skip, each));
            skip = 0;
            match listed {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return Ok(()),
                Err(Error::WouldWait) => return Err(Error::WouldWait),
                Err(error) => {
                    failed.get_or_insert(error);
                    damaged = damaged.saturating_add(1);
                    if damaged >= MAX_DAMAGED {
                        break;
                    }
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Lists the entries of one node that begin at `skip` or later.
    fn list_node(
        &self,
        node: &[u8],
        head: usize,
        slot: u64,
        skip: usize,
        each: &mut dyn FnMut(&Entry<'_>, u64) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        for entry in entries(node, head) {
            let entry = entry.ok_or_else(|| self.damaged("an entry reaches past its node"))?;
            if entry.last {
                break;
            }
            if entry.end <= skip {
                continue;
            }
            let next = slot.wrapping_shl(IN_NODE) | u64::try_from(entry.end).unwrap_or(0);
            if each(&entry, next).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

struct Search<'a> {
    index: &'a Index<'a>,
    compare: &'a dyn Fn(&[u8]) -> Ordering,
    found: &'a mut dyn FnMut(&Entry<'_>) -> ControlFlow<()>,
    visits: u32,
}

impl Search<'_> {
    fn node(&mut self, node: &[u8], head: usize, depth: u32) -> Result<ControlFlow<()>> {
        for entry in entries(node, head) {
            let damaged = || self.index.damaged("an entry reaches past its node");
            let entry = entry.ok_or_else(damaged)?;
            let order = if entry.last {
                Ordering::Greater
            } else {
                (self.compare)(entry.key)
            };
            if order == Ordering::Less {
                continue;
            }
            if order == Ordering::Equal && (self.found)(&entry).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            // What is left of the first greater entry may still be equal.
            if let Some(child) = entry.child
                && self.child(child, depth)?.is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
            if order == Ordering::Greater {
                break;
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn child(&mut self, number: u64, depth: u32) -> Result<ControlFlow<()>> {
        self.visits = self.visits.saturating_add(1);
        if depth >= MAX_DEPTH || self.visits > MAX_VISITS {
            return Err(self.index.damaged("its blocks go round in circles"));
        }
        let mut block = Vec::new();
        self.index
            .read_block(number.saturating_mul(self.index.unit), &mut block)?;
        self.node(&block, IN_BLOCK, depth.saturating_add(1))
    }
}
