//! Where the bytes of a volume lie on the disk.
//!
//! The idea: a volume is a list of [`Segment`]s, each laid out by a rule
//! ([`Layout`]) that turns a byte of the volume into a byte of a device by
//! arithmetic. A volume of any size costs one entry for each piece that its
//! owner made, never one for each stripe. Rules to come (RAID, Windows' LDM)
//! are further layouts; volumes over several disks use the device index.
#![deny(clippy::arithmetic_side_effects)]

use crate::error::{Error, Result};
use crate::image::BlockRead;
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
    /// In stripes of `stripe` bytes that go round the columns.
    Striped {
        /// Bytes per stripe, more than 0.
        stripe: u64,
        /// Where each column begins; at least one.
        columns: Vec<Place>,
    },
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
        }
    }

    /// The volume that `segments` make up, one after the other. Empty ones are
    /// dropped.
    ///
    /// # Errors
    /// `Corrupt` if a segment or the whole is too long to count, or if a
    /// striped one has no columns, empty stripes, or a length that is no whole
    /// number of bytes for each column.
    pub fn from_segments(segments: impl IntoIterator<Item = Segment>) -> Result<Self> {
        let bad = |reason| Error::corrupt("the layout of a volume", reason);
        let mut size = 0_u64;
        let mut list = Vec::new();
        for segment in segments {
            if segment.len == 0 {
                continue;
            }
            let fits = match &segment.layout {
                Layout::Linear(place) => place.offset.checked_add(segment.len).is_some(),
                Layout::Striped { stripe, columns } => {
                    let each = column_len(segment.len, columns.len())
                        .ok_or_else(|| bad("a striped segment does not divide by its columns"))?;
                    // The last row may be short, and takes the place of a full one.
                    let each = each.checked_add(*stripe);
                    *stripe > 0
                        && each.is_some_and(|each| {
                            columns.iter().all(|c| c.offset.checked_add(each).is_some())
                        })
                }
            };
            if !fits {
                return Err(bad("a segment lies where nothing can be"));
            }
            size = size
                .checked_add(segment.len)
                .ok_or_else(|| bad("it is too long"))?;
            list.push((size, segment));
        }
        Ok(Self {
            segments: list.into(),
            size,
        })
    }

    /// Size of the volume in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The segments, in the volume's order.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().map(|(_, segment)| segment)
    }

    /// The first byte of the volume, as a place on a device.
    pub fn first(&self) -> Option<Place> {
        match &self.segments.first()?.1.layout {
            Layout::Linear(place) => Some(*place),
            Layout::Striped { columns, .. } => columns.first().copied(),
        }
    }

    /// Appends the runs that hold bytes `offset..offset + len`, in order,
    /// adjacent ones joined. What `out` held before is left alone.
    ///
    /// # Errors
    /// A range past the end is `Corrupt`.
    pub fn runs(&self, offset: u64, len: u64, out: &mut Vec<Run>) -> Result<()> {
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
        let first = out.len();
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
                push_joined(out, first, run);
            }
        }
        Ok(())
    }
}

impl Segment {
    /// The longest run, of at most `len` bytes, from byte `at` of the segment;
    /// never empty if `len` is not 0.
    fn run(&self, at: u64, len: u64) -> Option<Run> {
        match &self.layout {
            Layout::Linear(place) => Some(Run {
                device: place.device,
                offset: place.offset.checked_add(at)?,
                len,
            }),
            Layout::Striped { stripe, columns } => {
                let number = at.checked_div(*stripe)?;
                let within = at.checked_rem(*stripe)?;
                let width = u64::try_from(columns.len()).ok()?;
                let row = number.checked_div(width)?;
                let column = columns
                    .get(usize::try_from(number.checked_rem(width)?).ok()?)
                    .copied()?;
                let offset = column
                    .offset
                    .checked_add(row.checked_mul(*stripe)?)?
                    .checked_add(within)?;
                Some(Run {
                    device: column.device,
                    offset,
                    len: len.min(stripe.checked_sub(within)?),
                })
            }
        }
    }
}

