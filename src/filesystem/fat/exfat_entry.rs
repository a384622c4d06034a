//! exFAT: a file is a set of slots with a checksum: the file's, the one that
//! says where its content is, and those with the name.

use std::ops::ControlFlow;

use super::chain::Chain;
use super::entry::{Entry, Found, is_name};
use super::slots::{Folder, SEARCHED, SLOT, Slot, Slots};
use super::stamp::Stamp;
use super::volume::{Next, Table, Volume};
use crate::error::{Error, Result};
use crate::filesystem::field::{index, slice_at, u8_at, u16_at, u32_at, u64_at};

/// Types of slots.
pub(super) mod kind {
    pub(super) const END: u8 = 0;
    pub(super) const IN_USE: u8 = 0x80;
    /// A slot that belongs to the one before it.
    pub(super) const SECONDARY: u8 = 0x40;
    /// What need not be known.
    pub(super) const BENIGN: u8 = 0x20;
    pub(in super::super) const BITMAP: u8 = 0x81;
    pub(in super::super) const UPPER_CASE: u8 = 0x82;
    pub(in super::super) const LABEL: u8 = 0x83;
    pub(super) const FILE: u8 = 0x85;
    pub(super) const STREAM: u8 = 0xc0;
    pub(super) const NAME: u8 = 0xc1;
}

/// How many slots may follow a file's.
const SECONDARIES: std::ops::RangeInclusive<u8> = 2..=18;

/// UTF-16 units in a slot.
const PIECE: usize = 15;

/// How many slots in all a file's set has, by the first of them.
fn set_len(slot: &[u8]) -> Option<usize> {
    let secondaries = u8_at(slot, 1).filter(|count| SECONDARIES.contains(count))?;
    Some(usize::from(secondaries).saturating_add(1))
}

fn checksum_is_right(set: &[u8]) -> bool {
    let sum = set
        .iter()
        .enumerate()
        .filter(|(at, _)| !matches!(at, 2 | 3))
        .fold(0u16, |sum, (_, byte)| {
            sum.rotate_right(1).wrapping_add(u16::from(*byte))
        });
    u16_at(set, 2) == Some(sum)
}

/// The chain that a slot names in its bytes 1, 20–23 and 24–31, and how long it is.
pub(super) fn chain(volume: &Volume, slot: &[u8]) -> Option<(Option<Chain>, u64)> {
    // Bit 1: the clusters follow each other, and the table does not count.
    let in_row = u8_at(slot, 1)? & 2 != 0;
    let (first, size) = (u32_at(slot, 20)?, u64_at(slot, 24)?);
    let clusters = volume.geometry.clusters_of(size);
    let chain = (first != 0).then_some(Chain {
        first,
        contiguous: in_row.then_some(u32::try_from(clusters).unwrap_or(u32::MAX)),
    });
    Some((chain, size))
}

/// The file that a set describes; its name is put into `name`.
fn parse(volume: &Volume, set: &[u8], name: &mut Vec<u16>) -> Option<Entry> {
    let stream = slice_at(set, 32, 32)?;
    if u8_at(stream, 0)? != kind::STREAM {
        return None;
    }
    let (chain, size) = chain(volume, stream)?;
    let mut sealed = None;
    name.clear();
    for slot in set.chunks_exact(32).skip(2) {
        match u8_at(slot, 0)? {
            kind::NAME => name.extend(
                slot.get(2..)?
                    .chunks_exact(2)
                    .filter_map(|unit| u16_at(unit, 0)),
            ),
            other if other & kind::BENIGN == 0 => {
                sealed = Some("it is described in a way that is not known");
            }
            _ => {}
        }
    }
    let len = usize::from(u8_at(stream, 3)?);
    if name.len().div_ceil(PIECE) < len.div_ceil(PIECE) {
        return None;
    }
    name.truncate(len);
    let stamp = |at: usize, hundredths: u8, offset: usize| {
        Some(Stamp {
            time: u16_at(set, at)?,
            date: u16_at(set, at.saturating_add(2))?,
            hundredths,
            offset: u8_at(set, offset)?,
        })
    };
    let attributes = u16_at(set, 4)?;
    Some(Entry {
        attributes,
        size,
        written: u64_at(stream, 8)?.min(size),
        chain,
        created: stamp(8, u8_at(set, 20)?, 22),
        modified: stamp(12, u8_at(set, 21)?, 23)?,
        accessed: stamp(16, 0, 24),
        sealed,
    })
}

fn damaged(ino: u64, reason: &str) -> Error {
    Error::corrupt(format!("exfat inode {ino}"), reason)
}

/// The file whose set begins with this slot of the volume.
///
/// The set may go on in another cluster, and from here it cannot be seen whether
/// its folder's clusters follow each other or the table. The checksum tells.
///
/// # Errors
/// `NotFound` if the slot does not begin a set.
pub(super) fn entry(volume: &Volume, ino: u64) -> Result<Entry> {
    let absent = || Error::not_found(format!("exfat inode {ino}"));
    let geometry = &volume.geometry;
    let place = ino.checked_mul(SLOT).ok_or_else(absent)?;
    let cluster = geometry.cluster_at(place).ok_or_else(absent)?;
    let mut first = [0; 32];
    volume.source.read_at(place, &mut first)?;
    let len = set_len(&first).filter(|_| first.starts_with(&[kind::FILE]));
    let mut set = vec![0; len.ok_or_else(absent)?.saturating_mul(32)];
    for in_row in [false, true] {
        let (mut at, mut cluster, mut rest) = (place, cluster, set.as_mut_slice());
        loop {
            let end = geometry.offset(cluster).saturating_add(geometry.cluster);
            let here = index(end.saturating_sub(at)).min(rest.len());
            let (now, later) = rest.split_at_mut(here);
            volume.source.read_at(at, now)?;
            rest = later;
            if rest.is_empty() {
                break;
            }
            let next = match Table::new(volume).next(cluster)? {
                _ if in_row => cluster.saturating_add(1),
                Next::Cluster(next) => next,
                Next::End | Next::Bad | Next::Broken(_) => break,
            };
            if !geometry.has(next) {
                break;
            }
            (at, cluster) = (geometry.offset(next), next);
        }
        if rest.is_empty() && checksum_is_right(&set) {
            return parse(volume, &set, &mut Vec::new())
                .ok_or_else(|| damaged(ino, "its entries make no file"));
        }
    }
    Err(damaged(ino, "the checksum of its entries is wrong"))
}

