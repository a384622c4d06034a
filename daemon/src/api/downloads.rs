//! The downloads that run: how many there may be, what each has sent, and how to end
//! one.
//!
//! The idea: a running download is a [`Ticket`] that its stream owns. The ticket takes
//! a place when it is made and gives it back when it is dropped, however the stream
//! ends, and tells then how it went.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use utoipa::ToSchema;
use uuid::Uuid;

use super::uses::Kept;

/// Ends the connection of a request at once, also while its client takes nothing. What
/// comes too late for its own request leaves the next one on the connection alone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hangup {
    notify: Arc<Notify>,
    /// The request that is being answered.
    current: Arc<AtomicU64>,
    request: u64,
}

impl Hangup {
    /// For the next request on the connection.
    pub(crate) fn next(&self) -> Self {
        let request = self
            .current
            .fetch_add(1, Ordering::AcqRel)
            .saturating_add(1);
        Self {
            request,
            ..self.clone()
        }
    }

    /// Resolves when the connection is to be ended.
    pub(crate) async fn wanted(&self) {
        self.notify.notified().await;
    }

    /// Ends the connection, if the request is still its current one.
    pub(crate) fn hang_up(&self) {
        if self.current.load(Ordering::Acquire) == self.request {
            self.notify.notify_one();
        }
    }
}

/// A download was ended by us: why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct HungUp(pub(crate) &'static str);

/// A download that runs.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Download {
    /// To cancel it by.
    pub(crate) download_id: String,
    pub(crate) mount_id: String,
    pub(crate) vm_name: String,
    pub(crate) username: String,
    /// The file, or the folders and files of the archive.
    pub(crate) paths: Vec<String>,
    /// `file`, `zip`, `tar.gz`, `tar.zst`.
    pub(crate) format: String,
    /// Bytes sent so far.
    pub(crate) bytes_sent: u64,
    /// Bytes in all, where they are known before the end.
    pub(crate) total_bytes: Option<u64>,
    pub(crate) started_at: String,
}

/// Whose download it is.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    /// `users.id`.
    pub(crate) user: i64,
    /// That of the user when it began.
    pub(crate) generation: i64,
}

/// The downloads of this process.
#[derive(Debug)]
pub(crate) struct Downloads {
    most: usize,
    running: Mutex<BTreeMap<Uuid, Arc<Running>>>,
    /// Sent by downloads that have ended, and how many they were.
    bytes: AtomicU64,
    pub(crate) ended: AtomicU64,
}

#[derive(Debug)]
struct Running {
    what: Download,
    holder: Holder,
    sent: AtomicU64,
    cancelled: AtomicBool,
    cancel: Notify,
}

impl Downloads {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            running: Mutex::default(),
            bytes: AtomicU64::new(0),
            ended: AtomicU64::new(0),
        })
    }

    /// How many may run at once.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// How many run.
    pub(crate) fn count(&self) -> usize {
        self.running.lock().len()
    }

    /// A place for one more; `None` if there is none. `what` gets its id here.
    pub(crate) fn begin(
        self: &Arc<Self>,
        what: Download,
        holder: Holder,
        kept: Kept,
        hangup: Hangup,
        limit: Duration,
        ended: impl FnOnce(&Ended) + Send + 'static,
    ) -> Option<Ticket> {
        let mut running = self.running.lock();
        if running.len() >= self.most {
            return None;
        }
        let id = Uuid::new_v4();
        let entry = Arc::new(Running {
            what: Download {
                download_id: id.to_string(),
                ..what
            },
            holder,
            sent: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            cancel: Notify::new(),
        });
        running.insert(id, Arc::clone(&entry));
        let (watched, deadline) = (Arc::clone(&entry), Instant::now() + limit);
        let watch = tokio::spawn(async move {
            tokio::select! {
                () = watched.cancel.notified() => {}
                () = tokio::time::sleep_until(deadline.into()) => {}
            }
            hangup.hang_up();
        });
        Some(Ticket {
            downloads: Arc::clone(self),
            id,
            entry,
            deadline,
            watch: watch.abort_handle(),
            complete: false,
            trouble: None,
            ended: Some(Box::new(ended)),
            _kept: kept,
        })
    }

    /// Bytes sent by all downloads, those that run included.
    pub(crate) fn sent(&self) -> u64 {
        let running = self.running.lock();
        let now = running
            .values()
            .map(|entry| entry.sent.load(Ordering::Relaxed));
        now.fold(self.bytes.load(Ordering::Relaxed), u64::saturating_add)
    }

    /// What runs now, oldest first.
    pub(crate) fn list(&self) -> Vec<Download> {
        let running = self.running.lock();
        let mut all: Vec<Download> = running
            .values()
            .map(|entry| Download {
                bytes_sent: entry.sent.load(Ordering::Relaxed),
                ..entry.what.clone()
            })
            .collect();
        all.sort_by(|a, b| (&a.started_at, &a.download_id).cmp(&(&b.started_at, &b.download_id)));
        all
    }

    /// One that runs.
    pub(crate) fn get(&self, id: Uuid) -> Option<Download> {
        self.running.lock().get(&id).map(|entry| entry.what.clone())
    }

    /// Ends one; false if it does not run.
    pub(crate) fn cancel(&self, id: Uuid) -> bool {
        let entry = self.running.lock().get(&id).cloned();
        entry.is_some_and(|entry| {
            entry.stop();
            true
        })
    }

    /// Ends those that may not go on.
    pub(crate) fn retain(&self, may_go_on: impl Fn(&Holder, &Download) -> bool) {
        let all: Vec<_> = self.running.lock().values().cloned().collect();
        for entry in all {
            if !may_go_on(&entry.holder, &entry.what) {
                entry.stop();
            }
        }
    }

    /// Ends all of a mount.
    pub(crate) fn cancel_mount(&self, mount_id: &str) {
        let running = self.running.lock();
        for entry in running.values() {
            if entry.what.mount_id == mount_id {
                entry.stop();
            }
        }
    }
}

