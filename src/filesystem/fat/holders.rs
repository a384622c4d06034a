//! Which folder a cluster of entries belongs to.
//!
//! No entry says in which folder it stands, so whoever asks for the parent of a
//! folder would have to search. Nearly always the entry was come upon by going
//! through its folder; then the answer is still here.

use lru::LruCache;
use parking_lot::Mutex;

/// How many clusters are remembered; about 1 MiB.
const KEPT: usize = 16 << 10;

/// The inode numbers of folders, by the clusters that hold their entries.
pub(super) struct Holders(Mutex<LruCache<u32, u64>>);

impl Holders {
    pub(super) fn new() -> Self {
        // The map grows as folders come; it does not start at its full size.
        Self(Mutex::new(LruCache::unbounded()))
    }

    pub(super) fn note(&self, cluster: u32, folder: u64) {
        let mut holders = self.0.lock();
        holders.put(cluster, folder);
        while holders.len() > KEPT {
            holders.pop_lru();
        }
    }

    pub(super) fn get(&self, cluster: u32) -> Option<u64> {
        self.0.lock().get(&cluster).copied()
    }
}
