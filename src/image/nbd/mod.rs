//! A client for the NBD protocol, read-only, newstyle, with structured replies.
//!
//! The idea: a [`Request`] owns its buffer and its call-back and is always in
//! exactly one place (a queue, a connection's table), so it is answered exactly
//! once whatever happens: a reply, a time-out, a broken connection, the end of
//! the program. One thread per connection receives straight into the buffers;
//! nobody waits for anything else.
//!
//! - [`protocol`]: numbers and layouts of the wire;
//! - [`handshake`]: from a fresh socket to the transmission phase;
//! - [`request`]: one read or one question for block status;
//! - [`connection`]: requests under way on one socket, and its receiving thread;
//! - [`receiver`]: what that thread does with replies;
//! - [`coverage`]: which bytes of a request have arrived.
//!
//! Source: the NBD project's `doc/proto.md`.

#![deny(clippy::arithmetic_side_effects)]

pub(crate) mod connection;
pub(crate) mod coverage;
pub(crate) mod handshake;
pub(crate) mod protocol;
mod receiver;
pub(crate) mod request;

pub(crate) use connection::{Connection, Owner};
pub(crate) use request::Request;

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests;
