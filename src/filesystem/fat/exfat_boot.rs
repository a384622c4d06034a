//! The boot region of exFAT: 12 sectors with a checksum, twice.

use super::volume::{FIRST, Geometry, Root, Width};
use crate::error::{Error, Result};
use crate::filesystem::field::{index, slice_at, u8_at, u16_at, u32_at, u64_at};
use crate::image::BlockRead;

const WHAT: &str = "exFAT boot region";

/// Sectors of a region; the last one is the checksum.
const SECTORS: u64 = 12;

/// The largest cluster as a power of two: 32 MiB.
const MAX_CLUSTER: u32 = 25;

/// What the boot sector says besides the geometry.
#[derive(Debug)]
pub(super) struct Boot {
    pub(super) geometry: Geometry,
    /// Bit 1: dirty; bit 2: the medium had failures.
    pub(super) flags: u16,
    /// How much is in use, in per cent, if it is at most 100.
    pub(super) percent: u8,
    /// What was wrong with the first region.
    pub(super) note: Option<&'static str>,
}

/// Reads the first region; if that is damaged, the second.
pub(super) fn read(source: &dyn BlockRead) -> Result<Boot> {
    let first = match region(source, 0, None) {
        Ok((boot, true)) => return Ok(boot),
        other => other,
    };
    if !matches!(first, Ok(_) | Err(Error::Corrupt { .. })) {
        return first.map(|(boot, _)| boot);
    }
    // How long a sector is stands in the sector that may be damaged.
    for shift in 9..=12u32 {
        let sector = 1u64 << shift;
        match region(source, sector.saturating_mul(SECTORS), Some(sector)) {
            Ok((boot, true)) => {
                return Ok(Boot {
                    note: Some("Its boot region is damaged; the copy of it was used."),
                    ..boot
                });
            }
            Ok((_, false)) | Err(Error::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    first.map(|(boot, _)| Boot {
        note: Some("The checksums of its boot region and of the copy are wrong."),
        ..boot
    })
}

/// The region from byte `at`, and whether its checksum is right.
fn region(source: &dyn BlockRead, at: u64, sector: Option<u64>) -> Result<(Boot, bool)> {
    let mut bytes = vec![0; 512];
    source.read_at(at, &mut bytes)?;
    let boot = parse(&bytes)?;
    let len = boot.geometry.sector;
    if sector.is_some_and(|sector| sector != len) {
        return Err(Error::corrupt(WHAT, "its sectors are of another size"));
    }
    bytes.resize(index(len.saturating_mul(SECTORS)), 0);
    source.read_at(at, &mut bytes)?;
    let (body, expected) = bytes.split_at(index(len.saturating_mul(SECTORS.saturating_sub(1))));
    let sum = body
        .iter()
        .enumerate()
        // The flags and the fill level change while the volume is in use.
        .filter(|(at, _)| !matches!(at, 106 | 107 | 112))
        .fold(0u32, |sum, (_, byte)| {
            sum.rotate_right(1).wrapping_add(u32::from(*byte))
        });
    let right = expected
        .chunks_exact(4)
        .all(|word| u32_at(word, 0) == Some(sum));
    Ok((boot, right))
}

fn parse(bytes: &[u8]) -> Result<Boot> {
    let damaged = |reason: &str| Error::corrupt(WHAT, reason);
    if slice_at(bytes, 3, 8) != Some(b"EXFAT   ") || slice_at(bytes, 510, 2) != Some(&[0x55, 0xaa])
    {
        return Err(damaged("the signature of exFAT is missing"));
    }
    let byte = |at| u32::from(u8_at(bytes, at).unwrap_or(0));
    let long = |at| u64::from(u32_at(bytes, at).unwrap_or(0));
    let (sector_shift, more) = (byte(108), byte(109));
    let cluster_shift = sector_shift.saturating_add(more);
    if !(9..=12).contains(&sector_shift) || cluster_shift > MAX_CLUSTER {
        return Err(damaged("it names no usual size of sectors or clusters"));
    }
    let revision = u16_at(bytes, 104).unwrap_or(0);
    if revision >> 8 != 1 {
        return Err(Error::Unsupported {
            what: "exFAT".into(),
            reason: format!("version {}.{} is not known", revision >> 8, revision & 0xff),
        });
    }
    let sector = 1u64 << sector_shift;
    let table_len = long(84).saturating_mul(sector);
    let entries = Width::ThirtyTwo.entries(table_len);
    let clusters = long(92).min(entries.saturating_sub(FIRST.into()));
    if clusters == 0 || clusters > 0xffff_fff5 {
        return Err(damaged("it leaves no room for files"));
    }
    let flags = u16_at(bytes, 106).unwrap_or(0);
    // Bit 0 of the flags: the second table is in use, if there are two.
    let second = byte(110) == 2 && flags & 1 != 0;
    let table = long(80).saturating_mul(sector);
    let geometry = Geometry {
        width: Width::ThirtyTwo,
        sector,
        size: u64_at(bytes, 72).unwrap_or(0).saturating_mul(sector),
        table: table.saturating_add(if second { table_len } else { 0 }),
        heap: long(88).saturating_mul(sector),
        cluster: 1u64 << cluster_shift,
        clusters: u32::try_from(clusters).unwrap_or(0),
        root: Root::Chain(u32_at(bytes, 96).unwrap_or(0)),
        serial: u32_at(bytes, 100).unwrap_or(0),
    };
    Ok(Boot {
        geometry,
        flags,
        percent: u8_at(bytes, 112).unwrap_or(u8::MAX),
        note: None,
    })
}
