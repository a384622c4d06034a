//! Ranges and conditions of requests (RFC 9110, sections 13 and 14).
//!
//! The idea: a condition or a range that is not understood is as good as none, and
//! the whole file is the right answer to that. Only a range that lies outside the
//! file is refused.

use std::time::SystemTime;

/// Which bytes are to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Range {
    /// All: 200.
    Whole,
    /// From `first` to `last`, that one included: 206.
    Part { first: u64, last: u64 },
    /// Nothing lies there: 416.
    Unsatisfiable,
}

/// What a file's state is compared with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct State<'a> {
    /// The strong validator, quotes included.
    pub(crate) etag: &'a str,
    /// The time that `Last-Modified` says.
    pub(crate) modified: Option<SystemTime>,
}

/// Which bytes of a file of `size` bytes the headers `Range` and `If-Range` ask for.
/// Several ranges at once are as good as none.
pub(crate) fn range(
    range: Option<&str>,
    if_range: Option<&str>,
    state: State<'_>,
    size: u64,
) -> Range {
    match range.and_then(|range| parse(range, size)) {
        Some(range) if if_range.is_none_or(|condition| is_same(condition, state)) => range,
        _ => Range::Whole,
    }
}

/// Whether `304 Not Modified` answers a request with these headers.
pub(crate) fn not_modified(
    if_none_match: Option<&str>,
    if_modified_since: Option<&str>,
    state: State<'_>,
) -> bool {
    if let Some(tags) = if_none_match {
        // Our tags hold no commas. The comparison is the weak one.
        return tags
            .split(',')
            .map(str::trim)
            .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == state.etag);
    }
    let since = if_modified_since.and_then(|date| httpdate::parse_http_date(date.trim()).ok());
    match (since, state.modified) {
        (Some(since), Some(modified)) => modified <= since,
        _ => false,
    }
}

/// Whether `412 Precondition Failed` answers a request with these headers.
pub(crate) fn is_another(
    if_match: Option<&str>,
    if_unmodified_since: Option<&str>,
    state: State<'_>,
) -> bool {
    if let Some(tags) = if_match {
        // The comparison is the strong one: a weak tag is never ours.
        let mut tags = tags.split(',').map(str::trim);
        return !tags.any(|tag| tag == "*" || tag == state.etag);
    }
    let since = if_unmodified_since.and_then(|date| httpdate::parse_http_date(date.trim()).ok());
    match (since, state.modified) {
        (Some(since), Some(modified)) => modified > since,
        _ => false,
    }
}

/// Whether `If-Range` names the file as it is: by a strong validator, or by exactly
/// its date.
fn is_same(condition: &str, state: State<'_>) -> bool {
    let condition = condition.trim();
    if condition.starts_with('"') || condition.starts_with("W/") {
        return condition == state.etag;
    }
    let date = httpdate::parse_http_date(condition).ok();
    date.is_some() && date == state.modified
}

/// `bytes=0-499`, `bytes=500-` or `bytes=-500`.
fn parse(range: &str, size: u64) -> Option<Range> {
    let (unit, set) = range.trim().split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = set.trim().split_once('-')?;
    let end = size.checked_sub(1);
    if first.is_empty() {
        return match (number(last)?, end) {
            (0, _) => Some(Range::Unsatisfiable),
            // The last bytes of nothing are nothing, which no range can say.
            (_, None) => None,
            (length, Some(last)) => Some(Range::Part {
                first: size.saturating_sub(length),
                last,
            }),
        };
    }
    let first = number(first)?;
    let last = match last {
        "" => u64::MAX,
        last => number(last)?,
    };
    if last < first {
        return None;
    }
    Some(match end {
        Some(end) if first <= end => Range::Part {
            first,
            last: last.min(end),
        },
        _ => Range::Unsatisfiable,
    })
}

