//! Inode numbers of the tree.
//!
//! The idea: a number says by itself what it stands for, so that a file is found
//! again after it was forgotten, after its disk was released and after a restart.
//! The upper 24 bits are the disk's id in the catalog, which is never used again;
//! the lower 40 bits are a place within that disk.
//!
//! ```text
//!  63            40 39                                   0
//! ┌────────────────┬──────────────────────────────────────┐
//! │ disk id        │ 0  the folder disk<N>                │
//! │ 1..2²⁴         │ 1  the file disk<N>.raw              │
//! │                │ base(volume) + inode in the volume   │
//! ├────────────────┼──────────────────────────────────────┤
//! │ 0              │ 1  the root                          │
//! │                │ id·4 + 2  a VM's or backup's folder  │
//! │                │ id·4 + 3  `latest`, pointing to it   │
//! └────────────────┴──────────────────────────────────────┘
//! ```
//!
//! A volume's base follows from the sizes of the volumes before it (no format
//! holds more than one inode in 128 bytes, but for a few reserved ones, unless
//! its reader says how many it may hold), so it depends on nothing but the disk's
//! content. What lies on several disks has the upper half of the places to itself,
//! where it cannot move the others. `latest` takes the number of the
//! backup that it points to: when it moves on it is another inode, and nothing
//! that the kernel has cached of the old one is wrong.

use crate::error::{Error, Result};
use crate::volume::Volume;

const LOCAL_BITS: u32 = 40;
const LOCAL_MASK: u64 = (1 << LOCAL_BITS) - 1;
const MAX_DISK: u64 = 1 << (64 - LOCAL_BITS);

/// Numbers below this one in a disk are not volumes'.
const FIRST_BASE: u64 = 64;

/// From here on are those of volumes that lie on several disks.
const MIDDLE: u64 = 1 << (LOCAL_BITS - 1);

/// The end of the numbers of a disk.
const END: u64 = 1 << LOCAL_BITS;

/// What an inode number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inode {
    /// The root of the tree.
    Root,
    /// The folder of a VM or a backup, by its id in the catalog.
    Folder(i64),
    /// `latest`, by the id of the backup that it points to.
    Latest(i64),
    /// The folder `disk<N>`.
    Disk(u64),
    /// The file `disk<N>.raw`.
    Raw(u64),
    /// Something on a volume of a disk.
    File {
        /// Disk id.
        disk: u64,
        /// Volume base plus inode number in the volume.
        local: u64,
    },
}

impl Inode {
    /// Takes a number apart.
    ///
    /// # Errors
    /// `NotFound` for a number that was never given out.
    pub(crate) fn parse(ino: u64) -> Result<Self> {
        let (disk, local) = (ino >> LOCAL_BITS, ino & LOCAL_MASK);
        let id = i64::try_from(local >> 2).unwrap_or(0);
        match (disk, local) {
            (0, 1) => Ok(Self::Root),
            (0, _) if id > 0 && local & 3 == 2 => Ok(Self::Folder(id)),
            (0, _) if id > 0 && local & 3 == 3 => Ok(Self::Latest(id)),
            (0, _) => Err(Error::not_found(format!("inode {ino}"))),
            (disk, 0) => Ok(Self::Disk(disk)),
            (disk, 1) => Ok(Self::Raw(disk)),
            (disk, local) => Ok(Self::File { disk, local }),
        }
    }

    /// The number.
    ///
    /// # Errors
    /// `Unsupported` where an id or an inode number of a guest has outgrown the
    /// scheme.
    pub(crate) fn number(self) -> Result<u64> {
        let folder = |id: i64, tag: u64| {
            u64::try_from(id)
                .ok()
                .filter(|id| (1..=LOCAL_MASK >> 2).contains(id))
                .map(|id| id << 2 | tag)
                .ok_or_else(|| outgrown(format!("folder {id}")))
        };
        let on_disk = |disk: u64, local: u64| {
            if (1..MAX_DISK).contains(&disk) && local <= LOCAL_MASK {
                Ok(disk << LOCAL_BITS | local)
            } else {
                Err(outgrown(format!("inode {local} of disk {disk}")))
            }
        };
        match self {
            Self::Root => Ok(1),
            Self::Folder(id) => folder(id, 2),
            Self::Latest(id) => folder(id, 3),
            Self::Disk(disk) => on_disk(disk, 0),
            Self::Raw(disk) => on_disk(disk, 1),
            Self::File { disk, local } => on_disk(disk, local),
        }
    }
}

/// Gives out inode numbers to volumes.
///
/// Volumes of this disk alone have the lower half, one after the other. Those
/// that lie on several have a part of the upper half for each thing that they
/// belong to: whether a disk of theirs is there moves nobody else's numbers.
pub(super) struct Numbers {
    /// The next of each range, and its end. The first is this disk's own.
    ranges: Vec<(u64, u64)>,
}

