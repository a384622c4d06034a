//! LVM2: logical volumes from the text metadata on physical volumes.
//!
//! The idea: every physical volume is looked at once ([`Groups::add`]); of each
//! volume group the newest metadata counts. Then each visible logical volume
//! is either a [`Mapping`] or a reason why there is none ([`Groups::volumes`]).
//! Linear and striped segments are all that is mapped; the others are caches,
//! snapshots or RAID, whose plain bytes would be the wrong ones.
#![deny(clippy::arithmetic_side_effects)]

mod area;
mod group;
mod text;

use super::head::Head;
use super::mapping::{Layout, Mapping, Place, Segment};
use crate::error::Result;
use area::{Area, Label};
use group::{Group, Lv, LvSegment};
use std::collections::HashSet;

/// Logical volumes that are listed at most.
const MAX_LVS: usize = 1024;
/// Metadata that is read of one disk at most, in bytes.
const MAX_TEXTS: u64 = 64 << 20;

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

/// What a physical volume is part of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Membership {
    /// A group that was read, or none.
    Known,
    /// A group that cannot be read; the reason.
    Unknown(String),
}

/// A logical volume.
#[derive(Debug)]
pub(super) struct LogicalVolume {
    /// `<group>-<volume>`.
    pub(super) name: String,
    /// First byte of it on the disk, as far as known.
    pub(super) first: u64,
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
    /// returns its index for [`Self::membership`].
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

    /// What the physical volume with this index is part of.
    pub(super) fn membership(&self, index: usize) -> Membership {
        let Some(pv) = self.pvs.get(index) else {
            return Membership::Known;
        };
        if self
            .groups
            .iter()
            .any(|group| group.pvs.iter().any(|p| p.id == pv.id))
        {
            return Membership::Known;
        }
        if pv.damaged {
            return Membership::Unknown(
                "the metadata of this LVM physical volume is damaged".into(),
            );
        }
        if pv.in_use {
            return Membership::Unknown(
                "this LVM physical volume belongs to a volume group whose metadata is not on \
                 this disk"
                    .into(),
            );
        }
        Membership::Known
    }

    /// The visible logical volumes of all groups.
    pub(super) fn volumes(&self) -> Vec<LogicalVolume> {
        self.groups
            .iter()
            .flat_map(|group| group.lvs.iter().map(move |lv| (group, lv)))
            .filter(|(group, lv)| group.shows(lv))
            .take(MAX_LVS)
            .map(|(group, lv)| LogicalVolume {
                name: format!("{}-{}", group.name, lv.name),
                first: self.first(group, lv),
                state: self.state(group, lv),
            })
            .collect()
    }

    /// The first byte of `lv` that is known to be on the disk, for the order.
    fn first(&self, group: &Group, lv: &Lv) -> u64 {
        let mut stripes = lv.segments.iter().flat_map(|segment| &segment.stripes);
        stripes
            .find_map(|(pv, extent)| Some(self.place(group, pv, *extent, 0).ok()?.offset))
            .unwrap_or(u64::MAX)
    }

    fn state(&self, group: &Group, lv: &Lv) -> State {
        if let Some(reason) = group.snapshot(lv) {
            return State::Unreadable(reason);
        }
        let other = lv.segments.iter().find(|segment| segment.kind != "striped");
        if let Some(LvSegment { kind, .. }) = other {
            let base = kind.split('+').next().unwrap_or_default();
            return match base {
                "thin-pool" | "cache-pool" | "vdo-pool" => State::NoFiles(format!("LVM {base}")),
                _ => State::Unreadable(format!(
                    "LVM volumes of type {kind} are not read, only linear and striped ones"
                )),
            };
        }
        let mapped = self.segments(group, lv).and_then(|segments| {
            Mapping::from_segments(segments).map_err(|error| error.to_string())
        });
        match mapped {
            Ok(mapping) => State::Mapped(mapping),
            Err(reason) => State::Unreadable(reason),
        }
    }

    fn segments(&self, group: &Group, lv: &Lv) -> std::result::Result<Vec<Segment>, String> {
        let damaged = || format!("the LVM metadata of {} contradicts itself", lv.name);
        let mut next = 0_u64;
        let mut all = Vec::new();
        for segment in &lv.segments {
            if segment.start != next {
                return Err(damaged());
            }
            next = next.checked_add(segment.count).ok_or_else(damaged)?;
            let len = segment
                .count
                .checked_mul(group.extent)
                .ok_or_else(damaged)?;
            let columns = u64::try_from(segment.stripes.len()).unwrap_or(u64::MAX);
            if segment.count.checked_rem(columns) != Some(0) {
                return Err(damaged());
            }
            let each = segment.count.checked_div(columns).ok_or_else(damaged)?;
            let columns = segment
                .stripes
                .iter()
                .map(|(pv, extent)| self.place(group, pv, *extent, each))
                .collect::<std::result::Result<Vec<Place>, String>>()?;
            let layout = match columns.as_slice() {
                [only] => Layout::Linear(*only),
                _ => Layout::Striped {
                    stripe: segment.stripe,
                    columns,
                },
            };
            all.push(Segment { len, layout });
        }
        if all.is_empty() {
            Err(damaged())
        } else {
            Ok(all)
        }
    }

    /// The place on a device of `count` extents of the physical volume that
    /// the group calls `name`, from extent `extent`.
    fn place(
        &self,
        group: &Group,
        name: &str,
        extent: u64,
        count: u64,
    ) -> std::result::Result<Place, String> {
        let Some(entry) = group.pvs.iter().find(|pv| pv.name == name) else {
            return Err(if group.lvs.iter().any(|lv| lv.name == name) {
                format!("it is built on the internal LVM volume {name}, which is not supported")
            } else {
                format!("the LVM metadata names a physical volume {name} that it does not list")
            });
        };
        let found = self
            .pvs
            .iter()
            .find(|pv| pv.id == entry.id)
            .filter(|_| !entry.missing);
        let Some(pv) = found else {
            return Err(format!(
                "it needs the LVM physical volume {name} (last seen as {}, UUID {}), which is not \
                 on this disk",
                entry.device, entry.uuid
            ));
        };
        let outside = || format!("the LVM metadata points past the end of physical volume {name}");
        let range = || {
            extent
                .checked_add(count)
                .filter(|end| *end <= entry.count)?;
            let at = extent.checked_mul(group.extent)?.checked_add(entry.start)?;
            Some((at, count.checked_mul(group.extent)?))
        };
        let (at, len) = range().ok_or_else(outside)?;
        let mut runs = Vec::new();
        pv.mapping
            .runs(at, len.max(1), &mut runs)
            .map_err(|_| outside())?;
        match runs.as_slice() {
            [run] => Ok(Place {
                device: run.device,
                offset: run.offset,
            }),
            _ => Err(format!("the physical volume {name} lies in pieces")),
        }
    }
}
