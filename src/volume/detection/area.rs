//! One disk, or one array: its partition table, and what lies in each partition.
//!
//! The idea: the whole of it and each of its partitions are told by signature; what
//! turns out to be a part of something larger is handed over to those who put such
//! things together.
#![deny(clippy::arithmetic_side_effects)]

use super::{Detection, On, Part};
use crate::error::Result;
use crate::volume::head::{self, Head};
use crate::volume::mapping::{Layout, Mapping, Place, Segment};
use crate::volume::signature::{self, Signature};
use crate::volume::table::{self, Partition, Role, Table};
use crate::volume::{Content, Lock, Volume, btrfs, empty, ldm, md};

/// Something that may have a partition table: a disk or an array.
pub(super) struct Area {
    pub(super) on: On,
    pub(super) mapping: Mapping,
    /// The name of the whole.
    pub(super) name: String,
    /// What the names of its partitions begin with.
    pub(super) prefix: String,
    pub(super) note: String,
}

impl Detection {
    /// Whether anything was found since `from` that is more than an entry in a
    /// table.
    fn knows_any(&self, from: usize) -> bool {
        self.found.iter().skip(from).any(|found| {
            !found.volume.uuid.is_empty()
                || matches!(
                    found.volume.content,
                    Content::FileSystem(_) | Content::Locked(_)
                )
        })
    }

    pub(super) fn area(&mut self, area: &Area) -> Result<()> {
        if self.is_full() {
            return Ok(());
        }
        let reader = self.reader(&area.mapping);
        let head = Head::read(&reader)?;
        if let Some(superblock) = md::Superblock::find_first(&head)? {
            return self.member(area, &head, superblock);
        }
        let from = self.found.len();
        match table::read(&head)? {
            None => self.whole(area, &head)?,
            // A boot loader may stand before a file system, with an empty table.
            Some(Table { kind, partitions }) if partitions.is_empty() => {
                self.whole(area, &head)?;
                if !self.knows_any(from) {
                    for found in self.found.iter_mut().skip(from) {
                        let what = format!("a {kind} partition table without entries");
                        found.volume.content = Content::NoFiles(what);
                    }
                }
            }
            Some(table) => {
                // A member of an array may show the array's table through.
                if let Some(superblock) = md::Superblock::find_last(&head)? {
                    return self.member(area, &head, superblock);
                }
                self.partitions(area, &table)?;
                self.dynamic_disk(area, &head, &table, from)?;
                // An MBR may count in sectors of 4096 bytes; that is rare, so believe
                // it only where the usual reading leads to nothing and this does not.
                if table.kind == "dos"
                    && !self.knows_any(from)
                    && let Some(table) = table::read_mbr(&head, 4096)?
                {
                    let usual = self.found.split_off(from);
                    self.partitions(area, &table)?;
                    if !self.knows_any(from) {
                        self.found.truncate(from);
                        self.found.extend(usual);
                    }
                }
            }
        }
        Ok(())
    }

    /// The area is a member of an array as a whole.
    fn member(&mut self, area: &Area, head: &Head<'_>, superblock: md::Superblock) -> Result<()> {
        let mut volume = empty(&area.name, area.mapping.clone());
        if let Some(found) = signature::probe(head)? {
            (volume.label, volume.uuid) = (found.label, found.uuid);
        }
        volume.content = Content::NoFiles("linux_raid_member".into());
        let index = self.arrays.add(superblock, area.mapping.clone());
        self.push(area.on, volume, Some(Part::Raid(index)));
        Ok(())
    }

    /// The area without a partition table.
    fn whole(&mut self, area: &Area, head: &Head<'_>) -> Result<()> {
        let mut volume = empty(&area.name, area.mapping.clone());
        volume.note.clone_from(&area.note);
        let found = signature::probe(head)?;
        let part = self.describe(&mut volume, head, found)?;
        self.push(area.on, volume, part);
        Ok(())
    }

    fn partitions(&mut self, area: &Area, table: &Table) -> Result<()> {
        for partition in &table.partitions {
            if self.is_full() {
                break;
            }
            self.partition(area, partition)?;
        }
        Ok(())
    }

