//! Data that passes through our hands, with its checksums verified.
//!
//! The checksum tree holds one checksum for each sector of data: items of key
//! (-10, 128, logical byte), each an array for the sectors from there on.

use bytes::Bytes;

use super::Btrfs;
use super::checksum::Checksum;
use super::chunk::Piece;
use super::inode::Inode;
use super::node::Key;
use crate::error::{Error, Result};
use crate::filesystem::field::index;
use crate::filesystem::{Check, Extent};
use crate::image::patience::spend;

const OBJECT: u64 = u64::MAX - 9;
const EXTENT_CSUM: u8 = 128;

/// Checksums of consecutive sectors.
struct Sums {
    /// Where the first of them begins, in bytes from the beginning of the data.
    start: usize,
    /// One after the other.
    sums: Vec<u8>,
}

impl Btrfs {
    /// `len` bytes of data from `logical`, whole sectors: each from the first copy
    /// whose checksum is right.
    ///
    /// # Errors
    /// `Corrupt` if no copy is right; from below.
    pub(super) fn verified(&self, logical: u64, len: u64, inode: &Inode<'_>) -> Result<Vec<u8>> {
        let sector = u64::from(self.nodes.sector_size);
        match self.verified_in_one_copy(logical, len, inode) {
            // One copy may be bad here, the other there.
            Err(Error::Corrupt { .. } | Error::Unsupported { .. }) if len > sector => {
                let mut whole = Vec::with_capacity(index(len));
                let mut at = 0;
                while at < len {
                    spend()?;
                    let place = logical.saturating_add(at);
                    let len = sector.min(len.saturating_sub(at));
                    whole.append(&mut self.verified_in_one_copy(place, len, inode)?);
                    at = at.saturating_add(sector);
                }
                Ok(whole)
            }
            outcome => outcome,
        }
    }

    fn verified_in_one_copy(&self, logical: u64, len: u64, inode: &Inode<'_>) -> Result<Vec<u8>> {
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

    /// Appends `len` bytes of data from `logical` as extents that can be checked by
    /// whoever reads them: whole sectors in the first copy. What is less than a
    /// sector is read here.
    pub(super) fn checked(
        &self,
        logical: u64,
        len: u64,
        inode: &Inode<'_>,
        out: &mut Vec<Extent>,
    ) -> Result<()> {
        let sector = u64::from(self.nodes.sector_size);
        let end = logical.saturating_add(len);
        let first = logical.checked_next_multiple_of(sector).unwrap_or(end);
        let last = end.saturating_sub(end.checked_rem(sector).unwrap_or(0));
        if first >= last {
            out.push(Extent::Bytes(self.verified_part(logical, len, inode)?));
            return Ok(());
        }
        if first > logical {
            let head = self.verified_part(logical, first.saturating_sub(logical), inode)?;
            out.push(Extent::Bytes(head));
        }
        let mut pieces = Vec::new();
        let whole = last.saturating_sub(first);
        self.nodes.chunks.map(first, whole, 0, &mut pieces)?;
        let mut at = first;
        for Piece { offset, len } in pieces {
            let sums = self.sums(at, len)?;
            let (checksum, sector) = (self.nodes.checksum, index(sector));
            let check = Check::new(move |data| are_right(checksum, sector, &sums, data));
            out.push(Extent::Checked { offset, len, check });
            at = at.saturating_add(len);
        }
        if end > last {
            let tail = self.verified_part(last, end.saturating_sub(last), inode)?;
            out.push(Extent::Bytes(tail));
        }
        Ok(())
    }

    /// Whether the checksums of `data`, as far as there are any, are right.
    fn is_sound(&self, logical: u64, data: &[u8]) -> Result<bool> {
        let sums = self.sums(logical, data.len() as u64)?;
        let sector = index(self.nodes.sector_size);
        Ok(are_right(self.nodes.checksum, sector, &sums, data))
    }

    /// The checksums of `len` bytes from `logical`, whole sectors, as far as there
    /// are any.
    fn sums(&self, logical: u64, len: u64) -> Result<Vec<Sums>> {
        let mut found = Vec::new();
        let Some(tree) = &self.checksums else {
            return Ok(found);
        };
        let (sector, sum_len) = (index(self.nodes.sector_size), self.nodes.checksum.len());
        let first = Key::new(OBJECT, EXTENT_CSUM, 0);
        let mut cursor = self
            .nodes
            .seek_back(tree, Key::new(OBJECT, EXTENT_CSUM, logical))?;
        let end = logical.saturating_add(len);
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
            let start = key.offset.saturating_sub(logical);
            let most = index(len.saturating_sub(start))
                .checked_div(sector)
                .unwrap_or(0);
            let from = skip.saturating_mul(sum_len);
            let sums = sums.get(from..).unwrap_or_default();
            let sums = sums.get(..most.saturating_mul(sum_len)).unwrap_or(sums);
            if !sums.is_empty() {
                found.push(Sums {
                    start: index(start),
                    sums: sums.to_vec(),
                });
            }
        }
        Ok(found)
    }
}

/// Whether each sector of `data` has the checksum that `sums` has for it.
fn are_right(checksum: Checksum, sector: usize, sums: &[Sums], data: &[u8]) -> bool {
    sums.iter().all(|Sums { start, sums }| {
        let sectors = data.get(*start..).unwrap_or_default().chunks_exact(sector);
        let mut pairs = sums.chunks_exact(checksum.len()).zip(sectors);
        pairs.all(|(sum, sector)| checksum.matches(sum, sector))
    })
}
