//! A server that breaks the protocol, as no real one does: what is sent is
//! written by hand, and the client must stand it.

use super::protocol as wire;
use super::*;
use crate::error::Error;
use crate::image::export::Allocation;
use bytes::BytesMut;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

const LEN: u32 = 64;
const AT: u64 = 1000;

/// Hands on why the connection ended.
struct Watcher(parking_lot::Mutex<mpsc::Sender<String>>, AtomicU64);

/// Hands on what a connection left unfinished.
struct Heir(parking_lot::Mutex<mpsc::Sender<Request>>);

impl Owner for Heir {
    fn answered(&self, _bytes: u64) {}

    fn lost(&self, _connection: &Arc<Connection>, _reason: &str, unfinished: Vec<Request>) {
        let sender = self.0.lock();
        unfinished.into_iter().for_each(|r| sender.send(r).unwrap());
    }
}

impl Owner for Watcher {
    fn answered(&self, _bytes: u64) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }

    fn lost(&self, _connection: &Arc<Connection>, reason: &str, unfinished: Vec<Request>) {
        self.0.lock().send(reason.to_owned()).unwrap();
        unfinished
            .into_iter()
            .for_each(|r| r.fail(Error::Invalid("lost".into())));
    }
}

fn handshake(socket: &mut UnixStream) {
    let mut hello = Vec::from(wire::GREETING.to_be_bytes());
    hello.extend(wire::OPTION.to_be_bytes());
    hello.extend(3_u16.to_be_bytes());
    socket.write_all(&hello).unwrap();
    socket.read_exact(&mut [0; 4]).unwrap();
    loop {
        let mut head = [0; 16];
        socket.read_exact(&mut head).unwrap();
        let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
        let len = u32::from_be_bytes(head[12..].try_into().unwrap());
        socket.read_exact(&mut vec![0; len as usize]).unwrap();
        let mut reply = |kind: u32, payload: &[u8]| {
            let mut message = Vec::from(wire::OPTION_REPLY.to_be_bytes());
            message.extend(option.to_be_bytes());
            message.extend(kind.to_be_bytes());
            message.extend((payload.len() as u32).to_be_bytes());
            message.extend(payload);
            socket.write_all(&message).unwrap();
        };
        if option == wire::OPT_SET_META_CONTEXT {
            reply(wire::REP_META_CONTEXT, b"\0\0\0\x07base:allocation");
        }
        if option == wire::OPT_GO {
            let mut info = vec![0, 0];
            info.extend((1_u64 << 30).to_be_bytes());
            info.extend(3_u16.to_be_bytes());
            reply(wire::REP_INFO, &info);
        }
        reply(wire::REP_ACK, &[]);
        if option == wire::OPT_GO {
            return;
        }
    }
}

fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::from(wire::STRUCTURED_REPLY.to_be_bytes());
    message.extend(flags.to_be_bytes());
    message.extend(kind.to_be_bytes());
    message.extend(cookie.to_be_bytes());
    message.extend((payload.len() as u32).to_be_bytes());
    message.extend(payload);
    message
}

fn data(flags: u16, cookie: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let payload = [&offset.to_be_bytes()[..], bytes].concat();
    chunk(flags, wire::REPLY_OFFSET_DATA, cookie, &payload)
}

