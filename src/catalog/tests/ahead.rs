//! A catalog in a process that can open nothing any more.
//!
//! The process is this test program, started again: its limit of open files is
//! below what it has, the database's folder is renamed, and it is another user.

use super::*;
use jiff::Timestamp;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Uid, setuid};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Stdio};

const DATABASE: &str = "CATALOG_TEST_AHEAD";
const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo";

fn records(count: usize) -> Vec<AuditRecord> {
    let mut record = AuditRecord::now(Action::List, "anna", "192.0.2.1");
    record.path = Some("x".repeat(2000));
    vec![record; count]
}

/// Not a test of its own: the process that can open nothing.
#[test]
fn confined() {
    let Some(database) = std::env::var_os(DATABASE).map(PathBuf::from) else {
        return;
    };
    let ordinary = Catalog::open(&database).unwrap();
    let catalog = Catalog::open_ahead(&database, 2).unwrap();
    let mut lines = std::io::stdin().lines().map(|line| line.unwrap());
    let answer = |text: &str| println!("answer: {text}");
    answer("open");
    let away = PathBuf::from(lines.next().unwrap());
    std::fs::rename(database.parent().unwrap(), away).unwrap();
    // Where not even a standard stream could be replaced.
    setrlimit(Resource::RLIMIT_NOFILE, 0, 0).unwrap();
    setuid(Uid::from_raw(65534)).unwrap();
    assert!(std::fs::File::open("/dev/null").is_err());
    // One that was not opened ahead has no connection to read with.
    ordinary.users().unwrap_err();
    answer("confined");
    for command in lines {
        match command.as_str() {
            "write" => {
                // More than the log holds before it is moved into the database, in
                // one transaction that does not fit the cache.
                catalog.record_audit(&records(3000)).unwrap();
                catalog.record_audit(&records(1)).unwrap();
                catalog
                    .revoke_token(&uuid::Uuid::new_v4().to_string(), 2_000_000_000)
                    .unwrap();
                answer("written");
            }
            "read" => {
                // More readers than connections; a sort of some megabytes.
                std::thread::scope(|scope| {
                    for _ in 0..8 {
                        scope.spawn(|| {
                            let filter = AuditFilter {
                                since: Some(Timestamp::UNIX_EPOCH),
                                limit: 5000,
                                ..AuditFilter::default()
                            };
                            catalog.audit(&filter).unwrap();
                        });
                    }
                });
                let sorted = catalog.rows(
                    "SELECT path FROM audit GROUP BY id % 4000 ORDER BY path || id",
                    [],
                    |_| Ok(()),
                );
                sorted.unwrap();
                let known: Vec<_> = catalog
                    .users()
                    .unwrap()
                    .into_iter()
                    .map(|u| u.name)
                    .collect();
                answer(&format!(
                    "{} {}",
                    known.join(","),
                    catalog.version().unwrap()
                ));
            }
            "statement" => {
                // A statement that fails in its middle takes back what it did: its
                // journal is longer than what is kept in memory by default.
                let failed = catalog.write(|connection| {
                    Ok(connection.execute(
                        "UPDATE audit SET at = at || 'x', bytes = CASE WHEN id = (SELECT max(id)
                             FROM audit) THEN abs(-9223372036854775808) END",
                        [],
                    )?)
                });
                assert!(failed.unwrap_err().to_string().contains("overflow"));
                catalog.prune_audit(Timestamp::UNIX_EPOCH).unwrap();
                answer("taken back");
            }
            other => panic!("{other}"),
        }
    }
}

struct Confined {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Confined {
    fn ask(&mut self, line: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
        self.hear()
    }

    fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            if self.said.read_line(&mut line).unwrap() == 0 {
                let child =
                    std::mem::replace(&mut self.child, Command::new("true").spawn().unwrap());
                let output = child.wait_with_output().unwrap();
                panic!("{}", String::from_utf8_lossy(&output.stderr));
            }
            if let Some((_, answer)) = line.trim_end().split_once("answer: ") {
                return answer.to_owned();
            }
        }
    }
}

#[test]
fn a_catalog_opened_ahead_opens_nothing_later() {
    let dir = TempDir::new().unwrap();
    let database = dir.path().join("state/catalog.db");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "catalog::tests::ahead::confined", "--nocapture"])
        .env(DATABASE, &database)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stdout.take().unwrap());
    let mut confined = Confined { child, said };
    assert_eq!(confined.hear(), "open");
    let away = dir.path().join("away");
    assert_eq!(confined.ask(away.to_str().unwrap()), "confined");
    let database = away.join("catalog.db");
    let mut versions = Vec::new();
    for round in 0..3 {
        assert_eq!(confined.ask("write"), "written");
        // This is the other process; it moves the log into the database and begins
        // it anew, each time in another way.
        let here = Catalog::open(&database).unwrap();
        let name = format!("user{round}");
        here.add_user(&name, Role::Viewer, HASH, false, &[])
            .unwrap();
        let mode = ["TRUNCATE", "RESTART", "PASSIVE"][round];
        let checkpoint = format!("PRAGMA wal_checkpoint({mode})");
        let busy = here
            .writer()
            .unwrap()
            .query_row(&checkpoint, [], |row| row.get::<_, i64>(0));
        assert_eq!(busy.unwrap(), 0, "{mode}");
        here.record_audit(&records(10)).unwrap();
        drop(here);
        let seen = confined.ask("read");
        let (users, version) = seen.split_once(' ').unwrap();
        assert!(users.ends_with(&name), "{users}");
        assert!(
            !versions.contains(&version.to_owned()),
            "{version} {versions:?}"
        );
        versions.push(version.to_owned());
        assert_eq!(confined.ask("statement"), "taken back");
    }
    drop(confined.child.stdin.take());
    assert!(confined.child.wait().unwrap().success());
    // All of it is there, and whole.
    let here = Catalog::open(&database).unwrap();
    let check: String = here
        .writer()
        .unwrap()
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
    let count: i64 = here
        .writer()
        .unwrap()
        .query_row(
            "SELECT count(*) FROM audit WHERE at NOT LIKE '%x'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(count, 3 * 3011);
}
