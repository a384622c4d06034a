//! Version 4, which newer kernels do not mount: filled by `mkfs.xfs` from a list
//! of files, and looked at with `xfs_db`.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::Xfs;
use super::image::Image;
use crate::Error;
use crate::filesystem::ext::tests::image::{Memory, bytes};
use crate::filesystem::{Extent, FileSystem, FileType};
use crate::image::BlockRead;

/// How many files its folders have.
const FOLDERS: [usize; 4] = [3, 40, 500, 2500];

fn name(number: usize) -> Vec<u8> {
    match number {
        0 => vec![b'x'; 255],
        1 => vec![0xfe; 200],
        number => format!("file{number}-{}", "n".repeat(number % 30)).into_bytes(),
    }
}

/// What `mkfs.xfs -p` makes a file system of.
fn list(folder: &Path) -> std::path::PathBuf {
    let data = folder.join("data");
    fs::write(&data, bytes(100_000, 1)).expect("a file");
    let small = folder.join("small");
    fs::write(&small, bytes(300, 2)).expect("a file");
    let mut text = b"/none\n0 0\nd--755 3 4\n".to_vec();
    text.extend(format!("data -u-644 5 70000 {}\n", data.display()).bytes());
    text.extend(b"link l--777 0 0 target/of/a/link\n");
    text.extend(format!("long l--777 0 0 {}\n", "t".repeat(1000)).bytes());
    text.extend(b"null c--666 0 0 1 3\ndisk b--660 1 2 8 17\nfifo p--600 0 0\n");
    for count in FOLDERS {
        text.extend(format!("of{count} d--700 1 2\n").bytes());
        for number in 0..count {
            text.extend(name(number));
            text.extend(format!(" ---600 0 0 {}\n", small.display()).bytes());
        }
        text.extend(b"$\n");
    }
    text.extend(b"$\n");
    let list = folder.join("list");
    fs::write(&list, text).expect("a list");
    list
}

fn content(reader: &Xfs, volume: &dyn BlockRead, ino: u64) -> Vec<u8> {
    let mut extents = Vec::new();
    reader
        .extents(ino, 0, u64::MAX, &mut extents)
        .expect("extents");
    let mut all = Vec::new();
    for extent in extents {
        match extent {
            Extent::Volume { offset, len } => {
                let mut part = vec![0; len as usize];
                volume.read_at(offset, &mut part).expect("data");
                all.extend(part);
            }
            Extent::Hole { len } => all.extend(vec![0; len as usize]),
            other => panic!("{other:?}"),
        }
    }
    all
}

/// Fields of an inode as `xfs_db` prints them.
fn printed(image: &Image, ino: u64, fields: &[&str]) -> Vec<u64> {
    let print = format!("print {}", fields.join(" "));
    let text = image.xfs_db(&[&format!("inode {ino}"), &print]);
    let numbers = text.lines().filter_map(|line| line.split(" = ").nth(1));
    numbers
        .map(|number| {
            let octal = number.strip_prefix('0').filter(|rest| !rest.is_empty());
            match octal {
                Some(octal) => u64::from_str_radix(octal, 8).expect("a number"),
                None => number.parse().expect("a number"),
            }
        })
        .collect()
}

fn agrees(options: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let list = list(folder.path());
    let list = list.to_str().expect("a path");
    let options = [&["-m", "crc=0", "-p", list], options].concat();
    let image = Image::make("100M", &options);
    let reader = image.open();
    assert!(
        reader.description().notes.is_empty(),
        "{:?}",
        reader.description().notes
    );
    let root = reader.root();
    let at = |name: &str| reader.lookup(root, name.as_bytes()).expect("a name");
    assert_eq!(
        content(&reader, &image.reader(), at("data")),
        bytes(100_000, 1)
    );
    assert_eq!(
        reader.read_link(at("link")).expect("a link"),
        b"target/of/a/link"
    );
    assert_eq!(reader.read_link(at("long")).expect("a link"), [b't'; 1000]);
    let attr = reader.attr(at("data")).expect("attributes");
    assert_eq!(
        (attr.mode, attr.uid, attr.gid, attr.btime),
        (0o4644, 5, 70_000, None)
    );
    let disk = reader.attr(at("disk")).expect("attributes");
    assert_eq!(
        (disk.kind, disk.rdev),
        (FileType::BlockDevice, libc::makedev(8, 17))
    );
    assert_eq!(
        reader.attr(at("fifo")).expect("attributes").kind,
        FileType::Fifo
    );
    for name in ["data", "long", "of3", "of500", "of2500"] {
        let ino = at(name);
        let attr = reader.attr(ino).expect("attributes");
        let fields = [
            "core.mode",
            "core.size",
            "core.nlinkv2",
            "core.uid",
            "core.gid",
            "core.nblocks",
        ];
        let theirs = printed(&image, ino, &fields);
        let per_block = u64::from(reader.description().block_size) / 512;
        let mode = theirs[0] & 0o7777;
        let ours = [
            attr.mode.into(),
            attr.size,
            attr.nlink.into(),
            attr.uid.into(),
            attr.gid.into(),
            attr.blocks / per_block,
        ];
        assert_eq!(ours.as_slice(), [&[mode], &theirs[1..]].concat(), "{name}");
    }
    let mut numbers = std::collections::HashSet::from([root]);
    for count in FOLDERS {
        let dir = at(&format!("of{count}"));
        numbers.insert(dir);
        assert_eq!(reader.parent(dir).expect("a parent"), root);
        let mut names = Vec::new();
        reader
            .read_dir(dir, 0, &mut |entry| {
                names.push((entry.name.to_vec(), entry.ino));
                ControlFlow::Continue(())
            })
            .expect("a listing");
        numbers.extend(names.iter().map(|(_, ino)| *ino));
        for (name, ino) in &names {
            assert_eq!(reader.lookup(dir, name).expect("a name"), *ino);
            assert_eq!(reader.attr(*ino).expect("attributes").size, 300);
        }
        assert!(matches!(
            reader.lookup(dir, b"none"),
            Err(Error::NotFound { .. })
        ));
        assert_eq!(content(&reader, &image.reader(), names[2].1), bytes(300, 2));
        let mut names: Vec<_> = names.into_iter().map(|(name, _)| name).collect();
        let mut all: Vec<_> = (0..count).map(name).collect();
        names.sort();
        all.sort();
        assert!(names == all, "the folder of {count}");
    }
    // What lies where inodes could be and is none.
    let first = numbers.iter().max().expect("a number") + 200;
    for ino in (first..first + 5000).step_by(7) {
        let answer = reader.attr(ino);
        assert!(
            matches!(answer, Err(Error::NotFound { .. })),
            "{ino}: {answer:?}"
        );
    }
}

