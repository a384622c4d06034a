use super::*;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

fn counts(summary: &ScanSummary) -> [u64; 7] {
    [
        summary.found,
        summary.new,
        summary.unchanged,
        summary.changed,
        summary.returned,
        summary.gone,
        summary.failed,
    ]
}

#[test]
fn the_disks_of_a_run_are_one_backup() {
    let world = World::new();
    let first = world.image("ctx-a", "pgtest1", 0, "20251008-192431");
    world.image("ctx-a", "pgtest1", 1, "20251008-192531");
    // A second later than the run may last, and another VM's.
    world.image("ctx-a", "pgtest1", 2, "20251008-192532");
    world.image("ctx-b", "other", 0, "20251008-192431");
    assert_eq!(counts(&world.scan()), [4, 4, 0, 0, 0, 0, 0]);
    assert_eq!(
        world.names(),
        [
            "other",
            "other/backup-other-1759947871",
            "other/backup-other-1759947871/disk0",
            "pgtest1",
            "pgtest1/backup-pgtest1-1759947871",
            "pgtest1/backup-pgtest1-1759947871/disk0",
            "pgtest1/backup-pgtest1-1759947871/disk1",
            "pgtest1/backup-pgtest1-1759947932",
            "pgtest1/backup-pgtest1-1759947932/disk2",
        ]
    );
    let vm = world.catalog.vm_folder("pgtest1").unwrap().unwrap();
    assert_eq!(vm.time, 1_759_947_932);
    let latest = world.catalog.latest(vm.id).unwrap().unwrap();
    assert_eq!(latest.name, "backup-pgtest1-1759947932");
    let id = world.id("pgtest1/backup-pgtest1-1759947871/disk0");
    let (disk, _) = world.catalog.disk(id).unwrap().unwrap();
    assert_eq!((disk.path, disk.format.as_str()), (first, "qcow2"));
    assert_eq!((disk.size, disk.time), (Some(5 << 20), 1_759_947_871));
    // A disk that was late joins its run in a later scan, an earlier stamp too.
    world.image("ctx-a", "pgtest1", 3, "20251008-192421");
    assert_eq!(counts(&world.scan()), [5, 1, 4, 0, 0, 0, 0]);
    world.id("pgtest1/backup-pgtest1-1759947871/disk3");
}

#[test]
fn a_taken_backup_id_gets_a_number() {
    let world = World::new();
    world.image("ctx-a", "web", 0, "20251008-192431");
    world.image("ctx-b", "web", 0, "20251008-192431");
    // The same disk twice in a minute is two runs.
    world.image("ctx-b", "web", 0, "20251008-192441");
    world.scan();
    assert_eq!(
        world.names(),
        [
            "web",
            "web/backup-web-1759947871",
            "web/backup-web-1759947871/disk0",
            "web/backup-web-1759947871-2",
            "web/backup-web-1759947871-2/disk0",
            "web/backup-web-1759947881",
            "web/backup-web-1759947881/disk0",
        ]
    );
}

