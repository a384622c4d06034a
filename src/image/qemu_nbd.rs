//! The process `qemu-nbd`: one checked chain of images, exported read-only on a
//! private unix socket.
//!
//! The idea: qemu is told every file and every format of the chain, as a tree of
//! block devices down to `"backing":null`. It opens what was checked and nothing
//! else, and guesses nothing, whatever the images' headers say by then.

use super::chain::{Chain, ChainImage};
use crate::error::{Error, Result};
use crate::image::reaper;
use crate::sys::spawn_bound;
use nix::fcntl::OFlag;
use serde_json::{Value, json};
use std::fs::{DirBuilder, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The longest path that a unix socket address holds (`sun_path` less the NUL).
const MAX_SOCKET_PATH: usize = 107;
/// How much of what a process says is kept.
const MAX_SAID: usize = 4096;

/// The place of a socket. It is the export's, and stays the same over restarts of
/// the process that listens there; it is removed on drop.
pub(crate) struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        reaper::remove(std::mem::take(&mut self.0));
    }
}

/// A place for a new socket in `runtime_dir`, which is made if it is not there.
///
/// # Errors
/// `Invalid` when the folder is not private to this process's user, or when its
/// path is too long for a socket.
pub(crate) fn socket(runtime_dir: &Path) -> Result<Socket> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let named = |e| Error::io(runtime_dir.display().to_string(), e);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(runtime_dir)
        .map_err(named)?;
    let meta = runtime_dir.metadata().map_err(named)?;
    if meta.uid() != nix::unistd::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
        return Err(Error::Invalid(format!(
            "{}: the runtime directory must belong to the user of this process and be closed to \
             all others (mode 700; it is {:o})",
            runtime_dir.display(),
            meta.mode() & 0o7777
        )));
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = runtime_dir.join(format!("{:x}-{number:x}.nbd", std::process::id()));
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(Error::Invalid(format!(
            "{}: the path is too long for a unix socket (at most {MAX_SOCKET_PATH} bytes); choose \
             a shorter runtime directory",
            path.display()
        )));
    }
    Ok(Socket(path))
}

impl Socket {
    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Its NBD URI.
    pub(crate) fn uri(&self) -> String {
        let mut uri = String::from("nbd+unix:///?socket=");
        for &byte in self.0.as_os_str().as_bytes() {
            if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
                uri.push(char::from(byte));
            } else {
                uri.push_str(&format!("%{byte:02X}"));
            }
        }
        uri
    }
}

/// Bytes of heap that `qemu-nbd` keeps for its next requests.
const HEAP_KEPT: &str = "16777216";

/// Starts `qemu-nbd` for a checked chain; `clients` may connect at once.
///
/// # Errors
/// `Qemu` when the program cannot be started.
pub(crate) fn start(chain: &Chain, clients: usize, socket: &Socket) -> Result<Process> {
    let mut command = Command::new("qemu-nbd");
    command
        .args(["--read-only", "--persistent"])
        .arg(format!("--shared={clients}"))
        // Said although they are qemu's defaults: io_uring and a cache mode
        // without the page cache are half as fast here.
        .args([
            "--aio=threads",
            "--cache=writeback",
            "--discard=ignore",
            "--detect-zeroes=off",
        ])
        // It takes a fresh buffer for each request. By default glibc maps and
        // unmaps memory of that size each time, and the page faults take longer
        // than the copying: kept on the heap, reads are 2.7 times as fast.
        .env("MALLOC_MMAP_THRESHOLD_", HEAP_KEPT)
        .env("MALLOC_TRIM_THRESHOLD_", HEAP_KEPT)
        // Small blocks that threads keep for themselves would lie between the
        // buffers and keep them from being joined: after many reads of 1 MiB the
        // process then holds 57 MB, without them 11 MB.
        .env("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")
        .arg("--socket")
        .arg(socket.path())
        .arg(format!("json:{}", tree(chain)?));
    let image = chain
        .images
        .first()
        .map(|i| i.path.clone())
        .unwrap_or_default();
    Process::spawn("qemu-nbd", command, image, socket)
}

