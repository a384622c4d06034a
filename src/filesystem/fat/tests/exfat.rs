//! exFAT: the whole volume as exfat-fuse and the Sleuth Kit show it.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::image::{Image, fill};
use super::walk::{find, paths, read, walk};
use crate::error::Error;
use crate::filesystem::ntfs::tests::scratch::Random;
use crate::filesystem::{Extent, FileSystem, FileType, Options};

/// What mtools cannot write.
const NAMES: [&str; 6] = [
    "😀 smile 𝄞",
    "dots...",
    "spaces   ",
    "BASE.EXT.more",
    "éàü",
    "ends in a dot.",
];

fn make(size: u64, sector: u32, args: &[&str]) -> Image {
    let image = Image::exfat(size, sector, args);
    let cluster = image.open().description().block_size as usize;
    let mount = image.mount(sector, "rw,noatime");
    fill(&mount.at, cluster.min(64 << 10));
    for name in NAMES {
        fs::write(mount.at.join(name), name).unwrap();
    }
    fs::write(mount.at.join("日".repeat(85)), b"longest").unwrap();
    // Files that are not in one piece, and deleted ones.
    for n in 0..30 {
        fs::write(mount.at.join(format!("gap {n}")), vec![1; cluster]).unwrap();
    }
    for n in 0..15 {
        fs::remove_file(mount.at.join(format!("gap {}", 2 * n))).unwrap();
    }
    let content = Random(3).bytes(20 * cluster + 5);
    fs::write(mount.at.join("a fragmented file"), content).unwrap();
    drop(mount);
    image
}

fn compare(size: u64, sector: u32, args: &[&str]) -> Image {
    let image = make(size, sector, args);
    image.check("fsck.exfat");
    let fs = image.open();
    let ours = walk(&fs, &|| image.open());
    let mount = image.mount(sector, "ro,noatime");
    let theirs = paths(&mount.at);
    let mut listed: Vec<String> = ours
        .keys()
        .map(|path| String::from_utf8(path.clone()).unwrap())
        .collect();
    listed.sort();
    assert_eq!(listed, theirs);
    for path in &theirs {
        let node = &ours[path.as_bytes()];
        let metadata = fs::metadata(mount.at.join(path)).unwrap();
        assert_eq!(metadata.is_dir(), node.attr.kind == FileType::Directory);
        assert_eq!(node.attr.size, metadata.size(), "{path}");
        assert_eq!(node.attr.blocks, metadata.blocks(), "{path}");
        assert_eq!(node.attr.mtime.seconds, metadata.mtime(), "{path}");
        assert_eq!(node.attr.atime.seconds, metadata.atime(), "{path}");
        if !metadata.is_dir() {
            assert!(
                node.content == fs::read(mount.at.join(path)).unwrap(),
                "{path}"
            );
        }
    }
    let mut known = 0;
    for (path, [size, atime, mtime, created]) in image.fls("UTC") {
        let Some(node) = ours.get(path.as_bytes()) else {
            continue;
        };
        known += 1;
        assert_eq!(node.attr.size as i64, size, "{path}");
        assert_eq!(node.attr.atime.seconds, atime, "{path}");
        // fls leaves out what exFAT adds to the two seconds.
        assert_eq!(node.attr.mtime.seconds & !1, mtime, "{path}");
        assert_eq!(node.attr.btime.unwrap().seconds & !1, created, "{path}");
    }
    assert!(known > 100, "{known}");
    let mut extents = Vec::new();
    let fragmented = find(&fs, "a fragmented file");
    fs.extents(fragmented, 0, u64::MAX, &mut extents).unwrap();
    assert!(extents.len() > 5, "{extents:?}");

    let description = fs.description();
    assert_eq!(description.uuid, image.blkid("UUID"));
    assert_eq!(description.label, image.blkid("LABEL").into_bytes());
    assert!(description.notes.is_empty(), "{:?}", description.notes);
    let told = nix::sys::statvfs::statvfs(&mount.at).unwrap();
    assert_eq!(description.blocks_free, told.blocks_free());
    image
}

