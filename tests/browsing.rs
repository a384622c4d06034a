//! Browsing over HTTP with the real `curl`: what is listed and told is what the mounted
//! tree has, and every path that is given out can be given back.
#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};
use support::http::{Answer, Api, Session, disk_of, encoded};
use support::images::{RawDisk, flipped, full, varied_tree};
use support::{Lab, facts, shell};

/// Entries of the large folder, 50 folders among them.
const COUNT: usize = 20_000;
const STAMP: &str = "20251008-192431";

/// A mount of a VM's only disk, and its folder in the tree.
fn mounted(session: &Session<'_>, vm: &str) -> (String, std::path::PathBuf) {
    let backup = session.backups(vm).remove(0);
    let disk = session.api.lab.mountpoint().join(vm).join(&backup);
    (session.mount(&backup, 0), disk.join("disk0"))
}

/// The bytes of a name as JSON has it: `\xHH` stands for a byte from 80 on, or for a
/// backslash.
fn bytes(text: &str) -> Vec<u8> {
    let text = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < text.len() {
        let escape = text.get(at..at + 4).filter(|four| four.starts_with(b"\\x"));
        let digits = escape.and_then(|four| std::str::from_utf8(&four[2..]).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if byte >= 0x80 || byte == b'\\' => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    out
}

fn text<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key}: {entry}"))
}

/// That an entry is as the kernel shows it in the mounted tree.
fn assert_is(entry: &Value, at: &Path) {
    let own = fs::symlink_metadata(at).unwrap();
    assert_eq!(
        text(entry, "mode"),
        format!("{:04o}", own.mode() & 0o7777),
        "{entry}"
    );
    let time: jiff::Timestamp = text(entry, "modified_time").parse().unwrap();
    let time = time.as_nanosecond();
    let wanted = i128::from(own.mtime()) * 1_000_000_000 + i128::from(own.mtime_nsec());
    assert_eq!(time, wanted, "{entry}");
    assert_eq!(entry["is_symlink"], own.is_symlink(), "{entry}");
    if own.is_symlink() {
        let target = fs::read_link(at).unwrap();
        assert_eq!(
            bytes(text(entry, "symlink_target")),
            target.as_os_str().as_bytes()
        );
        return;
    }
    let kind = if own.is_dir() { "directory" } else { "file" };
    assert_eq!(text(entry, "type"), kind);
    let size = if own.is_file() { own.size() } else { 0 };
    assert_eq!(entry["size"], size, "{entry}");
    let special = !own.is_dir() && !own.is_file();
    assert_eq!(entry.get("special").is_some(), special, "{entry}");
    assert!(entry.get("symlink_target").is_none(), "{entry}");
}

/// Lists a folder, compares each entry with the tree, and goes on below.
fn compare(session: &Session<'_>, base: &str, path: &str, at: &Path, seen: &mut BTreeSet<Vec<u8>>) {
    let listing = session
        .get(&format!("{base}/files?path={}", encoded(path)))
        .ok();
    assert_eq!(listing["path"], path);
    let files = listing["files"].as_array().unwrap();
    assert_eq!(listing["total_count"], files.len());
    let mut names: Vec<(bool, Vec<u8>)> = Vec::new();
    for entry in files {
        let name = bytes(text(entry, "name"));
        let below = at.join(OsStr::from_bytes(&name));
        let shown = text(entry, "path");
        assert_eq!(
            shown,
            format!("{}/{}", path.trim_end_matches('/'), text(entry, "name"))
        );
        assert_is(entry, &below);
        let is_folder = below.symlink_metadata().unwrap().is_dir();
        names.push((!is_folder, name));
        let info = session
            .get(&format!("{base}/file-info?path={}", encoded(shown)))
            .ok();
        for (key, value) in entry.as_object().unwrap() {
            assert_eq!(info[key], *value, "{key} of {shown}");
        }
        let own = below.symlink_metadata().unwrap();
        assert_eq!(info["uid"], own.uid());
        assert_eq!(info["gid"], own.gid());
        assert_eq!(info["links"], own.nlink());
        assert_eq!(info["inode"], own.ino().to_string());
        let download = session.get(&format!("{base}/download?path={}", encoded(shown)));
        if own.is_file() {
            assert_eq!(download.status, 200, "{shown}: {}", download.text());
            let digest = |bytes: &[u8]| Sha256::digest(bytes).to_vec();
            let same = digest(&download.body) == digest(&fs::read(&below).unwrap());
            assert!(same, "{shown}: other bytes");
            let hash = facts::sha256(&below);
            let got: String = digest(&download.body)
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            assert_eq!(got, hash, "{shown}");
        } else if !own.is_symlink() {
            download.refused(400);
        }
        if is_folder {
            compare(session, base, shown, &below, seen);
        }
        seen.insert(shown.as_bytes().to_vec());
    }
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(
        names, sorted,
        "{path}: folders first, then all else, by name"
    );
    let there: BTreeSet<Vec<u8>> = fs::read_dir(at)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
        .collect();
    let listed: BTreeSet<Vec<u8>> = names.into_iter().map(|(_, name)| name).collect();
    assert_eq!(listed, there, "{path}");
}

