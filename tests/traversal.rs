//! Paths that try to leave the disk: each is refused, nothing of the host or of another
//! disk is in any answer, and the kernel was asked to open nothing outside.
#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

#[path = "traversal/paths.rs"]
mod paths;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::http::{Answer, Api, Session, disk_of};
use support::images::full;
use support::{shell, wait_for};

const STAMP: &str = "20251008-192431";
/// What lies in files of the host, of other disks and of other VMs.
const CANARY: &str = "CANARY-8d1f4be9-must-not-be-read";
/// What lies in files of the disk itself.
const GUEST: &str = "content of the guest";

/// A disk full of links that lead out, others beside it, and canaries all around.
fn lab() -> Api {
    Api::with("", |lab| {
        let root = lab.path("");
        let root = root.to_str().unwrap().trim_end_matches('/');
        let disk = disk_of(lab, "guest", "32M", |at| {
            shell(&format!(
                r#"
cd {at:?}; mkdir -p etc deep/er/est proc dev links; echo '{GUEST}' > etc/passwd; echo '{GUEST}' > hostname
ln -s ../hostname links/inside; ln -s / links/root; ln -s .. links/above
n=0; for target in /etc/passwd /etc/shadow /proc/self/environ /proc/self/root /proc/self/fd/0 /proc/self/cwd \
    /dev/null /dev/fuse {root}/canary {root}/gate/canary {root}/gate/backups {root}/state {root}/repository \
    ../../../../etc/passwd ../../canary ../../../canary ../../../../../../../../etc/passwd \
    ../../disk1/secret ../disk1/secret ../../disk1 ../../../other ../disk0.raw ../../disk0.raw \
    deep/../../../../../etc/passwd /../../etc/passwd //etc/passwd links/l1 /links/l1
do n=$((n + 1)); ln -s "$target" links/l$n; done
ln -s loop links/loop; mkfifo dev/pipe; mknod dev/null c 1 3; mknod dev/sda b 8 0
"#
            ));
        });
        full(lab, &disk.path, "vm", 0, STAMP);
        let beside = disk_of(lab, "beside", "16M", |at| {
            fs::write(at.join("secret"), CANARY).unwrap()
        });
        full(lab, &beside.path, "vm", 1, STAMP);
        full(lab, &beside.path, "other", 0, STAMP);
        for place in [
            "canary",
            "gate/canary",
            "state/canary",
            "repository/canary",
            "secret",
        ] {
            fs::write(lab.path(place), CANARY).unwrap();
            shell(&format!("chmod 0644 {:?}", lab.path(place)));
        }
    })
}

