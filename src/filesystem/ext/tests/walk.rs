//! Two walks over the same tree, ours and the kernel's, and their comparison.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::ops::{ControlFlow, Range};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::SystemTime;

use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};

use crate::filesystem::{Extent, FileSystem, FileType, Time};
use crate::image::BlockRead;

/// All that is compared of a file.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::filesystem) struct Entry {
    ino: u64,
    kind: FileType,
    mode: u16,
    size: u64,
    blocks: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    rdev: u64,
    atime: Time,
    mtime: Time,
    ctime: Time,
    btime: Option<Time>,
    target: Option<Vec<u8>>,
    /// Of the data; holes are compared by where they are.
    hash: Option<[u8; 32]>,
    /// Where there is data: the rest is holes.
    data: Vec<Range<u64>>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// By path from the root; `None` for what cannot be read.
pub(in crate::filesystem) type Tree = BTreeMap<Vec<u8>, Option<Entry>>;

/// Says in which entries and fields two trees differ.
pub(in crate::filesystem) fn compare(ours: &Tree, kernel: &Tree) {
    assert!(kernel.len() > 1, "there is nothing to compare");
    let mut differences = Vec::new();
    let paths: std::collections::BTreeSet<_> = ours.keys().chain(kernel.keys()).collect();
    for path in paths {
        let (mine, theirs) = (ours.get(path), kernel.get(path));
        if mine != theirs {
            differences.push(format!(
                "{}\n  ours:   {mine:?}\n  kernel: {theirs:?}",
                path.escape_ascii()
            ));
        }
    }
    let count = differences.len();
    differences.truncate(5);
    assert!(
        count == 0,
        "{count} of {} differ:\n{}",
        kernel.len(),
        differences.join("\n")
    );
}

fn join(ranges: &mut Vec<Range<u64>>, next: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == next.start => last.end = next.end,
        _ => ranges.push(next),
    }
}

/// Walks with our reader. Look-ups, parents and positions are checked on the
/// way.
pub(in crate::filesystem) fn ours(reader: &dyn FileSystem, volume: &dyn BlockRead) -> Tree {
    let mut tree = Tree::new();
    let mut folders = vec![(Vec::new(), reader.root())];
    let mut seen = HashSet::new();
    tree.insert(b"/".to_vec(), our_entry(reader, volume, reader.root()));
    while let Some((path, dir)) = folders.pop() {
        assert!(seen.insert(dir), "folder {dir} is there twice");
        for (ino, name, kind) in list(reader, dir) {
            assert_eq!(
                reader.lookup(dir, &name).expect("a name that was listed"),
                ino
            );
            let path = [&path, b"/".as_slice(), &name].concat();
            let entry = our_entry(reader, volume, ino);
            if let Some(entry) = &entry {
                assert!(kind.is_none_or(|kind| kind == entry.kind));
                if entry.kind == FileType::Directory {
                    assert_eq!(reader.parent(ino).expect("a parent"), dir);
                    folders.push((path.clone(), ino));
                }
            }
            assert!(tree.insert(path, entry).is_none(), "a name is there twice");
        }
        let missing = reader.lookup(dir, b"there is no such name");
        assert!(
            matches!(missing, Err(crate::Error::NotFound { .. })),
            "{missing:?}"
        );
    }
    tree
}

/// Reads a folder in one go and again in small steps: both must agree.
fn list(reader: &dyn FileSystem, dir: u64) -> Vec<(u64, Vec<u8>, Option<FileType>)> {
    let mut all = Vec::new();
    reader
        .read_dir(dir, 0, &mut |entry| {
            all.push((entry.ino, entry.name.to_vec(), entry.kind));
            ControlFlow::Continue(())
        })
        .expect("a listing");
    let (mut steps, mut position, mut last) = (Vec::new(), 0, None);
    while last != Some(position) {
        last = Some(position);
        let mut left = 3;
        reader
            .read_dir(dir, position, &mut |entry| {
                if left == 0 {
                    return ControlFlow::Break(());
                }
                left -= 1;
                assert!(entry.next > position);
                position = entry.next;
                steps.push((entry.ino, entry.name.to_vec(), entry.kind));
                ControlFlow::Continue(())
            })
            .expect("a listing in steps");
    }
    assert_eq!(all, steps);
    all
}

