//! What the volume says of itself, and the state that it was left in.
#![deny(clippy::arithmetic_side_effects)]

use super::attribute;
use super::directory::{MAX_UPCASE, UPCASE};
use super::file::flag;
use super::index::I30;
use super::mft::Mft;
use super::{Ntfs, ROOT};
use crate::error::{Error, Result};
use crate::filesystem::Description;
use crate::filesystem::field::{u8_at, u16_at, u32_at};
use crate::filesystem::windows_name::to_wtf8;

/// Records of the files concerned.
const LOG: u64 = 2;
const VOLUME: u64 = 3;
const BITMAP: u64 = 6;

/// The largest bitmap of clusters that is counted when the volume is opened, in
/// bytes; free space is not told of larger volumes (32 GiB with 4 KiB clusters),
/// because reading theirs would make every opening slow.
const MAX_BITMAP: u64 = 1 << 20;

/// $VOLUME_INFORMATION: major and minor version, flags.
struct Version {
    major: u8,
    minor: u8,
    dirty: bool,
}

/// Announces what opening reads: four places, which are better waited for
/// together than one after the other.
pub(super) fn announce(mft: &Mft) -> Result<()> {
    for (number, kind, name, most) in [
        (LOG, attribute::DATA, &[][..], 512),
        (BITMAP, attribute::DATA, &[], MAX_BITMAP),
        (UPCASE, attribute::DATA, &[], MAX_UPCASE),
        (ROOT, attribute::INDEX_ALLOCATION, I30, 64 << 10),
    ] {
        let stream = mft
            .file(number)
            .and_then(|file| mft.stream(&file, kind, name));
        if let Some(stream) = forgive(stream)?.flatten()
            && (number != BITMAP || stream.size() <= most)
        {
            stream.will_need(&mft.volume, 0, most);
        }
    }
    Ok(())
}

/// Describes the volume.
///
/// # Errors
/// `Unsupported` for a version that is not known. Whatever else cannot be read is
/// left out.
pub(super) fn describe(mft: &Mft) -> Result<Description> {
    let boot = &mft.volume.boot;
    let mut notes = Vec::new();
    let (label, version) = forgive(volume(mft))?.unwrap_or_default();
    if let Some(version) = version {
        if !matches!((version.major, version.minor), (1, 1..) | (3, _)) {
            return Err(Error::Unsupported {
                what: "NTFS".into(),
                reason: format!("version {}.{} is not known", version.major, version.minor),
            });
        }
        if version.dirty {
            notes.push(
                "The volume is marked as dirty: Windows would check it (chkdsk) before use.".into(),
            );
        }
    }
    if forgive(log_is_open(mft))?.unwrap_or(false) {
        notes.push(
            "The volume was in use when the image was taken; its log was not replayed, so the \
             last changes may be missing or half done."
                .into(),
        );
    }
    let missing = boot.size.saturating_sub(mft.volume.source.size());
    if missing > 0 {
        notes.push(format!(
            "The volume is {missing} bytes shorter than its file system: what lies there cannot \
             be read."
        ));
    }
    Ok(Description {
        kind: "ntfs",
        label,
        uuid: format!("{:016X}", boot.serial),
        block_size: u32::try_from(boot.cluster).unwrap_or(0),
        blocks: boot.clusters,
        blocks_free: forgive(free_clusters(mft))?.unwrap_or(0),
        files: 0,
        files_free: 0,
        notes,
    })
}

/// Leaves out what cannot be read, but not what has to wait.
fn forgive<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Corrupt { .. } | Error::NotFound { .. } | Error::Unsupported { .. })
        | Err(Error::TooLarge { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn volume(mft: &Mft) -> Result<(Vec<u8>, Option<Version>)> {
    let file = mft.file(VOLUME)?;
    let label = mft
        .resident(&file, attribute::VOLUME_NAME, &[])?
        .unwrap_or_default();
    let version = mft
        .resident(&file, attribute::VOLUME_INFORMATION, &[])?
        .and_then(|value| {
            Some(Version {
                major: u8_at(&value, 8)?,
                minor: u8_at(&value, 9)?,
                dirty: u16_at(&value, 10)? & 1 != 0,
            })
        });
    Ok((to_wtf8(&label), version))
}

/// Whether $LogFile says that somebody had the volume mounted: its restart area
/// has clients in use and is not marked clean.
fn log_is_open(mft: &Mft) -> Result<bool> {
    let file = mft.file(LOG)?;
    let Some(log) = mft.stream(&file, attribute::DATA, &[])? else {
        return Ok(false);
    };
    let mut page = [0; 512];
    log.read(&mft.volume, 0, &mut page, None)?;
    if page.first_chunk() != Some(b"RSTR") {
        // Emptied (all 0xff) by a clean unmount of ntfs-3g, or by chkdsk.
        return Ok(false);
    }
    let area = usize::from(u16_at(&page, 24).unwrap_or(0));
    let field = |at| u16_at(&page, area.saturating_add(at));
    let (in_use, flags) = (field(12).unwrap_or(0xffff), field(14).unwrap_or(0));
    Ok(in_use != 0xffff && flags & 2 == 0)
}

fn free_clusters(mft: &Mft) -> Result<u64> {
    let file = mft.file(BITMAP)?;
    let bitmap = mft
        .value(&file, attribute::DATA, &[], MAX_BITMAP)?
        .unwrap_or_default();
    let used: u64 = bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum();
    // Bits past the last cluster are set.
    let bits = u64::try_from(bitmap.len()).unwrap_or(0).saturating_mul(8);
    Ok(bits.saturating_sub(used).min(mft.volume.boot.clusters))
}

impl Ntfs {
    /// Whether Windows was hibernated on this volume, or shut down by "fast
    /// start-up", and would go on from there.
    pub(super) fn is_hibernated(&self) -> Result<bool> {
        let found = self.lookup_ignoring_case(ROOT, b"hiberfil.sys");
        let file = found.and_then(|(number, _)| self.mft.file(number));
        let Some(file) = forgive(file)? else {
            return Ok(false);
        };
        let attributes = forgive(self.information(&file))?.map_or(0, |known| known.attributes);
        if attributes & flag::REPARSE_POINT != 0 {
            return Ok(false);
        }
        let stream = forgive(self.mft.stream(&file, attribute::DATA, &[]))?.flatten();
        let Some(stream) = stream else {
            return Ok(false);
        };
        let mut head = [0; 4];
        let read = forgive(stream.read(&self.mft.volume, 0, &mut head, None))?;
        let asleep = [*b"HIBR", *b"hibr"].map(u32::from_le_bytes);
        Ok(read == Some(4) && u32_at(&head, 0).is_some_and(|head| asleep.contains(&head)))
    }
}
