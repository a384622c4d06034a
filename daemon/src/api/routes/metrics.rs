//! Figures for Prometheus, in its text format.
//!
//! The idea: only counters and sizes. No VM, user, file or path stands here, so that it
//! may be asked without a log-in.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::health::Look;
use crate::api::App;
use crate::api::answer::{Answer, Failure};

/// Requests answered, by the class of their status: 1xx … 5xx.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    answered: [AtomicU64; 5],
    milliseconds: AtomicU64,
}

impl Requests {
    /// Counts one.
    pub(crate) fn count(&self, status: u16, took: Duration) {
        let class = usize::from(status / 100).saturating_sub(1);
        if let Some(counter) = self.answered.get(class) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.milliseconds.fetch_add(took, Ordering::Relaxed);
    }
}

/// The text, a figure at a time.
#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(
            self.0,
            "# HELP sendense_{name} {help}\n# TYPE sendense_{name} {kind}"
        );
    }

    fn line(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.0, "sendense_{name}{labels} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "gauge", help);
        self.line(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.line(name, "", value);
    }
}

/// Figures for Prometheus.
pub(crate) async fn page(State(app): State<Arc<App>>) -> Answer<Response> {
    if !app.config.metrics {
        return Err(Failure::not_found("metrics are turned off (`metrics`)"));
    }
    let status = Look::now(&app).await?.daemon.ok();
    let mut page = Page::default();
    own(&mut page, &app);
    page.gauge(
        "daemon_up",
        "Whether the daemon answers.",
        u64::from(status.is_some()),
    );
    if let Some(status) = status {
        let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        page.gauge(
            "slots",
            "Disks that can be attached at once.",
            wide(status.slots.total),
        );
        page.gauge(
            "slots_used",
            "Disks that are attached.",
            wide(status.slots.used),
        );
        page.gauge(
            "slots_held",
            "Disks that mounts hold.",
            wide(status.slots.held),
        );
        let totals = &status.totals;
        page.counter("attaches_total", "Disks attached.", totals.attaches);
        page.counter("evictions_total", "Disks released.", totals.evictions);
        page.counter(
            "reads_total",
            "Reads of file data from images.",
            totals.reads,
        );
        page.counter(
            "read_bytes_total",
            "File data read from images.",
            totals.bytes,
        );
        page.counter("errors_total", "Operations that failed.", totals.errors);
        page.gauge(
            "cache_bytes",
            "Metadata blocks in memory.",
            status.cache.bytes,
        );
        page.counter(
            "cache_hits_total",
            "Blocks found in memory.",
            status.cache.hits,
        );
        page.counter(
            "cache_misses_total",
            "Blocks read from images.",
            status.cache.misses,
        );
        page.gauge("daemon_memory_bytes", "Memory of the daemon.", status.rss);
        let resources = &status.resources;
        let optional = [
            (
                "memory_available_bytes",
                "Memory that the host has left.",
                resources.memory_available,
            ),
            (
                "daemon_descriptors",
                "Descriptors that the daemon has open.",
                resources.descriptors_used,
            ),
            (
                "daemon_descriptors_limit",
                "Descriptors that it may have open.",
                resources.descriptors_limit,
            ),
        ];
        for (name, help, value) in optional {
            if let Some(value) = value {
                page.gauge(name, help, value);
            }
        }
        page.head(
            "free_bytes",
            "gauge",
            "Free space of the state directory and of the repositories.",
        );
        for (number, space) in resources.spaces.iter().enumerate() {
            if let Some(free) = space.free {
                let labels = format!("{{of=\"{}\",number=\"{number}\"}}", space.role);
                page.line("free_bytes", &labels, free);
            }
        }
    }
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], page.0).into_response())
}

/// The figures of this process.
fn own(page: &mut Page, app: &App) {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    page.head(
        "http_requests_total",
        "counter",
        "Requests answered, by class of status.",
    );
    for (counter, class) in app.requests.answered.iter().zip(1..) {
        page.line(
            "http_requests_total",
            &format!("{{status=\"{class}xx\"}}"),
            get(counter),
        );
    }
    page.counter(
        "http_request_milliseconds_total",
        "Time until the heads of answers.",
        get(&app.requests.milliseconds),
    );
    let running = u64::try_from(app.downloads.count()).unwrap_or(u64::MAX);
    page.gauge("downloads", "Downloads that run.", running);
    page.counter(
        "downloads_total",
        "Downloads that have ended.",
        get(&app.downloads.ended),
    );
    page.counter(
        "download_bytes_total",
        "Bytes sent by downloads.",
        app.downloads.sent(),
    );
    page.gauge(
        "api_uptime_seconds",
        "Since the HTTP side started.",
        app.started.elapsed().as_secs(),
    );
    if let Some(memory) = app.process.memory() {
        page.gauge("api_memory_bytes", "Memory of the HTTP side.", memory);
    }
    if let Some(open) = app.process.descriptors() {
        page.gauge(
            "api_descriptors",
            "Descriptors that the HTTP side has open.",
            open,
        );
    }
}
