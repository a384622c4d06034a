//! Files compacted by Windows ("CompactOS", the Windows Overlay Filter): the
//! file itself is all hole, and its content lies in the stream
//! `WofCompressedData`: a table of offsets, then chunks that are decoded each by
//! itself. The reparse point says by which algorithm.
#![deny(clippy::arithmetic_side_effects)]

use std::sync::Arc;

use bytes::Bytes;

use super::decoded::{Decoded, copy_part};
use super::field::{index, u32_at};
use super::stream::{Stream, Volume};
use super::{lzx, xpress_huffman};
use crate::error::{Error, Result};

/// The stream's name, as on disk.
pub(super) const STREAM: &[u8] = b"W\0o\0f\0C\0o\0m\0p\0r\0e\0s\0s\0e\0d\0D\0a\0t\0a\0";

/// How the chunks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Xpress,
    Lzx,
}

/// What the reparse point says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Method {
    algorithm: Algorithm,
    /// Bytes per chunk.
    chunk: u64,
}

impl Method {
    /// Parses the data of the reparse point. The reason, if the content is not in
    /// the file or in a form that is not known.
    pub(super) fn parse(data: &[u8]) -> std::result::Result<Self, String> {
        let field = |at| u32_at(data, at).unwrap_or(u32::MAX);
        if field(0) != 1 || field(4) != 2 {
            return Err("its content is kept in a WIM archive elsewhere".into());
        }
        let (algorithm, chunk) = match field(12) {
            0 => (Algorithm::Xpress, 4 << 10),
            1 => (Algorithm::Lzx, 32 << 10),
            2 => (Algorithm::Xpress, 8 << 10),
            3 => (Algorithm::Xpress, 16 << 10),
            other => {
                return Err(format!(
                    "it is compacted by algorithm {other}, which is not known"
                ));
            }
        };
        Ok(Self { algorithm, chunk })
    }
}

/// The content of a compacted file.
pub(super) struct Compacted {
    method: Method,
    /// The table and the chunks.
    stream: Arc<Stream>,
    size: u64,
    ino: u64,
}

impl Compacted {
    /// The content of file `ino`, `size` bytes long when decoded.
    pub(super) fn new(method: Method, stream: Arc<Stream>, size: u64, ino: u64) -> Self {
        Self {
            method,
            stream,
            size,
            ino,
        }
    }

    /// Length in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Fills as much of `buf` as there is from `offset`; the number of bytes.
    pub(super) fn read(
        &self,
        volume: &Volume,
        offset: u64,
        buf: &mut [u8],
        cache: &Decoded,
    ) -> Result<usize> {
        let chunk_size = self.method.chunk;
        let rest = index(self.size.saturating_sub(offset));
        let (buf, _) = buf.split_at_mut(rest.min(buf.len()));
        let len = buf.len();
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let number = at.checked_div(chunk_size).unwrap_or(0);
            let start = number.saturating_mul(chunk_size);
            let whole = index(chunk_size.min(self.size.saturating_sub(start)));
            let skip = index(at.saturating_sub(start));
            let (piece, after) = rest.split_at_mut(whole.saturating_sub(skip).min(rest.len()));
            rest = after;
            // Nothing is left to read again of a chunk that is read whole.
            if piece.len() == whole {
                self.decode(volume, number, piece)?;
            } else {
                let chunk = cache.get(self.ino, number, || {
                    let mut chunk = vec![0; whole];
                    self.decode(volume, number, &mut chunk)?;
                    Ok(Bytes::from(chunk))
                })?;
                copy_part(&chunk, skip, piece);
            }
            at = at.saturating_add(u64::try_from(piece.len()).unwrap_or(0));
        }
        Ok(len)
    }

    fn damaged(&self, reason: &str) -> Error {
        let what = format!("compacted content of NTFS file {}", self.ino);
        Error::corrupt(what, reason)
    }

    /// Reads exactly `buf` of the stream from `offset`.
    fn fill(&self, volume: &Volume, offset: u64, buf: &mut [u8]) -> Result<()> {
        match self.stream.read(volume, offset, buf, None)? {
            len if len == buf.len() => Ok(()),
            _ => Err(self.damaged("it is cut off")),
        }
    }

    /// Where chunk `number` lies in the stream: its first byte, its length.
    ///
    /// The table has the end of each chunk but the last, counted from its own
    /// end, in 8 bytes where 4 would not do for the file.
    fn place(&self, volume: &Volume, number: u64) -> Result<(u64, usize)> {
        let width = if self.size > u64::from(u32::MAX) {
            8u64
        } else {
            4
        };
        let last = self.size.div_ceil(self.method.chunk).saturating_sub(1);
        let table = last.saturating_mul(width);
        let end_of = |number: u64| {
            let mut field = [0; 8];
            let (used, _) = field.split_at_mut(index(width));
            self.fill(volume, number.saturating_mul(width), used)?;
            Ok::<_, Error>(u64::from_le_bytes(field))
        };
        let begin = match number.checked_sub(1) {
            Some(before) => end_of(before)?,
            None => 0,
        };
        let end = match number {
            number if number < last => end_of(number)?,
            _ => self.stream.size().saturating_sub(table),
        };
        let len = end
            .checked_sub(begin)
            .ok_or_else(|| self.damaged("its table goes back"))?;
        Ok((begin.saturating_add(table), index(len)))
    }

    /// Decodes chunk `number` into `out`, which is as long as the chunk.
    fn decode(&self, volume: &Volume, number: u64, out: &mut [u8]) -> Result<()> {
        let (place, len) = self.place(volume, number)?;
        if len > out.len() {
            return Err(self.damaged("a chunk is longer than it can be"));
        }
        if len == out.len() {
            // Stored as it is.
            return self.fill(volume, place, out);
        }
        let mut packed = vec![0; len];
        self.fill(volume, place, &mut packed)?;
        match self.method.algorithm {
            Algorithm::Xpress => xpress_huffman::decode(&packed, out),
            Algorithm::Lzx => lzx::decode(&packed, out),
        }
        .ok_or_else(|| self.damaged(&format!("chunk {number} cannot be decoded")))
    }
}
