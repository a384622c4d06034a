use super::*;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn attr(kind: FileType, mode: u16) -> Attr {
    Attr {
        ino: 1,
        kind,
        mode,
        size: 0,
        blocks: 0,
        nlink: 1,
        uid: 12345,
        gid: 54321,
        rdev: 0,
        atime: Time {
            seconds: -5,
            nanoseconds: 1,
        },
        mtime: Time {
            seconds: 1_700_000_000,
            nanoseconds: 123_456_789,
        },
        ctime: Time::default(),
        btime: None,
        may_have_xattrs: true,
    }
}

fn entries(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for bad in [&b""[..], b".", b"..", b"a/b", b"/etc", b"a\0b", b"/"] {
        assert!(Name::new(bad).is_err(), "{bad:?}");
    }
    for good in [
        &b"a"[..],
        b"...",
        b".a",
        b"\xff\xfe",
        b"a\nb",
        b"-rf",
        b"a\\b",
    ] {
        assert!(Name::new(good).is_ok(), "{good:?}");
    }
}

#[test]
fn nothing_is_written_through_a_symlink() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    let inside = dir.path().join("inside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&inside).unwrap();
    fs::write(outside.join("passwd"), b"precious").unwrap();
    symlink(&outside, inside.join("a")).unwrap();
    symlink(outside.join("passwd"), inside.join("file")).unwrap();
    symlink("nowhere", inside.join("dangling")).unwrap();
    let folder = Folder::open(&inside).unwrap();

    // A folder in the symlink's place.
    let error = folder.make(&name("a")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENOTDIR));
    assert!(folder.enter(&name("a")).is_err());
    assert!(folder.make(&name("dangling")).is_err());

    // A file in its place: refused, or in place of the symlink itself.
    for force in [false, true] {
        let (draft, mut file) = folder.draft_file().unwrap();
        file.write_all(b"hostile").unwrap();
        let result = draft.place(&name("file"), force);
        assert_eq!(result.is_ok(), force);
        assert_eq!(fs::read(outside.join("passwd")).unwrap(), b"precious");
    }
    assert_eq!(fs::read(inside.join("file")).unwrap(), b"hostile");
    assert!(!inside.join("file").is_symlink());

    // Metadata of a symlink is its own, not that of what it leads to.
    let before = fs::metadata(outside.join("passwd")).unwrap();
    let target = outside.join("passwd");
    let draft = folder.draft_symlink(target.as_os_str().as_bytes()).unwrap();
    let object = draft.unopened(FileType::Symlink).unwrap();
    let refused = object.set(&attr(FileType::Symlink, 0o777), &[], true);
    assert!(refused.is_empty(), "{refused:?}");
    draft.place(&name("link"), false).unwrap();
    let after = fs::metadata(outside.join("passwd")).unwrap();
    assert_eq!(
        (before.uid(), before.mode(), before.mtime()),
        (after.uid(), after.mode(), after.mtime())
    );
    let link = fs::symlink_metadata(inside.join("link")).unwrap();
    assert_eq!((link.uid(), link.gid()), (12345, 54321));
    assert_eq!(
        (link.mtime(), link.mtime_nsec()),
        (1_700_000_000, 123_456_789)
    );
    assert_eq!(entries(&outside), ["passwd"]);
    assert_eq!(entries(&inside), ["a", "dangling", "file", "link"]);
}

#[test]
fn a_folder_that_becomes_a_symlink_is_still_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    let inner = folder.make(&name("d")).unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    fs::rename(dir.path().join("d"), dir.path().join("moved")).unwrap();
    symlink("outside", dir.path().join("d")).unwrap();
    let (draft, _file) = inner.draft_file().unwrap();
    draft.place(&name("f"), false).unwrap();
    assert_eq!(entries(&dir.path().join("moved")), ["f"]);
    assert!(entries(&dir.path().join("outside")).is_empty());
}

