//! How much an archive would hold, counted before it is made.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nix::sys::stat::SFlag;

use super::selection::Selection;
use super::walk::{Found, Visitor, walk};
use super::{ArchiveError, Result};
use crate::files::beneath::Beneath;

/// What lies below some paths.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Measure {
    /// Everything that is no folder.
    pub(crate) files: u64,
    /// Folders, selected ones included.
    pub(crate) directories: u64,
    /// Sizes of all regular files together; holes count.
    pub(crate) bytes: u64,
    /// Whether everything was counted: the time was enough, and every folder could
    /// be listed.
    pub(crate) complete: bool,
}

/// Counts for as long as `within`.
///
/// # Errors
/// `Cancelled`; `Failed` for paths that are none.
pub(crate) fn measure(
    root: &Beneath,
    paths: &[Vec<Vec<u8>>],
    within: Duration,
    cancelled: &AtomicBool,
) -> Result<Measure> {
    let mut counter = Counter {
        measure: Measure {
            complete: true,
            ..Measure::default()
        },
        deadline: Instant::now().checked_add(within),
        late: false,
    };
    match walk(root, &Selection::new(paths)?, cancelled, &mut counter) {
        Err(ArchiveError::Cancelled) if counter.late => counter.measure.complete = false,
        result => result?,
    }
    Ok(counter.measure)
}

struct Counter {
    measure: Measure,
    deadline: Option<Instant>,
    /// The walk was ended for want of time.
    late: bool,
}

impl Visitor for Counter {
    fn entry(&mut self, found: &Found<'_>) -> Result<()> {
        let count = if found.kind() == SFlag::S_IFDIR {
            &mut self.measure.directories
        } else {
            &mut self.measure.files
        };
        *count = count.saturating_add(1);
        if found.kind() == SFlag::S_IFREG {
            let size = u64::try_from(found.stat.st_size).unwrap_or(0);
            self.measure.bytes = self.measure.bytes.saturating_add(size);
        }
        if self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
        {
            self.late = true;
            return Err(ArchiveError::Cancelled);
        }
        Ok(())
    }

    fn unread(&mut self, _: &[u8], _: String) -> Result<()> {
        self.measure.complete = false;
        Ok(())
    }
}
