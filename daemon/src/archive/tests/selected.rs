//! What is asked for, and what it is called.

use super::*;
use std::time::Duration;

fn names(file: &Path) -> Vec<String> {
    let listing = shell_in(file.parent().unwrap(), &format!("bsdtar -tf {file:?}"));
    listing.lines().map(str::to_owned).collect()
}

fn tree(root: &Path) {
    shell_in(
        root,
        "mkdir -p t/a/b/empty t/a/c t/z; echo 1 > t/a/b/1; echo 2 > t/a/c/2; echo 3 > t/top; \
         ln -s a/c t/link; find t | xargs touch -had '2037-01-01'",
    );
}

#[test]
fn names_in_the_archive() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let file = dir.path().join("archive");
    let root = dir.path().join("t");
    let below_a = ["a/", "a/b/", "a/b/1", "a/b/empty/", "a/c/", "a/c/2"];
    for format in [Format::Zip, Format::TarGz, Format::TarZst] {
        for (paths, wanted) in [
            (&[&b"/a"[..]][..], &below_a[..]),
            (&[b"/a/b"], &["b/", "b/1", "b/empty/"]),
            (&[b"/a/b/1"], &["1"]),
            (
                &[b""],
                &[
                    "link",
                    "top",
                    "a/",
                    "a/b/",
                    "a/b/1",
                    "a/b/empty/",
                    "a/c/",
                    "a/c/2",
                    "z/",
                ],
            ),
            (
                &[b"/top", b"/a/c", b"/a/c/2", b"/top"],
                &["a/c/", "a/c/2", "top"],
            ),
            (&[b"/link"], &["link"]),
            (&[b"/link/2"], &["2"]),
        ] {
            pack(&root, paths, format, &file);
            let (mut got, mut wanted) = (names(&file), wanted.to_vec());
            got.sort();
            wanted.sort_unstable();
            assert_eq!(got, wanted, "{format:?} {paths:?}");
        }
    }
    // The same each time, folders before what is in them.
    pack(&root, &[b""], Format::TarGz, &file);
    let first = fs::read(&file).unwrap();
    pack(&root, &[b""], Format::TarGz, &file);
    assert!(first == fs::read(&file).unwrap());
    let listed = names(&file);
    let place = |name: &str| listed.iter().position(|listed| listed == name).unwrap();
    assert!(place("a/") < place("a/b/") && place("a/b/") < place("a/b/1"));
}

#[test]
fn what_is_not_there_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let file = dir.path().join("archive.zip");
    let root = dir.path().join("t");
    let paths: &[&[u8]] = &[b"/top", b"/missing", b"/nowhere/else"];
    let summary = pack(&root, paths, Format::Zip, &file);
    assert_eq!(summary.left_out, 2);
    assert_eq!(names(&file), ["top", "NOT-RESTORED.txt"]);
    let text = shell_in(dir.path(), "unzip -p archive.zip NOT-RESTORED.txt");
    assert!(text.contains("\nmissing: could not be looked at: No such file or directory\n"));
    assert!(text.contains("\nnowhere/else: could not be reached: No such file or directory\n"));
}

#[test]
fn counted_beforehand() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let root = Beneath::at(&dir.path().join("t")).unwrap();
    let count = |within| measure(&root, &[Vec::new()], within, &AtomicBool::new(false)).unwrap();
    let wanted = Measure {
        files: 4,
        directories: 5,
        bytes: 6,
        complete: true,
    };
    assert_eq!(count(Duration::from_secs(60)), wanted);
    assert!(!count(Duration::ZERO).complete);
}

#[test]
fn more_than_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    for (limit, fits) in [(6, true), (5, false)] {
        for format in [Format::Zip, Format::TarGz] {
            let mut job = job(&dir.path().join("t"), &[b""], format);
            job.limit = Some(limit);
            let result = pack_job(&job, &dir.path().join("archive"));
            match result {
                Ok(summary) => assert!(fits && summary.bytes == 6),
                Err(error) => assert!(!fits && matches!(error, ArchiveError::TooLarge { .. })),
            }
        }
    }
}
