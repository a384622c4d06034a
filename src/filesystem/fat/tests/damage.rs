//! Damaged volumes: whatever is wrong ends in an error, in bounded time.

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::image::{Head, Image};
use super::walk::{find, read};
use crate::error::{Error, Result};
use crate::filesystem::fat::Fat;
use crate::filesystem::ntfs::tests::compare::list;
use crate::filesystem::ntfs::tests::scratch::Random;
use crate::filesystem::{FileSystem, Options};
use crate::image::{BlockRead, patience};

/// A small FAT volume with one file of ten clusters and a folder.
fn small(width: &str) -> Image {
    let image = match width {
        "12" => Image::fat(1 << 20, &["-F", "12", "-s", "1"]),
        "16" => Image::fat(3 << 20, &["-F", "16", "-s", "1"]),
        _ => Image::fat(36 << 20, &["-F", "32", "-s", "1"]),
    };
    let input = image.beside("input");
    fs::create_dir_all(input.join("folder/with a long name")).unwrap();
    fs::write(input.join("file"), Random(1).bytes(5120)).unwrap();
    fs::write(input.join("other"), Random(2).bytes(1500)).unwrap();
    for n in 0..40 {
        fs::write(
            input.join(format!("folder/a long name, number {n}")),
            "text",
        )
        .unwrap();
    }
    fs::write(input.join("folder/with a long name/x"), "text").unwrap();
    image.copy_in(&input, "UTC");
    image.check("fsck.vfat");
    image
}

fn small_exfat() -> Image {
    let image = Image::exfat(2 << 20, 512, &["-c", "512", "-b", "4096"]);
    let mount = image.mount(512, "rw,noatime");
    fs::create_dir_all(mount.at.join("folder/with a long name")).unwrap();
    fs::write(mount.at.join("file"), Random(1).bytes(5120)).unwrap();
    for n in 0..40 {
        fs::write(
            mount.at.join(format!("folder/a long name, number {n}")),
            "text",
        )
        .unwrap();
        fs::write(mount.at.join(format!("folder {n}")), vec![0; 600]).unwrap();
    }
    for n in 0..20 {
        fs::remove_file(mount.at.join(format!("folder {}", 2 * n))).unwrap();
    }
    fs::write(mount.at.join("scattered"), Random(2).bytes(9000)).unwrap();
    fs::write(mount.at.join("folder/with a long name/x"), "text").unwrap();
    drop(mount);
    image
}

