//! Downloads over HTTP by real clients: `curl` that is fast, slow, cut off and resumed,
//! and sockets that read nothing at all.
#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::http::{Answer, Api, Session, disk_of, encoded};
use support::images::full;
use support::{Lab, facts, run, shell, wait_for};

const STAMP: &str = "20251008-192431";
const MIB: u64 = 1 << 20;

/// A backup of a disk with what `script` makes.
fn backup(lab: &Lab, size: &str, script: &str) {
    let disk = disk_of(lab, "a", size, |root| {
        shell(&format!("cd {root:?}; {script}"));
    });
    full(lab, &disk.path, "vm", 0, STAMP);
}

/// A mount of the only disk, as the address of its routes, and its folder in the tree.
fn mounted(session: &Session<'_>) -> (String, PathBuf) {
    let backup = session.backups("vm").remove(0);
    let mount = session.mount(&backup, 0);
    let disk = session.api.lab.mountpoint().join("vm").join(backup);
    (format!("/api/v1/restore/{mount}"), disk.join("disk0"))
}

/// A `curl` that writes the body to a file.
fn start(session: &Session<'_>, path: &str, file: &str, args: &[&str]) -> Child {
    let mut command = session.request("GET", path).command();
    command
        .args(["--no-include", "-o"])
        .arg(session.api.lab.path(file))
        .args(args)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The exit code of a `curl`, which has to end within a time.
fn exit(mut child: Child, limit: Duration) -> i32 {
    let mut status = None;
    wait_for("curl's end", limit, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap().code().unwrap()
}

/// A client that asks and reads no more than the beginning.
fn stalled(session: &Session<'_>, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", session.api.port)).unwrap();
    let token = &session.token;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
    .unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    stream
}

/// Reads what is left until the connection ends, and says how much that was.
fn drained(mut stream: TcpStream) -> u64 {
    let (mut bytes, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return bytes,
            Ok(n) => bytes += n as u64,
            Err(e) => {
                assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}");
                return bytes;
            }
        }
    }
}

fn running(session: &Session<'_>) -> Vec<Value> {
    let answer = session.get("/api/v1/restore/downloads").ok();
    let all = answer["downloads"].as_array().unwrap().clone();
    assert_eq!(answer["count"], all.len());
    all
}

/// Memory of a process, in bytes.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().split_whitespace().next().unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

