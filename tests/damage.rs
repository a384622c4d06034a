//! Images that are damaged, missing or hostile: a clear error each, and other
//! disks go on.
#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::images::{RawDisk, full, incremental, layout};
use support::{Daemon, Lab, shell};

struct Case {
    vm: &'static str,
    /// What the sentence in `user.sendense.error` has to contain.
    says: &'static str,
}

/// > An image that cannot be opened gives an error on use, and says why in
/// > `user.sendense.error`; other disks are unharmed.
#[test]
fn every_bad_image_is_a_clear_error_and_harms_no_other() {
    let lab = Lab::new();
    lab.configure("request_timeout = \"5s\"\nstart_timeout = \"5s\"");
    let raw = RawDisk::ext4(lab.path("work/a.raw"), "64M", &[]);
    raw.write(|root| {
        shell(&format!(
            "cd {root:?}; echo good > file; head -c 20000000 /dev/urandom > large"
        ));
    });
    let stamp = "20251008-192431";
    let mut cases = Vec::new();
    let mut case = |vm: &'static str, says: &'static str, make: &dyn Fn(&Path)| {
        let image = full(&lab, &raw.path, vm, 0, stamp);
        make(&image);
        cases.push(Case { vm, says });
    };
    case("good", "", &|_| {});
    case("empty", "", &|_| {});
    case("garbage", "", &|_| {});
    case("headless", "", &|_| {});

    // Chains that lead where they must not.
    let outside = lab.path("work/outside.qcow2");
    shell(&format!(
        "qemu-img convert -f raw -O qcow2 {:?} {outside:?}",
        raw.path
    ));
    let overlay = |vm: &'static str, backing: &str| {
        let image = layout(&lab, vm, 0, stamp);
        shell(&format!(
            "qemu-img create -q -f qcow2 -u -b {backing:?} -F qcow2 {image:?} 64M"
        ));
    };
    overlay("missing-backing", "nowhere.qcow2");
    overlay("outside", outside.to_str().unwrap());
    overlay("shadow", "/etc/shadow");
    let own = layout(&lab, "itself", 0, stamp);
    overlay("itself", own.file_name().unwrap().to_str().unwrap());
    overlay("network", "nbd://127.0.0.1:10809/x");
    let linked = layout(&lab, "linked", 0, stamp);
    std::os::unix::fs::symlink(&outside, linked.with_file_name("link.qcow2")).unwrap();
    overlay("linked", "link.qcow2");
    for (vm, says) in [
        ("missing-backing", "not there"),
        ("outside", "outside"),
        ("shadow", "outside"),
        ("itself", "itself"),
        ("network", ""),
        ("linked", "outside"),
    ] {
        cases.push(Case { vm, says });
    }
    // The scan takes what has a sound head; what it takes must give an error later.
    let _ = lab.sendense([
        "catalog".as_ref(),
        "scan".as_ref(),
        lab.path("repository").as_os_str(),
    ]);
    // These the catalog knows as good images; now they go bad.
    let image = |vm: &str| layout(&lab, vm, 0, stamp);
    fs::write(image("empty"), b"").unwrap();
    fs::write(image("garbage"), vec![0x5a; 100_000]).unwrap();
    shell(&format!(
        "dd if=/dev/zero of={:?} bs=104 count=1 conv=notrunc status=none",
        image("headless")
    ));
    let daemon = Daemon::start(&lab);
    let good = lab.mountpoint().join("good/latest/disk0/file");
    for case in &cases {
        let disk = lab.mountpoint().join(case.vm).join("latest/disk0");
        if case.vm == "good" {
            continue;
        }
        let began = Instant::now();
        let error = fs::read_dir(&disk).map(Iterator::count).expect_err(case.vm);
        assert!(
            matches!(error.raw_os_error(), Some(libc::EIO | libc::EOPNOTSUPP)),
            "{}: {error}",
            case.vm
        );
        assert!(began.elapsed() < Duration::from_secs(6), "{}", case.vm);
        let why = xattr::get(&disk, "user.sendense.error")
            .unwrap_or_else(|error| panic!("{}: {error}\n{}", case.vm, daemon.log()))
            .unwrap_or_else(|| panic!("{}: no reason given", case.vm));
        let why = String::from_utf8(why).unwrap();
        println!("{}: {why}", case.vm);
        assert!(why.contains(case.says), "{}: {why}", case.vm);
        assert_eq!(fs::read_to_string(&good).unwrap(), "good\n");
    }
    let shown = fs::read_dir(lab.mountpoint()).unwrap().count();
    assert!(
        shown == cases.len(),
        "all are shown, and say what is wrong: {shown}"
    );
}

