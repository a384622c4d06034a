//! Chains of clusters: where the n-th cluster of a file is.
//!
//! The idea: a chain is walked to its end once, which shows whether it has one,
//! and on the way every so many clusters one is noted: a [`Map`]. From there on
//! any place in the file is a few steps from a mark, and a map of the longest
//! chain there can be takes 128 KiB.
//!
//! A chain that reaches its end cannot have passed a cluster twice. Of one that
//! never does, so many clusters are the file's as differ from each other.

use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::volume::{Next, Table, Volume};
use crate::error::{Error, Result};
use crate::filesystem::field::index;
use crate::image::patience;

/// The most marks of one map; 4 bytes each.
const MAX_MARKS: usize = 32 << 10;

/// Steps between two marks, as long as these are not too many: a power of two.
const STRIDE: u32 = 64;

/// The most marks that are kept for a volume: 1 MiB.
const KEPT: usize = (1 << 20) / 4;

/// The clusters of a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    /// The first one.
    pub(super) first: u32,
    /// So many that follow each other on the volume, whatever the table says
    /// (exFAT); `None`: as the table says.
    pub(super) contiguous: Option<u32>,
}

/// What is known of a chain that the table holds.
struct Map {
    /// Clusters `0`, `stride`, `2 · stride`, … of the chain.
    marks: Vec<u32>,
    stride: u32,
    /// How many clusters the chain has.
    clusters: u32,
    /// Why there are no more, if that is not as it should be.
    broken: Option<&'static str>,
}

impl Map {
    fn survey(volume: &Volume, first: u32) -> Result<Self> {
        let mut map = Self {
            marks: Vec::new(),
            stride: STRIDE,
            clusters: 0,
            broken: None,
        };
        let mut table = Table::new(volume);
        let mut at = first;
        // Brent: a cluster is remembered for twice as many steps each time, and
        // comes again if the chain is circular.
        let (mut remembered, mut power, mut steps) = (first, 1u32, 0u32);
        loop {
            patience::spend()?;
            map.note(at);
            match table.next(at)? {
                Next::End => return Ok(map),
                Next::Bad => {
                    map.cut(map.clusters.saturating_sub(1));
                    map.broken = Some("its chain of clusters runs into a bad cluster");
                    return Ok(map);
                }
                Next::Broken(reason) => {
                    map.broken = Some(reason);
                    return Ok(map);
                }
                Next::Cluster(next) => at = next,
            }
            steps = steps.saturating_add(1);
            if at == remembered {
                map.cut(distinct(volume, first, steps)?);
                map.broken = Some("its chain of clusters is circular");
                return Ok(map);
            }
            if steps == power {
                (remembered, steps) = (at, 0);
                power = power.saturating_mul(2);
            }
        }
    }

    /// Adds a cluster.
    fn note(&mut self, cluster: u32) {
        if self.clusters.is_multiple_of(self.stride) {
            if self.marks.len() == MAX_MARKS {
                let mut odd = true;
                self.marks.retain(|_| {
                    odd = !odd;
                    !odd
                });
                self.stride = self.stride.saturating_mul(2);
            }
            self.marks.push(cluster);
        }
        self.clusters = self.clusters.saturating_add(1);
    }

    fn cut(&mut self, clusters: u32) {
        self.clusters = self.clusters.min(clusters);
        self.marks
            .truncate(index(self.clusters.div_ceil(self.stride)));
    }
}

/// How many clusters there are in a chain that has a circle of `round` clusters.
fn distinct(volume: &Volume, first: u32, round: u32) -> Result<u32> {
    let (mut ahead, mut behind) = (Table::new(volume), Table::new(volume));
    let follow = |table: &mut Table<'_>, cluster| {
        patience::spend()?;
        match table.next(cluster)? {
            Next::Cluster(next) => Ok(next),
            Next::End | Next::Bad | Next::Broken(_) => Err(changed()),
        }
    };
    let (mut front, mut back, mut before) = (first, first, 0u32);
    for _ in 0..round {
        front = follow(&mut ahead, front)?;
    }
    while front != back {
        front = follow(&mut ahead, front)?;
        back = follow(&mut behind, back)?;
        before = before.saturating_add(1);
    }
    Ok(before.saturating_add(round))
}

