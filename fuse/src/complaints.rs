//! Errors for the log: what a user sees as a bare number is a sentence there.
//!
//! A program that reads a damaged file in a loop must not fill the journal, so
//! only so many are written in a second; all are counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use sendense::tree::Tree;
use sendense::{Error, Result};

/// Errors written in one second.
const A_SECOND: u32 = 20;

pub(crate) struct Complaints {
    /// Knows which disk an inode number belongs to.
    tree: Arc<Tree>,
    count: AtomicU64,
    recent: Mutex<Recent>,
}

struct Recent {
    since: Instant,
    written: u32,
    left_out: u64,
}

impl Complaints {
    pub(crate) fn new(tree: Arc<Tree>) -> Self {
        Self {
            tree,
            count: AtomicU64::new(0),
            recent: Mutex::new(Recent::new()),
        }
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn look_at<T>(&self, operation: &'static str, ino: u64, result: &Result<T>) {
        if let Err(error) = result {
            self.tell(operation, ino, error);
        }
    }

    pub(crate) fn tell(&self, operation: &'static str, ino: u64, error: &Error) {
        match error {
            Error::WouldWait => {}
            // Answers, not failures.
            Error::NotFound { .. } | Error::NotADirectory { .. } | Error::IsADirectory { .. } => {
                tracing::debug!(operation, ino, %error);
            }
            _ => {
                self.count.fetch_add(1, Ordering::Relaxed);
                let admitted = self.recent.lock().admit();
                if let Some(left_out) = admitted {
                    if left_out > 0 {
                        tracing::warn!(left_out, "more errors than are written here");
                    }
                    // What is said of a file says nothing of its disk.
                    let disk = self.tree.disk_path(ino);
                    tracing::warn!(operation, disk, ino, %error);
                }
            }
        }
    }
}

impl Recent {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            written: 0,
            left_out: 0,
        }
    }

    /// How many were left out before, if this one is to be written.
    fn admit(&mut self) -> Option<u64> {
        if self.since.elapsed().as_secs() >= 1 {
            self.since = Instant::now();
            self.written = 0;
        }
        if self.written >= A_SECOND {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.written = self.written.saturating_add(1);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_not_written() {
        let mut recent = Recent::new();
        let written = (0..1000).filter(|_| recent.admit().is_some()).count();
        assert_eq!(written, A_SECOND as usize);
        assert_eq!(recent.left_out, 1000 - u64::from(A_SECOND));
    }
}
