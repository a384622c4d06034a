//! From a fork's blocks to the volume's: lists and trees of extents.
//!
//! The idea: a range of a fork is a series of [`Run`]s; what lies between them
//! is a hole. A list is searched by halving, a tree (`bmbt`) descended to the
//! range that is asked for, and both are left as soon as the caller has enough:
//! the cost follows the range and not the file. Keys must rise and stay within
//! what the parent promised: a tree that loops cannot, so that it ends in an
//! error.

use std::ops::{ControlFlow, Range};

use super::Xfs;
use super::field::{index, partition, slice_at, u16_at, u64_at};
use super::inode::{Fork, Format, Inode};
use super::store::{EXTENT_TREE, Fault};
use crate::error::{Error, Result};
use crate::image::patience;

/// Bytes of an extent (`xfs_bmbt_rec`).
const RECORD: usize = 16;

/// The most levels a tree can have (`XFS_BM_MAXLEVELS`, rounded up).
const MAX_LEVEL: u16 = 12;

/// Blocks of a file that follow each other on the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First block within the fork.
    pub(super) logical: u64,
    /// First block on the volume: a linear number.
    pub(super) physical: u64,
    /// Number of blocks.
    pub(super) len: u64,
    /// Allocated, but to be read as zeros.
    pub(super) unwritten: bool,
}

impl Run {
    pub(super) fn end(&self) -> u64 {
        self.logical.saturating_add(self.len)
    }

    fn physical_end(&self) -> u64 {
        self.physical.saturating_add(self.len)
    }

    /// The part within `range`, if there is one.
    fn cut(self, range: &Range<u64>) -> Option<Self> {
        let logical = self.logical.max(range.start);
        let len = self.end().min(range.end).saturating_sub(logical);
        let skipped = logical.saturating_sub(self.logical);
        (len > 0).then(|| Self {
            logical,
            physical: self.physical.saturating_add(skipped),
            len,
            ..self
        })
    }
}

/// An extent as it is kept: one bit that it is unwritten, 54 bits of offset, 52
/// bits of block number, 21 bits of length.
#[derive(Clone, Copy)]
struct Record(u64, u64);

impl Record {
    fn at(bytes: &[u8], nr: usize) -> Option<Self> {
        let at = nr.checked_mul(RECORD)?;
        Some(Self(
            u64_at(bytes, at)?,
            u64_at(bytes, at.saturating_add(8))?,
        ))
    }

    fn start(self) -> u64 {
        (self.0 >> 9) & ((1 << 54) - 1)
    }

    fn len(self) -> u64 {
        self.1 & ((1 << 21) - 1)
    }

    fn end(self) -> u64 {
        self.start().saturating_add(self.len())
    }

    fn block(self) -> u64 {
        ((self.0 & 0x1ff) << 43) | (self.1 >> 21)
    }

    fn is_unwritten(self) -> bool {
        self.0 >> 63 != 0
    }
}

/// Where a walk hands over what it finds: cuts it to the range, joins it, and
/// refuses what goes backwards or leaves the volume.
struct Runs<'a> {
    xfs: &'a Xfs,
    range: Range<u64>,
    /// Where the last record ended.
    end: u64,
    pending: Option<Run>,
    each: &'a mut dyn FnMut(Run) -> ControlFlow<()>,
}

type Walked = std::result::Result<ControlFlow<()>, Fault>;

