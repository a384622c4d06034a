//! A tree of everything mixed, as three implementations see it: ours, ntfs-3g
//! and libfsntfs.
//!
//! libfsntfs differs in two things that are no errors of ours, and those are left
//! out of the comparison: it cannot spell names with lone surrogates, which
//! Windows allows; and it shows reparse points as the files and folders that they
//! stand on, where a user wants the links that they are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

use super::super::attribute;
use super::compare::{compare, list, read};
use super::content::{compressed_folder, junction, set, walk_to, windows_symlink};
use super::scratch::{Mount, Random, Scratch, open};
use crate::filesystem::ntfs::Ntfs;
use crate::filesystem::windows_name::push_wtf8;
use crate::filesystem::{FileSystem, FileType};

/// Fills the volume with `count` files.
fn fill(mount: &Mount, count: u64) {
    let mut random = Random(99);
    let mut last = mount.path("first");
    fs::write(&last, b"first").unwrap();
    for n in 0..count {
        let folder = mount.path(&format!("folder {}", n / 100));
        if n % 100 == 0 {
            if n % 200 == 0 {
                compressed_folder(&folder);
            } else {
                fs::create_dir(&folder).unwrap();
            }
            set(&folder, "user.of a folder", &random.bytes(50));
        }
        let path = folder.join(match random.below(20) {
            0 => format!("{}{n}", "long name ".repeat(20)),
            1 => format!("trailing dot {n}."),
            2 => format!("CON {n} <>|?*:\" "),
            3 => format!("資料 \u{1f600} {n}"),
            _ => format!("file {n}.txt"),
        });
        match random.below(16) {
            0 => symlink(format!("../somewhere/{n}"), &path).unwrap(),
            1 => fs::hard_link(&last, &path).unwrap(),
            2 => {
                fs::create_dir(&path).unwrap();
                set(
                    &path,
                    "system.ntfs_reparse_data",
                    &junction(r"\??\C:\folder 0"),
                );
            }
            3 => {
                fs::write(&path, b"").unwrap();
                let data = windows_symlink(r"..\folder 0", 1);
                set(&path, "system.ntfs_reparse_data", &data);
            }
            4 => {
                let file = File::create(&path).unwrap();
                for _ in 0..random.below(6) {
                    let len = random.below(30_000) as usize;
                    let piece = random.text(len);
                    file.write_all_at(&piece, random.below(3_000_000)).unwrap();
                }
                file.set_len(random.below(4_000_000)).unwrap();
            }
            kind => {
                let scale = random.below(18);
                let size = random.below(1 << scale) as usize;
                let data = if kind % 2 == 0 {
                    random.text(size)
                } else {
                    random.bytes(size)
                };
                fs::write(&path, data).unwrap();
                for n in 0..random.below(5).saturating_sub(2) {
                    let len = random.below(9000) as usize;
                    set(&path, &format!("user.stream {n}"), &random.text(len));
                }
                if kind == 5 {
                    set(&path, "system.ntfs_object_id", &random.bytes(16));
                    set(&path, "security.NTACL", &random.bytes(100));
                }
                last = path;
            }
        }
    }
    // Two that grow in turns: thousands of runs.
    let [one, two] = ["scattered 1", "scattered 2"].map(|n| File::create(mount.path(n)).unwrap());
    for n in 0..if count > 1000 { 5200 } else { 300 } {
        for file in [&one, &two] {
            file.write_all_at(&random.bytes(4096), n * 4096).unwrap();
        }
    }
    let lone = std::ffi::OsStr::from_bytes(b"lone \xed\xa0\x80").to_owned();
    fs::write(mount.root().join(lone), b"lone").unwrap();
}

