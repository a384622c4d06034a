//! Where the bytes of a RAID lie on its members.
//!
//! The idea: every RAID level is a pattern of chunks that repeats; one round of
//! the pattern, with the copy of each chunk that is there, makes a
//! [`Layout::Striped`]. Parity is never computed: a volume whose data is not all
//! there is not read. The arithmetic is that of Linux (`drivers/md/raid10.c`,
//! `__raid10_find_phys`; `drivers/md/raid5.c`, `raid5_compute_sector`), which LVM2
//! uses as well.
#![deny(clippy::arithmetic_side_effects)]

use super::mapping::{Layout, Place, Segment};

/// The most members of an array. Bounds the pattern of RAID6 to 16,000 chunks.
pub(super) const MAX_MEMBERS: usize = 128;
/// The smallest chunk in bytes. Bounds the number of pieces of a read.
pub(super) const MIN_CHUNK: u64 = 512;

/// Why an array has no mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unmapped {
    /// The member with this number is needed.
    Missing(usize),
    /// It contradicts itself, or is of a kind that is not known.
    Bad(&'static str),
}

pub(super) type Mapped<T> = std::result::Result<T, Unmapped>;

const BAD: Unmapped = Unmapped::Bad("its geometry contradicts itself");

/// The members by number: where the data of each begins; `None` for one that is
/// not there or not up to date.
pub(super) type Members = [Option<Place>];

fn check(chunk: u64, members: &Members) -> Mapped<u64> {
    if chunk < MIN_CHUNK || members.is_empty() || members.len() > MAX_MEMBERS {
        return Err(BAD);
    }
    u64::try_from(members.len()).map_err(|_| BAD)
}

fn member(members: &Members, number: u64) -> Mapped<Place> {
    let number = usize::try_from(number).map_err(|_| BAD)?;
    let place = members.get(number).ok_or(BAD)?;
    place.ok_or(Unmapped::Missing(number))
}

fn at(place: Place, offset: Option<u64>) -> Mapped<Place> {
    let offset = place.offset.checked_add(offset.ok_or(BAD)?).ok_or(BAD)?;
    Ok(Place { offset, ..place })
}

/// RAID1: `len` bytes of the first member that is there.
pub(super) fn mirror(members: &Members, len: u64) -> Mapped<Segment> {
    let place = members.iter().flatten().next();
    let place = place.ok_or(Unmapped::Missing(0))?;
    Ok(Segment {
        len,
        layout: Layout::Linear(*place),
    })
}

/// Plain stripes: `len` bytes over all members.
pub(super) fn stripes(chunk: u64, members: &Members, len: u64) -> Mapped<Segment> {
    let width = check(chunk, members)?;
    let columns = (0..width)
        .map(|number| member(members, number))
        .collect::<Mapped<_>>()?;
    Ok(Segment {
        len,
        layout: Layout::stripes(chunk, columns),
    })
}

/// How RAID10 spreads its copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copies {
    /// Side by side.
    pub(super) near: u64,
    /// Further on.
    pub(super) far: u64,
    /// Whether "further on" is the next stripe and not the next part of the disk.
    pub(super) offset: bool,
    /// Members among which far copies go round; 0: all.
    pub(super) set: u64,
}

impl Copies {
    /// As Linux keeps it in the word `layout` (`setup_geo`).
    pub(super) fn parse(layout: u32, members: u64) -> Mapped<Self> {
        let (near, far) = (u64::from(layout & 0xff), u64::from(layout >> 8 & 0xff));
        let set = match layout >> 17 {
            0 => 0,
            1 => members.checked_div(far).ok_or(BAD)?,
            2 => near.saturating_mul(far),
            _ => return Err(Unmapped::Bad("its RAID10 layout is not known")),
        };
        Ok(Self {
            near,
            far,
            offset: layout & 1 << 16 != 0,
            set,
        })
    }
}

/// RAID10 over members of `each` bytes; its size follows.
pub(super) fn raid10(chunk: u64, copies: Copies, members: &Members, each: u64) -> Mapped<Segment> {
    let width = check(chunk, members)?;
    let Copies {
        near, far, offset, ..
    } = copies;
    let set = if copies.set == 0 { width } else { copies.set };
    let number = near.checked_mul(far).ok_or(BAD)?;
    if number == 0 || number > width || set > width {
        return Err(BAD);
    }
    let chunks = || {
        let per_member = each.checked_div(chunk)?.checked_div(far)?;
        per_member.checked_mul(width)?.checked_div(near)
    };
    let chunks = chunks().ok_or(BAD)?;
    let stride = || {
        if offset {
            return Some(chunk);
        }
        let used = chunks.checked_mul(number)?.div_ceil(width);
        used.checked_div(far)?.checked_mul(chunk)
    };
    let stride = stride().ok_or(BAD)?;
    let rows_per_stripe = if offset { far } else { 1 };
    // The pattern is over when a stripe begins at the first member again.
    let period = width.checked_div(gcd(near, width)).ok_or(BAD)?;
    let cells = (0..period.min(chunks.max(1))).map(|index| {
        let first = index.checked_mul(near).ok_or(BAD)?;
        let row = || first.checked_div(width)?.checked_mul(rows_per_stripe);
        let row = row().ok_or(BAD)?;
        let first = first.checked_rem(width).ok_or(BAD)?;
        let mut lost = None;
        for copy in 0..near {
            let there = first.checked_add(copy).ok_or(BAD)?;
            let wrapped = there.checked_div(width).ok_or(BAD)?;
            let row = row
                .checked_add(wrapped)
                .and_then(|row| row.checked_mul(chunk));
            let mut device = there.checked_rem(width).ok_or(BAD)?;
            let mut place = row;
            for turn in 0..far {
                if turn > 0 {
                    device = next_far(device, near, width, set).ok_or(BAD)?;
                    place = place.and_then(|place| place.checked_add(stride));
                }
                match member(members, device) {
                    Ok(member) => return at(member, place),
                    Err(error) => lost = lost.or(Some(error)),
                }
            }
        }
        Err(lost.unwrap_or(BAD))
    });
    let cells = cells.collect::<Mapped<Vec<_>>>()?;
    let advance = || {
        let rows = period.checked_mul(near)?.checked_div(width)?;
        rows.checked_mul(rows_per_stripe)?.checked_mul(chunk)
    };
    Ok(Segment {
        len: chunks.checked_mul(chunk).ok_or(BAD)?,
        layout: Layout::Striped {
            stripe: chunk,
            cells,
            advance: advance().ok_or(BAD)?,
        },
    })
}

