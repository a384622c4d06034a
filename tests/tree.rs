//! What the tree shows, compared with the kernel's own view of the same images.
//! Paragraphs quoted above a test are promises of docs/semantics.md.
#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::images::{RawDisk, full, incremental, varied_tree};
use support::{Daemon, Lab, assert_same, facts, run, shell};

fn backup(lab: &Lab, vm: &str) -> PathBuf {
    let target = fs::read_link(lab.mountpoint().join(vm).join("latest")).unwrap();
    lab.mountpoint().join(vm).join(target)
}

/// Everything a file can be, on each variant of the format.
#[test]
fn every_file_is_as_the_kernel_sees_it() {
    let variants: [(&str, &[&str]); 8] = [
        ("default", &[]),
        ("ext3", &["-t ext3"]),
        ("ext2", &["-t ext2"]),
        ("small-blocks", &["-b 1024 -I 128"]),
        ("inline", &["-O inline_data -I 256"]),
        ("bigalloc", &["-O bigalloc -C 65536"]),
        (
            "plain",
            &["-O ^metadata_csum,^64bit,^flex_bg,^huge_file,uninit_bg"],
        ),
        ("ea-inode", &["-O ea_inode,meta_bg,^resize_inode -b 2048"]),
    ];
    let lab = Lab::new();
    lab.configure("");
    let mut disks = Vec::new();
    for (name, options) in variants {
        let disk = RawDisk::ext4(lab.path(format!("work/{name}.raw")), "200M", options);
        disk.write(varied_tree);
        full(&lab, &disk.path, name, 0, "20251008-192431");
        disks.push((name, disk));
    }
    lab.scan();
    let _daemon = Daemon::start(&lab);
    for (name, disk) in disks {
        let shown_root = backup(&lab, name).join("disk0");
        fs::read_dir(&shown_root).unwrap().count();
        let truth = disk.truth(facts);
        let shown = facts(&shown_root);
        println!("{name}: {} files", truth.len());
        assert!(truth.len() > 30, "{name}: the tree was not written");
        assert_same(&truth, &shown);
    }
}

/// > A disk with several volumes shows a folder for each, by a stable name.
#[test]
fn partitions_and_logical_volumes_are_folders() {
    let lab = Lab::new();
    lab.configure("");
    // GPT: MSR, ext4, swap, ext4, and one that nothing can read.
    let (disk, junk) = (lab.path("work/gpt.raw"), lab.path("work/junk"));
    shell(&format!(
        "truncate -s 300M {disk:?}
         sfdisk -q {disk:?} <<'END'
label: gpt
size=16M, type=E3C9E316-0B5C-4DB8-817D-F92DF00215AE, name=msr
size=64M, type=linux, name=boot
size=32M, type=swap
size=100M, type=linux
size=16M, type=linux, name=junk
END"
    ));
    let table: serde_json::Value =
        serde_json::from_str(&run("sfdisk", ["--json".as_ref(), disk.as_os_str()])).unwrap();
    let parts = table["partitiontable"]["partitions"].as_array().unwrap();
    let offset = |n: usize| parts[n]["start"].as_u64().unwrap() * 512;
    let size = |n: usize| parts[n]["size"].as_u64().unwrap() * 512;
    for (n, label) in [(1, "boot"), (3, "root")] {
        shell(&format!(
            "mkfs.ext4 -q -F -L {label} -E offset={} {disk:?} {}k",
            offset(n),
            size(n) / 1024
        ));
        RawDisk::at(&disk, offset(n)).write(|root| {
            shell(&format!(
                "cd {root:?}; echo {label} > name; mkdir a; echo b > a/b"
            ));
        });
    }
    shell(&format!(
        "d=$(losetup --show -f -o {} --sizelimit {} {disk:?}); mkswap -q $d; losetup -d $d
         head -c 8M /dev/zero | tr '\\0' j > {junk:?}; dd if={junk:?} of={disk:?} bs=1M seek={} conv=notrunc status=none",
        offset(2),
        size(2),
        offset(4) / (1 << 20)
    ));
    full(&lab, &disk, "gpt", 0, "20251008-192431");
    lab.scan();
    let _daemon = Daemon::start(&lab);
    let disk0 = backup(&lab, "gpt").join("disk0");
    let names: BTreeSet<String> = fs::read_dir(&disk0)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["part2", "part4", "part5"].map(String::from).into());
    for (n, name) in [(1, "part2"), (3, "part4")] {
        let truth = RawDisk::at(&disk, offset(n)).truth(facts);
        assert_same(&truth, &facts(&disk0.join(name)));
    }
    let attribute = |name: &str, attribute: &str| {
        xattr::get(disk0.join(name), format!("user.sendense.{attribute}"))
            .unwrap()
            .map(|value| String::from_utf8(value).unwrap())
    };
    assert_eq!(attribute("part2", "label").as_deref(), Some("boot"));
    assert_eq!(attribute("part2", "type").as_deref(), Some("ext4"));
    assert_eq!(attribute("part2", "size"), Some(size(1).to_string()));
    assert!(
        attribute("part5", "error").is_some(),
        "it says why it cannot be read"
    );
    assert!(
        fs::read_dir(disk0.join("part5")).is_err(),
        "what cannot be read never looks empty"
    );
    let blkid = run(
        "blkid",
        [
            "-p",
            "-o",
            "value",
            "-s",
            "UUID",
            "-O",
            &offset(1).to_string(),
            disk.to_str().unwrap(),
        ],
    );
    assert_eq!(attribute("part2", "uuid").as_deref(), Some(blkid.trim()));
}