impl Runs<'_> {
    fn push(&mut self, record: Record) -> Walked {
        let physical = self
            .xfs
            .store
            .superblock
            .linear(record.block(), record.len());
        let Some(physical) = physical.filter(|block| *block != 0) else {
            return Err(format!(
                "{} blocks of it cannot lie at block {}",
                record.len(),
                record.block()
            )
            .into());
        };
        if record.start() < self.end {
            return Err(format!("block {} of it is mapped twice", record.start()).into());
        }
        self.end = record.end();
        let run = Run {
            logical: record.start(),
            physical,
            len: record.len(),
            unwritten: record.is_unwritten(),
        };
        let Some(run) = run.cut(&self.range) else {
            return Ok(ControlFlow::Continue(()));
        };
        match &mut self.pending {
            Some(last)
                if run.logical == last.end()
                    && run.physical == last.physical_end()
                    && run.unwritten == last.unwritten =>
            {
                last.len = last.len.saturating_add(run.len);
                Ok(ControlFlow::Continue(()))
            }
            pending => Ok(pending
                .replace(run)
                .map_or(ControlFlow::Continue(()), &mut self.each)),
        }
    }

    /// The extents of a list that lie in the range; starts of `keys` only.
    fn leaf(&mut self, records: &[u8], keys: &Range<u64>) -> Walked {
        let count = records.len() / RECORD;
        let start = self.range.start;
        let first = partition(count, |nr| {
            Record::at(records, nr).is_some_and(|record| record.end() <= start)
        });
        for nr in first..count {
            patience::spend()?;
            let Some(record) = Record::at(records, nr) else {
                break;
            };
            if record.start() >= self.range.end {
                return Ok(ControlFlow::Break(()));
            }
            if !keys.contains(&record.start()) {
                return Err(format!("block {} of it is misplaced", record.start()).into());
            }
            if self.push(record)?.is_break() {
                self.pending = None;
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The children of a node that reach into the range. `level` is the node's;
    /// `keys` is what its parent promised.
    fn node(&mut self, keys: &[u8], pointers: &[u8], level: u16, promised: &Range<u64>) -> Walked {
        let count = keys.len() / 8;
        let key = |nr: usize| u64_at(keys, nr.saturating_mul(8));
        let start = self.range.start;
        let after = partition(count, |nr| key(nr).is_some_and(|key| key <= start));
        for nr in after.saturating_sub(1)..count {
            let (Some(first), Some(child)) = (key(nr), u64_at(pointers, nr.saturating_mul(8)))
            else {
                break;
            };
            if first >= self.range.end {
                return Ok(ControlFlow::Break(()));
            }
            let end = key(nr.saturating_add(1)).unwrap_or(promised.end);
            if first < promised.start || end > promised.end || end <= first {
                return Err("the keys of its extent tree do not rise".into());
            }
            if self
                .child(child, level.saturating_sub(1), &(first..end))?
                .is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// A block of the tree (`struct xfs_btree_block`, long form).
    fn child(&mut self, number: u64, level: u16, keys: &Range<u64>) -> Walked {
        patience::spend()?;
        let (store, superblock) = (&self.xfs.store, &self.xfs.store.superblock);
        let place = superblock.linear(number, 1);
        let place = place.ok_or_else(|| format!("its extent tree has no block {number}"))?;
        let block = store.block(place, index(superblock.block_size()))?;
        let (magic, start) = if superblock.v5 {
            (b"BMA3", 72)
        } else {
            (b"BMAP", 24)
        };
        let bytes = &block.bytes;
        if slice_at(bytes, 0, 4) != Some(magic) || u16_at(bytes, 4) != Some(level) {
            return Err(format!("block {number} is none of its extent tree").into());
        }
        store.verify(&block, &EXTENT_TREE, 0)?;
        let count = usize::from(u16_at(bytes, 6).unwrap_or_default());
        let room = bytes.len().saturating_sub(start) / RECORD;
        let misfit = || format!("block {number} of its extent tree holds {count} records");
        if count == 0 || count > room {
            return Err(misfit().into());
        }
        if level == 0 {
            let records = slice_at(bytes, start, count.saturating_mul(RECORD));
            return self.leaf(records.ok_or_else(misfit)?, keys);
        }
        let len = count.saturating_mul(8);
        let pointers = start.saturating_add(room.saturating_mul(8));
        let parts = slice_at(bytes, start, len).zip(slice_at(bytes, pointers, len));
        let (own_keys, pointers) = parts.ok_or_else(misfit)?;
        self.node(own_keys, pointers, level, keys)
    }

    fn root(&mut self, fork: &Fork<'_>) -> Walked {
        let all = 0..u64::MAX;
        match fork.format {
            Format::Extents => {
                let len = index(fork.extents).checked_mul(RECORD);
                let records = len.and_then(|len| fork.bytes.get(..len));
                let records = records
                    .ok_or_else(|| format!("{} extents do not fit into it", fork.extents))?;
                self.leaf(records, &all)
            }
            Format::Tree => {
                // `struct xfs_bmdr_block`: level, count, keys, pointers.
                let level = u16_at(fork.bytes, 0).unwrap_or_default();
                let count = usize::from(u16_at(fork.bytes, 2).unwrap_or_default());
                let room = fork.bytes.len().saturating_sub(4) / RECORD;
                let len = count.saturating_mul(8);
                let pointers = room.saturating_mul(8).saturating_add(4);
                let parts = slice_at(fork.bytes, 4, len).zip(slice_at(fork.bytes, pointers, len));
                match parts {
                    Some((keys, pointers))
                        if (1..=MAX_LEVEL).contains(&level) && (1..=room).contains(&count) =>
                    {
                        self.node(keys, pointers, level, &all)
                    }
                    _ => Err("the root of its extent tree makes no sense".into()),
                }
            }
            Format::Local | Format::Device => Err("it has no extents".into()),
        }
    }
}

impl Xfs {
    /// Calls `each` with the runs of blocks `range` of a fork, in order, each as
    /// long as it can be, until it breaks. What is between is a hole.
    pub(super) fn runs(
        &self,
        inode: &Inode,
        fork: &Fork<'_>,
        range: Range<u64>,
        each: &mut dyn FnMut(Run) -> ControlFlow<()>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mut runs = Runs {
            xfs: self,
            range,
            end: 0,
            pending: None,
            each,
        };
        let _ = runs
            .root(fork)
            .map_err(|fault| fault.named(|| inode.what()))?;
        if let Some(last) = runs.pending {
            // The last one: whether to go on no longer matters.
            let _ = (runs.each)(last);
        }
        Ok(())
    }

    /// The first run of a fork within blocks `range`.
    pub(super) fn first_run(
        &self,
        inode: &Inode,
        fork: &Fork<'_>,
        range: Range<u64>,
    ) -> Result<Option<Run>> {
        let mut first = None;
        self.runs(inode, fork, range, &mut |run| {
            first = Some(run);
            ControlFlow::Break(())
        })?;
        Ok(first)
    }

    /// Blocks `range` of a fork that are to be there, without a hole.
    pub(super) fn mapped(
        &self,
        inode: &Inode,
        fork: &Fork<'_>,
        range: Range<u64>,
    ) -> Result<Vec<Run>> {
        let (mut at, mut all) = (range.start, Vec::new());
        let end = range.end;
        self.runs(inode, fork, range, &mut |run| {
            if run.logical != at || run.unwritten {
                return ControlFlow::Break(());
            }
            at = run.end();
            all.push(run);
            ControlFlow::Continue(())
        })?;
        if at == end {
            return Ok(all);
        }
        Err(Error::corrupt(
            inode.what(),
            format!("block {at} of its metadata is missing"),
        ))
    }
}