impl Numbers {
    pub(super) fn new(volumes: &[Volume]) -> Self {
        let across = volumes.iter().find_map(|volume| volume.across);
        let groups = across.map_or(0, |across| u64::from(across.groups));
        let mut ranges = match groups {
            0 => vec![(FIRST_BASE, END)],
            _ => vec![(FIRST_BASE, MIDDLE)],
        };
        let width = END.saturating_sub(MIDDLE).checked_div(groups);
        ranges.extend((0..groups).map(|group| {
            let width = width.unwrap_or(0);
            let start = MIDDLE.saturating_add(group.saturating_mul(width));
            (start, start.saturating_add(width))
        }));
        Self { ranges }
    }

    /// The first number of a volume, and how many it has.
    pub(super) fn take(&mut self, volume: &Volume, bound: Option<u64>) -> (u64, u64) {
        let range = volume.across.map_or(Some(0), |across| {
            usize::try_from(across.group).ok()?.checked_add(1)
        });
        let Some((next, end)) = range.and_then(|range| self.ranges.get_mut(range)) else {
            return (END, 0);
        };
        let base = *next;
        let usual = span(volume.size);
        let wanted = match volume.across {
            // It must not depend on whether the volume can be read, where it can.
            Some(_) => bound.unwrap_or(0).max(usual),
            None => bound.unwrap_or(usual),
        };
        let span = wanted.min(end.saturating_sub(base));
        *next = base.saturating_add(span);
        (base, span)
    }
}

/// Numbers that a volume of `size` bytes may take.
fn span(size: u64) -> u64 {
    (size / 128).saturating_add(1 << 16)
}

fn outgrown(what: String) -> Error {
    Error::Unsupported {
        what,
        reason: "its number does not fit into the tree's inode numbers".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Across, Content, Mapping};

    #[test]
    fn every_number_says_what_it_stands_for() {
        let all = [
            Inode::Root,
            Inode::Folder(1),
            Inode::Folder(1 << 37),
            Inode::Latest(1),
            Inode::Disk(1),
            Inode::Disk(MAX_DISK - 1),
            Inode::Raw(77),
            Inode::File {
                disk: 77,
                local: FIRST_BASE,
            },
            Inode::File {
                disk: MAX_DISK - 1,
                local: LOCAL_MASK,
            },
        ];
        for inode in all {
            assert_eq!(Inode::parse(inode.number().unwrap()).unwrap(), inode);
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_not_another_file() {
        for inode in [
            Inode::Folder(0),
            Inode::Folder(-1),
            Inode::Folder(1 << 38),
            Inode::Disk(0),
            Inode::Disk(MAX_DISK),
            Inode::File {
                disk: 1,
                local: LOCAL_MASK + 1,
            },
        ] {
            assert!(inode.number().is_err(), "{inode:?}");
        }
        assert!(Inode::parse(0).is_err());
        assert!(Inode::parse(2).is_err());
    }

    /// Volumes of their own and volumes across disks, as `(size, group)`; their
    /// first numbers.
    fn bases(volumes: &[(u64, Option<u32>)], bound: Option<u64>) -> Vec<u64> {
        let volumes: Vec<Volume> = volumes
            .iter()
            .map(|(size, group)| Volume {
                name: "any".into(),
                mapping: Mapping::linear(0, 0, *size),
                size: *size,
                members: Vec::new(),
                content: Content::NoFiles("a test".into()),
                label: Vec::new(),
                uuid: String::new(),
                partition_label: String::new(),
                note: String::new(),
                across: group.map(|group| Across { group, groups: 2 }),
            })
            .collect();
        let mut numbers = Numbers::new(&volumes);
        let take = |volume| {
            let (base, span) = numbers.take(volume, bound);
            assert!(base + span <= END && span > 0);
            base
        };
        volumes.iter().map(take).collect()
    }

    #[test]
    fn what_other_disks_hold_moves_nobody() {
        let gib = 1 << 30;
        // All is there; then the first group is a link, the second unreadable.
        let own = (gib, None);
        let whole = bases(
            &[
                own,
                (gib, Some(0)),
                (gib, Some(0)),
                own,
                (gib, Some(1)),
                own,
            ],
            None,
        );
        let partly = bases(&[own, (0, Some(0)), own, (5, Some(1)), own], None);
        let pick =
            |all: &[u64], which: &[usize]| -> Vec<u64> { which.iter().map(|i| all[*i]).collect() };
        assert_eq!(pick(&whole, &[0, 1, 3, 4, 5]), partly);
        // A format with more numbers than usual stays within its part.
        let many = bases(&[own, (gib, Some(0)), (gib, Some(1))], Some(1 << 37));
        assert_eq!(pick(&many, &[1, 2]), pick(&whole, &[1, 4]));
        // Without any of them, the first half has no end before the second's.
        assert_eq!(
            bases(&[(1 << 46, None), own], None)[1],
            FIRST_BASE + span(1 << 46)
        );
    }
}
