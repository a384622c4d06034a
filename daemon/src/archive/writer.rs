//! The way out: gathers what an archive consists of into pieces of one size.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::{ArchiveError, Output, Result};

/// Bytes that are handed over at once.
const PIECE: usize = 128 * 1024;

/// Where an archive is written to, with a position.
pub(super) struct Writer<'a> {
    output: &'a mut dyn Output,
    cancelled: &'a AtomicBool,
    buffer: Vec<u8>,
    position: u64,
}

impl<'a> Writer<'a> {
    pub(super) fn new(output: &'a mut dyn Output, cancelled: &'a AtomicBool) -> Self {
        Self {
            output,
            cancelled,
            buffer: Vec::with_capacity(PIECE),
            position: 0,
        }
    }

    /// # Errors
    /// `Cancelled`.
    pub(super) fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(ArchiveError::Cancelled);
        }
        Ok(())
    }

    /// Bytes written so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// # Errors
    /// `Cancelled`, `Output`.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let space = PIECE.saturating_sub(self.buffer.len());
            let (now, later) = bytes.split_at_checked(space).unwrap_or((bytes, &[]));
            self.buffer.extend_from_slice(now);
            // A usize always fits.
            self.position = self.position.saturating_add(now.len() as u64);
            bytes = later;
            if self.buffer.len() >= PIECE {
                self.send()?;
            }
        }
        Ok(())
    }

    /// Sends the rest; the length of all.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(super) fn finish(mut self) -> Result<u64> {
        if !self.buffer.is_empty() {
            self.send()?;
        }
        Ok(self.position)
    }

    fn send(&mut self) -> Result<()> {
        self.check()?;
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        self.output
            .put(Bytes::from(piece))
            .map_err(ArchiveError::Output)
    }
}