pub(super) fn digest(data: &[u8]) -> String {
    let hash = Sha256::digest(data);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn hexed(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "-".into();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What libfsntfs says: facts by path, and how many names it could not read.
pub(super) fn second_opinion(image: &Path) -> (BTreeMap<String, Vec<String>>, usize) {
    // The system's Python, which has the module.
    let output = Command::new("/usr/bin/python3")
        .args(["-c", include_str!("second_opinion.py")])
        .arg(image)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "python3-libfsntfs is needed: {errors}"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let (mut all, mut unnamed) = (BTreeMap::new(), 0);
    for line in text.lines() {
        let mut words = line.split(' ').map(str::to_owned);
        let path = words.next().unwrap();
        if path == "unnamed" {
            unnamed += 1;
        } else {
            all.insert(path, words.collect());
        }
    }
    (all, unnamed)
}

/// The same facts by our reader.
fn facts(fs: &Ntfs, ino: u64) -> Vec<String> {
    let file = fs.mft.file(ino).unwrap();
    let attr = fs.attr(ino).unwrap();
    let times = fs.xattr(ino, b"system.ntfs_times").unwrap().unwrap();
    let times = times
        .chunks(8)
        .map(|time| u64::from_le_bytes(time.try_into().unwrap()).to_string());
    let folder = file.record.is_directory();
    let content = |name: &[u8]| {
        let stream = fs.mft.stream(&file, attribute::DATA, name).unwrap()?;
        let mut data = vec![0; stream.size() as usize];
        stream.read(&fs.mft.volume, 0, &mut data, None).unwrap();
        Some(data)
    };
    let data = if attr.kind == FileType::Regular {
        Some(read(fs, ino, 0, u64::MAX).unwrap())
    } else {
        content(&[])
    };
    let mut streams = Vec::new();
    fs.mft
        .each_stream(&file, &mut |name| {
            let mut text = Vec::new();
            push_wtf8(name, &mut text);
            let data = content(name).unwrap();
            streams.push(format!("{}={}", hexed(&text), digest(&data)));
        })
        .unwrap();
    streams.sort();
    let acl = fs.xattr(ino, b"system.ntfs_acl").unwrap();
    let size = data.as_ref().map_or(0, Vec::len).to_string();
    [ino.to_string(), if folder { "folder".into() } else { size }]
        .into_iter()
        .chain(times)
        .chain([
            fs.information(&file).unwrap().attributes.to_string(),
            data.filter(|_| !folder)
                .map_or("-".into(), |data| digest(&data)),
            hexed(&acl.unwrap_or_default()),
            if streams.is_empty() {
                "-".into()
            } else {
                streams.join(",")
            },
        ])
        .collect()
}

fn check(fs: &Ntfs, ino: u64, path: &str, theirs: &mut BTreeMap<String, Vec<String>>) -> usize {
    let mut unnamed = 0;
    let their = theirs
        .remove(path)
        .unwrap_or_else(|| panic!("{path:?} is not there"));
    assert_eq!(facts(fs, ino), their, "{ino}: {path}");
    if fs.attr(ino).unwrap().kind == FileType::Directory {
        for (name, ino, _) in list(fs, ino, usize::MAX).unwrap() {
            if std::str::from_utf8(&name).is_err() {
                unnamed += 1;
                continue;
            }
            let name = hexed(&name);
            let path = match path {
                "" => name,
                path => format!("{path}/{name}"),
            };
            unnamed += check(fs, ino, &path, theirs);
        }
    }
    unnamed
}

fn three_agree(count: u64, size: u64) {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", size, &["-c", "4096"]);
    let mount = scratch.mount(&image, "compression");
    fill(&mount, count);
    drop(mount);
    assert!(compare(&scratch, &image) as u64 > count);
    let fs = open(&image);
    let (mut theirs, unnamed) = second_opinion(&image);
    assert!(theirs.len() as u64 > count);
    assert_eq!(check(&fs, fs.root(), "", &mut theirs), unnamed);
    assert!(theirs.is_empty(), "{:?}", theirs.keys().next());
}

#[test]
fn three_implementations_agree() {
    three_agree(600, 256 << 20);
}

#[test]
#[ignore = "takes minutes"]
fn three_implementations_agree_on_60000_files() {
    three_agree(60_000, 6 << 30);
}

/// rust-fs-ntfs, which shares nothing with the others.
///
/// It differs in names with lone surrogates, which it cannot spell.
#[test]
fn a_fourth_implementation_agrees() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 128 << 20, &["-c", "4096"]);
    let mount = scratch.mount(&image, "compression");
    fill(&mount, 250);
    drop(mount);
    let fs = open(&image);
    let theirs = fs_ntfs::facade::Filesystem::mount(&image).unwrap();
    let mut folders = vec![(fs.root(), String::from("/"))];
    let mut count = 0;
    while let Some((folder, path)) = folders.pop() {
        let mut entries: BTreeMap<String, u64> = theirs
            .read_dir(&path)
            .unwrap()
            .into_iter()
            .map(|entry| (entry.name, entry.file_record_number))
            .collect();
        for (name, ino, _) in list(&fs, folder, usize::MAX).unwrap() {
            let Ok(name) = String::from_utf8(name) else {
                continue;
            };
            let path = format!("{}/{name}", path.trim_end_matches('/'));
            assert_eq!(entries.remove(&name), Some(ino), "{path}");
            let (ours, their) = (fs.attr(ino).unwrap(), theirs.stat(&path).unwrap());
            assert_eq!(their.file_record_number, ino, "{path}");
            for (ours, seconds, nanoseconds) in [
                (Some(ours.atime), their.atime_sec, their.atime_nsec),
                (Some(ours.mtime), their.mtime_sec, their.mtime_nsec),
                (Some(ours.ctime), their.ctime_sec, their.ctime_nsec),
                (ours.btime, their.crtime_sec, their.crtime_nsec),
            ] {
                let ours = ours.unwrap();
                assert_eq!(
                    (ours.seconds, ours.nanoseconds),
                    (seconds, nanoseconds),
                    "{path}"
                );
            }
            match ours.kind {
                FileType::Directory => folders.push((ino, path)),
                FileType::Regular => {
                    assert_eq!(ours.nlink, u32::from(their.link_count), "{path}");
                    assert_eq!(ours.size, their.size, "{path}");
                    let mut data = vec![0; ours.size as usize];
                    assert_eq!(theirs.read_file(&path, 0, &mut data).unwrap(), data.len());
                    assert!(read(&fs, ino, 0, u64::MAX).unwrap() == data, "{path}");
                }
                _ => {}
            }
            count += 1;
        }
        let dots = [".", ".."].map(String::from);
        entries.retain(|name, _| !dots.contains(name) && !name.starts_with("lone "));
        assert!(entries.is_empty(), "{path}: {entries:?}");
    }
    assert!(count > 250);
}

