//! Linux software RAID. The superblocks and the data are laid out here by the
//! specification; `mdadm` and `blkid` judge the superblocks, and GRUB, which reads
//! arrays by code of its own, the data.

use super::across::Backup;
use super::*;

const CHUNK: u64 = 64 << 10;
/// Where data begins on a member.
const DATA: u64 = MIB;

/// What an array is.
#[derive(Clone, Copy)]
struct Shape {
    level: i32,
    layout: u32,
    members: usize,
    /// Bytes of each that are used.
    each: u64,
    minor: u32,
}

impl Shape {
    fn size(self) -> u64 {
        let members = self.members as u64;
        match self.level {
            1 => self.each,
            4 | 5 => self.each * (members - 1),
            6 => self.each * (members - 2),
            10 => {
                let (near, far) = (self.layout & 255, self.layout >> 8 & 255);
                self.each / CHUNK / u64::from(far) * members / u64::from(near) * CHUNK
            }
            _ => self.each * members,
        }
    }

    /// The members, with the chunk on each, that have data chunk `number`.
    fn places(self, number: u64) -> Vec<(u64, u64)> {
        let n = self.members as u64;
        match (self.level, self.layout) {
            (0, _) => vec![(number % n, number / n)],
            (1, _) => (0..n).map(|member| (member, number)).collect(),
            (4, _) => vec![(number % (n - 1), number / (n - 1))],
            (5, layout) => {
                let (row, index) = (number / (n - 1), number % (n - 1));
                let parity = if layout % 2 == 0 {
                    n - 1 - row % n
                } else {
                    row % n
                };
                let member = match layout {
                    0 | 1 => index + u64::from(index >= parity),
                    _ => (parity + 1 + index) % n,
                };
                vec![(member, row)]
            }
            (6, _) => {
                // Left-symmetric: both parities together, data goes on after them.
                let (row, index) = (number / (n - 2), number % (n - 2));
                vec![((n - 1 - row % n + 2 + index) % n, row)]
            }
            (10, layout) => {
                let (near, far) = (u64::from(layout & 255), u64::from(layout >> 8 & 255));
                let mut places = Vec::new();
                for copy in number * near..(number + 1) * near {
                    let (member, row) = (copy % n, copy / n);
                    for turn in 0..far {
                        let there = (member + turn * near) % n;
                        places.push(if layout & 1 << 16 != 0 {
                            (there, row * far + turn)
                        } else {
                            (there, row + turn * (self.each / CHUNK / far))
                        });
                    }
                }
                places
            }
            _ => panic!("not a level of the test"),
        }
    }

    /// The superblock of member `role` on a device of `size` bytes, and its place.
    fn superblock(self, role: usize, size: u64, events: u64) -> (u64, Vec<u8>) {
        let at = match self.minor {
            0 => (size - 8192) & !4095,
            1 => 0,
            _ => 4096,
        };
        let mut b = vec![0; 4096];
        let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
        let data = if self.minor == 0 { 0 } else { DATA };
        put(0, &0xa92b_4efc_u32.to_le_bytes());
        put(4, &1_u32.to_le_bytes());
        put(16, b"0123456789abcdef");
        put(32, b"host:data");
        put(72, &self.level.to_le_bytes());
        put(76, &self.layout.to_le_bytes());
        put(80, &(self.each / 512).to_le_bytes());
        put(88, &((CHUNK / 512) as u32).to_le_bytes());
        put(92, &(self.members as u32).to_le_bytes());
        put(128, &(data / 512).to_le_bytes());
        put(136, &(self.each / 512).to_le_bytes());
        put(144, &(at / 512).to_le_bytes());
        put(160, &(role as u32).to_le_bytes());
        put(168, &[role as u8 + 1; 16]);
        put(200, &events.to_le_bytes());
        put(208, &u64::MAX.to_le_bytes());
        put(220, &128_u32.to_le_bytes());
        for member in 0..128_usize {
            let role = if member < self.members {
                member as u16
            } else {
                0xffff
            };
            put(256 + 2 * member, &role.to_le_bytes());
        }
        seal(&mut b);
        (at, b)
    }

