//! The threads that compress, shared by all archives of the process.
//!
//! The idea: a block is compressed by itself, knowing only the last 32 KiB before it
//! (deflate) or nothing at all (Zstandard), so blocks of one file, and of all files of
//! all archives, are compressed side by side. What comes out of them, one behind the
//! other, is one deflate stream, or a row of Zstandard frames, which decoders read as
//! one. A task is one block, so that no archive keeps another waiting for long.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use flate2::{Compress, Compression, FlushCompress, Status};
use parking_lot::{Condvar, Mutex};
use sendense::Error;

use super::probe::Probe;
use super::{ArchiveError, Result};

/// How far back a deflate stream refers.
pub(super) const WINDOW: usize = 32 * 1024;

/// Of deflate: what `zip` and `gzip` take by themselves.
const DEFLATE_LEVEL: u32 = 6;
/// Of Zstandard: what `zstd` takes by itself.
const ZSTD_LEVEL: i32 = 3;

/// Blocks of at least so many bytes are tried before they are compressed.
const PROBED: usize = 64 * 1024;

/// How long one block may take, with all that waits before it.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a waiting archive looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// What to do with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Only its checksum.
    Store,
    /// A part of a raw deflate stream; the last one ends it, the others end on a
    /// whole byte.
    Deflate {
        /// Whether the stream ends here.
        last: bool,
    },
    /// A Zstandard frame with a checksum.
    Zstd,
}

/// A block to be compressed.
pub(super) struct Block {
    /// What lies before the data, and then the data.
    pub(super) buffer: Vec<u8>,
    /// Length of what lies before; [`WINDOW`] at most.
    pub(super) history: usize,
    pub(super) how: How,
}

/// A block that was compressed.
pub(super) struct Packed {
    /// The block's own buffer again.
    pub(super) buffer: Vec<u8>,
    /// Length of what lies before its data.
    pub(super) history: usize,
    /// Nothing for [`How::Store`].
    pub(super) output: Vec<u8>,
    /// CRC-32 of the data, with its length; nothing for [`How::Zstd`].
    pub(super) checksum: crc32fast::Hasher,
}

impl Packed {
    /// The data as it was given.
    pub(super) fn data(&self) -> &[u8] {
        self.buffer.get(self.history..).unwrap_or_default()
    }
}

/// The outcome of a block under way.
pub(super) struct Pending(Receiver<io::Result<Packed>>);

impl Pending {
    /// Waits for it.
    ///
    /// # Errors
    /// `Cancelled`; `Failed` if it takes too long or fails.
    pub(super) fn wait(self, cancelled: impl Fn() -> Result<()>) -> Result<Packed> {
        let failed = |source| ArchiveError::Failed(Error::io("compressing a block", source));
        let deadline = Instant::now().checked_add(PATIENCE);
        loop {
            cancelled()?;
            match self.0.recv_timeout(LOOK) {
                Ok(result) => return result.map_err(failed),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(failed(io::Error::other(
                        "the threads that compress have ended",
                    )));
                }
                Err(RecvTimeoutError::Timeout) => {
                    if deadline.is_none_or(|deadline| Instant::now() >= deadline) {
                        return Err(Error::TimedOut {
                            what: "compressing a block".to_owned(),
                            after: PATIENCE,
                        }
                        .into());
                    }
                }
            }
        }
    }
}

/// Threads that compress. They end when it is dropped.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: usize,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<VecDeque<Task>>,
    more: Condvar,
    over: AtomicBool,
    /// Archives in the making.
    archives: AtomicUsize,
}

struct Task {
    block: Block,
    reply: SyncSender<io::Result<Packed>>,
}

impl Pool {
    /// Starts as many threads as the process may use cores.
    ///
    /// # Errors
    /// From the system, where it gives no thread.
    pub(crate) fn new() -> io::Result<Self> {
        Self::with_threads(std::thread::available_parallelism().map_or(1, Into::into))
    }

    pub(super) fn with_threads(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let pool = Self {
            shared: Arc::clone(&shared),
            threads,
        };
        for _ in 0..threads {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("compress".to_owned())
                .spawn(move || work(&shared))?;
        }
        Ok(pool)
    }

    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// Hands over a block.
    pub(super) fn submit(&self, block: Block) -> Pending {
        let (reply, outcome) = sync_channel(1);
        self.shared.queue.lock().push_back(Task { block, reply });
        self.shared.more.notify_one();
        Pending(outcome)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        let _queue = self.shared.queue.lock();
        self.shared.more.notify_all();
    }
}

fn work(shared: &Shared) {
    let mut compressor = Compressor::new();
    loop {
        let task = {
            let mut queue = shared.queue.lock();
            loop {
                if shared.over.load(Ordering::Relaxed) {
                    return;
                }
                match queue.pop_front() {
                    Some(task) => break task,
                    None => shared.more.wait(&mut queue),
                }
            }
        };
        let Task { block, reply } = task;
        // A thread fewer would be missed by every archive until the end of the
        // process.
        let result = catch_unwind(AssertUnwindSafe(|| compressor.pack(block)));
        let result = result.unwrap_or_else(|panic: Box<dyn Any + Send>| {
            drop(panic);
            compressor = Compressor::new();
            Err(io::Error::other("an internal error"))
        });
        // Whoever asked may have gone.
        let _ = reply.send(result);
    }
}

/// What one thread compresses with.
struct Compressor {
    deflate: Compress,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    /// Where output is made, so that what waits takes no more than it needs.
    probe: Probe,
    scratch: Vec<u8>,
}

