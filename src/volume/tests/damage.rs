//! Damaged and hostile disks: any answer will do, but soon, and no panic.

use super::*;
use std::time::{Duration, Instant};

/// Numbers that are the same in each run (xorshift).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Bytes that parsers stumble over, at a place on the boundary of a field.
    pub(super) fn bytes(&mut self) -> Vec<u8> {
        let len = [1, 2, 4, 8][self.below(4) as usize];
        let word = match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => u64::MAX >> self.below(64),
            4 => self.below(300),
            _ => self.next(),
        };
        word.to_le_bytes()[..len].to_vec()
    }
}

/// A disk in memory, of which only the beginning and the end are kept.
struct Sparse {
    size: u64,
    first: Vec<u8>,
    last: Vec<u8>,
    read: parking_lot::Mutex<u64>,
}

impl BlockRead for Sparse {
    fn size(&self) -> u64 {
        self.size
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        assert!(offset + buf.len() as u64 <= self.size, "reads past the end");
        *self.read.lock() += buf.len() as u64;
        buf.fill(0);
        let tail = self.size - self.last.len() as u64;
        for (start, bytes) in [(0, &self.first), (tail, &self.last)] {
            let from = offset.max(start);
            let to = (offset + buf.len() as u64).min(start + bytes.len() as u64);
            if from < to {
                buf[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
            }
        }
        Ok(())
    }
}

/// Changes `image` in 300 ways, a few fields each, mostly in `places`; `mend`
/// may put checksums right.
fn mutate(image: &Image, seed: u64, places: &[(u64, u64)], mend: impl Fn(&mut Sparse)) {
    let size = image.disk().size();
    let keep = (8 * MIB).min(size / 2);
    let (first, last) = (
        image.bytes(0, keep as usize),
        image.bytes(size - keep, keep as usize),
    );
    let mut random = Random(seed);
    let mut known = 0;
    for round in 0..300 {
        let (first, last, read) = (first.clone(), last.clone(), Default::default());
        let mut disk = Sparse {
            size,
            first,
            last,
            read,
        };
        for _ in 0..=random.below(4) {
            let (start, len) = places[random.below(places.len() as u64) as usize];
            let at = (start + random.below(len)) as usize;
            for (offset, byte) in random.bytes().into_iter().enumerate() {
                if let Some(place) = disk.first.get_mut(at + offset) {
                    *place = byte;
                }
            }
        }
        mend(&mut disk);
        let disk = Arc::new(disk);
        let began = Instant::now();
        let volumes = detect(&(disk.clone() as Arc<dyn BlockRead>)).unwrap();
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "round {round} took {took:?}");
        assert!(
            *disk.read.lock() < 200 * MIB,
            "round {round}: {} bytes read",
            disk.read.lock()
        );
        assert!(!volumes.is_empty() && volumes.len() <= 256 + 1024);
        let names: std::collections::HashSet<_> = volumes.iter().map(|v| &v.name).collect();
        assert_eq!(names.len(), volumes.len());
        for volume in &volumes {
            known += u32::from(!matches!(volume.content, Content::Unreadable(_)));
            let reader = VolumeReader::new(volume.mapping.clone(), vec![disk.clone()]);
            let len = reader.size().min(100_000);
            let mut buf = vec![0; len as usize];
            reader.read_at(0, &mut buf).unwrap();
            reader.read_at(reader.size() - len, &mut buf).unwrap();
        }
    }
    assert!(known > 0, "no round got as far as a volume");
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn hostile_gpt() {
    let image = Image::new(64 * MIB);
    let path = image.path().display().to_string();
    run(
        "sgdisk",
        [
            "-n", "1:0:+4M", "-n", "2:0:+8M", "-n", "3:0:+8M", "-t", "1:EF00", &path,
        ],
    );
    mutate(&image, 1, &[(446, 66), (512, 92), (1024, 512)], |_| {});
    // With checksums that are right again.
    mutate(
        &image,
        2,
        &[(512 + 24, 68), (1024, 512), (512 + 80, 8)],
        |disk| {
            let n =
                |at: usize| u32::from_le_bytes(disk.first[at..at + 4].try_into().unwrap()) as usize;
            let (count, each) = (n(512 + 80), n(512 + 84));
            let entries = disk
                .first
                .get(1024..1024 + count.saturating_mul(each).min(4 << 20));
            let sum = crc32fast::hash(entries.unwrap_or_default());
            put(&mut disk.first, 512 + 88, sum);
            put(&mut disk.first, 512 + 16, 0);
            let sum = crc32fast::hash(&disk.first[512..512 + 92]);
            put(&mut disk.first, 512 + 16, sum);
        },
    );
}

#[test]
fn hostile_mbr() {
    let image = Image::new(64 * MIB);
    let path = image.path().display().to_string();
    let script = "label: dos\nstart=64, size=100\nstart=200, size=60M, type=5\n\
        start=300, size=100\nstart=500, size=100\nstart=700, size=1M\n";
    run_with(
        "sfdisk",
        ["-q", "-w", "never", "-W", "never", &path],
        script,
    );
    // The links lie at 200 and before each logical partition.
    let volumes = image.detect();
    assert_eq!(volumes.len(), 5, "{volumes:?}");
    let links: Vec<_> = (200..3000)
        .filter(|n| image.bytes(n * 512 + 510, 2) == [0x55, 0xaa])
        .map(|n| (n * 512 + 446, 64))
        .collect();
    assert!(links.len() >= 3, "{links:?}");
    mutate(&image, 3, &[&links[..], &[(446, 64)]].concat(), |_| {});
}

#[test]
fn hostile_file_systems() {
    for (seed, (program, args)) in (10..).zip([
        ("mkfs.vfat", &["-F", "32", "-n", "LABEL"][..]),
        ("mkfs.vfat", &["-F", "16", "-n", "LABEL"]),
        ("mkfs.exfat", &["-L", "label"]),
        ("mkfs.ntfs", &["-q", "-F", "-Q", "-L", "label"]),
        ("mke2fs", &["-q", "-F"]),
    ]) {
        let image = Image::new(64 * MIB);
        let path = image.path().display().to_string();
        run(program, [args, &[path.as_str()]].concat());
        mutate(
            &image,
            seed,
            &[(0, 128), (0, 128), (1024, 400), (16384, 4096)],
            |_| {},
        );
    }
}

/// LVM2's checksum, bit by bit.
fn lvm_sum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xf597_a6cf, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |s, _| {
            (s >> 1) ^ (0xedb8_8320 & (s & 1).wrapping_neg())
        })
    })
}