    /// The members, with `content` on the array.
    fn build(self, content: &Image) -> Vec<Image> {
        let size = self.each + 2 * DATA;
        let images: Vec<Image> = (0..self.members).map(|_| Image::new(size)).collect();
        for (role, image) in images.iter().enumerate() {
            let (at, superblock) = self.superblock(role, size, 7);
            image.write(at, &superblock);
        }
        let data = if self.minor == 0 { 0 } else { DATA };
        for number in 0..self.size() / CHUNK {
            let bytes = content.bytes(number * CHUNK, CHUNK as usize);
            if is_blank(&bytes) {
                continue;
            }
            for (member, chunk) in self.places(number) {
                images[member as usize].write(data + chunk * CHUNK, &bytes);
            }
        }
        images
    }
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// Puts the checksum right.
fn seal(b: &mut [u8]) {
    b[216..220].fill(0);
    let covered = 256 + 2 * u32::from_le_bytes(b[220..224].try_into().unwrap()) as usize;
    let Some(covered) = b.get(..covered) else {
        return;
    };
    let words = covered
        .chunks_exact(4)
        .map(|w| u64::from(u32::from_le_bytes(w.try_into().unwrap())));
    let sum: u64 = words.sum();
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    b[216..220].copy_from_slice(&(sum as u32).to_le_bytes());
}

/// An ext4 with a file that fills most of it.
fn content(size: u64) -> (Image, Vec<u8>) {
    let image = Image::new(size);
    let folder = tempfile::tempdir().unwrap();
    let len = size / 2;
    let words = (0..len / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    let bytes: Vec<u8> = words.collect();
    std::fs::write(folder.path().join("file"), &bytes).unwrap();
    let (folder, path) = (folder.path().as_os_str(), image.path());
    let args = ["-q", "-F", "-t", "ext4", "-L", "inside", "-d"].map(OsStr::new);
    run("mke2fs", args.into_iter().chain([folder, path.as_os_str()]));
    (image, bytes)
}

/// The file as GRUB reads it off the array.
fn by_grub(images: &[&Image], device: &str) -> Vec<u8> {
    let mut command = Command::new("grub-fstest");
    command.arg("-c").arg(images.len().to_string());
    command.args(images.iter().map(|image| image.path()));
    let out = command
        .arg("cat")
        .arg(format!("({device})/file"))
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    out.stdout
}

const ALL: &[(i32, u32, usize)] = &[
    (0, 0, 2),
    (0, 0, 3),
    (1, 0, 2),
    (1, 0, 3),
    (4, 0, 3),
    (5, 0, 3),
    (5, 1, 4),
    (5, 2, 3),
    (5, 2, 5),
    (5, 3, 3),
    (6, 2, 4),
    (6, 2, 5),
    (10, 0x102, 2),
    (10, 0x102, 3),
    (10, 0x102, 4),
    (10, 0x201, 2),
    (10, 0x201, 3),
    (10, 0x1_0201, 3),
    (10, 0x1_0201, 4),
];

#[test]
fn all_levels_over_disks() {
    for (index, (level, layout, members)) in ALL.iter().copied().enumerate() {
        let minor = [2, 1, 0][index % 3];
        let shape = Shape {
            level,
            layout,
            members,
            each: 6 * MIB + 5 * CHUNK,
            minor,
        };
        let what = format!("RAID{level}, layout {layout:#x}, {members} members, 1.{minor}");
        let (inside, file) = content(shape.size());
        let images = shape.build(&inside);
        for (role, image) in images.iter().enumerate() {
            let path = image.path();
            let said = run("mdadm", ["--examine".as_ref(), path.as_os_str()]);
            assert!(said.contains("correct"), "{what}: {said}");
            assert!(
                said.contains(&format!("Active device {role}")),
                "{what}: {said}"
            );
            let kind = blkid(&path, "TYPE", 0, image.disk().size());
            assert_eq!(kind, "linux_raid_member", "{what}");
        }
        let all: Vec<&Image> = images.iter().collect();
        assert!(
            by_grub(&all, "md/data") == file,
            "{what}: GRUB reads something else"
        );
        let mut backup = Backup::new(&images);
        let (volumes, opened) = backup.look(0);
        assert_eq!(opened.len(), members - 1, "{what}");
        let volume = volumes.iter().find(|v| v.name == "md-data").unwrap();
        assert_eq!(volume.content, Content::FileSystem("ext4".into()), "{what}");
        assert_eq!(volume.label, b"inside");
        assert!(volume.note.is_empty(), "{}", volume.note);
        let truth = inside.bytes(0, shape.size() as usize);
        assert!(backup.read(0, volume) == truth, "{what}");
        // From the last: a link to the first.
        let (volumes, _) = backup.look(members - 1);
        assert!(
            volumes
                .iter()
                .any(|v| v.name == "md-data"
                    && matches!(v.content, Content::Elsewhere { disk: 0, .. })),
            "{what}: {volumes:?}"
        );
        // Without the first: mirrors are read, and say so.
        backup.images[0] = None;
        let (volumes, _) = backup.look(1);
        let volume = volumes.iter().find(|v| v.name == "md-data").unwrap();
        if matches!(level, 1 | 10) {
            assert!(backup.read(1, volume) == truth, "{what}, degraded");
            assert!(
                volume.note.contains("without 1 of its members"),
                "{}",
                volume.note
            );
        } else {
            let Content::Unreadable(why) = &volume.content else {
                panic!("{what}: {volume:?}");
            };
            assert!(
                why.contains("needs its member 0") && why.contains("disk0 cannot"),
                "{why}"
            );
            assert_eq!(volume.size, shape.size(), "{what}");
        }
    }
}

const RAID1: Shape = Shape {
    level: 1,
    layout: 0,
    members: 2,
    each: 24 * MIB,
    minor: 2,
};

fn named<'a>(volumes: &'a [Volume], name: &str) -> &'a Volume {
    let found = volumes.iter().find(|v| v.name == name);
    found.unwrap_or_else(|| panic!("{name} in {volumes:?}"))
}

