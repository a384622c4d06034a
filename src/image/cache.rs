//! One bounded cache of metadata blocks for all disks.
//!
//! Parsers read a few bytes here and a few there; every one of those reads would
//! be a round trip to `qemu-nbd`. So blocks are fetched in pages of
//! [`PAGE`] bytes (a qcow2 cluster) and kept, least recently used out first. A
//! page that several readers miss at once is fetched once; a reader that moves
//! forward, or that says what it will need, has the next pages fetched behind its
//! back, neighbours by one request. The data of large files does not pass through
//! here.
//!
//! Every page asked for is a turn of [`patience`]: work that must not wait stops
//! at the first page that is missing, and no work goes on for ever.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use lru::LruCache;
use parking_lot::{Condvar, Mutex};

use super::Export;
use super::patience;
use crate::error::{Error, Result};

/// Bytes per cached page: the default cluster of qcow2, so that one page is one
/// stretch of the image file.
pub const PAGE: u64 = 64 * 1024;

/// Pages fetched ahead of a reader that moves forward.
const READ_AHEAD: u64 = 4;

/// Pages fetched ahead of one that has moved forward for longer, or that has said
/// what it will need.
const FAR_AHEAD: u64 = 16;

/// Locks by which the cache is divided; a power of two.
const SHARDS: usize = 8;

/// A page that is on its way.
#[derive(Default)]
struct Fill {
    outcome: Mutex<Option<Result<Bytes>>>,
    arrived: Condvar,
}

impl Fill {
    fn wait(&self) -> Result<Bytes> {
        let mut outcome = self.outcome.lock();
        loop {
            if let Some(result) = outcome.as_ref() {
                return result.clone();
            }
            // An export answers every request in bounded time, so this ends.
            self.arrived.wait(&mut outcome);
        }
    }
}

enum Slot {
    Ready(Bytes),
    Pending(Arc<Fill>),
}

/// What a page look-up found.
enum Found {
    Ready(Bytes),
    Pending(Arc<Fill>),
    /// Missing; this reader has to start the fetch.
    Missing(Arc<Fill>),
}

/// Disk id and page number.
type Key = (u64, u64);
type Shard = Mutex<LruCache<Key, Slot>>;

/// How the cache is doing.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
pub struct CacheFigures {
    /// Bytes it may hold.
    pub capacity: u64,
    /// Bytes it holds.
    pub bytes: u64,
    /// Pages found.
    pub hits: u64,
    /// Pages fetched.
    pub misses: u64,
    /// Pages fetched ahead.
    pub read_ahead: u64,
}

/// The cache. One for all disks; a disk is told by its id, which stands for
/// content that never changes.
pub struct BlockCache {
    shards: [Shard; SHARDS],
    pages_per_shard: usize,
    hits: AtomicU64,
    misses: AtomicU64,
    read_ahead: AtomicU64,
}