/// > Listing a VM or a backup, with `ls -l` too, attaches nothing.
#[test]
fn looking_at_a_backup_attaches_nothing() {
    let lab = Lab::new();
    lab.configure("");
    let disk = RawDisk::ext4(lab.path("work/a.raw"), "32M", &[]);
    disk.write(|root| fs::write(root.join("file"), "inside").unwrap());
    full(&lab, &disk.path, "lazy", 0, "20251008-192431");
    full(&lab, &disk.path, "lazy", 1, "20251008-192431");
    lab.scan();
    let daemon = Daemon::start(&lab);
    let root = lab.mountpoint();
    shell(&format!(
        "cd {root:?}; ls -la . lazy lazy/latest/ lazy/*; stat lazy/latest/*; getfattr -d lazy/latest/*"
    ));
    assert_eq!(daemon.qemu_nbds(), Vec::<u32>::new());
    let status: serde_json::Value =
        serde_json::from_str(&lab.sendense_ok(["status", "--json"])).unwrap();
    assert_eq!(status["slots"]["used"], 0, "{status}");
    assert_eq!(
        fs::read_to_string(root.join("lazy/latest/disk1/file")).unwrap(),
        "inside"
    );
    assert_eq!(daemon.qemu_nbds().len(), 1);
}

/// > `disk<N>.raw` is the whole disk as one file, sparse.
#[test]
fn the_raw_disk_is_the_disk() {
    let lab = Lab::new();
    lab.configure("");
    let disk = RawDisk::ext4(lab.path("work/a.raw"), "128M", &[]);
    disk.write(|root| {
        shell(&format!("head -c 5000000 /dev/urandom > {root:?}/data"));
    });
    let image = full(&lab, &disk.path, "raw", 3, "20251008-192431");
    lab.scan();
    let _daemon = Daemon::start(&lab);
    let shown = backup(&lab, "raw").join("disk3.raw");
    assert_eq!(fs::metadata(&shown).unwrap().len(), 128 << 20);
    assert_eq!(
        support::facts::sha256(&shown),
        support::facts::sha256(&disk.path)
    );
    // Copied with its holes, it takes no more than the image.
    let copy = lab.path("work/copy.raw");
    shell(&format!(
        "cp --sparse=auto {shown:?} {copy:?}; cmp {shown:?} {copy:?}"
    ));
    let taken = fs::metadata(&copy).unwrap().blocks() * 512;
    let image = fs::metadata(&image).unwrap().blocks() * 512;
    assert!(
        taken <= image + (4 << 20),
        "the copy takes {taken} bytes, the image {image}"
    );
    shell(&format!(
        "qemu-img compare -f raw -F raw {shown:?} {:?}",
        disk.path
    ));
}

