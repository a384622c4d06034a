//! Disks that need one another: which are opened, and what each shows.

use super::*;
use std::cell::RefCell;

/// The disks of a backup; those that are `None` cannot be opened.
pub(super) struct Backup<'a> {
    pub(super) images: Vec<Option<&'a Image>>,
    own: usize,
    opened: RefCell<Vec<usize>>,
    /// Whether opening a disk gives no answer.
    hangs: bool,
}

impl<'a> Backup<'a> {
    pub(super) fn new(images: impl IntoIterator<Item = &'a Image>) -> Self {
        Self {
            images: images.into_iter().map(Some).collect(),
            own: 0,
            opened: RefCell::default(),
            hangs: false,
        }
    }

    /// The device numbers of the disks, as disk `own` sees them.
    fn order(&self, own: usize) -> Vec<usize> {
        let others = (0..self.images.len()).filter(|index| *index != own);
        std::iter::once(own).chain(others).collect()
    }

    /// What disk `own` shows, and which others were opened for it.
    pub(super) fn look(&mut self, own: usize) -> (Vec<Volume>, Vec<usize>) {
        self.own = own;
        self.opened.borrow_mut().clear();
        let disk = self.images[own].unwrap().disk();
        let volumes = detect_across(&disk, own as u32, self).unwrap();
        (volumes, self.opened.borrow().clone())
    }

    fn reader(&self, own: usize, volume: &Volume) -> VolumeReader {
        let devices = self.order(own).into_iter();
        let open = devices.map(|index| self.images[index].map(Image::disk));
        VolumeReader::over(volume.mapping.clone(), open.collect())
    }

    /// The first and the last bytes of a volume, which must be readable.
    pub(super) fn touch(&self, own: usize, volume: &Volume) -> usize {
        let reader = self.reader(own, volume);
        let len = reader.size().min(200_000);
        let mut bytes = vec![0; len as usize];
        reader.read_at(0, &mut bytes).unwrap();
        reader.read_at(reader.size() - len, &mut bytes).unwrap();
        bytes.len()
    }

    /// All bytes of a volume that disk `own` shows.
    pub(super) fn read(&self, own: usize, volume: &Volume) -> Vec<u8> {
        let reader = self.reader(own, volume);
        let mut bytes = vec![0; reader.size() as usize];
        reader.read_at(0, &mut bytes).unwrap();
        bytes
    }
}

impl Siblings for Backup<'_> {
    fn indexes(&self) -> Vec<u32> {
        self.order(self.own)[1..]
            .iter()
            .map(|i| *i as u32)
            .collect()
    }
    fn open(&self, number: usize) -> Result<Sibling> {
        let index = self.order(self.own)[number + 1];
        self.opened.borrow_mut().push(index);
        if self.hangs {
            return Err(crate::error::Error::TimedOut {
                what: "the test".into(),
                after: std::time::Duration::ZERO,
            });
        }
        Ok(match self.images[index] {
            Some(image) => Sibling::Open(image.disk()),
            None => Sibling::Lost("it is away".into()),
        })
    }
}

fn link(volume: &Volume) -> Option<u32> {
    match volume.content {
        Content::Elsewhere { disk, .. } => Some(disk),
        _ => None,
    }
}

fn names(volumes: &[Volume]) -> Vec<&str> {
    let shown = volumes
        .iter()
        .filter(|v| !matches!(v.content, Content::NoFiles(_)));
    shown.map(|v| v.name.as_str()).collect()
}

