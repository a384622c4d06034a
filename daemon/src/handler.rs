//! What the running daemon answers on its control socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use sendense::catalog::{Catalog, Mount};
use sendense::tree::Tree;
use sendense::{Error, Result};

use crate::attachments::{Slots, disk_id};
use crate::control::{
    ApiState, AttachedDisk, CacheFigures, ControlHandler, DiskCheck, SlotFigures, Status, Totals,
};
use crate::leases::Leases;
use crate::process::{self, seconds};
use crate::restorable::Restorable;
use crate::watch::Watch;

/// What the control socket answers.
pub(crate) struct Handler {
    pub(crate) tree: Arc<Tree>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) mountpoint: PathBuf,
    pub(crate) errors: Box<dyn Fn() -> u64 + Send + Sync>,
    pub(crate) started: SystemTime,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) restorable: Arc<Restorable>,
    pub(crate) watch: Arc<Watch>,
    pub(crate) api: Arc<Mutex<ApiState>>,
}

impl ControlHandler for Handler {
    fn status(&self) -> Status {
        let seats = self.slots.seats();
        let held = self.slots.held();
        let totals = self.slots.totals();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut attached: Vec<AttachedDisk> = seats
            .iter()
            .map(|seat| {
                let (disk, usage) = (&seat.disk, seat.disk.usage());
                AttachedDisk {
                    path: disk.path(),
                    image: disk.record().path.display().to_string(),
                    since: seconds(seat.since),
                    last_used: seconds(self.slots.last_used(seat)),
                    uses: get(&usage.lookups).saturating_add(get(&usage.reads)),
                    reads: get(&usage.reads),
                    bytes_read: get(&usage.bytes),
                    nbd_requests: disk.export().requests(),
                    qemu_nbd_pid: disk.export().pid(),
                    restarts: disk.export().restarts(),
                    state: if held.contains(&disk_id(seat)) {
                        "held".into()
                    } else {
                        "attached".into()
                    },
                }
            })
            .collect();
        attached.extend(self.attaching());
        attached.sort_by(|a, b| a.path.cmp(&b.path));
        let sum =
            |of: fn(&AttachedDisk) -> u64| attached.iter().map(of).fold(0, u64::saturating_add);
        let cache = self.slots.cache().figures();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            started_at: seconds(self.started),
            mountpoint: self.mountpoint.display().to_string(),
            slots: SlotFigures {
                total: self.slots.limits().slots,
                used: self.slots.taken(),
                held: held.len(),
            },
            cache: CacheFigures {
                capacity: cache.capacity,
                bytes: cache.bytes,
                blocks: cache.bytes / sendense::image::cache::PAGE,
                hits: cache.hits,
                misses: cache.misses,
            },
            totals: Totals {
                attaches: get(&totals.attaches),
                evictions: get(&totals.evictions),
                reads: get(&totals.reads).saturating_add(sum(|disk| disk.reads)),
                bytes: get(&totals.bytes).saturating_add(sum(|disk| disk.bytes_read)),
                errors: (self.errors)(),
            },
            attached,
            rss: process::resident_memory(),
            resources: self.watch.resources(),
            api: self.api.lock().clone(),
        }
    }

    fn release(&self, path: &str) -> Result<String> {
        // Any further and resolving would go inside the disk, and attach it.
        let depth = path.split('/').filter(|name| !name.is_empty()).count();
        let node = self
            .tree
            .resolve(if depth > 3 { b"" } else { path.as_bytes() })?;
        let disk = Tree::disk_of(node.attr.ino).ok_or_else(|| {
            Error::Invalid(format!("{path}: not a disk; give <vm>/<backup>/disk<N>"))
        })?;
        if let Some(mount) = self.leases.mount_of(disk) {
            self.leases.unmount(&mount)?;
            return Ok(format!("{path}: released, and its mount {mount} has ended"));
        }
        if self.slots.release(disk) {
            Ok(format!("{path}: released"))
        } else {
            Err(Error::not_found(format!("{path}: not attached")))
        }
    }

    fn mount(&self, backup_id: &str, disk_index: u32) -> Result<Mount> {
        self.leases.mount(backup_id, disk_index)
    }

    fn unmount(&self, mount_id: &str) -> Result<()> {
        self.leases.unmount(mount_id)
    }

    fn touch(&self, mount_ids: &[String]) {
        self.leases.touch(mount_ids);
    }

    fn check(&self, backup_id: &str) -> Result<Vec<DiskCheck>> {
        self.restorable.check(backup_id)
    }
}

impl Handler {
    /// Disks that are just being attached: nothing is known of them but the row.
    fn attaching(&self) -> Vec<AttachedDisk> {
        let rows = self.slots.attaching().into_iter().filter_map(|id| {
            let row = i64::try_from(id).ok()?;
            Some(self.catalog.disk(row).ok()??.0)
        });
        rows.map(|record| AttachedDisk {
            path: format!(
                "{}/{}/disk{}",
                record.vm_name, record.backup_id, record.disk_index
            ),
            image: record.path.display().to_string(),
            state: "attaching".into(),
            ..AttachedDisk::default()
        })
        .collect()
    }
}
