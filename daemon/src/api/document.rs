//! The OpenAPI document, made from the routes themselves, and a page to read it.

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi, openapi};

use super::answer::ErrorBody;
use super::caller::COOKIE;

/// What is said once for all routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sendense",
        description = "Files out of VM backups: log in, mount a disk of a backup, browse it, \
                       download from it. Every error is {\"error\": \"<a sentence>\"}.",
        license(name = "Apache-2.0"),
    ),
    components(schemas(ErrorBody)),
    modifiers(&Schemes),
    security(("token" = []), ("cookie" = [])),
)]
pub(super) struct Document;

struct Schemes;

impl Modify for Schemes {
    fn modify(&self, document: &mut openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let mut token = Http::new(HttpAuthScheme::Bearer);
        token.bearer_format = Some("JWT".into());
        components.add_security_scheme("token", SecurityScheme::Http(token));
        let cookie = ApiKey::Cookie(ApiKeyValue::new(COOKIE));
        components.add_security_scheme("cookie", SecurityScheme::ApiKey(cookie));
    }
}

/// The page; it reads the document from where it is served.
pub(super) async fn page() -> impl IntoResponse {
    asset(
        "text/html; charset=utf-8",
        include_str!("document/page.html"),
    )
}

pub(super) async fn script() -> impl IntoResponse {
    asset(
        "text/javascript; charset=utf-8",
        include_str!("document/page.js"),
    )
}

pub(super) async fn style() -> impl IntoResponse {
    asset("text/css; charset=utf-8", include_str!("document/page.css"))
}

fn asset(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                  frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    (
        [
            (header::CONTENT_TYPE, kind),
            (header::CONTENT_SECURITY_POLICY, policy),
        ],
        text,
    )
}
