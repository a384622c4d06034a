//! File systems that were in use: what we see must be what the kernel shows
//! after it has replayed the log of another copy.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use super::image::Image;
use super::{Xfs, features};
use crate::filesystem::FileSystem;
use crate::filesystem::ext::tests::image::{Memory, bytes, many, populate, run};
use crate::filesystem::ext::tests::walk;

impl Image {
    /// Compares our view of the image as it is with that of the kernel after it
    /// has replayed a copy; returns the notes.
    fn agrees_after_replay(&self) -> Vec<String> {
        let ours = self.open();
        let tree = walk::ours(&ours, &self.reader());
        let copy = self.copy();
        drop(copy.mount("rw"));
        let mount = copy.mount("ro");
        walk::compare(&tree, &walk::kernel(mount.path()));
        ours.description().notes.clone()
    }
}

/// Stops the file system as it is.
fn shut_down(root: &Path, command: &str) {
    let args = ["-x".as_ref(), "-c".as_ref(), command.as_ref()];
    run("xfs_io", &[args.as_slice(), &[root.as_os_str()]].concat());
}

fn sync(root: &Path) {
    run("sync", &["-f".as_ref(), root.as_os_str()]);
}

/// Changes of all kinds to what [`populate`] has left.
fn change(root: &Path, round: u64) {
    let dir = root.join(format!("round {round}"));
    fs::create_dir(&dir).expect("a folder");
    many(&dir.join("many"), 400);
    for number in 0..200 {
        let path = dir.join(format!("file {number}"));
        fs::write(&path, bytes(number * 37, round)).expect("a file");
        if number % 3 == 0 {
            xattr::set(&path, "user.a", &bytes(number * 20, round)).expect("an attribute");
        }
    }
    for number in (0..200).step_by(2) {
        let path = dir.join(format!("file {number}"));
        if number % 4 == 0 {
            fs::remove_file(path).expect("a file less");
        } else {
            fs::rename(path, dir.join(format!("renamed {number}"))).expect("a new name");
        }
    }
    // Blocks of a folder become a file's, or of other folders.
    let before = root.join(format!("round {}", round.wrapping_sub(1)));
    if before.exists() {
        fs::remove_dir_all(before.join("many")).expect("a folder less");
        for entry in fs::read_dir(&before).expect("a folder").flatten() {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o604)).expect("a mode");
        }
    }
    let pieces = File::create(dir.join("pieces")).expect("a file");
    for piece in 0..600 {
        pieces
            .write_all_at(&bytes(4096, piece), piece * 8192)
            .expect("data");
    }
    if round % 2 == 0 {
        pieces.sync_all().expect("data");
        pieces.set_len(1 << 20).expect("a shorter file");
    }
}

fn dirty(size: &str, options: &[&str], rounds: u64, end: &str) -> Vec<String> {
    let image = Image::make(size, options);
    let mount = image.mount("rw");
    let root = mount.path();
    if rounds == 1 {
        populate(root);
        features::populate(root);
    }
    sync(root);
    for round in 0..rounds {
        change(root, round);
        if round % 3 == 1 {
            sync(root);
        }
    }
    match end {
        "" => image.copy().agrees_after_replay(),
        command => {
            shut_down(root, command);
            drop(mount);
            image.agrees_after_replay()
        }
    }
}

fn is_replayed(notes: &[String]) -> bool {
    notes.iter().any(|note| note.contains("replayed in memory"))
}

#[test]
fn copied_while_mounted() {
    let image = Image::make("400M", &[]);
    let mount = image.mount("rw");
    change(mount.path(), 0);
    sync(mount.path());
    let notes = image.copy().agrees_after_replay();
    assert!(is_replayed(&notes), "{notes:?}");
    change(mount.path(), 1);
    image.copy().agrees_after_replay();
}

#[test]
fn shut_down_with_everything_in_the_log() {
    let notes = dirty(
        "400M",
        &["-m", "rmapbt=1", "-i", "nrext64=1"],
        1,
        "shutdown -f",
    );
    assert!(is_replayed(&notes), "{notes:?}");
}

#[test]
fn shut_down_without_what_was_not_in_the_log() {
    let notes = dirty("400M", &["-b", "size=1024"], 2, "shutdown");
    assert!(is_replayed(&notes), "{notes:?}");
}

#[test]
fn a_log_that_went_round() {
    for end in ["", "shutdown -f", "shutdown"] {
        let notes = dirty("200M", &["-l", "size=8m"], 9, end);
        assert!(end.is_empty() || is_replayed(&notes), "{end}: {notes:?}");
    }
    dirty("200M", &["-l", "size=20m,su=256k"], 5, "shutdown -f");
}

#[test]
fn a_log_that_is_damaged_is_not_used() {
    let image = Image::make("64M", &[]);
    {
        let mount = image.mount("rw");
        change(mount.path(), 0);
        shut_down(mount.path(), "shutdown -f");
    }
    let mut raw = fs::read(&image.path).expect("the image");
    let ours = Xfs::open(Arc::new(Memory(raw.clone()))).expect("the image opens");
    assert!(is_replayed(&ours.description().notes));
    assert!(ours.lookup(ours.root(), b"round 0").is_ok());
    // All of the log but its first record's head.
    let log = image.xfs_db(&["sb 0", "print logstart", "convert fsblock 1 byte"]);
    let n64 = |at: usize| u64::from_be_bytes(raw[at..at + 8].try_into().expect("8"));
    let (start, ag_bits) = (n64(48), raw[124]);
    let blocks = u64::from(u32::from_be_bytes(raw[84..88].try_into().expect("4")));
    let start = ((start >> ag_bits) * blocks + (start & ((1 << ag_bits) - 1))) as usize * 4096;
    assert!(!log.is_empty());
    for at in (start + 1024..start + (1 << 20)).step_by(512) {
        raw[at + 100] ^= 1;
    }
    let ours = Xfs::open(Arc::new(Memory(raw))).expect("the image opens");
    let notes = &ours.description().notes;
    assert!(
        notes.iter().any(|note| note.contains("was not replayed")),
        "{notes:?}"
    );
    assert!(ours.attr(ours.root()).is_ok());
}

#[test]
fn grown_while_mounted() {
    let image = Image::make("64M", &[]);
    run(
        "truncate",
        &["-s".as_ref(), "300M".as_ref(), image.path.as_os_str()],
    );
    let mount = image.mount("rw");
    run("xfs_growfs", &[mount.path().as_os_str()]);
    change(mount.path(), 0);
    many(&mount.path().join("more"), 3000);
    shut_down(mount.path(), "shutdown -f");
    drop(mount);
    assert!(is_replayed(&image.agrees_after_replay()));
}
