//! Whether it is worth while to compress some data, found out at small cost.
//!
//! The idea: a few stretches of it are compressed for a trial. Pictures, films and
//! archives do not shrink, whatever they are called.

use flate2::{Compress, Compression, FlushCompress, Status};

/// What is compressed to more than this share of its size is better left as it is.
const WORTHWHILE: (usize, usize) = (97, 100);
/// Fast, with codes made for the data. The level below it of zlib-rs has none, and
/// panics where the room for output ends.
const LEVEL: u32 = 2;
/// Length of a stretch, in bytes.
pub(super) const STRETCH: usize = 8 * 1024;

/// Tries data; keeps the memory that it needs.
pub(super) struct Probe {
    deflate: Compress,
    sample: Vec<u8>,
    output: Vec<u8>,
}

impl Probe {
    pub(super) fn new() -> Self {
        Self {
            deflate: Compress::new(Compression::new(LEVEL), false),
            sample: Vec::new(),
            output: Vec::new(),
        }
    }

    /// Whether data shrinks, judged by three stretches of it.
    pub(super) fn shrinks(&mut self, data: &[u8]) -> bool {
        let middle = (data.len() / 2).saturating_sub(STRETCH / 2);
        let end = data.len().saturating_sub(STRETCH);
        self.sample.clear();
        for start in [0, middle, end] {
            let rest = data.get(start..).unwrap_or_default();
            self.sample.extend(rest.iter().take(STRETCH));
        }
        self.output.clear();
        self.output.reserve(self.sample.len().saturating_mul(2));
        self.deflate.reset();
        let result =
            self.deflate
                .compress_vec(&self.sample, &mut self.output, FlushCompress::Finish);
        matches!(result, Ok(Status::StreamEnd))
            && is_worthwhile(self.output.len(), self.sample.len())
    }
}

/// Whether so many bytes are enough fewer than `size`.
pub(super) fn is_worthwhile(packed: usize, size: usize) -> bool {
    let (part, whole) = WORTHWHILE;
    packed.saturating_mul(whole) < size.saturating_mul(part)
}
