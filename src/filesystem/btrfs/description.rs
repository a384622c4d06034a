//! What the file system says of itself.

use super::chunk::Chunks;
use super::subvolume::{Subvolumes, TOP, TOP_LEVEL};
use super::superblock::Superblock;
use crate::error::Result;
use crate::filesystem::Description;

pub(super) fn describe(
    superblock: &Superblock,
    chunks: &Chunks,
    subvolumes: &Subvolumes,
) -> Result<Description> {
    let mut notes = Vec::new();
    if superblock.log_root != 0 {
        notes.push(
            "The log was not replayed: the file system was in use when the image was taken, and \
             what programs had made sure of (fsync) in the last seconds before that may be \
             missing."
                .into(),
        );
    }
    let root = subvolumes.root()?.id;
    if root != TOP {
        notes.push(format!(
            "The root is the default subvolume ({root}); what lies outside of it is in the \
             folder {}, which is not listed.",
            TOP_LEVEL.escape_ascii()
        ));
    }
    let mut missing = 0u64;
    for device in &chunks.devices {
        if device.place.is_none() {
            missing = missing.saturating_add(1);
            notes.push(format!(
                "Device {} (UUID {}) is missing: what lies on it alone cannot be read.",
                device.id,
                uuid::Uuid::from_bytes(device.uuid)
            ));
        } else if device.stale {
            notes.push(format!(
                "Device {} was left out of the last changes; where there is another copy, that \
                 one is read.",
                device.id
            ));
        }
    }
    let known = u64::try_from(chunks.devices.len()).unwrap_or(u64::MAX);
    if missing == 0 && superblock.device_count > known {
        notes.push(format!(
            "The file system has {} devices, of which {known} are known.",
            superblock.device_count
        ));
    }
    if subvolumes.beyond > 0 {
        notes.push(format!(
            "It has more subvolumes than can be numbered: {} of them cannot be read.",
            subvolumes.beyond
        ));
    }
    let sector = u64::from(superblock.sector_size.max(1));
    let blocks = |bytes: u64| bytes.checked_div(sector).unwrap_or(0);
    let total = superblock
        .total_bytes
        .checked_div(chunks.data_copies.max(1))
        .unwrap_or(0);
    Ok(Description {
        kind: "btrfs",
        label: superblock.label.clone(),
        uuid: uuid::Uuid::from_bytes(superblock.fsid).to_string(),
        block_size: superblock.sector_size,
        blocks: blocks(total),
        // Copies of metadata are counted once.
        blocks_free: blocks(total.saturating_sub(superblock.bytes_used)),
        files: 0,
        files_free: 0,
        notes,
    })
}