impl Compressor {
    fn new() -> Self {
        Self {
            deflate: Compress::new(Compression::new(DEFLATE_LEVEL), false),
            zstd: None,
            probe: Probe::new(),
            scratch: Vec::new(),
        }
    }

    fn pack(&mut self, block: Block) -> io::Result<Packed> {
        let Block {
            buffer,
            history,
            how,
        } = block;
        let (before, data) = buffer.split_at_checked(history).unwrap_or((&[], &buffer));
        let mut checksum = crc32fast::Hasher::new();
        self.scratch.clear();
        match how {
            How::Store => checksum.update(data),
            How::Deflate { last } => {
                checksum.update(data);
                self.deflate(before, data, last)?;
            }
            How::Zstd => self.zstd(data)?,
        }
        let output = self.scratch.as_slice().to_vec();
        Ok(Packed {
            buffer,
            history,
            output,
            checksum,
        })
    }

    fn deflate(&mut self, before: &[u8], mut data: &[u8], last: bool) -> io::Result<()> {
        let flush = if last {
            FlushCompress::Finish
        } else {
            FlushCompress::Sync
        };
        // Time is better spent on what shrinks.
        if data.len() >= PROBED && !self.probe.shrinks(data) {
            put_stored(data, last, &mut self.scratch);
            return Ok(());
        }
        self.deflate.reset();
        if !before.is_empty() {
            self.deflate
                .set_dictionary(before)
                .map_err(io::Error::other)?;
        }
        loop {
            self.scratch.reserve(
                (data.len() / 8)
                    .saturating_add(data.len())
                    .saturating_add(4096),
            );
            let taken = self.deflate.total_in();
            let status = self
                .deflate
                .compress_vec(data, &mut self.scratch, flush)
                .map_err(io::Error::other)?;
            let taken = self.deflate.total_in().saturating_sub(taken);
            let taken = usize::try_from(taken).map_err(io::Error::other)?;
            data = data.get(taken..).unwrap_or_default();
            // Space that is left says that all was put out.
            let whole = data.is_empty() && self.scratch.len() < self.scratch.capacity();
            if status == Status::StreamEnd || (whole && !last) {
                return Ok(());
            }
        }
    }

    fn zstd(&mut self, data: &[u8]) -> io::Result<()> {
        let zstd = match &mut self.zstd {
            Some(zstd) => zstd,
            none => {
                let mut zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
                zstd.include_checksum(true)?;
                none.insert(zstd)
            }
        };
        self.scratch
            .reserve(zstd::zstd_safe::compress_bound(data.len()));
        zstd.compress_to_buffer(data, &mut self.scratch)?;
        Ok(())
    }
}

/// Data as blocks of deflate that are not compressed (RFC 1951, 3.2.4). They begin and
/// end on a whole byte, as every block here does.
fn put_stored(data: &[u8], last: bool, output: &mut Vec<u8>) {
    let mut pieces = data.chunks(usize::from(u16::MAX)).peekable();
    while let Some(piece) = pieces.next() {
        let length = u16::try_from(piece.len()).unwrap_or(u16::MAX);
        output.push(u8::from(last && pieces.peek().is_none()));
        output.extend_from_slice(&length.to_le_bytes());
        output.extend_from_slice(&(!length).to_le_bytes());
        output.extend_from_slice(piece);
    }
}

/// What all archives together may have under way, in bytes, as long as each has two
/// blocks. So fifty whose clients are slow take little more than ten.
const MOST_BYTES: usize = 48 << 20;

/// Blocks under way, in their order, together with what is to be done when they are
/// back; bounded in number and bytes.
pub(super) struct Underway<T> {
    queue: VecDeque<(T, usize)>,
    bytes: usize,
    block: usize,
    most: usize,
    shared: Arc<Shared>,
}

impl<T> Underway<T> {
    /// Things that wait, however small they are.
    const MOST_THINGS: usize = 1024;

    /// Room for enough blocks of `block` bytes to keep the pool at work, but for 4 MiB
    /// at most, and for less where many archives are made.
    pub(super) fn new(pool: &Pool, block: usize) -> Self {
        let blocks = pool.threads().saturating_mul(2).saturating_add(2);
        let most = block.saturating_mul(blocks);
        pool.shared.archives.fetch_add(1, Ordering::Relaxed);
        Self {
            queue: VecDeque::new(),
            bytes: 0,
            block,
            most: most.min(4 << 20).max(block.saturating_mul(4)),
            shared: Arc::clone(&pool.shared),
        }
    }

    /// Adds something that holds `bytes` of memory.
    pub(super) fn push(&mut self, thing: T, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.queue.push_back((thing, bytes));
    }

    /// Whether something must come back before more may be added.
    pub(super) fn is_full(&self) -> bool {
        let archives = self.shared.archives.load(Ordering::Relaxed).max(1);
        let share = (MOST_BYTES / archives).max(self.block.saturating_mul(2));
        self.bytes > self.most.min(share) || self.queue.len() > Self::MOST_THINGS
    }

    /// The oldest.
    pub(super) fn pop(&mut self) -> Option<T> {
        let (thing, bytes) = self.queue.pop_front()?;
        self.bytes = self.bytes.saturating_sub(bytes);
        Some(thing)
    }
}

impl<T> Drop for Underway<T> {
    fn drop(&mut self) {
        self.shared.archives.fetch_sub(1, Ordering::Relaxed);
    }
}
