//! Images that are damaged where volumes begin, and reads that fail for other
//! reasons: qcow2 with L2 entries that QEMU refuses.

use super::*;
use crate::error::Error;
use crate::image::{Export, ExportOptions};
use std::time::Duration;

/// An export as a disk.
struct Exported(Arc<Export>);

impl BlockRead for Exported {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, buf)
    }
}

/// The disk as qcow2 in clusters of 4 KiB, those at `damaged` with an L2
/// entry that points into the middle of a sector.
fn export(image: &Image, damaged: &[u64]) -> Arc<Export> {
    let repository = image.dir.path().join("repository");
    std::fs::create_dir_all(&repository).unwrap();
    let path = repository.join("disk.qcow2");
    run(
        "qemu-img",
        [
            "convert".as_ref(),
            "-fraw".as_ref(),
            "-Oqcow2".as_ref(),
            "-ocluster_size=4096".as_ref(),
            image.path().as_os_str(),
            path.as_os_str(),
        ],
    );
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let word = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    for at in damaged {
        let cluster = at / 4096;
        let table = word(word(40) + cluster / 512 * 8) & 0x00ff_ffff_ffff_fe00;
        assert_ne!(table, 0, "nothing was written near byte {at}");
        let entry: u64 = 1 << 63 | 0x10_0200;
        file.write_all_at(&entry.to_be_bytes(), table + cluster % 512 * 8)
            .unwrap();
    }
    let options = ExportOptions {
        runtime_dir: image.dir.path().join("run"),
        repositories: vec![repository],
        connections: 1,
        request_timeout: Duration::from_millis(500),
        start_timeout: Duration::from_secs(10),
    };
    Export::open(&path, "qcow2", &options).unwrap()
}

fn look(image: &Image, damaged: &[u64]) -> Vec<Volume> {
    let disk: Arc<dyn BlockRead> = Arc::new(Exported(export(image, damaged)));
    detect(&disk).unwrap()
}

fn is_damaged(volume: &Volume) -> bool {
    matches!(&volume.content, Content::Unreadable(why)
        if why.contains("damaged") && why.contains("Input/output error"))
}

fn disk(script: &str, parts: &[u64]) -> Image {
    let image = Image::new(64 * MIB);
    let path = image.path();
    run_with("sfdisk", ["-q".as_ref(), path.as_os_str()], script);
    for at in parts {
        image.fill(at * MIB, 8 * MIB, |path| {
            run("mke2fs", ["-q", "-F", "-text4", path.to_str().unwrap()]);
        });
    }
    image
}

#[test]
fn damage_costs_the_volume_that_it_is_in() {
    let script = "label: gpt\nstart=2048,size=8M\nstart=20480,size=8M\nstart=40960,size=9M\n";
    let image = disk(script, &[1, 10, 20]);
    let raid = 29 * MIB - (64 << 10);
    image.write(raid, b"not all zeros");
    let sound = look(&image, &[]);
    let kinds = |volumes: &[Volume]| -> Vec<bool> {
        volumes
            .iter()
            .map(|v| v.content == Content::FileSystem("ext4".into()))
            .collect()
    };
    assert_eq!(kinds(&sound), [true; 3]);
    let found = look(&image, &[10 * MIB]);
    assert_eq!(kinds(&found), [true, false, true]);
    assert!(is_damaged(&found[1]), "{:?}", found[1]);
    // Further on in the head there is a superblock of btrfs only; at the end
    // there might have been one of a RAID.
    let found = look(&image, &[10 * MIB + (64 << 10), raid]);
    assert_eq!(kinds(&found), [true; 3]);
    // The entries of the first GPT, and all of the second, and what is between
    // the first and the partitions.
    for damaged in [&[4096][..], &[64 * MIB - 4096], &[48 << 10]] {
        let found = look(&image, damaged);
        assert_eq!(kinds(&found), [true; 3], "{damaged:?}");
    }
    // The first sectors: nothing says that there is a table.
    let found = look(&image, &[0]);
    assert!(found.len() == 1 && is_damaged(&found[0]), "{found:?}");
    assert_eq!(found[0].name, "disk");
}

#[test]
fn damage_in_the_chain_of_logical_partitions_is_told() {
    let script = "label: dos\nstart=2048,size=8M\nstart=20480,type=5\nstart=24576,size=8M\n\
                  start=53248,size=8M\n";
    let image = disk(script, &[1, 12, 26]);
    let names =
        |volumes: &[Volume]| -> Vec<String> { volumes.iter().map(|v| v.name.clone()).collect() };
    let sound = look(&image, &[]);
    assert_eq!(names(&sound), ["part1", "part2", "part5", "part6"]);
    // The second link lies somewhere before the second logical partition.
    let mut next = [0; 4];
    next.copy_from_slice(&image.bytes(10 * MIB + 446 + 16 + 8, 4));
    let link = 10 * MIB + u64::from(u32::from_le_bytes(next)) * 512;
    let found = look(&image, &[link]);
    assert_eq!(names(&found), ["part1", "part2", "part5"]);
    assert!(
        matches!(&found[1].content, Content::Unreadable(why) if why.contains("not found")),
        "{found:?}"
    );
    assert_eq!(found[2].content, Content::FileSystem("ext4".into()));
}

#[test]
fn what_may_pass_says_nothing_of_the_disk() {
    let image = disk("label: gpt\nstart=2048,size=8M\n", &[1]);
    let export = export(&image, &[]);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(export.pid()).unwrap());
    let disk: Arc<dyn BlockRead> = Arc::new(Exported(export));
    nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
    let outcome = detect(&disk);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGCONT).unwrap();
    assert!(
        matches!(outcome, Err(Error::TimedOut { .. })),
        "{outcome:?}"
    );
    assert_eq!(
        detect(&disk).unwrap()[0].content,
        Content::FileSystem("ext4".into())
    );
}

#[test]
fn damage_costs_the_logical_volume_that_it_is_in() {
    let image = damage::physical_volume();
    for at in [1, 9] {
        image.fill(at * MIB, 8 * MIB, |path| {
            run("mke2fs", ["-q", "-F", "-text4", path.to_str().unwrap()]);
        });
    }
    let ext4 = Content::FileSystem("ext4".into());
    let sound = look(&image, &[]);
    assert_eq!((&sound[1].content, &sound[2].content), (&ext4, &ext4));
    let found = look(&image, &[9 * MIB]);
    assert_eq!(
        (found[1].name.as_str(), &found[1].content),
        ("vg0-one", &ext4)
    );
    assert!(is_damaged(&found[2]), "{:?}", found[2]);
    // Its metadata, of which there is one copy.
    let found = look(&image, &[4096]);
    assert!(
        matches!(&found[0].content, Content::Unreadable(why) if why.contains("damaged")),
        "{found:?}"
    );
}
