//! What an XFS says of itself.

use super::log::State;
use super::store::Store;
use crate::filesystem::Description;

pub(super) fn describe(store: &Store, log: &State) -> Description {
    let superblock = &store.superblock;
    let mut notes = log.notes();
    if superblock.needs_repair {
        notes.push("The file system is marked as damaged; it needs xfs_repair.".into());
    }
    if superblock.realtime {
        notes.push(
            "The file system has a realtime device, whose files are shown and cannot be read."
                .into(),
        );
    }
    let missing = superblock
        .bytes(superblock.blocks)
        .saturating_sub(store.volume.size());
    if missing > 0 {
        notes.push(format!(
            "The volume is {missing} bytes shorter than its file system: what lies there cannot \
             be read."
        ));
    }
    let log_blocks = match superblock.log_start {
        Some(_) => superblock.log_len.checked_div(superblock.block_size()),
        None => None,
    }
    .unwrap_or(0);
    let uuid = uuid::Uuid::from_bytes(superblock.uuid);
    Description {
        kind: "xfs",
        label: superblock.label.clone(),
        uuid: if uuid.is_nil() {
            String::new()
        } else {
            uuid.to_string()
        },
        block_size: u32::try_from(superblock.block_size()).unwrap_or(u32::MAX),
        // An internal log cannot hold files; `statfs` of the kernel leaves it out too.
        blocks: superblock.blocks.saturating_sub(log_blocks),
        blocks_free: superblock.blocks_free,
        files: superblock.inodes,
        files_free: superblock.inodes_free,
        notes,
    }
}