/// A member that was away while the array was written to is not read.
#[test]
fn a_member_that_lags_behind_is_not_read() {
    let (inside, _) = content(RAID1.each);
    let images = RAID1.build(&inside);
    let (at, old) = RAID1.superblock(0, RAID1.each + 2 * DATA, 5);
    images[0].write(at, &old);
    images[0].write(DATA + MIB, &vec![0x55; 4 * MIB as usize]);
    let truth = inside.bytes(0, RAID1.each as usize);
    let mut backup = Backup::new(&images);
    let (volumes, _) = backup.look(0);
    let volume = named(&volumes, "md-data");
    assert!(backup.read(0, volume) == truth);
    assert!(volume.note.contains("out of date"), "{}", volume.note);
    // One event less may be the last write of all.
    let (at, newer) = RAID1.superblock(0, RAID1.each + 2 * DATA, 6);
    images[0].write(at, &newer);
    let (volumes, _) = backup.look(0);
    assert!(backup.read(0, named(&volumes, "md-data")) != truth);
    // It is given up by the others, whatever it says of itself.
    let (at, mut other) = RAID1.superblock(1, RAID1.each + 2 * DATA, 7);
    other[256..258].copy_from_slice(&0xfffe_u16.to_le_bytes());
    seal(&mut other);
    images[1].write(at, &other);
    let (volumes, _) = backup.look(0);
    assert!(backup.read(0, named(&volumes, "md-data")) == truth);
}

