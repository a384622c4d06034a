//! The bit stream that XPRESS and LZX share: units of 16 bits, little-endian,
//! read from the highest bit down.
#![deny(clippy::arithmetic_side_effects)]

use crate::filesystem::field::{u16_at, u32_at};

/// Bits still to be read, and the bytes behind them.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    /// The next bits, from the highest down; zeros below.
    pub(super) bits: u32,
    count: u32,
}

impl<'a> Bits<'a> {
    /// The stream that begins with `data`; nothing is fetched yet.
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self {
            data,
            at: 0,
            bits: 0,
            count: 0,
        }
    }

    /// Fetches 16 bits; past the end they are zeros.
    fn fetch(&mut self) {
        let unit = u32::from(u16_at(self.data, self.at).unwrap_or(0));
        self.at = self.at.saturating_add(2);
        self.bits |= unit.wrapping_shl(16u32.saturating_sub(self.count));
        self.count = self.count.saturating_add(16);
    }

    /// Makes sure that `count` bits are there, 17 at most.
    pub(super) fn ensure(&mut self, count: u32) {
        while self.count < count {
            self.fetch();
        }
    }

    /// Goes on by `count` bits that are there.
    pub(super) fn skip(&mut self, count: u32) {
        self.bits = self.bits.wrapping_shl(count);
        self.count = self.count.saturating_sub(count);
    }

    /// Takes `count` bits that are there, 17 at most.
    pub(super) fn take(&mut self, count: u32) -> u32 {
        let bits = self
            .bits
            .checked_shr(32u32.saturating_sub(count))
            .unwrap_or(0);
        self.skip(count);
        bits
    }

    /// Makes sure of `count` bits, 17 at most, and takes them.
    pub(super) fn read(&mut self, count: u32) -> u32 {
        self.ensure(count);
        self.take(count)
    }

    /// The next byte behind the bits that were fetched.
    pub(super) fn byte(&mut self) -> Option<u8> {
        let byte = self.data.get(self.at).copied()?;
        self.at = self.at.saturating_add(1);
        Some(byte)
    }

    /// Two bytes behind the bits that were fetched.
    pub(super) fn u16(&mut self) -> Option<u16> {
        let value = u16_at(self.data, self.at)?;
        self.at = self.at.saturating_add(2);
        Some(value)
    }

    /// Four bytes behind the bits that were fetched.
    pub(super) fn u32(&mut self) -> Option<u32> {
        let value = u32_at(self.data, self.at)?;
        self.at = self.at.saturating_add(4);
        Some(value)
    }

    /// `len` bytes behind the bits that were fetched.
    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let bytes = self.data.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    /// Drops the rest of the unit under way (a whole one if none is), and gives
    /// back what was fetched beyond it.
    pub(super) fn align(&mut self) {
        self.ensure(1);
        let ahead = self.count.saturating_sub(1) / 16;
        self.at = self
            .at
            .saturating_sub(usize::try_from(ahead).unwrap_or(0).saturating_mul(2));
        self.bits = 0;
        self.count = 0;
    }
}
