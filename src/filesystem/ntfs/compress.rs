//! LZNT1, the compression of NTFS ([MS-XCA] 2.5): chunks of 4 KiB, each with a
//! head of two bytes, each decoded by itself.
//!
//! In a chunk, a byte of eight flags says of the eight things after it whether
//! each is a literal or a reference back: how far and how long share 16 bits, and
//! the further into the chunk, the more of them say how far.
#![deny(clippy::arithmetic_side_effects)]

use crate::filesystem::field::{index, u16_at};

/// Bytes that a chunk decodes to.
const CHUNK: usize = 4096;

/// Decodes `packed` into `out`; what the data does not reach becomes zeros.
/// `None` if it is damaged.
pub(super) fn decode(packed: &[u8], out: &mut [u8]) -> Option<()> {
    let mut rest = packed;
    for out in out.chunks_mut(CHUNK) {
        let head = u16_at(rest, 0).unwrap_or(0);
        if head == 0 {
            rest = &[];
            out.fill(0);
            continue;
        }
        let len = index(head & 0xfff).saturating_add(1);
        let (chunk, after) = rest.get(2..)?.split_at_checked(len)?;
        rest = after;
        let filled = if head & 0x8000 == 0 {
            let len = len.min(out.len());
            out.get_mut(..len)?.copy_from_slice(chunk.get(..len)?);
            len
        } else {
            decode_chunk(chunk, out)?
        };
        out.get_mut(filled..)?.fill(0);
    }
    Some(())
}

fn decode_chunk(chunk: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut rest = chunk;
    let mut at = 0usize;
    while let Some((&flags, after)) = rest.split_first() {
        rest = after;
        if flags == 0 && rest.len() >= 8 && out.len().saturating_sub(at) >= 8 {
            // Eight literals at once: what data that hardly compresses is made of.
            let (literals, after) = rest.split_at_checked(8)?;
            let end = at.checked_add(8)?;
            out.get_mut(at..end)?.copy_from_slice(literals);
            (rest, at) = (after, end);
            continue;
        }
        let mut flags = flags;
        for _ in 0..8 {
            let Some((&literal, after)) = rest.split_first() else {
                break;
            };
            if at >= out.len() {
                return Some(at);
            }
            if flags & 1 == 0 {
                *out.get_mut(at)? = literal;
                at = at.checked_add(1)?;
                rest = after;
            } else {
                let token = usize::from(u16_at(rest, 0)?);
                rest = rest.get(2..)?;
                // Bits that say how far: enough to reach the chunk's beginning.
                let width = usize::BITS
                    .saturating_sub(at.checked_sub(1)?.leading_zeros())
                    .max(4);
                let split = 16u32.checked_sub(width)?;
                let back = token.checked_shr(split)?.checked_add(1)?;
                let mask = 1usize.checked_shl(split)?.checked_sub(1)?;
                let len = (token & mask).checked_add(3)?;
                at = copy_back(out, at, back, len)?;
            }
            flags >>= 1;
        }
    }
    Some(at)
}

/// Copies `len` bytes from `back` before `at` to `at`, cut at the end of `out`;
/// where the two overlap, bytes just written are read again. Answers the new
/// position; `None` if it reaches back too far.
pub(super) fn copy_back(out: &mut [u8], at: usize, back: usize, len: usize) -> Option<usize> {
    let from = at.checked_sub(back)?;
    let end = at.checked_add(len)?.min(out.len());
    if back == 0 {
        return None;
    }
    if at.checked_add(len)? <= out.len() && back >= len {
        out.copy_within(from..from.checked_add(len)?, at);
        return Some(end);
    }
    // What was written doubles with each step.
    let mut at = at;
    while at < end {
        let len = at.checked_sub(from)?.min(end.checked_sub(at)?);
        out.copy_within(from..from.checked_add(len)?, at);
        at = at.checked_add(len)?;
    }
    Some(end)
}
