//! FAT: the whole volume as mtools and the Sleuth Kit show it.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::image::{Image, fill, set_time};
use super::walk::{find, paths, read, walk};
use crate::error::Error;
use crate::filesystem::fat::volume::{Root, Width};
use crate::filesystem::ntfs::tests::scratch::Random;
use crate::filesystem::{Extent, FileSystem, FileType, Options};

/// Fills an image and compares it with what was copied out of it again.
fn compare(size: u64, args: &[&str], zone: &str) -> Image {
    let image = Image::fat(size, args);
    let cluster = image.open().description().block_size as usize;
    let input = image.beside("input");
    fill(&input, cluster);
    image.copy_in(&input, zone);
    image.mtool("mattrib", zone, &["+r", "+h", "+s", "::/names/UPPER.TXT"]);
    image.mtool("mattrib", zone, &["+r", "::/deep"]);
    // Deleted entries, and files that are not in one piece.
    let fragments = image.beside("fragments");
    fs::create_dir(&fragments).unwrap();
    for n in 0..40 {
        fs::write(fragments.join(format!("{n:02}")), vec![1; 2 * cluster]).unwrap();
    }
    image.copy_in(&fragments, zone);
    for n in 0..20 {
        image.mtool("mdel", zone, &[&format!("::/{:02}", 2 * n)]);
    }
    fs::remove_dir_all(&fragments).unwrap();
    fs::create_dir(&fragments).unwrap();
    fs::write(
        fragments.join("a fragmented file"),
        Random(3).bytes(30 * cluster + 5),
    )
    .unwrap();
    if let Root::Chain(_) = image.open().volume.geometry.root {
        // Where the next free cluster is, in FSInfo: not known.
        let sector = image.open().volume.geometry.sector;
        image.patch(sector + 492, &[0xff; 4]);
    }
    image.copy_in(&fragments, zone);
    image.check("fsck.vfat");

    let fs = image.open_in(zone);
    let ours = walk(&fs, &|| image.open_in(zone));
    let output = image.copy_out(zone);
    let theirs = paths(&output);
    let mut listed: Vec<String> = ours
        .keys()
        .map(|path| String::from_utf8(path.clone()).unwrap())
        .collect();
    listed.sort();
    let only = |a: &[String], b: &[String]| -> Vec<String> {
        a.iter().filter(|path| !b.contains(path)).cloned().collect()
    };
    let differ = (only(&listed, &theirs), only(&theirs, &listed));
    assert_eq!(differ, (vec![], vec![]));
    for path in &theirs {
        let node = &ours[path.as_bytes()];
        let metadata = fs::metadata(output.join(path)).unwrap();
        assert_eq!(metadata.is_dir(), node.attr.kind == FileType::Directory);
        if metadata.is_dir() {
            assert_eq!(node.attr.mode, 0o755, "{path}");
            continue;
        }
        assert_eq!(node.attr.mtime.seconds, metadata.mtime(), "{path}");
        let mode = if path == "names/UPPER.TXT" {
            0o444
        } else {
            0o644
        };
        assert_eq!(node.attr.mode, mode, "{path}");
        assert!(
            node.content == fs::read(output.join(path)).unwrap(),
            "{path}"
        );
        if let Ok(source) = fs::metadata(input.join(path)) {
            assert_eq!(node.attr.mtime.seconds, source.mtime(), "{path}");
        }
    }

    // The times that mtools does not show.
    let mut known = 0;
    for (path, [size, atime, mtime, created]) in image.fls(zone) {
        // fls does not know code page 437.
        let Some(node) = ours.get(path.as_bytes()) else {
            assert!(path.contains('^'), "{path}");
            continue;
        };
        known += 1;
        assert_eq!(node.attr.atime.seconds, atime, "{path}");
        assert_eq!(node.attr.mtime.seconds, mtime, "{path}");
        assert_eq!(node.attr.btime.unwrap().seconds, created, "{path}");
        if node.attr.kind == FileType::Regular {
            assert_eq!(node.attr.size as i64, size, "{path}");
        }
    }
    assert!(known > 100);

    let mut extents = Vec::new();
    let fragmented = find(&fs, "a fragmented file");
    fs.extents(fragmented, 0, u64::MAX, &mut extents).unwrap();
    assert!(extents.len() > 10, "{extents:?}");

    let description = fs.description();
    assert_eq!(description.uuid, image.blkid("UUID"));
    assert_eq!(description.label, image.blkid("LABEL").into_bytes());
    assert!(description.notes.is_empty(), "{:?}", description.notes);
    let free = image.mtool("mdir", zone, &["::/"]);
    let free = free
        .lines()
        .rev()
        .find(|line| line.contains("free"))
        .unwrap();
    let digits: String = free.chars().filter(char::is_ascii_digit).collect();
    assert_eq!(
        description.blocks_free * u64::from(description.block_size),
        digits.parse::<u64>().unwrap()
    );
    image
}

