//! What goes on under a reader and must not be noticed: eviction, a qemu-nbd that
//! dies, a daemon that is restarted; and what must not be left behind.
#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::images::{RawDisk, full};
use support::{Daemon, Lab, assert_same, facts, shell, wait_for};

/// A VM with `disks` disks of a few thousand small files and one large one each.
fn lab(disks: u32, extra: &str) -> (Lab, Vec<RawDisk>) {
    let lab = Lab::new();
    lab.configure(extra);
    let mut raws = Vec::new();
    for n in 0..disks {
        let disk = RawDisk::ext4(lab.path(format!("work/{n}.raw")), "256M", &[]);
        disk.write(|root| {
            shell(&format!(
                "cd {root:?}; for d in $(seq 20); do mkdir d$d; for f in $(seq 100); do echo disk {n} dir $d file $f > d$d/f$f; done; done
                 head -c 60000000 /dev/urandom > large"
            ));
        });
        full(&lab, &disk.path, "vm", n, "20251008-192431");
        raws.push(disk);
    }
    lab.scan();
    (lab, raws)
}

fn disk(lab: &Lab, n: u32) -> PathBuf {
    let target = fs::read_link(lab.mountpoint().join("vm/latest")).unwrap();
    lab.mountpoint()
        .join("vm")
        .join(target)
        .join(format!("disk{n}"))
}

/// Its path below the mountpoint, as `sendense release` takes it.
fn name(lab: &Lab, n: u32) -> String {
    disk(lab, n)
        .strip_prefix(lab.mountpoint())
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// `cp -a` of a disk while `meanwhile` is run again and again; the copy has to be
/// right.
fn copy_while(lab: &Lab, n: u32, raw: &RawDisk, mut meanwhile: impl FnMut(u32)) -> u32 {
    let from = disk(lab, n);
    fs::read_dir(&from).unwrap().count();
    drop_caches();
    let to = lab.path(format!("work/copy{n}"));
    let mut copy = Command::new("cp")
        .arg("-a")
        .arg(&from)
        .arg(&to)
        .spawn()
        .unwrap();
    let mut rounds = 0;
    while copy.try_wait().unwrap().is_none() {
        meanwhile(rounds);
        rounds += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(copy.wait().unwrap().success(), "cp -a failed");
    assert_same(
        &support::facts::kept_by_a_copy(raw.truth(facts)),
        &support::facts::kept_by_a_copy(facts(&to)),
    );
    fs::remove_dir_all(&to).unwrap();
    rounds
}

/// > A disk may be released at any time; nobody who reads it notices.
#[test]
fn eviction_in_the_middle_of_a_copy() {
    let (lab, raws) = lab(2, "slots = 1");
    let daemon = Daemon::start(&lab);
    let other = disk(&lab, 1);
    let path = name(&lab, 0);
    let rounds = copy_while(&lab, 0, &raws[0], |round| {
        if round % 2 == 0 {
            // The only slot goes to another disk …
            drop_caches();
            fs::read(other.join("d1/f1")).unwrap();
        } else {
            // … or the administrator takes it.
            lab.sendense(["release", &path]);
        }
        assert!(daemon.qemu_nbds().len() <= 2);
    });
    assert!(rounds > 3, "the copy was over before it was disturbed");
}

#[test]
fn an_open_file_and_a_folder_survive_eviction() {
    let (lab, _raws) = lab(1, "");
    let daemon = Daemon::start(&lab);
    let root = disk(&lab, 0);
    let mut file = fs::File::open(root.join("large")).unwrap();
    let mut before = vec![0; 100_000];
    file.read_exact(&mut before).unwrap();
    let mut listing = fs::read_dir(root.join("d1")).unwrap();
    let first = listing.next().unwrap().unwrap().file_name();
    lab.sendense_ok(["release", &name(&lab, 0)]);
    wait_for("the release", Duration::from_secs(5), || {
        daemon.qemu_nbds().is_empty()
    });
    drop_caches();
    file.seek(SeekFrom::Start(50_000_000)).unwrap();
    file.read_exact(&mut before).unwrap();
    let mut names: Vec<_> = listing.map(|entry| entry.unwrap().file_name()).collect();
    names.push(first);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 100);
    assert_eq!(daemon.qemu_nbds().len(), 1);
}

/// > A qemu-nbd that dies is started again; readers see a pause, not an error.
#[test]
fn qemu_nbd_killed_in_the_middle_of_a_copy() {
    let (lab, raws) = lab(1, "");
    let daemon = Daemon::start(&lab);
    let mut killed = 0;
    copy_while(&lab, 0, &raws[0], |round| {
        if round % 4 == 1 {
            for pid in daemon.qemu_nbds() {
                let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
                killed += 1;
            }
        }
    });
    assert!(killed > 0, "the copy was over before qemu-nbd was killed");
}

/// > Disks do not wait for each other.
#[test]
fn two_disks_from_many_processes() {
    let (lab, raws) = lab(2, "");
    let _daemon = Daemon::start(&lab);
    let mut readers = Vec::new();
    for n in 0..12 {
        let from = disk(&lab, n % 2);
        let script = format!(
            "cd {from:?} && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
        );
        readers.push((
            n % 2,
            Command::new("bash")
                .args(["-c", &script])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        ));
    }
    let truths: Vec<String> = raws
        .iter()
        .map(|raw| raw.truth(|root| shell(&format!("cd {root:?} && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"))))
        .collect();
    for (n, reader) in readers {
        let output = reader.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            truths[n as usize]
        );
    }
}

