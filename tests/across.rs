//! Volumes that lie on several disks of a backup.
#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use support::images::{RawDisk, full, layout, varied_tree};
use support::{Daemon, Lab, assert_same, facts, run, shell};

const MIB: u64 = 1 << 20;
const STAMP: &str = "20251008-192431";

/// LVM2's tools on disks as loop devices, without the kernel's driver.
struct Lvm {
    loops: Vec<String>,
    config: String,
}

impl Lvm {
    fn new(disks: &[PathBuf]) -> Self {
        let attach = |disk: &PathBuf| {
            let args = ["-f".as_ref(), "--show".as_ref(), disk.as_os_str()];
            run("losetup", args).trim().to_owned()
        };
        let loops: Vec<String> = disks.iter().map(attach).collect();
        let filter: Vec<String> = loops.iter().map(|l| format!("\"a|^{l}$|\"")).collect();
        let config = format!(
            "devices{{filter=[{},\"r|.*|\"] use_devicesfile=0 scan=[\"/dev\"]}} \
             backup{{backup=0 archive=0}}",
            filter.join(",")
        );
        let lvm = Self { loops, config };
        let all: Vec<&str> = lvm.loops.iter().map(String::as_str).collect();
        lvm.run("vgcreate", &[&["-s", "1M", "vg0"][..], &all].concat());
        lvm
    }

    fn run(&self, command: &str, args: &[&str]) -> String {
        let first = ["--driverloaded", "n", "--config", &self.config];
        run(command, [&first[..], args].concat())
    }

    fn create(&self, name: &str, args: &[&str]) {
        let first = ["-an", "-Zn", "-Wn", "-y", "-n", name];
        self.run("lvcreate", &[&first[..], args].concat());
    }

    /// Writes the file `from` where LVM2 says that the bytes of a volume lie.
    fn fill(&self, volume: &str, from: &Path, disks: &[PathBuf]) {
        let b = [
            "--units",
            "b",
            "--nosuffix",
            "--noheadings",
            "--separator",
            "|",
        ];
        let columns = "seg_start,seg_size,stripe_size,seg_pe_ranges";
        let name = format!("vg0/{volume}");
        let args = [&b[..], &["--segments", "-o", columns, &name]].concat();
        let start = self.run("pvs", &[&b[..], &["-o", "pe_start"]].concat());
        let start: u64 = start.lines().next().unwrap().trim().parse().unwrap();
        let source = File::open(from).unwrap();
        let open = |disk: &PathBuf| File::options().write(true).open(disk).unwrap();
        let disks: Vec<File> = disks.iter().map(open).collect();
        for row in self.run("lvs", &args).lines() {
            let fields: Vec<&str> = row.trim().split('|').collect();
            let number = |i: usize| fields[i].parse::<u64>().unwrap();
            let columns: Vec<(usize, u64)> = fields[3]
                .split(' ')
                .map(|range| {
                    let (device, extents) = range.split_once(':').unwrap();
                    let extent: u64 = extents.split_once('-').unwrap().0.parse().unwrap();
                    let disk = self.loops.iter().position(|l| l == device).unwrap();
                    (disk, start + extent * MIB)
                })
                .collect();
            let (first, len, width) = (number(0), number(1), columns.len() as u64);
            let stripe = if width == 1 { MIB } else { number(2) };
            let mut bytes = vec![0; stripe as usize];
            for index in 0..len / stripe {
                source
                    .read_exact_at(&mut bytes, first + index * stripe)
                    .unwrap();
                let (disk, at) = columns[(index % width) as usize];
                let at = at + index / width * stripe;
                disks[disk].write_all_at(&bytes, at).unwrap();
            }
        }
    }
}

impl Drop for Lvm {
    fn drop(&mut self) {
        for device in &self.loops {
            let _ = std::process::Command::new("losetup")
                .args(["-d", device])
                .status();
        }
    }
}

