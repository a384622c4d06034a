//! Files and folders that outgrow their MFT record.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::attribute;
use super::super::index::I30;
use super::compare::{compare, list, read};
use super::content::{compressed_folder, set, walk_to};
use super::scratch::{ImageFile, Random, Scratch, open, run};
use crate::error::Result;
use crate::filesystem::ntfs::Ntfs;
use crate::filesystem::{Extent, FileSystem};
use crate::image::BlockRead;

#[test]
fn hard_links_by_the_hundred() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 32 << 20, &["-c", "4096"]);
    let mount = scratch.mount(&image, "compression");
    fs::create_dir(mount.path("links")).unwrap();
    fs::write(mount.path("file"), Random(3).bytes(200_000)).unwrap();
    for n in 0..300 {
        let link = mount.path(&format!(
            "links/a name that takes some room in the record {n}"
        ));
        fs::hard_link(mount.path("file"), link).unwrap();
    }
    set(&mount.path("file"), "user.stream", &Random(4).bytes(9000));
    drop(mount);
    assert_eq!(compare(&scratch, &image), 302);
    let fs = open(&image);
    let ino = walk_to(&fs, "file");
    assert_eq!(fs.attr(ino).unwrap().nlink, 301);
}

#[test]
fn thousands_of_fragments() {
    let scratch = Scratch::new();
    for (cluster, sector) in [("512", "512"), ("4096", "4096")] {
        let image = scratch.mkntfs("image", 128 << 20, &["-c", cluster, "-s", sector]);
        let mount = scratch.mount(&image, "compression");
        let mut random = Random(9);
        let step: u64 = cluster.parse().unwrap();
        // Two that grow in turns, one of them with holes, in an order that makes
        // the distances large.
        let (one, two) = (mount.path("one"), mount.path("two"));
        let (one, two) = (File::create(one).unwrap(), File::create(two).unwrap());
        for n in 0..2000 {
            one.write_all_at(&random.bytes(step as usize), n * step)
                .unwrap();
            two.write_all_at(&random.bytes(step as usize), n * 2 * step)
                .unwrap();
        }
        drop((one, two));
        // The same in a folder of compressed files, and in a stream.
        compressed_folder(&mount.path("c"));
        let (one, two) = (mount.path("c/one"), mount.path("c/two"));
        let (one, two) = (File::create(one).unwrap(), File::create(two).unwrap());
        for n in 0..200 {
            one.write_all_at(&random.text(16 * step as usize), n * 16 * step)
                .unwrap();
            two.write_all_at(&random.text(16 * step as usize), n * 16 * step)
                .unwrap();
        }
        drop((one, two));
        for n in 0..60 {
            set(
                &mount.path("two"),
                &format!("user.stream {n}"),
                &random.bytes(3000),
            );
        }
        drop(mount);
        assert_eq!(compare(&scratch, &image), 5);
        let fs = open(&image);
        let mut extents = Vec::new();
        let two = walk_to(&fs, "two");
        fs.extents(two, 0, u64::MAX, &mut extents).unwrap();
        assert!(extents.len() > 3500, "only {} extents", extents.len());
        for pair in extents.windows(2) {
            let joined = matches!(pair, [Extent::Hole { .. }, Extent::Hole { .. }]);
            assert!(!joined);
        }
    }
}

#[test]
fn a_scattered_mft() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 16 << 20, &["-c", "512", "-z", "1"]);
    let mount = scratch.mount(&image, "rw");
    // Files of one cluster each take turns with MFT records.
    fs::create_dir(mount.path("many")).unwrap();
    for n in 0..3000 {
        let file = File::create(mount.path(&format!("many/{n}"))).unwrap();
        if file.write_all_at(&[n as u8; 3000], 0).is_err() {
            break;
        }
    }
    for n in (0..3000).step_by(2) {
        let _ = fs::remove_file(mount.path(&format!("many/{n}")));
    }
    for n in 0..2000 {
        if File::create(mount.path(&format!("many/again {n}"))).is_err() {
            break;
        }
    }
    drop(mount);
    let fs = open(&image);
    assert!(fs.mft.runs() > 4, "the MFT has {} runs", fs.mft.runs());
    assert!(compare(&scratch, &image) > 3000);
}

