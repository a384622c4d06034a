//! What lies on a disk: a file system on the whole of it, partitions, logical
//! volumes, each found by signature as `blkid` would.
//!
//! The idea: a [`Volume`] is a name, what was found there, and a [`Mapping`];
//! the mapping says where each byte of the volume lies on the disk, so that file
//! data can be read from the disk directly, in large pieces, whatever lies in
//! between.
#![deny(clippy::arithmetic_side_effects)]

mod head;
mod lvm;
pub mod mapping;
mod name;
mod signature;
mod table;
#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests;

use crate::error::Result;
use crate::image::BlockRead;
use head::Head;
use lvm::{Groups, Membership, State};
pub use mapping::{Layout, Mapping, Place, Run, Segment, VolumeReader};
use signature::Signature;
use std::sync::Arc;
use table::{Partition, Role, Table};

/// What a volume holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A file system, named as `blkid` names it (`ext4`, `ntfs`, `vfat`, …).
    FileSystem(String),
    /// Locked: needs a key (`crypto_LUKS`, `BitLocker`).
    Locked(String),
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
    /// Where its bytes lie.
    pub mapping: Mapping,
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
}

/// Finds the volumes of a disk, in disk order.
///
/// A volume whose image is damaged where it would say what it is, is
/// [`Content::Unreadable`], and so is the one volume `disk` of a disk on which
/// nothing is recognised.
///
/// # Errors
/// From below, but for damage in the image: what may pass (no answer in time, a
/// process that ended, that it would have to wait) says nothing of the disk.
pub fn detect(disk: &Arc<dyn BlockRead>) -> Result<Vec<Volume>> {
    let head = Head::read(disk.as_ref())?;
    let table = table::read(&head)?;
    let mut detection = Detection::new(disk);
    match table {
        None => detection.whole(&head)?,
        // A boot loader may stand before a file system, with an empty table.
        Some(Table { kind, partitions }) if partitions.is_empty() => {
            detection.whole(&head)?;
            if !detection.knows_any() {
                detection.empty_table(kind);
            }
        }
        Some(table) => {
            detection.partitions(&table)?;
            // An MBR may count in sectors of 4096 bytes; that is rare, so believe
            // it only where the usual reading leads to nothing and this does not.
            if table.kind == "dos"
                && !detection.knows_any()
                && let Some(table) = table::read_mbr(&head, 4096)?
            {
                let mut other = Detection::new(disk);
                other.partitions(&table)?;
                if other.knows_any() {
                    detection = other;
                }
            }
        }
    }
    drop(head);
    detection.logical_volumes()?;
    Ok(detection.finish())
}

/// A search under way.
struct Detection<'a> {
    disk: &'a Arc<dyn BlockRead>,
    groups: Groups,
    found: Vec<Found>,
}

/// A volume, and what is needed to place it.
struct Found {
    /// First byte on the disk.
    first: u64,
    volume: Volume,
    /// Its index among the physical volumes.
    pv: Option<usize>,
}

impl<'a> Detection<'a> {
    fn new(disk: &'a Arc<dyn BlockRead>) -> Self {
        Self {
            disk,
            groups: Groups::default(),
            found: Vec::new(),
        }
    }

    /// Whether anything was found that is more than an entry in a table.
    fn knows_any(&self) -> bool {
        self.found.iter().any(|found| {
            !found.volume.uuid.is_empty()
                || matches!(
                    found.volume.content,
                    Content::FileSystem(_) | Content::Locked(_)
                )
        })
    }

    fn push(&mut self, first: u64, volume: Volume, pv: Option<usize>) {
        self.found.push(Found { first, volume, pv });
    }

    /// The disk without a partition table.
    fn whole(&mut self, head: &Head<'_>) -> Result<()> {
        let mut volume = empty("disk".into(), Mapping::linear(0, 0, self.disk.size()));
        let found = signature::probe(head)?;
        let pv = self.describe(&mut volume, head, found)?;
        self.push(0, volume, pv);
        Ok(())
    }

    /// The disk has a partition table of this kind, and nothing in it.
    fn empty_table(&mut self, kind: &str) {
        for found in &mut self.found {
            found.volume.content =
                Content::NoFiles(format!("a {kind} partition table without entries"));
        }
    }

    fn partitions(&mut self, table: &Table) -> Result<()> {
        for partition in &table.partitions {
            self.partition(partition)?;
        }
        Ok(())
    }

