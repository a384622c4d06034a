//! The daemon's side.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Group, Uid, User};
use parking_lot::Mutex;
use sendense::catalog::Mount;
use sendense::{Error, Result};

use super::client::Client;
use super::message::{Answer, DiskCheck, Request, Status};
use super::{LOCK, REQUEST_LIMIT, SOCKET};

/// A client has this long to say what it wants, and as long to take the answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// This many clients of one user are answered at once; more are turned away.
const CLIENTS: usize = 8;

/// The same for the daemon's own user and the one of the HTTP side, which speaks
/// for many.
const TRUSTED_CLIENTS: usize = 128;

/// What the daemon answers. Called from several threads at once.
pub(crate) trait ControlHandler: Send + Sync {
    /// How the daemon is; must not wait for a disk.
    fn status(&self) -> Status;
    /// Releases the disk `<vm>/<backup>/disk<N>` (`latest` is a backup too);
    /// answers with a sentence.
    fn release(&self, path: &str) -> Result<String>;
    /// Mounts a disk of a backup.
    fn mount(&self, backup_id: &str, disk_index: u32) -> Result<Mount>;
    /// Ends a mount.
    fn unmount(&self, mount_id: &str) -> Result<()>;
    /// These mounts were used; must not wait.
    fn touch(&self, mount_ids: &[String]);
    /// Whether the disks of a backup can be read.
    fn check(&self, backup_id: &str) -> Result<Vec<DiskCheck>>;
}

/// The right to be the one daemon of a runtime folder. Given up when dropped, or
/// when the process ends, however it ends.
pub(crate) struct Instance {
    listener: UnixListener,
    socket: PathBuf,
    // Held, never read: the lock is what makes this instance the only one.
    _lock: Flock<File>,
}

impl Instance {
    /// Makes the runtime folder if it is not there (0750 for `group`, 0700 if there
    /// is no such group), takes the lock, and opens the control socket in place of one that
    /// a dead daemon left.
    ///
    /// # Errors
    /// `Invalid` if a daemon is running already (its process id is named), or if
    /// the folder belongs to somebody else; `Io` from the host.
    pub(crate) fn claim(runtime_dir: &Path, group: &str) -> Result<Self> {
        make_folder(runtime_dir, group)?;
        let lock = take_lock(&runtime_dir.join(LOCK), runtime_dir)?;
        let socket = runtime_dir.join(SOCKET);
        clear_socket(&socket, runtime_dir)?;
        let failed = |e| Error::io(socket.display().to_string(), e);
        let listener = UnixListener::bind(&socket).map_err(failed)?;
        let mode = if give_to_group(&socket, group) {
            0o660
        } else {
            0o600
        };
        fs::set_permissions(&socket, fs::Permissions::from_mode(mode)).map_err(failed)?;
        Ok(Self {
            listener,
            socket,
            _lock: lock,
        })
    }

    /// Answers requests until the returned server is dropped; `api_user` is the
    /// user of the HTTP side.
    ///
    /// # Errors
    /// `Io` if no thread can be started.
    pub(crate) fn serve(self, handler: Arc<dyn ControlHandler>, api_user: &str) -> Result<Server> {
        let crowd = Arc::new(Crowd::trusting(api_user));
        let listener = self
            .listener
            .try_clone()
            .map_err(|e| Error::io(self.socket.display().to_string(), e))?;
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&listener, &handler, &crowd))
            .map_err(|e| Error::io("control thread", e))?;
        Ok(Server {
            instance: self,
            thread: Some(thread),
        })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Before the lock goes: nobody else can have put a socket here.
        let _ = fs::remove_file(&self.socket);
    }
}

/// The control socket at work.
pub(crate) struct Server {
    instance: Instance,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes the thread that accepts: on Linux accept() then fails with EINVAL.
        let _ = nix::sys::socket::shutdown(
            self.instance.listener.as_raw_fd(),
            nix::sys::socket::Shutdown::Both,
        );
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn make_folder(path: &Path, group: &str) -> Result<()> {
    let name = path.display().to_string();
    let failed = |e| Error::io(name.clone(), e);
    if let Some(above) = path.parent() {
        fs::create_dir_all(above).map_err(failed)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {
            // Only a folder that we made: another may be everybody's, as /run is.
            let mode = if give_to_group(path, group) {
                0o750
            } else {
                0o700
            };
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
        }
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        Err(e) => return Err(failed(e)),
    }
    let meta = fs::metadata(path).map_err(failed)?;
    let user = Uid::effective().as_raw();
    if !meta.is_dir() {
        return Err(Error::Invalid(format!(
            "runtime_dir {name}: is not a folder"
        )));
    }
    if meta.uid() != user && user != 0 {
        return Err(Error::Invalid(format!(
            "runtime_dir {name} belongs to user {}; choose another, or remove it",
            meta.uid()
        )));
    }
    if meta.mode() & 0o002 != 0 {
        return Err(Error::Invalid(format!(
            "runtime_dir {name} is writable for every user of this host; choose a folder of the \
             daemon's own"
        )));
    }
    Ok(())
}

/// Whether `path` belongs to `group` now.
fn give_to_group(path: &Path, group: &str) -> bool {
    let Ok(Some(group)) = Group::from_name(group) else {
        return false;
    };
    nix::unistd::chown(path, None, Some(group.gid)).is_ok()
}

fn take_lock(path: &Path, runtime_dir: &Path) -> Result<Flock<File>> {
    let failed = |e| Error::io(path.display().to_string(), e);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0).map_err(failed)?;
            lock.rewind().map_err(failed)?;
            writeln!(lock, "{}", std::process::id()).map_err(failed)?;
            Ok(lock)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut text = String::new();
            let _ = Read::by_ref(&mut file).take(32).read_to_string(&mut text);
            Err(running(text.trim(), runtime_dir))
        }
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