#[test]
fn a_folder_of_20000_files() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 96 << 20, &["-c", "4096"]);
    let mount = scratch.mount(&image, "rw");
    let folder = mount.path("folder");
    fs::create_dir(&folder).unwrap();
    let mut random = Random(5);
    let name = |n: u64| format!("{:08x} file {n}.dat", n.wrapping_mul(2_654_435_761) as u32);
    for n in 0..20_000 {
        File::create(folder.join(name(n))).unwrap();
    }
    // From the front in the order of the folder, which leaves blocks of the index
    // that are no longer in use.
    let mut sorted: Vec<String> = (0..20_000).map(name).collect();
    sorted.sort();
    let (gone, left) = sorted.split_at(8000);
    for name in gone {
        fs::remove_file(folder.join(name)).unwrap();
    }
    drop(mount);
    let fs = open(&image);
    let folder = walk_to(&fs, "folder");
    let whole = list(&fs, folder, usize::MAX).unwrap();
    assert_eq!(whole.len(), 12_000);
    // In pieces the listing is the same, entry by entry.
    for at_once in [1, 13, 1000] {
        assert!(list(&fs, folder, at_once).unwrap() == whole);
    }
    for _ in 0..2000 {
        let n = random.below(8000) as usize;
        assert!(
            fs.lookup(folder, gone[n].as_bytes()).is_err(),
            "{}",
            gone[n]
        );
        assert!(fs.lookup(folder, left[n].as_bytes()).is_ok(), "{}", left[n]);
    }
    // Deleted files are gone by number too.
    let mut in_use = 0;
    // The first 64 are kept for the file system.
    for ino in 64..20_100 {
        in_use += usize::from(fs.attr(ino).is_ok());
    }
    assert_eq!(in_use, 12_001);
}

/// Counts the reads that reach it.
struct Counting(ImageFile, AtomicU64);

impl BlockRead for Counting {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.read_at(offset, buf)
    }
}

#[test]
fn a_name_is_found_by_going_down_the_tree() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 160 << 20, &["-c", "4096"]);
    let mount = scratch.mount(&image, "rw");
    let folder = mount.path("folder");
    fs::create_dir(&folder).unwrap();
    let name = |n: u32| format!("{:08x} File.txt", n.wrapping_mul(2_654_435_761));
    const COUNT: u32 = 100_000;
    for n in 0..COUNT {
        File::create(folder.join(name(n))).unwrap();
    }
    // Every spelling of one name but the first and the last: more than one block
    // of the index holds.
    let spelling = |n: u32| {
        let upper = |(bit, c): (u32, char)| {
            if n >> bit & 1 == 1 {
                c
            } else {
                c.to_ascii_uppercase()
            }
        };
        (0..).zip("spelling".chars()).map(upper).collect::<String>()
    };
    for n in 1..255 {
        File::create(folder.join(spelling(n))).unwrap();
    }
    drop(mount);
    let source = Arc::new(Counting(
        ImageFile(File::open(&image).unwrap()),
        AtomicU64::new(0),
    ));
    let fs = Ntfs::open(Arc::<Counting>::clone(&source)).unwrap();
    let folder = walk_to(&fs, "folder");
    let count = |work: &dyn Fn() -> Option<u64>| {
        let before = source.1.load(Ordering::Relaxed);
        let found = work();
        (found, source.1.load(Ordering::Relaxed) - before)
    };
    let mut random = Random(6);
    // The folder's record, and a few blocks for each level of the tree.
    for _ in 0..1000 {
        let name = name(random.below(COUNT.into()) as u32);
        let (exact, reads) = count(&|| fs.lookup(folder, name.as_bytes()).ok());
        assert!(exact.is_some() && reads <= 8, "{name}: {reads} reads");
        let other = name.to_uppercase();
        assert_ne!(name, other);
        let (found, reads) = count(&|| {
            fs.lookup_ignoring_case(folder, other.as_bytes())
                .ok()
                .map(|f| f.0)
        });
        assert!(found == exact && reads <= 8, "{other}: {reads} reads");
        assert!(fs.lookup(folder, other.as_bytes()).is_err());
        let absent = name.replace("File", "Fill");
        let (found, reads) = count(&|| {
            fs.lookup_ignoring_case(folder, absent.as_bytes())
                .ok()
                .map(|f| f.0)
        });
        assert!(found.is_none() && reads <= 8, "{absent}: {reads} reads");
    }
    let of = |spelled: &str| fs.lookup(folder, spelled.as_bytes()).unwrap();
    let numbers: BTreeSet<u64> = (1..255).map(|n| of(&spelling(n))).collect();
    assert_eq!(numbers.len(), 254);
    for n in 1..255 {
        let spelled = spelling(n);
        let found = fs.lookup_ignoring_case(folder, spelled.as_bytes()).unwrap();
        assert_eq!(found, (of(&spelled), spelled.into_bytes()));
    }
    // Of those that are there, the one with most capitals in front is the first.
    for absent in ["SPELLING", "spelling"] {
        let (found, spelled) = fs.lookup_ignoring_case(folder, absent.as_bytes()).unwrap();
        assert_eq!((found, &spelled[..]), (of("SPELLINg"), &b"SPELLINg"[..]));
    }
}

