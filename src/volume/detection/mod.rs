//! The search for volumes: what lies on the disks, then what the parts found
//! there make up.
//!
//! The idea: disks, arrays and all else that may have a partition table are
//! looked at by the same code, each as a mapping. What is a part of something
//! larger is remembered, and the larger things are put together when all disks
//! have been looked at: arrays first, which may hold all others, then volume
//! groups, then file systems over several devices.
#![deny(clippy::arithmetic_side_effects)]

mod area;

use super::disks::Devices;
use super::group::{Group, Groups, On};
use super::head::Head;
use super::lvm::{self, State};
use super::mapping::Mapping;
use super::{Content, Volume, VolumeReader, btrfs, empty, ldm, md, name, signature};
use crate::error::Result;
use crate::image::BlockRead;
use area::Area;
use std::sync::Arc;

/// Arrays within arrays.
const MAX_NESTED: usize = 3;
/// Volumes of one search, parts of larger things included; what is found after them
/// is left out. Bounds all that is kept for parts.
const MAX_FOUND: usize = 4096;

/// A search.
pub(super) struct Detection {
    devices: Vec<Option<Arc<dyn BlockRead>>>,
    /// See [`Devices::absence`].
    absence: String,
    groups: Groups,
    pvs: lvm::Groups,
    arrays: md::Arrays,
    pools: btrfs::Pools,
    dynamic: ldm::Groups,
    /// What each dynamic disk is.
    dynamic_disks: Vec<On>,
    found: Vec<Found>,
}

/// A volume, and what is needed to place it.
struct Found {
    on: On,
    /// First byte on device 0, if any of it lies there.
    first: Option<u64>,
    volume: Volume,
    part: Option<Part>,
}

/// What a volume is a part of: its index among its like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Pv(usize),
    Raid(usize),
    Btrfs(usize),
    Dynamic(usize),
}

impl Detection {
    /// Looks at all disks that are open.
    ///
    /// # Errors
    /// From below, but for damage.
    pub(super) fn run(devices: &Devices<'_>) -> Result<Self> {
        let mut all = Self {
            devices: devices.all(),
            absence: devices.absence(),
            groups: Groups::default(),
            pvs: lvm::Groups::default(),
            arrays: md::Arrays::default(),
            pools: btrfs::Pools::default(),
            dynamic: ldm::Groups::default(),
            dynamic_disks: Vec::new(),
            found: Vec::new(),
        };
        for (device, disk) in devices.in_order() {
            all.area(&Area {
                on: On::Disk(device),
                mapping: Mapping::linear(device, 0, disk.size()),
                name: "disk".into(),
                prefix: String::new(),
                note: String::new(),
            })?;
        }
        all.arrays()?;
        all.dynamic_volumes()?;
        all.logical_volumes()?;
        all.pools();
        Ok(all)
    }

    /// Whether something with a part on device 0 lacks other parts.
    pub(super) fn lacks_parts(&self) -> bool {
        self.groups.lacks_parts()
    }

    /// The volumes that device 0 shows, in its order, with names that are safe
    /// and unique, and with sentences that can be printed, whatever names stand
    /// in them.
    pub(super) fn finish(self, devices: &Devices<'_>) -> Vec<Volume> {
        let shown = self.groups.places(devices);
        let mut all: Vec<(u64, Volume)> = Vec::new();
        for mut found in self.found {
            match found.on {
                On::Disk(0) => {}
                On::Disk(_) => continue,
                On::Group(index) => match shown.get(index) {
                    Some(place) if place.here => found.volume.across = place.across,
                    _ => continue,
                },
            }
            all.push((found.first.unwrap_or(u64::MAX), found.volume));
        }
        for (index, place) in shown.iter().enumerate() {
            let (Some(disk), Some(group)) = (place.link, self.groups.get(index)) else {
                continue;
            };
            let mut link = empty(&group.name, Mapping::linear(0, 0, 0));
            link.across = place.across;
            link.content = Content::Elsewhere {
                disk,
                what: name::sentence(&group.what),
            };
            all.push((group.first.unwrap_or(u64::MAX), link));
        }
        all.sort_by_key(|(first, _)| *first);
        let mut volumes: Vec<Volume> = all.into_iter().map(|(_, volume)| volume).collect();
        for volume in &mut volumes {
            if let Content::Unreadable(text) | Content::NoFiles(text) = &mut volume.content {
                *text = name::sentence(text);
            }
            volume.note = name::sentence(&volume.note);
        }
        name::make_unique(volumes.iter_mut().map(|volume| &mut volume.name));
        volumes
    }

