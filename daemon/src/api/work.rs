//! Work that may wait: for the catalog, for the tree, for the daemon.
//!
//! The idea: it runs on threads of its own, and each kind has so many places and no
//! more. What hangs, a disk or the daemon, then takes the places of its kind alone, and
//! everything else goes on. Who finds no place in time is told to come back; work that
//! has begun keeps its place until it is over, whether or not its client still waits.

use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::Semaphore;

use super::answer::{Answer, Failure};

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

/// Looks into the tree for something that may be long.
///
/// # Errors
/// As [`with_catalog`].
pub(crate) async fn at_length<T: Send + 'static>(
    work: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Answer<T> {
    placed(&LONG, work).await
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
    let Ok(Ok(place)) = tokio::time::timeout(PATIENCE, places.acquire()).await else {
        return Err(Failure::later(
            StatusCode::SERVICE_UNAVAILABLE,
            "too much is being asked at once; try again",
            5,
        ));
    };
    on_a_thread(move || {
        let _place = place;
        work()
    })
    .await
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
