//! MBR partition tables with extended partitions, numbered as Linux does.
//!
//! The idea: an extended partition is a chain of sectors, each with the table of
//! one logical partition and the place of the next sector; anything may stand
//! there, so no sector is read twice and only so many are.
#![deny(clippy::arithmetic_side_effects)]

use super::{MAX_PARTITIONS, Partition, Role};
use crate::error::Result;
use crate::volume::head::{Head, array, is, le32};
use std::collections::HashSet;

/// Sectors of extended partitions that are read at most.
const MAX_LINKS: usize = 512;
/// Where the four entries begin in a sector.
const ENTRIES: usize = 446;

/// An entry as it stands in a sector.
#[derive(Debug, Clone, Copy)]
struct Entry {
    boot: u8,
    kind: u8,
    /// Sectors.
    start: u32,
    /// Sectors.
    len: u32,
}

impl Entry {
    fn is_used(self) -> bool {
        self.kind != 0 && self.len != 0
    }

    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85) && self.len != 0
    }
}

/// The four entries of the table in `sector`, if it bears the signature.
fn entries(sector: &[u8]) -> Option<[Entry; 4]> {
    let entry = |number: usize| {
        let raw: [u8; 16] = array(sector, number.checked_mul(16)?.checked_add(ENTRIES)?)?;
        let [boot, _, _, _, kind, ..] = raw;
        Some(Entry {
            boot,
            kind,
            start: le32(&raw, 8)?,
            len: le32(&raw, 12)?,
        })
    };
    if !is(sector, 510, &[0x55, 0xaa]) {
        return None;
    }
    Some([entry(0)?, entry(1)?, entry(2)?, entry(3)?])
}

/// Whether the MBR says that the disk has a GPT (also next to other entries).
pub(super) fn is_protective(sector: &[u8]) -> bool {
    entries(sector).is_some_and(|entries| entries.iter().any(|e| e.kind == 0xee && e.start == 1))
}

/// The partitions of the MBR, with sectors of `sector` bytes; `None` if there is
/// no table.
pub(super) fn read(head: &Head<'_>, sector: u32) -> Result<Option<Vec<Partition>>> {
    let Some(entries) = entries(head.bytes()) else {
        return Ok(None);
    };
    // Boot code and other things end in 55 AA too.
    if entries.iter().any(|e| e.boot & 0x7f != 0) {
        return Ok(None);
    }
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(entries).filter(|(_, e)| e.is_used()) {
        let role = if entry.is_extended() {
            Role::NoFiles("MBR extended partition")
        } else {
            role(entry.kind)
        };
        found.push(partition(
            number,
            u64::from(entry.start),
            entry.len,
            sector,
            role,
        ));
    }
    let in_reach = found.iter().any(|p| p.start < head.size());
    if !found.is_empty() && !in_reach {
        return Ok(None);
    }
    let mut logical = Logical {
        next: 5,
        seen: HashSet::new(),
    };
    for entry in entries.into_iter().filter(|e| e.is_extended()) {
        logical.follow(head, sector, entry, &mut found)?;
    }
    found.truncate(MAX_PARTITIONS);
    Ok(Some(found))
}

/// The logical partitions found so far.
struct Logical {
    /// Number of the next one.
    next: u32,
    /// Sectors that were read.
    seen: HashSet<u64>,
}

impl Logical {
    /// Appends those of one extended partition. Nested ones are further links
    /// of the same chain, and relative to the outermost, as in Linux.
    fn follow(
        &mut self,
        head: &Head<'_>,
        sector: u32,
        extended: Entry,
        found: &mut Vec<Partition>,
    ) -> Result<()> {
        let base = u64::from(extended.start);
        let end = base.saturating_add(u64::from(extended.len));
        let (mut here, mut here_len) = (base, u64::from(extended.len));
        while found.len() < MAX_PARTITIONS && self.seen.len() < MAX_LINKS && self.seen.insert(here)
        {
            let at = here.saturating_mul(u64::from(sector));
            let Some(bytes) = head.get(at, 512)? else {
                let place = base.saturating_mul(u64::from(sector));
                // It is on the disk, so it is damaged; what comes after it in the
                // chain cannot be found.
                if at.saturating_add(512) <= head.size()
                    && let Some(own) = found.iter_mut().find(|p| p.start == place)
                {
                    own.role = Role::LostLogical;
                }
                break;
            };
            let Some(table) = entries(&bytes) else { break };
            for (index, entry) in table.iter().enumerate() {
                if entry.len == 0 || entry.is_extended() {
                    continue;
                }
                let start = here.saturating_add(u64::from(entry.start));
                let len = u64::from(entry.len);
                // The last two entries are often garbage: believe them only
                // where they make sense.
                let fits = u64::from(entry.start).saturating_add(len) <= here_len
                    && start >= base
                    && start.saturating_add(len) <= end;
                if index >= 2 && !fits {
                    continue;
                }
                found.push(partition(
                    self.next,
                    start,
                    entry.len,
                    sector,
                    role(entry.kind),
                ));
                self.next = self.next.saturating_add(1);
            }
            let Some(link) = table.iter().find(|e| e.is_extended()) else {
                break;
            };
            here = base.saturating_add(u64::from(link.start));
            here_len = u64::from(link.len);
        }
        Ok(())
    }
}

fn partition(number: u32, start: u64, len: u32, sector: u32, role: Role) -> Partition {
    // Both factors have 33 bits at most: the products cannot overflow.
    let bytes = |sectors: u64| sectors.saturating_mul(u64::from(sector));
    let (start, len) = (bytes(start), bytes(u64::from(len)));
    Partition {
        number,
        start,
        len,
        role,
        label: String::new(),
    }
}

/// What a type byte says.
fn role(kind: u8) -> Role {
    match kind {
        0x41 => Role::NoFiles("PowerPC PReP boot"),
        0x42 => Role::Dynamic,
        0x82 => Role::Swap,
        0xee => Role::LostGpt,
        _ => Role::Data,
    }
}
