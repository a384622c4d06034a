//! Security descriptors: who may do what, by Windows' accounts.
//!
//! Since NTFS 3.0 a file has only a number; $Secure has each descriptor once, in
//! its stream $SDS, found by the number in its index $SII.
#![deny(clippy::arithmetic_side_effects)]

use std::ops::ControlFlow;

use super::Ntfs;
use super::attribute;
use super::file::Information;
use super::index::Index;
use super::mft::File;
use crate::error::{Error, Result};
use crate::filesystem::field::{index, u32_at, u64_at};

/// Record of $Secure.
const SECURE: u64 = 9;

/// The index by number, as on disk.
const SII: &[u8] = b"$\0S\0I\0I\0";

/// The stream of descriptors, as on disk.
const SDS: &[u8] = b"$\0S\0D\0S\0";

/// Bytes before a descriptor in $SDS: hash, number, place, length.
const HEAD: u32 = 20;

/// The longest descriptor that is read, in bytes.
pub(super) const MAX_DESCRIPTOR: u64 = 64 << 10;

/// Every 256 KiB of $SDS are followed by a copy of themselves.
const COPY: u64 = 256 << 10;

impl Ntfs {
    /// The file's security descriptor, self-relative, as Windows keeps it.
    pub(super) fn security_descriptor(
        &self,
        file: &File,
        information: &Information,
    ) -> Result<Option<Vec<u8>>> {
        match information.security.filter(|number| *number != 0) {
            Some(number) => self.shared_descriptor(number),
            None => self
                .mft
                .value(file, attribute::SECURITY_DESCRIPTOR, &[], MAX_DESCRIPTOR),
        }
    }

    fn shared_descriptor(&self, number: u32) -> Result<Option<Vec<u8>>> {
        let secure = self.mft.file(SECURE)?;
        let Some(by_number) = Index::open(&self.mft, &secure, SII)? else {
            return Ok(None);
        };
        let mut found = None;
        let compare = |key: &[u8]| u32_at(key, 0).unwrap_or(0).cmp(&number);
        by_number.search(&compare, &mut |entry| {
            // The data is a copy of the head in $SDS.
            found = u64_at(entry.data(), 8).zip(u32_at(entry.data(), 16));
            ControlFlow::Break(())
        })?;
        let Some((place, len)) = found else {
            return Ok(None);
        };
        let damaged =
            |reason: &str| Error::corrupt(format!("NTFS security descriptor {number}"), reason);
        if u64::from(len) > MAX_DESCRIPTOR || len <= HEAD {
            return Err(damaged("its length makes no sense"));
        }
        let stream = self.mft.stream(&secure, attribute::DATA, SDS)?;
        let stream = stream.ok_or_else(|| damaged("there is no stream $SDS"))?;
        for place in [place, place.saturating_add(COPY)] {
            let mut bytes = vec![0; index(len)];
            if stream.read(&self.mft.volume, place, &mut bytes, None)? == bytes.len()
                && u32_at(&bytes, 4) == Some(number)
            {
                bytes.drain(..index(HEAD));
                return Ok(Some(bytes));
            }
        }
        Err(damaged("it is not where its index says"))
    }
}
