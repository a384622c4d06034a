//! What files can be: compressed, linked, streamed, scattered, named by all of
//! Unicode.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::compare::{compare, list, read};
use super::scratch::{Random, Scratch, open, run};
use crate::error::Error;
use crate::filesystem::Options;
use crate::filesystem::ntfs::Ntfs;
use crate::filesystem::{Extent, FileSystem, FileType};

pub(super) fn set(path: &Path, name: &str, value: &[u8]) {
    xattr::set(path, name, value).unwrap_or_else(|error| panic!("{name} of {path:?}: {error}"));
}

/// The number of a path.
pub(super) fn walk_to(fs: &Ntfs, path: &str) -> u64 {
    path.split('/').fold(fs.root(), |dir, name| {
        fs.lookup(dir, name.as_bytes()).unwrap()
    })
}

/// A folder whose new files are compressed.
pub(super) fn compressed_folder(path: &Path) {
    fs::create_dir(path).unwrap();
    set(path, "system.ntfs_attrib_be", &0x810u32.to_be_bytes());
}

#[test]
fn compressed_files() {
    let scratch = Scratch::new();
    for cluster in ["512", "2048", "4096"] {
        let image = scratch.mkntfs("image", 64 << 20, &["-c", cluster]);
        let mount = scratch.mount(&image, "compression");
        compressed_folder(&mount.path("c"));
        let mut random = Random(7);
        for size in [10, 3000, 4096, 65535, 65536, 65537, 1_000_000] {
            fs::write(mount.path(&format!("c/text{size}")), random.text(size)).unwrap();
            fs::write(mount.path(&format!("c/noise{size}")), random.bytes(size)).unwrap();
            fs::write(mount.path(&format!("c/zeros{size}")), vec![0; size]).unwrap();
        }
        // Written piece by piece, with holes, units of each kind in a row.
        let mixed = File::create(mount.path("c/mixed")).unwrap();
        for n in 0..40u64 {
            let piece = match random.below(3) {
                0 => random.text(50_000),
                1 => random.bytes(70_000),
                _ => continue,
            };
            mixed.write_all_at(&piece, n * 90_000).unwrap();
        }
        drop(mixed);
        let appended = mount.path("c/appended");
        for _ in 0..50 {
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&appended)
                .unwrap();
            file.write_all(&random.text(5000)).unwrap();
        }
        drop(mount);
        assert_eq!(compare(&scratch, &image), 24);
        let fs = open(&image);
        let mut extents = Vec::new();
        fs.extents(walk_to(&fs, "c/mixed"), 0, u64::MAX, &mut extents)
            .unwrap();
        let count = |kind: fn(&Extent) -> bool| extents.iter().filter(|e| kind(e)).count();
        assert!(count(|e| matches!(e, Extent::Decode { .. })) > 3);
        assert!(count(|e| matches!(e, Extent::Hole { .. })) > 3);
        assert!(count(|e| matches!(e, Extent::Volume { .. })) > 3);
    }
}

