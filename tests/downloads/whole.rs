//! One file: whole, in parts, under conditions, and resumed.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::support::http::{Answer, Api, Session, encoded};
use super::support::{facts, run, wait_for};
use super::{backup, exit, mounted, running, start};

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
