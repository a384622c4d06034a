//! What one image says of itself: read from it alone, without its chain and
//! without a qemu program, so that thousands can be looked at.

use super::header::{self, Header};
use crate::error::{Error, Result};
use nix::fcntl::{FcntlArg, fcntl};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The byte that QEMU locks, shared, while it may write to an image
/// (`block/file-posix.c`: `RAW_LOCK_PERM_BASE` + bit of `BLK_PERM_WRITE`).
const WRITER_LOCK: i64 = 101;

/// What an image says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Name of the backing file as it stands in the header.
    pub backing_file: Option<PathBuf>,
    /// Whether QEMU has the image open for writing: it is not finished.
    pub being_written: bool,
}

/// Looks at the image at `path`, of format `qcow2` or `raw`. Follows no symbolic
/// link at its end and never waits for a pipe.
///
/// # Errors
/// Those of [`Header::read`]; `ImageInvalid` for an empty file.
pub fn probe(path: &Path, format: &str) -> Result<Probe> {
    let (file, len) = header::open(path, "the image itself")?;
    let (virtual_size, backing_file) = if format == "raw" {
        if len == 0 {
            return Err(Error::image(path, "the file is empty"));
        }
        (len, None)
    } else {
        let header = Header::read_from(&file, len, path)?;
        (header.virtual_size, header.backing_file)
    };
    Ok(Probe {
        virtual_size,
        backing_file,
        being_written: is_being_written(&file),
    })
}

fn is_being_written(file: &File) -> bool {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: WRITER_LOCK,
        l_len: 1,
        l_pid: 0,
    };
    // A file system without locks tells nothing: then its images count as done.
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok()
        && lock.l_type != libc::F_UNLCK as libc::c_short
}
