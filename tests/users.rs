//! Users and the audit record, by the program's own commands.
#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::{Daemon, Lab, shell, succeeded};

const PASSWORD: &str = "correct horse battery";

fn lab() -> Lab {
    let lab = Lab::new();
    lab.configure("");
    lab
}

/// Runs the program with something on its standard input.
fn given(lab: &Lab, input: &str, args: &[&str]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sendense"))
        .arg("--config")
        .arg(lab.config())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that is refused at once reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout.clone(), output.stderr.clone()].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(
        !said.contains(PASSWORD) && !said.contains("argon2"),
        "{said}"
    );
    output
}

fn add(lab: &Lab, name: &str, rest: &[&str]) -> String {
    let args = ["user", "add", name, "--password-stdin"];
    let args: Vec<&str> = args.iter().chain(rest).copied().collect();
    succeeded(given(lab, &format!("{PASSWORD}\n"), &args))
}

/// Runs a command that has to be refused; what it said.
fn refused(lab: &Lab, args: &[&str]) -> String {
    let output = given(lab, &format!("{PASSWORD}\n"), args);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

fn json(lab: &Lab, args: &[&str]) -> Value {
    serde_json::from_str(&lab.sendense_ok(args)).unwrap()
}

fn users(lab: &Lab) -> Value {
    json(lab, &["user", "list", "--json"])
}

fn sql(lab: &Lab, query: &str) -> String {
    shell(&format!(
        "sqlite3 {:?} \"{query}\"",
        lab.path("state/catalog.db")
    ))
}

#[test]
fn users_come_change_and_go() {
    let lab = lab();
    // All of it while the daemon runs.
    let _daemon = Daemon::start(&lab);
    let said = add(&lab, "admin", &["--role", "admin"]);
    assert_eq!(said, "added admin: admin, VMs: all\n");
    add(
        &lab,
        "anna",
        &["--role", "viewer", "--vm", "web", "--vm", "db"],
    );
    let list = users(&lab);
    assert_eq!(list["count"], 2);
    let anna = &list["users"][1];
    assert_eq!(
        (&anna["name"], &anna["role"]),
        (&"anna".into(), &"viewer".into())
    );
    assert_eq!(anna["vms"], serde_json::json!(["db", "web"]));
    assert_eq!(anna["all_vms"], false);
    assert_eq!(list["users"][0]["all_vms"], true);
    let keys: Vec<&String> = anna.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        [
            "all_vms",
            "created_at",
            "id",
            "last_login_at",
            "name",
            "role",
            "vms"
        ]
    );

    let generation = || -> i64 {
        let answer = sql(&lab, "SELECT generation FROM users WHERE name = 'anna'");
        answer.trim().parse().unwrap()
    };
    let hash = || sql(&lab, "SELECT password_hash FROM users WHERE name = 'anna'");
    let (first, first_hash) = (generation(), hash());
    assert!(first_hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));

    let said = lab.sendense_ok(["user", "grant", "anna", "mail"]);
    assert_eq!(said, "anna: viewer, VMs: db, mail, web\n");
    let said = lab.sendense_ok(["user", "grant", "anna", "--revoke", "db", "mail"]);
    assert_eq!(said, "anna: viewer, VMs: web\n");
    lab.sendense_ok(["user", "grant", "anna", "--all-vms"]);
    let said = lab.sendense_ok(["user", "grant", "anna", "--revoke", "--all-vms"]);
    assert_eq!(said, "anna: viewer, VMs: web\n");
    assert_eq!(
        generation(),
        first,
        "VMs change for the tokens that are out"
    );
    let said = lab.sendense_ok(["user", "grant", "anna", "--role", "operator"]);
    assert_eq!(said, "anna: operator, VMs: web\n");
    let second = generation();
    assert!(second > first);
    let new = given(
        &lab,
        "staple of batteries",
        &["user", "passwd", "anna", "--password-stdin"],
    );
    succeeded(new);
    assert!(generation() > second && hash() != first_hash);
    let table = lab.sendense_ok(["user", "list"]);
    assert!(table.contains("anna   operator  web  never"), "{table}");

    lab.sendense_ok(["user", "remove", "anna"]);
    assert_eq!(users(&lab)["count"], 1);
    assert_eq!(sql(&lab, "SELECT count(*) FROM user_grants"), "0\n");

    // What was done stands in the record, the newest last.
    let records = json(&lab, &["audit", "--json"]);
    let records = records["records"].as_array().unwrap();
    let actions: Vec<&str> = records
        .iter()
        .map(|r| r["action"].as_str().unwrap())
        .collect();
    assert_eq!(
        actions,
        [
            "user_added",
            "user_added",
            "granted",
            "revoked",
            "granted",
            "revoked",
            "role_changed",
            "password_changed",
            "user_removed"
        ]
    );
    assert!(
        records
            .iter()
            .all(|r| r["user"] == "local:root" && r["address"] == "")
    );
    assert_eq!(records[2]["detail"], "anna: viewer, VMs: db, mail, web");
    for (filter, count) in [
        (["--action", "granted"], 2),
        (["--user", "local:root"], 9),
        (["--user", "anna"], 0),
        (["--since", "1h"], 9),
        (["--until", "1h"], 0),
        (["--vm", "web"], 0),
        (["--limit", "3"], 3),
    ] {
        let found = json(&lab, &["audit", "--json", filter[0], filter[1]]);
        assert_eq!(found["count"], count, "{filter:?}");
    }
    let table = lab.sendense_ok(["audit", "--limit", "1"]);
    assert!(
        table.lines().nth(1).unwrap().ends_with("removed anna"),
        "{table}"
    );
    let dump = sql(&lab, ".dump");
    assert!(!dump.contains(PASSWORD) && !dump.contains("staple of"));
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let lab = lab();
    add(&lab, "admin", &["--role", "admin"]);
    let before = users(&lab);
    let viewer = ["--role", "viewer", "--password-stdin"];
    let add_named = |name| {
        refused(
            &lab,
            &["user", "add", name, viewer[0], viewer[1], viewer[2]],
        )
    };
    assert!(add_named("admin").contains("is there already"));
    assert!(add_named(" admin").contains("begins or ends with a blank"));
    assert!(add_named("local:root").contains("local:"));
    // What could harm a terminal is written out.
    assert!(add_named("a\x1b[2J").contains("a\\u{1b}[2J"));
    assert!(refused(&lab, &["user", "remove", "admin"]).contains("--force"));
    assert!(refused(&lab, &["user", "grant", "admin", "--role", "viewer"]).contains("last admin"));
    assert!(refused(&lab, &["user", "grant", "nobody", "vm"]).contains("user nobody: not found"));
    assert!(refused(&lab, &["user", "remove", "nobody"]).contains("user nobody: not found"));
    let passwd = ["user", "passwd", "nobody", "--password-stdin"];
    assert!(refused(&lab, &passwd).contains("user nobody: not found"));
    for (password, why) in [
        ("short\n", "too short"),
        ("\n", "is empty"),
        ("", "is empty"),
    ] {
        let output = given(
            &lab,
            password,
            &["user", "passwd", "admin", "--password-stdin"],
        );
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(why) && !said.contains("short\n"), "{said}");
    }
    let long = format!("{}\n", "x".repeat(1025));
    let output = given(
        &lab,
        &long,
        &["user", "passwd", "admin", "--password-stdin"],
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("too long"));
    // No terminal to ask on.
    let output = Command::new("setsid")
        .args(["-w", env!("CARGO_BIN_EXE_sendense"), "--config"])
        .arg(lab.config())
        .args(["user", "passwd", "admin"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("--password-stdin"), "{output:?}");
    assert_eq!(users(&lab), before);

    // A password is not an argument, and wrong usage says so with 2.
    for args in [
        [
            "user",
            "add",
            "x",
            "--role",
            "viewer",
            "--password",
            PASSWORD,
        ]
        .as_slice(),
        &["user", "add", "x", "--role", "root"],
        &["user", "add", "x"],
        &["user", "grant", "admin"],
        &["user", "grant", "admin", "--revoke"],
        &["audit", "--action", "nothing"],
        &["audit", "--since", "yesterday"],
        &["audit", "--limit", "0"],
    ] {
        assert_eq!(lab.sendense(args).status.code(), Some(2), "{args:?}");
    }
    lab.sendense_ok(["user", "remove", "admin", "--force"]);
    assert_eq!(users(&lab)["count"], 0);
}

