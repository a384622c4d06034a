//! What changes about leases by itself, once a second.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use sendense::catalog::{Action, AuditRecord, MountEnd};
use sendense::tree::{Attachments, read};
use sendense::{Error, Result, sys};

use super::{Lease, Leases};

/// How often leases are looked at, and at most written down.
const TICK: Duration = Duration::from_secs(1);

/// Disks that are attached anew at once.
const AT_ONCE: usize = 4;

/// Uses are told once a second: so long after its end a lease may still have been used.
const LATE_MARKS: Duration = Duration::from_secs(2);

/// The pause after the first attempt to attach a disk anew that failed, and the
/// longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How long the end waits for what is being written.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The two clocks drift by less than this in a second, unless one was set.
const DRIFT: Duration = Duration::from_secs(5);

/// The user of audit records of what happens by itself.
const RECORDED_AS: &str = "local:daemon";

/// Looks after the leases until it is dropped.
pub(crate) struct Keeper {
    stop: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Begins to look after the leases.
    ///
    /// # Errors
    /// `Io` if no thread can be started.
    pub(crate) fn start(leases: &Arc<Leases>) -> Result<Self> {
        let (stop, stopped) = mpsc::sync_channel(1);
        let leases = Arc::clone(leases);
        let thread = std::thread::Builder::new()
            .name("leases".into())
            .spawn(move || {
                let mut state = State::default();
                loop {
                    state.tick(&leases);
                    if stopped.recv_timeout(TICK) != Err(RecvTimeoutError::Timeout) {
                        break;
                    }
                }
                leases.write_uses();
            })
            .map_err(|e| Error::io("the thread of the leases", e))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.stop.try_send(());
        let Some(thread) = self.thread.take() else {
            return;
        };
        let began = Instant::now();
        while !thread.is_finished() {
            if began.elapsed() > LAST_WORDS {
                tracing::warn!("the last uses of mounts could not be recorded in time");
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = thread.join();
    }
}

/// What one look remembers for the next.
#[derive(Default)]
struct State {
    /// The catalog's version when its rows were last compared with the leases.
    compared: Option<u64>,
    clocks: Option<(Instant, SystemTime)>,
}

impl State {
    /// One look at everything.
    fn tick(&mut self, leases: &Arc<Leases>) {
        if self.clock_was_set() {
            leases.rewrite_all();
        }
        leases.expire();
        leases.write_uses();
        // A catalog that cannot be read for a moment is asked again.
        if let Ok(version) = leases.catalog.version()
            && self.compared != Some(version)
        {
            match leases.follow_catalog() {
                Ok(()) => self.compared = Some(version),
                Err(error) => tracing::warn!(%error, "mounts cannot be compared with the catalog"),
            }
        }
        leases.attach_anew();
        if leases.let_go.swap(false, Ordering::Relaxed) {
            read::free_spare_buffers();
            sys::trim_memory();
        }
    }

    /// Whether the clock on the wall has made a jump: leases do not, and what their
    /// rows say of their ends must follow it.
    fn clock_was_set(&mut self) -> bool {
        let (instant, time) = (Instant::now(), SystemTime::now());
        let Some((then, before)) = self.clocks.replace((instant, time)) else {
            return false;
        };
        let passed = instant.saturating_duration_since(then);
        let Some(expected) = before.checked_add(passed) else {
            return true;
        };
        let drift = time
            .duration_since(expected)
            .unwrap_or_else(|early| early.duration());
        drift > DRIFT
    }
}

/// Whether nobody has used a lease for too long.
fn is_over(lease: &Lease) -> bool {
    lease.mounted && lease.expires.elapsed() >= LATE_MARKS
}

impl Leases {
    /// Ends what nobody has used for too long.
    fn expire(&self) {
        let due: Vec<String> = {
            let live = self.live.lock();
            let due = live.iter().filter(|(_, lease)| is_over(lease));
            due.map(|(id, _)| id.clone()).collect()
        };
        for id in due {
            let _step = self.steps.lock();
            // Somebody may have used it since, or ended it.
            let live = self.live.lock();
            if live.get(&id).is_none_or(|lease| !is_over(lease)) {
                continue;
            }
            drop(live);
            // The row first: a lease whose row cannot be ended yet is ended later.
            match self.catalog.end_mount(&id, MountEnd::Expired, super::now()) {
                Ok(_) => {
                    self.forget(&id);
                    tracing::info!(mount = id, "expired");
                    self.record_expiry(&id);
                }
                Err(error) => tracing::warn!(mount = id, %error, "cannot be ended yet"),
            }
        }
    }

    /// The audit record that a mount ended for want of use. Nothing depends on it: where
    /// it cannot be written, the log has to do.
    fn record_expiry(&self, id: &str) {
        let recorded = self.catalog.mount(id).and_then(|mount| {
            let Some(mount) = mount else { return Ok(()) };
            self.catalog.record_audit(&[AuditRecord {
                vm_name: Some(mount.vm_name),
                backup_id: Some(mount.backup_id),
                disk_index: Some(mount.disk_index),
                mount_id: Some(mount.id),
                ..AuditRecord::now(Action::Expire, RECORDED_AS, "")
            }])
        });
        if let Err(error) = recorded {
            tracing::warn!(mount = id, %error, "its end is not in the audit record");
        }
    }

    /// Writes down which leases were used.
    pub(super) fn write_uses(&self) {
        let uses: Vec<_> = {
            let mut live = self.live.lock();
            let used = live.iter_mut().filter(|(_, lease)| lease.used);
            used.map(|(id, lease)| {
                lease.used = false;
                self.use_of(id, lease)
            })
            .collect()
        };
        if uses.is_empty() {
            return;
        }
        if let Err(error) = self.catalog.touch_mounts(&uses) {
            tracing::warn!(%error, "uses of mounts cannot be recorded yet");
            let mut live = self.live.lock();
            for each in &uses {
                if let Some(lease) = live.get_mut(&each.id) {
                    lease.used = true;
                }
            }
        }
    }

    fn rewrite_all(&self) {
        for lease in self.live.lock().values_mut() {
            lease.used = true;
        }
    }

    /// Lets go whatever the catalog does not know as a live mount any more, or whose
    /// disk the tree does not show any more; ends rows that are nobody's.
    fn follow_catalog(&self) -> Result<()> {
        let _step = self.steps.lock();
        let rows: HashMap<String, bool> = self.catalog.live_mount_ids()?.into_iter().collect();
        let leases: HashMap<String, String> = {
            let live = self.live.lock();
            let all = live
                .iter()
                .map(|(id, lease)| (id.clone(), lease.path.clone()));
            all.collect()
        };
        for (id, path) in &leases {
            match rows.get(id) {
                Some(true) => {}
                Some(false) => {
                    self.forget(id);
                    let why = format!("{path}: has left the tree");
                    tracing::info!(mount = id, "ended: {why}");
                    self.end(id, MountEnd::Failed(&why));
                }
                None => {
                    if self.forget(id) {
                        tracing::info!(mount = id, disk = path, "ended: its row is gone");
                    }
                }
            }
        }
        for id in rows.keys() {
            if leases.contains_key(id) {
                continue;
            }
            // Its disk was let go, and its row could not be ended at that time.
            let asked = self.catalog.mount(id)?;
            let end = if asked.is_some_and(|mount| mount.status == "unmounting") {
                MountEnd::Asked
            } else {
                MountEnd::Failed("the daemon does not know of it")
            };
            self.end(id, end);
        }
        Ok(())
    }

    /// Attaches the disks of leases that have none, as after a restart, and writes
    /// down what serves them now.
    fn attach_anew(self: &Arc<Self>) {
        let now = Instant::now();
        let mut due = Vec::new();
        {
            let mut live = self.live.lock();
            let mut busy = live.values().filter(|lease| lease.attaching).count();
            for (id, lease) in live.iter_mut() {
                let wanted = lease.mounted
                    && !lease.attaching
                    && lease.retry.is_none_or(|(at, _)| at <= now);
                if !wanted || busy >= AT_ONCE {
                    continue;
                }
                let device = self.slots.peek(lease.disk).map(|disk| disk.export().uri());
                if device.is_none() || device != lease.device {
                    lease.attaching = true;
                    busy = busy.saturating_add(1);
                    due.push((id.clone(), lease.disk));
                }
            }
        }
        for (id, disk) in due {
            let leases = Arc::clone(self);
            let lease = id.clone();
            let started = std::thread::Builder::new()
                .name("mount".into())
                .spawn(move || {
                    let settled = leases
                        .attach(disk)
                        .and_then(|disk| leases.settle(&lease, &disk));
                    match settled {
                        Ok(_) => tracing::info!(mount = lease, "attached anew"),
                        Err(error) => leases.put_off(&lease, &error),
                    }
                });
            if let Err(error) = started {
                self.put_off(&id, &Error::io("a thread to attach a disk", error));
            }
        }
    }

    /// A disk could not be attached: its mount lives on, and it is tried again.
    fn put_off(&self, id: &str, error: &Error) {
        if let Some(lease) = self.live.lock().get_mut(id) {
            let (first, longest) = PAUSES;
            let pause = lease.retry.map_or(first, |(_, pause)| pause);
            tracing::warn!(mount = id, disk = lease.path, %error, ?pause, "cannot be attached");
            lease.attaching = false;
            lease.retry = Some((Instant::now() + pause, pause.saturating_mul(2).min(longest)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_noticed() {
        let mut state = State::default();
        assert!(!state.clock_was_set());
        assert!(!state.clock_was_set());
        let hour = Duration::from_secs(3600);
        for before in [SystemTime::now() - hour, SystemTime::now() + hour] {
            state.clocks = Some((Instant::now(), before));
            assert!(state.clock_was_set());
            assert!(!state.clock_was_set());
        }
    }
}