/// Three states of the same files, in a chain of four images.
#[test]
fn a_chain_of_four_shows_four_states() {
    let lab = Lab::new();
    lab.configure("");
    let disk = RawDisk::ext4(lab.path("work/a.raw"), "200M", &[]);
    let mut truths = Vec::new();
    let mut parent: Option<PathBuf> = None;
    for n in 0..4 {
        disk.write(|root| {
            shell(&format!(
                "cd {root:?}; echo state {n} > report; echo line {n} >> log; mkdir -p d{n};
                 head -c 300000 /dev/urandom > d{n}/data; rm -rf d$(({n} - 2))"
            ));
        });
        let stamp = format!("2025100{}-120000", n + 1);
        let image = match &parent {
            None => full(&lab, &disk.path, "chain", 0, &stamp),
            Some(parent) => incremental(&lab, &disk.path, "chain", 0, &stamp, parent),
        };
        truths.push(disk.truth(facts));
        parent = Some(image);
    }
    lab.scan();
    let _daemon = Daemon::start(&lab);
    let mut backups: Vec<PathBuf> = fs::read_dir(lab.mountpoint().join("chain"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with("latest"))
        .collect();
    backups.sort_by_key(|path| fs::metadata(path).unwrap().mtime());
    assert_eq!(backups.len(), 4);
    assert_eq!(backup(&lab, "chain"), backups[3]);
    for (truth, backup) in truths.iter().zip(&backups) {
        let root = backup.join("disk0");
        fs::read_dir(&root).unwrap().count();
        assert_same(truth, &facts(&root));
    }
}

#[test]
fn ten_thousand_files_and_a_large_sparse_one() {
    let lab = Lab::new();
    lab.configure("");
    let disk = RawDisk::ext4(lab.path("work/a.raw"), "400M", &[]);
    disk.write(|root| {
        shell(&format!(
            "mkdir {root:?}/many; cd {root:?}/many
             for i in $(seq 10000); do echo $i; done | xargs -n 1000 touch
             truncate -s 2G ../sparse; echo x | dd of=../sparse bs=1 seek=1500000000 conv=notrunc status=none"
        ));
    });
    full(&lab, &disk.path, "many", 0, "20251008-192431");
    lab.scan();
    let _daemon = Daemon::start(&lab);
    let root = backup(&lab, "many").join("disk0");
    // Single look-ups in the folder, which nobody has listed yet.
    shell(&format!(
        "for i in 1 77 9999 10000; do stat -c %n {root:?}/many/$i; done; ! stat {root:?}/many/10001 2>/dev/null"
    ));
    fs::read_dir(&root).unwrap().count();
    assert_eq!(fs::read_dir(root.join("many")).unwrap().count(), 10_000);
    assert_same(&disk.truth(facts), &facts(&root));
    let data = |path: &Path| shell(&format!("xfs_io -r -c 'seek -a 0' {path:?}"));
    let truth = disk.truth(|root| data(&root.join("sparse")));
    assert_eq!(data(&root.join("sparse")), truth);
}

/// > An image taken from a running guest opens; the journal is not replayed.
#[test]
fn an_image_of_a_running_guest_opens_and_says_so() {
    let lab = Lab::new();
    lab.configure("");
    let disk = RawDisk::ext4(lab.path("work/a.raw"), "64M", &[]);
    let copy = lab.path("work/running.raw");
    disk.write(|root| {
        shell(&format!("cd {root:?}; mkdir d; echo before > d/file; sync -f .; echo after > d/late; cp {:?} {copy:?}", disk.path));
    });
    let disk = RawDisk::at(&copy, 0);
    full(&lab, &copy, "running", 0, "20251008-192431");
    lab.scan();
    let _daemon = Daemon::start(&lab);
    let root = backup(&lab, "running").join("disk0");
    fs::read_dir(&root).unwrap().count();
    assert_same(&disk.truth(facts), &facts(&root));
    let note = xattr::get(&root, "user.sendense.note")
        .unwrap()
        .expect("a note");
    assert!(String::from_utf8(note).unwrap().contains("journal"));
}

/// > The tree is read-only, whoever asks.
#[test]
fn nothing_can_be_written() {
    let lab = Lab::new();
    lab.configure("");
    let disk = RawDisk::ext4(lab.path("work/a.raw"), "32M", &[]);
    disk.write(|root| fs::write(root.join("file"), "x").unwrap());
    full(&lab, &disk.path, "ro", 0, "20251008-192431");
    lab.scan();
    let _daemon = Daemon::start(&lab);
    let root = backup(&lab, "ro").join("disk0");
    for attempt in [
        fs::write(root.join("new"), "x"),
        fs::write(root.join("file"), "y"),
        fs::remove_file(root.join("file")),
        fs::create_dir(lab.mountpoint().join("vm")),
    ] {
        assert_eq!(attempt.unwrap_err().raw_os_error(), Some(libc::EROFS));
    }
    let options = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = options
        .lines()
        .find(|l| l.contains(&*lab.mountpoint().to_string_lossy()))
        .unwrap();
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(line.contains(option), "{line}");
    }
}

/// The kernel's own default is 128 KiB; only root may set another.
#[test]
fn the_kernel_reads_as_far_ahead_as_configured() {
    let lab = Lab::new();
    lab.configure("read_ahead = \"768KiB\"");
    let _daemon = Daemon::start(&lab);
    let device = fs::metadata(lab.mountpoint()).unwrap().dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    support::wait_for("768", Duration::from_secs(5), || {
        fs::read_to_string(&path).is_ok_and(|kib| kib.trim() == "768")
    });
}

