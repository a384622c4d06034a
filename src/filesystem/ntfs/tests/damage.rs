//! Damaged volumes: whatever is wrong ends in an error, in bounded time.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::compare::{list, read};
use super::content::{compressed_folder, set, walk_to};
use super::scratch::{Random, Scratch, open};
use crate::error::{Error, Result};
use crate::filesystem::FileSystem;
use crate::filesystem::ntfs::Ntfs;
use crate::image::BlockRead;

/// An image in memory.
pub(in crate::filesystem) struct Memory(pub(in crate::filesystem) Vec<u8>);

impl BlockRead for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let from = self.0.get(begin..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(from.ok_or_else(|| Error::corrupt("image", "a read past its end"))?);
        Ok(())
    }
}

/// A small volume with every structure on it.
fn small_image(scratch: &Scratch) -> Vec<u8> {
    let image = scratch.mkntfs("image", 3 << 20, &["-c", "1024"]);
    let mount = scratch.mount(&image, "compression");
    let mut random = Random(1);
    compressed_folder(&mount.path("c"));
    fs::write(mount.path("c/text"), random.text(70_000)).unwrap();
    fs::create_dir_all(mount.path("folder/in/folder")).unwrap();
    for n in 0..150 {
        fs::write(
            mount.path(&format!("folder/a name of some length {n}")),
            b"content",
        )
        .unwrap();
    }
    fs::write(mount.path("linked"), b"x").unwrap();
    for n in 0..30 {
        let link = mount.path(&format!("folder/in/a long name for a hard link {n}"));
        fs::hard_link(mount.path("linked"), link).unwrap();
    }
    let scattered = File::create(mount.path("scattered")).unwrap();
    for n in 0..300 {
        scattered.write_all_at(&[1; 1024], n * 2048).unwrap();
    }
    drop(scattered);
    set(&mount.path("scattered"), "user.stream", &random.bytes(3000));
    set(
        &mount.path("linked"),
        "system.ntfs_object_id",
        &random.bytes(64),
    );
    symlink("folder/in", mount.path("link")).unwrap();
    fs::create_dir(mount.path("junction")).unwrap();
    let target: Vec<u8> = r"\??\C:\folder\in"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let mut point = vec![
        3,
        0,
        0,
        0xa0,
        target.len() as u8 + 8,
        0,
        0,
        0,
        0,
        0,
        target.len() as u8,
        0,
    ];
    point.extend([0; 4]);
    point.extend(&target);
    set(&mount.path("junction"), "system.ntfs_reparse_data", &point);
    drop(mount);
    fs::read(image).unwrap()
}

/// Asks for everything; answers how much of it was there.
fn walk(fs: &Ntfs) -> usize {
    let mut seen = BTreeSet::new();
    let mut folders = vec![fs.root()];
    let mut entries = 0;
    while let Some(folder) = folders.pop() {
        let mut found = Vec::new();
        let _ = fs.parent(folder);
        let _ = fs.read_dir(folder, 0, &mut |entry| {
            found.push((entry.name.to_vec(), entry.ino));
            std::ops::ControlFlow::Continue(())
        });
        entries += found.len();
        assert!(
            entries < 100_000,
            "a small volume does not have so many files"
        );
        for (name, ino) in found {
            let _ = fs.lookup(folder, &name);
            let _ = fs.lookup_ignoring_case(folder, &name.to_ascii_uppercase());
            if seen.insert(ino) {
                folders.push(ino);
            }
        }
    }
    // What has lost its name too.
    seen.extend(0..100);
    for ino in seen {
        let Ok(attr) = fs.attr(ino) else { continue };
        let _ = fs.read_link(ino);
        for name in fs.xattr_names(ino).unwrap_or_default() {
            let _ = fs.xattr(ino, &name);
        }
        for name in [
            "acl",
            "object_id",
            "dos_name",
            "reparse_data",
            "ea",
            "times",
            "efsinfo",
        ] {
            let _ = fs.xattr(ino, format!("system.ntfs_{name}").as_bytes());
        }
        for at in [0, attr.size / 2, attr.size.saturating_sub(50_000)] {
            let _ = read(fs, ino, at, 70_000);
        }
        // All extents of a file, however many.
        let _ = fs.extents(ino, 0, u64::MAX, &mut Vec::new());
    }
    entries
}

#[test]
fn mutated_volumes_are_walked_in_bounded_time() {
    mutations(1..=200);
}

#[test]
#[ignore = "takes minutes; to be run in a release build"]
fn many_mutated_volumes_are_walked_in_bounded_time() {
    mutations(201..=10_000);
}

