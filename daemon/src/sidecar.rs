//! The HTTP side as a child of the daemon.
//!
//! The idea: it is a process of its own, so that what reads requests of strangers
//! has neither the daemon's rights nor its memory. Here it is started with the
//! daemon's own configuration, started again when it dies, and ended before the tree
//! is unmounted. It cannot outlive the daemon: the kernel kills it, by a bond which
//! it has to renew when it changes its user ([`Bond`]).

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use parking_lot::Mutex;
use sendense::{Error, Result, sys};

use crate::config::Config;
use crate::control::ApiState;

/// The pause before it is started again: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// After so long a life, the pauses begin anew.
const SETTLED: Duration = Duration::from_secs(60);

/// How often it is looked whether it still runs.
const LOOK: Duration = Duration::from_millis(50);

/// How long it may take to end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The exit status that says that trying again is no use.
const HOPELESS: i32 = crate::api::EX_CONFIG as i32;

/// What is shown of it before it is started, and for good if it is not.
pub(crate) fn state(config: &Config) -> Arc<Mutex<ApiState>> {
    Arc::new(Mutex::new(ApiState {
        state: if config.api { "starting" } else { "off" }.into(),
        listen: config.listen.to_string(),
        ..ApiState::default()
    }))
}

/// Keeps the HTTP side running until it is dropped.
pub(crate) struct Sidecar {
    watcher: Option<(SyncSender<()>, JoinHandle<()>)>,
}

impl Sidecar {
    /// Starts it, unless the configuration says not to; `state` follows what
    /// becomes of it.
    ///
    /// # Errors
    /// `Io` if no thread can be started. That the program does not start is no error
    /// here: the tree is there without it.
    pub(crate) fn start(config: &Config, state: Arc<Mutex<ApiState>>) -> Result<Self> {
        if !config.api {
            return Ok(Self { watcher: None });
        }
        let mut arguments = config.arguments();
        arguments.push("api".into());
        let command = move || {
            let mut command = Command::new(program());
            command.args(&arguments).stdin(Stdio::null());
            // Ctrl-C is for the daemon, which ends it in its turn.
            command.process_group(0);
            command
        };
        Self::watch(Box::new(command), state)
    }

    fn watch(
        command: Box<dyn Fn() -> Command + Send>,
        state: Arc<Mutex<ApiState>>,
    ) -> Result<Self> {
        let (stop, stopped) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("http side".into())
            .spawn(move || keep_running(&command, &state, &stopped))
            .map_err(|e| Error::io("the thread of the HTTP side", e))?;
        Ok(Self {
            watcher: Some((stop, thread)),
        })
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.watcher.take() {
            let _ = stop.try_send(());
            let _ = thread.join();
        }
    }
}

/// This program's file; what it was started from, where it was replaced meanwhile.
fn program() -> PathBuf {
    let itself = PathBuf::from("/proc/self/exe");
    match std::env::current_exe() {
        Ok(path) if path.exists() => path,
        _ => itself,
    }
}

fn keep_running(command: &dyn Fn() -> Command, state: &Mutex<ApiState>, stopped: &Receiver<()>) {
    let (first, longest) = PAUSES;
    let mut pause = first;
    loop {
        let began = Instant::now();
        let (why, hopeless) = match sys::spawn_bound(command()) {
            Ok(child) => {
                let pid = child.id();
                tracing::info!(pid, "the HTTP side is started");
                {
                    let mut state = state.lock();
                    state.state = "running".into();
                    state.pid = Some(pid);
                }
                match ended(child, stopped) {
                    Some(status) => (
                        format!("ended with {}", explain(status)),
                        status.code() == Some(HOPELESS),
                    ),
                    None => return,
                }
            }
            Err(error) => (format!("cannot be started: {error}"), false),
        };
        if began.elapsed() >= SETTLED {
            pause = first;
        }
        {
            let mut state = state.lock();
            state.state = "failed".into();
            state.pid = None;
            state.error = Some(why.clone());
        }
        if hopeless {
            tracing::error!(
                "the HTTP side {why}: its configuration is at fault; going on without it"
            );
            let _ = stopped.recv();
            return;
        }
        tracing::error!(again_in = ?pause, "the HTTP side {why}");
        if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        pause = pause.saturating_mul(2).min(longest);
        let mut state = state.lock();
        state.restarts = state.restarts.saturating_add(1);
    }
}

