//! Archives over HTTP: what other people's programs take out of them is what the
//! mounted tree has.
#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::facts::{Facts, assert_same, facts, kept_by_a_copy};
use support::http::{Api, Session, encoded};
use support::images::{RawDisk, flipped, full, varied_tree};
use support::{shell, wait_for};

const STAMP: &str = "20251008-192431";

/// A mount of a VM's only disk, as the address of its routes, and its folder.
fn mounted(session: &Session<'_>, vm: &str) -> (String, PathBuf) {
    let backup = session.backups(vm).remove(0);
    let mount = session.mount(&backup, 0);
    let disk = session.api.lab.mountpoint().join(vm).join(backup);
    (format!("/api/v1/restore/{mount}"), disk.join("disk0"))
}

/// What a format keeps of a tree: the facts named, whole seconds or all of a time.
fn kept(all: Facts, keys: &[&str], whole_seconds: bool) -> Facts {
    let mut all = all;
    for facts in all.values_mut() {
        facts.retain(|key, _| keys.contains(&key.as_str()));
        if let Some(time) = facts.get_mut("mtime").filter(|_| whole_seconds) {
            *time = time.split('.').next().unwrap().to_owned();
        }
    }
    all
}

/// The archive of some paths in a file.
fn fetch(session: &Session<'_>, base: &str, paths: &[&str], format: &str, file: &Path) {
    let query: Vec<String> = paths
        .iter()
        .map(|path| format!("path={}&", encoded(path)))
        .collect();
    let path = format!(
        "{base}/download-directory?{}format={format}",
        query.concat()
    );
    let answer = session.get(&path);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let kind = match format {
        "zip" => "application/zip",
        "tar.gz" => "application/gzip",
        _ => "application/zstd",
    };
    assert_eq!(answer.header("content-type"), Some(kind));
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    let name = match paths {
        [only] if *only != "/" => only.rsplit('/').next().unwrap().to_owned(),
        _ => session.backups("vm").remove(0) + "-disk0",
    };
    let wanted = format!("attachment; filename=\"{name}.{format}\"");
    assert_eq!(answer.header("content-disposition"), Some(wanted.as_str()));
    let head = session.request("HEAD", &path).send();
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-disposition"), Some(wanted.as_str()));
    fs::write(file, answer.body).unwrap();
}

/// Runs a script in an empty folder; the folder.
fn extracted(api: &Api, script: &str) -> PathBuf {
    let out = api.lab.path("out");
    shell(&format!(
        "rm -rf {out:?}; mkdir {out:?}; cd {out:?}; {script}"
    ));
    out
}

fn lab() -> Api {
    Api::with("", |lab| {
        let raw = RawDisk::ext4(lab.path("work/a.raw"), "256M", &[]);
        raw.write(|root| {
            varied_tree(root);
            shell(&format!(
                r#"
cd {root:?}; rmdir lost+found; mkdir -p plain/deep/er plain/empty; cd plain
seq 1 200000 > numbers.txt; head -c 2000000 /dev/urandom > random.jpg; : > nothing
truncate -s 3M holes; echo end >> holes; ln numbers.txt deep/again.txt
ln -s numbers.txt link; ln -s ../../outside deep/away; ln -s /etc/passwd deep/absolute
echo x > 'ünïcode 漢字'; echo x > $'new\nline'; echo x > ' -rf "quoted" '
printf 'y%.0s' $(seq 1 255) | xargs -I{{}} cp nothing {{}}
chmod 0750 deep; chmod 0640 numbers.txt; chmod 0500 empty
touch -d '2024-02-29 23:59:58.5 UTC' numbers.txt deep/er empty; touch -d '2030-06-01 UTC' deep
"#
            ));
        });
        full(lab, &raw.path, "vm", 0, STAMP);
    })
}

