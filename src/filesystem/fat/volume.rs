//! Where things lie on a volume, and the file allocation table.
//!
//! A boot sector of either family comes down to one [`Geometry`]: an array of
//! clusters, numbered from 2, and a table with an entry for each that names the
//! cluster after it.

use std::sync::Arc;

use super::chain::Maps;
use super::holders::Holders;
use crate::error::{Error, Result};
use crate::filesystem::field::{index, u16_at, u32_at};
use crate::image::BlockRead;

/// The number of the first cluster.
pub(super) const FIRST: u32 = 2;

/// Table entries that are read at once: few, because a fragmented file needs one
/// here and one there; a multiple of 2, so that a piece of FAT12 is of whole bytes.
const PIECE: u32 = 128;

/// How an entry of the table is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// FAT12: three bytes hold two entries.
    Twelve,
    /// FAT16.
    Sixteen,
    /// FAT32: the upper four bits mean nothing.
    TwentyEight,
    /// exFAT.
    ThirtyTwo,
}

impl Width {
    fn bits(self) -> u64 {
        match self {
            Self::Twelve => 12,
            Self::Sixteen => 16,
            Self::TwentyEight | Self::ThirtyTwo => 32,
        }
    }

    /// How many entries fit into a table of `bytes` bytes.
    pub(super) fn entries(self, bytes: u64) -> u64 {
        bytes
            .saturating_mul(8)
            .checked_div(self.bits())
            .unwrap_or(0)
    }

    /// The value that marks a bad cluster; above it are the ends of chains.
    fn bad(self) -> u32 {
        match self {
            Self::Twelve => 0xff7,
            Self::Sixteen => 0xfff7,
            Self::TwentyEight => 0x0fff_fff7,
            Self::ThirtyTwo => 0xffff_fff7,
        }
    }
}

/// Where the root folder is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Root {
    /// FAT12 and FAT16 have a place for it.
    Fixed {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// A chain from this cluster on.
    Chain(u32),
}

/// What a boot sector says.
#[derive(Debug, Clone)]
pub(super) struct Geometry {
    /// How the table is coded.
    pub(super) width: Width,
    /// Bytes per sector: 512 to 4096.
    pub(super) sector: u64,
    /// Bytes that the file system takes.
    pub(super) size: u64,
    /// Byte offset of the table in use.
    pub(super) table: u64,
    /// Byte offset of the first cluster.
    pub(super) heap: u64,
    /// Bytes per cluster: a power of two, 32 MiB at most.
    pub(super) cluster: u64,
    /// Number of clusters: each has an entry in the table.
    pub(super) clusters: u32,
    /// The root folder.
    pub(super) root: Root,
    /// Serial number.
    pub(super) serial: u32,
}

impl Geometry {
    /// The number after the last cluster's.
    pub(super) fn end(&self) -> u32 {
        self.clusters.saturating_add(FIRST)
    }

    /// Whether a cluster has this number.
    pub(super) fn has(&self, cluster: u32) -> bool {
        (FIRST..self.end()).contains(&cluster)
    }

    /// Byte offset of a cluster.
    pub(super) fn offset(&self, cluster: u32) -> u64 {
        u64::from(cluster.saturating_sub(FIRST))
            .saturating_mul(self.cluster)
            .saturating_add(self.heap)
    }

    /// The cluster that holds this byte of the volume.
    pub(super) fn cluster_at(&self, place: u64) -> Option<u32> {
        let number = place.checked_sub(self.heap)?.checked_div(self.cluster)?;
        let cluster = u32::try_from(number).ok()?.checked_add(FIRST)?;
        self.has(cluster).then_some(cluster)
    }

    /// How many clusters `bytes` bytes take.
    pub(super) fn clusters_of(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster.max(1))
    }
}

/// An open volume.
pub(super) struct Volume {
    pub(super) source: Arc<dyn BlockRead>,
    pub(super) geometry: Geometry,
    pub(super) maps: Maps,
    pub(super) holders: Holders,
}

/// What follows a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Cluster(u32),
    /// It was the last one.
    End,
    /// It cannot be used itself.
    Bad,
    /// The table says nonsense.
    Broken(&'static str),
}

/// Reads the table, and keeps the piece that it read last.
pub(super) struct Table<'a> {
    volume: &'a Volume,
    piece: Option<u32>,
    bytes: Vec<u8>,
}

impl<'a> Table<'a> {
    pub(super) fn new(volume: &'a Volume) -> Self {
        Self {
            volume,
            piece: None,
            bytes: Vec::new(),
        }
    }

    /// The entry of a cluster (or of the two numbers before the first one).
    ///
    /// # Errors
    /// From below; `Corrupt` if there is no such cluster.
    pub(super) fn entry(&mut self, cluster: u32) -> Result<u32> {
        let geometry = &self.volume.geometry;
        if cluster >= geometry.end() {
            return Err(Error::corrupt(
                "file allocation table",
                format!("it has no entry {cluster}"),
            ));
        }
        let piece = cluster / PIECE;
        let first = piece.saturating_mul(PIECE);
        if self.piece != Some(piece) {
            self.piece = None;
            let bits = geometry.width.bits();
            let bytes = |entries: u32| u64::from(entries).saturating_mul(bits).div_ceil(8);
            let entries = geometry.end().saturating_sub(first).min(PIECE);
            self.bytes.resize(index(bytes(entries)), 0);
            let place = geometry.table.saturating_add(bytes(first));
            self.volume.source.read_at(place, &mut self.bytes)?;
            self.piece = Some(piece);
        }
        let n = index(cluster.saturating_sub(first));
        let value = match geometry.width {
            Width::Twelve => {
                // The last entry of an odd number ends within its second byte.
                let at = n.saturating_add(n / 2);
                let low = self.bytes.get(at).copied().map(u32::from);
                let high = self.bytes.get(at.saturating_add(1)).copied();
                let pair = low.map(|low| u32::from(high.unwrap_or(0)) << 8 | low);
                pair.map(|pair| {
                    if n.is_multiple_of(2) {
                        pair & 0xfff
                    } else {
                        pair >> 4
                    }
                })
            }
            Width::Sixteen => u16_at(&self.bytes, n.saturating_mul(2)).map(u32::from),
            Width::TwentyEight => {
                u32_at(&self.bytes, n.saturating_mul(4)).map(|value| value & 0x0fff_ffff)
            }
            Width::ThirtyTwo => u32_at(&self.bytes, n.saturating_mul(4)),
        };
        Ok(value.unwrap_or(0))
    }

    /// What follows `cluster`.
    pub(super) fn next(&mut self, cluster: u32) -> Result<Next> {
        let geometry = &self.volume.geometry;
        let value = self.entry(cluster)?;
        Ok(if geometry.has(value) {
            Next::Cluster(value)
        } else if value > geometry.width.bad() {
            Next::End
        } else if value == geometry.width.bad() {
            Next::Bad
        } else if value < FIRST {
            Next::Broken("its chain of clusters runs into a free cluster")
        } else {
            Next::Broken("its chain of clusters leaves the volume")
        })
    }
}
