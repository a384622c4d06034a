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

#[test]
fn reads_what_qemu_img_reads() {
    let place = Place::new();
    let image = place.image();
    let truth = place.raw(&image);
    let export = Export::open(&image, "qcow2", &place.options()).unwrap();
    assert_eq!(export.size(), truth.len() as u64);
    assert!(
        read(&export, 0, truth.len()).unwrap() == truth,
        "the whole disk"
    );
    let mut at = 12345_usize;
    for step in 1..400_usize {
        at = (at * 31 + step * 7919) % truth.len();
        let len = (step * 977).min(truth.len() - at);
        assert!(
            read(&export, at as u64, len).unwrap() == truth[at..at + len],
            "{len} at {at}"
        );
    }
    assert_eq!(export.requests(), 8 + 399);
    assert!(export.bytes_read() > 64 << 20);
    assert!(read(&export, 5, 0).unwrap().is_empty());
    let end = export.size();
    assert!(matches!(
        read(&export, end - 1, 2),
        Err(Error::Corrupt { .. })
    ));
    assert!(matches!(
        read(&export, u64::MAX, 2),
        Err(Error::Corrupt { .. })
    ));
    let tally = Arc::new(Tally::default());
    export.submit(0, BytesMut::zeroed(33 << 20), tally.slot(0));
    export.submit(0, BytesMut::new(), tally.slot(1));
    let answers = tally.wait(2);
    assert!(matches!(answers[0], Err(Error::Invalid(_))));
    assert!(answers[1].is_ok());
    assert_eq!(export.restarts(), 0);
}

#[test]
fn a_chain_of_four_and_a_data_file() {
    let place = Place::new();
    place.image();
    let mut below = "disk.qcow2".to_owned();
    for (i, letter) in [(1, "0x61"), (2, "0x62"), (3, "0x63")] {
        let name = format!("inc{i}, \"odd\" %s: é.qcow2");
        let image = place.create(&name, &["-F", "qcow2", "-b", &format!("./{below}")]);
        place.write(
            &image,
            &[&format!("write -P {letter} {i}M 1500k"), "discard 0 64k"],
        );
        below = name;
    }
    let top = place.repo(&below);
    let truth = place.raw(&top);
    let export = Export::open(&top, "qcow2", &place.options()).unwrap();
    assert!(read(&export, 0, truth.len()).unwrap() == truth);

    let outer = place.create(
        "outer.qcow2",
        &["-o", "data_file=outer.data,data_file_raw=on", "8M"],
    );
    place.write(&outer, &["write -P 0x55 1M 1M"]);
    let truth = place.raw(&outer);
    let export = Export::open(&outer, "qcow2", &place.options()).unwrap();
    assert!(read(&export, 0, truth.len()).unwrap() == truth);
    let raw = Export::open(&place.repo("outer.data"), "raw", &place.options()).unwrap();
    assert!(read(&raw, 0, truth.len()).unwrap() == truth);
}

#[test]
fn an_image_in_use_elsewhere_is_readable() {
    let place = Place::new();
    let image = place.image();
    let mut writer = Command::new("qemu-io")
        .args(["-f", "qcow2"])
        .arg(&image)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Its prompt says that it has opened the image.
    let prompt = writer.stdout.as_mut().unwrap().read(&mut [0; 8]);
    assert!(prompt.unwrap() > 0);
    let mut other = Command::new("qemu-io");
    let out = other
        .args(["-f", "qcow2", "-c", "quit"])
        .arg(&image)
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("lock"),
        "{out:?}"
    );
    let export = Export::open(&image, "qcow2", &place.options()).unwrap();
    assert_eq!(read(&export, 0, 1).unwrap(), [0x41]);
    drop(writer.stdin.take());
    writer.wait().unwrap();
}