#[test]
fn chains_are_read_from_the_images() {
    let world = World::new();
    let full = world.image("ctx", "db", 0, "20251001-010000");
    let second = world.overlay(&full, "20251002-010000");
    let third = world.overlay(&second, "20251003-010000");
    // A relative name, as QEMU resolves it: against the image's own folder.
    let fourth = world.path("ctx", "db", 0, "20251004-010000");
    let name = format!("../disk-0/{}", third.file_name().unwrap().to_str().unwrap());
    let target = fourth.to_str().unwrap();
    qemu_img(&[
        "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &name, target,
    ]);
    let fresh = world.image("ctx", "db", 0, "20251005-010000");
    world.scan();
    let rows = |world: &World| {
        world
            .catalog
            .rows(
                "SELECT d.qcow2_path, j.backup_type, c.sequence_number, p.qcow2_path
                 FROM backup_jobs j JOIN backup_disks d ON d.backup_job_id = j.id AND d.status <> 'missing'
                 JOIN backup_chains c ON c.backup_job_id = j.id
                 LEFT JOIN backup_disks p ON p.backup_job_id = j.parent_backup_id
                     AND p.status <> 'missing'
                 ORDER BY j.created_at",
                [],
                |row| {
                    Ok((
                        PathBuf::from(row.get::<_, String>(0)?),
                        row.get::<_, String>(1)?,
                        row.get::<_, i64>(2)?,
                        row.get::<_, Option<String>>(3)?.map(PathBuf::from),
                    ))
                },
            )
            .unwrap()
    };
    let found = rows(&world);
    let row = |image: &PathBuf, kind: &str, number, parent: Option<&PathBuf>| {
        (image.clone(), kind.to_owned(), number, parent.cloned())
    };
    assert_eq!(
        found,
        [
            row(&full, "full", 1, None),
            row(&second, "incremental", 2, Some(&full)),
            row(&third, "incremental", 3, Some(&second)),
            row(&fourth, "incremental", 4, Some(&third)),
            row(&fresh, "full", 1, None),
        ]
    );
    // The truth about each: qemu-img.
    for (image, kind, _, parent) in &found {
        let info = qemu_img(&[
            "info",
            "-U",
            "-f",
            "qcow2",
            "--output=json",
            image.to_str().unwrap(),
        ]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        let backing = info
            .get("full-backing-filename")
            .and_then(|name| name.as_str());
        let backing = backing.map(|name| Path::new(name).canonicalize().unwrap());
        assert_eq!(backing.as_ref(), parent.as_ref());
        assert_eq!(kind == "incremental", backing.is_some());
        assert_eq!(info["virtual-size"], 5 << 20);
    }
    let id = |image: &PathBuf| -> i64 {
        let sql = format!(
            "SELECT id FROM backup_disks WHERE status <> 'missing' AND qcow2_path = '{}'",
            image.display()
        );
        world.value(&sql)
    };
    let before = [&full, &second, &third, &fourth, &fresh].map(id);
    // Made independent of its parent: a full backup, and the chain is cut.
    qemu_img(&[
        "rebase",
        "-u",
        "-f",
        "qcow2",
        "-b",
        "",
        third.to_str().unwrap(),
    ]);
    world.scan();
    let cut: Vec<(String, i64)> = rows(&world).into_iter().map(|row| (row.1, row.2)).collect();
    let expected = [
        ("full", 1),
        ("incremental", 2),
        ("full", 1),
        ("incremental", 2),
        ("full", 1),
    ];
    assert_eq!(
        cut,
        expected.map(|(kind, number)| (kind.to_owned(), number))
    );
    // What stands on it shows another content now, though it is unchanged itself.
    let after = [&full, &second, &third, &fourth, &fresh].map(id);
    let same: Vec<bool> = before.iter().zip(&after).map(|(a, b)| a == b).collect();
    assert_eq!(same, [true, true, false, false, true]);
    let (dump, version) = (world.dump(), world.catalog.version().unwrap());
    world.scan();
    assert_eq!(
        (world.dump(), world.catalog.version().unwrap()),
        (dump, version)
    );
}

#[test]
fn a_second_scan_changes_nothing() {
    let world = World::new();
    let full = world.image("ctx", "db", 0, "20251001-010000");
    world.image("ctx", "db", 1, "20251001-010005");
    world.overlay(&full, "20251002-010000");
    fs::write(world.path("ctx", "db", 2, "20251001-010000"), b"").unwrap();
    fs::write(world.repository.join("readme.txt"), b"hello").unwrap();
    assert_eq!(counts(&world.scan()), [4, 4, 0, 0, 0, 0, 1]);
    let (before, version) = (world.dump(), world.catalog.version().unwrap());
    let second = world.scan();
    assert_eq!(counts(&second), [4, 0, 4, 0, 0, 0, 1]);
    assert_eq!(second.unknown, 1);
    assert_eq!(world.dump(), before);
    assert_eq!(world.catalog.version().unwrap(), version);
    // And the number does move when something changes.
    world.image("ctx", "db", 0, "20251003-010000");
    world.scan();
    assert_ne!(world.catalog.version().unwrap(), version);
}

#[test]
fn what_is_gone_is_hidden_and_comes_back_the_same() {
    let world = World::new();
    let image = world.image("ctx", "db", 0, "20251001-010000");
    let other = world.image("ctx", "db", 1, "20251001-010000");
    world.scan();
    let tree = world.tree();
    let away = world.repository.join("away");
    fs::rename(&image, &away).unwrap();
    assert_eq!(counts(&world.scan()), [1, 0, 1, 0, 0, 1, 0]);
    assert_eq!(
        world.names(),
        [
            "db",
            "db/backup-db-1759276800",
            "db/backup-db-1759276800/disk1"
        ]
    );
    fs::remove_file(&other).unwrap();
    assert_eq!(counts(&world.scan()), [0, 0, 0, 0, 0, 1, 0]);
    assert!(world.tree().is_empty());
    assert_eq!(counts(&world.scan()), [0; 7]);
    fs::rename(&away, &image).unwrap();
    assert_eq!(counts(&world.scan()), [1, 0, 0, 0, 1, 0, 0]);
    assert_eq!(world.tree(), tree[..3]);
}

#[test]
fn a_changed_image_is_another_disk() {
    let world = World::new();
    let image = world.image("ctx", "db", 0, "20251001-010000");
    world.scan();
    let name = "db/backup-db-1759276800/disk0";
    let (backup, first) = (world.id("db/backup-db-1759276800"), world.id(name));
    // Same size and time, another inode.
    let copy = world.repository.join("copy");
    let cp = Command::new("cp")
        .arg("-a")
        .args([&image, &copy])
        .status()
        .unwrap();
    assert!(cp.success());
    let original = world.repository.join("original");
    fs::rename(&image, &original).unwrap();
    fs::rename(&copy, &image).unwrap();
    assert_eq!(counts(&world.scan()), [1, 0, 0, 1, 0, 0, 0]);
    let second = world.id(name);
    assert!(second > first);
    assert_eq!(world.catalog.disk(first).unwrap(), None);
    assert_eq!(world.id("db/backup-db-1759276800"), backup);
    // Same inode, same size, another time.
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(5))
        .unwrap();
    assert_eq!(counts(&world.scan()), [1, 0, 0, 1, 0, 0, 0]);
    assert!(world.id(name) > second);
    // The very first one is back.
    fs::rename(&original, &image).unwrap();
    assert_eq!(counts(&world.scan()), [1, 0, 0, 0, 1, 0, 0]);
    assert_eq!(world.id(name), first);
}

