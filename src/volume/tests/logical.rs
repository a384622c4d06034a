//! LVM2, as its own tools write it and tell of it. No kernel driver is used.

use super::*;

/// LVM2's tools on some loop devices, and on nothing else.
pub(super) struct Lvm {
    pub(super) loops: Vec<Loop>,
    config: String,
}

impl Lvm {
    pub(super) fn new(loops: Vec<Loop>) -> Self {
        let filter: Vec<_> = loops.iter().map(|l| format!("\"a|^{}$|\"", l.0)).collect();
        let config = format!(
            "devices{{filter=[{},\"r|.*|\"] use_devicesfile=0 scan=[\"/dev\"]}} \
             backup{{backup=0 archive=0}} report{{prefixes=0}}",
            filter.join(",")
        );
        Self { loops, config }
    }

    pub(super) fn run(&self, command: &str, args: &[&str]) -> String {
        let first = ["--driverloaded", "n", "--config", &self.config];
        run(command, [&first[..], args].concat())
    }

    pub(super) fn create(&self, group: &str, name: &str, args: &[&str]) {
        let first = ["-an", "-Zn", "-Wn", "-y", "-n", name];
        self.run("lvcreate", &[&first[..], args, &[group]].concat());
    }

    fn extend(&self, volume: &str, args: &[&str]) {
        self.run("lvextend", &[&["-y", volume][..], args].concat());
    }

    /// The place on the disk of each byte of a volume, by LVM2's own report.
    /// `starts` says where each loop device begins on the disk.
    fn truth(&self, volume: &str, starts: &[u64]) -> Truth {
        let b = [
            "--units",
            "b",
            "--nosuffix",
            "--noheadings",
            "--separator",
            "|",
        ];
        let columns = "seg_start,seg_size,stripes,stripe_size,vg_extent_size,seg_pe_ranges";
        let rows = self.run(
            "lvs",
            &[&b[..], &["--segments", "-o", columns, volume]].concat(),
        );
        let pvs = self.run("pvs", &[&b[..], &["-o", "pv_name,pe_start"]].concat());
        let place = |device: &str| {
            let row = pvs
                .lines()
                .find(|r| r.trim().starts_with(&format!("{device}|")))
                .unwrap();
            let pe: u64 = row.rsplit('|').next().unwrap().parse().unwrap();
            pe + starts[self.loops.iter().position(|l| l.0 == device).unwrap()]
        };
        let segments = rows.lines().map(|row| {
            let fields: Vec<_> = row.trim().split('|').collect();
            let n = |i: usize| fields[i].parse::<u64>().unwrap();
            let columns = fields[5].split(' ').map(|range| {
                let (device, extents) = range.split_once(':').unwrap();
                place(device) + extents.split_once('-').unwrap().0.parse::<u64>().unwrap() * n(4)
            });
            let columns: Vec<u64> = columns.collect();
            assert_eq!(columns.len() as u64, n(2));
            (n(0), n(1), n(3), columns)
        });
        Truth(segments.collect())
    }
}

/// Start, length, stripe size and columns of the segments.
struct Truth(Vec<(u64, u64, u64, Vec<u64>)>);

impl Truth {
    fn size(&self) -> u64 {
        self.0.iter().map(|s| s.1).sum()
    }

    fn place(&self, at: u64) -> u64 {
        let (start, _, stripe, columns) = self
            .0
            .iter()
            .find(|s| (s.0..s.0 + s.1).contains(&at))
            .unwrap();
        let at = at - start;
        if columns.len() == 1 {
            return columns[0] + at;
        }
        let (row, within) = (at / stripe / columns.len() as u64, at % stripe);
        columns[(at / stripe) as usize % columns.len()] + row * stripe + within
    }
}

fn named<'a>(volumes: &'a [Volume], name: &str) -> &'a Volume {
    volumes
        .iter()
        .find(|v| v.name == name)
        .unwrap_or_else(|| panic!("{name} in {volumes:?}"))
}

fn reason<'a>(volumes: &'a [Volume], name: &str) -> &'a str {
    match &named(volumes, name).content {
        Content::Unreadable(reason) => reason,
        other => panic!("{name}: {other:?}"),
    }
}

