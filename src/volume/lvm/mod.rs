//! LVM2: logical volumes from the text metadata on physical volumes.
//!
//! The idea: every physical volume is looked at once ([`Groups::add`]); of each
//! volume group the newest metadata counts. Then each visible logical volume
//! is either a [`Mapping`] or a reason why there is none ([`Groups::groups`]).
//! Linear, striped and mirrored segments and RAID are mapped; the others are
//! caches, snapshots and thin pools, whose plain bytes would be the wrong ones.
#![deny(clippy::arithmetic_side_effects)]

mod area;
mod group;
mod layout;
mod text;

use super::head::Head;
use super::mapping::Mapping;
use crate::error::Result;
use area::{Area, Label};
use group::{Group, Lv, LvSegment};
use layout::Layouts;
use std::collections::HashSet;

/// Logical volumes that are listed at most.
const MAX_LVS: usize = 1024;
/// Metadata that is read at most, in bytes; in memory it may take ten times as much.
const MAX_TEXTS: u64 = 32 << 20;

/// A physical volume that was found.
struct Pv {
    /// UUID without dashes.
    id: String,
    mapping: Mapping,
    /// Whether any of its metadata areas is damaged.
    damaged: bool,
    /// Whether it says that a group uses it.
    in_use: bool,
}

/// The physical volumes and groups of a disk.
#[derive(Default)]
pub(super) struct Groups {
    pvs: Vec<Pv>,
    groups: Vec<Group>,
    /// Checksum and length of the texts that were read: all areas of a group
    /// hold the same.
    seen: HashSet<(u32, u64)>,
    read: u64,
}

/// A volume group.
#[derive(Debug)]
pub(super) struct VolumeGroup {
    /// Its name.
    pub(super) name: String,
    /// Indexes of its physical volumes that were found, as [`Groups::add`] gave
    /// them out.
    pub(super) members: Vec<usize>,
    /// How many of its physical volumes were not found.
    pub(super) missing: usize,
    /// Its visible logical volumes.
    pub(super) volumes: Vec<LogicalVolume>,
}

/// A logical volume.
#[derive(Debug)]
pub(super) struct LogicalVolume {
    /// `<group>-<volume>`.
    pub(super) name: String,
    /// First byte of it on device 0, if any of it lies there.
    pub(super) first: Option<u64>,
    /// Its size in bytes.
    pub(super) size: u64,
    /// What it is.
    pub(super) state: State,
}

/// What can be done with a logical volume.
#[derive(Debug)]
pub(super) enum State {
    /// It lies there.
    Mapped(Mapping),
    /// It holds no files by itself; what it is.
    NoFiles(String),
    /// It cannot be read; the reason.
    Unreadable(String),
}

impl Groups {
    /// Takes the physical volume with this head, which lies at `mapping`, and
    /// returns its index.
    pub(super) fn add(&mut self, head: &Head<'_>, mapping: &Mapping) -> Result<usize> {
        let label = Label::parse(head.bytes());
        let mut damaged = label.is_none();
        let label = label.unwrap_or(Label {
            id: String::new(),
            areas: Vec::new(),
            in_use: false,
        });
        for range in &label.areas {
            match area::read(head, *range)? {
                Area::Empty => {}
                Area::Damaged => damaged = true,
                Area::Text(text) => {
                    // A copy of what was read is as good as read; one that is
                    // damaged cannot be told from it, and does not matter.
                    if self.seen.contains(&(text.checksum, text.len)) {
                        continue;
                    }
                    self.read = self.read.saturating_add(text.len);
                    if self.read > MAX_TEXTS {
                        damaged = true;
                        continue;
                    }
                    let group = text.read(head)?.as_deref().and_then(Group::parse);
                    match group {
                        Some(group) => {
                            self.seen.insert((text.checksum, text.len));
                            self.take(group);
                        }
                        None => damaged = true,
                    }
                }
            }
        }
        let index = self.pvs.len();
        let Label { id, in_use, .. } = label;
        self.pvs.push(Pv {
            id,
            mapping: mapping.clone(),
            damaged,
            in_use,
        });
        Ok(index)
    }

    /// Keeps the newest of each group.
    fn take(&mut self, group: Group) {
        match self.groups.iter_mut().find(|known| known.id == group.id) {
            Some(known) if known.seqno >= group.seqno => {}
            Some(known) => *known = group,
            None => self.groups.push(group),
        }
    }

    /// The physical volumes whose group is not known and should be, by their index,
    /// and why it is not. `absence` says where metadata was looked for in vain.
    pub(super) fn unknown(&self, absence: &str) -> Vec<(usize, String)> {
        let listed = self.groups.iter().flat_map(|group| &group.pvs);
        let known: HashSet<&str> = listed.map(|pv| pv.id.as_str()).collect();
        let reason = |pv: &Pv| {
            if known.contains(pv.id.as_str()) {
                return None;
            }
            if pv.damaged {
                return Some("the metadata of this LVM physical volume is damaged".into());
            }
            pv.in_use.then(|| {
                format!(
                    "this LVM physical volume belongs to a volume group whose metadata is {absence}"
                )
            })
        };
        (0_usize..)
            .zip(&self.pvs)
            .filter_map(|(index, pv)| Some((index, reason(pv)?)))
            .collect()
    }

    /// All groups, with their visible logical volumes. `absence` says where a
    /// physical volume was looked for in vain.
    pub(super) fn groups(&self, absence: &str) -> Vec<VolumeGroup> {
        let mut left = MAX_LVS;
        let mut all = Vec::new();
        let found: HashSet<&str> = self.pvs.iter().map(|pv| pv.id.as_str()).collect();
        for group in &self.groups {
            // Copies of a physical volume are members too: the first is read.
            let own: HashSet<&str> = group.pvs.iter().map(|pv| pv.id.as_str()).collect();
            let members: Vec<usize> = (0_usize..)
                .zip(&self.pvs)
                .filter_map(|(index, pv)| own.contains(pv.id.as_str()).then_some(index))
                .collect();
            let layouts = Layouts::new(&self.pvs, group, absence);
            let volumes: Vec<LogicalVolume> = group
                .shown()
                .take(left)
                .map(|lv| LogicalVolume {
                    name: format!("{}-{}", group.name, lv.name),
                    first: layouts.first(lv),
                    size: group.size(lv),
                    state: state(group, lv, &layouts),
                })
                .collect();
            left = left.saturating_sub(volumes.len());
            all.push(VolumeGroup {
                name: group.name.clone(),
                missing: (group.pvs.iter())
                    .filter(|pv| !found.contains(pv.id.as_str()))
                    .count(),
                members,
                volumes,
            });
        }
        all
    }
}

fn state(group: &Group, lv: &Lv, layouts: &Layouts<'_>) -> State {
    if let Some(reason) = group.snapshot(lv) {
        return State::Unreadable(reason);
    }
    let other = lv.segments.iter().find(|segment| !layout::reads(segment));
    if let Some(LvSegment { kind, .. }) = other {
        let base = kind.split('+').next().unwrap_or_default();
        return match base {
            "thin-pool" | "cache-pool" | "vdo-pool" => State::NoFiles(format!("LVM {base}")),
            _ => State::Unreadable(format!(
                "LVM volumes of type {kind} are not read, only linear, striped and RAID ones"
            )),
        };
    }
    match layouts.mapping(lv) {
        Ok(mapping) => State::Mapped(mapping),
        Err(reason) => State::Unreadable(reason),
    }
}