#[test]
fn fat12_is_as_mtools_shows_it() {
    let image = compare(3 << 20, &["-F", "12", "-n", "TWELVE"], "UTC");
    let fs = image.open();
    assert_eq!(fs.volume.geometry.width, Width::Twelve);
    assert!(matches!(fs.volume.geometry.root, Root::Fixed { .. }));
    compare(
        4 << 20,
        &["-F", "12", "-S", "1024", "-s", "2", "-f", "1", "-M", "0xf0"],
        "America/New_York",
    );
}

#[test]
fn fat16_is_as_mtools_shows_it() {
    let image = compare(
        10 << 20,
        &["-F", "16", "-s", "1", "-n", "A LABEL"],
        "Europe/Berlin",
    );
    assert_eq!(image.open().volume.geometry.width, Width::Sixteen);
    compare(300 << 20, &["-F", "16", "-s", "128", "-f", "1"], "UTC");
    compare(
        100 << 20,
        &["-F", "16", "-S", "4096", "-s", "1"],
        "Asia/Kolkata",
    );
}

#[test]
fn fat32_is_as_mtools_shows_it() {
    let image = compare(40 << 20, &["-F", "32", "-s", "1", "-n", "THIRTYTWO"], "UTC");
    assert_eq!(image.open().volume.geometry.width, Width::TwentyEight);
    compare(
        36 << 20,
        &["-F", "32", "-s", "1", "-f", "1"],
        "Europe/Berlin",
    );
    compare(300 << 20, &["-F", "32", "-s", "8", "-M", "0xf0"], "UTC");
    compare(600 << 20, &["-F", "32", "-s", "2", "-S", "4096"], "UTC");
}

#[test]
fn fat32_may_have_fewer_clusters_than_it_should() {
    // As Linux does, and unlike mtools: there is no table of the old kind.
    let image = Image::fat(8 << 20, &["-F", "32", "-s", "1", "-n", "SMALL"]);
    let fs = image.open();
    assert_eq!(fs.volume.geometry.width, Width::TwentyEight);
    assert_eq!(fs.description().label, b"SMALL");
    assert!(walk(&fs, &|| image.open()).is_empty());
}

#[test]
fn times_are_read_to_the_hundredth_and_in_the_zone_given() {
    let image = Image::fat(2 << 20, &["-F", "12"]);
    let file = image.beside("file");
    fs::write(&file, b"x").unwrap();
    // 2024-07-01 10:30:58 UTC
    set_time(&file, 1_719_829_858);
    let file = file.to_str().unwrap();
    image.mtool("mcopy", "Europe/Berlin", &["-m", file, "::/"]);
    let bytes = image.bytes();
    let slot = bytes
        .windows(11)
        .position(|name| name == b"FILE       ")
        .unwrap();
    image.patch(slot as u64 + 13, &[157]);
    for (zone, seconds) in [
        ("Europe/Berlin", 1_719_829_858),
        ("+02:00", 1_719_829_858),
        ("UTC", 1_719_837_058),
        ("-01:00", 1_719_840_658),
    ] {
        let fs = image.open_in(zone);
        let attr = fs.attr(find(&fs, "file")).unwrap();
        assert_eq!(attr.mtime.seconds, seconds, "{zone}");
        assert_eq!(attr.ctime, attr.mtime);
        assert_eq!(attr.btime.unwrap().nanoseconds, 570_000_000);
    }
}

#[test]
fn owner_and_modes_are_those_of_the_options() {
    let image = Image::fat(2 << 20, &["-F", "12"]);
    image.mtool("mmd", "UTC", &["::/dir"]);
    let file = image.beside("file");
    fs::write(&file, b"x").unwrap();
    image.mtool("mcopy", "UTC", &[file.to_str().unwrap(), "::/"]);
    let fs = image.open_with(Options {
        uid: 5,
        gid: 6,
        file_mode: 0o640,
        directory_mode: 0o710,
        ..Options::default()
    });
    for (path, mode) in [("dir", 0o710), ("file", 0o640)] {
        let attr = fs.attr(find(&fs, path)).unwrap();
        assert_eq!((attr.uid, attr.gid, attr.mode), (5, 6, mode));
        assert!(fs.xattr_names(attr.ino).unwrap().is_empty());
    }
    assert_eq!(fs.attr(fs.root()).unwrap().mode, 0o710);
}

