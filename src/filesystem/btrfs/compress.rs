//! The three ways in which extents are compressed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::lzo;

/// The most bytes that a compressed extent has on disk or when decoded
/// (`BTRFS_MAX_UNCOMPRESSED`), and the largest window of zstd.
pub(super) const MAX_UNIT: u64 = 128 << 10;

/// How an extent is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Method {
    Zlib,
    Lzo,
    Zstd,
}

impl Method {
    /// By its number on disk.
    pub(super) fn new(kind: u8) -> Option<Self> {
        match kind {
            1 => Some(Self::Zlib),
            2 => Some(Self::Lzo),
            3 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Decodes an extent of `len` bytes, at most [`MAX_UNIT`]; what it lacks is zero,
/// as with the kernel. `None` if it cannot be decoded.
pub(super) fn decode(method: Method, raw: &[u8], len: usize, sector: usize) -> Option<Bytes> {
    let decoded = match method {
        Method::Lzo => lzo::decode(raw, len, sector),
        // These are others' code: a panic of theirs is an extent that is damaged.
        Method::Zlib => catch_unwind(AssertUnwindSafe(|| inflate(raw, len))).ok()?,
        Method::Zstd => catch_unwind(AssertUnwindSafe(|| zstd(raw, len))).ok()?,
    };
    let mut decoded = decoded?;
    decoded.resize(len, 0);
    Some(decoded.into())
}

fn inflate(raw: &[u8], len: usize) -> Option<Vec<u8>> {
    let mut out = vec![0; len];
    let flags = inflate_flags::TINFL_FLAG_PARSE_ZLIB_HEADER
        | inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut state = Box::new(DecompressorOxide::new());
    let (status, _, written) = decompress(&mut state, raw, &mut out, 0, flags);
    let full = written == len && status == TINFLStatus::HasMoreOutput;
    out.truncate(written);
    (status == TINFLStatus::Done || full).then_some(out)
}

fn zstd(mut raw: &[u8], len: usize) -> Option<Vec<u8>> {
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(MAX_UNIT);
    decoder.reset(&mut raw).ok()?;
    let mut out = Vec::with_capacity(len);
    // Block by block, so that a small frame cannot become large.
    while !decoder.is_finished() && out.len() < len {
        decoder
            .decode_blocks(&mut raw, BlockDecodingStrategy::UptoBlocks(1))
            .ok()?;
        decoder.collect_to_writer(&mut out).ok()?;
    }
    out.truncate(len);
    Some(out)
}
