//! From the items of finished transactions to sectors.
//!
//! The order within a transaction is the kernel's: buffers and new inodes first,
//! inodes on them, then what is let go. A buffer that tells when it was written
//! last (version 5) is left alone if that was later than the transaction.

use std::collections::BTreeMap;

use super::super::field::{
    index, le16_at, le32_at, le64_at, slice_at, u16_at, u32_at, u64_at, wide,
};
use super::super::overlay::SECTOR_BYTES;
use super::super::store::Store;
use super::ring::corrupt;
use super::transaction::Item;
use crate::error::Result;
use crate::image::patience;

/// `XFS_LI_…`: kinds of items.
const INODE: u16 = 0x123b;
const BUFFER: u16 = 0x123c;
const NEW_INODES: u16 = 0x123f;
/// Intents and their ends: maps of files, attributes, exchanges of content.
const INTENTS: [(u16, u16); 3] = [(0x1244, 0x1245), (0x1246, 0x1247), (0x1248, 0x1249)];

/// How many intents are kept in mind at once.
const MAX_INTENTS: usize = 1 << 16;

/// Flags of a buffer (`XFS_BLF_…`): only list pointers of inodes that have no
/// name; freed; quotas (three kinds).
const UNLINKED: u16 = 0x01;
const CANCEL: u16 = 0x02;
const QUOTA: u16 = 0x1c;

/// Bytes that one bit of a buffer's map stands for (`XFS_BLF_CHUNK`).
const CHUNK: usize = 128;

/// What a buffer holds (`XFS_BLFT_…`, above the flags) that no reader looks at:
/// AGF, AGFL, free space of folders, realtime bitmap and summary.
const UNREAD: [u16; 5] = [5, 6, 12, 19, 20];

/// The longest buffer, in sectors.
const MAX_BUFFER: u16 = 2048;

/// The replay of a log.
#[derive(Default)]
pub(super) struct Replay {
    /// Kind and number of intents that were begun, and not ended.
    intents: BTreeMap<(u16, u64), ()>,
}

impl Replay {
    /// How many changes were begun and not finished.
    pub(super) fn unfinished(&self) -> usize {
        self.intents.len()
    }

    /// Lays a transaction over the volume, which began at `lsn` in the log.
    pub(super) fn apply(&mut self, store: &mut Store, lsn: u64, items: Vec<Item>) -> Result<()> {
        for item in &items {
            patience::spend()?;
            match item.kind() {
                BUFFER if buffer_flags(item) & CANCEL == 0 => buffer(store, lsn, item)?,
                NEW_INODES => new_inodes(store, item)?,
                _ => {}
            }
        }
        for item in &items {
            patience::spend()?;
            match item.kind() {
                INODE => store.replay_inode(lsn, item)?,
                kind => self.intent(kind, item),
            }
        }
        for item in &items {
            if item.kind() == BUFFER && buffer_flags(item) & CANCEL != 0 {
                let (offset, len) = buffer_place(store, item)?;
                store.overlay.forget(offset, len);
            }
        }
        Ok(())
    }

    fn intent(&mut self, kind: u16, item: &Item) {
        let Some(number) = le64_at(item.region(0), 8) else {
            return;
        };
        for (begun, ended) in INTENTS {
            if kind == begun && self.intents.len() < MAX_INTENTS {
                self.intents.insert((begun, number), ());
            } else if kind == ended {
                self.intents.remove(&(begun, number));
            }
        }
    }
}

fn buffer_flags(item: &Item) -> u16 {
    le16_at(item.region(0), 4).unwrap_or_default()
}

/// Byte offset and length of a buffer (`struct xfs_buf_log_format`).
fn buffer_place(store: &Store, item: &Item) -> Result<(u64, u64)> {
    let head = item.region(0);
    let place = le64_at(head, 8).zip(le16_at(head, 6));
    let (sector, count) = place.ok_or_else(|| corrupt("a buffer in it is cut off"))?;
    let end = sector.saturating_add(u64::from(count));
    let all = store.superblock.bytes(store.superblock.blocks) / SECTOR_BYTES;
    // The volume may have been grown since the superblock was written.
    if count == 0 || count > MAX_BUFFER || end > all.max(store.volume.size() / SECTOR_BYTES) {
        return Err(corrupt(format!(
            "a buffer of it cannot lie at sector {sector}"
        )));
    }
    let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
    Ok((bytes(sector), bytes(u64::from(count))))
}

