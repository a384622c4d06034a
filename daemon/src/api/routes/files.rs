//! Folders and files of a mounted disk.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use sendense::catalog::{Action, Mount};
use serde::Serialize;
use utoipa::ToSchema;

use super::mounts::find;
use crate::api::App;
use crate::api::answer::{Answer, ReadRefusals};
use crate::api::caller::Caller;
use crate::api::downloads::Hangup;
use crate::api::request::{Parameters, Segment};
use crate::api::work::{at_length, with_tree};
use crate::files::beneath::Beneath;
use crate::files::entry::Entry;
use crate::files::info::{self, FileInfo};
use crate::files::listing::{self, MAX_LIMIT, Order, Page};
use crate::files::name::GuestPath;
use crate::files::recursion;
use crate::files::root::DiskRoot;

/// Listings of at most so many entries are short.
const SHORT: usize = 1000;

/// A mount and its disk's folder, in use from now on.
///
/// # Errors
/// 404 and 403 as for [`find`]; 503 where the tree is not there.
pub(super) fn enter(app: &App, caller: &Caller, id: &str) -> Answer<(Mount, Beneath)> {
    let mount = find(app, caller, id)?;
    let root = DiskRoot::open(
        &app.config.mountpoint,
        &mount.vm_name,
        &mount.backup_id,
        mount.disk_index,
    )?;
    app.uses.mark(&mount.id);
    Ok((mount, root))
}

/// What a folder holds.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Files {
    mount_id: String,
    path: String,
    files: Vec<Entry>,
    /// Entries of the folder; with recursive=true, or in the folder's own order, those of
    /// this answer.
    total_count: usize,
    /// How they are sorted.
    order: Order,
    /// To be given as `cursor` for the next ones; not there with the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
    /// With recursive=true: whether there is more than is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<bool>,
}

/// Lists a folder: folders first, then files, each by name. Without a limit a folder of
/// up to 100,000 entries comes whole; larger ones in pages, in the folder's own order.
#[utoipa::path(get, path = "/api/v1/restore/{mount_id}/files", tag = "Restore",
    params(
        ("mount_id" = String, Path, description = "The mount"),
        ("path" = Option<String>, Query, description = "The folder; the disk's own if nobody says"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 10000, description = "At most so many"),
        ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
        ("order" = inline(Option<Order>), Query, description = "`name`, or `directory` for the folder's own"),
        ("recursive" = Option<bool>, Query, description = "All that lies below, at most `limit` (1000 if nobody says)"),
    ),
    responses((status = 200, body = Files), ReadRefusals))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(id): Segment,
    Extension(hangup): Extension<Hangup>,
    parameters: Parameters,
) -> Answer<Response> {
    let path = GuestPath::parse(parameters.bytes("path")?.unwrap_or_default())?;
    let limit = parameters.number("limit", 1, MAX_LIMIT as u64)?;
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    let page = Page {
        limit,
        cursor: parameters.text("cursor")?.map(str::to_owned),
        order: parameters.word(
            "order",
            &[("name", Order::Name), ("directory", Order::Directory)],
        )?,
    };
    let recursive = parameters.flag("recursive")?;
    let work = move || {
        let (mount, root) = enter(&app, &caller, &id)?;
        let mut record = caller.record_on(Action::List, &mount);
        record.path = Some(path.display());
        let answer = if recursive {
            let below = recursion::list_below(&root, &path, limit)?;
            Files {
                mount_id: mount.id,
                path: path.display(),
                files: below.files,
                total_count: below.total_count,
                order: Order::Name,
                next_cursor: None,
                truncated: Some(below.truncated),
            }
        } else {
            let listing = listing::list(&root, &path, &page)?;
            Files {
                mount_id: mount.id,
                path: path.display(),
                files: listing.files,
                total_count: listing.total_count,
                order: listing.order,
                next_cursor: listing.next_cursor,
                truncated: None,
            }
        };
        app.recorder.note_once(record);
        Ok(answer)
    };
    // What may be long has fewer places.
    if recursive || limit.is_none_or(|limit| limit > SHORT) {
        at_length(hangup, work).await
    } else {
        Ok(Json(with_tree(work).await?).into_response())
    }
}

/// All that is known of one file or folder.
#[utoipa::path(get, path = "/api/v1/restore/{mount_id}/file-info", tag = "Restore",
    params(
        ("mount_id" = String, Path, description = "The mount"),
        ("path" = Option<String>, Query, description = "The file or folder"),
    ),
    responses((status = 200, body = FileInfo), ReadRefusals))]
pub(crate) async fn info(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(id): Segment,
    parameters: Parameters,
) -> Answer<Json<FileInfo>> {
    let path = GuestPath::parse(parameters.bytes("path")?.unwrap_or_default())?;
    with_tree(move || {
        let (_, root) = enter(&app, &caller, &id)?;
        Ok(Json(info::info(&root, &path)?))
    })
    .await
}
