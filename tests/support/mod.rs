//! What the end-to-end tests stand on: real images in a repository, the real
//! program with a real mount, and the kernel's own view to compare with.
//!
//! The tests need root (loop devices, mounts) and say so when they do not have
//! it. Everything lives in one temporary folder per test and is gone after it.
#![allow(dead_code, missing_docs, unreachable_pub)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

pub mod daemon;
pub mod facts;
pub mod http;
pub mod images;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

pub use daemon::Daemon;
#[allow(unused_imports)]
pub use facts::{assert_same, facts};

/// A folder for one test: repository, mountpoint, state.
pub struct Lab {
    pub dir: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests need root (loop devices and mounts): run them with sudo"
        );
        let dir = tempfile::Builder::new()
            .prefix("sendense-test-")
            .tempdir()
            .unwrap();
        let lab = Self { dir };
        for sub in ["repository", "work", "state", "run", "gate/backups"] {
            std::fs::create_dir_all(lab.path(sub)).unwrap();
        }
        run("chmod", ["0750".as_ref(), lab.path("gate").as_os_str()]);
        lab
    }

    pub fn path(&self, sub: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(sub)
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.path("gate/backups")
    }

    pub fn config(&self) -> PathBuf {
        self.path("sendense.toml")
    }

    /// Writes the configuration; `extra` holds further lines of TOML. There is no
    /// HTTP side unless they say so: many tests run at once, and its port is one.
    pub fn configure(&self, extra: &str) {
        let api = if extra.contains("api =") {
            ""
        } else {
            "api = false\n"
        };
        let text = format!(
            "{api}mountpoint = {:?}\nrepositories = [{:?}]\nstate_dir = {:?}\nruntime_dir = {:?}\n{extra}\n",
            self.mountpoint(),
            self.path("repository"),
            self.path("state"),
            self.path("run"),
        );
        std::fs::write(self.config(), text).unwrap();
    }

    /// Runs the program with this lab's configuration.
    pub fn sendense<I, S>(&self, args: I) -> Output
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        Command::new(env!("CARGO_BIN_EXE_sendense"))
            .arg("--config")
            .arg(self.config())
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs the program, which has to succeed; returns what it printed.
    pub fn sendense_ok<I, S>(&self, args: I) -> String
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        succeeded(self.sendense(args))
    }

    /// Scans the repository into the catalog.
    pub fn scan(&self) -> String {
        self.sendense_ok([
            "catalog".as_ref(),
            "scan".as_ref(),
            self.path("repository").as_os_str(),
        ])
    }
}

impl Drop for Lab {
    /// A daemon that was killed leaves its mount, as it should; it is not to outlive the
    /// test.
    fn drop(&mut self) {
        let ours = format!(" {} ", self.mountpoint().display());
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for _ in mounts.lines().filter(|line| line.contains(&ours)) {
            let _ = Command::new("umount")
                .arg("-l")
                .arg(self.mountpoint())
                .status();
        }
    }
}

/// Runs a program that has to succeed; returns what it printed.
pub fn run<I, S>(program: &str, args: I) -> String
where
    I: IntoIterator<Item = S>,
    S: AsRef<std::ffi::OsStr>,
{
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; run scripts/setup --test"));
    succeeded(output)
}

/// Runs a shell script that has to succeed; returns what it printed.
pub fn shell(script: &str) -> String {
    run("bash", ["-euo", "pipefail", "-c", script])
}

pub fn succeeded(output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}\n{stdout}\n{stderr}",
        output.status
    );
    stdout.into_owned()
}

/// Waits until `done` says so.
pub fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The `qemu-nbd` children of a process.
pub fn qemu_nbds(parent: u32) -> Vec<u32> {
    let out = Command::new("pgrep")
        .args(["-P", &parent.to_string(), "-x", "qemu-nbd"])
        .output()
        .unwrap();
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect()
}
