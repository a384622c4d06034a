//! Windows' dynamic disks. The database is written here by its description, and
//! `ldmtool` says what it finds in it.

use super::across::Backup;
use super::*;

const SECTOR: u64 = 512;
/// Where volumes begin on a disk, in sectors.
const DATA: u64 = 63;
/// Length of the database, in sectors; it ends the disk.
const CONFIG: u64 = 2048;
const GROUP: &str = "11111111-2222-3333-4444-555555555555";

fn guid(disk: usize) -> String {
    format!("aaaaaaaa-bbbb-cccc-dddd-{disk:012}")
}

/// A component: volume, kind, chunk in sectors, partitions as disk, start and
/// length in sectors.
struct Component(u64, u8, u64, Vec<(u64, u64, u64)>);

/// What a database says: volumes by name and length in sectors, and components.
struct Group {
    disks: usize,
    sectors: u64,
    sequence: u64,
    volumes: Vec<(&'static str, u64)>,
    components: Vec<Component>,
}

fn number(value: u64) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    let skip = bytes.iter().take(7).take_while(|b| **b == 0).count();
    [&[8 - skip as u8][..], &bytes[skip..]].concat()
}

fn text(value: &str) -> Vec<u8> {
    [&[value.len() as u8][..], value.as_bytes()].concat()
}

impl Group {
    fn records(&self) -> Vec<(u8, u8, Vec<u8>)> {
        let id = |kind: u64, index: usize| number(kind * 100 + index as u64);
        let mut all = Vec::new();
        for (index, (name, sectors)) in self.volumes.iter().enumerate() {
            let components = self
                .components
                .iter()
                .filter(|c| c.0 == index as u64)
                .count();
            let raid5 = self
                .components
                .iter()
                .any(|c| c.0 == index as u64 && c.1 == 3);
            let kind = if raid5 { 4 } else { 3 };
            let record = [
                id(1, index),
                text(name),
                text("gen"),
                vec![0],
                b"ACTIVE\0\0\0\0\0\0\0\0".to_vec(),
                vec![kind, 0, 1, 0, 0, 0, 0],
                number(components as u64),
                vec![0; 16],
                number(*sectors),
                vec![0, 0, 0, 0, 7],
                vec![index as u8 + 1; 16],
            ];
            all.push((0, 0x51, record.concat()));
        }
        let mut partition = 0;
        for (index, Component(volume, kind, chunk, parts)) in self.components.iter().enumerate() {
            let columns = *kind != 2;
            let mut record = [
                id(2, index),
                text(&format!("C{index}")),
                text("ACTIVE"),
                vec![*kind, 0, 0, 0, 0],
                number(parts.len() as u64),
                vec![0; 16],
                id(1, *volume as usize),
                vec![0],
            ]
            .concat();
            if columns {
                record.extend([number(*chunk), number(parts.len() as u64)].concat());
            }
            all.push((if columns { 0x10 } else { 0 }, 0x32, record));
            let mut offset = 0_u64;
            for (column, (disk, start, len)) in parts.iter().enumerate() {
                partition += 1;
                let mut record = [
                    id(3, partition),
                    text(&format!("P{partition}")),
                    vec![0; 12],
                    start.to_be_bytes().to_vec(),
                    (if columns { 0 } else { offset }).to_be_bytes().to_vec(),
                    number(*len),
                    id(2, index),
                    id(4, *disk as usize),
                ]
                .concat();
                if columns {
                    record.extend(number(column as u64));
                }
                all.push((if columns { 8 } else { 0 }, 0x33, record));
                offset += len;
            }
        }
        for disk in 0..self.disks {
            let record = [
                id(4, disk),
                text(&format!("Disk{disk}")),
                text(&guid(disk)),
                vec![0; 40],
            ];
            all.push((0, 0x34, record.concat()));
        }
        let record = [number(500), text("Dg0"), text(GROUP), vec![0; 20]].concat();
        all.push((0, 0x35, record));
        all
    }

