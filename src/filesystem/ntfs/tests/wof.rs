//! Files compacted as Windows does it. wimlib makes such files on Windows only;
//! but what it puts into a WIM archive, a table of offsets and chunks, is just
//! what stands in the stream `WofCompressedData`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::super::attribute;
use super::super::wof::STREAM;
use super::compare::read;
use super::content::{set, walk_to};
use super::mixed::{digest, hexed, second_opinion};
use super::scratch::{Random, Scratch, open, run};
use crate::error::Error;
use crate::filesystem::{Extent, FileSystem, FileType};

/// The files that go in: of all sizes near those of chunks, and programs.
fn sources(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut random = Random(21);
    let mut files = Vec::new();
    let mut add = |name: String, data: Vec<u8>| files.push((name, data));
    for size in [
        1, 600, 4095, 4096, 4097, 8193, 16384, 32767, 32768, 32769, 100_000, 700_000,
    ] {
        add(format!("text{size}"), random.text(size));
        // A size of its own, by which the archive is searched.
        add(format!("zeros{size}"), vec![0; size + 3]);
    }
    add("noise".into(), random.bytes(200_000));
    let half = [
        random.bytes(100_000),
        random.text(100_000),
        vec![b'x'; 100_000],
    ]
    .concat();
    add("half".into(), half);
    for (n, program) in ["/usr/bin/ntfs-3g", "/bin/bash", "/usr/sbin/mkntfs"]
        .into_iter()
        .enumerate()
    {
        let mut data = fs::read(fs::canonicalize(program).unwrap()).unwrap();
        data.truncate(1_500_000 + n);
        add(program.replace('/', "_"), data);
    }
    fs::create_dir(folder).unwrap();
    for (name, data) in &files {
        fs::write(folder.join(name), data).unwrap();
    }
    files
}

/// What the archive holds for files of these sizes: compressed or not, bytes.
fn resources(wim: &Path) -> HashMap<u64, (bool, Vec<u8>)> {
    let wim = fs::read(wim).unwrap();
    let number = |at: usize| u64::from_le_bytes(wim[at..at + 8].try_into().unwrap());
    // A resource: length in 7 bytes, flags, offset, original length.
    let resource = |at: usize| {
        let (len, flags) = (number(at) & !(0xff << 56), wim[at + 7]);
        let offset = number(at + 8) as usize;
        (
            number(at + 16),
            (flags & 4 != 0, wim[offset..offset + len as usize].to_vec()),
        )
    };
    let (_, (_, table)) = resource(48);
    let begin = number(56) as usize;
    (0..table.len() / 50)
        .map(|n| resource(begin + n * 50))
        .collect()
}

/// The number of a method in the reparse point, its name to wimlib, the size of
/// its chunks.
const METHODS: [(u32, &str, u32); 4] = [
    (0, "XPRESS", 4096),
    (2, "XPRESS", 8192),
    (3, "XPRESS", 16384),
    (1, "LZX", 32768),
];

/// An image with the files of `folder`, compacted; answers how many were.
fn compact(
    scratch: &Scratch,
    folder: &Path,
    files: &[(String, Vec<u8>)],
    method: usize,
) -> (PathBuf, usize) {
    let (number, name, chunk) = METHODS[method];
    let wim = scratch.path(&format!("{number}.wim"));
    let (compress, chunk) = (
        format!("--compress={name}"),
        format!("--chunk-size={chunk}"),
    );
    let (from, to) = (folder.to_str().unwrap(), wim.to_str().unwrap());
    run("wimlib-imagex", &["capture", from, to, &compress, &chunk]);
    let resources = resources(&wim);
    let image = scratch.mkntfs("image", 64 << 20, &["-c", "4096"]);
    let mount = scratch.mount(&image, "streams_interface=windows");
    let mut compacted = 0;
    for (name, data) in files {
        let (is_compressed, packed) = &resources[&(data.len() as u64)];
        if !is_compressed {
            fs::write(mount.path(name), data).unwrap();
            continue;
        }
        File::create(mount.path(name))
            .unwrap()
            .set_len(data.len() as u64)
            .unwrap();
        fs::write(mount.path(&format!("{name}:WofCompressedData")), packed).unwrap();
        let mut point = vec![0x17, 0, 0, 0x80, 16, 0, 0, 0];
        point.extend([1, 2, 1, number].into_iter().flat_map(u32::to_le_bytes));
        set(&mount.path(name), "system.ntfs_reparse_data", &point);
        compacted += 1;
    }
    drop(mount);
    (image, compacted)
}

