//! Who asks, and what they may.
//!
//! The idea: a handler that takes a [`Caller`] cannot run without one. The token comes
//! in the header `Authorization`, or from a browser in a cookie that scripts cannot
//! read and other sites cannot send. A request by cookie that changes something must
//! prove on top that it comes from our own page: it repeats a value that only the
//! answer to the log-in held. Users, roles and grants are looked up for each
//! request, so that a change counts at once.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use sendense::catalog::{Action, AuditRecord, Mount, Outcome, Role, Session};

use super::App;
use super::answer::{Answer, Failure};
use super::downloads::Holder;
use super::record::Recorder;
use crate::api::work::with_catalog;
use crate::auth::token::{Claims, Refusal, TokenKey};

/// The cookie that holds the token.
pub(crate) const COOKIE: &str = "sendense_session";
/// The header that repeats the value of the log-in.
pub(crate) const CSRF_HEADER: &str = "x-csrf-token";

/// A user who is logged in.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) session: Session,
    pub(crate) claims: Claims,
    pub(crate) address: IpAddr,
    /// The request's method and path: what they are refused, if they are.
    asked: String,
    recorder: Arc<Recorder>,
}

impl Caller {
    pub(crate) fn name(&self) -> &str {
        &self.session.name
    }

    /// Whose downloads theirs are.
    pub(crate) fn holder(&self) -> Holder {
        Holder {
            user: self.session.id,
            generation: self.claims.generation,
        }
    }

    /// Whether a VM is granted to them.
    pub(crate) fn sees(&self, vm_name: &str) -> bool {
        self.session.vms.cover(vm_name)
    }

    /// # Errors
    /// 403, which is recorded.
    pub(crate) fn must_see(&self, vm_name: &str) -> Answer<()> {
        if self.sees(vm_name) {
            return Ok(());
        }
        let why = format!(
            "the VM {vm_name} is not granted to {}; an administrator can grant it",
            self.name()
        );
        Err(self.denied(why, Some(vm_name)))
    }

    fn denied(&self, why: String, vm_name: Option<&str>) -> Failure {
        self.recorder.note(AuditRecord {
            vm_name: vm_name.map(str::to_owned),
            outcome: Outcome::Refused,
            detail: Some(format!("{}: {why}", self.asked)),
            ..self.record(Action::Denied)
        });
        Failure::forbidden(why)
    }

    /// The record of something that the caller does now.
    pub(crate) fn record(&self, action: Action) -> AuditRecord {
        AuditRecord::now(action, self.name(), self.address.to_string())
    }

    /// The same, on a mount.
    pub(crate) fn record_on(&self, action: Action, mount: &Mount) -> AuditRecord {
        AuditRecord {
            vm_name: Some(mount.vm_name.clone()),
            backup_id: Some(mount.backup_id.clone()),
            disk_index: Some(mount.disk_index),
            mount_id: Some(mount.id.clone()),
            ..self.record(action)
        }
    }

    /// # Errors
    /// 403, which is recorded.
    pub(crate) fn must_be(&self, role: Role) -> Answer<()> {
        if self.session.role >= role {
            return Ok(());
        }
        let (name, own) = (self.name(), self.session.role);
        Err(self.denied(format!("{name} is {own}, and this needs {role}"), None))
    }
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Answer<Self> {
        let address = address(parts);
        let given = given(&parts.headers)?;
        let claims = given.claims(&app.key)?;
        if given.by_cookie {
            prove_origin(parts, &app.key, &claims)?;
        }
        let recorder = Arc::clone(&app.recorder);
        let (app, asked) = (Arc::clone(app), claims.clone());
        let session = with_catalog(move || {
            let (user, generation) = (asked.user_id(), asked.generation);
            Ok(app.catalog.session(user, generation, &asked.jti)?)
        })
        .await?
        .ok_or_else(|| Failure::unauthorized("you are logged out; log in again"))?;
        Ok(Self {
            session,
            claims,
            address,
            asked: format!("{} {}", parts.method, parts.uri.path()),
            recorder,
        })
    }
}

/// Where a request comes from.
pub(crate) fn address(parts: &Parts) -> IpAddr {
    let info = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    let address = info.map_or(IpAddr::from([0, 0, 0, 0]), |info| info.0.ip());
    address.to_canonical()
}

struct Given {
    /// One, or several cookies of the name: other services of this host can set them,
    /// which must not keep anybody out.
    tokens: Vec<String>,
    by_cookie: bool,
}

impl Given {
    /// What the first good one says.
    ///
    /// # Errors
    /// 401.
    fn claims(&self, key: &TokenKey) -> Answer<Claims> {
        let now = jiff::Timestamp::now();
        let mut why = Refusal::NotOurs;
        for token in &self.tokens {
            match key.verify(token, now) {
                Ok(claims) => return Ok(claims),
                Err(refusal) => why = refusal,
            }
        }
        Err(Failure::unauthorized(match why {
            Refusal::NotOurs => "the token is not valid; log in again",
            Refusal::Expired => "the token has expired; log in again",
        }))
    }
}

fn given(headers: &HeaderMap) -> Answer<Given> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = value.to_str().unwrap_or_default();
        let (scheme, token) = value.split_once(' ').unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Failure::unauthorized(
                "say `Authorization: Bearer <token>`; /api/v1/auth/login gives one",
            ));
        }
        return Ok(Given {
            tokens: vec![token.trim().to_owned()],
            by_cookie: false,
        });
    }
    let tokens = cookies(headers);
    if tokens.is_empty() {
        return Err(Failure::unauthorized(
            "not logged in; /api/v1/auth/login gives a token",
        ));
    }
    Ok(Given {
        tokens,
        by_cookie: true,
    })
}

fn cookies(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(name, _)| *name == COOKIE)
        .map(|(_, value)| value.to_owned())
        .collect()
}

/// That a request by cookie was made by our own page, and not by another site's.
fn prove_origin(parts: &Parts, key: &TokenKey, claims: &Claims) -> Answer<()> {
    let text = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok());
    // Browsers say it, and pages cannot change it.
    if let Some(site) = text("sec-fetch-site")
        && !matches!(site, "same-origin" | "none")
    {
        return Err(Failure::forbidden("the request comes from another site"));
    }
    if matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    let given = text(CSRF_HEADER).unwrap_or_default();
    if key.csrf_matches(&claims.jti, given) {
        return Ok(());
    }
    Err(Failure::forbidden(
        "a request with a cookie must repeat the csrf_token of the log-in in the header \
         X-CSRF-Token",
    ))
}