/// Puts an ext4 into a volume by LVM2's report, and reads all of it back.
fn check_content(image: &Image, truth: &Truth, name: &str) {
    const CHUNK: u64 = 4096;
    let inner = Image::new(truth.size());
    let path = inner.path();
    let args = ["-q", "-F", "-t", "ext4", "-L", name].map(OsStr::new);
    run("mke2fs", args.iter().chain(&[path.as_os_str()]));
    // A mark in each stripe, so that no two are alike.
    for at in (8 * MIB..truth.size()).step_by(16 << 10) {
        inner.write(at + 512, &at.to_le_bytes());
    }
    for at in (0..truth.size()).step_by(CHUNK as usize) {
        let bytes = inner.bytes(at, CHUNK as usize);
        if bytes.iter().any(|b| *b != 0) {
            image.write(truth.place(at), &bytes);
        }
    }
    let volumes = image.detect();
    let volume = named(&volumes, &format!("vg0-{name}"));
    assert_eq!(volume.content, Content::FileSystem("ext4".into()));
    assert_eq!(volume.label, name.as_bytes());
    assert_eq!(volume.mapping.size(), truth.size());
    let reader = VolumeReader::new(volume.mapping.clone(), vec![image.disk()]);
    let mut bytes = vec![0; truth.size() as usize];
    reader.read_at(0, &mut bytes).unwrap();
    assert!(bytes == inner.bytes(0, bytes.len()), "{name}");
    let mut bytes = vec![0; 300_000];
    for at in [0, 4097, 65_535, 4 * MIB - 7, truth.size() - 300_000] {
        reader.read_at(at, &mut bytes).unwrap();
        assert!(bytes == inner.bytes(at, bytes.len()), "{name} at {at}");
    }
}

/// A disk with two physical volumes on partitions.
fn two_partitions() -> (Image, Vec<u64>, Lvm) {
    let image = Image::new(300 * MIB);
    let path = image.path().display().to_string();
    run("sgdisk", ["-n", "1:0:+140M", "-n", "2:0:+140M", &path]);
    let mut starts = Vec::new();
    let mut loops = Vec::new();
    for volume in image.detect() {
        let start = volume.mapping.first().unwrap().offset;
        let (offset, len) = (start.to_string(), volume.mapping.size().to_string());
        let args = ["-f", "--show", "-o", &offset, "--sizelimit", &len, &path];
        loops.push(Loop(run("losetup", args).trim().to_owned()));
        starts.push(start);
    }
    let lvm = Lvm::new(loops);
    lvm.run("pvcreate", &[&lvm.loops[0].0, &lvm.loops[1].0]);
    lvm.run(
        "vgcreate",
        &["-s", "1M", "vg0", &lvm.loops[0].0, &lvm.loops[1].0],
    );
    (image, starts, lvm)
}

#[test]
fn linear_and_striped_over_two_partitions() {
    let (image, starts, lvm) = two_partitions();
    let (one, two) = (lvm.loops[0].0.clone(), lvm.loops[1].0.clone());
    lvm.run(
        "lvcreate",
        &[
            "-an", "-Zn", "-Wn", "-y", "-L", "20M", "-n", "linear", "vg0", &two,
        ],
    );
    lvm.create("vg0", "striped", &["-i2", "-I64k", "-L", "20M"]);
    lvm.run(
        "lvcreate",
        &[
            "-an",
            "-Zn",
            "-Wn",
            "-y",
            "-L",
            "8M",
            "-n",
            "pieces-of",
            "vg0",
            &one,
        ],
    );
    lvm.extend("vg0/linear", &["-L", "30M", &one]);
    lvm.extend("vg0/pieces-of", &["-L", "12M", &two]);
    lvm.extend("vg0/pieces-of", &["-L", "18M", &one]);
    lvm.extend("vg0/striped", &["-i2", "-I16k", "-L", "28M"]);

    let segments = |name: &str| lvm.truth(&format!("vg0/{name}"), &starts).0.len();
    assert_eq!(
        (
            segments("linear"),
            segments("pieces-of"),
            segments("striped")
        ),
        (2, 3, 2)
    );
    for name in ["linear", "striped", "pieces-of"] {
        check_content(&image, &lvm.truth(&format!("vg0/{name}"), &starts), name);
    }
    let volumes = image.detect();
    let names: Vec<_> = volumes.iter().map(|v| v.name.as_str()).collect();
    // By first extent: striped begins on the first partition, then the pieces.
    assert_eq!(
        names,
        [
            "part1",
            "vg0-striped",
            "vg0-pieces-of",
            "part2",
            "vg0-linear"
        ]
    );
    for part in ["part1", "part2"] {
        assert_eq!(same_as_blkid(&image, named(&volumes, part)), "LVM2_member");
    }
    // Linear pieces that follow one another are one run.
    let mut runs = Vec::new();
    named(&volumes, "vg0-linear")
        .mapping
        .runs(0, 30 * MIB, &mut runs)
        .unwrap();
    assert_eq!(runs.len(), 2);

    // Two physical volumes make up a group: without one, what lies on it is lost.
    let head = image.bytes(starts[1], 1 << 20);
    image.write(starts[1], &vec![0; 1 << 20]);
    let volumes = image.detect();
    for name in ["vg0-linear", "vg0-striped", "vg0-pieces-of"] {
        assert!(
            reason(&volumes, name).contains(&format!("pv1 (last seen as {two}")),
            "{name}"
        );
    }
    image.write(starts[1], &head);
    // The metadata of the first is damaged, the second has the same.
    image.write(starts[0] + 4096 + 20, &[0xff; 100]);
    assert_eq!(named(&image.detect(), "vg0-striped").label, b"striped");
}

