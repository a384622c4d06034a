//! The record of who did what, written to the catalog.
//!
//! The idea: one thread writes what has gathered in one transaction, so that a record
//! costs a request next to nothing. Whoever hands out a file waits until its
//! record is written; nobody takes a file without one.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use jiff::Timestamp;
use lru::LruCache;
use parking_lot::Mutex;
use sendense::catalog::{AuditRecord, Catalog};
use sendense::{Error, Result};
use tokio::sync::oneshot;

use super::answer::{Answer, Failure};

/// Records that wait to be written.
const QUEUE: usize = 4096;
/// Records in one transaction.
const BATCH: usize = 512;
/// How long records that nobody waits for may gather.
const GATHER: Duration = Duration::from_millis(200);
/// How long a request waits for its record.
const PATIENCE: Duration = Duration::from_secs(5);
/// For so long a repeated listing is the same.
const REPEATED: Duration = Duration::from_secs(60);
/// Listings that are remembered for that.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(16_383);
/// How often old records are removed.
const PRUNE: Duration = Duration::from_secs(3600);

#[derive(Debug)]
struct Entry {
    record: AuditRecord,
    written: Option<oneshot::Sender<()>>,
}

/// Takes records.
#[derive(Debug)]
pub(crate) struct Recorder {
    queue: Mutex<Option<SyncSender<Entry>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    trouble: Arc<Mutex<Option<String>>>,
    /// What was recorded lately, by its hash.
    recent: Mutex<LruCache<u64, Instant>>,
}

impl Recorder {
    /// Starts the thread; records older than `retention` are removed now and then.
    ///
    /// # Errors
    /// `Io` if there can be no thread.
    pub(crate) fn start(catalog: Arc<Catalog>, retention: Duration) -> Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(QUEUE);
        // In portions, between which records are written; ends with the process.
        let pruned = Arc::clone(&catalog);
        std::thread::Builder::new()
            .name("prune".into())
            .spawn(move || prune(&pruned, retention))
            .map_err(|e| Error::io("the thread that removes old records", e))?;
        let trouble = Arc::new(Mutex::new(None));
        let told = Arc::clone(&trouble);
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || write(&catalog, &receiver, &told))
            .map_err(|e| Error::io("the thread of the audit record", e))?;
        Ok(Self {
            queue: Mutex::new(Some(sender)),
            thread: Mutex::new(Some(thread)),
            trouble,
            recent: Mutex::new(LruCache::new(REMEMBERED)),
        })
    }

    /// What finds no place in the queue comes back.
    fn send(&self, entry: Entry) -> std::result::Result<(), Box<AuditRecord>> {
        let Some(queue) = self.queue.lock().clone() else {
            return Err(Box::new(entry.record));
        };
        queue.try_send(entry).map_err(|refused| match refused {
            TrySendError::Full(entry) | TrySendError::Disconnected(entry) => Box::new(entry.record),
        })
    }

    /// Why the last records could not be written, if they could not.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// Records without waiting. What finds the queue full goes to the log.
    pub(crate) fn note(&self, record: AuditRecord) {
        let written = None;
        if let Err(record) = self.send(Entry { record, written }) {
            tracing::error!(?record, "not in the audit record: its queue is full");
        }
    }

    /// Records what may be repeated by the thousand, such as a listing: once a minute for
    /// each user, mount and path.
    pub(crate) fn note_once(&self, record: AuditRecord) {
        let mut hasher = DefaultHasher::new();
        let who = (&record.user, &record.address, record.action);
        (who, &record.mount_id, &record.path).hash(&mut hasher);
        let mut recent = self.recent.lock();
        let now = Instant::now();
        let last = recent.put(hasher.finish(), now);
        if let Some(last) = last.filter(|last| now.duration_since(*last) < REPEATED) {
            recent.put(hasher.finish(), last);
            return;
        }
        drop(recent);
        self.note(record);
    }

    /// Records, and waits until it is written.
    ///
    /// # Errors
    /// 503 if it cannot be.
    pub(crate) async fn write(&self, record: AuditRecord) -> Answer<()> {
        let refuse = || {
            Failure::later(
                StatusCode::SERVICE_UNAVAILABLE,
                "the audit record cannot be written now, and nothing is done without it; the \
                 server's log says why",
                5,
            )
        };
        let (done, written) = oneshot::channel();
        let entry = Entry {
            record,
            written: Some(done),
        };
        if self.send(entry).is_err() {
            return Err(refuse());
        }
        match tokio::time::timeout(PATIENCE, written).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(refuse()),
        }
    }

    /// Writes what is left.
    pub(crate) fn finish(&self) {
        drop(self.queue.lock().take());
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

/// Removes old records now and then.
fn prune(catalog: &Catalog, retention: Duration) {
    let kept = jiff::SignedDuration::try_from(retention).unwrap_or(jiff::SignedDuration::MAX);
    loop {
        let before = Timestamp::now().checked_sub(kept).unwrap_or(Timestamp::MIN);
        if let Err(e) = catalog.prune_audit(before) {
            tracing::warn!("removing old records: {e}");
        }
        std::thread::sleep(PRUNE);
    }
}

fn write(catalog: &Catalog, queue: &Receiver<Entry>, trouble: &Mutex<Option<String>>) {
    loop {
        let Ok(first) = queue.recv() else { return };
        let mut batch = vec![first];
        let began = Instant::now();
        while batch.len() < BATCH {
            // Somebody waits: no time to gather more.
            let pressed = batch.iter().any(|entry| entry.written.is_some());
            let wait = if pressed {
                Duration::ZERO
            } else {
                GATHER.saturating_sub(began.elapsed())
            };
            match queue.recv_timeout(wait) {
                Ok(entry) => batch.push(entry),
                Err(_) => break,
            }
        }
        let records: Vec<AuditRecord> = batch.iter().map(|entry| entry.record.clone()).collect();
        let result = catalog.record_audit(&records);
        *trouble.lock() = result.as_ref().err().map(ToString::to_string);
        match result {
            Ok(()) => {
                for entry in batch {
                    if let Some(written) = entry.written {
                        let _ = written.send(());
                    }
                }
            }
            // Who waits is told by the channel's end.
            Err(e) => tracing::error!(?records, "not in the audit record: {e}"),
        }
    }
}
