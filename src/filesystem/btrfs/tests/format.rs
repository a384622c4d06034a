//! What `mkfs.btrfs` can be told: checksums, nodes, features, profiles.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use super::content::text;
use super::pool::{Pool, sh};
use crate::error::{Error, Result};
use crate::filesystem::btrfs::Btrfs;
use crate::filesystem::btrfs::checksum::Checksum;
use crate::filesystem::ext::tests::image::{bytes, unmount};
use crate::filesystem::{Description, Extent, FileSystem, FileType, Source};

/// A little of everything.
fn fill(pool: &Pool, options: &str) {
    let mount = pool.mount(options);
    let root = mount.path();
    fs::create_dir_all(root.join("a/b")).expect("a folder");
    for n in 0..300u64 {
        let name = format!("a/{n} {}", "n".repeat(n as usize % 200));
        fs::write(root.join(name), text(n as usize * 40, n)).expect("a file");
    }
    fs::write(root.join("noise"), bytes(1 << 20, 1)).expect("a file");
    fs::write(root.join("text"), text(1 << 20, 2)).expect("a file");
    let holes = File::create(root.join("holes")).expect("a file");
    for n in 0..100u64 {
        holes
            .write_all_at(&text(5000, n), n * 70_000)
            .expect("data");
    }
    xattr::set(root.join("text"), "user.name", b"value").expect("an attribute");
}

fn filled(count: usize, size: u64, options: &[&str]) -> Pool {
    let pool = Pool::make(count, size << 20, options);
    fill(&pool, "compress=zstd");
    pool
}

fn agrees(count: usize, size: u64, options: &[&str]) -> Description {
    let pool = filled(count, size, options);
    let (walk, description) = pool.agrees("");
    assert!(walk.decoded > 0);
    description
}

#[test]
fn checksums() {
    for kind in ["crc32c", "xxhash", "sha256", "blake2"] {
        let description = agrees(1, 300, &["--csum", kind, "-L", kind]);
        assert_eq!(description.label, kind.as_bytes());
    }
}

#[test]
fn nodes_and_features() {
    agrees(1, 300, &["-n", "4096", "-m", "single"]);
    agrees(1, 300, &["-n", "65536"]);
    agrees(1, 100, &["--mixed"]);
    agrees(
        1,
        300,
        &[
            "-O",
            "^no-holes,^skinny-metadata,^extref",
            "-R",
            "^free-space-tree",
        ],
    );
    agrees(1, 300, &["-R", "quota"]);
}

#[test]
fn another_uuid() {
    let pool = filled(1, 300, &[]);
    let before = pool.blkid("UUID");
    sh(&[&"btrfstune", &"-m", &pool.devices[0]]);
    let (_, description) = pool.agrees("");
    assert_ne!(description.uuid, before);
}

/// The kernel reads sectors larger than its pages only as an experiment, so this
/// is compared with what `mkfs.btrfs` has copied.
#[test]
fn large_sectors() {
    let folder = tempfile::tempdir().expect("a folder");
    for size in [0, 1, 2000, 4096, 16_384, 65_536, 300_000] {
        fs::write(folder.path().join(size.to_string()), text(size, 1)).expect("a file");
    }
    for sector in ["16384", "65536"] {
        let pool = Pool::make(
            1,
            300 << 20,
            &[
                "-s",
                sector,
                "-n",
                "65536",
                "--rootdir",
                folder.path().to_str().expect("a path"),
            ],
        );
        let (fs, source) = (pool.open(), pool.source());
        assert_eq!(fs.description().block_size.to_string(), sector);
        let names = super::compare::list(&fs, fs.root(), 3);
        assert_eq!(names.len(), 7);
        for (name, ino, _) in names {
            let theirs = fs::read(folder.path().join(OsStr::from_bytes(&name))).expect("a file");
            let mut ours = vec![0; theirs.len() + 1];
            assert_eq!(fs.read(ino, 0, &mut ours).expect("data"), theirs.len());
            assert!(ours[..theirs.len()] == theirs);
        }
        read_all(&fs, &source).expect("all of it");
    }
}

#[test]
fn profiles() {
    for (count, data, metadata) in [
        (1, "dup", "dup"),
        (2, "raid0", "raid1"),
        (3, "raid0", "raid0"),
        (2, "raid1", "raid1"),
        (3, "raid1c3", "raid1c3"),
        (4, "raid1c4", "raid1c4"),
        (4, "raid10", "raid10"),
        (3, "raid5", "raid5"),
        (4, "raid6", "raid6"),
        (3, "single", "raid1"),
    ] {
        let description = agrees(count, 300, &["-d", data, "-m", metadata]);
        assert!(description.notes.is_empty(), "{:?}", description.notes);
    }
}

