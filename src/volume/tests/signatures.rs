//! A file system on the whole disk, as every mkfs at hand writes it.

use super::*;

/// Makes an image by a program that takes the path last; compares.
fn check(kind: &str, size: u64, program: &str, args: &[&str]) {
    let image = Image::new(size);
    let path = image.path();
    let mut all: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
    all.push(path.as_os_str());
    run(program, all);
    one(&image, kind);
}

fn one(image: &Image, kind: &str) -> Volume {
    let mut volumes = image.detect();
    assert_eq!(volumes.len(), 1, "{volumes:?}");
    let volume = volumes.remove(0);
    assert_eq!(volume.name, "disk");
    assert_eq!(volume.mapping, Mapping::linear(0, 0, image.disk().size()));
    assert_eq!(same_as_blkid(image, &volume), kind);
    volume
}

#[test]
fn ext() {
    let mke2fs = |kind: &str, args: &[&str]| {
        check(
            kind,
            40 * MIB,
            "mke2fs",
            &[&["-q", "-F", "-t", kind], args].concat(),
        );
    };
    mke2fs("ext2", &["-L", "two"]);
    mke2fs("ext3", &["-L", "sixteen letters!"]);
    mke2fs("ext4", &["-L", "Größe  "]);
    mke2fs("ext4", &["-b", "1024", "-O", "^has_journal"]);
    mke2fs(
        "ext4",
        &["-b", "4096", "-O", "64bit,metadata_csum", "-U", "clear"],
    );
    check(
        "jbd",
        40 * MIB,
        "mke2fs",
        &["-q", "-F", "-O", "journal_dev", "-L", "j"],
    );
}

#[test]
fn xfs_btrfs_f2fs_jfs() {
    check("xfs", 320 * MIB, "mkfs.xfs", &["-q", "-L", "data disk"]);
    check(
        "xfs",
        320 * MIB,
        "mkfs.xfs",
        &["-q", "-b", "size=1024", "-m", "crc=0"],
    );
    check(
        "btrfs",
        200 * MIB,
        "mkfs.btrfs",
        &["-q", "-L", "a longer label than others, ü"],
    );
    check("f2fs", 100 * MIB, "mkfs.f2fs", &["-q", "-l", "flash ü"]);
    check("jfs", 40 * MIB, "mkfs.jfs", &["-q", "-L", "jfs"]);
}

#[test]
fn ntfs() {
    check(
        "ntfs",
        20 * MIB,
        "mkfs.ntfs",
        &["-q", "-F", "-Q", "-L", "Größe 數據"],
    );
    check("ntfs", 20 * MIB, "mkfs.ntfs", &["-q", "-F", "-Q"]);
    check(
        "ntfs",
        80 * MIB,
        "mkfs.ntfs",
        &["-q", "-F", "-Q", "-c", "65536", "-L", "big"],
    );
    check(
        "ntfs",
        80 * MIB,
        "mkfs.ntfs",
        &["-q", "-F", "-Q", "-s", "4096", "-L", "4Kn"],
    );
    check(
        "ntfs",
        400 * MIB,
        "mkfs.ntfs",
        &["-q", "-F", "-Q", "-c", "1048576", "-L", "1M"],
    );
}

#[test]
fn fat_and_exfat() {
    check("vfat", 2 * MIB, "mkfs.vfat", &["-F", "12", "-n", "TWELVE"]);
    check(
        "vfat",
        20 * MIB,
        "mkfs.vfat",
        &["-F", "16", "-n", "SIXTEEN 16"],
    );
    check("vfat", 20 * MIB, "mkfs.vfat", &["-F", "16"]);
    check(
        "vfat",
        80 * MIB,
        "mkfs.vfat",
        &["-F", "32", "-n", "THIRTYTWO"],
    );
    check(
        "vfat",
        80 * MIB,
        "mkfs.vfat",
        &["-F", "32", "-i", "00000012"],
    );
    check(
        "vfat",
        300 * MIB,
        "mkfs.vfat",
        &["-F", "32", "-S", "4096", "-n", "4KN"],
    );
    check("exfat", 20 * MIB, "mkfs.exfat", &["-L", "Größe"]);
    check("exfat", 20 * MIB, "mkfs.exfat", &[]);
}

#[test]
fn what_holds_no_files_or_is_locked() {
    check("swap", 20 * MIB, "mkswap", &["-q", "-L", "swap"]);
    check("swap", 20 * MIB, "mkswap", &["-q", "-p", "65536"]);
    for version in ["luks1", "luks2"] {
        let image = Image::new(40 * MIB);
        let path = image.path().display().to_string();
        let mut args = vec!["luksFormat", "-q", "--type", version, "--pbkdf", "pbkdf2"];
        args.extend([
            "--pbkdf-force-iterations",
            "1000",
            "--key-file",
            "/etc/hostname",
        ]);
        if version == "luks2" {
            args.extend(["--label", "secret ü"]);
        }
        args.push(&path);
        run("cryptsetup", args);
        one(&image, "crypto_LUKS");
        // LUKS2 is found by its second header too.
        if version == "luks2" {
            image.write(0, &[0; 4096]);
            one(&image, "crypto_LUKS");
        }
    }
}

