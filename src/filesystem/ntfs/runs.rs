//! Run lists: in which clusters of the volume a value lies.
//!
//! On disk they are mapping pairs, each with the length of a run and the
//! distance to the one before. In memory a run is its first cluster in the value
//! and on the volume; its length follows from the next one, so that a run takes
//! 16 bytes.
#![deny(clippy::arithmetic_side_effects)]

/// The most runs that one value may have: 32 MiB of memory. An attribute list of
/// the largest size can name about as many.
const MAX_RUNS: usize = 2 << 20;

/// Stands for "no cluster": a hole.
const HOLE: u64 = u64::MAX;

#[derive(Debug, Clone, Copy)]
struct Run {
    /// First cluster within the value.
    vcn: u64,
    /// First cluster on the volume, or [`HOLE`].
    lcn: u64,
}

/// Where a value lies.
#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: Vec<Run>,
    /// The cluster after the last one.
    end: u64,
}

/// A stretch of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    /// First cluster on the volume; `None` is a hole.
    pub(super) lcn: Option<u64>,
    /// Clusters from there on.
    pub(super) len: u64,
}

impl Runs {
    /// The cluster of the value after the last one that is mapped.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.runs.len()
    }

    /// Appends a piece that maps the clusters from [`Runs::end`] to `highest`.
    /// `clusters` is how many the volume has. The reason if it is damaged.
    pub(super) fn append(
        &mut self,
        mut mapping: &[u8],
        highest: u64,
        clusters: u64,
    ) -> Result<(), &'static str> {
        let mut lcn = 0i64;
        while let Some((&head, rest)) = mapping.split_first() {
            if head == 0 {
                break;
            }
            let (length, rest) = number(rest, head & 0xf).ok_or("a run is cut off")?;
            let (distance, rest) = number(rest, head >> 4).ok_or("a run is cut off")?;
            mapping = rest;
            let length = u64::try_from(length.unwrap_or(0)).unwrap_or(0);
            let end = self.end.checked_add(length).filter(|_| length > 0);
            let end = end.ok_or("a run has no length")?;
            let place = match distance {
                None => HOLE,
                Some(distance) => {
                    lcn = lcn.checked_add(distance).ok_or("a run lies nowhere")?;
                    match u64::try_from(lcn) {
                        // -1 was a hole before holes had a form of their own.
                        Err(_) if lcn == -1 => HOLE,
                        Err(_) => return Err("a run lies before the volume"),
                        Ok(lcn) if lcn.checked_add(length).is_none_or(|end| end > clusters) => {
                            return Err("a run lies past the end of the volume");
                        }
                        Ok(lcn) => lcn,
                    }
                }
            };
            if self.runs.len() >= MAX_RUNS {
                return Err("it has more runs than can be");
            }
            self.runs.push(Run {
                vcn: self.end,
                lcn: place,
            });
            self.end = end;
        }
        // An empty value has -1 as its last cluster.
        if highest.wrapping_add(1) != self.end {
            return Err("its runs do not add up");
        }
        Ok(())
    }

    /// The stretches from cluster `vcn` of the value on.
    pub(super) fn from(&self, vcn: u64) -> impl Iterator<Item = Stretch> + '_ {
        let first = self
            .runs
            .partition_point(|run| run.vcn <= vcn)
            .saturating_sub(1);
        let runs = self.runs.get(first..).unwrap_or_default();
        let ends = runs.iter().skip(1).map(|run| run.vcn).chain([self.end]);
        runs.iter()
            .zip(ends)
            .filter(move |(_, end)| *end > vcn)
            .map(move |(run, end)| {
                let skip = vcn.saturating_sub(run.vcn);
                Stretch {
                    lcn: (run.lcn != HOLE).then(|| run.lcn.saturating_add(skip)),
                    len: end.saturating_sub(run.vcn).saturating_sub(skip),
                }
            })
    }
}

/// A signed number of `len` bytes (`None` if that is 0), and what follows it.
fn number(bytes: &[u8], len: u8) -> Option<(Option<i64>, &[u8])> {
    let (digits, rest) = bytes.split_at_checked(usize::from(len))?;
    let Some(last) = digits.last() else {
        return Some((None, rest));
    };
    let mut whole = [if *last >= 0x80 { 0xff } else { 0 }; 8];
    whole.get_mut(..digits.len())?.copy_from_slice(digits);
    Some((Some(i64::from_le_bytes(whole)), rest))
}
