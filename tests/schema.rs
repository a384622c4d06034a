//! The OpenAPI document and what is served, held against each other by other people's
//! programs: schemathesis makes requests of it by the thousand, openapi-spec-validator
//! reads it by the letter of the standard.
#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use support::http::{Api, disk_of};
use support::images::full;
use support::{shell, succeeded};

/// What is installed from the Python package index, with these versions.
const PROGRAMS: [&str; 2] = ["schemathesis==4.32.5", "openapi-spec-validator==0.9.0"];

/// The folder of the Python programs, made once for all runs; `None` where the package
/// index cannot be reached.
fn programs() -> Option<&'static Path> {
    static PLACE: OnceLock<Option<PathBuf>> = OnceLock::new();
    PLACE.get_or_init(install).as_deref()
}

fn install() -> Option<PathBuf> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(PROGRAMS.join("+"));
    let bin = place.join("bin");
    if place.join("complete").exists() {
        return Some(bin);
    }
    shell(&format!("rm -rf {place:?}; python3 -m venv {place:?}"));
    let output = Command::new(bin.join("pip"))
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .args(["--retries", "2", "--timeout", "10"])
        .args(PROGRAMS)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let unreachable = [
        "NewConnectionError",
        "name resolution",
        "timed out",
        "Network is",
    ];
    if !output.status.success() && unreachable.iter().any(|words| said.contains(words)) {
        println!("SKIPPED: the Python package index cannot be reached:\n{said}");
        return None;
    }
    succeeded(output);
    std::fs::write(place.join("complete"), "").unwrap();
    Some(bin)
}

/// A daemon with a small disk of everything, and the token of an administrator.
fn lab() -> Api {
    Api::with("max_downloads = 8\nstall_timeout = \"5s\"", |lab| {
        let disk = disk_of(lab, "small", "32M", |root| {
            shell(&format!(
                "cd {root:?}; mkdir -p etc/deep empty; echo hello > etc/hostname; \
                 ln -s hostname etc/link; ln -s /etc/passwd etc/out; mkfifo pipe; \
                 echo x > $'etc/deep/\\xff'; head -c 300000 /dev/urandom > random.bin"
            ));
        });
        full(lab, &disk.path, "web", 0, "20251008-192431");
    })
}

fn fuzz(api: &Api, bin: &Path, token: &str, which: &[&str], examples: &str) -> Output {
    // In a folder of its own: it keeps what it found there for the next run.
    Command::new(bin.join("schemathesis"))
        .current_dir(api.lab.dir.path())
        .arg("run")
        .arg(format!("{}/openapi.json", api.base()))
        .args(["-H", &format!("Authorization: Bearer {token}")])
        .args(which)
        .args(["--max-examples", examples, "--seed", "4753"])
        .args(["--phases", "coverage,fuzzing"])
        .args([
            "--continue-on-failure",
            "--no-shrink",
            "--request-timeout",
            "20",
        ])
        // A path of the right form may be that of a folder where a file is wanted: 400.
        .args(["--exclude-checks", "positive_data_acceptance"])
        .env("NO_COLOR", "1")
        .env_remove("http_proxy")
        .env_remove("https_proxy")
        .output()
        .unwrap()
}

#[test]
fn whatever_the_document_allows_is_answered_as_it_says() {
    let Some(bin) = programs() else { return };
    let api = lab();
    let session = api.login("admin");
    let backup = session.backups("web").remove(0);
    session.mount(&backup, 0);
    let (login, logout) = ("/api/v1/auth/login", "/api/v1/auth/logout");
    let most = ["--exclude-path", login, "--exclude-path", logout];
    let said = succeeded(fuzz(&api, bin, &session.token, &most, "60"));
    println!("{said}");
    // It has met the real thing: many answers of each route that reads files.
    let log = api.lab.sendense_ok(["audit", "--json"]);
    for action in ["mount", "list", "download", "archive"] {
        assert!(
            log.contains(&format!("\"{action}\"")),
            "no {action}: {said}"
        );
    }
    // Each attempt counts, and few are allowed: these come last, and are few.
    let last = ["--include-path", logout];
    println!("{}", succeeded(fuzz(&api, bin, &session.token, &last, "3")));
    let last = ["--include-path", login];
    println!("{}", succeeded(fuzz(&api, bin, &session.token, &last, "5")));
    assert_eq!(api.get("/health").send().status, 200);
}

#[test]
fn the_document_keeps_to_the_standard() {
    let Some(bin) = programs() else { return };
    let api = lab();
    let document = api.get("/openapi.json").send();
    assert_eq!(document.status, 200);
    let file = api.lab.path("openapi.json");
    std::fs::write(&file, &document.body).unwrap();
    let checked = Command::new(bin.join("openapi-spec-validator"))
        .arg(&file)
        .output()
        .unwrap();
    println!("{}", succeeded(checked));
    for (path, kind) in [
        ("/docs", "text/html; charset=utf-8"),
        ("/docs.js", "text/javascript; charset=utf-8"),
        ("/docs.css", "text/css; charset=utf-8"),
    ] {
        let page = api.get(path).send();
        assert_eq!(
            (page.status, page.header("content-type")),
            (200, Some(kind))
        );
    }
}
