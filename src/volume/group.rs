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

impl Group {
    /// The groups that it lies on.
    fn inner(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().filter_map(|part| match part {
            On::Group(index) => Some(*index),
            On::Disk(_) => None,
        })
    }
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
        let across = self.across(&touched);
        let mut shown: Vec<Shown> = Vec::with_capacity(self.0.len());
        let own = self.own_numbers(&across);
        let groups = u32::try_from(own.iter().flatten().count()).unwrap_or(u32::MAX);
        for (index, (group, disks)) in self.0.iter().zip(&touched).enumerate() {
            let parents = || group.inner().filter_map(|index| shown.get(index));
            let home = disks.iter().min_by_key(|device| devices.index(**device));
            let here = home == Some(&0);
            // What lies on another group has that one's number.
            let inherited = parents().filter_map(|parent| parent.group).min();
            let own = own.get(index).copied().flatten();
            let number = inherited.into_iter().chain(own).min();
            // A link to what lies on it leads to the same place.
            let linked = parents().any(|parent| parent.link.is_some());
            let link = (!here && !linked && disks.contains(&0))
                .then(|| devices.index(home.copied().unwrap_or(0)));
            shown.push(Shown {
                here,
                link,
                group: number,
                across: number.map(|group| Across { group, groups }),
            });
        }
        shown
    }

    /// Whether each lies on several disks, or should.
    fn across(&self, touched: &[BTreeSet<usize>]) -> Vec<bool> {
        let mut all: Vec<bool> = Vec::with_capacity(self.0.len());
        for (group, disks) in self.0.iter().zip(touched) {
            let mut inner = group.inner().filter_map(|index| all.get(index));
            let inner = inner.any(|across| *across);
            all.push(group.lacks || inner || disks.iter().any(|device| *device != 0));
        }
        all
    }

    /// The numbers of those across disks that have a part on device 0 itself: by
    /// where that part lies. The order in which they were found would depend on what
    /// is on the disks before this one.
    fn own_numbers(&self, across: &[bool]) -> Vec<Option<u32>> {
        let mut own: Vec<usize> = (0..self.0.len())
            .filter(|index| across.get(*index) == Some(&true))
            .filter(|index| {
                let group = self.0.get(*index);
                group.is_some_and(|group| group.parts.contains(&On::Disk(0)))
            })
            .collect();
        own.sort_by_key(|index| self.0.get(*index).and_then(|group| group.first));
        let mut numbers = vec![None; self.0.len()];
        for (number, index) in (0_u32..).zip(own) {
            if let Some(place) = numbers.get_mut(index) {
                *place = Some(number);
            }
        }
        numbers
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