fn column_len(len: u64, columns: usize) -> Option<u64> {
    let columns = u64::try_from(columns).ok()?;
    (len.checked_rem(columns)? == 0).then(|| len.checked_div(columns))?
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

/// Reads a volume through its mapping.
pub struct VolumeReader {
    mapping: Mapping,
    devices: Vec<Arc<dyn BlockRead>>,
}

impl VolumeReader {
    /// A reader of the volume that `mapping` describes on `devices`.
    pub fn new(mapping: Mapping, devices: Vec<Arc<dyn BlockRead>>) -> Self {
        Self { mapping, devices }
    }

    /// Where the volume's bytes lie.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    fn device(&self, index: usize) -> Result<&Arc<dyn BlockRead>> {
        self.devices
            .get(index)
            .ok_or_else(|| Error::not_found(format!("device {index} of the volume")))
    }

    /// One `read` of a device for each range of it that has no gap: the stripes
    /// of one column are read at once and dealt out afterwards.
    fn read_by(&self, read: ReadDevice, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut runs = Vec::new();
        self.mapping.runs(
            offset,
            u64::try_from(buf.len()).unwrap_or(u64::MAX),
            &mut runs,
        )?;
        // Each run with the part of the buffer that it fills.
        let mut parts: Vec<(Run, &mut [u8])> = Vec::with_capacity(runs.len());
        let mut rest = buf;
        for run in runs {
            let len = usize::try_from(run.len).unwrap_or(usize::MAX);
            let (part, after) = rest
                .split_at_mut_checked(len)
                .ok_or_else(|| Error::corrupt("the layout of a volume", "a run is too long"))?;
            parts.push((run, part));
            rest = after;
        }
        parts.sort_by_key(|(run, _)| (run.device, run.offset));
        for group in parts.chunk_by_mut(|(a, _), (b, _)| {
            a.device == b.device && a.offset.checked_add(a.len) == Some(b.offset)
        }) {
            match group {
                [(run, part)] => read(self.device(run.device)?.as_ref(), run.offset, part)?,
                [(first, _), ..] => {
                    let (device, start) = (first.device, first.offset);
                    let len = group
                        .iter()
                        .fold(0_usize, |n, (_, p)| n.saturating_add(p.len()));
                    let mut together = vec![0; len];
                    read(self.device(device)?.as_ref(), start, &mut together)?;
                    let mut rest = together.as_slice();
                    for (_, part) in group {
                        let Some((bytes, after)) = rest.split_at_checked(part.len()) else {
                            break;
                        };
                        part.copy_from_slice(bytes);
                        rest = after;
                    }
                }
                [] => {}
            }
        }
        Ok(())
    }
}

/// One of the ways to read a device.
type ReadDevice = fn(&dyn BlockRead, u64, &mut [u8]) -> Result<()>;

impl BlockRead for VolumeReader {
    fn size(&self) -> u64 {
        self.mapping.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_by(|device, at, part| device.read_at(at, part), offset, buf)
    }

    fn read_data_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_by(
            |device, at, part| device.read_data_at(at, part),
            offset,
            buf,
        )
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Bytes in memory that count how often they are read.
    struct Memory {
        bytes: Vec<u8>,
        reads: Mutex<Vec<(u64, usize)>>,
    }

    impl Memory {
        fn new(len: usize, seed: usize) -> Arc<Self> {
            let bytes = (0..len)
                .map(|i| ((i * 31 + i / 251 + seed) % 256) as u8)
                .collect();
            Arc::new(Self {
                bytes,
                reads: Mutex::default(),
            })
        }
    }

    impl BlockRead for Memory {
        fn size(&self) -> u64 {
            self.bytes.len() as u64
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
            self.reads.lock().push((offset, buf.len()));
            let at = offset as usize;
            let bytes = self.bytes.get(at..at + buf.len());
            buf.copy_from_slice(bytes.ok_or_else(|| Error::corrupt("memory", "past the end"))?);
            Ok(())
        }
    }

    fn runs(mapping: &Mapping, offset: u64, len: u64) -> Vec<(usize, u64, u64)> {
        let mut out = Vec::new();
        mapping.runs(offset, len, &mut out).unwrap();
        out.iter().map(|r| (r.device, r.offset, r.len)).collect()
    }

    fn striped(len: u64, stripe: u64, columns: &[(usize, u64)]) -> Segment {
        let columns = columns
            .iter()
            .map(|&(device, offset)| Place { device, offset })
            .collect();
        Segment {
            len,
            layout: Layout::Striped { stripe, columns },
        }
    }

