//! Inodes in the log (`struct xfs_inode_log_format`).
//!
//! The idea: an item has the inode's fields as the guest's kernel has them in
//! memory (`struct xfs_log_dinode`): at the same places as on disk, and
//! little-endian. The forks follow as they are on disk, except the root of a tree
//! of extents, which in memory is a block of its own.

use super::super::field::{le16_at, le32_at, le64_at, slice_at, u8_at, u16_at, u64_at, wide};
use super::super::inode::{CRC, MAGIC, attribute_fork, core_len};
use super::super::store::Store;
use super::super::superblock::checksum;
use super::ring::corrupt;
use super::transaction::Item;
use crate::error::Result;

/// `XFS_ILOG_…`: what of an inode follows.
const DATA: u32 = 0x02 | 0x04;
const DATA_ROOT: u32 = 0x08;
const DEVICE: u32 = 0x10;
const ATTRIBUTES: u32 = 0x40 | 0x80;
const ATTRIBUTES_ROOT: u32 = 0x100;

/// `di_flags2`: times are one number each, and not two.
const BIG_TIME: u64 = 0x8;
/// ... and so is the counter of extents.
const WIDE_COUNTERS: u64 = 0x10;

/// Fields of an inode of version 1 and 2, by place and length. Left out are what
/// is single bytes, counters of extents and times, which have several forms, and
/// `di_next_unlinked`, which is not logged so.
const FIELDS: [(usize, usize); 16] = [
    (0, 2),
    (2, 2),
    (6, 2),
    (8, 4),
    (12, 4),
    (16, 4),
    (20, 2),
    (22, 2),
    (56, 8),
    (64, 8),
    (72, 4),
    (84, 4),
    (88, 2),
    (90, 2),
    (92, 4),
    (30, 2),
];

/// Those that version 3 has besides, without checksum and place in the log.
const FIELDS_3: [(usize, usize); 4] = [(104, 8), (120, 8), (128, 4), (152, 8)];

/// Single bytes: version, format, place and format of the attributes.
const BYTES: [usize; 4] = [4, 5, 82, 83];

/// Times: read, changed, changed the inode; made.
const TIMES: [usize; 3] = [32, 40, 48];
const BIRTH: usize = 144;

/// Copies `len` bytes at `at` in the other order.
fn swap(from: &[u8], to: &mut [u8], at: usize, len: usize) {
    let source = slice_at(from, at, len).unwrap_or_default();
    let target = to.iter_mut().skip(at);
    for (target, source) in target.zip(source.iter().rev()) {
        *target = *source;
    }
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    for (target, source) in to.iter_mut().skip(at).zip(bytes) {
        *target = *source;
    }
}

/// Writes the fields of an inode in the log to the inode on disk.
fn core_to_disk(log: &[u8], disk: &mut [u8], lsn: u64) {
    let version = u8_at(log, 4).unwrap_or_default();
    let flags2 = if version >= 3 {
        le64_at(log, 120)
    } else {
        None
    }
    .unwrap_or_default();
    for (at, len) in FIELDS {
        swap(log, disk, at, len);
    }
    for at in BYTES {
        put(disk, at, slice_at(log, at, 1).unwrap_or_default());
    }
    let time = |disk: &mut [u8], at: usize| {
        if flags2 & BIG_TIME != 0 {
            swap(log, disk, at, 8);
        } else {
            swap(log, disk, at, 4);
            swap(log, disk, at.saturating_add(4), 4);
        }
    };
    for at in TIMES {
        time(disk, at);
    }
    if flags2 & WIDE_COUNTERS != 0 {
        swap(log, disk, 24, 8);
    }
    swap(log, disk, 76, 4);
    swap(log, disk, 80, 2);
    if version >= 3 {
        for (at, len) in FIELDS_3 {
            swap(log, disk, at, len);
        }
        time(disk, BIRTH);
        put(disk, 112, &lsn.to_be_bytes());
        put(disk, 160, slice_at(log, 160, 16).unwrap_or_default());
    }
}

/// Writes the root of a tree of extents as a fork has it (`struct
/// xfs_bmdr_block`) from its form in memory, a block of the tree with room for
/// just what it holds.
fn root_to_fork(block: &[u8], head: usize, fork: &mut [u8]) -> Option<()> {
    let (level, count) = (slice_at(block, 4, 2)?, slice_at(block, 6, 2)?);
    let len = usize::from(u16_at(count, 0)?).checked_mul(8)?;
    let from_room = block.len().checked_sub(head)? / 16;
    let to_room = fork.len().checked_sub(4)? / 16;
    let keys = slice_at(block, head, len)?;
    let pointers = head.checked_add(from_room.checked_mul(8)?)?;
    let pointers = slice_at(block, pointers, len)?;
    if len > to_room.checked_mul(8)? {
        return None;
    }
    put(fork, 0, level);
    put(fork, 2, count);
    put(fork, 4, keys);
    put(fork, to_room.checked_mul(8)?.checked_add(4)?, pointers);
    Some(())
}