#[test]
fn block_status_is_that_of_qemu_img_map() {
    #[derive(serde::Deserialize)]
    struct Stretch {
        start: u64,
        length: u64,
        zero: bool,
    }
    let place = Place::new();
    let image = place.image();
    let out = Command::new("qemu-img")
        .args(["map", "-f", "qcow2", "--output=json"])
        .arg(&image)
        .output()
        .unwrap();
    let truth: Vec<Stretch> = serde_json::from_slice(&out.stdout).unwrap();
    let truth: Vec<_> = truth
        .into_iter()
        .map(|s| (s.start, s.length, s.zero))
        .collect();
    let joined = |list: Vec<(u64, u64, bool)>| {
        let mut out: Vec<(u64, u64, bool)> = Vec::new();
        for (start, len, zero) in list {
            match out.last_mut() {
                Some(last) if last.2 == zero => last.1 += len,
                _ => out.push((start, len, zero)),
            }
        }
        out
    };
    let truth = joined(truth);
    let export = Export::open(&image, "qcow2", &place.options()).unwrap();
    let (mut at, mut found) = (0, Vec::new());
    while at < export.size() {
        for Allocation { len, hole } in export.block_status(at, u64::MAX).unwrap() {
            found.push((at, len, hole));
            at += len;
        }
    }
    assert_eq!(joined(found), truth);
    assert!(truth.len() > 5, "{truth:?}");
    // A part is cut to what was asked.
    let part = export.block_status((32 << 20) + 5, 10).unwrap();
    assert_eq!(
        part,
        [Allocation {
            len: 10,
            hole: false
        }]
    );
    assert!(export.block_status(export.size(), 1).is_err());
}