/// btrfs over the second partition of one disk and the whole of another, with a disk
/// between them that has nothing to do with it.
#[test]
fn btrfs_over_devices() {
    let images = [
        Image::new(300 * MIB),
        Image::new(64 * MIB),
        Image::new(200 * MIB),
    ];
    let path = |i: usize| images[i].path().display().to_string();
    let script = "label: gpt\nstart=2048,size=8M\nstart=20480,size=200M\n";
    run_with("sfdisk", ["-q", &path(0)], script);
    run("mke2fs", ["-q", "-F", &path(1)]);
    let (two, whole) = (
        Loop::part(&images[0], 10 * MIB, 200 * MIB),
        Loop::new(&images[2], 512),
    );
    run(
        "mkfs.btrfs",
        ["-q", "-f", "-d", "raid1", "-L", "pair", &two.0, &whole.0],
    );
    drop((two, whole));
    let mut backup = Backup::new(&images);
    let (volumes, opened) = backup.look(0);
    assert_eq!(names(&volumes), ["part1", "part2"]);
    assert_eq!(opened, [1, 2]);
    let volume = volumes
        .iter()
        .find(|v| v.content == Content::FileSystem("btrfs".into()));
    let volume = volume.unwrap();
    assert_eq!(
        (volume.name.as_str(), &volume.label[..]),
        ("part2", &b"pair"[..])
    );
    assert_eq!(volume.members, [200 * MIB, 200 * MIB]);
    assert_eq!(volume.uuid, blkid(&images[2].path(), "UUID", 0, 200 * MIB));
    let mut truth = images[0].bytes(10 * MIB, 200 << 20);
    truth.extend(images[2].bytes(0, 200 << 20));
    assert!(backup.read(0, volume) == truth);
    // Seen from the other; and from the one that needs none.
    let (volumes, opened) = backup.look(2);
    assert_eq!((names(&volumes), opened), (vec!["disk"], vec![0]));
    assert_eq!(link(&volumes[1]).or(link(&volumes[0])), Some(0));
    assert!(backup.look(1).1.is_empty());
    // Without the first: the reader is told of what is there, the user of the rest.
    backup.images[0] = None;
    let (volumes, _) = backup.look(2);
    let shown = volumes
        .iter()
        .find(|v| v.content == Content::FileSystem("btrfs".into()));
    let shown = shown.unwrap();
    assert_eq!(shown.members, [200 * MIB]);
    assert!(
        shown.note.contains("disk0 cannot be opened: it is away"),
        "{}",
        shown.note
    );
}

/// Numbers within a disk must not depend on what is there of the other disks.
#[test]
fn what_is_missing_moves_nothing() {
    let images = [
        Image::new(100 * MIB),
        Image::new(100 * MIB),
        Image::new(100 * MIB),
    ];
    let path = images[0].path().display().to_string();
    let script = "label: gpt\nstart=2048,size=40M\nstart=100000,size=40M\n";
    run_with("sfdisk", ["-q", &path], script);
    let script = "label: gpt\nstart=2048,size=40M\nstart=100000,size=40M\n";
    run_with("sfdisk", ["-q", images[1].path().to_str().unwrap()], script);
    let start = 100_000 * 512;
    for image in &images[..2] {
        image.fill(MIB, 40 * MIB, |path| {
            run("mke2fs", ["-q", "-F", path.to_str().unwrap()]);
        });
    }
    let loops = vec![
        Loop::part(&images[0], start, 40 * MIB),
        Loop::part(&images[1], start, 40 * MIB),
        Loop::new(&images[2], 512),
    ];
    let lvm = logical::Lvm::new(loops);
    let all: Vec<&str> = lvm.loops.iter().map(|l| l.0.as_str()).collect();
    lvm.run("vgcreate", &[&["-s", "1M", "vg0"][..], &all].concat());
    lvm.create("vg0", "wide", &["-i3", "-I64k", "-L", "60M"]);
    drop(lvm);
    let mut backup = Backup::new(&images);
    let shape = |volumes: &[Volume]| -> Vec<(String, u64, Option<Across>)> {
        let shown = volumes
            .iter()
            .filter(|v| !matches!(v.content, Content::NoFiles(_)));
        shown.map(|v| (v.name.clone(), v.size, v.across)).collect()
    };
    let (whole, opened) = backup.look(0);
    assert_eq!(
        (names(&whole), opened),
        (vec!["part1", "vg0-wide"], vec![1, 2])
    );
    assert!(shape(&whole)[0].2.is_none() && shape(&whole)[1].2.is_some());
    assert_eq!(whole.last().unwrap().mapping.size(), 60 * MIB);
    let (second, _) = backup.look(1);
    assert_eq!(names(&second), ["part1", "vg0"]);
    assert_eq!(second.iter().find_map(link), Some(0));
    backup.images[2] = None;
    let (partly, _) = backup.look(0);
    assert_eq!(shape(&partly), shape(&whole));
    let Content::Unreadable(why) = &partly.last().unwrap().content else {
        panic!("{partly:?}");
    };
    assert!(
        why.contains("pv2") && why.contains("disk2 cannot be opened"),
        "{why}"
    );
    // The same from the second, when the first is away.
    backup.images[0] = None;
    let (now, _) = backup.look(1);
    assert_eq!(names(&now), ["part1", "vg0-wide"]);
    assert_eq!(
        now.last().unwrap().across,
        second.iter().find(|v| link(v).is_some()).unwrap().across
    );
}