/// The members of an array on partitions of one disk; on the array a partition
/// table, and LVM in one of the partitions.
#[test]
fn an_array_is_a_device_like_a_disk() {
    let inner = Image::new(64 * MIB);
    let script = "label: gpt\nstart=2048,size=16M\nstart=40960,size=40M\n";
    run_with("sfdisk", ["-q", inner.path().to_str().unwrap()], script);
    inner.fill(MIB, 16 * MIB, |path| {
        run(
            "mke2fs",
            ["-q", "-F", "-L", "first", path.to_str().unwrap()],
        );
    });
    let lvm = logical::Lvm::new(vec![Loop::part(&inner, 20 * MIB, 40 * MIB)]);
    lvm.run("vgcreate", &["-s", "1M", "vg0", &lvm.loops[0].0]);
    lvm.create("vg0", "lv", &["-L", "16M"]);
    let starts = lvm.run(
        "pvs",
        &[
            "--units",
            "b",
            "--nosuffix",
            "--noheadings",
            "-o",
            "pe_start",
        ],
    );
    let start = 20 * MIB + starts.trim().parse::<u64>().unwrap();
    drop(lvm);
    inner.fill(start, 16 * MIB, |path| {
        run(
            "mke2fs",
            ["-q", "-F", "-L", "second", path.to_str().unwrap()],
        );
    });
    for (level, minor, members) in [(0, 2, 2), (5, 2, 3), (1, 0, 2)] {
        let data = if level == 5 {
            2
        } else {
            64 * MIB / members as u64
        };
        let each = match level {
            1 => 64 * MIB,
            5 => 32 * MIB,
            _ => data,
        };
        let shape = Shape {
            level,
            layout: if level == 5 { 2 } else { 0 },
            members,
            each,
            minor,
        };
        let images = shape.build(&inner);
        let mut backup = Backup::new(&images);
        let (volumes, _) = backup.look(0);
        let first = named(&volumes, "md-data-part1");
        assert_eq!(
            (&first.label[..], first.mapping.size()),
            (&b"first"[..], 16 * MIB)
        );
        let second = named(&volumes, "vg0-lv");
        assert_eq!(second.label, b"second");
        assert!(
            backup.read(0, second) == inner.bytes(start, 16 << 20),
            "RAID{level}"
        );
        let (volumes, _) = backup.look(1);
        let shown: Vec<_> = volumes
            .iter()
            .filter(|v| !matches!(v.content, Content::NoFiles(_)))
            .collect();
        assert!(
            shown.len() == 1 && matches!(shown[0].content, Content::Elsewhere { disk: 0, .. }),
            "{shown:?}"
        );
        // All members on one disk need no other.
        let disk = Image::new(300 * MIB);
        let size = each + 2 * DATA;
        let parts = (0..members as u64)
            .map(|n| format!("start={},size={}\n", (n * 90 + 1) * 2048, size / 512));
        let script = format!("label: gpt\n{}", parts.collect::<String>());
        run_with("sfdisk", ["-q", disk.path().to_str().unwrap()], &script);
        for (n, image) in (0..).zip(&images) {
            disk.write((n * 90 + 1) * MIB, &image.bytes(0, size as usize));
        }
        let mut alone = Backup::new([&disk]);
        let (volumes, _) = alone.look(0);
        assert_eq!(named(&volumes, "vg0-lv").across, None);
        assert!(alone.read(0, named(&volumes, "vg0-lv")) == inner.bytes(start, 16 << 20));
    }
}