#[test]
fn space_that_was_never_written_reads_as_zeros() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 16 << 20, &["-c", "4096"]);
    let mount = scratch.mount(&image, "rw");
    // Old content all over the volume.
    let old = File::create(mount.path("old")).unwrap();
    while old.metadata().unwrap().len() < 8 << 20 {
        old.write_all_at(&[0xaa; 1 << 20], old.metadata().unwrap().len())
            .unwrap();
    }
    drop(old);
    fs::remove_file(mount.path("old")).unwrap();
    fs::write(mount.path("file"), [1; 5000]).unwrap();
    drop(mount);
    run(
        "ntfsfallocate",
        &["-l", "3000001", image.to_str().unwrap(), "/file"],
    );
    let fs = open(&image);
    let ino = walk_to(&fs, "file");
    assert_eq!(fs.attr(ino).unwrap().size, 3_000_001);
    assert!(fs.attr(ino).unwrap().blocks > 5000);
    let data = read(&fs, ino, 0, u64::MAX).unwrap();
    assert_eq!(data.len(), 3_000_001);
    assert!(data[..5000].iter().all(|byte| *byte == 1));
    assert!(data[5000..].iter().all(|byte| *byte == 0));
    let mut extents = Vec::new();
    fs.extents(ino, 4000, u64::MAX, &mut extents).unwrap();
    assert!(matches!(
        extents[..],
        [Extent::Volume { len: 1000, .. }, Extent::Hole { .. }]
    ));
    compare(&scratch, &image);
}

#[test]
fn a_folder_whose_index_left_its_first_record() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 32 << 20, &["-c", "4096"]);
    let mount = scratch.mount(&image, "rw");
    let folder = mount.path("folder");
    fs::create_dir(&folder).unwrap();
    for n in 0..200 {
        // Large enough that the index's root would stay where it is otherwise.
        set(&folder, &format!("user.stream number {n}"), &[n as u8; 40]);
        if n % 2 == 0 {
            fs::write(
                folder.join(format!("a file with a name of some length {n}")),
                b"x",
            )
            .unwrap();
        }
    }
    drop(mount);
    assert_eq!(compare(&scratch, &image), 101);
    let fs = open(&image);
    let file = fs.mft.file(walk_to(&fs, "folder")).unwrap();
    let here = file.record.find(attribute::INDEX_ROOT, I30, 0).unwrap();
    assert!(
        here.is_none(),
        "the index did not leave: nothing was tested"
    );
}
