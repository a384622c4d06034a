//! Damaged images: an error at worst, soon, and without much memory.

use std::collections::HashSet;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::Xfs;
use super::image::Image;
use crate::filesystem::FileSystem;
use crate::filesystem::ext::tests::image::{Memory, bytes, many, run};
use crate::filesystem::xfs::log::ring;
use crate::filesystem::xfs::superblock::checksum;

/// A small image with a bit of everything.
fn small(options: &[&str], dirty: bool) -> Vec<u8> {
    let image = Image::make("32M", options);
    {
        let mount = image.mount("rw");
        let root = mount.path();
        many(&root.join("many"), 300);
        many(&root.join("few"), 5);
        let pieces = fs::File::create(root.join("pieces")).expect("a file");
        for piece in 0..300 {
            pieces
                .write_all_at(&bytes(1024, piece), piece * 8192)
                .expect("data");
        }
        fs::create_dir_all(root.join("a/b/c")).expect("a folder");
        std::os::unix::fs::symlink("t".repeat(900), root.join("link")).expect("a link");
        fs::write(root.join("file"), "x").expect("a file");
        for (name, len) in [("user.a", 9), ("user.b", 900), ("security.c", 9000)] {
            xattr::set(root.join("file"), name, &bytes(len, 1)).expect("an attribute");
        }
        for number in 0..60 {
            let name = format!("user.{number}");
            xattr::set(root.join("few"), name, &[7; 90]).expect("an attribute");
        }
        if dirty {
            let args = [
                "-x".as_ref(),
                "-c".as_ref(),
                "shutdown -f".as_ref(),
                root.as_os_str(),
            ];
            run("xfs_io", &args);
        }
    }
    fs::read(&image.path).expect("the image")
}

/// Everything that can be asked, of everything that can be reached.
fn touch(raw: Vec<u8>) -> usize {
    let Ok(reader) = Xfs::open(Arc::new(Memory(raw))) else {
        return 0;
    };
    let (mut seen, mut todo, mut asked) = (HashSet::new(), vec![reader.root()], 0);
    while let Some(ino) = todo.pop() {
        asked += 1;
        let _ = reader.attr(ino);
        for name in reader.xattr_names(ino).unwrap_or_default() {
            let _ = reader.xattr(ino, &name);
        }
        let _ = reader.read_link(ino);
        let mut extents = Vec::new();
        let _ = reader.extents(ino, 0, u64::MAX, &mut extents);
        assert!(extents.len() < 100_000);
        let _ = reader.extents(ino, 1 << 20, 1 << 20, &mut extents);
        let _ = reader.parent(ino);
        let mut names = Vec::new();
        let _ = reader.read_dir(ino, 0, &mut |entry| {
            names.push((entry.ino, entry.name.to_vec(), entry.next));
            if names.len() < 100_000 {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        assert!(names.len() < 100_000);
        for (child, name, _) in names {
            let _ = reader.lookup(ino, &name);
            if seen.insert(child) {
                todo.push(child);
            }
        }
        let _ = reader.lookup(ino, b"not there");
    }
    asked
}

/// A structure on disk: where it lies, its length, and where its checksum lies.
struct Structure {
    at: usize,
    len: usize,
    sum: usize,
}

fn n32(raw: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(raw[at..at + 4].try_into().expect("4"))
}

/// All there are.
fn structures(raw: &[u8]) -> Vec<Structure> {
    let block = n32(raw, 4) as usize;
    let inode = usize::from(u16::from_be_bytes([raw[104], raw[105]]));
    let mut found = Vec::new();
    for at in (0..raw.len()).step_by(512) {
        let (len, sum) = match &raw[at..at + 4] {
            b"XFSB" if at == 0 => (512, 224),
            b"XAGI" => (512, 312),
            b"IAB3" => (block, 52),
            b"BMA3" => (block, 64),
            b"XDB3" | b"XDD3" => (block, 4),
            b"XARM" | b"XSLM" => (block, 12),
            [b'I', b'N', 0, 0, ..] => continue,
            [b'I', b'N', ..] => (inode, 100),
            _ => match u16::from_be_bytes([raw[at + 8], raw[at + 9]]) {
                0x3df1 | 0x3dff | 0x3ebe | 0x3bee => (block, 12),
                _ => continue,
            },
        };
        // Folders may have larger blocks.
        for len in [len, 1 << (raw[120] + raw[192])] {
            let bytes = raw.get(at..at + len).unwrap_or_default();
            if bytes.len() > sum && checksum(bytes, sum).to_le_bytes() == bytes[sum..sum + 4] {
                found.push(Structure { at, len, sum });
                break;
            }
        }
    }
    found
}

struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 3) as usize
    }

    fn damage(&mut self, byte: &mut u8) {
        *byte = match self.next() % 4 {
            0 => 0,
            1 => 0xff,
            2 => *byte ^ (1 << (self.next() % 8)),
            _ => self.next() as u8,
        };
    }
}

