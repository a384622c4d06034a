//! Windows' dynamic disks (LDM): volumes over the disks of a group.
//!
//! The idea: each disk of a group has the whole database; the newest one counts.
//! A volume is a [`Mapping`] over the disks that its partitions lie on, or a
//! reason why there is none. Copies are told apart by their components.
#![deny(clippy::arithmetic_side_effects)]

mod database;

use super::mapping::{Layout, Mapping, Place, Segment};
use super::raid::{self, MAX_MEMBERS, Unmapped};
use crate::error::Result;
use crate::image::patience;
use database::{Component, Kind, Partition};
pub(super) use database::{Database, Header};

/// Volumes of one group that are listed at most.
const MAX_VOLUMES: usize = 1024;
/// Groups whose database is kept: 2 MiB each. A machine has one.
const MAX_GROUPS: usize = 16;

/// A disk that was found.
struct Found {
    /// GUID in lower case.
    guid: String,
    /// First byte of the part that volumes lie on.
    data: u64,
    mapping: Mapping,
}

/// All disks that were found, and the newest database of each group.
#[derive(Default)]
pub(super) struct Groups {
    disks: Vec<Found>,
    databases: Vec<Database>,
}

/// A volume.
#[derive(Debug)]
pub(super) struct LdmVolume {
    /// As Windows names it: `Volume1`.
    pub(super) name: String,
    /// Bytes.
    pub(super) size: u64,
    /// Indexes of the disks that it lies on, as [`Groups::add`] gave them out, and
    /// where it begins on each.
    pub(super) disks: Vec<(usize, u64)>,
    /// Names of those that were not found.
    pub(super) missing: Vec<String>,
    /// Where it lies, or why that cannot be said.
    pub(super) mapping: std::result::Result<Mapping, String>,
}

impl Groups {
    /// Takes the disk that lies at `mapping`, and its database if that is whole;
    /// returns its index.
    pub(super) fn add(
        &mut self,
        header: &Header,
        database: Option<Database>,
        mapping: Mapping,
    ) -> usize {
        let index = self.disks.len();
        self.disks.push(Found {
            guid: header.disk.clone(),
            data: header.data,
            mapping,
        });
        let Some(database) = database else {
            return index;
        };
        let is_full = self.databases.len() >= MAX_GROUPS;
        let known = |known: &&mut Database| known.group == database.group;
        match self.databases.iter_mut().find(known) {
            Some(known) if known.sequence >= database.sequence => {}
            Some(known) => *known = database,
            None if is_full => {}
            None => self.databases.push(database),
        }
        index
    }

    /// Whether a database knows the disk with this index.
    pub(super) fn knows(&self, index: usize) -> bool {
        self.disks.get(index).is_some_and(|found| {
            let mut disks = self.databases.iter().flat_map(|database| &database.disks);
            disks.any(|disk| disk.guid == found.guid)
        })
    }

    /// The volumes of all groups. `absence` says where a disk was looked for in
    /// vain.
    ///
    /// # Errors
    /// That it takes too long.
    pub(super) fn volumes(&self, absence: &str) -> Result<Vec<LdmVolume>> {
        let mut all = Vec::new();
        for database in &self.databases {
            for volume in database.volumes.iter().take(MAX_VOLUMES) {
                patience::spend()?;
                all.push(self.volume(database, volume, absence));
            }
        }
        Ok(all)
    }

    fn volume(&self, database: &Database, volume: &database::Volume, absence: &str) -> LdmVolume {
        let mut disks: Vec<(usize, u64)> = Vec::new();
        let mut missing: Vec<String> = Vec::new();
        let components = || database.components.iter().filter(|c| c.volume == volume.id);
        for component in components() {
            for partition in database
                .partitions
                .iter()
                .filter(|p| p.component == component.id)
            {
                // Copies of a disk belong to it too: the first is read.
                let before = disks.len();
                disks.extend(
                    self.disks(database, partition)
                        .map(|(index, found)| (index, found.data.saturating_add(partition.start))),
                );
                if disks.len() == before {
                    missing.push(name(database, partition));
                }
            }
        }
        missing.sort();
        missing.dedup();
        // One that is being filled is read only if there is no other.
        let (active, other): (Vec<_>, Vec<_>) =
            components().partition(|c| c.state.eq_ignore_ascii_case("ACTIVE"));
        let mut outcomes = active
            .into_iter()
            .chain(other)
            .map(|component| self.component(database, component, volume.size, absence));
        let first = outcomes.next();
        let mapping = match first {
            None => Err("the database of the Windows dynamic disk contradicts itself".into()),
            Some(Err(reason)) => outcomes
                .find(|outcome| outcome.is_ok())
                .unwrap_or(Err(reason)),
            Some(mapping) => mapping,
        };
        LdmVolume {
            name: volume.name.clone(),
            size: volume.size,
            disks,
            missing,
            mapping,
        }
    }

