//! LVM2's own RAID. It cannot be made without the kernel's driver, so its text is
//! written here; LVM2 checks it and says where the images lie, and GRUB, which
//! reads some of the types by code of its own, judges the data.

use super::across::Backup;
use super::*;

const CHUNK: u64 = 64 << 10;
/// Extents of 1 MiB in each image.
const EACH: u64 = 8;

/// A volume: its type, the word for its parts, and on which disk each image is.
const VOLUMES: &[(&str, &[u64])] = &[
    ("raid1", &[0, 1]),
    ("raid0", &[0, 1, 2]),
    ("raid5", &[0, 1, 2]),
    ("raid5_n", &[2, 0, 1]),
    ("raid6_nc", &[0, 1, 2, 0, 1]),
    ("raid10", &[0, 1, 2, 1]),
    ("mirror", &[1, 2]),
];

/// Extents that a volume of `images` holds.
fn extents(kind: &str, images: u64) -> u64 {
    match kind {
        "raid0" => EACH * images,
        "raid5" | "raid5_n" => EACH * (images - 1),
        "raid6_nc" => EACH * (images - 2),
        "raid10" => EACH * images / 2,
        _ => EACH,
    }
}

/// Image and chunk on it that have data chunk `number`.
fn places(kind: &str, number: u64, n: u64) -> Vec<(u64, u64)> {
    match kind {
        "raid0" => vec![(number % n, number / n)],
        "raid10" => (number * 2..number * 2 + 2)
            .map(|copy| (copy % n, copy / n))
            .collect(),
        "raid5_n" => vec![(number % (n - 1), number / (n - 1))],
        "raid5" => {
            let (row, index) = (number / (n - 1), number % (n - 1));
            vec![((n - 1 - row % n + 1 + index) % n, row)]
        }
        "raid6_nc" => {
            // Data goes on after the first parity, which goes on after the second.
            let (row, index) = (number / (n - 2), number % (n - 2));
            vec![((n - 1 - row % n + 1 + index) % n, row)]
        }
        _ => (0..n).map(|image| (image, number)).collect(),
    }
}

fn add(text: &mut String, name: &str, visible: bool, count: u64, segment: &str) {
    let number = text.matches("segment_count").count() + 1;
    let visible = if visible { ", \"VISIBLE\"" } else { "" };
    *text += &format!(
        "{name} {{\nid = \"{number:06}-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa\"\n\
         status = [\"READ\", \"WRITE\"{visible}]\nflags = []\nsegment_count = 1\n\
         segment1 {{\nstart_extent = 0\nextent_count = {count}\n{segment}\n}}\n}}\n"
    );
}

