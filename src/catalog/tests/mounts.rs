//! The states of mounts, in the real database.

use super::World;
use crate::catalog::{MountEnd, MountUse, MountedDisk, NewMount};
use crate::error::Error;

const BACKUP: &str = "INSERT INTO vm_backup_contexts (context_id, vm_name) VALUES ('c1', 'web');
    INSERT INTO backup_jobs (id, vm_backup_context_id, backup_type, status, created_at) VALUES
        ('b1', 'c1', 'full', 'completed', '2025-10-08T18:24:31Z'),
        ('b2', 'c1', 'incremental', 'completed', '2025-10-09T18:24:31Z'),
        ('b3', 'c1', 'incremental', 'in_progress', '2025-10-10T18:24:31Z');
    INSERT INTO backup_chains (backup_job_id, full_backup_id, sequence_number) VALUES
        ('b1', 'b1', 1), ('b2', 'b1', 2), ('b3', 'b1', 3);
    INSERT INTO backup_disks (backup_job_id, disk_index, qcow2_path, status) VALUES
        ('b1', 0, '/r/b1.qcow2', 'completed'), ('b1', 1, '/r/b1-1.qcow2', 'missing'),
        ('b2', 0, '/r/b2.qcow2', 'completed'), ('b3', 0, '/r/b3.qcow2', 'completed');";

/// 2025-10-11T00:00:00Z.
const NOW: i64 = 1_760_140_800;

fn world() -> World {
    let world = World::new();
    world.sql(BACKUP);
    world
}

fn begin(world: &World, id: &str, disk: i64, now: i64) -> crate::error::Result<()> {
    world.catalog.begin_mount(&NewMount {
        id: id.into(),
        backup_disk_id: disk,
        mount_path: format!("/srv/web/{disk}"),
        now,
        expires: now + 3600,
    })
}

fn settle(world: &World, id: &str, now: i64) -> crate::error::Result<crate::catalog::Mount> {
    let disk = MountedDisk {
        mount_path: "/srv/web/b1/disk0".into(),
        nbd_device: format!("nbd+unix:///?socket={id}"),
        filesystem_type: Some("ext4".into()),
        volumes: "[]".into(),
        last_used: now,
        expires: now + 3600,
    };
    world.catalog.settle_mount(id, &disk)
}

#[test]
fn a_mount_goes_through_its_states() {
    let world = world();
    begin(&world, "m1", 1, NOW).unwrap();
    let mounting = world.catalog.mount("m1").unwrap().unwrap();
    assert_eq!(mounting.status, "mounting");
    assert_eq!(world.catalog.mounts_so_far().unwrap(), 0);
    // The disk is taken from the first moment.
    match begin(&world, "m2", 1, NOW).unwrap_err() {
        Error::MountedAlready { mount_id, .. } => assert_eq!(mount_id, "m1"),
        other => panic!("{other}"),
    }
    let mounted = settle(&world, "m1", NOW + 1).unwrap();
    assert_eq!(Some(&mounted), world.catalog.mount("m1").unwrap().as_ref());
    assert_eq!(mounted.status, "mounted");
    assert_eq!(mounted.vm_name, "web");
    assert_eq!((mounted.backup_id.as_str(), mounted.disk_index), ("b1", 0));
    assert_eq!(mounted.created_at, "2025-10-11T00:00:00Z");
    assert_eq!(
        mounted.last_accessed_at.as_deref(),
        Some("2025-10-11T00:00:01Z")
    );
    assert_eq!(mounted.expires_at.as_deref(), Some("2025-10-11T01:00:01Z"));
    assert_eq!(mounted.backup_created_at, "2025-10-08T18:24:31Z");
    assert_eq!(world.catalog.mounts_so_far().unwrap(), 1);

    let used = MountUse {
        id: "m1".into(),
        last_used: NOW + 60,
        expires: NOW + 3660,
    };
    world.catalog.touch_mounts(&[used]).unwrap();
    let mounted = world.catalog.mount("m1").unwrap().unwrap();
    assert_eq!(mounted.expires_at.as_deref(), Some("2025-10-11T01:01:00Z"));

    begin(&world, "m2", 3, NOW + 5).unwrap();
    let ids = |world: &World| -> Vec<String> {
        let live = world.catalog.live_mounts().unwrap();
        live.into_iter().map(|mount| mount.id).collect()
    };
    assert_eq!(ids(&world), ["m1", "m2"]);

    assert!(world.catalog.begin_unmount("m1").unwrap());
    assert!(world.catalog.mount("m1").unwrap().unwrap().is_live());
    assert!(
        world
            .catalog
            .end_mount("m1", MountEnd::Asked, NOW + 70)
            .unwrap()
    );
    // Who comes too late changes nothing.
    assert!(
        !world
            .catalog
            .end_mount("m1", MountEnd::Expired, NOW)
            .unwrap()
    );
    assert!(!world.catalog.begin_unmount("m1").unwrap());
    assert!(matches!(settle(&world, "m1", NOW), Err(Error::Unknown(_))));
    let ended = world.catalog.mount("m1").unwrap().unwrap();
    assert_eq!(ended.status, "unmounted");
    assert!(!ended.is_expired() && !ended.is_live());
    assert_eq!(ended.unmounted_at.as_deref(), Some("2025-10-11T00:01:10Z"));

    world
        .catalog
        .end_mount("m2", MountEnd::Failed("no image"), NOW)
        .unwrap();
    let failed = world.catalog.mount("m2").unwrap().unwrap();
    assert_eq!(
        (failed.status.as_str(), failed.error_message.as_deref()),
        ("failed", Some("no image"))
    );
    begin(&world, "m3", 1, NOW).unwrap();
    world
        .catalog
        .end_mount("m3", MountEnd::Expired, NOW)
        .unwrap();
    assert!(world.catalog.mount("m3").unwrap().unwrap().is_expired());
    assert!(ids(&world).is_empty());
}

