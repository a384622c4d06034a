//! Threads for what has to wait.
//!
//! The idea: work is queued by lane (a disk, or the catalog), and each lane may
//! occupy only so many threads. A disk that hangs fills its own lane and no
//! other; threads come when there is work and go when there is none.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Threads that one lane may occupy.
const PER_LANE: usize = 32;
/// How long a thread without work stays.
const LINGER: Duration = Duration::from_secs(5);
/// Stack of a worker; parsers are not deep.
const STACK: usize = 512 * 1024;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Lane {
    running: usize,
    waiting: VecDeque<Job>,
}

#[derive(Default)]
struct State {
    /// Jobs that may run now, with their lane.
    ready: VecDeque<(u64, Job)>,
    lanes: HashMap<u64, Lane>,
    idle: usize,
    threads: usize,
}

/// The threads. Dropping the handle lets them end when their work is done.
#[derive(Default)]
pub(crate) struct Workers {
    state: Mutex<State>,
    work: Condvar,
}

impl Workers {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Runs `job` on a thread of its own, after those of its lane that came
    /// before it if the lane is full.
    pub(crate) fn run(self: &Arc<Self>, lane: u64, job: Job) {
        let mut state = self.state.lock();
        let entry = state.lanes.entry(lane).or_default();
        if entry.running >= PER_LANE {
            entry.waiting.push_back(job);
            return;
        }
        entry.running = entry.running.saturating_add(1);
        state.ready.push_back((lane, job));
        if state.idle >= state.ready.len() {
            drop(state);
            self.work.notify_one();
            return;
        }
        drop(state);
        let workers = Arc::clone(self);
        let spawned = std::thread::Builder::new()
            .name("worker".into())
            .stack_size(STACK)
            .spawn(move || workers.serve());
        if let Err(error) = spawned {
            tracing::warn!(%error, "no further worker thread could be started");
            self.give_up_if_alone();
        }
    }

    /// Without any thread nobody would ever come to what is ready: it is dropped,
    /// which answers it with an error.
    fn give_up_if_alone(&self) {
        let mut state = self.state.lock();
        if state.threads > 0 {
            return;
        }
        let dropped = std::mem::take(&mut state.ready);
        for (lane, _) in &dropped {
            Self::finished(&mut state, *lane);
        }
        drop(state);
        drop(dropped);
    }

    fn serve(&self) {
        let mut state = self.state.lock();
        state.threads = state.threads.saturating_add(1);
        loop {
            if let Some((lane, job)) = state.ready.pop_front() {
                drop(state);
                // A panic would cost the lane one of its places for ever.
                let _ = catch_unwind(AssertUnwindSafe(job));
                state = self.state.lock();
                Self::finished(&mut state, lane);
                continue;
            }
            state.idle = state.idle.saturating_add(1);
            let waited = self.work.wait_for(&mut state, LINGER);
            state.idle = state.idle.saturating_sub(1);
            if waited.timed_out() && state.ready.is_empty() {
                state.threads = state.threads.saturating_sub(1);
                return;
            }
        }
    }

    fn finished(state: &mut State, lane: u64) {
        let Some(entry) = state.lanes.get_mut(&lane) else {
            return;
        };
        match entry.waiting.pop_front() {
            Some(next) => state.ready.push_back((lane, next)),
            None => {
                entry.running = entry.running.saturating_sub(1);
                if entry.running == 0 {
                    state.lanes.remove(&lane);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_lane_that_hangs_holds_up_no_other() {
        let workers = Workers::new();
        let (release, hung) = mpsc::channel::<()>();
        let hung = Arc::new(Mutex::new(hung));
        for _ in 0..PER_LANE * 2 {
            let hung = Arc::clone(&hung);
            workers.run(
                1,
                Box::new(move || {
                    let _ = hung.lock().recv();
                }),
            );
        }
        let (sender, answers) = mpsc::channel();
        for n in 0..100 {
            let sender = sender.clone();
            workers.run(2, Box::new(move || sender.send(n).unwrap()));
        }
        let mut seen: Vec<i32> = (0..100)
            .map(|_| {
                answers
                    .recv_timeout(Duration::from_secs(10))
                    .expect("the other lane runs")
            })
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        drop(release);
    }

    #[test]
    fn a_full_lane_runs_all_that_waits() {
        let workers = Workers::new();
        let (sender, answers) = mpsc::channel();
        for n in 0..1000 {
            let sender = sender.clone();
            workers.run(n % 3, Box::new(move || sender.send(n).unwrap()));
        }
        drop(sender);
        assert_eq!(answers.iter().count(), 1000);
        let state = workers.state.lock();
        assert!(state.ready.is_empty());
    }
}
