//! One image held open by a server process, read through NBD.
//!
//! The idea: a request is either in the queue or in the table of one connection.
//! When a connection breaks, everything goes back to the front of the queue, a
//! thread of its own starts a fresh process, and the queue is sent again. What
//! is damaged in the image is an error of the requests that touch it; what
//! happens to the process is only a pause.
//!
//! Lock order: `Shared::state`, then nothing (a connection's locks are taken
//! with no lock held, and completions are called with none).

use super::Completion;
use super::chain::{self, Chain};
use super::deadline::{self, Deadlines};
use super::nbd::connection::timed_out;
use super::nbd::{Connection, Owner, Request};
use super::qemu_nbd::{self, Process};
use crate::error::{Error, Result};
use bytes::BytesMut;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Starts of the process in a row without one answer, before its requests fail.
const MAX_STARTS: u32 = 5;
/// A process that lived this long was not a failed start.
const PROVEN: Duration = Duration::from_secs(10);
/// How often the socket of a starting process is tried.
const POLL: Duration = Duration::from_micros(500);
/// How long a process that hung up may take to say why.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Waiting reads are cut into pieces of this size.
const WAITING_READ: usize = 8 << 20;
/// The most that one question for block status asks about.
const MAX_STATUS: u64 = 1 << 30;
/// Buffers up to this size are kept for a thread's next waiting read.
const KEPT_BUFFER: usize = 1 << 20;

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

/// Starts a server, and says which files it may have opened.
type Launch = Box<dyn Fn() -> Result<(Process, Chain)> + Send + Sync>;

/// One image held open by `qemu-nbd`.
///
/// Dropping it ends the process; whatever is still under way is answered with
/// an error.
pub struct Export {
    shared: Arc<Shared>,
}

struct Shared {
    this: Weak<Shared>,
    /// The image, for messages.
    what: Arc<str>,
    image: PathBuf,
    uri: String,
    size: u64,
    max_read: u32,
    block_status: bool,
    options: ExportOptions,
    launch: Launch,
    state: Mutex<State>,
    /// Whether the present process has answered anything.
    fruitful: AtomicBool,
    pid: AtomicU32,
    restarts: AtomicU64,
    requests: AtomicU64,
    bytes_read: AtomicU64,
}

struct State {
    phase: Phase,
    queue: VecDeque<Request>,
    /// Starts since the last one that was good for something.
    fruitless: u32,
}

enum Phase {
    Up(Running),
    /// A thread is at work on a fresh process.
    Restarting,
    /// Given up; the next request tries again.
    Down,
    Closed,
}

/// A process and the connections to it.
struct Running {
    process: Process,
    connections: Vec<Arc<Connection>>,
    since: Instant,
}

impl Export {
    /// Checks the image and its chain, starts `qemu-nbd`, connects.
    ///
    /// # Errors
    /// Those of [`chain::check`]; `Qemu` with what the process said; `TimedOut`;
    /// `Invalid` for an unfit runtime directory.
    pub fn open(image: &Path, format: &str, options: &ExportOptions) -> Result<Arc<Self>> {
        let socket = qemu_nbd::socket_path(&options.runtime_dir)?;
        let uri = qemu_nbd::uri(&socket);
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
        let running = start(&launch, options)?;
        let Some(negotiated) = running.connections.first().map(|c| c.negotiated()) else {
            return Err(Error::Invalid(
                "an export needs at least one connection".into(),
            ));
        };
        let pid = running.process.pid();
        let connections = running.connections.clone();
        let shared = Arc::new_cyclic(|this| Shared {
            this: Weak::clone(this),
            what: image.display().to_string().into(),
            image: image.to_owned(),
            uri,
            size: negotiated.size,
            max_read: negotiated.max_read,
            block_status: negotiated.allocation.is_some(),
            options: options.clone(),
            launch,
            state: Mutex::new(State {
                phase: Phase::Up(running),
                queue: VecDeque::new(),
                fruitless: 0,
            }),
            fruitful: AtomicBool::new(false),
            pid: AtomicU32::new(pid),
            restarts: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
        });
        // From here on the drop of the export cleans up.
        let export = Arc::new(Self { shared });
        export.shared.receive(&connections)?;
        let period = options.request_timeout.checked_div(16).unwrap_or_default();
        let period = period.clamp(Duration::from_millis(10), Duration::from_secs(1));
        let this: Weak<dyn Deadlines> = export.shared.this.clone();
        deadline::watch(this, period).map_err(|e| Error::io(&*export.shared.what, e))?;
        Ok(export)
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.shared.size
    }