#[test]
fn read_only_ones() {
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("file"), vec![7; 5000]).unwrap();
    let folder = files.path().display().to_string();
    for joliet in [&["-J", "-r"][..], &["-r"]] {
        for label in ["Backup_CD", "A_LABEL_LONGER_THAN_SIXTEEN"] {
            let image = Image::new(0);
            let path = image.path().display().to_string();
            let args = ["-quiet", "-V", label, "-o", &path];
            run(
                "genisoimage",
                [joliet, &args[..], &[folder.as_str()]].concat(),
            );
            one(&image, "iso9660");
        }
    }
    let image = Image::new(0);
    let path = image.path().display().to_string();
    run(
        "mksquashfs",
        [
            folder.as_str(),
            &path,
            "-noappend",
            "-quiet",
            "-no-progress",
        ],
    );
    one(&image, "squashfs");
    // Of UDF the type is told, not the label.
    let image = Image::new(20 * MIB);
    run(
        "mkudffs",
        ["-b".as_ref(), "2048".as_ref(), image.path().as_os_str()],
    );
    assert_eq!(blkid(&image.path(), "TYPE", 0, 20 * MIB), "udf");
    assert_eq!(image.detect()[0].content, Content::FileSystem("udf".into()));
}

/// Formats that no program here writes: written by hand, judged by `blkid`.
#[test]
fn made_by_hand() {
    let size = 20 * MIB;
    let make = |pieces: &[(u64, &[u8])]| {
        let image = Image::new(size);
        pieces
            .iter()
            .for_each(|(at, bytes)| image.write(*at, bytes));
        image
    };
    // BitLocker: boot sector, and the metadata block that it points to.
    let fve = (0x10000, &b"-FVE-FS-\0\0\x02\0"[..]);
    let place = 0x10000_u64.to_le_bytes();
    let seven = make(&[
        (0, b"\xeb\x58\x90-FVE-FS-"),
        (176, &place),
        fve,
        (510, &[0x55, 0xaa]),
    ]);
    one(&seven, "BitLocker");
    let guid = b"\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01";
    let to_go = make(&[
        (0, b"\xeb\x58\x90MSWIN4.1"),
        (424, guid),
        (440, &place),
        fve,
    ]);
    one(&to_go, "BitLocker");
    one(&make(&[(0, b"\0\0\0ReFS\0\0\0\0")]), "ReFS");

    // RAID superblocks.
    let mut raid = vec![0; 1024];
    raid[..8].copy_from_slice(b"\xfc\x4e\x2b\xa9\x01\0\0\0");
    raid[16..32].copy_from_slice(b"0123456789abcdef");
    raid[32..40].copy_from_slice(b"host:md0");
    for (at, minor) in [(size - 8192, "1.0"), (0, "1.1"), (4096, "1.2")] {
        raid[144..152].copy_from_slice(&(at / 512).to_le_bytes());
        // Checksum: the sum of all words, folded.
        raid[216..220].fill(0);
        let words = raid[..256].chunks(4).map(|w| u64::from(le(w)));
        let sum: u64 = words.sum();
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        raid[216..220].copy_from_slice(&(sum as u32).to_le_bytes());
        let volume = one(&make(&[(at, &raid)]), "linux_raid_member");
        assert_eq!(volume.label, b"host:md0", "{minor}");
    }
    let mut old = vec![0; 4096];
    old[..12].copy_from_slice(b"\xfc\x4e\x2b\xa9\0\0\0\0\x5a\0\0\0");
    old[20..24].copy_from_slice(b"abcd");
    old[52..64].copy_from_slice(b"efghijklmnop");
    let mut other_end = old.clone();
    other_end.chunks_mut(4).for_each(<[u8]>::reverse);
    for bytes in [old, other_end] {
        one(&make(&[(size - 0x10000, &bytes)]), "linux_raid_member");
    }

    let id = (65536 + 84, &b"0123456789abcdeflabel"[..]);
    let sizes = [(65536 + 12, &[18, 0][..]), (65536 + 44, &[0, 16])];
    one(
        &make(&[sizes[0], sizes[1], (65536 + 52, b"ReIsEr2Fs"), id]),
        "reiserfs",
    );
    let mut nx = vec![0; 4096];
    nx[32..40].copy_from_slice(b"NXSB\0\x10\0\0");
    nx[24] = 1; // type: container superblock
    nx[72..88].copy_from_slice(b"0123456789abcdef");
    one(&make(&[(0, &nx)]), "apfs");
    // HFS+: blkid wants to see more of it than is here.
    let mut hfs = vec![0; 512];
    hfs[..4].copy_from_slice(b"H+\0\x04");
    hfs[40..48].copy_from_slice(b"\0\0\x10\0\0\0\x14\0");
    let volume = make(&[(1024, &hfs)]).detect().remove(0);
    assert_eq!(volume.content, Content::FileSystem("hfsplus".into()));

    // ZFS: the list of names and values, and the blocks that blkid counts.
    let text = |s: &str| {
        let mut raw = (s.len() as u32).to_be_bytes().to_vec();
        raw.extend_from_slice(s.as_bytes());
        raw.resize(raw.len().next_multiple_of(4), 0);
        raw
    };
    let pair = |name: &str, kind: u32, value: Vec<u8>| {
        let mut raw = text(name);
        raw.extend_from_slice(&[kind.to_be_bytes(), 1_u32.to_be_bytes()].concat());
        raw.extend_from_slice(&value);
        let len = (raw.len() as u32 + 8).to_be_bytes();
        [&len[..], &len, &raw].concat()
    };
    let mut list = b"\x01\x01\0\0\0\0\0\0\0\0\0\x01".to_vec();
    list.extend(pair("version", 8, 5000_u64.to_be_bytes().to_vec()));
    list.extend(pair("name", 9, text("tank")));
    list.extend(pair("state", 8, vec![0; 8]));
    list.extend(pair(
        "pool_guid",
        8,
        12_345_678_901_234_567_890_u64.to_be_bytes().to_vec(),
    ));
    list.extend(pair("guid", 8, 77_u64.to_be_bytes().to_vec()));
    list.resize(list.len() + 8, 0);
    let magic = 0x00ba_b10c_u64.to_le_bytes();
    let blocks: Vec<_> = (0..8).map(|n| (0x20000 + n * 1024, &magic[..])).collect();
    // blkid looks for no pool on less than 64 MiB.
    let size = 80 * MIB;
    let all: Vec<_> = [0, 0x40000, size - 0x80000, size - 0x40000]
        .into_iter()
        .flat_map(|label| {
            let list = (label + 0x4000, list.as_slice());
            blocks
                .iter()
                .map(move |(at, b)| (label + at, *b))
                .chain([list])
        })
        .collect();
    let pool = Image::new(size);
    all.iter().for_each(|(at, bytes)| pool.write(*at, bytes));
    one(&pool, "zfs_member");
    one(&make(&[(32, b"ORCLDISKDATA01")]), "oracleasm");
}

