//! Canonical Huffman codes: the lengths alone make the code, shorter codes first
//! and among equals the lower symbol first.
#![deny(clippy::arithmetic_side_effects)]

/// Codes up to this length are found by one look into a table.
const FAST: u32 = 10;

/// The first length that is not.
const FIRST_SLOW: usize = 11;

/// The longest code that there is.
const LONGEST: usize = 16;

/// A code, ready to decode.
pub(super) struct Code {
    /// By the next [`FAST`] bits: symbol and length (5 bits), or 0.
    fast: Vec<u16>,
    /// By length: the first code, how many, and where their symbols begin.
    lengths: [(u32, u32, usize); LONGEST + 1],
    /// The symbols in the order of their codes.
    symbols: Vec<u16>,
}

impl Code {
    /// The code whose symbol `n` has the length `lengths[n]`, 0 for none. `None`
    /// if there is no such code. One without any symbols is allowed, for it may
    /// never be used.
    pub(super) fn new(lengths: &[u8]) -> Option<Self> {
        let mut counts = [0u32; LONGEST + 1];
        for len in lengths {
            let count = counts.get_mut(usize::from(*len))?;
            *count = count.saturating_add(1);
        }
        let mut by_length = [(0, 0, 0); LONGEST + 1];
        let (mut code, mut place) = (0u32, 0usize);
        let mut len = 0u32;
        for (slot, count) in by_length.iter_mut().zip(counts).skip(1) {
            len = len.saturating_add(1);
            code = code.wrapping_shl(1);
            *slot = (code, count, place);
            code = code.saturating_add(count);
            place = place.saturating_add(usize::try_from(count).ok()?);
            if code > 1u32.wrapping_shl(len) {
                return None;
            }
        }
        let mut symbols = vec![0; place];
        let mut next = by_length.map(|(_, _, place)| place);
        let mut fast = vec![0; 1 << FAST];
        for (symbol, len) in (0u16..).zip(lengths).filter(|(_, len)| **len > 0) {
            let (first, _, begin) = *by_length.get(usize::from(*len))?;
            let place = next.get_mut(usize::from(*len))?;
            *symbols.get_mut(*place)? = symbol;
            let code = first.saturating_add(u32::try_from(place.saturating_sub(begin)).ok()?);
            *place = place.saturating_add(1);
            if let Some(free) = FAST.checked_sub(u32::from(*len)) {
                let from = usize::try_from(code.wrapping_shl(free)).ok()?;
                let until = from.saturating_add(1usize.wrapping_shl(free));
                fast.get_mut(from..until)?
                    .fill(symbol << 5 | u16::from(*len));
            }
        }
        Some(Self {
            fast,
            lengths: by_length,
            symbols,
        })
    }

    /// The symbol that the next bits stand for, and how many of them. `None` for
    /// bits that are no code.
    pub(super) fn find(&self, bits: u32) -> Option<(u16, u32)> {
        let short = *self.fast.get(usize::try_from(bits >> (32 - FAST)).ok()?)?;
        if short != 0 {
            return Some((short >> 5, u32::from(short & 0x1f)));
        }
        let mut len = FAST;
        for (first, count, place) in self.lengths.iter().skip(FIRST_SLOW) {
            len = len.saturating_add(1);
            let nth = bits
                .wrapping_shr(32u32.saturating_sub(len))
                .wrapping_sub(*first);
            if nth < *count {
                let place = place.saturating_add(usize::try_from(nth).ok()?);
                return self.symbols.get(place).map(|symbol| (*symbol, len));
            }
        }
        None
    }
}
