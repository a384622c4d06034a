//! The superblock (`struct btrfs_super_block`): up to three copies on each
//! device.
//!
//! ```text
//! 0x00 csum[32]     0x50 root        0x88 num_devices  0xc4 csum_type u16
//! 0x20 fsid[16]     0x58 chunk_root  0x90 sectorsize   0xc6 root_level u8
//! 0x30 bytenr       0x60 log_root    0x94 nodesize     0xc7 chunk_root_level
//! 0x38 flags        0x70 total_bytes 0xa0 array size   0xc9 dev_item
//! 0x40 magic        0x78 bytes_used  0xa4 chunk_root_generation
//! 0x48 generation   0x80 root_dir    0xbc incompat     0x12b label[256]
//! 0x23b metadata_uuid[16]            0x32b sys_chunk_array[2048]
//! ```

use super::checksum::Checksum;
use crate::error::{Error, Result};
use crate::filesystem::field::{array_at, index, slice_at, u8_at, u16_at, u32_at, u64_at};
use crate::image::BlockRead;

/// Where copies lie on a device, in bytes.
const COPIES: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];

/// Length in bytes.
const LEN: usize = 4096;

const MAGIC: &[u8; 8] = b"_BHRfS_M";

/// Incompat features that change nothing for this reader or that it knows.
const KNOWN: u64 = 0x1_0fff;
/// What the others are, as far as they have a name.
const UNKNOWN: [(u64, &str); 4] = [
    (1 << 12, "zoned mode"),
    (1 << 13, "extent tree v2"),
    (1 << 14, "the raid stripe tree"),
    (1 << 17, "the remap tree"),
];
const METADATA_UUID: u64 = 1 << 10;

/// `BTRFS_SUPER_FLAG_CHANGING_META_CSUM`: nodes of two kinds of checksums.
const CHANGING_CHECKSUM: u64 = 1 << 40;

/// What is used of it.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    /// UUID as users see it.
    pub(super) fsid: [u8; 16],
    /// UUID as it stands in nodes and device items.
    pub(super) metadata_uuid: [u8; 16],
    pub(super) generation: u64,
    /// Logical byte of the root tree's root node.
    pub(super) root: u64,
    pub(super) root_level: u8,
    /// Logical byte of the chunk tree's root node.
    pub(super) chunk_root: u64,
    pub(super) chunk_root_level: u8,
    pub(super) chunk_root_generation: u64,
    /// Logical byte of the log tree's root node; 0 if there is none.
    pub(super) log_root: u64,
    /// Of all devices.
    pub(super) total_bytes: u64,
    /// Bytes in use, copies counted once.
    pub(super) bytes_used: u64,
    /// Where the root tree names the default subvolume.
    pub(super) root_dir: u64,
    pub(super) device_count: u64,
    /// Bytes, a power of two, 512 to 64 KiB.
    pub(super) sector_size: u32,
    /// Bytes, a power of two, 4 to 64 KiB.
    pub(super) node_size: u32,
    pub(super) checksum: Checksum,
    /// Of the device that it lies on.
    pub(super) device: u64,
    pub(super) device_uuid: [u8; 16],
    pub(super) label: Vec<u8>,
    /// Chunks of the chunk tree itself: keys and items, one after the other.
    pub(super) system_chunks: Vec<u8>,
}