/// Sends a request whose target is taken as it is.
fn raw(session: &Session<'_>, target: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", session.api.port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut request = b"GET ".to_vec();
    request.extend_from_slice(target);
    let token = &session.token;
    request.extend_from_slice(
        format!(
            " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        )
        .as_bytes(),
    );
    // It may be refused before it was read to its end.
    let _ = stream.write_all(&request);
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    Answer::parse(&bytes)
}

fn contains(bytes: &[u8], what: &str) -> bool {
    bytes
        .windows(what.len())
        .any(|window| window == what.as_bytes())
}

/// What may be answered with 200, since it is a place of the disk all the same: a link
/// is told by what it says and never followed out.
fn may_be_there(route: &str, path: &str) -> bool {
    match path {
        // The file itself, said in another way.
        "/etc/passwd/" | "/hostname/." => route != "files" && route != "download-directory",
        // `file-info` tells of the link, `size` counts it.
        _ => {
            let link = path
                .strip_prefix("/links/l")
                .is_some_and(|rest| !rest.contains('/'));
            (link || path == "/links/root") && route == "file-info"
        }
    }
}

struct Tracer {
    child: Child,
    file: PathBuf,
}

impl Tracer {
    /// Writes down what a process opens.
    fn of(api: &Api) -> Self {
        let (pid, file) = (api.pid(), api.lab.path("trace"));
        let child = Command::new("strace")
            .args([
                "-f",
                "-qq",
                "-y",
                "-s",
                "16384",
                "-e",
                "trace=open,openat,openat2,creat,execve,connect",
            ])
            .args(["-e", "signal=none", "-o"])
            .arg(&file)
            .args(["-p", &pid.to_string()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let traced = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            !status.contains("TracerPid:\t0\n")
        };
        wait_for("strace", Duration::from_secs(10), traced);
        std::thread::sleep(Duration::from_millis(300));
        Self { child, file }
    }

    fn lines(mut self) -> Vec<String> {
        kill(
            Pid::from_raw(i32::try_from(self.child.id()).unwrap()),
            Signal::SIGINT,
        )
        .unwrap();
        self.child.wait().unwrap();
        let text = String::from_utf8_lossy(&fs::read(&self.file).unwrap()).into_owned();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn no_string_of_a_client_leads_out_of_the_disk() {
    let api = lab();
    let session = api.login("admin");
    let backup = session.backups("vm").remove(0);
    let mount = session.mount(&backup, 0);
    let base = format!("/api/v1/restore/{mount}");
    let tracer = Tracer::of(&api);
    let (mut asked, mut answered) = (0, std::collections::BTreeMap::new());
    let mut look = |target: &str, allowed: &dyn Fn(u16) -> bool| {
        let answer = raw(&session, target.as_bytes());
        let answer = answer.unwrap_or_else(|| panic!("{target}: no answer"));
        asked += 1;
        *answered.entry(answer.status).or_insert(0) += 1;
        assert!(!contains(&answer.body, CANARY), "{target}: the canary");
        assert!(
            !contains(&answer.body, "root:x:0:0"),
            "{target}: of the host"
        );
        assert!(
            !contains(&answer.body, "SQLite format"),
            "{target}: the catalog"
        );
        assert!(
            allowed(answer.status),
            "{target}: {} {}",
            answer.status,
            answer.text()
        );
        answer
    };

    // The same, where it is right.
    for (path, route) in [
        ("/etc/passwd", "download"),
        ("/links/inside", "download"),
        ("//etc/./passwd", "download"),
    ] {
        let answer = look(&format!("{base}/{route}?path={path}"), &|status| {
            status == 200
        });
        assert!(contains(&answer.body, GUEST), "{path}");
    }

    let paths = paths::hostile_paths(&api);
    println!("{} paths", paths.len());
    assert!(paths.len() > 200);
    for path in &paths {
        // As they are; only what would end the line of the request is encoded.
        let path = path
            .replace(' ', "%20")
            .replace('\u{202e}', "%e2%80%ae")
            .replace('&', "%26")
            .replace('#', "%23");
        for route in [
            "files",
            "file-info",
            "download",
            "download-directory",
            "size",
        ] {
            let there = may_be_there(route, &path) || (route == "size" && path == "/etc/passwd/");
            let target = format!("{base}/{route}?path={path}");
            let answer = look(&target, &|status| {
                matches!(status, 400 | 404) || (there && status == 200)
            });
            if answer.status == 200 && route == "download" {
                assert!(contains(&answer.body, GUEST), "{target}");
            }
        }
    }
    // Among others, and more than once.
    for path in [
        "..",
        "../../canary",
        "/etc/passwd%00",
        "/links/l1",
        "%2e%2e%2fdisk1",
    ] {
        for route in [
            "files",
            "file-info",
            "download",
            "download-directory",
            "size",
        ] {
            for query in [
                format!("path=/etc&path={path}"),
                format!("path={path}&path=/etc"),
                format!("path=&path={path}"),
                format!("path=/hostname&path={path}&format=tar.gz"),
            ] {
                if path == "/links/l1" && matches!(route, "download-directory" | "size") {
                    continue;
                }
                look(&format!("{base}/{route}?{query}"), &|status| {
                    matches!(status, 400 | 404)
                });
            }
        }
    }

    // In the parts of the address.
    let up = mount.to_uppercase();
    let parts = [
        "..",
        ".",
        "%2e%2e",
        "%2e",
        "..%2f..%2f..%2fetc%2fpasswd",
        "..%2fmounts",
        "..%5c..",
        "%2fetc%2fpasswd",
        "%00",
        "%2e%2e%2f%2e%2e%2fcanary",
        &format!("{mount}%2f..%2f{mount}"),
        &format!("{mount}%00"),
        &format!("{mount}%2f"),
        &format!("{mount}%20"),
        &format!("..%2f{mount}"),
        &up,
        "%c0%ae%c0%ae",
        "%ff",
        "vm%2f..%2fother",
        "vm%2flatest%2fdisk0",
        "*",
        "%25",
        "' or 1=1 --".replace(' ', "%20").as_str(),
        &"x".repeat(3000),
    ]
    .map(str::to_owned);
    for part in &parts {
        for (before, after) in [
            ("/api/v1/restore/", "/files?path=/"),
            ("/api/v1/restore/", "/download?path=/etc/passwd"),
            ("/api/v1/restore/", "/download-directory?path=/"),
            ("/api/v1/restore/", "/size?path=/"),
            ("/api/v1/vm-contexts/", "/disks"),
            ("/api/v1/vm-contexts/", ""),
            ("/api/v1/backups/", ""),
        ] {
            look(&format!("{before}{part}{after}"), &|status| {
                matches!(status, 400 | 404)
            });
        }
    }
    for target in [
        "/../../../../etc/passwd",
        "/docs/../../etc/passwd",
        "/docs%2f..%2f..%2fetc%2fpasswd",
        "//etc/passwd",
        "/etc/passwd",
        "/docs.js%00",
        "/docs/",
        "/openapi.json/..",
        "/api/v1/../../etc/passwd",
        "/api/v1/restore/../../../canary",
        "/static/../canary",
        "/%2e%2e/canary",
        "/canary",
        "http://x/etc/passwd",
    ] {
        look(target, &|status| matches!(status, 400 | 404));
    }
    for id in [
        "../../../etc",
        "..",
        &format!("{backup}/../../other"),
        "\0",
        "vm/latest",
    ] {
        let refused = session.try_mount(id, 0);
        assert!(
            matches!(refused.status, 400 | 404),
            "{id}: {}",
            refused.text()
        );
    }

    // An archive of all holds the links as they are, and nothing of what they lead to.
    let archive = session.get(&format!("{base}/download-directory?path=/&format=tar.gz"));
    assert_eq!(archive.status, 200);
    let file = api.lab.path("all.tar.gz");
    fs::write(&file, &archive.body).unwrap();
    let all = shell(&format!("tar -xOzf {file:?}"));
    assert!(all.contains(GUEST) && !all.contains(CANARY) && !all.contains("root:x:0:0"));
    let links = shell(&format!("tar -tvzf {file:?} | grep -c -- '-> '"));
    assert_eq!(links.trim().parse::<u32>().unwrap(), 28 + 4);

    println!("{asked} requests: {answered:?}");
    let lines = tracer.lines();
    check(&api, &lines);
}

/// That each open went beneath, and arrived inside.
fn check(api: &Api, lines: &[String]) {
    let mountpoint = api.lab.mountpoint().display().to_string();
    let (mut beneath, mut tops) = (0, 0);
    for line in lines {
        // `1234 openat2(7</mountpoint/…>, "etc/passwd", {flags=…, resolve=…}, 24) = 8</…>`
        // A call that others came between is in two lines, the first without a result.
        let (call, result) = line.rsplit_once(" = ").unwrap_or((line, ""));
        if call.contains("connect(") {
            assert!(call.contains("/control.sock\""), "{line}");
            continue;
        }
        if let Some(opened) = result
            .split_once('<')
            .map(|(_, rest)| rest.trim_end_matches('>'))
        {
            let inside = opened.strip_prefix(&mountpoint);
            assert!(
                inside.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
                "{line}"
            );
        }
        if call.contains("openat2(") || call.contains("openat2 resumed") {
            if call.contains("openat2(") {
                assert!(call.contains(&format!("<{mountpoint}")), "{line}");
            }
            if call.contains("resolve=") {
                for flag in [
                    "RESOLVE_BENEATH",
                    "RESOLVE_NO_MAGICLINKS",
                    "RESOLVE_NO_XDEV",
                ] {
                    assert!(call.contains(flag), "{line}");
                }
                beneath += 1;
            }
        } else if line.contains("/proc/sys/vm/overcommit_memory") && line.contains("EACCES") {
            // The C library's allocator asks, and may not.
        } else if call.contains(" openat(") {
            let top = call.contains(&format!(", \"{mountpoint}\", "));
            assert!(top && call.contains("O_PATH"), "{line}");
            tops += 1;
        } else {
            assert!(call.contains(" resumed>"), "{line}");
        }
    }
    println!("{beneath} opens beneath, {tops} of the mountpoint");
    assert!(beneath > 1000 && tops > 500);
}
