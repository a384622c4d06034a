//! Leases on real disks; what the catalog says is asked of `sqlite3`.

use super::*;
use crate::attachments::tests::World;
use sendense::Shortage;

struct Lab {
    world: World,
    leases: Arc<Leases>,
    _keeper: Keeper,
}

impl Lab {
    fn new(slots: usize, idle_timeout: Duration) -> Self {
        Self::over(World::new(slots, idle_timeout))
    }

    fn over(world: World) -> Self {
        let watch = Watch::new(world.dir.path(), &[]);
        let (catalog, slots) = (Arc::clone(&world.catalog), Arc::clone(&world.slots));
        let leases = Leases::resume(catalog, slots, watch, Path::new("/srv/x")).unwrap();
        Self {
            _keeper: Keeper::start(&leases).unwrap(),
            world,
            leases,
        }
    }

    fn status(&self, id: &str) -> String {
        let sql = format!("SELECT status FROM restore_mounts WHERE id = '{id}'");
        self.world.sqlite(&sql)
    }
}

const HOUR: Duration = Duration::from_secs(3600);

fn wait_for(what: &str, limit: Duration, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_mount_is_what_clients_know() {
    let lab = Lab::new(2, HOUR);
    lab.world.backup("a");
    let mount = lab.leases.mount("b-a", 0).unwrap();
    assert_eq!(mount.status, "mounted");
    assert_eq!(mount.mount_path.as_deref(), Some("/srv/x/vm/b-a/disk0"));
    assert_eq!(mount.filesystem_type.as_deref(), Some("ext4"));
    assert_eq!(mount.id.len(), 36);
    assert_eq!(mount.id.as_bytes()[14], b'4', "UUID version 4");
    let device = mount.nbd_device.clone().unwrap();
    // It serves the blocks: qemu's own tool reads them.
    let info = crate::attachments::tests::run("qemu-img", &["info", "--output=json", &device]);
    assert!(info.contains("\"virtual-size\": 8388608"), "{info}");
    let volumes: serde_json::Value = serde_json::from_str(&mount.volumes.unwrap()).unwrap();
    assert_eq!(
        volumes,
        serde_json::json!([{
            "name": "", "filesystem": "ext4", "label": "data", "size": 8 << 20,
            "state": "ready",
        }])
    );
    match lab.leases.mount("b-a", 0).unwrap_err() {
        Error::MountedAlready { mount_id, .. } => assert_eq!(mount_id, mount.id),
        other => panic!("{other}"),
    }
    assert_eq!(
        lab.leases.mount("b-a", 5).unwrap_err().to_string(),
        "disk not found: backup_id=b-a, disk_index=5"
    );
    // A reader in the middle of something does not keep it.
    let disk = u64::try_from(mount.backup_disk_id).unwrap();
    let in_use = lab.world.slots.get(disk).unwrap();
    lab.leases.unmount(&mount.id).unwrap();
    assert_eq!(lab.status(&mount.id), "unmounted");
    assert!(lab.world.slots.held().is_empty());
    assert!(lab.world.slots.get(disk).is_ok());
    drop(in_use);
    let error = lab.leases.unmount(&mount.id).unwrap_err().to_string();
    assert_eq!(error, format!("mount not found: {}", mount.id));
    // And again.
    assert_ne!(lab.leases.mount("b-a", 0).unwrap().id, mount.id);
}

#[test]
fn there_are_as_many_mounts_as_slots() {
    let lab = Lab::new(2, HOUR);
    for name in ["a", "b", "c"] {
        lab.world.backup(name);
    }
    let a = lab.leases.mount("b-a", 0).unwrap();
    lab.leases.mount("b-b", 0).unwrap();
    let error = lab.leases.mount("b-c", 0).unwrap_err();
    assert!(matches!(
        error,
        Error::NoSlot {
            slots: 2,
            shortage: Shortage::Mounts
        }
    ));
    // That a disk has a mount is told all the same.
    let error = lab.leases.mount("b-a", 0).unwrap_err();
    assert!(matches!(error, Error::MountedAlready { .. }));
    lab.leases.unmount(&a.id).unwrap();
    lab.leases.mount("b-c", 0).unwrap();
    assert_eq!(lab.world.sqlite("SELECT count(*) FROM restore_mounts"), "3");
}

/// Many ask for one disk: one has it.
#[test]
fn one_of_many_has_the_disk() {
    let lab = Lab::new(4, HOUR);
    lab.world.backup("a");
    let outcomes: Vec<Result<Mount>> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| lab.leases.mount("b-a", 0)))
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let mounted: Vec<&Mount> = outcomes.iter().flatten().collect();
    assert_eq!(mounted.len(), 1);
    for error in outcomes.iter().filter_map(|o| o.as_ref().err()) {
        match error {
            Error::MountedAlready { mount_id, .. } => assert_eq!(*mount_id, mounted[0].id),
            other => panic!("{other}"),
        }
    }
    assert_eq!(lab.world.slots.held().len(), 1);
}