    fn config(&self) -> Vec<u8> {
        let mut b = vec![0; (CONFIG * SECTOR) as usize];
        let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
        // Tables of contents stand at four places.
        for sector in [1, 2, 2045, 2046] {
            put(sector * 512, b"TOCBLOCK");
            for (at, name, start, len) in [
                (36, &b"config"[..], 17_u64, 1400_u64),
                (70, b"log", 1500, 200),
            ] {
                put(sector * 512 + at, name);
                put(sector * 512 + at + 10, &start.to_be_bytes());
                put(sector * 512 + at + 18, &len.to_be_bytes());
            }
        }
        let records = self.records();
        let vmdb = 17 * 512;
        put(vmdb, b"VMDB");
        put(vmdb + 4, &1000_u32.to_be_bytes());
        put(vmdb + 8, &128_u32.to_be_bytes());
        put(vmdb + 12, &512_u32.to_be_bytes());
        put(vmdb + 16, &[0, 1, 0, 4, 0, 10]);
        put(vmdb + 22, b"Dg0");
        put(vmdb + 53, GROUP.as_bytes());
        put(vmdb + 117, &self.sequence.to_be_bytes());
        put(vmdb + 125, &self.sequence.to_be_bytes());
        for (at, kind) in [(133, 1), (137, 2), (141, 3), (145, 4)] {
            let count = records.iter().filter(|r| r.1 & 15 == kind).count() as u32;
            put(vmdb + at, &count.to_be_bytes());
        }
        let mut block = 0;
        for (id, (flags, kind, record)) in records.iter().enumerate() {
            let head = [
                &[0, 0, *flags, *kind][..],
                &(record.len() as u32).to_be_bytes(),
            ]
            .concat();
            let whole = [head, record.clone()].concat();
            let pieces: Vec<&[u8]> = whole.chunks(112).collect();
            for (index, piece) in pieces.iter().enumerate() {
                let at = vmdb + 512 + block * 128;
                put(at, b"VBLK");
                put(at + 4, &(block as u32 + 4).to_be_bytes());
                put(at + 8, &(id as u32 + 1).to_be_bytes());
                put(at + 12, &(index as u16).to_be_bytes());
                put(at + 14, &(pieces.len() as u16).to_be_bytes());
                put(at + 16, piece);
                block += 1;
            }
        }
        b
    }

    fn write(&self, disk: usize, image: &Image) {
        let mut table = vec![0; 512];
        table[446 + 4] = 0x42;
        table[446 + 8..446 + 12].copy_from_slice(&(DATA as u32).to_le_bytes());
        let len = self.sectors - DATA - CONFIG;
        table[446 + 12..446 + 16].copy_from_slice(&(len as u32).to_le_bytes());
        table[510..].copy_from_slice(&[0x55, 0xaa]);
        image.write(0, &table);
        let mut head = vec![0; 512];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"PRIVHEAD");
        put(12, &[0, 2, 0, 11]);
        put(48, guid(disk).as_bytes());
        put(112, guid(99).as_bytes());
        put(176, GROUP.as_bytes());
        put(240, b"Dg0");
        for (at, value) in [
            (283, DATA),
            (291, len),
            (299, self.sectors - CONFIG),
            (307, CONFIG),
            (315, 1),
            (323, 2046),
        ] {
            put(at, &value.to_be_bytes());
        }
        put(331, &[0, 0, 0, 1, 0, 0, 0, 1]);
        image.write(6 * SECTOR, &head);
        image.write((self.sectors - CONFIG) * SECTOR, &self.config());
    }
}

/// A group of three disks with a volume of each kind.
fn one_of_each() -> Group {
    let mib = |n: u64| n * 2048;
    Group {
        disks: 3,
        sectors: mib(64),
        sequence: 7,
        volumes: vec![
            ("Simple1", mib(8)),
            ("Spanned1", mib(12)),
            ("Stripe1", mib(16)),
            ("Mirror1", mib(8)),
            ("Raid1", mib(16)),
        ],
        components: vec![
            Component(0, 2, 0, vec![(2, 0, mib(8))]),
            Component(1, 2, 0, vec![(1, mib(1), mib(8)), (0, mib(1), mib(4))]),
            Component(2, 1, 128, vec![(0, mib(10), mib(8)), (1, mib(10), mib(8))]),
            Component(3, 2, 0, vec![(0, mib(20), mib(8))]),
            Component(3, 2, 0, vec![(1, mib(20), mib(8))]),
            Component(
                4,
                3,
                128,
                vec![
                    (1, mib(40), mib(8)),
                    (0, mib(40), mib(8)),
                    (2, mib(40), mib(8)),
                ],
            ),
        ],
    }
}

