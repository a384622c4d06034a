//! How files look whose format keeps no owner, mode or time zone.

use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::{TimeZone, TimeZoneDatabase};

use crate::error::{Error, Result};

/// What a format leaves open, for all volumes of such a format.
#[derive(Debug, Clone)]
pub struct Options {
    /// Owner of all files.
    pub uid: u32,
    /// Group of all files.
    pub gid: u32,
    /// Mode of files; those that are read-only lose their write bits.
    pub file_mode: u16,
    /// Mode of folders.
    pub directory_mode: u16,
    /// Whether [`super::FileSystem::lookup`] finds names that differ in case,
    /// where the guest's system would.
    pub ignore_case: bool,
    /// The zone of times that are kept as local time (FAT; exFAT where the time
    /// itself does not say).
    pub time_zone: TimeZone,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            uid: 0,
            gid: 0,
            file_mode: 0o644,
            directory_mode: 0o755,
            ignore_case: false,
            time_zone: TimeZone::UTC,
        }
    }
}

/// The zone of a name such as `Europe/Berlin`, or of an offset such as `+02:00`.
/// The names are those of the time zone database that is built in; the host's
/// does not matter.
///
/// # Errors
/// `Invalid`, saying what can be written.
pub fn parse_time_zone(text: &str) -> Result<TimeZone> {
    let database = TimeZoneDatabase::bundled();
    DateTimeParser::new()
        .parse_time_zone_with(&database, text)
        .map_err(|_| {
            Error::Invalid(format!(
                "{text:?} is not a time zone; write a name such as Europe/Berlin, UTC, or an \
                 offset such as +02:00"
            ))
        })
}
