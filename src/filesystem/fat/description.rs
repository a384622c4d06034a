//! What the volume says of itself, and the state that it was left in.

use super::exfat_entry::{kind, read_special, size, special};
use super::slots::Folder;
use super::volume::{Table, Volume, Width};
use super::{boot, exfat_boot, fat_entry, short_name};
use crate::error::{Error, Result};
use crate::filesystem::Description;
use crate::filesystem::field::{index, u8_at, u32_at};
use crate::filesystem::windows_name::to_wtf8;
use crate::image::patience;

/// The largest table or bitmap that is counted when the volume is opened, in
/// bytes, because more would make opening slow.
const MAX_COUNTED: u64 = 1 << 20;

const DIRTY: &str =
    "The volume was not unmounted cleanly: the last changes may be missing or half done.";
const FAILED: &str = "The volume is marked as having had read or write errors.";
const BACKUP: &str = "Its boot sector is damaged; the copy of it was used.";

/// Leaves out what cannot be read, but not what has to wait.
fn forgive<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Corrupt { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn describe(kind: &'static str, volume: &Volume, mut notes: Vec<String>) -> Description {
    let geometry = &volume.geometry;
    let missing = geometry.size.saturating_sub(volume.source.size());
    if missing > 0 {
        notes.push(format!(
            "The volume is {missing} bytes shorter than its file system: what lies there cannot \
             be read."
        ));
    }
    let [a, b, c, d] = geometry.serial.to_be_bytes();
    Description {
        kind,
        label: Vec::new(),
        uuid: format!("{a:02X}{b:02X}-{c:02X}{d:02X}"),
        block_size: u32::try_from(geometry.cluster).unwrap_or(0),
        blocks: geometry.clusters.into(),
        blocks_free: 0,
        files: 0,
        files_free: 0,
        notes,
    }
}

/// Describes a FAT volume.
pub(super) fn fat(volume: &Volume, boot: &boot::Boot, root: &Folder) -> Result<Description> {
    let mut notes = Vec::new();
    if boot.is_backup {
        notes.push(BACKUP.into());
    }
    let (in_use, had_errors) = forgive(state(volume))?.unwrap_or_default();
    let dirty = in_use || boot.state & 1 != 0;
    if dirty {
        notes.push(DIRTY.into());
    }
    if had_errors || boot.state & 2 != 0 {
        notes.push(FAILED.into());
    }
    // The entry in the root folder is the label that Windows changes.
    let label = match forgive(fat_entry::label(volume, root))?.flatten() {
        Some(label) => label,
        None if &boot.label == b"NO NAME    " => [b' '; 11],
        None => boot.label,
    };
    let told = match boot.info {
        Some(place) if !dirty => forgive(told_free(volume, place))?.flatten(),
        _ => None,
    };
    let free = match told {
        Some(free) => free,
        None => forgive(count_free(volume))?.unwrap_or(0),
    };
    Ok(Description {
        label: short_name::label(&label).into_bytes(),
        blocks_free: free,
        ..describe("vfat", volume, notes)
    })
}

/// Whether the table says that the volume is in use, and that it had errors.
fn state(volume: &Volume) -> Result<(bool, bool)> {
    // Set bits mean that all is well. FAT12 has none.
    let (clean, sound) = match volume.geometry.width {
        Width::Sixteen => (1 << 15, 1 << 14),
        Width::TwentyEight => (1 << 27, 1 << 26),
        Width::Twelve | Width::ThirtyTwo => return Ok((false, false)),
    };
    let state = Table::new(volume).entry(1)?;
    Ok((state & clean == 0, state & sound == 0))
}

/// The number of free clusters that FAT32's FSInfo sector tells, if it can be.
fn told_free(volume: &Volume, place: u64) -> Result<Option<u64>> {
    let mut info = [0; 512];
    volume.source.read_at(place, &mut info)?;
    let signed = u32_at(&info, 0) == Some(0x4161_5252) && u32_at(&info, 484) == Some(0x6141_7272);
    Ok(u32_at(&info, 488)
        .filter(|free| signed && *free <= volume.geometry.clusters)
        .map(u64::from))
}

/// Counts the free entries of the table, if it is not too long.
fn count_free(volume: &Volume) -> Result<u64> {
    let geometry = &volume.geometry;
    if u64::from(geometry.clusters) > geometry.width.entries(MAX_COUNTED) {
        return Ok(0);
    }
    let mut table = Table::new(volume);
    let mut free = 0u64;
    for cluster in super::volume::FIRST..geometry.end() {
        patience::spend()?;
        free = free.saturating_add(u64::from(table.entry(cluster)? == 0));
    }
    Ok(free)
}

/// Describes an exFAT volume.
pub(super) fn exfat(
    volume: &Volume,
    boot: &exfat_boot::Boot,
    root: &Folder,
) -> Result<Description> {
    let mut notes: Vec<String> = boot.note.into_iter().map(str::to_owned).collect();
    if boot.flags & 2 != 0 {
        notes.push(DIRTY.into());
    }
    if boot.flags & 4 != 0 {
        notes.push(FAILED.into());
    }
    let [label, bitmap] =
        forgive(special(volume, root, [kind::LABEL, kind::BITMAP]))?.unwrap_or_default();
    let label = label.and_then(|slot| {
        let units = usize::from(u8_at(&slot, 1)?).min(11);
        Some(to_wtf8(
            slot.get(2..2usize.checked_add(units.checked_mul(2)?)?)?,
        ))
    });
    let used = match bitmap {
        Some(slot) => forgive(count_used(volume, &slot))?.flatten(),
        None => None,
    };
    let clusters = u64::from(volume.geometry.clusters);
    let free = match (used, u64::from(boot.percent)) {
        (Some(used), _) => clusters.saturating_sub(used),
        (None, percent @ 0..=100) => clusters.saturating_mul(100u64.saturating_sub(percent)) / 100,
        _ => 0,
    };
    Ok(Description {
        label: label.unwrap_or_default(),
        blocks_free: free,
        ..describe("exfat", volume, notes)
    })
}

/// Counts the clusters that the bitmap says are in use, if it is not too long.
fn count_used(volume: &Volume, slot: &[u8; 32]) -> Result<Option<u64>> {
    let len = u64::from(volume.geometry.clusters).div_ceil(8);
    if len > MAX_COUNTED || size(slot).is_none_or(|size| size < len) {
        return Ok(None);
    }
    let mut bitmap = vec![0; index(len)];
    let Some(()) = read_special(volume, slot, &mut bitmap)? else {
        return Ok(None);
    };
    // Bits past the last cluster mean nothing.
    let tail = volume.geometry.clusters % 8;
    if let Some(last) = bitmap.last_mut()
        && tail != 0
    {
        *last &= !(u8::MAX << tail);
    }
    Ok(Some(
        bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum(),
    ))
}
