use super::super::layout::ImageName;
use jiff::civil::date;
use jiff::tz::TimeZone;

#[test]
fn names_are_parsed_from_the_right() {
    for (folder, file, vm, index) in [
        (
            "disk-0",
            "backup-pgtest1-disk0-20251008-192431.qcow2",
            "pgtest1",
            0,
        ),
        (
            "disk-12",
            "backup-a-b.c-disk12-20251008-192431.qcow2",
            "a-b.c",
            12,
        ),
        (
            "disk-1",
            "backup-x-disk0-20200101-000000-disk1-20251008-192431.qcow2",
            "x-disk0-20200101-000000",
            1,
        ),
        (
            "disk-0",
            "backup--disk0--disk0-20251008-192431.qcow2",
            "-disk0-",
            0,
        ),
        (
            "disk-0",
            "backup-Büro Köln 日本\n'\"-disk0-20251008-192431.qcow2",
            "Büro Köln 日本\n'\"",
            0,
        ),
        (
            "disk-4294967295",
            "backup-x-disk4294967295-20251008-192431.qcow2",
            "x",
            u32::MAX,
        ),
    ] {
        let name = ImageName::parse(folder, file).unwrap_or_else(|| panic!("{file}"));
        assert_eq!((name.vm.as_str(), name.disk_index), (vm, index));
        assert_eq!(name.taken, date(2025, 10, 8).at(19, 24, 31, 0));
    }
}

#[test]
fn other_names_are_refused() {
    for (folder, file) in [
        ("disk-1", "backup-x-disk0-20251008-192431.qcow2"),
        ("disk-0", "backup-x-disk00-20251008-192431.qcow2"),
        ("disk-00", "backup-x-disk0-20251008-192431.qcow2"),
        ("disk-+0", "backup-x-disk+0-20251008-192431.qcow2"),
        (
            "disk-4294967296",
            "backup-x-disk4294967296-20251008-192431.qcow2",
        ),
        ("disk-0", "backup--disk0-20251008-192431.qcow2"),
        ("disk-0", "backup-..-disk0-20251008-192431.qcow2"),
        ("disk-0", "backup-x-disk0-20251308-192431.qcow2"),
        ("disk-0", "backup-x-disk0-20250230-192431.qcow2"),
        ("disk-0", "backup-x-disk0-20251008-242431.qcow2"),
        ("disk-0", "backup-x-disk0-2025100-192431.qcow2"),
        ("disk-0", "backup-x-disk0-20251008-1924é.qcow2"),
        ("disk-0", "backup-x-disk0-20251008-+92431.qcow2"),
        ("disk-0", "backup-x-disk0-20251008-192431.qcow2.tmp"),
        ("disk-0", "backup-x-disk0-20251008-192431.vmdk"),
        ("disk0", "backup-x-disk0-20251008-192431.qcow2"),
        ("disk-0", "x-disk0-20251008-192431.qcow2"),
        ("disk-0", ""),
    ] {
        assert_eq!(ImageName::parse(folder, file), None, "{folder}/{file}");
    }
}

#[test]
fn stamps_are_local_time() {
    let zone = TimeZone::get("Europe/Berlin").unwrap();
    let seconds = |stamp: &str| {
        let file = format!("backup-x-disk0-{stamp}.qcow2");
        ImageName::parse("disk-0", &file)
            .unwrap()
            .seconds(&zone)
            .unwrap()
    };
    // Truth by `date -d 'TZ="Europe/Berlin" …' +%s`.
    for (stamp, clock) in [
        ("20251008-192431", "2025-10-08 19:24:31"),
        ("20250101-000000", "2025-01-01 00:00:00"),
    ] {
        let output = std::process::Command::new("date")
            .args(["-d", &format!("TZ=\"Europe/Berlin\" {clock}"), "+%s"])
            .output()
            .unwrap();
        let truth: i64 = String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert_eq!(seconds(stamp), truth);
    }
    // Shown twice by the clock: the first; never shown: one hour on.
    assert_eq!(seconds("20251026-023000"), 1_761_438_600);
    assert_eq!(seconds("20250330-023000"), seconds("20250330-033000"));
}
