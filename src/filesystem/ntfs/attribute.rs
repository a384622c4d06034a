//! The attributes of an MFT record: everything NTFS knows of a file is one.
//!
//! A resident attribute holds its value; a non-resident one says in which
//! clusters the value lies.
#![deny(clippy::arithmetic_side_effects)]

use crate::error::{Error, Result};
use crate::filesystem::field::{index, slice_at, u8_at, u16_at, u32_at, u64_at};

pub(super) const STANDARD_INFORMATION: u32 = 0x10;
pub(super) const ATTRIBUTE_LIST: u32 = 0x20;
pub(super) const FILE_NAME: u32 = 0x30;
pub(super) const OBJECT_ID: u32 = 0x40;
pub(super) const SECURITY_DESCRIPTOR: u32 = 0x50;
pub(super) const VOLUME_NAME: u32 = 0x60;
pub(super) const VOLUME_INFORMATION: u32 = 0x70;
pub(super) const DATA: u32 = 0x80;
pub(super) const INDEX_ROOT: u32 = 0x90;
pub(super) const INDEX_ALLOCATION: u32 = 0xa0;
pub(super) const BITMAP: u32 = 0xb0;
pub(super) const REPARSE_POINT: u32 = 0xc0;
pub(super) const EA: u32 = 0xe0;
pub(super) const LOGGED_UTILITY_STREAM: u32 = 0x100;
const END: u32 = 0xffff_ffff;

/// Flag of an attribute: compressed by LZNT1 (the low byte is the method).
pub(super) const COMPRESSED: u16 = 0x00ff;
/// Flag of an attribute: encrypted by EFS.
pub(super) const ENCRYPTED: u16 = 0x4000;
/// Flag of an attribute: sparse.
pub(super) const SPARSE: u16 = 0x8000;

/// One attribute, or one piece of it.
#[derive(Debug, Clone)]
pub(super) struct Attribute<'a> {
    /// Its type.
    pub(super) kind: u32,
    /// Its name: UTF-16 as on disk, empty for most.
    pub(super) name: &'a [u8],
    /// [`COMPRESSED`], [`ENCRYPTED`], [`SPARSE`].
    pub(super) flags: u16,
    /// Its value, or where that is.
    pub(super) body: Body<'a>,
}

/// The value of an attribute, or where it is.
#[derive(Debug, Clone)]
pub(super) enum Body<'a> {
    /// The value.
    Resident(&'a [u8]),
    /// The value lies in clusters.
    NonResident(NonResident<'a>),
}

/// A piece of a value that lies in clusters. The sizes count only in the piece
/// that begins at cluster 0.
#[derive(Debug, Clone)]
pub(super) struct NonResident<'a> {
    /// First cluster of this piece, counted in the value.
    pub(super) lowest: u64,
    /// Last cluster of this piece.
    pub(super) highest: u64,
    /// The mapping pairs.
    pub(super) mapping: &'a [u8],
    /// Clusters per compression unit as a power of two; 0 if not compressed.
    pub(super) unit: u8,
    /// Length of the value in bytes.
    pub(super) size: u64,
    /// Bytes that were ever written; the rest reads as zeros.
    pub(super) initialized: u64,
    /// Bytes allocated, holes not counted.
    pub(super) on_disk: u64,
}

impl<'a> Attribute<'a> {
    /// First cluster of this piece; 0 for a resident attribute.
    pub(super) fn lowest(&self) -> u64 {
        match &self.body {
            Body::Resident(_) => 0,
            Body::NonResident(body) => body.lowest,
        }
    }

    /// The value, if it is resident.
    pub(super) fn value(&self) -> Option<&'a [u8]> {
        match self.body {
            Body::Resident(value) => Some(value),
            Body::NonResident(_) => None,
        }
    }

    /// Parses the attribute that fills `bytes`.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let flags = u16_at(bytes, 12)?;
        let name_len = index(u8_at(bytes, 9)?).saturating_mul(2);
        let name = match name_len {
            0 => &[][..],
            len => slice_at(bytes, index(u16_at(bytes, 10)?), len)?,
        };
        let body = if u8_at(bytes, 8)? == 0 {
            let len = index(u32_at(bytes, 16)?);
            Body::Resident(slice_at(bytes, index(u16_at(bytes, 20)?), len)?)
        } else {
            let unit = u8_at(bytes, 34)?;
            let squeezed = flags & (COMPRESSED | SPARSE) != 0;
            let allocated = u64_at(bytes, 40)?;
            let mapping = index(u16_at(bytes, 32)?);
            Body::NonResident(NonResident {
                lowest: u64_at(bytes, 16)?,
                highest: u64_at(bytes, 24)?,
                mapping: bytes.get(mapping..)?,
                unit,
                size: u64_at(bytes, 48)?,
                initialized: u64_at(bytes, 56)?,
                // The field is there only then.
                on_disk: if squeezed && mapping >= 72 {
                    u64_at(bytes, 64).unwrap_or(allocated)
                } else {
                    allocated
                },
            })
        };
        Some(Self {
            kind: u32_at(bytes, 0)?,
            name,
            flags,
            body,
        })
    }
}

/// Walks over the attributes of a record; an error ends the walk.
#[derive(Debug)]
pub(super) struct Attributes<'a> {
    record: u64,
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The attributes in `bytes`, which begin with the first one.
    pub(super) fn new(record: u64, bytes: &'a [u8]) -> Self {
        Self {
            record,
            rest: bytes,
        }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() || u32_at(rest, 0) == Some(END) {
            return None;
        }
        let attribute = u32_at(rest, 4)
            .map(index)
            .filter(|len| *len >= 24)
            .and_then(|len| rest.split_at_checked(len))
            .and_then(|(bytes, rest)| {
                self.rest = rest;
                Attribute::parse(bytes)
            });
        if attribute.is_none() {
            self.rest = &[];
        }
        Some(attribute.ok_or_else(|| {
            Error::corrupt(
                format!("NTFS MFT record {}", self.record),
                "an attribute reaches past its end",
            )
        }))
    }
}
