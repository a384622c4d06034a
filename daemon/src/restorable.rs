//! Whether a backup can be restored: every image that its disks need is there, and
//! opens.
//!
//! The idea: an image is opened as for being attached, by a qemu-nbd of its own,
//! which ends at once. That is dear, so it is done once for each content: a chain of
//! images that has opened is known by a fingerprint of its files, and proves every
//! shorter chain at its end. So the newest backup of a chain is tried first, and a
//! list of backups costs one process a chain. What did not open is tried again
//! after some seconds.
//!
//! A repository may hang: at most two disks are looked at at once, by threads of
//! their own that nobody waits for without end.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use sendense::catalog::{Catalog, DiskRecord};
use sendense::image::chain::{self, Chain};
use sendense::image::{Export, ExportOptions};
use sendense::tree::Attachments;
use sendense::{Error, Result};

use crate::attachments::Slots;
use crate::control::DiskCheck;

/// Disks that are looked at at once.
const AT_ONCE: usize = 2;

/// How long one backup may take, however many disks it has.
const LIMIT: Duration = Duration::from_secs(60);

/// How long it is remembered that an image did not open.
const BAD_NEWS: Duration = Duration::from_secs(10);

/// Chains that are remembered: some megabytes.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(65_535);

/// Answers whether backups can be restored, and remembers.
pub(crate) struct Restorable {
    catalog: Arc<Catalog>,
    slots: Arc<Slots>,
    /// Fingerprints of chains that have opened.
    proven: Mutex<LruCache<u64, ()>>,
    /// And of those that have not: when, and why.
    refuted: Mutex<LruCache<u64, (Instant, Error)>>,
    places: Places,
    /// How many images were opened.
    opened: AtomicU64,
}

/// The places of disks that are being looked at.
#[derive(Default)]
struct Places {
    taken: Mutex<usize>,
    changed: Condvar,
}

/// Gives its place back when dropped.
struct Place(Arc<Restorable>);

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.0.places.taken.lock();
        *taken = taken.saturating_sub(1);
        self.0.places.changed.notify_one();
    }
}

impl Restorable {
    pub(crate) fn new(catalog: Arc<Catalog>, slots: Arc<Slots>) -> Arc<Self> {
        Arc::new(Self {
            catalog,
            slots,
            proven: Mutex::new(LruCache::new(REMEMBERED)),
            refuted: Mutex::new(LruCache::new(REMEMBERED)),
            places: Places::default(),
            opened: AtomicU64::new(0),
        })
    }

    /// Looks at each disk of a backup.
    ///
    /// # Errors
    /// `Unknown` if there is no such backup; from the catalog.
    pub(crate) fn check(self: &Arc<Self>, backup_id: &str) -> Result<Vec<DiskCheck>> {
        let deadline = Instant::now() + LIMIT;
        let backup = self.catalog.backup(backup_id)?;
        let backup =
            backup.ok_or_else(|| Error::Unknown(format!("backup not found: {backup_id}")))?;
        let shown = self.catalog.shown_disks_of(backup_id)?;
        let mut disks = Vec::with_capacity(backup.disks.len());
        for disk in &backup.disks {
            let row = shown
                .iter()
                .find(|(index, _)| *index == disk.disk_index)
                .map(|(_, row)| *row);
            let error = match row {
                Some(row) => self.look_at(row, deadline).err().map(|e| e.to_string()),
                None if disk.status == "missing" => Some(match &disk.qcow2_path {
                    Some(path) => format!("{path}: the image is not there"),
                    None => "the image is not there".into(),
                }),
                None if backup.status == "completed" => {
                    Some(format!("the disk is {}", disk.status))
                }
                None => Some(format!("the backup is {}", backup.status)),
            };
            disks.push(DiskCheck {
                disk_index: disk.disk_index,
                error,
            });
        }
        Ok(disks)
    }

    /// Looks at one disk on a thread of its own.
    fn look_at(self: &Arc<Self>, row: i64, deadline: Instant) -> Result<()> {
        let late = || Error::TimedOut {
            what: "the repository".into(),
            after: LIMIT,
        };
        let place = self.place(deadline).ok_or_else(late)?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let this = Arc::clone(self);
        std::thread::Builder::new()
            .name("restorable".into())
            .spawn(move || {
                let answer = this.try_disk(row);
                drop(place);
                let _ = sender.try_send(answer);
            })
            .map_err(|e| Error::io("a thread to look at an image", e))?;
        let left = deadline.saturating_duration_since(Instant::now());
        receiver.recv_timeout(left).map_err(|_| late())?
    }

    fn place(self: &Arc<Self>, deadline: Instant) -> Option<Place> {
        let mut taken = self.places.taken.lock();
        while *taken >= AT_ONCE {
            if self
                .places
                .changed
                .wait_until(&mut taken, deadline)
                .timed_out()
                && *taken >= AT_ONCE
            {
                return None;
            }
        }
        *taken = taken.saturating_add(1);
        Some(Place(Arc::clone(self)))
    }

    fn try_disk(&self, row: i64) -> Result<()> {
        let Some((record, _)) = self.catalog.disk(row)? else {
            return Err(Error::Gone {
                what: format!("disk {row}"),
            });
        };
        let options = self.slots.export_options()?;
        let chain = read(&record, &options)?;
        record.verify()?;
        let actual = chain.images.first().map(|image| image.virtual_size);
        if record.size.is_some() && record.size != actual {
            return Err(Error::image(
                &record.path,
                "the disk is not of the size that the catalog says; run `sendense catalog scan`",
            ));
        }
        // It has opened. That its images are still there had to be looked at all the
        // same: an image that was removed stays open.
        if u64::try_from(row).is_ok_and(|id| self.slots.peek(id).is_some()) {
            return Ok(());
        }
        let prints = chain.fingerprints();
        let Some(&print) = prints.first() else {
            return Ok(());
        };
        if self.known(print)? {
            return Ok(());
        }
        // Where the newest of the chain has this one below it, it proves both.
        let newest = self.catalog.newest_of_chain(&record)?;
        if let Some(newest) = newest.filter(|newest| newest.id != record.id)
            && let Ok(longer) = read(&newest, &options)
            && longer.fingerprints().contains(&print)
            && self.open(&newest, &longer, &options).is_ok()
        {
            return Ok(());
        }
        self.open(&record, &chain, &options)
    }

    /// Whether a chain has opened before.
    ///
    /// # Errors
    /// Why it did not, a moment ago.
    fn known(&self, print: u64) -> Result<bool> {
        if self.proven.lock().get(&print).is_some() {
            return Ok(true);
        }
        match self.refuted.lock().get(&print) {
            Some((when, error)) if when.elapsed() < BAD_NEWS => Err(error.clone()),
            _ => Ok(false),
        }
    }

    fn open(&self, record: &DiskRecord, chain: &Chain, options: &ExportOptions) -> Result<()> {
        let prints = chain.fingerprints();
        let Some(&print) = prints.first() else {
            return Ok(());
        };
        if self.known(print)? {
            return Ok(());
        }
        self.opened.fetch_add(1, Ordering::Relaxed);
        match Export::open(&record.path, &record.format, options) {
            Ok(_) => {
                let mut proven = self.proven.lock();
                for print in prints {
                    proven.put(print, ());
                }
                Ok(())
            }
            Err(error) => {
                self.refuted
                    .lock()
                    .put(print, (Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

fn read(record: &DiskRecord, options: &ExportOptions) -> Result<Chain> {
    chain::read(&record.path, &record.format, &options.repositories)
}

#[cfg(test)]
mod tests;