fn hole(flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let payload = [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat();
    chunk(flags, wire::REPLY_OFFSET_HOLE, cookie, &payload)
}

fn error(flags: u16, kind: u16, cookie: u64, number: u32) -> Vec<u8> {
    let payload = [&number.to_be_bytes()[..], &[0, 3], b"why", &[0; 8]].concat();
    chunk(flags, wire::REPLY_ERROR | kind, cookie, &payload)
}

type Answer<T> = (crate::Result<T>, Option<String>);

/// Sends one request; the server replies with `reply(cookie)` and hangs up.
/// Returns the answer, and why the connection ended if it ended before that.
fn exchange<T: Send + 'static>(
    reply: impl FnOnce(u64) -> Vec<u8> + Send + 'static,
    request: impl FnOnce(Instant, Box<dyn FnOnce(crate::Result<T>) + Send>) -> Request,
) -> Answer<T> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let mut socket = listener.accept().unwrap().0;
        handshake(&mut socket);
        let mut request = [0; 28];
        socket.read_exact(&mut request).unwrap();
        let cookie = u64::from_be_bytes(request[8..16].try_into().unwrap());
        // The client may have hung up in disgust.
        let _ = socket.write_all(&reply(cookie));
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    let connection = Arc::new(Connection::open(&path, deadline).unwrap());
    let (lost, reasons) = mpsc::channel();
    let watcher = Arc::new(Watcher(lost.into(), AtomicU64::new(0)));
    connection
        .start("the disk".into(), watcher.clone())
        .unwrap();
    let (sender, receiver) = mpsc::channel();
    connection.reserve();
    let done = move |answer| drop(sender.send(answer));
    assert!(connection.send(request(deadline, Box::new(done))).is_ok());
    let answer = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
    let reason = reasons.recv_timeout(Duration::from_secs(10)).unwrap();
    server.join().unwrap();
    assert!(receiver.recv().is_err(), "answered twice");
    let answered = watcher.1.load(Ordering::Relaxed) == 1;
    (answer, (!answered).then_some(reason))
}

fn read(reply: impl FnOnce(u64) -> Vec<u8> + Send + 'static) -> Answer<BytesMut> {
    let buf = BytesMut::from(&[0xee; LEN as usize][..]);
    exchange(reply, |deadline, done| {
        Request::read(AT, LEN, buf, deadline, done)
    })
}

fn status(extents: &'static [(u32, u32)]) -> Answer<Vec<Allocation>> {
    let reply = move |cookie| {
        let mut payload = vec![0, 0, 0, 7];
        for (len, state) in extents {
            payload.extend(len.to_be_bytes());
            payload.extend(state.to_be_bytes());
        }
        chunk(1, wire::REPLY_BLOCK_STATUS, cookie, &payload)
    };
    exchange(reply, |deadline, done| {
        Request::status(AT, LEN, deadline, done)
    })
}

#[test]
fn chunks_in_any_order() {
    let (answer, ended) = read(|c| {
        [
            data(0, c, AT + 40, &[3; 24]),
            hole(0, c, AT + 10, 30),
            data(0, c, AT, &[1; 10]),
            chunk(1, wire::REPLY_NONE, c, &[]),
        ]
        .concat()
    });
    let expected = [&[1; 10][..], &[0; 30], &[3; 24]].concat();
    assert_eq!(
        (answer.unwrap(), ended),
        (BytesMut::from(&expected[..]), None)
    );
}

#[test]
fn errors_in_the_middle() {
    for kind in [1, 2, 77] {
        let (answer, ended) = read(move |c| {
            [
                data(0, c, AT, &[1; 10]),
                error(0, kind, c, 5),
                hole(1, c, AT + 10, 9),
            ]
            .concat()
        });
        assert!(answer.unwrap_err().to_string().contains("why"));
        assert_eq!(ended, None);
    }
    let (answer, ended) = read(|c| error(1, 1, c, 108));
    assert!(answer.is_err() && ended.unwrap().contains("shutting down"));
}

