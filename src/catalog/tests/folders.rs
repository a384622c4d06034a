use super::*;
use std::os::unix::fs::PermissionsExt;

const BACKUP: &str = "INSERT INTO vm_backup_contexts (context_id, vm_name) VALUES
        ('c1', 'web'), ('c2', 'web'), ('c3', 'db');
    INSERT INTO backup_jobs (id, vm_backup_context_id, backup_type, status, created_at) VALUES
        ('b1', 'c1', 'full', 'completed', '2025-10-08T19:24:31+01:00'),
        ('b2', 'c2', 'full', 'completed', '2025-10-08T18:00:00Z'),
        ('b3', 'c3', 'full', 'in_progress', '2025-10-08T18:00:00Z');
    INSERT INTO backup_disks (backup_job_id, disk_index, qcow2_path, status) VALUES
        ('b1', 0, '/r/b1.qcow2', 'completed'),
        ('b2', 0, '/r/b2.qcow2', 'completed'),
        ('b3', 0, '/r/b3.qcow2', 'completed');
    INSERT INTO restore_mounts (id, backup_disk_id, nbd_device, status) VALUES
        ('m1', 1, '/dev/nbd0', 'mounted');";

#[test]
fn contexts_of_one_name_share_a_folder() {
    let world = World::new();
    world.sql(BACKUP);
    assert_eq!(
        world.names(),
        ["web", "web/b2", "web/b2/disk0", "web/b1", "web/b1/disk0"],
        "oldest first, and what is not complete not at all"
    );
    let vm = world.catalog.vm_folder("web").unwrap().unwrap();
    assert_eq!(vm.time, 1_759_947_871);
    assert_eq!(world.catalog.latest(vm.id).unwrap().unwrap().name, "b1");
    assert_eq!(world.catalog.vm_folder("db").unwrap(), None);
    world.sql("UPDATE backup_jobs SET status = 'completed' WHERE id = 'b3'");
    world.id("db/b3/disk0");
}

#[test]
fn folders_follow_whoever_writes() {
    let world = World::new();
    world.sql(BACKUP);
    let (vm, backup) = (world.id("web"), world.id("web/b1"));
    // By a tool that knows nothing of folders, in another process.
    let sqlite = |sql: &str| {
        let sql = format!("PRAGMA foreign_keys = on; {sql}");
        let done = Command::new("sqlite3")
            .arg(&world.database)
            .arg(sql)
            .status();
        assert!(done.expect("the program sqlite3 is needed").success());
    };
    sqlite("UPDATE vm_backup_contexts SET vm_name = 'shop' WHERE context_id = 'c1'");
    assert_eq!(
        world.names(),
        [
            "shop",
            "shop/b1",
            "shop/b1/disk0",
            "web",
            "web/b2",
            "web/b2/disk0"
        ]
    );
    assert_eq!((world.id("web"), world.id("shop/b1")), (vm, backup));
    sqlite(
        "UPDATE backup_jobs SET vm_backup_context_id = 'c2', created_at = '2020-01-01T00:00:00Z'
            WHERE id = 'b1'",
    );
    assert_eq!(
        world.names(),
        ["web", "web/b1", "web/b1/disk0", "web/b2", "web/b2/disk0"]
    );
    assert_eq!(
        world.catalog.backup_folder(vm, "b1").unwrap().unwrap().time,
        1_577_836_800
    );
    sqlite("DELETE FROM vm_backup_contexts WHERE context_id = 'c2'");
    assert!(world.tree().is_empty());
    // A context without backups keeps its name's folder; ids are never used again.
    let used: i64 = world.value("SELECT seq FROM sqlite_sequence WHERE name = 'folders'");
    assert_eq!(world.value::<i64>("SELECT count(*) FROM folders"), 3);
    sqlite(
        "DELETE FROM vm_backup_contexts;
         INSERT INTO vm_backup_contexts (context_id, vm_name) VALUES ('c1', 'web');
         INSERT INTO backup_jobs (id, vm_backup_context_id, backup_type, status, created_at)
             VALUES ('b1', 'c1', 'full', 'completed', '2025-10-08T19:24:31+01:00');
         INSERT INTO backup_disks (backup_job_id, disk_index, qcow2_path, status)
             VALUES ('b1', 0, '/r/b1.qcow2', 'completed')",
    );
    assert!(world.id("web") > used && world.id("web/b1") > used);
    assert_eq!(world.id("web/b1/disk0"), 4);
}

