//! Damaged images: an error at worst, soon, and without much memory.

use std::collections::HashSet;
use std::fs;
use std::ops::ControlFlow;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::image::{Image, Memory, bytes};
use crate::filesystem::ext::Ext;
use crate::filesystem::{FileSystem, FileType};

/// A small image with a bit of everything.
fn small(options: &[&str]) -> Vec<u8> {
    let image = Image::make("4M", options);
    {
        let mount = image.mount("rw");
        let root = mount.path();
        fs::create_dir(root.join("many")).expect("a folder");
        for number in 0..150 {
            let name = format!("many/{number}-{}", "n".repeat(number));
            fs::write(root.join(name), number.to_string()).expect("a file");
        }
        let pieces = fs::File::create(root.join("pieces")).expect("a file");
        for piece in 0..200 {
            use std::os::unix::fs::FileExt;
            pieces
                .write_all_at(&bytes(1024, piece), piece * 4096)
                .expect("data");
        }
        fs::write(root.join("inline"), bytes(90, 1)).expect("a file");
        fs::create_dir_all(root.join("a/b/c")).expect("a folder");
        std::os::unix::fs::symlink("t".repeat(90), root.join("link")).expect("a link");
        for name in ["user.a", "user.b", "security.c"] {
            xattr::set(root.join("inline"), name, &[7; 90]).expect("an attribute");
        }
    }
    fs::read(&image.path).expect("the image")
}

/// Everything that can be asked, of everything that can be reached.
fn touch(raw: Vec<u8>) -> usize {
    let Ok(reader) = Ext::open(Arc::new(Memory(raw))) else {
        return 0;
    };
    let (mut seen, mut todo, mut asked) = (HashSet::new(), vec![reader.root()], 0);
    while let Some(ino) = todo.pop() {
        asked += 1;
        let _ = reader.attr(ino);
        for name in reader.xattr_names(ino).unwrap_or_default() {
            let _ = reader.xattr(ino, &name);
        }
        let _ = reader.read_link(ino);
        let mut extents = Vec::new();
        let _ = reader.extents(ino, 0, u64::MAX, &mut extents);
        assert!(extents.len() < 100_000);
        let _ = reader.extents(ino, 1 << 30, 1 << 20, &mut extents);
        let _ = reader.parent(ino);
        let mut names = Vec::new();
        let _ = reader.read_dir(ino, 0, &mut |entry| {
            names.push((entry.ino, entry.name.to_vec()));
            if names.len() < 100_000 {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        assert!(names.len() < 100_000);
        for (child, name) in names {
            let _ = reader.lookup(ino, &name);
            if seen.insert(child) {
                todo.push(child);
            }
        }
        let _ = reader.lookup(ino, b"not there");
    }
    asked
}

#[test]
fn random_damage_ends_in_errors() {
    let images = [
        small(&["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"]),
        small(&[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "inline_data,^metadata_csum,^has_journal",
        ]),
        small(&["-t", "ext2", "-b", "1024", "-I", "256"]),
        small(&["-t", "ext4", "-b", "1024"]),
    ];
    let whole: Vec<_> = images.iter().map(|raw| touch(raw.clone())).collect();
    assert!(whole.iter().all(|count| *count > 150), "{whole:?}");
    // Where something is: zeros are mostly not metadata.
    let used = images.each_ref().map(|raw| {
        let metadata = raw.iter().enumerate().take(700 * 1024).skip(1024);
        metadata
            .filter(|(_, byte)| **byte != 0)
            .map(|(at, _)| at)
            .collect::<Vec<_>>()
    });
    for seed in 0..200u64 {
        let original = &images[seed as usize % images.len()];
        let mut raw = original.clone();
        let random = bytes(8 * 64, seed + 1);
        let mut numbers = random
            .chunks_exact(8)
            .map(|chunk| u64::from_le_bytes(chunk.try_into().expect("8")));
        let used = &used[seed as usize % images.len()];
        for _ in 0..=(seed % 24) {
            let (place, value) = (
                numbers.next().expect("a place"),
                numbers.next().expect("it"),
            );
            let at = used[place as usize % used.len()];
            raw[at] = match value % 4 {
                0 => 0,
                1 => 0xff,
                2 => raw[at] ^ (1 << (value >> 8 & 7)),
                _ => (value >> 16) as u8,
            };
        }
        let (sender, done) = mpsc::channel();
        let walker = std::thread::spawn(move || {
            let start = Instant::now();
            touch(raw);
            let _ = sender.send(start.elapsed());
        });
        match done.recv_timeout(Duration::from_secs(20)) {
            Ok(_) => walker.join().expect("no panic"),
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("seed {seed} hangs"),
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("seed {seed} panics"),
        }
    }
}

/// Prints how long an inode takes; run it in a release build.
#[test]
#[ignore = "a measurement"]
fn time_of_attributes() {
    let image = Image::make("200M", &["-t", "ext4"]);
    {
        let mount = image.mount("rw");
        super::image::many(&mount.path().join("many"), 12_000);
    }
    let raw = fs::read(&image.path).expect("the image");
    let reader = Ext::open(Arc::new(Memory(raw))).expect("the image opens");
    let dir = reader.lookup(reader.root(), b"many").expect("a folder");
    let mut names = Vec::new();
    let start = Instant::now();
    reader
        .read_dir(dir, 0, &mut |entry| {
            names.push((entry.ino, entry.name.to_vec()));
            ControlFlow::Continue(())
        })
        .expect("a listing");
    let count = names.len() as u32;
    println!(
        "read_dir: {count} names, {:?} each",
        start.elapsed() / count
    );
    let start = Instant::now();
    for (ino, _) in &names {
        assert_eq!(
            reader.attr(*ino).expect("attributes").kind,
            FileType::Regular
        );
    }
    println!("attr:     {:?} each", start.elapsed() / count);
    let start = Instant::now();
    for (ino, name) in &names {
        assert_eq!(reader.lookup(dir, name).expect("a name"), *ino);
    }
    println!("lookup:   {:?} each", start.elapsed() / count);
    let start = Instant::now();
    let mut extents = Vec::new();
    for (ino, _) in &names {
        extents.clear();
        reader
            .extents(*ino, 0, 1 << 20, &mut extents)
            .expect("extents");
    }
    println!("extents:  {:?} each", start.elapsed() / count);
}
