//! The side of `sendense status`, `sendense release` and the HTTP side.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::TimeVal;
use sendense::catalog::Mount;
use sendense::{Error, Result};

use super::message::{Answer, DiskCheck, Request, Status};
use super::{ANSWER_LIMIT, SOCKET};
use crate::config::{Config, Origin};

/// The daemon answers within this; a release may have to wait for reads under way.
const PATIENCE: Duration = Duration::from_secs(60);

/// The daemon has limits of its own for what takes long, and says so when they are
/// reached; this only has to be longer.
const LONG_PATIENCE: Duration = Duration::from_secs(300);

/// This many UUIDs fit into a request.
const TOUCHED_AT_ONCE: usize = 1000;

/// Speaks to the daemon of a runtime folder.
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// The daemon that uses this configuration. An ordinary user who did not
    /// choose a runtime folder means their own daemon, or else the system's.
    pub(crate) fn new(config: &Config) -> Self {
        let own = config.runtime_dir.join(SOCKET);
        let system = Path::new("/run/sendense").join(SOCKET);
        let chosen = config.uid == 0 || config.origin("runtime_dir") != &Origin::Default;
        if chosen || UnixStream::connect(&own).is_ok() || !system.exists() {
            Self { socket: own }
        } else {
            Self { socket: system }
        }
    }

    /// The daemon behind this socket.
    pub(super) fn at(runtime_dir: &Path) -> Self {
        Self {
            socket: runtime_dir.join(SOCKET),
        }
    }

    /// How the daemon is.
    ///
    /// # Errors
    /// A sentence: it does not run, may not be asked, or does not answer.
    pub(crate) fn status(&self) -> Result<Status> {
        self.status_within(PATIENCE)
    }

    /// How the daemon is, if it says so within `limit`.
    ///
    /// # Errors
    /// As for [`Client::status`]; `TimedOut`.
    pub(crate) fn status_within(&self, limit: Duration) -> Result<Status> {
        match self.ask(&Request::Status, limit)? {
            Answer::Status(status) => Ok(*status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Releases a disk; returns what happened, as a sentence.
    ///
    /// # Errors
    /// As for [`Client::status`], and what the daemon says.
    pub(crate) fn release(&self, path: &str) -> Result<String> {
        match self.ask(
            &Request::Release {
                path: path.to_owned(),
            },
            PATIENCE,
        )? {
            Answer::Released { message } => Ok(message),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Mounts a disk of a completed backup; returns when it can be read.
    ///
    /// # Errors
    /// `Unknown` for a backup or disk that is not there, `MountedAlready`, `NoSlot`,
    /// `Exhausted`, `TimedOut`; `Daemon` with why the disk cannot be read; as for
    /// [`Client::status`].
    pub(crate) fn mount(&self, backup_id: &str, disk_index: u32) -> Result<Mount> {
        let request = Request::Mount {
            backup_id: backup_id.to_owned(),
            disk_index,
        };
        match self.ask(&request, LONG_PATIENCE)? {
            Answer::Mounted { mount } => Ok(*mount),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Ends a mount.
    ///
    /// # Errors
    /// `Unknown` if there is none, `Expired` if it has ended for not being used; as
    /// for [`Client::status`].
    pub(crate) fn unmount(&self, id: &str) -> Result<()> {
        let request = Request::Unmount {
            mount_id: id.to_owned(),
        };
        match self.ask(&request, PATIENCE)? {
            Answer::Unmounted => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Says that these mounts were used just now. Those that are not there, or not
    /// any more, are passed over.
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub(crate) fn touch(&self, ids: &[String]) -> Result<()> {
        for mount_ids in ids.chunks(TOUCHED_AT_ONCE) {
            let request = Request::Touch {
                mount_ids: mount_ids.to_vec(),
            };
            match self.ask(&request, PATIENCE)? {
                Answer::Touched => {}
                other => return Err(self.unexpected(&other)),
            }
        }
        Ok(())
    }

    /// Whether the disks of a backup can be read, by index.
    ///
    /// # Errors
    /// `Unknown` if there is no such backup; as for [`Client::status`].
    pub(crate) fn check(&self, backup_id: &str) -> Result<Vec<DiskCheck>> {
        let request = Request::Check {
            backup_id: backup_id.to_owned(),
        };
        match self.ask(&request, LONG_PATIENCE)? {
            Answer::Checked { disks } => Ok(disks),
            other => Err(self.unexpected(&other)),
        }
    }

    pub(super) fn ask(&self, request: &Request, patience: Duration) -> Result<Answer> {
        let stream = connect(&self.socket, patience).map_err(|e| self.no_connection(&e))?;
        let failed = |e: std::io::Error| match e.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::NoDaemon(format!(
                "the daemon at {} did not answer within {patience:?}",
                self.socket.display()
            )),
            _ => Error::NoDaemon(format!("the daemon at {}: {e}", self.socket.display())),
        };
        stream.set_read_timeout(Some(patience)).map_err(failed)?;
        stream.set_write_timeout(Some(patience)).map_err(failed)?;
        let mut line = serde_json::to_vec(request)
            .map_err(|e| Error::Invalid(format!("the request cannot be sent: {e}")))?;
        line.push(b'\n');
        (&stream).write_all(&line).map_err(failed)?;
        let mut answer = Vec::new();
        BufReader::new((&stream).take(ANSWER_LIMIT))
            .read_until(b'\n', &mut answer)
            .map_err(failed)?;
        match serde_json::from_slice(&answer) {
            Ok(Answer::Error {
                message,
                fault: Some(fault),
            }) => Err(fault.into_error(message)),
            Ok(Answer::Error {
                message,
                fault: None,
            }) => Err(Error::Invalid(message)),
            Ok(answer) => Ok(answer),
            Err(_) if answer.is_empty() => Err(Error::NoDaemon(format!(
                "the daemon at {} hung up without an answer; its log says why",
                self.socket.display()
            ))),
            Err(e) => Err(Error::Daemon(format!(
                "the daemon at {} gave an answer that this version does not understand: {e}",
                self.socket.display()
            ))),
        }
    }

    fn no_connection(&self, error: &std::io::Error) -> Error {
        let socket = self.socket.display();
        Error::NoDaemon(match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                format!("the daemon is not running (nobody answers at {socket})")
            }
            ErrorKind::PermissionDenied => format!(
                "you may not ask the daemon: {socket} is for its user and group only; become a \
                 member of the group, or use sudo"
            ),
            ErrorKind::WouldBlock => format!("the daemon at {socket} does not answer"),
            _ => format!("{socket}: {error}"),
        })
    }

    fn unexpected(&self, answer: &Answer) -> Error {
        let kind = match answer {
            Answer::Status(_) => "a status",
            Answer::Released { .. } => "a release",
            Answer::Mounted { .. } => "a mount",
            Answer::Unmounted => "an unmount",
            Answer::Touched => "a touch",
            Answer::Checked { .. } => "a check",
            Answer::Error { .. } => "an error",
        };
        Error::Daemon(format!(
            "the daemon at {} answered with {kind}",
            self.socket.display()
        ))
    }
}

/// Connects, and does not wait for ever where a daemon was stopped and its queue is
/// full.
fn connect(path: &Path, limit: Duration) -> std::io::Result<UnixStream> {
    let socket = socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
    let limit = TimeVal::new(seconds, i64::from(limit.subsec_micros()));
    socket::setsockopt(&socket, sockopt::SendTimeout, &limit)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(socket))
}
