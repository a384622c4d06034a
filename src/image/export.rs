//! Placeholder.
use super::Completion;
use crate::error::Result;
use bytes::BytesMut;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How exports are opened.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// Where sockets go; private to this process's user.
    pub runtime_dir: PathBuf,
    /// Images and their dependencies must lie inside one of these.
    pub repositories: Vec<PathBuf>,
    /// NBD connections to each process.
    pub connections: usize,
    /// How long one request may take, re-starts of the process included.
    pub request_timeout: Duration,
    /// How long a start of the process may take, to the end of the handshake.
    pub start_timeout: Duration,
}

/// A stretch of an export, as NBD block status tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// Length in bytes.
    pub len: u64,
    /// Whether it reads as zeros and takes no space.
    pub hole: bool,
}

/// One image held open by `qemu-nbd`.
pub struct Export {}

impl Export {
    /// Checks the image and its chain, starts `qemu-nbd`, connects.
    pub fn open(_image: &Path, _format: &str, _options: &ExportOptions) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {}))
    }
    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        0
    }
    /// The export's NBD URI.
    pub fn uri(&self) -> String {
        String::new()
    }
    /// Process id of the running `qemu-nbd`.
    pub fn pid(&self) -> u32 {
        0
    }
    /// How often the process was started again.
    pub fn restarts(&self) -> u64 {
        0
    }
    /// Reads `buf.len()` bytes from `offset` into `buf` and calls `done` with it.
    pub fn submit(&self, _offset: u64, buf: BytesMut, done: Completion) {
        done(Ok(buf))
    }
    /// Reads and waits.
    pub fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<()> {
        Ok(())
    }
    /// Allocation of `offset..offset + len` (cut at the end of the disk), in
    /// order; adjacent stretches of the same kind are joined. May answer less
    /// than asked, never nothing.
    pub fn block_status(&self, _offset: u64, _len: u64) -> Result<Vec<Allocation>> {
        Ok(Vec::new())
    }
}