#[test]
fn what_cannot_be_attached_has_failed() {
    let lab = Lab::new(1, HOUR);
    lab.world.backup("a");
    std::fs::remove_file(lab.world.repository().join("a.qcow2")).unwrap();
    let error = lab.leases.mount("b-a", 0).unwrap_err().to_string();
    assert!(error.contains("the image is not there"), "{error}");
    assert_eq!(
        lab.world
            .sqlite("SELECT status || '|' || error_message FROM restore_mounts"),
        format!("failed|{error}")
    );
    assert!(lab.world.slots.held().is_empty());
}

#[test]
fn use_keeps_it_and_disuse_ends_it() {
    let lab = Lab::new(2, Duration::from_secs(2));
    lab.world.backup("a");
    lab.world.backup("b");
    let (a, b) = (
        lab.leases.mount("b-a", 0).unwrap(),
        lab.leases.mount("b-b", 0).unwrap(),
    );
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        lab.leases.touch(&[a.id.clone(), "nonsense".into()]);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(lab.status(&a.id), "mounted");
    assert_eq!(lab.status(&b.id), "unmounted");
    assert!(matches!(lab.leases.unmount(&b.id), Err(Error::Expired)));
    // The row has followed.
    let late = format!(
        "SELECT julianday(expires_at) - julianday('now') > 0, last_accessed_at > created_at
         FROM restore_mounts WHERE id = '{}'",
        a.id
    );
    assert_eq!(lab.world.sqlite(&late), "1|1");
    wait_for("its end", Duration::from_secs(5), || {
        lab.status(&a.id) == "unmounted"
    });
    assert!(lab.world.slots.held().is_empty());
    assert_eq!(lab.world.slots.taken(), 0);
}

#[test]
fn a_mount_goes_with_its_row() {
    let lab = Lab::new(4, HOUR);
    for name in ["a", "b", "c"] {
        lab.world.backup(name);
    }
    let a = lab.leases.mount("b-a", 0).unwrap();
    let b = lab.leases.mount("b-b", 0).unwrap();
    let c = lab.leases.mount("b-c", 0).unwrap();
    lab.world.sqlite(&format!(
        "DELETE FROM backup_jobs WHERE id = 'b-a';
         UPDATE backup_disks SET status = 'missing' WHERE backup_job_id = 'b-b';
         INSERT INTO restore_mounts (id, backup_disk_id, status) VALUES ('stray', {}, 'unmounted');
         UPDATE restore_mounts SET status = 'mounting' WHERE id = 'stray' AND 0;",
        c.backup_disk_id
    ));
    wait_for("two ends", Duration::from_secs(3), || {
        lab.world.slots.held().len() == 1
    });
    assert!(lab.leases.unmount(&a.id).is_err());
    wait_for("the row's end", Duration::from_secs(3), || {
        lab.status(&b.id) == "failed"
    });
    assert_eq!(lab.status(&c.id), "mounted");
    // A row that is nobody's does not stand in the way for ever.
    lab.leases.unmount(&c.id).unwrap();
    lab.world
        .sqlite("UPDATE restore_mounts SET status = 'mounted' WHERE id = 'stray'");
    wait_for("its end", Duration::from_secs(3), || {
        lab.status("stray") == "failed"
    });
    lab.leases.mount("b-c", 0).unwrap();
}