/// The same, and what its volumes hold.
fn group() -> (Vec<Image>, Group, Vec<(&'static str, Image)>) {
    let group = one_of_each();
    let images: Vec<Image> = (0..3).map(|_| Image::new(group.sectors * SECTOR)).collect();
    let mut contents = Vec::new();
    for (index, (name, sectors)) in group.volumes.iter().enumerate() {
        let inside = Image::new(sectors * SECTOR);
        let folder = tempfile::tempdir().unwrap();
        let words = (0..sectors * 32).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15 + index as u64));
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        std::fs::write(folder.path().join("file"), &bytes).unwrap();
        let (folder, path) = (folder.path().as_os_str(), inside.path());
        let args = ["-q", "-F", "-t", "ext4", "-L", name, "-d"].map(OsStr::new);
        run("mke2fs", args.into_iter().chain([folder, path.as_os_str()]));
        // By chunks of 64 KiB, which all lengths are multiples of.
        for chunk in 0..sectors / 128 {
            let bytes = inside.bytes(chunk * 65536, 65536);
            for Component(_, kind, _, parts) in
                group.components.iter().filter(|c| c.0 == index as u64)
            {
                let n = parts.len() as u64;
                let (part, row) = match kind {
                    1 => (chunk % n, chunk / n),
                    3 => {
                        let (row, index) = (chunk / (n - 1), chunk % (n - 1));
                        ((n - 1 - row % n + 1 + index) % n, row)
                    }
                    _ => {
                        let first = parts[0].2 / 128;
                        (
                            u64::from(chunk >= first),
                            if chunk >= first { chunk - first } else { chunk },
                        )
                    }
                };
                let (disk, start, _) = parts[part as usize];
                images[disk as usize].write((DATA + start + row * 128) * SECTOR, &bytes);
            }
        }
        contents.push((*name, inside));
    }
    for (disk, image) in images.iter().enumerate() {
        group.write(disk, image);
    }
    (images, group, contents)
}

fn shown(volumes: &[Volume]) -> Vec<(&str, Option<u32>)> {
    let shown = volumes
        .iter()
        .filter(|v| !matches!(v.content, Content::NoFiles(_)));
    let mut shown: Vec<_> = shown
        .map(|v| match v.content {
            Content::Elsewhere { disk, .. } => (v.name.as_str(), Some(disk)),
            _ => (v.name.as_str(), None),
        })
        .collect();
    shown.sort_unstable();
    shown
}

#[test]
fn volumes_of_all_kinds() {
    let (images, group, contents) = group();
    // What libldm makes of it.
    let paths: Vec<String> = images
        .iter()
        .map(|i| i.path().display().to_string())
        .collect();
    let mut script = format!("scan {}\n", paths.join(" "));
    for (name, _) in &group.volumes {
        script += &format!("show volume {GROUP} {name}\n");
    }
    let said = run_with("ldmtool", [""; 0], &script);
    for (kind, sectors) in [
        ("simple", 16384),
        ("spanned", 24576),
        ("striped", 32768),
        ("mirrored", 16384),
        ("RAID5", 32768),
    ] {
        let told = format!("\"type\" : \"{kind}\",\n  \"size\" : {sectors},");
        assert!(said.contains(&told), "{told} in {said}");
    }
    let mut backup = Backup::new(&images);
    let (volumes, opened) = backup.look(0);
    assert_eq!(opened, [1, 2]);
    let here = ["Mirror1", "Raid1", "Spanned1", "Stripe1"].map(|name| (name, None));
    assert_eq!(shown(&volumes), here);
    for (name, inside) in contents.iter().skip(1) {
        let volume = volumes.iter().find(|v| v.name == *name).unwrap();
        assert_eq!(volume.label, name.as_bytes());
        let truth = inside.bytes(0, inside.disk().size() as usize);
        assert!(backup.read(0, volume) == truth, "{name}");
    }
    // Each volume is shown by the first disk of its own.
    let (volumes, _) = backup.look(2);
    assert_eq!(shown(&volumes), [("Raid1", Some(0)), ("Simple1", None)]);
    let simple = volumes.iter().find(|v| v.name == "Simple1").unwrap();
    assert_eq!(simple.across, None);
    // Without the first disk the mirror is read, and says so.
    backup.images[0] = None;
    let (volumes, _) = backup.look(1);
    let find = |name: &str| volumes.iter().find(|v| v.name == name).unwrap();
    let mirror = find("Mirror1");
    assert!(mirror.note.contains("Disk0"), "{}", mirror.note);
    assert!(backup.read(1, mirror) == contents[3].1.bytes(0, 8 << 20));
    for name in ["Spanned1", "Stripe1", "Raid1"] {
        let Content::Unreadable(why) = &find(name).content else {
            panic!("{:?}", find(name));
        };
        assert!(
            why.contains("Disk0") && why.contains("disk0 cannot be opened"),
            "{why}"
        );
    }
}