#[test]
fn a_file_comes_whole_in_parts_and_not_again() {
    let api = Api::with("", |lab| {
        backup(
            lab,
            "64M",
            "seq 1 300000 > text.txt; : > empty.bin; echo x > $'Größe \"1\".pdf'; \
             mkdir folder; truncate -s 5G sparse.img; \
             echo middle | dd of=sparse.img bs=1 seek=4294967290 conv=notrunc status=none; \
             touch -d '2024-02-29 12:34:56.789 UTC' text.txt; touch -d '1960-01-01' empty.bin",
        );
    });
    let session = api.login("admin");
    let (base, disk) = mounted(&session);
    let address = |name: &str| format!("{base}/download?path={}", encoded(name));
    let ask = |method: &str, name: &str, headers: &[&str]| -> Answer {
        let request = session.request(method, &address(name));
        headers
            .iter()
            .fold(request, |all, line| all.header(line))
            .send()
    };
    let truth = fs::read(disk.join("text.txt")).unwrap();

    let whole = ask("GET", "/text.txt", &[]);
    assert_eq!(whole.status, 200);
    assert!(whole.body == truth);
    let length = truth.len().to_string();
    for (name, value) in [
        ("content-type", "text/plain"),
        ("content-disposition", "attachment; filename=\"text.txt\""),
        ("content-length", length.as_str()),
        ("last-modified", "Thu, 29 Feb 2024 12:34:56 GMT"),
        ("accept-ranges", "bytes"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(whole.header(name), Some(value), "{name}");
    }
    let etag = whole.header("etag").unwrap().to_owned();
    assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() > 2);
    let head = ask("HEAD", "/text.txt", &[]);
    let lasting = |answer: &Answer| {
        let mut headers = answer.headers.clone();
        headers.retain(|(name, _)| name != "date");
        headers
    };
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(lasting(&head), lasting(&whole));

    // Parts.
    let size = truth.len();
    for (range, first, last) in [
        ("0-499", 0, 499),
        ("500000-500000", 500_000, 500_000),
        ("1000000-", 1_000_000, size - 1),
        ("-700", size - 700, size - 1),
        ("0-99999999999", 0, size - 1),
        ("-99999999999", 0, size - 1),
    ] {
        for (method, body) in [("GET", &truth[first..=last]), ("HEAD", &[][..])] {
            let part = ask(method, "/text.txt", &[&format!("Range: bytes={range}")]);
            assert_eq!(part.status, 206, "{range}");
            let wanted = format!("bytes {first}-{last}/{size}");
            assert_eq!(part.header("content-range"), Some(wanted.as_str()));
            assert_eq!(
                part.header("content-length"),
                Some((last - first + 1).to_string().as_str())
            );
            assert_eq!(part.header("etag"), Some(etag.as_str()));
            assert!(part.body == body, "{method} {range}");
        }
    }
    let beyond = ask("GET", "/text.txt", &[&format!("Range: bytes={size}-")]);
    beyond.refused(416);
    assert_eq!(
        beyond.header("content-range"),
        Some(format!("bytes */{size}").as_str())
    );
    for useless in [
        "bytes=5-2",
        "bytes=0-1,5-6",
        "lines=1-2",
        "bytes=a-b",
        "bytes",
    ] {
        let whole = ask("GET", "/text.txt", &[&format!("Range: {useless}")]);
        assert_eq!((whole.status, whole.body.len()), (200, size), "{useless}");
    }

    // Conditions.
    let part = "Range: bytes=0-9";
    for (condition, status) in [
        (format!("If-Range: {etag}"), 206),
        ("If-Range: \"other\"".into(), 200),
        (format!("If-Range: W/{etag}"), 200),
        ("If-Range: Thu, 29 Feb 2024 12:34:56 GMT".into(), 206),
        ("If-Range: Thu, 29 Feb 2024 12:34:57 GMT".into(), 200),
        (format!("If-None-Match: {etag}"), 304),
        (format!("If-None-Match: \"a\", W/{etag}"), 304),
        ("If-None-Match: *".into(), 304),
        (format!("If-Match: {etag}"), 206),
        ("If-Match: \"other\"".into(), 412),
        (
            "If-Unmodified-Since: Thu, 29 Feb 2024 12:34:55 GMT".into(),
            412,
        ),
        ("If-None-Match: \"other\"".into(), 206),
        (
            "If-Modified-Since: Thu, 29 Feb 2024 12:34:56 GMT".into(),
            304,
        ),
        (
            "If-Modified-Since: Thu, 29 Feb 2024 12:34:55 GMT".into(),
            206,
        ),
    ] {
        let answer = ask("GET", "/text.txt", &[part, &condition]);
        assert_eq!(answer.status, status, "{condition}");
        if status == 304 {
            assert!(answer.body.is_empty() && answer.header("etag") == Some(etag.as_str()));
        }
    }

    // An empty file, a name beyond ASCII, a file with 5 GiB of holes.
    let empty = ask("GET", "/empty.bin", &[]);
    assert_eq!((empty.status, empty.body.len()), (200, 0));
    assert_eq!(empty.header("content-length"), Some("0"));
    assert_eq!(
        empty.header("last-modified"),
        None,
        "HTTP has no date before 1970"
    );
    ask("GET", "/empty.bin", &["Range: bytes=0-"]).refused(416);
    let named = ask("HEAD", "/Größe \"1\".pdf", &[]);
    assert_eq!(
        named.header("content-disposition").unwrap(),
        "attachment; filename=\"Gr__e _1_.pdf\"; filename*=UTF-8''Gr%C3%B6%C3%9Fe%20%221%22.pdf"
    );
    assert_eq!(named.header("content-type"), Some("application/pdf"));
    let sparse = ask("HEAD", "/sparse.img", &[]);
    assert_eq!(sparse.header("content-length"), Some("5368709120"));
    let across = ask(
        "GET",
        "/sparse.img",
        &["Range: bytes=4294967285-4294967300"],
    );
    assert_eq!(across.body, b"\0\0\0\0\0middle\n\0\0\0\0");
    let end = ask("GET", "/sparse.img", &["Range: bytes=-1000000"]);
    assert!(end.body.len() == 1_000_000 && end.body.iter().all(|byte| *byte == 0));

    // The record: each that was sent is complete, heads and 304 are none.
    assert!(running(&session).is_empty());
    let mut records = Vec::new();
    wait_for("the records", Duration::from_secs(5), || {
        let audit = session.get("/api/v1/audit?action=download&limit=1000").ok();
        records = audit["records"].as_array().unwrap().clone();
        let begun = records
            .iter()
            .filter(|record| record["detail"] == "begun")
            .count();
        records.len() == 2 * begun
    });
    records.retain(|record| record["detail"] != "begun");
    for record in &records {
        assert_eq!(record["outcome"], "ok", "{record}");
    }
    let of = |path: &str| {
        records
            .iter()
            .filter(|record| record["path"] == path)
            .count()
    };
    assert_eq!(
        (of("/text.txt"), of("/empty.bin"), of("/sparse.img")),
        (1 + 6 + 5 + 8, 1, 2)
    );
}