/// Reads all files of a folder; the error of the first that cannot be read.
fn read_all(fs: &Btrfs, source: &Source) -> Result<usize> {
    let mut names = Vec::new();
    fs.read_dir(fs.root(), 0, &mut |entry| {
        names.push(entry.ino);
        std::ops::ControlFlow::Continue(())
    })?;
    let mut read = 0;
    for ino in names {
        let attr = fs.attr(ino)?;
        if attr.kind == FileType::Regular {
            let mut buf = vec![0; attr.size as usize];
            read += fs.read(ino, 0, &mut buf)?;
            let mut extents = Vec::new();
            fs.extents(ino, 0, u64::MAX, &mut extents)?;
            for extent in extents {
                if let Extent::Volume { offset, len } = extent {
                    source.volume.read_at(offset, &mut vec![0; len as usize])?;
                }
            }
        }
    }
    Ok(read)
}

/// The pool without the devices at these indices.
fn without(pool: &Pool, gone: &[usize]) -> Pool {
    let mut left = pool.copy();
    let mut index = 0;
    left.devices.retain(|_| {
        index += 1;
        !gone.contains(&(index - 1))
    });
    left
}

#[test]
fn devices_that_are_missing() {
    for (count, profile, gone) in [
        (2, "raid1", 0),
        (2, "raid1", 1),
        (4, "raid10", 2),
        (3, "raid1c3", 0),
    ] {
        let pool = filled(count, 300, &["-d", profile, "-m", profile]);
        let left = without(&pool, &[gone]);
        let (walk, description) = left.agrees("degraded");
        assert!(walk.entries > 300);
        assert_eq!(description.notes.len(), 1);
        let id = format!("Device {} ", gone + 1);
        assert!(
            description.notes[0].starts_with(&id),
            "{:?}",
            description.notes
        );
    }
    // Metadata is there twice, data once: names can be read, files cannot.
    let pool = filled(2, 300, &["-d", "raid0", "-m", "raid1"]);
    let left = without(&pool, &[0]);
    let (fs, source) = (left.open(), left.source());
    let error = read_all(&fs, &source).expect_err("half of the data is missing");
    assert!(
        error.to_string().contains("it lies on device 1 (UUID"),
        "{error}"
    );
    assert!(fs.lookup(fs.root(), b"a").is_ok());
    // Without half of the metadata it cannot be opened, or not be listed.
    let pool = filled(2, 300, &["-d", "raid0", "-m", "raid0"]);
    let refused = (0..2).filter_map(|gone| {
        let source = without(&pool, &[gone]).source();
        Btrfs::open(source.clone())
            .and_then(|fs| read_all(&fs, &source))
            .err()
    });
    let refused: Vec<String> = refused.map(|error| error.to_string()).collect();
    assert_eq!(refused.len(), 2);
    assert!(refused[0].contains("device 1 (UUID"), "{refused:?}");
    assert!(refused[1].contains("device 2 (UUID"), "{refused:?}");
    // One of two, given as if it were the only one.
    let pool = filled(2, 300, &["-d", "raid1", "-m", "raid1"]);
    let first = without(&pool, &[1]);
    assert_eq!(first.open().description().notes.len(), 1);
}

#[test]
fn another_copy_where_one_is_damaged() {
    for (count, profile) in [(1, "dup"), (2, "raid1"), (4, "raid10")] {
        let pool = Pool::make(count, 300 << 20, &["-d", profile, "-m", profile]);
        fill(&pool, "compress-force=zstd");
        let fs = pool.open();
        let source = pool.source();
        let whole = read_all(&fs, &source).expect("all of it");
        // Overwrites one copy of each node and of each compressed extent there is.
        let damaged = pool.copy();
        let file = damaged.devices.first().expect("a device");
        let raw = fs::read(file).expect("the image");
        let mut file = File::options().write(true).open(file).expect("the image");
        if profile == "dup" {
            // The second half of a device holds the second copies; instead of
            // guessing, spoil what the chunk map says is copy 0.
            let mut spoilt = 0;
            let mut at = 1 << 20;
            while at < fs.nodes.volume.size() {
                let mut pieces = Vec::new();
                let found = fs.nodes.chunks.map(at, 4096, 0, &mut pieces).is_ok();
                let more = fs.nodes.chunks.copies(at).is_ok_and(|copies| copies > 1);
                if found && more && (at >> 20) % 3 != 0 {
                    file.write_all_at(&[0x5a; 4096], pieces[0].offset)
                        .expect("damage");
                    spoilt += 1;
                }
                at += 4096;
            }
            assert!(spoilt > 1000);
        } else {
            file.seek(SeekFrom::Start(1 << 20)).expect("a place");
            file.write_all(&vec![0xa5; raw.len() - (1 << 20)])
                .expect("damage");
        }
        drop(file);
        let fs = damaged.open();
        let files = list_compressed(&fs);
        assert!(files > 100, "{files}");
        let _ = whole;
    }
}