#[test]
fn whole_disks_of_which_one_is_missing() {
    let images = [Image::new(100 * MIB), Image::new(100 * MIB)];
    let lvm = Lvm::new(images.iter().map(|i| Loop::new(i, 512)).collect());
    let (one, two) = (lvm.loops[0].0.clone(), lvm.loops[1].0.clone());
    lvm.run("vgcreate", &["vg0", &one, &two]);
    let args = ["-an", "-Zn", "-Wn", "-y", "-L", "12M"];
    lvm.run(
        "lvcreate",
        &[&args[..], &["-n", "here", "vg0", &one]].concat(),
    );
    lvm.run(
        "lvcreate",
        &[&args[..], &["-n", "there", "vg0", &two]].concat(),
    );
    lvm.create("vg0", "both", &["-i2", "-L", "16M"]);
    check_content(&images[0], &lvm.truth("vg0/here", &[0, 0]), "here");
    let volumes = images[0].detect();
    let names: Vec<_> = volumes.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["disk", "vg0-here", "vg0-both", "vg0-there"]);
    assert_eq!(same_as_blkid(&images[0], &volumes[0]), "LVM2_member");
    for name in ["vg0-both", "vg0-there"] {
        let reason = reason(&volumes, name);
        assert!(
            reason.contains("pv1") && reason.contains("not on this disk"),
            "{reason}"
        );
    }
}

#[test]
fn a_physical_volume_alone() {
    let image = Image::new(40 * MIB);
    let lvm = Lvm::new(vec![Loop::new(&image, 512)]);
    let device = lvm.loops[0].0.clone();
    lvm.run("pvcreate", &[&device]);
    let volumes = image.detect();
    assert_eq!(volumes.len(), 1);
    assert_eq!(same_as_blkid(&image, &volumes[0]), "LVM2_member");
    // In a group, but its metadata is elsewhere.
    lvm.run(
        "pvcreate",
        &["-ff", "-y", "--pvmetadatacopies", "2", &device],
    );
    lvm.run("vgcreate", &["vg0", &device]);
    lvm.create("vg0", "lv", &["-L", "8M"]);
    assert_eq!(image.detect().len(), 2);
    // The first of two metadata areas is damaged, then the other too.
    image.write(4096 + 100, &[1]);
    assert_eq!(image.detect().len(), 2);
    let last = (0..40 * MIB / 512)
        .rev()
        .find(|n| image.bytes(n * 512 + 4, 16) == MAGIC)
        .unwrap();
    assert!(last * 512 > 30 * MIB);
    image.write(last * 512 + 100, &[1]);
    let volumes = image.detect();
    assert_eq!(volumes.len(), 1);
    assert!(reason(&volumes, "disk").contains("damaged"));
}

const MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";

#[test]
fn metadata_goes_round_its_ring() {
    let image = Image::new(40 * MIB);
    let lvm = Lvm::new(vec![Loop::new(&image, 512)]);
    let device = lvm.loops[0].0.clone();
    lvm.run(
        "pvcreate",
        &["--metadatasize", "36k", "--dataalignment", "4k", &device],
    );
    lvm.run("vgcreate", &["vg0", &device]);
    lvm.create("vg0", "lv0", &["-L", "8M"]);
    // A length that does not divide the ring.
    lvm.run("vgchange", &["--addtag", &"t".repeat(700), "vg0"]);
    let mut wrapped = 0;
    for number in 0..60 {
        let (from, to) = (format!("lv{number}"), format!("lv{}", number + 1));
        lvm.run("lvrename", &["vg0", &from, &to]);
        let header = image.bytes(4096, 512);
        let n = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
        wrapped += u32::from(n(40) + n(48) > n(32));
        assert_eq!(image.detect()[1].name, format!("vg0-{to}"));
        if wrapped >= 2 {
            return;
        }
    }
    panic!("the metadata never wrapped round");
}

