//! Where the log ends and where what is not written yet begins.
//!
//! The idea (as the kernel's): going round, sectors get the next cycle, so that
//! the ring reads as a run of one cycle and a run of the one before; the place
//! where it changes is found by halving. Up to eight records are written at once
//! and in any order, so that a crash leaves holes before that place: the stretch
//! that they can take is searched for older cycles, and the last eight records'
//! checksums are verified; the log ends before the first that is not whole.

use super::super::field::{partition, wide};
use super::ring::{Record, Ring, corrupt};
use crate::error::{Error, Result};

/// Records that are written at once at most (`XLOG_MAX_ICLOGS`).
const IN_FLIGHT: usize = 8;

/// Sectors of the longest record, with its head.
const RECORD: u64 = 520;

/// Sectors that may be written in any order.
const WINDOW: u64 = 8 * 512;

/// What is to be replayed: from a sector up to another.
pub(super) struct End {
    pub(super) tail: u64,
    pub(super) head: u64,
}

/// Finds it; `None` if the log holds nothing.
pub(super) fn find(ring: &Ring) -> Result<Option<End>> {
    let Some(guess) = change(ring)? else {
        return Ok(None);
    };
    // Nothing is written beside the record of an unmount, so that no holes are
    // to be looked for.
    if ends_in_unmount(ring, guess.head)? {
        return Ok(None);
    }
    let head = before_holes(ring, &guess)?;
    let last = ring.record_before(head, RECORD)?;
    let last = last.ok_or_else(|| corrupt("there is no record at its end"))?;
    let head = if ring.add(last.at, last.sectors) == head {
        head
    } else {
        last.at
    };
    // Checksums come after this: xfsprogs, which clear a log, write none.
    if ends_in_unmount(ring, head)? {
        return Ok(None);
    }
    let end = before_torn(ring, head)?;
    Ok(end.filter(|end| end.tail != end.head))
}

/// The place where the cycle changes.
struct Change {
    head: u64,
    /// The cycle that no sector before it may have any more.
    old: u32,
}

fn change(ring: &Ring) -> Result<Option<Change>> {
    let sectors = ring.sectors();
    let last_sector = sectors.saturating_sub(1);
    let cycle = |at| Ok::<_, Error>(ring.cycles(at, 1)?.first().copied().unwrap_or_default());
    let (first, last) = (cycle(0)?, cycle(last_sector)?);
    if first == 0 {
        // Not even mkfs has written here.
        return Ok(None);
    }
    if first == last {
        return Ok(Some(Change {
            head: 0,
            old: last.wrapping_sub(1),
        }));
    }
    let mut failed = None;
    let count = usize::try_from(last_sector).unwrap_or(usize::MAX);
    let head = partition(count, |nr| match cycle(wide(nr)) {
        Ok(cycle) => cycle != last,
        Err(error) => {
            failed.get_or_insert(error);
            false
        }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(Some(Change {
            head: wide(head),
            old: last,
        })),
    }
}

/// Whether a record that a clean unmount writes last ends exactly at `head`.
fn ends_in_unmount(ring: &Ring, head: u64) -> Result<bool> {
    match ring.record_before(head, RECORD) {
        Ok(Some(last)) if ring.add(last.at, last.sectors) == head => ring.is_unmount(&last),
        Ok(_) | Err(Error::Corrupt { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Moves the head back to the first sector that was to be written before it and
/// was not.
fn before_holes(ring: &Ring, change: &Change) -> Result<u64> {
    let window = WINDOW.min(ring.sectors());
    // What lies at the ring's end was written a cycle earlier.
    let over = if change.head == 0 {
        0
    } else {
        window.saturating_sub(change.head)
    };
    let oldest = change.old.wrapping_sub(1);
    if over > 0 && change.old > 0 {
        let start = ring.sectors().saturating_sub(over);
        if let Some(hole) = first_of(ring, start, over, oldest)? {
            return Ok(hole);
        }
    }
    let count = if change.head == 0 {
        window
    } else {
        window.min(change.head)
    };
    let start = ring.back(change.head, count);
    Ok(first_of(ring, start, count, change.old)?.unwrap_or(change.head))
}

/// The first of `count` sectors from `start` on that has this cycle.
fn first_of(ring: &Ring, start: u64, count: u64, cycle: u32) -> Result<Option<u64>> {
    let cycles = ring.cycles(start, count)?;
    let found = cycles.iter().position(|found| *found == cycle);
    Ok(found.map(|nr| ring.add(start, wide(nr))))
}

/// Moves the head back to the first of the last records that is not whole.
fn before_torn(ring: &Ring, head: u64) -> Result<Option<End>> {
    let mut records = Vec::new();
    let mut at = head;
    while records.len() < IN_FLIGHT {
        let Some(record) = ring.record_before(at, RECORD)? else {
            break;
        };
        // The first is all there is, or the one before it is older than the tail.
        let tail = records
            .first()
            .map_or(record.tail, |last: &Record| last.tail);
        let reached = record.at == tail;
        at = record.at;
        records.push(record);
        if reached {
            break;
        }
    }
    let mut good: Option<Record> = None;
    let mut end = head;
    for record in records.into_iter().rev() {
        if ring.verified(&record)?.is_none() {
            end = record.at;
            break;
        }
        good = Some(record);
    }
    let last = good.ok_or_else(|| corrupt("none of its last records is whole"))?;
    if ring.add(last.at, last.sectors) == end && ring.is_unmount(&last)? {
        return Ok(None);
    }
    Ok(Some(End {
        tail: last.tail,
        head: end,
    }))
}