/// Reads what has to be decoded; answers how many files.
fn list_compressed(fs: &Btrfs) -> usize {
    let dir = fs.lookup(fs.root(), b"a").expect("a folder");
    let mut count = 0;
    for (name, ino, _) in super::compare::list(fs, dir, 100) {
        let attr = fs.attr(ino).expect("attributes");
        let size = attr.size;
        if attr.kind != FileType::Regular {
            continue;
        }
        let mut extents = Vec::new();
        fs.extents(ino, 0, u64::MAX, &mut extents).expect("extents");
        let decode = matches!(extents.as_slice(), [Extent::Decode { .. }]);
        if decode {
            let mut buf = vec![0; size as usize];
            assert_eq!(fs.read(ino, 0, &mut buf).expect("data"), size as usize);
            let seed: u64 = std::str::from_utf8(&name)
                .ok()
                .and_then(|name| name.split(' ').next()?.parse().ok())
                .expect("a number");
            assert!(buf == text(size as usize, seed));
            count += 1;
        }
    }
    count
}

#[test]
fn a_log_that_was_not_replayed() {
    let pool = Pool::make(1, 300 << 20, &[]);
    let copy = {
        let mount = pool.mount("commit=300");
        fs::write(mount.path().join("before"), "committed").expect("a file");
        mount.btrfs(&["filesystem", "sync"], "");
        let file = File::create(mount.path().join("after")).expect("a file");
        file.write_all_at(&bytes(100_000, 1), 0).expect("data");
        file.sync_all().expect("the log");
        pool.copy()
    };
    let (walk, description) = copy.agrees("rescue=nologreplay");
    assert_eq!(walk.entries, 1);
    assert_eq!(description.notes.len(), 1);
    assert!(
        description.notes[0].contains("log was not replayed"),
        "{:?}",
        description.notes
    );
}

/// Changes the superblocks of a new file system; mends their checksums.
fn with_superblock(change: impl Fn(&mut [u8], usize)) -> Result<Btrfs> {
    let pool = Pool::make(1, 150 << 20, &["-m", "single"]);
    let file = File::options()
        .read(true)
        .write(true)
        .open(&pool.devices[0])
        .expect("it");
    for (copy, at) in [64 << 10, 64 << 20].into_iter().enumerate() {
        let mut raw = vec![0; 4096];
        file.read_exact_at(&mut raw, at).expect("a superblock");
        change(&mut raw, copy);
        let sum = Checksum::Crc32c.of(&raw[32..]);
        raw[..32].copy_from_slice(&sum);
        file.write_all_at(&raw, at).expect("it");
    }
    Btrfs::open(pool.source())
}

#[test]
fn superblocks() {
    assert!(with_superblock(|_, _| {}).is_ok());
    for (bit, word) in [
        (12, "zoned"),
        (13, "extent tree v2"),
        (14, "raid stripe"),
        (40, "not known"),
    ] {
        let refused = with_superblock(|raw, _| raw[0xbc + bit / 8] |= 1 << (bit % 8));
        let error = refused.err().expect("it is refused");
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    // Either copy will do; the newer one counts.
    for spoilt in [0, 1] {
        let read = with_superblock(|raw, copy| {
            if copy == spoilt {
                raw[0x40..0x48].fill(0);
            }
        });
        assert!(read.is_ok());
    }
    let newer = with_superblock(|raw, copy| {
        if copy == 0 {
            let generation = u64::from_le_bytes(raw[0x48..0x50].try_into().expect("8"));
            raw[0x48..0x50].copy_from_slice(&(generation - 1).to_le_bytes());
            raw[0x50..0x58].fill(0);
        }
    });
    assert!(newer.is_ok());
    let none = with_superblock(|raw, _| raw[0x40..0x48].fill(0));
    assert!(matches!(none.err(), Some(Error::Corrupt { .. })));
}

#[test]
fn a_seed_is_refused() {
    let seed = Pool::make(1, 300 << 20, &["-m", "single"]);
    fill(&seed, "rw");
    sh(&[&"btrfstune", &"-S", &"1", &seed.devices[0]]);
    // By itself it is a file system like any other.
    assert!(seed.agrees("").1.notes.is_empty());
    let mut sprout = seed.copy();
    let more = sprout.devices[0].with_file_name("more");
    File::create(&more)
        .and_then(|file| file.set_len(300 << 20))
        .expect("an image");
    {
        let mount = sprout.mount("ro");
        let device = sh(&[&"losetup", &"-f", &"--show", &more]);
        mount.btrfs(&["device", "add", "-f", device.trim()], "");
        sh(&[&"mount", &"-o", &"remount,rw", &mount.path()]);
        fs::write(mount.path().join("new"), "new").expect("a file");
        unmount(mount.path());
        sh(&[&"btrfs", &"device", &"scan", &"--forget", &device.trim()]);
        sh(&[&"losetup", &"-d", &device.trim()]);
    }
    sprout.devices = vec![more];
    let error = Btrfs::open(sprout.source()).err().expect("it is refused");
    assert!(error.to_string().contains("seed"), "{error}");
}
