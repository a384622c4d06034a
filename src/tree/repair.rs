//! The thread that reads again what was read wrong.
//!
//! The idea: bytes whose checksum is wrong are noticed by a thread that receives
//! from a disk, and must not wait; to read another copy is to wait. That is rare,
//! so one thread for all disks is enough. It is started when it is first needed.

use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};

type Job = Box<dyn FnOnce() + Send>;

/// Runs `job` on that thread, or here if there can be none. What waits there are
/// answers that somebody waits for, so there are never many.
pub(super) fn later(job: impl FnOnce() + Send + 'static) {
    static THREAD: OnceLock<Option<Sender<Job>>> = OnceLock::new();
    let thread = THREAD.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Job>();
        let work = move || {
            for job in receiver {
                // A panic costs one answer, whose sender says so when dropped.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            }
        };
        let thread = std::thread::Builder::new().name("repair".into());
        thread.spawn(work).ok().map(|_| sender)
    });
    let job: Job = Box::new(job);
    match thread {
        Some(thread) => {
            if let Err(unsent) = thread.send(job) {
                (unsent.0)();
            }
        }
        None => job(),
    }
}