#[test]
fn streams_and_other_attributes() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 64 << 20, &["-c", "4096"]);
    let mount = scratch.mount(&image, "rw,streams_interface=windows");
    fs::write(mount.path("large"), b"x").unwrap();
    fs::write(mount.path("large:just"), vec![7; 65536]).unwrap();
    fs::write(mount.path("large:more"), vec![7; 65537]).unwrap();
    drop(mount);
    let mount = scratch.mount(&image, "compression");
    let mut random = Random(11);
    compressed_folder(&mount.path("c"));
    for (n, name) in ["f1", "f2", "d1", "c/f"].into_iter().enumerate() {
        let path = mount.path(name);
        if name.starts_with('d') {
            fs::create_dir(&path).unwrap();
        } else {
            fs::write(&path, random.text(5000)).unwrap();
        }
        set(
            &path,
            "user.Zone.Identifier",
            b"[ZoneTransfer]\r\nZoneId=3\r\n",
        );
        set(&path, "user.empty", b"");
        set(&path, "user.Größe 資料 \u{1f600}", &random.bytes(30_000));
        set(&path, "user.text", &random.text(60_000));
        set(&path, "security.NTACL", &random.bytes(300));
        set(&path, "trusted.some", b"thing");
        let mut object = random.bytes(16);
        if n % 2 == 0 {
            object.extend(random.bytes(48));
        }
        set(&path, "system.ntfs_object_id", &object);
    }
    fs::write(mount.path("f3"), b"").unwrap();
    // Extended attributes of OS/2: next, flags, lengths, name, value, padding.
    let mut ea = vec![];
    for (name, value, next) in [("FIRST", &b"value"[..], 20u32), ("SECOND", b"another", 24)] {
        let begin = ea.len();
        ea.extend(next.to_le_bytes());
        ea.extend([0, name.len() as u8]);
        ea.extend((value.len() as u16).to_le_bytes());
        ea.extend(name.bytes());
        ea.push(0);
        ea.extend(value);
        ea.resize(begin + (ea.len() - begin).next_multiple_of(4), 0);
    }
    set(&mount.path("f3"), "system.ntfs_ea", &ea);
    fs::write(mount.path("A rather long name.text"), b"").unwrap();
    set(
        &mount.path("A rather long name.text"),
        "system.ntfs_dos_name",
        b"ARATHE~1.TEX",
    );
    for (n, units) in [
        0u64,
        1,
        999,
        116_444_736_000_000_000,
        116_444_735_999_999_999,
        u64::MAX >> 2,
    ]
    .into_iter()
    .enumerate()
    {
        let path = mount.path(&format!("time{n}"));
        fs::write(&path, b"").unwrap();
        let times: Vec<u8> = (0..4u64)
            .flat_map(|n| (units + n * 1_234_567).to_le_bytes())
            .collect();
        set(&path, "system.ntfs_times", &times);
    }
    for (n, attributes) in [0x1u32, 0x2, 0x4 | 0x2, 0x20, 0x2000, 0x27]
        .into_iter()
        .enumerate()
    {
        let path = mount.path(&format!("attributes{n}"));
        fs::write(&path, b"not empty").unwrap();
        set(&path, "system.ntfs_attrib_be", &attributes.to_be_bytes());
    }
    // Many different security descriptors.
    let acl = xattr::get(mount.path("f3"), "system.ntfs_acl")
        .unwrap()
        .unwrap();
    for n in 0..300u32 {
        let path = mount.path(&format!("acl{n}"));
        fs::write(&path, b"").unwrap();
        // The access mask of the one entry.
        let mut acl = acl.clone();
        acl[64..68].copy_from_slice(&(0x1f_0000 | n).to_le_bytes());
        set(&path, "system.ntfs_acl", &acl);
    }
    drop(mount);
    compare(&scratch, &image);
    let fs = open(&image);
    let value = |path: &str, name: &str| fs.xattr(walk_to(&fs, path), name.as_bytes()).unwrap();
    assert_eq!(value("large", "user.just"), Some(vec![7; 65536]));
    let error = fs.xattr(walk_to(&fs, "large"), b"user.more").unwrap_err();
    assert_eq!(error.errno(), libc::E2BIG);
    assert_eq!(value("c/f", "trusted.some"), Some(b"thing".to_vec()));
    assert_eq!(value("d1", "system.ntfs_object_id").unwrap().len(), 64);
    assert_eq!(value("f3", "system.ntfs_ea"), Some(ea));
    let dos = value("A rather long name.text", "system.ntfs_dos_name");
    assert_eq!(dos, Some(b"ARATHE~1.TEX".to_vec()));
    let created = fs.attr(walk_to(&fs, "time4")).unwrap().btime.unwrap();
    assert_eq!((created.seconds, created.nanoseconds), (-1, 999_999_900));
    // Each its own, so that comparing them meant something.
    let acls: std::collections::BTreeSet<_> = (0..300)
        .map(|n| value(&format!("acl{n}"), "system.ntfs_acl").unwrap())
        .collect();
    assert_eq!(acls.len(), 300);
    assert_eq!(fs.attr(walk_to(&fs, "attributes0")).unwrap().mode, 0o444);
    // The DOS name is there for those who ask as Windows does, but hidden.
    let root = fs.root();
    let names = list(&fs, root, 1000).unwrap();
    assert!(!names.iter().any(|(name, ..)| name.starts_with(b"ARATHE")));
    assert!(matches!(
        fs.lookup(root, b"ARATHE~1.TEX"),
        Err(Error::NotFound { .. })
    ));
    let (_, spelled) = fs.lookup_ignoring_case(root, b"arathe~1.tex").unwrap();
    assert_eq!(spelled, b"A rather long name.text");
}