/// Waits for the end of the child; `None` if it was to be ended, and has.
fn ended(mut child: Child, stopped: &Receiver<()>) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return Some(status),
            // Somebody else has waited for it.
            Err(error) => {
                tracing::warn!(%error, "the HTTP side cannot be waited for");
                return Some(ExitStatus::from_raw(0));
            }
        }
        if stopped.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
            end(child);
            return None;
        }
    }
}

/// Asks the child to end, and then insists.
fn end(mut child: Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let began = Instant::now();
    while began.elapsed() < LAST_WORDS {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    tracing::warn!("the HTTP side does not end; killed");
    let _ = child.kill();
    let _ = child.wait();
}

fn explain(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => match signal_hook::low_level::signal_name(signal) {
            Some(name) => name.to_owned(),
            None => format!("signal {signal}"),
        },
        _ => status.to_string(),
    }
}

/// The bond of the HTTP side to the daemon that has started it: the kernel kills it
/// when the daemon ends. A process loses such a bond when it changes its user or its
/// group, and then has to renew it.
#[derive(Debug)]
pub(crate) struct Bond {
    signal: Option<Signal>,
    parent: Pid,
}

impl Bond {
    /// The bond that this process was started with; to be asked before anything
    /// changes its user. There is none where something else than the daemon has
    /// started it.
    ///
    /// # Errors
    /// `Io` from the kernel.
    pub(crate) fn inherited() -> Result<Self> {
        Ok(Self {
            parent: getppid(),
            signal: prctl::get_pdeathsig().map_err(failed)?,
        })
    }

    /// Binds the process again, after it has changed its user.
    ///
    /// # Errors
    /// `Io` from the kernel, or if the daemon has ended meanwhile.
    pub(crate) fn renew(&self) -> Result<()> {
        if self.signal.is_none() {
            return Ok(());
        }
        prctl::set_pdeathsig(self.signal).map_err(failed)?;
        if getppid() == self.parent {
            Ok(())
        } else {
            Err(Error::Daemon("the daemon has ended".into()))
        }
    }
}

fn failed(errno: nix::errno::Errno) -> Error {
    Error::io("the bond to the daemon", errno.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(script: &'static str) -> (Sidecar, Arc<Mutex<ApiState>>) {
        let state = Arc::new(Mutex::new(ApiState::default()));
        let command = move || {
            let mut command = Command::new("bash");
            command.args(["-c", script]);
            command
        };
        let sidecar = Sidecar::watch(Box::new(command), Arc::clone(&state)).unwrap();
        (sidecar, state)
    }

    fn wait_for(what: &str, limit: Duration, done: impl Fn() -> bool) {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < limit, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn alive(pid: u32) -> bool {
        PathBuf::from(format!("/proc/{pid}")).exists()
    }

    #[test]
    fn what_dies_is_started_again_and_later_each_time() {
        let (sidecar, state) = watch("exit 3");
        wait_for("three restarts", Duration::from_secs(5), || {
            state.lock().restarts >= 3
        });
        // 0.2 + 0.4 + 0.8 s of pauses have passed, and the next is of 1.6 s.
        wait_for("the fourth death", Duration::from_secs(1), || {
            state.lock().state == "failed"
        });
        assert_eq!(state.lock().error.as_deref(), Some("ended with status 3"));
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(state.lock().restarts, 3);
        let began = Instant::now();
        drop(sidecar);
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn a_bad_configuration_is_not_tried_again() {
        let (sidecar, state) = watch("exit 78");
        wait_for("the end", Duration::from_secs(5), || {
            state.lock().state == "failed"
        });
        std::thread::sleep(Duration::from_millis(600));
        let now = state.lock().clone();
        assert_eq!((now.restarts, now.pid), (0, None));
        drop(sidecar);
    }

    #[test]
    fn it_is_asked_to_end_and_then_made_to() {
        let (sidecar, state) = watch("trap 'exit 0' TERM; while :; do sleep 0.01; done");
        wait_for("its start", Duration::from_secs(5), || {
            state.lock().state == "running"
        });
        let pid = state.lock().pid.unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let began = Instant::now();
        drop(sidecar);
        assert!(began.elapsed() < Duration::from_secs(2) && !alive(pid));

        let (sidecar, state) = watch("trap '' TERM; while :; do sleep 0.01; done");
        wait_for("its start", Duration::from_secs(5), || {
            state.lock().state == "running"
        });
        let pid = state.lock().pid.unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let began = Instant::now();
        drop(sidecar);
        let took = began.elapsed();
        assert!(took >= LAST_WORDS && took < LAST_WORDS * 2 && !alive(pid));
    }
}
