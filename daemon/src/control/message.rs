//! What goes over the control socket.

use sendense::catalog::Mount;
use serde::{Deserialize, Serialize};

use super::fault::Fault;

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
    /// Attach a disk, and keep it attached as long as it is used.
    Mount {
        /// `backup_jobs.id`.
        backup_id: String,
        /// `disk<N>`.
        disk_index: u32,
    },
    /// End a mount.
    Unmount {
        /// The mount's UUID.
        mount_id: String,
    },
    /// These mounts were used just now; those that are not there are passed over.
    Touch {
        /// Their UUIDs.
        mount_ids: Vec<String>,
    },
    /// Can the disks of a backup be read?
    Check {
        /// `backup_jobs.id`.
        backup_id: String,
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
    /// To [`Request::Mount`].
    Mounted {
        /// The row of the mount.
        mount: Box<Mount>,
    },
    /// To [`Request::Unmount`].
    Unmounted,
    /// To [`Request::Touch`].
    Touched,
    /// To [`Request::Check`].
    Checked {
        /// By index.
        disks: Vec<DiskCheck>,
    },
    /// The request failed.
    Error {
        /// Why, as a sentence.
        message: String,
        /// Why, for a program.
        #[serde(flatten, skip_serializing_if = "Option::is_none")]
        fault: Option<Fault>,
    },
}

/// Whether a disk of a backup can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskCheck {
    /// `disk<N>`.
    pub(crate) disk_index: u32,
    /// Why it cannot, as a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
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
    /// What the host has left.
    #[serde(default)]
    pub(crate) resources: Resources,
    /// The HTTP side.
    #[serde(default)]
    pub(crate) api: ApiState,
}

/// What the host has left; what is not known is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resources {
    /// Memory that programs can still have without swapping.
    pub(crate) memory_available: Option<u64>,
    /// File descriptors that the daemon has open.
    pub(crate) descriptors_used: Option<u64>,
    /// How many it may have open.
    pub(crate) descriptors_limit: Option<u64>,
    /// Free space of the daemon's own folder and of every repository.
    pub(crate) spaces: Vec<Space>,
}

/// The space of the file system that a folder lies on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Space {
    /// `state_dir` or `repository`.
    pub(crate) role: String,
    /// The folder.
    pub(crate) path: String,
    /// Bytes that can still be written.
    pub(crate) free: Option<u64>,
    /// Bytes in all.
    pub(crate) total: Option<u64>,
    /// How old these figures are, in seconds; a host that hangs keeps them old.
    pub(crate) age: Option<u64>,
    /// Why there are none, or no newer ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// The HTTP side, as the daemon sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ApiState {
    /// `running`, `off` (not this daemon's business), `starting`, `failed`.
    pub(crate) state: String,
    /// Its process, while it runs.
    pub(crate) pid: Option<u32>,
    /// Where it listens: address and port.
    pub(crate) listen: String,
    /// How often it was started again.
    pub(crate) restarts: u64,
    /// Why it has failed the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
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
