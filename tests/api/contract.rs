//! The contract's examples, field by field.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::http::{Api, PASSWORD, Session};
use crate::support::{succeeded, wait_for};
use crate::{holds, pgtest1};

const FULL: &str = "backup-pgtest1-1759947871";
const LATER: &str = "backup-pgtest1-1759948993";

/// What the hub knows of the VM, in the API's own shapes.
fn hub() -> Value {
    json!({
        "vm_contexts": contexts()["vm_contexts"],
        "disks": [disks()],
        "backups": [{
            "backup_id": "backup-pgtest1-1759990000", "vm_name": "pgtest1",
            "status": "in_progress", "backup_type": "full",
            "disks": [
                {"disk_index": 0, "status": "completed", "size_gb": 102,
                 "qcow2_path": "/backup/repository/disk-0/x.qcow2"},
                {"disk_index": 1, "status": "in_progress", "size_gb": 5}
            ],
            "progress_percent": 50, "bytes_transferred": 54760833024_i64,
            "total_bytes": 109521666048_i64, "created_at": "2025-10-08T19:24:31+01:00",
            "completed_at": null
        }]
    })
}

fn contexts() -> Value {
    json!({"vm_contexts": [{
        "context_id": "ctx-backup-pgtest1-20251006-203401", "vm_name": "pgtest1",
        "vm_path": "[datastore1] pgtest1/pgtest1.vmx", "vcenter_host": "vcenter.example.com",
        "datacenter": "DC1", "current_status": "ready", "cpu_count": 2, "memory_mb": 4096,
        "os_type": "windows", "power_state": "poweredOn", "created_at": "2025-10-06T20:34:01Z"
    }], "count": 1})
}

fn disks() -> Value {
    json!({"vm_name": "pgtest1", "disks": [
        {"disk_index": 0, "vmware_disk_key": 2000, "label": "Hard disk 1", "size_gb": 102,
         "datastore": "[datastore1]", "path": "pgtest1/pgtest1.vmdk"},
        {"disk_index": 1, "vmware_disk_key": 2001, "label": "Hard disk 2", "size_gb": 5,
         "datastore": "[datastore1]", "path": "pgtest1/pgtest1_1.vmdk"}
    ], "total_disks": 2})
}

fn api() -> (Api, Vec<std::path::PathBuf>) {
    let mut api = Api::prepare("", false);
    let images = pgtest1(&api.lab);
    api.lab.scan();
    fs::write(api.lab.path("hub.json"), hub().to_string()).unwrap();
    let file = api.lab.path("hub.json");
    api.lab
        .sendense_ok(["catalog".as_ref(), "import".as_ref(), file.as_os_str()]);
    api.serve();
    (api, images)
}

