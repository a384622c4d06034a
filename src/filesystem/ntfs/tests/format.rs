//! Every geometry that mkntfs makes.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use super::compare::compare;
use super::scratch::{Mount, Random, Scratch, open};
use crate::filesystem::FileSystem;

/// A little of everything that depends on the size of clusters and records.
fn fill(mount: &Mount, cluster: u64) {
    let mut random = Random(cluster + 1);
    fs::create_dir_all(mount.path("a/b/c")).unwrap();
    for size in [
        0, 1, 500, 700, 1000, 4095, 4096, 4097, 65536, 100_001, 300_000,
    ] {
        fs::write(mount.path(&format!("a/{size}")), random.bytes(size)).unwrap();
    }
    // Enough for two levels of index blocks.
    let folder = mount.path("many");
    fs::create_dir(&folder).unwrap();
    for n in 0..250u64 {
        fs::write(
            folder.join(format!("{:x} a name of some length {n}", random.next())),
            b"x",
        )
        .unwrap();
    }
    for entry in fs::read_dir(&folder)
        .unwrap()
        .collect::<Vec<_>>()
        .into_iter()
        .step_by(3)
    {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let sparse = fs::File::create(mount.path("sparse")).unwrap();
    for n in [3, 40, 41, 90] {
        sparse
            .write_all_at(&random.bytes(5000), n * 70_000)
            .unwrap();
    }
    sparse.set_len(95 * 70_000).unwrap();
    symlink("a/b", mount.path("link")).unwrap();
}

fn check(scratch: &Scratch, image: &Path, cluster: u64) {
    let mount = scratch.mount(image, "compression");
    fill(&mount, cluster);
    drop(mount);
    assert!(compare(scratch, image) > 180);
    let fs = open(image);
    assert_eq!(u64::from(fs.description().block_size), cluster);
    fs::remove_file(image).unwrap();
}

#[test]
fn clusters_from_512_bytes_to_2_mib() {
    let scratch = Scratch::new();
    for power in 9..=21 {
        let cluster = 1u64 << power;
        let size = if power < 17 { 64 << 20 } else { cluster * 800 };
        let image = scratch.mkntfs("image", size, &["-s", "512", "-c", &cluster.to_string()]);
        check(&scratch, &image, cluster);
    }
}

#[test]
fn sectors_of_4096_bytes_and_records_of_4_kib() {
    let scratch = Scratch::new();
    for cluster in [4096u64, 8192, 65536] {
        let image = scratch.mkntfs(
            "image",
            64 << 20,
            &["-s", "4096", "-c", &cluster.to_string()],
        );
        assert_eq!(open(&image).mft.volume.boot.record, 4096);
        check(&scratch, &image, cluster);
    }
    for sector in ["1024", "2048"] {
        let image = scratch.mkntfs("image", 64 << 20, &["-s", sector, "-c", "4096"]);
        check(&scratch, &image, 4096);
    }
}

#[test]
fn describes_the_volume() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 32 << 20, &["-L", "Dätën 資料", "-c", "4096"]);
    let fs = open(&image);
    let description = fs.description();
    assert_eq!(description.kind, "ntfs");
    assert_eq!(description.label, "Dätën 資料".as_bytes());
    assert_eq!(description.block_size, 4096);
    // The last sector is kept for the copy of the boot sector.
    assert_eq!(description.blocks, (32 << 20) / 4096 - 1);
    let output = std::process::Command::new("blkid")
        .args(["-p", "-o", "value", "-s", "UUID"])
        .arg(&image)
        .output()
        .unwrap();
    assert_eq!(
        description.uuid,
        String::from_utf8(output.stdout).unwrap().trim()
    );
    assert!(description.notes.is_empty(), "{:?}", description.notes);
    // What df says on Linux, but for ntfs-3g's rounding.
    let mount = scratch.mount(&image, "ro");
    let stat = nix::sys::statvfs::statvfs(mount.root()).unwrap();
    assert_eq!(description.blocks_free, stat.blocks_free());
    assert_eq!(description.blocks, stat.blocks());
}

#[test]
fn tells_of_hibernation_and_of_a_dirty_volume() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 16 << 20, &[]);
    let mount = scratch.mount(&image, "rw");
    fs::write(
        mount.path("hiberfil.sys"),
        [&b"hibr"[..], &[0; 8192]].concat(),
    )
    .unwrap();
    drop(mount);
    let fs = open(&image);
    assert!(
        fs.description()
            .notes
            .iter()
            .any(|note| note.contains("hibernated"))
    );
    let image = scratch.mkntfs("dirty", 16 << 20, &[]);
    super::scratch::run("ntfsfix", &[image.to_str().unwrap()]);
    let fs = open(&image);
    assert!(
        fs.description()
            .notes
            .iter()
            .any(|note| note.contains("dirty")),
        "{:?}",
        fs.description()
    );
}

#[test]
fn falls_back_on_the_copy_of_the_mft() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 16 << 20, &[]);
    let mount = scratch.mount(&image, "rw");
    fs::write(mount.path("file"), b"content").unwrap();
    drop(mount);
    let offset = open(&image).mft.volume.boot.mft;
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(b"BAAD", offset).unwrap();
    let fs = open(&image);
    let ino = fs.lookup(fs.root(), b"file").unwrap();
    assert_eq!(super::compare::read(&fs, ino, 0, 100).unwrap(), b"content");
}
