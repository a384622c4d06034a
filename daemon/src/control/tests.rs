use super::message::{Answer, Request};
use super::server::Server;
use super::*;
use parking_lot::Mutex;
use sendense::catalog::Mount;
use sendense::{Error, Result, Shortage};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Daemon {
    released: Mutex<Vec<String>>,
}

impl ControlHandler for Daemon {
    fn status(&self) -> Status {
        Status {
            version: "1.2.3".into(),
            pid: std::process::id(),
            mountpoint: "/srv/x".into(),
            attached: vec![AttachedDisk {
                path: "vm/b/disk0".into(),
                ..AttachedDisk::default()
            }],
            ..Status::default()
        }
    }
    fn release(&self, path: &str) -> Result<String> {
        if path == "vm/b/disk0" {
            self.released.lock().push(path.to_owned());
            Ok(format!("{path}: released"))
        } else {
            Err(Error::not_found(path))
        }
    }
    fn mount(&self, backup_id: &str, disk_index: u32) -> Result<Mount> {
        Err(match (backup_id, disk_index) {
            ("gone", _) => Error::Unknown(format!("backup not found: {backup_id}")),
            ("full", _) => Error::NoSlot {
                slots: 8,
                shortage: Shortage::Mounts,
            },
            ("twice", _) => Error::MountedAlready {
                what: "vm/twice/disk0".into(),
                mount_id: "e4805a6f".into(),
            },
            ("poor", _) => Error::Exhausted {
                what: "no memory".into(),
            },
            ("late", _) => Error::TimedOut {
                what: "x".into(),
                after: Duration::from_millis(1500),
            },
            ("bad", _) => Error::image(Path::new("/r/b.qcow2"), "is damaged"),
            (_, 7) => {
                // As long as nobody should have to wait for somebody else's mount.
                std::thread::sleep(Duration::from_secs(2));
                Error::Expired
            }
            _ => Error::Invalid("no".into()),
        })
    }
    fn unmount(&self, mount_id: &str) -> Result<()> {
        self.released.lock().push(mount_id.to_owned());
        Ok(())
    }
    fn touch(&self, mount_ids: &[String]) {
        self.released.lock().extend(mount_ids.iter().cloned());
    }
    fn check(&self, _backup_id: &str) -> Result<Vec<DiskCheck>> {
        Ok(vec![
            DiskCheck {
                disk_index: 0,
                error: None,
            },
            DiskCheck {
                disk_index: 1,
                error: Some("is damaged".into()),
            },
        ])
    }
}

fn start(dir: &Path) -> (Arc<Daemon>, Server) {
    let daemon = Arc::new(Daemon::default());
    let server = Instance::claim(dir, "root")
        .unwrap()
        .serve(daemon.clone(), "nobody")
        .unwrap();
    (daemon, server)
}

#[test]
fn status_and_release_reach_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, server) = start(dir.path());
    let client = Client::at(dir.path());
    let status = client.status().unwrap();
    assert_eq!(status, daemon.status());
    assert_eq!(
        client.release("vm/b/disk0").unwrap(),
        "vm/b/disk0: released"
    );
    assert_eq!(*daemon.released.lock(), ["vm/b/disk0"]);
    let error = client.release("vm/b/disk7").unwrap_err().to_string();
    assert_eq!(error, "vm/b/disk7: not found");

    drop(server);
    assert!(!dir.path().join(SOCKET).exists());
    let error = client.status().unwrap_err().to_string();
    assert!(error.starts_with("the daemon is not running"), "{error}");
}

