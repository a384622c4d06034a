//! One qcow2 image, held open for reading.
//!
//! The idea: an [`Export`] is a `qemu-nbd` process on a private unix socket and
//! a few NBD connections to it. It outlives the death of its process: requests
//! under way are sent again to a fresh one, so that readers see a pause and not
//! an error. Requests are answered by a call-back ([`Completion`]), so that no
//! thread has to wait for file data; whoever wants to wait uses
//! [`Export::read_at`].
//!
//! - [`chain`] checks, before any process starts, that the image and all that
//!   it depends on are inside the repositories;
//! - [`export`] owns the process and the connections, and starts them again;
//! - `qemu_nbd` is the process, `qemu_img` a question to its sibling;
//! - `nbd` is the protocol, `deadline` the clock of its requests;
//! - `reaper` sees to what has ended, so that no drop waits;
//! - [`cache`] keeps metadata blocks of all disks, one bounded LRU;
//! - [`patience`] says how long the work of a thread may take;
//! - [`disk`] is what the layers above see: cached reads for parsers, direct
//!   reads for file data.

pub mod cache;
pub mod chain;
pub(crate) mod deadline;
pub mod disk;
pub mod export;
pub(crate) mod nbd;
pub mod patience;
pub(crate) mod qemu_img;
pub(crate) mod qemu_nbd;
mod reaper;

use crate::error::Result;
use bytes::BytesMut;

pub use cache::BlockCache;
pub use chain::FileIdentity;
pub use disk::Disk;
pub use export::{Allocation, Export, ExportOptions};

/// Called once with the filled buffer, or with the error. Runs on a receiving
/// thread: it must not wait for anything.
pub type Completion = Box<dyn FnOnce(Result<BytesMut>) + Send>;

/// Random-access reading for parsers: a disk, a volume, or a file in a test.
pub trait BlockRead: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` from byte `offset`.
    ///
    /// # Errors
    /// A range past the end is [`crate::Error::Corrupt`] (only a damaged
    /// structure points there); the rest comes from below.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Fills `buf` from byte `offset` with what is not likely to be read again
    /// soon, such as the compressed data of a large file: where there is a cache,
    /// it is left alone. It waits, however little is asked for.
    ///
    /// # Errors
    /// As [`Self::read_at`].
    fn read_data_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_at(offset, buf)
    }

    /// Says that these bytes will be read soon: where there is a cache, they are
    /// fetched behind the caller's back. Never waits; what lies past the end is
    /// nothing to fetch.
    fn will_need(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }
}