/// RAID0 whose members differ in size, step by step as `create_strip_zones` and
/// `map_sector` of Linux do it; and linear.
#[test]
fn members_of_different_size() {
    let rooms = [9 * CHUNK, 3 * CHUNK + 512, 6 * CHUNK];
    for (level, layout) in [(0, 1), (0, 2), (-1, 0)] {
        let size = 20 * CHUNK;
        let images: Vec<Image> = rooms.iter().map(|_| Image::new(DATA + size)).collect();
        for (role, room) in rooms.iter().enumerate() {
            let shape = Shape {
                level,
                layout,
                members: 3,
                each: *room,
                minor: 2,
            };
            let (at, mut superblock) = shape.superblock(role, DATA + size, 1);
            superblock[80..88].fill(0);
            if level == 0 {
                superblock[8..12].copy_from_slice(&4096_u32.to_le_bytes());
            }
            seal(&mut superblock);
            images[role].write(at, &superblock);
            for chunk in 0..9 {
                let mark = [(role as u8) << 4 | chunk as u8; CHUNK as usize];
                images[role].write(DATA + chunk * CHUNK, &mark);
            }
        }
        let mut truth = Vec::new();
        if level == 0 {
            // Zones: three members to chunk 3, two to chunk 6, one to chunk 9.
            for (from, to, zone) in [(0, 3, &[0, 1, 2][..]), (3, 6, &[0, 2]), (6, 9, &[0])] {
                let start = truth.len() as u64;
                for number in 0..(to - from) * zone.len() as u64 {
                    let counted = if layout == 1 { start + number } else { number };
                    let member = zone[(counted % zone.len() as u64) as usize];
                    truth.push(((member as u8) << 4) | (from + number / zone.len() as u64) as u8);
                }
            }
        } else {
            for (member, chunks) in [(0, 9), (1, 3), (2, 6)] {
                truth.extend((0..chunks).map(|chunk| (member << 4) | chunk));
            }
        }
        let mut backup = Backup::new(&images);
        let (volumes, _) = backup.look(0);
        let read = backup.read(0, named(&volumes, "md-data"));
        let read: Vec<u8> = read.chunks(CHUNK as usize).map(|chunk| chunk[0]).collect();
        assert_eq!(read, truth, "level {level}, layout {layout}");
    }
}

/// Format 0.90, as `mdadm` reads it.
#[test]
fn the_old_format() {
    let (inside, file) = content(16 * MIB);
    let size = inside.disk().size() + 100 * 1024 + 512;
    let images = [Image::new(size), Image::new(size)];
    for (role, image) in images.iter().enumerate() {
        image.write(0, &inside.bytes(0, 16 << 20));
        let mut words = [0_u32; 1024];
        let set = [
            (0, 0xa92b_4efc),
            (2, 90),
            (5, 0x1234),
            (7, 1),
            (8, 16 * 1024),
            (9, 2),
            (10, 2),
            (13, 1),
            (14, 2),
            (15, 3),
            (33, 1),
            (34, 2),
            (35, 2),
            (39, 9),
            (65, 65536),
        ];
        set.iter().for_each(|(index, value)| words[*index] = *value);
        for number in 0..2_usize {
            let disk = [number as u32, 8, 16 * number as u32, number as u32, 6];
            words[128 + number * 32..][..5].copy_from_slice(&disk);
            if number == role {
                words[992..997].copy_from_slice(&disk);
            }
        }
        let sum: u64 = words.iter().map(|w| u64::from(*w)).sum();
        words[38] = ((sum & 0xffff_ffff) + (sum >> 32)) as u32;
        let at = (size & !0xffff) - 0x10000;
        image.write(
            at,
            &words
                .iter()
                .flat_map(|w| w.to_le_bytes())
                .collect::<Vec<_>>(),
        );
        let said = run("mdadm", ["--examine".as_ref(), image.path().as_os_str()]);
        assert!(said.contains("0.90") && said.contains("correct"), "{said}");
    }
    let all: Vec<&Image> = images.iter().collect();
    assert!(by_grub(&all, "mduuid/00001234000000010000000200000003") == file);
    let mut backup = Backup::new(&images);
    let (volumes, _) = backup.look(1);
    assert!(matches!(
        named(&volumes, "md-00001234").content,
        Content::Elsewhere { disk: 0, .. }
    ));
    let (volumes, _) = backup.look(0);
    let volume = named(&volumes, "md-00001234");
    assert!(backup.read(0, volume) == inside.bytes(0, 16 << 20));
    assert!(volume.note.is_empty(), "{}", volume.note);
}