/// `curl -C -` goes on after whatever broke a download.
#[test]
fn a_download_that_was_cut_is_resumed() {
    let mut api = Api::with("", |lab| {
        backup(lab, "128M", "head -c 60000000 /dev/urandom > random.bin");
    });
    let session = api.login("admin");
    let token = session.token.clone();
    let (base, disk) = mounted(&session);
    let address = format!("{base}/download?path=/random.bin");
    let truth = facts::sha256(&disk.join("random.bin"));
    for cut in ["the client", "the HTTP side", "the daemon"] {
        let session = Session {
            api: &api,
            token: token.clone(),
            csrf: String::new(),
        };
        let file = api.lab.path("got");
        let _ = fs::remove_file(&file);
        let mut curl = start(&session, &address, "got", &["--limit-rate", "20M"]);
        let size = || fs::metadata(&file).map_or(0, |meta| meta.len());
        wait_for("some bytes", Duration::from_secs(10), || {
            size() > 10_000_000
        });
        match cut {
            "the client" => {
                curl.kill().unwrap();
                curl.wait().unwrap();
            }
            "the HTTP side" => {
                let pid = api.pid();
                kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
                assert_ne!(exit(curl, Duration::from_secs(10)), 0);
                wait_for("another HTTP side", Duration::from_secs(15), || {
                    let status = api.lab.sendense_ok(["status", "--json"]);
                    let status: Value = serde_json::from_str(&status).unwrap();
                    status["api"]["pid"]
                        .as_u64()
                        .is_some_and(|new| new != u64::from(pid))
                });
                api.wait_until_healthy();
            }
            _ => {
                api.daemon.take().unwrap().kill();
                assert_ne!(exit(curl, Duration::from_secs(10)), 0);
                run("umount", ["-l".as_ref(), api.lab.mountpoint().as_os_str()]);
                api.serve();
            }
        }
        let had = size();
        assert!((10_000_000..60_000_000).contains(&had), "{cut}: {had}");
        let session = Session {
            api: &api,
            token: token.clone(),
            csrf: String::new(),
        };
        let limit = Duration::from_secs(30);
        assert_eq!(
            exit(start(&session, &address, "got", &["-C", "-"]), limit),
            0,
            "{cut}"
        );
        assert_eq!(facts::sha256(&file), truth, "{cut}: after {had} bytes");
        println!("cut by {cut} after {had} bytes, and resumed");
    }
}

