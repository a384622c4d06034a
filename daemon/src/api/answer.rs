//! What clients are answered when it is not what they asked for.
//!
//! The idea: a handler fails with a [`Failure`], and every error of the layers below
//! becomes one in this file alone: the status by what kind of error it is, the
//! sentence by the error itself. What a client could do nothing about goes to the log,
//! and the client gets a sentence without the host's paths.

use std::collections::BTreeMap;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

use crate::files::error::FilesError;

/// The body of every answer that is an error.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// One sentence for a person.
    pub(crate) error: String,
    /// Of a disk that is mounted already: the mount that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mount_id: Option<String>,
}

/// Why a request was not done.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    message: String,
    mount_id: Option<String>,
    /// Seconds.
    retry_after: Option<u64>,
    /// For a range that a file does not have: the file's size.
    size: Option<u64>,
}

/// What handlers return.
pub(crate) type Answer<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            mount_id: None,
            retry_after: None,
            size: None,
        }
    }

    /// 400.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 401.
    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    /// 403.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// 404.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 413.
    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// 416: the file has no such range.
    pub(crate) fn no_such_range(size: u64) -> Self {
        let message = format!("the file has {size} bytes, and not the range that was asked for");
        Self {
            size: Some(size),
            ..Self::new(StatusCode::RANGE_NOT_SATISFIABLE, message)
        }
    }

    /// 429 or 503: to be tried again.
    pub(crate) fn later(status: StatusCode, message: impl Into<String>, seconds: u64) -> Self {
        Self {
            retry_after: Some(seconds),
            ..Self::new(status, message)
        }
    }

    /// 500; the cause goes to the log.
    pub(crate) fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!("internal error: {cause}");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "something went wrong inside; the server's log says what",
        )
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }
}

impl From<sendense::Error> for Failure {
    fn from(error: sendense::Error) -> Self {
        use sendense::Error;
        let status = match &error {
            Error::NotFound { .. } | Error::Gone { .. } | Error::Unknown(_) | Error::Expired => {
                StatusCode::NOT_FOUND
            }
            Error::NotADirectory { .. } | Error::IsADirectory { .. } | Error::Invalid(_) => {
                StatusCode::BAD_REQUEST
            }
            Error::MountedAlready { mount_id, .. } => {
                return Self {
                    mount_id: Some(mount_id.clone()),
                    ..Self::new(StatusCode::CONFLICT, error.to_string())
                };
            }
            Error::NoSlot { .. } | Error::Exhausted { .. } => {
                let message = public(&error.to_string());
                return Self::later(StatusCode::SERVICE_UNAVAILABLE, message, 5);
            }
            Error::NoDaemon(_) => {
                tracing::warn!("{error}");
                let message = "the daemon does not answer; is it running (sendense serve)?";
                return Self::later(StatusCode::SERVICE_UNAVAILABLE, message, 5);
            }
            Error::Locked { .. } => StatusCode::LOCKED,
            Error::Unsupported { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Error::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Error::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            Error::Catalog(_) => {
                tracing::error!("{error}");
                let message = "the catalog cannot be used now; the server's log says why";
                return Self::later(StatusCode::SERVICE_UNAVAILABLE, message, 5);
            }
            Error::ImageMissing { .. }
            | Error::ImageOutside { .. }
            | Error::ImageInvalid { .. }
            | Error::Qemu { .. }
            | Error::Corrupt { .. }
            | Error::Daemon(_) => {
                tracing::warn!("{error}");
                StatusCode::BAD_GATEWAY
            }
            Error::Io { .. } | Error::WouldWait => return Self::internal(error),
        };
        Self::new(status, public(&error.to_string()))
    }
}

/// A sentence without the folders of this host: of every path in it the last name.
pub(crate) fn public(sentence: &str) -> String {
    let ends = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | ')' | '"' | '\'' | '`');
    let mut shown = String::with_capacity(sentence.len());
    for word in sentence.split_inclusive(ends) {
        let start = word.find("//").or_else(|| word.find('/'));
        // Only what is a path from the root: `I/O` is none.
        let before = start
            .and_then(|start| word.get(..start))
            .unwrap_or_default();
        let is_path = start.is_some() && !before.ends_with(char::is_alphanumeric);
        match word.trim_end_matches('/').rsplit_once('/') {
            Some((_, last)) if is_path => {
                let opening = before.trim_end_matches(char::is_alphanumeric);
                shown.push_str(opening);
                shown.push_str(last);
            }
            _ => shown.push_str(word),
        }
    }
    shown
}

impl From<FilesError> for Failure {
    fn from(error: FilesError) -> Self {
        let status = StatusCode::from_u16(error.status()).unwrap_or_default();
        match status {
            StatusCode::SERVICE_UNAVAILABLE => Self::later(status, error.to_string(), 5),
            StatusCode::INTERNAL_SERVER_ERROR | StatusCode::OK => Self::internal(error),
            _ => Self::new(status, error.to_string()),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = ErrorBody {
            error: self.message,
            mount_id: self.mount_id,
        };
        let mut response = (self.status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"sendense\""),
            );
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(size) = self.size
            && let Ok(range) = HeaderValue::try_from(format!("bytes */{size}"))
        {
            headers.insert(header::CONTENT_RANGE, range);
        }
        response
    }
}

/// Errors of one status in the OpenAPI document.
fn described(statuses: &[(&str, &str)]) -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
    let one = |(status, description): &(&str, &str)| {
        let content = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name("ErrorBody")))
            .build();
        let response = ResponseBuilder::new()
            .description(*description)
            .content("application/json", content)
            .build();
        ((*status).to_owned(), RefOr::T(response))
    };
    statuses.iter().map(one).collect()
}

/// What may happen to any request that needs a log-in.
pub(crate) struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        described(&[
            ("400", "The request makes no sense; the sentence says why"),
            ("401", "Not logged in, or not any more"),
            ("403", "Not granted to this user"),
            ("500", "A fault of the server; its log says more"),
            (
                "503",
                "Not possible now; the sentence says what is missing, Retry-After when",
            ),
            ("504", "It took too long"),
        ])
    }
}

/// [`Refusals`], and what may happen where something of a backup is read.
pub(crate) struct ReadRefusals;

impl IntoResponses for ReadRefusals {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let mut all = Refusals::responses();
        all.extend(described(&[
            ("404", "There is no such thing, or the mount expired"),
            (
                "422",
                "The guest's data are of a kind that cannot be read yet",
            ),
            ("423", "The volume is locked and needs a key"),
            ("502", "The guest's data or the image are damaged"),
            ("504", "The image did not answer in time"),
        ]));
        all
    }
}

/// Where nothing of a backup is read, but something is looked up.
pub(crate) struct LookUpRefusals;

impl IntoResponses for LookUpRefusals {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let mut all = Refusals::responses();
        all.extend(described(&[("404", "There is no such thing")]));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_lose_the_folders_of_the_host() {
        for (said, shown) in [
            (
                "/backup/a/disk-0/b.qcow2: the image is not there (backing file of /backup/c.qcow2)",
                "b.qcow2: the image is not there (backing file of c.qcow2)",
            ),
            (
                "vm1: Input/output error, I/O",
                "vm1: Input/output error, I/O",
            ),
            (
                "no space in `/var/lib/sendense`; make room",
                "no space in `sendense`; make room",
            ),
            ("nothing to hide", "nothing to hide"),
        ] {
            assert_eq!(public(said), shown);
        }
    }
}