/// The chain as qemu's tree of block devices.
fn tree(chain: &Chain) -> Result<Value> {
    let mut below = Value::Null;
    for image in chain.images.iter().rev() {
        below = node(image, below)?;
    }
    Ok(below)
}

fn node(image: &ChainImage, below: Value) -> Result<Value> {
    let mut node = json!({
        "driver": image.format,
        "read-only": true,
        "file": file(&image.path)?,
    });
    if let Some(node) = node.as_object_mut()
        && image.format == "qcow2"
    {
        node.insert("backing".into(), below);
        if let Some(data) = &image.data_file {
            node.insert("data-file".into(), file(data)?);
        }
    }
    Ok(node)
}

fn file(path: &Path) -> Result<Value> {
    let Some(name) = path.to_str() else {
        return Err(Error::Unsupported {
            what: path.display().to_string(),
            reason: "qemu takes only paths that are valid UTF-8".into(),
        });
    };
    // No locks: an image may be in use elsewhere, say as the backing file of a
    // machine that runs from it. It is never written to here.
    Ok(json!({ "driver": "file", "filename": name, "locking": "off", "read-only": true }))
}

/// A child that serves a socket. It is killed on drop.
pub(crate) struct Process {
    program: &'static str,
    image: PathBuf,
    child: Option<Child>,
    socket: PathBuf,
    stderr: File,
    said: Vec<u8>,
}

impl Process {
    /// Starts a command that will listen on `socket`.
    ///
    /// # Errors
    /// `Qemu` when it cannot be started.
    pub(crate) fn spawn(
        program: &'static str,
        mut command: Command,
        image: PathBuf,
        socket: &Socket,
    ) -> Result<Self> {
        let failed = |e: std::io::Error| Error::Qemu {
            program,
            path: image.clone(),
            reason: format!("cannot be started: {e}"),
        };
        // Not blocking: a child that says more than a pipe holds loses words, not time.
        let (stderr, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .map_err(|e| failed(e.into()))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(theirs));
        // A leftover of the process before.
        let _ = std::fs::remove_file(socket.path());
        let child = spawn_bound(command).map_err(failed)?;
        let stderr = File::from(stderr);
        Ok(Self {
            program,
            image,
            child: Some(child),
            socket: socket.path().to_owned(),
            stderr,
            said: Vec::new(),
        })
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// If the process has ended, or ends within `wait`: why.
    pub(crate) fn ended(&mut self, wait: Duration) -> Option<Error> {
        let started = Instant::now();
        loop {
            match self.child.as_mut().map(Child::try_wait) {
                Some(Ok(Some(status))) => return Some(self.complaint(&explain(status))),
                Some(Err(e)) => return Some(self.complaint(&e.to_string())),
                None => return Some(self.complaint("not running")),
                Some(Ok(None)) if started.elapsed() >= wait => return None,
                Some(Ok(None)) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// An error with what the process said, or else with `reason`.
    pub(crate) fn complaint(&mut self, reason: &str) -> Error {
        let said = self.said();
        let reason = if said.is_empty() {
            reason.to_owned()
        } else {
            said
        };
        Error::Qemu {
            program: self.program,
            path: self.image.clone(),
            reason,
        }
    }

    /// The last words on its standard error.
    fn said(&mut self) -> String {
        let mut block = [0; 4096];
        // A pipe holds 64 KiB; more cannot be new.
        for _ in 0..16 {
            match self.stderr.read(&mut block) {
                Ok(n) if n > 0 => self.said.extend(block.iter().take(n)),
                _ => break,
            }
        }
        let too_much = self.said.len().saturating_sub(MAX_SAID);
        self.said.drain(..too_much);
        let said = String::from_utf8_lossy(&self.said);
        said.trim()
            .trim_start_matches(self.program)
            .trim_start_matches(": ")
            .to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            reaper::end(child);
        }
    }
}

fn explain(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        _ => status.to_string(),
    }
}