fn le(word: &[u8]) -> u32 {
    u32::from_le_bytes(word.try_into().unwrap())
}

/// RAID with its superblock at the end lets the file system show, unless the
/// file system takes that place itself.
#[test]
fn raid_over_a_file_system() {
    let image = Image::new(20 * MIB);
    run(
        "mke2fs",
        [
            "-q".as_ref(),
            "-F".as_ref(),
            image.path().as_os_str(),
            "19m".as_ref(),
        ],
    );
    one(&image, "ext2");
    let mut raid = vec![0; 4096];
    raid[..12].copy_from_slice(b"\xfc\x4e\x2b\xa9\0\0\0\0\x5a\0\0\0");
    image.write(20 * MIB - 0x10000, &raid);
    let volume = image.detect().remove(0);
    assert!(matches!(volume.content, Content::Unreadable(r) if r.contains("RAID")));
}

#[test]
fn nothing_known() {
    for size in [0, 1, 511, 512, 1024, 4096, 70_000, MIB] {
        let image = Image::new(size);
        let volumes = image.detect();
        assert_eq!(
            (volumes.len(), volumes[0].name.as_str()),
            (1, "disk"),
            "{size}"
        );
        let Content::Unreadable(reason) = &volumes[0].content else {
            panic!("{volumes:?}")
        };
        assert!(
            reason.starts_with("no known file system was found; "),
            "{reason}"
        );
    }
}

/// The probes of a disk with one file system that fills it cost one read.
#[test]
fn one_read_is_enough() {
    struct Counting(Arc<dyn BlockRead>, parking_lot::Mutex<Vec<(u64, usize)>>);
    impl BlockRead for Counting {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
            self.1.lock().push((offset, buf.len()));
            self.0.read_at(offset, buf)
        }
    }
    let image = Image::new(320 * MIB);
    for (program, args) in [("mkfs.xfs", &["-q", "-f"][..]), ("mke2fs", &["-q", "-F"])] {
        let path = image.path().display().to_string();
        run(program, [args, &[path.as_str()]].concat());
        let counting = Arc::new(Counting(image.disk(), Default::default()));
        let disk: Arc<dyn BlockRead> = counting.clone();
        assert!(matches!(
            detect(&disk).unwrap()[0].content,
            Content::FileSystem(_)
        ));
        assert_eq!(*counting.1.lock(), [(0, 68 << 10)]);
    }
}
