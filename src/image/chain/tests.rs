use super::*;
use std::os::unix::fs::{FileExt, symlink};
use std::process::Command;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("repo/sub")).unwrap();
        std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
        Self { dir }
    }

    /// A path in the repository, or with `../elsewhere/` beside it.
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("repo").join(name)
    }

    fn qemu_img(&self, arguments: &[&str]) {
        let mut command = Command::new("qemu-img");
        let out = command.args(arguments).current_dir(self.path("")).output();
        let out = out.unwrap_or_else(|e| panic!("qemu-img is needed: {e}"));
        assert!(
            out.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }

    fn create(&self, name: &str) -> PathBuf {
        self.qemu_img(&["create", "-q", "-f", "qcow2", name, "16M"]);
        self.path(name)
    }

    /// An image whose header names a backing file that need not be there.
    fn on(&self, name: &str, backing: &str, format: &str) -> PathBuf {
        self.qemu_img(&[
            "create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", format, name, "16M",
        ]);
        self.path(name)
    }

    fn check(&self, image: &Path) -> Result<Chain> {
        check(
            image,
            "qcow2",
            &[self.path("no-such-repository"), self.path("")],
        )
    }

    /// The error, which must name the file it is about.
    fn refused(&self, image: &Path, names: &str) -> Error {
        let error = self.check(image).expect_err(names);
        assert!(error.to_string().contains(names), "{error}");
        error
    }
}

#[test]
fn a_whole_chain_with_links_and_formats() {
    let place = Place::new();
    std::fs::write(place.path("bottom.raw"), vec![7; 1 << 20]).unwrap();
    place.on("sub/first.qcow2", "../bottom.raw", "raw");
    symlink("first.qcow2", place.path("sub/link.qcow2")).unwrap();
    let top = place.on("top.qcow2", "sub/link.qcow2", "qcow2");
    let chain = place.check(&top).unwrap();
    let found: Vec<_> = chain
        .images
        .iter()
        .map(|i| (&i.path, &*i.format, i.virtual_size))
        .collect();
    let root = place.path("").canonicalize().unwrap();
    let expected = [
        (&root.join("top.qcow2"), "qcow2", 16 << 20),
        (&root.join("sub/first.qcow2"), "qcow2", 16 << 20),
        (&root.join("bottom.raw"), "raw", 1 << 20),
    ];
    assert_eq!(found, expected);
    let mut reader = Command::new("sleep");
    let all = ["top.qcow2", "sub/first.qcow2", "bottom.raw"];
    let mut reader = reader
        .arg("60")
        .stdin(std::fs::File::open(place.path(all[0])).unwrap())
        .stdout(std::fs::File::open(place.path(all[1])).unwrap())
        .stderr(std::fs::File::open(place.path(all[2])).unwrap())
        .spawn()
        .unwrap();
    // Its libraries are open for a moment.
    std::thread::sleep(Duration::from_millis(300));
    chain.verify_opened(reader.id()).unwrap();

    // The second check does not start qemu-img.
    let started = std::time::Instant::now();
    assert_eq!(place.check(&top).unwrap(), chain);
    println!("second check: {:?}", started.elapsed());
    std::fs::write(place.path("bottom.raw"), vec![8; 1 << 20]).unwrap();
    let error = chain.verify_opened(reader.id()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("bottom.raw: the file was changed"),
        "{error}"
    );
    let other = Chain::default().verify_opened(reader.id()).unwrap_err();
    assert!(other.to_string().contains("in place of"), "{other}");
    reader.kill().unwrap();
    reader.wait().unwrap();
    assert_ne!(place.check(&top).unwrap(), chain);
}

#[test]
fn what_is_missing_or_outside() {
    let place = Place::new();
    let top = place.on("a.qcow2", "nowhere.qcow2", "qcow2");
    let error = place.refused(&top, "nowhere.qcow2");
    assert!(matches!(error, Error::ImageMissing { .. }) && error.to_string().contains("a.qcow2"));

    for format in ["qcow2", "raw"] {
        let top = place.on("b.qcow2", "/etc/shadow", format);
        assert!(matches!(
            place.refused(&top, "/etc/shadow"),
            Error::ImageOutside { .. }
        ));
    }
    place.create("../elsewhere/c.qcow2");
    let top = place.on("d.qcow2", "../elsewhere/c.qcow2", "qcow2");
    assert!(matches!(
        place.refused(&top, "elsewhere/c.qcow2"),
        Error::ImageOutside { .. }
    ));
    symlink("../elsewhere/c.qcow2", place.path("e.qcow2")).unwrap();
    let top = place.on("f.qcow2", "e.qcow2", "qcow2");
    assert!(matches!(
        place.refused(&top, "elsewhere/c.qcow2"),
        Error::ImageOutside { .. }
    ));
    assert!(matches!(
        place.refused(&place.path("e.qcow2"), "c.qcow2"),
        Error::ImageOutside { .. }
    ));
    let twin = place.dir.path().join("repo-twin");
    std::fs::create_dir(&twin).unwrap();
    std::fs::copy(place.create("g.qcow2"), twin.join("g.qcow2")).unwrap();
    assert!(matches!(
        place.check(&twin.join("g.qcow2")),
        Err(Error::ImageOutside { .. })
    ));
    assert!(matches!(
        place.check(&place.path("h.qcow2")),
        Err(Error::ImageMissing { .. })
    ));
    place.refused(&place.path("sub"), "not a regular file");
}

