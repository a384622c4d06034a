//! The receiving side of a connection: replies, straight into the requests'
//! buffers.
//!
//! The idea: the server is not trusted. A reply must belong to a request, a chunk
//! must lie inside it and come once, and all chunks together must cover it;
//! anything else ends the connection.

use super::connection::{Connection, InFlight, Owner};
use super::protocol::{self as wire, Fields};
use super::request::{Kind, Request};
use crate::error::Error;
use crate::image::export::Allocation;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

/// Longest payload of an error chunk or of a list of allocations.
const MAX_SMALL_PAYLOAD: u32 = 2 << 20;

/// Replies up to this size come in one system call together with their header.
const READ_BUFFER: usize = 4096;

/// Why a connection ended.
struct Ended(String);

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self(match error.kind() {
            io::ErrorKind::UnexpectedEof => "the server closed the connection".into(),
            _ => error.to_string(),
        })
    }
}

fn garbled(what: impl Into<String>) -> Ended {
    Ended(format!("protocol error: {}", what.into()))
}

/// The receiving side of a connection.
pub(super) struct Receiver<'a> {
    connection: &'a Connection,
    input: BufReader<&'a UnixStream>,
    owner: &'a dyn Owner,
    what: &'a str,
}

/// A chunk of a structured reply.
struct Chunk {
    cookie: u64,
    done: bool,
    kind: u16,
    len: u32,
}

impl<'a> Receiver<'a> {
    /// A receiver for a socket whose handshake is over; `what` names the export
    /// in errors.
    pub(super) fn new(
        connection: &'a Connection,
        socket: &'a UnixStream,
        owner: &'a dyn Owner,
        what: &'a str,
    ) -> Self {
        let input = BufReader::with_capacity(READ_BUFFER, socket);
        Self {
            connection,
            input,
            owner,
            what,
        }
    }

    /// Receives until the connection ends, and says why it did.
    pub(super) fn run(&mut self) -> String {
        loop {
            if let Err(Ended(reason)) = self.reply() {
                return reason;
            }
        }
    }

    fn reply(&mut self) -> Result<(), Ended> {
        let magic = u32::from_be_bytes(self.array()?);
        match magic {
            wire::STRUCTURED_REPLY if self.connection.negotiated.structured => {
                let flags = u16::from_be_bytes(self.array()?);
                let kind = u16::from_be_bytes(self.array()?);
                let cookie = u64::from_be_bytes(self.array()?);
                let len = u32::from_be_bytes(self.array()?);
                self.chunk(&Chunk {
                    cookie,
                    done: flags & wire::REPLY_DONE != 0,
                    kind,
                    len,
                })
            }
            wire::SIMPLE_REPLY => {
                let error = u32::from_be_bytes(self.array()?);
                let cookie = u64::from_be_bytes(self.array()?);
                self.simple(cookie, error)
            }
            other => Err(garbled(format!("{other:#010x} is not a reply"))),
        }
    }

    fn simple(&mut self, cookie: u64, error: u32) -> Result<(), Ended> {
        let mut table = self.connection.table.lock();
        if let Some(len) = table.expired.remove(&cookie) {
            drop(table);
            self.discard(if error == 0 { len } else { 0 })?;
            return self.settled();
        }
        let Some(entry) = table.in_flight.get_mut(&cookie) else {
            return Err(garbled("a reply to nothing that was asked"));
        };
        if error != 0 {
            entry.error = Some(os_error(error, "")?);
        } else if self.connection.negotiated.structured || !entry.request.is_read() {
            return Err(garbled(
                "a simple reply where a structured one was agreed on",
            ));
        } else {
            let whole = 0..entry.request.len;
            if !entry.arrived.add(whole.clone()) {
                return Err(garbled("a reply comes twice"));
            }
            drop(table);
            self.data(cookie, whole)?;
        }
        self.finish(cookie)
    }

