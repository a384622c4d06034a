//! XPRESS with Huffman codes ([MS-XCA] 2.1), as files compacted by Windows use
//! it: one chunk, which has its own code.
//!
//! A chunk begins with the lengths of 512 codes, four bits each. Symbols below
//! 256 are literals; of the others, four bits are the length of a reference back
//! and four say how many bits of the distance follow.
#![deny(clippy::arithmetic_side_effects)]

use super::bits::Bits;
use super::compress::copy_back;
use super::huffman::Code;

/// Bytes of the table of code lengths.
const TABLE: usize = 256;

/// Decodes a chunk; fills `out`. `None` if it is damaged.
pub(super) fn decode(packed: &[u8], out: &mut [u8]) -> Option<()> {
    let (table, rest) = packed.split_at_checked(TABLE)?;
    let mut lengths = [0; 512];
    for (pair, byte) in lengths.chunks_exact_mut(2).zip(table) {
        pair.copy_from_slice(&[byte & 0xf, byte >> 4]);
    }
    let code = Code::new(&lengths)?;
    let mut bits = Bits::new(rest);
    // Lengths stand as bytes behind the bits fetched so far, so the decoder must
    // be as far ahead as the encoder was: by 16 bits at each step.
    bits.ensure(16);
    let mut at = 0usize;
    while at < out.len() {
        let (symbol, len) = code.find(bits.bits)?;
        bits.skip(len);
        bits.ensure(16);
        let Some(reference) = symbol.checked_sub(256) else {
            *out.get_mut(at)? = u8::try_from(symbol).ok()?;
            at = at.checked_add(1)?;
            continue;
        };
        let mut len = usize::from(reference & 0xf);
        if len == 15 {
            len = usize::from(bits.byte()?).checked_add(15)?;
            if len == 15 + 255 {
                len = usize::from(bits.u16()?);
                if len == 0 {
                    len = usize::try_from(bits.u32()?).ok()?;
                }
                if len < 15 {
                    return None;
                }
            }
        }
        let width = u32::from(reference >> 4);
        let low = usize::try_from(bits.take(width)).ok()?;
        bits.ensure(16);
        let back = 1usize.checked_shl(width)?.checked_add(low)?;
        at = copy_back(out, at, back, len.checked_add(3)?)?;
    }
    Some(())
}
