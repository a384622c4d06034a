//! File systems that were in use: what we see must be what the kernel shows
//! after it has replayed the log of another copy.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use super::Xfs;
use super::image::Image;
use crate::Error;
use crate::filesystem::ext::tests::image::{Memory, bytes, many, populate, run};
use crate::filesystem::ext::tests::walk;
use crate::filesystem::xfs::overlay::Overlay;
use crate::filesystem::{DirEntry, FileSystem};
use crate::image::BlockRead;

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
    if round.is_multiple_of(2) {
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
    for end in ["", "shutdown -f"] {
        let notes = dirty("200M", &["-l", "size=8m"], 7, end);
        assert!(end.is_empty() || is_replayed(&notes), "{end}: {notes:?}");
    }
    dirty("200M", &["-l", "size=20m,su=256k"], 3, "shutdown");
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

/// `xfs_repair` leaves a log that is clean, and written as no kernel does.
#[test]
fn a_log_that_was_thrown_away() {
    let image = Image::make("300M", &[]);
    {
        let mount = image.mount("rw");
        change(mount.path(), 0);
    }
    {
        let mount = image.mount("rw");
        change(mount.path(), 3);
        shut_down(mount.path(), "shutdown -f");
    }
    let output = std::process::Command::new("xfs_repair")
        .arg("-L")
        .arg(&image.path)
        .output()
        .expect("xfs_repair");
    assert!(output.status.success(), "{output:?}");
    assert!(image.agrees().notes.is_empty());
    let mount = image.mount("rw");
    change(mount.path(), 5);
    shut_down(mount.path(), "shutdown -f");
    drop(mount);
    assert!(is_replayed(&image.agrees_after_replay()));
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

/// Byte offset, head and content of the last record of the log.
fn last_record(raw: &[u8]) -> (usize, usize) {
    let n32 = |at: usize| u32::from_be_bytes(raw[at..at + 4].try_into().expect("4"));
    let n64 = |at: usize| u64::from_be_bytes(raw[at..at + 8].try_into().expect("8"));
    let heads = (0..raw.len())
        .step_by(512)
        .filter(|at| n32(*at) == 0xfeed_babe);
    let last = heads.max_by_key(|at| n64(at + 16)).expect("a record");
    (last, n32(last + 12) as usize)
}

type Damage<'a> = dyn Fn(&mut [u8]) + 'a;
type Question<'a> = dyn Fn(&Xfs) -> crate::Result<Vec<u8>> + 'a;

/// What a crash leaves of the record that was being written.
#[test]
fn a_record_that_was_being_written() {
    let image = Image::make("64M", &[]);
    {
        let mount = image.mount("rw");
        for round in 0..2 {
            change(mount.path(), round);
            sync(mount.path());
        }
        shut_down(mount.path(), "shutdown -f");
    }
    let raw = fs::read(&image.path).expect("the image");
    let (at, len) = last_record(&raw);
    assert!(len > 4096, "{len}");
    let whole = Xfs::open(Arc::new(Memory(raw.clone()))).expect("the image opens");
    assert!(is_replayed(&whole.description().notes));
    let damages: [&Damage<'_>; 4] = [
        // Its content is not what was checksummed.
        &|raw| raw[at + 512 + 700] ^= 1,
        // Its end was not written.
        &|raw| raw[at + 512 + 1024..at + 512 + len].fill(0),
        // A part in the middle was not.
        &|raw| raw[at + 512 + 1024..at + 512 + 2048].fill(0),
        // Only its content was.
        &|raw| raw[at..at + 512].fill(0),
    ];
    for damage in damages {
        let mut raw = raw.clone();
        damage(&mut raw);
        let notes = Image::of(&raw).agrees_after_replay();
        assert!(is_replayed(&notes), "{notes:?}");
    }
}

/// A volume whose pages are mostly not at hand.
struct Hasty {
    raw: Arc<Memory>,
    reads: std::sync::atomic::AtomicU64,
    every: u64,
}

impl BlockRead for Hasty {
    fn size(&self) -> u64 {
        self.raw.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> crate::Result<()> {
        let reads = self
            .reads
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if self.every > 0 && reads % self.every == self.every - 1 {
            return Err(Error::WouldWait);
        }
        self.raw.read_at(offset, buf)
    }
}

/// Wherever it happens, an answer that would have to wait is no answer.
#[test]
fn what_would_wait_says_so() {
    let image = Image::make("64M", &[]);
    {
        let mount = image.mount("rw");
        change(mount.path(), 0);
        many(&mount.path().join("many"), 2000);
        xattr::set(mount.path(), "user.a", &bytes(9000, 1)).expect("an attribute");
        shut_down(mount.path(), "shutdown -f");
    }
    let raw = Arc::new(Memory(fs::read(&image.path).expect("the image")));
    let hasty = |every| Hasty {
        raw: Arc::clone(&raw),
        reads: 0.into(),
        every,
    };
    for every in [1, 2, 3, 5, 8, 13, 21, 34, 55] {
        let answer = Xfs::open(Arc::new(hasty(every)));
        assert!(matches!(answer.err(), Some(Error::WouldWait)));
    }
    let calm = Xfs::open(Arc::new(hasty(0))).expect("the image opens");
    let root = calm.root();
    let dir = calm.lookup(root, b"many").expect("a folder");
    let file = {
        let round = calm.lookup(root, b"round 0").expect("a folder");
        calm.lookup(round, b"pieces").expect("a file")
    };
    let listing = |reader: &Xfs| {
        let mut names = Vec::new();
        let each = &mut |entry: DirEntry<'_>| {
            names.push(entry.name.to_vec());
            ControlFlow::Continue(())
        };
        reader.read_dir(dir, 0, each).map(|()| names.concat())
    };
    let extents = |reader: &Xfs| {
        let mut all = Vec::new();
        let read = reader.extents(file, 0, u64::MAX, &mut all);
        read.map(|()| format!("{all:?}").into_bytes())
    };
    let name = b"500-"
        .iter()
        .copied()
        .chain([b'n'; 100])
        .collect::<Vec<_>>();
    let asked: [&Question<'_>; 6] = [
        &listing,
        &extents,
        &|reader| Ok(format!("{:?}", reader.attr(dir)?).into_bytes()),
        &|reader| Ok(reader.lookup(dir, &name)?.to_le_bytes().to_vec()),
        &|reader| Ok(reader.parent(dir)?.to_le_bytes().to_vec()),
        &|reader| Ok(reader.xattr(root, b"user.a")?.unwrap_or_default()),
    ];
    let mut reader = Xfs::open(Arc::new(hasty(0))).expect("the image opens");
    for ask in asked {
        let truth = ask(&calm).expect("an answer");
        let mut refused = 0;
        for every in 1..60 {
            reader.store.volume = Arc::new(hasty(every));
            match ask(&reader) {
                Ok(answer) => assert!(answer == truth),
                Err(Error::WouldWait) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(refused > 0);
    }
}

#[test]
fn the_overlay_is_bounded() {
    let mut overlay = Overlay::default();
    let volume = Memory(vec![7; 4096]);
    overlay.write(&volume, 700, &[1; 600]).expect("room");
    let mut bytes = [0; 2048];
    volume.read_at(0, &mut bytes).expect("bytes");
    assert!(overlay.apply(0, &mut bytes));
    assert!(
        bytes[..700]
            .iter()
            .chain(&bytes[1300..])
            .all(|byte| *byte == 7)
    );
    assert!(bytes[700..1300].iter().all(|byte| *byte == 1));
    overlay.forget(512, 512);
    overlay.clear(1536, 512).expect("room");
    volume.read_at(0, &mut bytes).expect("bytes");
    overlay.apply(0, &mut bytes);
    assert!(
        bytes[..1024].iter().all(|byte| *byte == 7) && bytes[1536..].iter().all(|byte| *byte == 0)
    );
    let mut end = 0;
    let full = loop {
        if let Err(error) = overlay.clear(end, 1 << 20) {
            break error;
        }
        end += 1 << 20;
    };
    assert!(matches!(full, Error::TooLarge { .. }), "{full}");
    assert!(overlay.memory() < 129 << 20);
}
