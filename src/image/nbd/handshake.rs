//! From a fresh socket to the transmission phase: newstyle, fixed.

use super::protocol::{self as wire, Fields};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// Longest reply to an option that is read; the real ones are below 1 KiB.
const MAX_OPTION_REPLY: u32 = 64 << 10;
/// Most replies to one option.
const MAX_OPTION_REPLIES: usize = 64;

/// What the server offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Negotiated {
    /// Size of the export in bytes.
    pub(crate) size: u64,
    /// Whether replies are structured.
    pub(crate) structured: bool,
    /// Id of the context `base:allocation`, if there is one.
    pub(crate) allocation: Option<u32>,
    /// Largest read in bytes.
    pub(crate) max_read: u32,
}

/// Negotiates the default export (the empty name) until `deadline`.
///
/// # Errors
/// From the socket (`WouldBlock` or `TimedOut` when the server is too slow), and
/// `InvalidData` with a sentence when the server is not one that we can use.
pub(crate) fn negotiate(socket: &UnixStream, deadline: Instant) -> io::Result<Negotiated> {
    let mut talk = Talk { socket, deadline };
    let hello = talk.receive(18)?;
    let mut hello = Fields(&hello);
    if hello.u64() != Some(wire::GREETING) || hello.u64() != Some(wire::OPTION) {
        return Err(refused(
            "the server does not speak the newstyle NBD protocol",
        ));
    }
    let offered = hello.u16().unwrap_or(0);
    if offered & wire::FLAG_FIXED_NEWSTYLE == 0 {
        return Err(refused(
            "the server does not offer the fixed newstyle handshake",
        ));
    }
    let wanted = wire::FLAG_FIXED_NEWSTYLE | (offered & wire::FLAG_NO_ZEROES);
    talk.send(&u32::from(wanted).to_be_bytes())?;

    let structured = talk
        .option(wire::OPT_STRUCTURED_REPLY, &[], |_, _| Ok(()))?
        .is_ok();

    let mut allocation = None;
    if structured {
        let context = b"base:allocation";
        let mut data = Vec::from(0_u32.to_be_bytes()); // length of the export's name
        data.extend(1_u32.to_be_bytes());
        data.extend(15_u32.to_be_bytes());
        data.extend(context);
        // A server that cannot do this says so; then all is taken for data.
        let _ = talk.option(wire::OPT_SET_META_CONTEXT, &data, |kind, mut payload| {
            if kind == wire::REP_META_CONTEXT {
                let id = payload.u32();
                if payload.0 == context {
                    allocation = id;
                }
            }
            Ok(())
        })?;
    }

    let mut export = None;
    let mut max_read = wire::MAX_PAYLOAD;
    let mut data = Vec::from(0_u32.to_be_bytes());
    data.extend(1_u16.to_be_bytes());
    data.extend(wire::INFO_BLOCK_SIZE.to_be_bytes());
    let go = talk.option(wire::OPT_GO, &data, |kind, mut payload| {
        if kind != wire::REP_INFO {
            return Ok(());
        }
        match payload.u16() {
            Some(wire::INFO_EXPORT) => export = payload.u64().zip(payload.u16()),
            Some(wire::INFO_BLOCK_SIZE) => {
                let (smallest, _, largest) = (payload.u32(), payload.u32(), payload.u32());
                if smallest.is_none_or(|s| s > 1) {
                    return Err(refused("the server cannot be read at every byte"));
                }
                max_read = max_read.min(largest.unwrap_or(0)).max(4096);
            }
            _ => {}
        }
        Ok(())
    })?;
    if let Err(reason) = go {
        return Err(refused(&format!("the server refuses the export: {reason}")));
    }
    let Some((size, flags)) = export else {
        return Err(refused("the server does not tell the size of the export"));
    };
    let needed = wire::TRANSMISSION_HAS_FLAGS | wire::TRANSMISSION_READ_ONLY;
    if flags & needed != needed {
        return Err(refused(
            "the server offers the export for writing; it must be read-only",
        ));
    }
    Ok(Negotiated {
        size,
        structured,
        allocation,
        max_read,
    })
}

/// A conversation that has to end in time.
struct Talk<'a> {
    socket: &'a UnixStream,
    deadline: Instant,
}

impl Talk<'_> {
    /// Sets the socket's time-outs to what is left.
    fn hurry(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        self.socket.set_write_timeout(Some(left))
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hurry()?;
        self.socket.write_all(bytes)
    }

    fn receive(&mut self, len: usize) -> io::Result<Vec<u8>> {
        self.hurry()?;
        let mut bytes = vec![0; len];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Sends an option and hands all replies but the last to `each`. Says whether
    /// the server took it, or what it said instead.
    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        mut each: impl FnMut(u32, Fields<'_>) -> io::Result<()>,
    ) -> io::Result<Result<(), String>> {
        let len = u32::try_from(data.len()).map_err(io::Error::other)?;
        let mut message = Vec::from(wire::OPTION.to_be_bytes());
        message.extend(option.to_be_bytes());
        message.extend(len.to_be_bytes());
        message.extend(data);
        self.send(&message)?;
        for _ in 0..MAX_OPTION_REPLIES {
            let head = self.receive(20)?;
            let mut head = Fields(&head);
            let ours = head.u64() == Some(wire::OPTION_REPLY) && head.u32() == Some(option);
            let (Some(kind), Some(len), true) = (head.u32(), head.u32(), ours) else {
                return Err(refused("the server's answer to an option is garbled"));
            };
            if len > MAX_OPTION_REPLY {
                return Err(refused("the server's answer to an option is too long"));
            }
            let payload = self.receive(usize::try_from(len).map_err(io::Error::other)?)?;
            if kind == wire::REP_ACK {
                return Ok(Ok(()));
            }
            if kind & wire::REP_ERROR != 0 {
                let text = String::from_utf8_lossy(&payload).into_owned();
                return Ok(Err(if text.is_empty() {
                    format!("error {kind:#x}")
                } else {
                    text
                }));
            }
            each(kind, Fields(&payload))?;
        }
        Err(refused("the server's answer to an option does not end"))
    }
}

fn refused(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}
