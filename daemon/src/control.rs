//! The control socket: how `sendense status`, `sendense release` and the HTTP side
//! speak to the running daemon.
//!
//! The idea: one line of JSON asks, one line answers, on a unix socket that only
//! the daemon's user and group can open. [`Instance::claim`] comes first in the
//! daemon's life, before it clears what an earlier run left: it makes sure, by a
//! lock that dies with its process, that there is no other daemon on the same
//! runtime folder. [`Instance::serve`] comes when there is something to tell.
//!
//! A client is never waited for long: requests are short, each user has few
//! answered at once (the HTTP side's user more), and each connection has a
//! deadline.

mod client;
mod fault;
pub(crate) mod message;
mod server;

pub(crate) use client::Client;
pub(crate) use message::{
    ApiState, AttachedDisk, CacheFigures, DiskCheck, Resources, SlotFigures, Space, Status, Totals,
};
pub(crate) use server::{ControlHandler, Instance};

/// The socket's name in the runtime folder.
const SOCKET: &str = "control.sock";

/// The lock's name in the runtime folder; the file holds the process id.
const LOCK: &str = "sendense.pid";

/// No request is longer, in bytes.
const REQUEST_LIMIT: u64 = 64 << 10;

/// No answer is longer, in bytes (ten thousand disks take about 4 MB).
const ANSWER_LIMIT: u64 = 64 << 20;

#[cfg(test)]
mod tests;
