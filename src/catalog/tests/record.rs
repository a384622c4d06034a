use super::*;
use std::str::FromStr;

fn new(image: &Path) -> NewImage {
    NewImage {
        vm: "mail".into(),
        disk_index: 0,
        image: image.to_owned(),
        backup: None,
        time: Some(1_759_947_871),
        context: None,
        format: "qcow2".into(),
    }
}

#[test]
fn an_image_in_any_place_is_recorded() {
    let world = World::new();
    let image = world.repository.join("any name.img");
    qemu_img(&["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "5M"]);
    let error = world
        .catalog
        .add_image(&new(&image), &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("sendense catalog repository add /"),
        "{error}"
    );
    let configured = [world.repository.clone()];
    let backup = world.catalog.add_image(&new(&image), &configured).unwrap();
    assert_eq!(backup, "backup-mail-1759947871");
    let tree = world.tree();
    assert_eq!(tree[2].0, "mail/backup-mail-1759947871/disk0");
    let error = world
        .catalog
        .add_image(&new(&image), &configured)
        .unwrap_err()
        .to_string();
    assert!(error.contains("recorded already, as disk 0"), "{error}");
    // A raw one beside it; now the repository is recorded.
    let raw = world.repository.join("raw");
    std::fs::write(&raw, [0; 4096]).unwrap();
    let second = NewImage {
        disk_index: 1,
        ..new(&raw)
    };
    let error = world
        .catalog
        .add_image(&second, &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("not a qcow2 image"),
        "never guessed: {error}"
    );
    let second = NewImage {
        format: "raw".into(),
        ..second
    };
    world.catalog.add_image(&second, &[]).unwrap();
    let disks = world.catalog.disks(tree[1].1).unwrap();
    assert_eq!(
        (disks[1].format.as_str(), disks[1].size),
        ("raw", Some(4096))
    );
    // Scans know it, though it is not of the layout.
    let before = world.dump();
    let summary = world.scan();
    assert_eq!((summary.unchanged, summary.gone), (2, 0));
    assert_eq!(world.dump(), before);
    let away = world.repository.with_file_name("away");
    std::fs::rename(&image, &away).unwrap();
    assert_eq!(world.scan().gone, 1);
    std::fs::rename(&away, &image).unwrap();
    assert_eq!(world.scan().returned, 1);
    assert_eq!(world.tree()[..3], tree[..]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let world = World::new();
    let image = world.image("ctx", "mail", 0, "20251001-010000");
    world.scan();
    let other = world.repository.join("other");
    qemu_img(&["create", "-q", "-f", "qcow2", other.to_str().unwrap(), "5M"]);
    let known = Some("backup-mail-1759276800".to_owned());
    let plain = NewImage {
        time: None,
        ..new(&other)
    };
    for (bad, word) in [
        (
            NewImage {
                vm: "a/b".into(),
                ..plain.clone()
            },
            "cannot be a VM's name",
        ),
        (
            NewImage {
                format: "vmdk".into(),
                ..plain.clone()
            },
            "none of qcow2, raw",
        ),
        (
            NewImage {
                backup: Some("..".into()),
                ..plain.clone()
            },
            "cannot be a backup's id",
        ),
        (
            NewImage {
                backup: Some("latest".into()),
                ..plain.clone()
            },
            "cannot be a backup's id",
        ),
        (
            NewImage {
                backup: known.clone(),
                ..plain.clone()
            },
            "is recorded already: ",
        ),
        (
            NewImage {
                backup: known.clone(),
                vm: "x".into(),
                ..plain.clone()
            },
            "VM mail",
        ),
        (
            NewImage {
                context: Some("ctx".into()),
                vm: "x".into(),
                ..plain.clone()
            },
            "VM mail",
        ),
        (
            NewImage {
                backup: known.clone(),
                time: Some(1),
                ..plain.clone()
            },
            "was taken at",
        ),
        (
            NewImage {
                image: "/nonexistent".into(),
                ..plain.clone()
            },
            "No such file",
        ),
        (
            NewImage {
                image: world.repository.clone(),
                ..plain.clone()
            },
            "not a regular file",
        ),
        (
            NewImage {
                image: "/etc/passwd".into(),
                ..plain.clone()
            },
            "lies in no repository",
        ),
        (
            NewImage {
                image,
                ..plain.clone()
            },
            "recorded already, as disk 0",
        ),
    ] {
        let before = world.dump();
        let error = world.catalog.add_image(&bad, &[]).unwrap_err().to_string();
        assert!(error.contains(word), "{bad:?}: {error}");
        assert_eq!(world.dump(), before);
    }
    let joined = NewImage {
        backup: known,
        disk_index: 3,
        ..plain
    };
    world.catalog.add_image(&joined, &[]).unwrap();
    world.id("mail/backup-mail-1759276800/disk3");
}

#[test]
fn rows_are_removed_and_images_stay() {
    let world = World::new();
    let full = world.image("ctx", "db", 0, "20251001-010000");
    let second = world.overlay(&full, "20251002-010000");
    let other = world.image("ctx2", "web", 0, "20251001-010000");
    world.image("ctx2", "web", 1, "20251001-010000");
    world.scan();
    let removed = world.catalog.remove_backup("backup-db-1759276800").unwrap();
    assert_eq!((removed.backups, removed.disks, removed.orphans), (1, 1, 1));
    assert!(full.exists());
    assert_eq!(world.catalog.vm_folders().unwrap().len(), 2);
    assert!(matches!(
        world.catalog.remove_backup("x"),
        Err(Error::NotFound { .. })
    ));
    // Found again, with new ids, and the chain is whole again.
    assert_eq!(world.scan().new, 1);
    assert_eq!(
        world.value::<String>("SELECT full_backup_id FROM backup_chains WHERE sequence_number = 2"),
        "backup-db-1759276800"
    );
    std::fs::remove_file(&second).unwrap();
    std::fs::remove_file(&other).unwrap();
    world.scan();
    let removed = world.catalog.remove_gone().unwrap();
    assert_eq!((removed.backups, removed.disks), (1, 2));
    assert_eq!(world.value::<i64>("SELECT count(*) FROM backup_disks"), 2);
    let removed = world.catalog.remove_vm("web").unwrap();
    assert_eq!(
        (removed.vm_contexts, removed.backups, removed.disks),
        (1, 1, 1)
    );
    assert_eq!(
        world.names(),
        [
            "db",
            "db/backup-db-1759276800",
            "db/backup-db-1759276800/disk0"
        ]
    );
}

#[test]
fn repositories_are_rows() {
    let world = World::new();
    let found = world
        .catalog
        .add_repository(&world.repository, None)
        .unwrap();
    assert_eq!(
        (found.kind, &found.path),
        (RepositoryKind::Local, &world.repository)
    );
    let kind = RepositoryKind::from_str("immutable").unwrap();
    let again = world
        .catalog
        .add_repository(&world.repository.join("."), Some(kind))
        .unwrap();
    assert_eq!(
        (again.id, again.kind),
        (found.id, RepositoryKind::Immutable)
    );
    // Not said is not found out again.
    world.scan();
    assert_eq!(world.catalog.repositories().unwrap(), [again]);
    assert!(RepositoryKind::from_str("tape").is_err());
    assert!(
        world
            .catalog
            .add_repository(Path::new("/etc/passwd"), None)
            .is_err()
    );
    world.image("ctx", "db", 0, "20251001-010000");
    world.scan();
    let error = world
        .catalog
        .remove_repository(&world.repository)
        .unwrap_err()
        .to_string();
    assert!(error.contains("catalog remove --vm"), "{error}");
    world.catalog.remove_vm("db").unwrap();
    std::fs::remove_dir_all(&world.repository).unwrap();
    world.catalog.remove_repository(&world.repository).unwrap();
    assert!(matches!(
        world.catalog.remove_repository(&world.repository),
        Err(Error::NotFound { .. })
    ));
}

#[test]
fn a_disk_tells_which_file_was_recorded() {
    use std::os::unix::fs::MetadataExt;
    let world = World::new();
    let image = world.image("ctx", "db", 0, "20251001-010000");
    // Before 1970, and with nanoseconds.
    let touched = Command::new("touch")
        .args(["-d", "1969-12-31 23:59:58.75 UTC"])
        .arg(&image)
        .status();
    assert!(touched.unwrap().success());
    world.scan();
    let id = world.id("db/backup-db-1759276800/disk0");
    let recorded = |id| world.catalog.disk(id).unwrap().unwrap().0.identity;
    let meta = std::fs::metadata(&image).unwrap();
    let truth = ImageIdentity {
        inode: meta.ino(),
        size: meta.len(),
        mtime_seconds: -2,
        mtime_nanoseconds: 750_000_000,
    };
    assert_eq!(recorded(id), Some(truth));
    assert_eq!(recorded(id), Some(ImageIdentity::of(&meta)));
    // Overwritten in place: the row says so until a scan gives it another id.
    let file = std::fs::OpenOptions::new().write(true).open(&image);
    file.unwrap().set_len(1 << 20).unwrap();
    let now = ImageIdentity::of(&std::fs::metadata(&image).unwrap());
    assert_ne!(recorded(id), Some(now));
    world.scan();
    assert_eq!(
        recorded(world.id("db/backup-db-1759276800/disk0")),
        Some(now)
    );
    // By hand.
    let raw = world.repository.join("raw");
    std::fs::write(&raw, [0; 4096]).unwrap();
    let new = NewImage {
        format: "raw".into(),
        ..new(&raw)
    };
    world.catalog.add_image(&new, &[]).unwrap();
    let id = world.id("mail/backup-mail-1759947871/disk0");
    let now = ImageIdentity::of(&std::fs::metadata(&raw).unwrap());
    assert_eq!(recorded(id), Some(now));
}

#[test]
fn a_catalog_of_the_first_version_is_brought_up_to_date() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.db");
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch(include_str!("../../../migrations/0001_catalog.sql"))
        .unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    let error = Catalog::open_read_only(&path).err().unwrap().to_string();
    assert!(error.contains("older version"), "{error}");
    let catalog = Catalog::open(&path).unwrap();
    assert_eq!(catalog.disk(1).unwrap(), None);
    Catalog::open_read_only(&path).unwrap();
}
