//! LZX with a window of 32 KiB, as files compacted by Windows (and WIM archives)
//! use it: one chunk, decoded by itself.
//!
//! A chunk is made of blocks, each with its own codes: one for literals and the
//! heads of references (length and order of magnitude of the distance), one for
//! long lengths, and in "aligned" blocks one for the low three bits of
//! distances. The last three distances can be used again. The targets of x86
//! calls were made absolute before compression and are made relative again.
#![deny(clippy::arithmetic_side_effects)]

use super::bits::Bits;
use super::compress::copy_back;
use super::huffman::Code;
use crate::filesystem::field::u32_at;

/// Orders of magnitude of distances in a window of 32 KiB.
const SLOTS: usize = 30;
/// Symbols of the main code: literals, and 8 lengths for each slot.
const MAIN: usize = 256 + 8 * SLOTS;
/// Symbols of the code for long lengths.
const LONG: usize = 249;
/// Bytes of a block that does not tell its size.
const BLOCK: u32 = 32768;
/// The size of file that the translation of calls assumes.
const CALL_SPAN: i32 = 12_000_000;

/// Decodes a chunk; fills `out`. `None` if it is damaged.
pub(super) fn decode(packed: &[u8], out: &mut [u8]) -> Option<()> {
    let mut bits = Bits::new(packed);
    let mut main = [0; MAIN];
    let mut long = [0; LONG];
    let mut recent = [1usize; 3];
    let mut at = 0usize;
    while at < out.len() {
        let kind = bits.read(3);
        let size = if bits.read(1) == 1 {
            BLOCK
        } else {
            bits.read(16)
        };
        let end = at.checked_add(usize::try_from(size).ok()?)?;
        let block = out.get_mut(..end).filter(|_| size > 0)?;
        match kind {
            1 | 2 => {
                let aligned = if kind == 2 {
                    Some(read_aligned(&mut bits)?)
                } else {
                    None
                };
                let (literals, heads) = main.split_at_mut(256);
                read_lengths(&mut bits, literals)?;
                read_lengths(&mut bits, heads)?;
                read_lengths(&mut bits, &mut long)?;
                let codes = Codes {
                    main: Code::new(&main)?,
                    long: Code::new(&long)?,
                    aligned,
                };
                at = codes.decode(&mut bits, &mut recent, block, at)?;
            }
            3 => {
                bits.align();
                for distance in &mut recent {
                    *distance = usize::try_from(bits.u32()?).ok()?;
                }
                let bytes = bits.bytes(block.len().checked_sub(at)?)?;
                block.get_mut(at..)?.copy_from_slice(bytes);
                if size & 1 == 1 {
                    // Absent if this is the last block.
                    let _ = bits.byte();
                }
                at = end;
            }
            _ => return None,
        }
    }
    restore_calls(out);
    Some(())
}

fn symbol(bits: &mut Bits<'_>, code: &Code) -> Option<u16> {
    bits.ensure(16);
    let (symbol, len) = code.find(bits.bits)?;
    bits.skip(len);
    Some(symbol)
}

fn read_aligned(bits: &mut Bits<'_>) -> Option<Code> {
    let mut lengths = [0; 8];
    for len in &mut lengths {
        *len = u8::try_from(bits.read(3)).ok()?;
    }
    Code::new(&lengths)
}

/// Reads code lengths, which are told by their difference to the block before.
fn read_lengths(bits: &mut Bits<'_>, lengths: &mut [u8]) -> Option<()> {
    let mut pre = [0; 20];
    for len in &mut pre {
        *len = u8::try_from(bits.read(4)).ok()?;
    }
    let code = Code::new(&pre)?;
    let differ = |old: u8, by: u16| {
        let new = u16::from(old).checked_add(17)?.checked_sub(by)?;
        u8::try_from(new % 17).ok()
    };
    let mut at = 0usize;
    while let Some(&old) = lengths.get(at) {
        let (value, run) = match symbol(bits, &code)? {
            by @ 0..=16 => (differ(old, by)?, 1),
            17 => (0, bits.read(4).checked_add(4)?),
            18 => (0, bits.read(5).checked_add(20)?),
            _ => {
                let run = bits.read(1).checked_add(4)?;
                let by = symbol(bits, &code).filter(|by| *by <= 16)?;
                (differ(old, by)?, run)
            }
        };
        let end = at
            .checked_add(usize::try_from(run).ok()?)?
            .min(lengths.len());
        lengths.get_mut(at..end)?.fill(value);
        at = end;
    }
    Some(())
}