/// > A disk that does not answer gives an error in bounded time and holds up no
/// > other.
#[test]
fn a_hung_disk_times_out_alone() {
    let (lab, _raws) = lab(2, "request_timeout = \"3s\"");
    let daemon = Daemon::start(&lab);
    fs::read_dir(disk(&lab, 0)).unwrap().count();
    let hung = daemon.qemu_nbds()[0];
    fs::read_dir(disk(&lab, 1)).unwrap().count();
    let hung = Pid::from_raw(i32::try_from(hung).unwrap());
    kill(hung, Signal::SIGSTOP).unwrap();
    drop_caches();
    let large = disk(&lab, 0).join("large");
    let readers: Vec<_> = (0..40)
        .map(|n| {
            let large = large.clone();
            std::thread::spawn(move || {
                let began = Instant::now();
                let mut file = fs::File::open(large)?;
                file.seek(SeekFrom::Start(n * 1_000_000))?;
                let mut buf = [0; 4096];
                file.read_exact(&mut buf)?;
                Ok::<_, std::io::Error>(began.elapsed())
            })
        })
        .collect();
    let began = Instant::now();
    for d in 1..=20 {
        fs::read(disk(&lab, 1).join(format!("d{d}/f{d}"))).unwrap();
    }
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "the other disk was held up"
    );
    for reader in readers {
        match reader.join().unwrap() {
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO)),
            // One that was silent for twice the time-out is started again, and
            // that one answers.
            Ok(after) => assert!(after >= Duration::from_secs(6), "after {after:?}"),
        }
    }
    assert!(began.elapsed() < Duration::from_secs(15));
    // Gone, if it was started again.
    let _ = kill(hung, Signal::SIGCONT);
    wait_for("the disk to work again", Duration::from_secs(10), || {
        fs::read(&large).is_ok_and(|b| b.len() == 60_000_000)
    });
}

fn numbers(root: &Path) -> Vec<(PathBuf, u64)> {
    let out = shell(&format!("cd {root:?} && find . -printf '%p %i\\n' | sort"));
    out.lines()
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(path, ino)| (path.into(), ino.parse().unwrap()))
        .collect()
}

