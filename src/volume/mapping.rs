//! Where the bytes of a volume lie on the disks.
//!
//! The idea: a volume is a list of [`Segment`]s, each laid out by a rule
//! ([`Layout`]) that turns a byte of the volume into a byte of a device by
//! arithmetic. A volume of any size costs one entry for each piece that its
//! owner made, never one for each stripe. What lies on another volume (LVM on
//! RAID) is a mapping over mappings: the rules are applied one after the other,
//! and the bytes are read from the disks directly all the same.
#![deny(clippy::arithmetic_side_effects)]

use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A piece of a volume on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Index of the device among those that the volume was found on.
    pub device: usize,
    /// Byte offset on that device.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A place on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index of the device among those that the volume was found on.
    pub device: usize,
    /// Byte offset on that device.
    pub offset: u64,
}

/// The rule by which the bytes of a segment lie on devices.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// One after the other from a place.
    Linear(Place),
    /// In pieces of `stripe` bytes that go round the cells. In each round every
    /// cell lies `advance` bytes further. Plain stripes have a cell for each
    /// device and advance by one stripe; RAID with parity or copies has as many
    /// cells as its pattern takes to repeat.
    Striped {
        /// Bytes per piece, more than 0.
        stripe: u64,
        /// Where the pieces of the first round lie; at least one.
        cells: Vec<Place>,
        /// Bytes from one round to the next.
        advance: u64,
    },
}

impl Layout {
    /// Plain stripes of `stripe` bytes over `columns`.
    pub fn stripes(stripe: u64, columns: Vec<Place>) -> Self {
        Self::Striped {
            stripe,
            cells: columns,
            advance: stripe,
        }
    }

    fn places(&self) -> &[Place] {
        match self {
            Self::Linear(place) => std::slice::from_ref(place),
            Self::Striped { cells, .. } => cells,
        }
    }

    fn places_mut(&mut self) -> &mut [Place] {
        match self {
            Self::Linear(place) => std::slice::from_mut(place),
            Self::Striped { cells, .. } => cells,
        }
    }
}

/// A part of a volume that follows one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Length in bytes.
    pub len: u64,
    /// Where it lies.
    pub layout: Layout,
}

/// Where each byte of a volume lies.
///
/// Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Each segment with the volume's byte that it ends before, ascending.
    segments: Arc<[(u64, Segment)]>,
    size: u64,
    /// What the devices of the segments are: other mappings, or the disks
    /// themselves where there are none.
    under: Option<Arc<[Mapping]>>,
    /// See [`Mapping::first_on`], by disk. Kept, because below may lie many others,
    /// and others below those.
    firsts: Arc<BTreeMap<usize, u64>>,
}

impl Mapping {
    /// `len` bytes from byte `offset` of a device. Nothing lies past byte 2⁶⁴-1
    /// of a device: a longer range is cut there.
    pub fn linear(device: usize, offset: u64, len: u64) -> Self {
        let len = len.min(u64::MAX.saturating_sub(offset));
        let segment = Segment {
            len,
            layout: Layout::Linear(Place { device, offset }),
        };
        Self {
            segments: Arc::from([(len, segment)]),
            size: len,
            under: None,
            firsts: Arc::new(BTreeMap::from([(device, offset)])),
        }
    }

    /// The volume that `segments` make up on disks, one after the other. Empty
    /// ones are dropped.
    ///
    /// # Errors
    /// `Corrupt` if a segment or the whole is too long to count, or if a
    /// striped one has no cells or empty stripes.
    pub fn from_segments(segments: impl IntoIterator<Item = Segment>) -> Result<Self> {
        let (segments, size) = Self::lined_up(segments)?;
        Ok(Self::new(segments, size, None))
    }

    /// The segments that are not empty, each with the byte that it ends before; and
    /// their length.
    fn lined_up(segments: impl IntoIterator<Item = Segment>) -> Result<(Vec<(u64, Segment)>, u64)> {
        let bad = |reason| Error::corrupt("the layout of a volume", reason);
        let mut size = 0_u64;
        let mut list = Vec::new();
        for segment in segments {
            if segment.len == 0 {
                continue;
            }
            if segment.ends().is_none() {
                return Err(bad("a segment lies where nothing can be"));
            }
            size = size
                .checked_add(segment.len)
                .ok_or_else(|| bad("it is too long"))?;
            list.push((size, segment));
        }
        Ok((list, size))
    }