#[test]
fn broken_images_are_told_and_picked_up_when_mended() {
    let world = World::new();
    let good = world.image("ctx", "db", 0, "20251001-010000");
    let bytes = fs::read(&good).unwrap();
    let empty = world.path("ctx", "db", 1, "20251001-010000");
    let cut = world.path("ctx", "db", 2, "20251001-010000");
    let text = world.path("ctx", "db", 3, "20251001-010000");
    let wild = world.path("ctx", "db", 4, "20251001-010000");
    fs::write(&empty, b"").unwrap();
    fs::write(&cut, &bytes[..70_000]).unwrap();
    fs::write(
        &text,
        b"not an image, but long enough to hold a header".repeat(9),
    )
    .unwrap();
    let mut broken = bytes.clone();
    broken[20..24].copy_from_slice(&63_u32.to_be_bytes());
    fs::write(&wild, &broken).unwrap();
    // A run of which nothing is complete does not appear at all.
    let alone = world.path("ctx", "db", 0, "20251002-010000");
    fs::write(&alone, b"").unwrap();
    let mut told = Vec::new();
    let summary = world.scan_with(&mut |event| {
        if let ScanEvent::Failed { path, reason } = event {
            told.push((path.to_owned(), reason.to_owned()));
        }
    });
    assert_eq!(counts(&summary), [6, 6, 0, 0, 0, 0, 5]);
    let reason = |path: &PathBuf| &told.iter().find(|(told, _)| told == path).unwrap().1;
    assert!(reason(&empty).contains("empty"));
    assert!(reason(&cut).contains("truncated"), "{}", reason(&cut));
    assert!(reason(&text).contains("not a qcow2"));
    assert!(reason(&wild).contains("cluster size"));
    // They are in the tree beside the good one: using them says why.
    let backup = world.id("db/backup-db-1759276800");
    assert_eq!(world.catalog.disks(backup).unwrap().len(), 5);
    assert_eq!(
        world.catalog.backup_folders(world.id("db")).unwrap().len(),
        1
    );
    let old = world.id("db/backup-db-1759276800/disk1");
    for path in [&empty, &alone] {
        fs::write(path, &bytes).unwrap();
    }
    assert_eq!(counts(&world.scan()), [6, 0, 4, 2, 0, 0, 3]);
    assert!(world.id("db/backup-db-1759276800/disk1") > old);
    world.id("db/backup-db-1759363200/disk0");
}

