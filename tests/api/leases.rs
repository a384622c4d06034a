//! How long a mount lives, and what it survives.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::http::{Api, Session};
use crate::support::wait_for;
use crate::{Slow, many};

const EXPIRED: &str = "mount expired, please remount backup";

fn path(id: &str, rest: &str) -> String {
    format!("/api/v1/restore/{id}{rest}")
}

fn hostname(who: &Session<'_>, id: &str) -> String {
    let answer = who.get(&path(id, "/download?path=/etc/hostname"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

fn live(who: &Session<'_>) -> Vec<String> {
    let list = who.get("/api/v1/restore/mounts").ok();
    let all = list["mounts"].as_array().unwrap();
    all.iter()
        .map(|mount| mount["mount_id"].as_str().unwrap().to_owned())
        .collect()
}

fn status(api: &Api) -> Value {
    serde_json::from_str(&api.lab.sendense_ok(["status", "--json"])).unwrap()
}

#[test]
fn a_mount_lives_by_use_alone() {
    let api = Api::with("idle_timeout = \"3s\"\nsweep_interval = \"1s\"", |lab| {
        many(lab, 4)
    });
    let admin = api.login("admin");
    let mount = |vm: &str| admin.mount(&admin.backups(vm)[0], 0);
    let (idle, used, taken, stuck) = (mount("vm0"), mount("vm1"), mount("vm2"), mount("vm3"));
    let mut slow = Slow::download(&admin, &taken);
    let began = Instant::now();
    let mut shown = Vec::new();
    while began.elapsed() < Duration::from_secs(8) {
        // Looking at mounts keeps none alive.
        let list = live(&admin);
        admin.get(&path(&idle, ""));
        admin.get(&path(&stuck, ""));
        shown.push((began.elapsed(), list.contains(&idle)));
        assert!(list.contains(&used) && list.contains(&taken));
        assert_eq!(hostname(&admin, &used), "vm0\n");
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(slow.ended(), None);
    let gone = shown
        .iter()
        .find(|(_, there)| !there)
        .expect("it expires")
        .0;
    assert!(
        (Duration::from_millis(2000)..Duration::from_millis(7500)).contains(&gone),
        "{gone:?}"
    );
    for rest in [
        "",
        "/files?path=/",
        "/file-info?path=/",
        "/download?path=/etc/hostname",
        "/download-directory?path=/etc",
        "/size?path=/etc",
    ] {
        assert_eq!(
            admin.get(&path(&idle, rest)).refused(404),
            EXPIRED,
            "{rest}"
        );
    }
    assert_eq!(admin.delete(&path(&idle, "")).refused(404), EXPIRED);
    // Its disk is free again, for another mount.
    let again = mount("vm0");
    assert_ne!(again, idle);
    admin.delete(&path(&again, "")).ok();
    // What has ended by being asked to is unknown, and not expired.
    assert_eq!(
        admin.get(&path(&again, "")).refused(404),
        format!("mount not found: {again}")
    );
    // After the download, the time begins.
    drop(slow);
    assert!(live(&admin).contains(&taken));
    wait_for("the end of all", Duration::from_secs(8), || {
        live(&admin).is_empty()
    });
    assert_eq!(status(&api)["slots"]["held"], 0);
    let ends = admin.get("/api/v1/audit?action=expire").ok();
    assert_eq!(ends["count"], 4, "{ends}");
    let first = &ends["records"][3];
    assert_eq!(
        first["mount_id"]
            .as_str()
            .map(|id| id == idle || id == stuck),
        Some(true)
    );
    assert_eq!(
        (&first["user"], &first["disk_index"]),
        (&json!("local:daemon"), &json!(0))
    );
}

#[test]
fn a_mount_ends_with_its_backup_and_its_downloads_with_it() {
    let api = Api::with("", |lab| many(lab, 2));
    let admin = api.login("admin");
    let backup = &admin.backups("vm0")[0];
    let id = admin.mount(backup, 0);
    let mut slow = Slow::download(&admin, &id);
    api.lab.sendense_ok(["catalog", "remove", backup]);
    wait_for("the end of the mount", Duration::from_secs(5), || {
        admin.get(&path(&id, "/files?path=/")).status == 404
    });
    admin.get(&path(&id, "")).refused(404);
    wait_for("its slot", Duration::from_secs(5), || {
        status(&api)["slots"]["held"] == 0
    });
    drop(slow);
    // One that is released ends its downloads at once, and never as if they were whole.
    let id = admin.mount(&admin.backups("vm1")[0], 0);
    slow = Slow::download(&admin, &id);
    admin.delete(&path(&id, "")).ok();
    // After what its own kernel has for it already.
    wait_for("the end of the download", Duration::from_secs(60), || {
        slow.ended() == Some(false)
    });
}

#[test]
fn a_mount_survives_both_processes() {
    let mut api = Api::with("", |lab| many(lab, 2));
    let (token, id, other) = {
        let admin = api.login("admin");
        let id = admin.mount(&admin.backups("vm0")[0], 0);
        assert_eq!(hostname(&admin, &id), "vm0\n");
        (admin.token.clone(), id, admin.backups("vm1")[0].clone())
    };
    // The HTTP side is killed, and started again by the daemon.
    let pid = api.pid();
    kill(pid);
    wait_for("another process", Duration::from_secs(10), || {
        status(&api)["api"]["pid"]
            .as_u64()
            .is_some_and(|now| now != u64::from(pid))
    });
    api.wait_until_healthy();
    let as_before = |api: &Api| {
        let admin = Session {
            api,
            token: token.clone(),
            csrf: String::new(),
        };
        assert_eq!(live(&admin), std::slice::from_ref(&id));
        assert_eq!(hostname(&admin, &id), "vm0\n");
        let backup = admin.backups("vm0")[0].clone();
        assert!(admin.try_mount(&backup, 0).refused(409).contains(&id));
    };
    as_before(&api);
    // The daemon is killed: the HTTP side ends with it. Then all is as it was.
    let pid = api.pid();
    api.daemon.take().unwrap().kill();
    wait_for("the end of the HTTP side", Duration::from_secs(5), || {
        !fs::exists(format!("/proc/{pid}")).unwrap()
    });
    api.serve();
    as_before(&api);
    assert_eq!(status(&api)["slots"]["held"], 1);
    // In an orderly way as well.
    api.daemon.take().unwrap().stop();
    api.serve();
    as_before(&api);

    // Killed in the middle of a mount: it is there as a whole, or not at all.
    for delay in [0, 5, 15, 30, 60, 120] {
        let body = json!({"backup_id": other, "disk_index": 0});
        let request = api.post("/api/v1/restore/mount", &body).token(&token);
        let mut asking = request
            .command()
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        api.daemon.take().unwrap().kill();
        asking.wait().unwrap();
        api.serve();
        let admin = Session {
            api: &api,
            token: token.clone(),
            csrf: String::new(),
        };
        let answer = admin.try_mount(&other, 0);
        let found = match answer.status {
            200 => answer.ok()["mount_id"].as_str().unwrap().to_owned(),
            _ => {
                answer.refused(409);
                answer.json()["mount_id"].as_str().unwrap().to_owned()
            }
        };
        assert_eq!(hostname(&admin, &found), "vm0\n");
        assert_eq!(live(&admin).len(), 2);
        admin.delete(&path(&found, "")).ok();
        assert_eq!(live(&admin), std::slice::from_ref(&id));
    }
    assert_eq!(status(&api)["slots"]["held"], 1);
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn eight_mounts_and_the_ninth() {
    let api = Api::with("", |lab| many(lab, 9));
    let admin = api.login("admin");
    let backups: Vec<String> = (0..9)
        .map(|n| admin.backups(&format!("vm{n}"))[0].clone())
        .collect();
    // All at once, as nine users would.
    let answers: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = backups
            .iter()
            .map(|backup| scope.spawn(|| admin.try_mount(backup, 0)))
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let mounted: Vec<String> = answers
        .iter()
        .filter(|answer| answer.status == 200)
        .map(|answer| answer.ok()["mount_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(mounted.len(), 8);
    let ninth = answers
        .iter()
        .position(|answer| answer.status != 200)
        .unwrap();
    let said = answers[ninth].refused(503);
    assert!(answers[ninth].header("retry-after").is_some());
    assert_eq!(
        said,
        "Maximum concurrent mounts reached (limit: 8). Please unmount a backup first."
    );
    let list = admin.get("/api/v1/restore/mounts").ok();
    assert_eq!(
        (&list["count"], &list["free_slots"]),
        (&json!(8), &json!(0))
    );
    // All work; one after the other is asked for a second time.
    for id in &mounted {
        assert_eq!(hostname(&admin, id), "vm0\n");
    }
    for (n, backup) in backups.iter().enumerate().filter(|(n, _)| *n != ninth) {
        assert_eq!(admin.try_mount(backup, 0).status, 409, "{n}");
    }
    // Health says what is short, and that is no failure.
    let health = || api.get("/health").send().ok();
    wait_for("the shortage to show", Duration::from_secs(2), || {
        health()["status"] == "degraded"
    });
    let health = health();
    assert!(
        health["problems"][0].as_str().unwrap().contains("slots"),
        "{health}"
    );
    // A disk that no mount holds has no slot in the tree either.
    let folder = api.lab.mountpoint().join(format!("vm{ninth}/latest/disk0"));
    let began = Instant::now();
    let listed = Command::new("ls").arg(folder.join("etc")).output().unwrap();
    let complaint = String::from_utf8(listed.stderr).unwrap();
    assert!(complaint.contains("Device or resource busy"), "{complaint}");
    assert!(began.elapsed() < Duration::from_secs(35));
    // One is released, and all goes on.
    admin.delete(&path(&mounted[3], "")).ok();
    let id = admin.mount(&backups[ninth], 0);
    assert_eq!(hostname(&admin, &id), "vm0\n");
    assert_eq!(
        fs::read_to_string(folder.join("etc/hostname")).unwrap(),
        "vm0\n"
    );
    admin.delete(&path(&id, "")).ok();
    wait_for("the shortage to end", Duration::from_secs(2), || {
        api.get("/health").send().ok()["status"] == "healthy"
    });
}

/// Whoever hangs up before the answer has mounted all the same, and it is on record.
#[test]
fn a_client_that_goes_away_leaves_a_whole_mount() {
    let api = Api::with("", |lab| many(lab, 1));
    let admin = api.login("admin");
    let body = json!({"backup_id": admin.backups("vm0")[0], "disk_index": 0}).to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", api.port)).unwrap();
    write!(
        stream,
        "POST /api/v1/restore/mount HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        admin.token,
        body.len()
    )
    .unwrap();
    std::thread::sleep(Duration::from_millis(15));
    drop(stream);
    wait_for("the mount", Duration::from_secs(5), || {
        live(&admin).len() == 1
    });
    let id = live(&admin)[0].clone();
    wait_for("its record", Duration::from_secs(5), || {
        let list = admin
            .get(&format!("/api/v1/audit?action=mount&mount_id={id}"))
            .ok();
        list["count"] == 1
    });
}
