//! The attribute $FILE_NAME: one name of a file and the folder that it is in.
//! It is also what folders are sorted by, and the key of their entries.
#![deny(clippy::arithmetic_side_effects)]

use std::cmp::Ordering;

use super::record::NUMBER;
use crate::filesystem::field::{index, slice_at, u8_at, u32_at, u64_at};
use crate::filesystem::windows_name::{UpperCase, units};

/// Namespace of names that are there for DOS programs only.
const DOS: u8 = 2;

/// A parsed $FILE_NAME.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileName<'a> {
    /// Number of the folder's MFT record.
    pub(super) parent: u64,
    /// The file's attributes, as they were when the folder was last updated.
    pub(super) attributes: u32,
    namespace: u8,
    /// The name, UTF-16 as on disk.
    pub(super) name: &'a [u8],
}

impl<'a> FileName<'a> {
    /// Parses the attribute's value.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let len = index(u8_at(bytes, 64)?).saturating_mul(2);
        Some(Self {
            parent: u64_at(bytes, 0)? & NUMBER,
            attributes: u32_at(bytes, 56)?,
            namespace: u8_at(bytes, 65)?,
            name: slice_at(bytes, 66, len)?,
        })
    }

    /// Whether it is there only so that DOS programs can open the file.
    pub(super) fn is_dos_only(&self) -> bool {
        self.namespace == DOS
    }

    /// Whether DOS programs can use it: it may be the long name too.
    pub(super) fn is_dos(&self) -> bool {
        self.namespace & DOS != 0
    }

    /// Compares by the order of folders, in which case does not count; `wanted`
    /// is in upper case.
    pub(super) fn compare(&self, wanted: &[u16], upper: &UpperCase) -> Ordering {
        units(self.name)
            .map(|unit| upper.of(unit))
            .cmp(wanted.iter().copied())
    }
}
