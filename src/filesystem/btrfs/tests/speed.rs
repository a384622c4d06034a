//! Timings, to be run by hand in a release build:
//! `cargo test --release -p sendense --lib btrfs::tests::speed -- --ignored --nocapture --test-threads 1`

use std::fs::{self, File};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::compare::list;
use super::content::text;
use super::pool::Pool;
use crate::filesystem::btrfs::Btrfs;
use crate::filesystem::ext::tests::image::Memory;
use crate::filesystem::{FileSystem, Source};

fn in_memory(pool: &Pool) -> Btrfs {
    let raw = fs::read(&pool.devices[0]).expect("the image");
    Btrfs::open(Source {
        volume: Arc::new(Memory(raw)),
        members: Vec::new(),
    })
    .expect("it opens")
}

#[test]
#[ignore = "a timing"]
fn walk_of_60000_entries() {
    for csum in ["crc32c", "sha256"] {
        let pool = Pool::make(1, 1 << 30, &["--csum", csum]);
        {
            let mount = pool.mount("rw");
            for folder in 0..20 {
                let dir = mount.path().join(folder.to_string());
                fs::create_dir(&dir).expect("a folder");
                for n in 0..3000 {
                    fs::write(dir.join(format!("some file name {n}.txt")), "some content")
                        .expect("a file");
                }
            }
        }
        let start = Instant::now();
        let fs = in_memory(&pool);
        println!(
            "{csum}: open (with reading the image) {:?}",
            start.elapsed()
        );
        for _ in 0..3 {
            let [mut listing, mut attr, mut lookup, mut extents] = [Duration::ZERO; 4];
            let mut count = 0u32;
            for (_, folder, _) in list(&fs, fs.root(), 1000) {
                let start = Instant::now();
                let entries = list(&fs, folder, 1000);
                listing += start.elapsed();
                let start = Instant::now();
                for (_, ino, _) in &entries {
                    fs.attr(*ino).expect("attributes");
                }
                attr += start.elapsed();
                let start = Instant::now();
                for (name, ..) in &entries {
                    fs.lookup(folder, name).expect("a name");
                }
                lookup += start.elapsed();
                let start = Instant::now();
                let mut out = Vec::new();
                for (_, ino, _) in &entries {
                    fs.extents(*ino, 0, 1 << 20, &mut out).expect("extents");
                }
                extents += start.elapsed();
                count += entries.len() as u32;
            }
            let each = |t: Duration| t / count;
            println!(
                "{csum}: {count} entries: list {:?}, attr {:?}, lookup {:?}, extents {:?} each",
                each(listing),
                each(attr),
                each(lookup),
                each(extents)
            );
        }
    }
}

#[test]
#[ignore = "a timing"]
fn compressed_data() {
    let mut data = Vec::new();
    for folder in ["/usr/bin", "/usr/lib/x86_64-linux-gnu"] {
        for file in fs::read_dir(folder).expect("programs").flatten() {
            if data.len() < 64 << 20 {
                data.extend(fs::read(file.path()).unwrap_or_default());
            }
        }
    }
    data.truncate(64 << 20);
    for method in ["zlib", "lzo", "zstd"] {
        let pool = Pool::make(1, 1 << 30, &[]);
        {
            let mount = pool.mount(&format!("compress-force={method}"));
            fs::write(mount.path().join("programs"), &data).expect("a file");
            fs::write(mount.path().join("text"), text(64 << 20, 1)).expect("a file");
        }
        let fs = in_memory(&pool);
        for name in ["programs", "text"] {
            let ino = fs.lookup(fs.root(), name.as_bytes()).expect("a file");
            let mut buf = vec![0; 1 << 20];
            let start = Instant::now();
            for at in 0..64 {
                let n = fs.read(ino, at << 20, &mut buf).expect("data");
                assert_eq!(n, buf.len());
            }
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "{method} {name}: {:.0} MB/s",
                (64 << 20) as f64 / 1e6 / seconds
            );
            let start = Instant::now();
            let mut at = 12_345u64;
            for _ in 0..500 {
                at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                fs.read(ino, (at >> 8) % (60 << 20), &mut buf[..4096])
                    .expect("data");
            }
            println!("{method} {name}: random 4 KiB {:?}", start.elapsed() / 500);
        }
    }
}

#[test]
#[ignore = "a timing"]
fn many_extents() {
    let pool = Pool::make(1, 1 << 30, &[]);
    {
        let mount = pool.mount("rw");
        let file = File::create(mount.path().join("file")).expect("a file");
        for n in 0..3000 {
            std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], n * 8192).expect("data");
        }
    }
    let fs = in_memory(&pool);
    let ino = fs.lookup(fs.root(), b"file").expect("a file");
    let start = Instant::now();
    let mut out = Vec::new();
    for n in 0..3000 {
        out.clear();
        fs.extents(ino, n * 8192, 4096, &mut out).expect("extents");
    }
    println!(
        "extents of 4 KiB of 3000: {:?} each",
        start.elapsed() / 3000
    );
    let start = Instant::now();
    out.clear();
    fs.extents(ino, 0, u64::MAX, &mut out).expect("extents");
    println!("{} extents: {:?}", out.len(), start.elapsed());
}
