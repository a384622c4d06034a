mod caching;
mod ending;
mod reading;
mod restarts;
mod servers;

use super::session::MAX_STARTS;
use super::*;
use crate::image::chain::Chain;
use crate::image::qemu_nbd::Process;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Instant;

/// A repository and a runtime directory of its own.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("repo")).unwrap();
        Self { dir }
    }

    fn repo(&self, name: &str) -> PathBuf {
        self.dir.path().join("repo").join(name)
    }

    fn options(&self) -> ExportOptions {
        ExportOptions {
            runtime_dir: self.dir.path().join("run"),
            repositories: vec![self.dir.path().join("repo")],
            connections: 2,
            request_timeout: Duration::from_secs(20),
            start_timeout: Duration::from_secs(10),
        }
    }

    fn sockets(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("run")).map_or(0, Iterator::count)
    }

    fn create(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let path = self.repo(name);
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2"]);
        command.args(
            arguments
                .iter()
                .filter(|a| a.starts_with('-') || !a.ends_with('M')),
        );
        command
            .arg(&path)
            .args(arguments.iter().filter(|a| a.ends_with('M')));
        run(command.current_dir(self.dir.path().join("repo")));
        path
    }

    fn write(&self, image: &Path, commands: &[&str]) {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "qcow2"]);
        command.args(commands.iter().flat_map(|c| ["-c", c]));
        run(command.arg(image).current_dir(self.dir.path().join("repo")));
    }

    /// What `qemu-img convert` makes of an image.
    fn raw(&self, image: &Path) -> Vec<u8> {
        let out = self.dir.path().join("converted");
        run(Command::new("qemu-img")
            .args(["convert", "-f", "qcow2", "-O", "raw"])
            .arg(image)
            .arg(&out)
            .current_dir(self.dir.path().join("repo")));
        std::fs::read(out).unwrap()
    }

    /// An image of 64 MiB with some data.
    fn image(&self) -> PathBuf {
        let image = self.create("disk.qcow2", &["64M"]);
        let writes = [
            "write -P 0x41 0 64k",
            "write -P 0x42 1000000 123456",
            "write -P 0x43 32M 8M",
            "write -z 34M 1M",
            "write -P 0x44 66060288 1M",
        ];
        self.write(&image, &writes);
        image
    }

    /// An export served by nbdkit.
    fn nbdkit(&self, arguments: &[&str], options: &ExportOptions) -> Result<Arc<Export>> {
        let socket = qemu_nbd::socket(&options.runtime_dir)?;
        let uri = socket.uri();
        let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
        let launch = move || {
            let mut command = Command::new("nbdkit");
            command
                .args(["-f", "-r", "-U"])
                .arg(socket.path())
                .args(&arguments);
            let process = Process::spawn("nbdkit", command, "nbdkit".into(), &socket)?;
            Ok((process, Chain::default()))
        };
        Export::launch(Path::new("nbdkit"), uri, Box::new(launch), options)
    }
}

fn run(command: &mut Command) {
    let out = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?} is needed: {e}"));
    assert!(
        out.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal).unwrap();
}

fn read(export: &Export, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0xEE; len];
    export.read_at(offset, &mut buf).map(|()| buf)
}

fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Counts completions and says when all have come.
#[derive(Default)]
struct Tally {
    answers: Mutex<HashMap<usize, Vec<Result<BytesMut>>>>,
    more: Condvar,
}

impl Tally {
    fn slot(self: &Arc<Self>, id: usize) -> Completion {
        let tally = Arc::clone(self);
        Box::new(move |result| {
            tally.answers.lock().entry(id).or_default().push(result);
            tally.more.notify_all();
        })
    }

    /// The answers to requests `0..n`; each must have come exactly once.
    fn wait(&self, n: usize) -> Vec<Result<BytesMut>> {
        let mut answers = self.answers.lock();
        while answers.len() < n {
            let late = self
                .more
                .wait_for(&mut answers, Duration::from_secs(30))
                .timed_out();
            assert!(!late, "only {} of {n} came", answers.len());
        }
        assert!(
            answers.values().all(|a| a.len() == 1),
            "an answer came twice"
        );
        (0..n)
            .map(|i| answers.remove(&i).unwrap().remove(0))
            .collect()
    }
}