/// A compressed file of which only the beginning was ever written: what lies
/// past the initialized size reads as zeros, whatever its units decode to.
#[test]
fn compressed_data_past_the_initialized_size() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 32 << 20, &["-c", "4096"]);
    let mount = scratch.mount(&image, "compression");
    compressed_folder(&mount.path("c"));
    let data = Random(8).text(500_000);
    fs::write(mount.path("c/file"), &data).unwrap();
    drop(mount);
    let fs = open(&image);
    let ino = walk_to(&fs, "c/file");
    let record = fs.mft.volume.boot.mft + ino * fs.mft.volume.boot.record;
    let disk = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&image)
        .unwrap();
    let mut bytes = [0; 1024];
    disk.read_exact_at(&mut bytes, record).unwrap();
    let field = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut at = u16::from_le_bytes([bytes[20], bytes[21]]) as usize;
    while field(at) != attribute::DATA {
        at += field(at + 4) as usize;
    }
    assert_eq!(field(at + 56), 500_000, "its initialized size");
    for written in [0u64, 1, 65_536, 70_000, 300_001] {
        disk.write_all_at(&written.to_le_bytes(), record + at as u64 + 56)
            .unwrap();
        let fs = open(&image);
        let (kept, zeros) = (&data[..written as usize], 500_000 - written as usize);
        let expected = [kept, &vec![0; zeros]].concat();
        assert!(read(&fs, ino, 0, u64::MAX).unwrap() == expected);
        let mut piece = vec![1; 9000];
        for offset in [0, 65_000, 69_000, 299_000, 491_000] {
            assert_eq!(fs.read(ino, offset, &mut piece).unwrap(), 9000);
            assert!(piece == expected[offset as usize..][..9000], "at {offset}");
        }
    }
}
