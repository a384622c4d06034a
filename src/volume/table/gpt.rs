//! GUID partition tables (UEFI specification, chapter 5).
//!
//! The idea: header and entries each carry a checksum; a copy that fails one,
//! or cannot be read, is as good as absent, and the other copy, at the end of the disk, is taken.
#![deny(clippy::arithmetic_side_effects)]

use super::{MAX_PARTITIONS, Partition, Role};
use crate::error::Result;
use crate::volume::head::{Head, array, is, le16, le32, le64};

/// The smallest header that the specification knows.
const HEADER: usize = 92;
/// The most bytes that an array of entries may have (128 entries take 16 KiB).
const MAX_ARRAY: usize = 2 << 20;

/// The partitions of the GPT in sectors of `sector` bytes, from the first copy
/// or else the one in the last sector; `None` if neither is whole.
pub(super) fn read(head: &Head<'_>, sector: u32) -> Result<Option<Vec<Partition>>> {
    let last = head
        .size()
        .checked_div(u64::from(sector))
        .and_then(|n| n.checked_sub(1));
    for lba in [Some(1), last].into_iter().flatten() {
        if let Some(partitions) = read_copy(head, u64::from(sector), lba)? {
            return Ok(Some(partitions));
        }
    }
    Ok(None)
}

fn read_copy(head: &Head<'_>, sector: u64, lba: u64) -> Result<Option<Vec<Partition>>> {
    let Some(at) = lba.checked_mul(sector) else {
        return Ok(None);
    };
    let Some(header) = head.get(at, usize::try_from(sector).unwrap_or(usize::MAX))? else {
        return Ok(None);
    };
    let Some(entries) = entries_place(&header, sector, lba) else {
        return Ok(None);
    };
    let Some(array) = head.get(entries.at, entries.len)? else {
        return Ok(None);
    };
    if crc32fast::hash(&array) != entries.checksum {
        return Ok(None);
    }
    Ok(Some(
        (1..)
            .zip(array.chunks_exact(entries.each))
            .filter_map(|(number, entry)| partition(number, entry, sector))
            .take(MAX_PARTITIONS)
            .collect(),
    ))
}

struct Entries {
    at: u64,
    /// Of all, in bytes.
    len: usize,
    /// Of each, in bytes.
    each: usize,
    checksum: u32,
}

/// Where the entries lie, if `header` is whole and the one of `lba`.
fn entries_place(header: &[u8], sector: u64, lba: u64) -> Option<Entries> {
    if !is(header, 0, b"EFI PART") || le64(header, 24)? != lba {
        return None;
    }
    let len = usize::try_from(le32(header, 12)?).ok()?;
    let mut covered = header
        .get(..len)
        .filter(|covered| covered.len() >= HEADER)?
        .to_vec();
    covered.get_mut(16..20)?.fill(0);
    if crc32fast::hash(&covered) != le32(header, 16)? {
        return None;
    }
    let each = usize::try_from(le32(header, 84)?).ok()?;
    if !(128..=4096).contains(&each) || !each.is_power_of_two() {
        return None;
    }
    let count = usize::try_from(le32(header, 80)?).ok()?;
    let len = count.checked_mul(each).filter(|len| *len <= MAX_ARRAY)?;
    let at = le64(header, 72)?.checked_mul(sector)?;
    Some(Entries {
        at,
        len,
        each,
        checksum: le32(header, 88)?,
    })
}

fn partition(number: u32, entry: &[u8], sector: u64) -> Option<Partition> {
    let kind: [u8; 16] = array(entry, 0)?;
    if kind == [0; 16] {
        return None;
    }
    let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
    let sectors = last.checked_sub(first)?.checked_add(1)?;
    let units: Vec<u16> = (56..128)
        .step_by(2)
        .map_while(|at| le16(entry, at))
        .take_while(|u| *u != 0)
        .collect();
    Some(Partition {
        number,
        start: first.checked_mul(sector)?,
        len: sectors.checked_mul(sector)?,
        role: role(kind),
        label: String::from_utf16_lossy(&units),
    })
}

/// What a type GUID says, in the mixed byte order of the disk.
fn role(kind: [u8; 16]) -> Role {
    match u128::from_be_bytes(kind) {
        // E3C9E316-0B5C-4DB8-817D-F92DF00215AE
        0x16e3c9e3_5c0b_b84d_817d_f92df00215ae => Role::NoFiles("Microsoft reserved"),
        // 21686148-6449-6E6F-744E-656564454649
        0x48616821_4964_6f6e_744e_656564454649 => Role::NoFiles("BIOS boot"),
        // 9E1A2D38-C612-4316-AA26-8B49521E5A8B
        0x382d1a9e_12c6_1643_aa26_8b49521e5a8b => Role::NoFiles("PowerPC PReP boot"),
        // 5808C8AA-7E8F-42E0-85D2-E1E90434CFB3
        0xaac80858_8f7e_e042_85d2_e1e90434cfb3 => super::LDM_METADATA,
        // AF9B60A0-1431-4F62-BC68-3311714A69AD
        0xa0609baf_3114_624f_bc68_3311714a69ad => Role::Dynamic,
        // 0657FD6D-A4AB-43C4-84E5-0933C84B4F4F
        0x6dfd5706_aba4_c443_84e5_0933c84b4f4f => Role::Swap,
        _ => Role::Data,
    }
}