/// Writes an entry into all tables.
fn set(image: &Image, cluster: u32, value: u32) {
    let geometry = image.open().volume.geometry.clone();
    let tables = if image.open().family == super::super::Family::Fat {
        2
    } else {
        1
    };
    let mut bytes = image.bytes();
    let end = match geometry.root {
        super::super::volume::Root::Fixed { offset, .. } => offset,
        super::super::volume::Root::Chain(_) => geometry.heap,
    };
    let len = (end - geometry.table) / tables;
    for table in 0..tables {
        let base = (geometry.table + table * len) as usize;
        use super::super::volume::Width;
        match geometry.width {
            Width::Twelve => {
                let at = base + cluster as usize * 3 / 2;
                let old = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
                let new = if cluster.is_multiple_of(2) {
                    old & 0xf000 | value as u16 & 0xfff
                } else {
                    old & 0xf | (value as u16) << 4
                };
                bytes[at..at + 2].copy_from_slice(&new.to_le_bytes());
            }
            Width::Sixteen => {
                let at = base + cluster as usize * 2;
                bytes[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
            }
            Width::TwentyEight | Width::ThirtyTwo => {
                let at = base + cluster as usize * 4;
                bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
        }
    }
    image.patch(0, &bytes);
}

fn first(fs: &Fat, path: &str) -> u32 {
    fs.entry(find(fs, path)).unwrap().chain.unwrap().first
}

#[test]
fn a_chain_that_is_wrong_is_an_error_where_it_is() {
    for width in ["12", "16", "32"] {
        let image = small(width);
        let fs = image.open();
        let content = Random(1).bytes(5120);
        let ino = find(&fs, "file");
        let (start, end) = (first(&fs, "file"), fs.volume.geometry.end());
        assert!(read(&fs, ino, 0, u64::MAX).unwrap() == content);
        // Cluster 5 of the file: where it leads to, and how many are still good.
        for (value, good, word) in [
            (u32::MAX, 6, "shorter"),
            (start + 3, 6, "circular"),
            (start, 6, "circular"),
            (start + 5, 6, "circular"),
            (0, 6, "free"),
            (1, 6, "free"),
            (u32::MAX - 8, 5, "bad"),
            (end, 6, "leaves"),
        ] {
            set(&image, start + 5, value);
            let fs = image.open();
            let good = good * 512;
            assert_eq!(
                read(&fs, ino, 0, good).unwrap(),
                content[..good as usize],
                "{width} {word}"
            );
            match read(&fs, ino, good, 1) {
                Err(Error::Corrupt { reason, .. }) => {
                    assert!(reason.contains(word), "{width} {word}: {reason}");
                }
                other => panic!("{width} {word}: {other:?}"),
            }
            assert!(read(&fs, ino, 0, u64::MAX).is_err());
            // The others are well.
            let other = find(&fs, "other");
            assert!(read(&fs, other, 0, 9999).unwrap() == Random(2).bytes(1500));
        }
        // Two files that share clusters are both read.
        let (other, shared) = (first(&fs, "other"), start + 6);
        set(&image, start + 5, start + 6);
        set(&image, other, shared);
        let fs = image.open();
        assert!(read(&fs, ino, 0, u64::MAX).unwrap() == content);
        let mixed = read(&fs, find(&fs, "other"), 0, 9999).unwrap();
        assert_eq!(mixed[512..1024], content[6 * 512..7 * 512]);
    }
}

/// What is listed is there: if it cannot be read, that is an error and not absence.
#[test]
fn a_table_of_zeros_is_an_error_for_what_is_listed() {
    let image = small("32");
    let fs = image.open();
    let super::super::volume::Root::Chain(root) = fs.volume.geometry.root else {
        panic!("FAT32 keeps its root folder in clusters");
    };
    set(&image, root, 0);
    let fs = image.open();
    let mut listed = Vec::new();
    fs.read_dir(fs.root(), 0, &mut |entry| {
        listed.push(entry.name.to_vec());
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(!listed.is_empty());
    for name in listed {
        let error = fs.lookup(fs.root(), &name).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    }
}

#[test]
fn a_folder_that_is_circular_ends() {
    let image = small("16");
    let fs = image.open();
    let (dir, start) = (find(&fs, "folder"), first(&fs, "folder"));
    let names = list(&fs, dir, usize::MAX).unwrap().len();
    assert_eq!(names, 41);
    set(&image, start, start);
    let fs = image.open();
    let mut count = 0;
    let outcome = fs.read_dir(dir, 0, &mut |_| {
        count += 1;
        ControlFlow::Continue(())
    });
    assert!(matches!(outcome, Err(Error::Corrupt { .. })), "{outcome:?}");
    assert!(0 < count && count < names);
    // A folder that is its own ancestor: `..` and listings still end.
    let image = small("32");
    let fs = image.open();
    let inner = find(&fs, "folder/with a long name");
    let start = first(&fs, "folder");
    image.patch(inner * 32 + 26, &(start as u16).to_le_bytes());
    let fs = image.open();
    assert!(list(&fs, inner, 9).unwrap().len() > 1);
    let _ = fs.parent(inner).unwrap();
}

#[test]
fn parents_are_found_without_the_entry_for_them() {
    let image = small("16");
    let fs = image.open();
    let (dir, inner) = (find(&fs, "folder"), find(&fs, "folder/with a long name"));
    let place = fs
        .volume
        .geometry
        .offset(first(&fs, "folder/with a long name"));
    image.patch(place + 32, b"XX");
    assert_eq!(image.open().parent(inner).unwrap(), dir);
}

#[test]
fn fat32_is_opened_by_its_other_boot_sector_and_table() {
    for sector in ["512", "4096"] {
        let image = Image::fat(300 << 20, &["-F", "32", "-S", sector, "-n", "KEPT"]);
        let file = image.beside("file");
        fs::write(&file, Random(1).bytes(50_000)).unwrap();
        image.mtool("mcopy", "UTC", &[file.to_str().unwrap(), "::/"]);
        image.patch(11, &[0; 60]);
        let fs = image.open();
        let notes = &fs.description().notes;
        assert!(notes.len() == 1 && notes[0].contains("copy"), "{notes:?}");
        assert_eq!(fs.description().label, b"KEPT");
        let content = read(&fs, find(&fs, "file"), 0, u64::MAX).unwrap();
        assert!(content == Random(1).bytes(50_000));
    }
    // Only the second table is in use.
    let image = small("32");
    let geometry = image.open().volume.geometry.clone();
    image.patch(40, &[0x81]);
    image.patch(
        geometry.table,
        &vec![0; ((geometry.heap - geometry.table) / 2) as usize],
    );
    let fs = image.open();
    assert!(read(&fs, find(&fs, "file"), 0, u64::MAX).unwrap() == Random(1).bytes(5120));
}

#[test]
fn a_volume_in_use_says_so() {
    for (width, at, byte) in [("16", 3, 0x7f), ("32", 7, 0x07)] {
        let image = small(width);
        assert!(image.open().description().notes.is_empty());
        let table = image.open().volume.geometry.table;
        image.patch(table + at, &[byte]);
        let notes = image.open().description().notes.clone();
        assert!(
            notes.len() == 1 && notes[0].contains("not unmounted"),
            "{notes:?}"
        );
    }
    let image = small("12");
    image.patch(37, &[1]);
    assert_eq!(image.open().description().notes.len(), 1);
}

#[test]
fn a_volume_cut_short_says_so() {
    let image = small("16");
    let size = image.bytes().len() as u64;
    fs::File::options()
        .write(true)
        .open(&image.path)
        .unwrap()
        .set_len(size / 2)
        .unwrap();
    let fs = image.open();
    assert!(fs.description().notes[0].contains("shorter"));
    assert!(read(&fs, find(&fs, "file"), 0, u64::MAX).unwrap() == Random(1).bytes(5120));
}

/// Asks for everything; answers how much of it was there.
fn explore(fs: &Fat) -> usize {
    let mut seen = BTreeSet::new();
    let mut folders = vec![fs.root()];
    let mut entries = 0;
    while let Some(folder) = folders.pop() {
        let mut found = Vec::new();
        let _ = fs.parent(folder);
        let _ = fs.read_dir(folder, 0, &mut |entry| {
            found.push((entry.name.to_vec(), entry.ino));
            ControlFlow::Continue(())
        });
        entries += found.len();
        for (n, (name, ino)) in found.into_iter().enumerate() {
            assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0));
            if n < 50 {
                let _ = fs.lookup(folder, &name);
            }
            if seen.insert(ino) {
                folders.push(ino);
            }
        }
    }
    for ino in seen {
        let Ok(attr) = fs.attr(ino) else { continue };
        let _ = fs.xattr_names(ino);
        for at in [0, attr.size / 2, attr.size.saturating_sub(50_000)] {
            let _ = read_some(fs, ino, at);
        }
        let _ = fs.extents(ino, 0, u64::MAX, &mut Vec::new());
    }
    entries
}

fn read_some(fs: &Fat, ino: u64, at: u64) -> Result<()> {
    read(fs, ino, at, 70_000).map(|_| ())
}

/// Mutates an image 200 times and walks it.
fn mutate(image: &Image, exfat: bool) {
    let mut intact = image.bytes();
    let size = intact.len() as u64;
    let geometry = image.open().volume.geometry.clone();
    intact.truncate((geometry.heap + (1 << 20)).min(size) as usize);
    // Most hits go where it hurts.
    let metadata = (geometry.heap + 60 * geometry.cluster).min(intact.len() as u64);
    let mut found = 0;
    for seed in 1..=200u64 {
        let mut random = Random(seed * 7919);
        let mut bytes = intact.clone();
        for _ in 0..1 + random.below(20) {
            let end = match random.below(10) {
                0 => 512,
                1 => intact.len() as u64,
                _ => metadata,
            };
            let at = random.below(end) as usize;
            match random.below(4) {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => bytes[at] = random.next() as u8,
                2 => {
                    // An entry of the table, or a field, that leads elsewhere.
                    let at = at & !3;
                    let value = random.below(100) as u32;
                    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
                }
                _ => {
                    let (from, at) = (random.below(metadata - 32) as usize & !31, at & !31);
                    bytes.copy_within(from..from + 32, at.min(intact.len() - 32));
                }
            }
        }
        let start = Instant::now();
        let source = Arc::new(Head { head: bytes, size });
        let opened = patience::within(Duration::from_secs(10), || {
            let options = Options {
                ignore_case: seed % 2 == 0,
                ..Options::default()
            };
            let fs = if exfat {
                Fat::open_exfat(source, options)
            } else {
                Fat::open_vfat(source, options)
            };
            fs.map(|fs| explore(&fs))
        });
        found += opened.unwrap_or(0);
        assert!(start.elapsed() < Duration::from_secs(10), "seed {seed}");
    }
    assert!(found > 2000, "the mutations leave too little: {found}");
}

#[test]
fn mutated_fat12_is_walked_in_bounded_time() {
    mutate(&small("12"), false);
}

#[test]
fn mutated_fat16_is_walked_in_bounded_time() {
    mutate(&small("16"), false);
}

#[test]
fn mutated_fat32_is_walked_in_bounded_time() {
    mutate(&small("32"), false);
}

#[test]
fn mutated_exfat_is_walked_in_bounded_time() {
    mutate(&small_exfat(), true);
}

/// Gives up at each read whose number the counter reaches.
struct Impatient {
    source: Arc<dyn BlockRead>,
    left: AtomicU64,
}

impl BlockRead for Impatient {
    fn size(&self) -> u64 {
        self.source.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Err(Error::WouldWait);
        }
        self.source.read_at(offset, buf)
    }
}

#[test]
fn what_would_have_to_wait_is_asked_again_and_answered_the_same() {
    for (image, exfat) in [
        (small("12"), false),
        (small("32"), false),
        (small_exfat(), true),
    ] {
        let open = |left: u64| {
            let source = Arc::new(Impatient {
                source: image.source(),
                left: AtomicU64::new(left),
            });
            let options = Options {
                ignore_case: true,
                ..Options::default()
            };
            let fs = if exfat {
                Fat::open_exfat(Arc::<Impatient>::clone(&source), options)
            } else {
                Fat::open_vfat(Arc::<Impatient>::clone(&source), options)
            };
            fs.map(|fs| (fs, source))
        };
        let (fs, _) = open(u64::MAX).unwrap();
        let dir = find(&fs, "folder/with a long name");
        let above = find(&fs, "folder");
        let entries = list(&fs, above, usize::MAX).unwrap();
        let content = read(&fs, find(&fs, "file"), 0, u64::MAX).unwrap();
        let describe = |fs: &Fat| format!("{:?}", fs.description());
        for left in (0..60).chain((60..400).step_by(17)) {
            let Ok((again, source)) = open(left) else {
                continue;
            };
            assert_eq!(describe(&again), describe(&fs));
            let ask = |what: &dyn Fn() -> Result<bool>| match what() {
                Err(Error::WouldWait) => assert!(what().unwrap(), "after {left} reads"),
                outcome => assert!(outcome.unwrap(), "after {left} reads"),
            };
            let root = again.root();
            ask(&|| Ok(again.parent(dir)? == above));
            ask(&|| Ok(again.lookup(root, b"FOLDER")? == above));
            ask(&|| Ok(list(&again, above, usize::MAX)? == entries));
            ask(&|| Ok(read(&again, again.lookup(root, b"file")?, 0, u64::MAX)? == content));
            ask(&|| Ok(again.attr(dir)?.ino == dir));
            source.left.store(u64::MAX, Ordering::Relaxed);
        }
    }
}
