//! What the reader says of a whole volume, asked in every way.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Result;
use crate::filesystem::fat::Fat;
use crate::filesystem::ntfs::tests::compare::list;
use crate::filesystem::{Attr, Extent, FileSystem, FileType};

/// Bytes of a file, by its extents, as the tree reads them.
pub(super) fn read(fs: &Fat, ino: u64, offset: u64, len: u64) -> Result<Vec<u8>> {
    let mut extents = Vec::new();
    fs.extents(ino, offset, len, &mut extents)?;
    let mut data = Vec::new();
    for extent in extents {
        let begin = data.len();
        match extent {
            Extent::Volume { offset, len } => {
                assert!(len > 0);
                data.resize(begin + len as usize, 0);
                fs.volume.source.read_at(offset, &mut data[begin..])?;
            }
            Extent::Hole { len } => data.resize(begin + len as usize, 0),
            other => panic!("{other:?}"),
        }
    }
    Ok(data)
}

/// The number of a path.
pub(super) fn find(fs: &Fat, path: &str) -> u64 {
    path.split('/').fold(fs.root(), |dir, name| {
        fs.lookup(dir, name.as_bytes())
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    })
}

/// A file or folder.
pub(super) struct Node {
    pub(super) attr: Attr,
    pub(super) content: Vec<u8>,
}

/// All paths. `fresh` opens the volume once more, to see that the answers do not
/// depend on what was asked before.
pub(super) fn walk(fs: &Fat, fresh: &dyn Fn() -> Fat) -> BTreeMap<Vec<u8>, Node> {
    let mut all = BTreeMap::new();
    let mut folders = vec![(Vec::new(), fs.root())];
    assert_eq!(fs.parent(fs.root()).unwrap(), fs.root());
    while let Some((path, dir)) = folders.pop() {
        let entries = list(fs, dir, usize::MAX).unwrap();
        assert_eq!(entries, list(fs, dir, 7).unwrap());
        assert_eq!(entries, list(&fresh(), dir, 1000).unwrap());
        for (name, ino, kind) in entries {
            assert!(ino < fs.inode_bound().unwrap());
            assert_eq!(fs.lookup(dir, &name).unwrap(), ino);
            let mut path = path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(&name);
            let attr = fs.attr(ino).unwrap();
            assert_eq!((attr.ino, Some(attr.kind)), (ino, kind));
            let mut content = Vec::new();
            if attr.kind == FileType::Directory {
                assert_eq!(fs.parent(ino).unwrap(), dir);
                assert_eq!(fresh().parent(ino).unwrap(), dir);
                assert_eq!(fs.lookup(ino, b"..").unwrap(), dir);
                folders.push((path.clone(), ino));
            } else {
                content = read(fs, ino, 0, u64::MAX).unwrap();
                assert_eq!(content.len() as u64, attr.size);
                let third = content.len() / 3;
                let part = read(fs, ino, third as u64, third as u64).unwrap();
                assert!(part == content[third..2 * third]);
                assert!(read(fs, ino, attr.size, 10).unwrap().is_empty());
                assert!(fs.parent(ino).is_err());
                assert!(
                    fs.read_dir(ino, 0, &mut |_| panic!("a file holds nothing"))
                        .is_err()
                );
            }
            let twice = all.insert(path, Node { attr, content });
            assert!(twice.is_none(), "listed twice");
        }
    }
    all
}

/// All paths of a folder of the host, relative to it.
pub(super) fn paths(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path.clone());
            }
            let relative = path.strip_prefix(folder).unwrap();
            all.push(relative.to_str().unwrap().to_owned());
        }
    }
    all.sort();
    all
}