    fn push(&mut self, on: On, volume: Volume, part: Option<Part>) {
        let first = volume.mapping.first_on(0);
        self.push_at(on, first, volume, part);
    }

    fn push_at(&mut self, on: On, first: Option<u64>, volume: Volume, part: Option<Part>) {
        if !self.is_full() {
            self.found.push(Found {
                on,
                first,
                volume,
                part,
            });
        }
    }

    /// Whether no more may be found.
    fn is_full(&self) -> bool {
        self.found.len() >= MAX_FOUND
    }

    fn reader(&self, mapping: &Mapping) -> VolumeReader {
        VolumeReader::over(mapping.clone(), self.devices.clone())
    }

    /// The volumes that are these parts.
    fn parts(&self, parts: &[Part]) -> impl Iterator<Item = &Found> {
        let wanted = |found: &&Found| found.part.is_some_and(|part| parts.contains(&part));
        self.found.iter().filter(wanted)
    }

    /// Makes a group of these parts.
    fn group(&mut self, name: &str, what: String, parts: &[Part], lacks: bool) -> usize {
        let own = |found: &&Found| found.on == On::Disk(0);
        let group = Group {
            name: name.to_owned(),
            what,
            parts: self.parts(parts).map(|found| found.on).collect(),
            lacks,
            first: self.parts(parts).find(own).and_then(|found| found.first),
        };
        self.groups.push(group)
    }

    /// Says of these parts that it is not known what they belong to. Each stands for
    /// a group that lacks all else.
    fn lose(&mut self, parts: &[Part], what: &str, reason: &str) {
        let lost = |found: &&mut Found| found.part.is_some_and(|part| parts.contains(&part));
        for found in self.found.iter_mut().filter(lost) {
            found.volume.content = Content::Unreadable(reason.to_owned());
            found.on = On::Group(self.groups.push(Group {
                name: found.volume.name.clone(),
                what: what.to_owned(),
                parts: vec![found.on],
                lacks: true,
                first: found.first,
            }));
        }
    }

    /// Puts the arrays together, and looks at what lies on them.
    fn arrays(&mut self) -> Result<()> {
        let mut seen: Vec<[u8; 16]> = Vec::new();
        for _ in 0..MAX_NESTED {
            let arrays = self.arrays.arrays(&self.absence);
            let new: Vec<md::Array> = arrays
                .into_iter()
                .filter(|a| !seen.contains(&a.id))
                .collect();
            if new.is_empty() {
                return Ok(());
            }
            for array in new {
                seen.push(array.id);
                self.array(array)?;
            }
        }
        Ok(())
    }

    fn array(&mut self, array: md::Array) -> Result<()> {
        let parts: Vec<Part> = array.members.into_iter().map(Part::Raid).collect();
        let name = name::safe(&array.name);
        let what = format!("the Linux RAID array {name}");
        let group = self.group(&name, what, &parts, array.missing > 0);
        let on = On::Group(group);
        match array.mapping {
            Ok(mapping) => {
                let note = match array.missing {
                    0 => String::new(),
                    n => format!(
                        "the Linux RAID array {name} is read without {n} of its members, which \
                         are out of date or not in this backup"
                    ),
                };
                self.area(&Area {
                    on,
                    mapping,
                    prefix: format!("{name}-"),
                    name,
                    note,
                })
            }
            Err(reason) => {
                let mut volume = empty(&name, Mapping::linear(0, 0, 0));
                volume.size = array.size;
                volume.content = Content::Unreadable(reason);
                let first = self.groups.get(group).and_then(|group| group.first);
                self.push_at(on, first, volume, None);
                Ok(())
            }
        }
    }

    /// Puts the volume groups together, and looks at their logical volumes.
    fn logical_volumes(&mut self) -> Result<()> {
        for (index, reason) in self.pvs.unknown(&self.absence) {
            self.lose(&[Part::Pv(index)], "an LVM volume group", &reason);
        }
        for vg in self.pvs.groups(&self.absence) {
            let parts: Vec<Part> = vg.members.into_iter().map(Part::Pv).collect();
            let what = format!("the LVM volume group {}", vg.name);
            let on = On::Group(self.group(&vg.name, what, &parts, vg.missing > 0));
            for lv in vg.volumes {
                if self.is_full() {
                    break;
                }
                self.logical_volume(on, lv)?;
            }
        }
        Ok(())
    }

