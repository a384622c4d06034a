//! Requests under way on one socket, and the thread that receives their replies.
//!
//! The idea: only the receiving thread ends a connection. Whoever finds it
//! broken (a send that fails, an owner that closes it) shuts the socket down;
//! the receiving thread sees that, takes everything that was under way and hands
//! it to the [`Owner`], once.
//!
//! A request that ran out of time is answered and forgotten, but its cookie is
//! remembered: the late reply is read and thrown away.

use super::coverage::Coverage;
use super::handshake::{self, Negotiated};
use super::protocol as wire;
use super::receiver::Receiver;
use super::request::Request;
use crate::error::Error;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Requests on the wire of one connection. The rest waits with the owner, so
/// that the socket's send buffer (some 200 small messages) never fills up and a
/// send never blocks, even when the server hangs.
const WINDOW: usize = 32;

/// The stack of a receiving thread; completions run on it.
const STACK: usize = 256 << 10;

/// Who uses a connection. All calls come without a lock held.
pub(crate) trait Owner: Send + Sync + 'static {
    /// A request was answered with that many bytes: there is room for another.
    fn answered(&self, bytes: u64);

    /// The connection is over; `unfinished` is what nobody has answered.
    fn lost(&self, connection: &Arc<Connection>, reason: &str, unfinished: Vec<Request>);
}

/// One NBD connection in the transmission phase.
pub(crate) struct Connection {
    socket: UnixStream,
    pub(super) negotiated: Negotiated,
    pub(super) table: Mutex<Table>,
    /// Held while writing to the socket.
    sending: Mutex<()>,
    /// Requests sent and not replied to, expired ones included, and places
    /// reserved for more.
    pub(super) outstanding: AtomicUsize,
    broken: AtomicBool,
}

#[derive(Default)]
pub(super) struct Table {
    last_cookie: u64,
    pub(super) in_flight: HashMap<u64, InFlight>,
    /// Cookies of requests that were answered with a time-out, with the payload
    /// that a simple reply to them would have.
    pub(super) expired: HashMap<u64, u32>,
    broken: bool,
}

/// A request on the wire, and what has come of its reply.
pub(super) struct InFlight {
    pub(super) request: Request,
    pub(super) arrived: Coverage,
    pub(super) error: Option<io::Error>,
}

impl Connection {
    /// Connects and negotiates until `deadline`.
    ///
    /// # Errors
    /// See [`handshake::negotiate`].
    pub(crate) fn open(path: &Path, deadline: Instant) -> io::Result<Self> {
        let socket = UnixStream::connect(path)?;
        let negotiated = handshake::negotiate(&socket, deadline)?;
        socket.set_read_timeout(None)?;
        // Never reached (see WINDOW), but a caller must not hang on it either.
        socket.set_write_timeout(Some(Duration::from_secs(1)))?;
        Ok(Self {
            socket,
            negotiated,
            table: Mutex::default(),
            sending: Mutex::default(),
            outstanding: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        })
    }

    /// Starts the receiving thread; `what` names the export in errors.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(crate) fn start(self: &Arc<Self>, what: Arc<str>, owner: Arc<dyn Owner>) -> io::Result<()> {
        let connection = Arc::clone(self);
        let receive = move || {
            let reason = Receiver::new(&connection, &connection.socket, &*owner, &what).run();
            let unfinished = connection.take_all();
            connection.shut_down();
            owner.lost(&connection, &reason, unfinished);
        };
        std::thread::Builder::new()
            .name("nbd-receive".into())
            .stack_size(STACK)
            .spawn(receive)?;
        Ok(())
    }

    /// What the server offers.
    pub(crate) fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// How many requests are under way, or none if no more can be sent now.
    pub(crate) fn load(&self) -> Option<usize> {
        let load = self.outstanding.load(Ordering::Acquire);
        (load < WINDOW && !self.is_broken()).then_some(load)
    }

    /// Reserves the place of a request that [`Self::send`] then sends. The caller
    /// holds a lock that makes this and [`Self::load`] one step.
    pub(crate) fn reserve(&self) {
        self.outstanding.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether the connection is over.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Sends a request for which a place was reserved.
    ///
    /// # Errors
    /// Gives the request back if the connection is broken.
    pub(crate) fn send(&self, request: Request) -> std::result::Result<(), Box<Request>> {
        let command = if request.is_read() {
            wire::CMD_READ
        } else {
            wire::CMD_BLOCK_STATUS
        };
        let (offset, len) = (request.offset, request.len);
        let cookie = {
            let mut table = self.table.lock();
            if table.broken {
                return Err(Box::new(request));
            }
            table.last_cookie = table.last_cookie.wrapping_add(1);
            let cookie = table.last_cookie;
            let entry = InFlight {
                request,
                arrived: Coverage::default(),
                error: None,
            };
            table.in_flight.insert(cookie, entry);
            cookie
        };
        let message = wire::request(command, cookie, offset, len);
        let sending = self.sending.lock();
        if (&self.socket).write_all(&message).is_err() {
            // The request is in the table: the receiving thread hands it on.
            self.shut_down();
        }
        drop(sending);
        Ok(())
    }

    /// Takes the requests whose time is over out of the table.
    pub(crate) fn expire(&self, now: Instant) -> Vec<Request> {
        let mut table = self.table.lock();
        let table = &mut *table;
        let mut late = Vec::new();
        for (cookie, entry) in table.in_flight.extract_if(|_, e| e.request.deadline <= now) {
            table.expired.insert(cookie, entry.request.len);
            late.push(entry.request);
        }
        late
    }

    /// Ends the connection without a word, which could have to wait: the server is
    /// killed anyway. The receiving thread does the rest.
    pub(crate) fn close(&self) {
        self.shut_down();
    }

    fn shut_down(&self) {
        self.broken.store(true, Ordering::Release);
        // Fails only if it is shut already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Marks the connection broken and takes what nobody has answered, in the
    /// order of sending, ready to be sent elsewhere.
    fn take_all(&self) -> Vec<Request> {
        let mut table = self.table.lock();
        table.broken = true;
        self.broken.store(true, Ordering::Release);
        table.expired.clear();
        let mut entries: Vec<_> = table.in_flight.drain().collect();
        entries.sort_unstable_by_key(|(cookie, _)| *cookie);
        entries
            .into_iter()
            .map(|(_, entry)| entry.request.afresh())
            .collect()
    }
}

/// An error for a request that was not answered in time.
pub(crate) fn timed_out(what: &str, request: &Request, after: Duration) -> Error {
    Error::TimedOut {
        what: format!(
            "{what}: reading {} bytes at {}",
            request.len, request.offset
        ),
        after,
    }
}
