//! The log as a ring of sectors, and the records in it (`struct xlog_rec_header`).
//!
//! The first four bytes of each sector are the cycle in which it was written: how
//! often the ring had been gone round. What stood there is kept in the record's
//! head, or for each further 32 KiB in an additional sector of it.

use std::sync::Arc;

use super::super::field::{index, le32_at, slice_at, u32_at, u64_at, wide};
use super::super::overlay::{SECTOR, SECTOR_BYTES};
use super::super::store::Store;
use crate::error::{Error, Result};
use crate::image::{BlockRead, patience};

/// What a record begins with (`XLOG_HEADER_MAGIC_NUM`).
const MAGIC: u32 = 0xfeed_babe;

/// How much of a record one sector of its head keeps the first words for.
const CYCLE_SIZE: usize = 32768;

/// Words that a sector of a head keeps.
const WORDS: usize = 64;

/// The longest record, its head not counted (`XLOG_MAX_RECORD_BSIZE`), and twice
/// that to spare.
const MAX_RECORD: u32 = 512 * 1024;

/// Length of the part of a head that has a checksum, as 64-bit and as 32-bit
/// kernels have it; of an additional sector.
const HEADS: [usize; 2] = [328, 324];
const EXTENSION: usize = 260;

const CRC: usize = 32;

/// How the error calls it.
pub(super) const WHAT: &str = "the log";

pub(super) fn corrupt(reason: impl Into<String>) -> Error {
    Error::corrupt(WHAT, reason)
}

/// The log's place on the volume.
pub(super) struct Ring {
    volume: Arc<dyn BlockRead>,
    uuid: [u8; 16],
    v2: bool,
    v5: bool,
    start: u64,
    sectors: u64,
}

/// The head of a record.
pub(super) struct Record {
    /// Its first sector.
    pub(super) at: u64,
    /// Sectors, the head included.
    pub(super) sectors: u64,
    pub(super) lsn: u64,
    /// The log's tail when it was written.
    pub(super) tail: u64,
    /// How many operations it holds.
    pub(super) operations: u32,
    head_sectors: u64,
    /// Bytes after the head.
    len: usize,
}

/// The cycle in which a sector was written.
fn cycle_of(sector: &[u8]) -> u32 {
    let first = u32_at(sector, 0).unwrap_or_default();
    if first == MAGIC {
        u32_at(sector, 4).unwrap_or_default()
    } else {
        first
    }
}

impl Ring {
    /// The log of a file system; `None` if it lies on another device.
    pub(super) fn of(store: &Store) -> Option<Self> {
        let superblock = &store.superblock;
        let sectors = superblock.log_len / SECTOR_BYTES;
        Some(Self {
            volume: Arc::clone(&store.volume),
            uuid: superblock.uuid,
            v2: superblock.log_v2,
            v5: superblock.v5,
            start: superblock.log_start?,
            sectors,
        })
        .filter(|ring| ring.sectors > 1)
    }

    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The sector `count` after `at`.
    pub(super) fn add(&self, at: u64, count: u64) -> u64 {
        at.saturating_add(count)
            .checked_rem(self.sectors)
            .unwrap_or_default()
    }

    /// The sector `count` (at most all) before `at`.
    pub(super) fn back(&self, at: u64, count: u64) -> u64 {
        self.add(at, self.sectors.saturating_sub(count))
    }

    /// `count` sectors from `at` on, over the end if need be.
    pub(super) fn read(&self, at: u64, count: u64) -> Result<Vec<u8>> {
        patience::spend()?;
        let mut bytes = vec![0; index(count).saturating_mul(SECTOR)];
        let first = index(self.sectors.saturating_sub(at).min(count)).saturating_mul(SECTOR);
        let place = at.saturating_mul(SECTOR_BYTES).saturating_add(self.start);
        if let Some((before, after)) = bytes.split_at_mut_checked(first) {
            self.volume.read_at(place, before)?;
            if !after.is_empty() {
                self.volume.read_at(self.start, after)?;
            }
        }
        Ok(bytes)
    }

    /// The cycles of `count` sectors from `at` on.
    pub(super) fn cycles(&self, at: u64, count: u64) -> Result<Vec<u32>> {
        let bytes = self.read(at, count)?;
        Ok(bytes.chunks_exact(SECTOR).map(cycle_of).collect())
    }

