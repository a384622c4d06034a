//! Signatures: what a volume holds, told as `blkid` tells it.
//!
//! The idea: one read of the head answers for all formats. What guards others
//! is asked first (RAID, LVM, encryption), for a file system may show through
//! it; formats known by a boot sector next, those with a superblock after.
#![deny(clippy::arithmetic_side_effects)]

mod boot;
mod superblock;

use super::head::{Head, be32, is, le32, le64};
use crate::error::Result;

/// What was found on a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Signature {
    /// The name that `blkid` gives it.
    pub(super) kind: &'static str,
    /// Its label as `blkid` prints it, empty if there is none.
    pub(super) label: Vec<u8>,
    /// Its UUID or serial number as `blkid` prints it, empty if there is none.
    pub(super) uuid: String,
    /// The bytes that it takes, where it says.
    pub(super) size: Option<u64>,
}

impl Signature {
    fn new(kind: &'static str) -> Self {
        Self {
            kind,
            ..Self::default()
        }
    }

    fn label(self, raw: &[u8]) -> Self {
        Self {
            label: text(raw),
            ..self
        }
    }

    fn uuid(self, raw: Option<[u8; 16]>) -> Self {
        // Of an all-zero UUID nothing is printed.
        let raw = raw.filter(|raw| *raw != [0; 16]);
        Self {
            uuid: raw.map(uuid).unwrap_or_default(),
            ..self
        }
    }

    fn size(self, units: Option<u64>, unit: u64) -> Self {
        Self {
            size: units.and_then(|units| units.checked_mul(unit)),
            ..self
        }
    }
}

/// Finds out what the volume with this head holds; `None` if nothing is known.
///
/// # Errors
/// From below.
pub(super) fn probe(head: &Head<'_>) -> Result<Option<Signature>> {
    let bytes = head.bytes();
    if let Some(raid) = raid_in_head(bytes) {
        return Ok(Some(raid));
    }
    let found = match superblock::container(bytes).or_else(|| boot::bitlocker(bytes)) {
        Some(container) => Some(container),
        None => match boot::probe(head)? {
            Some(found) => Some(found),
            None => superblock::probe(bytes),
        },
    };
    // Older RAID formats sit at the end and let the file system show.
    let size = found.as_ref().and_then(|found| found.size);
    Ok(raid_at_end(head, size)?.or(found))
}

/// Whether the volume begins with a boot sector that is known, and that might
/// be taken for a partition table.
pub(super) fn has_boot_sector(head: &Head<'_>) -> bool {
    boot::is_known(head.bytes())
}

const RAID_MAGIC: u32 = 0xa92b_4efc;

/// Linux RAID, formats 1.1 (at byte 0) and 1.2 (at byte 4096).
fn raid_in_head(bytes: &[u8]) -> Option<Signature> {
    [0, 4096]
        .into_iter()
        .find_map(|at| raid1(bytes.get(at..)?, u64::try_from(at).ok()?))
}

/// A RAID superblock of format 1 in `bytes`, which begin at byte `at` of the
/// volume (`struct mdp_superblock_1` of Linux).
fn raid1(bytes: &[u8], at: u64) -> Option<Signature> {
    let valid = le32(bytes, 0)? == RAID_MAGIC
        && le32(bytes, 4)? == 1
        && le64(bytes, 144)?.checked_mul(512)? == at;
    valid.then(|| {
        Signature::new("linux_raid_member")
            .uuid(super::head::array(bytes, 16))
            .label(bytes.get(32..64).unwrap_or_default())
    })
}

/// Linux RAID, formats 1.0 and 0.90, near the end of the volume. Not looked for
/// where a file system of `taken` bytes lies; one that is larger than the volume
/// lies on more than this.
fn raid_at_end(head: &Head<'_>, taken: Option<u64>) -> Result<Option<Signature>> {
    let taken = taken.filter(|taken| *taken <= head.size()).unwrap_or(0);
    // 1.0: at least 8 KiB from the end, on a multiple of 4 KiB.
    if let Some(at) = head.size().checked_sub(8192).map(|at| at & !4095)
        && taken <= at
    {
        let old = (head.size() & !0xffff)
            .checked_sub(0x10000)
            .filter(|old| taken <= *old);
        // Both in one read.
        let start = old.unwrap_or(at);
        let len = at.saturating_sub(start).saturating_add(4096);
        let Some(bytes) = head.get(start, usize::try_from(len).unwrap_or(usize::MAX))? else {
            return Ok(None);
        };
        let new = usize::try_from(at.saturating_sub(start))
            .ok()
            .and_then(|skip| bytes.get(skip..));
        return Ok(new
            .and_then(|bytes| raid1(bytes, at))
            .or_else(|| old.and_then(|_| raid0_90(&bytes))));
    }
    Ok(None)
}

/// A RAID superblock of format 0.90 (`struct mdp_superblock_s` of Linux), in
/// the byte order of the machine that wrote it.
fn raid0_90(bytes: &[u8]) -> Option<Signature> {
    type Read = fn(&[u8], usize) -> Option<u32>;
    [le32 as Read, be32 as Read].into_iter().find_map(|word| {
        if word(bytes, 0)? != RAID_MAGIC || word(bytes, 4)? != 0 {
            return None;
        }
        let mut raw = [0; 16];
        // Formats before 0.90 had the first word only.
        let places: &[usize] = if word(bytes, 8)? >= 90 {
            &[20, 52, 56, 60]
        } else {
            &[20]
        };
        for (four, at) in raw.chunks_exact_mut(4).zip(places) {
            four.copy_from_slice(&word(bytes, *at)?.to_be_bytes());
        }
        Some(Signature::new("linux_raid_member").uuid(Some(raw)))
    })
}

/// A field of text: up to the first NUL, without spaces at its end.
fn text(raw: &[u8]) -> Vec<u8> {
    let end = raw.iter().position(|b| *b == 0).unwrap_or(raw.len());
    let raw = raw.get(..end).unwrap_or_default();
    let end = raw
        .iter()
        .rposition(|b| !b.is_ascii_whitespace() && *b != 0x0b)
        .map_or(0, |last| last.saturating_add(1));
    raw.get(..end).unwrap_or_default().to_vec()
}

/// A UUID as text.
fn uuid(raw: [u8; 16]) -> String {
    uuid::Uuid::from_bytes(raw).hyphenated().to_string()
}

/// A field of UTF-16 as UTF-8, up to the first NUL.
fn utf16(raw: &[u8], unit: fn([u8; 2]) -> u16) -> Vec<u8> {
    let units = raw
        .chunks_exact(2)
        .filter_map(|pair| pair.try_into().ok())
        .map(unit);
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    text(String::from_utf16_lossy(&units).as_bytes())
}

/// Whether `bytes` hold nothing but zeros.
pub(super) fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// Whether a label of LVM stands at the beginning of one of the first sectors.
fn lvm_label(bytes: &[u8]) -> Option<usize> {
    [0, 512, 1024, 1536]
        .into_iter()
        .find(|at| is(bytes, *at, b"LABELONE") && is(bytes, at.saturating_add(24), b"LVM2 001"))
}
