//! Mounts asked for over REST.
//!
//! The idea: a mount is a lease on a slot. Its row in the catalog tells its state
//! to everybody and survives a crash; [`Leases`] has the same leases in memory, with
//! the moment at which each ends by a clock that does not jump, and holds their
//! disks. All that changes by itself (uses to write down, leases that expire,
//! backups that are gone, disks to attach anew) is seen to once a second by one
//! thread, the [`Keeper`].
//!
//! Attaching may hang where a repository hangs, so it is done by threads of its own
//! that nobody waits for without end.

mod keeper;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use parking_lot::Mutex;
use sendense::catalog::{Catalog, DiskRecord, Mount, MountEnd, MountUse, MountedDisk, NewMount};
use sendense::tree::{AttachedDisk, Attachments, VolumeState, VolumeSummary};
use sendense::{Error, Result};

pub(crate) use self::keeper::Keeper;
use crate::attachments::Slots;
use crate::watch::Watch;

/// What attaching may take longer than waiting for a slot does.
const GRACE: Duration = Duration::from_secs(15);

/// No mount lives longer without use: moments must not overflow.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// The leases of a daemon.
pub(crate) struct Leases {
    catalog: Arc<Catalog>,
    slots: Arc<Slots>,
    watch: Arc<Watch>,
    mountpoint: PathBuf,
    /// By the mount's id. Never locked while anything waits.
    live: Mutex<HashMap<String, Lease>>,
    /// Held while a row and its lease come or go together, so that whoever compares
    /// them sees both or neither.
    steps: Mutex<()>,
    /// Whether a disk was let go, so that there is memory to give back.
    let_go: AtomicBool,
}

/// A mount, in memory.
#[derive(Debug, Clone)]
struct Lease {
    disk: u64,
    /// `<vm>/<backup>/disk<N>`.
    path: String,
    /// What the catalog's row names as serving the blocks; `None` until the disk
    /// is attached.
    device: Option<String>,
    /// Not before the disk is attached for the first time.
    mounted: bool,
    /// When it ends if nobody uses it.
    expires: Instant,
    /// Whether it was used since the row was last written.
    used: bool,
    /// Whether its disk is being attached.
    attaching: bool,
    /// After attempts that failed: the next one, and the pause after that.
    retry: Option<(Instant, Duration)>,
}

impl Leases {
    /// Takes over the mounts that an earlier run has left and that have not
    /// expired: their slots are held from now on, and their disks attached as soon
    /// as there is a [`Keeper`].
    ///
    /// # Errors
    /// From the catalog.
    pub(crate) fn resume(
        catalog: Arc<Catalog>,
        slots: Arc<Slots>,
        watch: Arc<Watch>,
        mountpoint: &Path,
    ) -> Result<Arc<Self>> {
        let leases = Arc::new(Self {
            catalog,
            slots,
            watch,
            mountpoint: mountpoint.to_owned(),
            live: Mutex::default(),
            steps: Mutex::default(),
            let_go: AtomicBool::new(false),
        });
        for mount in leases.catalog.resume_mounts(now())? {
            leases.take_over(&mount)?;
        }
        Ok(leases)
    }

    fn take_over(&self, mount: &Mount) -> Result<()> {
        let Ok(disk) = u64::try_from(mount.backup_disk_id) else {
            return Ok(());
        };
        let path = path_of(&mount.vm_name, &mount.backup_id, mount.disk_index);
        if let Err(error) = self.slots.hold(disk) {
            let why = format!("there are fewer slots than before: {error}");
            tracing::warn!(mount = mount.id, disk = path, "ended: {why}");
            self.catalog
                .end_mount(&mount.id, MountEnd::Failed(&why), now())?;
            return Ok(());
        }
        let expires = mount.expires_at.as_deref().unwrap_or_default();
        let left = expires
            .parse::<Timestamp>()
            .map_or(0, |expires| expires.as_second().saturating_sub(now()));
        let left = Duration::from_secs(u64::try_from(left).unwrap_or(0)).min(self.lifetime());
        tracing::info!(mount = mount.id, disk = path, ?left, "lives on");
        let lease = Lease {
            disk,
            path,
            device: None,
            mounted: true,
            expires: Instant::now() + left,
            used: false,
            attaching: false,
            retry: None,
        };
        self.live.lock().insert(mount.id.clone(), lease);
        Ok(())
    }

