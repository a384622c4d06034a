//! The downloads that run.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use sendense::catalog::{Action, Role};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::download::paths_on_record;
use crate::api::App;
use crate::api::answer::{Answer, Failure, LookUpRefusals, Refusals};
use crate::api::caller::Caller;
use crate::api::downloads::Download;
use crate::api::request::Segment;

/// The downloads that run.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Running {
    downloads: Vec<Download>,
    count: usize,
    /// How many may run at once, those of other users included.
    max_downloads: usize,
}

/// The downloads that run now, of VMs that the caller may see.
#[utoipa::path(get, path = "/api/v1/restore/downloads", tag = "Downloads",
    responses((status = 200, body = Running), Refusals))]
pub(crate) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Json<Running> {
    let mut downloads = app.downloads.list();
    downloads.retain(|download| caller.sees(&download.vm_name));
    Json(Running {
        count: downloads.len(),
        downloads,
        max_downloads: app.downloads.most(),
    })
}

/// A download that was ended.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Cancelled {
    message: String,
    download_id: String,
}

/// Ends a download: its client sees the connection break. Users end their own,
/// administrators any.
#[utoipa::path(delete, path = "/api/v1/restore/downloads/{download_id}", tag = "Downloads",
    params(("download_id" = String, Path, description = "The download")),
    responses((status = 200, body = Cancelled), LookUpRefusals))]
pub(crate) async fn cancel(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(text): Segment,
) -> Answer<Json<Cancelled>> {
    let unknown = || Failure::not_found(format!("download not found: {text}"));
    let id: Uuid = text.parse().map_err(|_| unknown())?;
    let download = app.downloads.get(id).ok_or_else(unknown)?;
    caller.must_see(&download.vm_name)?;
    if download.username != caller.name() {
        caller.must_be(Role::Admin)?;
    }
    let mut record = caller.record(Action::Cancel);
    record.vm_name = Some(download.vm_name);
    record.mount_id = Some(download.mount_id);
    record.path = paths_on_record(&download.paths).into_iter().next();
    record.detail = Some(format!("download {id} of {}", download.username));
    app.recorder.write(record).await?;
    if !app.downloads.cancel(id) {
        return Err(unknown());
    }
    Ok(Json(Cancelled {
        message: "download cancelled".into(),
        download_id: id.to_string(),
    }))
}
