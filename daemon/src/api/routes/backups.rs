//! The backups: lists, details, chains.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use sendense::catalog::{Backup, BackupSummary, ChainLink};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::App;
use crate::api::answer::{Answer, Failure, LookUpRefusals, ReadRefusals, Refusals, public};
use crate::api::caller::Caller;
use crate::api::request::{Parameters, Segment};
use crate::api::work::{with_catalog, with_daemon};

/// The backups that the caller may see.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Backups {
    backups: Vec<BackupSummary>,
    total_count: usize,
}

/// The states of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum Status {
    Started,
    InProgress,
    Completed,
    Failed,
    /// What a form sends whose field is left empty.
    #[schema(rename = "")]
    Any,
}

const STATUSES: &[(&str, Status)] = &[
    ("started", Status::Started),
    ("in_progress", Status::InProgress),
    ("completed", Status::Completed),
    ("failed", Status::Failed),
    ("", Status::Any),
];

impl Status {
    fn name(self) -> &'static str {
        let mut words = STATUSES.iter();
        let word = words.find(|(_, status)| *status == self);
        word.map_or("", |(name, _)| name)
    }
}

/// The backups, oldest first.
#[utoipa::path(get, path = "/api/v1/backups", tag = "Backups",
    params(
        ("vm_name" = Option<String>, Query, description = "Only backups of this VM"),
        ("status" = inline(Option<Status>), Query, description = "Only backups in this state"),
    ),
    responses((status = 200, body = Backups), Refusals))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    parameters: Parameters,
) -> Answer<Json<Backups>> {
    let vm = parameters.text("vm_name")?.map(str::to_owned);
    let status = parameters.word("status", STATUSES)?;
    let status = status.map(Status::name).filter(|name| !name.is_empty());
    if let Some(vm) = &vm {
        caller.must_see(vm)?;
    }
    let mut backups =
        with_catalog(move || Ok(app.catalog.backup_summaries(vm.as_deref(), status)?)).await?;
    backups.retain(|backup| caller.sees(&backup.vm_name));
    Ok(Json(Backups {
        total_count: backups.len(),
        backups,
    }))
}

/// One backup with its disks.
#[utoipa::path(get, path = "/api/v1/backups/{backup_id}", tag = "Backups",
    params(("backup_id" = String, Path, description = "The backup's id")),
    responses((status = 200, body = Backup), LookUpRefusals))]
pub(crate) async fn detail(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(id): Segment,
) -> Answer<Json<Backup>> {
    let unknown = Failure::not_found(format!("backup not found: {id}"));
    let backup = with_catalog(move || Ok(app.catalog.backup(&id)?)).await?;
    let backup = backup.ok_or(unknown)?;
    caller.must_see(&backup.vm_name)?;
    Ok(Json(backup))
}

/// How long the images of a chain may take to be looked at.
const PATIENCE: Duration = Duration::from_secs(60);

/// The backups of a VM, each with its place in its chain.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Chain {
    vm_name: String,
    repository_id: Option<String>,
    chain: Vec<Link>,
    total_backups: usize,
    chain_size_gb: f64,
}

/// A backup in its chain.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Link {
    #[serde(flatten)]
    link: ChainLink,
    /// Every image of the backing chain is there and opens.
    is_restorable: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The chains of a VM: full backups and what was put on each since. Whether a backup
/// can be restored is looked at, not assumed.
#[utoipa::path(get, path = "/api/v1/backups/chain", tag = "Backups",
    params(
        ("vm_name" = String, Query, min_length = 1, description = "The VM"),
        ("repository_id" = Option<String>, Query, description = "Only backups in this repository"),
    ),
    responses((status = 200, body = Chain), ReadRefusals))]
pub(crate) async fn chain(
    State(app): State<Arc<App>>,
    caller: Caller,
    parameters: Parameters,
) -> Answer<Json<Chain>> {
    let vm_name = parameters.required("vm_name")?.to_owned();
    let repository = parameters.text("repository_id")?.map(str::to_owned);
    caller.must_see(&vm_name)?;
    with_daemon(move || {
        let links = app.catalog.chain(&vm_name, repository.as_deref())?;
        if links.is_empty() {
            return Err(Failure::not_found(format!(
                "no backups found: vm_name={vm_name}{}",
                repository.map_or(String::new(), |id| format!(", repository_id={id}"))
            )));
        }
        let repository_id = links.last().and_then(|link| link.repository_id.clone());
        let size: f64 = links.iter().filter_map(|link| link.size_gb).sum();
        let began = Instant::now();
        // From the newest: what opens proves all that it lies on.
        let mut chain: Vec<Link> = links
            .into_iter()
            .rev()
            .map(|link| {
                let reason = if began.elapsed() < PATIENCE {
                    obstacle(&app, &link)?
                } else {
                    Some("not looked at: the images of others took too long".into())
                };
                Ok(Link {
                    link,
                    is_restorable: reason.is_none(),
                    reason,
                })
            })
            .collect::<Answer<_>>()?;
        chain.reverse();
        Ok(Json(Chain {
            vm_name,
            repository_id,
            total_backups: chain.len(),
            chain,
            chain_size_gb: (size * 1000.0).round() / 1000.0,
        }))
    })
    .await
}

/// Why a backup cannot be restored.
fn obstacle(app: &App, link: &ChainLink) -> Answer<Option<String>> {
    if link.status != "completed" {
        return Ok(Some(format!("the backup is {}", link.status)));
    }
    let disks = app.daemon.check(&link.backup_id)?;
    if disks.is_empty() {
        return Ok(Some("it has no disk that is there".into()));
    }
    Ok(disks.into_iter().find_map(|disk| {
        let error = disk.error?;
        Some(format!("disk {}: {}", disk.disk_index, public(&error)))
    }))
}
