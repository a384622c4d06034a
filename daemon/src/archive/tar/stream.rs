//! The compressed stream that a tar archive is written into.
//!
//! The idea: blocks of the stream are compressed by the pool and written in their
//! order. gzip: one member, whose deflate stream is put together from the blocks, each
//! knowing the 32 KiB before it. Zstandard: a frame for each block, larger ones since a
//! frame knows nothing before it; decoders read frames in a row as one stream.

use super::super::pool::{Block, How, Pending, Pool, Underway, WINDOW};
use super::super::writer::Writer;
use super::super::{Result, Summary};

/// How a tar archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Codec {
    Gzip,
    Zstd,
}

impl Codec {
    /// Bytes that are compressed as one block.
    fn block(self) -> usize {
        match self {
            Self::Gzip => 256 * 1024,
            Self::Zstd => 1 << 20,
        }
    }
}

/// Takes plain bytes and writes compressed ones.
pub(super) struct Stream<'a> {
    writer: Writer<'a>,
    pool: &'a Pool,
    codec: Codec,
    underway: Underway<Pending>,
    /// The last bytes of the block before, and the block that is being filled.
    buffer: Vec<u8>,
    history: usize,
    /// Buffers for the next blocks.
    spare: Vec<Vec<u8>>,
    checksum: crc32fast::Hasher,
    /// Plain bytes so far.
    length: u64,
    begun: bool,
}

impl<'a> Stream<'a> {
    pub(super) fn new(writer: Writer<'a>, pool: &'a Pool, codec: Codec) -> Self {
        Self {
            writer,
            pool,
            codec,
            underway: Underway::new(pool, codec.block()),
            buffer: Vec::new(),
            history: 0,
            spare: Vec::new(),
            checksum: crc32fast::Hasher::new(),
            length: 0,
            begun: false,
        }
    }

    /// # Errors
    /// [`super::super::ArchiveError`], as all of these.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let most = self.codec.block().saturating_add(self.history);
            let space = most.saturating_sub(self.buffer.len());
            let (now, later) = bytes.split_at_checked(space).unwrap_or((bytes, &[]));
            self.buffer.extend_from_slice(now);
            self.length = self.length.saturating_add(now.len() as u64);
            bytes = later;
            if self.buffer.len() >= most {
                self.submit()?;
            }
        }
        Ok(())
    }

    /// Writes zeros up to a multiple of `unit` plain bytes.
    pub(super) fn pad(&mut self, unit: u64) -> Result<()> {
        let rest = self.length.checked_rem(unit).unwrap_or(0);
        if rest > 0 {
            let zeros = usize::try_from(unit.saturating_sub(rest)).unwrap_or(0);
            self.write(&vec![0; zeros])?;
        }
        Ok(())
    }

    /// Ends the stream.
    pub(super) fn finish(mut self, mut summary: Summary) -> Result<Summary> {
        if self.buffer.len() > self.history {
            self.submit()?;
        }
        self.begin()?;
        while self.settle()? {}
        if self.codec == Codec::Gzip {
            // A last deflate block without data; CRC and length of all.
            self.writer.write(&[3, 0])?;
            self.writer.write(&self.checksum.finalize().to_le_bytes())?;
            // Only its lower half, by the format.
            let [a, b, c, d, ..] = self.length.to_le_bytes();
            self.writer.write(&[a, b, c, d])?;
        }
        summary.written = self.writer.finish()?;
        Ok(summary)
    }

    /// Hands the block over and begins the next.
    fn submit(&mut self) -> Result<()> {
        self.begin()?;
        let how = match self.codec {
            Codec::Gzip => How::Deflate { last: false },
            Codec::Zstd => How::Zstd,
        };
        let mut next = self.spare.pop().unwrap_or_default();
        next.clear();
        next.reserve(self.codec.block().saturating_add(WINDOW));
        if self.codec == Codec::Gzip {
            let tail = self.buffer.len().saturating_sub(WINDOW);
            next.extend_from_slice(self.buffer.get(tail..).unwrap_or_default());
        }
        let history = std::mem::replace(&mut self.history, next.len());
        let buffer = std::mem::replace(&mut self.buffer, next);
        let pending = self.pool.submit(Block {
            buffer,
            history,
            how,
        });
        self.underway.push(pending, self.codec.block());
        while self.underway.is_full() {
            self.settle()?;
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        if !self.begun && self.codec == Codec::Gzip {
            // Deflate, no name, no time, made by Unix.
            self.writer.write(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3])?;
        }
        self.begun = true;
        Ok(())
    }

    /// Writes the oldest block; false if there is none.
    fn settle(&mut self) -> Result<bool> {
        let Some(pending) = self.underway.pop() else {
            return Ok(false);
        };
        let packed = pending.wait(|| self.writer.check())?;
        self.writer.write(&packed.output)?;
        self.checksum.combine(&packed.checksum);
        if self.spare.len() < 2 {
            self.spare.push(packed.buffer);
        }
        Ok(true)
    }
}
