//! Linux software RAID (md): arrays from the superblocks of their members.
//!
//! The idea: every member is looked at once ([`Arrays::add`]); the newest
//! superblock of an array says what it is and who is up to date. Then an array is
//! a [`Mapping`] over its members, or a reason why there is none. It is a device
//! like a disk: what lies on it is looked for as on one.
#![deny(clippy::arithmetic_side_effects)]

mod superblock;

use super::mapping::{Mapping, Place, Segment};
use super::raid::{self, Copies, MAX_MEMBERS, Mapped, Unmapped};
pub(super) use superblock::{Role, Superblock};

/// A member that was found.
struct Member {
    superblock: Superblock,
    mapping: Mapping,
}

/// All members that were found, of all arrays.
#[derive(Default)]
pub(super) struct Arrays {
    members: Vec<Member>,
}

/// An array.
#[derive(Debug)]
pub(super) struct Array {
    /// Its UUID.
    pub(super) id: [u8; 16],
    /// A name for its folder, `md-<name>`.
    pub(super) name: String,
    /// Indexes of its members, as [`Arrays::add`] gave them out.
    pub(super) members: Vec<usize>,
    /// How many of its members, by number, were not found, or are out of date.
    pub(super) missing: usize,
    /// Bytes that it holds, as far as known.
    pub(super) size: u64,
    /// Where they lie, or why that cannot be said.
    pub(super) mapping: std::result::Result<Mapping, String>,
}

impl Arrays {
    /// Takes a member, which lies at `mapping`; returns its index.
    pub(super) fn add(&mut self, superblock: Superblock, mapping: Mapping) -> usize {
        let index = self.members.len();
        self.members.push(Member {
            superblock,
            mapping,
        });
        index
    }

    /// The arrays, in the order in which members of theirs were found.
    /// `absence` says where a member was looked for in vain.
    pub(super) fn arrays(&self, absence: &str) -> Vec<Array> {
        let mut ids: Vec<[u8; 16]> = Vec::new();
        for member in &self.members {
            if !ids.contains(&member.superblock.array) {
                ids.push(member.superblock.array);
            }
        }
        ids.into_iter()
            .filter_map(|id| self.array(id, absence))
            .collect()
    }

    fn array(&self, id: [u8; 16], absence: &str) -> Option<Array> {
        let own = |member: &Member| member.superblock.array == id;
        let of = || self.members.iter().filter(|member| own(member));
        let newest = of()
            .map(|member| &member.superblock)
            .max_by_key(|superblock| superblock.events)?;
        // The first of each number that is up to date. Linux bears a difference
        // of one: the last change may not have reached all.
        let mut current: Vec<Option<&Member>> = vec![None; newest.members.min(MAX_MEMBERS)];
        for member in of() {
            let superblock = &member.superblock;
            let known = newest.roles.get(superblock.number) == Some(&superblock.role);
            if let Role::Active(number) = superblock.role
                && known
                && superblock.events.saturating_add(1) >= newest.events
                && let Some(place) = current.get_mut(usize::from(number))
                && place.is_none()
            {
                *place = Some(member);
            }
        }
        let missing = current.iter().filter(|member| member.is_none()).count();
        let name = name(newest);
        let mapping = map(newest, &current).map_err(|why| match why {
            Unmapped::Bad(reason) => {
                format!("the Linux RAID array {name} cannot be read: {reason}")
            }
            Unmapped::Missing(number) => {
                let stale = u16::try_from(number).map(Role::Active);
                let stale = of().any(|m| stale == Ok(m.superblock.role));
                let what = if stale {
                    "is out of date, and another is "
                } else {
                    "is "
                };
                format!(
                    "the Linux RAID array {name} (level {}) needs its member {number} of {}, \
                     which {what}{absence}",
                    level(newest.level),
                    newest.members
                )
            }
        });
        Some(Array {
            id,
            members: (0_usize..)
                .zip(&self.members)
                .filter_map(|(index, member)| own(member).then_some(index))
                .collect(),
            missing,
            size: mapping
                .as_ref()
                .map_or_else(|_| estimate(newest), Mapping::size),
            mapping,
            name,
        })
    }
}

fn level(level: i32) -> String {
    match level {
        -1 => "linear".into(),
        other => format!("RAID{other}"),
    }
}

/// The size of an array whose members are not all known.
fn estimate(superblock: &Superblock) -> u64 {
    let members = u64::try_from(superblock.members).unwrap_or(0);
    let data = match superblock.level {
        1 => return superblock.each,
        -1 | 0 => return superblock.room.saturating_mul(members),
        4 | 5 => members.saturating_sub(1),
        6 => members.saturating_sub(2),
        _ => members,
    };
    superblock.each.saturating_mul(data)
}

