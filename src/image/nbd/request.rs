//! One read, or one question for block status.

use crate::error::{Error, Result};
use crate::image::Completion;
use crate::image::export::Allocation;
use bytes::BytesMut;
use std::io;
use std::time::Instant;

/// Called once with what was found, or with the error.
pub(crate) type StatusCompletion = Box<dyn FnOnce(Result<Vec<Allocation>>) + Send>;

/// A request and who waits for it. Whatever happens to it, the waiter is called
/// exactly once: a request that is dropped answers with an error.
pub(crate) struct Request {
    /// First byte on the disk.
    pub(crate) offset: u64,
    /// Length in bytes, more than 0.
    pub(crate) len: u32,
    /// When its time is over.
    pub(crate) deadline: Instant,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    Read {
        /// None while the receiving thread fills it.
        buf: Option<BytesMut>,
        done: Option<Completion>,
    },
    Status {
        found: Vec<Allocation>,
        done: Option<StatusCompletion>,
    },
}

impl Request {
    /// Reads `len` bytes, which is also the length of `buf`.
    pub(crate) fn read(
        offset: u64,
        len: u32,
        buf: BytesMut,
        deadline: Instant,
        done: Completion,
    ) -> Self {
        Self {
            offset,
            len,
            deadline,
            kind: Kind::Read {
                buf: Some(buf),
                done: Some(done),
            },
        }
    }

    /// Asks for block status.
    pub(crate) fn status(offset: u64, len: u32, deadline: Instant, done: StatusCompletion) -> Self {
        Self {
            offset,
            len,
            deadline,
            kind: Kind::Status {
                found: Vec::new(),
                done: Some(done),
            },
        }
    }

    /// Whether it is a read.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self.kind, Kind::Read { .. })
    }

    /// Without what has come of an unfinished reply: another will bring it all.
    pub(super) fn afresh(mut self) -> Self {
        if let Kind::Status { found, .. } = &mut self.kind {
            found.clear();
        }
        self
    }

    /// Answers with what was collected.
    pub(crate) fn succeed(mut self) {
        match &mut self.kind {
            Kind::Read { buf, done } => {
                if let (Some(buf), Some(done)) = (buf.take(), done.take()) {
                    guarded(|| done(Ok(buf)));
                }
            }
            Kind::Status { found, done } => {
                let found = std::mem::take(found);
                if let Some(done) = done.take() {
                    guarded(|| done(Ok(found)));
                }
            }
        }
    }

    /// Answers with an error.
    pub(crate) fn fail(mut self, error: Error) {
        self.answer_error(|| error);
    }

    fn answer_error(&mut self, error: impl FnOnce() -> Error) {
        match &mut self.kind {
            Kind::Read { done, .. } => {
                if let Some(done) = done.take() {
                    guarded(|| done(Err(error())));
                }
            }
            Kind::Status { done, .. } => {
                if let Some(done) = done.take() {
                    guarded(|| done(Err(error())));
                }
            }
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.answer_error(|| Error::io("read", io::Error::other("the request was dropped")));
    }
}

/// A panic of whoever waits must not take the receiving thread with it: others
/// wait for that thread, too.
fn guarded(call: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err() {
        tracing::error!("a completion of a read panicked");
    }
}
