use super::*;
use serde_json::{Value, json};

fn export(catalog: &Catalog) -> String {
    let mut text = Vec::new();
    catalog.export(&mut text).unwrap();
    String::from_utf8(text).unwrap()
}

fn import(catalog: &Catalog, document: &Value) -> Result<ImportSummary> {
    catalog.import(document.to_string().as_bytes(), &|_| Ok(()))
}

/// The API's examples.
fn hub() -> Value {
    json!({
        "vm_contexts": [{
            "context_id": "ctx-backup-pgtest1-20251006-203401", "vm_name": "pgtest1",
            "vm_path": "[datastore1] pgtest1/pgtest1.vmx", "vcenter_host": "vcenter.example.com",
            "datacenter": "DC1", "current_status": "ready", "cpu_count": 2, "memory_mb": 4096,
            "os_type": "windows", "power_state": "poweredOn",
            "created_at": "2025-10-06T20:34:01Z"
        }],
        "count": 1,
        "disks": [{"vm_name": "pgtest1", "disks": [
            {"disk_index": 0, "vmware_disk_key": 2000, "label": "Hard disk 1", "size_gb": 102,
             "datastore": "[datastore1]", "path": "pgtest1/pgtest1.vmdk"},
            {"disk_index": 1, "vmware_disk_key": 2001, "label": "Hard disk 2", "size_gb": 5,
             "datastore": "[datastore1]", "path": "pgtest1/pgtest1_1.vmdk"}
        ], "total_disks": 2}],
        "backups": [{
            "backup_id": "backup-pgtest1-1759947871", "vm_name": "pgtest1",
            "status": "in_progress", "backup_type": "full",
            "disks": [
                {"disk_index": 0, "status": "completed", "size_gb": 102,
                 "qcow2_path": "/backup/disk-0/x.qcow2"},
                {"disk_index": 1, "status": "in_progress", "size_gb": 5}
            ],
            "progress_percent": 50, "bytes_transferred": 54760833024_i64,
            "total_bytes": 109521666048_i64, "created_at": "2025-10-08T19:24:31+01:00",
            "completed_at": null
        }]
    })
}

#[test]
fn export_and_import_round_trip() {
    let world = World::new();
    let full = world.image("ctx", "db \"ü\"", 0, "20251001-010000");
    world.image("ctx", "db \"ü\"", 1, "20251001-010002");
    let second = world.overlay(&full, "20251002-010000");
    world.overlay(&second, "20251003-010000");
    std::fs::write(world.path("ctx", "db \"ü\"", 2, "20251001-010000"), b"").unwrap();
    world.scan();
    std::fs::remove_file(&second).unwrap();
    world.scan();
    import(&world.catalog, &hub()).unwrap();
    let text = export(&world.catalog);
    let other = World::new();
    other.catalog.import(text.as_bytes(), &|_| Ok(())).unwrap();
    assert_eq!(export(&other.catalog), text);
    // Once more changes nothing; chains follow.
    other.catalog.import(text.as_bytes(), &|_| Ok(())).unwrap();
    assert_eq!(export(&other.catalog), text);
    let chains = |world: &World| {
        world
            .catalog
            .rows("SELECT * FROM backup_chains ORDER BY 1", [], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, i64>(2)?,
                ))
            })
            .unwrap()
    };
    assert_eq!(chains(&world).len(), 4);
    assert_eq!(chains(&other), chains(&world));
    assert_eq!(other.names(), world.names());
}

