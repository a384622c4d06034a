//! Attached disks: slots, who gets one, and who has to go.
//!
//! The idea: a slot is a resource and not a lock. The table gives out
//! [`AttachedDisk`]s by reference count; each holds its slot until the last
//! operation on it has ended, whether or not the table still has it. So letting
//! a disk go is nothing but forgetting it, and a reader that comes back attaches
//! it again without noticing.
//!
//! Only mounts hold a slot: a disk that is held is never let go to make room, nor
//! for being idle, and when all slots are held nobody else gets one. What is held
//! is the disk and not what is attached: should a held disk have to be attached
//! anew, its slot is still kept for it.
//!
//! A disk whose volumes lie on several disks of its backup opens those itself and
//! has one slot all the same: it never waits for another disk's, and two that need
//! each other do not meet.
//!
//! The first look-ups of a disk share one attempt; attempts for different disks
//! share nothing but the table, whose lock is never held while anything waits.

mod attempt;
mod permits;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use sendense::catalog::{Catalog, DiskRecord};
use sendense::filesystem;
use sendense::image::patience::may_wait;
use sendense::image::{BlockCache, ExportOptions, chain};
use sendense::tree::{AttachedDisk, Attachments};
use sendense::{Error, Result, Shortage};

use self::attempt::Attempt;
use self::permits::{Permit, Permits};

/// Disks whose last failure is remembered.
const REMEMBERED_ERRORS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);

/// What may be set from outside.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Disks attached at once.
    pub(crate) slots: usize,
    /// How long a disk stays attached without use.
    pub(crate) idle_timeout: Duration,
    /// How long an attempt may wait for a slot.
    pub(crate) slot_timeout: Duration,
    /// Whether the repositories that the catalog knows of count as well. Not where the
    /// HTTP side, which can write to the catalog, could add some.
    pub(crate) recorded_repositories: bool,
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
    table: RwLock<Table>,
    permits: Arc<Permits>,
    errors: Mutex<LruCache<u64, Error>>,
    totals: Totals,
    started: Instant,
}

#[derive(Default)]
struct Table {
    entries: HashMap<u64, Entry>,
    /// The disks that mounts hold, attached or not.
    held: HashSet<u64>,
}

#[derive(Clone)]
enum Entry {
    Attached(Arc<Seat>),
    Attaching(Arc<Attempt>),
}

/// Why a disk is let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// Its slot is needed, or nobody uses it: not if it is held.
    Unused,
    /// It must not be shown any more, or somebody wants it.
    Told,
}