#[test]
fn names_of_all_of_unicode() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 64 << 20, &["-c", "4096"]);
    let mount = scratch.mount(&image, "rw");
    let folder = mount.path("names");
    fs::create_dir(&folder).unwrap();
    let mut names: Vec<Vec<u8>> = Vec::new();
    let all: Vec<char> = (1..0x1_0000u32)
        .chain((0x1_0000..0x11_0000).step_by(97))
        .filter_map(char::from_u32)
        .filter(|c| *c != '/')
        .collect();
    for part in all.chunks(60) {
        let name: String = part.iter().collect();
        names.push(name.into_bytes());
    }
    for name in [
        "foo", "Foo", "FOO", "fOo", "straße", "STRASSE", "ÿ", "Ÿ", "ı", "i", "I", "İ",
    ] {
        names.push(name.into());
    }
    names.push([b'n'; 255].to_vec());
    names.push("名".repeat(80).into_bytes());
    // A pair, which must not be found as two lone surrogates.
    names.push("\u{10000}".into());
    // Lone surrogates: high, low, the wrong way round.
    for lone in [
        &b"\xed\xa0\x80"[..],
        b"\xed\xbf\xbf",
        b"a\xed\xb0\x80\xed\xa0\x80b",
    ] {
        names.push(lone.to_vec());
    }
    for name in &names {
        let path = folder.join(std::ffi::OsStr::from_bytes(name));
        File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", name.escape_ascii()));
    }
    drop(mount);
    assert_eq!(compare(&scratch, &image), names.len() + 1);
    let fs = open(&image);
    let folder = walk_to(&fs, "names");
    for name in &names {
        assert!(fs.lookup(folder, name).is_ok(), "{}", name.escape_ascii());
    }
    // Not how a pair is spelled, not UTF-8, not there.
    for name in [
        &b"\xed\xa0\x80\xed\xb0\x80"[..],
        b"\xff",
        b"foO",
        b"",
        b"nn",
    ] {
        assert!(matches!(
            fs.lookup(folder, name),
            Err(Error::NotFound { .. })
        ));
    }
    let (_, spelled) = fs
        .lookup_ignoring_case(folder, "STRAßE".as_bytes())
        .unwrap();
    assert_eq!(spelled, "straße".as_bytes());
    let (_, spelled) = fs.lookup_ignoring_case(folder, b"foO").unwrap();
    assert_eq!(spelled, b"FOO", "the first in the order of names");
    // Of several that differ in case only, exactly the one that was asked for.
    for name in ["foo", "Foo", "FOO", "fOo"] {
        let (number, spelled) = fs.lookup_ignoring_case(folder, name.as_bytes()).unwrap();
        assert_eq!(
            (number, spelled),
            (fs.lookup(folder, name.as_bytes()).unwrap(), name.into())
        );
    }
    let source = super::scratch::ImageFile(File::open(&image).unwrap());
    let options = Options {
        ignore_case: true,
        ..Options::default()
    };
    let fs = Ntfs::open_with(std::sync::Arc::new(source), options).unwrap();
    assert!(fs.lookup(folder, b"foO").is_ok());
}