impl Store {
    /// Lays an inode of a transaction over the volume.
    pub(super) fn replay_inode(&mut self, lsn: u64, item: &Item) -> Result<()> {
        let cut = || corrupt("an inode in it is cut off");
        let head = item.region(0);
        // 32-bit kernels do not pad before the number.
        let shift = match head.len() {
            52 => 4,
            _ => 0,
        };
        let n32 = |at: usize| le32_at(head, at);
        let n64 = |at: usize| le64_at(head, at.saturating_sub(shift));
        let fields = n32(4).ok_or_else(cut)?;
        let ino = n64(16).ok_or_else(cut)?;
        let sector = n64(40).ok_or_else(cut)?;
        let within = n32(52usize.saturating_sub(shift)).ok_or_else(cut)?;
        let offset = sector.saturating_mul(512).saturating_add(u64::from(within));
        let place = self.superblock.inode_place(ino);
        if place.is_none_or(|(_, _, place)| place != offset) {
            // The volume may have been grown since the superblock was written.
            let size = wide(self.superblock.inode_size());
            let end = offset.saturating_add(size);
            if end > self.volume.size() || u64::from(within) & size.saturating_sub(1) != 0 {
                return Err(corrupt(format!("inode {ino} of it cannot lie there")));
            }
        }
        let mut disk = vec![0; self.superblock.inode_size()];
        self.read(offset, &mut disk)?;
        let log = item.region(1);
        let version = u8_at(log, 4).unwrap_or_default();
        let sound = le16_at(log, 0) == Some(MAGIC)
            && log.len() >= core_len(version).saturating_sub(4)
            && (version == 3) == self.superblock.v5
            // One that was made by the log is zeros.
            && matches!(u16_at(&disk, 0), Some(0 | MAGIC));
        if !sound {
            return Err(corrupt(format!("inode {ino} of it is none")));
        }
        if self.superblock.v5 {
            let written = u64_at(&disk, 112).filter(|lsn| *lsn != u64::MAX);
            if written.is_some_and(|written| written > lsn) {
                return Ok(());
            }
        } else if is_older(le16_at(log, 30), u16_at(&disk, 30)) {
            return Ok(());
        }
        core_to_disk(log, &mut disk, lsn);
        if !self.superblock.v5 {
            // The kernel counts anew from here.
            put(&mut disk, 30, &[0, 0]);
        }
        if fields & DEVICE != 0 {
            let device = n32(24usize.saturating_sub(shift)).unwrap_or_default();
            put(&mut disk, core_len(version), &device.to_be_bytes());
        }
        self.replay_forks(item, fields, version, &mut disk)
            .ok_or_else(|| corrupt(format!("inode {ino} of it does not fit")))?;
        if self.superblock.v5 {
            let sum = checksum(&disk, CRC).to_le_bytes();
            put(&mut disk, CRC, &sum);
        }
        self.overlay.write(&*self.volume, offset, &disk)
    }

    fn replay_forks(&self, item: &Item, fields: u32, version: u8, disk: &mut [u8]) -> Option<()> {
        let start = core_len(version);
        let attributes = attribute_fork(disk, version);
        let head = if self.superblock.v5 { 72 } else { 24 };
        let mut next = 2;
        let mut fork = |disk: &mut [u8], plain: u32, root: u32, from: usize, to: usize| {
            if fields & (plain | root) == 0 {
                return Some(());
            }
            let region = item.region(next);
            next = next.saturating_add(1);
            let target = disk.get_mut(from..to)?;
            if fields & root != 0 {
                return root_to_fork(region, head, target);
            }
            // What is logged may be rounded up to 4 bytes.
            (region.len() <= target.len().next_multiple_of(4)).then(|| put(target, 0, region))
        };
        let len = disk.len();
        fork(disk, DATA, DATA_ROOT, start, attributes.unwrap_or(len))?;
        match attributes {
            Some(from) => fork(disk, ATTRIBUTES, ATTRIBUTES_ROOT, from, len),
            None => Some(()),
        }
    }
}

/// Whether an inode in the log of version 4 is older than the one on disk: both
/// count how often they were written (`di_flushiter`), going round at 0xffff.
fn is_older(log: Option<u16>, disk: Option<u16>) -> bool {
    match (log, disk) {
        (Some(log), Some(disk)) => log < disk && !(disk == u16::MAX && log < u16::MAX >> 1),
        _ => false,
    }
}