/// The newest database counts, wherever it lies; a damaged one is said to be.
#[test]
fn databases_that_differ() {
    let (images, mut group, _) = group();
    group.sequence = 8;
    group.volumes[2].0 = "Renamed1";
    group.write(1, &images[1]);
    let mut backup = Backup::new(&images);
    let (volumes, _) = backup.look(0);
    assert!(
        volumes.iter().any(|v| v.name == "Renamed1")
            && !volumes.iter().any(|v| v.name == "Stripe1")
    );
    images[2].write((group.sectors - CONFIG + 17) * SECTOR, b"BAD!");
    let (volumes, opened) = backup.look(2);
    assert_eq!(
        (shown(&volumes), opened),
        (vec![("Raid1", Some(0)), ("Simple1", None)], vec![0, 1])
    );
    let mut backup = Backup::new([&images[2]]);
    let (volumes, _) = backup.look(0);
    assert!(
        matches!(&volumes[0].content, Content::Unreadable(why) if why.contains("damaged")),
        "{volumes:?}"
    );
}

/// Two components of one number would each have the partitions of both.
#[test]
fn a_number_that_is_given_twice() {
    let (images, group, _) = group();
    let config = (group.sectors - CONFIG) * SECTOR;
    let named = |id: u8| [&[1, id][..], &text("C1")].concat();
    for image in &images {
        let mut bytes = image.bytes(config, 16384);
        let at = bytes.windows(5).position(|w| w == named(201)).unwrap();
        bytes[at..at + 5].copy_from_slice(&named(200));
        image.write(config, &bytes);
    }
    let (volumes, _) = Backup::new(&images).look(0);
    assert!(
        matches!(&volumes[0].content, Content::Unreadable(why) if why.contains("damaged")),
        "{volumes:?}"
    );
}

/// Any answer will do, but soon, and no panic.
#[test]
fn hostile_databases() {
    let (images, group, _) = group();
    let config = (group.sectors - CONFIG) * SECTOR;
    let good: Vec<Vec<u8>> = images
        .iter()
        .map(|image| image.bytes(config, 16384))
        .collect();
    let mut random = damage::Random(5);
    let mut readable = 0;
    for round in 0..200 {
        for (image, good) in images.iter().zip(&good) {
            let mut bytes = good.clone();
            for _ in 0..random.below(3) {
                // The database's header, or a byte of a record.
                let at = match random.below(4) {
                    0 => 17 * 512 + random.below(150),
                    1 => 512 * (1 + random.below(2)) + random.below(120),
                    _ => 18 * 512 + random.below(30 * 128),
                } as usize;
                let new = random.bytes();
                bytes[at..at + new.len()].copy_from_slice(&new);
            }
            image.write(config, &bytes);
        }
        let began = std::time::Instant::now();
        let mut backup = Backup::new(&images);
        for own in 0..3 {
            let (volumes, _) = backup.look(own);
            for volume in &volumes {
                readable += backup.touch(own, volume);
            }
        }
        assert!(began.elapsed().as_secs() < 10, "round {round}");
    }
    assert!(readable > 0);
}

#[test]
#[ignore = "writes an image for the fuzz targets"]
fn image_for_fuzzing() {
    let mut group = one_of_each();
    group.sectors = 45 * 2048 + DATA + CONFIG;
    let disks: Vec<Image> = (0..3).map(|_| Image::new(group.sectors * SECTOR)).collect();
    for (disk, image) in disks.iter().enumerate() {
        group.write(disk, image);
    }
    keep_for_fuzzing("dynamic-x3-all", &disks);
}