#[test]
fn a_vm_that_is_not_known_is_granted_with_a_warning() {
    let lab = lab();
    let document = r#"{"vm_contexts": [{"context_id": "ctx-1", "vm_name": "known"}]}"#;
    succeeded(given(&lab, document, &["catalog", "import", "-"]));
    add(&lab, "anna", &["--role", "viewer"]);
    let warned = |vm: &str| {
        let output = lab.sendense(["user", "grant", "anna", vm]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(warned("known"), "");
    assert!(warned("unknown").contains("knows no VM unknown yet"));
    assert_eq!(
        users(&lab)["users"][0]["vms"],
        serde_json::json!(["known", "unknown"])
    );
}

/// On a terminal it is asked for twice, and never shown.
#[test]
fn a_terminal_is_asked_twice() {
    let lab = lab();
    // The other side of the terminal: answers each prompt when it comes.
    let script = "import os, pty, sys, termios, time
pid, fd = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:-1])
out, answers = b'', sys.argv[-1].split('|')
while True:
    try:
        got = os.read(fd, 1000)
    except OSError:
        break
    if not got:
        break
    out += got
    if out.endswith(b': ') and answers:
        while termios.tcgetattr(fd)[3] & termios.ECHO:
            time.sleep(0.001)
        os.write(fd, answers.pop(0).encode() + b'\\n')
sys.stdout.write(out.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))";
    let add = |name: &str, answers: &str| {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", script, env!("CARGO_BIN_EXE_sendense"), "--config"]);
        command.arg(lab.config());
        command.args(["user", "add", name, "--role", "admin", answers]);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(
            said.contains("Password: "),
            "{said} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!said.contains(PASSWORD), "{said}");
        (output.status.success(), said)
    };
    let (done, said) = add("one", &format!("{PASSWORD}|{PASSWORD}"));
    assert!(
        done && said.contains("Again: ") && said.contains("added one"),
        "{said}"
    );
    let (done, said) = add("two", &format!("{PASSWORD}|{PASSWORD}x"));
    assert!(!done && said.contains("differ"), "{said}");
    let (done, said) = add("two", "short");
    assert!(
        !done && said.contains("too short") && !said.contains("Again"),
        "{said}"
    );
    assert_eq!(users(&lab)["count"], 1);
}

