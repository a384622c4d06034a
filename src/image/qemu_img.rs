//! A question to `qemu-img`, with an end: time and output are bounded.

use crate::error::{Error, Result};
use crate::image::reaper;
use crate::sys::spawn_bound;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long an answer may take; a repository on a network can be slow.
const TIMEOUT: Duration = Duration::from_secs(30);
/// More output than this (a chain of thousands of images) is not read.
const MAX_OUTPUT: usize = 32 << 20;

/// Runs `qemu-img` in `folder` with these arguments, the image last, and returns
/// its output.
///
/// # Errors
/// `Qemu` with what the program said, `TimedOut`.
pub(crate) fn run(arguments: &[&str], image: &Path, folder: &Path) -> Result<Vec<u8>> {
    let failed = |reason: String| Error::Qemu {
        program: "qemu-img",
        path: image.to_owned(),
        reason,
    };
    let mut command = Command::new("qemu-img");
    command.args(arguments).arg(image).current_dir(folder);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = spawn_bound(command).map_err(|e| failed(format!("cannot be started: {e}")))?;
    let answer = (|| {
        let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(failed("no pipe".into()));
        };
        let said = drain(out, err).map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut => Error::TimedOut {
                what: format!("qemu-img for {}", image.display()),
                after: TIMEOUT,
            },
            _ => failed(e.to_string()),
        })?;
        let status = child.wait().map_err(|e| failed(e.to_string()))?;
        if status.success() {
            Ok(said.0)
        } else {
            let said = String::from_utf8_lossy(&said.1);
            let said = said.trim().trim_start_matches("qemu-img: ");
            Err(failed(if said.is_empty() {
                status.to_string()
            } else {
                said.to_owned()
            }))
        }
    })();
    if answer.is_err() {
        reaper::end(child);
    }
    answer
}

/// Reads both pipes to their ends.
fn drain(mut out: impl Read + AsFd, mut err: impl Read + AsFd) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let deadline = Instant::now().checked_add(TIMEOUT);
    let (mut said, mut complaints) = (Vec::new(), Vec::new());
    let (mut out_open, mut err_open) = (true, true);
    let mut block = [0; 16384];
    while out_open || err_open {
        let left = deadline.map_or(TIMEOUT, |d| d.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let left = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        let wanted = |open| {
            if open {
                PollFlags::POLLIN
            } else {
                PollFlags::empty()
            }
        };
        let (out_ready, err_ready) = {
            let mut fds = [
                PollFd::new(out.as_fd(), wanted(out_open)),
                PollFd::new(err.as_fd(), wanted(err_open)),
            ];
            match poll(&mut fds, left) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            let [out, err] = &fds;
            (out.any() == Some(true), err.any() == Some(true))
        };
        for (ready, open, from, to) in [
            (
                out_ready,
                &mut out_open,
                &mut out as &mut dyn Read,
                &mut said,
            ),
            (err_ready, &mut err_open, &mut err, &mut complaints),
        ] {
            if ready && *open {
                let n = from.read(&mut block)?;
                *open = n > 0;
                to.extend(block.iter().take(n));
                if to.len() > MAX_OUTPUT {
                    return Err(io::Error::other("it says too much"));
                }
            }
        }
    }
    Ok((said, complaints))
}
