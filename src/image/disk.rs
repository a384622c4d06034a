//! An attached disk as the layers above see it.
//!
//! Two ways to its bytes: [`BlockRead::read_at`] through the block cache, for
//! parsers; [`Disk::submit`] past it, straight into the caller's buffer, for the
//! data of files ([`BlockRead::read_data_at`] is the same for parsers, which
//! wait for it).

use std::sync::Arc;

use bytes::BytesMut;

use super::{Allocation, BlockCache, BlockRead, Completion, Export, patience};
use crate::error::{Error, Result};

/// A disk held open by an [`Export`]. Its pages leave the cache with it.
pub struct Disk {
    id: u64,
    export: Arc<Export>,
    cache: Arc<BlockCache>,
}

impl Disk {
    /// The disk that `export` serves. `id` stands for its content: two disks
    /// with one id must hold the same bytes.
    pub fn new(id: u64, export: Arc<Export>, cache: Arc<BlockCache>) -> Self {
        Self { id, export, cache }
    }

    /// What serves the blocks.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// Reads `buf.len()` bytes from `offset` past the cache and calls `done`.
    pub fn submit(&self, offset: u64, buf: BytesMut, done: Completion) {
        self.export.submit(offset, buf, done);
    }

    /// Refuses a range that does not lie on the disk.
    fn check(&self, offset: u64, len: usize) -> Result<()> {
        let end = offset.checked_add(len as u64);
        if end.is_some_and(|end| end <= self.size()) {
            return Ok(());
        }
        Err(Error::corrupt(
            format!("disk {}", self.id),
            format!(
                "a structure points to byte {offset}, past its end at {}",
                self.size()
            ),
        ))
    }

    /// What of `offset..offset + len` is data and what are holes.
    ///
    /// # Errors
    /// From the export.
    pub fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Allocation>> {
        self.export.block_status(offset, len)
    }
}

impl BlockRead for Disk {
    fn size(&self) -> u64 {
        self.export.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check(offset, buf.len())?;
        self.cache.read(self.id, &self.export, offset, buf)
    }

    fn read_data_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check(offset, buf.len())?;
        patience::may_wait()?;
        patience::spend()?;
        self.export.read_at(offset, buf)
    }

    fn will_need(&self, offset: u64, len: u64) {
        self.cache.will_need(self.id, &self.export, offset, len);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.cache.forget(self.id);
    }
}
