//! The routes, by subject. Each says in its attribute what the OpenAPI document says
//! of it; [`router`] is the one list of all.

pub(crate) mod audit;
pub(crate) mod backups;
pub(crate) mod download;
pub(crate) mod files;
pub(crate) mod health;
pub(crate) mod login;
pub(crate) mod machines;
pub(crate) mod metrics;
pub(crate) mod mounts;
pub(crate) mod running;
pub(crate) mod size;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use bytes::Bytes;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::Failure;
use super::document::{self, Document};

/// How long the head of an answer may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Everything that is served.
pub(super) fn router(app: &Arc<App>) -> Router {
    let (api, document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(login::login))
        .routes(routes!(login::logout))
        .routes(routes!(login::me))
        .routes(routes!(health::health))
        .routes(routes!(machines::list))
        .routes(routes!(machines::detail))
        .routes(routes!(machines::disks))
        .routes(routes!(backups::list))
        .routes(routes!(backups::chain))
        .routes(routes!(backups::detail))
        .routes(routes!(mounts::mount))
        .routes(routes!(mounts::list))
        .routes(routes!(mounts::detail, mounts::unmount))
        .routes(routes!(files::list))
        .routes(routes!(files::info))
        .routes(routes!(download::file))
        .routes(routes!(download::directory))
        .routes(routes!(size::size))
        .routes(routes!(running::list))
        .routes(routes!(running::cancel))
        .routes(routes!(audit::list))
        .split_for_parts();
    // Written once: everybody may ask for it.
    let document = serde_json::to_vec(&document::complete(document)).unwrap_or_default();
    let document = Bytes::from(document);
    api.route("/health", get(health::health))
        .route("/metrics", get(metrics::page))
        .route("/", get(|| async { Redirect::to("/docs") }))
        .route("/docs", get(document::page))
        .route("/docs.js", get(document::script))
        .route("/docs.css", get(document::style))
        .route(
            "/openapi.json",
            get(|| async move { ([(header::CONTENT_TYPE, "application/json")], document) }),
        )
        .fallback(|| async { Failure::not_found("there is no such address; /docs lists them all") })
        .method_not_allowed_fallback(|| async {
            Failure::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this address does not know this method",
            )
        })
        .layer(CatchPanicLayer::custom(|_| {
            Failure::internal("a request panicked").into_response()
        }))
        .layer(middleware::from_fn_with_state(Arc::clone(app), around))
        .with_state(Arc::clone(app))
}

/// What is done around every request: a limit in time, headers, a count.
async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let mut response = match tokio::time::timeout(PATIENCE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Failure::new(
            StatusCode::GATEWAY_TIMEOUT,
            "it took too long; the server's log may say why",
        )
        .into_response(),
    };
    app.requests
        .count(response.status().as_u16(), began.elapsed());
    let headers = response.headers_mut();
    for (name, value) in SECURITY {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    if app.config.tls.is_some() {
        let year = HeaderValue::from_static("max-age=31536000");
        headers.insert(header::STRICT_TRANSPORT_SECURITY, year);
    }
    response
}

/// On every answer, unless it says something else.
const SECURITY: [(HeaderName, &str); 7] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; sandbox",
    ),
    (header::CACHE_CONTROL, "private, no-store"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
];
