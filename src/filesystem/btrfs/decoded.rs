//! A small cache of decoded extents, so that random reads of a compressed file
//! decode each extent once and not once a read.

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use super::extent::Unit;
use crate::error::Result;

/// Bytes that one file system keeps: at least 16 extents.
const CAPACITY: usize = 2 << 20;

/// Decoded extents by where they lie, least recently used out first.
pub(super) struct Decoded(Mutex<Units>);

struct Units {
    units: LruCache<Unit, Bytes>,
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

    /// Whether an extent is here.
    pub(super) fn has(&self, key: &Unit) -> bool {
        self.0.lock().units.contains(key)
    }

    /// An extent, by `decode` if it is not here. An error is not kept. Two
    /// readers that miss at once decode twice, which is cheaper than to wait
    /// while the lock is held.
    pub(super) fn get(&self, key: Unit, decode: impl FnOnce() -> Result<Bytes>) -> Result<Bytes> {
        if let Some(unit) = self.0.lock().units.get(&key) {
            return Ok(unit.clone());
        }
        let unit = decode()?;
        let mut kept = self.0.lock();
        kept.bytes = kept.bytes.saturating_add(unit.len());
        if let Some((_, old)) = kept.units.push(key, unit.clone()) {
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