#[test]
fn the_wire_is_one_line_of_json_each_way() {
    let dir = tempfile::tempdir().unwrap();
    let (_daemon, _server) = start(dir.path());
    let mut stream = UnixStream::connect(dir.path().join(SOCKET)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    stream.write_all(b"{\"request\":\"status\"}\n").unwrap();
    let answer: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(answer["answer"], "status");
    assert_eq!(answer["attached"][0]["path"], "vm/b/disk0");
    // A second request on the same connection, and one that makes no sense.
    stream
        .write_all(b"{\"request\":\"release\",\"path\":\"vm/b/disk0\"}\n")
        .unwrap();
    assert!(lines.next().unwrap().unwrap().contains("released"));
    stream.write_all(b"\xff\xfe{{{\n").unwrap();
    assert!(lines.next().unwrap().unwrap().contains("not understood"));
}

#[test]
fn the_socket_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = dir.path().join("deep/run");
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    let instance = Instance::claim(&runtime, "no-such-group").unwrap();
    assert_eq!(mode(&runtime), 0o700);
    assert_eq!(mode(&runtime.join(SOCKET)), 0o600);
    drop(instance);
    // A folder that was there is left as it is.
    let instance = Instance::claim(&runtime, "root").unwrap();
    assert_eq!(mode(&runtime), 0o700);
    drop(instance);
    let runtime = dir.path().join("new");
    let _instance = Instance::claim(&runtime, "root").unwrap();
    assert_eq!(mode(&runtime), 0o750);
    assert_eq!(mode(&runtime.join(SOCKET)), 0o660);

    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = Instance::claim(&open, "root")
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(error.contains("writable for every user"), "{error}");
}

#[test]
fn a_second_daemon_is_told_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let (_daemon, _server) = start(dir.path());
    let wanted = format!("already running (process {})", std::process::id());
    let error = Instance::claim(dir.path(), "root")
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(error.starts_with(&wanted), "{error}");
    // Also when somebody removed the lock file under the first.
    std::fs::remove_file(dir.path().join(LOCK)).unwrap();
    let error = Instance::claim(dir.path(), "root")
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(error.starts_with(&wanted), "{error}");
    assert!(
        Client::at(dir.path()).status().is_ok(),
        "the first lost its socket"
    );
}

#[test]
fn what_a_dead_daemon_left_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    // A listener that is closed without removing its socket, as after kill -9.
    drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap());
    std::fs::write(dir.path().join(LOCK), "4194304999\n").unwrap();
    let error = Client::at(dir.path()).status().unwrap_err().to_string();
    assert!(error.starts_with("the daemon is not running"), "{error}");
    let (_daemon, _server) = start(dir.path());
    assert!(Client::at(dir.path()).status().is_ok());
}

#[test]
fn a_request_without_end_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (_daemon, _server) = start(dir.path());
    let mut stream = UnixStream::connect(dir.path().join(SOCKET)).unwrap();
    let flood = vec![b'a'; 1 << 20];
    let _ = stream.write_all(&flood); // may break when the server has had enough
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(
        answer.is_empty() || answer.contains("longer than"),
        "{answer}"
    );
    assert!(Client::at(dir.path()).status().is_ok());
}

#[test]
fn silent_and_slow_clients_hold_nobody_up_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let (_daemon, server) = start(dir.path());
    let connect = || UnixStream::connect(dir.path().join(SOCKET)).unwrap();
    let mut silent: Vec<UnixStream> = (0..20).map(|_| connect()).collect();
    let begin = Instant::now();
    // Those beyond the limit are closed at once; the rest when their time is up,
    // although they send a byte now and then.
    while begin.elapsed() < Duration::from_secs(7) {
        for stream in &mut silent {
            let _ = stream.write_all(b" ");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(Client::at(dir.path()).status().is_ok());
    // Nor do they hold up the end.
    let _more: Vec<UnixStream> = (0..5).map(|_| connect()).collect();
    let begin = Instant::now();
    drop(server);
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_client_has_the_errors_that_the_daemon_had() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, _server) = start(dir.path());
    let client = Client::at(dir.path());
    let error = |backup: &str| client.mount(backup, 0).unwrap_err();
    let same = |backup: &str| {
        let (here, there) = (error(backup), daemon.mount(backup, 0).unwrap_err());
        assert_eq!(format!("{here:?}"), format!("{there:?}"));
        assert_eq!(here.to_string(), there.to_string());
    };
    for backup in ["gone", "full", "twice", "poor", "late", "other"] {
        same(backup);
    }
    assert!(
        matches!(error("bad"), Error::Daemon(m) if m == "/r/b.qcow2: is damaged"),
        "of all others the sentence"
    );
    client.unmount("m1").unwrap();
    let many: Vec<String> = (0..2500).map(|n| format!("{n:036}")).collect();
    client.touch(&many).unwrap();
    let seen = daemon.released.lock();
    assert_eq!((seen.len(), &*seen[0]), (2501, "m1"));
    let checked = client.check("b").unwrap();
    assert_eq!(checked[0].error, None);
    assert_eq!(checked[1].error.as_deref(), Some("is damaged"));
}