/// Damages some structures, with the checksums mended.
fn damaged(raw: &mut [u8], all: &[Structure], numbers: &mut Numbers) {
    for _ in 0..numbers.next() % 12 + 1 {
        let structure = &all[numbers.next() % all.len()];
        let bytes = &mut raw[structure.at..structure.at + structure.len];
        for _ in 0..numbers.next() % 3 + 1 {
            // Mostly where heads are.
            let range = if numbers.next().is_multiple_of(2) {
                200
            } else {
                structure.len
            };
            let at = numbers.next() % range.min(structure.len);
            if at >= 4 {
                numbers.damage(&mut bytes[at]);
            }
        }
        let sum = checksum(bytes, structure.sum).to_le_bytes();
        bytes[structure.sum..structure.sum + 4].copy_from_slice(&sum);
    }
}

/// Heads of the log's records: byte offset and length of the content.
fn records(raw: &[u8]) -> Vec<(usize, usize)> {
    (0..raw.len() - 512)
        .step_by(512)
        .filter(|at| n32(raw, *at) == 0xfeed_babe && n32(raw, at + 320) <= 32768)
        .map(|at| (at, n32(raw, at + 12) as usize))
        .filter(|(at, len)| *len > 0 && at + 512 + len < raw.len())
        .collect()
}

/// Damages records of the log, with the checksums mended.
fn damaged_log(raw: &mut [u8], all: &[(usize, usize)], numbers: &mut Numbers) {
    for _ in 0..numbers.next() % 6 + 1 {
        let (at, len) = all[numbers.next() % all.len()];
        for _ in 0..numbers.next() % 4 + 1 {
            let place = match numbers.next() % 8 {
                0 => 8 + numbers.next() % 36,
                _ => 512 + numbers.next() % len,
            };
            if place % 512 >= 4 {
                numbers.damage(&mut raw[at + place]);
            }
        }
        let (head, content) = raw[at..].split_at_mut(512);
        if let Some(sum) = ring::checksum(head, 328, &content[..len], len, true) {
            head[32..36].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

fn ends_soon(name: &str, raw: Vec<u8>) -> usize {
    let (sender, done) = mpsc::channel();
    let walker = std::thread::spawn(move || {
        let _ = sender.send(touch(raw));
    });
    match done.recv_timeout(Duration::from_secs(10)) {
        Ok(asked) => {
            walker.join().expect("no panic");
            asked
        }
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{name} hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("{name} panics"),
    }
}

#[test]
fn damage_with_right_checksums_ends_in_errors() {
    let images = [
        small(&["-b", "size=1024", "-m", "rmapbt=1"], false),
        small(&["-i", "nrext64=1", "-n", "size=8192"], false),
    ];
    for raw in &images {
        let all = structures(raw);
        assert!(all.len() > 200, "{}", all.len());
        assert!(touch(raw.clone()) > 250);
        let mut walked = 0;
        for seed in 0..100 {
            let mut raw = raw.clone();
            damaged(&mut raw, &all, &mut Numbers(seed * 77 + 1));
            walked += ends_soon(&format!("seed {seed}"), raw);
        }
        assert!(walked > 100 * 50, "{walked}");
    }
}

#[test]
fn damage_in_the_log_ends_in_errors() {
    let raw = small(&["-b", "size=1024"], true);
    let all = records(&raw);
    assert!(all.len() > 5, "{}", all.len());
    assert!(touch(raw.clone()) > 250);
    let mut walked = 0;
    for seed in 0..100 {
        let mut raw = raw.clone();
        damaged_log(&mut raw, &all, &mut Numbers(seed * 99 + 1));
        walked += usize::from(ends_soon(&format!("seed {seed}"), raw) > 1);
    }
    assert!(walked > 20, "{walked}");
}

#[test]
fn a_wrong_checksum_names_the_object() {
    let raw = small(&["-b", "size=1024"], false);
    let reader = Xfs::open(Arc::new(Memory(raw.clone()))).expect("the image opens");
    let dir = reader.lookup(reader.root(), b"many").expect("a folder");
    let file = reader.lookup(dir, b"1-n").expect("a file");
    let all = structures(&raw);
    let sound = |raw: Vec<u8>| Xfs::open(Arc::new(Memory(raw))).expect("the image opens");
    for (ino, part) in [(file, b"IN".as_slice()), (dir, b"XDD3")] {
        let mut bad = raw.clone();
        for structure in &all {
            let own = if part == b"IN" { 152 } else { 40 };
            let owner = u64::from_be_bytes(raw[structure.at + own..][..8].try_into().expect("8"));
            if raw[structure.at..].starts_with(part) && owner == ino {
                bad[structure.at + 60] ^= 1;
            }
        }
        let reader = sound(bad);
        let error = if part == b"IN" {
            reader.attr(ino).map(drop)
        } else {
            reader.read_dir(ino, 0, &mut |_| ControlFlow::Continue(()))
        };
        let text = error.expect_err("damage").to_string();
        assert!(
            text.contains(&format!("XFS inode {ino}")) && text.contains("checksum"),
            "{text}"
        );
    }
}