fn disk(lab: &Lab, name: &str, size: u64) -> PathBuf {
    let path = lab.path(format!("work/{name}"));
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// Two disks with a volume group over them: `vg0-pieces` in two pieces, one on each
/// disk, and `vg0-striped` over both, with swap before it. Also the file systems in
/// them.
fn volume_group(lab: &Lab) -> (Vec<PathBuf>, [RawDisk; 2]) {
    let disks = vec![disk(lab, "d0", 200 * MIB), disk(lab, "d1", 200 * MIB)];
    let lvm = Lvm::new(&disks);
    let (one, two) = (lvm.loops[0].clone(), lvm.loops[1].clone());
    lvm.create("pieces", &["-L", "40M", "vg0", &two]);
    lvm.run("lvextend", &["-y", "vg0/pieces", "-L", "80M", &one]);
    lvm.create("aswap", &["-i2", "-I64k", "-L", "16M", "vg0"]);
    let swap = disk(lab, "swap", 16 * MIB);
    run("mkswap", ["-q".as_ref(), swap.as_os_str()]);
    lvm.fill("aswap", &swap, &disks);
    lvm.create("striped", &["-i2", "-I64k", "-L", "64M", "vg0"]);
    let inner = ["pieces:80M", "striped:64M"].map(|volume| {
        let (name, size) = volume.split_once(':').unwrap();
        let raw = RawDisk::ext4(lab.path(format!("work/{name}")), size, &[]);
        raw.write(|root| {
            varied_tree(root);
            shell(&format!("head -c 20000000 /dev/urandom > {root:?}/large"));
        });
        lvm.fill(name, &raw.path, &disks);
        raw
    });
    drop(lvm);
    (disks, inner)
}

fn images(lab: &Lab, vm: &str, disks: &[PathBuf]) {
    for (number, disk) in (0..).zip(disks) {
        full(lab, disk, vm, number, STAMP);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn attribute(path: &Path, name: &str) -> String {
    let value = xattr::get(path, name).unwrap();
    let value = value.unwrap_or_else(|| panic!("{} has no {name}", path.display()));
    String::from_utf8(value).unwrap()
}

/// > A volume that lies on several disks of a backup is shown by the lowest of them;
/// > each of the others has a link to that one in its place.
#[test]
fn a_volume_group_over_two_disks() {
    let lab = Lab::new();
    // With a single slot: the two count as one, and neither waits for the other.
    lab.configure("slots = 1");
    let (disks, inner) = volume_group(&lab);
    images(&lab, "vm", &disks);
    lab.scan();
    let daemon = Daemon::start(&lab);
    let backup = fs::canonicalize(lab.mountpoint().join("vm/latest")).unwrap();
    let (first, second) = (backup.join("disk0"), backup.join("disk1"));
    assert_eq!(names(&second), ["vg0"]);
    let link = fs::read_link(second.join("vg0")).unwrap();
    assert_eq!(link, Path::new("../disk0"));
    assert_eq!(names(&first), ["vg0-pieces", "vg0-striped"]);
    assert_eq!(names(&second.join("vg0")), ["vg0-pieces", "vg0-striped"]);
    for (name, raw) in ["vg0-pieces", "vg0-striped"].iter().zip(&inner) {
        assert_same(&raw.truth(facts), &facts(&first.join(name)));
    }
    assert_eq!(
        attribute(&first.join("vg0-striped"), "user.sendense.size"),
        (64 * MIB).to_string()
    );
    // Both images are open for the first disk, and nothing else is.
    assert_eq!(daemon.qemu_nbds().len(), 2);
    // Many readers of both disks over one slot.
    let readers: Vec<_> = (0..4)
        .map(|i| {
            let folder = [&first, &second][i % 2].clone();
            std::thread::spawn(move || {
                for _ in 0..10 {
                    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
                    assert!(!names(&folder).is_empty());
                }
            })
        })
        .collect();
    readers
        .into_iter()
        .for_each(|reader| reader.join().unwrap());
    let numbers = |folder: &Path| -> Vec<u64> {
        let all = ["vg0-pieces", "vg0-striped"].iter();
        all.map(|name| fs::metadata(folder.join(name).join("large")).unwrap().ino())
            .collect()
    };
    let before = numbers(&first);
    let target = lab.path("work/copy");
    shell(&format!("cp -a {backup:?} {target:?}-cp"));
    shell(&format!(
        "rsync -aHX --exclude=*.raw {backup:?}/ {target:?}-rsync/"
    ));
    lab.sendense_ok(["cp", "-a", "vm/latest/disk1", target.to_str().unwrap()]);
    assert_eq!(
        fs::read_link(target.join("vg0")).unwrap(),
        Path::new("../disk0")
    );
    let digest = support::facts::sha256(
        &target
            .with_file_name("copy-cp")
            .join("disk0/vg0-striped/large"),
    );
    assert_eq!(
        digest,
        support::facts::sha256(&first.join("vg0-striped/large"))
    );
    let listed = lab.sendense_ok(["ls", "vm/latest/disk1/vg0/vg0-striped"]);
    assert!(listed.contains("large"), "{listed}");
    daemon.stop();
    let _daemon = Daemon::start(&lab);
    assert_eq!(numbers(&first), before);
}

/// > A volume that needs a disk that is not there has its folder, and says what it
/// > needs.
#[test]
fn a_missing_sibling() {
    let lab = Lab::new();
    lab.configure("");
    let (disks, inner) = volume_group(&lab);
    images(&lab, "vm", &disks);
    lab.scan();
    let image = layout(&lab, "vm", 1, STAMP);
    let away = lab.path("work/away");
    fs::rename(&image, &away).unwrap();
    let _daemon = Daemon::start(&lab);
    let backup = fs::canonicalize(lab.mountpoint().join("vm/latest")).unwrap();
    let first = backup.join("disk0");
    let striped = first.join("vg0-striped");
    // The catalog has it still.
    let error = fs::read_dir(&striped).map(Iterator::count).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
    // The number of a folder that stands for a volume; ext4's root is inode 2 in it.
    let number = |path: &Path| fs::metadata(path).unwrap().ino();
    let base = number(&striped);
    let why = attribute(&striped, "user.sendense.error");
    println!("{why}");
    assert!(
        why.contains("pv1") && why.contains("disk1 cannot be opened"),
        "{why}"
    );
    // Nor has the catalog.
    lab.scan();
    support::wait_for(
        "the disk to vanish",
        std::time::Duration::from_secs(5),
        || !names(&backup).contains(&"disk1".to_owned()),
    );
    support::wait_for("the reason", std::time::Duration::from_secs(5), || {
        fs::read_dir(&striped).map(Iterator::count).is_err()
            && attribute(&striped, "user.sendense.error").contains("the backup has no other")
    });
    // It comes back: what is shown follows, and has all its files.
    fs::rename(&away, &image).unwrap();
    lab.scan();
    support::wait_for("the files", std::time::Duration::from_secs(5), || {
        striped.join("large").exists()
    });
    assert_same(&inner[1].truth(facts), &facts(&striped));
    // What turns out to hold no files has its numbers all the same.
    assert!(!first.join("vg0-aswap").exists());
    assert_eq!(number(&striped), base + 2);
    // The first goes: the second shows the group.
    let image = layout(&lab, "vm", 0, STAMP);
    assert_eq!(names(&backup.join("disk1")), ["vg0"]);
    fs::rename(&image, &away).unwrap();
    lab.scan();
    support::wait_for(
        "the group in disk1",
        std::time::Duration::from_secs(5),
        || names(&backup.join("disk1")) == ["vg0-aswap", "vg0-pieces", "vg0-striped"],
    );
}

/// Nothing is opened for a disk that needs no other.
#[test]
fn a_disk_that_needs_no_other_opens_none() {
    let lab = Lab::new();
    lab.configure("");
    let raw = RawDisk::ext4(lab.path("work/a.raw"), "64M", &[]);
    raw.write(|root| fs::write(root.join("file"), "here").unwrap());
    for number in 0..3 {
        full(&lab, &raw.path, "vm", number, STAMP);
    }
    lab.scan();
    let daemon = Daemon::start(&lab);
    let disk = lab.mountpoint().join("vm/latest/disk1");
    assert_eq!(fs::read_to_string(disk.join("file")).unwrap(), "here");
    assert_eq!(daemon.qemu_nbds().len(), 1);
}

/// Where data begins on a member of an array.
const DATA: u64 = MIB;
const CHUNK: u64 = 64 << 10;

/// The superblock (format 1.2) of member `role` of an array, as Linux lays it out.
fn superblock(level: u32, layout: u32, members: u32, each: u64, role: u32) -> Vec<u8> {
    let mut b = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
    for (at, value) in [
        (0, 0xa92b_4efc),
        (4, 1),
        (72, level),
        (76, layout),
        (88, (CHUNK / 512) as u32),
        (92, members),
        (160, role),
        (220, 16),
    ] {
        put(at, &value.to_le_bytes());
    }
    for (at, value) in [
        (80, each / 512),
        (128, DATA / 512),
        (136, each / 512),
        (144, 8),
        (200, 3),
        (208, u64::MAX),
    ] {
        put(at, &value.to_le_bytes());
    }
    put(16, &[0x11 * (level as u8 % 10 + 1); 16]);
    put(32, b"host:data");
    for member in 0..16_u16 {
        let role = if u32::from(member) < members {
            member
        } else {
            0xffff
        };
        put(256 + 2 * usize::from(member), &role.to_le_bytes());
    }
    let words = b[..288]
        .chunks_exact(4)
        .map(|w| u64::from(u32::from_le_bytes(w.try_into().unwrap())));
    let sum: u64 = words.sum();
    b[216..220].copy_from_slice(&(((sum & 0xffff_ffff) + (sum >> 32)) as u32).to_le_bytes());
    b
}

/// Arrays whose members are whole disks of the backup, and one whose members are
/// missing a disk.
#[test]
fn software_raid_over_disks() {
    let lab = Lab::new();
    lab.configure("");
    let each = 48 * MIB;
    for (level, layout, members) in [(0, 0, 2), (1, 0, 2), (10, 0x102, 3)] {
        let vm = format!("raid{level}");
        let size = match level {
            0 => each * u64::from(members),
            1 => each,
            _ => each / CHUNK * 3 / 2 * CHUNK,
        };
        let raw = RawDisk::ext4(lab.path(format!("work/{vm}")), &size.to_string(), &[]);
        raw.write(|root| {
            varied_tree(root);
            shell(&format!("head -c 15000000 /dev/urandom > {root:?}/large"));
        });
        let disks: Vec<PathBuf> = (0..members)
            .map(|n| disk(&lab, &format!("{vm}-{n}"), each + 2 * DATA))
            .collect();
        let open: Vec<File> = disks
            .iter()
            .map(|disk| File::options().write(true).open(disk).unwrap())
            .collect();
        for (role, file) in (0..).zip(&open) {
            let bytes = superblock(level, layout, members, each, role);
            file.write_all_at(&bytes, 4096).unwrap();
        }
        let source = File::open(&raw.path).unwrap();
        let mut bytes = vec![0; CHUNK as usize];
        for number in 0..size / CHUNK {
            source.read_exact_at(&mut bytes, number * CHUNK).unwrap();
            let n = u64::from(members);
            let places = match level {
                0 => vec![number],
                1 => vec![number * n, number * n + 1],
                _ => vec![number * 2, number * 2 + 1],
            };
            for place in places {
                let at = DATA + place / n * CHUNK;
                open[(place % n) as usize].write_all_at(&bytes, at).unwrap();
            }
        }
        let said = run("mdadm", ["--examine".as_ref(), disks[0].as_os_str()]);
        assert!(said.contains("correct"), "{said}");
        images(&lab, &vm, &disks);
        lab.scan();
        let daemon = Daemon::start(&lab);
        let backup = fs::canonicalize(lab.mountpoint().join(&vm).join("latest")).unwrap();
        let first = backup.join("disk0");
        // The only volume: its files are the disk's, once it was looked into.
        assert!(!names(&first).is_empty());
        assert_same(&raw.truth(facts), &facts(&first));
        let link = fs::read_link(backup.join("disk1/md-data")).unwrap();
        assert_eq!(link, Path::new("../disk0"));
        daemon.stop();
        // One member fewer.
        fs::remove_file(support::images::layout(&lab, &vm, 1, STAMP)).unwrap();
        let _daemon = Daemon::start(&lab);
        if level == 0 {
            assert!(fs::read_dir(&first).map(Iterator::count).is_err());
            let why = attribute(&first, "user.sendense.error");
            assert!(why.contains("needs its member 1 of 2"), "{why}");
        } else {
            assert!(!names(&first).is_empty());
            assert_same(&raw.truth(facts), &facts(&first));
            let note = attribute(&first, "user.sendense.note");
            assert!(note.contains("read without 1 of its members"), "{note}");
        }
    }
}

/// > A locked volume has its folder, and says that it needs a key.
#[test]
fn a_locked_volume_says_that_it_needs_a_key() {
    let lab = Lab::new();
    lab.configure("");
    let raw = disk(&lab, "locked", 64 * MIB);
    shell(&format!(
        "echo -n secret | cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 {raw:?} -"
    ));
    images(&lab, "vm", &[raw]);
    lab.scan();
    let _daemon = Daemon::start(&lab);
    let disk = lab.mountpoint().join("vm/latest/disk0");
    let error = fs::read_dir(&disk).map(Iterator::count).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    let why = attribute(&disk, "user.sendense.error");
    assert!(why.contains("locked (LUKS) and needs a key"), "{why}");
    assert_eq!(attribute(&disk, "user.sendense.type"), "crypto_LUKS");
}
