//! How fast it is. The limits are far from what is measured, so that they catch
//! what is quadratic and nothing else; `--nocapture` prints the figures.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::image::{Head, Image};
use super::walk::find;
use crate::filesystem::fat::Fat;
use crate::filesystem::ntfs::tests::compare::list;
use crate::filesystem::ntfs::tests::scratch::Random;
use crate::filesystem::{Extent, FileSystem, Options};

fn report(what: &str, times: u32, took: Duration) {
    eprintln!("{what}: {took:?}, {:?} each", took / times);
}

/// An image of 600 MB with clusters of 4 KiB and a file of 500 MB no two clusters
/// of which follow each other on the volume.
fn fragmented(shuffled: bool) -> (Fat, u64) {
    let image = Image::fat(600 << 20, &["-F", "32", "-s", "8"]);
    let file = image.beside("file");
    fs::write(&file, b"x").unwrap();
    image.mtool("mcopy", "UTC", &[file.to_str().unwrap(), "::/"]);
    let fs = image.open();
    let geometry = fs.volume.geometry.clone();
    let ino = find(&fs, "file");
    let first = fs.entry(ino).unwrap().chain.unwrap().first;
    let clusters = (500u32 << 20) / 4096;
    let mut order: Vec<u32> = (1..clusters).map(|n| first + n).collect();
    if shuffled {
        let mut random = Random(5);
        for n in (1..order.len()).rev() {
            order.swap(n, random.below(n as u64 + 1) as usize);
        }
    } else {
        let (odd, even): (Vec<u32>, Vec<u32>) = order.iter().partition(|n| *n % 2 == 0);
        order = odd.into_iter().chain(even).collect();
    }
    let mut head = image.bytes()[..geometry.heap as usize + 65536].to_vec();
    let mut at = first;
    for next in order.into_iter().chain([0x0fff_ffff]) {
        let place = geometry.table as usize + at as usize * 4;
        head[place..place + 4].copy_from_slice(&next.to_le_bytes());
        at = next;
    }
    let slot = ino as usize * 32;
    head[slot + 28..slot + 32].copy_from_slice(&(500u32 << 20).to_le_bytes());
    let source = Head {
        head,
        size: 600 << 20,
    };
    let fs = Fat::open_vfat(Arc::new(source), Options::default()).unwrap();
    (fs, ino)
}

#[test]
fn random_reads_of_a_fragmented_file() {
    for shuffled in [false, true] {
        let (fs, ino) = fragmented(shuffled);
        let start = Instant::now();
        let mut extents = Vec::new();
        fs.extents(ino, 0, 4096, &mut extents).unwrap();
        report(
            &format!("first read, shuffled: {shuffled}"),
            1,
            start.elapsed(),
        );
        let mut random = Random(1);
        let start = Instant::now();
        for _ in 0..10_000 {
            extents.clear();
            fs.extents(ino, random.below(500 << 8) * 4096, 4096, &mut extents)
                .unwrap();
        }
        report("random 4 KiB", 10_000, start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(5));
        let start = Instant::now();
        for piece in 0..500u64 {
            extents.clear();
            fs.extents(ino, piece << 20, 1 << 20, &mut extents).unwrap();
            assert!(matches!(extents[0], Extent::Volume { .. }));
        }
        report("1 MiB after the other", 500, start.elapsed());
    }
}

/// A folder of 20,000 files as mtools would be too slow to write.
fn large_folder() -> (Fat, u64) {
    let image = Image::fat(64 << 20, &["-F", "32", "-s", "1"]);
    image.mtool("mmd", "UTC", &["::/large"]);
    let fs = image.open();
    let geometry = fs.volume.geometry.clone();
    let dir = find(&fs, "large");
    let first = fs.entry(dir).unwrap().chain.unwrap().first;
    let clusters = (20_000 * 3 * 32u32 + 64).div_ceil(512);
    let mut bytes = image.bytes();
    for n in first..first + clusters {
        let next = if n + 1 < first + clusters {
            n + 1
        } else {
            0x0fff_ffff
        };
        let at = geometry.table as usize + n as usize * 4;
        bytes[at..at + 4].copy_from_slice(&next.to_le_bytes());
    }
    let mut at = geometry.offset(first) as usize + 64;
    for n in 0..20_000 {
        let mut short = [b' '; 11];
        short[..8].copy_from_slice(format!("F~{n:06}").as_bytes());
        let sum = super::super::short_name::checksum(&short);
        let name: Vec<u16> = format!("a longer name {n:06}").encode_utf16().collect();
        for (id, piece) in [(0x42, &name[13..]), (1, &name[..13])] {
            let slot = &mut bytes[at..at + 32];
            slot.fill(0xff);
            (slot[0], slot[11], slot[12], slot[13]) = (id, 0x0f, 0, sum);
            slot[26..28].fill(0);
            let places = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
            for (unit, at) in piece.iter().chain([&0]).zip(places) {
                slot[at..at + 2].copy_from_slice(&unit.to_le_bytes());
            }
            at += 32;
        }
        bytes[at..at + 11].copy_from_slice(&short);
        bytes[at + 24..at + 26].copy_from_slice(&[0x21, 0x50]);
        at += 32;
    }
    image.patch(0, &bytes);
    (image.open(), dir)
}

#[test]
fn walk_of_a_large_folder() {
    let (fs, dir) = large_folder();
    let start = Instant::now();
    let all = list(&fs, dir, 500).unwrap();
    assert_eq!(all.len(), 20_000);
    report("list of 20,000", 20_000, start.elapsed());
    let start = Instant::now();
    for (_, ino, _) in &all {
        fs.attr(*ino).unwrap();
    }
    report("attr of 20,000", 20_000, start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5));
    let start = Instant::now();
    for (name, ino, _) in &all {
        assert_eq!(fs.lookup(dir, name).unwrap(), *ino);
    }
    report("look-ups of 20,000 in order", 20_000, start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5));
    let start = Instant::now();
    for (name, ino, _) in all.iter().rev().step_by(4000) {
        assert_eq!(fs.lookup(dir, name).unwrap(), *ino);
    }
    report("look-ups here and there", 5, start.elapsed());
}