impl Superblock {
    /// Of a device that takes `len` bytes of `volume` from `start`: the copy of
    /// the highest generation among those that are whole and of one file system.
    ///
    /// # Errors
    /// `Corrupt` if none is whole, `Unsupported` for what is not read.
    pub(super) fn read(volume: &dyn BlockRead, start: u64, len: u64) -> Result<Self> {
        const WHAT: &str = "btrfs superblock";
        let mut best: Option<Self> = None;
        let mut refused = None;
        for place in COPIES {
            if place.saturating_add(LEN as u64) > len {
                break;
            }
            let mut raw = vec![0; LEN];
            volume.read_at(start.saturating_add(place), &mut raw)?;
            if slice_at(&raw, 0x40, 8) != Some(MAGIC) || u64_at(&raw, 0x30) != Some(place) {
                continue;
            }
            match Self::parse(&raw) {
                Ok(copy) => {
                    // What an earlier file system has left is not a copy.
                    let better = best.as_ref().is_none_or(|best| {
                        best.fsid == copy.fsid && best.generation < copy.generation
                    });
                    if better {
                        best = Some(copy);
                    }
                }
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        match (best, refused) {
            (Some(best), _) => Ok(best),
            (None, Some(error)) => Err(error),
            (None, None) => Err(Error::corrupt(WHAT, "it is not there")),
        }
    }

    fn parse(raw: &[u8]) -> Result<Self> {
        let corrupt = |reason: String| Error::corrupt("btrfs superblock", reason);
        let unsupported = |reason: String| Error::Unsupported {
            what: "btrfs".into(),
            reason,
        };
        let short = || corrupt("it is too short".into());
        let kind = u16_at(raw, 0xc4).ok_or_else(short)?;
        let checksum = Checksum::new(kind)
            .ok_or_else(|| unsupported(format!("its checksums are of a new kind ({kind})")))?;
        let summed = raw.get(0x20..).ok_or_else(short)?;
        if !checksum.matches(raw, summed) {
            return Err(corrupt("its checksum is wrong, in every copy".into()));
        }
        let incompat = u64_at(raw, 0xbc).ok_or_else(short)?;
        if incompat & !KNOWN != 0 {
            let named = UNKNOWN.iter().find(|(bit, _)| incompat & bit != 0);
            return Err(unsupported(match named {
                Some((_, name)) => format!("it uses {name}, which is not read yet"),
                None => format!("it uses features that are not known (incompat {incompat:#x})"),
            }));
        }
        if u64_at(raw, 0x38).ok_or_else(short)? & CHANGING_CHECKSUM != 0 {
            return Err(unsupported(
                "a change of its checksums (btrfstune) was not brought to an end".into(),
            ));
        }
        let fsid = array_at(raw, 0x20).ok_or_else(short)?;
        let metadata_uuid = if incompat & METADATA_UUID == 0 {
            fsid
        } else {
            array_at(raw, 0x23b).ok_or_else(short)?
        };
        let array = index(u32_at(raw, 0xa0).ok_or_else(short)?);
        let array = slice_at(raw, 0x32b, array)
            .filter(|array| array.len() <= 2048)
            .ok_or_else(|| corrupt("its system chunks are too long".into()))?;
        let label = slice_at(raw, 0x12b, 256).ok_or_else(short)?;
        let label = label.split(|byte| *byte == 0).next().unwrap_or_default();
        let superblock = Self {
            fsid,
            metadata_uuid,
            generation: u64_at(raw, 0x48).ok_or_else(short)?,
            root: u64_at(raw, 0x50).ok_or_else(short)?,
            root_level: u8_at(raw, 0xc6).ok_or_else(short)?,
            chunk_root: u64_at(raw, 0x58).ok_or_else(short)?,
            chunk_root_level: u8_at(raw, 0xc7).ok_or_else(short)?,
            chunk_root_generation: u64_at(raw, 0xa4).ok_or_else(short)?,
            log_root: u64_at(raw, 0x60).ok_or_else(short)?,
            total_bytes: u64_at(raw, 0x70).ok_or_else(short)?,
            bytes_used: u64_at(raw, 0x78).ok_or_else(short)?,
            root_dir: u64_at(raw, 0x80).ok_or_else(short)?,
            device_count: u64_at(raw, 0x88).ok_or_else(short)?,
            sector_size: u32_at(raw, 0x90).ok_or_else(short)?,
            node_size: u32_at(raw, 0x94).ok_or_else(short)?,
            checksum,
            device: u64_at(raw, 0xc9).ok_or_else(short)?,
            device_uuid: array_at(raw, 0x10b).ok_or_else(short)?,
            label: label.to_vec(),
            system_chunks: array.to_vec(),
        };
        let Self {
            sector_size,
            node_size,
            ..
        } = superblock;
        if !sector_size.is_power_of_two() || !(512..=65536).contains(&sector_size) {
            return Err(corrupt(format!(
                "a sector cannot be {sector_size} bytes long"
            )));
        }
        if !node_size.is_power_of_two() || !(4096..=65536).contains(&node_size) {
            return Err(corrupt(format!("a node cannot be {node_size} bytes long")));
        }
        Ok(superblock)
    }
}
