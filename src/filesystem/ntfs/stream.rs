//! The value of an attribute put together from its pieces, and reading it.
//!
//! A value is one of three: bytes that stand in the MFT record, clusters that
//! are the value, or compression units of (mostly 16) clusters that each must be
//! decoded. Whatever lies past the initialized size reads as zeros: on disk are
//! another file's old bytes.
#![deny(clippy::arithmetic_side_effects)]

mod units;

use std::sync::Arc;

use bytes::Bytes;

use super::attribute::{Attribute, Body, COMPRESSED, ENCRYPTED};
use super::boot::Boot;
use super::decoded::Decoded;
use super::runs::{Runs, Stretch};
use crate::error::{Error, Result};
use crate::filesystem::Extent;
use crate::filesystem::field::index;
use crate::image::BlockRead;
use units::Unit;

/// The largest compression unit, in bytes: 16 clusters of 64 KiB. (Windows
/// compresses with clusters of up to 4 KiB only.)
const MAX_UNIT: u64 = 1 << 20;

/// Files up to this size (in bytes) are read through the block cache, as those
/// are that need no decoding.
const SMALL_FILE: u64 = 64 << 10;

/// The volume: its clusters.
pub(super) struct Volume {
    pub(super) source: Arc<dyn BlockRead>,
    pub(super) boot: Boot,
}

/// How bytes of the volume are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the block cache: metadata, and small files, whose neighbours are
    /// likely to be asked for next.
    Cached,
    /// Past it, in large pieces: the data of large files, which would only drive
    /// metadata out.
    Direct,
}

impl Way {
    /// How the data of a file of `size` bytes is read.
    pub(super) fn of_file(size: u64) -> Self {
        if size <= SMALL_FILE {
            Self::Cached
        } else {
            Self::Direct
        }
    }
}

impl Volume {
    /// Fills `buf` from byte `offset`.
    fn fetch(&self, offset: u64, buf: &mut [u8], way: Way) -> Result<()> {
        match way {
            Way::Cached => self.source.read_at(offset, buf),
            Way::Direct => self.source.read_data_at(offset, buf),
        }
    }

    /// Byte offset of a cluster. A run list never holds one past the end.
    fn offset(&self, lcn: u64) -> u64 {
        lcn.saturating_mul(self.boot.cluster)
    }
}

/// How large a value is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sizes {
    /// Length in bytes.
    pub(super) size: u64,
    /// Bytes that it takes on the volume (or in the MFT).
    pub(super) allocated: u64,
}

/// The sizes that the first piece of an attribute tells.
pub(super) fn sizes(attribute: &Attribute<'_>) -> Sizes {
    match &attribute.body {
        Body::Resident(value) => {
            let size = u64::try_from(value.len()).unwrap_or(0);
            Sizes {
                size,
                allocated: size.next_multiple_of(8),
            }
        }
        Body::NonResident(body) => Sizes {
            size: body.size,
            allocated: body.on_disk,
        },
    }
}

/// A value.
#[derive(Debug)]
pub(super) struct Stream {
    what: String,
    size: u64,
    initialized: u64,
    flags: u16,
    /// Clusters per compression unit as a power of two.
    unit: u8,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Resident(Bytes),
    Clusters(Runs),
}