#[test]
fn loops() {
    let place = Place::new();
    let top = place.create("self.qcow2");
    place.qemu_img(&[
        "rebase",
        "-u",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        "self.qcow2",
        "self.qcow2",
    ]);
    place.refused(&top, "its own backing file");
    place.on("y.qcow2", "sub/../x.qcow2", "qcow2");
    let x = place.on("x.qcow2", "y.qcow2", "qcow2");
    place.refused(&x, "loop");
}

#[test]
fn protocols_are_not_paths() {
    let place = Place::new();
    for name in [
        r#"json:{"driver":"file","filename":"/etc/shadow"}"#,
        "nbd://localhost/x",
        "nbd:unix:/tmp/x",
        "http://localhost/x.qcow2",
        "file:/etc/shadow",
        "fat:rw:/etc",
    ] {
        let top = place.on("p.qcow2", name, "qcow2");
        assert!(
            matches!(place.refused(&top, "protocol"), Error::Unsupported { .. }),
            "{name}"
        );
    }
    let top = place.on("p.qcow2", "x.vmdk", "vmdk");
    std::fs::write(place.path("x.vmdk"), "KDMV").unwrap();
    place.refused(&top, "vmdk");
}

#[test]
fn damaged_images() {
    let place = Place::new();
    let good = std::fs::read(place.create("good.qcow2")).unwrap();
    let bad = place.path("bad.qcow2");
    let put = |bytes: &[u8], message: &str| {
        std::fs::write(&bad, bytes).unwrap();
        place.refused(&bad, message)
    };
    put(&[], "empty");
    put(b"garbage, and quite a lot of it", "not a qcow2 image");
    put(&vec![0; 1 << 20], "not a qcow2 image");
    put(&good[..50], "truncated");
    put(&good[..100], "truncated");
    put(&good[..70_000], "truncated");
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    put(&with(4, &[0, 0, 0, 9]), "version 9");
    put(&with(20, &[0, 0, 0, 60]), "cluster size");
    put(&with(24, &[0xff; 8]), "disk size");
    put(&with(32, &[0, 0, 0, 2]), "encrypted");
    put(&with(36, &[0xff; 4]), "table size");
    put(&with(40, &[0xff; 8]), "truncated");
    put(&with(72, &[0x80]), "unknown qcow2 features");
    put(&with(79, &[4]), "external data file");
    put(&with(100, &[0xff; 4]), "header length");
    put(
        &with(8, &[0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]),
        "backing file name",
    );
    put(&with(116, &[0xff; 4]), "extension");
    // No header, however mangled, makes the reading panic or hang.
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&bad)
        .unwrap();
    let mut seed = 12345_u32;
    for _ in 0..20_000 {
        let mut image = good[..1024].to_vec();
        for _ in 0..4 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            image[4 + (seed >> 8) as usize % 300] = seed as u8;
        }
        file.write_all_at(&image, 0).unwrap();
        let _ = Header::read_from(&file, good.len() as u64, &bad);
    }
}

#[test]
fn headers_as_qemu_writes_them() {
    let place = Place::new();
    for compat in ["0.10", "1.1"] {
        place.create("base.qcow2");
        let option = format!("compat={compat},cluster_size=4k");
        place.qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &option,
            "-b",
            "base.qcow2",
            "-F",
            "qcow2",
            "top.qcow2",
        ]);
        let header = Header::read(&place.path("top.qcow2")).unwrap();
        assert_eq!(header.version, if compat == "1.1" { 3 } else { 2 });
        assert_eq!((header.virtual_size, header.cluster_size), (16 << 20, 4096));
        assert_eq!(
            header.backing_file.as_deref(),
            Some(Path::new("base.qcow2"))
        );
        assert_eq!(header.backing_format.as_deref(), Some("qcow2"));
        assert_eq!(
            place.check(&place.path("top.qcow2")).unwrap().images.len(),
            2
        );
    }
}

