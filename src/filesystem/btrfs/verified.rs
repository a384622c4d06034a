//! Data that passes through our hands, with its checksums verified.
//!
//! The checksum tree holds one checksum for each sector of data: items of key
//! (-10, 128, logical byte), each an array for the sectors from there on.

use bytes::Bytes;

use super::Btrfs;
use super::field::index;
use super::inode::Inode;
use super::node::Key;
use crate::error::{Error, Result};

const OBJECT: u64 = u64::MAX - 9;
const EXTENT_CSUM: u8 = 128;

impl Btrfs {
    /// `len` bytes of data from `logical`, whole sectors: from the first copy
    /// whose checksums are right.
    ///
    /// # Errors
    /// `Corrupt` if no copy is right; from below.
    pub(super) fn verified(&self, logical: u64, len: u64, inode: &Inode<'_>) -> Result<Vec<u8>> {
        let mut trouble = None;
        for copy in 0..self.nodes.chunks.copies(logical)? {
            match self.copy(copy, logical, len, inode) {
                Err(error @ (Error::Corrupt { .. } | Error::Unsupported { .. })) => {
                    trouble = trouble.or(Some(error));
                }
                outcome => return outcome,
            }
        }
        Err(trouble.unwrap_or_else(|| inode.corrupt("its data is not there")))
    }

    /// As [`Btrfs::verified`], but only if it is right in the first copy.
    ///
    /// # Errors
    /// From below.
    pub(super) fn verified_at_once(
        &self,
        logical: u64,
        len: u64,
        inode: &Inode<'_>,
    ) -> Result<Option<Vec<u8>>> {
        match self.copy(0, logical, len, inode) {
            Ok(raw) => Ok(Some(raw)),
            Err(Error::Corrupt { .. } | Error::Unsupported { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What one of the copies holds.
    fn copy(&self, copy: u16, logical: u64, len: u64, inode: &Inode<'_>) -> Result<Vec<u8>> {
        let mut raw = vec![0; index(len)];
        self.nodes.read(logical, copy, inode.way(), &mut raw)?;
        if inode.has_checksums && !self.is_sound(logical, &raw)? {
            return Err(inode.corrupt("the checksum of its data is wrong"));
        }
        Ok(raw)
    }

    /// `len` bytes of data from `logical`, which need not be whole sectors.
    ///
    /// # Errors
    /// As [`Btrfs::verified`].
    pub(super) fn verified_part(&self, logical: u64, len: u64, inode: &Inode<'_>) -> Result<Bytes> {
        let sector = u64::from(self.nodes.sector_size);
        let before = logical.checked_rem(sector).unwrap_or(0);
        let end = before.saturating_add(len);
        let whole = end.checked_next_multiple_of(sector).unwrap_or(end);
        let raw = self.verified(logical.saturating_sub(before), whole, inode)?;
        Ok(Bytes::from(raw).slice(index(before)..index(end)))
    }

    /// Whether the checksums of `data`, as far as there are any, are right.
    fn is_sound(&self, logical: u64, data: &[u8]) -> Result<bool> {
        let Some(tree) = &self.checksums else {
            return Ok(true);
        };
        let (sector, sum_len) = (index(self.nodes.sector_size), self.nodes.checksum.len());
        let first = Key::new(OBJECT, EXTENT_CSUM, 0);
        let mut cursor = self
            .nodes
            .seek_back(tree, Key::new(OBJECT, EXTENT_CSUM, logical))?;
        let end = logical.saturating_add(data.len() as u64);
        while let Some((key, sums)) = cursor.next()? {
            if key < first {
                continue;
            }
            if (key.objectid, key.kind) != (first.objectid, first.kind) || key.offset >= end {
                break;
            }
            // The sums before those of `data`, and the sectors before these sums.
            let skip = index(logical.saturating_sub(key.offset))
                .checked_div(sector)
                .unwrap_or(0);
            let before = index(key.offset.saturating_sub(logical));
            let sums = sums.chunks_exact(sum_len).skip(skip);
            let sectors = data.get(before..).unwrap_or_default().chunks_exact(sector);
            for (sum, sector) in sums.zip(sectors) {
                if !self.nodes.checksum.matches(sum, sector) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}