#[test]
fn every_entry_of_a_nasty_tree_is_listed_told_and_downloaded() {
    let api = Api::with("", |lab| {
        let raw = RawDisk::ext4(lab.path("work/a.raw"), "200M", &[]);
        raw.write(|root| {
            varied_tree(root);
            // 100 MB of holes take their time in a build for debugging.
            shell(&format!(
                r#"
cd {root:?}; rm var/sparse; mkdir names; cd names
for name in '"' "'" '\' '\xff' '\x5c' '\x5cxff' '%2e%2e' '..x' '...' ' ' '~' '&a=b' '?' '#' '+' 'a+b c' \
    $'\t' $'\r\n' $'\x01' $'\x7f' 'ünïcode 漢字' $'\xc3' $'e\xcc\x81' $'\xed\xa0\x80' '<b>' '$(id)' '`id`' ';' '*' \
    'C:' 'aux' 'a.' '-rf' $'\xef\xbb\xbf' $'\xe2\x80\xae.txt' '{{}}' '[1-9]' '%' '%00' '%zz'
do echo "content of $name" > "$name"; done
mkdir $'fo\xff\nlder'; echo below > $'fo\xff\nlder/\xfe'
"#
            ));
        });
        full(lab, &raw.path, "vm", 0, STAMP);
    });
    let session = api.login("admin");
    let (mount, disk) = mounted(&session, "vm");
    let base = format!("/api/v1/restore/{mount}");
    let mut seen = BTreeSet::new();
    compare(&session, &base, "/", &disk, &mut seen);
    println!("{} entries", seen.len());
    assert!(seen.len() > 70);

    // Links: what they lead to is told where it lies on the disk, and is given.
    let info = |path: &str| session.get(&format!("{base}/file-info?path={path}")).ok();
    let soft = info("/etc/soft");
    assert_eq!((&soft["type"], &soft["size"]), (&"file".into(), &6.into()));
    let given = session.get(&format!("{base}/download?path=/etc/soft"));
    assert_eq!((given.status, given.text().as_str()), (200, "hello\n"));
    let absolute = info("/etc/soft-absolute");
    assert_eq!(
        (&absolute["type"], &absolute["size"]),
        (&"file".into(), &0.into())
    );
    // The three names of a file are one.
    assert_eq!(
        info("/etc/hard1")["inode"],
        info("/home/user/hard2")["inode"]
    );

    // All below at once is what the walk has found.
    let all = session.get(&format!("{base}/files?recursive=true")).ok();
    assert_eq!(all["truncated"], false);
    let files = all["files"].as_array().unwrap().iter();
    let paths: BTreeSet<Vec<u8>> = files.map(|e| text(e, "path").as_bytes().to_vec()).collect();
    assert_eq!(paths, seen);
    let some = session
        .get(&format!("{base}/files?recursive=true&limit=10"))
        .ok();
    assert_eq!(
        (&some["truncated"], &some["total_count"]),
        (&true.into(), &10.into())
    );

    // What cannot be.
    for (route, path, status) in [
        ("files", "/etc/hostname", 400),
        ("files", "/nothing", 404),
        ("files", "/etc/hostname/x", 404),
        ("files", "/etc/soft-absolute", 400),
        ("files", "/var/pipe", 400),
        ("download", "/etc", 400),
        ("download", "/", 400),
        ("download", "", 400),
        ("download", "/nothing", 404),
        ("download", "/var/null", 400),
        ("download", "/etc/soft-absolute", 400),
        ("file-info", "/nothing", 404),
        ("download-directory", "/etc/hostname", 400),
        ("download-directory", "/nothing", 404),
        ("size", "/nothing", 404),
    ] {
        let answer = session.get(&format!("{base}/{route}?path={path}"));
        let sentence = answer.refused(status);
        assert!(!sentence.contains("sendense-test"), "{sentence}");
    }
    for query in [
        "limit=0",
        "limit=10001",
        "limit=x",
        "limit=-1",
        "order=size",
        "recursive=yes",
        "cursor=!",
        "path=/&path=/etc",
        "cursor=cAAAAAAAAAAB&order=name",
    ] {
        session.get(&format!("{base}/files?{query}")).refused(400);
    }
    let unknown = "/api/v1/restore/e4805a6f-8ee7-4f3c-8309-2f12362c7398";
    for route in [
        "files",
        "file-info",
        "download",
        "download-directory",
        "size",
    ] {
        session
            .get(&format!("{unknown}/{route}?path=/etc/hostname"))
            .refused(404);
        api.get(&format!("{base}/{route}?path=/etc/hostname"))
            .send()
            .refused(401);
    }
}