#[test]
fn numbers_that_are_no_entries_are_not_found() {
    let image = Image::fat(2 << 20, &["-F", "12", "-n", "LABEL"]);
    let file = image.beside("a long name");
    // What stands in a file may look like an entry; zeros do not.
    fs::write(&file, [0; 5000]).unwrap();
    image.mtool("mmd", "UTC", &["::/dir"]);
    image.mtool("mcopy", "UTC", &[file.to_str().unwrap(), "::/"]);
    let fs = image.open();
    let known = [find(&fs, "dir"), find(&fs, "a long name"), fs.root()];
    for ino in 0..fs.inode_bound().unwrap() + 10 {
        match fs.attr(ino) {
            Ok(_) => assert!(known.contains(&ino), "{ino}"),
            Err(Error::NotFound { .. }) => assert!(!known.contains(&ino), "{ino}"),
            Err(error) => panic!("{ino}: {error}"),
        }
    }
    assert!(matches!(
        fs.lookup(fs.root(), b"nothing"),
        Err(Error::NotFound { .. })
    ));
    assert!(matches!(
        fs.extents(known[0], 0, 1, &mut Vec::new()),
        Err(Error::IsADirectory { .. })
    ));
    assert!(matches!(
        fs.parent(known[1]),
        Err(Error::NotADirectory { .. })
    ));
}

#[test]
fn chains_longer_than_a_map_are_read_at_random() {
    // 512-byte clusters taken in turns by two files: no two of one adjoin.
    let image = Image::fat(60 << 20, &["-F", "32", "-s", "1"]);
    let content = Random(9).bytes(20 << 20);
    let file = image.beside("file");
    fs::write(&file, &content).unwrap();
    image.mtool("mcopy", "UTC", &[file.to_str().unwrap(), "::/"]);
    // The chain as mtools wrote it is in one piece; turn it around.
    let fs = image.open();
    let geometry = fs.volume.geometry.clone();
    let ino = find(&fs, "file");
    let first = fs.entry(ino).unwrap().chain.unwrap().first;
    let clusters = (content.len() / 512) as u32;
    let mut table = vec![0; clusters as usize * 4];
    for (n, entry) in table.chunks_exact_mut(4).enumerate() {
        let next = match n {
            0 => 0x0fff_ffff,
            n => first + n as u32 - 1,
        };
        entry.copy_from_slice(&next.to_le_bytes());
    }
    image.patch(geometry.table + u64::from(first) * 4, &table);
    let last = first + clusters - 1;
    let slot = ino * 32;
    image.patch(slot + 20, &((last >> 16) as u16).to_le_bytes());
    image.patch(slot + 26, &(last as u16).to_le_bytes());
    let turned: Vec<u8> = content.chunks(512).rev().flatten().copied().collect();
    let fs = image.open();
    assert!(read(&fs, ino, 0, u64::MAX).unwrap() == turned);
    let mut random = Random(4);
    for _ in 0..500 {
        let at = random.below(turned.len() as u64);
        let len = random.below(20_000);
        let end = (at + len).min(turned.len() as u64);
        assert!(read(&fs, ino, at, len).unwrap() == turned[at as usize..end as usize]);
    }
    let mut extents = Vec::new();
    fs.extents(ino, 512 * 1000, 1024, &mut extents).unwrap();
    let offset = geometry.offset(last - 1000);
    let next = geometry.offset(last - 1001);
    assert_eq!(
        extents,
        [offset, next].map(|offset| Extent::Volume { offset, len: 512 })
    );
}

#[test]
fn a_large_folder_is_listed_and_searched() {
    let image = Image::fat(64 << 20, &["-F", "32", "-s", "1"]);
    image.mtool("mmd", "UTC", &["::/large"]);
    let input = image.beside("input/large");
    fs::create_dir_all(&input).unwrap();
    for n in 0..3000 {
        fs::write(input.join(format!("{n:08}")), b"").unwrap();
    }
    image.copy_in(&image.beside("input"), "UTC");
    let fs = image.open();
    let dir = find(&fs, "large");
    let mut names = Vec::new();
    let mut position = 0;
    while {
        let before = names.len();
        fs.read_dir(dir, position, &mut |entry| {
            names.push(entry.name.to_vec());
            position = entry.next;
            if names.len() % 100 == 0 {
                std::ops::ControlFlow::Break(())
            } else {
                std::ops::ControlFlow::Continue(())
            }
        })
        .unwrap();
        names.len() > before
    } {}
    names.sort();
    let expected: Vec<Vec<u8>> = (0..3000).map(|n| format!("{n:08}").into_bytes()).collect();
    assert_eq!(names, expected);
    assert!(fs.lookup(dir, b"00002999").is_ok());
}