#[test]
fn every_reader_gets_the_tree_out_of_it() {
    let api = lab();
    let session = api.login("admin");
    let (base, disk) = mounted(&session, "vm");
    let zip = api.lab.path("a.zip");
    fetch(&session, &base, &["/plain"], "zip", &zip);
    shell(&format!(
        "cd {:?}; unzip -tq a.zip; 7zz t a.zip >/dev/null; python3 -m zipfile -t a.zip; bsdtar -tf a.zip >/dev/null",
        api.lab.path("")
    ));
    let plain = facts(&disk.join("plain"));
    let full_set = ["type", "mode", "mtime", "sha256", "target"];
    for (who, script, keys) in [
        ("unzip", "unzip -qK^ ../a.zip", &full_set[..]),
        ("bsdtar", "bsdtar -xpf ../a.zip", &full_set),
        (
            "7zz",
            "7zz x -snld ../a.zip >/dev/null",
            &["type", "sha256"],
        ),
        // It knows no links: they are files with what the link says.
        ("python", "python3 -m zipfile -e ../a.zip .", &["sha256"]),
        // From a pipe nobody sees the list at the end, where modes and links are.
        ("a pipe", "cat ../a.zip | bsdtar -xf -", &["sha256"]),
    ] {
        let out = extracted(&api, script).join("plain");
        let (mut truth, mut shown) = (plain.clone(), facts(&out));
        for (name, entry) in &mut truth {
            let is_link = entry["type"] == "symlink";
            let other = shown
                .get_mut(name)
                .unwrap_or_else(|| panic!("{who}: no {name:?}"));
            if is_link {
                // Their own times, and what is a link at all, differ from reader to reader.
                for facts in [&mut *entry, other] {
                    facts.remove("mtime");
                    facts.remove("sha256");
                }
            }
        }
        println!("{who}");
        assert_same(&kept(truth, keys, true), &kept(shown, keys, true));
    }

    // tar keeps all, of the whole disk.
    let readers = [
        (
            "tar.gz",
            "tar --xattrs --xattrs-include='*' --acls -xpf ../a.tar.gz 2>/dev/null",
        ),
        (
            "tar.zst",
            "zstd -dqc ../a.tar.zst | tar --xattrs --xattrs-include='*' --acls -xp 2>/dev/null",
        ),
        ("tar.zst", "bsdtar --acls --xattrs -xpf ../a.tar.zst"),
    ];
    let mut truth = kept_by_a_copy(facts(&disk));
    for facts in truth.values_mut() {
        // These are for the privileged only, and the HTTP side is not.
        facts.retain(|key, _| !key.starts_with("xattr \"trusted."));
    }
    truth
        .remove(&b"/var/socket"[..])
        .expect("a socket, which tar has no form for");
    truth.get_mut(&b""[..]).unwrap().clear();
    for (format, script) in readers {
        let file = api.lab.path(format!("a.{format}"));
        fetch(&session, &base, &["/"], format, &file);
        let out = extracted(&api, script);
        let list = fs::read_to_string(out.join("NOT-RESTORED.txt")).unwrap();
        assert!(list.contains("var/socket: "), "{list}");
        fs::remove_file(out.join("NOT-RESTORED.txt")).unwrap();
        let holes = shell(&format!("stat -c %b {:?}", out.join("var/sparse")));
        assert!(
            holes.trim().parse::<u64>().unwrap() < 100,
            "{format}: {holes} blocks"
        );
        let mut shown = kept_by_a_copy(facts(&out));
        shown.get_mut(&b""[..]).unwrap().clear();
        let mut truth = truth.clone();
        if script.contains("bsdtar") {
            // Fractions of a second before 1970 it adds in the wrong direction.
            for tree in [&mut truth, &mut shown] {
                tree.get_mut(&b"/etc/deep/old"[..]).unwrap().remove("mtime");
            }
            // It takes what it can and leaves attributes of security aside.
            for facts in truth.values_mut().chain(shown.values_mut()) {
                facts.retain(|key, _| !key.starts_with("xattr") && !key.starts_with("acl"));
            }
        }
        println!("{script}");
        assert_same(&truth, &shown);
    }
    assert!(running(&session).is_empty());
}

