//! What makes one thing of several parts: a volume group, an array, a file system
//! over several devices.
//!
//! The idea: the parts lie on disks or on other such things, so each group has a
//! set of disks that it touches. The lowest of them shows what is in it; every
//! answer is the same from whichever disk it is asked.
#![deny(clippy::arithmetic_side_effects)]

use super::Across;
use super::disks::Devices;
use std::collections::BTreeSet;

/// What a volume, or a part of a group, lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum On {
    /// The disk itself, by device number.
    Disk(usize),
    /// Another group, by its index.
    Group(usize),
}

/// A group.
#[derive(Debug)]
pub(super) struct Group {
    /// The name of the link to it.
    pub(super) name: String,
    /// What it is, in a sentence: `the LVM volume group vg0`.
    pub(super) what: String,
    /// What its parts lie on: disks, or groups before it.
    pub(super) parts: Vec<On>,
    /// Whether parts of it were not found.
    pub(super) lacks: bool,
    /// Where the first of its parts on device 0 itself begins.
    pub(super) first: Option<u64>,
}

/// All groups, each after those that its parts lie on.
#[derive(Debug, Default)]
pub(super) struct Groups(Vec<Group>);

impl Groups {
    /// Takes a group; returns its index.
    pub(super) fn push(&mut self, group: Group) -> usize {
        let index = self.0.len();
        self.0.push(group);
        index
    }

    pub(super) fn get(&self, index: usize) -> Option<&Group> {
        self.0.get(index)
    }

    /// Whether a group with a part on device 0 lacks others.
    pub(super) fn lacks_parts(&self) -> bool {
        let touched = self.touched();
        let mut groups = self.0.iter().zip(&touched);
        groups.any(|(group, disks)| group.lacks && disks.contains(&0))
    }

    /// The disks that each touches.
    fn touched(&self) -> Vec<BTreeSet<usize>> {
        let mut all: Vec<BTreeSet<usize>> = Vec::with_capacity(self.0.len());
        for group in &self.0 {
            let mut own = BTreeSet::new();
            for part in &group.parts {
                match part {
                    On::Disk(device) => drop(own.insert(*device)),
                    On::Group(index) => own.extend(all.get(*index).into_iter().flatten()),
                }
            }
            all.push(own);
        }
        all
    }

    /// Where each group is shown, in their order.
    pub(super) fn places(&self, devices: &Devices<'_>) -> Vec<Shown> {
        let touched = self.touched();
        let mut shown: Vec<Shown> = Vec::with_capacity(self.0.len());
        let mut groups = 0_u32;
        for (group, disks) in self.0.iter().zip(&touched) {
            let parents = || {
                group.parts.iter().filter_map(|part| match part {
                    On::Group(index) => shown.get(*index),
                    On::Disk(_) => None,
                })
            };
            let home = disks.iter().min_by_key(|device| devices.index(**device));
            let here = home == Some(&0);
            let across = group.lacks
                || disks.iter().any(|device| *device != 0)
                || parents().any(|parent| parent.group.is_some());
            let own = group.parts.contains(&On::Disk(0));
            let mut number = parents().filter_map(|parent| parent.group).min();
            if across && own {
                number = Some(number.unwrap_or(groups).min(groups));
                groups = groups.saturating_add(1);
            }
            // A link to what lies on it leads to the same place.
            let linked = parents().any(|parent| parent.link.is_some());
            let link = (!here && !linked && disks.contains(&0))
                .then(|| devices.index(home.copied().unwrap_or(0)));
            shown.push(Shown {
                here,
                link,
                group: number.filter(|_| across),
                across: None,
            });
        }
        for place in &mut shown {
            place.across = place.group.map(|group| Across { group, groups });
        }
        shown
    }
}

/// Where a group is shown, seen from device 0.
#[derive(Debug)]
pub(super) struct Shown {
    /// Device 0 shows it.
    pub(super) here: bool,
    /// Device 0 links to this `disk<N>` instead.
    pub(super) link: Option<u32>,
    group: Option<u32>,
    /// For the volumes in it.
    pub(super) across: Option<Across>,
}
