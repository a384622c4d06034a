//! Attached disks: slots, who gets one, and who has to go.
//!
//! The idea: a slot is a resource and not a lock. The table gives out
//! [`AttachedDisk`]s by reference count; each holds its slot until the last
//! operation on it has ended, whether or not the table still has it. So letting
//! a disk go is nothing but forgetting it, and a reader that comes back attaches
//! it again without noticing.
//!
//! A disk whose volumes lie on several disks of its backup opens those itself and
//! has one slot all the same: it never waits for another disk's, and two that need
//! each other do not meet.
//!
//! The first look-ups of a disk share one attempt; attempts for different disks
//! share nothing but the table, whose lock is never held while anything waits.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;
use parking_lot::{Condvar, Mutex, RwLock};
use sendense::catalog::{Catalog, DiskRecord};
use sendense::filesystem;
use sendense::image::patience::may_wait;
use sendense::image::{BlockCache, ExportOptions, chain};
use sendense::tree::{AttachedDisk, Attachments};
use sendense::{Error, Result};

/// Disks whose last failure is remembered.
const REMEMBERED_ERRORS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);

/// How often an attempt that waits for a slot looks again.
const RECONSIDER: Duration = Duration::from_millis(20);

/// What may be set from outside.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Disks attached at once.
    pub(crate) slots: usize,
    /// How long a disk stays attached without use.
    pub(crate) idle_timeout: Duration,
    /// How long an attempt may wait for a slot.
    pub(crate) slot_timeout: Duration,
}

/// Counters since the start.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) attaches: AtomicU64,
    pub(crate) evictions: AtomicU64,
    pub(crate) failures: AtomicU64,
    /// Reads of file data on disks that were let go.
    pub(crate) reads: AtomicU64,
    /// Their bytes.
    pub(crate) bytes: AtomicU64,
}

/// The table of attached disks.
pub(crate) struct Slots {
    catalog: Arc<Catalog>,
    cache: Arc<BlockCache>,
    export: ExportOptions,
    guest: filesystem::Options,
    limits: Limits,
    table: RwLock<HashMap<u64, Entry>>,
    permits: Arc<Permits>,
    errors: Mutex<LruCache<u64, Error>>,
    totals: Totals,
    started: Instant,
}

#[derive(Clone)]
enum Entry {
    Attached(Arc<Seat>),
    Attaching(Arc<Attempt>),
}

/// An attached disk in the table.
pub(crate) struct Seat {
    pub(crate) disk: Arc<AttachedDisk>,
    pub(crate) since: SystemTime,
    /// Milliseconds after the table was made.
    last_used: AtomicU64,
}

/// An attempt to attach that several may wait for.
#[derive(Default)]
struct Attempt {
    outcome: Mutex<Option<Result<Arc<AttachedDisk>>>>,
    over: Condvar,
}

impl Attempt {
    /// Waits for the outcome. The attempt itself may hang for longer than its own
    /// time-outs, where the repository hangs.
    fn wait(&self, id: u64, limit: Duration) -> Result<Arc<AttachedDisk>> {
        let mut outcome = self.outcome.lock();
        self.over
            .wait_while_for(&mut outcome, |outcome| outcome.is_none(), limit);
        outcome.clone().unwrap_or_else(|| {
            Err(Error::TimedOut {
                what: format!("attaching disk {id}"),
                after: limit,
            })
        })
    }

    fn end(&self, result: Result<Arc<AttachedDisk>>) {
        *self.outcome.lock() = Some(result);
        self.over.notify_all();
    }
}

/// The slots, given out in the order in which they were asked for.
struct Permits {
    state: Mutex<PermitState>,
    changed: Condvar,
}

#[derive(Default)]
struct PermitState {
    taken: usize,
    /// Who waits; the first is next.
    queue: VecDeque<u64>,
    last_ticket: u64,
}

/// A slot, given back when dropped.
struct Permit(Arc<Permits>);

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.taken = state.taken.saturating_sub(1);
        self.0.changed.notify_all();
    }
}

impl Slots {
    pub(crate) fn new(
        catalog: Arc<Catalog>,
        cache: Arc<BlockCache>,
        export: ExportOptions,
        guest: filesystem::Options,
        limits: Limits,
    ) -> Arc<Self> {
        Arc::new(Self {
            catalog,
            cache,
            export,
            guest,
            limits,
            table: RwLock::default(),
            permits: Arc::new(Permits {
                state: Mutex::default(),
                changed: Condvar::new(),
            }),
            errors: Mutex::new(LruCache::new(REMEMBERED_ERRORS)),
            totals: Totals::default(),
            started: Instant::now(),
        })
    }