#[test]
fn files_are_for_their_owner_alone() {
    let lab = Lab::new();
    fs::remove_dir(lab.path("state")).unwrap();
    lab.configure("");
    // Whatever the umask is.
    shell(&format!(
        "umask 0; echo '{PASSWORD}' | {:?} --config {:?} user add admin --role admin --password-stdin",
        env!("CARGO_BIN_EXE_sendense"),
        lab.config()
    ));
    let mode = |path: &str| fs::metadata(lab.path(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("state"), 0o700);
    for entry in fs::read_dir(lab.path("state")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert_eq!(mode(&format!("state/{name}")), 0o600, "{name}");
    }
}

/// While a command waits for the password, nobody sees it, and other commands go on.
#[test]
fn a_password_is_in_no_list_of_processes() {
    let lab = lab();
    add(&lab, "admin", &["--role", "admin"]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_sendense"))
        .arg("--config")
        .arg(lab.config())
        .args(["user", "passwd", "admin", "--password-stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(PASSWORD.as_bytes()).unwrap();
    add(&lab, "anna", &["--role", "viewer"]);
    for list in ["cmdline", "environ", "comm"] {
        let seen = fs::read(format!("/proc/{}/{list}", child.id())).unwrap();
        let seen = String::from_utf8_lossy(&seen);
        assert!(!seen.contains(PASSWORD), "{seen}");
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}