/// Any answer will do, but soon, and no panic; with checksums that are right.
#[test]
fn hostile_superblocks() {
    let shape = Shape {
        level: 10,
        layout: 0x102,
        members: 3,
        each: 8 * MIB,
        minor: 2,
    };
    let (inside, _) = content(shape.size());
    let images = shape.build(&inside);
    let good: Vec<Vec<u8>> = images.iter().map(|image| image.bytes(4096, 1024)).collect();
    let mut random = damage::Random(77);
    let mut read = 0;
    for round in 0..250 {
        for (image, good) in images.iter().zip(&good) {
            let mut bytes = good.clone();
            for _ in 0..random.below(3) {
                let at = [8, 64, 72, 76, 80, 88, 92, 128, 136, 152, 160, 200, 220, 256]
                    [random.below(14) as usize];
                let new = random.bytes();
                bytes[at..at + new.len()].copy_from_slice(&new);
            }
            // Half of the time another level, with all that follows from it.
            if random.below(2) == 0 {
                bytes[72] = [0, 1, 4, 5, 6, 10, 0xff][(round % 7) as usize];
            }
            seal(&mut bytes);
            image.write(4096, &bytes);
        }
        let began = std::time::Instant::now();
        let mut backup = Backup::new(&images);
        for own in 0..3 {
            let (volumes, _) = backup.look(own);
            for volume in &volumes {
                read += backup.touch(own, volume);
            }
        }
        assert!(began.elapsed().as_secs() < 10, "round {round}");
    }
    assert!(read > 0);
}

/// Tables in arrays in a table: what may be found in all is bounded.
#[test]
fn a_few_arrays_of_many_partitions_each() {
    const ARRAYS: u64 = 20;
    const ROOM: u64 = 4 * MIB;
    let inner = Image::new(2 * MIB);
    let parts = "size=1\n".repeat(250);
    let script = format!("label: gpt\ntable-length: 256\nfirst-lba: 100\ngrain: 512\n{parts}");
    run_with("sfdisk", ["-q", inner.path().to_str().unwrap()], &script);
    let inner = inner.bytes(0, 2 << 20);
    let outer = Image::new((ARRAYS + 1) * ROOM);
    let parts = "size=4M\n".repeat(ARRAYS as usize);
    let script = format!("label: gpt\n{parts}");
    run_with("sfdisk", ["-q", outer.path().to_str().unwrap()], &script);
    let shape = Shape {
        level: 1,
        layout: 0,
        members: 1,
        each: 2 * MIB,
        minor: 2,
    };
    for array in 0..ARRAYS {
        let start = MIB + array * ROOM;
        let (at, mut superblock) = shape.superblock(0, ROOM, 7);
        superblock[16..24].copy_from_slice(&array.to_le_bytes());
        seal(&mut superblock);
        outer.write(start + at, &superblock);
        outer.write(start + DATA, &inner);
    }
    let began = std::time::Instant::now();
    let volumes = outer.detect();
    assert!(volumes.iter().any(|v| v.name == "md-data-part250"));
    assert!((4000..=4096).contains(&volumes.len()), "{}", volumes.len());
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
}

#[test]
#[ignore = "writes images for the fuzz targets"]
fn images_for_fuzzing() {
    for (level, layout, members) in [(0, 0, 3), (1, 0, 2), (5, 2, 3), (10, 0x102, 4)] {
        let shape = Shape {
            level,
            layout,
            members,
            each: MIB,
            minor: 2,
        };
        let content = Image::new(shape.size());
        run(
            "mke2fs",
            ["-q", "-F"]
                .map(OsStr::new)
                .into_iter()
                .chain([content.path().as_os_str()]),
        );
        let name = format!("raid-x{members}-level{level}");
        keep_for_fuzzing(&name, &shape.build(&content));
    }
}
