//! Processes that die, hang or find another image when they come back.

use super::*;

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
