//! How much an archive would hold, counted before it is begun.
//!
//! The idea: counting goes through every folder, which can take a minute and has a
//! thread meanwhile. So few count at once, others wait for a while, and it ends when its
//! client has gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::download::{look, names, paths};
use super::files::enter;
use crate::api::App;
use crate::api::answer::{Answer, Failure, ReadRefusals};
use crate::api::caller::Caller;
use crate::api::request::{Parameters, Segment};
use crate::api::work::with_tree;
use crate::archive;
use crate::files::beneath::Beneath;
use crate::files::name::GuestPath;

/// How long the size of an archive may take to be found.
const MEASURING: Duration = Duration::from_secs(60);
/// Folders that are counted at once: each has a thread while that goes on.
pub(crate) const COUNTS: usize = 8;
/// How long one waits for its turn.
const COUNT_PATIENCE: Duration = Duration::from_secs(10);

/// Counts what an archive of the paths holds, while the client waits for it.
///
/// # Errors
/// 503 if too many are counted already.
pub(super) async fn measure(
    app: &App,
    root: &Beneath,
    paths: &[GuestPath],
) -> Answer<archive::Measure> {
    let place = Arc::clone(&app.counting).acquire_owned();
    let busy = || {
        Failure::later(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many folders are being counted; try again",
            5,
        )
    };
    let place = tokio::time::timeout(COUNT_PATIENCE, place)
        .await
        .map_err(|_| busy())?
        .map_err(Failure::internal)?;
    let gone = Gone::default();
    let (root, paths, seen) = (root.clone(), names(paths), Arc::clone(&gone.0));
    let measured = with_tree(move || {
        let _place = place;
        match archive::measure(&root, &paths, MEASURING, &seen) {
            Ok(measure) => Ok(measure),
            // Nobody is told.
            Err(archive::ArchiveError::Cancelled) => Err(busy()),
            Err(error) => Err(Failure::internal(error)),
        }
    })
    .await;
    drop(gone);
    measured
}

/// Ends the counting when its client has gone: dropped, it says so.
#[derive(Default)]
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// That an archive is not larger than may be; its bytes.
///
/// # Errors
/// 413 if they are more.
pub(super) fn within(measure: archive::Measure, most: u64) -> Answer<u64> {
    if measure.bytes > most {
        return Err(Failure::too_large(format!(
            "that is {} bytes in {} files, and at most {most} may be downloaded as one archive \
             (max_archive_size)",
            measure.bytes, measure.files
        )));
    }
    if !measure.complete {
        return Err(Failure::too_large(
            "that is too much to be counted in time; take it in parts",
        ));
    }
    Ok(measure.bytes)
}

/// What an archive would hold.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Size {
    mount_id: String,
    paths: Vec<String>,
    total_files: u64,
    total_directories: u64,
    /// Bytes of content, before compression.
    total_bytes: u64,
    /// Whether all was counted; there is a limit in time.
    complete: bool,
    /// Whether it is more than may be downloaded as one archive.
    too_large: bool,
}

/// How much an archive of these paths would hold, before it is begun.
#[utoipa::path(get, path = "/api/v1/restore/{mount_id}/size", tag = "Downloads",
    params(
        ("mount_id" = String, Path, description = "The mount"),
        ("path" = Option<Vec<String>>, Query, description = "Files and folders, each once"),
    ),
    responses((status = 200, body = Size), ReadRefusals))]
pub(crate) async fn size(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(id): Segment,
    parameters: Parameters,
) -> Answer<Json<Size>> {
    let paths = paths(&parameters)?;
    let (asked, wanted) = (Arc::clone(&app), paths.clone());
    let (mount, root) = with_tree(move || {
        let (mount, root) = enter(&asked, &caller, &id)?;
        for path in &wanted {
            look(&root, path, false)?;
        }
        Ok((mount, root))
    })
    .await?;
    let kept = app.uses.keep(&mount.id);
    let measure = measure(&app, &root, &paths).await?;
    drop(kept);
    let most = app.config.max_archive_size;
    Ok(Json(Size {
        mount_id: mount.id,
        paths: paths.iter().map(GuestPath::display).collect(),
        total_files: measure.files,
        total_directories: measure.directories,
        total_bytes: measure.bytes,
        complete: measure.complete,
        too_large: most.is_some_and(|most| measure.bytes > most),
    }))
}