#[test]
fn as_mkfs_fills_it() {
    agrees(&[]);
    agrees(&["-b", "size=512", "-n", "ftype=1"]);
    agrees(&["-b", "size=1024", "-n", "size=16384", "-i", "size=512"]);
}

#[test]
fn without_types_in_folders() {
    agrees(&["-n", "ftype=0"]);
}

#[test]
fn whatever_the_case() {
    let folder = tempfile::tempdir().expect("a folder");
    let list = list(folder.path());
    let list = list.to_str().expect("a path");
    let image = Image::make("100M", &["-m", "crc=0", "-p", list, "-n", "version=ci"]);
    let reader = image.open();
    for count in FOLDERS {
        let dir = reader.lookup(reader.root(), format!("OF{count}").as_bytes());
        let dir = dir.expect("a folder");
        let exact = reader.lookup(dir, &name(2)).expect("a name");
        assert_eq!(
            reader
                .lookup(dir, &name(2).to_ascii_uppercase())
                .expect("a name"),
            exact
        );
        assert!(reader.lookup(dir, b"FILE").is_err());
    }
}

/// `xfs_db` reads the tree as well, which is made by hand here.
#[test]
fn a_tree_of_extents() {
    let folder = tempfile::tempdir().expect("a folder");
    let list = list(folder.path());
    let list = list.to_str().expect("a path");
    let image = Image::make("100M", &["-m", "crc=0", "-i", "size=256", "-p", list]);
    let reader = image.open();
    let file = reader.lookup(reader.root(), b"data").expect("a file");
    let dir = reader.lookup(reader.root(), b"of3").expect("a folder");
    let spare = reader.lookup(dir, &name(2)).expect("a file");
    let mut raw = fs::read(&image.path).expect("the image");
    let superblock = &reader.store.superblock;
    let inode = |ino| superblock.inode_place(ino).expect("a place").2 as usize;
    let n64 = |raw: &[u8], at: usize| u64::from_be_bytes(raw[at..at + 8].try_into().expect("8"));
    // The first extent of the file, and the block of another file for a leaf.
    let low = n64(&raw, inode(file) + 108);
    let (start, blocks) = (low >> 21, low & 0x1f_ffff);
    let leaf = n64(&raw, inode(spare) + 108) >> 21;
    let at = superblock.bytes(superblock.linear(leaf, 1).expect("a block")) as usize;
    let mut block = b"BMAP\0\0\0\x03".to_vec();
    block.extend([0xff; 16]);
    for (to, from, len) in [
        (0, start + 5, 5),
        (7, start, 5),
        (100, start + 10, blocks - 10),
    ] {
        block.extend(u64::to_be_bytes(to << 9));
        block.extend(u64::to_be_bytes(from << 21 | len));
    }
    raw[at..at + block.len()].copy_from_slice(&block);
    let core = inode(file);
    raw[core + 5] = 3;
    raw[core + 76..core + 80].copy_from_slice(&3u32.to_be_bytes());
    let size = (100 + blocks - 10) * 4096;
    raw[core + 56..core + 64].copy_from_slice(&size.to_be_bytes());
    let room = (256 - 100 - 4) / 16;
    raw[core + 100..core + 256].fill(0);
    raw[core + 100..core + 104].copy_from_slice(&[0, 1, 0, 1]);
    raw[core + 104 + room * 8..][..8].copy_from_slice(&leaf.to_be_bytes());
    let patched = Image::of(&raw);
    let theirs = patched.xfs_db(&[&format!("inode {file}"), "bmap"]);
    let theirs: Vec<Vec<u64>> = theirs
        .lines()
        .map(|line| {
            line.split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect()
        })
        .collect();
    assert_eq!(
        theirs,
        [
            vec![0, start + 5, 5, 0],
            vec![7, start, 5, 0],
            vec![100, start + 10, blocks - 10, 0]
        ]
    );
    let reader = Xfs::open(Arc::new(Memory(raw))).expect("the image opens");
    let mut ours = Vec::new();
    reader
        .extents(file, 4096, u64::MAX, &mut ours)
        .expect("extents");
    let volume = |block: u64, len: u64| Extent::Volume {
        offset: superblock.bytes(superblock.linear(block, 1).expect("a block")),
        len: len * 4096,
    };
    let hole = |len: u64| Extent::Hole { len: len * 4096 };
    assert_eq!(
        ours,
        [
            volume(start + 6, 4),
            hole(2),
            volume(start, 5),
            hole(88),
            volume(start + 10, blocks - 10)
        ]
    );
}