/// Digits only; a number too large is as large as there is.
fn number(digits: &str) -> Option<u64> {
    let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    const MODIFIED: Duration = Duration::from_secs(784_111_777);
    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
    const EARLIER: &str = "Sun, 06 Nov 1994 08:49:36 GMT";

    fn state() -> State<'static> {
        State {
            etag: "\"a-b\"",
            modified: UNIX_EPOCH.checked_add(MODIFIED),
        }
    }

    fn part(first: u64, last: u64) -> Range {
        Range::Part { first, last }
    }

    #[test]
    fn ranges_are_those_of_the_standard() {
        for (header, size, wanted) in [
            ("bytes=0-499", 10_000, part(0, 499)),
            ("bytes=500-999", 10_000, part(500, 999)),
            ("bytes=-500", 10_000, part(9500, 9999)),
            ("bytes=9500-", 10_000, part(9500, 9999)),
            ("bytes=0-0", 10_000, part(0, 0)),
            ("Bytes=0-99999", 10_000, part(0, 9999)),
            ("bytes=-99999", 10_000, part(0, 9999)),
            ("bytes=0-99999999999999999999999", 10_000, part(0, 9999)),
            ("bytes=9999-", 10_000, part(9999, 9999)),
            ("bytes=10000-", 10_000, Range::Unsatisfiable),
            (
                "bytes=99999999999999999999999-",
                10_000,
                Range::Unsatisfiable,
            ),
            ("bytes=-0", 10_000, Range::Unsatisfiable),
            ("bytes=0-", 0, Range::Unsatisfiable),
            ("bytes=-1", 0, Range::Whole),
            ("bytes=0-0,-1", 10_000, Range::Whole),
            ("bytes=5-4", 10_000, Range::Whole),
            ("bytes=-", 10_000, Range::Whole),
            ("bytes=", 10_000, Range::Whole),
            ("bytes=+1-2", 10_000, Range::Whole),
            ("bytes=1-2-3", 10_000, Range::Whole),
            ("lines=1-2", 10_000, Range::Whole),
            ("1-2", 10_000, Range::Whole),
            ("", 10_000, Range::Whole),
        ] {
            assert_eq!(range(Some(header), None, state(), size), wanted, "{header}");
        }
        assert_eq!(range(None, None, state(), 5), Range::Whole);
    }

    #[test]
    fn a_range_of_another_file_is_none() {
        for (condition, same) in [
            ("\"a-b\"", true),
            ("\"a-c\"", false),
            ("W/\"a-b\"", false),
            (DATE, true),
            (LATER, false),
            (EARLIER, false),
            ("nonsense", false),
            ("", false),
        ] {
            let wanted = if same { part(1, 2) } else { Range::Whole };
            let got = range(Some("bytes=1-2"), Some(condition), state(), 5);
            assert_eq!(got, wanted, "{condition}");
            let outside = range(Some("bytes=7-"), Some(condition), state(), 5);
            assert_eq!(outside == Range::Unsatisfiable, same, "{condition}");
        }
        let undated = State {
            modified: None,
            ..state()
        };
        let got = range(Some("bytes=1-2"), Some("nonsense"), undated, 5);
        assert_eq!(got, Range::Whole);
    }

    #[test]
    fn what_a_client_has_is_not_sent_again() {
        for (tags, since, wanted) in [
            (Some("\"a-b\""), None, true),
            (Some("W/\"a-b\""), None, true),
            (Some("\"x\" , \"a-b\""), None, true),
            (Some("*"), None, true),
            (Some("\"x\""), None, false),
            // The tag alone counts, where there is one.
            (Some("\"x\""), Some(LATER), false),
            (Some("\"a-b\""), Some(EARLIER), true),
            (None, Some(DATE), true),
            (None, Some(LATER), true),
            (None, Some(EARLIER), false),
            (None, Some("nonsense"), false),
            (None, None, false),
        ] {
            let got = not_modified(tags, since, state());
            assert_eq!(got, wanted, "{tags:?} {since:?}");
        }
    }

    #[test]
    fn another_file_is_noticed() {
        for (tags, date, another) in [
            (None, None, false),
            (Some("\"a-b\""), None, false),
            (Some("\"x\", \"a-b\""), None, false),
            (Some("*"), None, false),
            (Some("W/\"a-b\""), None, true),
            (Some("\"x\""), Some(LATER), true),
            (None, Some(DATE), false),
            (None, Some(LATER), false),
            (None, Some(EARLIER), true),
            (None, Some("yesterday"), false),
        ] {
            assert_eq!(
                is_another(tags, date, state()),
                another,
                "{tags:?} {date:?}"
            );
        }
    }
}
