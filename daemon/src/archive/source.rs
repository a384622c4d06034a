//! Reading one file from its beginning to its end, and knowing its holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::unistd::{Whence, lseek};

use super::walk::Found;
use super::{ArchiveError, reason, shown};

/// Files from this size on are worth telling the kernel that they are read through.
const LARGE: u64 = 256 * 1024;

/// A file open for reading, with a position.
pub(super) struct Source {
    pub(super) file: File,
    pub(super) stat: FileStat,
    /// Bytes, as they were when it was opened; no more are read.
    pub(super) size: u64,
    at: u64,
    /// Whether there may be holes.
    sparse: bool,
    /// Where the data that `at` lies before or in begins and ends.
    data: (u64, u64),
}

impl Source {
    /// Opens a regular file that was found.
    ///
    /// # Errors
    /// As open(2).
    pub(super) fn open(found: &Found<'_>) -> io::Result<Self> {
        let file = File::from(found.folder.open_unfollowed(found.name, OFlag::O_RDONLY)?);
        let stat = fstat(&file)?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(Errno::ESTALE.into());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0);
        if size > LARGE {
            // Only advice.
            let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
        }
        Ok(Self {
            file,
            stat,
            size,
            at: 0,
            sparse: allocated.saturating_mul(512) < size,
            data: (0, 0),
        })
    }

    /// Bytes still to be read.
    pub(super) fn left(&self) -> u64 {
        self.size.saturating_sub(self.at)
    }

    /// Goes on at `offset`.
    pub(super) fn seek(&mut self, offset: u64) {
        self.at = offset;
    }

    /// Appends the next `length` bytes to `buffer`.
    ///
    /// # Errors
    /// As read(2); `UnexpectedEof` where the file is shorter than its size.
    pub(super) fn read(&mut self, length: usize, buffer: &mut Vec<u8>) -> io::Result<()> {
        let start = buffer.len();
        buffer.resize(start.saturating_add(length), 0);
        let space = buffer.get_mut(start..).unwrap_or_default();
        let result = self.file.read_exact_at(space, self.at);
        if let Err(error) = result {
            buffer.truncate(start);
            return Err(match error.kind() {
                io::ErrorKind::UnexpectedEof => io::Error::new(
                    error.kind(),
                    format!("it is shorter than its size of {} bytes", self.size),
                ),
                _ => error,
            });
        }
        self.at = self.at.saturating_add(length as u64);
        Ok(())
    }

    /// Passes over the next `length` bytes if they lie in a hole; false if not all
    /// of them do.
    pub(super) fn skip_hole(&mut self, length: usize) -> bool {
        let end = self.at.saturating_add(length as u64);
        if !self.sparse {
            return false;
        }
        if self.at >= self.data.1 {
            match self.data_from(self.at) {
                Some(data) => self.data = data,
                None => {
                    self.sparse = false;
                    return false;
                }
            }
        }
        if end > self.data.0 {
            return false;
        }
        self.at = end;
        true
    }

    /// The stretches that hold data, as offset and length, in order. Empty for one
    /// that is all hole; `None` where there are no holes or they are unknown. More
    /// than `most` stretches become one at the end that is data throughout.
    pub(super) fn map(&self, most: usize) -> Option<Vec<(u64, u64)>> {
        if !self.sparse {
            return None;
        }
        let mut map = Vec::new();
        let mut at = 0;
        while at < self.size {
            let (start, end) = self.data_from(at)?;
            if start >= self.size {
                break;
            }
            let end = if map.len() >= most { self.size } else { end };
            map.push((start, end.saturating_sub(start)));
            at = end;
        }
        (map != [(0, self.size)]).then_some(map)
    }

    /// Where the next data from `at` on begins and ends; both are the file's end
    /// where only hole follows. `None` where the system cannot say.
    fn data_from(&self, at: u64) -> Option<(u64, u64)> {
        let seek = |at: u64, whence| {
            let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
            let found = lseek(&self.file, at, whence)?;
            u64::try_from(found).map_err(|_| Errno::EOVERFLOW)
        };
        let start = match seek(at, Whence::SeekData) {
            Ok(start) => start.min(self.size),
            Err(Errno::ENXIO) => return Some((self.size, self.size)),
            Err(_) => return None,
        };
        let end = match seek(start, Whence::SeekHole) {
            Ok(end) => end.min(self.size),
            Err(Errno::ENXIO) => self.size,
            Err(_) => return None,
        };
        // An answer that leads nowhere would be asked for ever.
        (end > at).then_some((start, end))
    }
}

/// A file broke off after its first bytes went out.
pub(super) fn broken(path: &[u8], error: &io::Error) -> ArchiveError {
    let what = format!("{}: reading broke off", shown(path));
    let source = match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), reason(error)),
    };
    ArchiveError::Failed(sendense::Error::io(what, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::beneath::Beneath;
    use nix::fcntl::AtFlags;
    use nix::sys::stat::fstatat;
    use std::path::Path;

    fn source(dir: &Path, name: &str) -> Source {
        let folder = Beneath::at(dir).unwrap();
        let stat = fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW).unwrap();
        let (path, name) = (name.as_bytes(), name.as_bytes());
        let found = Found {
            path,
            folder: &folder,
            name,
            stat: &stat,
        };
        Source::open(&found).unwrap()
    }

    #[test]
    fn holes_are_passed_over_and_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("sparse")).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[7; 4096], 512 * 1024).unwrap();
        let mut source = source(dir.path(), "sparse");
        assert_eq!(source.map(100).unwrap(), [(512 * 1024, 4096)]);
        assert_eq!(source.map(0).unwrap(), [(512 * 1024, 512 * 1024)]);
        assert!(source.skip_hole(512 * 1024));
        assert!(!source.skip_hole(1));
        let mut data = Vec::new();
        source.read(4096, &mut data).unwrap();
        assert_eq!(data, [7; 4096]);
        assert!(source.skip_hole(508 * 1024));
        assert_eq!(source.left(), 0);
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("short");
        std::fs::write(&path, [1; 1000]).unwrap();
        let mut source = source(dir.path(), "short");
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(500)
            .unwrap();
        let error = source.read(1000, &mut Vec::new()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "it is shorter than its size of 1000 bytes"
        );
    }
}