    /// How long a mount lives without use.
    fn lifetime(&self) -> Duration {
        self.slots.limits().idle_timeout.min(LONGEST)
    }

    /// Mounts a disk of a completed backup; returns when it is attached.
    ///
    /// # Errors
    /// `Unknown` for a backup or disk that the tree does not show,
    /// `MountedAlready`, `NoSlot`, `Exhausted`; why the disk cannot be attached.
    pub(crate) fn mount(self: &Arc<Self>, backup_id: &str, disk_index: u32) -> Result<Mount> {
        let record = self.catalog.disk_to_mount(backup_id, disk_index)?;
        let (id, disk) = self.begin(&record)?;
        let mounted = self.attach(disk).and_then(|disk| self.settle(&id, &disk));
        match &mounted {
            Ok(mount) => tracing::info!(mount = id, path = mount.mount_path, "mounted"),
            Err(error) => {
                tracing::warn!(mount = id, %error, "not mounted");
                let _step = self.steps.lock();
                self.forget(&id);
                self.end(&id, MountEnd::Failed(&error.to_string()));
            }
        }
        mounted
    }

    /// Holds the slot and makes the row: from here on the disk is taken.
    fn begin(&self, record: &DiskRecord) -> Result<(String, u64)> {
        let disk = u64::try_from(record.id)
            .map_err(|_| Error::Catalog(format!("disk id {} is negative", record.id)))?;
        let path = path_of(&record.vm_name, &record.backup_id, record.disk_index);
        let id = uuid::Uuid::new_v4().to_string();
        let _step = self.steps.lock();
        if let Some(mount_id) = self.mount_of(disk) {
            return Err(Error::MountedAlready {
                what: path,
                mount_id,
            });
        }
        self.watch.admit()?;
        self.slots.hold(disk)?;
        let begun = self.catalog.begin_mount(&NewMount {
            id: id.clone(),
            backup_disk_id: record.id,
            mount_path: self.place(&path),
            now: now(),
            expires: now().saturating_add(seconds(self.lifetime())),
        });
        if let Err(error) = begun {
            self.slots.unhold(disk);
            return Err(error);
        }
        let lease = Lease {
            disk,
            path,
            device: None,
            mounted: false,
            expires: Instant::now() + self.lifetime(),
            used: false,
            attaching: true,
            retry: None,
        };
        self.live.lock().insert(id.clone(), lease);
        Ok((id, disk))
    }

