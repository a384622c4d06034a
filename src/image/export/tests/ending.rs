//! What is left when an export has gone, and what it takes while it is there.

use super::*;

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
    let name = "image::export::tests::ending::alone_nothing_is_left_behind";
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