#[test]
fn data_files() {
    let place = Place::new();
    let create = |name: &str, data: &str| {
        let option = format!("data_file={data}");
        place.qemu_img(&["create", "-q", "-f", "qcow2", "-o", &option, name, "1M"]);
        place.path(name)
    };
    let top = create("d.qcow2", "d.raw");
    let chain = place.check(&top).unwrap();
    let data = place.path("d.raw").canonicalize().unwrap();
    assert_eq!(chain.images[0].data_file.as_deref(), Some(&*data));
    place.refused(&create("e.qcow2", "../elsewhere/e.raw"), "elsewhere/e.raw");
    std::fs::remove_file(data).unwrap();
    assert!(matches!(
        place.refused(&top, "d.raw"),
        Error::ImageMissing { .. }
    ));
    std::fs::hard_link(&top, place.path("x")).unwrap();
    symlink("d.qcow2", place.path("d.raw")).unwrap();
    place.refused(&top, "cannot also be");
}

#[test]
fn a_backing_file_without_a_format_must_be_qcow2() {
    let place = Place::new();
    place.create("base.qcow2");
    let top = place.on("top.qcow2", "base.qcow2", "qcow2");
    let mut image = std::fs::read(&top).unwrap();
    // Turns the extension into one that nobody knows.
    let at = image
        .windows(4)
        .position(|w| w == 0xe279_2aca_u32.to_be_bytes())
        .unwrap();
    image[at..at + 4].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    std::fs::write(&top, image).unwrap();
    assert_eq!(Header::read(&top).unwrap().backing_format, None);
    assert_eq!(place.check(&top).unwrap().images[1].format, "qcow2");
    std::fs::write(place.path("base.qcow2"), vec![1; 100_000]).unwrap();
    place.refused(&top, "not a qcow2 image");
}

#[test]
fn a_chain_deeper_than_the_limit() {
    let place = Place::new();
    let image = place.on("0", "1", "qcow2");
    let bytes = std::fs::read(&image).unwrap();
    let at = bytes.windows(2).rposition(|w| w == [b'1', 0]).unwrap();
    for i in 0..=MAX_DEPTH {
        let mut bytes = bytes.clone();
        let next = format!("{}", i + 1);
        bytes[at..at + next.len()].copy_from_slice(next.as_bytes());
        bytes[19] = next.len() as u8;
        std::fs::write(place.path(&i.to_string()), bytes).unwrap();
    }
    place.refused(&image, "longer than");
}

/// Whole images pass, in every layout; cut ones do not, wherever `qemu-img compare`
/// finds something missing.
#[test]
fn truncated_images() {
    let place = Place::new();
    let mut cut_ones = 0;
    for option in [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2M",
        "refcount_bits=1",
        "refcount_bits=64",
        "extended_l2=on",
        "preallocation=metadata",
        "preallocation=falloc",
        "lazy_refcounts=on",
    ] {
        place.qemu_img(&[
            "create", "-q", "-f", "qcow2", "-o", option, "w.qcow2", "40M",
        ]);
        let whole = place.path("w.qcow2");
        place
            .check(&whole)
            .unwrap_or_else(|e| panic!("{option}, empty: {e}"));
        let writes = [
            "write -P 1 1M 3M",
            "write -P 2 30M 777",
            "write -z 2M 1M",
            "discard 3M 512k",
        ];
        let mut qemu_io = Command::new("qemu-io");
        qemu_io
            .args(["-f", "qcow2"])
            .args(writes.iter().flat_map(|w| ["-c", w]))
            .arg(&whole);
        assert!(qemu_io.output().unwrap().status.success());
        if option != "refcount_bits=1" {
            place.qemu_img(&["snapshot", "-c", "one", "w.qcow2"]);
        }
        place.qemu_img(&[
            "convert", "-c", "-f", "qcow2", "-O", "qcow2", "w.qcow2", "c.qcow2",
        ]);
        for name in ["w.qcow2", "c.qcow2"] {
            let whole = place.path(name);
            place
                .check(&whole)
                .unwrap_or_else(|e| panic!("{option}, {name}: {e}"));
            let len = whole.metadata().unwrap().len();
            for cut in 1..12 {
                let cut_one = place.path("cut.qcow2");
                std::fs::copy(&whole, &cut_one).unwrap();
                let file = std::fs::File::options().write(true).open(&cut_one).unwrap();
                file.set_len(len * cut / 12).unwrap();
                let mut compare = Command::new("qemu-img");
                compare
                    .args(["compare", "-f", "qcow2", "-F", "qcow2"])
                    .arg(&whole)
                    .arg(&cut_one);
                let out = compare.output().unwrap();
                let ours = place.check(&cut_one);
                if !out.status.success() {
                    assert!(ours.is_err(), "{option}, {name}, {cut}/12: {out:?}");
                    cut_ones += 1;
                }
            }
        }
    }
    assert!(cut_ones > 100, "{cut_ones}");
}
