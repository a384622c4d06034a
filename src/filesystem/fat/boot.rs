//! The boot sector of FAT12, FAT16 and FAT32.

use super::volume::{FIRST, Geometry, Root, Width};
use crate::error::{Error, Result};
use crate::filesystem::field::{slice_at, u8_at, u16_at, u32_at};
use crate::image::BlockRead;

const WHAT: &str = "FAT boot sector";

/// The sector that holds FAT32's copy of the boot sector.
const BACKUP: u64 = 6;

/// What the boot sector says besides the geometry.
#[derive(Debug)]
pub(super) struct Boot {
    pub(super) geometry: Geometry,
    /// The label of the day it was formatted.
    pub(super) label: [u8; 11],
    /// The byte in which Windows notes that the volume is in use.
    pub(super) state: u8,
    /// Byte offset of FAT32's FSInfo sector.
    pub(super) info: Option<u64>,
    /// Whether this is the copy.
    pub(super) is_backup: bool,
}

/// Reads the boot sector; if it cannot be used, FAT32's copy.
pub(super) fn read(source: &dyn BlockRead) -> Result<Boot> {
    let mut bytes = [0; 512];
    source.read_at(0, &mut bytes)?;
    let damaged = match parse(&bytes) {
        Ok(boot) => return Ok(boot),
        Err(error) => error,
    };
    // How long a sector is stands in the sector that is damaged.
    for sector in [512u64, 1024, 2048, 4096] {
        match source.read_at(sector.saturating_mul(BACKUP), &mut bytes) {
            Ok(()) => {}
            Err(Error::Corrupt { .. }) => continue,
            Err(error) => return Err(error),
        }
        match parse(&bytes) {
            Ok(boot)
                if boot.geometry.sector == sector
                    && boot.geometry.width == Width::TwentyEight
                    && slice_at(&bytes, 510, 2) == Some(&[0x55, 0xaa]) =>
            {
                return Ok(Boot {
                    is_backup: true,
                    ..boot
                });
            }
            _ => {}
        }
    }
    Err(damaged)
}

/// Parses the first 512 bytes.
fn parse(bytes: &[u8; 512]) -> Result<Boot> {
    let damaged = |reason: &str| Error::corrupt(WHAT, reason);
    let byte = |at| u64::from(u8_at(bytes, at).unwrap_or(0));
    let short = |at| u64::from(u16_at(bytes, at).unwrap_or(0));
    let long = |at| u64::from(u32_at(bytes, at).unwrap_or(0));
    let sector = short(11);
    if !sector.is_power_of_two() || !(512..=4096).contains(&sector) {
        return Err(damaged("it names no usual size of sectors"));
    }
    let per_cluster = byte(13);
    if !per_cluster.is_power_of_two() {
        return Err(damaged("it names no usual size of clusters"));
    }
    let (reserved, tables) = (short(14), byte(16));
    if reserved == 0 || tables == 0 {
        return Err(damaged("it names no file allocation table"));
    }
    if byte(21) < 0xf0 {
        return Err(damaged("it names no kind of medium"));
    }
    let is_32 = short(22) == 0;
    let table_len = if is_32 { long(36) } else { short(22) };
    let sectors = match short(19) {
        0 => long(32),
        sectors => sectors,
    };
    // Nothing here exceeds 32 bits by much, so none of this overflows.
    let root = short(17).saturating_mul(32);
    let tables_end = table_len.saturating_mul(tables).saturating_add(reserved);
    let root_sectors = if is_32 { 0 } else { root.div_ceil(sector) };
    let heap = tables_end.saturating_add(root_sectors);
    let clusters = sectors
        .saturating_sub(heap)
        .checked_div(per_cluster)
        .unwrap_or(0);
    // By the number of clusters, but for FAT32 that is smaller than it should be:
    // it has no table of the old kind.
    let width = match clusters {
        _ if is_32 => Width::TwentyEight,
        0..4085 => Width::Twelve,
        4085..=65524 => Width::Sixteen,
        _ => return Err(damaged("it names more clusters than its table can hold")),
    };
    let entries = width.entries(table_len.saturating_mul(sector));
    let clusters = clusters.min(entries.saturating_sub(FIRST.into()));
    if clusters == 0 || clusters > 0x0fff_fff5 {
        return Err(damaged("it leaves no room for files"));
    }
    // Bit 7: only one of the tables is kept up to date.
    let flags = short(40);
    let active = if is_32 && flags & 0x80 != 0 {
        flags & 0xf
    } else {
        0
    };
    if active >= tables {
        return Err(damaged(
            "it names a file allocation table that is not there",
        ));
    }
    let table = table_len.saturating_mul(active).saturating_add(reserved);
    // What both kinds have in common stands elsewhere in FAT32.
    let tail = bytes.get(if is_32 { 64 } else { 36 }..).unwrap_or_default();
    let geometry = Geometry {
        width,
        sector,
        size: sectors.saturating_mul(sector),
        table: table.saturating_mul(sector),
        heap: heap.saturating_mul(sector),
        cluster: per_cluster.saturating_mul(sector),
        clusters: u32::try_from(clusters).unwrap_or(0),
        root: if is_32 {
            Root::Chain(u32_at(bytes, 44).unwrap_or(0))
        } else {
            Root::Fixed {
                offset: tables_end.saturating_mul(sector),
                len: root,
            }
        },
        serial: u32_at(tail, 3).unwrap_or(0),
    };
    let label = slice_at(tail, 7, 11).and_then(<[u8]>::first_chunk);
    let info = short(48);
    Ok(Boot {
        geometry,
        label: label.copied().unwrap_or_default(),
        state: u8_at(tail, 1).unwrap_or(0),
        info: (is_32 && (1..reserved).contains(&info)).then(|| info.saturating_mul(sector)),
        is_backup: false,
    })
}
