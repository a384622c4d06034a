//! Times of guests in RFC 3339.
//!
//! The idea: the calendar repeats every 400 years. A time is moved into the first 400
//! years after 1970, whose calendar a library knows, and only its year is moved back.
//! So every time that a guest can claim has a text.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Seconds in 400 years.
const CYCLE: i64 = 146_097 * 86_400;

/// `seconds` and `nanoseconds` after 1970 in UTC, for example
/// `2025-09-02T05:21:20.1985298Z`; no more digits than the fraction has. A year
/// outside 0000 to 9999 has a sign and at least six digits, as ISO 8601 has it.
pub(crate) fn rfc3339(seconds: i64, nanoseconds: u32) -> String {
    let within = Timestamp::from_second(seconds.rem_euclid(CYCLE)).unwrap_or_default();
    let date = TimeZone::UTC.to_datetime(within);
    let cycles = seconds.div_euclid(CYCLE);
    let year = i64::from(date.year()).saturating_add(cycles.saturating_mul(400));
    let year = match year {
        0..=9999 => format!("{year:04}"),
        _ => format!("{year:+07}"),
    };
    let fraction = match nanoseconds {
        0 => String::new(),
        _ => format!(".{nanoseconds:09}"),
    };
    format!(
        "{year}-{:02}-{:02}T{:02}:{:02}:{:02}{}Z",
        date.month(),
        date.day(),
        date.hour(),
        date.minute(),
        date.second(),
        fraction.trim_end_matches('0'),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn digits_are_kept_and_zeros_are_not() {
        for (seconds, nanoseconds, text) in [
            (1_756_790_480, 198_529_800, "2025-09-02T05:21:20.1985298Z"),
            (0, 0, "1970-01-01T00:00:00Z"),
            (0, 1, "1970-01-01T00:00:00.000000001Z"),
            (-1, 999_999_999, "1969-12-31T23:59:59.999999999Z"),
            (-11_644_473_600, 0, "1601-01-01T00:00:00Z"),
            (-62_167_219_201, 0, "-000001-12-31T23:59:59Z"),
            (253_402_300_800, 0, "+010000-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds, nanoseconds), text);
        }
        rfc3339(i64::MIN, 0);
        assert_eq!(rfc3339(i64::MAX, 0), "+292277026596-12-04T15:30:07Z");
    }

    #[test]
    fn the_calendar_is_that_of_date() {
        let mut seconds = vec![-62_167_219_200, -62_135_596_801, 951_782_400, 4_107_542_399];
        let step = 1_234_567_891;
        seconds.extend((0..500).map(|n| -50_000_000_000 + n * step));
        let list: String = seconds.iter().map(|s| format!("@{s}\n")).collect();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("times");
        std::fs::write(&file, list).unwrap();
        let date = Command::new("date")
            .args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-f"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(date.status.success());
        let truth = String::from_utf8(date.stdout).unwrap();
        let mut far = 0;
        for (seconds, truth) in seconds.iter().zip(truth.lines()) {
            let ours = rfc3339(*seconds, 0);
            far += u32::from(ours.starts_with('+'));
            assert_eq!(ours.replacen("+0", "", 1), truth, "{seconds}");
        }
        assert_eq!(truth.lines().count(), seconds.len());
        assert!(far > 100);
    }
}
