//! Compares what the reader says with what the kernel shows of the same images.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::ops::{ControlFlow, Range};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::SystemTime;

use nix::unistd::{Whence, lseek};

use super::pool::{Files, Pool};
use crate::filesystem::btrfs::Btrfs;
use crate::filesystem::ext::tests::image::bytes;
use crate::filesystem::{Description, Extent, FileSystem, FileType, Time};
use crate::image::BlockRead;

/// What was met on a walk.
pub(super) struct Walk {
    fs: Btrfs,
    files: Files,
    /// Our numbers, by the kernel's device and number.
    numbers: HashMap<(u64, u64), u64>,
    pub(super) entries: usize,
    pub(super) stubs: usize,
    /// Bytes of which [`FileSystem::read`] had to decode.
    pub(super) decoded: u64,
}

impl Pool {
    /// Mounts the pool read-only and compares all of it.
    pub(super) fn agrees(&self, options: &str) -> (Walk, Description) {
        let mount = self.mount(&format!("ro,{options}"));
        let walk = self.compare(mount.path());
        let description = walk.fs.description().clone();
        assert_eq!(description.kind, self.blkid("TYPE"));
        assert_eq!(description.uuid, self.blkid("UUID"));
        assert_eq!(description.label, self.blkid("LABEL").into_bytes());
        let theirs = nix::sys::statvfs::statvfs(mount.path()).expect("statvfs");
        assert_eq!(description.blocks, theirs.blocks());
        assert_eq!(u64::from(description.block_size), theirs.fragment_size());
        (walk, description)
    }

    /// Compares with what is mounted at `path`.
    pub(super) fn compare(&self, path: &Path) -> Walk {
        let fs = self.open();
        let root = fs.root();
        let mut walk = Walk {
            fs,
            files: self.reader(),
            numbers: HashMap::new(),
            entries: 0,
            stubs: 0,
            decoded: 0,
        };
        assert_eq!(walk.fs.parent(root).expect("a parent"), root);
        walk.folder(path, root);
        let distinct: BTreeSet<u64> = walk.numbers.values().copied().collect();
        assert_eq!(
            distinct.len(),
            walk.numbers.len(),
            "a number stands for two files"
        );
        walk
    }
}

/// One entry of a folder: name, number, type if told.
type Listed = (Vec<u8>, u64, Option<FileType>);