#[test]
fn a_restart_keeps_what_was_used_lately() {
    let lab = Lab::new(2, HOUR);
    lab.world.backup("a");
    lab.world.backup("b");
    let a = lab.leases.mount("b-a", 0).unwrap();
    let b = lab.leases.mount("b-b", 0).unwrap();
    let Lab {
        world,
        leases,
        _keeper: keeper,
    } = lab;
    drop(keeper);
    drop(leases);
    world.slots.release_all();
    world.sqlite(&format!(
        "UPDATE restore_mounts SET expires_at = strftime('%Y-%m-%dT%H:%M:%SZ', 'now', '-1 seconds')
         WHERE id = '{}'",
        b.id
    ));
    // Fewer slots than before, too: the ones that were first stay.
    let slots = World::slots(&world.dir, &world.catalog, 1, HOUR);
    let lab = Lab::over(World { slots, ..world });
    wait_for("its device", Duration::from_secs(5), || {
        let mount = lab.world.catalog.mount(&a.id).unwrap().unwrap();
        mount
            .nbd_device
            .is_some_and(|device| Some(device) != a.nbd_device)
    });
    assert_eq!(lab.status(&a.id), "mounted");
    assert!(
        lab.world
            .catalog
            .mount(&b.id)
            .unwrap()
            .unwrap()
            .is_expired()
    );
    assert_eq!(lab.world.slots.held().len(), 1);
    assert!(lab.leases.mount("b-b", 0).is_err());
    lab.leases.unmount(&a.id).unwrap();
    assert_eq!(
        lab.world.sqlite("SELECT mounts FROM restore_mounts_so_far"),
        "2"
    );
}

/// A disk that was attached anew is served by something else.
#[test]
fn the_row_follows_the_export() {
    let lab = Lab::new(1, HOUR);
    let disk = lab.world.backup("a");
    let mount = lab.leases.mount("b-a", 0).unwrap();
    assert!(lab.world.slots.release(disk));
    wait_for("the new device", Duration::from_secs(5), || {
        let now = lab.world.catalog.mount(&mount.id).unwrap().unwrap();
        now.nbd_device
            .is_some_and(|device| Some(device) != mount.nbd_device)
    });
    assert!(lab.world.slots.peek(disk).is_some());
    // Also where a reader was faster than we are.
    let before = lab.world.catalog.mount(&mount.id).unwrap().unwrap();
    assert!(lab.world.slots.release(disk));
    let uri = lab.world.slots.get(disk).unwrap().export().uri();
    assert_ne!(Some(&uri), before.nbd_device.as_ref());
    wait_for("the reader's device", Duration::from_secs(5), || {
        let now = lab.world.catalog.mount(&mount.id).unwrap().unwrap();
        now.nbd_device.as_ref() == Some(&uri)
    });
}

/// An unmount while the disk is being attached ends the mount all the same.
#[test]
fn what_is_unmounted_while_it_is_mounted_is_unmounted() {
    let lab = Lab::new(1, HOUR);
    let (a, b) = (lab.world.backup("a"), lab.world.backup("b"));
    // The only slot is in use: the mount has to wait.
    let in_use = lab.world.slots.get(b).unwrap();
    std::thread::scope(|scope| {
        let mounting = scope.spawn(|| lab.leases.mount("b-a", 0));
        wait_for("the row", Duration::from_secs(5), || {
            lab.leases.mount_of(a).is_some()
        });
        let id = lab.leases.mount_of(a).unwrap();
        assert_eq!(lab.status(&id), "mounting");
        lab.leases.unmount(&id).unwrap();
        drop(in_use);
        assert!(matches!(mounting.join().unwrap(), Err(Error::Unknown(_))));
        assert_eq!(lab.status(&id), "unmounted");
    });
    assert!(lab.world.slots.held().is_empty());
    assert_eq!(
        lab.world.sqlite("SELECT mounts FROM restore_mounts_so_far"),
        "0"
    );
}

#[test]
fn the_largest_file_system_names_the_disk() {
    let volume = |filesystem: Option<&str>, size, state| VolumeSummary {
        name: "x".into(),
        filesystem: filesystem.map(str::to_owned),
        label: None,
        size,
        state,
        error: None,
        note: None,
    };
    let volumes = [
        volume(Some("vfat"), 100, VolumeState::Ready),
        volume(Some("ntfs"), 500, VolumeState::Ready),
        volume(Some("ext4"), 500, VolumeState::Ready),
        volume(Some("crypto_LUKS"), 900, VolumeState::Locked),
        volume(None, 901, VolumeState::Unreadable),
    ];
    assert_eq!(main_type(&volumes).as_deref(), Some("ntfs"));
    assert_eq!(main_type(&volumes[3..]), None);
}