/// > The tree follows the catalog while it runs.
#[test]
fn the_tree_follows_the_catalog() {
    let lab = Lab::new();
    lab.configure("");
    let disk = RawDisk::ext4(lab.path("work/a.raw"), "32M", &[]);
    disk.write(|root| fs::write(root.join("state"), "one").unwrap());
    let first = full(&lab, &disk.path, "vm", 0, "20251008-192431");
    lab.scan();
    let daemon = Daemon::start(&lab);
    let latest = lab.mountpoint().join("vm/latest");
    let state = latest.join("disk0/state");
    assert_eq!(fs::read_to_string(&state).unwrap(), "one");
    disk.write(|root| fs::write(root.join("state"), "two").unwrap());
    full(&lab, &disk.path, "vm", 0, "20251009-192431");
    lab.scan();
    support::wait_for("the new backup", Duration::from_secs(5), || {
        fs::read_to_string(&state).is_ok_and(|state| state == "two")
    });
    assert_eq!(
        fs::read_dir(lab.mountpoint().join("vm")).unwrap().count(),
        3
    );
    // A backup that has gone leaves the tree, and its disk is released.
    let old = fs::read_dir(lab.mountpoint().join("vm"))
        .unwrap()
        .map(|e| e.unwrap().path());
    let old = old
        .filter(|p| !p.ends_with("latest"))
        .find(|p| fs::read_to_string(p.join("disk0/state")).unwrap() == "one")
        .unwrap();
    assert_eq!(daemon.qemu_nbds().len(), 2);
    fs::remove_file(first).unwrap();
    lab.scan();
    support::wait_for("the old backup to go", Duration::from_secs(5), || {
        !old.exists()
    });
    support::wait_for("its disk to be released", Duration::from_secs(5), || {
        daemon.qemu_nbds().len() == 1
    });
}

/// Disks whose rows came in another order than their numbers are listed once.
#[test]
fn disks_are_listed_once_whatever_their_order() {
    let lab = Lab::new();
    lab.configure("");
    let disk = RawDisk::ext4(lab.path("work/a.raw"), "32M", &[]);
    let last = full(&lab, &disk.path, "vm", 2, "20251008-192431");
    lab.scan();
    fs::remove_file(&last).unwrap();
    full(&lab, &disk.path, "vm", 1, "20251008-192431");
    full(&lab, &disk.path, "vm", 0, "20251008-192431");
    full(&lab, &disk.path, "vm", 2, "20251008-192431");
    lab.scan();
    let _daemon = Daemon::start(&lab);
    let names = shell(&format!("ls -U {:?}", backup(&lab, "vm")));
    let mut sorted: Vec<&str> = names.lines().collect();
    sorted.sort_unstable();
    assert_eq!(
        sorted,
        [
            "disk0",
            "disk0.raw",
            "disk1",
            "disk1.raw",
            "disk2",
            "disk2.raw"
        ]
    );
}

/// An NTFS volume through the whole way, compared with ntfs-3g.
#[test]
fn ntfs_is_as_ntfs_3g_sees_it() {
    let lab = Lab::new();
    lab.configure("");
    let (disk, mount) = (lab.path("work/ntfs.raw"), lab.path("work/ntfs"));
    fs::create_dir(&mount).unwrap();
    shell(&format!(
        "truncate -s 100M {disk:?}; mkntfs -q -F -Q -L Daten {disk:?}
         ntfs-3g {disk:?} {mount:?}; trap 'umount {mount:?}' EXIT; cd {mount:?}
         mkdir -p Users/Default Windows; head -c 5000000 /dev/urandom > Windows/random
         for i in $(seq 500); do echo file $i > Users/Default/f$i; done
         echo a > 'Grüße – 日本'; ln Windows/random hard; ln -s Users link; truncate -s 20M sparse
         echo stream > Windows/with; setfattr -n user.note -v hidden Windows/with
         touch -d '1999-12-31 23:59:59.1234567 UTC' Users/Default/f7; cd /"
    ));
    full(&lab, &disk, "windows", 0, "20251008-192431");
    lab.scan();
    let _daemon = Daemon::start(&lab);
    let root = backup(&lab, "windows").join("disk0");
    // Owners and modes are mapped by each in its own way.
    let comparable = |mut all: support::facts::Facts| {
        for facts in all.values_mut() {
            facts.retain(|key, _| {
                ["type", "size", "sha256", "mtime", "target"].contains(&key.as_str())
            });
            if facts["type"] == "directory" {
                facts.remove("size");
            }
        }
        all
    };
    fs::read_dir(&root).unwrap().count();
    let shown = facts(&root);
    shell(&format!("ntfs-3g -o ro {disk:?} {mount:?}"));
    let truth = facts(&mount);
    run("umount", [&mount]);
    assert!(truth.len() > 500);
    assert_same(&comparable(truth), &comparable(shown));
    let stream = xattr::get(root.join("Windows/with"), "user.note").unwrap();
    assert_eq!(stream.as_deref(), Some(b"hidden".as_slice()));
    let label = xattr::get(&root, "user.sendense.label").unwrap();
    assert_eq!(label.as_deref(), Some(b"Daten".as_slice()));
}
