//! Ends of child processes, and what is removed after them.
//!
//! The idea: the last owner of a process or a socket may be a thread that others
//! wait for (one that receives replies, the clock, a loop of the file system), so
//! that a drop must not wait for anything. It only kills; one thread of the
//! program reaps and removes.

use std::path::PathBuf;
use std::process::Child;
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How long a killed process usually takes to end.
const SOON: Duration = Duration::from_micros(500);
/// How often one is looked at that cannot die now (it waits for a disk or a
/// network). The others do not wait with it.
const LATER: Duration = Duration::from_millis(100);

enum Left {
    Process(Child),
    File(PathBuf),
}

static REAPER: LazyLock<Sender<Left>> = LazyLock::new(|| {
    let (sender, receiver) = channel();
    let work = move || run(&receiver);
    let thread = std::thread::Builder::new().name("reaper".into());
    if let Err(e) = thread.spawn(work) {
        tracing::error!("child processes will not be waited for: {e}");
    }
    sender
});

/// Kills a child at once and reaps it elsewhere.
pub(crate) fn end(mut child: Child) {
    // Fails only if it has ended and was reaped.
    let _ = child.kill();
    leave(Left::Process(child));
}

/// Removes a file elsewhere, if it is there.
pub(crate) fn remove(file: PathBuf) {
    leave(Left::File(file));
}

fn leave(what: Left) {
    // Fails only if there is no thread, which was said.
    let _ = REAPER.send(what);
}

fn run(arriving: &Receiver<Left>) {
    let mut dying: Vec<Child> = Vec::new();
    let mut pause = SOON;
    loop {
        let next = if dying.is_empty() {
            arriving.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            arriving.recv_timeout(pause)
        };
        match next {
            Ok(Left::Process(child)) => {
                dying.push(child);
                pause = SOON;
            }
            Ok(Left::File(file)) => {
                // It may never have come to be.
                let _ = std::fs::remove_file(file);
            }
            Err(RecvTimeoutError::Timeout) => pause = pause.saturating_mul(2).min(LATER),
            Err(RecvTimeoutError::Disconnected) => return,
        }
        dying.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}