#[test]
fn replies_that_break_the_protocol_end_the_connection() {
    type Reply = fn(u64) -> Vec<u8>;
    let bad: &[(&str, Reply)] = &[
        ("not cover", |c| data(1, c, AT, &[1; 63])),
        ("not cover", |c| chunk(1, wire::REPLY_NONE, c, &[])),
        ("not cover", |c| {
            [data(0, c, AT, &[1; 10]), hole(1, c, AT + 11, 53)].concat()
        }),
        ("comes twice", |c| {
            [data(0, c, AT, &[1; 10]), hole(0, c, AT + 9, 55)].concat()
        }),
        ("comes twice", |c| hole(1, c, AT, 0)),
        ("outside", |c| data(1, c, AT - 1, &[1; 64])),
        ("outside", |c| data(1, c, AT, &[1; 65])),
        ("outside", |c| hole(1, c, u64::MAX, u32::MAX)),
        ("outside", |c| hole(1, c, AT + 1, u32::MAX)),
        ("too long", |c| {
            [&chunk(1, 1, c, &[])[..16], &u32::MAX.to_be_bytes()].concat()
        }),
        ("short chunk", |c| {
            chunk(1, wire::REPLY_OFFSET_DATA, c, &[0; 7])
        }),
        ("short error", |c| {
            chunk(1, wire::REPLY_ERROR | 1, c, &[0; 5])
        }),
        ("without an error", |c| error(1, 1, c, 0)),
        ("unknown kind", |c| chunk(1, 99, c, &[0; 7])),
        ("unknown kind", |c| chunk(0, wire::REPLY_NONE, c, &[])),
        ("nothing that was asked", |c| data(1, c + 1, AT, &[1; 64])),
        ("not a reply", |_| vec![0x55; 64]),
        ("answer to a read", |c| {
            chunk(1, 5, c, &[0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 0])
        }),
        ("unknown context", |c| {
            chunk(1, 5, c, &[0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 0])
        }),
        ("structured one", |c| {
            let head = [wire::SIMPLE_REPLY.to_be_bytes(), [0; 4]].concat();
            [&head[..], &c.to_be_bytes(), &[1; 64]].concat()
        }),
        ("closed", |c| data(1, c, AT, &[1; 64])[..50].to_vec()),
        ("closed", |_| Vec::new()),
    ];
    for (message, reply) in bad {
        let (answer, ended) = read(reply);
        assert!(answer.is_err(), "{message}");
        let ended = ended.unwrap_or_else(|| panic!("{message}: the connection went on"));
        assert!(ended.contains(message), "{ended} instead of {message}");
    }
}

#[test]
fn block_status_is_cut_and_joined() {
    let hole = |len, hole| Allocation { len, hole };
    let (answer, ended) = status(&[(10, 0), (10, 1), (20, 2), (10, 3), (1 << 30, 0)]);
    let expected = [hole(20, false), hole(30, true), hole(14, false)];
    assert_eq!((&answer.unwrap()[..], ended), (&expected[..], None));
    // Less than asked for is allowed; nothing is not.
    assert_eq!(status(&[(10, 0)]).0.unwrap(), [hole(10, false)]);
    for bad in [&[][..], &[(0, 0)], &[(10, 0), (0, 2)]] {
        assert!(status(bad).1.unwrap().contains("block status of nothing"));
    }
}

#[test]
fn half_a_block_status_is_forgotten_with_its_connection() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        for flags in [0, 1] {
            let mut socket = listener.accept().unwrap().0;
            handshake(&mut socket);
            let mut request = [0; 28];
            socket.read_exact(&mut request).unwrap();
            let cookie = u64::from_be_bytes(request[8..16].try_into().unwrap());
            let payload = [7_u32, LEN, 3].map(u32::to_be_bytes).concat();
            let reply = chunk(flags, wire::REPLY_BLOCK_STATUS, cookie, &payload);
            socket.write_all(&reply).unwrap();
        }
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    let (sender, receiver) = mpsc::channel();
    let done = move |answer| drop(sender.send(answer));
    let (left, unfinished) = mpsc::channel();
    let heir = Arc::new(Heir(left.into()));
    let send = |request| {
        let connection = Arc::new(Connection::open(&path, deadline).unwrap());
        connection.start("the disk".into(), heir.clone()).unwrap();
        connection.reserve();
        assert!(connection.send(request).is_ok());
    };
    send(Request::status(AT, LEN, deadline, Box::new(done)));
    send(unfinished.recv_timeout(Duration::from_secs(5)).unwrap());
    let answer = receiver.recv_timeout(Duration::from_secs(5));
    let answer = answer.expect("the second connection ended too");
    assert_eq!(answer.unwrap().len(), 1);
    server.join().unwrap();
}