#[test]
fn exfat_is_as_exfat_fuse_shows_it() {
    compare(64 << 20, 512, &["-L", "Ein Name"]);
    compare(16 << 20, 512, &["-c", "512"]);
    compare(300 << 20, 512, &["-c", "128K"]);
    compare(64 << 20, 4096, &["-c", "4096"]);
}

/// The sum over a set that stands in its bytes 2 and 3.
fn seal(set: &mut [u8]) {
    let mut sum = 0u16;
    for (at, byte) in set.iter().enumerate() {
        if !matches!(at, 2 | 3) {
            sum = sum.rotate_right(1).wrapping_add(u16::from(*byte));
        }
    }
    set[2..4].copy_from_slice(&sum.to_le_bytes());
}

/// An image with one file of 20,000 bytes in the root, and where its set is.
fn single() -> (Image, u64, Vec<u8>) {
    let image = Image::exfat(16 << 20, 512, &["-c", "4096"]);
    let mount = image.mount(512, "rw,noatime");
    fs::write(mount.at.join("file"), Random(1).bytes(20_000)).unwrap();
    drop(mount);
    let fs = image.open();
    let place = find(&fs, "file") * 32;
    let set = image.bytes()[place as usize..place as usize + 96].to_vec();
    (image, place, set)
}

#[test]
fn what_was_not_written_is_zeros() {
    let (image, place, mut set) = single();
    for written in [0u64, 1, 4096, 10_000, 20_000] {
        set[40..48].copy_from_slice(&written.to_le_bytes());
        seal(&mut set);
        image.patch(place, &set);
        image.check("fsck.exfat");
        let fs = image.open();
        let ino = find(&fs, "file");
        assert_eq!(fs.attr(ino).unwrap().size, 20_000);
        let mut expected = Random(1).bytes(20_000);
        expected[written as usize..].fill(0);
        assert!(read(&fs, ino, 0, 30_000).unwrap() == expected);
        assert!(read(&fs, ino, 9_999, 5000).unwrap() == expected[9_999..14_999]);
        if written == 0 {
            let mut extents = Vec::new();
            fs.extents(ino, 0, 50_000, &mut extents).unwrap();
            assert_eq!(extents, [Extent::Hole { len: 20_000 }]);
        }
    }
}

#[test]
fn times_with_an_offset_do_not_depend_on_the_zone() {
    let (image, place, mut set) = single();
    // 2024-07-01 12:30:58, local time.
    let stamp = (44u32 << 25 | 7 << 21 | 1 << 16 | 12 << 11 | 30 << 5 | 29).to_le_bytes();
    for at in [8, 12, 16] {
        set[at..at + 4].copy_from_slice(&stamp);
    }
    (set[20], set[21]) = (157, 42);
    // Two hours ahead, five hours behind, and not known.
    (set[22], set[23], set[24]) = (0x88, 0x80 | 108, 0);
    seal(&mut set);
    image.patch(place, &set);
    for (zone, accessed) in [("UTC", 1_719_837_058), ("Europe/Berlin", 1_719_829_858)] {
        let fs = image.open_in(zone);
        let attr = fs.attr(find(&fs, "file")).unwrap();
        let created = attr.btime.unwrap();
        assert_eq!(created.seconds, 1_719_829_859);
        assert_eq!(created.nanoseconds, 570_000_000);
        assert_eq!(attr.mtime.seconds, 1_719_855_058);
        assert_eq!(attr.mtime.nanoseconds, 420_000_000);
        assert_eq!(attr.atime.seconds, accessed);
    }
}