    fn partition(&mut self, partition: &Partition) -> Result<()> {
        let there = self
            .disk
            .size()
            .saturating_sub(partition.start)
            .min(partition.len);
        let mapping = Mapping::linear(0, partition.start, there);
        let mut volume = empty(format!("part{}", partition.number), mapping);
        volume.partition_label = partition.label.clone();
        let mut pv = None;
        match partition.role {
            Role::NoFiles(what) => volume.content = Content::NoFiles(what.into()),
            Role::LostGpt => {
                volume.content = Content::Unreadable(
                    "the disk's GPT partition table and its backup are both damaged".into(),
                );
            }
            Role::LostLogical => {
                volume.content = Content::Unreadable(
                    "the image is damaged in its list of logical partitions: those that come \
                     after the damage are not found"
                        .into(),
                );
            }
            role => {
                let reader = self.reader(&volume.mapping);
                let head = Head::read(&reader)?;
                let found = signature::probe(&head)?;
                let known = found.is_some();
                let takes = found.as_ref().and_then(|found| found.size);
                pv = self.describe(&mut volume, &head, found)?;
                match role {
                    _ if !known && head.damage().is_some() => {}
                    Role::Swap if !known => volume.content = Content::NoFiles("swap".into()),
                    Role::Dynamic if !known => {
                        volume.content = Content::Unreadable(
                            "it is part of a Windows dynamic disk (LDM), which is not read".into(),
                        );
                    }
                    _ => {}
                }
                // What is cut off may be missing from the file system or not.
                let fits = takes.is_some_and(|takes| takes <= there);
                let holds_files = matches!(
                    volume.content,
                    Content::FileSystem(_) | Content::Unreadable(_)
                );
                if there < partition.len && holds_files && !fits {
                    volume.content = Content::Unreadable(format!(
                        "the partition ends at byte {}, past the end of the disk at byte {}",
                        partition.start.saturating_add(partition.len),
                        self.disk.size()
                    ));
                }
            }
        }
        self.push(partition.start, volume, pv);
        Ok(())
    }

    /// Fills in what `found` says of `volume`; returns the index of the
    /// physical volume if it is one.
    fn describe(
        &mut self,
        volume: &mut Volume,
        head: &Head<'_>,
        found: Option<Signature>,
    ) -> Result<Option<usize>> {
        let Some(found) = found else {
            volume.content = Content::Unreadable(unknown(head));
            return Ok(None);
        };
        let kind = found.kind.to_owned();
        volume.label = found.label;
        volume.uuid = found.uuid;
        volume.content = match found.kind {
            "crypto_LUKS" | "BitLocker" => Content::Locked(kind),
            "swap" | "swsuspend" | "jbd" | "LVM2_member" => Content::NoFiles(kind),
            "linux_raid_member" => Content::Unreadable(
                "it is a member of a Linux software RAID array (linux_raid_member), which is not \
                 read"
                    .into(),
            ),
            _ => Content::FileSystem(kind),
        };
        if found.kind == "LVM2_member" {
            return self.groups.add(head, &volume.mapping).map(Some);
        }
        Ok(None)
    }

    /// Appends the logical volumes of all physical volumes found so far.
    fn logical_volumes(&mut self) -> Result<()> {
        for found in &mut self.found {
            let membership = found.pv.map(|index| self.groups.membership(index));
            if let Some(Membership::Unknown(reason)) = membership {
                found.volume.content = Content::Unreadable(reason);
            }
        }
        for lv in self.groups.volumes() {
            let mut volume = empty(lv.name, Mapping::linear(0, 0, 0));
            match lv.state {
                State::NoFiles(what) => volume.content = Content::NoFiles(what),
                State::Unreadable(reason) => volume.content = Content::Unreadable(reason),
                State::Mapped(mapping) => {
                    let reader = self.reader(&mapping);
                    volume.mapping = mapping;
                    let head = Head::read(&reader)?;
                    let found = signature::probe(&head)?;
                    if found
                        .as_ref()
                        .is_some_and(|found| found.kind == "LVM2_member")
                    {
                        // A guest's own disk inside a volume: seen, not opened.
                        volume.content = Content::Unreadable(
                            "it is an LVM physical volume inside a logical volume, which is not \
                             read"
                                .into(),
                        );
                    } else {
                        self.describe(&mut volume, &head, found)?;
                    }
                }
            }
            self.push(lv.first, volume, None);
        }
        Ok(())
    }

    fn reader(&self, mapping: &Mapping) -> VolumeReader {
        VolumeReader::new(mapping.clone(), vec![Arc::clone(self.disk)])
    }

    /// The volumes in disk order, with names that are safe and unique, and with
    /// sentences that can be printed, whatever names stand in them.
    fn finish(mut self) -> Vec<Volume> {
        self.found.sort_by_key(|found| found.first);
        let mut volumes: Vec<Volume> = self.found.into_iter().map(|found| found.volume).collect();
        for volume in &mut volumes {
            if let Content::Unreadable(text) | Content::NoFiles(text) = &mut volume.content {
                *text = name::sentence(text);
            }
        }
        name::make_unique(volumes.iter_mut().map(|volume| &mut volume.name));
        volumes
    }
}

fn empty(name: String, mapping: Mapping) -> Volume {
    Volume {
        name: name::safe(&name),
        mapping,
        members: Vec::new(),
        content: Content::Unreadable(String::new()),
        label: Vec::new(),
        uuid: String::new(),
        partition_label: String::new(),
    }
}

/// Why a volume on which nothing was recognised cannot be read.
fn unknown(head: &Head<'_>) -> String {
    if let Some(damage) = head.damage() {
        return format!("the image is damaged where it would say what this is: {damage}");
    }
    let why = if head.bytes().is_empty() {
        "there is nothing of it on the disk"
    } else if signature::is_blank(head.bytes()) {
        "its first part is all zeros, as if it had never been formatted"
    } else if head::is(head.bytes(), 510, &[0x55, 0xaa]) {
        "it may hold a partition table of its own, which is not read"
    } else {
        "it may be raw data, or a format that is not known"
    };
    format!("no known file system was found; {why}")
}