#[test]
fn several_paths_make_one_archive_and_sizes_are_told_before() {
    let api = lab();
    let session = api.login("admin");
    let (base, disk) = mounted(&session, "vm");
    let file = api.lab.path("a.tar.gz");
    let paths = [
        "/plain/deep",
        "/plain/numbers.txt",
        "/plain/deep/er",
        "/etc/hostname",
    ];
    fetch(&session, &base, &paths, "tar.gz", &file);
    let mut names: Vec<String> = shell(&format!("tar -tzf {file:?}"))
        .lines()
        .map(str::to_owned)
        .collect();
    names.sort();
    let wanted = "etc/hostname plain/deep/ plain/deep/absolute plain/deep/again.txt plain/deep/away \
                  plain/deep/er/ plain/numbers.txt";
    assert_eq!(names.join(" "), wanted);
    let zip = api.lab.path("a.zip");
    fetch(
        &session,
        &base,
        &["/plain/numbers.txt", "/plain/link"],
        "zip",
        &zip,
    );
    let listed = shell(&format!("zipinfo -1 {zip:?} | sort | xargs"));
    assert_eq!(listed.trim(), "link numbers.txt");

    for paths in [&["/"][..], &["/plain"], &["/plain/deep", "/etc"]] {
        let query: Vec<String> = paths.iter().map(|path| format!("path={path}&")).collect();
        let size = session.get(&format!("{base}/size?{}", query.concat())).ok();
        let folders: Vec<String> = paths
            .iter()
            .map(|path| format!("'{}{path}'", disk.display()))
            .collect();
        let folders = folders.join(" ");
        let found = |what: &str| -> u64 {
            // The disk's own folder is no entry of it.
            let all = shell(&format!(
                "find {folders} ! -samefile {disk:?} {what} -printf '%s\\0' | tr '\\0' '\\n'"
            ));
            all.lines().map(|size| size.parse::<u64>().unwrap()).sum()
        };
        let count = |what: &str| -> usize {
            shell(&format!(
                "find {folders} ! -samefile {disk:?} {what} -printf '.\\n'"
            ))
            .lines()
            .count()
        };
        assert_eq!(size["total_bytes"], found("-type f"), "{paths:?}");
        assert_eq!(size["total_files"], count("! -type d"), "{paths:?}");
        assert_eq!(size["total_directories"], count("-type d"), "{paths:?}");
        assert_eq!(
            (&size["complete"], &size["too_large"]),
            (&true.into(), &false.into())
        );
    }
    // Whose client could not tell a part from the whole gets none.
    let old = session
        .request("GET", &format!("{base}/download-directory?path=/plain"))
        .arg("--http1.0");
    old.send().refused(505);
    // One file is no folder, twice the same is once, and `format` is one of three.
    session
        .get(&format!("{base}/download-directory?path=/plain/nothing"))
        .refused(400);
    session
        .get(&format!("{base}/download-directory?path=/plain&format=rar"))
        .refused(400);
    fetch(
        &session,
        &base,
        &["/plain/deep", "/plain/deep"],
        "tar.gz",
        &file,
    );
    let once = shell(&format!("tar -tzf {file:?} | sort | uniq -d"));
    assert_eq!(once, "");
}

fn running(session: &Session<'_>) -> Vec<Value> {
    let answer = session.get("/api/v1/restore/downloads").ok();
    answer["downloads"].as_array().unwrap().clone()
}