fn buffer(store: &mut Store, lsn: u64, item: &Item) -> Result<()> {
    let flags = buffer_flags(item);
    if flags & (UNLINKED | QUOTA) != 0 || UNREAD.contains(&(flags >> 11)) {
        return Ok(());
    }
    let (offset, len) = buffer_place(store, item)?;
    if store.superblock.v5 {
        let mut first = [0; 64];
        store.read(offset, &mut first)?;
        if written_at(&first, &store.superblock.meta_uuid).is_some_and(|written| written >= lsn) {
            return Ok(());
        }
    }
    let head = item.region(0);
    let words = index(le32_at(head, 16).unwrap_or_default());
    let map = slice_at(head, 20, words.saturating_mul(4));
    let map = map.ok_or_else(|| corrupt("the map of a buffer in it is cut off"))?;
    let chunks = index(len) / CHUNK;
    let set = |nr: usize| {
        let byte = map.get(nr / 8).copied().unwrap_or_default();
        nr < chunks && byte.wrapping_shr(u32::try_from(nr % 8).unwrap_or_default()) & 1 != 0
    };
    let mut nr = 0;
    for region in item.regions.iter().skip(1) {
        while nr < chunks && !set(nr) {
            nr = nr.saturating_add(1);
        }
        let start = nr;
        // A stretch may be in two regions, but not a region in two stretches.
        while set(nr) && nr.saturating_sub(start) < region.len() / CHUNK {
            nr = nr.saturating_add(1);
        }
        let bytes = nr.saturating_sub(start).saturating_mul(CHUNK);
        let at = offset.saturating_add(wide(start.saturating_mul(CHUNK)));
        let Some(bytes) = region.get(..bytes).filter(|bytes| !bytes.is_empty()) else {
            return Err(corrupt("a buffer in it is longer than its map"));
        };
        store.overlay.write(&*store.volume, at, bytes)?;
    }
    Ok(())
}

/// When a block of metadata was written last, if it tells: its place in the log.
fn written_at(block: &[u8], uuid: &[u8; 16]) -> Option<u64> {
    let magic = slice_at(block, 0, 4).unwrap_or_default();
    let (lsn, place) = match magic {
        b"AB3B" | b"AB3C" | b"RMB3" | b"R3FC" | b"FIB3" | b"IAB3" => (24, 32),
        b"BMA3" => (32, 40),
        b"XSLM" => (48, 16),
        b"XDB3" | b"XDD3" | b"XDF3" => (16, 24),
        _ => match u16_at(block, 8) {
            Some(0x3df1 | 0x3dff | 0x3ebe | 0x3bee) => (24, 32),
            _ => return None,
        },
    };
    let written = u64_at(block, lsn).filter(|lsn| *lsn != 0 && *lsn != u64::MAX)?;
    (slice_at(block, place, 16) == Some(uuid)).then_some(written)
}

/// Makes inodes that are not in use (`struct xfs_icreate_log`, big-endian): zeros,
/// which is as good as free for a reader.
fn new_inodes(store: &mut Store, item: &Item) -> Result<()> {
    let head = item.region(0);
    let n32 = |at| u32_at(head, at).map(u64::from).unwrap_or_default();
    let (ag, block, len) = (n32(4), n32(8), n32(20));
    let superblock = &store.superblock;
    let number = ag
        .wrapping_shl(superblock.ag_block_bits)
        .saturating_add(block);
    let first = superblock.linear(number, len);
    let within = block < u64::from(superblock.ag_blocks);
    let Some(first) = first.filter(|_| within && len <= 1024) else {
        return Err(corrupt(format!(
            "new inodes cannot lie in block {block} of AG {ag}"
        )));
    };
    let (offset, len) = (superblock.bytes(first), superblock.bytes(len));
    store.overlay.clear(offset, len)
}