/// All entries of a folder, asked for in pieces of `at_once`.
pub(super) fn list(fs: &dyn FileSystem, dir: u64, at_once: usize) -> Vec<Listed> {
    let (mut all, mut position) = (Vec::new(), 0);
    loop {
        let before = all.len();
        fs.read_dir(dir, position, &mut |entry| {
            assert!(entry.next > position);
            position = entry.next;
            all.push((entry.name.to_vec(), entry.ino, entry.kind));
            if all.len() - before < at_once {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })
        .expect("a listing");
        if all.len() - before < at_once {
            return all;
        }
    }
}

impl Walk {
    fn folder(&mut self, path: &Path, dir: u64) {
        self.entry(path, dir);
        let mut ours: BTreeMap<_, _> = BTreeMap::new();
        for (name, number, kind) in list(&self.fs, dir, 100) {
            assert!(
                ours.insert(name, (number, kind)).is_none(),
                "{path:?} has a name twice"
            );
        }
        for theirs in fs::read_dir(path).expect("a folder") {
            let theirs = theirs.expect("an entry");
            let at = theirs.path();
            let name = theirs.file_name().into_vec();
            let (number, kind) = ours
                .remove(&name)
                .unwrap_or_else(|| panic!("{at:?} is not listed"));
            assert_eq!(
                self.fs.lookup(dir, &name).expect("a name"),
                number,
                "{at:?}"
            );
            self.entries += 1;
            let found = self
                .fs
                .attr(number)
                .unwrap_or_else(|error| panic!("{at:?}: {error}"))
                .kind;
            assert_eq!(kind, Some(found), "{at:?}");
            if found == FileType::Directory {
                assert_eq!(self.fs.parent(number).expect("a parent"), dir, "{at:?}");
                self.folder(&at, number);
            } else {
                self.entry(&at, number);
            }
        }
        assert!(ours.is_empty(), "{path:?} does not have {ours:?}");
        let missing = self.fs.lookup(dir, b"there is no such name");
        assert!(
            matches!(missing, Err(crate::Error::NotFound { .. })),
            "{missing:?}"
        );
    }

    fn entry(&mut self, path: &Path, ino: u64) {
        let theirs = fs::symlink_metadata(path).expect("an entry");
        let ours = self
            .fs
            .attr(ino)
            .unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let kind = match theirs.file_type() {
            t if t.is_dir() => FileType::Directory,
            t if t.is_symlink() => FileType::Symlink,
            t if t.is_fifo() => FileType::Fifo,
            t if t.is_socket() => FileType::Socket,
            t if t.is_char_device() => FileType::CharDevice,
            t if t.is_block_device() => FileType::BlockDevice,
            _ => FileType::Regular,
        };
        assert_eq!(ours.kind, kind, "{path:?}");
        assert_eq!(ours.ino, ino, "{path:?}");
        assert!(ino < self.fs.inode_bound().expect("a bound"), "{path:?}");
        let owner = (theirs.uid(), theirs.gid());
        assert_eq!((ours.uid, ours.gid), owner, "owner of {path:?}");
        assert_eq!(
            u32::from(ours.mode),
            theirs.mode() & 0o7777,
            "mode of {path:?}"
        );
        assert_eq!(ours.size, theirs.size(), "size of {path:?}");
        assert_eq!(ours.blocks, theirs.blocks(), "blocks of {path:?}");
        assert_eq!(u64::from(ours.nlink), theirs.nlink(), "links of {path:?}");
        assert_eq!(ours.rdev, theirs.rdev(), "{path:?}");
        let place = self.fs.place(ino).expect("a place");
        if place.stub.is_some() {
            assert_eq!(theirs.ino(), 2, "{path:?}");
            self.stubs += 1;
        } else {
            assert_eq!(theirs.ino(), place.objectid, "{path:?}");
            let time = |seconds, nanoseconds| Time {
                seconds,
                nanoseconds: nanoseconds as u32,
            };
            assert_eq!(
                ours.mtime,
                time(theirs.mtime(), theirs.mtime_nsec()),
                "{path:?}"
            );
            assert_eq!(
                ours.atime,
                time(theirs.atime(), theirs.atime_nsec()),
                "{path:?}"
            );
            assert_eq!(
                ours.ctime,
                time(theirs.ctime(), theirs.ctime_nsec()),
                "{path:?}"
            );
            let born = theirs.created().expect("a time");
            let since = born
                .duration_since(SystemTime::UNIX_EPOCH)
                .expect("a new file");
            let born = time(since.as_secs() as i64, i64::from(since.subsec_nanos()));
            assert_eq!(ours.btime, Some(born), "{path:?}");
            let identity = (theirs.dev(), theirs.ino());
            assert_eq!(
                *self.numbers.entry(identity).or_insert(ino),
                ino,
                "links of {path:?}"
            );
        }
        match kind {
            FileType::Regular => self.data(path, ino, ours.size),
            FileType::Symlink => {
                let target = fs::read_link(path)
                    .expect("a link")
                    .into_os_string()
                    .into_vec();
                assert_eq!(self.fs.read_link(ino).expect("a link"), target);
            }
            _ => {}
        }
        self.attributes(path, ino, ours.may_have_xattrs);
    }

    fn attributes(&self, path: &Path, ino: u64, may_have: bool) {
        let theirs: BTreeSet<Vec<u8>> = xattr::list(path)
            .expect("attributes")
            .map(OsStringExt::into_vec)
            .collect();
        let ours: BTreeSet<Vec<u8>> = self
            .fs
            .xattr_names(ino)
            .expect("attributes")
            .into_iter()
            .collect();
        assert_eq!(ours, theirs, "{path:?}");
        assert!(may_have || ours.is_empty(), "{path:?}");
        for name in ours {
            let theirs = xattr::get(path, OsStr::from_bytes(&name)).expect("an attribute");
            assert_eq!(self.fs.xattr(ino, &name).expect("it"), theirs, "{path:?}");
        }
        assert_eq!(
            self.fs.xattr(ino, b"user.there is none").expect("none"),
            None
        );
    }

    /// Bytes of a file by its extents, as the tree reads them.
    fn read(&mut self, ino: u64, offset: u64, len: u64) -> Vec<u8> {
        let mut extents = Vec::new();
        self.fs
            .extents(ino, offset, len, &mut extents)
            .expect("extents");
        let mut out: Vec<u8> = Vec::new();
        for extent in extents {
            let begin = out.len();
            assert!(extent_len(&extent) > 0);
            out.resize(begin + extent_len(&extent) as usize, 0);
            let part = &mut out[begin..];
            match extent {
                Extent::Volume { offset, .. } => self.files.read_at(offset, part).expect("data"),
                Extent::Checked { offset, check, .. } => {
                    self.files.read_at(offset, part).expect("data");
                    assert!(check.is_right(part), "{offset}");
                }
                Extent::Hole { .. } => {}
                Extent::Bytes(bytes) => part.copy_from_slice(&bytes),
                Extent::Decode { len } => {
                    self.decoded += len;
                    let n = self.fs.read(ino, offset + begin as u64, part);
                    assert_eq!(n.expect("decoded data") as u64, len);
                }
            }
        }
        out
    }

    fn data(&mut self, path: &Path, ino: u64, size: u64) {
        let file = File::open(path).expect("a file");
        let theirs = kernel_data(&file, size);
        let mut extents = Vec::new();
        self.fs
            .extents(ino, 0, u64::MAX, &mut extents)
            .expect("extents");
        let (mut ours, mut at): (Vec<Range<u64>>, u64) = (Vec::new(), 0);
        for extent in extents {
            let len = extent_len(&extent);
            if !matches!(extent, Extent::Hole { .. }) {
                join(&mut ours, at..at + len);
            }
            at += len;
        }
        assert_eq!(at, size, "the extents of {path:?} do not fill it");
        assert_eq!(ours, theirs, "holes of {path:?}");
        for range in theirs {
            for at in range.clone().step_by(4 << 20) {
                let len = (4 << 20).min(range.end - at);
                let mut expected = vec![0; len as usize];
                file.read_exact_at(&mut expected, at).expect("data");
                if self.read(ino, at, len) != expected {
                    panic!("{path:?} differs in {len} bytes from {at}");
                }
            }
        }
        assert!(
            self.read(ino, size, 10).is_empty(),
            "{path:?} goes on past its end"
        );
        let random = bytes(80, size + ino);
        for chunk in random.chunks_exact(16).take(if size > 0 { 5 } else { 0 }) {
            let number = |at: usize| u64::from_le_bytes(chunk[at..at + 8].try_into().expect("8"));
            let (at, len) = (number(0) % size, number(8) % 300_000);
            let mut expected = vec![0; len.min(size - at) as usize];
            file.read_exact_at(&mut expected, at).expect("data");
            assert!(self.read(ino, at, len) == expected, "{path:?} from {at}");
            // Whatever the extents say, `read` gives the same.
            let mut buf = vec![1; len as usize];
            let n = self.fs.read(ino, at, &mut buf).expect("data");
            assert!(buf[..n] == expected, "{path:?} from {at} by `read`");
        }
    }
}

fn kernel_data(file: &File, size: u64) -> Vec<Range<u64>> {
    let (mut data, mut at) = (Vec::<Range<u64>>::new(), 0);
    while at < size as i64 {
        let Ok(start) = lseek(file, at, Whence::SeekData) else {
            break;
        };
        at = lseek(file, start, Whence::SeekHole).expect("the end of data");
        join(&mut data, start as u64..at as u64);
    }
    data
}

fn join(ranges: &mut Vec<Range<u64>>, next: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == next.start => last.end = next.end,
        _ => ranges.push(next),
    }
}

fn extent_len(extent: &Extent) -> u64 {
    match extent {
        Extent::Volume { len, .. }
        | Extent::Checked { len, .. }
        | Extent::Hole { len }
        | Extent::Decode { len } => *len,
        Extent::Bytes(bytes) => bytes.len() as u64,
    }
}