impl BlockCache {
    /// A cache of at most `capacity` bytes (at least a page for each shard).
    pub fn new(capacity: u64) -> Arc<Self> {
        let pages = usize::try_from(capacity / PAGE).unwrap_or(usize::MAX);
        let per_shard = NonZeroUsize::new(pages / SHARDS).unwrap_or(NonZeroUsize::MIN);
        Arc::new(Self {
            // The map grows as pages come; it does not start at its full size.
            shards: std::array::from_fn(|_| Mutex::new(LruCache::unbounded())),
            pages_per_shard: per_shard.get(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            read_ahead: AtomicU64::new(0),
        })
    }

    /// Counters and fill level.
    pub fn figures(&self) -> CacheFigures {
        let pages: usize = self.shards.iter().map(|shard| shard.lock().len()).sum();
        CacheFigures {
            capacity: (self.pages_per_shard as u64)
                .saturating_mul(SHARDS as u64)
                .saturating_mul(PAGE),
            bytes: (pages as u64).saturating_mul(PAGE),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            read_ahead: self.read_ahead.load(Ordering::Relaxed),
        }
    }

    /// Drops all pages of a disk.
    pub fn forget(&self, disk: u64) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let keys: Vec<Key> = shard
                .iter()
                .map(|(key, _)| *key)
                .filter(|key| key.0 == disk)
                .collect();
            for key in keys {
                shard.pop(&key);
            }
        }
    }

    /// Fills `buf` from byte `offset` of `export`, whose disk id is `disk`. The
    /// range must lie on the disk.
    ///
    /// # Errors
    /// What the export says; [`Error::WouldWait`] where the thread must not wait.
    pub fn read(
        self: &Arc<Self>,
        disk: u64,
        export: &Export,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let mut rest = buf;
        let mut at = offset;
        while !rest.is_empty() {
            let page = at / PAGE;
            let bytes = self.page(disk, export, page)?;
            let within = usize::try_from(at % PAGE).unwrap_or(0);
            let available = bytes.get(within..).unwrap_or_default();
            let n = available.len().min(rest.len());
            let (Some(source), Some((target, remaining))) = (
                available.get(..n).filter(|_| n > 0),
                rest.split_at_mut_checked(n),
            ) else {
                return Err(Error::corrupt(
                    format!("disk {disk}"),
                    format!("nothing to read at byte {at}"),
                ));
            };
            target.copy_from_slice(source);
            rest = remaining;
            at = at.saturating_add(n as u64);
        }
        Ok(())
    }

    fn page(self: &Arc<Self>, disk: u64, export: &Export, page: u64) -> Result<Bytes> {
        patience::spend()?;
        let fill = match self.find((disk, page))? {
            Found::Ready(bytes) => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(bytes);
            }
            Found::Pending(fill) => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                patience::may_wait()?;
                if let Ok(bytes) = fill.wait() {
                    return Ok(bytes);
                }
                // It failed together with its neighbours; alone it may be had.
                match self.find((disk, page))? {
                    Found::Ready(bytes) => return Ok(bytes),
                    Found::Pending(fill) => fill,
                    Found::Missing(fill) => {
                        self.fetch(disk, export, page, vec![Arc::clone(&fill)]);
                        fill
                    }
                }
            }
            Found::Missing(fill) => {
                self.misses.fetch_add(1, Ordering::Relaxed);
                self.fetch(disk, export, page, vec![Arc::clone(&fill)]);
                let behind = (1..=READ_AHEAD.saturating_add(1))
                    .map_while(|n| page.checked_sub(n))
                    .take_while(|page| self.holds((disk, *page)));
                let ahead = match behind.count() as u64 {
                    0 => 0,
                    1..=READ_AHEAD => READ_AHEAD,
                    _ => self.far_ahead(),
                };
                self.fetch_ahead(disk, export, page.saturating_add(1), ahead);
                fill
            }
        };
        fill.wait()
    }

    /// Fetches what is missing of `offset..offset + len`, or of its beginning if
    /// that is much, unless this thread must not wait: sending may take a moment.
    pub fn will_need(self: &Arc<Self>, disk: u64, export: &Export, offset: u64, len: u64) {
        if len == 0 || !patience::is_patient() {
            return;
        }
        let first = offset / PAGE;
        let pages = offset
            .saturating_add(len)
            .div_ceil(PAGE)
            .saturating_sub(first);
        self.fetch_ahead(disk, export, first, pages.min(self.far_ahead()));
    }

    /// The most pages that are fetched ahead: no more than a quarter of the cache,
    /// or they would drive each other out.
    fn far_ahead(&self) -> u64 {
        let quarter = (self.pages_per_shard as u64).saturating_mul(SHARDS as u64) / 4;
        quarter.min(FAR_AHEAD)
    }

    /// Fetches what is missing of `pages` pages from `first` on.
    fn fetch_ahead(self: &Arc<Self>, disk: u64, export: &Export, first: u64, pages: u64) {
        let end = export.size().div_ceil(PAGE);
        let mut fills = Vec::new();
        let mut start = first;
        for page in first..first.saturating_add(pages).min(end) {
            if let Ok(Found::Missing(fill)) = self.find((disk, page)) {
                self.read_ahead.fetch_add(1, Ordering::Relaxed);
                if fills.is_empty() {
                    start = page;
                }
                fills.push(fill);
            } else {
                self.fetch(disk, export, start, std::mem::take(&mut fills));
            }
        }
        self.fetch(disk, export, start, fills);
    }

    /// Asks the export for the pages from `first` on, whose slots are already
    /// pending, by one request.
    fn fetch(self: &Arc<Self>, disk: u64, export: &Export, first: u64, fills: Vec<Arc<Fill>>) {
        let start = first.saturating_mul(PAGE);
        let len = PAGE.saturating_mul(fills.len() as u64);
        let len = export.size().saturating_sub(start).min(len);
        if len == 0 {
            return;
        }
        let buf = BytesMut::zeroed(usize::try_from(len).unwrap_or(0));
        let cache = Arc::clone(self);
        let done = move |outcome: Result<BytesMut>| {
            let outcome = outcome.map(BytesMut::freeze);
            // Each page of several is a copy: a part would keep the whole alive.
            let alone = fills.len() == 1;
            for (n, (page, fill)) in (first..).zip(&fills).enumerate() {
                let bytes = outcome.clone().map(|bytes| {
                    let begin = n.saturating_mul(PAGE as usize).min(bytes.len());
                    let end = begin.saturating_add(PAGE as usize).min(bytes.len());
                    match alone {
                        true => bytes,
                        false => Bytes::copy_from_slice(&bytes.slice(begin..end)),
                    }
                });
                cache.arrived((disk, page), fill, bytes);
            }
        };
        export.submit(start, buf, Box::new(done));
    }

    fn arrived(&self, key: Key, fill: &Arc<Fill>, outcome: Result<Bytes>) {
        {
            let mut shard = self.shard(key).lock();
            // The slot may have been dropped or filled anew meanwhile.
            let ours = matches!(shard.peek(&key), Some(Slot::Pending(f)) if Arc::ptr_eq(f, fill));
            if ours {
                match &outcome {
                    Ok(bytes) => drop(shard.put(key, Slot::Ready(bytes.clone()))),
                    Err(_) => drop(shard.pop(&key)),
                }
            }
        }
        *fill.outcome.lock() = Some(outcome);
        fill.arrived.notify_all();
    }

    /// Looks for a page; one that is missing becomes pending.
    fn find(&self, key: Key) -> Result<Found> {
        let mut shard = self.shard(key).lock();
        match shard.get(&key) {
            Some(Slot::Ready(bytes)) => return Ok(Found::Ready(bytes.clone())),
            Some(Slot::Pending(fill)) => return Ok(Found::Pending(Arc::clone(fill))),
            None => patience::may_wait()?,
        }
        let fill = Arc::new(Fill::default());
        shard.put(key, Slot::Pending(Arc::clone(&fill)));
        while shard.len() > self.pages_per_shard {
            shard.pop_lru();
        }
        Ok(Found::Missing(fill))
    }

    fn holds(&self, key: Key) -> bool {
        self.shard(key).lock().contains(&key)
    }

    fn shard(&self, (disk, page): Key) -> &Shard {
        // Neighbouring pages go to different locks.
        let index = page.wrapping_add(disk.wrapping_mul(0x9E37_79B9)) as usize % SHARDS;
        let [first, ..] = &self.shards;
        self.shards.get(index).unwrap_or(first)
    }
}
