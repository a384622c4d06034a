//! Signals that ask the program to end.
//!
//! The idea: the first asks, the second insists. A signal reaches [`Shutdown`]
//! through a channel, so that `serve` can wait for it together with its own
//! timers; when a second comes before the end, the process ends at once, and the
//! next start clears what was left.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use sendense::{Error, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Why the program should end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The signal of this number.
    Signal(i32),
    /// Signals can no longer be waited for.
    Deaf,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Signal(number) => match signal_hook::low_level::signal_name(*number) {
                Some(name) => write!(f, "{name}"),
                None => write!(f, "signal {number}"),
            },
            Self::Deaf => write!(f, "signals can no longer be received"),
        }
    }
}

/// The end of a daemon, waited for by its main thread.
pub(crate) struct Shutdown {
    receiver: Receiver<Reason>,
}

impl Shutdown {
    /// Catches SIGTERM, SIGINT and SIGHUP from now on.
    ///
    /// # Errors
    /// `Io` if the handlers cannot be installed.
    pub(crate) fn install() -> Result<Self> {
        let failed = |e| Error::io("signal handlers", e);
        let mut signals =
            signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(failed)?;
        let (sender, receiver) = mpsc::channel();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for (earlier, signal) in signals.forever().enumerate() {
                    if earlier > 0 {
                        signal_hook::low_level::exit(128_i32.saturating_add(signal));
                    }
                    let _ = sender.send(Reason::Signal(signal));
                }
            })
            .map_err(failed)?;
        Ok(Self { receiver })
    }

    /// Waits for the end, at most `time`; `None` if it did not come.
    pub(crate) fn wait_for(&self, time: Duration) -> Option<Reason> {
        match self.receiver.recv_timeout(time) {
            Ok(reason) => Some(reason),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Reason::Deaf),
        }
    }
}

/// A flag that Ctrl-C or SIGTERM sets, for commands that clean up after
/// themselves; a second one ends the process at once.
///
/// # Errors
/// `Io` if the handlers cannot be installed.
pub(crate) fn interruption() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the second signal finds the flag set by the first.
        let status = 128_i32.saturating_add(signal);
        signal_hook::flag::register_conditional_shutdown(signal, status, Arc::clone(&flag))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
            .map_err(|e| Error::io("signal handlers", e))?;
    }
    Ok(flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test, one signal: a second one ends the process, as it should.
    #[test]
    fn the_first_signal_asks() {
        let shutdown = Shutdown::install().unwrap();
        assert_eq!(shutdown.wait_for(Duration::from_millis(10)), None);
        signal_hook::low_level::raise(SIGTERM).unwrap();
        let reason = shutdown.wait_for(Duration::from_secs(5));
        assert_eq!(reason, Some(Reason::Signal(SIGTERM)));
        assert_eq!(Reason::Signal(SIGTERM).to_string(), "SIGTERM");
    }
}