/// Method, size of chunks, and chunks with their decoded length.
type Packed = (&'static str, u32, Vec<(Vec<u8>, usize)>);

/// The compressed chunks that the archives hold, for timings.
pub(super) fn packed(scratch: &Scratch) -> Vec<Packed> {
    let folder = scratch.path("sources");
    let files = sources(&folder);
    let mut all = Vec::new();
    for (method, (number, name, chunk)) in METHODS.into_iter().enumerate() {
        compact(scratch, &folder, &files, method);
        let mut chunks = Vec::new();
        for (size, (is_compressed, bytes)) in resources(&scratch.path(&format!("{number}.wim"))) {
            let count = (size as usize).div_ceil(chunk as usize);
            let table = (count - 1) * 4;
            let place = |n: usize| match n {
                0 => table,
                n if n == count => bytes.len(),
                n => {
                    let end = bytes[(n - 1) * 4..n * 4].try_into().unwrap();
                    table + u32::from_le_bytes(end) as usize
                }
            };
            for n in 0..if is_compressed { count } else { 0 } {
                let len = (size as usize - n * chunk as usize).min(chunk as usize);
                let packed = &bytes[place(n)..place(n + 1)];
                if packed.len() < len {
                    chunks.push((packed.to_vec(), len));
                }
            }
        }
        all.push((name, chunk, chunks));
    }
    all
}

#[test]
fn files_compacted_by_every_method() {
    let scratch = Scratch::new();
    let folder = scratch.path("sources");
    let files = sources(&folder);
    for method in 0..METHODS.len() {
        let (image, expected) = compact(&scratch, &folder, &files, method);
        assert!(expected >= 20, "only {expected} are compacted");
        let fs = open(&image);
        let mut compacted = 0;
        let mut random = Random(22);
        for (name, data) in &files {
            let ino = walk_to(&fs, name);
            let attr = fs.attr(ino).unwrap();
            assert_eq!(attr.kind, FileType::Regular, "{name}");
            assert_eq!(attr.size, data.len() as u64, "{name}");
            assert!(fs.xattr_names(ino).unwrap().is_empty(), "{name}");
            let mut extents = Vec::new();
            fs.extents(ino, 0, u64::MAX, &mut extents).unwrap();
            if let [Extent::Decode { len }] = extents[..] {
                assert_eq!(len, attr.size);
                compacted += 1;
                assert!(
                    attr.blocks * 512 < attr.size + 8192,
                    "{name}: {} blocks",
                    attr.blocks
                );
                let mut whole = vec![0; data.len() + 10];
                let len = fs.read(ino, 0, &mut whole).unwrap();
                assert!(whole[..len] == *data, "{name} by {method}");
            }
            for _ in 0..20 {
                let at = random.below(attr.size) as usize;
                let mut piece = vec![0; random.below(70_000) as usize];
                let len = fs.read(ino, at as u64, &mut piece).unwrap();
                let end = data.len().min(at + piece.len());
                assert!(
                    piece[..len] == data[at..end],
                    "{name} from {at} by {method}"
                );
            }
        }
        assert_eq!(compacted, expected);
    }
}

#[test]
fn damaged_chunks_are_errors() {
    let scratch = Scratch::new();
    let folder = scratch.path("sources");
    fs::create_dir(&folder).unwrap();
    let data = Random(1).text(400_000);
    fs::write(folder.join("file"), &data).unwrap();
    let files = [("file".to_owned(), data)];
    for method in [0, 3] {
        let (image, _) = compact(&scratch, &folder, &files, method);
        let fs = open(&image);
        let ino = walk_to(&fs, "file");
        let file = fs.mft.file(ino).unwrap();
        let stream = fs
            .mft
            .stream(&file, attribute::DATA, STREAM)
            .unwrap()
            .unwrap();
        let mut extents = Vec::new();
        stream
            .extents(&fs.mft.volume, 0, u64::MAX, &mut extents)
            .unwrap();
        let [Extent::Volume { offset, len }] = extents[..] else {
            panic!("{extents:?}")
        };
        let disk = fs::OpenOptions::new().write(true).open(&image).unwrap();
        let mut random = Random(77);
        let (mut errors, mut buf) = (0, vec![0; 400_000]);
        for _ in 0..60 {
            let at = offset + random.below(len - 8);
            disk.write_all_at(&random.bytes(8), at).unwrap();
            match fs.read(ino, 0, &mut buf) {
                Err(Error::Corrupt { .. }) => errors += 1,
                Err(error) => panic!("{error}"),
                Ok(len) => assert_eq!(len, 400_000),
            }
        }
        assert!(errors > 30, "{method}: {errors}");
    }
}

/// libfsntfs gives an error for a few that compress to next to nothing (zeros,
/// and streams that stand in the MFT record); what went in says that those can be
/// read. What it does decode must be the same.
#[test]
fn libfsntfs_decodes_compacted_files_alike() {
    let scratch = Scratch::new();
    let folder = scratch.path("sources");
    let files = sources(&folder);
    for method in 0..METHODS.len() {
        let (image, _) = compact(&scratch, &folder, &files, method);
        let (theirs, _) = second_opinion(&image);
        let fs = open(&image);
        let mut same = 0;
        for (name, data) in &files {
            let ours = read(&fs, walk_to(&fs, name), 0, u64::MAX).unwrap();
            assert!(ours == *data, "{name}");
            let [ino, size, .., content, _, _] = theirs[&hexed(name.as_bytes())].as_slice() else {
                panic!("{name}");
            };
            assert_eq!(*ino, walk_to(&fs, name).to_string(), "{name}");
            assert_eq!(*size, data.len().to_string(), "{name}");
            if content != "error" {
                assert_eq!(*content, digest(&ours), "{name} by {method}");
                same += 1;
            }
        }
        assert!(same > 20, "only {same} were decoded");
    }
}