impl Running {
    fn stop(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        // Kept for whoever looks next.
        self.cancel.notify_one();
    }
}

/// How a download ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) bytes: u64,
    /// `complete`, `cancelled`, `interrupted` (the client hung up or stalled), `failed`.
    pub(crate) outcome: &'static str,
    /// Why it failed, or what of it is missing.
    pub(crate) detail: Option<String>,
}

/// What is told at the end.
type Last = Box<dyn FnOnce(&Ended) + Send>;

/// A download at work; dropped with its stream.
pub(crate) struct Ticket {
    downloads: Arc<Downloads>,
    id: Uuid,
    entry: Arc<Running>,
    deadline: Instant,
    watch: AbortHandle,
    complete: bool,
    trouble: Option<String>,
    ended: Option<Last>,
    _kept: Kept,
}

impl Ticket {
    /// How many downloads run, this one included.
    pub(crate) fn neighbours(&self) -> usize {
        self.downloads.count()
    }

    /// Bytes that are about to be sent.
    pub(crate) fn sending(&self, bytes: u64) {
        self.entry.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Why it may not go on: it was cancelled, or its time is over. A connection that
    /// waits for its client is ended all the same.
    pub(crate) fn stopped(&self) -> Option<&'static str> {
        if self.entry.cancelled.load(Ordering::Relaxed) {
            return Some("cancelled");
        }
        (Instant::now() >= self.deadline).then_some("it took longer than download_timeout")
    }

    /// All was handed over; `missing` says what could not be read.
    pub(crate) fn complete(&mut self, missing: Option<String>) {
        self.complete = true;
        self.trouble = missing;
    }

    /// It cannot go on.
    pub(crate) fn failed(&mut self, why: impl Into<String>) {
        self.trouble = Some(why.into());
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.watch.abort();
        let bytes = self.entry.sent.load(Ordering::Relaxed);
        {
            // In one step: whoever sums up misses nothing and counts nothing twice.
            let mut running = self.downloads.running.lock();
            running.remove(&self.id);
            self.downloads.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        self.downloads.ended.fetch_add(1, Ordering::Relaxed);
        let late = Instant::now() >= self.deadline;
        if late && !self.complete && self.trouble.is_none() {
            self.trouble = Some("it took longer than download_timeout".into());
        }
        let outcome = if self.complete {
            "complete"
        } else if self.entry.cancelled.load(Ordering::Relaxed) {
            "cancelled"
        } else if self.trouble.is_some() {
            "failed"
        } else {
            "interrupted"
        };
        if let Some(ended) = self.ended.take() {
            ended(&Ended {
                bytes,
                outcome,
                detail: self.trouble.take(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::uses::Uses;
    use super::*;

    #[tokio::test]
    async fn places_are_given_back_and_the_end_is_told() {
        let (downloads, uses) = (Downloads::new(2), Arc::new(Uses::default()));
        let told = Arc::new(Mutex::new(Vec::new()));
        let (hangup, minute) = (Hangup::default(), Duration::from_secs(60));
        let begin = || {
            let what = Download {
                download_id: String::new(),
                mount_id: "m".into(),
                vm_name: "vm".into(),
                username: "u".into(),
                paths: vec!["/a".into()],
                format: "file".into(),
                bytes_sent: 0,
                total_bytes: None,
                started_at: String::new(),
            };
            let told = Arc::clone(&told);
            let holder = Holder {
                user: 1,
                generation: 1,
            };
            downloads.begin(
                what,
                holder,
                uses.keep("m"),
                hangup.clone(),
                minute,
                move |end| {
                    told.lock().push((end.outcome, end.bytes));
                },
            )
        };
        let (mut first, second) = (begin().unwrap(), begin().unwrap());
        assert!(begin().is_none());
        first.sending(5);
        first.complete(None);
        drop(first);
        assert_eq!(downloads.count(), 1);
        let id = downloads.list()[0].download_id.parse().unwrap();
        assert!(second.stopped().is_none());
        assert!(downloads.cancel(id));
        assert_eq!(second.stopped(), Some("cancelled"));
        hangup.wanted().await;
        drop(second);
        assert!(!downloads.cancel(id));
        drop(begin().unwrap());
        let wanted = [("complete", 5), ("cancelled", 0), ("interrupted", 0)];
        assert_eq!(*told.lock(), wanted);
    }
}