/// > An image that was changed after it was recorded is refused until the next scan
/// > has recorded it anew.
#[test]
fn an_image_that_changed_is_never_taken_for_the_old_one() {
    let lab = Lab::new();
    lab.configure("");
    let raw = RawDisk::ext4(lab.path("work/a.raw"), "64M", &[]);
    raw.write(|root| fs::write(root.join("file"), "old").unwrap());
    let image = full(&lab, &raw.path, "vm", 0, "20251008-192431");
    lab.scan();
    let _daemon = Daemon::start(&lab);
    let disk = lab.mountpoint().join("vm/latest/disk0");
    assert_eq!(fs::read_to_string(disk.join("file")).unwrap(), "old");
    raw.write(|root| fs::write(root.join("file"), "new").unwrap());
    shell(&format!(
        "qemu-img convert -f raw -O qcow2 {:?} {image:?}",
        raw.path
    ));
    lab.sendense_ok(["release", "vm/latest/disk0"]);
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    fs::read_to_string(disk.join("file")).expect_err("the old row does not stand for it");
    lab.scan();
    support::wait_for("the new content", Duration::from_secs(5), || {
        fs::read_to_string(disk.join("file")).is_ok_and(|text| text == "new")
    });
}

/// > A read is complete or it fails; it is never zeros in place of what could not be
/// > read, and never short in the middle of a file.
#[test]
fn a_truncated_image_is_an_error_and_not_zeros() {
    let lab = Lab::new();
    lab.configure("");
    let raw = RawDisk::ext4(lab.path("work/a.raw"), "64M", &[]);
    raw.write(|root| {
        shell(&format!("head -c 20000000 /dev/urandom > {root:?}/file"));
    });
    let image = full(&lab, &raw.path, "cut", 0, "20251008-192431");
    let length = fs::metadata(&image).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(length / 2).unwrap();
    drop(file);
    let said = lab.sendense([
        "catalog".as_ref(),
        "scan".as_ref(),
        lab.path("repository").as_os_str(),
    ]);
    println!(
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
    let _daemon = Daemon::start(&lab);
    let disk = lab.mountpoint().join("cut/latest/disk0");
    assert!(fs::read(disk.join("file")).is_err());
}

/// A broken chain does not take the chain below it with it.
#[test]
fn a_bad_incremental_leaves_the_full_backup_readable() {
    let lab = Lab::new();
    lab.configure("");
    let raw = RawDisk::ext4(lab.path("work/a.raw"), "64M", &[]);
    raw.write(|root| fs::write(root.join("file"), "one").unwrap());
    let base = full(&lab, &raw.path, "vm", 0, "20251008-192431");
    raw.write(|root| fs::write(root.join("file"), "two").unwrap());
    let top = incremental(&lab, &raw.path, "vm", 0, "20251009-192431", &base);
    lab.scan();
    let _daemon = Daemon::start(&lab);
    let vm = lab.mountpoint().join("vm");
    let backups: Vec<PathBuf> = fs::read_dir(&vm)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with("latest"))
        .collect();
    fs::write(&top, b"QFI").unwrap();
    let read: Vec<_> = backups
        .iter()
        .map(|b| fs::read_to_string(b.join("disk0/file")).ok())
        .collect();
    assert!(read.contains(&Some("one".to_owned())), "{read:?}");
    assert!(read.contains(&None), "{read:?}");
}

