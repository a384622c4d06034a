//! The real program, serving.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Lab, qemu_nbds, wait_for};

/// A running `sendense serve`; killed on drop, its mount cleared.
pub struct Daemon {
    pub child: Child,
    mountpoint: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Starts it and waits until the tree is there.
    pub fn start(lab: &Lab) -> Self {
        let log = lab.path("log");
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_sendense"))
            .arg("--config")
            .arg(lab.config())
            .arg("serve")
            .env("SENDENSE_LOG", "sendense=debug,info")
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let mut daemon = Self {
            child,
            mountpoint: lab.mountpoint(),
            log,
        };
        let limit = Duration::from_secs(15);
        let began = std::time::Instant::now();
        while !daemon.is_mounted() || !lab.path("run/control.sock").exists() {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("serve ended with {status}:\n{}", daemon.log());
            }
            assert!(
                began.elapsed() < limit,
                "serve did not mount:\n{}",
                daemon.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    pub fn is_mounted(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let ours = format!(" {} fuse", self.mountpoint.display());
        // `stat` would be answered from the kernel's cache for a while.
        mounts.contains(&ours) && nix::sys::statvfs::statvfs(&self.mountpoint).is_ok()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn qemu_nbds(&self) -> Vec<u32> {
        qemu_nbds(self.pid())
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Ends it as systemd does; it has to leave nothing behind.
    pub fn stop(mut self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let status = self.wait(Duration::from_secs(10));
        assert!(
            status.success(),
            "serve ended with {status}:\n{}",
            self.log()
        );
    }

    /// Ends it as a crash does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::forget(self);
    }

    pub fn wait(&mut self, limit: Duration) -> std::process::ExitStatus {
        let mut status = None;
        wait_for("the daemon's end", limit, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.mountpoint)
            .stderr(Stdio::null())
            .status();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- the daemon's log");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}
