//! The side of `sendense status` and `sendense release`.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sendense::{Error, Result};

use super::message::{Answer, Request, Status};
use super::{ANSWER_LIMIT, SOCKET};
use crate::config::{Config, Origin};

/// The daemon answers within this; a release may have to wait for reads under way.
const PATIENCE: Duration = Duration::from_secs(60);

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
        match self.ask(&Request::Status, PATIENCE)? {
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

    pub(super) fn ask(&self, request: &Request, patience: Duration) -> Result<Answer> {
        let stream = UnixStream::connect(&self.socket).map_err(|e| self.no_connection(&e))?;
        let failed = |e: std::io::Error| match e.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::TimedOut {
                what: format!("the daemon at {}", self.socket.display()),
                after: patience,
            },
            _ => Error::io(format!("the daemon at {}", self.socket.display()), e),
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
            Ok(Answer::Error { message }) => Err(Error::Invalid(message)),
            Ok(answer) => Ok(answer),
            Err(_) if answer.is_empty() => Err(Error::Invalid(format!(
                "the daemon at {} hung up without an answer; its log says why",
                self.socket.display()
            ))),
            Err(e) => Err(Error::Invalid(format!(
                "the daemon at {} gave an answer that this version does not understand: {e}",
                self.socket.display()
            ))),
        }
    }

    fn no_connection(&self, error: &std::io::Error) -> Error {
        let socket = self.socket.display();
        Error::Invalid(match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                format!("the daemon is not running (nobody answers at {socket})")
            }
            ErrorKind::PermissionDenied => format!(
                "you may not ask the daemon: {socket} is for its user and group only; become a \
                 member of the group, or use sudo"
            ),
            _ => format!("{socket}: {error}"),
        })
    }

    fn unexpected(&self, answer: &Answer) -> Error {
        let kind = match answer {
            Answer::Status(_) => "a status",
            Answer::Released { .. } => "a release",
            Answer::Error { .. } => "an error",
        };
        Error::Invalid(format!(
            "the daemon at {} answered with {kind}",
            self.socket.display()
        ))
    }
}
