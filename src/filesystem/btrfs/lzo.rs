//! LZO as btrfs frames it, and LZO1X itself.
//!
//! An extent is a length (u32, of the whole) and then segments: a length (u32)
//! and so many bytes, which decode to a sector. A segment's length does not cross
//! the end of a sector: what is left there is skipped.
//!
//! The instructions of LZO1X are those of the Linux kernel's documentation
//! ("LZO stream format as understood by Linux's LZO decompressor").

use crate::filesystem::field::{index, slice_at, u32_at};

/// Decodes an extent to at most `len` bytes.
pub(super) fn decode(raw: &[u8], len: usize, sector: usize) -> Option<Vec<u8>> {
    let total = index(u32_at(raw, 0)?);
    let raw = raw.get(..total)?;
    let mut out = Vec::with_capacity(len);
    let mut at = 4usize;
    while at < total && out.len() < len {
        let size = index(u32_at(raw, at)?);
        at = at.checked_add(4)?;
        segment(slice_at(raw, at, size)?, &mut out, sector)?;
        at = at.checked_add(size)?;
        let left = sector.checked_sub(at.checked_rem(sector)?)?;
        if left < 4 {
            at = at.checked_add(left)?;
        }
    }
    out.truncate(len);
    Some(out)
}

/// The bytes of a segment that are still to be read.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<usize> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(usize::from(*first))
    }

    fn word(&mut self) -> Option<usize> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(usize::from(u16::from_le_bytes(*first)))
    }

    /// A length: what the instruction's bits say, or, if they are zero, all that
    /// they could say and the sum of the bytes up to the first that is not zero.
    fn length(&mut self, bits: usize, mask: usize) -> Option<usize> {
        if bits & mask != 0 {
            return Some(bits & mask);
        }
        let mut length = mask;
        loop {
            match self.byte()? {
                0 => length = length.checked_add(255)?,
                last => return length.checked_add(last),
            }
        }
    }
}

/// Appends what a segment decodes to, at most `limit` bytes.
fn segment(raw: &[u8], out: &mut Vec<u8>, limit: usize) -> Option<()> {
    /// After a run of four or more literals.
    const LONG_RUN: usize = 4;
    let start = out.len();
    let end = start.checked_add(limit)?;
    let mut input = Input(raw);
    let literals = |input: &mut Input<'_>, out: &mut Vec<u8>, n: usize| {
        let (run, rest) = input.0.split_at_checked(n)?;
        input.0 = rest;
        out.extend_from_slice(run);
        (out.len() <= end).then_some(())
    };
    // How many literals the last instruction has copied.
    let mut state = 0;
    if let Some(first) = raw.first().copied().map(usize::from).filter(|n| *n > 17) {
        input.byte()?;
        let n = first.checked_sub(17)?;
        literals(&mut input, out, n)?;
        state = n.min(LONG_RUN);
    }
    loop {
        let code = input.byte()?;
        let (length, distance, next) = match code {
            0..16 if state == 0 => {
                let n = input.length(code, 15)?.checked_add(3)?;
                literals(&mut input, out, n)?;
                state = LONG_RUN;
                continue;
            }
            0..16 => {
                let (length, least) = if state == LONG_RUN { (3, 2049) } else { (2, 1) };
                let distance = (input.byte()? << 2) | (code >> 2);
                (length, distance.checked_add(least)?, code & 3)
            }
            16..32 => {
                let length = input.length(code, 7)?.checked_add(2)?;
                let word = input.word()?;
                let distance = ((code & 8) << 11) | (word >> 2);
                if distance == 0 {
                    return Some(());
                }
                (length, distance.checked_add(1 << 14)?, word & 3)
            }
            32..64 => {
                let length = input.length(code, 31)?.checked_add(2)?;
                let word = input.word()?;
                (length, (word >> 2).checked_add(1)?, word & 3)
            }
            _ => {
                let distance = (input.byte()? << 3) | ((code >> 2) & 7);
                (
                    (code >> 5).checked_add(1)?,
                    distance.checked_add(1)?,
                    code & 3,
                )
            }
        };
        repeat(out, start, distance, length, end)?;
        literals(&mut input, out, next)?;
        state = next;
    }
}

/// Appends `length` bytes from `distance` bytes back, which may overlap.
fn repeat(
    out: &mut Vec<u8>,
    start: usize,
    distance: usize,
    length: usize,
    end: usize,
) -> Option<()> {
    let from = out.len().checked_sub(distance).filter(|at| *at >= start)?;
    if out.len().checked_add(length)? > end {
        return None;
    }
    if distance >= length {
        out.extend_from_within(from..from.checked_add(length)?);
        return Some(());
    }
    for at in from..from.checked_add(length)? {
        out.push(*out.get(at)?);
    }
    Some(())
}