#[test]
fn many_requests_of_one_client_run_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (_daemon, _server) = start(dir.path());
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..60 {
            scope.spawn(|| {
                let error = Client::at(dir.path()).mount("slow", 7).unwrap_err();
                assert!(matches!(error, Error::Expired), "{error}");
            });
        }
        std::thread::sleep(Duration::from_millis(200));
        let asked = Instant::now();
        Client::at(dir.path()).status().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(1));
    });
    assert!(begin.elapsed() < Duration::from_secs(6));
}

/// Clients of another user have places of their own.
#[test]
fn clients_of_one_user_hold_up_no_other_user() {
    let dir = tempfile::tempdir().unwrap();
    let (_daemon, _server) = start(dir.path());
    let socket = dir.path().join(SOCKET);
    for path in [dir.path(), &socket] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let script = format!(
        "import socket, time
open_ = []
for _ in range(200):
    s =          socket.socket(socket.AF_UNIX); s.connect({:?}); open_.append(s)
print('ready',          flush=True)
time.sleep(30)
",
        socket.to_str().unwrap()
    );
    let mut other = std::process::Command::new("setpriv")
        .args(["--reuid=65533", "--regid=65533", "--clear-groups", "--"])
        .args(["/usr/bin/python3", "-c", &script])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(other.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    let within = Duration::from_secs(1);
    assert!(Client::at(dir.path()).status_within(within).is_ok());
    other.kill().unwrap();
    other.wait().unwrap();
}

/// A daemon that was stopped keeps nobody.
#[test]
fn who_asks_for_a_moment_waits_for_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap();
    let client = Client::at(dir.path());
    let begin = Instant::now();
    // The queue of those that nobody accepts is full at some time.
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
    let _waiting: Vec<UnixStream> = (0..2)
        .map(|_| UnixStream::connect(dir.path().join(SOCKET)).unwrap())
        .collect();
    for _ in 0..3 {
        let error = client.status_within(Duration::from_millis(100));
        assert!(error.is_err());
    }
    assert!(begin.elapsed() < Duration::from_secs(2));
}

#[test]
fn messages_are_as_documented() {
    let text = serde_json::to_string(&Request::Release {
        path: "a/b/disk0".into(),
    })
    .unwrap();
    assert_eq!(text, r#"{"request":"release","path":"a/b/disk0"}"#);
    assert_eq!(
        serde_json::to_string(&Request::Status).unwrap(),
        r#"{"request":"status"}"#
    );
    let text = serde_json::to_string(&Answer::Error {
        message: "x".into(),
        fault: None,
    })
    .unwrap();
    assert_eq!(text, r#"{"answer":"error","message":"x"}"#);
    let error = Error::NoSlot {
        slots: 2,
        shortage: Shortage::Held,
    };
    let text = serde_json::to_string(&Answer::Error {
        message: "x".into(),
        fault: Some((&error).into()),
    })
    .unwrap();
    assert_eq!(
        text,
        r#"{"answer":"error","message":"x","kind":"no_slot","slots":2,"shortage":"held"}"#
    );
    let request = Request::Mount {
        backup_id: "b".into(),
        disk_index: 1,
    };
    assert_eq!(
        serde_json::to_string(&request).unwrap(),
        r#"{"request":"mount","backup_id":"b","disk_index":1}"#
    );
}