/// The member that has the next far copy of what `device` has.
fn next_far(device: u64, near: u64, width: u64, set: u64) -> Option<u64> {
    let own = device.checked_div(set)?;
    let next = device.checked_add(near)?;
    let rest = width.checked_rem(set)?;
    let last = width.checked_div(set)?.checked_sub(1)?.checked_mul(set)?;
    if rest != 0 && next > last {
        let size = set.checked_add(rest)?;
        next.checked_sub(last)?.checked_rem(size)?.checked_add(last)
    } else {
        next.checked_rem(set)?.checked_add(set.checked_mul(own)?)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    match a.checked_rem(b) {
        None | Some(0) => b.max(1),
        Some(rest) => gcd(b, rest),
    }
}

/// RAID4, RAID5 or RAID6 (`level`) over members of `each` bytes, its parity
/// placed by `layout` as Linux numbers it (`ALGORITHM_…` in `raid5.h`).
pub(super) fn parity(
    level: u32,
    layout: u32,
    chunk: u64,
    members: &Members,
    each: u64,
) -> Mapped<Segment> {
    let width = check(chunk, members)?;
    let parities = if level == 6 { 2 } else { 1 };
    let data = width.checked_sub(parities).filter(|n| *n > 0).ok_or(BAD)?;
    let rows = each.checked_div(chunk).ok_or(BAD)?;
    let period = width.min(rows.max(1));
    let mut cells = Vec::new();
    for row in 0..period {
        for index in 0..data {
            let number = match level {
                4 => Some(index),
                5 => raid5(layout, row, index, width),
                6 => raid6(layout, row, index, width),
                _ => None,
            };
            let number = number.ok_or(Unmapped::Bad("its parity layout is not known"))?;
            cells.push(at(member(members, number)?, row.checked_mul(chunk))?);
        }
    }
    // Layouts that leave the last member out repeat earlier than this.
    let period = if matches!((level, layout), (6, 16..=19)) {
        let shorter = width.checked_sub(1).ok_or(BAD)?.min(period);
        let keep = usize::try_from(shorter.saturating_mul(data)).map_err(|_| BAD)?;
        cells.truncate(keep);
        shorter
    } else {
        period
    };
    let len = rows
        .checked_mul(chunk)
        .and_then(|len| len.checked_mul(data));
    Ok(Segment {
        len: len.ok_or(BAD)?,
        layout: Layout::Striped {
            stripe: chunk,
            cells,
            advance: period.checked_mul(chunk).ok_or(BAD)?,
        },
    })
}

/// The member with data chunk `index` of stripe `row`, in RAID5 of `width`.
fn raid5(layout: u32, row: u64, index: u64, width: u64) -> Option<u64> {
    let turn = row.checked_rem(width)?;
    let last = width.checked_sub(1)?;
    let skip = |parity: u64| index.checked_add(u64::from(index >= parity));
    let after = |parity: u64| {
        parity
            .checked_add(1)?
            .checked_add(index)?
            .checked_rem(width)
    };
    match layout {
        0 => skip(last.checked_sub(turn)?),
        1 => skip(turn),
        2 => after(last.checked_sub(turn)?),
        3 => after(turn),
        4 => index.checked_add(1),
        5 => Some(index),
        _ => None,
    }
}

/// The same for RAID6.
fn raid6(layout: u32, row: u64, index: u64, width: u64) -> Option<u64> {
    let last = width.checked_sub(1)?;
    let turn = row.checked_rem(width)?;
    let falling = last.checked_sub(turn)?;
    let skip = |parity: u64| {
        // Where the first parity is on the last member, the other is on the first.
        let more = if parity == last {
            1
        } else if index >= parity {
            2
        } else {
            0
        };
        index.checked_add(more)
    };
    let after = |parity: u64, by: u64| {
        parity
            .checked_add(by)?
            .checked_add(index)?
            .checked_rem(width)
    };
    match layout {
        0 => skip(falling),
        1 | 8 => skip(turn),
        2 => after(falling, 2),
        3 => after(turn, 2),
        4 => index.checked_add(2),
        5 => Some(index),
        9 => {
            let turn = row.checked_add(1)?.checked_rem(width)?;
            skip(last.checked_sub(turn)?)
        }
        10 => after(falling, 1),
        // As RAID5 over all but the last member, which has the second parity.
        16..=19 => raid5(layout.checked_sub(16)?, row, index, last),
        20 => index.checked_add(1),
        _ => None,
    }
}