    /// The disks that hold a partition: one, but for copies of it.
    fn disks(
        &self,
        database: &Database,
        partition: &Partition,
    ) -> impl Iterator<Item = (usize, &Found)> {
        let known = database.disks.iter().find(|d| d.id == partition.disk);
        let guid = known.map(|disk| disk.guid.clone());
        let found = self.disks.iter().enumerate();
        found.filter(move |(_, disk)| guid.as_ref() == Some(&disk.guid))
    }

    /// Where one copy of a volume of `size` bytes lies.
    fn component(
        &self,
        database: &Database,
        component: &Component,
        size: u64,
        absence: &str,
    ) -> std::result::Result<Mapping, String> {
        let damaged = || "the database of the Windows dynamic disk contradicts itself".to_owned();
        let own = |p: &&Partition| p.component == component.id;
        let mut partitions: Vec<&Partition> = database.partitions.iter().filter(own).collect();
        if u64::try_from(partitions.len()).ok() != Some(component.parts)
            || partitions.len() > MAX_MEMBERS
        {
            return Err(damaged());
        }
        match component.kind {
            Kind::Spanned => partitions.sort_by_key(|p| p.offset),
            Kind::Striped | Kind::Raid5 => partitions.sort_by_key(|p| p.index),
        }
        let mut under = Vec::new();
        let mut places = Vec::new();
        for partition in &partitions {
            places.push(match self.disks(database, partition).next() {
                Some((_, found)) => {
                    under.push(found.mapping.clone());
                    Some(Place {
                        device: under.len().saturating_sub(1),
                        offset: found
                            .data
                            .checked_add(partition.start)
                            .ok_or_else(damaged)?,
                    })
                }
                None => None,
            });
        }
        let segments = match component.kind {
            Kind::Spanned => spanned(&partitions, &places),
            Kind::Striped => raid::stripes(component.chunk, &places, size).map(|s| vec![s]),
            Kind::Raid5 => {
                let each = partitions.iter().map(|p| p.size).min().unwrap_or(0);
                // As Linux' left-symmetric.
                raid::parity(5, 2, component.chunk, &places, each).map(|s| vec![s])
            }
        };
        let mut segments = segments.map_err(|why| match why {
            Unmapped::Missing(number) => {
                let name = partitions.get(number).map(|p| name(database, p));
                format!(
                    "it needs the Windows dynamic disk {}, which is {absence}",
                    name.unwrap_or_default()
                )
            }
            Unmapped::Bad(_) => damaged(),
        })?;
        // Of a RAID5, whole rows; the volume may be a little smaller.
        if let ([only], Kind::Raid5) = (segments.as_mut_slice(), component.kind) {
            only.len = only.len.min(size);
        }
        let mapping = Mapping::over(segments, &under).map_err(|_| damaged())?;
        if mapping.size() == size {
            Ok(mapping)
        } else {
            Err(damaged())
        }
    }
}

fn name(database: &Database, partition: &Partition) -> String {
    let known = database.disks.iter().find(|d| d.id == partition.disk);
    known.map_or_else(|| "of an unknown name".into(), |disk| disk.name.clone())
}

fn spanned(partitions: &[&Partition], places: &[Option<Place>]) -> raid::Mapped<Vec<Segment>> {
    let mut end = 0_u64;
    let mut segments = Vec::new();
    for (number, (partition, place)) in partitions.iter().zip(places).enumerate() {
        if partition.offset != end {
            return Err(Unmapped::Bad("there is a gap"));
        }
        end = end.saturating_add(partition.size);
        segments.push(Segment {
            len: partition.size,
            layout: Layout::Linear(place.ok_or(Unmapped::Missing(number))?),
        });
    }
    Ok(segments)
}
