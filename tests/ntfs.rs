//! NTFS through the real program: what the tree shows, compared with ntfs-3g's
//! view of the same images.
#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::facts::sha256;
use support::images::full;
use support::{Daemon, Lab, assert_same, facts, shell, wait_for};

/// A mount by ntfs-3g, undone on drop.
struct Ntfs3g {
    dir: tempfile::TempDir,
    daemon: Child,
}

impl Ntfs3g {
    fn new(image: &Path, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Command::new("ntfs-3g")
            .args(["-o", &format!("no_detach,{options}")])
            .args([image, dir.path()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ntfs-3g is needed; run scripts/setup --test");
        wait_for("ntfs-3g", Duration::from_secs(20), || {
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            mounts.contains(dir.path().to_str().unwrap())
        });
        Self { dir, daemon }
    }

    fn root(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Ntfs3g {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.dir.path()).status();
        // It writes what it still has before it ends.
        let _ = self.daemon.wait();
    }
}

/// An NTFS volume filled by `work`, as the backup of a VM `name`; the raw image.
fn backup_of(lab: &Lab, name: &str, size: &str, work: impl FnOnce(&Path)) -> PathBuf {
    backup_written(lab, name, size, "compression", work)
}

/// As [`backup_of`], written through a mount with these options.
fn backup_written(
    lab: &Lab,
    name: &str,
    size: &str,
    options: &str,
    work: impl FnOnce(&Path),
) -> PathBuf {
    let raw = lab.path(format!("work/{name}.raw"));
    shell(&format!(
        "truncate -s {size} {raw:?}; mkntfs -F -Q -q -c 4096 -p 0 -H 16 -S 63 {raw:?}"
    ));
    let mount = Ntfs3g::new(&raw, options);
    work(mount.root());
    drop(mount);
    full(lab, &raw, name, 0, "20251008-192431");
    raw
}

fn disk(lab: &Lab, name: &str) -> PathBuf {
    lab.mountpoint().join(name).join("latest/disk0")
}

fn compressed_folder(path: &Path) {
    fs::create_dir(path).unwrap();
    xattr::set(path, "system.ntfs_attrib_be", &0x810u32.to_be_bytes()).unwrap();
}

/// Lines that compress to about a third.
fn text(len: usize) -> Vec<u8> {
    let mut seed = 1u32;
    let mut out = Vec::with_capacity(len + 64);
    while out.len() < len {
        seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        out.extend(format!("line {} of a log, {}\n", seed >> 16, seed % 7).into_bytes());
    }
    out.truncate(len);
    out
}

#[test]
fn every_file_is_as_ntfs_3g_shows_it() {
    let lab = Lab::new();
    lab.configure("");
    let raw = backup_of(&lab, "win", "256M", |root| {
        shell(&format!(
            r#"
cd {root:?}
mkdir -p Windows/System32/drivers Users/Öffentlich empty
printf 'x%.0s' $(seq 1 255) | xargs -I{{}} touch Users/{{}}
touch Users/CON 'Users/trailing dot.' 'Users/trailing space ' 'Users/a:b' 'Users/q?*<>|"\'
head -c 700000 /dev/urandom > Windows/System32/kernel.dll
head -c 300 /dev/urandom > Windows/System32/small.dll
ln Windows/System32/kernel.dll Windows/hard; ln -s System32/small.dll Windows/soft
truncate -s 100M sparse; echo middle | dd of=sparse bs=1 seek=50000000 conv=notrunc status=none
mkfifo pipe; mknod device b 8 17
setfattr -n user.Zone.Identifier -v '[ZoneTransfer]' Windows/System32/kernel.dll
setfattr -n user.of.folder -v stream Users
touch -d '1985-01-02 03:04:05.1234567 UTC' Users/CON
touch -d '2200-01-02 03:04:05.7654321 UTC' 'Users/trailing dot.'
"#
        ));
        compressed_folder(&root.join("compressed"));
        fs::write(root.join("compressed/text"), text(9_000_000)).unwrap();
        fs::write(root.join("compressed/tiny"), text(2000)).unwrap();
        let holes = fs::File::create(root.join("compressed/holes")).unwrap();
        for n in [0, 3, 50, 51] {
            holes.write_all_at(&text(70_000), n * 100_000).unwrap();
        }
        holes.set_len(7_000_000).unwrap();
    });
    lab.scan();
    let _daemon = Daemon::start(&lab);
    let root = disk(&lab, "win");
    // Attached when somebody looks inside; until then it looks like any disk.
    fs::read_dir(&root).unwrap().count();
    let shown = facts(&root);
    let mount = Ntfs3g::new(&raw, "ro,uid=0,gid=0,fmask=0133,dmask=0022");
    let mut truth = facts(mount.root());
    // To ntfs-3g a device is as long as the text that says which it is.
    let device = truth.get_mut(&b"/device"[..]).unwrap();
    device.insert("size".into(), "0".into());
    assert!(truth.len() > 20, "{} files", truth.len());
    assert_same(&truth, &shown);
}

#[test]
fn owner_modes_and_case_are_as_configured() {
    let lab = Lab::new();
    backup_of(&lab, "win", "64M", |root| {
        shell(&format!(
            r#"
cd {root:?}
mkdir -p Windows/System32 Users
echo kernel > Windows/System32/Kernel.DLL
echo protected > Users/locked
echo one > Users/readme; echo two > Users/README; echo three > Users/ReadMe
setfattr -h -n system.ntfs_attrib_be -v 0x00000021 Users/locked
"#
        ));
    });
    lab.configure(
        "guest_owner = \"daemon:7\"\nguest_file_mode = \"0660\"\nguest_folder_mode = 0o750\n\
         guest_ignore_case = true",
    );
    lab.scan();
    let daemon = Daemon::start(&lab);
    let root = disk(&lab, "win");
    let looks = |path: &str| {
        let meta = fs::symlink_metadata(root.join(path)).unwrap();
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    };
    assert_eq!(looks("Windows/System32/Kernel.DLL"), (1, 7, 0o660));
    assert_eq!(looks("Users/locked"), (1, 7, 0o440));
    assert_eq!(looks("Windows"), (1, 7, 0o750));
    let ino = |path: &str| fs::symlink_metadata(root.join(path)).map(|meta| meta.ino());
    let folder = ino("Windows/System32").unwrap();
    for other in ["WINDOWS/system32", "windows/SYSTEM32", "Windows/System32"] {
        assert_eq!(ino(other).unwrap(), folder, "{other}");
    }
    assert!(ino("WINDOWS/system33").is_err());
    // Of several spellings the exact one, else the first in the order of names.
    let content = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    assert_eq!(content("USERS/readme"), "one\n");
    assert_eq!(content("users/README"), "two\n");
    assert_eq!(content("Users/ReadMe"), "three\n");
    assert_eq!(content("Users/rEADmE"), "two\n");
    assert_eq!(content("WINDOWS/SYSTEM32/KERNEL.dll"), "kernel\n");

    // One folder by two names in the kernel's cache does no harm, whoever stands
    // in it: listings, walks and the way up go on.
    let script = format!(
        r#"
cd {root:?}/Windows/System32; inode=$(stat -c %i .)
for n in 1 2 3; do
    ls ../../WINDOWS/system32 ../../windows/System32 ../SYSTEM32 > /dev/null
    [[ $(ls) == Kernel.DLL && $(stat -c %i .) == "$inode" && $(ls -U ../..| wc -l) == 2 ]]
    [[ $(cat ../../Windows/SYSTEM32/kernel.DLL kernel.dll | sort -u) == kernel ]]
    [[ $(find ../../WINDOWS ../../Windows | wc -l) == 6 ]]
    [[ $(cd ../../WINDOWS && pwd -P && ls) == *System32 ]]
done
find {root:?} | sort
"#
    );
    let spelled = shell(&script);
    for name in ["/Windows/System32/Kernel.DLL", "/Users/ReadMe"] {
        assert!(spelled.contains(name), "{spelled}");
    }
    assert_eq!(spelled.lines().count(), 9, "{spelled}");
    // Both at once, by many.
    std::thread::scope(|scope| {
        for name in ["WINDOWS/system32", "Windows/System32", "windows/SYSTEM32"] {
            let path = root.join(name);
            scope.spawn(move || {
                for _ in 0..300 {
                    assert_eq!(fs::metadata(&path).unwrap().ino(), folder);
                    let names: Vec<_> = fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().file_name().into_vec())
                        .collect();
                    assert_eq!(names, [b"Kernel.DLL"]);
                }
            });
        }
    });
    daemon.stop();
}

/// A large compressed file is read by several at once, without holding up those
/// who ask for something else, and without driving metadata out of memory.
#[test]
fn compressed_data_holds_up_nobody() {
    let lab = Lab::new();
    lab.configure("cache_size = \"8MiB\"");
    let content = text(48 << 20);
    backup_of(&lab, "win", "256M", |root| {
        compressed_folder(&root.join("c"));
        fs::write(root.join("c/data"), &content).unwrap();
        fs::write(lab.path("work/data"), &content).unwrap();
        for n in 0..200 {
            fs::create_dir(root.join(format!("folder{n}"))).unwrap();
        }
    });
    lab.scan();
    let daemon = Daemon::start(&lab);
    let root = disk(&lab, "win");
    // What listings need is in memory from now on.
    shell(&format!("ls -l {root:?} > /dev/null"));
    let figures = || -> serde_json::Value {
        serde_json::from_str(&lab.sendense_ok(["status", "--json"])).unwrap()
    };
    let before = figures();
    let slowest = std::thread::scope(|scope| {
        let reader = scope.spawn(|| sha256(&root.join("c/data")));
        let mut slowest = Duration::ZERO;
        let mut n = 0;
        while !reader.is_finished() {
            let began = Instant::now();
            // Not in the kernel's cache: asked for by the first time.
            let absent = root.join(format!("folder{}/absent{n}", n % 200));
            assert!(fs::symlink_metadata(absent).is_err());
            slowest = slowest.max(began.elapsed());
            n += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(reader.join().unwrap(), sha256(&lab.path("work/data")));
        slowest
    });
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    let pages = |figures: &serde_json::Value| figures["cache"]["misses"].as_u64().unwrap();
    let fetched = pages(&figures()) - pages(&before);
    assert!(fetched < 40, "{fetched} pages passed through the cache");
    daemon.stop();
}

#[test]
fn a_stream_too_long_for_an_attribute_keeps_no_file_back() {
    let lab = Lab::new();
    lab.configure("");
    backup_written(&lab, "win", "64M", "streams_interface=windows", |root| {
        fs::create_dir(root.join("folder")).unwrap();
        for (name, len) in [
            ("folder/file", 5),
            ("folder/file:small", 7),
            ("folder/file:long", 65_537),
            ("edge", 0),
            ("edge:full", 65_536),
            ("edge:long", 65_537),
        ] {
            fs::write(root.join(name), vec![b'x'; len]).unwrap();
        }
    });
    lab.scan();
    let daemon = Daemon::start(&lab);
    let folder = disk(&lab, "win").join("folder");
    let names = |file: &Path| xattr::list(file).unwrap().collect::<Vec<_>>();
    assert_eq!(names(&folder.join("file")), ["user.small"]);
    let edge = disk(&lab, "win").join("edge");
    assert_eq!(names(&edge), ["user.full"]);
    let full = xattr::get(edge, "user.full").unwrap().unwrap();
    assert_eq!(full, vec![b'x'; 65_536]);
    // Whoever asks for it is told why there is nothing to get.
    let error = xattr::get(folder.join("file"), "user.long").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::E2BIG));
    let log = daemon.log();
    let said = log.lines().find(|line| line.contains("longer than 65536"));
    // The log names the disk that it speaks of.
    assert!(said.unwrap().contains("disk=\"win/backup-win-"), "{log}");

    let (by_rsync, by_cp) = (lab.path("by-rsync"), lab.path("by-cp"));
    fs::create_dir(&by_cp).unwrap();
    shell(&format!("rsync -aX {folder:?} {by_rsync:?}"));
    lab.sendense_ok([
        "cp".as_ref(),
        "-a".as_ref(),
        "win/latest/disk0/folder".as_ref(),
        by_cp.as_os_str(),
    ]);
    for copy in [by_rsync, by_cp] {
        let file = copy.join("folder/file");
        assert_eq!(fs::read(&file).unwrap(), b"xxxxx");
        assert_eq!(names(&file), ["user.small"]);
    }
    daemon.stop();
}