pub(super) fn junction(target: &str) -> Vec<u8> {
    reparse(0xa000_0003, &[], target)
}

pub(super) fn windows_symlink(target: &str, relative: u32) -> Vec<u8> {
    reparse(0xa000_000c, &relative.to_le_bytes(), target)
}

fn reparse(tag: u32, flags: &[u8], target: &str) -> Vec<u8> {
    let name: Vec<u8> = target.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let len = name.len() as u16;
    let mut data: Vec<u8> = [0, len, len + 2, 0]
        .into_iter()
        .flat_map(u16::to_le_bytes)
        .collect();
    data.extend(flags);
    data.extend(&name);
    data.extend([0; 4]);
    tagged(tag, &data)
}

fn tagged(tag: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = tag.to_le_bytes().to_vec();
    bytes.extend((data.len() as u16).to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(data);
    bytes
}

#[test]
fn links_stay_inside_the_volume() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 32 << 20, &["-c", "4096"]);
    let mount = scratch.mount(&image, "rw");
    fs::create_dir_all(mount.path("Users/Öffentlich/Documents")).unwrap();
    fs::create_dir_all(mount.path("a/b/c")).unwrap();
    fs::write(mount.path("Users/file.txt"), b"the file").unwrap();
    let cases: &[(&str, bool, Vec<u8>, &str)] = &[
        (
            "Documents and Settings",
            true,
            junction(r"\??\C:\Users"),
            "Users",
        ),
        (
            "a/junction",
            true,
            junction(r"\??\c:\uSERS\öffentlich"),
            "../Users/Öffentlich",
        ),
        (
            "a/b/c/deep",
            true,
            junction(r"\??\D:\Users\"),
            "../../../Users",
        ),
        (
            "a/sym",
            false,
            windows_symlink(r"\??\C:\Users\FILE.TXT", 0),
            "../Users/file.txt",
        ),
        (
            "a/rel",
            false,
            windows_symlink(r"..\users\file.txt", 1),
            "../Users/file.txt",
        ),
        (
            "a/b/lexical",
            false,
            windows_symlink(r"c\..\..\..\Users\file.txt", 1),
            "../../Users/file.txt",
        ),
        (
            "a/b/above",
            false,
            windows_symlink(r"..\..\..\..\..\Users\file.txt", 1),
            "../../Users/file.txt",
        ),
        (
            "a/rooted",
            false,
            windows_symlink(r"\Users\file.txt", 1),
            "../Users/file.txt",
        ),
        ("a/here", true, windows_symlink(r"b", 1), "b"),
        ("a/gone", false, windows_symlink(r"b\Gone\x", 1), "b/Gone/x"),
        ("elsewhere", true, junction(r"\??\E:\Data"), r"E:\Data"),
        ("drive", true, junction(r"\??\E:\"), r"E:\"),
        (
            "mount",
            true,
            junction(r"\??\Volume{01234567-89ab-cdef-0123-456789abcdef}\"),
            r"Volume{01234567-89ab-cdef-0123-456789abcdef}\",
        ),
        (
            "a/share",
            true,
            windows_symlink(r"\??\UNC\server\share\x", 0),
            r"UNC\server\share\x",
        ),
        (
            "a/odd",
            true,
            windows_symlink(r"\??\..", 0),
            "unsupported link",
        ),
    ];
    for (name, folder, data, _) in cases {
        let path = mount.path(name);
        if *folder {
            fs::create_dir(&path).unwrap();
        } else {
            fs::write(&path, b"").unwrap();
        }
        set(&path, "system.ntfs_reparse_data", data);
    }
    symlink("../x/y", mount.path("a/interix")).unwrap();
    fs::write(mount.path("a/b/c/twice"), b"").unwrap();
    fs::hard_link(mount.path("a/b/c/twice"), mount.path("a/twice")).unwrap();
    let data = windows_symlink(r"\??\C:\Users\file.txt", 0);
    set(&mount.path("a/twice"), "system.ntfs_reparse_data", &data);
    drop(mount);
    let of_two = open(&image);
    let of_two = of_two.read_link(walk_to(&of_two, "a/b/c/twice")).unwrap();
    assert_eq!(
        of_two, b"../Users/file.txt",
        "from the name that is nearest to the root"
    );
    let mount = scratch.mount(&image, "rw");
    fs::remove_file(mount.path("a/b/c/twice")).unwrap();
    drop(mount);
    // A link through a link counts from where it is; ntfs-3g resolves them alike.
    compare(&scratch, &image);
    let fs = open(&image);
    for (name, _, _, target) in cases {
        let ino = walk_to(&fs, name);
        assert_eq!(fs.attr(ino).unwrap().kind, FileType::Symlink, "{name}");
        let ours = fs.read_link(ino).unwrap();
        assert_eq!(String::from_utf8_lossy(&ours), *target, "{name}");
        let mut none = Vec::new();
        assert!(matches!(
            fs.extents(ino, 0, 10, &mut none),
            Err(Error::Invalid(_))
        ));
    }
    assert_eq!(fs.read_link(walk_to(&fs, "a/interix")).unwrap(), b"../x/y");
    assert!(matches!(fs.read_link(fs.root()), Err(Error::Invalid(_))));
}

#[test]
fn data_kept_elsewhere_is_an_error_that_says_so() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 32 << 20, &["-c", "4096"]);
    let mount = scratch.mount(&image, "efs_raw");
    for (name, tag, data) in [
        ("dedup", 0x8000_0013u32, vec![1; 40]),
        ("unknown", 0x8000_4321, vec![1; 8]),
        ("cloud", 0x9000_701a, vec![1; 8]),
        ("local", 0x9000_701a, vec![1; 8]),
        (
            "wim",
            0x8000_0017,
            [1u32, 1, 0, 0]
                .into_iter()
                .flat_map(u32::to_le_bytes)
                .collect(),
        ),
    ] {
        fs::write(mount.path(name), [7; 10_000]).unwrap();
        if name == "cloud" {
            set(
                &mount.path(name),
                "system.ntfs_attrib_be",
                &0x1020u32.to_be_bytes(),
            );
        }
        set(
            &mount.path(name),
            "system.ntfs_reparse_data",
            &tagged(tag, &data),
        );
    }
    fs::create_dir(mount.path("onedrive")).unwrap();
    fs::write(mount.path("onedrive/inside"), b"inside").unwrap();
    // Ends with the number of bytes that pad it to whole sectors.
    let secret = [&[7; 10_240][..], &240u16.to_le_bytes()].concat();
    fs::write(mount.path("secret"), secret).unwrap();
    let mut efs = 84u32.to_le_bytes().to_vec();
    efs.resize(84, 0);
    set(&mount.path("secret"), "user.ntfs.efsinfo", &efs);
    set(
        &mount.path("onedrive"),
        "system.ntfs_reparse_data",
        &tagged(0x9000_001a, &[1; 8]),
    );
    drop(mount);
    let fs = open(&image);
    for (name, says) in [
        ("dedup", "deduplicated"),
        ("unknown", "0x80004321"),
        ("cloud", "cloud"),
        ("wim", "WIM"),
        ("secret", "encrypted"),
    ] {
        let ino = walk_to(&fs, name);
        let attr = fs.attr(ino).unwrap();
        assert_eq!(attr.kind, FileType::Regular, "{name}");
        assert_eq!(attr.size, 10_000, "{name}");
        for error in [
            fs.extents(ino, 0, 10, &mut Vec::new()).unwrap_err(),
            fs.read(ino, 0, &mut [0; 10]).unwrap_err(),
        ] {
            assert!(
                matches!(error, Error::Unsupported { .. }),
                "{name}: {error}"
            );
            assert!(error.to_string().contains(says), "{name}: {error}");
        }
    }
    let efsinfo = fs
        .xattr(walk_to(&fs, "secret"), b"system.ntfs_efsinfo")
        .unwrap();
    assert_eq!(efsinfo, Some(efs));
    assert_eq!(
        read(&fs, walk_to(&fs, "local"), 0, 99_999).unwrap(),
        [7; 10_000]
    );
    assert_eq!(
        read(&fs, walk_to(&fs, "onedrive/inside"), 0, 100).unwrap(),
        b"inside"
    );
}

#[test]
fn special_files() {
    let scratch = Scratch::new();
    for how in ["interix", "wsl"] {
        let image = scratch.mkntfs("image", 32 << 20, &["-c", "4096"]);
        let mount = scratch.mount(&image, &format!("special_files={how}"));
        let at = |name: &str| mount.path(name).to_str().unwrap().to_owned();
        run("mkfifo", &[&at("fifo")]);
        run("mknod", &[&at("char"), "c", "4", "300"]);
        run("mknod", &[&at("block"), "b", "259", "65537"]);
        UnixListener::bind(at("socket")).unwrap();
        symlink("../some/where", mount.path("link")).unwrap();
        fs::write(mount.path("system"), [5; 100]).unwrap();
        set(
            &mount.path("system"),
            "system.ntfs_attrib_be",
            &4u32.to_be_bytes(),
        );
        drop(mount);
        assert_eq!(compare(&scratch, &image), 6);
        let fs = open(&image);
        for (name, kind) in [
            ("fifo", FileType::Fifo),
            ("char", FileType::CharDevice),
            ("block", FileType::BlockDevice),
            ("socket", FileType::Socket),
            ("link", FileType::Symlink),
            ("system", FileType::Regular),
        ] {
            assert_eq!(
                fs.attr(walk_to(&fs, name)).unwrap().kind,
                kind,
                "{name} by {how}"
            );
        }
        assert_eq!(
            fs.read_link(walk_to(&fs, "link")).unwrap(),
            b"../some/where"
        );
    }
}

#[test]
fn special_files_of_the_nfs_server() {
    let scratch = Scratch::new();
    let image = scratch.mkntfs("image", 16 << 20, &["-c", "4096"]);
    let mount = scratch.mount(&image, "rw");
    let target: Vec<u8> = "../söme/where"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let link = [&b"LNK\x01\0\0\0\0"[..], &target].concat();
    for (name, data) in [
        ("link", &link[..]),
        ("char", b"CHR\0\0\0\0\0\x04\0\0\0\x40\0\0\0"),
        ("fifo", b"FIFO\0\0\0\0"),
        ("odd", b"ODD\0\0\0\0\0"),
    ] {
        fs::write(mount.path(name), b"").unwrap();
        set(
            &mount.path(name),
            "system.ntfs_reparse_data",
            &tagged(0x8000_0014, data),
        );
    }
    drop(mount);
    let fs = open(&image);
    assert_eq!(
        fs.read_link(walk_to(&fs, "link")).unwrap(),
        "../söme/where".as_bytes()
    );
    let char = fs.attr(walk_to(&fs, "char")).unwrap();
    assert_eq!(char.kind, FileType::CharDevice);
    assert_eq!(char.rdev, nix::sys::stat::makedev(4, 64));
    assert_eq!(fs.attr(walk_to(&fs, "fifo")).unwrap().kind, FileType::Fifo);
    // Not known, but there is nothing in it that could be missed.
    let odd = walk_to(&fs, "odd");
    assert_eq!(fs.attr(odd).unwrap().kind, FileType::Regular);
    assert!(read(&fs, odd, 0, 10).unwrap().is_empty());
}