#[test]
fn an_image_that_is_written_is_not_complete() {
    let world = World::new();
    let image = world.image("ctx", "db", 0, "20251001-010000");
    let socket = world.repository.with_file_name("socket");
    let mut writer = Command::new("qemu-nbd")
        .args(["-f", "qcow2", "-t", "-k"])
        .args([&socket, &image])
        .spawn()
        .expect("qemu-nbd is needed");
    // It has the image open before it listens. (Looking with qemu-img before that
    // would take the lock that it needs.)
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < deadline, "qemu-nbd does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    let info = Command::new("qemu-img")
        .args(["info", "-f", "qcow2"])
        .arg(&image)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&info.stderr).contains("lock"));
    let during = world.scan();
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert_eq!(during.in_progress, 1);
    assert!(world.dump().contains("'in_progress'"));
    world.scan();
    world.id("db/backup-db-1759276800/disk0");
}

#[test]
fn links_out_of_the_repository_are_not_followed() {
    let world = World::new();
    let outside = world.repository.with_file_name("outside");
    fs::create_dir_all(outside.join("disk-0")).unwrap();
    let secret = outside.join("disk-0/backup-x-disk0-20251001-010000.qcow2");
    let inside = world.image("ctx", "db", 0, "20251001-010000");
    fs::copy(&inside, &secret).unwrap();
    symlink(&outside, world.repository.join("linked-context")).unwrap();
    symlink(outside.join("disk-0"), world.repository.join("ctx/disk-5")).unwrap();
    symlink(&secret, world.path("ctx", "db", 1, "20251001-010000")).unwrap();
    symlink(
        "/nonexistent",
        world.path("ctx", "db", 2, "20251001-010000"),
    )
    .unwrap();
    // Links that stay inside: a second name of an image, and one to a pool.
    symlink(&inside, world.path("ctx", "copy", 0, "20251001-020000")).unwrap();
    let pool = world.repository.join("pool.img");
    fs::copy(&inside, &pool).unwrap();
    symlink(
        "../../pool.img",
        world.path("ctx", "db", 3, "20251001-010000"),
    )
    .unwrap();
    let mut told = 0;
    let summary = world.scan_with(&mut |event| {
        if let ScanEvent::Outside { target, .. } = event {
            assert!(target.starts_with(&outside));
            told += 1;
        }
    });
    assert_eq!((summary.found, summary.outside, told), (2, 3, 3));
    assert_eq!(summary.unknown, 2, "the dangling link and the pool");
    assert_eq!(
        world.names()[1..],
        [
            "db/backup-db-1759276800",
            "db/backup-db-1759276800/disk0",
            "db/backup-db-1759276800/disk3"
        ]
    );
    assert_eq!(counts(&world.scan())[2], 2);
    // A known image replaced by a link out is gone.
    fs::remove_file(&inside).unwrap();
    symlink(&secret, &inside).unwrap();
    assert_eq!(world.scan().gone, 1);
}

