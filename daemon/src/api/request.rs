//! What clients send: bodies, query parameters and parts of the path, with limits and
//! with a sentence for whatever is wrong.
//!
//! The idea: a parameter is bytes until somebody asks for text, since the path of a
//! guest's file need not be UTF-8.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use http_body_util::{BodyExt, Limited};
use percent_encoding::percent_decode;
use serde::de::DeserializeOwned;

use super::answer::{Answer, Failure};
use super::places::Place;

/// The longest body, in bytes.
const BODY_LIMIT: usize = 64 << 10;
/// How long a client may take to send one.
const BODY_TIME: Duration = Duration::from_secs(10);
/// The most parameters of one request.
const PARAMETERS: usize = 2000;

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Answer<Self> {
        let kind = request.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(Failure::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body must be JSON; say `Content-Type: application/json`",
            ));
        }
        let place = request.extensions().get::<Place>();
        let listening = place.map(Place::listening);
        let body = Limited::new(request.into_body(), BODY_LIMIT).collect();
        let bytes = match tokio::time::timeout(BODY_TIME, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
                return Err(Failure::too_large(format!(
                    "the body is longer than {BODY_LIMIT} bytes"
                )));
            }
            Ok(Err(_)) => return Err(Failure::bad_request("the body did not arrive whole")),
            Err(_) => {
                return Err(Failure::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "the body did not arrive in time",
                ));
            }
        };
        drop(listening);
        serde_json::from_slice(&bytes)
            .map(Body)
            .map_err(|e| Failure::bad_request(format!("the body is not as expected: {e}")))
    }
}

/// The parameters after the `?`.
#[derive(Debug, Default)]
pub(crate) struct Parameters(Vec<(Vec<u8>, Vec<u8>)>);

impl<S: Sync> FromRequestParts<S> for Parameters {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        Self::parse(parts.uri.query().unwrap_or_default())
    }
}

impl Parameters {
    fn parse(query: &str) -> Answer<Self> {
        let decode = |text: &str| -> Vec<u8> {
            let text = text.replace('+', " ");
            percent_decode(text.as_bytes()).collect()
        };
        let all: Vec<_> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .take(PARAMETERS.saturating_add(1))
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode(name), decode(value))
            })
            .collect();
        if all.len() > PARAMETERS {
            return Err(Failure::bad_request(format!(
                "more than {PARAMETERS} parameters"
            )));
        }
        Ok(Self(all))
    }

    /// All values of a parameter.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> + use<'_> {
        let name = name.as_bytes().to_vec();
        self.0
            .iter()
            .filter(move |(n, _)| *n == name)
            .map(|(_, value)| value.as_slice())
    }

    /// A parameter that is given once at most.
    ///
    /// # Errors
    /// 400 if it is given more than once.
    pub(crate) fn bytes(&self, name: &str) -> Answer<Option<&[u8]>> {
        let mut all = self.all(name);
        let first = all.next();
        match all.next() {
            None => Ok(first),
            Some(_) => Err(Failure::bad_request(format!(
                "the parameter `{name}` is given more than once"
            ))),
        }
    }

    /// A parameter as text; an empty one counts as not given.
    ///
    /// # Errors
    /// 400 if it is given more than once, or is not UTF-8.
    pub(crate) fn text(&self, name: &str) -> Answer<Option<&str>> {
        Ok(self.given(name)?.filter(|text| !text.is_empty()))
    }

    /// A parameter as text, also an empty one.
    fn given(&self, name: &str) -> Answer<Option<&str>> {
        let Some(bytes) = self.bytes(name)? else {
            return Ok(None);
        };
        match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => Ok(Some(text)),
            _ => Err(Failure::bad_request(format!(
                "the parameter `{name}` is not UTF-8 text"
            ))),
        }
    }

    /// A parameter that must be given.
    ///
    /// # Errors
    /// 400 if it is not.
    pub(crate) fn required(&self, name: &str) -> Answer<&str> {
        self.text(name)?
            .ok_or_else(|| Failure::bad_request(format!("the parameter `{name}` is missing")))
    }

    /// A parameter that is a whole number within bounds.
    ///
    /// # Errors
    /// 400 if it is anything else.
    pub(crate) fn number(&self, name: &str, least: u64, most: u64) -> Answer<Option<u64>> {
        let Some(text) = self.given(name)? else {
            return Ok(None);
        };
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<u64>() {
            Ok(number) if digits && (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(Failure::bad_request(format!(
                "the parameter `{name}` must be a whole number from {least} to {most}"
            ))),
        }
    }

    /// A parameter that is `true` or `false`; false if it is not given.
    ///
    /// # Errors
    /// 400 if it is anything else.
    pub(crate) fn flag(&self, name: &str) -> Answer<bool> {
        match self.given(name)? {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Failure::bad_request(format!(
                "the parameter `{name}` must be true or false"
            ))),
        }
    }

    /// A parameter that is one of a few words.
    ///
    /// # Errors
    /// 400 if it is anything else.
    pub(crate) fn word<T: Copy>(&self, name: &str, words: &[(&str, T)]) -> Answer<Option<T>> {
        let Some(text) = self.given(name)? else {
            return Ok(None);
        };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                Err(Failure::bad_request(format!(
                    "the parameter `{name}` must be one of {}",
                    all.join(", ")
                )))
            }
        }
    }
}

/// The one variable part of a route's path, as text.
pub(crate) struct Segment(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        match axum::extract::Path::<String>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(text)) if !text.contains('\0') => Ok(Self(text)),
            _ => Err(Failure::bad_request("the address is not UTF-8 text")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_bytes_until_text_is_asked_for() {
        let given = Parameters::parse("path=%2Fa%20b+c%ff&limit=10&x&path2=&f=true&w=zip").unwrap();
        assert_eq!(given.bytes("path").unwrap(), Some(&b"/a b c\xff"[..]));
        assert!(given.text("path").is_err());
        assert_eq!(given.number("limit", 1, 10).unwrap(), Some(10));
        assert!(given.number("limit", 1, 9).is_err());
        assert_eq!(given.text("x").unwrap(), None);
        assert_eq!(given.text("path2").unwrap(), None);
        assert!(given.number("x", 0, 9).is_err());
        assert!(given.flag("f").unwrap() && given.flag("x").is_err());
        assert!(!given.flag("g").unwrap());
        assert_eq!(given.word("w", &[("zip", 1), ("tar", 2)]).unwrap(), Some(1));
        assert!(given.word("w", &[("tar", 2)]).is_err());
        assert!(given.required("nothing").is_err());
        let twice = Parameters::parse("a=1&a=2").unwrap();
        assert!(twice.bytes("a").is_err());
        assert_eq!(twice.all("a").count(), 2);
        assert!(Parameters::parse(&"a&".repeat(3000)).is_err());
    }
}