    fn linear(len: u64, offset: u64) -> Segment {
        Segment {
            len,
            layout: Layout::Linear(Place { device: 0, offset }),
        }
    }

    #[test]
    fn linear_runs_are_joined_and_bounded() {
        let m =
            Mapping::from_segments([linear(100, 1000), linear(50, 1100), linear(10, 5)]).unwrap();
        assert_eq!(m.size(), 160);
        assert_eq!(runs(&m, 0, 160), [(0, 1000, 150), (0, 5, 10)]);
        assert_eq!(runs(&m, 90, 20), [(0, 1090, 20)]);
        assert_eq!(runs(&m, 160, 0), []);
        let mut out = vec![Run {
            device: 0,
            offset: 990,
            len: 10,
        }];
        m.runs(0, 1, &mut out).unwrap();
        assert_eq!(out.len(), 2, "what was there before is not touched");
        for (offset, len) in [(0, 161), (160, 1), (u64::MAX, 1), (1, u64::MAX)] {
            assert!(matches!(
                m.runs(offset, len, &mut out),
                Err(Error::Corrupt { .. })
            ));
        }
        assert_eq!(Mapping::linear(0, u64::MAX, 5).size(), 0);
    }

    #[test]
    fn stripes_go_round_the_columns() {
        // Three columns, stripes of 4: 0123 4567 89.. | ..
        let m = Mapping::from_segments([striped(36, 4, &[(0, 100), (1, 200), (0, 300)])]).unwrap();
        assert_eq!(
            runs(&m, 2, 20),
            [
                (0, 102, 2),
                (1, 200, 4),
                (0, 300, 4),
                (0, 104, 4),
                (1, 204, 4),
                (0, 304, 2)
            ]
        );
        // Adjacent stripes of one column are one run.
        let one = Mapping::from_segments([striped(40, 4, &[(0, 7)])]).unwrap();
        assert_eq!(runs(&one, 0, 40), [(0, 7, 40)]);
    }

    #[test]
    fn impossible_layouts_are_refused() {
        for segment in [
            striped(10, 0, &[(0, 0)]),
            striped(10, 4, &[]),
            striped(10, 4, &[(0, 0), (0, 9), (0, 99)]),
            striped(10, 4, &[(0, u64::MAX), (0, 0)]),
            linear(2, u64::MAX),
        ] {
            assert!(Mapping::from_segments([segment]).is_err());
        }
        assert!(Mapping::from_segments([linear(1 << 63, 0), linear(1 << 63, 0)]).is_err());
        assert_eq!(Mapping::from_segments([]).unwrap().size(), 0);
    }

    #[test]
    fn a_column_is_read_at_once() {
        let devices = [Memory::new(4096, 1), Memory::new(4096, 2)];
        let m = Mapping::from_segments([
            linear(10, 5),
            striped(1024, 16, &[(0, 100), (1, 50), (0, 2000), (1, 3000)]),
        ])
        .unwrap();
        let reader = VolumeReader::new(m.clone(), devices.iter().map(|d| d.clone() as _).collect());
        let mut truth = Vec::new();
        for at in 0..m.size() {
            let (device, offset, _) = runs(&m, at, 1)[0];
            truth.push(devices[device].bytes[offset as usize]);
        }
        let mut buf = vec![0; m.size() as usize];
        reader.read_at(0, &mut buf).unwrap();
        assert_eq!(buf, truth);
        assert_eq!(
            devices[0].reads.lock().len(),
            3,
            "the linear piece and two columns"
        );
        assert_eq!(devices[1].reads.lock().len(), 2);
        for (at, len) in [
            (0, 1),
            (3, 60),
            (9, 2),
            (10, 16),
            (11, 17),
            (500, 500),
            (1033, 1),
        ] {
            let mut buf = vec![0; len];
            reader.read_at(at as u64, &mut buf).unwrap();
            assert_eq!(buf, truth[at..at + len], "{len} bytes at {at}");
        }
        assert!(matches!(
            reader.read_at(1033, &mut [0; 2]),
            Err(Error::Corrupt { .. })
        ));
        let lost = VolumeReader::new(Mapping::linear(7, 0, 10), Vec::new());
        assert!(lost.read_at(0, &mut [0; 1]).is_err());
    }
}
