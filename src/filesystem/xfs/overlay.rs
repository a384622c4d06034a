//! What the log would have written, sector by sector, in memory.
//!
//! Empty for a file system that was unmounted. Holds at most [`CAPACITY`] bytes.

use std::collections::BTreeMap;

use super::field::{index, wide};
use crate::error::{Error, Result};
use crate::image::BlockRead;

/// Bytes of a sector: what the log counts in.
pub(super) const SECTOR: usize = 512;

/// The same, as a number on the volume.
pub(super) const SECTOR_BYTES: u64 = 512;

/// How much memory an overlay may take, in bytes.
const CAPACITY: usize = 128 << 20;

/// What an entry of the map takes besides its bytes, about.
const ENTRY: usize = 48;

/// Sectors by their number; `None` is a sector of zeros.
#[derive(Default)]
pub(super) struct Overlay {
    sectors: BTreeMap<u64, Option<Box<[u8; SECTOR]>>>,
    /// How many of them are not `None`.
    filled: usize,
}

impl Overlay {
    /// Bytes that it takes in memory.
    pub(super) fn memory(&self) -> usize {
        self.sectors
            .len()
            .saturating_mul(ENTRY)
            .saturating_add(self.filled.saturating_mul(SECTOR))
    }

    /// Lays it over `buf`, which was read from byte `offset`; tells whether it
    /// changed anything.
    pub(super) fn apply(&self, offset: u64, buf: &mut [u8]) -> bool {
        if self.sectors.is_empty() || buf.is_empty() {
            return false;
        }
        let end = offset.saturating_add(wide(buf.len()));
        let mut changed = false;
        let sectors = offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES);
        for (number, sector) in self.sectors.range(sectors) {
            changed = true;
            let start = number.saturating_mul(SECTOR_BYTES);
            let (from, to) = (
                start.max(offset),
                end.min(start.saturating_add(SECTOR_BYTES)),
            );
            let part = index(from.saturating_sub(offset))..index(to.saturating_sub(offset));
            let Some(target) = buf.get_mut(part) else {
                continue;
            };
            let skip = index(from.saturating_sub(start));
            match sector {
                Some(bytes) => {
                    let source = bytes.get(skip..).unwrap_or_default();
                    for (target, source) in target.iter_mut().zip(source) {
                        *target = *source;
                    }
                }
                None => target.fill(0),
            }
        }
        changed
    }

    /// Lays `bytes` over byte `offset` on; the rest of a sector comes from
    /// `volume` if it is not here yet.
    pub(super) fn write(
        &mut self,
        volume: &dyn BlockRead,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let number = at / SECTOR_BYTES;
            let skip = index(at % SECTOR_BYTES);
            let len = rest.len().min(SECTOR.saturating_sub(skip));
            let mut sector = Box::new([0; SECTOR]);
            let start = number.saturating_mul(SECTOR_BYTES);
            match self.sectors.get(&number) {
                Some(Some(known)) => *sector = **known,
                Some(None) => {}
                None => {
                    volume.read_at(start, sector.as_mut_slice())?;
                }
            }
            let (now, later) = rest.split_at_checked(len).unwrap_or((rest, &[]));
            for (target, source) in sector.iter_mut().skip(skip).zip(now) {
                *target = *source;
            }
            if !matches!(self.sectors.insert(number, Some(sector)), Some(Some(_))) {
                self.filled = self.filled.saturating_add(1);
            }
            rest = later;
            at = at.saturating_add(wide(len));
        }
        self.check()
    }

    /// Lays zeros over `len` bytes from `offset` on, both whole sectors.
    pub(super) fn clear(&mut self, offset: u64, len: u64) -> Result<()> {
        let first = offset / SECTOR_BYTES;
        for number in first..first.saturating_add(len / SECTOR_BYTES) {
            if let Some(Some(_)) = self.sectors.insert(number, None) {
                self.filled = self.filled.saturating_sub(1);
            }
            self.check()?;
        }
        Ok(())
    }

    /// Lets `len` bytes from `offset` on be what the volume has.
    pub(super) fn forget(&mut self, offset: u64, len: u64) {
        let first = offset / SECTOR_BYTES;
        let range = first..first.saturating_add(len.div_ceil(SECTOR_BYTES));
        let there: Vec<u64> = self
            .sectors
            .range(range)
            .map(|(number, _)| *number)
            .collect();
        for number in there {
            if let Some(Some(_)) = self.sectors.remove(&number) {
                self.filled = self.filled.saturating_sub(1);
            }
        }
    }

    fn check(&self) -> Result<()> {
        if self.memory() <= CAPACITY {
            return Ok(());
        }
        Err(Error::TooLarge {
            what: "the log's changes in memory".into(),
            limit: wide(CAPACITY),
        })
    }
}