#[test]
fn an_unreadable_folder_hides_nothing() {
    let world = World::new();
    let image = world.image("ctx", "db", 0, "20251001-010000");
    world.scan();
    let tree = world.tree();
    // Neither root nor another user can list a name that is too long a path.
    let folder = image.parent().unwrap();
    let away = world.repository.join("away");
    fs::rename(folder, &away).unwrap();
    symlink(folder, folder).unwrap();
    let summary = world.scan();
    assert_eq!((summary.gone, summary.unreadable), (0, 1));
    assert_eq!(world.tree(), tree);
    assert!(
        world
            .catalog
            .scan(
                Path::new("/nonexistent"),
                &ScanOptions::default(),
                &mut |_| {}
            )
            .is_err()
    );
}

#[test]
fn odd_names_are_kept() {
    let world = World::new();
    for vm in [
        "Büro Köln",
        "日本",
        "a'b\"; DROP TABLE folders; --",
        "-disk0-",
        "line\nbreak",
        "%s",
    ] {
        world.image(&format!("ctx {vm}"), vm, 0, "20251001-010000");
    }
    let raw = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"file-\xff");
    fs::write(world.repository.join(raw), b"").unwrap();
    let summary = world.scan();
    assert_eq!((summary.found, summary.unknown), (6, 1));
    let names: Vec<_> = world.catalog.vm_folders().unwrap();
    for vm in names {
        assert_eq!(world.catalog.vm_folder(&vm.name).unwrap(), Some(vm.clone()));
        let backups = world.catalog.backup_folders(vm.id).unwrap();
        assert_eq!(backups.len(), 1);
        let found = world
            .catalog
            .backup_folder(vm.id, &backups[0].name)
            .unwrap();
        assert_eq!(found, Some(backups[0].clone()));
        let found = world.catalog.folder(backups[0].id).unwrap();
        assert_eq!(found, Some((backups[0].clone(), Some(vm.id))));
        assert_eq!(world.catalog.folder(vm.id).unwrap(), Some((vm, None)));
    }
    assert_eq!(world.catalog.vm_folders().unwrap().len(), 6);
}

#[test]
fn a_copy_of_a_repository_is_told_apart() {
    let world = World::new();
    world.image("ctx", "db", 0, "20251001-010000");
    world.scan();
    let copy = world.repository.with_file_name("copy");
    let cp = Command::new("cp")
        .arg("-a")
        .args([&world.repository, &copy])
        .status()
        .unwrap();
    assert!(cp.success());
    let options = ScanOptions {
        time_zone: TimeZone::fixed(offset(1)),
        ..ScanOptions::default()
    };
    for new in [1, 0] {
        let summary = world.catalog.scan(&copy, &options, &mut |_| {}).unwrap();
        assert_eq!((summary.found, summary.new), (1, new));
    }
    assert_eq!(world.scan().unchanged, 1);
    assert_eq!(world.catalog.repositories().unwrap().len(), 2);
    world.id("db/backup-db-1759276800-2/disk0");
}