fn running(pid: &str, runtime_dir: &Path) -> Error {
    let pid = if pid.is_empty() {
        String::new()
    } else {
        format!(" (process {pid})")
    };
    Error::Invalid(format!(
        "already running{pid} with runtime_dir {}; stop it first, or choose another runtime_dir",
        runtime_dir.display()
    ))
}

/// Removes the socket of a daemon that is gone. We hold the lock; a daemon that
/// answers nevertheless lost its lock file, and lives.
fn clear_socket(socket: &Path, runtime_dir: &Path) -> Result<()> {
    let failed = |e| Error::io(socket.display().to_string(), e);
    match UnixStream::connect(socket) {
        Ok(_) => {
            let answer = Client::at(runtime_dir).ask(&Request::Status, Duration::from_secs(2));
            let pid = match answer {
                Ok(Answer::Status(status)) => status.pid.to_string(),
                _ => String::new(),
            };
            Err(running(&pid, runtime_dir))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(socket).map_err(failed)
        }
        Err(e) => Err(failed(e)),
    }
}

fn accept(listener: &UnixListener, handler: &Arc<dyn ControlHandler>, crowd: &Arc<Crowd>) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.raw_os_error() == Some(nix::libc::EINVAL) => return,
            Err(e) => {
                tracing::warn!("control socket: {e}");
                // No descriptors left, say: it would fail at once again.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let place = Crowd::admit(crowd, &stream);
        let (Some(place), handler) = (place, Arc::clone(handler)) else {
            continue; // closed: the client says that the daemon hung up
        };
        let started = std::thread::Builder::new()
            .name("control client".into())
            .spawn(move || {
                let _place = place;
                if let Err(e) = converse(&stream, handler.as_ref()) {
                    tracing::debug!("control socket: {e}");
                }
            });
        if let Err(e) = started {
            tracing::warn!("control socket: {e}");
        }
    }
}

/// Who is being answered. Each user has places of their own, so that clients which
/// stall hold up only those of the same user.
struct Crowd {
    trusted: Vec<u32>,
    /// By user id.
    present: Mutex<HashMap<u32, usize>>,
}

impl Crowd {
    fn trusting(api_user: &str) -> Self {
        let user = User::from_name(api_user).ok().flatten();
        let mut trusted = vec![Uid::effective().as_raw()];
        trusted.extend(user.map(|user| user.uid.as_raw()));
        Self {
            trusted,
            present: Mutex::default(),
        }
    }

    fn admit(crowd: &Arc<Self>, stream: &UnixStream) -> Option<Place> {
        let user = getsockopt(stream, PeerCredentials).ok()?.uid();
        let limit = if crowd.trusted.contains(&user) {
            TRUSTED_CLIENTS
        } else {
            CLIENTS
        };
        let mut present = crowd.present.lock();
        let places = present.entry(user).or_default();
        if *places >= limit {
            return None;
        }
        *places = places.saturating_add(1);
        Some(Place {
            crowd: Arc::clone(crowd),
            user,
        })
    }
}

/// The place of one client, given back when dropped.
struct Place {
    crowd: Arc<Crowd>,
    user: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut present = self.crowd.present.lock();
        if let Some(places) = present.get_mut(&self.user) {
            *places = places.saturating_sub(1);
            if *places == 0 {
                present.remove(&self.user);
            }
        }
    }
}

/// Answers a client's requests until it hangs up.
fn converse(stream: &UnixStream, handler: &dyn ControlHandler) -> std::io::Result<()> {
    stream.set_write_timeout(Some(DEADLINE))?;
    let mut reader = BufReader::new(Patient {
        stream,
        deadline: Instant::now(),
    });
    loop {
        reader.get_mut().deadline = Instant::now() + DEADLINE;
        let mut line = Vec::new();
        (&mut reader)
            .take(REQUEST_LIMIT)
            .read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        let complete = line.ends_with(b"\n");
        let answer = if !complete && line.len() as u64 >= REQUEST_LIMIT {
            refusal(format!("the request is longer than {REQUEST_LIMIT} bytes"))
        } else {
            answer(&line, handler)
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        (&*stream).write_all(&line)?;
        if !complete {
            return Ok(());
        }
    }
}

fn answer(line: &[u8], handler: &dyn ControlHandler) -> Answer {
    let request = match serde_json::from_slice::<Request>(line) {
        Ok(request) => request,
        Err(e) => return refusal(format!("the request is not understood: {e}")),
    };
    let answered = match request {
        Request::Status => Ok(Answer::Status(Box::new(handler.status()))),
        Request::Release { path } => handler
            .release(&path)
            .map(|message| Answer::Released { message }),
        Request::Mount {
            backup_id,
            disk_index,
        } => handler
            .mount(&backup_id, disk_index)
            .map(|mount| Answer::Mounted {
                mount: Box::new(mount),
            }),
        Request::Unmount { mount_id } => handler.unmount(&mount_id).map(|()| Answer::Unmounted),
        Request::Touch { mount_ids } => {
            handler.touch(&mount_ids);
            Ok(Answer::Touched)
        }
        Request::Check { backup_id } => handler
            .check(&backup_id)
            .map(|disks| Answer::Checked { disks }),
    };
    answered.unwrap_or_else(|error| Answer::Error {
        message: error.to_string(),
        fault: Some((&error).into()),
    })
}

fn refusal(message: String) -> Answer {
    Answer::Error {
        message,
        fault: None,
    }
}

/// Reads with one deadline for a whole request, so that a client that sends a
/// byte now and then does not keep its place.
struct Patient<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Read for Patient<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buf)
    }
}
