//! The slots themselves: so many, given out in the order in which they were asked
//! for, so that two disks that take the only slot from each other both go on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use sendense::{Error, Result, Shortage};

/// How often an attempt that waits for a slot looks again.
const RECONSIDER: Duration = Duration::from_millis(20);

/// All slots.
pub(super) struct Permits {
    slots: usize,
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
pub(super) struct Permit(Arc<Permits>);

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.taken = state.taken.saturating_sub(1);
        self.0.changed.notify_all();
    }
}

impl Permits {
    pub(super) fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self {
            slots,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// How many are given out.
    pub(super) fn taken(&self) -> usize {
        self.state.lock().taken
    }

    /// Something has changed that may let somebody have a slot, or refuse it.
    pub(super) fn reconsider(&self) {
        self.changed.notify_all();
    }

    /// A slot, waited for at most `limit`. `hopeless` is asked again and again, and
    /// ends the wait; `make_room` is called, without a lock held, while there is no
    /// slot for the one whose turn it is.
    ///
    /// # Errors
    /// `NoSlot`.
    pub(super) fn take(
        self: &Arc<Self>,
        limit: Duration,
        hopeless: impl Fn() -> bool,
        mut make_room: impl FnMut(),
    ) -> Result<Permit> {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock();
        state.last_ticket = state.last_ticket.wrapping_add(1);
        let ticket = state.last_ticket;
        state.queue.push_back(ticket);
        loop {
            let shortage = if hopeless() {
                Some(Shortage::Held)
            } else if Instant::now() >= deadline {
                Some(Shortage::InUse)
            } else {
                None
            };
            let first = state.queue.front() == Some(&ticket);
            if first && state.taken < self.slots && shortage != Some(Shortage::Held) {
                state.taken = state.taken.saturating_add(1);
                state.queue.pop_front();
                self.changed.notify_all();
                return Ok(Permit(Arc::clone(self)));
            }
            if let Some(shortage) = shortage {
                state.queue.retain(|waiting| *waiting != ticket);
                self.changed.notify_all();
                return Err(Error::NoSlot {
                    slots: self.slots,
                    shortage,
                });
            }
            if first {
                drop(state);
                make_room();
                state = self.state.lock();
                if state.taken < self.slots {
                    continue;
                }
            }
            // The disk that was let go may still be in use, or all may be just
            // being attached: look again when that changes, and at times anyway.
            self.changed.wait_for(&mut state, RECONSIDER);
        }
    }
}