impl Stream {
    /// The value whose first piece is `attribute`; `what` names it in errors.
    pub(super) fn new(what: String, attribute: &Attribute<'_>, volume: &Volume) -> Result<Self> {
        let damaged = |reason: &str| Error::corrupt(what.clone(), reason);
        let flags = attribute.flags;
        let body = match &attribute.body {
            Body::Resident(value) => {
                let size = u64::try_from(value.len()).unwrap_or(0);
                let content = Content::Resident(Bytes::copy_from_slice(value));
                return Ok(Self {
                    what,
                    size,
                    initialized: size,
                    flags,
                    unit: 0,
                    content,
                });
            }
            Body::NonResident(body) => body,
        };
        if body.size > i64::MAX.cast_unsigned() {
            return Err(damaged("it cannot be so long"));
        }
        let mut unit = 0;
        if flags & COMPRESSED != 0 && body.unit != 0 {
            unit = body.unit;
            if flags & COMPRESSED != 1 {
                return Err(Error::Unsupported {
                    what,
                    reason: format!("it is compressed by method {}", flags & COMPRESSED),
                });
            }
            let bytes = 1u64
                .checked_shl(unit.into())
                .and_then(|n| n.checked_mul(volume.boot.cluster));
            if bytes.is_none_or(|bytes| bytes > MAX_UNIT) {
                return Err(damaged("its compression unit is too large"));
            }
        }
        let content = Content::Clusters(Runs::default());
        let (size, initialized) = (body.size, body.initialized.min(body.size));
        let mut stream = Self {
            what,
            size,
            initialized,
            flags,
            unit,
            content,
        };
        stream.append(attribute, volume)?;
        Ok(stream)
    }

    /// Adds the next piece.
    pub(super) fn append(&mut self, attribute: &Attribute<'_>, volume: &Volume) -> Result<()> {
        let damaged = |reason: &str| Error::corrupt(self.what.clone(), reason);
        let (Content::Clusters(runs), Body::NonResident(body)) =
            (&mut self.content, &attribute.body)
        else {
            return Err(damaged("its pieces are of different kinds"));
        };
        if body.lowest != runs.end() {
            return Err(damaged("a piece of its run list is missing"));
        }
        runs.append(body.mapping, body.highest, volume.boot.clusters)
            .map_err(damaged)
    }

    /// Length in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// How many runs are held in memory.
    pub(super) fn runs(&self) -> usize {
        match &self.content {
            Content::Resident(_) => 0,
            Content::Clusters(runs) => runs.len(),
        }
    }