/// What needs the kernel's driver to be made is restored from text; LVM2 itself
/// checks the text and says what it understands.
#[test]
fn other_types_are_named() {
    let image = Image::new(100 * MIB);
    let lvm = Lvm::new(vec![Loop::new(&image, 512)]);
    let device = lvm.loops[0].0.clone();
    lvm.run("vgcreate", &["vg0", &device]);
    lvm.create("vg0", "root", &["-L", "8M"]);
    let backup = image.path().with_file_name("backup").display().to_string();
    lvm.run("vgcfgbackup", &["-f", &backup, "vg0"]);
    let text = std::fs::read_to_string(&backup).unwrap();
    let mut next = 0;
    let mut lv = |name: &str, status: &str, count: u32, segment: &str| {
        next += 1;
        format!(
            "{name} {{\nid = \"{next:06}-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa\"\nstatus = [{status}]\n\
             flags = []\nsegment_count = 1\nsegment1 {{\nstart_extent = 0\nextent_count = {count}\n\
             {segment}\n}}\n}}\n"
        )
    };
    let own =
        |extent: u32| format!("type=\"striped\"\nstripe_count=1\nstripes=[\"pv0\", {extent}]");
    let (seen, hidden) = ("\"READ\", \"WRITE\", \"VISIBLE\"", "\"READ\", \"WRITE\"");
    let mut more = lv("snap", seen, 2, &own(4));
    let snapshot = "type=\"snapshot\"\nchunk_size=8\norigin=\"root\"\ncow_store=\"snap\"";
    more += &lv("snapshot0", hidden, 2, snapshot);
    more += &lv("pool_tmeta", hidden, 1, &own(6));
    more += &lv("pool_tdata", hidden, 4, &own(8));
    let pool = "type=\"thin-pool\"\nmetadata=\"pool_tmeta\"\npool=\"pool_tdata\"\n\
                transaction_id=1\nchunk_size=128\ndiscards=\"passdown\"\nzero_new_blocks=1";
    more += &lv("pool", seen, 4, pool);
    let thin = "type=\"thin\"\nthin_pool=\"pool\"\ntransaction_id=0\ndevice_id=1";
    more += &lv("data", seen, 10, thin);
    for (index, name) in ["r_rmeta_0", "r_rimage_0", "r_rmeta_1", "r_rimage_1"]
        .iter()
        .enumerate()
    {
        more += &lv(name, hidden, 1, &own(12 + index as u32));
    }
    let raid = "type=\"raid1\"\ndevice_count=2\nregion_size=4096\n\
                raids=[\"r_rmeta_0\",\"r_rimage_0\",\"r_rmeta_1\",\"r_rimage_1\"]";
    more += &lv("r", seen, 1, raid);
    let start = "logical_volumes {
";
    std::fs::write(&backup, text.replacen(start, &format!("{start}{more}"), 1)).unwrap();
    lvm.run("vgcfgrestore", &["--force", "-y", "-f", &backup, "vg0"]);
    let list = lvm.run("lvs", &["--noheadings", "-o", "lv_name", "vg0"]);
    let mut truth: Vec<_> = list.lines().map(|n| format!("vg0-{}", n.trim())).collect();
    truth.push("disk".into());
    let volumes = image.detect();
    let mut names: Vec<_> = volumes.iter().map(|v| v.name.clone()).collect();
    truth.sort();
    names.sort();
    assert_eq!(names, truth);
    assert!(reason(&volumes, "vg0-snap").contains("snapshot of root"));
    assert!(reason(&volumes, "vg0-data").contains("type thin"));
    assert!(reason(&volumes, "vg0-r").contains("no known file system"));
    assert_eq!(
        named(&volumes, "vg0-pool").content,
        Content::NoFiles("LVM thin-pool".into())
    );
    assert!(reason(&volumes, "vg0-root").contains("no known file system"));
}
