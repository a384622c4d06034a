//! The service itself: its record, its health, its rights, its log.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::many;
use crate::support::http::{Api, PASSWORD, Session};
use crate::support::{Daemon, shell, wait_for};

/// What a record says of the things that matter here.
fn facts(record: &Value) -> Value {
    let names = [
        "action", "user", "address", "vm_name", "path", "bytes", "outcome",
    ];
    names.iter().map(|name| record[*name].clone()).collect()
}

#[test]
fn what_was_done_is_on_record_and_no_secret_in_the_log() {
    let api = Api::with("", |lab| many(lab, 2));
    api.user("olga", &["--role", "operator", "--vm", "vm0"]);
    let since = jiff::Timestamp::now().to_string();
    api.try_login("olga", "a wrong password").refused(401);
    let olga = api.login("olga");
    let backup = &olga.backups("vm0")[0];
    let mount = &olga.mount(backup, 0);
    let path = |rest: &str| format!("/api/v1/restore/{mount}{rest}");
    olga.get(&path("/files?path=/etc")).ok();
    olga.get(&path("/download?path=/etc/hostname"));
    let archive = olga.get(&path("/download-directory?path=/etc"));
    assert_eq!(archive.status, 200);
    olga.try_mount(backup, 0).refused(409);
    olga.get("/api/v1/vm-contexts/vm1").refused(403);
    olga.delete(&path("")).ok();
    olga.post("/api/v1/auth/logout", &json!({})).ok();

    let admin = api.login("admin");
    let audit = |query: &str| admin.get(&format!("/api/v1/audit?{query}"));
    let all = |query: &str| audit(query).ok()["records"].as_array().unwrap().clone();
    let mine = |action: &str| {
        let mut found = all(&format!("user=olga&since={since}&action={action}"));
        found.reverse();
        found.iter().map(facts).collect::<Vec<_>>()
    };
    wait_for("the records", Duration::from_secs(5), || {
        mine("archive").len() >= 2 && mine("denied").len() == 1
    });
    let record = |action: &str, vm: Value, path: Value, bytes: Value, outcome: &str| {
        json!([action, "olga", "127.0.0.1", vm, path, bytes, outcome])
    };
    let none = || Value::Null;
    let vm = || json!("vm0");
    assert_eq!(
        mine("login_failed"),
        [record("login_failed", none(), none(), none(), "refused")]
    );
    assert_eq!(
        mine("login"),
        [record("login", none(), none(), none(), "ok")]
    );
    assert_eq!(
        mine("mount"),
        [
            record("mount", vm(), none(), none(), "ok"),
            record("mount", vm(), none(), none(), "refused")
        ]
    );
    assert_eq!(
        mine("list"),
        [record("list", vm(), json!("/etc"), none(), "ok")]
    );
    let last = |action: &str| mine(action).pop().unwrap();
    assert_eq!(
        last("download"),
        record("download", vm(), json!("/etc/hostname"), json!(4), "ok")
    );
    assert_eq!(
        last("archive"),
        record(
            "archive",
            vm(),
            json!("/etc"),
            json!(archive.body.len()),
            "ok"
        )
    );
    assert_eq!(
        mine("denied"),
        [record("denied", json!("vm1"), none(), none(), "refused")]
    );
    assert_eq!(
        mine("unmount"),
        [record("unmount", vm(), none(), none(), "ok")]
    );
    assert_eq!(
        mine("logout"),
        [record("logout", none(), none(), none(), "ok")]
    );

    // Filters, and pages in which nothing is missing or there twice.
    let everything = all("limit=1000");
    let ids: Vec<&Value> = everything.iter().map(|record| &record["id"]).collect();
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = audit(&format!(
            "limit=3&until={}&cursor={cursor}",
            jiff::Timestamp::now()
        ))
        .ok();
        paged.extend(
            page["records"]
                .as_array()
                .unwrap()
                .iter()
                .map(|record| record["id"].clone()),
        );
        match page.get("next_cursor") {
            Some(next) => cursor = next.as_str().unwrap().to_owned(),
            None => break,
        }
    }
    assert_eq!(ids, paged.iter().collect::<Vec<_>>());
    assert!(all(&format!("mount_id={mount}")).len() >= 5);
    assert!(all(&format!("backup_id={backup}")).len() >= 5);
    assert!(
        all("vm_name=vm0")
            .iter()
            .all(|record| record["vm_name"] == "vm0")
    );
    assert_eq!(all(&format!("until={since}&user=olga")).len(), 0);
    for query in [
        "action=x",
        "limit=0",
        "limit=1001",
        "cursor=x",
        "since=yesterday",
        "limit=1&limit=2",
    ] {
        audit(query).refused(400);
    }
    // The command says the same.
    let by_command: Value =
        serde_json::from_str(&api.lab.sendense_ok(["audit", "--json", "--limit", "1000"])).unwrap();
    let by_command = match by_command {
        Value::Array(records) => records,
        other => other["records"].as_array().unwrap().clone(),
    };
    assert_eq!(by_command.len(), everything.len());
    let table = api.lab.sendense_ok(["audit", "--user", "olga"]);
    assert!(
        table.contains("/etc/hostname") && table.contains("127.0.0.1"),
        "{table}"
    );

    // None of the secrets that have passed is in the log, nor in the record.
    let log = api.daemon().log();
    assert!(log.len() > 500);
    let key = fs::read(api.lab.path("state/token.key")).unwrap();
    let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    for text in [
        log,
        format!("{everything:?}"),
        api.get("/metrics").send().text(),
    ] {
        for secret in [
            PASSWORD,
            "a wrong password",
            &olga.token,
            &admin.token,
            &olga.csrf,
            &key,
            "eyJ",
            "argon2",
        ] {
            assert!(!text.contains(secret), "{secret}");
        }
    }
}

