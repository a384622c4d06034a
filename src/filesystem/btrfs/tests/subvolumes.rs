//! Subvolumes, snapshots, the default subvolume.

use std::fs;
use std::os::unix::fs::lchown;

use super::compare::list;
use super::pool::{Mount, Pool};
use crate::filesystem::{FileSystem, FileType};

/// Subvolumes in one another, snapshots of them, some deleted.
fn fill(mount: &Mount) {
    let at = |path: &str| mount.path().join(path);
    fs::write(at("file"), "top").expect("a file");
    mount.btrfs(&["subvolume", "create"], "a");
    fs::create_dir_all(at("a/dir/deep")).expect("a folder");
    lchown(at("a/dir"), Some(1000), Some(2000)).expect("an owner");
    fs::write(at("a/dir/file"), "a").expect("a file");
    for name in ["a/dir/b", "a/dir/c", "a/dir/deep/d", "a/dir/b/e", "gone"] {
        mount.btrfs(&["subvolume", "create"], name);
        fs::write(at(name).join("file"), name).expect("a file");
    }
    for n in 0..30 {
        fs::write(at("a/dir/b").join(format!("{n}")), "b").expect("a file");
    }
    let snapshot = |options: &[&str], from: &str, to: &str| {
        let from = at(from);
        let mut words = vec!["subvolume", "snapshot"];
        words.extend(options);
        words.push(from.to_str().expect("a path"));
        mount.btrfs(&words, to);
    };
    snapshot(&[], "a", "a snapshot");
    snapshot(&["-r"], "a", "a/snapshot of itself");
    snapshot(&[], "a", "second");
    fs::write(at("second/dir/file"), "changed").expect("a file");
    snapshot(&["-r"], "a snapshot", "snapshot of a snapshot");
    snapshot(&[], "a/dir/b", "second/b again");
    // A nested one that was deleted after the snapshots, and one that has moved.
    mount.btrfs(&["subvolume", "delete", "-c"], "a/dir/c");
    mount.btrfs(&["subvolume", "delete", "-c"], "gone");
    fs::rename(at("a/dir/deep/d"), at("a/d has moved")).expect("it moves");
    fs::rename(at("a/dir/b/e"), at("a/dir/b/e renamed")).expect("it moves");
    mount.btrfs(&["filesystem", "sync"], "");
}

#[test]
fn nested_snapshots() {
    let pool = Pool::make(1, 512 << 20, &[]);
    fill(&pool.mount("rw"));
    let (walk, description) = pool.agrees("");
    assert!(walk.stubs >= 14, "{}", walk.stubs);
    assert!(description.notes.is_empty(), "{:?}", description.notes);

    // A stub is empty, and lies where it was found.
    let fs = pool.open();
    let mut dir = fs.root();
    for name in ["second", "dir"] {
        dir = fs.lookup(dir, name.as_bytes()).expect("a folder");
    }
    let stub = fs.lookup(dir, b"b").expect("a stub");
    let attr = fs.attr(stub).expect("its attributes");
    assert_eq!(
        (attr.kind, attr.uid, attr.gid),
        (FileType::Directory, 1000, 2000)
    );
    assert!(list(&fs, stub, 10).is_empty());
    assert_eq!(fs.parent(stub).expect("a parent"), dir);
    assert!(fs.lookup(stub, b"file").is_err());
    assert!(fs.xattr_names(stub).expect("none").is_empty());
    // Each has a number of its own: else the kernel takes one for the other, and a
    // program that stands in the one is moved to the other.
    let other = fs.lookup(dir, b"c").expect("a stub");
    assert_ne!(stub, other);
    assert_eq!(fs.attr(other).expect("its attributes").ino, other);
    assert_eq!(fs.parent(other).expect("a parent"), dir);
}

#[test]
fn the_default_is_the_root() {
    let pool = Pool::make(1, 512 << 20, &[]);
    {
        let mount = pool.mount("rw");
        fill(&mount);
        mount.btrfs(&["subvolume", "set-default"], "a");
    }
    let (_, description) = pool.agrees("");
    let [note] = description.notes.as_slice() else {
        panic!("{:?}", description.notes);
    };
    assert!(note.contains(".top-level"), "{note}");

    // What lies outside, against the kernel's mount of the top level.
    let fs = pool.open();
    let names = |dir| -> Vec<Vec<u8>> {
        list(&fs, dir, 10)
            .into_iter()
            .map(|(name, ..)| name)
            .collect()
    };
    assert!(!names(fs.root()).contains(&b".top-level".to_vec()));
    let top = fs.lookup(fs.root(), b".top-level").expect("the top level");
    assert!(fs.lookup(top, b".top-level").is_err());
    assert_eq!(fs.parent(top).expect("a parent"), fs.root());
    let seen = fs.lookup(top, b"a").expect("the default subvolume");
    assert_ne!(seen, fs.root());
    assert_eq!(fs.parent(seen).expect("a parent"), top);
    assert_eq!(names(seen), names(fs.root()));
    let mount = pool.mount("ro,subvolid=5");
    let mut theirs: Vec<Vec<u8>> = fs::read_dir(mount.path())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_encoded_bytes())
        .collect();
    let mut ours = names(top);
    ours.sort();
    theirs.sort();
    assert_eq!(ours, theirs);
    for (path, content) in [("second/dir/file", "changed"), ("a snapshot/dir/file", "a")] {
        let mut ino = top;
        for name in path.split('/') {
            ino = fs.lookup(ino, name.as_bytes()).expect("a name");
        }
        let mut buf = vec![0; 100];
        let n = fs.read(ino, 0, &mut buf).expect("data");
        assert_eq!(&buf[..n], content.as_bytes());
    }
}

#[test]
fn numbers_follow_from_the_content() {
    let pool = Pool::make(1, 512 << 20, &[]);
    fill(&pool.mount("rw"));
    let walk = |fs: &dyn FileSystem| {
        let (mut all, mut todo) = (Vec::new(), vec![fs.root()]);
        while let Some(dir) = todo.pop() {
            for (name, ino, kind) in list(fs, dir, 1000) {
                if kind == Some(FileType::Directory) {
                    todo.push(ino);
                }
                all.push((dir, name, ino));
            }
        }
        all
    };
    let (first, second) = (pool.open(), pool.copy().open());
    assert_eq!(walk(&first), walk(&second));
    assert_eq!(first.inode_bound(), second.inode_bound());
    // Far fewer than one for each 128 bytes of the volume.
    assert!(first.inode_bound().expect("a bound") < (512 << 20) / 128 / 2);
}

#[test]
fn many_snapshots() {
    let pool = Pool::make(1, 512 << 20, &[]);
    {
        let mount = pool.mount("rw");
        mount.btrfs(&["subvolume", "create"], "a");
        fs::write(mount.path().join("a/file"), "a").expect("a file");
        let from = mount.path().join("a");
        for n in 0..120 {
            let from = from.to_str().expect("a path");
            mount.btrfs(&["subvolume", "snapshot", "-r", from], &n.to_string());
        }
    }
    let (walk, _) = pool.agrees("");
    assert_eq!(walk.entries, 2 * 121);
}
