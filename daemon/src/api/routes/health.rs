//! Whether all that a restore needs is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::App;
use crate::api::answer::{Answer, Failure};
use crate::api::work::{on_a_thread, to_the_end};
use crate::control::Status;
use crate::files::root::DiskRoot;
use crate::watch;

/// How long each part may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// For so long a look is good for all who ask.
const FRESH: Duration = Duration::from_millis(250);
/// Below this the host is said to be short of memory, in bytes.
const LITTLE_MEMORY: u64 = 128 << 20;
/// Below this the state directory is said to be nearly full, in bytes.
const LITTLE_SPACE: u64 = 64 << 20;

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

/// What was found at the last look. Everybody may ask, so that there is one look at a
/// time, whoever asks and however often; a part that hangs is not asked again before it
/// has answered.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    last: tokio::sync::Mutex<Option<(Instant, Look)>>,
    daemon: Part,
    tree: Part,
    catalog: Part,
}

/// How each part answered.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub(crate) daemon: Result<Arc<Status>, String>,
    tree: Result<(), String>,
    catalog: Result<(), String>,
}

/// Whether a part is being asked.
#[derive(Debug, Default)]
struct Part(Arc<AtomicBool>);

/// It is being asked, until this is dropped.
struct Asked(Arc<AtomicBool>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Part {
    /// What it says within its time.
    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, String> {
        let late = || format!("no answer within {} seconds", PATIENCE.as_secs());
        if self.0.swap(true, Ordering::AcqRel) {
            return Err(late());
        }
        let asked = Asked(Arc::clone(&self.0));
        let answer = on_a_thread(move || {
            let _asked = asked;
            work()
        });
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(failure)) => Err(failure.message().to_owned()),
            Err(_) => Err(late()),
        }
    }
}

impl Look {
    /// How all parts are: now, or a moment ago.
    ///
    /// # Errors
    /// 500.
    pub(crate) async fn now(app: &Arc<App>) -> Answer<Self> {
        let app = Arc::clone(app);
        // A client that goes away leaves no look half done.
        to_the_end(async move {
            let mut last = app.looks.last.lock().await;
            if let Some((when, look)) = last.as_ref()
                && when.elapsed() < FRESH
            {
                return Ok(look.clone());
            }
            let look = Self::take(&app).await;
            *last = Some((Instant::now(), look.clone()));
            Ok(look)
        })
        .await
    }

    async fn take(app: &Arc<App>) -> Self {
        let (one, two, three) = (Arc::clone(app), Arc::clone(app), Arc::clone(app));
        let looks = &app.looks;
        let daemon = looks
            .daemon
            .ask(move || Ok(Arc::new(one.daemon.status_within(PATIENCE)?)));
        let tree = looks
            .tree
            .ask(move || Ok(DiskRoot::tree(&two.config.mountpoint).map(drop)?));
        let catalog = looks.catalog.ask(move || {
            three.catalog.mounts_so_far()?;
            // Nothing is handed out that cannot be recorded.
            match three.recorder.trouble() {
                None => Ok(()),
                Some(_) => Err(Failure::bad_request("it cannot be written to")),
            }
        });
        let (daemon, tree, catalog) = tokio::join!(daemon, tree, catalog);
        Self {
            // The daemon's own words name its socket.
            daemon: daemon.map_err(|_| "the daemon does not answer".to_owned()),
            tree,
            catalog,
        }
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
pub(crate) async fn health(State(app): State<Arc<App>>) -> Answer<(StatusCode, Json<Health>)> {
    let Look {
        daemon,
        tree,
        catalog,
    } = Look::now(&app).await?;
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
        problems.extend(shortages(&status));
        let resources = &status.resources;
        let free = |role: &'static str| {
            let spaces = resources.spaces.iter();
            spaces
                .filter(move |space| space.role == role)
                .map(|space| space.free)
        };
        Resources {
            slots_total: status.slots.total,
            slots_used: status.slots.used,
            slots_held: status.slots.held,
            daemon_memory: status.rss,
            memory_available: resources.memory_available,
            descriptors_used: resources.descriptors_used,
            descriptors_limit: resources.descriptors_limit,
            state_dir_free: free(watch::STATE).next().flatten(),
            repositories_free: free(watch::REPOSITORY).collect(),
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
    Ok((code, Json(health)))
}

/// What is nearly used up.
fn shortages(status: &Status) -> Vec<String> {
    let resources = &status.resources;
    let mut all = Vec::new();
    if status.slots.held >= status.slots.total {
        all.push(format!("mounts hold all {} slots", status.slots.total));
    }
    if let (Some(used), Some(limit)) = (resources.descriptors_used, resources.descriptors_limit)
        && limit.saturating_sub(used) < limit / 10
    {
        all.push(format!(
            "the daemon uses {used} of {limit} file descriptors"
        ));
    }
    if let Some(available) = resources.memory_available
        && available < LITTLE_MEMORY
    {
        all.push(format!("the host has {available} bytes of memory left"));
    }
    for space in &resources.spaces {
        let what = match space.role.as_str() {
            watch::STATE => "the state directory",
            _ => "a repository",
        };
        if space.error.is_some() {
            all.push(format!("{what} does not answer"));
        } else if space.role == watch::STATE && space.free.is_some_and(|free| free < LITTLE_SPACE) {
            all.push(format!("{what} has hardly any space left"));
        }
    }
    all
}