    /// The attached disks.
    pub(crate) fn seats(&self) -> Vec<Arc<Seat>> {
        let table = self.table.read();
        table
            .values()
            .filter_map(|entry| match entry {
                Entry::Attached(seat) => Some(Arc::clone(seat)),
                Entry::Attaching(_) => None,
            })
            .collect()
    }

    /// When a seat was last used.
    pub(crate) fn last_used(&self, seat: &Seat) -> SystemTime {
        let idle = self.idle(seat);
        SystemTime::now()
            .checked_sub(idle)
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }

    pub(crate) fn totals(&self) -> &Totals {
        &self.totals
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn cache(&self) -> &BlockCache {
        &self.cache
    }

    /// Slots taken, including those of disks that were let go while in use.
    pub(crate) fn taken(&self) -> usize {
        self.permits.state.lock().taken
    }

    /// Lets a disk go; false if it is not attached.
    pub(crate) fn release(&self, id: u64) -> bool {
        let seat = match self.table.read().get(&id) {
            Some(Entry::Attached(seat)) => Arc::clone(seat),
            _ => return false,
        };
        self.forget(&seat);
        true
    }

    /// Lets all go that were not used for the idle time-out, and all whose row
    /// has left the catalog, or whose volumes have parts on disks that have come or
    /// gone. Returns how many.
    ///
    /// The catalog is asked each time, whether or not it has just changed: a disk
    /// that was being attached while it changed is seen by the next sweep only.
    pub(crate) fn sweep(&self) -> usize {
        let mut released: usize = 0;
        for seat in self.seats() {
            let idle = self.idle(&seat) >= self.limits.idle_timeout;
            let gone = self.is_outdated(&seat.disk);
            if idle || gone {
                tracing::info!(disk = seat.disk.path(), idle, gone, "released");
                self.forget(&seat);
                released = released.saturating_add(1);
            }
        }
        released
    }

    fn is_outdated(&self, disk: &AttachedDisk) -> bool {
        match self.catalog.disk(disk.record().id) {
            Ok(None) => true,
            Ok(Some((_, backup))) => disk.depends_on().is_some_and(|known| {
                self.siblings(disk.record().id, backup)
                    .is_ok_and(|now| !now.iter().map(|record| record.id).eq(known.iter().copied()))
            }),
            Err(_) => false,
        }
    }

    /// The other disks of a backup, in disk order.
    fn siblings(&self, disk: i64, backup: i64) -> Result<Vec<DiskRecord>> {
        let mut all = self.catalog.disks(backup)?;
        all.retain(|record| record.id != disk);
        Ok(all)
    }

    /// Lets every disk go; for the end.
    pub(crate) fn release_all(&self) {
        let table = std::mem::take(&mut *self.table.write());
        drop(table);
    }

    fn idle(&self, seat: &Seat) -> Duration {
        let last = Duration::from_millis(seat.last_used.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }

    fn touch(&self, seat: &Seat) {
        seat.last_used.store(self.now(), Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes a seat out of the table; the disk ends with its last operation.
    fn forget(&self, seat: &Arc<Seat>) {
        let mut table = self.table.write();
        let id = disk_id(seat);
        let same = matches!(table.get(&id), Some(Entry::Attached(s)) if Arc::ptr_eq(s, seat));
        let removed = if same { table.remove(&id) } else { None };
        drop(table);
        if removed.is_some() {
            let (totals, usage) = (&self.totals, seat.disk.usage());
            totals.evictions.fetch_add(1, Ordering::Relaxed);
            totals
                .reads
                .fetch_add(usage.reads.load(Ordering::Relaxed), Ordering::Relaxed);
            totals
                .bytes
                .fetch_add(usage.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn attach(&self, id: u64) -> Result<Arc<AttachedDisk>> {
        let gone = || Error::Gone {
            what: format!("disk {id}"),
        };
        let row = i64::try_from(id).map_err(|_| gone())?;
        let (record, backup) = self.catalog.disk(row)?.ok_or_else(gone)?;
        let siblings = self.siblings(row, backup)?;
        let began = Instant::now();
        let mut export = self.export.clone();
        let recorded = self.catalog.repositories()?;
        export
            .repositories
            .extend(recorded.into_iter().map(|repository| repository.path));
        // Before a slot is taken: a repository that hangs must not take them all.
        chain::check(&record.path, &record.format, &export.repositories)?;
        let permit = self.permit()?;
        let slot = Box::new(permit);
        let disk = AttachedDisk::open(record, siblings, &export, &self.guest, &self.cache, slot)?;
        tracing::info!(disk = disk.path(), took = ?began.elapsed(), "attached");
        Ok(Arc::new(disk))
    }

    /// A slot; the least recently used disk gives its own if there is none.
    ///
    /// In the order of asking: two disks that take the only slot from each other
    /// both go on.
    fn permit(&self) -> Result<Permit> {
        let deadline = Instant::now() + self.limits.slot_timeout;
        let permits = &self.permits;
        let mut state = permits.state.lock();
        state.last_ticket = state.last_ticket.wrapping_add(1);
        let ticket = state.last_ticket;
        state.queue.push_back(ticket);
        let mut busy_too = true;
        loop {
            let first = state.queue.front() == Some(&ticket);
            if first && state.taken < self.limits.slots {
                state.taken = state.taken.saturating_add(1);
                state.queue.pop_front();
                permits.changed.notify_all();
                return Ok(Permit(Arc::clone(permits)));
            }
            if Instant::now() >= deadline {
                state.queue.retain(|waiting| *waiting != ticket);
                permits.changed.notify_all();
                return Err(Error::NoSlot {
                    slots: self.limits.slots,
                });
            }
            if first {
                drop(state);
                // One disk that is in use ends with its last operation. More than
                // one need not go for this attempt.
                busy_too &= !self.evict_one(busy_too);
                state = permits.state.lock();
                if state.taken < self.limits.slots {
                    continue;
                }
            }
            // The disk that was let go may still be in use, or all may be just
            // being attached: look again when that changes, and at times anyway.
            permits.changed.wait_for(&mut state, RECONSIDER);
        }
    }

    /// Lets the least recently used disk go, one without an operation under way
    /// if there is any. Whether one that is in use was let go.
    fn evict_one(&self, busy_too: bool) -> bool {
        let seats = self.seats();
        let in_use = |seat: &&Arc<Seat>| Arc::strong_count(&seat.disk) > 1;
        let last_used = |seat: &&Arc<Seat>| seat.last_used.load(Ordering::Relaxed);
        let idle = seats
            .iter()
            .filter(|seat| !in_use(seat))
            .min_by_key(last_used);
        let Some(seat) = idle.or_else(|| seats.iter().filter(|_| busy_too).min_by_key(last_used))
        else {
            return false;
        };
        tracing::debug!(disk = seat.disk.path(), "gives its slot to another");
        self.forget(seat);
        idle.is_none()
    }
}

fn disk_id(seat: &Seat) -> u64 {
    u64::try_from(seat.disk.record().id).unwrap_or(0)
}

impl Attachments for Slots {
    fn get(&self, id: u64) -> Result<Arc<AttachedDisk>> {
        if let Some(Entry::Attached(seat)) = self.table.read().get(&id) {
            self.touch(seat);
            return Ok(Arc::clone(&seat.disk));
        }
        may_wait()?;
        let attempt = {
            let mut table = self.table.write();
            match table.get(&id) {
                Some(Entry::Attached(seat)) => {
                    self.touch(seat);
                    return Ok(Arc::clone(&seat.disk));
                }
                Some(Entry::Attaching(attempt)) => {
                    let attempt = Arc::clone(attempt);
                    drop(table);
                    return attempt.wait(id, self.limits.slot_timeout);
                }
                None => {}
            }
            let attempt = Arc::new(Attempt::default());
            table.insert(id, Entry::Attaching(Arc::clone(&attempt)));
            attempt
        };
        // Those who wait must be told whatever happens, a panic included.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.attach(id)))
            .unwrap_or_else(|_| {
                Err(Error::corrupt(
                    format!("disk {id}"),
                    "attaching it failed unexpectedly",
                ))
            });
        let mut table = self.table.write();
        match &result {
            Ok(disk) => {
                let seat = Seat {
                    disk: Arc::clone(disk),
                    since: SystemTime::now(),
                    last_used: AtomicU64::new(self.now()),
                };
                table.insert(id, Entry::Attached(Arc::new(seat)));
                self.totals.attaches.fetch_add(1, Ordering::Relaxed);
                // Whoever waits for a slot may take this one's.
                self.permits.changed.notify_all();
            }
            Err(_) => {
                table.remove(&id);
                self.totals.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(table);
        match &result {
            Ok(_) => drop(self.errors.lock().pop(&id)),
            Err(error) => drop(self.errors.lock().put(id, error.clone())),
        }
        attempt.end(result.clone());
        result
    }

    fn peek(&self, id: u64) -> Option<Arc<AttachedDisk>> {
        match self.table.read().get(&id) {
            Some(Entry::Attached(seat)) => Some(Arc::clone(&seat.disk)),
            _ => None,
        }
    }

    fn last_error(&self, id: u64) -> Option<Error> {
        self.errors.lock().peek(&id).cloned()
    }
}