    /// Attaches a disk that is held, on a thread of its own.
    fn attach(&self, disk: u64) -> Result<Arc<AttachedDisk>> {
        if let Some(disk) = self.slots.peek(disk) {
            return Ok(disk);
        }
        let limit = self.slots.limits().slot_timeout.saturating_add(GRACE);
        let (sender, receiver) = mpsc::sync_channel(1);
        let slots = Arc::clone(&self.slots);
        std::thread::Builder::new()
            .name("mount".into())
            .spawn(move || {
                let attached = match slots.get(disk) {
                    // An attempt that began before the disk was held.
                    Err(Error::NoSlot { .. }) => slots.get(disk),
                    other => other,
                };
                let _ = sender.try_send(attached);
            })
            .map_err(|e| Error::io("a thread to attach a disk", e))?;
        match receiver.recv_timeout(limit) {
            Ok(attached) => attached,
            Err(RecvTimeoutError::Timeout) => Err(Error::TimedOut {
                what: format!("attaching disk {disk}"),
                after: limit,
            }),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Daemon(format!(
                "attaching disk {disk} ended without an answer; the log says why"
            ))),
        }
    }

    /// Writes down what an attached disk is.
    fn settle(&self, id: &str, disk: &AttachedDisk) -> Result<Mount> {
        let device = disk.export().uri();
        let volumes = disk.volumes();
        let expires = {
            let mut live = self.live.lock();
            let lease = live.get_mut(id).ok_or_else(|| unknown(id))?;
            if !lease.mounted {
                lease.expires = Instant::now() + self.lifetime();
            }
            lease.expires
        };
        let (last_used, expires) = self.moments(expires);
        let mount = self.catalog.settle_mount(
            id,
            &MountedDisk {
                mount_path: self.place(&disk.path()),
                nbd_device: device.clone(),
                filesystem_type: main_type(&volumes),
                volumes: serde_json::to_string(&volumes)
                    .map_err(|e| Error::Invalid(format!("volumes as JSON: {e}")))?,
                last_used,
                expires,
            },
        )?;
        if let Some(lease) = self.live.lock().get_mut(id) {
            lease.mounted = true;
            lease.device = Some(device);
            lease.attaching = false;
            lease.retry = None;
        }
        Ok(mount)
    }

    /// Ends a mount. Its disk is let go, also while somebody reads it: the tree goes
    /// on by attaching it again.
    ///
    /// # Errors
    /// `Unknown` if there is none, `Expired` if nobody had used it; from the
    /// catalog.
    pub(crate) fn unmount(&self, id: &str) -> Result<()> {
        if !self.live.lock().contains_key(id) {
            return Err(match self.catalog.mount(id)? {
                Some(mount) if mount.is_expired() => Error::Expired,
                _ => unknown(id),
            });
        }
        let _step = self.steps.lock();
        self.catalog.begin_unmount(id)?;
        if !self.forget(id) {
            return Err(unknown(id));
        }
        self.catalog.end_mount(id, MountEnd::Asked, now())?;
        tracing::info!(mount = id, "unmounted");
        Ok(())
    }

    /// These mounts were used just now; those that are not there are passed over.
    pub(crate) fn touch(&self, ids: &[String]) {
        let expires = Instant::now() + self.lifetime();
        let mut live = self.live.lock();
        for id in ids {
            if let Some(lease) = live.get_mut(id) {
                lease.expires = expires;
                lease.used = true;
            }
        }
    }

    /// The mount that a disk has.
    pub(crate) fn mount_of(&self, disk: u64) -> Option<String> {
        let live = self.live.lock();
        live.iter()
            .find(|(_, lease)| lease.disk == disk)
            .map(|(id, _)| id.clone())
    }

    /// Takes a lease out and gives its slot back; false if it was not there.
    fn forget(&self, id: &str) -> bool {
        let lease = self.live.lock().remove(id);
        if let Some(lease) = &lease {
            self.slots.unhold(lease.disk);
            self.let_go.store(true, Ordering::Relaxed);
        }
        lease.is_some()
    }

    /// Ends a row, if it can be written; the keeper tries again.
    fn end(&self, id: &str, end: MountEnd<'_>) {
        if let Err(error) = self.catalog.end_mount(id, end, now()) {
            tracing::warn!(mount = id, %error, "its end cannot be recorded yet");
        }
    }

    /// When a lease was last used and when it ends, by the clock on the wall as it
    /// is now.
    fn moments(&self, expires: Instant) -> (i64, i64) {
        let left = expires.saturating_duration_since(Instant::now());
        // To the nearest second: a moment ago is now.
        let left = seconds(left.saturating_add(Duration::from_millis(500)));
        let expires = now().saturating_add(left);
        (expires.saturating_sub(seconds(self.lifetime())), expires)
    }

    fn use_of(&self, id: &str, lease: &Lease) -> MountUse {
        let (last_used, expires) = self.moments(lease.expires);
        MountUse {
            id: id.to_owned(),
            last_used,
            expires,
        }
    }

    /// Where a disk's folder appears.
    fn place(&self, path: &str) -> String {
        self.mountpoint.join(path).display().to_string()
    }
}

/// The type of the largest volume that has a file system.
fn main_type(volumes: &[VolumeSummary]) -> Option<String> {
    volumes
        .iter()
        .filter(|v| matches!(v.state, VolumeState::Ready | VolumeState::Unreadable))
        .filter(|v| v.filesystem.is_some())
        // The first of several that are as large.
        .rev()
        .max_by_key(|v| v.size)
        .and_then(|v| v.filesystem.clone())
}

fn path_of(vm: &str, backup: &str, disk: u32) -> String {
    format!("{vm}/{backup}/disk{disk}")
}

fn unknown(id: &str) -> Error {
    Error::Unknown(format!("mount not found: {id}"))
}

/// The clock on the wall, seconds since 1970.
fn now() -> i64 {
    crate::process::seconds(SystemTime::now())
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}
