//! Mounts as the HTTP side asks for them: lines of JSON over the control socket of
//! the real daemon, and what its database says of them.

#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::images::{RawDisk, full};
use support::{Daemon, Lab, run, shell, wait_for};

/// Asks the daemon.
fn ask(lab: &Lab, request: &Value) -> Value {
    let stream = UnixStream::connect(lab.path("run/control.sock")).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    writeln!(&stream, "{request}").unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
}

fn mount(lab: &Lab, backup: &str) -> Value {
    ask(
        lab,
        &json!({"request": "mount", "backup_id": backup, "disk_index": 0}),
    )
}

/// Mounts, which has to succeed; the mount.
fn mounted(lab: &Lab, backup: &str) -> Value {
    let answer = mount(lab, backup);
    assert_eq!(answer["answer"], "mounted", "{answer}");
    answer["mount"].clone()
}

fn id(mount: &Value) -> String {
    mount["id"].as_str().unwrap().to_owned()
}

fn unmount(lab: &Lab, id: &str) -> Value {
    ask(lab, &json!({"request": "unmount", "mount_id": id}))
}

fn touch(lab: &Lab, id: &str) {
    let answer = ask(lab, &json!({"request": "touch", "mount_ids": [id, "x"]}));
    assert_eq!(answer["answer"], "touched");
}

/// What another implementation reads in the database.
fn sql(lab: &Lab, query: &str) -> String {
    let database = lab.path("state/catalog.db");
    let answer = run(
        "sqlite3",
        [
            "-cmd".as_ref(),
            ".timeout 5000".as_ref(),
            database.as_os_str(),
            query.as_ref(),
        ],
    );
    answer.trim().to_owned()
}

fn status_of(lab: &Lab, id: &str) -> String {
    let columns = "status || coalesce('|' || error_message, '')";
    sql(
        lab,
        &format!("SELECT {columns} FROM restore_mounts WHERE id = '{id}'"),
    )
}

const DAYS: [&str; 3] = ["20251008-192431", "20251009-192431", "20251010-192431"];

/// Backups of the VMs `a`, `b` and `c`, each of the same disk; their ids.
fn three(extra: &str) -> (Lab, Vec<String>) {
    let lab = Lab::new();
    lab.configure(extra);
    let disk = RawDisk::ext4(lab.path("work/disk.raw"), "16M", &["-L", "data"]);
    disk.write(|root| {
        shell(&format!("echo hello > {root:?}/greeting; mkdir {root:?}/d"));
    });
    for (vm, day) in ["a", "b", "c"].into_iter().zip(DAYS) {
        full(&lab, &disk.path, vm, 0, day);
    }
    lab.scan();
    let ids = sql(&lab, "SELECT id FROM backup_jobs ORDER BY created_at");
    let ids: Vec<String> = ids.lines().map(str::to_owned).collect();
    assert_eq!(ids.len(), 3);
    (lab, ids)
}

fn greeting(lab: &Lab, vm: &str) -> PathBuf {
    lab.mountpoint().join(vm).join("latest/disk0/greeting")
}

fn errno(result: std::io::Result<Vec<u8>>) -> Option<i32> {
    result.err()?.raw_os_error()
}

