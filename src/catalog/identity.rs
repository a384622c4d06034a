//! Whether a file is still the one that a row speaks of.
//!
//! The idea: a row promises content, and content is not compared but its file's
//! number, size and time of change. Who replaces or overwrites an image changes
//! at least one of them.

use super::DiskRecord;
use crate::error::{Error, Result};
use rusqlite::Row;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

const NANOSECONDS: i64 = 1_000_000_000;

/// What tells that an image's file is still the one it was (`stat(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageIdentity {
    /// Inode number.
    pub inode: u64,
    /// Size of the file in bytes, which is not that of the disk.
    pub size: u64,
    /// When its content was last changed: whole seconds since 1970.
    pub mtime_seconds: i64,
    /// The nanoseconds after them, below 10^9.
    pub mtime_nanoseconds: u32,
}

impl ImageIdentity {
    /// Of the file with this metadata.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            ..Self::at(
                metadata
                    .mtime()
                    .saturating_mul(NANOSECONDS)
                    .saturating_add(metadata.mtime_nsec()),
            )
        }
    }

    /// With this time, nanoseconds since 1970, and nothing else: times that the
    /// database cannot hold are the same before and after they were there.
    fn at(mtime: i64) -> Self {
        Self {
            inode: 0,
            size: 0,
            mtime_seconds: mtime.div_euclid(NANOSECONDS),
            mtime_nanoseconds: u32::try_from(mtime.rem_euclid(NANOSECONDS)).unwrap_or_default(),
        }
    }

    // SQLite's numbers are signed; the bits are what counts.

    pub(super) fn inode_column(self) -> i64 {
        self.inode.cast_signed()
    }

    pub(super) fn size_column(self) -> i64 {
        self.size.cast_signed()
    }

    pub(super) fn mtime_column(self) -> i64 {
        self.mtime_seconds
            .saturating_mul(NANOSECONDS)
            .saturating_add(i64::from(self.mtime_nanoseconds))
    }
}

impl DiskRecord {
    /// Whether the image is the one that was recorded, as far as that is known.
    ///
    /// # Errors
    /// `ImageInvalid` if it is not; `Io` if it cannot be looked at.
    pub fn verify(&self) -> Result<()> {
        let Some(recorded) = self.identity else {
            return Ok(());
        };
        let now = std::fs::metadata(&self.path)
            .map_err(|e| Error::io(self.path.display().to_string(), e))?;
        if ImageIdentity::of(&now) == recorded {
            return Ok(());
        }
        Err(Error::image(
            &self.path,
            "the image was changed after it was recorded; run `sendense catalog scan`",
        ))
    }
}

/// From the columns `file_inode`, `file_size` and `file_mtime_ns`, the first of
/// which is `first`.
pub(super) fn from_columns(row: &Row<'_>, first: usize) -> rusqlite::Result<Option<ImageIdentity>> {
    let column = |n: usize| row.get::<_, Option<i64>>(first.saturating_add(n));
    Ok(match (column(0)?, column(1)?, column(2)?) {
        (Some(inode), Some(size), Some(mtime)) => Some(ImageIdentity {
            inode: inode.cast_unsigned(),
            size: size.cast_unsigned(),
            ..ImageIdentity::at(mtime)
        }),
        _ => None,
    })
}