/// Three disks with a volume of each type, and what is in them.
fn group() -> (Vec<Image>, Vec<Image>) {
    let images: Vec<Image> = (0..3).map(|_| Image::new(160 * MIB)).collect();
    let lvm = logical::Lvm::new(images.iter().map(|image| Loop::new(image, 512)).collect());
    let all: Vec<&str> = lvm.loops.iter().map(|l| l.0.as_str()).collect();
    lvm.run("vgcreate", &[&["-s", "1M", "vg0"][..], &all].concat());
    lvm.create("vg0", "first", &["-L", "1M"]);
    let args = [
        "--units",
        "b",
        "--nosuffix",
        "--noheadings",
        "-o",
        "pe_start",
    ];
    let start = lvm.run("pvs", &args);
    let start: u64 = start.lines().next().unwrap().trim().parse().unwrap();
    let backup = images[0]
        .path()
        .with_file_name("backup")
        .display()
        .to_string();
    lvm.run("vgcfgbackup", &["-f", &backup, "vg0"]);
    let mut more = String::new();
    let mut next = [10_u64; 3];
    let mut contents = Vec::new();
    for (kind, disks) in VOLUMES {
        let name = kind.replace("raid", "r");
        let mut parts = Vec::new();
        let mut begins = Vec::new();
        for (index, disk) in disks.iter().enumerate() {
            let mut part = |what: &str, count: u64| {
                let at = next[*disk as usize];
                next[*disk as usize] += count;
                let part = format!("{name}_{what}_{index}");
                let on = format!("type=\"striped\"\nstripe_count=1\nstripes=[\"pv{disk}\", {at}]");
                add(&mut more, &part, false, count, &on);
                (part, at)
            };
            let (image, at) = part(
                if *kind == "mirror" {
                    "mimage"
                } else {
                    "rimage"
                },
                EACH,
            );
            begins.push((*disk, start + at * MIB));
            match *kind {
                "raid0" => parts.push(format!("\"{image}\"")),
                "mirror" => parts.push(format!("\"{image}\", 0")),
                _ => {
                    let (meta, _) = part("rmeta", 1);
                    parts.push(format!("\"{meta}\", \"{image}\""));
                }
            }
        }
        let n = disks.len() as u64;
        let word = match *kind {
            "raid0" => "raid0_lvs",
            "mirror" => "mirrors",
            _ => "raids",
        };
        let count = match *kind {
            "mirror" => format!("mirror_count={n}\nregion_size=1024"),
            "raid0" => format!("stripe_count={n}\nstripe_size=128"),
            "raid1" => format!("device_count={n}\nregion_size=4096"),
            "raid10" => {
                format!("device_count={n}\ndata_copies=2\nstripe_size=128\nregion_size=4096")
            }
            _ => format!("device_count={n}\nstripe_size=128\nregion_size=4096"),
        };
        let segment = format!("type=\"{kind}\"\n{count}\n{word}=[{}]", parts.join(", "));
        let count = extents(kind, n);
        add(&mut more, &name, true, count, &segment);
        let inside = Image::new(count * MIB);
        let folder = tempfile::tempdir().unwrap();
        let words = (0..count * MIB / 16).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15 + count));
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        std::fs::write(folder.path().join("file"), bytes).unwrap();
        let (folder, path) = (folder.path().as_os_str(), inside.path());
        let args = ["-q", "-F", "-t", "ext4", "-L", &name, "-d"].map(OsStr::new);
        run("mke2fs", args.into_iter().chain([folder, path.as_os_str()]));
        for number in 0..count * MIB / CHUNK {
            let bytes = inside.bytes(number * CHUNK, CHUNK as usize);
            for (image, chunk) in places(kind, number, n) {
                let (disk, begin) = begins[image as usize];
                images[disk as usize].write(begin + chunk * CHUNK, &bytes);
            }
        }
        contents.push(inside);
    }
    let text = std::fs::read_to_string(&backup).unwrap();
    let word = "logical_volumes {\n";
    std::fs::write(&backup, text.replacen(word, &format!("{word}{more}"), 1)).unwrap();
    lvm.run("vgcfgrestore", &["--force", "-y", "-f", &backup, "vg0"]);
    // LVM2 sees the types, with images where they were put.
    let said = lvm.run("lvs", &["--noheadings", "-o", "lv_name,segtype", "vg0"]);
    for (kind, _) in VOLUMES {
        let name = kind.replace("raid", "r");
        assert!(
            said.lines()
                .any(|l| l.split_whitespace().eq([name.as_str(), *kind])),
            "{said}"
        );
    }
    (images, contents)
}

#[test]
fn all_types() {
    let (images, contents) = group();
    let mut backup = Backup::new(&images);
    let (volumes, opened) = backup.look(0);
    assert_eq!(opened, [1, 2]);
    let find = |volumes: &[Volume], kind: &str| {
        let name = format!("vg0-{}", kind.replace("raid", "r"));
        volumes.iter().find(|v| v.name == name).cloned().unwrap()
    };
    for ((kind, _), inside) in VOLUMES.iter().zip(&contents) {
        let volume = find(&volumes, kind);
        let truth = inside.bytes(0, inside.disk().size() as usize);
        assert!(
            backup.read(0, &volume) == truth,
            "{kind}: {:?}",
            volume.content
        );
    }
    for (kind, inside) in [
        ("raid1", &contents[0]),
        ("raid5", &contents[2]),
        ("mirror", &contents[6]),
    ] {
        let cat = |images: &[&Image], device: &str| {
            let mut command = Command::new("grub-fstest");
            command.args(["-c", &images.len().to_string()]);
            command.args(images.iter().map(|image| image.path()));
            let out = command
                .arg("cat")
                .arg(format!("({device})/file"))
                .output()
                .unwrap();
            assert!(
                out.status.success(),
                "{kind}: {}",
                String::from_utf8_lossy(&out.stderr)
            );
            out.stdout
        };
        let all: Vec<&Image> = images.iter().collect();
        let device = format!("lvm/vg0-{}", kind.replace("raid", "r"));
        assert!(cat(&all, &device) == cat(&[inside], "loop0"), "{kind}");
    }
    // Without a disk, what has a copy elsewhere is read.
    backup.images[1] = None;
    let (volumes, _) = backup.look(0);
    for (kind, inside) in [
        ("raid1", &contents[0]),
        ("raid10", &contents[5]),
        ("mirror", &contents[6]),
    ] {
        let truth = inside.bytes(0, inside.disk().size() as usize);
        assert!(backup.read(0, &find(&volumes, kind)) == truth, "{kind}");
    }
    for kind in ["raid0", "raid5"] {
        let volume = find(&volumes, kind);
        let Content::Unreadable(why) = &volume.content else {
            panic!("{volume:?}");
        };
        assert!(
            why.contains("pv1") && why.contains("disk1 cannot be opened"),
            "{why}"
        );
    }
}