/// A physical volume on the whole disk, with `vg0-one` at 1 MiB and `vg0-two` at
/// 9 MiB, 8 MiB each.
pub(super) fn physical_volume() -> Image {
    let image = Image::new(64 * MIB);
    let device = Loop::new(&image, 512);
    let config = format!(
        "devices{{filter=[\"a|^{}$|\",\"r|.*|\"] use_devicesfile=0 scan=[\"/dev\"]}} \
         backup{{backup=0 archive=0}}",
        device.0
    );
    let lvm = |command: &str, args: &[&str]| {
        run(
            command,
            [
                &["--driverloaded", "n", "--config", config.as_str()][..],
                args,
            ]
            .concat(),
        );
    };
    lvm("vgcreate", &["vg0", &device.0]);
    for name in ["one", "two"] {
        let args = ["-an", "-Zn", "-Wn", "-y", "-L", "8M", "-n", name, "vg0"];
        lvm("lvcreate", &args);
    }
    drop(device);
    image
}

#[test]
fn hostile_lvm() {
    let image = physical_volume();
    let header = image.bytes(4096, 512);
    let n = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
    let (offset, len) = (n(40), n(48));
    assert_eq!(
        lvm_sum(&header[4..]).to_le_bytes(),
        header[..4],
        "the checksum of the test"
    );
    let text = (4096 + offset, len);
    let places = [(512, 150), (4096 + 20, 60), text, text, text];
    mutate(&image, 20, &places, |_| {});
    // With checksums that are right again, so that the parsers behind are met.
    mutate(&image, 21, &places, |disk| {
        let header = disk.first[4096..4608].to_vec();
        let n = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
        let at = n(40).saturating_add(4096) as usize;
        let text = disk.first.get(at..at.saturating_add(n(48) as usize));
        let sum = lvm_sum(text.unwrap_or_default());
        put(&mut disk.first, 4096 + 56, sum);
        let sum = lvm_sum(&disk.first[4096 + 4..4608]);
        put(&mut disk.first, 4096, sum);
        let sum = lvm_sum(&disk.first[512 + 20..1024]);
        put(&mut disk.first, 512 + 16, sum);
    });
    let with_text = |text: &[u8]| {
        let copy = Image::new(64 * MIB);
        copy.write(0, &image.bytes(0, MIB as usize));
        copy.write(4096 + offset, text);
        let mut header = header.clone();
        header[48..56].copy_from_slice(&(text.len() as u64).to_le_bytes());
        put(&mut header, 56, lvm_sum(text));
        let sum = lvm_sum(&header[4..]);
        put(&mut header, 0, sum);
        copy.write(4096, &header);
        copy
    };
    // Words that would command a terminal, or forge a line of a log.
    let plain = String::from_utf8(image.bytes(text.0, len as usize)).unwrap();
    let forged = plain.replace("\"striped\"", "\"x\n\u{1b}[2J2026 INFO all is well\"");
    assert_ne!(plain, forged);
    let volumes = with_text(forged.as_bytes()).detect();
    assert_eq!(volumes[1].name, "vg0-one");
    for volume in &volumes[1..] {
        let Content::Unreadable(reason) = &volume.content else {
            panic!("{volume:?}");
        };
        assert!(
            reason.contains("type x\\n\\u{1b}[2J2026 INFO"),
            "{reason:?}"
        );
        assert!(!reason.contains(char::is_control), "{reason:?}");
    }
    // Numbers of the text, changed for others.
    let words = [
        &b"extent_count = "[..],
        b"stripe_count = ",
        b"start_extent = ",
        b"pe_start = ",
    ];
    let mut random = Random(22);
    for round in 0..300 {
        let mut text = image.bytes(text.0, len as usize);
        for _ in 0..=random.below(3) {
            let word = words[random.below(4) as usize];
            let Some(at) = text.windows(word.len()).rposition(|w| w == word) else {
                continue;
            };
            let at = at + word.len();
            let end = at + text[at..].iter().position(|b| *b == b'\n').unwrap();
            let new = [0, 1, 3, 1 << 40, u64::MAX / 512, u64::MAX][random.below(6) as usize];
            text.splice(at..end, new.to_string().into_bytes());
        }
        let copy = with_text(&text);
        for volume in copy.detect() {
            let reader = VolumeReader::new(volume.mapping.clone(), vec![copy.disk()]);
            let mut byte = [0];
            if reader.size() > 0 {
                reader
                    .read_at(reader.size() - 1, &mut byte)
                    .unwrap_or_else(|e| panic!("{round}: {e}"));
            }
        }
    }
}
