//! An attempt to attach a disk, whose outcome all who want that disk share.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use sendense::tree::AttachedDisk;
use sendense::{Error, Result};

/// An attempt to attach that several may wait for.
#[derive(Default)]
pub(super) struct Attempt {
    outcome: Mutex<Option<Result<Arc<AttachedDisk>>>>,
    over: Condvar,
}

impl Attempt {
    /// Waits for the outcome. The attempt itself may hang for longer than its own
    /// time-outs, where the repository hangs.
    pub(super) fn wait(&self, id: u64, limit: Duration) -> Result<Arc<AttachedDisk>> {
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

    pub(super) fn end(&self, result: Result<Arc<AttachedDisk>>) {
        *self.outcome.lock() = Some(result);
        self.over.notify_all();
    }
}
