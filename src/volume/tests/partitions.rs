//! Partition tables, as sfdisk, sgdisk and parted write them.

use super::*;

/// Number, first byte and length of the partitions that libblkid finds.
fn partx(image: &Image, sector: u32) -> Vec<(u32, u64, u64)> {
    let device = Loop::new(image, sector);
    let text = run("partx", ["-rgb", "-o", "NR,START,SECTORS", &device.0]);
    let mut found = Vec::new();
    for line in text.lines() {
        let mut numbers = line.split(' ').map(|n| n.parse::<u64>().unwrap());
        let mut next = || numbers.next().unwrap();
        // Sectors of 512 bytes, whatever the device's are.
        found.push((next() as u32, next() * 512, next() * 512));
    }
    found.sort_by_key(|(number, start, _)| (*start, *number));
    found
}

/// The same from [`detect`].
fn ours(volumes: &[Volume]) -> Vec<(u32, u64, u64)> {
    let parse = |v: &Volume| {
        let number = v.name.strip_prefix("part").unwrap().parse().unwrap();
        (number, v.mapping.first().unwrap().offset, v.mapping.size())
    };
    volumes.iter().map(parse).collect()
}

/// The same from sfdisk.
fn sfdisk(image: &Image, sector: u32) -> Vec<(u32, u64, u64)> {
    let device = Loop::new(image, sector);
    let json: serde_json::Value =
        serde_json::from_str(&run("sfdisk", ["--json", device.0.as_str()])).unwrap();
    let table = &json["partitiontable"];
    let unit = table["sectorsize"].as_u64().unwrap_or(512);
    assert_eq!(unit, u64::from(sector));
    let parse = |p: &serde_json::Value| {
        let number = p["node"]
            .as_str()
            .unwrap()
            .rsplit('p')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        (
            number,
            p["start"].as_u64().unwrap() * unit,
            p["size"].as_u64().unwrap() * unit,
        )
    };
    let mut found: Vec<_> = table["partitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(parse)
        .collect();
    found.sort_by_key(|(number, start, _)| (*start, *number));
    found
}

fn write_table(image: &Image, sector: u32, script: &str) {
    let device = Loop::new(image, sector);
    run_with(
        "sfdisk",
        ["-q", "--no-reread", "--no-tell-kernel", &device.0],
        script,
    );
}

fn mkfs(image: &Image, volume: &Volume, label: &str) {
    let size = volume.mapping.size();
    image.fill(volume.mapping.first().unwrap().offset, size, |path| {
        let args = ["-q", "-F", "-t", "ext4", "-L", label];
        run(
            "mke2fs",
            args.iter().map(OsStr::new).chain([path.as_os_str()]),
        );
    });
}

const GPT: &str = "label: gpt\nfirst-lba: 40\n\
    start=40, size=200, type=21686148-6449-6E6F-744E-656564454649\n\
    size=4M, type=U, name=\"EFI system Größe\"\n\
    size=1M, type=E3C9E316-0B5C-4DB8-817D-F92DF00215AE\n\
    9: size=20M, name=root\n\
    5: size=8M, type=S\n";

fn check_gpt(image: &Image) {
    let volumes = image.detect();
    let contents: Vec<_> = volumes
        .iter()
        .map(|v| (v.name.as_str(), v.content.clone()))
        .collect();
    let no_files = |what: &str| Content::NoFiles(what.into());
    assert_eq!(
        contents,
        [
            ("part1", no_files("BIOS boot")),
            ("part2", Content::FileSystem("vfat".into())),
            ("part3", no_files("Microsoft reserved")),
            ("part9", Content::FileSystem("ext4".into())),
            ("part5", no_files("swap")),
        ]
    );
    assert_eq!(volumes[1].partition_label, "EFI system Größe");
    assert_eq!(volumes[3].label, b"the root");
    same_as_blkid(image, &volumes[1]);
    same_as_blkid(image, &volumes[3]);
}

fn gpt_image(sector: u32) -> Image {
    let image = Image::new(100 * MIB);
    write_table(&image, sector, GPT);
    let volumes = image.detect();
    mkfs(&image, &volumes[3], "the root");
    image.fill(
        volumes[1].mapping.first().unwrap().offset,
        volumes[1].mapping.size(),
        |path| {
            run(
                "mkfs.vfat",
                [OsStr::new("-n"), OsStr::new("EFI"), path.as_os_str()],
            );
        },
    );
    image
}

#[test]
fn gpt() {
    for sector in [512, 4096] {
        let image = gpt_image(sector);
        assert_eq!(
            ours(&image.detect()),
            partx(&image, sector),
            "sectors of {sector}"
        );
        assert_eq!(ours(&image.detect()), sfdisk(&image, sector));
        check_gpt(&image);
    }
}

#[test]
fn gpt_with_a_damaged_copy() {
    for sector in [512, 4096] {
        // The header, its signature, an entry.
        for at in [
            u64::from(sector) + 40,
            u64::from(sector),
            u64::from(sector) * 2 + 100,
        ] {
            let image = gpt_image(sector);
            let before = ours(&image.detect());
            let byte = image.bytes(at, 1)[0];
            image.write(at, &[byte ^ 1]);
            assert_eq!(ours(&image.detect()), before);
            check_gpt(&image);
            assert_eq!(ours(&image.detect()), sfdisk(&image, sector));
            // Now the backup too: an honest answer.
            image.write(100 * MIB - u64::from(sector) + 30, &[0xff; 4]);
            let volumes = image.detect();
            assert_eq!(volumes.len(), 1);
            assert!(matches!(&volumes[0].content, Content::Unreadable(r) if r.contains("GPT")));
        }
    }
}

#[test]
fn gpt_by_sgdisk_and_parted() {
    let image = Image::new(64 * MIB);
    let path = image.path().display().to_string();
    run(
        "sgdisk",
        [
            "-n",
            "128:0:+4M",
            "-n",
            "2:20M:+8M",
            "-c",
            "2:second",
            "-S",
            "256",
            &path,
        ],
    );
    assert_eq!(ours(&image.detect()), partx(&image, 512));
    let volumes = image.detect();
    assert_eq!(
        (
            volumes[1].name.as_str(),
            volumes[1].partition_label.as_str()
        ),
        ("part2", "second")
    );
    mkfs(&image, &volumes[1], "hybrid");
    // A hybrid MBR does not hide the GPT.
    run("sgdisk", ["-h", "2", &path]);
    assert_eq!(ours(&image.detect()), ours(&volumes));
    assert_eq!(ours(&image.detect()), partx(&image, 512));
    // An MBR that is not protective does.
    run_with(
        "sfdisk",
        ["-q", "-w", "never", "-W", "never", &path],
        "label: dos\nsize=9M\nsize=8M\n",
    );
    assert_eq!(ours(&image.detect()), partx(&image, 512));
    assert_eq!(image.detect().len(), 2);

    let image = Image::new(64 * MIB);
    let path = image.path().display().to_string();
    let args = [
        "-s", &path, "mklabel", "gpt", "mkpart", "one", "1MiB", "5MiB", "mkpart", "two",
    ];
    run("parted", [&args[..], &["10MiB", "100%"]].concat());
    assert_eq!(ours(&image.detect()), partx(&image, 512));
    // A disk that was made larger: the backup is no longer in the last sector.
    image.resize(80 * MIB);
    assert_eq!(ours(&image.detect()).len(), 2);

    let image = Image::new(64 * MIB);
    run("sgdisk", ["-o".as_ref(), image.path().as_os_str()]);
    let volumes = image.detect();
    assert!(
        matches!(
            &volumes[..],
            [Volume {
                content: Content::NoFiles(_),
                ..
            }]
        ),
        "{volumes:?}"
    );
}

#[test]
fn mbr_with_logical_partitions() {
    let image = Image::new(200 * MIB);
    let script = "label: dos\n\
        1: start=2048, size=20M, type=83\n\
        2: start=61440, size=150M, type=5\n\
        4: start=45056, size=4M, type=82\n\
        5: start=65536, size=8M\n\
        6: start=102400, size=8M\n\
        7: start=204800, size=30M\n";
    write_table(&image, 512, script);
    for volume in image
        .detect()
        .iter()
        .filter(|v| ["part1", "part6"].contains(&&*v.name))
    {
        mkfs(&image, volume, &volume.name);
    }
    let volumes = image.detect();
    let names: Vec<_> = volumes.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(
        names,
        ["part1", "part4", "part2", "part5", "part6", "part7"]
    );
    assert_eq!(ours(&volumes), sfdisk(&image, 512));
    // libblkid shows only the first sectors of the container, as Linux does.
    let without = |mut list: Vec<(u32, u64, u64)>| {
        list.retain(|(number, _, _)| *number != 2);
        list
    };
    assert_eq!(without(ours(&volumes)), without(partx(&image, 512)));
    assert_eq!(
        volumes[2].content,
        Content::NoFiles("MBR extended partition".into())
    );
    assert_eq!(volumes[1].content, Content::NoFiles("swap".into()));
    assert_eq!(volumes[4].label, b"part6");
    same_as_blkid(&image, &volumes[0]);
    same_as_blkid(&image, &volumes[4]);
    assert!(matches!(&volumes[5].content, Content::Unreadable(r) if r.contains("zeros")));

    // Logical partitions out of order, and a gap where one was.
    let path = image.path().display().to_string();
    run("sfdisk", ["-q", "-w", "never", "--delete", &path, "6"]);
    let script = "start=86016, size=4M\n";
    run_with(
        "sfdisk",
        ["-q", "-w", "never", "-W", "never", "-a", &path],
        script,
    );
    let volumes = image.detect();
    assert_eq!(volumes.len(), 6);
    assert_eq!(without(ours(&volumes)), without(partx(&image, 512)));
    assert_eq!(ours(&volumes), sfdisk(&image, 512));
}

#[test]
fn mbr_chain_that_loops() {
    let image = Image::new(64 * MIB);
    let script =
        "label: dos\n1: start=2048, size=60M, type=f\n5: start=4096, size=4M\n6: size=4M\n";
    write_table(&image, 512, script);
    let volumes = image.detect();
    assert_eq!(volumes.len(), 3);
    // The second link now leads back to the first, by its second entry.
    let second = 2048 * 512 + u64::from(le32(&image.bytes(2048 * 512 + 446 + 16 + 8, 4))) * 512;
    let mut entry = [0; 16];
    entry[4] = 5;
    entry[12..].copy_from_slice(&8192_u32.to_le_bytes());
    image.write(second + 446 + 16, &entry);
    assert_eq!(ours(&image.detect()), ours(&volumes));
}

fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().unwrap())
}

