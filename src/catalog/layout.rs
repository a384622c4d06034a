//! The layout in which the hub writes images:
//! `<repository>/<context>/disk-<N>/backup-<vm>-disk<N>-<YYYYMMDD>-<HHMMSS>.qcow2`.
//!
//! VM names may hold anything, also dashes and `-disk0-`, so a name is parsed
//! from its right end.

use jiff::civil;
use jiff::tz::TimeZone;

/// What an image's name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImageName {
    /// The VM's name.
    pub(super) vm: String,
    /// Which of the VM's disks.
    pub(super) disk_index: u32,
    /// When the run started, in the hub's local time.
    pub(super) taken: civil::DateTime,
}

impl ImageName {
    /// Reads an image's name; `None` where it, or the folder it lies in, is not
    /// of the layout, or the two do not name the same disk.
    pub(super) fn parse(disk_folder: &str, file: &str) -> Option<Self> {
        let disk_index = index(disk_folder.strip_prefix("disk-")?)?;
        let stem = file.strip_prefix("backup-")?.strip_suffix(".qcow2")?;
        let (rest, time) = stem.rsplit_once('-')?;
        let (rest, date) = rest.rsplit_once('-')?;
        let (vm, disk) = rest.rsplit_once("-disk")?;
        if index(disk)? != disk_index || !is_folder_name(vm) {
            return None;
        }
        Some(Self {
            vm: vm.to_owned(),
            disk_index,
            taken: stamp(date, time)?,
        })
    }

    /// Seconds since 1970, with the stamp read in `zone`. Of two instants that
    /// show the same clock it is the first; one that no clock showed is moved on.
    pub(super) fn seconds(&self, zone: &TimeZone) -> Option<i64> {
        let zoned = self.taken.to_zoned(zone.clone()).ok()?;
        Some(zoned.timestamp().as_second())
    }
}

/// Whether a name can be a folder of the tree.
pub(super) fn is_folder_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.contains(['/', '\0'])
}

/// A number as the hub writes it: digits, no sign, no zeros in front.
fn index(digits: &str) -> Option<u32> {
    let number: u32 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

fn stamp(date: &str, time: &str) -> Option<civil::DateTime> {
    let digits = |text: &str, len: usize| {
        (text.len() == len && text.bytes().all(|b| b.is_ascii_digit())).then_some(())
    };
    digits(date, 8)?;
    digits(time, 6)?;
    let part = |text: &str, from: usize, to: usize| text.get(from..to)?.parse::<i8>().ok();
    civil::DateTime::new(
        date.get(..4)?.parse().ok()?,
        part(date, 4, 6)?,
        part(date, 6, 8)?,
        part(time, 0, 2)?,
        part(time, 2, 4)?,
        part(time, 4, 6)?,
        0,
    )
    .ok()
}
