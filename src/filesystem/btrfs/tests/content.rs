//! One of everything, in every way to store it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

use super::pool::{Mount, Pool, sh};
use crate::filesystem::btrfs::checksum::name_hash;
use crate::filesystem::ext::tests::image::{bytes, populate};

/// Can be compressed to about a third; no two pages are the same.
pub(super) fn text(len: usize, seed: u64) -> Vec<u8> {
    let mut out = b"....compressible".repeat(len / 16 + 1);
    let noise = bytes(len / 4 + 4, seed);
    for (line, noise) in out.chunks_exact_mut(16).zip(noise.chunks_exact(4)) {
        line[..4].copy_from_slice(noise);
    }
    out.truncate(len);
    out
}

/// What only btrfs has, and what is hard for it.
pub(super) fn fill(mount: &Mount) {
    let root = mount.path().join("btrfs");
    fs::create_dir(&root).expect("a folder");
    let file = |name: &str, data: &[u8]| {
        fs::write(root.join(name), data).expect("a file");
        File::options()
            .read(true)
            .write(true)
            .open(root.join(name))
            .expect("it")
    };
    // Many extents, some rewritten in part, some punched out, some unwritten.
    for (name, data) in [("text", text(3 << 20, 1)), ("noise", bytes(3 << 20, 2))] {
        let whole = file(name, &data);
        whole.sync_all().expect("it");
        sh(&[
            &"cp",
            &"--reflink=always",
            &root.join(name),
            &root.join(format!("{name}-reflink")),
        ]);
        for n in 0..40u64 {
            whole
                .write_all_at(&text(5000, n), n * 70_001)
                .expect("data");
            if n % 8 == 0 {
                whole.sync_all().expect("it");
            }
        }
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for at in [4096, 200_000, 1 << 20, (3 << 20) - 10_000] {
            fallocate(&whole, punch, at, 20_000).expect("a hole");
        }
        fallocate(
            &whole,
            FallocateFlags::FALLOC_FL_ZERO_RANGE,
            600_000,
            50_000,
        )
        .expect("zeros");
        fallocate(&whole, FallocateFlags::empty(), 3 << 20, 1 << 20).expect("space");
        whole
            .write_all_at(&text(9000, 3), (3 << 20) + 100_000)
            .expect("data");
        whole.sync_all().expect("it");
        sh(&[
            &"cp",
            &"--reflink=always",
            &root.join(name),
            &root.join(format!("{name} of holes")),
        ]);
        whole.set_len((3 << 20) + 333).expect("a length");
        // Pieces of another file, some of them twice.
        let (from, to) = (
            root.join(format!("{name}-reflink")),
            root.join(format!("{name}-pieces")),
        );
        for (n, at) in [8192, 1 << 20, 0, 8192, 2 << 20].into_iter().enumerate() {
            let command = format!("reflink {} {at} {} 135168", from.display(), n * 200_704);
            sh(&[&"xfs_io", &"-f", &"-c", &command, &to]);
        }
    }
    for size in [
        1, 100, 1000, 2047, 2048, 2049, 3000, 4095, 4096, 4097, 131_072, 131_073,
    ] {
        file(&format!("inline-{size}"), &text(size, 4));
    }
    // Inline content that became a file with holes.
    file("inline and more", &text(500, 5))
        .set_len(70_000)
        .expect("a length");
    let pieces = File::create(root.join("3000 extents")).expect("a file");
    for n in 0..3000u64 {
        pieces
            .write_all_at(&bytes(4096, n), n * 8192)
            .expect("data");
    }
    fs::create_dir(root.join("no checksums")).expect("a folder");
    sh(&[&"chattr", &"+C", &root.join("no checksums")]);
    fs::write(root.join("no checksums/file"), text(300_000, 6)).expect("a file");
    for method in ["zlib", "lzo", "zstd"] {
        let path = root.join(method);
        fs::write(&path, "").expect("a file");
        xattr::set(&path, "btrfs.compression", method.as_bytes()).expect("a property");
        fs::write(&path, text(500_000, 7)).expect("a file");
        let small = root.join(format!("small {method}"));
        fs::write(&small, "").expect("a file");
        xattr::set(&small, "btrfs.compression", method.as_bytes()).expect("a property");
        fs::write(&small, b"small ".repeat(300)).expect("a file");
    }
    // Different names of the same hash, in one item.
    fs::create_dir(root.join("collisions")).expect("a folder");
    for pair in [["wcjifoae", "ccaoacux"], ["pnnmgjjg", "mxwslzkr"]] {
        assert_eq!(name_hash(pair[0].as_bytes()), name_hash(pair[1].as_bytes()));
        for name in pair {
            let path = root.join("collisions").join(name);
            fs::write(&path, name).expect("a file");
            let attribute = format!("user.{name}");
            xattr::set(root.join("collisions"), attribute, name.as_bytes()).expect("it");
        }
    }
    // More links than one reference has room for.
    fs::create_dir(root.join("links")).expect("a folder");
    fs::write(root.join("links/0"), "linked").expect("a file");
    for n in 1..700 {
        let name = format!("links/{n}{}", "l".repeat(n % 250));
        fs::hard_link(root.join("links/0"), root.join(name)).expect("a link");
    }
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(root.join("text"), "security.capability", &capability).expect("a capability");
}

/// Fills a new file system in each of the ways of `mounts`, and compares.
pub(super) fn agrees(pool: &Pool, mounts: &[&str]) -> super::compare::Walk {
    for options in mounts {
        let mount = pool.mount(options);
        let name = options.replace('/', "-");
        fs::create_dir(mount.path().join(&name)).expect("a folder");
        populate(&mount.path().join(&name));
        fill(&mount);
        let done = mount.path().join("btrfs");
        fs::rename(done, mount.path().join(format!("btrfs {name}"))).expect("a name");
    }
    let (walk, description) = pool.agrees("");
    assert!(description.notes.is_empty(), "{:?}", description.notes);
    assert!(walk.entries > 3000);
    walk
}

#[test]
fn as_mkfs_makes_it() {
    let pool = Pool::make(1, 1 << 30, &["-L", "data"]);
    let walk = agrees(&pool, &["rw"]);
    assert!(walk.decoded > 500_000);
}

#[test]
fn every_compression() {
    let pool = Pool::make(1, 2 << 30, &[]);
    let walk = agrees(
        &pool,
        &[
            "compress-force=zlib",
            "compress-force=lzo",
            "compress-force=zstd",
        ],
    );
    assert!(walk.decoded > 30 << 20, "{}", walk.decoded);
}

#[test]
fn a_large_folder() {
    let pool = Pool::make(1, 1 << 30, &[]);
    {
        let mount = pool.mount("rw");
        let dir = mount.path().join("many");
        fs::create_dir(&dir).expect("a folder");
        for n in 0..20_000 {
            File::create(dir.join(format!("{n} {}", "n".repeat(n % 90)))).expect("a file");
        }
        for n in (0..20_000).step_by(3) {
            fs::remove_file(dir.join(format!("{n} {}", "n".repeat(n % 90)))).expect("it");
        }
        assert!(Path::new(&dir).exists());
    }
    pool.agrees("");
}