fn mutations(seeds: std::ops::RangeInclusive<u64>) {
    let scratch = Scratch::new();
    let image = small_image(&scratch);
    let whole = walk(&Ntfs::open(Arc::new(Memory(image.clone()))).unwrap());
    assert!(whole > 180, "{whole}");
    // Sectors that hold something (only there can damage be noticed), and of
    // those the ones of records.
    let used: Vec<usize> = (0..image.len() / 512)
        .filter(|n| image[n * 512..][..512].iter().any(|byte| *byte != 0))
        .collect();
    let is_record = |n: &usize| matches!(&image[n / 2 * 1024..][..4], b"FILE" | b"INDX");
    let records: Vec<usize> = used.iter().copied().filter(is_record).collect();
    let mut still_open = 0;
    let count = seeds.clone().count();
    for seed in seeds {
        let mut random = Random(seed * 0x9e37_79b9);
        let mut image = image.clone();
        for _ in 0..=random.below(40) {
            let mut place = || {
                let from = if random.below(4) == 0 {
                    &used
                } else {
                    &records
                };
                let sector = from[random.below(from.len() as u64) as usize];
                sector * 512 + random.below(63) as usize * 8
            };
            let (at, other) = (place(), place());
            if random.below(4) == 0 {
                // What makes sense elsewhere: circles, say.
                let len = [8, 8, 16, 64][random.below(4) as usize];
                let len = len.min(510 - at % 512).min(512 - other % 512);
                let piece = image[other..][..len].to_vec();
                image[at..][..len].copy_from_slice(&piece);
                continue;
            }
            let at = at + random.below(8) as usize;
            let value = match random.below(4) {
                0 => [0xff; 8],
                1 => [0; 8],
                2 => (random.next() >> random.below(64)).to_le_bytes(),
                _ => [
                    image[at].wrapping_add(1 << random.below(8)),
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                ],
            };
            let len = [1, 1, 2, 4, 8][random.below(5) as usize].min(510 - at % 512);
            image[at..][..len].copy_from_slice(&value[..len]);
        }
        let start = Instant::now();
        println!("seed {seed}");
        if let Ok(fs) = Ntfs::open(Arc::new(Memory(image))) {
            still_open += 1;
            walk(&fs);
        }
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "seed {seed}: {:?}",
            start.elapsed()
        );
    }
    assert!(
        still_open > count / 2,
        "only {still_open} could be opened: nothing was tested"
    );
}

/// Answers `WouldWait` now and then.
struct Impatient {
    image: Vec<u8>,
    reads: AtomicU64,
    refuse: AtomicU64,
}

impl BlockRead for Impatient {
    fn size(&self) -> u64 {
        self.image.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if self.reads.fetch_add(1, Ordering::Relaxed) == self.refuse.load(Ordering::Relaxed) {
            return Err(Error::WouldWait);
        }
        buf.copy_from_slice(&self.image[offset as usize..][..buf.len()]);
        Ok(())
    }
}

#[test]
fn waiting_is_passed_on_wherever_it_happens() {
    type Call = fn(&Ntfs) -> Result<()>;
    let scratch = Scratch::new();
    let image = small_image(&scratch);
    let calls: [(&str, Call); 8] = [
        ("attr", |fs| fs.attr(fs.root()).map(drop)),
        ("list", |fs| {
            list(fs, fs.lookup(fs.root(), b"folder")?, 50).map(drop)
        }),
        ("ignoring case", |fs| {
            fs.lookup_ignoring_case(fs.root(), b"FOLDER").map(drop)
        }),
        ("link", |fs| {
            fs.read_link(fs.lookup(fs.root(), b"junction")?).map(drop)
        }),
        ("acl", |fs| {
            fs.xattr(fs.root(), b"system.ntfs_acl").map(drop)
        }),
        ("id", |fs| {
            fs.xattr(fs.lookup(fs.root(), b"linked")?, b"system.ntfs_object_id")
                .map(drop)
        }),
        ("extents", |fs| {
            read(fs, fs.lookup(fs.root(), b"scattered")?, 0, 1 << 20).map(drop)
        }),
        ("read", |fs| {
            let ino = fs.lookup(fs.lookup(fs.root(), b"c")?, b"text")?;
            fs.read(ino, 50_000, &mut [0; 100]).map(drop)
        }),
    ];
    let open = |refuse: u64| {
        let (reads, refuse) = (AtomicU64::new(0), AtomicU64::new(refuse));
        let source = Arc::new(Impatient {
            image: image.clone(),
            reads,
            refuse,
        });
        (Ntfs::open(source.clone()), source)
    };
    let (_, source) = open(u64::MAX);
    for n in 0..source.reads.load(Ordering::Relaxed) {
        assert!(
            matches!(open(n).0, Err(Error::WouldWait)),
            "read {n} of opening"
        );
    }
    for (name, call) in calls {
        let (fs, source) = open(u64::MAX);
        call(&fs.unwrap()).unwrap();
        let reads = source.reads.load(Ordering::Relaxed);
        let begin = {
            let (_fs, source) = open(u64::MAX);
            source.reads.load(Ordering::Relaxed)
        };
        assert!(reads > begin, "{name}");
        for n in begin..reads {
            let (fs, source) = open(u64::MAX);
            let fs = fs.unwrap();
            source.refuse.store(n, Ordering::Relaxed);
            let outcome = call(&fs);
            assert!(
                matches!(outcome, Err(Error::WouldWait)),
                "{name}, read {n}: {outcome:?}"
            );
            // Nothing of it is kept.
            source.refuse.store(u64::MAX, Ordering::Relaxed);
            call(&fs).unwrap();
        }
    }
}

/// Offset in the image of the record of `path`.
fn record_of(image: &Path, path: &str) -> u64 {
    let fs = open(image);
    let boot = &fs.mft.volume.boot;
    // The MFT of a fresh volume is one run.
    boot.mft + walk_to(&fs, path) * boot.record
}

#[test]
fn one_damaged_file_leaves_the_others_alone() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 16 << 20, &[]);
    let mount = scratch.mount(&image, "rw");
    fs::write(mount.path("bad"), b"content").unwrap();
    fs::write(mount.path("good"), b"content").unwrap();
    drop(mount);
    let disk = fs::OpenOptions::new().write(true).open(&image).unwrap();
    // The end of a sector: a write that was cut off.
    let torn = record_of(&image, "bad") + 510;
    disk.write_all_at(&[0x55, 0x66], torn).unwrap();
    let fs = open(&image);
    let error = fs.attr(walk_to(&fs, "bad")).unwrap_err();
    assert!(matches!(&error, Error::Corrupt { .. }), "{error}");
    assert!(
        error.to_string().contains("was not written completely"),
        "{error}"
    );
    assert_eq!(read(&fs, walk_to(&fs, "good"), 0, 100).unwrap(), b"content");
    assert_eq!(list(&fs, fs.root(), 100).unwrap().len(), 2);
}