#[test]
fn thousands_of_images_take_no_time() {
    let world = World::new();
    let template = world.image("ctx-0", "vm0", 0, "20240101-000000");
    let header = fs::read(&template).unwrap()[..112].to_vec();
    for vm in 0..50 {
        for day in 1..=28 {
            for month in 1..=3 {
                let stamp = format!("2025{month:02}{day:02}-010000");
                let path = world.path(&format!("ctx-{vm}"), &format!("vm{vm}"), 0, &stamp);
                let mut file = fs::File::create(&path).unwrap();
                file.write_all(&header).unwrap();
                file.seek(SeekFrom::Start(0x3_0007)).unwrap();
                file.write_all(&[0]).unwrap();
            }
        }
    }
    let clock = Instant::now();
    let summary = world.scan();
    let first = clock.elapsed();
    assert_eq!((summary.found, summary.failed), (4_201, 0));
    let clock = Instant::now();
    assert_eq!(world.scan().unchanged, 4_201);
    let second = clock.elapsed();
    let clock = Instant::now();
    for vm in world.catalog.vm_folders().unwrap() {
        assert!(world.catalog.backup_folders(vm.id).unwrap().len() >= 84);
        assert!(world.catalog.latest(vm.id).unwrap().is_some());
    }
    let listed = clock.elapsed();
    println!("first {first:?}, second {second:?}, listed {listed:?}");
    assert!(second < Duration::from_secs(2), "{second:?}");
    assert!(listed < Duration::from_secs(1), "{listed:?}");
}

fn refusal(world: &World, options: &ScanOptions) -> String {
    let before = world.dump();
    let scan = world.catalog.scan(&world.repository, options, &mut |_| {});
    let error = scan.unwrap_err().to_string();
    assert_eq!(world.dump(), before, "nothing was written");
    error
}

#[test]
fn a_repository_that_is_not_mounted_empties_nothing() {
    let world = World::new();
    let options = ScanOptions::default();
    // Nothing known, nothing there: that is no loss.
    let scan = |options: &ScanOptions| world.catalog.scan(&world.repository, options, &mut |_| {});
    scan(&options).unwrap();
    world.image("ctx", "db", 0, "20251001-010000");
    world.image("ctx", "db", 1, "20251001-010000");
    scan(&options).unwrap();
    let (tree, stamp) = (world.tree(), "20251001-020000");
    let away = world.repository.with_file_name("away");
    fs::rename(&world.repository, &away).unwrap();
    fs::create_dir(&world.repository).unwrap();
    let error = refusal(&world, &options);
    assert!(
        error.contains("2 images") && error.contains("`--all-gone`"),
        "{error}"
    );
    // Something else that lies in the folder below does not change that.
    fs::write(world.repository.join("README"), "not mounted").unwrap();
    refusal(&world, &options);
    // Any image shows that the repository is there.
    world.image("ctx", "db", 0, stamp);
    assert_eq!(scan(&options).unwrap().gone, 2);
    fs::remove_dir_all(&world.repository).unwrap();
    fs::rename(&away, &world.repository).unwrap();
    assert_eq!(scan(&options).unwrap().returned, 2);
    assert_eq!(world.tree(), tree);
    // Really gone.
    fs::remove_dir_all(world.repository.join("ctx")).unwrap();
    refusal(&world, &options);
    let gone = ScanOptions {
        all_gone: true,
        ..options.clone()
    };
    assert_eq!(scan(&gone).unwrap().gone, 2);
    assert!(world.tree().is_empty());
    scan(&options).unwrap();
}

#[test]
fn a_network_repository_on_a_local_file_system_is_not_mounted() {
    let world = World::new();
    world.image("ctx", "db", 0, "20251001-010000");
    let kind = |kind| ScanOptions {
        kind,
        all_gone: true,
        ..ScanOptions::default()
    };
    let scan = |options: &ScanOptions| world.catalog.scan(&world.repository, options, &mut |_| {});
    for remote in [RepositoryKind::Nfs, RepositoryKind::Cifs] {
        scan(&kind(Some(remote))).unwrap();
        let error = refusal(&world, &kind(None));
        let recorded = format!("recorded as {}", remote.name());
        assert!(
            error.contains(&recorded) && error.contains("--kind local"),
            "{error}"
        );
    }
    scan(&kind(Some(RepositoryKind::Local))).unwrap();
    scan(&kind(None)).unwrap();
}
