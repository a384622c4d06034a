//! FAT: an entry is one slot; a long name stands in the slots before it, last
//! piece first.

use std::ops::ControlFlow;

use super::chain::Chain;
use super::entry::{Entry, Found, flag, is_name};
use super::short_name;
use super::slots::{Folder, SEARCHED, Slots};
use super::stamp::Stamp;
use super::volume::{Volume, Width};
use crate::error::{Error, Result};
use crate::filesystem::field::{u8_at, u16_at, u32_at};

/// UTF-16 units in a slot, and the bytes where they are.
const PIECE: usize = 13;
const PLACES: [usize; PIECE] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/// The most slots of a long name.
const MAX_PIECES: u8 = 20;

/// Where the first byte of the name stands, if it is no letter.
const END: u8 = 0;
const DELETED: u8 = 0xe5;

/// The pieces of a long name that have come so far.
#[derive(Default)]
struct LongName {
    units: Vec<u16>,
    checksum: u8,
    /// The number of the piece that came last; 1 is the last to come. 0: none.
    number: u8,
}

impl LongName {
    /// Takes a slot; pieces that do not belong together are forgotten.
    fn push(&mut self, slot: &[u8; 32]) {
        let [id, ..] = *slot;
        let checksum = u8_at(slot, 13).unwrap_or(0);
        let number = id & 0x3f;
        if id & 0x40 != 0 && (1..=MAX_PIECES).contains(&number) {
            self.units.clear();
            self.units.resize(PIECE.saturating_mul(number.into()), 0);
            self.checksum = checksum;
        } else if number == 0
            || id & 0x40 != 0
            || number.checked_add(1) != Some(self.number)
            || checksum != self.checksum
        {
            self.number = 0;
            return;
        }
        self.number = number;
        let at = PIECE.saturating_mul(usize::from(number.saturating_sub(1)));
        let units = self.units.get_mut(at..).unwrap_or_default();
        for (unit, place) in units.iter_mut().zip(PLACES) {
            *unit = u16_at(slot, place).unwrap_or(0);
        }
    }

    /// The name, if it is complete and that of the entry with this short name.
    fn of(&self, short: &[u8; 11]) -> Option<&[u16]> {
        if self.number != 1 || self.checksum != short_name::checksum(short) {
            return None;
        }
        let name = self.units.split(|unit| *unit == 0).next()?;
        (name.len() <= 255 && is_name(name)).then_some(name)
    }
}

/// The file that a slot is the entry of; `None` for a free slot, a label, a piece
/// of a long name, `.` and `..`.
pub(super) fn parse(slot: &[u8; 32], width: Width) -> Option<Entry> {
    let attributes = u16::from(u8_at(slot, 11)?);
    let name: &[u8; 11] = slot.first_chunk()?;
    if matches!(name.first()?, &(END | DELETED))
        || attributes & flag::LABEL != 0
        || name == b".          "
        || name == b"..         "
    {
        return None;
    }
    let size = u64::from(u32_at(slot, 28)?);
    let is_directory = attributes & flag::DIRECTORY != 0;
    let stamp = |date, time, hundredths| Stamp {
        date,
        time,
        hundredths,
        offset: 0,
    };
    // Only DOS 7 and later keep more than the last change.
    let dated = |stamp: Stamp| (stamp.date != 0).then_some(stamp);
    Some(Entry {
        attributes,
        size: if is_directory { 0 } else { size },
        written: if is_directory { 0 } else { size },
        chain: first_cluster(slot, width).map(|first| Chain {
            first,
            contiguous: None,
        }),
        created: dated(stamp(
            u16_at(slot, 16)?,
            u16_at(slot, 14)?,
            u8_at(slot, 13)?,
        )),
        modified: stamp(u16_at(slot, 24)?, u16_at(slot, 22)?, 0),
        accessed: dated(stamp(u16_at(slot, 18)?, 0, 0)),
        sealed: None,
    })
}

/// The cluster that an entry names; `None` for 0.
fn first_cluster(slot: &[u8; 32], width: Width) -> Option<u32> {
    let low = u32::from(u16_at(slot, 26)?);
    // FAT12 and FAT16 use these bytes for other things.
    let high = match width {
        Width::TwentyEight => u32::from(u16_at(slot, 20)?),
        _ => 0,
    };
    Some(high << 16 | low).filter(|first| *first != 0)
}

/// The first cluster of the folder above, by the entry `..` of a folder that
/// begins with this cluster; `None` is the root.
///
/// # Errors
/// `Corrupt` if there is no such entry.
pub(super) fn above(volume: &Volume, first: u32) -> Result<Option<u32>> {
    let damaged = || Error::corrupt(format!("folder in cluster {first}"), "it has no entry `..`");
    if !volume.geometry.has(first) {
        return Err(damaged());
    }
    let mut slot = [0; 32];
    let place = volume.geometry.offset(first).saturating_add(32);
    volume.source.read_at(place, &mut slot)?;
    if !slot.starts_with(b"..         ") {
        return Err(damaged());
    }
    Ok(first_cluster(&slot, volume.geometry.width))
}

/// Goes through the files of a folder from slot `position` on.
pub(super) fn scan(
    volume: &Volume,
    folder: &Folder,
    position: u64,
    each: &mut dyn FnMut(Found<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let mut slots = Slots::new(volume, folder, position)?;
    let mut long = LongName::default();
    let mut short = Vec::new();
    while let Some(slot) = slots.next()? {
        let [first, ..] = slot.bytes;
        let attributes = u16::from(u8_at(&slot.bytes, 11).unwrap_or(0));
        if first == END {
            break;
        }
        if first != DELETED && attributes & flag::LONG_NAME_MASK == flag::LONG_NAME {
            long.push(&slot.bytes);
            continue;
        }
        if let (Some(entry), Some(name)) = (
            parse(&slot.bytes, volume.geometry.width),
            slot.bytes.first_chunk(),
        ) {
            let long = long.of(name);
            if long.is_none() {
                short.clear();
                short_name::push(name, u8_at(&slot.bytes, 12).unwrap_or(0), &mut short);
            }
            let found = Found {
                ino: slot.ino,
                name: long.unwrap_or(&short),
                alias: long.map(|_| name),
                entry: &entry,
                next: slot.number.saturating_add(1),
            };
            if is_name(found.name) && each(found).is_break() {
                break;
            }
        }
        long.number = 0;
    }
    Ok(())
}

/// The label in the root folder.
pub(super) fn label(volume: &Volume, root: &Folder) -> Result<Option<[u8; 11]>> {
    let mut slots = Slots::new(volume, root, 0)?;
    while let Some(slot) = slots.next()? {
        let [first, ..] = slot.bytes;
        let attributes = u16::from(u8_at(&slot.bytes, 11).unwrap_or(0));
        if first == END || slot.number >= SEARCHED {
            break;
        }
        if first != DELETED
            && attributes & (flag::LABEL | flag::DIRECTORY) == flag::LABEL
            && attributes & flag::LONG_NAME_MASK != flag::LONG_NAME
        {
            return Ok(slot.bytes.first_chunk().copied());
        }
    }
    Ok(None)
}
