//! The attribute list: where the attributes of a file are that outgrew its MFT
//! record.
//!
//! It names every piece of every attribute by type, name and first cluster.
//! Those three find the piece in its record; the instance number, which is also
//! there, is unique within one record only.
#![deny(clippy::arithmetic_side_effects)]

use super::record::NUMBER;
use crate::filesystem::field::{index, slice_at, u8_at, u16_at, u32_at, u64_at};

/// The longest list that is read, in bytes: what Windows allows.
pub(super) const MAX_LIST: u64 = 256 << 10;

/// One piece of one attribute.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    /// The attribute's type.
    pub(super) kind: u32,
    /// Its name, UTF-16 as on disk.
    pub(super) name: &'a [u8],
    /// First cluster of the piece.
    pub(super) lowest: u64,
    /// Number of the MFT record that holds it.
    pub(super) record: u64,
}

/// Walks over a list; what cannot be an entry ends it.
pub(super) fn entries(list: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    let mut rest = list;
    std::iter::from_fn(move || {
        let len = index(u16_at(rest, 4)?);
        if len < 24 {
            return None;
        }
        let (bytes, after) = rest.split_at_checked(len)?;
        rest = after;
        let name_len = index(u8_at(bytes, 6)?).saturating_mul(2);
        Some(Entry {
            kind: u32_at(bytes, 0)?,
            name: slice_at(bytes, index(u8_at(bytes, 7)?), name_len)
                .filter(|_| name_len > 0)
                .unwrap_or_default(),
            lowest: u64_at(bytes, 8)?,
            record: u64_at(bytes, 16)? & NUMBER,
        })
    })
}