/// An attached disk in the table.
pub(crate) struct Seat {
    pub(crate) disk: Arc<AttachedDisk>,
    pub(crate) since: SystemTime,
    /// Milliseconds after the table was made.
    last_used: AtomicU64,
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
            permits: Permits::new(limits.slots),
            limits,
            table: RwLock::default(),
            errors: Mutex::new(LruCache::new(REMEMBERED_ERRORS)),
            totals: Totals::default(),
            started: Instant::now(),
        })
    }

    /// The attached disks.
    pub(crate) fn seats(&self) -> Vec<Arc<Seat>> {
        let table = self.table.read();
        table
            .entries
            .values()
            .filter_map(|entry| match entry {
                Entry::Attached(seat) => Some(Arc::clone(seat)),
                Entry::Attaching(_) => None,
            })
            .collect()
    }

    /// The disks that are just being attached.
    pub(crate) fn attaching(&self) -> Vec<u64> {
        let table = self.table.read();
        let attaching = table.entries.iter().filter_map(|(id, entry)| match entry {
            Entry::Attaching(_) => Some(*id),
            Entry::Attached(_) => None,
        });
        attaching.collect()
    }

    /// The disks that mounts hold.
    pub(crate) fn held(&self) -> HashSet<u64> {
        self.table.read().held.clone()
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
        self.permits.taken()
    }

    /// Keeps a slot for a disk, which may not be attached yet, until
    /// [`Self::unhold`]; to hold it again changes nothing. Whoever waits in vain
    /// from now on is told so at once.
    ///
    /// # Errors
    /// `NoSlot` if all slots are held.
    pub(crate) fn hold(&self, id: u64) -> Result<()> {
        let mut table = self.table.write();
        let slots = self.limits.slots;
        if !table.held.contains(&id) && table.held.len() >= slots {
            return Err(Error::NoSlot {
                slots,
                shortage: Shortage::Mounts,
            });
        }
        table.held.insert(id);
        drop(table);
        self.permits.reconsider();
        Ok(())
    }

    /// Holds a disk no longer, and lets it go.
    pub(crate) fn unhold(&self, id: u64) {
        self.table.write().held.remove(&id);
        self.permits.reconsider();
        self.release(id);
    }

    /// Lets a disk go, held or not; false if it is not attached.
    pub(crate) fn release(&self, id: u64) -> bool {
        let seat = match self.table.read().entries.get(&id) {
            Some(Entry::Attached(seat)) => Arc::clone(seat),
            _ => return false,
        };
        self.forget(&seat, Reason::Told);
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
            let reason = if gone { Reason::Told } else { Reason::Unused };
            if (idle || gone) && self.forget(&seat, reason) {
                tracing::info!(disk = seat.disk.path(), idle, gone, "released");
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
        let entries = std::mem::take(&mut self.table.write().entries);
        drop(entries);
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

    /// Takes a seat out of the table; the disk ends with its last operation. False
    /// if it stays, or had gone before.
    fn forget(&self, seat: &Arc<Seat>, reason: Reason) -> bool {
        let mut table = self.table.write();
        let id = disk_id(seat);
        let same =
            matches!(table.entries.get(&id), Some(Entry::Attached(s)) if Arc::ptr_eq(s, seat));
        let stays = reason == Reason::Unused && table.held.contains(&id);
        let removed = if same && !stays {
            table.entries.remove(&id)
        } else {
            None
        };
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
        removed.is_some()
    }

    fn attach(&self, id: u64) -> Result<Arc<AttachedDisk>> {
        let gone = || Error::Gone {
            what: format!("disk {id}"),
        };
        let row = i64::try_from(id).map_err(|_| gone())?;
        let (record, backup) = self.catalog.disk(row)?.ok_or_else(gone)?;
        let siblings = self.siblings(row, backup)?;
        let began = Instant::now();
        let export = self.export_options()?;
        // Before a slot is taken: a repository that hangs must not take them all.
        chain::check(&record.path, &record.format, &export.repositories)?;
        let slot = Box::new(self.permit(id)?);
        let disk = AttachedDisk::open(record, siblings, &export, &self.guest, &self.cache, slot)?;
        tracing::info!(disk = disk.path(), took = ?began.elapsed(), "attached");
        Ok(Arc::new(disk))
    }

    /// How images are opened, with the repositories that the catalog knows of where those
    /// count.
    ///
    /// # Errors
    /// From the catalog.
    pub(crate) fn export_options(&self) -> Result<ExportOptions> {
        let mut export = self.export.clone();
        if !self.limits.recorded_repositories {
            return Ok(export);
        }
        let recorded = self.catalog.repositories()?;
        export
            .repositories
            .extend(recorded.into_iter().map(|repository| repository.path));
        Ok(export)
    }

    /// A slot for a disk; the least recently used disk gives its own if there is
    /// none. Those that are held have theirs for certain, in the end.
    fn permit(&self, id: u64) -> Result<Permit> {
        let all_held = || {
            let table = self.table.read();
            table.held.len() >= self.limits.slots && !table.held.contains(&id)
        };
        let mut busy_too = true;
        self.permits.take(self.limits.slot_timeout, all_held, || {
            // One disk that is in use ends with its last operation. More than
            // one need not go for this attempt.
            busy_too &= !self.evict_one(busy_too);
        })
    }

    /// Lets the least recently used disk go, one without an operation under way
    /// if there is any. Whether one that is in use was let go.
    fn evict_one(&self, busy_too: bool) -> bool {
        let held = self.held();
        let mut seats = self.seats();
        seats.retain(|seat| !held.contains(&disk_id(seat)));
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
        self.forget(seat, Reason::Unused);
        idle.is_none()
    }
}

/// A disk's id as its table has it.
pub(crate) fn disk_id(seat: &Seat) -> u64 {
    u64::try_from(seat.disk.record().id).unwrap_or(0)
}

impl Attachments for Slots {
    fn get(&self, id: u64) -> Result<Arc<AttachedDisk>> {
        if let Some(Entry::Attached(seat)) = self.table.read().entries.get(&id) {
            self.touch(seat);
            return Ok(Arc::clone(&seat.disk));
        }
        may_wait()?;
        let attempt = {
            let mut table = self.table.write();
            match table.entries.get(&id) {
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
            table
                .entries
                .insert(id, Entry::Attaching(Arc::clone(&attempt)));
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
                table.entries.insert(id, Entry::Attached(Arc::new(seat)));
                self.totals.attaches.fetch_add(1, Ordering::Relaxed);
                // Whoever waits for a slot may take this one's.
                self.permits.reconsider();
            }
            Err(_) => {
                table.entries.remove(&id);
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
        match self.table.read().entries.get(&id) {
            Some(Entry::Attached(seat)) => Some(Arc::clone(&seat.disk)),
            _ => None,
        }
    }

    fn last_error(&self, id: u64) -> Option<Error> {
        self.errors.lock().peek(&id).cloned()
    }
}
