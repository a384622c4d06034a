//! Files compacted by Windows ("CompactOS", the Windows Overlay Filter): the
//! file itself is all hole, and its content lies in the stream
//! `WofCompressedData`: a table of offsets, then chunks that are decoded each by
//! itself. The reparse point says by which algorithm.
#![deny(clippy::arithmetic_side_effects)]

use std::sync::Arc;

use bytes::Bytes;

use super::decoded::{Decoded, copy_part};
use super::stream::{Stream, Volume, Way};
use super::{lzx, xpress_huffman};
use crate::error::{Error, Result};
use crate::filesystem::field::{index, u32_at};
use crate::image::patience;

/// Bytes that are decoded at once: a multiple of every chunk's length.
const BATCH: usize = 1 << 20;

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
            // Of a chunk that is wanted in part the rest will be asked for soon;
            // nothing is left to read again of those that are wanted whole.
            let in_part = skip > 0 || rest.len() < whole;
            let piece = if in_part {
                whole.saturating_sub(skip).min(rest.len())
            } else {
                self.wholes(at, rest.len())
            };
            let (piece, after) = rest.split_at_mut(piece);
            rest = after;
            if in_part {
                let chunk = cache.get(self.ino, number, || {
                    let mut chunk = vec![0; whole];
                    self.decode(volume, number, &mut chunk)?;
                    Ok(Bytes::from(chunk))
                })?;
                copy_part(&chunk, skip, piece);
            } else {
                self.decode(volume, number, piece)?;
            }
            at = at.saturating_add(u64::try_from(piece.len()).unwrap_or(0));
        }
        Ok(len)
    }

    /// How many of `len` bytes from `at`, where a chunk begins, are whole chunks
    /// that are decoded at once. The last chunk of a file is shorter.
    fn wholes(&self, at: u64, len: usize) -> usize {
        let len = len.min(BATCH);
        let to_the_end = u64::try_from(len).is_ok_and(|n| at.saturating_add(n) == self.size);
        let chunk = index(self.method.chunk);
        match len.checked_rem(chunk) {
            Some(part) if !to_the_end => len.saturating_sub(part),
            _ => len,
        }
    }

    fn damaged(&self, reason: &str) -> Error {
        let what = format!("compacted content of NTFS file {}", self.ino);
        Error::corrupt(what, reason)
    }

    /// Where the chunks `first..first + count` begin in the stream, and where the
    /// last of them ends.
    ///
    /// The table has the end of each chunk but the last, counted from its own
    /// end, in 8 bytes where 4 would not do for the file.
    fn places(&self, volume: &Volume, first: u64, count: usize) -> Result<Vec<u64>> {
        let width = if self.size > u64::from(u32::MAX) {
            8usize
        } else {
            4
        };
        let in_bytes = |chunks: u64| chunks.saturating_mul(u64::try_from(width).unwrap_or(8));
        let last = self.size.div_ceil(self.method.chunk).saturating_sub(1);
        let table = in_bytes(last);
        // The entries of the chunk before the first to the last one that has one.
        let begin = first.saturating_sub(1);
        let end = first.saturating_add(u64::try_from(count).unwrap_or(0));
        let len = in_bytes(end.min(last).saturating_sub(begin));
        let mut entries = vec![0; index(len)];
        let place = in_bytes(begin);
        self.stream
            .read_content(volume, place, &mut entries, Way::Cached)?;
        let mut places = Vec::with_capacity(count.saturating_add(1));
        if first == 0 {
            places.push(table);
        }
        for entry in entries.chunks_exact(width) {
            let mut field = [0; 8];
            for (to, from) in field.iter_mut().zip(entry) {
                *to = *from;
            }
            places.push(u64::from_le_bytes(field).saturating_add(table));
        }
        if end > last {
            places.push(self.stream.size());
        }
        Ok(places)
    }

    /// Decodes chunk `first` and those after it into `out`, which is as long as
    /// they are.
    fn decode(&self, volume: &Volume, first: u64, out: &mut [u8]) -> Result<()> {
        let chunk = index(self.method.chunk).max(1);
        let places = self.places(volume, first, out.len().div_ceil(chunk))?;
        let (Some(begin), Some(end)) = (places.first(), places.last()) else {
            return Ok(());
        };
        let len = end.checked_sub(*begin).map(index);
        let len = len.ok_or_else(|| self.damaged("its table goes back"))?;
        if len > out.len() {
            return Err(self.damaged("a chunk is longer than it can be"));
        }
        let mut bytes = vec![0; len];
        self.stream
            .read_content(volume, *begin, &mut bytes, Way::of_file(self.size))?;
        let mut rest = bytes.as_slice();
        let numbers = first..;
        for ((number, out), ends) in numbers.zip(out.chunks_mut(chunk)).zip(places.windows(2)) {
            patience::spend()?;
            let len = match ends {
                [begin, end] => end.checked_sub(*begin).map(index),
                _ => None,
            };
            let (packed, after) = len
                .and_then(|len| rest.split_at_checked(len))
                .ok_or_else(|| self.damaged("its table goes back"))?;
            rest = after;
            if packed.len() > out.len() {
                return Err(self.damaged("a chunk is longer than it can be"));
            }
            if packed.len() == out.len() {
                // Stored as it is.
                out.copy_from_slice(packed);
                continue;
            }
            match self.method.algorithm {
                Algorithm::Xpress => xpress_huffman::decode(packed, out),
                Algorithm::Lzx => lzx::decode(packed, out),
            }
            .ok_or_else(|| self.damaged(&format!("chunk {number} cannot be decoded")))?;
        }
        Ok(())
    }
}
