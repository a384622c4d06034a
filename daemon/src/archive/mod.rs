//! Archives of folders, as ZIP, tar.gz or tar.zst, made while they are sent.
//!
//! The idea: each archive has one thread, which walks the folders, reads the files
//! and lays the archive out, and compresses nothing itself: blocks of data go to
//! threads that all archives of the process share ([`Pool`]) and come back in their
//! order. How many bytes are under way is bounded, so memory does not depend on the
//! sizes of files, and a client that takes its time slows the reading.
//!
//! An archive says itself what is not in it: whatever could not be read is listed in
//! a last member. It never passes for whole when it is not: what fails after its
//! first bytes went out ends the archive with an error, and the caller breaks the
//! connection.
//!
//! The parts: [`selection`] says what is asked for, [`walk`] finds it, [`source`]
//! reads files, [`pool`] compresses, [`writer`] sends; [`zip`] and [`tar`] are the
//! formats; [`account`] keeps the books; [`measure`] counts beforehand.

mod account;
mod measure;
mod pool;
mod probe;
mod selection;
mod source;
mod tar;
mod walk;
mod writer;
mod zip;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use sendense::Error;

use self::account::Account;
pub(crate) use self::account::Summary;
pub(crate) use self::measure::{Measure, measure};
pub(crate) use self::pool::Pool;
use self::selection::Selection;
use self::writer::Writer;
use crate::files::beneath::Beneath;

/// Kinds of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, utoipa::ToSchema)]
pub(crate) enum Format {
    /// ZIP with ZIP64 where it is needed.
    #[schema(rename = "zip")]
    Zip,
    /// tar (pax) in gzip.
    #[schema(rename = "tar.gz")]
    TarGz,
    /// tar (pax) in Zstandard.
    #[schema(rename = "tar.zst")]
    TarZst,
}

impl Format {
    /// What a file of this kind is called at its end, without the dot.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::Zip => "zip",
            Self::TarGz => "tar.gz",
            Self::TarZst => "tar.zst",
        }
    }

    /// The value of `Content-Type`.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Zip => "application/zip",
            Self::TarGz => "application/gzip",
            Self::TarZst => "application/zstd",
        }
    }
}

/// What to put into one archive.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// The folder that nothing outside of is read.
    pub(crate) root: Beneath,
    /// Files and folders below the root, each by its components; an empty one is
    /// the root itself. Links on the way are followed, one at the end is put into
    /// the archive as the link it is.
    pub(crate) paths: Vec<Vec<Vec<u8>>>,
    /// The kind of archive.
    pub(crate) format: Format,
    /// The most bytes of file data.
    pub(crate) limit: Option<u64>,
}

/// Where an archive goes.
pub(crate) trait Output: Send {
    /// Takes the next bytes, 128 KiB at most; waits while the client is slow.
    ///
    /// # Errors
    /// Any ends the archive: the client is gone, or stalls.
    fn put(&mut self, piece: Bytes) -> io::Result<()>;
}

/// Why there is no whole archive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// Somebody asked for it to end.
    #[error("the archive was cancelled")]
    Cancelled,
    /// The client takes no more.
    #[error("the archive could not be sent: {0}")]
    Output(#[source] io::Error),
    /// More than was allowed.
    #[error("the archive would hold more than {limit} bytes of files, which is the limit")]
    TooLarge {
        /// The most bytes of file data.
        limit: u64,
    },
    /// A file failed after its first bytes went out, or the work itself failed.
    #[error(transparent)]
    Failed(#[from] Error),
}

type Result<T> = std::result::Result<T, ArchiveError>;

/// Writes the archive to `output`. Blocks until all is sent; `cancelled` ends it
/// within a block.
///
/// # Errors
/// [`ArchiveError`]; what was put out until then is not an archive.
pub(crate) fn write(
    job: &Job,
    pool: &Pool,
    output: &mut dyn Output,
    cancelled: &AtomicBool,
) -> Result<Summary> {
    let selection = Selection::new(&job.paths)?;
    let writer = Writer::new(output, cancelled);
    let account = Account::new(job.limit);
    match job.format {
        Format::Zip => {
            let mut zip = zip::Zip::new(writer, pool, account);
            walk::walk(&job.root, &selection, cancelled, &mut zip)?;
            zip.finish()
        }
        Format::TarGz | Format::TarZst => {
            let codec = match job.format {
                Format::TarZst => tar::Codec::Zstd,
                _ => tar::Codec::Gzip,
            };
            let mut tar = tar::Tar::new(writer, pool, account, codec);
            walk::walk(&job.root, &selection, cancelled, &mut tar)?;
            tar.finish()
        }
    }
}

/// The path of something in the tree, as sentences show it.
fn shown(path: &[u8]) -> String {
    if path.is_empty() {
        return "/".to_owned();
    }
    crate::terminal::escape(path)
}

/// What the system said, without its number.
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}