#[test]
fn old_rows_go_and_are_still_counted() {
    let world = world();
    begin(&world, "old", 1, NOW).unwrap();
    settle(&world, "old", NOW).unwrap();
    world
        .catalog
        .end_mount("old", MountEnd::Asked, NOW)
        .unwrap();
    begin(&world, "young", 1, NOW + 89 * 86_400).unwrap();
    assert!(world.catalog.mount("old").unwrap().is_some());
    begin(&world, "other", 3, NOW + 91 * 86_400).unwrap();
    assert!(world.catalog.mount("old").unwrap().is_none());
    assert!(
        world.catalog.mount("young").unwrap().is_some(),
        "it is live"
    );
    assert_eq!(world.catalog.mounts_so_far().unwrap(), 1);
}

#[test]
fn a_restart_keeps_what_has_not_expired() {
    let world = world();
    world.sql(
        "INSERT INTO restore_mounts (id, backup_disk_id, status, nbd_device, expires_at) VALUES
             ('half', 1, 'mounting', NULL, '2025-10-11T01:00:00Z');",
    );
    assert!(world.catalog.resume_mounts(NOW).unwrap().is_empty());
    world.sql(
        "INSERT INTO restore_mounts (id, backup_disk_id, status, nbd_device, expires_at) VALUES
             ('late', 1, 'mounted', 'nbd:1', '2025-10-11T00:30:00+01:00'),
             ('ends', 2, 'unmounting', 'nbd:2', '2025-10-11T01:00:00Z'),
             ('lives', 3, 'mounted', 'nbd:3', '2025-10-11T01:00:00+00:30'),
             ('never', 4, 'mounted', 'nbd:4', NULL);",
    );
    let living = world.catalog.resume_mounts(NOW).unwrap();
    assert_eq!(living.len(), 1, "{living:?}");
    assert_eq!((&*living[0].id, &living[0].nbd_device), ("lives", &None));
    let of = |id: &str| world.catalog.mount(id).unwrap().unwrap();
    assert_eq!(of("half").status, "failed");
    assert_eq!(of("ends").status, "unmounted");
    assert!(!of("ends").is_expired());
    assert!(of("late").is_expired() && of("never").is_expired());
    world
        .catalog
        .end_mount("lives", MountEnd::Asked, NOW)
        .unwrap();
    // With nothing to do, nobody is told of a change.
    let version = world.catalog.version().unwrap();
    assert!(world.catalog.resume_mounts(NOW).unwrap().is_empty());
    assert_eq!(world.catalog.version().unwrap(), version);
}

#[test]
fn a_mount_goes_with_its_backup() {
    let world = world();
    begin(&world, "m1", 1, NOW).unwrap();
    begin(&world, "m2", 3, NOW).unwrap();
    world.sql("UPDATE backup_disks SET status = 'missing' WHERE id = 3");
    world.catalog.remove_backup("b1").unwrap();
    let left = world.catalog.live_mount_ids().unwrap();
    assert_eq!(left, [("m2".to_owned(), false)]);
    assert!(world.catalog.mount("m1").unwrap().is_none());
}

#[test]
fn only_what_the_tree_shows_can_be_mounted() {
    let world = world();
    let find = |backup: &str, index| world.catalog.disk_to_mount(backup, index);
    let disk = find("b1", 0).unwrap();
    assert_eq!((disk.id, disk.vm_name.as_str()), (1, "web"));
    for (backup, index, wanted) in [
        ("b1", 5, "disk not found: backup_id=b1, disk_index=5"),
        ("b1", 1, "disk not found: backup_id=b1, disk_index=1"),
        ("b3", 0, "disk not found: backup_id=b3, disk_index=0"),
        ("b9", 0, "backup not found: b9"),
    ] {
        assert_eq!(find(backup, index).unwrap_err().to_string(), wanted);
    }
    let newest = world.catalog.newest_of_chain(&disk).unwrap().unwrap();
    assert_eq!(newest.backup_id, "b2");
}
