//! The superblock (`struct xfs_dsb`) and the geometry that follows from it.
//!
//! The idea: an XFS is cut into allocation groups of equal length, the last one
//! shorter. Numbers of blocks and inodes hold the group's number in their upper
//! bits, at a power of two, so that there are gaps in them; a linear block number
//! has no gaps and is one block size on the volume each.

use super::field::{index, le32_at, slice_at, u8_at, u16_at, u32_at, u64_at};
use crate::error::{Error, Result};

/// `sb_features_incompat`: entries of folders tell the file's type.
const FTYPE: u32 = 0x1;
/// Metadata carries another UUID than the file system.
const META_UUID: u32 = 0x4;
/// `xfs_repair` must run before the kernel mounts it again.
const NEEDS_REPAIR: u32 = 0x10;
/// With sparse inodes, bigtime, nrext64, exchange-range, parent pointers: all
/// that is read here.
const KNOWN: u32 = FTYPE | 0x2 | META_UUID | 0x8 | NEEDS_REPAIR | 0x20 | 0x40 | 0x80;

/// Features that are refused, by their name.
const REFUSED: [(u32, &str); 3] = [
    (0x100, "a metadata directory tree (metadir)"),
    (0x200, "a zoned realtime device"),
    (0x400, "a zoned realtime device with gaps"),
];

/// `sb_versionnum`: the log has version 2, folders ignore ASCII case, there is
/// `sb_features2`.
const LOG_V2: u16 = 0x0400;
const DIR_V2: u16 = 0x2000;
const ASCII_CI: u16 = 0x4000;
const MORE: u16 = 0x8000;
/// `sb_features2` of version 4: entries of folders tell the file's type.
const FTYPE_V4: u32 = 0x200;

/// Where the checksum lies (`sb_crc`).
const CRC: usize = 224;

/// What reading needs of the superblock, checked.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    /// Version 5: metadata has checksums and says what it is.
    pub(super) v5: bool,
    /// Block size as a power of two: 9 to 16.
    pub(super) block_bits: u32,
    /// Blocks of a folder as a power of two: 9 to 16.
    pub(super) dir_block_bits: u32,
    /// Inode size as a power of two: 8 to 11.
    pub(super) inode_bits: u32,
    /// Sector size in bytes: AGs begin with headers of this length.
    pub(super) sector_size: u16,
    /// Blocks in all.
    pub(super) blocks: u64,
    pub(super) ag_blocks: u32,
    pub(super) ag_count: u32,
    /// Bits of a block number within an AG.
    pub(super) ag_block_bits: u32,
    /// The root folder.
    pub(super) root: u64,
    /// Inodes that no name leads to: realtime bitmap and summary, quotas.
    pub(super) hidden: [u64; 5],
    /// Folders tell the types of their entries.
    pub(super) ftype: bool,
    /// Folders ignore the case of ASCII and Latin-1 letters in look-ups.
    pub(super) ignore_case: bool,
    /// What version 5 metadata carries.
    pub(super) meta_uuid: [u8; 16],
    /// What the log carries.
    pub(super) uuid: [u8; 16],
    /// Byte offset of the log; `None` if it lies on another device.
    pub(super) log_start: Option<u64>,
    /// Bytes of the log.
    pub(super) log_len: u64,
    pub(super) log_v2: bool,
    /// Changes in the log that older kernels do not know.
    pub(super) log_incompat: u32,
    /// There is a realtime device.
    pub(super) realtime: bool,
    pub(super) needs_repair: bool,
    pub(super) label: Vec<u8>,
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
    pub(super) blocks_free: u64,
}

impl Superblock {
    /// How errors call it.
    pub(super) const WHAT: &str = "XFS superblock";

    /// How many bytes of the volume's beginning [`Superblock::parse`] needs at
    /// most: the largest sector.
    pub(super) const MAX_LEN: usize = 32768;

