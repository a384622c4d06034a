//! The clock of all requests: one thread of the process that looks now and then
//! whether something has run out of time. It sleeps while there is nothing to
//! watch.

use parking_lot::{Condvar, Mutex};
use std::io;
use std::sync::Weak;
use std::time::{Duration, Instant};

/// Something with deadlines.
pub(crate) trait Deadlines: Send + Sync {
    /// Ends whatever should have ended before `now`. Must not wait.
    fn expire(&self, now: Instant);
}

struct Watched {
    period: Duration,
    what: Weak<dyn Deadlines>,
}

struct Clock {
    watched: Vec<Watched>,
    running: bool,
}

static CLOCK: Mutex<Clock> = Mutex::new(Clock {
    watched: Vec::new(),
    running: false,
});
static MORE: Condvar = Condvar::new();

/// Calls `what` at least every `period` for as long as it lives.
///
/// # Errors
/// When the thread cannot be started.
pub(crate) fn watch(what: Weak<dyn Deadlines>, period: Duration) -> io::Result<()> {
    let mut clock = CLOCK.lock();
    if !clock.running {
        std::thread::Builder::new()
            .name("nbd-deadlines".into())
            .spawn(run)?;
        clock.running = true;
    }
    clock.watched.push(Watched { period, what });
    MORE.notify_one();
    Ok(())
}

fn run() {
    let mut clock = CLOCK.lock();
    loop {
        clock.watched.retain(|w| w.what.strong_count() > 0);
        match clock.watched.iter().map(|w| w.period).min() {
            None => MORE.wait(&mut clock),
            Some(period) => {
                // A newcomer with a shorter period ends the wait early.
                MORE.wait_for(&mut clock, period);
                let alive: Vec<_> = clock
                    .watched
                    .iter()
                    .filter_map(|w| w.what.upgrade())
                    .collect();
                parking_lot::MutexGuard::unlocked(&mut clock, || {
                    let now = Instant::now();
                    alive.iter().for_each(|w| w.expire(now));
                    drop(alive);
                });
            }
        }
    }
}
