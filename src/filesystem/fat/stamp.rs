//! Times: a date since 1980 and a time of day, in the zone that the guest had.

use jiff::civil::{Date, Time as TimeOfDay};
use jiff::tz::{Offset, TimeZone};

use crate::filesystem::Time;

/// Minutes in a unit of exFAT's offset.
const UNIT: i32 = 15;

/// A time as on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Bits 15–9: years since 1980; 8–5: month; 4–0: day.
    pub(super) date: u16,
    /// Bits 15–11: hour; 10–5: minute; 4–0: half the second.
    pub(super) time: u16,
    /// Hundredths of a second (0..200) to add.
    pub(super) hundredths: u8,
    /// exFAT, if bit 7 is set: how far local time is ahead of UTC, in quarters
    /// of an hour, as a signed number of 7 bits.
    pub(super) offset: u8,
}

impl Stamp {
    /// The point in time, which is local time in `zone` unless the stamp says
    /// how far it is from UTC.
    ///
    /// A field that cannot be is the nearest that can. A time that was skipped
    /// when clocks went forward is as much later; of one that came twice when
    /// they went back the first is meant.
    pub(super) fn resolve(self, zone: &TimeZone) -> Time {
        let part =
            |value: u16, from: u32, bits: u16| i8::try_from(value >> from & bits).unwrap_or(0);
        let year = i16::try_from(self.date >> 9)
            .unwrap_or(0)
            .saturating_add(1980);
        let month = part(self.date, 5, 15).clamp(1, 12);
        let day = part(self.date, 0, 31).max(1);
        let Ok(first) = Date::new(year, month, 1) else {
            return Time::default();
        };
        let date = Date::new(year, month, day.min(first.days_in_month())).unwrap_or(first);
        let hour = part(self.time, 11, 31).min(23);
        let minute = part(self.time, 5, 63).min(59);
        let hundredths = self.hundredths.min(199);
        let second = part(self.time, 0, 31).min(29).saturating_mul(2);
        let second = second.saturating_add(i8::from(hundredths >= 100));
        let time = TimeOfDay::new(hour, minute, second, 0).unwrap_or(TimeOfDay::MIN);
        let local = date.to_datetime(time);
        let at = if self.offset & 0x80 != 0 {
            // Seven bits with a sign.
            let quarters = i32::from((self.offset << 1).cast_signed() >> 1);
            let seconds = quarters.saturating_mul(UNIT).saturating_mul(60);
            Offset::from_seconds(seconds).and_then(|offset| offset.to_timestamp(local))
        } else {
            zone.to_timestamp(local)
        };
        Time {
            seconds: at.map_or(0, jiff::Timestamp::as_second),
            nanoseconds: u32::from(hundredths % 100).saturating_mul(10_000_000),
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::filesystem::parse_time_zone;

    fn at(date: (u16, u16, u16), time: (u16, u16, u16)) -> Stamp {
        Stamp {
            date: (date.0 - 1980) << 9 | date.1 << 5 | date.2,
            time: time.0 << 11 | time.1 << 5 | (time.2 / 2),
            ..Stamp::default()
        }
    }

    fn seconds(stamp: Stamp, zone: &str) -> i64 {
        stamp.resolve(&parse_time_zone(zone).unwrap()).seconds
    }

    // The expected numbers are from `date -d 'TZ="…" …' +%s`.
    #[test]
    fn local_time_is_that_of_the_zone() {
        let summer = at((2024, 7, 1), (12, 30, 58));
        assert_eq!(seconds(summer, "UTC"), 1_719_837_058);
        assert_eq!(seconds(summer, "Europe/Berlin"), 1_719_829_858);
        assert_eq!(seconds(summer, "+02:00"), 1_719_829_858);
        assert_eq!(seconds(summer, "America/New_York"), 1_719_851_458);
        let winter = at((1980, 1, 1), (0, 0, 0));
        assert_eq!(seconds(winter, "Europe/Berlin"), 315_529_200);
        assert_eq!(
            seconds(at((2107, 12, 31), (23, 59, 58)), "UTC"),
            4_354_819_198
        );
    }

    #[test]
    fn skipped_and_repeated_hours_are_resolved_as_stated() {
        let skipped = at((2024, 3, 31), (2, 30, 0));
        // 03:30 in summer, 01:30 UTC.
        assert_eq!(seconds(skipped, "Europe/Berlin"), 1_711_848_600);
        let twice = at((2024, 10, 27), (2, 30, 0));
        // Still in summer, 00:30 UTC.
        assert_eq!(seconds(twice, "Europe/Berlin"), 1_729_989_000);
    }

    #[test]
    fn an_offset_in_the_stamp_goes_before_the_zone() {
        let mut stamp = at((2024, 7, 1), (12, 30, 58));
        stamp.offset = 0x80 | 8;
        assert_eq!(seconds(stamp, "America/New_York"), 1_719_829_858);
        stamp.offset = 0x80 | (-20i8).cast_unsigned();
        assert_eq!(seconds(stamp, "UTC"), 1_719_855_058);
        stamp.hundredths = 199;
        let time = stamp.resolve(&TimeZone::UTC);
        assert_eq!(
            (time.seconds, time.nanoseconds),
            (1_719_855_059, 990_000_000)
        );
    }

    #[test]
    fn what_cannot_be_is_the_nearest_that_can() {
        assert_eq!(seconds(Stamp::default(), "UTC"), 315_532_800);
        let wrong = Stamp {
            date: 44 << 9 | 2 << 5 | 31,
            time: u16::MAX,
            hundredths: 255,
            offset: 0,
        };
        // 2024-02-29 23:59:59.99
        assert_eq!(seconds(wrong, "UTC"), 1_709_251_199);
    }
}