/// The set that is being gathered.
#[derive(Default)]
struct Set {
    ino: u64,
    /// Slots still to come; 0: none is being gathered.
    left: usize,
    bytes: Vec<u8>,
}

/// Goes through the files of a folder from slot `position` on.
///
/// A file whose checksum is wrong is among them: its name and place are likely to
/// be right, and [`entry`] refuses it.
///
/// # Errors
/// `Corrupt` after all files if something between them was not readable.
pub(super) fn scan(
    volume: &Volume,
    folder: &Folder,
    position: u64,
    each: &mut dyn FnMut(Found<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let mut slots = Slots::new(volume, folder, position)?;
    let (mut set, mut name) = (Set::default(), Vec::new());
    let mut lost = 0u64;
    while let Some(Slot { number, ino, bytes }) = slots.next()? {
        let [first, ..] = bytes;
        let belongs = first & (kind::IN_USE | kind::SECONDARY) == kind::IN_USE | kind::SECONDARY;
        if set.left > 0 && !belongs {
            // What was gathered is not complete.
            lost = lost.saturating_add(1);
            set.left = 0;
        }
        if first == kind::END {
            break;
        } else if first == kind::FILE {
            set.bytes.clear();
            set.ino = ino;
            set.left = set_len(&bytes).unwrap_or(0);
            lost = lost.saturating_add(u64::from(set.left == 0));
        }
        if set.left == 0 {
            continue;
        }
        set.bytes.extend_from_slice(&bytes);
        set.left = set.left.saturating_sub(1);
        if set.left > 0 {
            continue;
        }
        match parse(volume, &set.bytes, &mut name) {
            Some(entry) if is_name(&name) => {
                let found = Found {
                    ino: set.ino,
                    name: &name,
                    alias: None,
                    entry: &entry,
                    next: number.saturating_add(1),
                };
                if each(found).is_break() {
                    return Ok(());
                }
            }
            _ => lost = lost.saturating_add(1),
        }
    }
    if lost > 0 || set.left > 0 {
        return Err(damaged(
            folder.ino,
            "some entries of this folder make no file",
        ));
    }
    Ok(())
}

/// The first slot of each of these kinds in the root folder.
///
/// # Errors
/// From below.
pub(super) fn special<const N: usize>(
    volume: &Volume,
    root: &Folder,
    kinds: [u8; N],
) -> Result<[Option<[u8; 32]>; N]> {
    let mut found = [None; N];
    let mut slots = Slots::new(volume, root, 0)?;
    while let Some(slot) = slots.next()? {
        let [first, ..] = slot.bytes;
        if first == kind::END || slot.number >= SEARCHED || found.iter().all(Option::is_some) {
            break;
        }
        for (kind, found) in kinds.iter().zip(&mut found) {
            if *kind == first && found.is_none() {
                *found = Some(slot.bytes);
            }
        }
    }
    Ok(found)
}

/// Bytes 24–31 of a slot: how long what it names is.
pub(super) fn size(slot: &[u8; 32]) -> Option<u64> {
    u64_at(slot, 24)
}

/// Fills `out` with the beginning of what a slot of the root folder names, which
/// the table leads to; `None` if it is shorter.
pub(super) fn read_special(volume: &Volume, slot: &[u8; 32], out: &mut [u8]) -> Result<Option<()>> {
    let first = u32_at(slot, 20).unwrap_or(0);
    let contiguous = None;
    let mut cursor = volume.seek(Chain { first, contiguous }, 0)?;
    for piece in out.chunks_mut(index(volume.geometry.cluster).max(1)) {
        let Some(cluster) = cursor.next()? else {
            return Ok(None);
        };
        volume
            .source
            .read_at(volume.geometry.offset(cluster), piece)?;
    }
    Ok(Some(()))
}

/// Unpacks the table of upper case that `slot` names; `None` if its checksum is
/// wrong.
pub(super) fn upper_case(slot: &[u8; 32], packed: &[u8]) -> Option<Vec<u8>> {
    let sum = packed.iter().fold(0u32, |sum, byte| {
        sum.rotate_right(1).wrapping_add(u32::from(*byte))
    });
    if u32_at(slot, 4)? != sum {
        return None;
    }
    let mut table: Vec<u8> = Vec::with_capacity(2 << 16);
    let mut units = packed.chunks_exact(2).filter_map(|unit| u16_at(unit, 0));
    while let Some(unit) = units.next() {
        let next = u32::try_from(table.len() / 2).ok()?;
        if unit != u16::MAX || next == u32::from(u16::MAX) {
            table.extend(unit.to_le_bytes());
        } else {
            let end = next.saturating_add(units.next()?.into()).min(1 << 16);
            (next..end)
                .filter_map(|same| u16::try_from(same).ok())
                .for_each(|same| table.extend(same.to_le_bytes()));
        }
        if table.len() >= 2 << 16 {
            break;
        }
    }
    Some(table)
}