/// The codes of a block.
struct Codes {
    main: Code,
    long: Code,
    aligned: Option<Code>,
}

impl Codes {
    /// Fills `out` from `at`, and answers its end.
    fn decode(
        &self,
        bits: &mut Bits<'_>,
        recent: &mut [usize; 3],
        out: &mut [u8],
        mut at: usize,
    ) -> Option<usize> {
        while at < out.len() {
            let main = symbol(bits, &self.main)?;
            let Some(head) = main.checked_sub(256) else {
                *out.get_mut(at)? = u8::try_from(main).ok()?;
                at = at.checked_add(1)?;
                continue;
            };
            let mut len = usize::from(head & 7).checked_add(2)?;
            if head & 7 == 7 {
                len = len.checked_add(usize::from(symbol(bits, &self.long)?))?;
            }
            let slot = head >> 3;
            let back = match slot {
                0..=2 => {
                    recent.swap(0, usize::from(slot));
                    *recent.first()?
                }
                _ => {
                    let distance = self.distance(bits, slot)?;
                    *recent = [distance, *recent.first()?, *recent.get(1)?];
                    distance
                }
            };
            at = copy_back(out, at, back, len)?;
        }
        Some(at)
    }

    fn distance(&self, bits: &mut Bits<'_>, slot: u16) -> Option<usize> {
        let width = u32::from(slot >> 1).saturating_sub(1);
        let base = match slot {
            3 => 3,
            _ => (2 | u32::from(slot & 1)).checked_shl(width)?,
        };
        let low = match &self.aligned {
            Some(aligned) if width >= 3 => {
                let high = bits.read(width.checked_sub(3)?);
                high.checked_shl(3)? | u32::from(symbol(bits, aligned)?)
            }
            _ => bits.read(width),
        };
        usize::try_from(base.checked_add(low)?.checked_sub(2)?).ok()
    }
}

/// Makes the targets of x86 calls relative again.
fn restore_calls(out: &mut [u8]) {
    let Some(end) = out.len().checked_sub(10) else {
        return;
    };
    let mut at = 0usize;
    while at < end {
        let Some(next) = out
            .get(at..end)
            .and_then(|rest| rest.iter().position(|b| *b == 0xe8))
        else {
            return;
        };
        at = at.saturating_add(next);
        let place = i32::try_from(at).unwrap_or(i32::MAX);
        let field = at.saturating_add(1);
        let target = u32_at(out, field).unwrap_or(0).cast_signed();
        let relative = if (0..CALL_SPAN).contains(&target) {
            target.checked_sub(place)
        } else if target < 0 && target >= place.saturating_neg() {
            target.checked_add(CALL_SPAN)
        } else {
            None
        };
        if let Some(relative) = relative
            && let Some(bytes) = out.get_mut(field..field.saturating_add(4))
        {
            bytes.copy_from_slice(&relative.to_le_bytes());
        }
        at = at.saturating_add(5);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// wimlib never writes blocks that are not compressed; Windows does.
    #[test]
    fn blocks_that_are_not_compressed() {
        let mut packed = Vec::new();
        let mut plain = Vec::new();
        for size in [7u32, 100, 33, 1] {
            // Kind 3, then the size; the next 16 bits are reached in the middle.
            let head = 3 << 29 | size << 12;
            packed.extend((head >> 16 & 0xffff_u32).to_le_bytes().get(..2).unwrap());
            packed.extend((head & 0xffff_u32).to_le_bytes().get(..2).unwrap());
            for distance in [1u32, 2, 3] {
                packed.extend(distance.to_le_bytes());
            }
            let bytes: Vec<u8> = (0..size).map(|n| (n * size % 200) as u8).collect();
            packed.extend(&bytes);
            if size % 2 == 1 {
                packed.push(0);
            }
            plain.extend(bytes);
        }
        let mut out = vec![0; plain.len()];
        decode(&packed, &mut out).unwrap();
        assert_eq!(out, plain);
    }
}