#[test]
fn mbr_with_large_sectors() {
    let image = Image::new(100 * MIB);
    write_table(
        &image,
        4096,
        "label: dos\nstart=256, size=30M\nsize=30M, type=5\nsize=20M\n",
    );
    // Before there is anything in it, nothing says which sectors they are.
    for (number, start, len) in partx(&image, 4096) {
        if number != 2 {
            let volume = empty(&format!("part{number}"), Mapping::linear(0, start, len));
            mkfs(&image, &volume, "4Kn");
        }
    }
    let volumes = image.detect();
    assert_eq!(ours(&volumes), sfdisk(&image, 4096));
    assert_eq!(volumes[0].content, Content::FileSystem("ext4".into()));
    assert_eq!(volumes[2].label, b"4Kn");
}

/// Boot sectors look like partition tables, and the other way round.
#[test]
fn a_boot_sector_is_no_table() {
    let image = Image::new(80 * MIB);
    run(
        "mkfs.vfat",
        ["-F".as_ref(), "32".as_ref(), image.path().as_os_str()],
    );
    let mut entry = [0; 16];
    entry[4] = 0x83;
    entry[8] = 8;
    entry[12] = 200;
    image.write(446, &entry);
    assert_eq!(
        image.detect()[0].content,
        Content::FileSystem("vfat".into())
    );
    // A boot loader in front of a file system.
    let image = Image::new(80 * MIB);
    run(
        "mke2fs",
        ["-q".as_ref(), "-F".as_ref(), image.path().as_os_str()],
    );
    image.write(0, &[0xeb, 0x58, 0x90]);
    image.write(446, &[0x12; 64]);
    image.write(510, &[0x55, 0xaa]);
    assert_eq!(
        image.detect()[0].content,
        Content::FileSystem("ext2".into())
    );
    // The same, with an empty table.
    image.write(446, &[0; 64]);
    assert_eq!(
        image.detect()[0].content,
        Content::FileSystem("ext2".into())
    );
}

#[test]
fn a_partition_past_the_end_of_the_disk() {
    let image = Image::new(100 * MIB);
    write_table(
        &image,
        512,
        "label: dos\nsize=20M\nsize=40M\nstart=180000, size=10M\n",
    );
    let volumes = image.detect();
    mkfs(&image, &volumes[1], "whole");
    image.resize(50 * MIB);
    let volumes = image.detect();
    assert_eq!(volumes[1].mapping.size(), 29 * MIB, "cut");
    assert_eq!(volumes[1].label, b"whole");
    for volume in &volumes[1..] {
        let Content::Unreadable(reason) = &volume.content else {
            panic!("{volume:?}")
        };
        assert!(reason.contains("past the end of the disk"), "{reason}");
    }
    // A file system that is smaller than its partition is all there.
    image.fill(21 * MIB, 29 * MIB, |path| {
        run(
            "mke2fs",
            [
                "-q".as_ref(),
                "-F".as_ref(),
                path.as_os_str(),
                "25m".as_ref(),
            ],
        );
    });
    let volumes = image.detect();
    assert_eq!(volumes[1].content, Content::FileSystem("ext2".into()));
    assert_eq!(volumes[1].mapping.size(), 29 * MIB);
}
