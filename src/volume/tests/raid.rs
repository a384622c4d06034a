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
    fn is_parity(self) -> bool {
        matches!(self.level, 4..=6)
    }

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
            each: 16 * MIB + 5 * CHUNK,
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
        assert!(shape.is_parity() || level < 2 || level == 10);
    }
}
