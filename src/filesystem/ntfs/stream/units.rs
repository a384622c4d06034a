//! Compression units: 16 clusters each, of which the first few hold what LZNT1
//! has made of them and the rest is a hole. A unit that did not get smaller is
//! all clusters, one of zeros all hole.
//!
//! A reader that goes through a file wants many units at once, and those lie one
//! after the other on most volumes: what they are decoded from is read in one
//! piece. Of a unit that is wanted in part the rest will be asked for soon, so
//! that one is kept.
#![deny(clippy::arithmetic_side_effects)]

use bytes::Bytes;

use super::{MAX_UNIT, Stream, Volume, Way};
use crate::error::{Error, Result};
use crate::filesystem::field::index;
use crate::filesystem::ntfs::compress;
use crate::filesystem::ntfs::decoded::{Decoded, copy_part};
use crate::filesystem::ntfs::runs::{Runs, Stretch};
use crate::image::patience;

/// Bytes that are decoded at once; at least one unit is.
const BATCH: usize = 1 << 20;

/// One compression unit.
pub(super) enum Unit {
    Hole,
    Plain,
    /// So many bytes decode to it.
    Compressed(usize),
}

impl Stream {
    /// Bytes per compression unit.
    pub(super) fn unit_size(&self, volume: &Volume) -> u64 {
        volume
            .boot
            .cluster
            .checked_shl(self.unit.into())
            .unwrap_or(MAX_UNIT)
            .max(1)
    }

    /// What compression unit `number` is, and how many from there on are the same
    /// at least.
    pub(super) fn unit(&self, volume: &Volume, runs: &Runs, number: u64) -> Result<(Unit, u64)> {
        let clusters = 1u64.checked_shl(self.unit.into()).unwrap_or(1);
        let (mut full, mut hole) = (0u64, 0u64);
        for Stretch { lcn, len } in runs.from(number.saturating_mul(clusters)) {
            let left = clusters.saturating_sub(full).saturating_sub(hole);
            if left == 0 {
                break;
            }
            if left == clusters && len >= clusters {
                let unit = if lcn.is_some() {
                    Unit::Plain
                } else {
                    Unit::Hole
                };
                return Ok((unit, len.checked_div(clusters).unwrap_or(1)));
            }
            match lcn {
                None => hole = hole.saturating_add(len.min(left)),
                Some(_) if hole == 0 => full = full.saturating_add(len.min(left)),
                Some(_) => {
                    let reason = "a compression unit goes on after a hole";
                    return Err(Error::corrupt(self.what.clone(), reason));
                }
            }
        }
        let unit = match (full, hole) {
            (0, _) => Unit::Hole,
            (_, 0) => Unit::Plain,
            (full, _) => Unit::Compressed(index(full.saturating_mul(volume.boot.cluster))),
        };
        Ok((unit, 1))
    }

    pub(super) fn read_units(
        &self,
        volume: &Volume,
        runs: &Runs,
        offset: u64,
        buf: &mut [u8],
        cache: Option<(&Decoded, u64)>,
    ) -> Result<()> {
        let size = self.unit_size(volume);
        let whole = index(size);
        let mut rest = buf;
        let mut at = offset;
        while !rest.is_empty() {
            let number = at.checked_div(size).unwrap_or(0);
            let skip = at.checked_rem(size).unwrap_or(0);
            let wholes = rest.len().min(BATCH.max(whole)).checked_div(whole);
            let len = match wholes.unwrap_or(0) {
                1.. if skip == 0 => wholes.unwrap_or(0).saturating_mul(whole),
                _ => index(size.saturating_sub(skip)).min(rest.len()),
            };
            let (piece, after) = rest.split_at_mut(len);
            rest = after;
            if len >= whole {
                self.read_whole(volume, runs, number, piece)?;
            } else {
                let decode = || {
                    let mut unit = vec![0; whole];
                    self.read_whole(volume, runs, number, &mut unit)?;
                    Ok(Bytes::from(unit))
                };
                match (self.unit(volume, runs, number)?.0, cache) {
                    (Unit::Hole, _) => piece.fill(0),
                    (Unit::Plain, _) => {
                        self.read_plain(volume, runs, at, piece, Way::of_file(self.size))?;
                    }
                    (_, Some((cache, ino))) => {
                        copy_part(&cache.get(ino, number, decode)?, index(skip), piece);
                    }
                    (_, None) => copy_part(&decode()?, index(skip), piece),
                }
            }
            at = at.saturating_add(u64::try_from(len).unwrap_or(0));
        }
        Ok(())
    }

    /// Fills `out`, which is as long as one or more units, from unit `first` on.
    fn read_whole(&self, volume: &Volume, runs: &Runs, first: u64, out: &mut [u8]) -> Result<()> {
        let size = self.unit_size(volume);
        let way = Way::of_file(self.size);
        // Where what is to be decoded lies; adjacent pieces are joined.
        let mut places: Vec<(u64, u64)> = Vec::new();
        let mut decoding: Vec<(u64, usize, &mut [u8])> = Vec::new();
        for (number, out) in (first..).zip(out.chunks_mut(index(size))) {
            let start = number.saturating_mul(size);
            match self.unit(volume, runs, number)?.0 {
                Unit::Hole => out.fill(0),
                Unit::Plain => self.read_plain(volume, runs, start, out, way)?,
                Unit::Compressed(packed) => {
                    let len = u64::try_from(packed).unwrap_or(0);
                    for (place, len) in self.stretches(volume, runs, start, len) {
                        let place = place.ok_or_else(|| self.cut_short())?;
                        match places.last_mut() {
                            Some((last, before)) if last.checked_add(*before) == Some(place) => {
                                *before = before.saturating_add(len);
                            }
                            _ => places.push((place, len)),
                        }
                    }
                    decoding.push((start, packed, out));
                }
            }
        }
        let total = decoding.iter().map(|(_, packed, _)| *packed);
        let mut bytes = vec![0; total.fold(0, usize::saturating_add)];
        let mut rest = bytes.as_mut_slice();
        for (place, len) in places {
            let (piece, after) = rest.split_at_mut(index(len).min(rest.len()));
            rest = after;
            volume.fetch(place, piece, way)?;
        }
        if !rest.is_empty() {
            return Err(self.cut_short());
        }
        let mut rest = bytes.as_slice();
        for (start, packed, out) in decoding {
            patience::spend()?;
            let (bytes, after) = rest.split_at(packed.min(rest.len()));
            rest = after;
            compress::decode(bytes, out).ok_or_else(|| {
                Error::corrupt(
                    self.what.clone(),
                    format!("its compressed data at byte {start} cannot be decoded"),
                )
            })?;
        }
        Ok(())
    }
}
