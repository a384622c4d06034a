//! btrfs over several devices: which of them make up one file system.
//!
//! The idea: the superblock of each device names the file system and the number
//! of devices, and nothing more is needed here. The devices are handed to the
//! reader one after the other; where a file lies on them is its affair.
#![deny(clippy::arithmetic_side_effects)]

use super::head::{array, is, le64};
use super::mapping::{Layout, Mapping, Place, Segment};

/// Where the superblock begins.
const AT: usize = 65536;

/// What the superblock of a device says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) fsid: [u8; 16],
    /// Devices of the file system.
    pub(super) devices: u64,
    /// The number of this one.
    pub(super) device: u64,
    /// Grows with each change.
    generation: u64,
}

impl Superblock {
    /// The superblock in the first bytes of a device.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let b = bytes.get(AT..)?;
        is(b, 64, b"_BHRfS_M").then_some(())?;
        Some(Self {
            fsid: array(b, 32)?,
            devices: le64(b, 136)?,
            device: le64(b, 201)?,
            generation: le64(b, 72)?,
        })
    }
}

/// A device that was found.
pub(super) struct Device {
    pub(super) superblock: Superblock,
    pub(super) mapping: Mapping,
}

/// All devices of file systems that have several.
#[derive(Default)]
pub(super) struct Pools {
    devices: Vec<Device>,
}

/// A file system over several devices.
pub(super) struct Pool {
    /// Indexes of its devices, as [`Pools::add`] gave them out, in the order in
    /// which they were found.
    pub(super) members: Vec<usize>,
    /// How many of its devices were not found.
    pub(super) missing: u64,
    /// The devices one after the other, by their numbers.
    pub(super) mapping: Mapping,
    /// Their lengths in bytes.
    pub(super) lengths: Vec<u64>,
}

impl Pools {
    /// Takes a device, which lies at `mapping`; returns its index.
    pub(super) fn add(&mut self, superblock: Superblock, mapping: Mapping) -> usize {
        let index = self.devices.len();
        self.devices.push(Device {
            superblock,
            mapping,
        });
        index
    }

    /// The file systems, in the order in which devices of theirs were found.
    pub(super) fn pools(&self) -> Vec<Pool> {
        let mut ids: Vec<[u8; 16]> = Vec::new();
        for device in &self.devices {
            if !ids.contains(&device.superblock.fsid) {
                ids.push(device.superblock.fsid);
            }
        }
        ids.into_iter().filter_map(|id| self.pool(id)).collect()
    }

    fn pool(&self, fsid: [u8; 16]) -> Option<Pool> {
        let members: Vec<usize> = (0_usize..)
            .zip(&self.devices)
            .filter_map(|(index, device)| (device.superblock.fsid == fsid).then_some(index))
            .collect();
        let mut devices: Vec<&Device> = members
            .iter()
            .filter_map(|index| self.devices.get(*index))
            .collect();
        // Of two that say they are the same the newer one counts, or the first.
        devices.sort_by_key(|d| {
            (
                d.superblock.device,
                u64::MAX.saturating_sub(d.superblock.generation),
            )
        });
        devices.dedup_by_key(|d| d.superblock.device);
        let newest = devices.iter().max_by_key(|d| d.superblock.generation)?;
        let found = u64::try_from(devices.len()).unwrap_or(u64::MAX);
        let missing = newest.superblock.devices.saturating_sub(found);
        let under: Vec<Mapping> = devices.iter().map(|d| d.mapping.clone()).collect();
        let lengths: Vec<u64> = under.iter().map(Mapping::size).collect();
        let segments = lengths.iter().enumerate().map(|(device, len)| Segment {
            len: *len,
            layout: Layout::Linear(Place { device, offset: 0 }),
        });
        Some(Pool {
            missing,
            mapping: Mapping::over(segments, &under).ok()?,
            lengths,
            members,
        })
    }
}