fn changed() -> Error {
    Error::corrupt("file allocation table", "it changes while it is read")
}

/// The maps that were used last.
pub(super) struct Maps(Mutex<Kept>);

struct Kept {
    maps: LruCache<u32, Arc<Map>>,
    marks: usize,
}

impl Maps {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Kept {
            maps: LruCache::unbounded(),
            marks: 0,
        }))
    }

    /// The map of the chain that begins with `first`. Short ones are not kept:
    /// they are walked again as quickly.
    fn get(&self, volume: &Volume, first: u32) -> Result<Arc<Map>> {
        if let Some(map) = self.0.lock().maps.get(&first) {
            return Ok(Arc::clone(map));
        }
        let map = Arc::new(Map::survey(volume, first)?);
        if map.clusters > STRIDE {
            let mut kept = self.0.lock();
            kept.marks = kept.marks.saturating_add(map.marks.len());
            if let Some((_, old)) = kept.maps.push(first, Arc::clone(&map)) {
                kept.marks = kept.marks.saturating_sub(old.marks.len());
            }
            while kept.marks > KEPT {
                let Some((_, old)) = kept.maps.pop_lru() else {
                    break;
                };
                kept.marks = kept.marks.saturating_sub(old.marks.len());
            }
        }
        Ok(map)
    }
}

/// Goes along a chain.
pub(super) struct Cursor<'a> {
    table: Table<'a>,
    contiguous: bool,
    /// The cluster that comes next.
    next: u32,
    /// How many are still to come.
    left: u32,
    broken: Option<&'static str>,
}

impl Volume {
    /// A cursor that gives cluster `number` of the chain next.
    ///
    /// # Errors
    /// From below. What is wrong with the chain is said where it ends.
    pub(super) fn seek(&self, chain: Chain, number: u64) -> Result<Cursor<'_>> {
        let mut cursor = Cursor {
            table: Table::new(self),
            contiguous: chain.contiguous.is_some(),
            next: chain.first,
            left: 0,
            broken: None,
        };
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        if !self.geometry.has(chain.first) {
            cursor.broken = Some("its first cluster is none of the volume's");
            return Ok(cursor);
        }
        if let Some(clusters) = chain.contiguous {
            let room = self.geometry.end().saturating_sub(chain.first);
            if clusters > room {
                cursor.broken = Some("it reaches past the end of the volume");
            }
            cursor.left = clusters.min(room).saturating_sub(number);
            cursor.next = chain.first.saturating_add(number);
            return Ok(cursor);
        }
        let map = self.maps.get(self, chain.first)?;
        cursor.broken = map.broken;
        cursor.left = map.clusters.saturating_sub(number);
        if cursor.left > 0 {
            let mark = number.checked_div(map.stride).unwrap_or(0);
            cursor.next = *map.marks.get(index(mark)).ok_or_else(changed)?;
            for _ in 0..number.checked_rem(map.stride).unwrap_or(0) {
                cursor.next = cursor.after(cursor.next)?;
            }
        }
        Ok(cursor)
    }
}

impl Cursor<'_> {
    fn after(&mut self, cluster: u32) -> Result<u32> {
        match self.table.next(cluster)? {
            Next::Cluster(next) => Ok(next),
            Next::End | Next::Bad | Next::Broken(_) => Err(changed()),
        }
    }

    /// The next cluster; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<u32>> {
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        patience::spend()?;
        let cluster = self.next;
        if left > 0 {
            self.next = if self.contiguous {
                cluster.saturating_add(1)
            } else {
                self.after(cluster)?
            };
        }
        self.left = left;
        Ok(Some(cluster))
    }

    /// What is wrong with the end of the chain, if anything is.
    pub(super) fn broken(&self) -> Option<&'static str> {
        self.broken
    }
}
