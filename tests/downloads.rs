//! Downloads over HTTP by real clients: `curl` that is fast, slow, cut off and resumed,
//! and sockets that read nothing at all.
#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

#[path = "downloads/limits.rs"]
mod limits;
#[path = "downloads/whole.rs"]
mod whole;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::http::{Session, disk_of};
use support::images::full;
use support::{Lab, shell, wait_for};

const STAMP: &str = "20251008-192431";
const MIB: u64 = 1 << 20;

/// A backup of a disk with what `script` makes.
fn backup(lab: &Lab, size: &str, script: &str) {
    let disk = disk_of(lab, "a", size, |root| {
        shell(&format!("cd {root:?}; {script}"));
    });
    full(lab, &disk.path, "vm", 0, STAMP);
}

/// A mount of the only disk, as the address of its routes, and its folder in the tree.
fn mounted(session: &Session<'_>) -> (String, PathBuf) {
    let backup = session.backups("vm").remove(0);
    let mount = session.mount(&backup, 0);
    let disk = session.api.lab.mountpoint().join("vm").join(backup);
    (format!("/api/v1/restore/{mount}"), disk.join("disk0"))
}

/// A `curl` that writes the body to a file.
fn start(session: &Session<'_>, path: &str, file: &str, args: &[&str]) -> Child {
    let mut command = session.request("GET", path).command();
    command
        .args(["--no-include", "-o"])
        .arg(session.api.lab.path(file))
        .args(args)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The exit code of a `curl`, which has to end within a time.
fn exit(mut child: Child, limit: Duration) -> i32 {
    let mut status = None;
    wait_for("curl's end", limit, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap().code().unwrap()
}

/// A client that asks and reads no more than the beginning.
fn stalled(session: &Session<'_>, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", session.api.port)).unwrap();
    let token = &session.token;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
    .unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    stream
}

/// Reads what is left until the connection ends, and says how much that was.
fn drained(mut stream: TcpStream) -> u64 {
    let (mut bytes, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return bytes,
            Ok(n) => bytes += n as u64,
            Err(e) => {
                assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}");
                return bytes;
            }
        }
    }
}

fn running(session: &Session<'_>) -> Vec<Value> {
    let answer = session.get("/api/v1/restore/downloads").ok();
    let all = answer["downloads"].as_array().unwrap().clone();
    assert_eq!(answer["count"], all.len());
    all
}

/// Memory of a process, in bytes.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().split_whitespace().next().unwrap();
    kib.parse::<u64>().unwrap() * 1024
}