    /// The clusters of the bytes `offset..offset + len`, which are within the
    /// initialized size and not compressed: where on the volume, how many bytes.
    fn stretches<'a>(
        &'a self,
        volume: &'a Volume,
        runs: &'a Runs,
        offset: u64,
        len: u64,
    ) -> impl Iterator<Item = (Option<u64>, u64)> + 'a {
        let cluster = volume.boot.cluster;
        let vcn = offset.checked_div(cluster).unwrap_or(0);
        let mut skip = offset.checked_rem(cluster).unwrap_or(0);
        let mut left = len;
        runs.from(vcn).map_while(move |Stretch { lcn, len }| {
            let skipped = std::mem::take(&mut skip);
            let len = len
                .saturating_mul(cluster)
                .saturating_sub(skipped)
                .min(left);
            left = left.saturating_sub(len);
            let place = lcn.map(|lcn| volume.offset(lcn).saturating_add(skipped));
            (len > 0).then_some((place, len))
        })
    }

    /// Announces that the bytes `offset..offset + len` will be read soon.
    pub(super) fn will_need(&self, volume: &Volume, offset: u64, len: u64) {
        if let Content::Clusters(runs) = &self.content
            && self.unit == 0
        {
            let len = len.min(self.initialized.saturating_sub(offset));
            for (place, len) in self.stretches(volume, runs, offset, len) {
                if let Some(place) = place {
                    volume.source.will_need(place, len);
                }
            }
        }
    }

    fn cut_short(&self) -> Error {
        Error::corrupt(self.what.clone(), "its run list ends before its data")
    }

    fn refuse_encrypted(&self) -> Result<()> {
        if self.flags & ENCRYPTED == 0 {
            return Ok(());
        }
        Err(Error::Unsupported {
            what: self.what.clone(),
            reason: "it is encrypted (EFS); only its owner's key can open it".into(),
        })
    }

    /// Appends the extents of `offset..offset + len`, cut at the end.
    pub(super) fn extents(
        &self,
        volume: &Volume,
        offset: u64,
        len: u64,
        out: &mut Vec<Extent>,
    ) -> Result<()> {
        self.refuse_encrypted()?;
        let end = offset.saturating_add(len).min(self.size);
        let runs = match &self.content {
            Content::Resident(value) => {
                if offset < end {
                    out.push(Extent::Bytes(value.slice(index(offset)..index(end))));
                }
                return Ok(());
            }
            Content::Clusters(runs) => runs,
        };
        let written = end.min(self.initialized);
        let mut at = offset.min(end);
        while at < written {
            let mut until = written;
            if self.unit != 0 {
                let size = self.unit_size(volume);
                let number = at.checked_div(size).unwrap_or(0);
                let (unit, same) = self.unit(volume, runs, number)?;
                until = number
                    .saturating_add(same)
                    .saturating_mul(size)
                    .min(written);
                let len = until.saturating_sub(at);
                let extent = match unit {
                    Unit::Plain => None,
                    Unit::Hole => Some(Extent::Hole { len }),
                    Unit::Compressed(_) => Some(Extent::Decode { len }),
                };
                if let Some(extent) = extent {
                    extent.append_to(out);
                    at = until;
                    continue;
                }
            }
            for (place, len) in self.stretches(volume, runs, at, until.saturating_sub(at)) {
                at = at.saturating_add(len);
                let extent = match place {
                    Some(offset) => Extent::Volume { offset, len },
                    None => Extent::Hole { len },
                };
                extent.append_to(out);
            }
            if at < until {
                return Err(self.cut_short());
            }
        }
        if at < end {
            let len = end.saturating_sub(at);
            Extent::Hole { len }.append_to(out);
        }
        Ok(())
    }

    /// Fills as much of `buf` as there is from `offset`; the number of bytes.
    /// Decoded units are kept in `cache` under the inode number with it.
    pub(super) fn read(
        &self,
        volume: &Volume,
        offset: u64,
        buf: &mut [u8],
        cache: Option<(&Decoded, u64)>,
    ) -> Result<usize> {
        self.refuse_encrypted()?;
        let rest = index(self.size.saturating_sub(offset));
        let (buf, _) = buf.split_at_mut(rest.min(buf.len()));
        let runs = match &self.content {
            Content::Resident(value) => {
                let from = value.get(index(offset)..).unwrap_or_default();
                for (to, from) in buf.iter_mut().zip(from) {
                    *to = *from;
                }
                return Ok(buf.len());
            }
            Content::Clusters(runs) => runs,
        };
        let written = index(self.initialized.saturating_sub(offset)).min(buf.len());
        let (data, zeros) = buf.split_at_mut(written);
        zeros.fill(0);
        if self.unit == 0 {
            self.read_plain(volume, runs, offset, data, Way::Cached)?;
        } else {
            self.read_units(volume, runs, offset, data, cache)?;
        }
        Ok(buf.len())
    }

    /// Fills `buf`, which lies within the value, with what its clusters hold; not
    /// for compressed values.
    pub(super) fn read_content(
        &self,
        volume: &Volume,
        offset: u64,
        buf: &mut [u8],
        way: Way,
    ) -> Result<()> {
        let end = offset.saturating_add(u64::try_from(buf.len()).unwrap_or(u64::MAX));
        match &self.content {
            Content::Clusters(runs) if self.unit == 0 && end <= self.initialized => {
                self.refuse_encrypted()?;
                self.read_plain(volume, runs, offset, buf, way)
            }
            _ => match self.read(volume, offset, buf, None)? {
                len if len == buf.len() => Ok(()),
                _ => Err(self.cut_short()),
            },
        }
    }

    fn read_plain(
        &self,
        volume: &Volume,
        runs: &Runs,
        offset: u64,
        buf: &mut [u8],
        way: Way,
    ) -> Result<()> {
        let mut rest = buf;
        let len = u64::try_from(rest.len()).unwrap_or(u64::MAX);
        for (place, len) in self.stretches(volume, runs, offset, len) {
            let (piece, after) = rest.split_at_mut(index(len).min(rest.len()));
            rest = after;
            match place {
                Some(place) => volume.fetch(place, piece, way)?,
                None => piece.fill(0),
            }
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(self.cut_short())
        }
    }
}