/// A process of its own: `sendense api`.
struct Alone(Child);

impl Alone {
    fn start(api: &Api, log: &str) -> Self {
        let file = fs::File::create(api.lab.path("api.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_sendense"))
            .arg("--config")
            .arg(api.lab.config())
            .arg("api")
            .env("SENDENSE_LOG", log)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn it_runs_alone_and_finds_the_daemon_again() {
    let mut api = Api::prepare("api = false", false);
    many(&api.lab, 1);
    api.lab.scan();
    // It may be there before the daemon.
    let mut alone = Alone::start(&api, "trace");
    let health = || api.get("/health").try_send();
    wait_for("an answer", Duration::from_secs(10), || health().is_some());
    let answer = health().unwrap();
    assert_eq!(answer.status, 503);
    let body = answer.json();
    assert_eq!(body["status"], "unhealthy");
    assert_eq!(body["checks"]["catalog"], "ok");
    assert!(
        body["checks"]["daemon"] != "ok" && body["checks"]["tree"] != "ok",
        "{body}"
    );
    assert!(
        !body
            .to_string()
            .contains(&*api.lab.dir.path().to_string_lossy()),
        "{body}"
    );
    let token = {
        let admin = api.login("admin");
        let backups = admin.backups("vm0");
        let answer = admin.try_mount(&backups[0], 0);
        answer.refused(503);
        assert!(answer.header("retry-after").is_some());
        // What needs no daemon works.
        admin.get("/api/v1/vm-contexts").ok();
        admin.token.clone()
    };
    api.daemon = Some(Daemon::start(&api.lab));
    api.wait_until_healthy();
    let mount = {
        let admin = Session {
            api: &api,
            token: token.clone(),
            csrf: String::new(),
        };
        let backup = admin.backups("vm0")[0].clone();
        admin.mount(&backup, 0)
    };
    api.daemon.take().unwrap().kill();
    wait_for("the daemon to be missed", Duration::from_secs(5), || {
        api.get("/health").send().status == 503
    });
    let files = format!("/api/v1/restore/{mount}/files?path=/etc");
    {
        let admin = Session {
            api: &api,
            token: token.clone(),
            csrf: String::new(),
        };
        admin.get(&files).refused(503);
    }
    api.serve();
    let admin = Session {
        api: &api,
        token: token.clone(),
        csrf: String::new(),
    };
    assert_eq!(admin.get(&files).ok()["total_count"], 1);
    assert_eq!(alone.0.try_wait().unwrap(), None);
    // Asked to end, it ends well.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(alone.0.id()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    let status = alone.0.wait().unwrap();
    let log = fs::read_to_string(api.lab.path("api.log")).unwrap();
    assert!(status.success(), "{status}: {log}");
    for secret in [PASSWORD, &token, "eyJ"] {
        assert!(
            !log.contains(secret),
            "a secret is in the log of the finest kind"
        );
    }
}

#[test]
fn health_tells_a_broken_daemon_from_a_working_one() {
    let api = Api::with("", |lab| many(lab, 1));
    let health = || api.get("/health").send();
    let body = health().ok();
    assert_eq!(
        (&body["status"], &body["problems"]),
        (&json!("healthy"), &json!([]))
    );
    for part in ["daemon", "tree", "catalog"] {
        assert_eq!(body["checks"][part], "ok");
    }
    assert_eq!(body["resources"]["slots_total"], 8);
    for name in [
        "daemon_memory",
        "memory_available",
        "descriptors_used",
        "state_dir_free",
    ] {
        assert!(body["resources"][name].as_u64().unwrap() > 0, "{name}");
    }
    // Stopped, it answers nobody, and that is said soon.
    api.daemon().signal(Signal::SIGSTOP);
    let began = Instant::now();
    wait_for("the daemon to be missed", Duration::from_secs(5), || {
        health().status == 503
    });
    let answer = health();
    assert_eq!(answer.json()["status"], "unhealthy");
    assert!(began.elapsed() < Duration::from_secs(9));
    // However many ask, the rest goes on: nothing waits for the daemon but they.
    let asked: Vec<Child> = (0..250)
        .map(|n| {
            let path = if n % 2 == 0 { "/health" } else { "/metrics" };
            let mut command = Command::new("curl");
            command
                .args(["-q", "-s", "-m", "20", "-o", "/dev/null"])
                .arg(format!("{}{path}", api.base()));
            command.spawn().unwrap()
        })
        .collect();
    let began = Instant::now();
    api.login("admin").get("/api/v1/vm-contexts").ok();
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    for mut one in asked {
        assert!(one.wait().unwrap().success());
    }
    let metrics = api.get("/metrics").send().text();
    assert!(metrics.contains("\nsendense_daemon_up 0\n"), "{metrics}");
    api.daemon().signal(Signal::SIGCONT);
    wait_for("the daemon to be back", Duration::from_secs(10), || {
        health().status == 200
    });
}

#[test]
fn metrics_are_prometheus_text_and_name_nobody() {
    let api = Api::with("", |lab| many(lab, 2));
    let admin = api.login("admin");
    let mount = admin.mount(&admin.backups("vm1")[0], 0);
    admin
        .get(&format!("/api/v1/restore/{mount}/files?path=/etc"))
        .ok();
    // What they say may be a moment old.
    std::thread::sleep(Duration::from_millis(300));
    let answer = api.get("/metrics").send();
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let text = answer.text();
    let rules = r#"
import re, sys
text = sys.stdin.read()
assert text.endswith('\n')
name = r'[a-zA-Z_:][a-zA-Z0-9_:]*'
label = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
sample = re.compile(rf'^({name})(?:\{{({label}(?:,{label})*),?\}})? (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|NaN|[+-]Inf)$')
helped, typed, seen, family = {}, {}, set(), None
for line in text[:-1].split('\n'):
    if m := re.match(rf'^# HELP ({name}) (\S.*)$', line):
        assert m[1] not in helped, line
        helped[m[1]] = m[2]
    elif m := re.match(rf'^# TYPE ({name}) (counter|gauge)$', line):
        assert m[1] in helped and m[1] not in typed, line
        typed[m[1]] = m[2]
        family = m[1]
    else:
        m = sample.match(line)
        assert m, f'no sample: {line!r}'
        assert m[1] == family, f'not together with its family: {line!r}'
        assert (m[1], m[2]) not in seen, f'twice: {line!r}'
        assert (typed[m[1]] == 'counter') == m[1].endswith('_total'), line
        seen.add((m[1], m[2]))
assert set(typed) == set(helped) == {n for n, _ in seen}, 'families without samples'
assert len(typed) > 15
"#;
    let (page, script) = (api.lab.path("metrics"), api.lab.path("rules.py"));
    fs::write(&page, &text).unwrap();
    fs::write(&script, rules).unwrap();
    shell(&format!("python3 {script:?} < {page:?}"));
    for name in ["vm1", "admin", "hostname", "/tmp", &mount] {
        assert!(!text.contains(name), "{name} in {text}");
    }
    for line in [
        "sendense_slots_held 1",
        "sendense_daemon_up 1",
        "sendense_slots 8",
        "sendense_downloads 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    api.configure("metrics = false");
    let mut api = api;
    api.daemon.take().unwrap().stop();
    api.serve();
    api.get("/metrics").send().refused(404);
}

#[test]
fn the_process_has_no_rights() {
    let api = Api::with("", |lab| many(lab, 1));
    let pid = api.pid();
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let status: BTreeMap<&str, Vec<&str>> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name, value.split_whitespace().collect()))
        .collect();
    let number = |command: &str| shell(command).trim().to_owned();
    let (nobody, daemon) = (
        number("id -u nobody"),
        number("getent group daemon | cut -d: -f3"),
    );
    assert_eq!(status["Uid"], [nobody.as_str(); 4]);
    assert_eq!(status["Gid"], [daemon.as_str(); 4]);
    assert_eq!(status["Groups"], [daemon.as_str()]);
    assert_eq!(status["NoNewPrivs"], ["1"]);
    for name in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(status[name], ["0000000000000000"], "{name}");
    }
    // Every thread of it.
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let text = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        for line in ["NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
            assert!(text.contains(line), "{text}");
        }
    }
    // Neither the configuration of the host nor a secret is among its arguments.
    let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(!arguments.contains(PASSWORD));
}

