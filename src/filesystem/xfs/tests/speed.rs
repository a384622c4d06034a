//! Measurements: `cargo test --release -- --ignored --nocapture xfs::tests::speed`.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use super::Xfs;
use super::image::Image;
use crate::filesystem::ext::tests::image::{Memory, bytes, many};
use crate::filesystem::{FileSystem, FileType};

#[test]
#[ignore = "a measurement"]
fn time_of_everything() {
    let image = Image::make("600M", &[]);
    {
        let mount = image.mount("rw");
        for number in 0..6 {
            many(&mount.path().join(format!("many {number}")), 11_700);
        }
        let pieces = File::create(mount.path().join("pieces")).expect("a file");
        for piece in 0..3000 {
            pieces
                .write_all_at(&bytes(4096, piece), piece * 8192)
                .expect("data");
        }
    }
    let raw = fs::read(&image.path).expect("the image");
    let reader = Xfs::open(Arc::new(Memory(raw))).expect("the image opens");
    let start = Instant::now();
    let (mut names, mut folders) = (Vec::new(), vec![reader.root()]);
    while let Some(dir) = folders.pop() {
        reader
            .read_dir(dir, 0, &mut |entry| {
                if entry.kind == Some(FileType::Directory) {
                    folders.push(entry.ino);
                }
                names.push((dir, entry.ino, entry.name.to_vec()));
                ControlFlow::Continue(())
            })
            .expect("a listing");
    }
    let count = names.len() as u32;
    println!("listing:     {count} names, {:?}", start.elapsed());
    let start = Instant::now();
    for (_, ino, _) in &names {
        reader.attr(*ino).expect("attributes");
    }
    println!(
        "attr:        {:?}, {:?} each",
        start.elapsed(),
        start.elapsed() / count
    );
    let start = Instant::now();
    for (dir, ino, name) in &names {
        assert_eq!(reader.lookup(*dir, name).expect("a name"), *ino);
    }
    println!("lookup:      {:?} each", start.elapsed() / count);
    let file = reader.lookup(reader.root(), b"pieces").expect("a file");
    let mut extents = Vec::new();
    let start = Instant::now();
    reader
        .extents(file, 0, u64::MAX, &mut extents)
        .expect("extents");
    println!("all extents: {} in {:?}", extents.len(), start.elapsed());
    let start = Instant::now();
    for piece in 0..3000u64 {
        extents.clear();
        reader
            .extents(file, (piece * 7919 % 3000) * 8192, 4096, &mut extents)
            .expect("extents");
    }
    println!("one extent:  {:?} each", start.elapsed() / 3000);
}