    fn chunk(&mut self, chunk: &Chunk) -> Result<(), Ended> {
        let largest = match chunk.kind {
            wire::REPLY_NONE => 0,
            wire::REPLY_OFFSET_DATA => wire::MAX_PAYLOAD.saturating_add(8),
            wire::REPLY_OFFSET_HOLE => 12,
            _ => MAX_SMALL_PAYLOAD,
        };
        if chunk.len > largest {
            return Err(garbled("a chunk is too long"));
        }
        let known = {
            let mut table = self.connection.table.lock();
            if table.expired.contains_key(&chunk.cookie) {
                if chunk.done {
                    table.expired.remove(&chunk.cookie);
                }
                false
            } else if table.in_flight.contains_key(&chunk.cookie) {
                true
            } else {
                return Err(garbled("a reply to nothing that was asked"));
            }
        };
        if !known {
            self.discard(chunk.len)?;
            return if chunk.done { self.settled() } else { Ok(()) };
        }
        match chunk.kind {
            wire::REPLY_NONE if chunk.done => {}
            wire::REPLY_OFFSET_DATA => {
                let len = chunk
                    .len
                    .checked_sub(8)
                    .ok_or_else(|| garbled("a short chunk of data"))?;
                let offset = u64::from_be_bytes(self.array()?);
                let range = self.arriving(chunk.cookie, offset, len)?;
                self.data(chunk.cookie, range)?;
            }
            wire::REPLY_OFFSET_HOLE if chunk.len == 12 => {
                let offset = u64::from_be_bytes(self.array()?);
                let len = u32::from_be_bytes(self.array()?);
                let range = self.arriving(chunk.cookie, offset, len)?;
                self.fill(chunk.cookie, range, |_, hole| {
                    hole.fill(0);
                    Ok(())
                })?;
            }
            wire::REPLY_BLOCK_STATUS => {
                let payload = self.payload(chunk.len)?;
                self.block_status(chunk.cookie, &payload)?;
            }
            kind if kind & wire::REPLY_ERROR != 0 => {
                let payload = self.payload(chunk.len)?;
                let mut fields = Fields(&payload);
                let (Some(number), Some(len)) = (fields.u32(), fields.u16()) else {
                    return Err(garbled("a short error chunk"));
                };
                let message = fields.bytes(usize::from(len)).unwrap_or_default();
                let error = os_error(number, &String::from_utf8_lossy(message))?;
                if let Some(entry) = self
                    .connection
                    .table
                    .lock()
                    .in_flight
                    .get_mut(&chunk.cookie)
                {
                    entry.error.get_or_insert(error);
                }
            }
            kind => return Err(garbled(format!("a chunk of unknown kind {kind}"))),
        }
        if chunk.done {
            self.finish(chunk.cookie)
        } else {
            Ok(())
        }
    }

    /// Notes that a chunk of a read arrives; says where in the request it lies.
    fn arriving(&self, cookie: u64, offset: u64, len: u32) -> Result<Range<u32>, Ended> {
        let mut table = self.connection.table.lock();
        let Some(entry) = table.in_flight.get_mut(&cookie) else {
            // Expired this moment; `data` throws the bytes away.
            return Ok(0..len);
        };
        let outside = || garbled("a chunk lies outside its request");
        let start = offset
            .checked_sub(entry.request.offset)
            .and_then(|start| u32::try_from(start).ok())
            .ok_or_else(outside)?;
        let end = start
            .checked_add(len)
            .filter(|&end| end <= entry.request.len)
            .ok_or_else(outside)?;
        if !entry.request.is_read() {
            return Err(garbled("data in answer to a question for block status"));
        }
        if !entry.arrived.add(start..end) {
            return Err(garbled("a chunk is empty or comes twice"));
        }
        Ok(start..end)
    }

    /// Receives bytes of a read.
    fn data(&mut self, cookie: u64, range: Range<u32>) -> Result<(), Ended> {
        let len = range.end.saturating_sub(range.start);
        let known = self.fill(cookie, range, |input, part| input.read_exact(part))?;
        if known { Ok(()) } else { self.discard(len) }
    }

    /// Fills a part of a read's buffer; false if the read has expired. The buffer
    /// is not in the table meanwhile, so that the request can expire while the
    /// server hangs, and others need not wait.
    fn fill(
        &mut self,
        cookie: u64,
        range: Range<u32>,
        fill: impl FnOnce(&mut BufReader<&UnixStream>, &mut [u8]) -> io::Result<()>,
    ) -> Result<bool, Ended> {
        let buf = match self.connection.table.lock().in_flight.get_mut(&cookie) {
            Some(InFlight {
                request:
                    Request {
                        kind: Kind::Read { buf, .. },
                        ..
                    },
                ..
            }) => buf.take(),
            _ => None,
        };
        let Some(mut buf) = buf else { return Ok(false) };
        let filled = match buf.get_mut(as_usize(&range)) {
            Some(part) => fill(&mut self.input, part).map_err(Ended::from),
            None => Err(garbled("a chunk lies outside its buffer")),
        };
        if let Some(entry) = self.connection.table.lock().in_flight.get_mut(&cookie)
            && let Kind::Read { buf: place, .. } = &mut entry.request.kind
        {
            *place = Some(buf);
        }
        filled.map(|()| true)
    }