/// Nor on the order in which things are found, which the disks before decide.
#[test]
fn what_comes_before_moves_nothing() {
    let images = [100, 100, 50].map(|mib| Image::new(mib * MIB));
    let path = images[1].path().display().to_string();
    let script = "label: gpt\nstart=2048,size=40M\nstart=100000,size=40M\n";
    run_with("sfdisk", ["-q", &path], script);
    let loops = vec![
        Loop::part(&images[1], MIB, 40 * MIB),
        Loop::new(&images[2], 512),
        Loop::part(&images[1], 100_000 * 512, 40 * MIB),
        Loop::new(&images[0], 512),
    ];
    let lvm = logical::Lvm::new(loops);
    let all: Vec<&str> = lvm.loops.iter().map(|l| l.0.as_str()).collect();
    for (group, pvs) in [("first", &all[..2]), ("second", &all[2..])] {
        lvm.run("vgcreate", &[&["-s", "1M", group][..], pvs].concat());
        lvm.create(group, "wide", &["-i2", "-I64k", "-L", "20M"]);
    }
    drop(lvm);
    let mut backup = Backup::new(&images);
    let numbers = |volumes: &[Volume]| {
        let number = |prefix: &str| {
            let mut named = volumes.iter().filter(|v| v.name.starts_with(prefix));
            named.next().unwrap().across.unwrap()
        };
        [number("first"), number("second")]
    };
    let whole = numbers(&backup.look(1).0);
    assert_ne!(whole[0].group, whole[1].group);
    backup.images[0] = None;
    assert_eq!(numbers(&backup.look(1).0), whole);
}

/// A disk that is a copy of another is not shown a second time, nor is it empty.
#[test]
fn a_copy_of_a_disk() {
    let images = [Image::new(64 * MIB), Image::new(64 * MIB)];
    let lvm = logical::Lvm::new(images.iter().map(|i| Loop::new(i, 512)).collect());
    let all: Vec<&str> = lvm.loops.iter().map(|l| l.0.as_str()).collect();
    lvm.run("vgcreate", &[&["-s", "1M", "vg0"][..], &all].concat());
    lvm.create("vg0", "wide", &["-i2", "-I64k", "-L", "20M"]);
    drop(lvm);
    let copy = Image::new(0);
    std::fs::copy(images[1].path(), copy.path()).unwrap();
    let mut backup = Backup::new([&images[0], &images[1], &copy]);
    let (volumes, opened) = backup.look(2);
    assert_eq!((names(&volumes), opened), (vec!["vg0"], vec![0]));
    assert_eq!(volumes.iter().find_map(link), Some(0));
    let (volumes, _) = backup.look(0);
    assert_eq!(names(&volumes), ["vg0-wide"]);
    // What may pass says nothing of the disk.
    backup.hangs = true;
    let outcome = detect_across(&images[0].disk(), 0, &backup);
    assert!(
        matches!(outcome, Err(crate::error::Error::TimedOut { .. })),
        "{outcome:?}"
    );
}
