//! What goes over the control socket.

use serde::{Deserialize, Serialize};

/// A request; one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub(crate) enum Request {
    /// How the daemon is.
    Status,
    /// Release a disk now.
    Release {
        /// `<vm>/<backup>/disk<N>`.
        path: String,
    },
}

/// An answer; one line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub(crate) enum Answer {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Release`].
    Released {
        /// What happened, as a sentence.
        message: String,
    },
    /// The request failed.
    Error {
        /// Why, as a sentence.
        message: String,
    },
}

/// How the daemon is. Times are seconds since 1970; sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The program's version.
    pub(crate) version: String,
    /// The daemon's process.
    pub(crate) pid: u32,
    /// When it started.
    pub(crate) started_at: i64,
    /// Where the tree is mounted.
    pub(crate) mountpoint: String,
    /// Slots.
    pub(crate) slots: SlotFigures,
    /// The disks that are attached.
    pub(crate) attached: Vec<AttachedDisk>,
    /// The cache of metadata blocks.
    pub(crate) cache: CacheFigures,
    /// Since the start.
    pub(crate) totals: Totals,
    /// Resident memory of the daemon itself.
    pub(crate) rss: u64,
}

/// How many disks can be attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SlotFigures {
    /// How many there are.
    pub(crate) total: usize,
    /// How many have a disk.
    pub(crate) used: usize,
    /// How many of those a mount holds, so that they cannot be evicted.
    pub(crate) held: usize,
}

/// A disk that is attached.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct AttachedDisk {
    /// `<vm>/<backup>/disk<N>`.
    pub(crate) path: String,
    /// The image.
    pub(crate) image: String,
    /// When it was attached.
    pub(crate) since: i64,
    /// When it was last used.
    pub(crate) last_used: i64,
    /// Operations that used it: look-ups, listings, reads.
    pub(crate) uses: u64,
    /// Reads of file data.
    pub(crate) reads: u64,
    /// File data read.
    pub(crate) bytes_read: u64,
    /// Requests sent to `qemu-nbd`.
    pub(crate) nbd_requests: u64,
    /// The process of `qemu-nbd`.
    pub(crate) qemu_nbd_pid: u32,
    /// How often it was started again.
    pub(crate) restarts: u64,
    /// `attached`, `attaching`, `held`, `releasing`.
    pub(crate) state: String,
}

/// The cache of metadata blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CacheFigures {
    /// It never grows past this.
    pub(crate) capacity: u64,
    /// What it holds.
    pub(crate) bytes: u64,
    /// In how many blocks.
    pub(crate) blocks: u64,
    /// Blocks found in it.
    pub(crate) hits: u64,
    /// Blocks that had to be read.
    pub(crate) misses: u64,
}

/// Sums since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Disks attached.
    pub(crate) attaches: u64,
    /// Disks released to make room, or because they were idle.
    pub(crate) evictions: u64,
    /// Reads of file data.
    pub(crate) reads: u64,
    /// File data read.
    pub(crate) bytes: u64,
    /// Operations that ended in an error of ours (not "no such file").
    pub(crate) errors: u64,
}