#[test]
fn the_apis_shapes_come_out_as_they_went_in() {
    let world = World::new();
    let summary = import(&world.catalog, &hub()).unwrap();
    assert_eq!(
        (summary.vm_disks, summary.backups, summary.backup_disks),
        (2, 1, 2)
    );
    let out: Value = serde_json::from_str(&export(&world.catalog)).unwrap();
    // Everything that went in is there, but for counts and the zone of times.
    fn holds(out: &Value, given: &Value, place: &str) {
        match (out, given) {
            (Value::Object(out), Value::Object(given)) => {
                for (key, value) in given.iter().filter(|(key, _)| *key != "count") {
                    holds(&out[key], value, &format!("{place}.{key}"));
                }
            }
            (Value::Array(out), Value::Array(given)) => {
                assert_eq!(out.len(), given.len(), "{place}");
                for (out, given) in out.iter().zip(given) {
                    holds(out, given, place);
                }
            }
            (out, given) if given == "2025-10-08T19:24:31+01:00" => {
                assert_eq!(out, "2025-10-08T18:24:31Z");
            }
            _ => assert_eq!(out, given, "{place}"),
        }
    }
    holds(&out, &hub(), "");
    let list = world
        .catalog
        .backup_summaries(Some("pgtest1"), Some("in_progress"))
        .unwrap();
    let list = serde_json::to_value(&list[0]).unwrap();
    assert_eq!(list["total_size_gb"], 107);
    assert_eq!(list["disk_count"], 2);
    assert!(
        world
            .catalog
            .backup_summaries(Some("pgtest1"), Some("failed"))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn what_the_hub_knows_merges_with_what_a_scan_found() {
    let world = World::new();
    let context = "ctx-backup-pgtest1-20251006-203401";
    let image = world.image(context, "pgtest1", 0, "20251008-192431");
    world.image(context, "pgtest1", 1, "20251008-192431");
    world.scan();
    let disk = world.id("pgtest1/backup-pgtest1-1759947871/disk0");
    let mut document = hub();
    document["backups"][0]["status"] = json!("completed");
    document["backups"][0]["disks"][0]["qcow2_path"] = json!(image.to_str().unwrap());
    document["backups"][0]["disks"][1]["status"] = json!("completed");
    import(&world.catalog, &document).unwrap();
    assert_eq!(world.id("pgtest1/backup-pgtest1-1759947871/disk0"), disk);
    assert_eq!(world.names().len(), 4);
    let vm = &world.catalog.vm_contexts().unwrap()[0];
    assert_eq!(
        (vm.cpu_count, vm.repository_id.as_deref()),
        (Some(2), Some("1"))
    );
    let backup = world
        .catalog
        .backup("backup-pgtest1-1759947871")
        .unwrap()
        .unwrap();
    assert_eq!(
        backup.disks[0].virtual_size,
        Some(5 << 20),
        "found by the scan, kept"
    );
    // The next scan finds nothing to do.
    let before = world.dump();
    assert_eq!(world.scan().unchanged, 2);
    assert_eq!(world.dump(), before);
    // The hub names the backup otherwise than the scan has guessed.
    document["backups"][0]["backup_id"] = json!("backup-pgtest1-1759947860");
    document["backups"][0]["disks"]
        .as_array_mut()
        .unwrap()
        .truncate(1);
    import(&world.catalog, &document).unwrap();
    assert_eq!(world.id("pgtest1/backup-pgtest1-1759947860/disk0"), disk);
    world.id("pgtest1/backup-pgtest1-1759947871/disk1");
}

#[test]
fn a_scan_adopts_what_was_imported() {
    let world = World::new();
    let context = "ctx-backup-pgtest1-20251006-203401";
    let image = world.image(context, "pgtest1", 0, "20251008-192431");
    let mut document = hub();
    document["backups"][0]["disks"][0]["qcow2_path"] = json!(image.to_str().unwrap());
    import(&world.catalog, &document).unwrap();
    let summary = world.scan();
    assert_eq!((summary.unchanged, summary.new), (1, 0));
    let backup = world
        .catalog
        .backup("backup-pgtest1-1759947871")
        .unwrap()
        .unwrap();
    assert_eq!(backup.disks[0].virtual_size, Some(5 << 20));
    assert_eq!(backup.status, "in_progress", "the hub's word stands");
    let before = world.dump();
    world.scan();
    assert_eq!(world.dump(), before);
}

#[test]
fn bad_data_is_refused_by_name_and_changes_nothing() {
    let world = World::new();
    let before = world.dump();
    let cases: &[(&str, Value, &str)] = &[
        (
            "/vm_contexts/0/vm_name",
            json!("a/b"),
            "vm_contexts[0].vm_name: ",
        ),
        (
            "/vm_contexts/0/vm_name",
            json!(5),
            "vm_contexts[0].vm_name: must be a string",
        ),
        (
            "/vm_contexts/0/vm_name",
            json!(null),
            "vm_contexts[0]: the field `vm_name` is missing",
        ),
        (
            "/vm_contexts/0/cpu_count",
            json!(-1),
            "vm_contexts[0].cpu_count: ",
        ),
        (
            "/vm_contexts/0/memory_mb",
            json!(1.5),
            "vm_contexts[0].memory_mb: ",
        ),
        (
            "/vm_contexts/0/created_at",
            json!("soon"),
            "vm_contexts[0].created_at: ",
        ),
        (
            "/vm_contexts/0",
            json!("x"),
            "vm_contexts[0]: must be an object",
        ),
        ("/vm_contexts", json!({}), "vm_contexts: must be a list"),
        (
            "/disks/0/vm_name",
            json!("none"),
            "disks[0].vm_name: there is no VM context",
        ),
        (
            "/disks/0/disks/1/disk_index",
            json!(4294967296_i64),
            "disks[0].disks[1].disk_index: ",
        ),
        (
            "/disks/0/disks/1/label",
            json!("a\u{0}b"),
            "disks[0].disks[1].label: ",
        ),
        (
            "/backups/0/backup_id",
            json!("latest"),
            "backups[0].backup_id: ",
        ),
        (
            "/backups/0/backup_id",
            json!(".."),
            "backups[0].backup_id: ",
        ),
        (
            "/backups/0/status",
            json!("odd"),
            "backups[0].status: `odd` is none of started, ",
        ),
        (
            "/backups/0/progress_percent",
            json!(101),
            "backups[0].progress_percent: ",
        ),
        (
            "/backups/0/disks/0/status",
            json!(null),
            "backups[0].disks[0]: the field `status`",
        ),
        (
            "/backups/0/disks/0/qcow2_path",
            json!("x"),
            "backups[0].disks[0].qcow2_path: ",
        ),
        (
            "/backups/0/disks/0/qcow2_path",
            json!("/a/../b"),
            "backups[0].disks[0].qcow2_path: ",
        ),
    ];
    for (place, value, message) in cases {
        let mut document = hub();
        *document.pointer_mut(place).unwrap() = value.clone();
        let error = import(&world.catalog, &document).unwrap_err().to_string();
        assert!(error.starts_with(message), "{place}: {error}");
    }
    let mut document = hub();
    document["backups"][0]["parent_backup_id"] = json!("nobody");
    let error = import(&world.catalog, &document).unwrap_err().to_string();
    assert!(
        error.starts_with("backups[0].parent_backup_id: "),
        "{error}"
    );
    document["repositories"] = json!([{"id": 1, "path": "/r", "kind": "tape"}]);
    let error = import(&world.catalog, &document).unwrap_err().to_string();
    assert!(error.starts_with("repositories[0].kind: "), "{error}");
    document = hub();
    document["vm_contexts"][0]["repository_id"] = json!("7");
    let error = import(&world.catalog, &document).unwrap_err().to_string();
    assert!(
        error.starts_with("vm_contexts[0].repository_id: "),
        "{error}"
    );
    for bad in [
        "",
        "[]",
        "{}",
        "{\"backups\": ",
        "nul",
        &"[".repeat(100_000),
    ] {
        assert!(
            world.catalog.import(bad.as_bytes(), &|_| Ok(())).is_err(),
            "{bad}"
        );
    }
    assert_eq!(world.dump(), before);
}

#[test]
fn another_format_is_another_disk() {
    let world = World::new();
    let context = "ctx-backup-pgtest1-20251006-203401";
    let image = world.image(context, "pgtest1", 0, "20251008-192431");
    world.scan();
    let name = "pgtest1/backup-pgtest1-1759947871/disk0";
    let id = world.id(name);
    let mut document = hub();
    document["backups"][0]["status"] = json!("completed");
    let disks = &mut document["backups"][0]["disks"];
    disks.as_array_mut().unwrap().truncate(1);
    disks[0]["qcow2_path"] = json!(image.to_str().unwrap());
    disks[0]["status"] = json!("completed");
    disks[0]["format"] = json!("qcow2");
    disks[0]["label"] = json!("Hard disk 1");
    import(&world.catalog, &document).unwrap();
    assert_eq!(world.id(name), id, "the same format is the same disk");
    let disk = &mut document["backups"][0]["disks"][0];
    disk["format"] = json!("raw");
    disk["label"] = json!(null);
    disk["size_gb"] = json!(null);
    for _ in 0..2 {
        import(&world.catalog, &document).unwrap();
        assert_eq!(world.id(name), id + 1, "once");
    }
    let (disk, _) = world.catalog.disk(id + 1).unwrap().unwrap();
    assert_eq!((disk.format.as_str(), disk.identity), ("raw", None));
    assert_eq!(
        disk.size, None,
        "that was the size of the disk in a qcow2 image"
    );
    let label: String = world.value("SELECT label FROM backup_disks");
    assert_eq!(label, "Hard disk 1", "what the document leaves out stays");
    assert_eq!(world.scan().unchanged, 1);
    let (disk, _) = world.catalog.disk(id + 1).unwrap().unwrap();
    assert_eq!(disk.size, Some(std::fs::metadata(&image).unwrap().len()));
    // Another image in its place is another disk, too.
    let other = world.image(context, "pgtest1", 0, "20251009-192431");
    document["backups"][0]["disks"][0]["qcow2_path"] = json!(other.to_str().unwrap());
    import(&world.catalog, &document).unwrap();
    assert!(world.id(name) > id + 1);
}

#[test]
fn a_repository_that_is_not_accepted_is_not_imported() {
    let world = World::new();
    let before = world.dump();
    let mut document = hub();
    document["repositories"] = json!([{"path": "/good"}, {"path": "/bad"}]);
    let accept = |path: &Path| match path {
        path if path == Path::new("/bad") => Err(Error::Invalid("not this one".into())),
        _ => Ok(()),
    };
    let import = |document: &Value| {
        let text = document.to_string();
        world.catalog.import(text.as_bytes(), &accept)
    };
    let error = import(&document).unwrap_err().to_string();
    assert_eq!(error, "repositories[1].path: not this one");
    assert_eq!(world.dump(), before);
    document["repositories"] = json!([{"path": "/good"}]);
    import(&document).unwrap();
}
