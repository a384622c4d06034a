//! One image held open by `qemu-nbd`, read through NBD.
//!
//! The idea: an [`Export`] stays good for as long as it lives, whatever happens
//! to the process behind it; `session` sees to that. Here is what can be asked
//! of it, and the checks of what is asked.

mod session;

use super::Completion;
use super::chain::{self, FileIdentity};
use super::nbd::Request;
use super::qemu_nbd;
use crate::error::{Error, Result};
use bytes::BytesMut;
use session::{Handle, Launch, Session};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

/// Waiting reads are cut into pieces of this size.
const WAITING_READ: usize = 8 << 20;
/// The most that one question for block status asks about.
const MAX_STATUS: u64 = 1 << 30;
/// Buffers up to this size are kept for a thread's next waiting read.
const KEPT_BUFFER: usize = 256 << 10;

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
    /// Whether it is known to read as zeros.
    pub hole: bool,
}

/// One image held open by `qemu-nbd`.
///
/// Dropping it ends the process and waits for nothing; whatever is still under
/// way is answered with an error.
pub struct Export {
    session: Handle,
    uri: String,
}

impl Export {
    /// Checks the image and its chain, starts `qemu-nbd`, connects.
    ///
    /// # Errors
    /// Those of [`chain::check`]; `Qemu` with what the process said; `TimedOut`;
    /// `Invalid` for an unfit runtime directory.
    pub fn open(image: &Path, format: &str, options: &ExportOptions) -> Result<Arc<Self>> {
        let socket = qemu_nbd::socket(&options.runtime_dir)?;
        let uri = socket.uri();
        let (path, format, repositories) = (
            image.to_owned(),
            format.to_owned(),
            options.repositories.clone(),
        );
        // One more than we need, for tools that are pointed at the URI.
        let clients = options.connections.max(1).saturating_add(1);
        let launch = move || {
            let chain = chain::check(&path, &format, &repositories)?;
            let process = qemu_nbd::start(&chain, clients, &socket)?;
            Ok((process, chain))
        };
        Self::launch(image, uri, Box::new(launch), options)
    }

    fn launch(
        image: &Path,
        uri: String,
        launch: Launch,
        options: &ExportOptions,
    ) -> Result<Arc<Self>> {
        let session = Session::start(image, launch, options)?;
        Ok(Arc::new(Self { session, uri }))
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.session.negotiated.size
    }

    /// The export's NBD URI. It stays the same over restarts of the process.
    pub fn uri(&self) -> String {
        self.uri.clone()
    }

    /// The image's file as it was when it was opened. A process is started again
    /// only for the same files.
    pub fn identity(&self) -> FileIdentity {
        self.session.identity()
    }

    /// Process id of the running `qemu-nbd`; 0 while there is none.
    pub fn pid(&self) -> u32 {
        self.session.pid.load(Ordering::Relaxed)
    }

    /// How often the process was started again.
    pub fn restarts(&self) -> u64 {
        self.session.restarts.load(Ordering::Relaxed)
    }

    /// How many requests were answered by the process.
    pub fn requests(&self) -> u64 {
        self.session.requests.load(Ordering::Relaxed)
    }

    /// How many bytes were read, holes included.
    pub fn bytes_read(&self) -> u64 {
        self.session.bytes_read.load(Ordering::Relaxed)
    }

    /// Reads `buf.len()` bytes from `offset` into `buf` and calls `done` with it,
    /// exactly once: on a receiving thread, on the clock's (a time-out), or on
    /// this one (a request that cannot be). At most 32 MiB; never blocks.
    pub fn submit(&self, offset: u64, buf: BytesMut, done: Completion) {
        let session = &self.session;
        let len = buf.len();
        let Some(len) = u32::try_from(len)
            .ok()
            .filter(|&len| len <= session.negotiated.max_read)
        else {
            let most = session.negotiated.max_read;
            let reason = format!(
                "{}: a read of {len} bytes at once; at most {most}",
                session.what
            );
            return done(Err(Error::Invalid(reason)));
        };
        if offset
            .checked_add(u64::from(len))
            .is_none_or(|end| end > session.negotiated.size)
        {
            return done(Err(session.past_end(offset, u64::from(len))));
        }
        if len == 0 {
            return done(Ok(buf));
        }
        session.submit(Request::read(offset, len, buf, session.deadline(), done));
    }

    /// Reads and waits.
    ///
    /// # Errors
    /// `Corrupt` for a range past the end of the disk; `Io` for what the server
    /// could not read; `TimedOut`; and those of [`Self::open`], if the process
    /// had to be started again and could not.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        thread_local! {
            /// Spares the allocation (and its page faults) for each read.
            static BUFFER: RefCell<BytesMut> = RefCell::new(BytesMut::new());
        }
        let largest = WAITING_READ
            .min(usize::try_from(self.session.negotiated.max_read).unwrap_or(WAITING_READ));
        let mut at = offset;
        for part in buf.chunks_mut(largest) {
            let mut owned = BUFFER.take();
            owned.resize(part.len(), 0);
            let (sender, receiver) = mpsc::sync_channel(1);
            let done = move |result| {
                // The other end waits below.
                let _ = sender.try_send(result);
            };
            self.submit(at, owned, Box::new(done));
            let filled = receiver.recv().map_err(|_| self.session.gone())??;
            part.copy_from_slice(&filled);
            if filled.capacity() <= KEPT_BUFFER {
                BUFFER.replace(filled);
            }
            at = at.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    /// Allocation of `offset..offset + len` (cut at the end of the disk), in
    /// order; adjacent stretches of the same kind are joined. May answer less
    /// than asked, never nothing.
    ///
    /// # Errors
    /// As [`Self::read_at`]; `Corrupt` also if the range is empty.
    pub fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Allocation>> {
        let session = &self.session;
        let len = len.min(session.negotiated.size.saturating_sub(offset));
        if len == 0 {
            return Err(session.past_end(offset, len));
        }
        if session.negotiated.allocation.is_none() {
            return Ok(vec![Allocation { len, hole: false }]);
        }
        let len = u32::try_from(len.min(MAX_STATUS)).unwrap_or(u32::MAX);
        let (sender, receiver) = mpsc::sync_channel(1);
        let done = move |result| {
            let _ = sender.try_send(result);
        };
        session.submit(Request::status(
            offset,
            len,
            session.deadline(),
            Box::new(done),
        ));
        receiver.recv().map_err(|_| session.gone())?
    }
}

#[cfg(test)]
mod tests;
