//! How long the work of this thread may take.
//!
//! Reading a guest's structures may end in a page that has to be fetched, or in
//! a chain of pages that a hostile image makes as long as it likes. Two kinds of
//! threads do such work, and both say how patient they are:
//!
//! - one that must not wait tries [`without_waiting`]: the work gives up as soon
//!   as it would have to wait, or when it has gone on for [`MOMENT`];
//! - one that may wait works [`within`] a limit, after which the work ends with
//!   [`Error::TimedOut`].
//!
//! Whatever waits asks [`may_wait`] before; whatever may go on for long calls
//! [`spend`] at each turn. The block cache does both, so parsers need not.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How long work that must not wait may go on in memory.
const MOMENT: Duration = Duration::from_millis(5);

/// The clock is looked at every so many turns; a power of two.
const TURNS: u32 = 64;

#[derive(Clone, Copy)]
enum Patience {
    /// Nobody has said anything: a command, which Ctrl-C ends.
    Endless,
    /// Must not wait, and must be done soon.
    None { since: Instant },
    /// May wait, but not for ever.
    Until { deadline: Instant, limit: Duration },
}

thread_local! {
    static PATIENCE: Cell<Patience> = const { Cell::new(Patience::Endless) };
    static GAVE_UP: Cell<bool> = const { Cell::new(false) };
    static SPENT: Cell<u32> = const { Cell::new(0) };
}

/// Sets the thread's patience until it is dropped, also by a panic.
struct Mood(Patience);

impl Mood {
    fn set(patience: Patience) -> Self {
        SPENT.set(0);
        Self(PATIENCE.replace(patience))
    }
}

impl Drop for Mood {
    fn drop(&mut self) {
        PATIENCE.set(self.0);
    }
}

/// Runs `work` on this thread; `None` if it would have had to wait.
///
/// Whatever `work` returned is dropped in that case, because code in between may
/// have taken [`Error::WouldWait`] for an answer.
pub fn without_waiting<T>(work: impl FnOnce() -> T) -> Option<T> {
    GAVE_UP.set(false);
    let mood = Mood::set(Patience::None {
        since: Instant::now(),
    });
    let answer = work();
    drop(mood);
    (!GAVE_UP.get()).then_some(answer)
}

/// Runs `work` on this thread, for at most about `limit`.
pub fn within<T>(limit: Duration, work: impl FnOnce() -> T) -> T {
    let _mood = match Instant::now().checked_add(limit) {
        Some(deadline) => Mood::set(Patience::Until { deadline, limit }),
        None => Mood::set(Patience::Endless),
    };
    work()
}

/// To be called before anything that waits.
///
/// # Errors
/// [`Error::WouldWait`] under [`without_waiting`].
pub fn may_wait() -> Result<()> {
    match PATIENCE.get() {
        Patience::None { .. } => {
            GAVE_UP.set(true);
            Err(Error::WouldWait)
        }
        _ => Ok(()),
    }
}

/// Whether [`may_wait`] would allow it; asking leaves no trace.
pub fn is_patient() -> bool {
    !matches!(PATIENCE.get(), Patience::None { .. })
}

/// To be called at each turn of what may go on for long.
///
/// # Errors
/// [`Error::WouldWait`] or [`Error::TimedOut`] when it has.
pub fn spend() -> Result<()> {
    let spent = SPENT.get().wrapping_add(1);
    SPENT.set(spent);
    if !spent.is_multiple_of(TURNS) {
        return Ok(());
    }
    match PATIENCE.get() {
        Patience::Endless => Ok(()),
        Patience::None { since } if since.elapsed() < MOMENT => Ok(()),
        Patience::None { .. } => may_wait(),
        Patience::Until { deadline, .. } if Instant::now() < deadline => Ok(()),
        Patience::Until { limit, .. } => Err(Error::TimedOut {
            what: "an operation that reads more and more of the disk".into(),
            after: limit,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn for_ever() -> Result<()> {
        loop {
            spend()?;
        }
    }

    #[test]
    fn endless_work_ends() {
        let began = Instant::now();
        assert!(without_waiting(for_ever).is_none());
        assert!(began.elapsed() < Duration::from_secs(1));
        let limit = Duration::from_millis(50);
        assert!(matches!(
            within(limit, for_ever),
            Err(Error::TimedOut { .. })
        ));
        assert!(began.elapsed() >= limit && began.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn patience_returns_after_a_panic() {
        let panicked = std::panic::catch_unwind(|| without_waiting(|| panic!("on purpose")));
        assert!(panicked.is_err());
        assert!(may_wait().is_ok());
    }

    #[test]
    fn an_answer_that_swallowed_the_refusal_is_dropped() {
        assert_eq!(without_waiting(|| may_wait().is_ok()), None);
        assert_eq!(without_waiting(|| 7), Some(7));
        assert!(within(Duration::from_secs(1), may_wait).is_ok());
    }
}
