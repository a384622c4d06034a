//! Names of Windows' formats: UTF-16 on disk, bytes on Linux.
//!
//! Windows does not care whether surrogates come in pairs. Lone ones are carried as
//! three bytes each (WTF-8), so that every name has exactly one spelling and can
//! be looked up again.
#![deny(clippy::arithmetic_side_effects)]

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// The code units of a name as on disk.
pub(in crate::filesystem) fn units(name: &[u8]) -> impl Iterator<Item = u16> + '_ {
    name.chunks_exact(2)
        .filter_map(|unit| unit.first_chunk().map(|unit| u16::from_le_bytes(*unit)))
}

/// Appends a name as on disk to `out`, as WTF-8.
pub(in crate::filesystem) fn push_wtf8(name: &[u8], out: &mut Vec<u8>) {
    push_units(units(name), out);
}

/// Appends UTF-16 to `out`, as WTF-8.
pub(in crate::filesystem) fn push_units(units: impl Iterator<Item = u16>, out: &mut Vec<u8>) {
    for unit in char::decode_utf16(units) {
        match unit {
            Ok(character) => {
                let mut buf = [0; 4];
                out.extend_from_slice(character.encode_utf8(&mut buf).as_bytes());
            }
            Err(lone) => {
                let unit = lone.unpaired_surrogate();
                let low = |bits: u16| 0x80 | u8::try_from(bits & 0x3f).unwrap_or(0);
                out.extend_from_slice(&[0xed, low(unit >> 6), low(unit)]);
            }
        }
    }
}

/// A name as on disk, as WTF-8.
pub(in crate::filesystem) fn to_wtf8(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    push_wtf8(name, &mut out);
    out
}

/// The UTF-16 of WTF-8; `None` for bytes that no name is spelled with.
pub(in crate::filesystem) fn from_wtf8(bytes: &[u8]) -> Option<Vec<u16>> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    // Whether the unit before is a lone high surrogate: a lone low one after it
    // would be a pair, which is spelled otherwise.
    let mut high = false;
    loop {
        let (valid, after) = match std::str::from_utf8(rest) {
            Ok(valid) => (valid, &[][..]),
            Err(error) => {
                let (valid, after) = rest.split_at_checked(error.valid_up_to())?;
                (std::str::from_utf8(valid).ok()?, after)
            }
        };
        high &= valid.is_empty();
        out.extend(valid.encode_utf16());
        let Some((lone, after)) = after.split_first_chunk::<3>() else {
            return after.is_empty().then_some(out);
        };
        let [0xed, second @ 0xa0..=0xbf, third @ 0x80..=0xbf] = *lone else {
            return None;
        };
        let unit = 0xd000 | u16::from(second & 0x3f) << 6 | u16::from(third & 0x3f);
        let low = unit >= 0xdc00;
        if low && high {
            return None;
        }
        high = !low;
        out.push(unit);
        rest = after;
    }
}

/// UTF-16 as it is on disk.
pub(in crate::filesystem) fn on_disk(units: &[u16]) -> Vec<u8> {
    units.iter().flat_map(|unit| unit.to_le_bytes()).collect()
}

/// The table that was read last, if it is still in use.
static LAST: Mutex<Weak<UpperCase>> = Mutex::new(Weak::new());

/// The upper case of each code unit, as the volume has it (`$UpCase`).
#[derive(PartialEq, Eq)]
pub(in crate::filesystem) struct UpperCase(Vec<u16>);

impl UpperCase {
    /// Takes the content of `$UpCase`.
    pub(in crate::filesystem) fn new(table: &[u8]) -> Self {
        Self(units(table).collect())
    }

    /// One copy (of 128 KiB) for all volumes that have the same table, as nearly
    /// all do.
    pub(in crate::filesystem) fn shared(self) -> Arc<Self> {
        let mut last = LAST.lock();
        match last.upgrade() {
            Some(known) if *known == self => known,
            _ => {
                let table = Arc::new(self);
                *last = Arc::downgrade(&table);
                table
            }
        }
    }

    /// For a volume whose table cannot be read: Unicode's, which agrees with it
    /// for nearly all letters.
    pub(in crate::filesystem) fn of_unicode() -> Self {
        let upper = |unit: u16| {
            let mut upper = char::from_u32(u32::from(unit))?.to_uppercase();
            let first = upper.next().filter(|_| upper.len() == 0)?;
            u16::try_from(u32::from(first)).ok()
        };
        Self(
            (0..=u16::MAX)
                .map(|unit| upper(unit).unwrap_or(unit))
                .collect(),
        )
    }

    /// The upper case of one code unit.
    pub(in crate::filesystem) fn of(&self, unit: u16) -> u16 {
        self.0.get(usize::from(unit)).copied().unwrap_or(unit)
    }
}