    /// Reads it from the volume's first bytes. `checked`: whether to verify the
    /// checksum; not if the log has changed it.
    pub(super) fn parse(raw: &[u8], checked: bool) -> Result<Self> {
        let corrupt = |reason: String| Error::corrupt(Self::WHAT, reason);
        let unsupported = |reason: String| Error::Unsupported {
            what: "XFS".into(),
            reason,
        };
        let short = || corrupt("it is cut off".into());
        let n8 = |at| u8_at(raw, at).ok_or_else(short);
        let n16 = |at| u16_at(raw, at).ok_or_else(short);
        let n32 = |at| u32_at(raw, at).ok_or_else(short);
        let n64 = |at| u64_at(raw, at).ok_or_else(short);
        let uuid = |at| {
            let bytes = slice_at(raw, at, 16).and_then(|bytes| bytes.first_chunk().copied());
            bytes.ok_or_else(short)
        };
        if slice_at(raw, 0, 4) != Some(b"XFSB") {
            return Err(corrupt("it does not begin with XFSB".into()));
        }
        let (version, sector_size) = (n16(100)?, n16(102)?);
        let v5 = match version & 0xf {
            4 => false,
            5 => true,
            other => return Err(unsupported(format!("version {other} is not known"))),
        };
        if !sector_size.is_power_of_two() || !(512..=32768).contains(&sector_size) {
            return Err(corrupt(format!("sectors of {sector_size} bytes cannot be")));
        }
        if v5 && checked {
            let sector = slice_at(raw, 0, usize::from(sector_size)).ok_or_else(short)?;
            if le32_at(sector, CRC) != Some(checksum(sector, CRC)) {
                return Err(corrupt("its checksum is wrong".into()));
            }
        }
        let incompat = if v5 { n32(216)? } else { 0 };
        if let Some((_, name)) = REFUSED.iter().find(|(bit, _)| incompat & bit != 0) {
            return Err(unsupported(format!("it has {name}, which is not read")));
        }
        if incompat & !KNOWN != 0 {
            return Err(unsupported(format!(
                "it uses features that are not known (incompat {:#x})",
                incompat & !KNOWN
            )));
        }
        if !v5 && version & DIR_V2 == 0 {
            return Err(unsupported("its folders are of version 1".into()));
        }
        if n8(126)? != 0 {
            return Err(corrupt("mkfs has not finished".into()));
        }
        let features2 = if version & MORE != 0 { n32(200)? } else { 0 };

        let (block_bits, inode_bits) = (u32::from(n8(120)?), u32::from(n8(122)?));
        let dir_block_bits = block_bits.saturating_add(u32::from(n8(192)?));
        let (ag_blocks, ag_count) = (n32(84)?, n32(88)?);
        let ag_block_bits = u32::from(n8(124)?);
        let blocks = n64(8)?;
        let sound = (9..=16).contains(&block_bits)
            && n32(4)? == 1u32.wrapping_shl(block_bits)
            && (9..=16).contains(&dir_block_bits)
            && (8..=11).contains(&inode_bits)
            && inode_bits <= block_bits
            && u32::from(n16(104)?) == 1u32.wrapping_shl(inode_bits)
            && u32::from(n8(123)?) == block_bits.saturating_sub(inode_bits)
            && !(v5 && inode_bits < 9)
            && u32::from(sector_size) <= 1u32.wrapping_shl(block_bits);
        if !sound {
            return Err(corrupt("its sizes contradict each other".into()));
        }
        let whole = u64::from(ag_count.saturating_sub(1)).saturating_mul(u64::from(ag_blocks));
        let sound = ag_blocks > 1
            && ag_count > 0
            && ag_block_bits == ag_blocks.saturating_sub(1).ilog2().saturating_add(1)
            && blocks > whole
            && blocks.saturating_sub(whole) <= u64::from(ag_blocks)
            && blocks < 1 << 52;
        if !sound {
            return Err(corrupt("its allocation groups contradict its size".into()));
        }
        let mut superblock = Self {
            v5,
            block_bits,
            dir_block_bits,
            inode_bits,
            sector_size,
            blocks,
            ag_blocks,
            ag_count,
            ag_block_bits,
            root: n64(56)?,
            hidden: [n64(64)?, n64(72)?, n64(160)?, n64(168)?, n64(232)?],
            ftype: incompat & FTYPE != 0 || (!v5 && features2 & FTYPE_V4 != 0),
            ignore_case: version & ASCII_CI != 0,
            meta_uuid: uuid(if incompat & META_UUID != 0 { 248 } else { 32 })?,
            uuid: uuid(32)?,
            log_start: None,
            log_len: u64::from(n32(96)?).saturating_mul(1u64.wrapping_shl(block_bits)),
            log_v2: v5 || version & LOG_V2 != 0,
            log_incompat: if v5 { n32(220)? } else { 0 },
            realtime: n64(16)? != 0,
            needs_repair: incompat & NEEDS_REPAIR != 0,
            label: slice_at(raw, 108, 12)
                .and_then(|label| label.split(|byte| *byte == 0).next())
                .unwrap_or_default()
                .to_vec(),
            inodes: n64(128)?,
            inodes_free: n64(136)?,
            blocks_free: n64(144)?,
        };
        if !v5 {
            superblock.hidden = [n64(64)?, n64(72)?, n64(160)?, n64(168)?, u64::MAX];
        }
        let log = n64(48)?;
        if log != 0 {
            let len = superblock.log_len.wrapping_shr(block_bits);
            let start = superblock.linear(log, len);
            let start = start.ok_or_else(|| corrupt("the log cannot lie there".into()))?;
            superblock.log_start = Some(superblock.bytes(start));
        }
        if superblock.inode_place(superblock.root).is_none() {
            return Err(corrupt("the root folder cannot lie there".into()));
        }
        Ok(superblock)
    }