/// RFC 3339 with an offset.
fn is_time(value: &Value) -> bool {
    value
        .as_str()
        .is_some_and(|text| text.parse::<jiff::Timestamp>().is_ok())
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn logging_in() {
    let (api, _) = api();
    let before = jiff::Timestamp::now();
    let answer = api.try_login("admin", PASSWORD).ok();
    let parts: Vec<&str> = answer["token"].as_str().unwrap().split('.').collect();
    assert_eq!(parts.len(), 3, "a JWT");
    let expires: jiff::Timestamp = answer["expires_at"].as_str().unwrap().parse().unwrap();
    let lifetime = expires.as_second() - before.as_second();
    assert!((43_199..=43_260).contains(&lifetime), "{lifetime}");

    // The same answer, whoever it is.
    let wrong = api.try_login("admin", "wrong");
    let nobody = api.try_login("nobody", "wrong");
    let said = |answer: &crate::support::http::Answer| {
        let mut headers = answer.headers.clone();
        headers.retain(|(name, _)| name != "date");
        (answer.status, headers, answer.text())
    };
    assert_eq!(said(&wrong), said(&nobody));
    assert_eq!(wrong.status, 401);
    assert_eq!(wrong.header("set-cookie"), None);
    for body in [
        json!({}),
        json!([]),
        json!({"username": "admin"}),
        json!({"username": 1, "password": "x"}),
    ] {
        api.post("/api/v1/auth/login", &body).send().refused(400);
    }

    // And in the same time: the median of a few, since the machine has other work.
    let median = |name: &str| {
        let mut times: Vec<Duration> = (0..4)
            .map(|_| {
                let began = Instant::now();
                assert_eq!(api.try_login(name, "wrong").status, 401);
                began.elapsed()
            })
            .collect();
        times.sort();
        times[1] + times[2]
    };
    let (known, unknown) = (median("admin"), median("nobody"));
    let ratio = known.as_secs_f64() / unknown.as_secs_f64();
    assert!((0.4..2.5).contains(&ratio), "{known:?} and {unknown:?}");

    assert_eq!(api.get("/health").send().ok()["status"], "healthy");
    assert_eq!(api.get("/api/v1/health").send().ok()["status"], "healthy");
    for path in [
        "vm-contexts",
        "backups",
        "restore/mounts",
        "audit",
        "auth/me",
    ] {
        let answer = api.get(&format!("/api/v1/{path}")).send();
        answer.refused(401);
        assert!(
            answer
                .header("www-authenticate")
                .unwrap()
                .starts_with("Bearer")
        );
    }
}

#[test]
fn machines_and_their_disks() {
    let (api, _) = api();
    let admin = api.login("admin");
    let answer = admin.get("/api/v1/vm-contexts").ok();
    holds(&answer, &contexts());
    assert_eq!(keys(&answer), ["count", "vm_contexts"].into());
    holds(
        &admin.get("/api/v1/vm-contexts/pgtest1/disks").ok(),
        &disks(),
    );
    assert_eq!(
        admin.get("/api/v1/vm-contexts/nothing/disks").refused(404),
        "VM not found: nothing"
    );
    holds(
        &admin.get("/api/v1/vm-contexts/pgtest1").ok(),
        &contexts()["vm_contexts"][0],
    );
    for (query, count) in [
        ("search=PGT", 1),
        ("search=x", 0),
        ("vm_name=pgtest1", 1),
        ("vm_name=pg", 0),
    ] {
        assert_eq!(
            admin.get(&format!("/api/v1/vm-contexts?{query}")).ok()["count"],
            count
        );
    }
}

#[test]
fn backups_and_their_chains() {
    let (api, images) = api();
    let admin = api.login("admin");
    let list = |query: &str| admin.get(&format!("/api/v1/backups{query}")).ok();
    let all = list("");
    assert_eq!(keys(&all), ["backups", "total_count"].into());
    assert_eq!(all["total_count"], 3);
    let completed = list("?vm_name=pgtest1&status=completed");
    assert_eq!(completed["total_count"], 2);
    let first = &completed["backups"][0];
    holds(
        first,
        &json!({"backup_id": FULL, "vm_name": "pgtest1", "backup_type": "full",
            "status": "completed", "disk_count": 2, "created_at": "2025-10-08T18:24:31Z"}),
    );
    assert!(
        first["total_size_gb"].is_number() && is_time(&first["completed_at"]),
        "{first}"
    );
    let running = list("?status=in_progress");
    assert_eq!(running["backups"][0]["total_size_gb"], 107);
    assert!(running["backups"][0]["completed_at"].is_null());
    assert_eq!(list("?status=failed")["total_count"], 0);
    assert_eq!(list("?vm_name=none")["total_count"], 0);
    assert_eq!(
        list("?vm_name=&status=")["total_count"],
        3,
        "empty filters are none"
    );
    for query in ["?status=ready", "?status=completed&status=failed"] {
        admin.get(&format!("/api/v1/backups{query}")).refused(400);
    }

    let detail = |id: &str| admin.get(&format!("/api/v1/backups/{id}"));
    let mut example = hub()["backups"][0].clone();
    example["created_at"] = json!("2025-10-08T18:24:31Z");
    holds(&detail("backup-pgtest1-1759990000").ok(), &example);
    let disk = &detail(FULL).ok()["disks"][0];
    assert_eq!(
        (&disk["disk_index"], &disk["status"]),
        (&json!(0), &json!("completed"))
    );
    assert_eq!(disk["qcow2_path"], images[0].to_str().unwrap());
    assert_eq!(detail("nothing").refused(404), "backup not found: nothing");

    let chain = admin
        .get("/api/v1/backups/chain?vm_name=pgtest1&repository_id=1")
        .ok();
    assert_eq!(
        (&chain["vm_name"], &chain["repository_id"]),
        (&json!("pgtest1"), &json!("1"))
    );
    assert_eq!(
        chain["total_backups"],
        chain["chain"].as_array().unwrap().len()
    );
    assert!(chain["chain_size_gb"].is_number());
    let link = |id: &str| {
        let all = chain["chain"].as_array().unwrap();
        all.iter()
            .find(|link| link["backup_id"] == id)
            .unwrap()
            .clone()
    };
    holds(
        &link(FULL),
        &json!({"backup_type": "full", "sequence_number": 1, "is_restorable": true,
            "created_at": "2025-10-08T18:24:31Z"}),
    );
    holds(
        &link(LATER),
        &json!({"backup_type": "incremental", "sequence_number": 2, "parent_backup_id": FULL,
            "is_restorable": true, "created_at": "2025-10-08T18:43:13Z"}),
    );
    assert!(link(FULL)["size_gb"].is_number() && link(LATER)["size_gb"].is_number());
    assert!(link(FULL).get("parent_backup_id").is_none());
    // One that was never finished is none.
    assert_eq!(link("backup-pgtest1-1759990000")["is_restorable"], false);
    let missing = |query: &str| admin.get(&format!("/api/v1/backups/chain{query}"));
    assert!(missing("").refused(400).contains("vm_name"));
    missing("?vm_name=nothing").refused(404);
    missing("?vm_name=pgtest1&repository_id=7").refused(404);
}

/// Whether the full and the incremental backup can be restored.
fn restorable(admin: &Session<'_>) -> (bool, bool) {
    let chain = admin.get("/api/v1/backups/chain?vm_name=pgtest1").ok();
    let of = |id: &str| {
        let all = chain["chain"].as_array().unwrap();
        let link = all.iter().find(|link| link["backup_id"] == id).unwrap();
        assert_eq!(
            link["is_restorable"] == false,
            link.get("reason").is_some(),
            "{link}"
        );
        link["is_restorable"].as_bool().unwrap()
    };
    (of(FULL), of(LATER))
}

#[test]
fn whether_a_backup_can_be_restored_is_a_fact() {
    let (api, images) = api();
    let admin = api.login("admin");
    assert_eq!(restorable(&admin), (true, true));
    let aside = |image: &Path| image.with_extension("aside");
    // The full backup's image carries both; the second disk counts as the first does.
    for (n, expected) in [(0, (false, false)), (1, (false, false)), (2, (true, false))] {
        fs::rename(&images[n], aside(&images[n])).unwrap();
        assert_eq!(restorable(&admin), expected, "without image {n}");
        fs::rename(aside(&images[n]), &images[n]).unwrap();
        // A refusal is remembered for some seconds.
        wait_for("the image to count again", Duration::from_secs(15), || {
            restorable(&admin) == (true, true)
        });
    }
    // There, and not an image any more.
    fs::rename(&images[0], aside(&images[0])).unwrap();
    fs::write(&images[0], "nothing").unwrap();
    assert_eq!(restorable(&admin), (false, false));
    fs::rename(aside(&images[0]), &images[0]).unwrap();
    wait_for("the image to count again", Duration::from_secs(15), || {
        restorable(&admin) == (true, true)
    });
    // The same while it is mounted: what is open is not what is there.
    let id = admin.mount(LATER, 0);
    fs::rename(&images[0], aside(&images[0])).unwrap();
    assert_eq!(restorable(&admin), (false, false));
    fs::rename(aside(&images[0]), &images[0]).unwrap();
    admin.delete(&format!("/api/v1/restore/{id}")).ok();
}

#[test]
fn mounting() {
    let (api, _) = api();
    let admin = api.login("admin");
    let answer = admin.try_mount(FULL, 0).ok();
    let id = answer["mount_id"].as_str().unwrap();
    assert_eq!(uuid::Uuid::parse_str(id).unwrap().get_version_num(), 4);
    let place = api.lab.mountpoint().join(format!("pgtest1/{FULL}/disk0"));
    holds(
        &answer,
        &json!({"backup_id": FULL, "disk_index": 0, "filesystem_type": "ntfs",
            "status": "mounted", "mount_path": place.to_str().unwrap()}),
    );
    assert!(answer["backup_disk_id"].is_u64());
    assert!(answer["nbd_device"].as_str().unwrap().starts_with("nbd"));
    let time = |name: &str| {
        answer[name]
            .as_str()
            .unwrap()
            .parse::<jiff::Timestamp>()
            .unwrap()
    };
    let lifetime = time("expires_at").as_second() - time("created_at").as_second();
    assert!((3599..=3602).contains(&lifetime), "{lifetime}");
    let volume = &answer["volumes"][0];
    holds(
        volume,
        &json!({"name": "", "filesystem": "ntfs", "state": "ready", "size": 24 << 20}),
    );
    assert_eq!(answer["volumes"].as_array().unwrap().len(), 1);

    let twice = admin.try_mount(FULL, 0);
    let said = twice.refused(409);
    assert!(said.contains(id), "{said}");
    assert_eq!(twice.json()["mount_id"], id);
    assert_eq!(
        admin.try_mount(FULL, 5).refused(404),
        format!("disk not found: backup_id={FULL}, disk_index=5")
    );
    assert!(
        admin
            .try_mount("backup-none-1", 0)
            .refused(404)
            .contains("backup-none-1")
    );
    // What is not finished is not shown.
    admin.try_mount("backup-pgtest1-1759990000", 0).refused(404);
    for body in [
        json!({}),
        json!({"backup_id": 7, "disk_index": 0}),
        json!({"backup_id": FULL, "disk_index": -1}),
        json!({"backup_id": FULL, "disk_index": "0"}),
        json!({"backup_id": FULL, "disk_index": 4_294_967_296_u64}),
    ] {
        admin.post("/api/v1/restore/mount", &body).refused(400);
    }

    let files = |path: &str| admin.get(&format!("/api/v1/restore/{id}/files?path={path}"));
    let listing = files("/Recovery/WindowsRE").ok();
    assert_eq!(
        (&listing["mount_id"], &listing["path"]),
        (&json!(id), &json!("/Recovery/WindowsRE"))
    );
    assert_eq!(listing["total_count"], 3);
    let all = listing["files"].as_array().unwrap();
    let names: Vec<&str> = all
        .iter()
        .map(|file| file["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["sub", "ReAgent.xml", "Winre.wim"]);
    holds(
        &all[0],
        &json!({"type": "directory", "size": 0, "is_symlink": false}),
    );
    holds(
        &all[1],
        &json!({"name": "ReAgent.xml", "path": "/Recovery/WindowsRE/ReAgent.xml",
            "type": "file", "size": 1129, "is_symlink": false,
            "modified_time": "2025-09-02T05:21:20.1985298Z"}),
    );
    let mode = all[1]["mode"].as_str().unwrap();
    assert!(mode.len() == 4 && mode.starts_with('0'), "{mode}");
    let info = admin.get(&format!(
        "/api/v1/restore/{id}/file-info?path=/Recovery/WindowsRE/ReAgent.xml"
    ));
    holds(&info.ok(), &all[1]);
    files("/nothing").refused(404);

    // The last use counts, in the list too.
    let mounts = admin.get("/api/v1/restore/mounts").ok();
    assert_eq!(
        (&mounts["count"], &mounts["total_slots"]),
        (&json!(1), &json!(8))
    );
    assert_eq!(
        (&mounts["free_slots"], &mounts["total_restores"]),
        (&json!(7), &json!(1))
    );
    let shown = &mounts["mounts"][0];
    let same = [
        "mount_id",
        "backup_id",
        "backup_disk_id",
        "disk_index",
        "mount_path",
        "nbd_device",
        "filesystem_type",
        "status",
        "created_at",
        "volumes",
    ];
    for name in same {
        assert_eq!(shown[name], answer[name], "{name}");
    }
    assert!(is_time(&shown["last_accessed_at"]) && is_time(&shown["expires_at"]));
    assert_eq!(shown["vm_name"], "pgtest1");
    assert_eq!(shown["backup_created_at"], "2025-10-08T18:24:31Z");

    assert_eq!(
        admin.delete(&format!("/api/v1/restore/{id}")).ok(),
        json!({"message": "backup unmounted successfully", "mount_id": id})
    );
    assert_eq!(admin.get("/api/v1/restore/mounts").ok()["count"], 0);
    let unknown = "11111111-2222-4333-8444-555555555555";
    for id in [id, unknown, "nonsense"] {
        let path = format!("/api/v1/restore/{id}");
        let sentence = format!("mount not found: {id}");
        assert_eq!(admin.delete(&path).refused(404), sentence);
        assert_eq!(admin.get(&path).refused(404), sentence);
        for rest in [
            "files?path=/",
            "file-info?path=/",
            "download?path=/x",
            "download-directory?path=/",
        ] {
            assert_eq!(
                admin.get(&format!("{path}/{rest}")).refused(404),
                sentence,
                "{rest}"
            );
        }
    }
}

/// The contract's requests in their order, as one writes them with curl and jq.
#[test]
fn the_contract_as_a_script() {
    let (api, _) = api();
    let password = api.lab.path("password");
    fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/contract.sh");
    let said = succeeded(
        Command::new("bash")
            .arg(script)
            .args([&api.base(), "admin"])
            .arg(password)
            .output()
            .unwrap(),
    );
    assert!(said.ends_with("all as it should be\n"), "{said}");
}