#[test]
fn the_read_only_attribute_takes_the_write_bits() {
    let (image, place, mut set) = single();
    set[4] |= 0x01 | 0x02 | 0x04;
    seal(&mut set);
    image.patch(place, &set);
    let fs = image.open();
    assert_eq!(fs.attr(find(&fs, "file")).unwrap().mode, 0o444);
}

#[test]
fn case_is_ignored_by_the_table_of_the_volume() {
    let image = Image::exfat(16 << 20, 512, &[]);
    let mount = image.mount(512, "rw,noatime");
    fs::write(mount.at.join("Grüße, Ωμέγα, ﬀ"), b"x").unwrap();
    let names = [
        "grüße, ωμέγα, ﬀ",
        "GRÜßE, ΩΜΈΓΑ, ﬀ",
        "GRÜSSE, ΩΜΈΓΑ, ﬀ",
        "gruße",
    ];
    let theirs = names.map(|name| fs::metadata(mount.at.join(name)).is_ok());
    assert_eq!(theirs, [true, true, false, false]);
    drop(mount);
    let fs = image.open_with(Options {
        ignore_case: true,
        ..Options::default()
    });
    let ours = names.map(|name| fs.lookup(fs.root(), name.as_bytes()).is_ok());
    assert_eq!(ours, theirs);
    let exact = image.open();
    assert!(
        exact
            .lookup(exact.root(), "grüße, ωμέγα, ﬀ".as_bytes())
            .is_err()
    );
}

#[test]
fn a_set_that_is_damaged_is_an_error_there() {
    let (image, place, set) = single();
    // A wrong checksum: shown, and refused.
    image.patch(place + 2, &[set[2] ^ 1]);
    let fs = image.open();
    let ino = find(&fs, "file");
    assert!(matches!(fs.attr(ino), Err(Error::Corrupt { .. })));
    assert!(matches!(
        fs.extents(ino, 0, 1, &mut Vec::new()),
        Err(Error::Corrupt { .. })
    ));
    // A set cut short: no file, and the listing says so.
    image.patch(place, &set);
    image.patch(place + 64, &[0x41]);
    let fs = image.open();
    let listed = fs.read_dir(fs.root(), 0, &mut |_| panic!("nothing is left"));
    assert!(matches!(listed, Err(Error::Corrupt { .. })));
}

#[test]
fn sets_with_unknown_entries_are_handled_by_their_importance() {
    for (kind, known) in [(0xe0, true), (0xe5, true), (0xc2, false), (0xdf, false)] {
        let (image, place, mut set) = single();
        let mut more = [0; 32];
        more[0] = kind;
        set[1] += 1;
        set.extend(more);
        seal(&mut set);
        image.patch(place, &set);
        let fs = image.open();
        let ino = find(&fs, "file");
        assert_eq!(fs.attr(ino).unwrap().size, 20_000);
        let outcome = fs.extents(ino, 0, 1, &mut Vec::new());
        if known {
            outcome.unwrap();
        } else {
            assert!(
                matches!(outcome, Err(Error::Unsupported { .. })),
                "{outcome:?}"
            );
        }
    }
}

#[test]
fn a_damaged_boot_region_is_replaced_by_its_copy() {
    for sector in [512u32, 4096] {
        let image = Image::exfat(32 << 20, sector, &["-L", "Kept"]);
        let intact = image.bytes();
        for at in [80, 96, 109, 200, 11 * u64::from(sector)] {
            image.patch(at, &[intact[at as usize] ^ 0x5a]);
            let fs = image.open();
            assert_eq!(fs.description().label, b"Kept");
            assert_eq!(fs.description().notes.len(), 1, "byte {at}");
            image.patch(at, &[intact[at as usize]]);
        }
        assert!(image.open().description().notes.is_empty());
        // The flags are not part of the checksum.
        image.patch(106, &[2]);
        let notes = image.open().description().notes.clone();
        assert!(
            notes.len() == 1 && notes[0].contains("not unmounted"),
            "{notes:?}"
        );
    }
}
