//! The server process of an export, the connections to it, and what waits.
//!
//! The idea: a request is either in the queue or in the table of one connection.
//! When a connection breaks, everything goes back to the front of the queue, a
//! thread of its own starts a fresh process, and the queue is sent again. What
//! is damaged in the image is an error of the requests that touch it; what
//! happens to the process is only a pause. A process that is there and does not
//! answer is given up like one that died.
//!
//! Locks: [`Session::state`] is taken with no other lock held, and let go before
//! a connection's locks are taken or a completion is called.

use super::ExportOptions;
use crate::error::{Error, Result};
use crate::image::chain::{Chain, FileIdentity};
use crate::image::deadline::{self, Deadlines};
use crate::image::nbd::connection::timed_out;
use crate::image::nbd::handshake::Negotiated;
use crate::image::nbd::{Connection, Owner, Request};
use crate::image::qemu_nbd::Process;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Starts of the process in a row without one answer, before its requests fail.
pub(super) const MAX_STARTS: u32 = 5;
/// A process that lived this long was not a failed start.
const PROVEN: Duration = Duration::from_secs(10);
/// How long a process may go on in silence after a request has run out of time, in
/// time-outs of a request. More than one: the kernel tries a failed read again, and
/// who reads from a disk that hangs should get an error after that, not wait on.
const STUCK: u32 = 2;
/// How often the socket of a starting process is tried.
const POLL: Duration = Duration::from_micros(500);
/// How long a process that hung up may take to say why.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Starts a server, and says which files it may have opened.
pub(super) type Launch = Box<dyn Fn() -> Result<(Process, Chain)> + Send + Sync>;

/// A server that is kept running, and the requests to it.
pub(super) struct Session {
    this: Weak<Session>,
    /// The image, for messages.
    pub(super) what: Arc<str>,
    image: PathBuf,
    /// What the server offers; a fresh process must offer the same size.
    pub(super) negotiated: Negotiated,
    /// The files; a fresh process must read the same.
    files: Vec<(PathBuf, FileIdentity)>,
    options: ExportOptions,
    launch: Launch,
    state: Mutex<State>,
    /// Whether the present process has answered anything.
    fruitful: AtomicBool,
    pub(super) pid: AtomicU32,
    pub(super) restarts: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) bytes_read: AtomicU64,
}

struct State {
    phase: Phase,
    queue: VecDeque<Request>,
    /// Starts since the last one that was good for something.
    fruitless: u32,
    silence: Option<Silence>,
}

/// A request of the present process has run out of time, and nothing was answered
/// since.
struct Silence {
    since: Instant,
    /// What [`Session::requests`] was then.
    answered: u64,
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
    files: Vec<(PathBuf, FileIdentity)>,
    since: Instant,
}

/// The one owner of a session; its end is the session's.
pub(super) struct Handle(Arc<Session>);

impl std::ops::Deref for Handle {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

impl Session {
    /// Starts the server and connects.
    pub(super) fn start(image: &Path, launch: Launch, options: &ExportOptions) -> Result<Handle> {
        let running = start(&launch, options)?;
        let Some(negotiated) = running.connections.first().map(|c| c.negotiated()) else {
            return Err(Error::Invalid(
                "an export needs at least one connection".into(),
            ));
        };
        let pid = running.process.pid();
        let connections = running.connections.clone();
        let files = running.files.clone();
        let session = Arc::new_cyclic(|this| Session {
            this: Weak::clone(this),
            what: image.display().to_string().into(),
            image: image.to_owned(),
            negotiated,
            files,
            options: options.clone(),
            launch,
            state: Mutex::new(State {
                phase: Phase::Up(running),
                queue: VecDeque::new(),
                fruitless: 0,
                silence: None,
            }),
            fruitful: AtomicBool::new(false),
            pid: AtomicU32::new(pid),
            restarts: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
        });
        // From here on the drop of the handle cleans up.
        let handle = Handle(session);
        handle.receive(&connections)?;
        let period = options.request_timeout.checked_div(16).unwrap_or_default();
        let period = period.clamp(Duration::from_millis(10), Duration::from_secs(1));
        let this: Weak<dyn Deadlines> = handle.this.clone();
        deadline::watch(this, period).map_err(|e| Error::io(&*handle.what, e))?;
        Ok(handle)
    }

