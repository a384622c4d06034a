//! Whether all that a restore needs is there.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::answer::Failure;
use crate::api::{App, blocking};
use crate::files::root::DiskRoot;

/// How long each part may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How the service is. It names no path, no VM and no user: it answers everybody.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `healthy`, `degraded` (something is nearly used up) or `unhealthy`.
    status: &'static str,
    version: &'static str,
    uptime_seconds: u64,
    checks: Checks,
    /// What runs out or is broken, a sentence each.
    problems: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<Resources>,
}

/// `ok`, or what is wrong.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Checks {
    daemon: String,
    tree: String,
    catalog: String,
}

/// What there is of what runs out. Sizes are bytes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Resources {
    slots_total: usize,
    slots_used: usize,
    slots_held: usize,
    daemon_memory: u64,
    memory_available: Option<u64>,
    descriptors_used: Option<u64>,
    descriptors_limit: Option<u64>,
    state_dir_free: Option<u64>,
    /// In the order of the configuration.
    repositories_free: Vec<Option<u64>>,
    downloads: usize,
    downloads_max: usize,
}

/// What a check says within its time.
async fn check<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, blocking(work)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(failure)) => Err(failure.message().to_owned()),
        Err(_) => Err(format!("no answer within {} seconds", PATIENCE.as_secs())),
    }
}

fn word<T>(result: &Result<T, String>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(why) => why.clone(),
    }
}

/// Whether the daemon answers, the tree is mounted and the catalog can be read. 503 if
/// anything of that is broken.
#[utoipa::path(get, path = "/api/v1/health", tag = "Service", security(()),
    responses(
        (status = 200, body = Health, description = "Healthy, or degraded"),
        (status = 503, body = Health, description = "Broken: checks say what")))]
pub(crate) async fn health(State(app): State<Arc<App>>) -> (StatusCode, Json<Health>) {
    let (one, two, three) = (Arc::clone(&app), Arc::clone(&app), Arc::clone(&app));
    let daemon = check(move || Ok(one.daemon.status_within(PATIENCE)?));
    let tree = check(move || Ok(DiskRoot::answers(&two.config.mountpoint)?));
    let catalog = check(move || Ok(three.catalog.mounts_so_far()?));
    let (daemon, tree, catalog) = tokio::join!(daemon, tree, catalog);
    // The daemon's own words name its socket.
    let daemon = daemon.map_err(|_| "the daemon does not answer".to_owned());
    let healthy = daemon.is_ok() && tree.is_ok() && catalog.is_ok();
    let checks = Checks {
        daemon: word(&daemon),
        tree: word(&tree),
        catalog: word(&catalog),
    };
    let mut problems: Vec<String> = [&checks.daemon, &checks.tree, &checks.catalog]
        .into_iter()
        .filter(|check| *check != "ok")
        .cloned()
        .collect();
    let resources = daemon.ok().map(|status| {
        problems.extend(status.resources.shortages());
        let resources = &status.resources;
        Resources {
            slots_total: status.slots.total,
            slots_used: status.slots.used,
            slots_held: status.slots.held,
            daemon_memory: status.rss,
            memory_available: resources.memory_available,
            descriptors_used: resources.descriptors_used,
            descriptors_limit: resources.descriptors_limit,
            state_dir_free: resources.state_dir.free,
            repositories_free: resources.repositories.iter().map(|r| r.free).collect(),
            downloads: app.downloads.count(),
            downloads_max: app.downloads.most(),
        }
    });
    let status = match (healthy, problems.is_empty()) {
        (false, _) => "unhealthy",
        (true, false) => "degraded",
        (true, true) => "healthy",
    };
    let code = if healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let health = Health {
        status,
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: app.started.elapsed().as_secs(),
        checks,
        problems,
        resources,
    };
    (code, Json(health))
}
