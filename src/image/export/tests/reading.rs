//! What is read, against QEMU's own tools.

use super::*;

#[test]
fn reads_what_qemu_img_reads() {
    let place = Place::new();
    let image = place.image();
    let truth = place.raw(&image);
    let export = Export::open(&image, "qcow2", &place.options()).unwrap();
    assert_eq!(export.size(), truth.len() as u64);
    assert!(
        read(&export, 0, truth.len()).unwrap() == truth,
        "the whole disk"
    );
    let mut at = 12345_usize;
    for step in 1..400_usize {
        at = (at * 31 + step * 7919) % truth.len();
        let len = (step * 977).min(truth.len() - at);
        assert!(
            read(&export, at as u64, len).unwrap() == truth[at..at + len],
            "{len} at {at}"
        );
    }
    assert_eq!(export.requests(), 8 + 399);
    assert!(export.bytes_read() > 64 << 20);
    assert!(read(&export, 5, 0).unwrap().is_empty());
    let end = export.size();
    assert!(matches!(
        read(&export, end - 1, 2),
        Err(Error::Corrupt { .. })
    ));
    assert!(matches!(
        read(&export, u64::MAX, 2),
        Err(Error::Corrupt { .. })
    ));
    let tally = Arc::new(Tally::default());
    export.submit(0, BytesMut::zeroed(33 << 20), tally.slot(0));
    export.submit(0, BytesMut::new(), tally.slot(1));
    let answers = tally.wait(2);
    assert!(matches!(answers[0], Err(Error::Invalid(_))));
    assert!(answers[1].is_ok());
    assert_eq!(export.restarts(), 0);
}

#[test]
fn a_chain_of_four_and_a_data_file() {
    let place = Place::new();
    place.image();
    let mut below = "disk.qcow2".to_owned();
    for (i, letter) in [(1, "0x61"), (2, "0x62"), (3, "0x63")] {
        let name = format!("inc{i}, \"odd\" %s: é.qcow2");
        let image = place.create(&name, &["-F", "qcow2", "-b", &format!("./{below}")]);
        place.write(
            &image,
            &[&format!("write -P {letter} {i}M 1500k"), "discard 0 64k"],
        );
        below = name;
    }
    let top = place.repo(&below);
    let truth = place.raw(&top);
    let export = Export::open(&top, "qcow2", &place.options()).unwrap();
    assert!(read(&export, 0, truth.len()).unwrap() == truth);

    let outer = place.create(
        "outer.qcow2",
        &["-o", "data_file=outer.data,data_file_raw=on", "8M"],
    );
    place.write(&outer, &["write -P 0x55 1M 1M"]);
    let truth = place.raw(&outer);
    let export = Export::open(&outer, "qcow2", &place.options()).unwrap();
    assert!(read(&export, 0, truth.len()).unwrap() == truth);
    let raw = Export::open(&place.repo("outer.data"), "raw", &place.options()).unwrap();
    assert!(read(&raw, 0, truth.len()).unwrap() == truth);
}

#[test]
fn an_image_in_use_elsewhere_is_readable() {
    let place = Place::new();
    let image = place.image();
    let mut writer = Command::new("qemu-io")
        .args(["-f", "qcow2"])
        .arg(&image)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Its prompt says that it has opened the image.
    let prompt = writer.stdout.as_mut().unwrap().read(&mut [0; 8]);
    assert!(prompt.unwrap() > 0);
    let mut other = Command::new("qemu-io");
    let out = other
        .args(["-f", "qcow2", "-c", "quit"])
        .arg(&image)
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("lock"),
        "{out:?}"
    );
    let export = Export::open(&image, "qcow2", &place.options()).unwrap();
    assert_eq!(read(&export, 0, 1).unwrap(), [0x41]);
    drop(writer.stdin.take());
    writer.wait().unwrap();
}

#[test]
fn what_the_daemon_was_started_with_does_not_reach_qemu_nbd() {
    let place = Place::new();
    let image = place.image();
    // Of no chain, and open without O_CLOEXEC, as a shell's redirection leaves it.
    let stray = image.with_file_name("stray");
    std::fs::write(&stray, b"x").unwrap();
    let _open = nix::fcntl::open(
        &stray,
        nix::fcntl::OFlag::O_RDONLY,
        nix::sys::stat::Mode::empty(),
    )
    .unwrap();
    let export = Export::open(&image, "qcow2", &place.options()).unwrap();
    export.read_at(0, &mut [0; 512]).unwrap();
}

#[test]
fn block_status_is_that_of_qemu_img_map() {
    #[derive(serde::Deserialize)]
    struct Stretch {
        start: u64,
        length: u64,
        zero: bool,
    }
    let place = Place::new();
    let image = place.image();
    let out = Command::new("qemu-img")
        .args(["map", "-f", "qcow2", "--output=json"])
        .arg(&image)
        .output()
        .unwrap();
    let truth: Vec<Stretch> = serde_json::from_slice(&out.stdout).unwrap();
    let truth: Vec<_> = truth
        .into_iter()
        .map(|s| (s.start, s.length, s.zero))
        .collect();
    let joined = |list: Vec<(u64, u64, bool)>| {
        let mut out: Vec<(u64, u64, bool)> = Vec::new();
        for (start, len, zero) in list {
            match out.last_mut() {
                Some(last) if last.2 == zero => last.1 += len,
                _ => out.push((start, len, zero)),
            }
        }
        out
    };
    let truth = joined(truth);
    let export = Export::open(&image, "qcow2", &place.options()).unwrap();
    let (mut at, mut found) = (0, Vec::new());
    while at < export.size() {
        for Allocation { len, hole } in export.block_status(at, u64::MAX).unwrap() {
            found.push((at, len, hole));
            at += len;
        }
    }
    assert_eq!(joined(found), truth);
    assert!(truth.len() > 5, "{truth:?}");
    // A part is cut to what was asked.
    let part = export.block_status((32 << 20) + 5, 10).unwrap();
    assert_eq!(
        part,
        [Allocation {
            len: 10,
            hole: false
        }]
    );
    assert!(export.block_status(export.size(), 1).is_err());
}