fn slow(session: &Session<'_>, path: &str, rate: &str) -> Child {
    session
        .request("GET", path)
        .arg("--limit-rate")
        .arg(rate)
        .command()
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn exit(mut child: Child) -> Option<i32> {
    let mut status = None;
    wait_for("curl's end", Duration::from_secs(20), || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap().code()
}

/// Memory of a process, in MiB.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse::<u64>()
        .unwrap()
        >> 10
}

/// > What could not be read is listed in the archive's last member, `NOT-RESTORED.txt`;
/// > an error in the middle of a file breaks the connection.
#[test]
fn nothing_cut_short_passes_for_whole() {
    let api = Api::with("stall_timeout = \"4s\"", |lab| {
        flipped(lab, "vm", STAMP);
        let raw = RawDisk::ext4(lab.path("work/b.raw"), "128M", &[]);
        raw.write(|root| {
            shell(&format!(
                "cd {root:?}; mkdir d; head -c 60000000 /dev/urandom > d/random"
            ));
        });
        full(lab, &raw.path, "large", 0, STAMP);
    });
    let session = api.login("admin");
    let (base, disk) = mounted(&session, "vm");
    for format in ["zip", "tar.gz", "tar.zst"] {
        let broken = slow(
            &session,
            &format!("{base}/download-directory?format={format}"),
            "1G",
        );
        assert_eq!(exit(broken), Some(18), "{format}");
        let one =
            format!("{base}/download-directory?path=/start&path=/nothing-else&format={format}");
        session.get(&one).refused(404);
    }
    assert!(
        fs::read(disk.join("middle")).is_err(),
        "the file is damaged"
    );
    let mut ended = Vec::new();
    wait_for("the records", Duration::from_secs(5), || {
        let audit = session.get("/api/v1/audit?action=archive").ok();
        ended = audit["records"].as_array().unwrap().clone();
        ended.retain(|record| record["detail"] != "begun");
        ended.len() == 3
    });
    for record in ended {
        assert_eq!(record["outcome"], "failed", "{record}");
    }

    // Cancelled, and stalled.
    let (base, _) = mounted(&session, "large");
    let path = format!("{base}/download-directory?path=/d&format=tar.zst");
    let cancelled = slow(&session, &path, "4M");
    wait_for("the download", Duration::from_secs(5), || {
        running(&session).len() == 1
    });
    wait_for("some bytes", Duration::from_secs(5), || {
        running(&session)[0]["bytes_sent"].as_u64().unwrap() > 0
    });
    let one = running(&session).remove(0);
    assert_eq!(
        (&one["format"], &one["paths"][0]),
        (&"tar.zst".into(), &"/d".into())
    );
    let id = one["download_id"].as_str().unwrap();
    session
        .delete(&format!("/api/v1/restore/downloads/{id}"))
        .ok();
    wait_for("its end", Duration::from_secs(1), || {
        running(&session).is_empty()
    });
    assert_eq!(exit(cancelled), Some(56));

    let before = memory(api.pid());
    let clients: Vec<Child> = (0..50)
        .map(|n| {
            let format = ["zip", "tar.gz", "tar.zst"][n % 3];
            slow(
                &session,
                &format!("{base}/download-directory?path=/d&format={format}"),
                "1k",
            )
        })
        .collect();
    wait_for("all of them", Duration::from_secs(10), || {
        running(&session).len() == 50
    });
    std::thread::sleep(Duration::from_secs(2));
    let grown = memory(api.pid()).saturating_sub(before);
    println!("50 slow archives: {grown} MiB more memory");
    assert!(grown < 250);
    let threads = || {
        fs::read_dir(format!("/proc/{}/task", api.pid()))
            .unwrap()
            .count()
    };
    println!("{} threads", threads());
    for mut client in clients {
        client.kill().unwrap();
        client.wait().unwrap();
    }
    wait_for("their end", Duration::from_secs(5), || {
        running(&session).is_empty()
    });
    let archives = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", api.pid())).unwrap();
        let names = tasks
            .map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default());
        names.filter(|name| name.trim() == "archive").count()
    };
    wait_for("their threads", Duration::from_secs(5), || archives() == 0);
}
