//! Timings, to be run by hand in a release build:
//! `cargo test --release -p sendense --lib ntfs::tests::speed -- --ignored --nocapture --test-threads 1`

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::compare::list;
use super::content::{compressed_folder, walk_to};
use super::damage::Memory;
use super::scratch::{Random, Scratch};
use crate::filesystem::FileSystem;
use crate::filesystem::ntfs::{Ntfs, lzx, xpress_huffman};

fn in_memory(image: &std::path::Path) -> Ntfs {
    Ntfs::open(Arc::new(Memory(fs::read(image).unwrap()))).unwrap()
}

#[test]
#[ignore = "a timing"]
fn walk_of_60000_entries() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 256 << 20, &["-c", "4096"]);
    let mount = scratch.mount(&image, "rw");
    for folder in 0..20 {
        fs::create_dir(mount.path(&format!("{folder}"))).unwrap();
        for n in 0..3000 {
            File::create(mount.path(&format!("{folder}/some file name {n}.txt"))).unwrap();
        }
    }
    drop(mount);
    let fs = in_memory(&image);
    for _ in 0..3 {
        let [mut listing, mut attr, mut lookup] = [Duration::ZERO; 3];
        let mut count = 0u32;
        for (_, folder, _) in list(&fs, fs.root(), 1000).unwrap() {
            let start = Instant::now();
            let entries = list(&fs, folder, 1000).unwrap();
            listing += start.elapsed();
            let start = Instant::now();
            for (_, ino, _) in &entries {
                fs.attr(*ino).unwrap();
            }
            attr += start.elapsed();
            let start = Instant::now();
            for (name, ..) in &entries {
                fs.lookup(folder, name).unwrap();
            }
            lookup += start.elapsed();
            count += entries.len() as u32;
        }
        let each = |t: Duration| t / count;
        println!(
            "{count} entries: list {listing:?}, attr {attr:?} ({:?} each), lookup {lookup:?} ({:?} each)",
            each(attr),
            each(lookup)
        );
    }
}

#[test]
#[ignore = "a timing"]
fn compressed_data() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 256 << 20, &["-c", "4096"]);
    let mount = scratch.mount(&image, "compression");
    compressed_folder(&mount.path("c"));
    let mut data = Vec::new();
    for folder in ["/usr/bin", "/usr/lib/x86_64-linux-gnu"] {
        for file in fs::read_dir(folder).unwrap().flatten() {
            if data.len() < 64 << 20 {
                data.extend(fs::read(file.path()).unwrap_or_default());
            }
        }
    }
    data.truncate(64 << 20);
    fs::write(mount.path("c/programs"), &data).unwrap();
    fs::write(mount.path("c/text"), Random(3).text(64 << 20)).unwrap();
    drop(mount);
    let fs = in_memory(&image);
    for name in ["c/programs", "c/text"] {
        let ino = walk_to(&fs, name);
        let mut buf = vec![0; 1 << 20];
        for _ in 0..3 {
            let start = Instant::now();
            for at in 0..64 {
                fs.read(ino, at << 20, &mut buf).unwrap();
            }
            let seconds = start.elapsed().as_secs_f64();
            println!("{name}: {:.0} MB/s", f64::from(64 << 20) / 1e6 / seconds);
        }
        let (mut random, start) = (Random(5), Instant::now());
        for _ in 0..2000 {
            fs.read(ino, random.below((64 << 20) - 4096), &mut buf[..4096])
                .unwrap();
        }
        println!("{name}: {:?} for 4 KiB anywhere", start.elapsed() / 2000);
    }
}

#[test]
#[ignore = "a timing"]
fn a_file_of_100000_fragments() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 512 << 20, &["-c", "512"]);
    let mount = scratch.mount(&image, "rw");
    let file = File::create(mount.path("file")).unwrap();
    for n in 0..50_000 {
        file.write_all_at(&[1; 512], n * 1024).unwrap();
    }
    drop(file);
    drop(mount);
    let fs = in_memory(&image);
    let ino = walk_to(&fs, "file");
    let start = Instant::now();
    let mut extents = Vec::new();
    fs.extents(ino, 0, u64::MAX, &mut extents).unwrap();
    println!("{} extents: {:?} at first", extents.len(), start.elapsed());
    let (mut random, start) = (Random(5), Instant::now());
    for _ in 0..10_000 {
        extents.clear();
        fs.extents(ino, random.below(50_000 * 1024), 4096, &mut extents)
            .unwrap();
    }
    println!("{:?} for the extents of 4 KiB", start.elapsed() / 10_000);
}

#[test]
#[ignore = "a timing"]
fn compacted_data() {
    let scratch = Scratch::new();
    let (files, buf) = (super::wof::packed(&scratch), &mut vec![0; 32768]);
    for (name, chunk, chunks) in files {
        let start = Instant::now();
        for (packed, len) in &chunks {
            let out = &mut buf[..*len];
            match name {
                "LZX" => lzx::decode(packed, out).unwrap(),
                _ => xpress_huffman::decode(packed, out).unwrap(),
            }
        }
        let bytes: usize = chunks.iter().map(|(_, len)| len).sum();
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{name} in chunks of {chunk}: {:.0} MB/s",
            bytes as f64 / 1e6 / seconds
        );
    }
}