/// > The same path has the same inode number over eviction and restart.
/// > After a restart, `cd "$PWD"` is all that a shell needs.
#[test]
fn a_restart_keeps_inode_numbers_and_shells() {
    let (lab, _raws) = lab(1, "");
    for crash in [false, true] {
        let daemon = Daemon::start(&lab);
        let root = disk(&lab, 0);
        let before = numbers(&lab.mountpoint());
        assert!(before.len() > 2000);
        let mut shell_in_tree = Command::new("bash")
            .current_dir(root.join("d1"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = shell_in_tree.stdin.take().unwrap();
        writeln!(stdin, "cat f1").unwrap();
        std::thread::sleep(Duration::from_millis(200));
        if crash {
            daemon.kill()
        } else {
            daemon.stop()
        }
        let _daemon = Daemon::start(&lab);
        // Before anything else has looked inside.
        writeln!(stdin, "cd \"$PWD\" && cat f1 && ls | wc -l && exit").unwrap();
        drop(stdin);
        let output = shell_in_tree.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, "disk 0 dir 1 file 1\ndisk 0 dir 1 file 1\n100\n");
        assert_eq!(numbers(&lab.mountpoint()), before);
    }
}

/// > Inodes are found again by their number after they were forgotten, so that
/// > handles of NFS live on, over a restart too.
#[test]
fn handles_live_on() {
    let (lab, _raws) = lab(1, "");
    let daemon = Daemon::start(&lab);
    let root = disk(&lab, 0);
    let helper = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/handle.py");
    let handle = shell(&format!("python3 {helper:?} get {:?}", root.join("d7/f42")));
    let folder = shell(&format!("python3 {helper:?} get {:?}", root.join("d7")));
    let read = |handle: &str| {
        shell(&format!(
            "python3 {helper:?} read {:?} {}",
            lab.mountpoint(),
            handle.trim()
        ))
    };
    drop_caches();
    assert_eq!(read(&handle), "disk 0 dir 7 file 42\n");
    lab.sendense_ok(["release", &name(&lab, 0)]);
    drop_caches();
    assert_eq!(read(&handle), "disk 0 dir 7 file 42\n");
    daemon.stop();
    let _daemon = Daemon::start(&lab);
    assert_eq!(read(&handle), "disk 0 dir 7 file 42\n");
    assert!(read(&folder).contains("f42"));
}

/// > SIGTERM unmounts the tree, also when it is in use, and leaves nothing.
#[test]
fn sigterm_with_files_open_leaves_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (lab, _raws) = lab(1, "");
        let mut daemon = Daemon::start(&lab);
        let file = fs::File::open(disk(&lab, 0).join("large")).unwrap();
        let mut byte = [0];
        (&file).read_exact(&mut byte).unwrap();
        let children = daemon.qemu_nbds();
        assert_eq!(children.len(), 1);
        daemon.signal(signal);
        let status = daemon.wait(Duration::from_secs(10));
        assert!(status.success(), "{status}");
        assert!(!daemon.is_mounted());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(
            !mounts.contains(&*lab.mountpoint().to_string_lossy()),
            "{mounts}"
        );
        wait_for("qemu-nbd's end", Duration::from_secs(5), || {
            !Path::new(&format!("/proc/{}", children[0])).exists()
        });
        let left: Vec<_> = shell(&format!("find {:?} -type s", lab.path("run")))
            .lines()
            .map(String::from)
            .collect();
        assert_eq!(left, Vec::<String>::new(), "sockets left");
        drop(file);
    }
}

/// > No qemu-nbd outlives the daemon, however it ends.
#[test]
fn a_killed_daemon_leaves_no_qemu_nbd() {
    let (lab, _raws) = lab(1, "");
    let daemon = Daemon::start(&lab);
    fs::read_dir(disk(&lab, 0)).unwrap().count();
    let children = daemon.qemu_nbds();
    assert_eq!(children.len(), 1);
    daemon.kill();
    wait_for("qemu-nbd's end", Duration::from_secs(5), || {
        !Path::new(&format!("/proc/{}", children[0])).exists()
    });
    let daemon = Daemon::start(&lab);
    assert_eq!(fs::metadata(disk(&lab, 0)).unwrap().nlink(), 2);
    daemon.stop();
    let sockets = shell(&format!("find {:?} -type s", lab.path("run")));
    assert_eq!(sockets, "", "sockets of the killed one are cleared");
}

/// > A disk that was not used for `idle_timeout` is released.
#[test]
fn an_idle_disk_is_released() {
    let (lab, _raws) = lab(1, "idle_timeout = \"1s\"\nsweep_interval = \"1s\"");
    let daemon = Daemon::start(&lab);
    fs::read_dir(disk(&lab, 0)).unwrap().count();
    assert_eq!(daemon.qemu_nbds().len(), 1);
    wait_for("the sweep", Duration::from_secs(6), || {
        daemon.qemu_nbds().is_empty()
    });
    drop_caches();
    assert!(
        fs::read(disk(&lab, 0).join("d3/f3"))
            .unwrap()
            .starts_with(b"disk 0")
    );
}

/// > The first look-ups of a disk share one attempt.
#[test]
fn first_lookups_share_one_attach() {
    let (lab, _raws) = lab(1, "");
    let daemon = Daemon::start(&lab);
    let root = disk(&lab, 0);
    let threads: Vec<_> = (0..32)
        .map(|_| {
            let root = root.clone();
            std::thread::spawn(move || fs::read_dir(root).unwrap().count())
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), 22);
    }
    let status: serde_json::Value =
        serde_json::from_str(&lab.sendense_ok(["status", "--json"])).unwrap();
    assert_eq!(status["totals"]["attaches"], 1, "{status}");
    assert_eq!(daemon.qemu_nbds().len(), 1);
}