    /// The export's NBD URI. It stays the same over restarts of the process.
    pub fn uri(&self) -> String {
        self.shared.uri.clone()
    }

    /// Process id of the running `qemu-nbd`; 0 while there is none.
    pub fn pid(&self) -> u32 {
        self.shared.pid.load(Ordering::Relaxed)
    }

    /// How often the process was started again.
    pub fn restarts(&self) -> u64 {
        self.shared.restarts.load(Ordering::Relaxed)
    }

    /// How many requests were answered by the process.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// How many bytes were read, holes included.
    pub fn bytes_read(&self) -> u64 {
        self.shared.bytes_read.load(Ordering::Relaxed)
    }

    /// Reads `buf.len()` bytes from `offset` into `buf` and calls `done` with it,
    /// exactly once: on a receiving thread, on the clock's (a time-out), or on
    /// this one (a request that cannot be). At most 32 MiB; never blocks.
    pub fn submit(&self, offset: u64, buf: BytesMut, done: Completion) {
        let shared = &self.shared;
        let len = buf.len();
        let Some(len) = u32::try_from(len)
            .ok()
            .filter(|&len| len <= shared.max_read)
        else {
            let most = shared.max_read;
            let reason = format!(
                "{}: a read of {len} bytes at once; at most {most}",
                shared.what
            );
            return done(Err(Error::Invalid(reason)));
        };
        if offset
            .checked_add(u64::from(len))
            .is_none_or(|end| end > shared.size)
        {
            return done(Err(shared.past_end(offset, u64::from(len))));
        }
        if len == 0 {
            return done(Ok(buf));
        }
        shared.submit(Request::read(offset, len, buf, shared.deadline(), done));
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
        let largest =
            WAITING_READ.min(usize::try_from(self.shared.max_read).unwrap_or(WAITING_READ));
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
            let filled = receiver.recv().map_err(|_| self.shared.gone())??;
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
        let shared = &self.shared;
        let len = len.min(shared.size.saturating_sub(offset));
        if len == 0 {
            return Err(shared.past_end(offset, len));
        }
        if !shared.block_status {
            return Ok(vec![Allocation { len, hole: false }]);
        }
        let len = u32::try_from(len.min(MAX_STATUS)).unwrap_or(u32::MAX);
        let (sender, receiver) = mpsc::sync_channel(1);
        let done = move |result| {
            let _ = sender.try_send(result);
        };
        shared.submit(Request::status(
            offset,
            len,
            shared.deadline(),
            Box::new(done),
        ));
        receiver.recv().map_err(|_| shared.gone())?
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    fn deadline(&self) -> Instant {
        let now = Instant::now();
        now.checked_add(self.options.request_timeout).unwrap_or(now)
    }

    fn past_end(&self, offset: u64, len: u64) -> Error {
        Error::corrupt(
            &*self.what,
            format!(
                "{len} bytes at {offset} are wanted; the disk ends at {}",
                self.size
            ),
        )
    }

    fn gone(&self) -> Error {
        Error::io(
            &*self.what,
            io::Error::other("the image was released meanwhile"),
        )
    }

    fn submit(&self, request: Request) {
        {
            let mut state = self.state.lock();
            state.queue.push_back(request);
            match state.phase {
                Phase::Up(_) | Phase::Restarting => {}
                Phase::Down => {
                    state.phase = Phase::Restarting;
                    drop(state);
                    self.restart_elsewhere(None, "it was not running");
                    return;
                }
                Phase::Closed => {
                    let late = std::mem::take(&mut state.queue);
                    drop(state);
                    late.into_iter().for_each(|r| r.fail(self.gone()));
                    return;
                }
            }
        }
        self.dispatch();
    }

    /// Sends as much of the queue as the connections take.
    fn dispatch(&self) {
        loop {
            let (connection, request) = {
                let mut state = self.state.lock();
                let Phase::Up(running) = &state.phase else {
                    return;
                };
                let free = running
                    .connections
                    .iter()
                    .filter_map(|c| Some((c.load()?, c)));
                let Some((_, connection)) = free.min_by_key(|(load, _)| *load) else {
                    return;
                };
                let connection = Arc::clone(connection);
                let Some(request) = state.queue.pop_front() else {
                    return;
                };
                connection.reserve();
                (connection, request)
            };
            if let Err(request) = connection.send(request) {
                self.requeue(vec![*request]);
            }
        }
    }

    /// Puts requests back to the front, in their order.
    fn requeue(&self, requests: Vec<Request>) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Closed) {
            drop(state);
            requests.into_iter().for_each(|r| r.fail(self.gone()));
        } else {
            requests
                .into_iter()
                .rev()
                .for_each(|r| state.queue.push_front(r));
        }
    }

    /// Lets the connections receive.
    fn receive(&self, connections: &[Arc<Connection>]) -> Result<()> {
        for connection in connections {
            let owner = self.this.upgrade().ok_or_else(|| self.gone())?;
            connection
                .start(Arc::clone(&self.what), owner)
                .map_err(|e| Error::io(&*self.what, e))?;
        }
        Ok(())
    }

    /// The phase is `Restarting`: starts the thread that does it.
    fn restart_elsewhere(&self, dead: Option<Running>, reason: &str) {
        let Some(this) = self.this.upgrade() else {
            return;
        };
        let cause = reason.to_owned();
        let work = move || this.restart(dead, &cause);
        if let Err(e) = std::thread::Builder::new()
            .name("nbd-restart".into())
            .spawn(work)
        {
            self.give_up(Error::io(&*self.what, e));
        }
    }

    fn restart(&self, dead: Option<Running>, reason: &str) {
        self.pid.store(0, Ordering::Relaxed);
        let mut lived = false;
        let mut last = Error::Qemu {
            program: "qemu-nbd",
            path: self.image.clone(),
            reason: reason.to_owned(),
        };
        if let Some(Running {
            mut process,
            connections,
            since,
        }) = dead
        {
            connections.iter().for_each(|c| c.close());
            if let Some(error) = process.ended(LAST_WORDS) {
                last = error;
            }
            lived = since.elapsed() >= PROVEN;
            tracing::warn!(image = %self.what, %reason, cause = %last, "starting qemu-nbd again");
        }
        loop {
            let starts = {
                let mut state = self.state.lock();
                if matches!(state.phase, Phase::Closed) {
                    return;
                }
                if std::mem::take(&mut lived) || self.fruitful.swap(false, Ordering::Relaxed) {
                    state.fruitless = 0;
                }
                state.fruitless = state.fruitless.saturating_add(1);
                state.fruitless
            };
            if starts > MAX_STARTS {
                return self.give_up(last);
            }
            std::thread::sleep(match starts {
                1 => Duration::ZERO,
                2 => Duration::from_millis(20),
                3 => Duration::from_millis(100),
                _ => Duration::from_millis(300),
            });
            last = match start(&self.launch, &self.options).and_then(|r| self.install(r)) {
                Ok(()) => return self.dispatch(),
                // Another try would find the same.
                Err(
                    e @ (Error::ImageMissing { .. }
                    | Error::ImageOutside { .. }
                    | Error::ImageInvalid { .. }
                    | Error::Unsupported { .. }
                    | Error::Invalid(_)),
                ) => return self.give_up(e),
                Err(e) => e,
            };
        }
    }

    /// Makes a fresh process the present one.
    fn install(&self, mut running: Running) -> Result<()> {
        if running
            .connections
            .iter()
            .any(|c| c.negotiated().size != self.size)
        {
            return Err(Error::image(
                &self.image,
                "the size of the disk has changed",
            ));
        }
        if let Err(e) = self.receive(&running.connections) {
            running.connections.iter().for_each(|c| c.close());
            return Err(e);
        }
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Closed) {
            drop(state);
            running.connections.iter().for_each(|c| c.close());
            return Ok(());
        }
        // One that breaks after this finds itself installed.
        if running.connections.iter().any(|c| c.is_broken()) {
            drop(state);
            running.connections.iter().for_each(|c| c.close());
            let ended = running.process.ended(LAST_WORDS);
            return Err(ended.unwrap_or_else(|| running.process.complaint("it hung up")));
        }
        self.pid.store(running.process.pid(), Ordering::Relaxed);
        self.restarts.fetch_add(1, Ordering::Relaxed);
        state.phase = Phase::Up(running);
        Ok(())
    }

    /// Fails what waits; the next request tries again.
    fn give_up(&self, error: Error) {
        tracing::error!(image = %self.what, %error, "gave up on qemu-nbd");
        let waiting = {
            let mut state = self.state.lock();
            if !matches!(state.phase, Phase::Closed) {
                state.phase = Phase::Down;
            }
            state.fruitless = 0;
            std::mem::take(&mut state.queue)
        };
        waiting.into_iter().for_each(|r| r.fail(error.clone()));
    }

    fn close(&self) {
        let (phase, waiting) = {
            let mut state = self.state.lock();
            let phase = std::mem::replace(&mut state.phase, Phase::Closed);
            (phase, std::mem::take(&mut state.queue))
        };
        self.pid.store(0, Ordering::Relaxed);
        if let Phase::Up(Running {
            process,
            connections,
            ..
        }) = phase
        {
            connections.iter().for_each(|c| c.close());
            drop(process);
        }
        waiting.into_iter().for_each(|r| r.fail(self.gone()));
    }
}

