//! Times: units of 100 ns since 1601-01-01 UTC.
#![deny(clippy::arithmetic_side_effects)]

use crate::filesystem::Time;

/// Units per second.
const UNITS: i64 = 10_000_000;

/// Seconds from 1601 to 1970.
const EPOCH: i64 = 11_644_473_600;

/// A time on disk as [`Time`], exactly.
pub(super) fn time(on_disk: u64) -> Time {
    let units = on_disk.cast_signed();
    let seconds = units.div_euclid(UNITS).saturating_sub(EPOCH);
    let nanoseconds = units.rem_euclid(UNITS).saturating_mul(100);
    Time {
        seconds,
        nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
    }
}