    fn partition(&mut self, area: &Area, partition: &Partition) -> Result<()> {
        let size = area.mapping.size();
        let there = size.saturating_sub(partition.start).min(partition.len);
        let place = Segment {
            len: there,
            layout: Layout::Linear(Place {
                device: 0,
                offset: partition.start,
            }),
        };
        let mapping = Mapping::over([place], std::slice::from_ref(&area.mapping))
            .unwrap_or_else(|_| Mapping::linear(0, 0, 0));
        let mut volume = empty(&format!("{}part{}", area.prefix, partition.number), mapping);
        volume.partition_label = partition.label.clone();
        volume.note.clone_from(&area.note);
        let mut part = None;
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
                part = self.describe(&mut volume, &head, found)?;
                match role {
                    _ if !known && head.damage().is_some() => {}
                    Role::Swap if !known => volume.content = Content::NoFiles("swap".into()),
                    Role::Dynamic if !known => {
                        volume.content = Content::Unreadable(
                            "it is part of a Windows dynamic disk (LDM) whose database is damaged"
                                .into(),
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
                        "the partition ends at byte {}, past the end of the disk at byte {size}",
                        partition.start.saturating_add(partition.len),
                    ));
                }
            }
        }
        // In its place in the table, whether or not anything of it is there.
        let first = match area.on {
            On::Disk(0) => Some(partition.start),
            _ => volume.mapping.first_on(0),
        };
        self.push_at(area.on, first, volume, part);
        Ok(())
    }

    /// Fills in what `found` says of `volume`; returns what it is a part of.
    pub(super) fn describe(
        &mut self,
        volume: &mut Volume,
        head: &Head<'_>,
        found: Option<Signature>,
    ) -> Result<Option<Part>> {
        let Some(found) = found else {
            volume.content = Content::Unreadable(unknown(head));
            return Ok(None);
        };
        let kind = found.kind.to_owned();
        volume.label = found.label;
        volume.uuid = found.uuid;
        let mut part = None;
        volume.content = match found.kind {
            "crypto_LUKS" | "BitLocker" => Content::Locked(Lock {
                kind,
                uuid: volume.uuid.clone(),
            }),
            "swap" | "swsuspend" | "jbd" => Content::NoFiles(kind),
            "LVM2_member" => {
                part = Some(Part::Pv(self.pvs.add(head, &volume.mapping)?));
                Content::NoFiles(kind)
            }
            "linux_raid_member" => {
                let superblock = match md::Superblock::find(head)? {
                    Some(found) => Some(found),
                    None => md::Superblock::find_old(head)?,
                };
                match superblock {
                    Some(superblock) => {
                        let index = self.arrays.add(superblock, volume.mapping.clone());
                        part = Some(Part::Raid(index));
                        Content::NoFiles(kind)
                    }
                    None => Content::Unreadable(
                        "it is a member of a Linux software RAID array (linux_raid_member) whose \
                         superblock is damaged"
                            .into(),
                    ),
                }
            }
            "btrfs" => match btrfs::Superblock::parse(head.bytes()) {
                Some(superblock) if superblock.devices > 1 => {
                    let index = self.pools.add(superblock, volume.mapping.clone());
                    part = Some(Part::Btrfs(index));
                    Content::NoFiles("a device of a btrfs file system".into())
                }
                _ => Content::FileSystem(kind),
            },
            _ => Content::FileSystem(kind),
        };
        Ok(part)
    }

    /// Reads the database of a dynamic disk, if the area is one. Its partitions,
    /// those found since `from`, are only what the volumes lie in.
    fn dynamic_disk(
        &mut self,
        area: &Area,
        head: &Head<'_>,
        table: &Table,
        from: usize,
    ) -> Result<()> {
        let is = |role: Role| table.partitions.iter().find(move |p| p.role == role);
        let mut places = Vec::new();
        if let Some(metadata) = is(table::LDM_METADATA) {
            let end = metadata.start.saturating_add(metadata.len);
            places.extend([512, 4096].map(|sector| end.saturating_sub(sector)));
        } else if is(Role::Dynamic).is_some() {
            places.push(6 * 512);
        }
        for at in places {
            let Some(header) = ldm::Header::read(head, at)? else {
                continue;
            };
            let database = header.database(head)?;
            let index = self.dynamic.add(&header, database, area.mapping.clone());
            self.dynamic_disks.push(area.on);
            let partitions = self.found.iter_mut().skip(from).zip(&table.partitions);
            for (found, _) in partitions.filter(|(_, p)| p.role == Role::Dynamic) {
                found.volume.content = Content::NoFiles("Windows LDM data".into());
                found.part = Some(Part::Dynamic(index));
            }
            break;
        }
        Ok(())
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