/// `md-<name>`: the name without the host that made the array, or else the
/// beginning of the UUID.
fn name(superblock: &Superblock) -> String {
    let name = &superblock.name;
    let name = name.split_once(':').map_or(name.as_str(), |(_, name)| name);
    if name.is_empty() {
        let id = superblock.array.iter().take(4);
        return id.fold("md-".to_owned(), |text, byte| format!("{text}{byte:02x}"));
    }
    format!("md-{name}")
}

fn map(newest: &Superblock, current: &[Option<&Member>]) -> Mapped<Mapping> {
    let bad = Unmapped::Bad("its superblock contradicts itself");
    if newest.reshaping {
        return Err(Unmapped::Bad("it was being given another shape"));
    }
    if newest.members != current.len() || current.is_empty() {
        return Err(bad);
    }
    // Below the array lie its members, by number; those that are missing are not
    // referred to.
    let under: Vec<Mapping> = current
        .iter()
        .map(|member| member.map_or_else(|| Mapping::linear(0, 0, 0), |m| m.mapping.clone()))
        .collect();
    let places: Vec<Option<Place>> = (0_usize..)
        .zip(current)
        .map(|(device, member)| {
            member.map(|member| Place {
                device,
                offset: member.superblock.data,
            })
        })
        .collect();
    let width = u64::try_from(current.len()).map_err(|_| bad.clone())?;
    let (chunk, each, layout) = (newest.chunk, newest.each, newest.layout);
    let segments = match newest.level {
        1 => vec![raid::mirror(&places, each)?],
        10 => vec![raid::raid10(
            chunk,
            Copies::parse(layout, width)?,
            &places,
            each,
        )?],
        4 => vec![raid::parity(4, 0, chunk, &places, each)?],
        5 => vec![raid::parity(5, layout, chunk, &places, each)?],
        6 => vec![raid::parity(6, layout, chunk, &places, each)?],
        -1 => linear(chunk, current, &places)?,
        0 => zones(newest, current, &places)?,
        _ => return Err(Unmapped::Bad("its level is not read")),
    };
    Mapping::over(segments, &under).map_err(|_| bad)
}

/// The room of each member, in whole chunks.
fn rooms(chunk: u64, current: &[Option<&Member>]) -> Mapped<Vec<u64>> {
    let room = |(number, member): (usize, &Option<&Member>)| {
        let room = member.ok_or(Unmapped::Missing(number))?.superblock.room;
        let rest = if chunk == 0 {
            Some(0)
        } else {
            room.checked_rem(chunk)
        };
        Ok(room.saturating_sub(rest.unwrap_or(0)))
    };
    current.iter().enumerate().map(room).collect()
}

fn linear(
    chunk: u64,
    current: &[Option<&Member>],
    places: &[Option<Place>],
) -> Mapped<Vec<Segment>> {
    let rooms = rooms(chunk, current)?;
    rooms
        .into_iter()
        .zip(places)
        .map(|(room, place)| raid::mirror(&[*place], room))
        .collect()
}

/// RAID0: where members differ in size, what is left of the larger ones makes
/// further zones (`create_strip_zones` and `map_sector` of Linux' `raid0.c`).
fn zones(
    newest: &Superblock,
    current: &[Option<&Member>],
    places: &[Option<Place>],
) -> Mapped<Vec<Segment>> {
    let bad = || Unmapped::Bad("its geometry contradicts itself");
    let chunk = newest.chunk;
    if chunk < raid::MIN_CHUNK {
        return Err(bad());
    }
    let rooms = rooms(chunk, current)?;
    let mut zones = Vec::new();
    // Where the zone begins, on the members and in the array.
    let (mut from, mut start) = (0_u64, 0_u64);
    loop {
        let with_room = rooms.iter().zip(places).filter(|(room, _)| **room > from);
        let (rooms, mut places): (Vec<u64>, Vec<Option<Place>>) = with_room.unzip();
        let Some(to) = rooms.iter().min().copied() else {
            break;
        };
        let width = u64::try_from(places.len()).map_err(|_| bad())?;
        for place in places.iter_mut().flatten() {
            place.offset = place.offset.checked_add(from).ok_or_else(bad)?;
        }
        let original = newest.layout == 1 || !newest.layout_is_said;
        if start > 0 && original {
            if !newest.layout_is_said {
                return Err(Unmapped::Bad(
                    "its members differ in size, and it does not say which of two layouts it has",
                ));
            }
            // The first layout went on counting chunks over the whole array.
            let turn = start.checked_div(chunk).and_then(|n| n.checked_rem(width));
            let turn = turn.and_then(|turn| usize::try_from(turn).ok());
            places.rotate_left(turn.ok_or_else(bad)?);
        }
        let len = to
            .checked_sub(from)
            .and_then(|each| each.checked_mul(width));
        let len = len.ok_or_else(bad)?;
        zones.push(raid::stripes(chunk, &places, len)?);
        from = to;
        start = start.checked_add(len).ok_or_else(bad)?;
    }
    Ok(zones)
}
