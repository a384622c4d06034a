//! Many downloads, slow ones, and what ends them.

use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::http::Api;
use super::support::{facts, wait_for};
use super::{MIB, backup, drained, exit, memory, mounted, running, stalled, start};

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
        56,
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
        assert_eq!(exit(client, Duration::from_secs(10)), 56);
    }
    session.get(&most).refused(404);
}
