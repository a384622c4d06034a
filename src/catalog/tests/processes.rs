//! Several processes at once: the test program starts itself again.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const ROLE: &str = "CATALOG_TEST_ROLE";
const DATABASE: &str = "CATALOG_TEST_DATABASE";

/// Runs the test `child` in another process, in a role.
fn start(role: &str, database: &Path) -> Child {
    start_as(&std::env::current_exe().unwrap(), role, database, None)
}

fn start_as(program: &Path, role: &str, database: &Path, user: Option<u32>) -> Child {
    let mut command = Command::new(program);
    command
        .args(["--exact", "catalog::tests::processes::child", "--nocapture"])
        .env(ROLE, role)
        .env(DATABASE, database)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    command.spawn().unwrap()
}

fn finish(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Not a test of its own: what the other processes do.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let database = PathBuf::from(std::env::var_os(DATABASE).unwrap());
    match role.as_str() {
        "write" => {
            let catalog = Catalog::open(&database).unwrap();
            for _ in 0..50 {
                catalog
                    .write(|connection| {
                        let id = uuid::Uuid::new_v4().to_string();
                        connection.execute(
                            "INSERT INTO vm_backup_contexts (context_id, vm_name) VALUES (?1, ?1)",
                            [&id],
                        )?;
                        super::super::found::insert_backup(connection, &id, &id, 5)?;
                        connection.execute(
                            "INSERT INTO backup_disks (backup_job_id, disk_index, qcow2_path,
                                 status) VALUES (?1, 0, '/r/' || ?1, 'completed')",
                            [&id],
                        )?;
                        super::super::found::settle_backup(connection, &id)
                    })
                    .unwrap();
            }
        }
        "look" => match Catalog::open_read_only(&database) {
            Ok(catalog) => println!("seen: {}", catalog.vm_folders().unwrap().len()),
            Err(error) => println!("refused: {error}"),
        },
        other => panic!("{other}"),
    }
}

#[test]
fn many_processes_write_and_one_reads() {
    let dir = TempDir::new().unwrap();
    let database = dir.path().join("catalog.db");
    // All of them find no database, and make it at once.
    let writers: Vec<Child> = (0..4).map(|_| start("write", &database)).collect();
    let catalog = Catalog::open(&database).unwrap();
    let (mut seen, mut version) = (0, catalog.version().unwrap());
    let deadline = Instant::now() + Duration::from_secs(60);
    while seen < 200 {
        assert!(Instant::now() < deadline, "{seen}");
        let next = catalog.version().unwrap();
        let vms = catalog.vm_folders().unwrap();
        assert!(vms.len() >= seen);
        // Never half of a transaction.
        for vm in &vms[seen.min(vms.len())..] {
            let backup = catalog.latest(vm.id).unwrap().unwrap();
            assert_eq!(catalog.disks(backup.id).unwrap().len(), 1);
        }
        if next == version {
            std::thread::sleep(Duration::from_millis(1));
        }
        (seen, version) = (vms.len(), next);
    }
    writers.into_iter().for_each(|writer| drop(finish(writer)));
    assert_eq!(catalog.vm_folders().unwrap().len(), 200);
}

#[test]
fn a_reader_does_not_wait_for_a_writer() {
    let world = World::new();
    world.image("ctx", "db", 0, "20251001-010000");
    world.scan();
    let other = rusqlite::Connection::open(&world.database).unwrap();
    other
        .execute_batch("BEGIN IMMEDIATE; DELETE FROM vm_backup_contexts")
        .unwrap();
    let (clock, version) = (Instant::now(), world.catalog.version().unwrap());
    assert_eq!(world.tree().len(), 3);
    Catalog::open(&world.database)
        .unwrap()
        .vm_folders()
        .unwrap();
    // From this process's own writer as little.
    other.execute_batch("ROLLBACK").unwrap();
    world
        .catalog
        .write(|connection| {
            connection.execute("DELETE FROM vm_backup_contexts", [])?;
            assert_eq!(world.tree().len(), 3);
            assert_eq!(world.catalog.version().unwrap(), version);
            Ok(())
        })
        .unwrap();
    assert!(
        clock.elapsed() < Duration::from_secs(1),
        "{:?}",
        clock.elapsed()
    );
    assert!(world.tree().is_empty());
    assert_ne!(
        world.catalog.version().unwrap(),
        version,
        "its own change is one too"
    );
}

#[test]
fn a_failed_write_leaves_nothing() {
    let world = World::new();
    let before = world.dump();
    let failed: Result<()> = world.catalog.write(|connection| {
        connection.execute_batch(
            "INSERT INTO vm_backup_contexts (context_id, vm_name) VALUES ('a', 'a')",
        )?;
        Err(Error::Invalid("no".into()))
    });
    assert!(failed.is_err());
    assert_eq!(world.dump(), before);
}

#[test]
fn another_user_reads_where_the_modes_allow() {
    let allow = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    const NOBODY: Option<u32> = Some(65_534);
    let world = World::new();
    world.image("ctx", "db", 0, "20251001-010000");
    world.scan();
    let state = world.database.parent().unwrap();
    allow(state.parent().unwrap(), 0o755);
    // The program may lie where only root gets. Copied by another process: a child
    // of another test would inherit the descriptor that we write to, and a file
    // that is open for writing cannot be run.
    let program = state.parent().unwrap().join("program");
    let copied = Command::new("cp")
        .arg(std::env::current_exe().unwrap())
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    let look = || finish(start_as(&program, "look", &world.database, NOBODY));
    assert!(look().contains("refused: catalog: "), "{}", look());
    assert!(look().contains("Permission denied"));
    // Readable, and the daemon has it open.
    allow(state, 0o755);
    for entry in std::fs::read_dir(state).unwrap() {
        allow(&entry.unwrap().path(), 0o644);
    }
    assert!(look().contains("seen: 1"), "{}", look());
    // Nobody has it open: there is no log, and none can be made.
    let World {
        _dir: dir,
        database,
        catalog,
        ..
    } = world;
    drop(catalog);
    assert_eq!(
        std::fs::read_dir(database.parent().unwrap())
            .unwrap()
            .count(),
        1
    );
    let seen = finish(start_as(&program, "look", &database, NOBODY));
    assert!(seen.contains("seen: 1"), "{seen}");
    let catalog = Catalog::open_read_only(&database).unwrap();
    assert!(
        catalog
            .remove_gone()
            .unwrap_err()
            .to_string()
            .contains("reading only")
    );
    drop(dir);
}
