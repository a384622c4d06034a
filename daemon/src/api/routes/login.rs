//! Logging in and out.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use sendense::catalog::{Action, AuditRecord, Grants, Outcome};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::App;
use crate::api::answer::{Answer, ErrorBody, Failure, Refusals};
use crate::api::caller::{self, Caller};
use crate::api::request::Body;
use crate::api::work::{to_log_in, with_catalog};

/// A name and its password.
#[derive(Deserialize, ToSchema)]
pub(crate) struct LoginRequest {
    username: String,
    #[schema(format = Password)]
    password: String,
}

/// What a user is logged in with.
#[derive(Serialize, ToSchema)]
pub(crate) struct LoginAnswer {
    /// To be sent as `Authorization: Bearer <token>`.
    token: String,
    expires_at: String,
    /// Browsers, whose token is in a cookie, send this with every request that changes
    /// something, in the header X-CSRF-Token.
    csrf_token: String,
    username: String,
    role: String,
}

/// The longest name of a user, in characters.
const LONGEST_NAME: usize = 64;

/// Where a request comes from.
pub(crate) struct Address(std::net::IpAddr);

impl<S: Sync> FromRequestParts<S> for Address {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        Ok(Self(caller::address(parts)))
    }
}

/// Logs a user in: by the token in the answer, and by a cookie for browsers.
#[utoipa::path(post, path = "/api/v1/auth/login", tag = "Authentication", security(()),
    request_body = LoginRequest,
    responses(
        (status = 200, body = LoginAnswer, headers(("Set-Cookie" = String, description = "The token, for browsers"))),
        (status = 400, body = ErrorBody, description = "The body is not as expected"),
        (status = 401, body = ErrorBody, description = "The name or the password is wrong"),
        (status = 408, body = ErrorBody, description = "The body did not arrive in time"),
        (status = 413, body = ErrorBody, description = "The body is too long"),
        (status = 415, body = ErrorBody, description = "The body is not JSON"),
        (status = 429, body = ErrorBody, description = "Too many attempts; Retry-After says when to try again"),
        (status = 500, body = ErrorBody, description = "A fault of the server"),
        (status = 503, body = ErrorBody, description = "Not possible now")))]
pub(crate) async fn login(
    State(app): State<Arc<App>>,
    Address(address): Address,
    Body(given): Body<LoginRequest>,
) -> Answer<Response> {
    let name = given.username.clone();
    let begun = app.attempts.begin(&name, address, Instant::now());
    let attempt = begun.map_err(|wait| {
        Failure::later(
            StatusCode::TOO_MANY_REQUESTS,
            format!(
                "too many attempts to log in; try again in {} seconds",
                wait.as_secs()
            ),
            wait.as_secs(),
        )
    })?;
    // No name is longer; what is may be a password in the wrong field.
    let shown: String = name.chars().take(LONGEST_NAME).collect();
    let record = AuditRecord::now(Action::Login, shown, address.to_string());
    let (checked, refused) = (Arc::clone(&app), record.clone());
    let login = to_log_in(move || {
        let known = checked.catalog.user_for_login(&given.username)?;
        let hash = known.as_ref().map(|login| login.password_hash.as_str());
        let right = checked.hasher.verify(&given.password, hash)?;
        if known.is_none() || !right {
            // Here, where it is written also when the client has gone.
            checked.recorder.note(AuditRecord {
                action: Action::LoginFailed,
                outcome: Outcome::Refused,
                ..refused
            });
        }
        Ok(known.filter(|_| right))
    })
    .await;
    let login = match login {
        Ok(Some(login)) => login,
        Ok(None) => return Err(Failure::unauthorized("the name or the password is wrong")),
        Err(failure) => {
            app.attempts.withdrawn(attempt);
            if failure.status == StatusCode::GATEWAY_TIMEOUT {
                let message = "too many log in at once; try again";
                return Err(Failure::later(StatusCode::SERVICE_UNAVAILABLE, message, 5));
            }
            return Err(failure);
        }
    };
    app.attempts.succeeded(attempt);
    let (now, lifetime) = (Timestamp::now(), app.config.token_lifetime);
    let (token, claims) = app
        .key
        .issue(login.id, &login.name, login.generation, lifetime, now)?;
    app.recorder.write(record).await?;
    let (noted, user) = (Arc::clone(&app), login.id);
    with_catalog(move || {
        noted.catalog.prune_tokens(now.as_second())?;
        Ok(noted.catalog.record_login(user)?)
    })
    .await?;
    let cookie = cookie(&app, &token, lifetime.as_secs())?;
    let answer = LoginAnswer {
        csrf_token: app.key.csrf(&claims.jti),
        expires_at: seconds(claims.exp)?,
        username: login.name,
        role: login.role.to_string(),
        token,
    };
    Ok(([(header::SET_COOKIE, cookie)], Json(answer)).into_response())
}

/// A time in seconds since 1970 as clients read it.
fn seconds(time: i64) -> Answer<String> {
    Timestamp::from_second(time)
        .map(|time| time.to_string())
        .map_err(Failure::internal)
}

/// The cookie that holds a token for so many seconds.
fn cookie(app: &App, token: &str, seconds: u64) -> Answer<HeaderValue> {
    let secure = if app.config.tls.is_some() {
        "; Secure"
    } else {
        ""
    };
    let text = format!(
        "{}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}",
        caller::COOKIE
    );
    HeaderValue::try_from(text).map_err(Failure::internal)
}

/// Logged out.
#[derive(Serialize, ToSchema)]
pub(crate) struct LogoutAnswer {
    message: String,
}

/// Logs out: the token does not count any more, and the cookie is removed.
#[utoipa::path(post, path = "/api/v1/auth/logout", tag = "Authentication",
    responses((status = 200, body = LogoutAnswer), Refusals))]
pub(crate) async fn logout(State(app): State<Arc<App>>, caller: Caller) -> Answer<Response> {
    let record = caller.record(Action::Logout);
    let revoked = Arc::clone(&app);
    with_catalog(move || {
        let claims = caller.claims;
        Ok(revoked.catalog.revoke_token(&claims.jti, claims.exp)?)
    })
    .await?;
    // Logged out is logged out, also where it cannot be recorded.
    app.recorder.note(record);
    let answer = LogoutAnswer {
        message: "logged out".into(),
    };
    let cookie = cookie(&app, "", 0)?;
    Ok(([(header::SET_COOKIE, cookie)], Json(answer)).into_response())
}

/// Who is logged in, and what they may.
#[derive(Serialize, ToSchema)]
pub(crate) struct Me {
    username: String,
    /// `admin`, `operator` or `viewer`.
    role: String,
    /// Whether all VMs are granted.
    all_vms: bool,
    /// The VMs that are granted by name.
    vms: Vec<String>,
    expires_at: String,
    csrf_token: String,
}

/// Who is logged in.
#[utoipa::path(get, path = "/api/v1/auth/me", tag = "Authentication",
    responses((status = 200, body = Me), Refusals))]
pub(crate) async fn me(State(app): State<Arc<App>>, caller: Caller) -> Answer<Json<Me>> {
    let (all_vms, vms) = match caller.session.vms {
        Grants::All => (true, Vec::new()),
        Grants::Only(names) => (false, names.into_iter().collect()),
    };
    Ok(Json(Me {
        username: caller.session.name,
        role: caller.session.role.to_string(),
        all_vms,
        vms,
        expires_at: seconds(caller.claims.exp)?,
        csrf_token: app.key.csrf(&caller.claims.jti),
    }))
}