#[test]
fn fifty_clients_at_once_all_have_the_whole() {
    let api = Api::with("", |lab| {
        backup(lab, "128M", "head -c 8000000 /dev/urandom > random.bin");
    });
    let session = api.login("admin");
    let (base, disk) = mounted(&session);
    let truth = facts::sha256(&disk.join("random.bin"));
    let address = format!("{base}/download?path=/random.bin");
    let before = memory(api.pid());
    let began = Instant::now();
    let clients: Vec<Child> = (0..50)
        .map(|n| start(&session, &address, &format!("got{n}"), &[]))
        .collect();
    for (n, client) in clients.into_iter().enumerate() {
        assert_eq!(exit(client, Duration::from_secs(60)), 0, "client {n}");
        assert_eq!(
            facts::sha256(&api.lab.path(format!("got{n}"))),
            truth,
            "client {n}"
        );
    }
    let grown = memory(api.pid()).saturating_sub(before);
    println!(
        "50 times 8 MB in {:?}, {} MiB more memory",
        began.elapsed(),
        grown / MIB
    );
    assert!(grown < 150 * MIB);
}

/// Slow clients cost little memory, none is waited for, places are few, and each is
/// given back.
#[test]
fn places_are_limited_and_given_back() {
    const PLACES: usize = 50;
    let extra = format!("max_downloads = {PLACES}\nstall_timeout = \"6s\"");
    let api = Api::with(&extra, |lab| {
        backup(
            lab,
            "160M",
            "head -c 60000000 /dev/urandom > random.bin; mkdir d; echo x > d/x",
        );
    });
    let session = api.login("admin");
    let (base, _) = mounted(&session);
    let address = format!("{base}/download?path=/random.bin");
    let before = memory(api.pid());
    let began = Instant::now();
    let mut clients: Vec<TcpStream> = (0..PLACES).map(|_| stalled(&session, &address)).collect();
    let all = running(&session);
    assert_eq!(all.len(), PLACES);
    for one in &all {
        assert_eq!(one["paths"][0], "/random.bin");
        assert_eq!(
            (&one["format"], &one["total_bytes"]),
            (&"file".into(), &60_000_000.into())
        );
        assert_eq!(
            (&one["username"], &one["vm_name"]),
            (&"admin".into(), &"vm".into())
        );
        assert!(base.ends_with(one["mount_id"].as_str().unwrap()));
    }
    std::thread::sleep(Duration::from_millis(700));
    let sent = |one: &Value| one["bytes_sent"].as_u64().unwrap();
    assert!(
        running(&session)
            .iter()
            .all(|one| sent(one) > 0 && sent(one) < 60_000_000)
    );
    let grown = memory(api.pid()).saturating_sub(before);
    println!(
        "{PLACES} that read nothing: {} MiB more memory",
        grown / MIB
    );
    assert!(grown < 150 * MIB);

    // One too many is asked to come back; what takes no place goes on.
    for path in [
        address.clone(),
        format!("{base}/download-directory?path=/d"),
    ] {
        let full = session.get(&path);
        full.refused(503);
        let wait: u64 = full.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&wait));
        let head = session.request("HEAD", &path).send();
        assert_eq!(head.status, 200);
    }
    assert_eq!(session.get(&format!("{base}/files")).status, 200);

    // DELETE ends one that stalls, at once.
    let id = all[0]["download_id"].as_str().unwrap();
    let cancelled = session
        .delete(&format!("/api/v1/restore/downloads/{id}"))
        .ok();
    assert_eq!(cancelled["download_id"], id);
    wait_for("its place", Duration::from_secs(1), || {
        running(&session).len() == PLACES - 1
    });
    session
        .delete(&format!("/api/v1/restore/downloads/{id}"))
        .refused(404);
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "too slow to be told from a time-out"
    );
    clients.push(stalled(&session, &address));

    // The others are dropped when they have taken nothing for long enough.
    wait_for("all places", Duration::from_secs(20), || {
        running(&session).is_empty()
    });
    assert!(began.elapsed() > Duration::from_secs(5));
    for client in clients {
        assert!(drained(client) < 60_000_000);
    }
    assert_eq!(session.get(&address).body.len(), 60_000_000);
    let audit = session.get("/api/v1/audit?action=download&limit=1000").ok();
    let records = audit["records"].as_array().unwrap();
    let ended = |how: &str| {
        records
            .iter()
            .filter(|record| record["detail"] == how)
            .count()
    };
    assert_eq!((ended("cancelled"), ended("interrupted")), (1, PLACES));
}

