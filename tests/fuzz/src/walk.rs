//! Everything that can be asked of a file system.

use std::collections::HashSet;
use std::ops::ControlFlow;

use sendense::filesystem::{Extent, FileSystem};

/// Files looked at: what a damaged image adds is more of the same.
const MOST_FILES: usize = 2000;
/// Bytes of a file that are decoded.
const MOST_DECODED: u64 = 1 << 20;
/// No answer to one question may be longer than this.
const MOST_ENTRIES: usize = 200_000;

pub(crate) fn everything(fs: &dyn FileSystem) {
    assert!(fs.description().notes.len() < 100);
    let (mut seen, mut todo) = (HashSet::new(), vec![fs.root()]);
    let mut decoded = vec![0; 64 * 1024];
    while let Some(ino) = todo.pop() {
        let attr = fs.attr(ino);
        for name in fs.xattr_names(ino).unwrap_or_default() {
            let _ = fs.xattr(ino, &name);
        }
        let _ = fs.xattr(ino, b"user.none");
        let _ = fs.read_link(ino);
        let _ = fs.parent(ino);
        let size = attr.map(|attr| attr.size).unwrap_or(1 << 20);
        let mut extents = Vec::new();
        for offset in [size / 2, size, 1 << 40] {
            extents.clear();
            let _ = fs.extents(ino, offset, 8 << 20, &mut extents);
            assert!(extents.len() <= MOST_ENTRIES, "{} extents", extents.len());
        }
        extents.clear();
        let _ = fs.extents(ino, 0, 8 << 20, &mut extents);
        if extents.iter().any(|e| matches!(e, Extent::Decode { .. })) {
            let mut at = 0;
            while at < size.min(MOST_DECODED) {
                match fs.read(ino, at, &mut decoded) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => at += n as u64,
                }
            }
        }
        let mut names = Vec::new();
        let _ = fs.read_dir(ino, 0, &mut |entry| {
            assert!(entry.next != 0 && !entry.name.is_empty());
            assert!(!entry.name.contains(&b'/') && !entry.name.contains(&0));
            names.push((entry.ino, entry.name.to_vec(), entry.next));
            if names.len() < MOST_ENTRIES {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        if let Some((_, _, position)) = names.get(names.len() / 2) {
            let _ = fs.read_dir(ino, *position, &mut |_| ControlFlow::Break(()));
        }
        for (child, name, _) in names {
            if seen.len() < MOST_FILES {
                let _ = fs.lookup(ino, &name);
                if seen.insert(child) {
                    todo.push(child);
                }
            }
        }
        let _ = fs.lookup(ino, b"not there");
    }
    for ino in [0, 1, 2, 3, 1 << 20, 1 << 38, u64::MAX] {
        let _ = fs.attr(ino);
    }
}