    /// Bytes per block.
    pub(super) fn block_size(&self) -> u64 {
        1u64.wrapping_shl(self.block_bits)
    }

    /// Bytes per inode.
    pub(super) fn inode_size(&self) -> usize {
        1usize.wrapping_shl(self.inode_bits)
    }

    /// File-system blocks per block of a folder.
    pub(super) fn blocks_per_dir_block(&self) -> u64 {
        1u64.wrapping_shl(self.dir_block_bits.saturating_sub(self.block_bits))
    }

    /// Byte offset of a linear block; saturates, so that a wild number ends past
    /// the volume, where reading is an error.
    pub(super) fn bytes(&self, blocks: u64) -> u64 {
        blocks.saturating_mul(self.block_size())
    }

    /// How many blocks AG `ag` has; 0 if there is none.
    pub(super) fn ag_len(&self, ag: u64) -> u64 {
        let before = ag.saturating_mul(u64::from(self.ag_blocks));
        self.blocks
            .saturating_sub(before)
            .min(u64::from(self.ag_blocks))
    }

    /// The linear number of `block` (`xfs_fsblock_t`), if `len` blocks from it lie
    /// in one AG.
    pub(super) fn linear(&self, block: u64, len: u64) -> Option<u64> {
        let ag = block.wrapping_shr(self.ag_block_bits);
        let within = block & low_bits(self.ag_block_bits);
        let fits = within.checked_add(len)? <= self.ag_len(ag) && len > 0;
        fits.then(|| {
            ag.saturating_mul(u64::from(self.ag_blocks))
                .saturating_add(within)
        })
    }

    /// The AG of an inode, its number there, and its byte offset on the volume;
    /// `None` if there can be no such inode.
    pub(super) fn inode_place(&self, ino: u64) -> Option<(u64, u32, u64)> {
        let per_block = self.block_bits.saturating_sub(self.inode_bits);
        let block = self.linear(ino.wrapping_shr(per_block), 1)?;
        let number = (ino & low_bits(per_block)).wrapping_shl(self.inode_bits);
        let bits = self.ag_block_bits.saturating_add(per_block);
        let within = u32::try_from(ino & low_bits(bits)).ok()?;
        let offset = self.bytes(block).saturating_add(number);
        Some((ino.wrapping_shr(bits), within, offset))
    }

    /// One more than the largest inode number there can be.
    pub(super) fn inode_bound(&self) -> u64 {
        let last = u64::from(self.ag_count.saturating_sub(1));
        let blocks = last
            .wrapping_shl(self.ag_block_bits)
            .saturating_add(self.ag_len(last));
        blocks.wrapping_shl(self.block_bits.saturating_sub(self.inode_bits))
    }
}

/// A number with the lower `bits` set.
fn low_bits(bits: u32) -> u64 {
    1u64.wrapping_shl(bits).wrapping_sub(1)
}

/// The CRC-32C of a structure whose checksum lies at `at` and counts as zero.
pub(super) fn checksum(bytes: &[u8], at: usize) -> u32 {
    let (before, after) = bytes.split_at_checked(at).unwrap_or((bytes, &[]));
    let sum = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
    crc32c::crc32c_append(sum, after.get(index(4u8)..).unwrap_or_default())
}