#[test]
fn mounts_hold_their_slots() {
    let (lab, ids) = three("slots = 2");
    let daemon = Daemon::start(&lab);
    let began = Instant::now();
    let a = mounted(&lab, &ids[0]);
    eprintln!("mount of a cold disk: {:?}", began.elapsed());
    assert_eq!(a["status"], "mounted");
    assert_eq!(a["filesystem_type"], "ext4");
    let folder = PathBuf::from(a["mount_path"].as_str().unwrap());
    assert_eq!(
        folder,
        lab.mountpoint().join("a").join(&ids[0]).join("disk0")
    );
    assert_eq!(fs::read(folder.join("greeting")).unwrap(), b"hello\n");

    // One mount a disk; the answer names it.
    let again = mount(&lab, &ids[0]);
    assert_eq!(again["kind"], "mounted_already", "{again}");
    assert_eq!(again["mount_id"], a["id"]);
    let none = ask(
        &lab,
        &json!({"request": "mount", "backup_id": ids[0], "disk_index": 5}),
    );
    assert_eq!(none["kind"], "unknown");
    assert_eq!(
        none["message"],
        format!("disk not found: backup_id={}, disk_index=5", ids[0])
    );

    // Those that nobody holds make room for each other, and never the held one.
    let served_by = daemon.qemu_nbds();
    assert_eq!(served_by.len(), 1);
    for vm in ["b", "c", "b", "c"] {
        assert_eq!(fs::read(greeting(&lab, vm)).unwrap(), b"hello\n");
    }
    assert!(daemon.qemu_nbds().contains(&served_by[0]));

    let b = mounted(&lab, &ids[1]);
    let third = mount(&lab, &ids[2]);
    assert_eq!(third["kind"], "no_slot");
    assert_eq!(
        third["message"],
        "Maximum concurrent mounts reached (limit: 2). Please unmount a backup first."
    );
    let status: Value = serde_json::from_str(&lab.sendense_ok(["status", "--json"])).unwrap();
    assert_eq!(
        (&status["slots"]["held"], &status["slots"]["used"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(status["attached"][0]["state"], "held");
    assert!(status["resources"]["spaces"][0]["free"].as_u64().unwrap() > 0);
    // The kernel has kept what it knows of `c`; what it has to ask for fails now,
    // at once.
    shell("echo 3 > /proc/sys/vm/drop_caches");
    let began = Instant::now();
    assert_eq!(errno(fs::read(greeting(&lab, "c"))), Some(libc::EBUSY));
    assert!(began.elapsed() < Duration::from_secs(2));
    assert!(daemon.log().contains("mounts hold all 2 slots"));

    assert_eq!(unmount(&lab, &id(&b))["answer"], "unmounted");
    assert_eq!(fs::read(greeting(&lab, "c")).unwrap(), b"hello\n");
    assert_eq!(status_of(&lab, &id(&b)), "unmounted");
    assert_eq!(unmount(&lab, &id(&b))["kind"], "unknown");
    let c = mounted(&lab, &ids[2]);

    // `release` ends the mount as well, and says so.
    let said = lab.sendense_ok(["release", "a/latest/disk0"]);
    assert!(said.contains(&id(&a)), "{said}");
    assert_eq!(status_of(&lab, &id(&a)), "unmounted");
    assert_eq!(
        sql(
            &lab,
            "SELECT count(*), count(DISTINCT id) FROM restore_mounts"
        ),
        "3|3"
    );
    assert_eq!(status_of(&lab, &id(&c)), "mounted");
    daemon.stop();
}

/// Somebody reads while it is unmounted: they notice nothing.
#[test]
fn an_unmount_disturbs_no_reader() {
    let (lab, ids) = three("slots = 2");
    let daemon = Daemon::start(&lab);
    let a = mounted(&lab, &ids[0]);
    let folder = PathBuf::from(a["mount_path"].as_str().unwrap());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let raw = folder.with_file_name("disk0.raw");
                let mut file = fs::File::open(raw).unwrap();
                let n = std::io::copy(&mut file, &mut std::io::sink()).unwrap();
                assert_eq!(n, 16 << 20);
                shell("echo 1 > /proc/sys/vm/drop_caches");
                reads += 1;
            }
            reads
        });
        for _ in 0..5 {
            let mount = sql(
                &lab,
                "SELECT id FROM restore_mounts WHERE status = 'mounted'",
            );
            assert_eq!(unmount(&lab, &mount)["answer"], "unmounted");
            std::thread::sleep(Duration::from_millis(50));
            mounted(&lab, &ids[0]);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
    daemon.stop();
}

#[test]
fn an_unused_mount_expires_and_a_used_one_does_not() {
    let (lab, ids) = three("slots = 2\nidle_timeout = \"3s\"");
    let daemon = Daemon::start(&lab);
    let (a, b) = (id(&mounted(&lab, &ids[0])), id(&mounted(&lab, &ids[1])));
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(8) {
        touch(&lab, &a);
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(status_of(&lab, &a), "mounted");
    assert_eq!(
        status_of(&lab, &b),
        "unmounted|mount expired, please remount backup"
    );
    assert_eq!(unmount(&lab, &b)["kind"], "expired");
    // Its slot is free.
    mounted(&lab, &ids[2]);
    wait_for("all to expire", Duration::from_secs(10), || {
        sql(
            &lab,
            "SELECT count(*) FROM restore_mounts WHERE status = 'mounted'",
        ) == "0"
    });
    wait_for("the last process", Duration::from_secs(5), || {
        daemon.qemu_nbds().is_empty()
    });
    daemon.stop();
}

/// A mount lives over a crash and over a clean end; its slot is its own from the
/// first moment.
#[test]
fn mounts_live_over_restarts() {
    let (lab, ids) = three("slots = 1\nidle_timeout = \"20s\"");
    let daemon = Daemon::start(&lab);
    let a = mounted(&lab, &ids[0]);
    std::thread::sleep(Duration::from_millis(1500));
    touch(&lab, &id(&a));
    let expires = || {
        sql(
            &lab,
            "SELECT strftime('%s', expires_at) FROM restore_mounts WHERE status = 'mounted'",
        )
        .parse::<i64>()
        .unwrap()
    };
    let before = expires();
    wait_for("the touch", Duration::from_secs(3), || expires() > before);
    daemon.kill();

    let mut device = a["nbd_device"].as_str().unwrap().to_owned();
    for clean in [true, false] {
        let daemon = Daemon::start(&lab);
        assert_eq!(errno(fs::read(greeting(&lab, "b"))), Some(libc::EBUSY));
        let now = || {
            sql(
                &lab,
                &format!(
                    "SELECT nbd_device FROM restore_mounts WHERE id = '{}'",
                    id(&a)
                ),
            )
        };
        wait_for("its new device", Duration::from_secs(5), || {
            !now().is_empty() && now() != device
        });
        device = now();
        assert_eq!(daemon.qemu_nbds().len(), 1);
        assert_eq!(fs::read(greeting(&lab, "a")).unwrap(), b"hello\n");
        assert_eq!(mount(&lab, &ids[0])["mount_id"], a["id"]);
        assert_eq!(status_of(&lab, &id(&a)), "mounted");
        if clean {
            daemon.stop();
        } else {
            daemon.kill();
        }
    }
    // Too long away.
    sql(
        &lab,
        "UPDATE restore_mounts SET expires_at = '2025-01-01T00:00:00Z'",
    );
    let daemon = Daemon::start(&lab);
    assert_eq!(
        status_of(&lab, &id(&a)),
        "unmounted|mount expired, please remount backup"
    );
    assert_eq!(fs::read(greeting(&lab, "b")).unwrap(), b"hello\n");
    assert_eq!(sql(&lab, "SELECT mounts FROM restore_mounts_so_far"), "1");
    daemon.stop();
}

#[test]
fn the_end_of_a_backup_ends_its_mounts() {
    let (lab, ids) = three("slots = 2");
    let daemon = Daemon::start(&lab);
    let a = id(&mounted(&lab, &ids[0]));
    let began = Instant::now();
    lab.sendense_ok(["catalog", "remove", &ids[0]]);
    wait_for("the process", Duration::from_secs(3), || {
        daemon.qemu_nbds().is_empty()
    });
    eprintln!("released {:?} after the removal began", began.elapsed());
    assert_eq!(status_of(&lab, &a), "");
    assert_eq!(unmount(&lab, &a)["kind"], "unknown");
    mounted(&lab, &ids[1]);
    mounted(&lab, &ids[2]);
    daemon.stop();
}

#[test]
fn whether_a_backup_can_be_restored_is_looked_at() {
    let (lab, ids) = three("");
    let daemon = Daemon::start(&lab);
    let check = |backup: &str| ask(&lab, &json!({"request": "check", "backup_id": backup}));
    for backup in &ids {
        assert_eq!(
            check(backup)["disks"],
            json!([{"disk_index": 0}]),
            "{backup}"
        );
    }
    let image = sql(
        &lab,
        &format!(
            "SELECT qcow2_path FROM backup_disks WHERE backup_job_id = '{}'",
            ids[1]
        ),
    );
    fs::remove_file(&image).unwrap();
    let answer = check(&ids[1]);
    assert!(
        answer["disks"][0]["error"]
            .as_str()
            .unwrap()
            .contains(&image),
        "{answer}"
    );
    assert_eq!(check("nonsense")["message"], "backup not found: nonsense");
    assert!(daemon.qemu_nbds().is_empty());
    daemon.stop();
}

/// What the host lacks is said, and what is there goes on.
#[test]
fn refused_work_says_what_has_run_out() {
    let (lab, ids) = three("");
    let daemon = Daemon::start(&lab);
    let a = mounted(&lab, &ids[0]);
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
        .unwrap()
        .count();
    let limit = |files: usize| {
        let pid = daemon.pid().to_string();
        run("prlimit", ["--pid", &pid, &format!("--nofile={files}:")]);
    };
    limit(open + 20);
    let refused = mount(&lab, &ids[1]);
    assert_eq!(refused["kind"], "exhausted", "{refused}");
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("run out of file descriptors"), "{message}");
    // That it has one already is no matter of what is left.
    assert_eq!(mount(&lab, &ids[0])["mount_id"], a["id"]);
    assert_eq!(fs::read(greeting(&lab, "a")).unwrap(), b"hello\n");
    limit(open + 200);
    mounted(&lab, &ids[1]);
    daemon.stop();
}

/// A repository on a host that does not answer: here a tree whose daemon is stopped.
#[test]
fn a_repository_that_hangs_holds_up_no_status() {
    let (far, _) = three("");
    let stopped = Daemon::start(&far);
    let (lab, ids) = three("");
    let hanging = far.mountpoint();
    let text = fs::read_to_string(lab.config()).unwrap();
    let list = format!("repositories = [{hanging:?}, ");
    fs::write(lab.config(), text.replace("repositories = [", &list)).unwrap();
    let daemon = Daemon::start(&lab);
    let status = || {
        let began = Instant::now();
        let text = lab.sendense_ok(["status", "--json"]);
        assert!(began.elapsed() < Duration::from_secs(2));
        serde_json::from_str::<Value>(&text).unwrap()["resources"]["spaces"].clone()
    };
    let of_hanging = |spaces: &Value| {
        let all = spaces.as_array().unwrap();
        let one = all.iter().find(|s| s["path"] == hanging.to_str().unwrap());
        one.unwrap().clone()
    };
    assert!(of_hanging(&status())["age"].is_u64());
    stopped.signal(nix::sys::signal::Signal::SIGSTOP);
    wait_for("the hang to be told", Duration::from_secs(20), || {
        of_hanging(&status())["error"]
            .as_str()
            .is_some_and(|error| error.starts_with("no answer for"))
    });
    let spaces = status();
    assert!(
        of_hanging(&spaces)["age"].as_u64().unwrap() >= 5,
        "{spaces}"
    );
    let others = spaces.as_array().unwrap().iter();
    let fresh = others.filter(|s| s["age"].as_u64().unwrap() <= 6);
    assert_eq!(fresh.count(), 2, "{spaces}");
    stopped.signal(nix::sys::signal::Signal::SIGCONT);
    mounted(&lab, &ids[0]);
    daemon.stop();
    stopped.stop();
}

fn children(parent: u32) -> Vec<u32> {
    let out = std::process::Command::new("pgrep")
        .args(["-P", &parent.to_string(), "-f", "api$"])
        .output()
        .unwrap();
    let out = String::from_utf8(out.stdout).unwrap();
    out.lines().map(|line| line.parse().unwrap()).collect()
}

/// The HTTP side is a child that does not outlive the daemon.
#[test]
fn the_http_side_is_kept_running() {
    let (lab, _ids) = three("api = true\ngroup = \"daemon\"\nlisten = \"127.0.0.1:0\"");
    // Another user, who has to pass.
    run("chmod", ["0711".as_ref(), lab.dir.path().as_os_str()]);
    let (gate, sockets) = (lab.path("gate"), lab.path("run"));
    run(
        "chgrp",
        ["daemon".as_ref(), gate.as_os_str(), sockets.as_os_str()],
    );
    run("chmod", ["0750".as_ref(), sockets.as_os_str()]);
    let api = |lab: &Lab| {
        let status: Value = serde_json::from_str(&lab.sendense_ok(["status", "--json"])).unwrap();
        status["api"].clone()
    };
    let daemon = Daemon::start(&lab);
    wait_for("its start", Duration::from_secs(5), || {
        children(daemon.pid()).len() == 1
    });
    let first = children(daemon.pid())[0];
    wait_for("its state", Duration::from_secs(5), || {
        api(&lab)["state"] == "running"
    });
    assert_eq!(api(&lab)["pid"], first);
    run("kill", ["-9", &first.to_string()]);
    wait_for("its next start", Duration::from_secs(5), || {
        children(daemon.pid())
            .first()
            .is_some_and(|pid| *pid != first)
    });
    wait_for("its state", Duration::from_secs(5), || {
        api(&lab)["restarts"] == 1
    });
    assert!(daemon.log().contains("the HTTP side ended with SIGKILL"));
    let second = children(daemon.pid())[0];
    let gone = |pid: u32| !PathBuf::from(format!("/proc/{pid}")).exists();
    // It ends before the tree is unmounted, and with the daemon however that ends.
    daemon.stop();
    assert!(gone(second));
    let daemon = Daemon::start(&lab);
    wait_for("its start", Duration::from_secs(5), || {
        children(daemon.pid()).len() == 1
    });
    let third = children(daemon.pid())[0];
    daemon.kill();
    wait_for("its end", Duration::from_secs(2), || {
        gone(third) || shell(&format!("cat /proc/{third}/stat")).contains(") Z ")
    });
}