#[test]
fn a_folder_of_any_size_comes_in_pages() {
    let api = Api::with("", |lab| {
        // The kernel puts so many into a folder faster than mke2fs does.
        let disk = RawDisk::ext4(lab.path("work/many.raw"), "160M", &["-N", "30000"]);
        disk.write(|root| {
            let many = root.join("many");
            fs::create_dir(&many).unwrap();
            for n in 0..COUNT - 50 {
                fs::write(many.join(format!("file {n}")), "").unwrap();
            }
            for n in 0..50 {
                fs::create_dir(many.join(format!("folder {n}"))).unwrap();
            }
        });
        full(lab, &disk.path, "vm", 0, STAMP);
    });
    let session = api.login("admin");
    let (mount, disk) = mounted(&session, "vm");
    let base = format!("/api/v1/restore/{mount}/files?path=/many");
    let there: BTreeSet<String> = fs::read_dir(disk.join("many"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(there.len(), COUNT);
    let names = |page: &Value| -> Vec<String> {
        let files = page["files"].as_array().unwrap().iter();
        files.map(|entry| text(entry, "name").to_owned()).collect()
    };
    let whole = session.get(&base).ok();
    assert_eq!(whole["total_count"], COUNT);
    assert!(whole.get("next_cursor").is_none());
    for (order, limit) in [("name", 1999), ("directory", 2500)] {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        let began = Instant::now();
        for page in 0.. {
            assert!(page < 12, "{order}: no end");
            let query = format!("{base}&order={order}&limit={limit}{cursor}");
            let page = session.get(&query).ok();
            assert_eq!(page["order"], order);
            let some = names(&page);
            assert!(some.len() <= limit);
            all.extend(some);
            match page.get("next_cursor") {
                Some(next) => cursor = format!("&cursor={}", next.as_str().unwrap()),
                None => break,
            }
        }
        println!("{order}: {:?}", began.elapsed());
        assert_eq!(all.len(), COUNT, "{order}: each once");
        assert_eq!(
            all.iter().cloned().collect::<BTreeSet<_>>(),
            there,
            "{order}"
        );
        if order == "name" {
            assert_eq!(all, names(&whole));
        }
    }
    counting_keeps_nobody_out(&session, &format!("/api/v1/restore/{mount}"));
    let began = Instant::now();
    assert_eq!(
        session.get(&format!("{base}&limit=1000")).ok()["files"][0]["name"],
        "folder 0"
    );
    assert!(began.elapsed() < Duration::from_secs(2));
}

/// Many who want to know the size of a large folder, half of whom go at once: others are
/// answered meanwhile, and all who stay get it in their turn.
fn counting_keeps_nobody_out(session: &Session<'_>, base: &str) {
    let size = session.request("GET", &format!("{base}/size?path=/many"));
    let clients: Vec<Child> = (0..100)
        .map(|n| {
            let mut command = size.command();
            if n % 2 == 0 {
                command.args(["--max-time", "0.05"]);
            }
            command
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for _ in 0..10 {
        let began = Instant::now();
        session.get(&format!("{base}/file-info?path=/many")).ok();
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{:?}",
            began.elapsed()
        );
    }
    for (n, client) in clients.into_iter().enumerate() {
        let output = client.wait_with_output().unwrap();
        if n % 2 == 1 {
            let answer = Answer::parse(&output.stdout).unwrap();
            match answer.status {
                200 => assert_eq!(answer.json()["total_files"], COUNT - 50),
                _ => assert!(answer.status == 503 && answer.header("retry-after").is_some()),
            }
        }
    }
}

/// A backup whose image has lost its end.
fn cut(lab: &Lab) {
    let disk = disk_of(lab, "cut", "64M", |root| {
        shell(&format!("head -c 40000000 /dev/urandom > {root:?}/file"));
    });
    let image = full(lab, &disk.path, "cut", 0, STAMP);
    let length = fs::metadata(&image).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(length / 2).unwrap();
}

/// > A file whose beginning cannot be read is refused with 502; an error after that breaks
/// > the connection
#[test]
fn damage_is_an_error_and_never_other_bytes() {
    let mut api = Api::prepare("request_timeout = \"5s\"", false);
    cut(&api.lab);
    flipped(&api.lab, "flipped", STAMP);
    let _ = api.lab.sendense([
        "catalog".as_ref(),
        "scan".as_ref(),
        api.lab.path("repository").as_os_str(),
    ]);
    api.serve();
    let session = api.login("admin");
    let file = api.lab.path("got");
    let download = |mount: &str, path: &str| {
        let request = session
            .request(
                "GET",
                &format!("/api/v1/restore/{mount}/download?path={path}"),
            )
            .arg("-o")
            .arg(&file)
            .arg("-w")
            .arg("%{http_code}");
        // The head would be in the file.
        let mut command = request.command();
        command.arg("--no-include");
        let output = command.output().unwrap();
        let status: u16 = String::from_utf8(output.stdout).unwrap().parse().unwrap();
        (
            status,
            output.status.code(),
            fs::read(&file).unwrap_or_default(),
        )
    };
    let backup = session.backups("cut").remove(0);
    let sentence = session.try_mount(&backup, 0).refused(502);
    assert!(sentence.contains("truncated"), "{sentence}");
    let (flipped, _) = mounted(&session, "flipped");
    let (status, exit, got) = download(&flipped, "/middle");
    println!("middle: {status}, curl {exit:?}, {} bytes", got.len());
    assert_eq!((status, exit), (200, Some(18)));
    assert!(got.len() <= 2_000_000);
    // What fails at its first byte is said before the answer begins.
    let (status, _, got) = download(&flipped, "/start");
    assert_eq!(status, 502, "{}", String::from_utf8_lossy(&got));
    assert!(String::from_utf8_lossy(&got).contains("/start: cannot be read"));
    let range = session
        .request(
            "GET",
            &format!("/api/v1/restore/{flipped}/download?path=/middle"),
        )
        .header("Range: bytes=0-999")
        .send();
    assert_eq!((range.status, range.body.len()), (206, 1000));
    let running = session.get("/api/v1/restore/downloads").ok();
    assert_eq!(running["count"], 0, "places are given back");
}
