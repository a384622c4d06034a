//! Records protected by an update sequence: MFT records and index blocks.
//!
//! The last two bytes of each 512 bytes (whatever the sector size) are replaced
//! on disk by a number that all of them share; the true bytes stand in the
//! record's head. A number that differs tells of a write that was cut off.
#![deny(clippy::arithmetic_side_effects)]

use super::attribute::{Attribute, Attributes};
use crate::error::{Error, Result};
use crate::filesystem::field::{index, u16_at, u32_at, u64_at};

/// Bytes between two protected places; 512 on disks of any sector size.
const STRIDE: usize = 512;

/// The 48 bits of a file reference that are the record's number.
pub(super) const NUMBER: u64 = 0xffff_ffff_ffff;

/// Checks the magic number and the update sequence of `bytes`, and puts the true
/// bytes back in their place. `what` names the record in errors.
pub(super) fn restore(bytes: &mut [u8], magic: &[u8; 4], what: impl Fn() -> String) -> Result<()> {
    let damaged = |reason: &str| Error::corrupt(what(), reason);
    match bytes.first_chunk::<4>() {
        Some(found) if found == magic => {}
        Some(b"BAAD") => return Err(damaged("Windows marked it as bad")),
        _ => return Err(damaged("its signature is missing")),
    }
    let offset = index(u16_at(bytes, 4).unwrap_or(0));
    let count = index(u16_at(bytes, 6).unwrap_or(0));
    let sectors = bytes.len().checked_div(STRIDE).unwrap_or(0);
    if count.checked_sub(1) != Some(sectors) {
        return Err(damaged("its update sequence has a wrong length"));
    }
    let end = offset.saturating_add(count.saturating_mul(2));
    // The sequence must not reach into the first place that it protects.
    if end > STRIDE.saturating_sub(2) {
        return Err(damaged("its update sequence lies outside"));
    }
    let sequence = bytes.get(offset..end).unwrap_or_default().to_vec();
    let Some((number, saved)) = sequence.split_at_checked(2) else {
        return Err(damaged("it has no update sequence"));
    };
    for (sector, saved) in bytes.chunks_exact_mut(STRIDE).zip(saved.chunks_exact(2)) {
        let Some(tail) = sector.last_chunk_mut::<2>() else {
            continue;
        };
        if tail.as_slice() != number {
            return Err(damaged("it was not written completely"));
        }
        tail.copy_from_slice(saved);
    }
    Ok(())
}

/// An MFT record in use, its update sequence undone.
#[derive(Debug, Clone)]
pub(super) struct Record {
    number: u64,
    bytes: Vec<u8>,
}

impl Record {
    /// Takes the bytes of record `number` as they are on disk.
    ///
    /// # Errors
    /// `NotFound` for a record that was never used or is deleted.
    pub(super) fn parse(number: u64, mut bytes: Vec<u8>) -> Result<Self> {
        let what = || format!("NTFS file {number}");
        if bytes.first_chunk::<4>() == Some(&[0; 4]) {
            return Err(Error::not_found(what()));
        }
        restore(&mut bytes, b"FILE", || format!("NTFS MFT record {number}"))?;
        let record = Self { number, bytes };
        if record.flags() & 1 == 0 {
            return Err(Error::not_found(what()));
        }
        Ok(record)
    }

    /// Its number.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// How errors name it.
    pub(super) fn what(&self) -> String {
        format!("NTFS file {}", self.number)
    }

    fn flags(&self) -> u16 {
        u16_at(&self.bytes, 22).unwrap_or(0)
    }

    /// Whether it is a folder's.
    pub(super) fn is_directory(&self) -> bool {
        self.flags() & 2 != 0
    }

    /// How many names the file has, the DOS ones counted.
    pub(super) fn links(&self) -> u16 {
        u16_at(&self.bytes, 18).unwrap_or(0)
    }

    /// The record that this one extends; 0 if it stands by itself.
    pub(super) fn base(&self) -> u64 {
        u64_at(&self.bytes, 32).unwrap_or(0) & NUMBER
    }

    /// Its attributes, in order.
    pub(super) fn attributes(&self) -> Attributes<'_> {
        let first = index(u16_at(&self.bytes, 20).unwrap_or(0));
        let used = index(u32_at(&self.bytes, 24).unwrap_or(0));
        let used = used.min(self.bytes.len());
        Attributes::new(self.number, self.bytes.get(first..used).unwrap_or_default())
    }

    /// The attribute of this type and name (UTF-16 as on disk) whose piece begins
    /// at cluster `lowest`.
    pub(super) fn find(
        &self,
        kind: u32,
        name: &[u8],
        lowest: u64,
    ) -> Result<Option<Attribute<'_>>> {
        for attribute in self.attributes() {
            let attribute = attribute?;
            if attribute.kind == kind && attribute.name == name && attribute.lowest() == lowest {
                return Ok(Some(attribute));
            }
        }
        Ok(None)
    }
}