/// What the HTTP side lacks keeps nobody from the tree.
#[test]
fn the_tree_is_served_without_the_http_side() {
    let mut api = Api::prepare("", false);
    many(&api.lab, 1);
    api.lab.scan();
    api.configure("group = \"no-such-group\"\ngate = \"warn\"");
    let output = api.lab.sendense(["api"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(
        said.contains("no-such-group") && said.contains("groupadd"),
        "{said}"
    );
    api.configure("api_user = \"root\"");
    assert_eq!(api.lab.sendense(["api"]).status.code(), Some(78));
    api.configure("api_user = \"no-such-user\"");
    let output = api.lab.sendense(["api"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("no-such-user")
    );
    api.daemon = Some(Daemon::start(&api.lab));
    let state = || -> Value {
        let text = api.lab.sendense_ok(["status", "--json"]);
        serde_json::from_str::<Value>(&text).unwrap()["api"].clone()
    };
    wait_for(
        "the HTTP side to be given up",
        Duration::from_secs(5),
        || state()["state"] == "failed",
    );
    assert!(api.get("/health").try_send().is_none());
    let file = api.lab.mountpoint().join("vm0/latest/disk0/etc/hostname");
    assert_eq!(fs::read_to_string(file).unwrap(), "vm0\n");
    assert!(api.daemon().log().contains("going on without it"));
    assert_eq!(state()["restarts"].as_u64().unwrap_or(0), 0);
}
