//! The binary side of LVM2: the label of a physical volume and its metadata
//! areas (`lib/format_text/layout.h` of LVM2).
//!
//! The idea: a metadata area is a ring of texts behind a header that says which
//! one counts; header and text have a checksum each, and an area that fails one
//! is left out, for there is mostly another, on this physical volume or on one
//! of its neighbours.
#![deny(clippy::arithmetic_side_effects)]

use crate::error::Result;
use crate::volume::head::{Head, is, le32, le64};

/// The longest metadata text that is read.
pub(super) const MAX_TEXT: u64 = 16 << 20;
/// Areas read of one physical volume; LVM2 makes two at most.
const MAX_AREAS: usize = 8;
/// Length of the header of a metadata area, in bytes.
const AREA_HEADER: u64 = 512;

/// A range of bytes on a physical volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) at: u64,
    pub(super) len: u64,
}

/// What the label of a physical volume says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Label {
    /// Its UUID without the dashes.
    pub(super) id: String,
    /// Its metadata areas.
    pub(super) areas: Vec<Range>,
    /// Whether it says that a volume group uses it.
    pub(super) in_use: bool,
}

impl Label {
    /// The label in one of the first four sectors of 512 bytes.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        (0_usize..4).find_map(|number| {
            let at = number.checked_mul(512)?;
            Self::parse_sector(
                bytes.get(at..at.checked_add(512)?)?,
                u64::try_from(number).ok()?,
            )
        })
    }

    fn parse_sector(sector: &[u8], number: u64) -> Option<Self> {
        let valid = is(sector, 0, b"LABELONE")
            && is(sector, 24, b"LVM2 001")
            && le64(sector, 8)? == number
            && le32(sector, 16)? == checksum(&[sector.get(20..)?]);
        if !valid {
            return None;
        }
        let header = sector.get(usize::try_from(le32(sector, 20)?).ok()?..)?;
        let id = String::from_utf8_lossy(header.get(..32)?).into_owned();
        // Two lists, of data areas and of metadata areas, end with a zero each.
        let mut places = header.get(40..)?.chunks_exact(16);
        let mut list = || {
            let mut list = Vec::new();
            for raw in places.by_ref() {
                match (le64(raw, 0)?, le64(raw, 8)?) {
                    (0, _) => return Some(list),
                    (at, len) => list.push(Range { at, len }),
                }
            }
            None
        };
        let _data = list()?;
        let mut areas = list()?;
        areas.truncate(MAX_AREAS);
        let extension = places.next();
        let in_use = extension.is_some_and(|raw| {
            le32(raw, 0).is_some_and(|version| version >= 1)
                && le32(raw, 4).is_some_and(|flags| flags & 1 != 0)
        });
        Some(Self { id, areas, in_use })
    }
}

/// Where the text of a metadata area is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Text {
    /// The piece that it begins with.
    first: Range,
    /// The piece after the end of the ring, at its beginning; may be empty.
    wrapped: Range,
    /// Checksum of the whole.
    pub(super) checksum: u32,
    /// Length of the whole in bytes.
    pub(super) len: u64,
}

/// What a metadata area says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Area {
    /// It is not in use.
    Empty,
    /// It is damaged.
    Damaged,
    /// It has a text.
    Text(Text),
}

/// Reads the header of a metadata area.
pub(super) fn read(head: &Head<'_>, area: Range) -> Result<Area> {
    let header = head.get(area.at, 512)?;
    Ok(header
        .and_then(|header| parse(&header, area))
        .unwrap_or(Area::Damaged))
}

fn parse(header: &[u8], area: Range) -> Option<Area> {
    let valid = is(header, 4, b" LVM2 x[5A%r0N*>")
        && le32(header, 0)? == checksum(&[header.get(4..)?])
        && le32(header, 20)? == 1
        && le64(header, 24)? == area.at;
    if !valid {
        return None;
    }
    let size = le64(header, 32)?;
    // The first of the four places is the committed text; flag 1 says that the
    // area is to be ignored.
    let (offset, len) = (le64(header, 40)?, le64(header, 48)?);
    if offset == 0 || len == 0 || le32(header, 60)? & 1 != 0 {
        return Some(Area::Empty);
    }
    let ring = size.checked_sub(AREA_HEADER)?;
    if offset < AREA_HEADER || offset >= size || len > ring || len > MAX_TEXT {
        return None;
    }
    let first = len.min(size.checked_sub(offset)?);
    Some(Area::Text(Text {
        first: Range {
            at: area.at.checked_add(offset)?,
            len: first,
        },
        wrapped: Range {
            at: area.at.checked_add(AREA_HEADER)?,
            len: len.checked_sub(first)?,
        },
        checksum: le32(header, 56)?,
        len,
    }))
}

impl Text {
    /// Reads the text; `None` if its checksum is wrong.
    pub(super) fn read(&self, head: &Head<'_>) -> Result<Option<Vec<u8>>> {
        let mut text = Vec::new();
        for piece in [self.first, self.wrapped] {
            let len = usize::try_from(piece.len).unwrap_or(usize::MAX);
            let Some(bytes) = head.get(piece.at, len)? else {
                return Ok(None);
            };
            text.extend_from_slice(&bytes);
        }
        Ok((checksum(&[&text]) == self.checksum).then_some(text))
    }
}

/// LVM2's checksum: the usual CRC-32, but with an initial value of its own and
/// not inverted at the end.
fn checksum(pieces: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(!0xf597_a6cf);
    for piece in pieces {
        hasher.update(piece);
    }
    !hasher.finalize()
}