#[test]
fn survives_kill_in_the_middle_of_many_reads() {
    let place = Place::new();
    let image = place.image();
    let truth = place.raw(&image);
    let export = Export::open(&image, "qcow2", &place.options()).unwrap();
    let stop = AtomicBool::new(false);
    let reads = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8_usize {
            let (export, truth, stop, reads) = (&export, &truth, &stop, &reads);
            scope.spawn(move || {
                let mut at = thread * 7_654_321;
                while !stop.load(Ordering::Relaxed) {
                    at = (at * 17 + 4099) % (truth.len() - 300_000);
                    let got = read(export, at as u64, 300_000).unwrap();
                    assert!(got == truth[at..at + 300_000], "wrong bytes at {at}");
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for kill in 1..=6 {
            let before = reads.load(Ordering::Relaxed);
            eventually("reads go on", || {
                reads.load(Ordering::Relaxed) > before + 20
            });
            signal(export.pid(), nix::sys::signal::SIGKILL);
            eventually("started again", || {
                export.restarts() == kill && export.pid() != 0
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn asynchronous_reads_survive_kill_and_each_is_answered_once() {
    let place = Place::new();
    let image = place.image();
    let truth = place.raw(&image);
    let export = Export::open(&image, "qcow2", &place.options()).unwrap();
    let tally = Arc::new(Tally::default());
    for i in 0..400 {
        export.submit(i as u64 * 100_000, BytesMut::zeroed(200_000), tally.slot(i));
        if i % 100 == 50 {
            signal(export.pid(), nix::sys::signal::SIGKILL);
            eventually("started again", || export.restarts() == i as u64 / 100 + 1);
        }
    }
    for (i, answer) in tally.wait(400).into_iter().enumerate() {
        assert!(
            answer.unwrap() == truth[i * 100_000..i * 100_000 + 200_000],
            "request {i}"
        );
    }
}

#[test]
fn a_killed_idle_process_is_started_again() {
    let place = Place::new();
    let export = Export::open(&place.image(), "qcow2", &place.options()).unwrap();
    let uri = export.uri();
    signal(export.pid(), nix::sys::signal::SIGKILL);
    eventually("started again", || export.restarts() == 1);
    assert_eq!(read(&export, 0, 2).unwrap(), [0x41; 2]);
    assert_eq!(export.uri(), uri);
    // Nobody else's client works worse for it.
    run(Command::new("nbdinfo").arg("--size").arg(&uri));
}

#[test]
fn a_hung_process_times_out_and_goes_on_later() {
    let place = Place::new();
    let mut options = place.options();
    options.request_timeout = Duration::from_millis(600);
    let export = Export::open(&place.image(), "qcow2", &options).unwrap();
    signal(export.pid(), nix::sys::signal::SIGSTOP);
    let tally = Arc::new(Tally::default());
    let started = Instant::now();
    // More than the connections take, so that some expire in the queue.
    for i in 0..300 {
        export.submit(32 << 20, BytesMut::zeroed(70_000), tally.slot(i));
    }
    assert!(
        started.elapsed() < Duration::from_millis(200),
        "submitting blocked"
    );
    assert!(
        tally
            .wait(300)
            .into_iter()
            .all(|a| matches!(a, Err(Error::TimedOut { .. })))
    );
    let took = started.elapsed();
    assert!((600..900).contains(&took.as_millis()), "{took:?}");
    signal(export.pid(), nix::sys::signal::SIGCONT);
    for _ in 0..100 {
        assert_eq!(read(&export, 1_000_000, 10).unwrap(), [0x42; 10]);
    }
    assert_eq!(export.restarts(), 0);

    // Or it is killed while it hangs.
    signal(export.pid(), nix::sys::signal::SIGSTOP);
    assert!(matches!(read(&export, 0, 10), Err(Error::TimedOut { .. })));
    signal(export.pid(), nix::sys::signal::SIGKILL);
    eventually("started again", || export.restarts() == 1);
    assert_eq!(read(&export, 1_000_000, 10).unwrap(), [0x42; 10]);
}

#[test]
fn a_process_that_hangs_on_is_started_again() {
    let place = Place::new();
    let mut options = place.options();
    options.request_timeout = Duration::from_millis(400);
    let export = Export::open(&place.image(), "qcow2", &options).unwrap();
    assert_eq!(read(&export, 0, 10).unwrap(), [0x41; 10]);
    let hung = export.pid();
    signal(hung, nix::sys::signal::SIGSTOP);
    let tally = Arc::new(Tally::default());
    // More than the connections have places for.
    for i in 0..100 {
        export.submit(32 << 20, BytesMut::zeroed(70_000), tally.slot(i));
    }
    assert!(tally.wait(100).iter().all(Result::is_err));
    // Nobody has to ask for it.
    eventually("started again", || export.restarts() == 1);
    for _ in 0..100 {
        assert_eq!(read(&export, 1_000_000, 10).unwrap(), [0x42; 10]);
    }
    eventually("the hung one is gone", || {
        !Path::new(&format!("/proc/{hung}")).exists()
    });
    assert_eq!(export.restarts(), 1);
}

#[test]
fn what_comes_back_to_the_queue_after_giving_up_is_tried_again() {
    let place = Place::new();
    let image = place.image();
    let export = Export::open(&image, "qcow2", &place.options()).unwrap();
    let away = place.repo("away");
    std::fs::rename(&image, &away).unwrap();
    signal(export.pid(), nix::sys::signal::SIGKILL);
    while read(&export, 0, 10).is_ok() {}
    std::fs::rename(&away, &image).unwrap();
    let tally = Arc::new(Tally::default());
    let deadline = export.session.deadline();
    let buf = BytesMut::zeroed(3);
    let started = Instant::now();
    export
        .session
        .requeue(vec![Request::read(0, 3, buf, deadline, tally.slot(0))]);
    assert_eq!(tally.wait(1).remove(0).unwrap()[..], [0x41; 3]);
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_file_that_changed_is_not_read_on() {
    let place = Place::new();
    let below = place.image();
    let top = place.create("top.qcow2", &["-F", "qcow2", "-b", "disk.qcow2"]);
    let export = Export::open(&top, "qcow2", &place.options()).unwrap();
    assert_eq!(
        export.identity(),
        FileIdentity::from(&top.metadata().unwrap())
    );
    // Of the same size, and in order.
    place.write(&below, &["write -P 0x45 0 64k"]);
    signal(export.pid(), nix::sys::signal::SIGKILL);
    let error = loop {
        if let Err(e) = read(&export, 0, 10) {
            break e;
        }
    };
    assert!(matches!(&error, Error::ImageInvalid { path, .. } if path.ends_with("disk.qcow2")));
    assert!(error.to_string().contains("catalog scan"), "{error}");
    assert!(read(&export, 0, 10).is_err());
    drop(export);
    let export = Export::open(&top, "qcow2", &place.options()).unwrap();
    assert_eq!(read(&export, 0, 1).unwrap(), [0x45]);
}

#[test]
fn a_folder_that_is_bent_while_it_is_opened() {
    let place = Place::new();
    let elsewhere = place.dir.path().join("elsewhere");
    let (folder, away) = (place.repo("sub"), place.repo("away"));
    for folder in [&folder, &elsewhere] {
        std::fs::create_dir(folder).unwrap();
        let image = place.create("x.qcow2", &["1M"]);
        std::fs::rename(image, folder.join("x.qcow2")).unwrap();
    }
    let options = place.options();
    let socket = qemu_nbd::socket(&options.runtime_dir).unwrap();
    let image = folder.join("x.qcow2");
    let (path, repositories) = (image.clone(), options.repositories.clone());
    let launch = move || {
        let chain = chain::check(&path, "qcow2", &repositories)?;
        std::fs::rename(&folder, &away).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &folder).unwrap();
        let process = qemu_nbd::start(&chain, 3, &socket)?;
        let open = PathBuf::from(format!("/proc/{}/fd", process.pid()));
        eventually("qemu-nbd opens its image", || {
            let open = open.read_dir().unwrap();
            open.filter_map(|fd| fd.unwrap().path().read_link().ok())
                .any(|file| file.ends_with("elsewhere/x.qcow2"))
        });
        std::fs::remove_file(&folder).unwrap();
        std::fs::rename(&away, &folder).unwrap();
        Ok((process, chain))
    };
    let error = Export::launch(&image, String::new(), Box::new(launch), &options);
    let error = error.err().expect("another file was read").to_string();
    assert!(error.contains("elsewhere/x.qcow2"), "{error}");
    assert!(error.contains("in place of"), "{error}");
}

#[test]
fn gives_up_when_the_image_is_gone_and_comes_back_with_it() {
    let place = Place::new();
    let image = place.image();
    let export = Export::open(&image, "qcow2", &place.options()).unwrap();
    let away = place.repo("away");
    std::fs::rename(&image, &away).unwrap();
    signal(export.pid(), nix::sys::signal::SIGKILL);
    let error = loop {
        // The first one may still find the old process.
        if let Err(e) = read(&export, 0, 10) {
            break e;
        }
    };
    assert!(matches!(error, Error::ImageMissing { .. }), "{error}");
    std::fs::rename(&away, &image).unwrap();
    assert_eq!(read(&export, 0, 3).unwrap(), [0x41; 3]);
}

#[test]
fn a_process_that_dies_each_time_fails_its_requests() {
    let place = Place::new();
    let image = place.image();
    let counter = Arc::new(AtomicUsize::new(0));
    let options = place.options();
    let socket = qemu_nbd::socket(&options.runtime_dir).unwrap();
    let (starts, path, repositories) =
        (counter.clone(), image.clone(), options.repositories.clone());
    let launch = move || {
        if starts.fetch_add(1, Ordering::Relaxed) == 0 {
            let chain = chain::check(&path, "qcow2", &repositories)?;
            return Ok((qemu_nbd::start(&chain, 3, &socket)?, chain));
        }
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'no luck today' >&2; exit 3"]);
        let process = Process::spawn("qemu-nbd", command, path.clone(), &socket)?;
        Ok((process, Chain::default()))
    };
    let export = Export::launch(&image, String::new(), Box::new(launch), &options).unwrap();
    signal(export.pid(), nix::sys::signal::SIGKILL);
    let error = loop {
        if let Err(e) = read(&export, 0, 10) {
            break e;
        }
    };
    assert!(error.to_string().contains("no luck today"), "{error}");
    let tried = counter.load(Ordering::Relaxed);
    assert!(
        (MAX_STARTS as usize..=MAX_STARTS as usize + 2).contains(&tried),
        "{tried}"
    );
    assert!(read(&export, 0, 10).is_err());
    assert!(
        counter.load(Ordering::Relaxed) > tried,
        "a later request tries again"
    );
}

#[test]
fn nbdkit_with_any_number_of_replies_out_of_order() {
    let place = Place::new();
    let options = place.options();
    // The pattern plugin's bytes are their own offsets.
    let arguments = ["--filter=delay", "pattern", "100M", "rdelay=5ms"];
    let export = place.nbdkit(&arguments, &options).unwrap();
    let tally = Arc::new(Tally::default());
    for i in 0..500 {
        export.submit(
            i as u64 * 8192 * 8,
            BytesMut::zeroed(4096 + 8 * i),
            tally.slot(i),
        );
    }
    for (i, answer) in tally.wait(500).into_iter().enumerate() {
        let answer = answer.unwrap();
        assert_eq!(answer.len(), 4096 + 8 * i);
        for (word, bytes) in answer.chunks_exact(8).enumerate() {
            let truth = (i * 8192 * 8 + word * 8) as u64;
            assert_eq!(u64::from_be_bytes(bytes.try_into().unwrap()), truth);
        }
    }
}

#[test]
fn an_error_of_the_server_is_that_requests_only() {
    let place = Place::new();
    let arguments = [
        "--filter=error",
        "pattern",
        "100M",
        "error-pread=EIO",
        "error-pread-rate=30%",
    ];
    let export = place.nbdkit(&arguments, &place.options()).unwrap();
    let pid = export.pid();
    let tally = Arc::new(Tally::default());
    for i in 0..400 {
        export.submit(i as u64 * 65536, BytesMut::zeroed(1024), tally.slot(i));
    }
    let (mut good, mut bad) = (0, 0);
    for (i, answer) in tally.wait(400).into_iter().enumerate() {
        match answer {
            Ok(bytes) => {
                good += 1;
                assert_eq!(bytes[..8], (i as u64 * 65536).to_be_bytes());
            }
            Err(Error::Io { source, .. }) => {
                bad += 1;
                assert!(source.to_string().contains("os error 5"), "{source}");
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(good > 100 && bad > 40, "{good} good, {bad} bad");
    assert_eq!((export.restarts(), export.pid()), (0, pid));
}

#[test]
fn a_server_without_structured_replies_and_one_that_shuts_down() {
    let place = Place::new();
    let arguments = ["--no-sr", "--filter=delay", "pattern", "100M", "rdelay=2ms"];
    let export = place.nbdkit(&arguments, &place.options()).unwrap();
    let tally = Arc::new(Tally::default());
    (0..200).for_each(|i| export.submit(i as u64 * 800, BytesMut::zeroed(16), tally.slot(i)));
    for (i, answer) in tally.wait(200).into_iter().enumerate() {
        assert_eq!(answer.unwrap()[..8], (i as u64 * 800).to_be_bytes());
    }
    let all = export.block_status(0, 4096).unwrap();
    assert_eq!(
        all,
        [Allocation {
            len: 4096,
            hole: false
        }]
    );

    // SIGTERM lets nbdkit answer what is under way with ESHUTDOWN, or hang up.
    let slow = place.nbdkit(
        &["--filter=delay", "pattern", "100M", "rdelay=100ms"],
        &place.options(),
    );
    let slow = slow.unwrap();
    (0..64).for_each(|i| slow.submit(i as u64 * 800, BytesMut::zeroed(16), tally.slot(i)));
    std::thread::sleep(Duration::from_millis(20));
    signal(slow.pid(), nix::sys::signal::SIGTERM);
    for (i, answer) in tally.wait(64).into_iter().enumerate() {
        assert_eq!(answer.unwrap()[..8], (i as u64 * 800).to_be_bytes());
    }
    assert_eq!(slow.restarts(), 1);
}

#[test]
fn delays_beyond_the_time_out_and_late_replies() {
    let place = Place::new();
    for more in [&[][..], &["--no-sr"]] {
        let mut options = place.options();
        options.request_timeout = Duration::from_millis(400);
        let arguments = [more, &["--filter=delay", "pattern", "100M", "rdelay=600ms"]].concat();
        let export = place.nbdkit(&arguments, &options).unwrap();
        let started = Instant::now();
        let tally = Arc::new(Tally::default());
        (0..20).for_each(|i| export.submit(i as u64 * 800, BytesMut::zeroed(9000), tally.slot(i)));
        assert!(
            tally
                .wait(20)
                .iter()
                .all(|a| matches!(a, Err(Error::TimedOut { .. })))
        );
        assert!(started.elapsed() < Duration::from_millis(590));
        eventually("late replies are thrown away", || export.requests() == 20);
        assert_eq!((export.restarts(), export.bytes_read()), (0, 0));
    }
}

#[test]
fn dropping_answers_everything() {
    let place = Place::new();
    let tally = Arc::new(Tally::default());
    let export = place
        .nbdkit(
            &["--filter=delay", "pattern", "100M", "rdelay=10"],
            &place.options(),
        )
        .unwrap();
    (0..150).for_each(|i| export.submit(i as u64 * 800, BytesMut::zeroed(16), tally.slot(i)));
    let started = Instant::now();
    drop(export);
    assert!(
        started.elapsed() < Duration::from_millis(20),
        "{:?}",
        started.elapsed()
    );
    assert!(
        tally
            .wait(150)
            .into_iter()
            .all(|a| matches!(a, Err(Error::Io { .. })))
    );
    eventually("the socket is gone", || place.sockets() == 0);
}

#[test]
fn an_export_may_be_dropped_by_its_own_completion() {
    let place = Place::new();
    let export = Export::open(&place.image(), "qcow2", &place.options()).unwrap();
    let (sender, receiver) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let last = Arc::clone(&export);
    let done = move |answer: Result<BytesMut>| {
        released.recv().unwrap();
        drop(last);
        sender.send(answer).unwrap();
    };
    export.submit(0, BytesMut::zeroed(10), Box::new(done));
    drop(export);
    release.send(()).unwrap();
    assert!(
        receiver
            .recv_timeout(Duration::from_secs(5))
            .unwrap()
            .is_ok()
    );
    eventually("the socket is gone", || place.sockets() == 0);
}

#[test]
fn the_runtime_directory_must_be_private_and_short() {
    let place = Place::new();
    let image = place.image();
    let mut options = place.options();
    std::fs::create_dir(&options.runtime_dir).unwrap();
    std::fs::set_permissions(&options.runtime_dir, PermissionsExt::from_mode(0o755)).unwrap();
    let error = Export::open(&image, "qcow2", &options).err().unwrap();
    assert!(error.to_string().contains("mode 700"), "{error}");
    options.runtime_dir = place.dir.path().join("x".repeat(100));
    let error = Export::open(&image, "qcow2", &options).err().unwrap();
    assert!(error.to_string().contains("too long"), "{error}");
}

/// Threads, descriptors and children of this process, other tests' included, so
/// this runs in a process of its own: see `nothing_is_left_behind`.
#[test]
#[ignore = "run by nothing_is_left_behind, alone in a process"]
fn alone_nothing_is_left_behind() {
    fn count(path: &str) -> usize {
        std::fs::read_dir(path).unwrap().count()
    }
    fn children() -> String {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        tasks
            .map(|t| std::fs::read_to_string(t.unwrap().path().join("children")))
            .filter_map(std::result::Result::ok)
            .collect()
    }
    let place = Place::new();
    let image = place.image();
    let mut before = (0, 0);
    let mut first_bytes = Vec::new();
    for round in 0..53 {
        let started = Instant::now();
        let export = Export::open(&image, "qcow2", &place.options()).unwrap();
        assert_eq!(read(&export, 0, 1).unwrap(), [0x41]);
        first_bytes.push(started.elapsed());
        if round % 3 == 0 {
            signal(export.pid(), nix::sys::signal::SIGKILL);
            eventually("started again", || export.restarts() == 1);
        }
        drop(export);
        eventually("the socket is gone", || place.sockets() == 0);
        if round == 2 {
            std::thread::sleep(Duration::from_millis(200));
            before = (count("/proc/self/fd"), count("/proc/self/task"));
        }
    }
    eventually("threads and descriptors end", || {
        (count("/proc/self/fd"), count("/proc/self/task")) == before
    });
    eventually("no child is left", || children().trim().is_empty());
    first_bytes.sort();
    println!(
        "open to first byte: median {:?}, worst {:?}",
        first_bytes[26], first_bytes[52]
    );
}

#[test]
fn nothing_is_left_behind() {
    let name = "image::export::tests::alone_nothing_is_left_behind";
    let out = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            name,
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    println!("{said}");
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
}

/// Megabytes that a process has for itself alone.
fn private_memory(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    let kilobytes = private.map(|line| line.split_whitespace().nth(1).unwrap());
    kilobytes.map(|k| k.parse::<u64>().unwrap()).sum::<u64>() / 1024
}

/// A slot may be kept for days after a large read.
#[test]
fn reads_leave_little_memory_behind() {
    let place = Place::new();
    let image = place.create("big.qcow2", &["128M"]);
    place.write(&image, &["write -P 0x77 0 128M"]);
    let export = Export::open(&image, "qcow2", &place.options()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let export = &export;
            scope.spawn(move || {
                let mut buf = vec![0; 1 << 20];
                for n in 0..128 {
                    export
                        .read_at(((n * 4 + thread) % 128) << 20, &mut buf)
                        .unwrap();
                }
            });
        }
    });
    let megabytes = private_memory(export.pid());
    assert!(megabytes <= 14, "{megabytes} MB");
}

/// Prints the throughput of 512 KiB reads, four in flight.
#[test]
#[ignore = "a measurement"]
fn throughput() {
    const LEN: usize = 512 << 10;
    let place = Place::new();
    let image = place.create("big.qcow2", &["1024M"]);
    place.write(&image, &["write -P 0x77 0 1024M"]);
    for connections in [1, 2] {
        let options = ExportOptions {
            connections,
            ..place.options()
        };
        let export = Export::open(&image, "qcow2", &options).unwrap();
        let total = export.size() as usize / LEN;
        for turn in 0..3 {
            let (sender, receiver) = mpsc::channel();
            let started = Instant::now();
            let mut next = 0;
            let mut submit = |buf| {
                let sender = sender.clone();
                let done = move |answer| drop(sender.send(answer));
                export.submit((next * LEN) as u64, buf, Box::new(done));
                next += 1;
            };
            (0..4).for_each(|_| submit(BytesMut::zeroed(LEN)));
            for answered in 1..=total {
                let buf = receiver.recv().unwrap().unwrap();
                if answered + 3 < total {
                    submit(buf);
                }
            }
            let rate = 1024.0 / started.elapsed().as_secs_f64();
            println!("{connections} connections, turn {turn}: {rate:.0} MiB/s");
        }
    }
}
