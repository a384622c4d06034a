//! The names in a folder, as the folder has them.
//!
//! The idea: getdents(2) gives with each name what kind of entry it is and the
//! position after it, which readdir(3) hides. With the position a listing can go on
//! where it stopped, however large the folder.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek};
use sendense::sys::read_directory;

use super::beneath::Beneath;

/// Bytes of entries read at once: some thousand.
const BUFFER: usize = 128 * 1024;

/// An entry, as its folder has it.
pub(crate) struct Dirent<'a> {
    pub(crate) name: &'a [u8],
    /// The position after it.
    pub(crate) next: i64,
    /// Whether it is a folder, if the folder says that.
    pub(crate) is_folder: Option<bool>,
}

/// A folder being read.
pub(crate) struct Dirents {
    folder: OwnedFd,
    buffer: Vec<u8>,
    deadline: Instant,
}

impl Dirents {
    /// Starts at a position: 0, or one that an entry gave.
    ///
    /// # Errors
    /// As open(2); `EINVAL` for what is no position.
    pub(crate) fn open(folder: &Beneath, position: i64, deadline: Instant) -> io::Result<Self> {
        let folder = folder.open(b"", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        if position != 0 {
            lseek(&folder, position, Whence::SeekSet)?;
        }
        Ok(Self {
            folder,
            buffer: vec![0; BUFFER],
            deadline,
        })
    }

    /// Calls `each` with the entries, the dots left out, until it breaks or there are
    /// no more.
    ///
    /// # Errors
    /// As getdents(2), what `each` says, and `ETIMEDOUT`: a folder of a hostile image
    /// may have no end.
    pub(crate) fn each(
        &mut self,
        each: &mut dyn FnMut(Dirent<'_>) -> io::Result<ControlFlow<()>>,
    ) -> io::Result<()> {
        loop {
            if Instant::now() > self.deadline {
                return Err(Errno::ETIMEDOUT.into());
            }
            let length = match read_directory(self.folder.as_fd(), &mut self.buffer) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                length => length?,
            };
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let (entry, after) = parse(rest).ok_or_else(|| io::Error::from(Errno::EIO))?;
                rest = after;
                if !matches!(entry.name, b"." | b"..") && each(entry)?.is_break() {
                    return Ok(());
                }
            }
        }
    }
}

/// The first of several `struct linux_dirent64`: inode (8 bytes), position (8), length
/// of all (2), type (1), name, zero.
fn parse(bytes: &[u8]) -> Option<(Dirent<'_>, &[u8])> {
    let (_, rest) = bytes.split_first_chunk::<8>()?;
    let (next, rest) = rest.split_first_chunk::<8>()?;
    let (length, _) = rest.split_first_chunk::<2>()?;
    let (entry, after) = bytes.split_at_checked(usize::from(u16::from_ne_bytes(*length)))?;
    let (kind, name) = entry.get(18..)?.split_first()?;
    let end = name.iter().position(|byte| *byte == 0)?;
    let entry = Dirent {
        name: name.get(..end)?,
        next: i64::from_ne_bytes(*next),
        is_folder: match *kind {
            libc::DT_UNKNOWN => None,
            kind => Some(kind == libc::DT_DIR),
        },
    };
    Some((entry, after))
}
