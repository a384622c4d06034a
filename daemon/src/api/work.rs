//! Work that may wait: for the catalog, for the tree, for the daemon.
//!
//! The idea: it runs on threads of its own, and each kind has so many places and no
//! more. What hangs, a disk or the daemon, then takes the places of its kind alone, and
//! everything else goes on. Who finds no place in time is told to come back; work that
//! has begun keeps its place until it is over, whether or not its client still waits.

use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::AbortHandle;

use super::answer::{Answer, Failure};
use super::downloads::Hangup;

/// Questions to the catalog: microseconds each.
static CATALOG: Semaphore = Semaphore::const_new(16);
/// Look-ups in the tree, short listings, the opening of files.
static TREE: Semaphore = Semaphore::const_new(64);
/// Listings that may be long: each may hold some tens of megabytes.
static LONG: Semaphore = Semaphore::const_new(6);
/// Questions to the daemon, which may have to attach a disk first.
static DAEMON: Semaphore = Semaphore::const_new(24);

/// Passwords that are looked at, or wait for it: two at a time, half a second each.
static LOG_IN: Semaphore = Semaphore::const_new(8);

/// All places together: as many threads are needed.
pub(super) const PLACES: usize = 16 + 64 + 6 + 24 + 8;

/// How long a client may take a long answer.
const TAKING: Duration = Duration::from_secs(120);
/// How long a request waits for a place.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the catalog.
///
/// # Errors
/// Those of the work; 503 where there is no place in time, here and below.
pub(crate) async fn with_catalog<T: Send + 'static>(
    work: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Answer<T> {
    placed(&CATALOG, work).await
}

/// Looks into the tree.
///
/// # Errors
/// As [`with_catalog`].
pub(crate) async fn with_tree<T: Send + 'static>(
    work: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Answer<T> {
    placed(&TREE, work).await
}

/// Looks into the tree for something that may be long, and keeps its place until the
/// answer was taken, for which the client has [`TAKING`].
///
/// # Errors
/// As [`with_catalog`].
pub(crate) async fn at_length<T: Serialize + Send + 'static>(
    hangup: Hangup,
    work: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Answer<Response> {
    let place = place(&LONG).await?;
    let json = on_a_thread(move || serde_json::to_vec(&work()?).map_err(Failure::internal)).await?;
    let late = tokio::spawn(async move {
        tokio::time::sleep(TAKING).await;
        hangup.hang_up();
    });
    let body = Held {
        json,
        _place: place,
        late: late.abort_handle(),
    };
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok((kind, Body::from(Bytes::from_owner(body))).into_response())
}

/// An answer with its place.
struct Held {
    json: Vec<u8>,
    _place: SemaphorePermit<'static>,
    late: AbortHandle,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.json
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.late.abort();
    }
}

/// Asks the daemon.
///
/// # Errors
/// As [`with_catalog`].
pub(crate) async fn with_daemon<T: Send + 'static>(
    work: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Answer<T> {
    placed(&DAEMON, work).await
}

/// Looks at a password.
///
/// # Errors
/// As [`with_catalog`].
pub(crate) async fn to_log_in<T: Send + 'static>(
    work: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Answer<T> {
    placed(&LOG_IN, work).await
}

async fn placed<T: Send + 'static>(
    places: &'static Semaphore,
    work: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Answer<T> {
    let place = place(places).await?;
    on_a_thread(move || {
        let _place = place;
        work()
    })
    .await
}

async fn place(places: &'static Semaphore) -> Answer<SemaphorePermit<'static>> {
    match tokio::time::timeout(PATIENCE, places.acquire()).await {
        Ok(Ok(place)) => Ok(place),
        _ => Err(Failure::later(
            StatusCode::SERVICE_UNAVAILABLE,
            "too much is being asked at once; try again",
            5,
        )),
    }
}

/// Runs work on a thread without asking for a place: for what is limited elsewhere.
///
/// # Errors
/// Those of the work.
pub(crate) async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Answer<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Failure::internal(e)),
    }
}

/// Runs what must come to its end, with its record, also where the client goes away in
/// the middle and nobody waits for the answer any more.
///
/// # Errors
/// Those of the work.
pub(crate) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Answer<T>> + Send + 'static,
) -> Answer<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(e) => Err(Failure::internal(e)),
    }
}
