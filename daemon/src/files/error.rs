//! Why a guest's file cannot be given out.
//!
//! The idea: the tree says it in an errno (`docs/semantics.md`, 31). Here that becomes
//! a sentence that names the path inside the disk, never one of the host, and the
//! status that HTTP answers.

use std::io;

use nix::errno::Errno;

/// Why a file or a folder cannot be given out. `path` is the one inside the disk, as
/// JSON holds it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    /// There is no such entry.
    #[error("{path}: not found")]
    NotFound { path: String },
    /// The backup was removed while somebody looked into it.
    #[error("{path}: the backup has left the catalog")]
    Gone { path: String },
    /// What the client asks makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A link leads out of the disk.
    #[error(
        "{path}: leads out of the disk, or in a circle; give the path that the link stands for"
    )]
    LeavesDisk { path: String },
    /// A file was needed.
    #[error("{path}: is a folder; download it as an archive")]
    IsFolder { path: String },
    /// A folder was needed.
    #[error("{path}: is not a folder")]
    NotFolder { path: String },
    /// A device, a pipe or a socket, which are shown and not opened.
    #[error("{path}: is a device, a pipe or a socket, which cannot be read")]
    Special { path: String },
    /// A volume that needs a key.
    #[error("{path}: lies on a locked volume, which needs a key")]
    Locked { path: String },
    /// The image is damaged, missing or did not answer in time.
    #[error(
        "{path}: cannot be read: the backup is damaged or did not answer; the daemon's log says more"
    )]
    Unreadable { path: String },
    /// A format or a feature that is not read.
    #[error("{path}: is stored in a way that cannot be read; the daemon's log says more")]
    Unsupported { path: String },
    /// Nobody serves the tree.
    #[error("the tree of backups is not mounted; is the daemon running?")]
    DaemonGone,
    /// Every slot is in use.
    #[error("all slots are in use; try again, or release a mount")]
    NoSlot,
    /// This process has no descriptors or no memory left.
    #[error("too much is open at once; try again")]
    Exhausted,
    /// No answer in time.
    #[error("{path}: no answer in time")]
    TimedOut { path: String },
    /// Anything else.
    #[error("{path}: {source}")]
    Other { path: String, source: io::Error },
}

impl FilesError {
    /// What `error` means for `path`, as JSON holds it.
    pub(crate) fn new(path: impl Into<String>, error: io::Error) -> Self {
        let path = path.into();
        match error.raw_os_error().map(Errno::from_raw) {
            // Where a folder was asked for, the caller knows better: see `open_folder`.
            Some(Errno::ENOENT | Errno::ENOTDIR) => Self::NotFound { path },
            Some(Errno::ESTALE) => Self::Gone { path },
            Some(Errno::ENAMETOOLONG | Errno::EINVAL) => {
                Self::Invalid(format!("{path}: not a path that a file can have"))
            }
            Some(Errno::EXDEV | Errno::ELOOP) => Self::LeavesDisk { path },
            Some(Errno::EISDIR) => Self::IsFolder { path },
            Some(Errno::ENXIO) => Self::Special { path },
            Some(Errno::EACCES | Errno::EPERM) => Self::Locked { path },
            Some(Errno::EIO) => Self::Unreadable { path },
            Some(Errno::EOPNOTSUPP | Errno::ENOSYS) => Self::Unsupported { path },
            Some(Errno::ENOTCONN | Errno::ECONNABORTED | Errno::ENODEV) => Self::DaemonGone,
            Some(Errno::EBUSY) => Self::NoSlot,
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => Self::Exhausted,
            Some(Errno::ETIMEDOUT | Errno::EAGAIN | Errno::EINTR) => Self::TimedOut { path },
            _ => Self::Other {
                path,
                source: error,
            },
        }
    }

    /// The status that HTTP answers.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Invalid(_)
            | Self::LeavesDisk { .. }
            | Self::IsFolder { .. }
            | Self::NotFolder { .. }
            | Self::Special { .. } => 400,
            Self::NotFound { .. } | Self::Gone { .. } => 404,
            Self::Unsupported { .. } => 422,
            Self::Locked { .. } => 423,
            Self::Other { .. } => 500,
            Self::Unreadable { .. } => 502,
            Self::DaemonGone | Self::NoSlot | Self::Exhausted => 503,
            Self::TimedOut { .. } => 504,
        }
    }

    /// Whether it is about more than the one path, so that looking at others is in
    /// vain.
    pub(crate) fn is_general(&self) -> bool {
        matches!(
            self,
            Self::Gone { .. } | Self::DaemonGone | Self::NoSlot | Self::Exhausted
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_errno_has_its_status_and_names_the_path() {
        for (errno, status) in [
            (Errno::ENOENT, 404),
            (Errno::ENOTDIR, 404),
            (Errno::ESTALE, 404),
            (Errno::ENAMETOOLONG, 400),
            (Errno::EXDEV, 400),
            (Errno::ELOOP, 400),
            (Errno::EISDIR, 400),
            (Errno::EACCES, 423),
            (Errno::EIO, 502),
            (Errno::EOPNOTSUPP, 422),
            (Errno::ETIMEDOUT, 504),
            (Errno::EFBIG, 500),
        ] {
            let error = FilesError::new("/a/b", errno.into());
            assert_eq!(error.status(), status, "{errno}");
            assert!(error.to_string().starts_with("/a/b: "), "{error}");
        }
        for errno in [Errno::ENOTCONN, Errno::EBUSY, Errno::EMFILE] {
            let error = FilesError::new("/a/b", errno.into());
            assert_eq!((error.status(), error.is_general()), (503, true));
        }
    }
}