/// > A file that claims an absurd size, or any other structure without end, costs
/// > the one who reads it a time-out, and nobody else anything.
#[test]
fn a_file_without_end_holds_up_nobody() {
    let lab = Lab::new();
    lab.configure("request_timeout = \"2s\"\nstart_timeout = \"2s\"");
    let raw = RawDisk::ext4(lab.path("work/a.raw"), "64M", &[]);
    raw.write(|root| {
        shell(&format!(
            "cd {root:?}; for i in 1 2 3 4; do truncate -s 1M huge$i; done; echo good > file"
        ));
    });
    full(&lab, &raw.path, "good", 0, "20251008-192431");
    for i in 1..=4 {
        shell(&format!(
            "debugfs -w -R 'sif huge{i} size 0x3fffffffffff0000' {:?} 2>/dev/null",
            raw.path
        ));
    }
    full(&lab, &raw.path, "huge", 0, "20251008-192431");
    lab.scan();
    let _daemon = Daemon::start(&lab);
    let disk = |vm: &str| lab.mountpoint().join(vm).join("latest/disk0");
    fs::read_dir(disk("good")).unwrap().count();
    let seekers: Vec<_> = (1..=4)
        .map(|i| {
            let path = disk("huge").join(format!("huge{i}"));
            std::thread::spawn(move || {
                let file = fs::File::open(path).unwrap();
                let began = Instant::now();
                let found = nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekData);
                (found, began.elapsed())
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    for _ in 0..50 {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        assert_eq!(
            fs::read_to_string(disk("good").join("file")).unwrap(),
            "good\n"
        );
    }
    println!("50 reads beside it took {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(2), "held up");
    for seeker in seekers {
        let (found, took) = seeker.join().unwrap();
        println!("{found:?} after {took:?}");
        assert!(found.is_err() && took < Duration::from_secs(8));
    }
}

/// > Metadata and data are verified by checksum, and another copy is read if one is
/// > damaged; if none is right, that is an error.
#[test]
fn damaged_data_of_btrfs_is_read_from_its_other_copy() {
    const SECTOR: usize = 4096;
    let lab = Lab::new();
    lab.configure("");
    // Each sector of the file is like no other.
    let content: Vec<u8> = (0..1024_u64)
        .flat_map(|n| (0..SECTOR as u64 / 8).map(move |m| n << 32 | m | 1 << 60))
        .flat_map(u64::to_le_bytes)
        .collect();
    let (folder, raw) = (lab.path("work/folder"), lab.path("work/a.raw"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), &content).unwrap();
    shell(&format!(
        "truncate -s 256M {raw:?} && mkfs.btrfs -q -m dup -d dup --rootdir {folder:?} {raw:?}"
    ));
    let mut disk = fs::read(&raw).unwrap();
    let mut damage = |sector: usize, copies: &[usize]| {
        let wanted = &content[sector * SECTOR..][..SECTOR];
        let places: Vec<usize> = (0..disk.len())
            .step_by(SECTOR)
            .filter(|at| &disk[*at..][..SECTOR] == wanted)
            .collect();
        assert_eq!(places.len(), 2, "copies of sector {sector}");
        copies.iter().for_each(|copy| disk[places[*copy] + 77] ^= 1);
    };
    damage(100, &[0]);
    damage(101, &[1]);
    damage(500, &[1]);
    damage(700, &[0, 1]);
    fs::write(&raw, &disk).unwrap();
    full(&lab, &raw, "vm", 0, "20251008-192431");
    lab.scan();
    let _daemon = Daemon::start(&lab);
    let file = fs::File::open(lab.mountpoint().join("vm/latest/disk0/file")).unwrap();
    let mut part = vec![0; 600 * SECTOR];
    file.read_exact_at(&mut part, 0).unwrap();
    assert!(part == content[..part.len()]);
    let mut part = vec![0; 8 * SECTOR];
    let error = file
        .read_exact_at(&mut part, 698 * SECTOR as u64)
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    file.read_exact_at(&mut part, 1016 * SECTOR as u64).unwrap();
    assert!(part == content[1016 * SECTOR..]);
}

/// A disk that leaves the catalog for a while is not taken for a folder without
/// files, neither then nor afterwards.
#[test]
fn an_image_that_comes_back_has_all_its_files() {
    let lab = Lab::new();
    lab.configure("");
    let raw = RawDisk::ext4(lab.path("work/a.raw"), "64M", &[]);
    raw.write(|root| {
        shell(&format!("mkdir {root:?}/d; echo here > {root:?}/d/file"));
    });
    let image = full(&lab, &raw.path, "vm", 0, "20251008-192431");
    full(&lab, &raw.path, "other", 0, "20251008-192431");
    lab.scan();
    let daemon = Daemon::start(&lab);
    let latest = lab.mountpoint().join("vm/latest");
    let disk = fs::canonicalize(latest).unwrap().join("disk0");
    let folder = nix::fcntl::open(
        &disk.join("d"),
        nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
    .unwrap();
    let inside = PathBuf::from(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&folder)
    ));
    let away = lab.path("work/away.qcow2");
    fs::rename(&image, &away).unwrap();
    lab.scan();
    support::wait_for("the disk to be released", Duration::from_secs(5), || {
        daemon.qemu_nbds().is_empty()
    });
    // Somebody who still stands in it gets an error, not "no such file" (which
    // the kernel would keep).
    let error = fs::read(inside.join("file")).unwrap_err();
    assert_ne!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
    fs::rename(&away, &image).unwrap();
    lab.scan();
    support::wait_for("the file to be there again", Duration::from_secs(5), || {
        fs::read_to_string(inside.join("file")).is_ok_and(|text| text == "here\n")
    });
    assert_eq!(fs::read_to_string(disk.join("d/file")).unwrap(), "here\n");
}
