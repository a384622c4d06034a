//! Mounts: a disk of a backup, held open for its user.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use jiff::{Timestamp, ToSpan};
use sendense::catalog::{Action, Mount, Outcome, Role};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::App;
use crate::api::answer::{Answer, Failure, LookUpRefusals, ReadRefusals, Refusals};
use crate::api::caller::Caller;
use crate::api::request::{Body, Segment};
use crate::api::work::{to_the_end, with_catalog, with_daemon};

/// What is to be mounted.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct MountRequest {
    backup_id: String,
    #[serde(default)]
    disk_index: u32,
}

/// A mount.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MountAnswer {
    mount_id: String,
    backup_id: String,
    backup_disk_id: i64,
    disk_index: u32,
    vm_name: String,
    /// When the backup was taken.
    backup_created_at: String,
    /// The disk's folder in the tree.
    mount_path: Option<String>,
    /// What serves the blocks.
    nbd_device: Option<String>,
    /// The type of the largest file system.
    filesystem_type: Option<String>,
    /// `mounting`, `mounted`, `unmounting`.
    status: String,
    created_at: String,
    last_accessed_at: Option<String>,
    /// When it is released if nobody uses it.
    expires_at: Option<String>,
    volumes: Vec<VolumeAnswer>,
}

/// A volume of a disk.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct VolumeAnswer {
    /// Its folder in the disk's, or an empty text where the disk's folder is its own.
    name: String,
    filesystem: Option<String>,
    label: Option<String>,
    /// Bytes.
    size: Option<u64>,
    /// `ready`, `locked`, `unreadable`, `elsewhere`.
    state: String,
    /// Why it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// What one should know of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

impl MountAnswer {
    fn new(mount: Mount, app: &App) -> Self {
        let (mut last, mut expires) = (mount.last_accessed_at, mount.expires_at);
        // What the daemon has not written yet.
        if let Some(used) = app.uses.last(&mount.id).and_then(time)
            && last.as_ref().is_none_or(|last| *last < used.to_string())
        {
            let idle = i64::try_from(app.config.idle_timeout.as_secs()).unwrap_or(i64::MAX);
            last = Some(used.to_string());
            expires = used
                .checked_add(idle.seconds())
                .ok()
                .map(|at| at.to_string());
        }
        Self {
            mount_id: mount.id,
            backup_id: mount.backup_id,
            backup_disk_id: mount.backup_disk_id,
            disk_index: mount.disk_index,
            vm_name: mount.vm_name,
            backup_created_at: mount.backup_created_at,
            mount_path: mount.mount_path,
            nbd_device: mount.nbd_device,
            filesystem_type: mount.filesystem_type,
            status: mount.status,
            created_at: mount.created_at,
            last_accessed_at: last,
            expires_at: expires,
            volumes: mount
                .volumes
                .and_then(|json| serde_json::from_str(&json).ok())
                .unwrap_or_default(),
        }
    }
}

/// To the second, like the catalog's times.
fn time(time: SystemTime) -> Option<Timestamp> {
    let time = Timestamp::try_from(time).ok()?;
    Timestamp::from_second(time.as_second()).ok()
}

/// The mount of a request's address: live, and of a VM that the caller may see.
///
/// # Errors
/// 404 if it is not there, has ended or expired; 403.
pub(crate) fn find(app: &App, caller: &Caller, id: &str) -> Answer<Mount> {
    let unknown = || Failure::not_found(format!("mount not found: {id}"));
    let mount = app.catalog.mount(id)?.ok_or_else(unknown)?;
    caller.must_see(&mount.vm_name)?;
    if mount.is_expired() {
        return Err(sendense::Error::Expired.into());
    }
    if mount.status == "mounted" {
        return Ok(mount);
    }
    Err(unknown())
}

/// Mounts a disk of a completed backup.
#[utoipa::path(post, path = "/api/v1/restore/mount", tag = "Restore",
    request_body = MountRequest,
    responses(
        (status = 200, body = MountAnswer),
        (status = 408, body = crate::api::answer::ErrorBody, description = "The body did not arrive in time"),
        (status = 409, body = crate::api::answer::ErrorBody, description = "The disk is mounted already; mount_id names the mount"),
        (status = 413, body = crate::api::answer::ErrorBody, description = "The body is too long"),
        (status = 415, body = crate::api::answer::ErrorBody, description = "The body is not JSON"),
        ReadRefusals))]
