//! The tree of backups over FUSE: a thin adapter.
//!
//! The idea: a loop thread never waits. It tries each operation on the spot,
//! under [`sendense::image::patience::without_waiting`]; what is in memory (almost
//! everything, once a folder was listed) is answered there and then, without a
//! lock that lasts or a hand-over. What would have to wait is run again on a
//! worker of its disk. File data is asked for from whichever thread made the
//! plan, and answered by the thread that receives it.
//!
//! Inside a disk nothing ever changes, so the kernel may keep entries,
//! attributes, listings, link targets and pages for ever. Above the disks it
//! keeps them for [`FOLLOW`], which is how soon the tree follows the catalog.

mod adapter;
mod complaints;
mod convert;
mod mount;
mod workers;

use std::time::Duration;

pub use mount::{Mount, MountOptions, clear_stale};

/// How long the kernel may keep what it knows of the folders above the disks.
pub const FOLLOW: Duration = Duration::from_secs(1);

/// How long it may keep what lies inside a disk: for ever, in effect.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