impl Owner for Shared {
    fn answered(&self, bytes: u64) {
        self.fruitful.store(true, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
        self.dispatch();
    }

    fn lost(&self, connection: &Arc<Connection>, reason: &str, unfinished: Vec<Request>) {
        self.requeue(unfinished);
        let dead = {
            let mut state = self.state.lock();
            match &state.phase {
                Phase::Up(r) if r.connections.iter().any(|c| Arc::ptr_eq(c, connection)) => {
                    std::mem::replace(&mut state.phase, Phase::Restarting)
                }
                Phase::Down if !state.queue.is_empty() => {
                    std::mem::replace(&mut state.phase, Phase::Restarting)
                }
                // An older process's: what it held goes to the present one.
                _ => {
                    drop(state);
                    return self.dispatch();
                }
            }
        };
        let dead = if let Phase::Up(dead) = dead {
            Some(dead)
        } else {
            None
        };
        self.restart_elsewhere(dead, reason);
    }
}

impl Deadlines for Shared {
    fn expire(&self, now: Instant) {
        let mut late = VecDeque::new();
        let connections = {
            let mut state = self.state.lock();
            if state.queue.iter().any(|r| r.deadline <= now) {
                let (over, rest) = std::mem::take(&mut state.queue)
                    .into_iter()
                    .partition(|r| r.deadline <= now);
                state.queue = rest;
                late = over;
            }
            match &state.phase {
                Phase::Up(running) => running.connections.clone(),
                _ => Vec::new(),
            }
        };
        late.extend(connections.iter().flat_map(|c| c.expire(now)));
        for request in late {
            let error = timed_out(&self.what, &request, self.options.request_timeout);
            request.fail(error);
        }
    }
}

/// Starts a process and connects to it.
fn start(launch: &Launch, options: &ExportOptions) -> Result<Running> {
    let begun = Instant::now();
    let deadline = begun.checked_add(options.start_timeout).unwrap_or(begun);
    let (mut process, chain) = launch()?;
    let mut connections = Vec::new();
    while connections.len() < options.connections.max(1) {
        match Connection::open(process.socket(), deadline) {
            Ok(connection) => connections.push(Arc::new(connection)),
            Err(e) => {
                let waiting = matches!(
                    e.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                );
                let wait = if waiting { Duration::ZERO } else { LAST_WORDS };
                if let Some(ended) = process.ended(wait) {
                    return Err(ended);
                }
                if !waiting {
                    return Err(process.complaint(&e.to_string()));
                }
                if Instant::now() >= deadline {
                    let what = process.complaint("the start of the server").to_string();
                    return Err(Error::TimedOut {
                        what,
                        after: options.start_timeout,
                    });
                }
                std::thread::sleep(POLL);
            }
        }
    }
    // What was checked must be what was opened.
    chain.verify_unchanged()?;
    Ok(Running {
        process,
        connections,
        since: Instant::now(),
    })
}

#[cfg(test)]
mod tests;