#[test]
fn drafts_are_removed_unless_placed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    let (draft, mut file) = folder.draft_file().unwrap();
    file.write_all(b"half").unwrap();
    assert_eq!(entries(dir.path()).len(), 1);
    drop(draft);
    drop(folder.draft_symlink(b"x").unwrap());
    drop(folder.draft_node(FileType::Fifo, 0).unwrap());
    assert!(entries(dir.path()).is_empty());
    // A folder is never replaced, and the draft goes.
    folder.make(&name("d")).unwrap();
    for force in [false, true] {
        let (draft, _file) = folder.draft_file().unwrap();
        assert!(draft.place(&name("d"), force).is_err());
    }
    assert_eq!(entries(dir.path()), ["d"]);
}

#[test]
fn links_are_made_only_to_the_file_that_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    let (draft, _file) = folder.draft_file().unwrap();
    let identity = draft.identity().unwrap();
    draft.place(&name("one"), false).unwrap();
    folder
        .draft_link(&folder, &name("one"), identity)
        .unwrap()
        .place(&name("two"), false)
        .unwrap();
    assert_eq!(fs::metadata(dir.path().join("two")).unwrap().nlink(), 2);
    // Over itself: the rename does nothing, and nothing may be left.
    let again = folder.draft_link(&folder, &name("one"), identity).unwrap();
    again.place(&name("two"), true).unwrap();
    assert_eq!(entries(dir.path()), ["one", "two"]);
    // Somebody put another file there.
    fs::remove_file(dir.path().join("one")).unwrap();
    symlink("/etc/passwd", dir.path().join("one")).unwrap();
    let error = folder
        .draft_link(&folder, &name("one"), identity)
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::ESTALE));
    assert_eq!(entries(dir.path()), ["one", "two"]);
}

#[test]
fn metadata_is_kept_and_set_id_bits_only_with_the_owner() {
    assert!(
        Uid::effective().is_root(),
        "this test sets owners: run it as root"
    );
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    let xattrs = [
        (b"user.colour".to_vec(), b"blue\0\xff".to_vec()),
        (
            b"security.capability".to_vec(),
            b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
        ),
    ];
    for (owners, mode) in [(true, 0o6750), (false, 0o750)] {
        let (draft, file) = folder.draft_file().unwrap();
        let refused = Object::Open(&file).set(&attr(FileType::Regular, 0o6750), &xattrs, owners);
        assert!(refused.is_empty(), "{refused:?}");
        let target = name(if owners { "with" } else { "without" });
        draft.place(&target, false).unwrap();
        let path = dir.path().join(if owners { "with" } else { "without" });
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.mode() & 0o7777, mode);
        assert_eq!(meta.uid(), if owners { 12345 } else { 0 });
        assert_eq!(
            (meta.mtime(), meta.mtime_nsec()),
            (1_700_000_000, 123_456_789)
        );
        assert_eq!((meta.atime(), meta.atime_nsec()), (-5, 1));
        assert_eq!(
            xattr::get(&path, "user.colour").unwrap().unwrap(),
            b"blue\0\xff"
        );
        let capability = xattr::get(&path, "security.capability").unwrap();
        assert_eq!(capability.is_some(), owners);
    }
    // Special files are not opened.
    let draft = folder.draft_node(FileType::Fifo, 0).unwrap();
    let object = draft.unopened(FileType::Fifo).unwrap();
    assert!(
        object
            .set(&attr(FileType::Fifo, 0o620), &[], true)
            .is_empty()
    );
    draft.place(&name("pipe"), false).unwrap();
    let meta = fs::symlink_metadata(dir.path().join("pipe")).unwrap();
    assert!(meta.file_type().is_fifo());
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.mtime()),
        (0o620, 12345, 1_700_000_000)
    );
    let draft = folder
        .draft_node(FileType::CharDevice, nix::sys::stat::makedev(1, 3))
        .unwrap();
    draft.place(&name("null"), false).unwrap();
    let meta = fs::symlink_metadata(dir.path().join("null")).unwrap();
    assert_eq!(meta.rdev(), nix::sys::stat::makedev(1, 3));
    // What the destination does not know is told, and the rest is done.
    let (_draft, file) = folder.draft_file().unwrap();
    let unknown = [(b"system.ntfs_acl".to_vec(), b"x".to_vec())];
    let refused = Object::Open(&file).set(&attr(FileType::Regular, 0o600), &unknown, true);
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].what, "extended attribute system.ntfs_acl");
    assert_eq!(file.metadata().unwrap().mtime(), 1_700_000_000);
}