pub(crate) async fn mount(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(wanted): Body<MountRequest>,
) -> Answer<Json<MountAnswer>> {
    caller.must_be(Role::Operator)?;
    to_the_end(make(app, caller, wanted)).await
}

/// Makes a mount and its record: both, or neither.
async fn make(app: Arc<App>, caller: Caller, wanted: MountRequest) -> Answer<Json<MountAnswer>> {
    let mut record = caller.record(Action::Mount);
    record.backup_id = Some(wanted.backup_id.clone());
    record.disk_index = Some(wanted.disk_index);
    let asked = Arc::clone(&app);
    let (vm_name, mounted) = with_daemon(move || {
        let Some(backup) = asked.catalog.backup(&wanted.backup_id)? else {
            let unknown = format!("backup not found: {}", wanted.backup_id);
            return Ok((None, Err(Failure::not_found(unknown))));
        };
        caller.must_see(&backup.vm_name)?;
        let mounted = asked.daemon.mount(&wanted.backup_id, wanted.disk_index);
        Ok((Some(backup.vm_name), mounted.map_err(Failure::from)))
    })
    .await?;
    record.vm_name = vm_name;
    match mounted {
        Ok(mount) => {
            record.mount_id = Some(mount.id.clone());
            if let Err(failure) = app.recorder.write(record).await {
                // Nobody would know of it.
                with_daemon(move || Ok(app.daemon.unmount(&mount.id)?)).await?;
                return Err(failure);
            }
            Ok(Json(MountAnswer::new(mount, &app)))
        }
        Err(failure) => {
            record.outcome = Outcome::Refused;
            record.detail = Some(failure.message().to_owned());
            app.recorder.note(record);
            Err(failure)
        }
    }
}

/// The mounts.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Mounts {
    mounts: Vec<MountAnswer>,
    count: usize,
    /// Mounts ever made.
    total_restores: u64,
    /// How many mounts there can be at once, those of other users included.
    total_slots: usize,
    free_slots: usize,
}

/// The mounts of VMs that the caller may see. Looking at them keeps none alive.
#[utoipa::path(get, path = "/api/v1/restore/mounts", tag = "Restore",
    responses((status = 200, body = Mounts), Refusals))]
pub(crate) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Answer<Json<Mounts>> {
    with_catalog(move || {
        let live = app.catalog.live_mounts()?;
        let ids: HashSet<&str> = live.iter().map(|mount| mount.id.as_str()).collect();
        app.uses.forget_others(&ids);
        let total_slots = app.config.slots;
        let free_slots = total_slots.saturating_sub(live.len());
        let mounts: Vec<MountAnswer> = live
            .into_iter()
            .filter(|mount| caller.sees(&mount.vm_name))
            .map(|mount| MountAnswer::new(mount, &app))
            .collect();
        Ok(Json(Mounts {
            count: mounts.len(),
            mounts,
            total_restores: app.catalog.mounts_so_far()?,
            total_slots,
            free_slots,
        }))
    })
    .await
}

/// One mount. Looking at it does not keep it alive.
#[utoipa::path(get, path = "/api/v1/restore/{mount_id}", tag = "Restore",
    params(("mount_id" = String, Path, description = "The mount")),
    responses((status = 200, body = MountAnswer), LookUpRefusals))]
pub(crate) async fn detail(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(id): Segment,
) -> Answer<Json<MountAnswer>> {
    with_catalog(move || Ok(Json(MountAnswer::new(find(&app, &caller, &id)?, &app)))).await
}

/// The end of a mount.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Unmounted {
    message: String,
    mount_id: String,
}

/// Releases a mount, and ends the downloads that run on it.
#[utoipa::path(delete, path = "/api/v1/restore/{mount_id}", tag = "Restore",
    params(("mount_id" = String, Path, description = "The mount")),
    responses((status = 200, body = Unmounted), ReadRefusals))]
pub(crate) async fn unmount(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(id): Segment,
) -> Answer<Json<Unmounted>> {
    caller.must_be(Role::Operator)?;
    to_the_end(async move {
        let (asked, who) = (Arc::clone(&app), caller.clone());
        let mount = with_daemon(move || {
            let mount = find(&asked, &who, &id)?;
            asked.downloads.cancel_mount(&mount.id);
            asked.daemon.unmount(&mount.id)?;
            Ok(mount)
        })
        .await?;
        let record = caller.record_on(Action::Unmount, &mount);
        app.recorder.write(record).await?;
        Ok(Json(Unmounted {
            message: "backup unmounted successfully".into(),
            mount_id: mount.id,
        }))
    })
    .await
}