    fn new(segments: Vec<(u64, Segment)>, size: u64, under: Option<Arc<[Self]>>) -> Self {
        let mut firsts = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for place in segments.iter().flat_map(|(_, s)| s.layout.places()) {
            if !seen.insert(place.device) {
                continue;
            }
            match &under {
                None => drop(firsts.insert(place.device, place.offset)),
                Some(under) => {
                    let inner = under.get(place.device).map(|inner| &*inner.firsts);
                    for (device, at) in inner.into_iter().flatten() {
                        firsts.entry(*device).or_insert(*at);
                    }
                }
            }
        }
        Self {
            segments: segments.into(),
            size,
            under,
            firsts: Arc::new(firsts),
        }
    }

    /// The volume that `segments` make up on other volumes: their devices are
    /// indexes of `under`.
    ///
    /// # Errors
    /// As [`Self::from_segments`]; `Corrupt` also if a segment reaches past the
    /// end of what it lies on.
    pub fn over(segments: impl IntoIterator<Item = Segment>, under: &[Self]) -> Result<Self> {
        let outside = || Error::corrupt("the layout of a volume", "it reaches past a device's end");
        let (whole, size) = Self::lined_up(segments)?;
        let mut flat = Vec::with_capacity(whole.len());
        let mut is_flat = true;
        for (end, segment) in &whole {
            let ends = segment.ends().ok_or_else(outside)?;
            let mut own = segment.clone();
            for (place, end) in own.layout.places_mut().iter_mut().zip(ends) {
                let inner = under.get(place.device).ok_or_else(outside)?;
                if end > inner.size {
                    return Err(outside());
                }
                match inner.plain(*place) {
                    Some(flat) => *place = flat,
                    None => is_flat = false,
                }
            }
            flat.push((*end, own));
        }
        Ok(if is_flat {
            Self::new(flat, size, None)
        } else {
            Self::new(whole, size, Some(under.into()))
        })
    }

    /// The place on a disk of a byte of this volume, if all of the volume lies
    /// there in one piece.
    fn plain(&self, place: Place) -> Option<Place> {
        match (&self.under, &*self.segments) {
            (None, [(_, segment)]) => match segment.layout {
                Layout::Linear(start) => Some(Place {
                    device: start.device,
                    offset: start.offset.checked_add(place.offset)?,
                }),
                Layout::Striped { .. } => None,
            },
            _ => None,
        }
    }

    /// Size of the volume in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The first byte of the volume, as a place on a disk.
    pub fn first(&self) -> Option<Place> {
        let mut runs = Vec::new();
        self.runs(0, 1.min(self.size), &mut runs).ok()?;
        match runs.first() {
            Some(run) => Some(Place {
                device: run.device,
                offset: run.offset,
            }),
            // An empty one still begins somewhere.
            None => self.plain(Place {
                device: 0,
                offset: 0,
            }),
        }
    }

    /// The first place on disk `device` that anything of the volume lies at, in the
    /// volume's order; of one over other volumes, where that one below begins.
    pub fn first_on(&self, device: usize) -> Option<u64> {
        self.firsts.get(&device).copied()
    }

    /// The disks that it lies on.
    pub fn devices(&self) -> BTreeSet<usize> {
        self.firsts.keys().copied().collect()
    }

    /// Appends the runs that hold bytes `offset..offset + len`, in order,
    /// adjacent ones joined. What `out` held before is left alone.
    ///
    /// # Errors
    /// A range past the end is `Corrupt`.
    pub fn runs(&self, offset: u64, len: u64, out: &mut Vec<Run>) -> Result<()> {
        let first = out.len();
        self.append(offset, len, first, out)
    }