    pub(super) fn identity(&self) -> FileIdentity {
        self.files.first().map(|(_, f)| *f).unwrap_or_default()
    }

    pub(super) fn deadline(&self) -> Instant {
        let now = Instant::now();
        now.checked_add(self.options.request_timeout).unwrap_or(now)
    }

    pub(super) fn past_end(&self, offset: u64, len: u64) -> Error {
        Error::corrupt(
            &*self.what,
            format!(
                "{len} bytes at {offset} are wanted; the disk ends at {}",
                self.negotiated.size
            ),
        )
    }

    pub(super) fn gone(&self) -> Error {
        Error::io(
            &*self.what,
            io::Error::other("the image was released meanwhile"),
        )
    }

    pub(super) fn submit(&self, request: Request) {
        if self.enqueue(|queue| queue.push_back(request)) {
            self.dispatch();
        }
    }

    /// Puts requests into the queue and sees to it that somebody will send or fail
    /// them; whether there is a process to send them to now.
    fn enqueue(&self, put: impl FnOnce(&mut VecDeque<Request>)) -> bool {
        let mut state = self.state.lock();
        put(&mut state.queue);
        match state.phase {
            Phase::Up(_) => true,
            Phase::Down if !state.queue.is_empty() => {
                state.phase = Phase::Restarting;
                drop(state);
                self.restart_elsewhere(None, "it was not running");
                false
            }
            Phase::Restarting | Phase::Down => false,
            Phase::Closed => {
                let late = std::mem::take(&mut state.queue);
                drop(state);
                late.into_iter().for_each(|r| r.fail(self.gone()));
                false
            }
        }
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
    pub(super) fn requeue(&self, requests: Vec<Request>) {
        self.enqueue(|queue| requests.into_iter().rev().for_each(|r| queue.push_front(r)));
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
            ..
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
            .any(|c| c.negotiated().size != self.negotiated.size)
        {
            return Err(Error::image(
                &self.image,
                "the size of the disk has changed",
            ));
        }
        if let Some(changed) = first_changed(&self.files, &running.files) {
            return Err(Error::image(
                changed,
                "the file was changed while it was in use; run sendense catalog scan",
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
        state.silence = None;
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

impl Owner for Session {
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

impl Deadlines for Session {
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
        let unanswered: Vec<_> = connections.iter().flat_map(|c| c.expire(now)).collect();
        if self.is_stuck(now, !unanswered.is_empty()) {
            tracing::warn!(image = %self.what, "qemu-nbd answers nothing; giving it up");
            // What follows is as if it had hung up.
            connections.iter().for_each(|c| c.close());
        }
        late.extend(unanswered);
        for request in late {
            let error = timed_out(&self.what, &request, self.options.request_timeout);
            request.fail(error);
        }
    }
}

impl Session {
    /// Whether the present process has been silent for [`STUCK`] time-outs after a
    /// request has run out of time. One that is only slow answers late, and goes on.
    fn is_stuck(&self, now: Instant, expired: bool) -> bool {
        let answered = self.requests.load(Ordering::Relaxed);
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Up(_)) {
            return false;
        }
        if state
            .silence
            .as_ref()
            .is_some_and(|s| s.answered != answered)
        {
            state.silence = None;
        }
        if expired && state.silence.is_none() {
            state.silence = Some(Silence {
                since: now,
                answered,
            });
        }
        let limit = self.options.request_timeout.saturating_mul(STUCK);
        state
            .silence
            .take_if(|s| now.saturating_duration_since(s.since) >= limit)
            .is_some()
    }
}

/// The first file that is not what it was.
fn first_changed<'a>(
    before: &'a [(PathBuf, FileIdentity)],
    now: &'a [(PathBuf, FileIdentity)],
) -> Option<&'a Path> {
    let differs = before.iter().zip(now).find(|(before, now)| before != now);
    let more = before.get(now.len()).or_else(|| now.get(before.len()));
    differs
        .map(|(_, now)| now)
        .or(more)
        .map(|(path, _)| &**path)
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
    chain
        .verify_opened(process.pid())
        .map_err(|e| process.ended(Duration::ZERO).unwrap_or(e))?;
    Ok(Running {
        process,
        connections,
        files: chain.files().collect(),
        since: Instant::now(),
    })
}
