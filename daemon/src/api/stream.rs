//! Bodies of downloads: a file, or what an archive writes.
//!
//! The idea: nobody waits for a slow client but its own connection. A body is polled
//! when the connection can take more; the next pieces of a file are read meanwhile, on
//! threads that are given back after each piece. So a download costs a few pieces of
//! memory, however slow its client. A body that cannot go on ends with an error, which
//! breaks the connection: nothing cut short passes for whole.
//!
//! Large files are read past the kernel's page cache: that saves a copy of every byte
//! (a third of the time of a first read), and one download does not push out what
//! others use.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::downloads::{HungUp, Ticket};

/// What is read and sent at once, in bytes.
const PIECE: usize = 512 << 10;
/// Pieces that are read ahead: what keeps an image, its qemu-nbd and the daemon at work
/// at once. Where many downloads run, others do that, and memory counts.
const AHEAD: usize = 5;
const AHEAD_OF_MANY: usize = 2;
/// So many downloads are many.
const MANY: usize = 8;
/// From this size on a file is read past the page cache, in bytes.
const LARGE: u64 = 4 << 20;

/// Why a download breaks off; hyper closes the connection.
type Broken = Box<dyn std::error::Error + Send + Sync>;

/// Memory for pieces that comes back when a piece was sent.
type Spare = Arc<Mutex<Vec<Vec<u8>>>>;

struct Piece {
    memory: Vec<u8>,
    spare: Spare,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.memory
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.spare.lock().push(std::mem::take(&mut self.memory));
    }
}

/// A part of a file.
pub(super) struct FileBody {
    file: Arc<File>,
    /// Where the next piece to be read begins.
    offset: u64,
    end: u64,
    /// Bytes that were not given to the connection yet.
    left: u64,
    /// Read already.
    first: Option<Piece>,
    reading: VecDeque<JoinHandle<io::Result<Piece>>>,
    spare: Spare,
    ticket: Ticket,
}

impl FileBody {
    /// The bytes of `file` from `start` to before `end`, which it must have.
    pub(super) fn new(file: File, start: u64, end: u64, ticket: Ticket) -> Self {
        if end.saturating_sub(start) >= LARGE {
            // Where that cannot be, it is read as any other.
            let _ = fcntl(&file, FcntlArg::F_SETFL(OFlag::O_DIRECT));
        }
        Self {
            file: Arc::new(file),
            offset: start,
            end,
            left: end.saturating_sub(start),
            first: None,
            reading: VecDeque::with_capacity(AHEAD),
            spare: Spare::default(),
            ticket,
        }
    }

    /// Waits for the first piece, so that a file which cannot be read at all is told so
    /// in the head of the answer and not by a broken connection.
    ///
    /// # Errors
    /// Why it cannot be read; the ticket has noted it.
    pub(super) async fn begin(mut self) -> io::Result<Self> {
        if self.left == 0 {
            // Nobody asks the body of an empty file for anything.
            self.ticket.complete(None);
        }
        self.read_on();
        if let Some(reading) = self.reading.pop_front() {
            let read = reading.await.map_err(io::Error::other);
            match read.and_then(|read| read) {
                Ok(piece) => self.first = Some(piece),
                Err(e) => {
                    self.ticket.failed(format!("reading failed: {e}"));
                    return Err(e);
                }
            }
        }
        Ok(self)
    }

    /// Begins to read the next pieces, if there are any.
    fn read_on(&mut self) {
        let ahead = if self.ticket.neighbours() < MANY {
            AHEAD
        } else {
            AHEAD_OF_MANY
        };
        while self.reading.len() < ahead && self.offset < self.end {
            let left = self.end.saturating_sub(self.offset);
            let len = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let (file, offset) = (Arc::clone(&self.file), self.offset);
            let spare = Arc::clone(&self.spare);
            self.offset = self.offset.saturating_add(len as u64);
            self.reading.push_back(tokio::task::spawn_blocking(move || {
                let mut memory = spare.lock().pop().unwrap_or_default();
                memory.resize(len, 0);
                file.read_exact_at(&mut memory, offset)?;
                Ok(Piece { memory, spare })
            }));
        }
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Some(why) = self.ticket.stopped() {
            self.ticket.failed(why);
            return Poll::Ready(Some(Err(HungUp(why).into())));
        }
        self.read_on();
        let piece = match self.first.take() {
            Some(piece) => piece,
            None => {
                let Some(reading) = self.reading.front_mut() else {
                    self.ticket.complete(None);
                    return Poll::Ready(None);
                };
                let read = match Pin::new(reading).poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(read) => read.map_err(io::Error::other).and_then(|read| read),
                };
                self.reading.pop_front();
                match read {
                    Ok(piece) => piece,
                    Err(e) => {
                        self.ticket.failed(format!("reading failed: {e}"));
                        return Poll::Ready(Some(Err(e.into())));
                    }
                }
            }
        };
        self.read_on();
        let sent = piece.memory.len() as u64;
        self.ticket.sending(sent);
        self.left = self.left.saturating_sub(sent);
        if self.left == 0 {
            // The connection need not ask once more when it has all that it was promised.
            self.ticket.complete(None);
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// What the writer of an archive says.
pub(super) enum Word {
    Piece(Bytes),
    /// All was written; what could not be read.
    Complete(Option<String>),
    /// It cannot go on.
    Failed(String),
}

/// An archive, as its writer makes it.
pub(super) struct ArchiveBody {
    pieces: mpsc::Receiver<Word>,
    ticket: Ticket,
    over: bool,
    /// Tells the writer that nobody takes anything any more.
    ended: Arc<AtomicBool>,
}

impl Drop for ArchiveBody {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

impl ArchiveBody {
    pub(super) fn new(
        pieces: mpsc::Receiver<Word>,
        ticket: Ticket,
        ended: Arc<AtomicBool>,
    ) -> Self {
        Self {
            pieces,
            ticket,
            over: false,
            ended,
        }
    }
}

impl Body for ArchiveBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(why) = self.ticket.stopped() {
            self.ticket.failed(why);
            self.over = true;
            return Poll::Ready(Some(Err(HungUp(why).into())));
        }
        match self.pieces.poll_recv(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Word::Piece(piece))) => {
                self.ticket.sending(piece.len() as u64);
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Poll::Ready(Some(Word::Complete(missing))) => {
                self.over = true;
                self.ticket.complete(missing);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Word::Failed(why))) => {
                self.over = true;
                self.ticket.failed(why.as_str());
                Poll::Ready(Some(Err(why.into())))
            }
            // Its thread ended without a word: a panic.
            Poll::Ready(None) => {
                self.over = true;
                self.ticket.failed("the archive could not be written");
                Poll::Ready(Some(Err("the archive broke off".into())))
            }
        }
    }
}
