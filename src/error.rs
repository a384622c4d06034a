//! The one error type of the library.
//!
//! Every error names the object it is about and is a sentence a person can act
//! on. [`Error::errno`] is the only place where an error becomes a number.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The library's result.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between a path in the tree and a byte in an image.
///
/// Cloneable, because several waiters may share the outcome of one attempt.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No such object.
    #[error("{what}: not found")]
    NotFound {
        /// The object looked for, as the user named it.
        what: String,
    },
    /// It was in the catalog once and is not any more.
    #[error("{what}: has left the catalog")]
    Gone {
        /// The object, as the catalog knew it.
        what: String,
    },
    /// A folder was needed.
    #[error("{what}: not a directory")]
    NotADirectory {
        /// The object concerned.
        what: String,
    },
    /// Something other than a folder was needed.
    #[error("{what}: is a directory")]
    IsADirectory {
        /// The object concerned.
        what: String,
    },
    /// What the user gave us makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// An image, or a file it depends on, is not there.
    #[error("{}: the image is not there ({used_by})", path.display())]
    ImageMissing {
        /// The missing file.
        path: PathBuf,
        /// What needs it, for example `backing file of /…/b.qcow2`.
        used_by: String,
    },
    /// An image, or a file it depends on, lies outside every repository.
    #[error("{}: lies outside every configured repository ({used_by}); refused", path.display())]
    ImageOutside {
        /// The file that was refused.
        path: PathBuf,
        /// What needs it.
        used_by: String,
    },
    /// An image that is not what the catalog says, or is damaged.
    #[error("{}: {reason}", path.display())]
    ImageInvalid {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// `qemu-nbd` or `qemu-img` could not do its work.
    #[error("{program} for {}: {reason}", path.display())]
    Qemu {
        /// The program.
        program: &'static str,
        /// The image it was started for.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
    /// An on-disk structure contradicts its specification.
    #[error("{what} is damaged: {reason}")]
    Corrupt {
        /// The structure, for example `ext4 inode 12`.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something that this program does not read.
    #[error("{what}: {reason}")]
    Unsupported {
        /// The object concerned.
        what: String,
        /// Why it cannot be read.
        reason: String,
    },
    /// A volume that needs a key.
    #[error("{what}: it is locked ({kind}) and needs a key, which cannot be given yet")]
    Locked {
        /// The volume.
        what: String,
        /// What locks it: `LUKS`, `BitLocker`.
        kind: String,
    },
    /// A value that is longer than can be answered at once.
    #[error("{what}: longer than {limit} bytes")]
    TooLarge {
        /// The object concerned.
        what: String,
        /// The most that can be answered, in bytes.
        limit: u64,
    },
    /// Reading failed below us.
    #[error("{what}: {source}")]
    Io {
        /// The object concerned.
        what: String,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// No answer in time.
    #[error("{what}: no answer within {after:?}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// There is no slot for one more disk.
    #[error("{}", shortage.sentence(*slots))]
    NoSlot {
        /// How many slots there are.
        slots: usize,
        /// Why none is free.
        shortage: Shortage,
    },
    /// A client named a backup, a disk or a mount that is not there; the whole
    /// sentence.
    #[error("{0}")]
    Unknown(String),
    /// A mount that nobody used for too long.
    #[error("mount expired, please remount backup")]
    Expired,
    /// A disk has one mount at a time.
    #[error("{what} is mounted already as {mount_id}")]
    MountedAlready {
        /// The disk.
        what: String,
        /// The mount that it has.
        mount_id: String,
    },
    /// The host has too little of something to take on more work; a sentence that
    /// says of what.
    #[error("{what}")]
    Exhausted {
        /// The sentence.
        what: String,
    },
    /// The daemon cannot be asked; the whole sentence.
    #[error("{0}")]
    NoDaemon(String),
    /// What a daemon said that is none of the above: its sentence.
    #[error("{0}")]
    Daemon(String),
    /// The catalog database failed.
    #[error("catalog: {0}")]
    Catalog(String),
    /// The asked thing would have had to wait, and the caller may not wait
    /// (see [`crate::image::patience::without_waiting`]). Never reaches a user.
    #[error("would have to wait")]
    WouldWait,
}

/// Why no slot is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shortage {
    /// All are in use, and none came free in time.
    InUse,
    /// Mounts hold them all, and nothing else can have one.
    Held,
    /// Mounts hold them all, and one more mount was asked for.
    Mounts,
}

impl Shortage {
    fn sentence(self, slots: usize) -> String {
        match self {
            Self::InUse => {
                format!("all {slots} slots are in use; try again, release a disk, or raise `slots`")
            }
            Self::Held => {
                format!("mounts hold all {slots} slots; unmount a backup, or raise `slots`")
            }
            Self::Mounts => format!(
                "Maximum concurrent mounts reached (limit: {slots}). Please unmount a backup \
                 first."
            ),
        }
    }
}

impl Error {
    /// An I/O error on a named object.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source: Arc::new(source),
        }
    }

    /// A damaged structure.
    pub fn corrupt(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Corrupt {
            what: what.into(),
            reason: reason.into(),
        }
    }

    /// Something that is not there.
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::NotFound { what: what.into() }
    }

    /// An image that is not as it should be.
    pub fn image(path: &Path, reason: impl Into<String>) -> Self {
        Self::ImageInvalid {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    /// The errno that a system call answers for this error.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound { .. } => libc::ENOENT,
            Self::Gone { .. } => libc::ESTALE,
            Self::NotADirectory { .. } => libc::ENOTDIR,
            Self::IsADirectory { .. } => libc::EISDIR,
            Self::Invalid(_) => libc::EINVAL,
            Self::Unsupported { .. } => libc::EOPNOTSUPP,
            // ENOKEY would say it better, but servers of NFS do not know it.
            Self::Locked { .. } => libc::EACCES,
            Self::TooLarge { .. } => libc::E2BIG,
            Self::Unknown(_) | Self::Expired => libc::ENOENT,
            Self::NoSlot { .. } | Self::MountedAlready { .. } | Self::Exhausted { .. } => {
                libc::EBUSY
            }
            Self::WouldWait => libc::EAGAIN,
            Self::ImageMissing { .. }
            | Self::ImageOutside { .. }
            | Self::ImageInvalid { .. }
            | Self::Qemu { .. }
            | Self::Corrupt { .. }
            | Self::Io { .. }
            | Self::TimedOut { .. }
            | Self::NoDaemon(_)
            | Self::Daemon(_)
            | Self::Catalog(_) => libc::EIO,
        }
    }
}