    fn append(&self, offset: u64, len: u64, first: usize, out: &mut Vec<Run>) -> Result<()> {
        let end = offset
            .checked_add(len)
            .filter(|end| *end <= self.size)
            .ok_or_else(|| {
                Error::corrupt(
                    "a volume",
                    format!(
                        "something in it points to {len} bytes at byte {offset}, \
                     but it ends at byte {}",
                        self.size
                    ),
                )
            })?;
        let mut at = offset;
        let start = self
            .segments
            .partition_point(|(segment_end, _)| *segment_end <= offset);
        for (segment_end, segment) in self.segments.iter().skip(start) {
            if at >= end {
                break;
            }
            let segment_start = segment_end.saturating_sub(segment.len);
            let stop = end.min(*segment_end);
            while at < stop {
                let run = segment
                    .run(at.saturating_sub(segment_start), stop.saturating_sub(at))
                    .ok_or_else(|| {
                        Error::corrupt("the layout of a volume", "an offset is too large")
                    })?;
                at = at.saturating_add(run.len);
                match &self.under {
                    None => push_joined(out, first, run),
                    Some(under) => under
                        .get(run.device)
                        .ok_or_else(|| {
                            Error::corrupt("the layout of a volume", "a device is missing")
                        })?
                        .append(run.offset, run.len, first, out)?,
                }
            }
        }
        Ok(())
    }
}

impl Segment {
    /// How far it reaches from each of its places, in bytes; `None` for a layout
    /// that cannot be.
    fn reach(&self, cell: usize) -> Option<u64> {
        match &self.layout {
            Layout::Linear(_) => Some(self.len),
            Layout::Striped {
                stripe,
                cells,
                advance,
            } => {
                let round = stripe.checked_mul(u64::try_from(cells.len()).ok()?)?;
                let last = self.len.checked_sub(1)?.checked_div(round)?;
                // The last round may be short: then not every cell has a part of it.
                let rest = self.len.checked_sub(last.checked_mul(round)?)?;
                let before = stripe.checked_mul(u64::try_from(cell).ok()?)?;
                match (rest.checked_sub(before), last.checked_sub(1)) {
                    (Some(part), _) if part > 0 => {
                        last.checked_mul(*advance)?.checked_add(part.min(*stripe))
                    }
                    (_, Some(last)) => last.checked_mul(*advance)?.checked_add(*stripe),
                    (_, None) => Some(0),
                }
            }
        }
    }

    /// Each place with the byte that what lies there ends before; `None` if there
    /// is none, or one that cannot be.
    fn ends(&self) -> Option<Vec<u64>> {
        let places = self.layout.places().iter().enumerate();
        let ends: Vec<u64> = places
            .map(|(cell, place)| place.offset.checked_add(self.reach(cell)?))
            .collect::<Option<_>>()?;
        (!ends.is_empty()).then_some(ends)
    }

    /// The longest run, of at most `len` bytes, from byte `at` of the segment;
    /// never empty if `len` is not 0.
    fn run(&self, at: u64, len: u64) -> Option<Run> {
        match &self.layout {
            Layout::Linear(place) => Some(Run {
                device: place.device,
                offset: place.offset.checked_add(at)?,
                len,
            }),
            Layout::Striped {
                stripe,
                cells,
                advance,
            } => {
                let number = at.checked_div(*stripe)?;
                let within = at.checked_rem(*stripe)?;
                let width = u64::try_from(cells.len()).ok()?;
                let round = number.checked_div(width)?;
                let cell = cells
                    .get(usize::try_from(number.checked_rem(width)?).ok()?)
                    .copied()?;
                let offset = cell
                    .offset
                    .checked_add(round.checked_mul(*advance)?)?
                    .checked_add(within)?;
                Some(Run {
                    device: cell.device,
                    offset,
                    len: len.min(stripe.checked_sub(within)?),
                })
            }
        }
    }
}

/// Appends `run`, joined with the last one if that is at `first` or later.
fn push_joined(out: &mut Vec<Run>, first: usize, run: Run) {
    if out.len() > first
        && let Some(last) = out.last_mut()
        && last.device == run.device
        && last.offset.checked_add(last.len) == Some(run.offset)
        && let Some(len) = last.len.checked_add(run.len)
    {
        last.len = len;
    } else {
        out.push(run);
    }
}