#[test]
fn limits_and_the_end_of_a_mount_end_downloads() {
    let extra = "max_file_size = \"40MB\"\nmax_archive_size = \"50MB\"\ndownload_timeout = \"3s\"";
    let api = Api::with(extra, |lab| {
        backup(
            lab,
            "160M",
            "head -c 40000000 /dev/urandom > most.bin; mkdir more; \
             head -c 40000001 /dev/urandom > more/large.bin; head -c 10000000 /dev/urandom > more/b.bin",
        );
    });
    let session = api.login("admin");
    let (base, disk) = mounted(&session);
    let most = format!("{base}/download?path=/most.bin");
    let large = format!("{base}/download?path=/more/large.bin");
    assert_eq!(session.get(&most).body.len(), 40_000_000);
    session.get(&large).refused(413);
    assert_eq!(session.request("HEAD", &large).send().status, 413);
    let part = session
        .request("GET", &large)
        .header("Range: bytes=0-0")
        .send();
    assert_eq!(part.status, 413, "not in parts either");
    let more = format!("{base}/download-directory?path=/more");
    let sentence = session.get(&more).refused(413);
    assert!(sentence.contains("50000001 bytes in 2 files"), "{sentence}");
    let size = session.get(&format!("{base}/size?path=/more")).ok();
    assert_eq!(
        (&size["total_bytes"], &size["too_large"]),
        (&50_000_001.into(), &true.into())
    );
    assert_eq!(
        disk.join("more/large.bin").metadata().unwrap().size(),
        40_000_001
    );

    // The time of a download.
    let began = Instant::now();
    let slow = start(&session, &most, "slow", &["--limit-rate", "4M"]);
    let silent = stalled(&session, &most);
    assert_eq!(
        exit(slow, Duration::from_secs(8)),
        18,
        "curl says that it is not whole"
    );
    assert!(
        (2..8).contains(&began.elapsed().as_secs()),
        "{:?}",
        began.elapsed()
    );
    wait_for("both places", Duration::from_secs(1), || {
        running(&session).is_empty()
    });
    drained(silent);

    // The end of the mount.
    let file = start(&session, &most, "slow", &["--limit-rate", "4M"]);
    let archive = format!("{base}/download-directory?path=/more/b.bin&path=/more");
    session.get(&archive).refused(413);
    let archive = format!("{base}/download-directory?path=/more/b.bin&path=/most.bin");
    let archive = start(&session, &archive, "slow.zip", &["--limit-rate", "4M"]);
    wait_for("both", Duration::from_secs(2), || {
        running(&session).len() == 2
    });
    let message = session.delete(&base).ok()["message"].clone();
    assert_eq!(message, "backup unmounted successfully");
    wait_for("their end", Duration::from_secs(1), || {
        running(&session).is_empty()
    });
    // They still read what was under way to them.
    for client in [file, archive] {
        assert_eq!(exit(client, Duration::from_secs(10)), 18);
    }
    session.get(&most).refused(404);
}
