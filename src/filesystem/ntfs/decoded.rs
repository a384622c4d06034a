//! A small cache of decoded compression units, so that random reads of a
//! compressed file decode each unit once and not once a read.
#![deny(clippy::arithmetic_side_effects)]

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use crate::error::Result;

/// Bytes that one file system keeps.
const CAPACITY: usize = 2 << 20;

/// Decoded units by inode and number, least recently used out first.
pub(super) struct Decoded(Mutex<Units>);

struct Units {
    units: LruCache<(u64, u64), Bytes>,
    bytes: usize,
}

impl Decoded {
    /// An empty cache.
    pub(super) fn new() -> Self {
        Self(Mutex::new(Units {
            units: LruCache::unbounded(),
            bytes: 0,
        }))
    }

    /// Unit `number` of inode `ino`, by `decode` if it is not here. An error is
    /// not kept. Two readers that miss at once decode twice, which is cheaper
    /// than to wait while the lock is held.
    pub(super) fn get(
        &self,
        ino: u64,
        number: u64,
        decode: impl FnOnce() -> Result<Bytes>,
    ) -> Result<Bytes> {
        if let Some(unit) = self.0.lock().units.get(&(ino, number)) {
            return Ok(unit.clone());
        }
        let unit = decode()?;
        let mut kept = self.0.lock();
        kept.bytes = kept.bytes.saturating_add(unit.len());
        if let Some((_, old)) = kept.units.push((ino, number), unit.clone()) {
            kept.bytes = kept.bytes.saturating_sub(old.len());
        }
        while kept.bytes > CAPACITY {
            let Some((_, old)) = kept.units.pop_lru() else {
                break;
            };
            kept.bytes = kept.bytes.saturating_sub(old.len());
        }
        Ok(unit)
    }
}

/// Fills `to` with the bytes of a decoded unit from `skip` on.
pub(super) fn copy_part(unit: &[u8], skip: usize, to: &mut [u8]) {
    let from = unit
        .get(skip..skip.saturating_add(to.len()))
        .unwrap_or_default();
    if from.len() == to.len() {
        to.copy_from_slice(from);
    }
}
