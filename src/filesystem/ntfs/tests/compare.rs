//! Compares what the reader says of an image with what ntfs-3g says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use super::scratch::{Random, Scratch, open};
use crate::error::Result;
use crate::filesystem::ntfs::Ntfs;
use crate::filesystem::{Extent, FileSystem, FileType, Time};

/// What ntfs-3g answers without being asked for by a listing.
const SYSTEM: [&str; 12] = [
    "system.ntfs_attrib",
    "system.ntfs_attrib_be",
    "system.ntfs_acl",
    "system.ntfs_times",
    "system.ntfs_times_be",
    "system.ntfs_crtime",
    "system.ntfs_crtime_be",
    "system.ntfs_reparse_data",
    "system.ntfs_object_id",
    "system.ntfs_dos_name",
    "system.ntfs_ea",
    "system.ntfs_nothing",
];

/// One entry of a folder: name, number, type if told.
pub(in crate::filesystem) type Listed = (Vec<u8>, u64, Option<FileType>);

/// All entries of a folder, asked for in pieces of `at_once`.
pub(in crate::filesystem) fn list(
    fs: &dyn FileSystem,
    dir: u64,
    at_once: usize,
) -> Result<Vec<Listed>> {
    let mut all = Vec::new();
    let mut position = 0;
    loop {
        let before = all.len();
        fs.read_dir(dir, position, &mut |entry| {
            all.push((entry.name.to_vec(), entry.ino, entry.kind));
            assert_ne!(entry.next, 0);
            position = entry.next;
            if all.len() - before < at_once {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        if all.len() - before < at_once {
            return Ok(all);
        }
    }
}

/// Bytes of a file, by its extents, as the tree reads them.
pub(super) fn read(fs: &Ntfs, ino: u64, offset: u64, len: u64) -> Result<Vec<u8>> {
    let mut extents = Vec::new();
    fs.extents(ino, offset, len, &mut extents)?;
    let mut data = Vec::new();
    for extent in extents {
        let begin = data.len();
        let mut grow = |len: u64| {
            assert!(len > 0);
            data.resize(begin + len as usize, 0);
        };
        match extent {
            Extent::Volume { offset, len } => {
                grow(len);
                fs.mft.volume.source.read_at(offset, &mut data[begin..])?;
            }
            Extent::Hole { len } => grow(len),
            Extent::Bytes(bytes) => data.extend(bytes),
            Extent::Decode { len } => {
                grow(len);
                let n = fs.read(ino, offset + begin as u64, &mut data[begin..])?;
                assert_eq!(n as u64, len);
            }
            Extent::Checked { .. } => panic!("NTFS has no checksums of data"),
        }
    }
    Ok(data)
}

/// Mounts the image read-only by ntfs-3g and compares everything; answers how
/// many entries there were.
pub(super) fn compare(scratch: &Scratch, image: &Path) -> usize {
    let mount = scratch.mount(image, "ro");
    let fs = open(image);
    let mut count = 0;
    let mut random = Random(42);
    folder(&fs, mount.root(), fs.root(), &mut count, &mut random);
    count
}

fn folder(fs: &Ntfs, path: &Path, ino: u64, count: &mut usize, random: &mut Random) {
    entry(fs, path, ino, None, random);
    let mut ours = BTreeMap::new();
    for (name, number, kind) in list(fs, ino, 7).unwrap() {
        let twice = ours.insert(name.clone(), (number, kind));
        assert!(
            twice.is_none(),
            "{path:?} has {} twice",
            name.escape_ascii()
        );
    }
    for theirs in fs::read_dir(path).unwrap() {
        let theirs = theirs.unwrap();
        let name = theirs.file_name().into_vec();
        let path = theirs.path();
        let (number, kind) = ours
            .remove(&name)
            .unwrap_or_else(|| panic!("{path:?} is not listed"));
        assert_eq!(fs.lookup(ino, &name).unwrap(), number, "{path:?}");
        *count += 1;
        let attr = fs.attr(number).unwrap();
        if attr.kind == FileType::Directory {
            assert_eq!(fs.parent(number).unwrap(), ino, "{path:?}");
            assert!(
                kind.is_none_or(|kind| kind == FileType::Directory),
                "{path:?}"
            );
            folder(fs, &path, number, count, random);
        } else {
            entry(fs, &path, number, kind, random);
        }
    }
    let left: Vec<_> = ours
        .keys()
        .map(|name| name.escape_ascii().to_string())
        .collect();
    assert!(left.is_empty(), "{path:?} does not have {left:?}");
}

fn time(seconds: i64, nanoseconds: i64) -> Time {
    Time {
        seconds,
        nanoseconds: nanoseconds as u32,
    }
}

/// Before 1970 ntfs-3g rounds towards 1970 and gives negative nanoseconds, of
/// which the kernel makes 0.
fn shown(time: Time) -> Time {
    match time {
        Time {
            seconds: ..0,
            nanoseconds: 1..,
        } => self::time(time.seconds + 1, 0),
        time => time,
    }
}

fn entry(fs: &Ntfs, path: &Path, ino: u64, listed: Option<FileType>, random: &mut Random) {
    let theirs = fs::symlink_metadata(path).unwrap();
    let ours = fs.attr(ino).unwrap();
    let kind = match theirs.file_type() {
        t if t.is_dir() => FileType::Directory,
        t if t.is_file() => FileType::Regular,
        t if t.is_symlink() => FileType::Symlink,
        t if t.is_fifo() => FileType::Fifo,
        t if t.is_socket() => FileType::Socket,
        t if t.is_char_device() => FileType::CharDevice,
        t if t.is_block_device() => FileType::BlockDevice,
        t => panic!("{path:?} is {t:?}"),
    };
    assert_eq!(ours.kind, kind, "{path:?}");
    assert!(listed.is_none_or(|listed| listed == kind), "{path:?}");
    assert_eq!(ours.ino, theirs.ino(), "{path:?}");
    assert_eq!(u64::from(ours.nlink), theirs.nlink(), "links of {path:?}");
    assert_eq!(ours.blocks, theirs.blocks(), "blocks of {path:?}");
    assert_eq!(ours.rdev, theirs.rdev(), "{path:?}");
    assert_eq!(
        shown(ours.mtime),
        time(theirs.mtime(), theirs.mtime_nsec()),
        "{path:?}"
    );
    assert_eq!(
        shown(ours.atime),
        time(theirs.atime(), theirs.atime_nsec()),
        "{path:?}"
    );
    assert_eq!(
        shown(ours.ctime),
        time(theirs.ctime(), theirs.ctime_nsec()),
        "{path:?}"
    );
    match kind {
        FileType::Symlink => {
            let target = fs.read_link(ino).unwrap();
            assert_eq!(ours.size, target.len() as u64, "{path:?}");
            // ntfs-3g spells some links by where it is mounted.
            if let Ok(theirs) = fs::metadata(path) {
                let target = std::ffi::OsStr::from_bytes(&target);
                let ours = fs::metadata(path.parent().unwrap().join(target));
                let ours = ours.unwrap_or_else(|error| panic!("{path:?} -> {target:?}: {error}"));
                assert_eq!(ours.ino(), theirs.ino(), "{path:?} -> {target:?}");
            }
        }
        FileType::Regular => {
            assert_eq!(ours.size, theirs.size(), "size of {path:?}");
            data(fs, path, ino, random);
        }
        FileType::Directory => assert_eq!(ours.size, theirs.size(), "size of {path:?}"),
        _ => {}
    }
    xattrs(fs, path, ino);
}

fn data(fs: &Ntfs, path: &Path, ino: u64, random: &mut Random) {
    let file = fs::File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    // In pieces, so that large sparse files take no memory.
    let mut at = 0;
    while at < size {
        let len = (8 << 20).min(size - at);
        let mut theirs = vec![0; len as usize];
        file.read_exact_at(&mut theirs, at).unwrap();
        let ours = read(fs, ino, at, len).unwrap();
        let differ = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        assert_eq!(differ.map(|n| n as u64 + at), None, "{path:?} differs");
        assert_eq!(ours.len() as u64, len, "{path:?}");
        at += len;
    }
    assert!(
        read(fs, ino, size, 10).unwrap().is_empty(),
        "{path:?} goes on past its end"
    );
    for _ in 0..if size > 0 { 5 } else { 0 } {
        let at = random.below(size);
        let len = random.below(70_000);
        let mut theirs = vec![0; len.min(size - at) as usize];
        file.read_exact_at(&mut theirs, at).unwrap();
        let ours = read(fs, ino, at, len).unwrap();
        assert!(ours == theirs, "{path:?} differs in {len} bytes from {at}");
        // Whatever the extents say, `read` gives the same.
        let mut read = vec![0; len as usize];
        let n = fs.read(ino, at, &mut read).unwrap();
        assert!(
            read[..n] == theirs,
            "{path:?} differs in {len} bytes from {at} by read"
        );
    }
}

fn getfattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let output = std::process::Command::new("getfattr")
        .args(["--absolute-names", "-h", "--only-values", "-n", name])
        .arg(path)
        .output()
        .expect("getfattr is needed");
    output.status.success().then_some(output.stdout)
}

fn xattrs(fs: &Ntfs, path: &Path, ino: u64) {
    // What is too long for Linux is listed by ntfs-3g, and not by us.
    let (too_long, theirs): (BTreeSet<Vec<u8>>, BTreeSet<Vec<u8>>) = xattr::list(path)
        .unwrap()
        .map(|name| name.as_bytes().to_vec())
        .partition(|name| {
            xattr::get(path, std::ffi::OsStr::from_bytes(name))
                .is_err_and(|error| error.raw_os_error() == Some(libc::E2BIG))
        });
    for name in too_long {
        let error = fs.xattr(ino, &name).unwrap_err();
        assert_eq!(error.errno(), libc::E2BIG, "{path:?}");
    }
    let ours: BTreeSet<Vec<u8>> = fs.xattr_names(ino).unwrap().into_iter().collect();
    assert_eq!(ours, theirs, "attributes of {path:?}");
    assert_eq!(
        fs.attr(ino).unwrap().may_have_xattrs,
        !ours.is_empty(),
        "{path:?}"
    );
    for name in ours {
        let theirs = xattr::get(path, std::ffi::OsStr::from_bytes(&name)).unwrap();
        let value = fs.xattr(ino, &name).unwrap();
        assert!(value == theirs, "{} of {path:?}", name.escape_ascii());
    }
    for name in SYSTEM {
        let theirs = match xattr::get(path, name) {
            // The library asks with a buffer first, and ntfs-3g answers more than
            // was asked for if that is too short.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => getfattr(path, name),
            theirs => theirs.unwrap_or(None),
        };
        let ours = fs.xattr(ino, name.as_bytes()).unwrap();
        assert!(
            ours == theirs,
            "{name} of {path:?}: {ours:x?}, not {theirs:x?}"
        );
    }
}
