//! Every option that changes how things are kept.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;

use super::agrees;
use super::image::Image;
use crate::Error;
use crate::filesystem::FileSystem;
use crate::filesystem::ext::tests::image::{bytes, many};
use crate::filesystem::xfs::superblock::checksum;

/// What only XFS has, or keeps in forms of its own.
pub(super) fn populate(root: &Path) {
    let dir = root.join("xfs");
    fs::create_dir(&dir).expect("a folder");
    for count in [1, 5, 20, 100, 500] {
        many(&dir.join(format!("folder of {count}")), count);
    }
    // Of one name length, so that their hashes are close to each other.
    let alike = dir.join("alike");
    fs::create_dir(&alike).expect("a folder");
    for number in 0..3000 {
        fs::write(alike.join(format!("{number:06}")), "").expect("a file");
    }
    // Blocks of entries that are gone, between others that are there.
    let thinned = dir.join("thinned");
    many(&thinned, 1500);
    for entry in fs::read_dir(&thinned).expect("a folder").flatten() {
        let number = entry
            .file_name()
            .as_bytes()
            .split(|b| *b == b'-')
            .next()
            .map(<[u8]>::len);
        if number == Some(3) {
            fs::remove_file(entry.path()).expect("a file less");
        }
    }
    for count in [3, 40, 400, 4000] {
        let path = dir.join(format!("{count} attributes"));
        fs::write(&path, "attributes").expect("a file");
        for number in 0..count {
            let name = format!("user.attribute number {number}");
            if xattr::set(&path, &name, &bytes(number % 90, 1)).is_err()
                || name.len() * number > 50_000
            {
                break;
            }
        }
    }
    for len in [1000, 1023] {
        symlink("l".repeat(len), dir.join(format!("link-{len}"))).expect("a link");
    }
    let from = dir.join("source of a reflink");
    fs::write(&from, bytes(1 << 20, 2)).expect("a file");
    let to = dir.join("reflink");
    let cloned = Command::new("cp")
        .arg("--reflink=always")
        .args([&from, &to])
        .output()
        .expect("cp");
    if cloned.status.success() {
        let file = File::options().write(true).open(&to).expect("a file");
        file.write_all_at(b"changed", 300_000).expect("data");
        file.sync_all().expect("data");
    }
    // A file of one block, again and again at other places.
    let holes = File::create(dir.join("from afar")).expect("a file");
    for power in 12..43 {
        if holes.write_all_at(&bytes(700, power), 1 << power).is_err() {
            break;
        }
    }
}

#[test]
fn as_mkfs_makes_it() {
    let description = agrees("400M", &["-L", "data", "-l", "size=64m"]);
    assert_eq!(description.kind, "xfs");
    assert_eq!(description.label, b"data");
    assert_eq!(description.block_size, 4096);
    // As the kernel's `statfs`, which leaves out the log.
    assert_eq!(description.blocks, (400 - 64) << 20 >> 12);
}

#[test]
fn small_blocks() {
    agrees(
        "400M",
        &[
            "-b",
            "size=1024",
            "-m",
            "reflink=0,bigtime=0,finobt=0",
            "-i",
            "sparse=0",
        ],
    );
}

#[test]
fn large_blocks() {
    agrees("1G", &["-b", "size=65536"]);
}

#[test]
fn large_blocks_of_folders() {
    agrees(
        "400M",
        &[
            "-n",
            "size=65536",
            "-m",
            "rmapbt=1",
            "-i",
            "nrext64=1",
            "-d",
            "agcount=7",
        ],
    );
    agrees(
        "400M",
        &["-b", "size=2048", "-n", "size=8192", "-i", "size=1024"],
    );
}

#[test]
fn large_inodes_and_sectors() {
    agrees(
        "400M",
        &["-i", "size=2048", "-s", "size=4096", "-l", "su=256k"],
    );
}

#[test]
fn folders_in_all_sizes() {
    let image = Image::make("400M", &["-b", "size=1024"]);
    {
        let mount = image.mount("rw");
        many(&mount.path().join("20,000"), 20_000);
    }
    image.agrees();
}

#[test]
fn parent_pointers() {
    let image = Image::make("400M", &["-i", "nrext64=1"]);
    image.set_incompat(0x80);
    {
        let mount = image.mount("rw");
        let root = mount.path();
        many(&root.join("many"), 50);
        fs::write(root.join("file"), "x").expect("a file");
        xattr::set(root.join("file"), "user.a", b"1").expect("an attribute");
        for number in 0..100 {
            fs::hard_link(root.join("file"), root.join(format!("link {number}"))).expect("a link");
        }
        assert!(xattr::list(root.join("file")).expect("names").count() == 1);
    }
    let reader = image.open();
    let file = reader.lookup(reader.root(), b"many").expect("a folder");
    assert!(!reader.attr(file).expect("attributes").may_have_xattrs);
    image.agrees();
}

#[test]
fn another_uuid_for_the_metadata() {
    let image = Image::make("400M", &[]);
    {
        let mount = image.mount("rw");
        many(&mount.path().join("many"), 300);
    }
    image.xfs_db(&["uuid generate"]);
    assert_eq!(image.incompat() & 4, 4);
    assert!(image.agrees().notes.is_empty());
}

impl Image {
    fn incompat(&self) -> u32 {
        let raw = fs::read(&self.path).expect("the image");
        u32::from_be_bytes(raw[216..220].try_into().expect("4"))
    }

    /// Sets a feature in the superblock, with its checksum.
    fn set_incompat(&self, bit: u32) {
        let file = File::options()
            .read(true)
            .write(true)
            .open(&self.path)
            .expect("the image");
        let mut sector = [0; 512];
        file.read_exact_at(&mut sector, 0).expect("a superblock");
        let features = u32::from_be_bytes(sector[216..220].try_into().expect("4")) | bit;
        sector[216..220].copy_from_slice(&features.to_be_bytes());
        let sum = checksum(&sector, 224);
        sector[224..228].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&sector, 0).expect("a superblock");
    }
}

#[test]
fn unknown_features_are_refused() {
    for (bit, name) in [(0x100, "metadir"), (0x200, "zoned"), (1 << 20, "not known")] {
        let image = Image::make("400M", &[]);
        image.set_incompat(bit);
        let error = super::Xfs::open(std::sync::Arc::new(image.reader())).err();
        assert!(
            matches!(&error, Some(Error::Unsupported { reason, .. }) if reason.contains(name)),
            "{error:?}"
        );
    }
}

#[test]
fn numbers_that_are_no_inodes() {
    let image = Image::make("400M", &[]);
    {
        let mount = image.mount("rw");
        let dir = mount.path().join("many");
        many(&dir, 100);
    }
    let reader = image.open();
    let dir = reader.lookup(reader.root(), b"many").expect("a folder");
    let mut there = std::collections::HashSet::from([reader.root(), dir]);
    reader
        .read_dir(dir, 0, &mut |entry| {
            there.insert(entry.ino);
            std::ops::ControlFlow::Continue(())
        })
        .expect("a listing");
    let numbers = (0..4096).chain([1 << 20, 1 << 30, 1 << 40, u64::MAX, u64::MAX >> 1]);
    for ino in numbers.filter(|ino| !there.contains(ino)) {
        let answer = reader.attr(ino);
        assert!(
            matches!(answer, Err(Error::NotFound { .. })),
            "{ino}: {answer:?}"
        );
    }
    assert!(
        reader
            .inode_bound()
            .is_none_or(|bound| there.iter().all(|ino| *ino < bound))
    );
}