#[test]
fn rows_go_with_what_they_belong_to() {
    let world = World::new();
    world.sql(BACKUP);
    world.sql("DELETE FROM backup_disks WHERE id = 1");
    assert_eq!(world.value::<i64>("SELECT count(*) FROM restore_mounts"), 0);
    world
        .sql("INSERT INTO restore_mounts (id, backup_disk_id, status) VALUES ('m2', 2, 'mounted')");
    world.sql("DELETE FROM vm_backup_contexts");
    for table in [
        "backup_jobs",
        "backup_disks",
        "restore_mounts",
        "backup_chains",
        "folders",
    ] {
        assert_eq!(
            world.value::<i64>(&format!("SELECT count(*) FROM {table}")),
            0,
            "{table}"
        );
    }
}

#[test]
fn constraints_hold() {
    let world = World::new();
    world.sql(BACKUP);
    for bad in [
        "INSERT INTO restore_mounts (id, backup_disk_id, status) VALUES ('m2', 1, 'mounting')",
        "INSERT INTO restore_mounts (id, backup_disk_id, nbd_device, status)
             VALUES ('m2', 2, '/dev/nbd0', 'mounted')",
        "INSERT INTO restore_mounts (id, backup_disk_id, status, mount_mode)
             VALUES ('m2', 2, 'failed', 'read-write')",
        "INSERT INTO restore_mounts (id, backup_disk_id, status) VALUES ('m2', 99, 'failed')",
        "INSERT INTO vm_backup_contexts (context_id, vm_name) VALUES ('x', '..')",
        "INSERT INTO vm_backup_contexts (context_id, vm_name) VALUES ('x', 'a/b')",
        "UPDATE backup_jobs SET id = 'b9' WHERE id = 'b1'",
        "UPDATE backup_jobs SET status = 'odd' WHERE id = 'b1'",
        "UPDATE backup_jobs SET created_at = 'yesterday' WHERE id = 'b1'",
        "INSERT INTO backup_jobs (id, vm_backup_context_id, backup_type, status, created_at)
             VALUES ('latest', 'c1', 'full', 'completed', '2025-10-08T18:00:00Z')",
        "INSERT INTO backup_disks (backup_job_id, disk_index, qcow2_path, status)
             VALUES ('b1', 0, '/r/other', 'completed')",
        "INSERT INTO backup_disks (backup_job_id, disk_index, qcow2_path, status)
             VALUES ('b1', 1, '/r/b2.qcow2', 'completed')",
        "INSERT INTO repositories (path, kind) VALUES ('/r', 'tape')",
    ] {
        assert!(
            world.catalog.writer.lock().execute_batch(bad).is_err(),
            "{bad}"
        );
    }
    // What is over does not stand in the way.
    world.sql(
        "UPDATE restore_mounts SET status = 'unmounted';
         INSERT INTO restore_mounts (id, backup_disk_id, nbd_device, status)
             VALUES ('m2', 1, '/dev/nbd0', 'mounted');",
    );
}

#[test]
fn the_trees_questions_use_indexes() {
    let world = World::new();
    for sql in [
        "SELECT id FROM shown_backups WHERE parent = 1 ORDER BY time DESC, id DESC LIMIT 1",
        "SELECT id FROM shown_backups WHERE parent = 1 AND name = 'x'",
        "SELECT id FROM shown_backups WHERE id = 1",
        "SELECT id FROM shown_disks WHERE folder = 1 ORDER BY disk_index",
        "SELECT id FROM shown_disks WHERE id = 1",
    ] {
        let plan = world
            .catalog
            .rows(&format!("EXPLAIN QUERY PLAN {sql}"), [], |row| {
                row.get::<_, String>(3)
            })
            .unwrap();
        assert!(
            !plan.iter().any(|step| step.starts_with("SCAN")),
            "{sql}: {plan:?}"
        );
        assert!(
            !plan.iter().any(|step| step.contains("TEMP B-TREE")),
            "{sql}: {plan:?}"
        );
    }
}

#[test]
fn files_are_for_their_owner_alone() {
    let world = World::new();
    world.sql(BACKUP);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let state = world.database.parent().unwrap();
    assert_eq!(mode(state), 0o700);
    let mut files = 0;
    for entry in std::fs::read_dir(state).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
        files += 1;
    }
    assert_eq!(files, 3, "the database, its log and the log's index");
}

#[test]
fn what_is_no_catalog_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.db");
    std::fs::write(
        &path,
        "not a database at all, but long enough to be looked at".repeat(99),
    )
    .unwrap();
    let error = Catalog::open(&path).err().unwrap().to_string();
    assert!(
        error.contains("c.db") && error.contains("not a database"),
        "{error}"
    );
    let path = dir.path().join("new.db");
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    let error = Catalog::open(&path).err().unwrap().to_string();
    assert!(error.contains("newer version"), "{error}");
    let error = Catalog::open_read_only(&dir.path().join("none.db"))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("No such file"), "{error}");
    let error = Catalog::open(Path::new("/proc/nowhere/c.db"))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("/proc/nowhere/c.db") && error.contains("state_dir"),
        "{error}"
    );
}