    fn logical_volume(&mut self, on: On, lv: lvm::LogicalVolume) -> Result<()> {
        let mut volume = empty(&lv.name, Mapping::linear(0, 0, 0));
        volume.size = lv.size;
        let mut part = None;
        match lv.state {
            State::NoFiles(what) => volume.content = Content::NoFiles(what),
            State::Unreadable(reason) => volume.content = Content::Unreadable(reason),
            State::Mapped(mapping) => {
                let reader = self.reader(&mapping);
                volume.mapping = mapping;
                let head = Head::read(&reader)?;
                let found = signature::probe(&head)?;
                // A guest's own disk inside a volume: seen, not opened.
                let inner = match found.as_ref().map(|found| found.kind) {
                    Some("LVM2_member") => Some("an LVM physical volume"),
                    Some("linux_raid_member") => Some("a member of a Linux RAID array"),
                    _ => None,
                };
                match inner {
                    Some(what) => {
                        volume.content = Content::Unreadable(format!(
                            "it is {what} inside a logical volume, which is not read"
                        ));
                    }
                    None => part = self.describe(&mut volume, &head, found)?,
                }
            }
        }
        self.push_at(on, lv.first, volume, part);
        Ok(())
    }

    /// Looks at the volumes of dynamic disks. Each may lie on other disks than its
    /// neighbours, so each is a group of its own.
    fn dynamic_volumes(&mut self) -> Result<()> {
        let lost = |part| matches!(part, Part::Dynamic(index) if !self.dynamic.knows(index));
        let lost: Vec<Part> = self
            .found
            .iter()
            .filter_map(|f| f.part)
            .filter(|p| lost(*p))
            .collect();
        let reason = format!(
            "the database of this Windows dynamic disk (LDM) is damaged, and another copy of it is {}",
            self.absence
        );
        self.lose(&lost, "Windows dynamic volumes", &reason);
        for found in self.dynamic.volumes(&self.absence)? {
            if self.is_full() {
                break;
            }
            let on = |(disk, at): &(usize, u64)| Some((*self.dynamic_disks.get(*disk)?, *at));
            let places: Vec<(On, u64)> = found.disks.iter().filter_map(on).collect();
            let own = places.iter().find(|(on, _)| *on == On::Disk(0));
            let first = own.map(|(_, at)| *at);
            let mut volume = empty(&found.name, Mapping::linear(0, 0, 0));
            volume.size = found.size;
            if found.mapping.is_ok() && !found.missing.is_empty() {
                volume.note = format!(
                    "it is read without the Windows dynamic disk {}, which is {}",
                    found.missing.join(", "),
                    self.absence
                );
            }
            let group = self.groups.push(Group {
                name: volume.name.clone(),
                what: format!("the Windows dynamic volume {}", found.name),
                parts: places.iter().map(|(on, _)| *on).collect(),
                lacks: !found.missing.is_empty(),
                first,
            });
            match found.mapping {
                Err(reason) => volume.content = Content::Unreadable(reason),
                Ok(mapping) => {
                    let reader = self.reader(&mapping);
                    volume.mapping = mapping;
                    let head = Head::read(&reader)?;
                    let signature = signature::probe(&head)?;
                    self.describe(&mut volume, &head, signature)?;
                }
            }
            self.push_at(On::Group(group), first, volume, None);
        }
        Ok(())
    }

    /// Puts the file systems over several devices together.
    fn pools(&mut self) {
        for pool in self.pools.pools() {
            let parts: Vec<Part> = pool.members.into_iter().map(Part::Btrfs).collect();
            let first = |device: Option<usize>| {
                let mut parts = self.parts(&parts);
                parts.find(|f| device.is_none_or(|device| f.on == On::Disk(device)))
            };
            // Shown by the name of its first part, linked to by that of the first
            // one here.
            let (Some(shown), Some(own)) = (first(None), first(Some(0)).or(first(None))) else {
                continue;
            };
            let (name, link) = (shown.volume.name.clone(), own.volume.name.clone());
            let mut volume = empty(&name, pool.mapping);
            volume.label.clone_from(&shown.volume.label);
            volume.uuid.clone_from(&shown.volume.uuid);
            volume
                .partition_label
                .clone_from(&shown.volume.partition_label);
            volume.members = pool.lengths;
            volume.content = Content::FileSystem("btrfs".into());
            let at = own.first;
            let what = format!("the btrfs file system {}", volume.uuid);
            if pool.missing > 0 {
                volume.note = format!("{} of its devices are {}", pool.missing, self.absence);
            }
            let group = self.group(&link, what, &parts, pool.missing > 0);
            // The whole has the name now.
            for found in &mut self.found {
                if found.part.is_some_and(|part| parts.contains(&part)) {
                    found.volume.name.push_str("-device");
                }
            }
            self.push_at(On::Group(group), at, volume, None);
        }
    }
}