    fn block_status(&self, cookie: u64, payload: &[u8]) -> Result<(), Ended> {
        let mut fields = Fields(payload);
        if fields.u32() != self.connection.negotiated.allocation {
            return Err(garbled("block status of an unknown context"));
        }
        let mut table = self.connection.table.lock();
        let Some(InFlight { request, .. }) = table.in_flight.get_mut(&cookie) else {
            return Ok(());
        };
        let asked = u64::from(request.len);
        let Kind::Status { found, .. } = &mut request.kind else {
            return Err(garbled("block status in answer to a read"));
        };
        if !found.is_empty() {
            return Err(garbled("block status comes twice"));
        }
        let mut told = 0_u64;
        while let (Some(len), Some(state)) = (fields.u32(), fields.u32()) {
            if len == 0 {
                return Err(garbled("block status of nothing"));
            }
            // The last one may reach past what was asked for.
            let len = u64::from(len).min(asked.saturating_sub(told));
            told = told.saturating_add(len);
            let hole = state & wire::STATE_ZERO != 0;
            match found.last_mut() {
                _ if len == 0 => break,
                Some(last) if last.hole == hole => last.len = last.len.saturating_add(len),
                _ => found.push(Allocation { len, hole }),
            }
        }
        if found.is_empty() {
            Err(garbled("block status of nothing"))
        } else {
            Ok(())
        }
    }

    /// A reply is complete: answers its request.
    fn finish(&self, cookie: u64) -> Result<(), Ended> {
        let entry = {
            let mut table = self.connection.table.lock();
            let Some(entry) = table.in_flight.get(&cookie) else {
                // Expired while the reply came in.
                table.expired.remove(&cookie);
                drop(table);
                return self.settled();
            };
            let complete = match &entry.request.kind {
                Kind::Read { .. } => entry.arrived.is_complete(entry.request.len),
                Kind::Status { found, .. } => !found.is_empty(),
            };
            if entry.error.is_none() && !complete {
                return Err(garbled("a reply does not cover its request"));
            }
            table.in_flight.remove(&cookie)
        };
        let Some(InFlight { request, error, .. }) = entry else {
            return Ok(());
        };
        self.connection.outstanding.fetch_sub(1, Ordering::AcqRel);
        let bytes = if request.is_read() && error.is_none() {
            request.len
        } else {
            0
        };
        self.owner.answered(u64::from(bytes));
        match error {
            None => request.succeed(),
            Some(error) => {
                let what = format!(
                    "{}: reading {} bytes at {}",
                    self.what, request.len, request.offset
                );
                request.fail(Error::io(what, error));
            }
        }
        Ok(())
    }

    /// The late reply to an expired request was thrown away.
    fn settled(&self) -> Result<(), Ended> {
        self.connection.outstanding.fetch_sub(1, Ordering::AcqRel);
        self.owner.answered(0);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn payload(&mut self, len: u32) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        (&mut self.input)
            .take(u64::from(len))
            .read_to_end(&mut bytes)?;
        if u32::try_from(bytes.len()) == Ok(len) {
            Ok(bytes)
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn discard(&mut self, len: u32) -> Result<(), Ended> {
        let gone = io::copy(&mut (&mut self.input).take(u64::from(len)), &mut io::sink())?;
        if gone == u64::from(len) {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
        }
    }
}

/// The error that the server reports for a request. NBD's numbers are Linux's.
fn os_error(number: u32, message: &str) -> Result<io::Error, Ended> {
    let number = i32::try_from(number).unwrap_or(nix::libc::EINVAL);
    match number {
        nix::libc::ESHUTDOWN => Err(Ended("the server is shutting down".into())),
        0 => Err(garbled("an error chunk without an error")),
        _ if message.is_empty() => Ok(io::Error::from_raw_os_error(number)),
        _ => {
            let error = io::Error::from_raw_os_error(number);
            Ok(io::Error::new(error.kind(), format!("{error}: {message}")))
        }
    }
}

fn as_usize(range: &Range<u32>) -> Range<usize> {
    // Lossless: Linux runs on no machine with smaller pointers than that.
    usize::try_from(range.start).unwrap_or(usize::MAX)
        ..usize::try_from(range.end).unwrap_or(usize::MAX)
}
