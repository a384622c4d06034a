//! What lies on a disk: a file system on the whole of it, partitions, logical
//! volumes, each found by signature as `blkid` would.
//!
//! The idea: a [`Volume`] is a name, what was found there, and a [`Mapping`];
//! the mapping says where each byte of the volume lies on the disk, so that file
//! data can be read from the disk directly, in large pieces, whatever lies in
//! between. A volume may lie on several disks of a backup; it belongs to the first
//! of them, and the others say where it is.
#![deny(clippy::arithmetic_side_effects)]

mod btrfs;
mod detection;
mod disks;
mod group;
mod head;
mod ldm;
mod lock;
mod lvm;
pub mod mapping;
mod md;
mod name;
mod raid;
pub mod reader;
mod signature;
mod table;
#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests;

use crate::error::Result;
use crate::image::BlockRead;
use detection::Detection;
use disks::Devices;
pub use disks::{Alone, Sibling, Siblings};
pub use lock::Lock;
pub use mapping::{Layout, Mapping, Place, Run, Segment};
pub use reader::VolumeReader;
use std::sync::Arc;

/// What a volume holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A file system, named as `blkid` names it (`ext4`, `ntfs`, `vfat`, …).
    FileSystem(String),
    /// Locked: needs a key.
    Locked(Lock),
    /// It is part of something that another disk of the backup shows.
    Elsewhere {
        /// The `N` of that disk's `disk<N>`.
        disk: u32,
        /// What it is part of: `the LVM volume group vg0`.
        what: String,
    },
    /// Nothing that holds files (swap, MSR, BIOS boot, an LVM physical volume
    /// whose logical volumes are listed themselves).
    NoFiles(String),
    /// It should hold files, and cannot be read; the reason as a sentence.
    Unreadable(String),
}

/// A volume on a disk.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Stable name: `part1`, `vg0-root`; `disk` where the whole disk is one.
    pub name: String,
    /// Where its bytes lie. Device 0 is the disk that was looked at, the others
    /// are its siblings in disk order.
    pub mapping: Mapping,
    /// Its size in bytes, also where its bytes cannot be found.
    pub size: u64,
    /// For a file system that spans devices by itself (btrfs): the lengths in
    /// bytes of its devices, which `mapping` has one after the other. Else empty.
    pub members: Vec<u64>,
    /// What it holds.
    pub content: Content,
    /// The file system's label, raw bytes, empty if there is none.
    pub label: Vec<u8>,
    /// The file system's UUID or serial number as `blkid` prints it.
    pub uuid: String,
    /// The name in the partition table (GPT), empty if there is none.
    pub partition_label: String,
    /// What one should know of it, a sentence; empty if there is nothing.
    pub note: String,
    /// Set for what lies on several disks, as its own metadata says: whether it can
    /// be read, and whether this disk shows it, depends on others.
    pub across: Option<Across>,
}

/// Which of the things that lie on several disks a volume belongs to.
///
/// Both numbers follow from what is on this disk alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Across {
    /// Its number, from 0.
    pub group: u32,
    /// How many such things have a part of theirs on this disk, 1 or more.
    pub groups: u32,
}

/// Finds the volumes of a disk that stands alone; see [`detect_across`].
///
/// # Errors
/// As there.
pub fn detect(disk: &Arc<dyn BlockRead>) -> Result<Vec<Volume>> {
    detect_across(disk, 0, &Alone)
}

/// Finds the volumes of `disk`, the `disk<index>` of a backup, in disk order.
///
/// Its siblings are opened one after the other, as long as something that has a
/// part on this disk lacks another part. A volume on several disks is shown by the
/// lowest of them that is there, whole; the others have an
/// [`Content::Elsewhere`] in its place.
///
/// A volume whose image is damaged where it would say what it is, is
/// [`Content::Unreadable`], and so is the one volume `disk` of a disk on which
/// nothing is recognised.
///
/// # Errors
/// From below, but for damage in the image: what may pass (no answer in time, a
/// process that ended, that it would have to wait) says nothing of the disk.
pub fn detect_across(
    disk: &Arc<dyn BlockRead>,
    index: u32,
    siblings: &dyn Siblings,
) -> Result<Vec<Volume>> {
    let mut devices = Devices::new(disk, index, siblings);
    loop {
        let found = Detection::run(&devices)?;
        if !found.lacks_parts() || !devices.open_next()? {
            return Ok(found.finish(&devices));
        }
    }
}

fn empty(name: &str, mapping: Mapping) -> Volume {
    Volume {
        name: name::safe(name),
        size: mapping.size(),
        mapping,
        members: Vec::new(),
        content: Content::Unreadable(String::new()),
        label: Vec::new(),
        uuid: String::new(),
        partition_label: String::new(),
        note: String::new(),
        across: None,
    }
}