    /// The last record that begins in the `limit` sectors before `at`.
    pub(super) fn record_before(&self, at: u64, limit: u64) -> Result<Option<Record>> {
        const STEP: u64 = 128;
        let mut left = limit.min(self.sectors);
        let mut end = at;
        while left > 0 {
            let count = STEP.min(left);
            let start = self.back(end, count);
            let bytes = self.read(start, count)?;
            let heads = bytes.chunks_exact(SECTOR).enumerate();
            let found = heads
                .rev()
                .find(|(_, sector)| u32_at(sector, 0) == Some(MAGIC));
            if let Some((nr, _)) = found {
                return self.record(self.add(start, wide(nr))).map(Some);
            }
            end = start;
            left = left.saturating_sub(count);
        }
        Ok(None)
    }

    /// The record that begins at `at`.
    pub(super) fn record(&self, at: u64) -> Result<Record> {
        let head = self.read(at, 1)?;
        let n32 = |at| u32_at(&head, at).unwrap_or_default();
        let n64 = |at| u64_at(&head, at).unwrap_or_default();
        if n32(0) != MAGIC || slice_at(&head, 304, 16) != Some(&self.uuid) {
            return Err(corrupt(format!("no record begins at its sector {at}")));
        }
        let (version, len, size) = (n32(8), n32(12), n32(320));
        if len == 0 || len > MAX_RECORD || size > MAX_RECORD || !(1..=3).contains(&version) {
            return Err(corrupt(format!(
                "the record at its sector {at} is impossible"
            )));
        }
        let head_sectors = if self.v2 && version & 2 != 0 {
            wide(index(size).div_ceil(CYCLE_SIZE)).max(1)
        } else {
            1
        };
        let len = index(len);
        Ok(Record {
            at,
            sectors: head_sectors.saturating_add(wide(len.div_ceil(SECTOR))),
            lsn: n64(16),
            tail: n64(24) & u64::from(u32::MAX),
            operations: n32(40),
            head_sectors,
            len,
        })
    }

    /// Whether a record is the one that a clean unmount writes last.
    pub(super) fn is_unmount(&self, record: &Record) -> Result<bool> {
        const UNMOUNT: u8 = 0x20;
        if record.operations != 1 {
            return Ok(false);
        }
        let first = self.read(self.add(record.at, record.head_sectors), 1)?;
        Ok(first.get(9).is_some_and(|flags| flags & UNMOUNT != 0))
    }

    /// Head and content of a record as they are written; `None` if the checksum
    /// is wrong.
    pub(super) fn verified(&self, record: &Record) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let head = self.read(record.at, record.head_sectors)?;
        let content = record.sectors.saturating_sub(record.head_sectors);
        let content = self.read(self.add(record.at, record.head_sectors), content)?;
        let stored = le32_at(&head, CRC).unwrap_or_default();
        // Version 4 need not have one.
        let sound = (stored == 0 && !self.v5)
            || HEADS
                .iter()
                .any(|len| checksum(&head, *len, &content, record.len, self.v2) == Some(stored));
        Ok(sound.then_some((head, content)))
    }

    /// What a record holds, with the words back in place that the cycles have
    /// taken.
    pub(super) fn content(&self, record: &Record) -> Result<Vec<u8>> {
        let Some((head, mut content)) = self.verified(record)? else {
            let at = record.at;
            return Err(corrupt(format!(
                "the checksum of the record at its sector {at} is wrong"
            )));
        };
        if !matches!(u32_at(&head, 300), Some(0 | 1)) {
            return Err(Error::Unsupported {
                what: WHAT.into(),
                reason: "it was written by a big-endian machine".into(),
            });
        }
        for (nr, sector) in content.chunks_exact_mut(SECTOR).enumerate() {
            let start = match nr / WORDS {
                0 => 44,
                extension => extension.saturating_mul(SECTOR).saturating_add(4),
            };
            let at = start.saturating_add((nr % WORDS).saturating_mul(4));
            let Some(word) = slice_at(&head, at, 4) else {
                return Err(corrupt("the head of a record is too short for it"));
            };
            if let Some(first) = sector.get_mut(..4) {
                first.copy_from_slice(word);
            }
        }
        content.truncate(record.len);
        Ok(content)
    }
}

/// The CRC-32C of a record; its own field counts as zero.
pub(in crate::filesystem::xfs) fn checksum(
    head: &[u8],
    head_len: usize,
    content: &[u8],
    len: usize,
    v2: bool,
) -> Option<u32> {
    let first = slice_at(head, 0, head_len)?;
    let (before, after) = first.split_at_checked(CRC)?;
    let mut sum = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
    sum = crc32c::crc32c_append(sum, after.get(4..)?);
    if v2 {
        for nr in 1..len.div_ceil(CYCLE_SIZE) {
            let extension = slice_at(head, nr.checked_mul(SECTOR)?, EXTENSION)?;
            sum = crc32c::crc32c_append(sum, extension);
        }
    }
    Some(crc32c::crc32c_append(sum, content.get(..len)?))
}