fn our_entry(reader: &dyn FileSystem, volume: &dyn BlockRead, ino: u64) -> Option<Entry> {
    let attr = reader.attr(ino).ok()?;
    assert_eq!(attr.ino, ino);
    let mut attributes = BTreeMap::new();
    for name in reader.xattr_names(ino).expect("names of attributes") {
        let value = reader
            .xattr(ino, &name)
            .expect("an attribute")
            .expect("one that was listed");
        attributes.insert(name, value);
    }
    assert!(attr.may_have_xattrs || attributes.is_empty());
    assert_eq!(
        reader
            .xattr(ino, b"user.there is none")
            .expect("no attribute"),
        None
    );
    let regular = attr.kind == FileType::Regular;
    let (hash, data) = if regular {
        let (hash, data) = our_content(reader, volume, ino, attr.size);
        (Some(hash), data)
    } else {
        (None, Vec::new())
    };
    let target = (attr.kind == FileType::Symlink).then(|| reader.read_link(ino).expect("a link"));
    Some(Entry {
        ino,
        kind: attr.kind,
        mode: attr.mode,
        size: attr.size,
        blocks: attr.blocks,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        btime: attr.btime,
        target,
        hash,
        data,
        attributes,
    })
}

/// The extents of the whole file give its bytes; those of odd pieces must say
/// the same.
fn our_content(
    reader: &dyn FileSystem,
    volume: &dyn BlockRead,
    ino: u64,
    size: u64,
) -> ([u8; 32], Vec<Range<u64>>) {
    let mut whole = Vec::new();
    reader
        .extents(ino, 0, u64::MAX, &mut whole)
        .expect("extents");
    let mut hash = Sha256::new();
    let (mut at, mut data) = (0, Vec::new());
    let mut buffer = vec![0; 1 << 20];
    // Where each byte of the file is, in pieces: volume offset or hole.
    let mut places = Vec::new();
    for extent in &whole {
        let start = at;
        match extent {
            Extent::Volume { offset, len } => {
                let mut done = 0;
                while done < *len {
                    let part = (len - done).min(1 << 20);
                    volume
                        .read_at(offset + done, &mut buffer[..part as usize])
                        .expect("data");
                    hash.update(&buffer[..part as usize]);
                    done += part;
                }
                at += len;
                join(&mut data, start..at);
                places.push((start..at, Some(*offset)));
            }
            Extent::Hole { len } => {
                at += len;
                places.push((start..at, None));
            }
            Extent::Bytes(bytes) => {
                hash.update(bytes);
                at += bytes.len() as u64;
                join(&mut data, start..at);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(at, size, "the extents of inode {ino} do not fill it");
    pieces(reader, ino, size, &places);
    (hash.finalize().into(), data)
}

fn pieces(reader: &dyn FileSystem, ino: u64, size: u64, places: &[(Range<u64>, Option<u64>)]) {
    if places.is_empty() {
        return;
    }
    let step = (size / 7).max(4097);
    let mut at = 1;
    while at < size {
        let mut part = Vec::new();
        reader
            .extents(ino, at, 777_777, &mut part)
            .expect("extents of a part");
        let end = size.min(at + 777_777);
        let mut here = at;
        for extent in part {
            let place = places
                .iter()
                .find(|(range, _)| range.contains(&here))
                .expect("a place");
            let len = match extent {
                Extent::Volume { offset, len } => {
                    assert_eq!(
                        place.1.map(|start| start + (here - place.0.start)),
                        Some(offset)
                    );
                    len
                }
                Extent::Hole { len } => {
                    assert_eq!(place.1, None);
                    len
                }
                other => panic!("{other:?}"),
            };
            assert!(len > 0 && here + len <= place.0.end);
            here += len;
        }
        assert_eq!(here, end);
        at += step;
    }
}

/// Walks what the kernel shows of the same image.
pub(in crate::filesystem) fn kernel(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut folders = vec![Vec::new()];
    tree.insert(b"/".to_vec(), kernel_entry(root));
    while let Some(folder) = folders.pop() {
        let at = root.join(OsStr::from_bytes(folder.strip_prefix(b"/").unwrap_or(b"")));
        let Ok(listing) = fs::read_dir(&at) else {
            continue;
        };
        for item in listing {
            let item = item.expect("an entry");
            let path = [&folder, b"/".as_slice(), item.file_name().as_bytes()].concat();
            let entry = kernel_entry(&item.path());
            if entry
                .as_ref()
                .is_some_and(|entry| entry.kind == FileType::Directory)
            {
                folders.push(path.clone());
            }
            tree.insert(path, entry);
        }
    }
    tree
}

fn kernel_entry(path: &Path) -> Option<Entry> {
    let stat = fs::symlink_metadata(path).ok()?;
    let kind = stat.file_type();
    let kind = match () {
        () if kind.is_dir() => FileType::Directory,
        () if kind.is_symlink() => FileType::Symlink,
        () if kind.is_fifo() => FileType::Fifo,
        () if kind.is_socket() => FileType::Socket,
        () if kind.is_char_device() => FileType::CharDevice,
        () if kind.is_block_device() => FileType::BlockDevice,
        () => FileType::Regular,
    };
    let time = |seconds, nanoseconds| Time {
        seconds,
        nanoseconds: nanoseconds as u32,
    };
    let mut attributes = BTreeMap::new();
    for name in xattr::list(path).expect("names of attributes") {
        let value = xattr::get(path, &name)
            .expect("an attribute")
            .expect("one that was listed");
        attributes.insert(name.as_bytes().to_vec(), value);
    }
    let (hash, data) = if kind == FileType::Regular {
        let data = kernel_data(path, stat.len());
        (Some(kernel_hash(path, &data)), data)
    } else {
        (None, Vec::new())
    };
    let target = (kind == FileType::Symlink).then(|| {
        fs::read_link(path)
            .expect("a link")
            .as_os_str()
            .as_bytes()
            .to_vec()
    });
    Some(Entry {
        ino: stat.ino(),
        kind,
        mode: (stat.mode() & 0o7777) as u16,
        size: stat.size(),
        blocks: stat.blocks(),
        nlink: stat.nlink() as u32,
        uid: stat.uid(),
        gid: stat.gid(),
        rdev: stat.rdev(),
        atime: time(stat.atime(), stat.atime_nsec()),
        mtime: time(stat.mtime(), stat.mtime_nsec()),
        ctime: time(stat.ctime(), stat.ctime_nsec()),
        btime: stat.created().ok().map(|created| {
            let since = created
                .duration_since(SystemTime::UNIX_EPOCH)
                .expect("a new file");
            time(since.as_secs() as i64, i64::from(since.subsec_nanos()))
        }),
        target,
        hash,
        data,
        attributes,
    })
}

fn kernel_hash(path: &Path, data: &[Range<u64>]) -> [u8; 32] {
    let file = File::open(path).expect("a file");
    let mut hash = Sha256::new();
    for range in data {
        let mut buffer = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut buffer, range.start).expect("data");
        hash.update(&buffer);
    }
    hash.finalize().into()
}

fn kernel_data(path: &Path, size: u64) -> Vec<Range<u64>> {
    let file = File::open(path).expect("a file");
    let (mut data, mut at) = (Vec::new(), 0);
    while at < size as i64 {
        let Ok(start) = lseek(&file, at, Whence::SeekData) else {
            break;
        };
        at = lseek(&file, start, Whence::SeekHole).expect("the end of data");
        join(&mut data, start as u64..at as u64);
    }
    data
}
