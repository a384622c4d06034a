//! Opening what lies beneath a folder, and nothing else.
//!
//! The idea: openat2(2) resolves a whole path in the kernel and refuses the moment
//! it would leave the folder: by `..`, by an absolute or an escaping symbolic link, by
//! a link of /proc, or into another mount. There is no moment between a check and
//! its use.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

/// How often a look-up is tried that the host keeps disturbing.
const ATTEMPTS: u32 = 100;

/// A folder that no look-up beneath it leaves. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Beneath(Arc<OwnedFd>);

impl Beneath {
    /// Starts at a path of the host, which links may lead to.
    ///
    /// # Errors
    /// As open(2).
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(Arc::new(open(path, flags, Mode::empty())?)))
    }

    /// Goes on beneath a folder of this one; the new one cannot be left either.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn folder(&self, path: &[u8]) -> io::Result<Self> {
        let folder = self.open(path, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        Ok(Self(Arc::new(folder)))
    }

    /// As [`Self::folder`], but follows no link.
    ///
    /// # Errors
    /// As [`Self::open_unfollowed`]; `ENOTDIR` where a link is at the end.
    pub(crate) fn folder_unfollowed(&self, path: &[u8]) -> io::Result<Self> {
        let folder = self.open_unfollowed(path, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        Ok(Self(Arc::new(folder)))
    }

    /// Opens what `path` names, following links as far as they stay beneath. The
    /// path may begin with `/`, which is this folder; an empty one is this folder
    /// as well. `O_CLOEXEC` is added, and `O_NONBLOCK`, so that a pipe of the guest
    /// cannot be waited for.
    ///
    /// # Errors
    /// `EXDEV` where the path would leave, `EINVAL` for a NUL in it, `ELOOP` for
    /// links in a circle, else as open(2).
    pub(crate) fn open(&self, path: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
        self.resolve(path, flags, ResolveFlag::empty())
    }

    /// As [`Self::open`], but follows no link at all: one on the way is `ELOOP`, one
    /// at the end is opened itself with `O_PATH`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_unfollowed(&self, path: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
        let flags = flags | OFlag::O_NOFOLLOW;
        self.resolve(path, flags, ResolveFlag::RESOLVE_NO_SYMLINKS)
    }

    fn resolve(&self, path: &[u8], flags: OFlag, more: ResolveFlag) -> io::Result<OwnedFd> {
        let start = path.iter().position(|byte| *byte != b'/');
        let path = start.and_then(|start| path.get(start..)).unwrap_or(b".");
        let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
        // What is only named is not waited for, and may not be opened so.
        let patience = if flags.contains(OFlag::O_PATH) {
            OFlag::empty()
        } else {
            OFlag::O_NONBLOCK
        };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC | patience)
            .resolve(
                ResolveFlag::RESOLVE_BENEATH
                    | ResolveFlag::RESOLVE_NO_MAGICLINKS
                    | ResolveFlag::RESOLVE_NO_XDEV
                    | more,
            );
        // Where a file is renamed or something is mounted anywhere on the host while the
        // kernel goes through a `..`, it cannot tell whether that left, and says so.
        for _ in 1..ATTEMPTS {
            match openat2(self.as_fd(), path.as_c_str(), how) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                result => return Ok(result?),
            }
        }
        Ok(openat2(self.as_fd(), path.as_c_str(), how)?)
    }
}

impl AsFd for Beneath {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Read;
    use std::os::unix::fs::symlink;

    fn errno(result: io::Result<OwnedFd>) -> Option<Errno> {
        result
            .err()
            .and_then(|e| e.raw_os_error())
            .map(Errno::from_raw)
    }

    #[test]
    fn nothing_outside_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        fs::create_dir_all(inside.join("deep/er")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        fs::write(inside.join("file"), "file").unwrap();
        symlink("../secret", inside.join("up")).unwrap();
        symlink("/etc/passwd", inside.join("absolute")).unwrap();
        symlink("../../file", inside.join("deep/er/good")).unwrap();
        symlink("circle", inside.join("circle")).unwrap();
        symlink("/proc/self/root/etc/passwd", inside.join("magic")).unwrap();
        symlink("..", inside.join("deep/parent")).unwrap();
        let beneath = Beneath::at(&inside).unwrap();
        for (path, wanted) in [
            ("../secret", Errno::EXDEV),
            ("/../secret", Errno::EXDEV),
            ("deep/../../secret", Errno::EXDEV),
            ("deep/parent/../secret", Errno::EXDEV),
            ("up", Errno::EXDEV),
            ("absolute", Errno::EXDEV),
            ("magic", Errno::EXDEV),
            ("circle", Errno::ELOOP),
            ("fi\0le", Errno::EINVAL),
            ("nothing", Errno::ENOENT),
            ("file/x", Errno::ENOTDIR),
        ] {
            let got = errno(beneath.open(path.as_bytes(), OFlag::O_RDONLY));
            assert_eq!(got, Some(wanted), "{path:?}");
        }
        for path in [
            "file",
            "/file",
            "//file",
            "deep/er/good",
            "deep/parent/file",
        ] {
            let mut text = String::new();
            let mut file = File::from(beneath.open(path.as_bytes(), OFlag::O_RDONLY).unwrap());
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "file", "{path:?}");
        }
        let unfollowed = beneath.open_unfollowed(b"deep/parent/file", OFlag::O_PATH);
        assert_eq!(errno(unfollowed), Some(Errno::ELOOP));
        beneath.open_unfollowed(b"up", OFlag::O_PATH).unwrap();
        let deeper = beneath.folder(b"deep").unwrap();
        assert_eq!(
            errno(deeper.open(b"../file", OFlag::O_RDONLY)),
            Some(Errno::EXDEV)
        );
        let empty = beneath.folder(b"").unwrap();
        empty.open(b"file", OFlag::O_RDONLY).unwrap();
    }
}
