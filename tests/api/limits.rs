//! What clients may send, and what every answer looks like.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::many;
use crate::support::http::{Answer, Api, PASSWORD};

/// A connection of one's own.
fn raw(api: &Api, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", api.port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(45)))
        .unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

/// All that comes until the other side closes.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    all
}

fn is_safe(answer: &Answer) {
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{answer:?}");
    }
    assert!(
        answer.header("content-security-policy").is_some(),
        "{answer:?}"
    );
    assert!(answer.header("cache-control").is_some(), "{answer:?}");
    for name in ["server", "access-control-allow-origin", "x-powered-by"] {
        assert_eq!(answer.header(name), None);
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_a_sentence() {
    let api = Api::with("", |lab| many(lab, 1));
    let admin = api.login("admin");
    let login = || api.request("POST", "/api/v1/auth/login");
    let check = |answer: Answer, status: u16| {
        let said = answer.refused(status);
        is_safe(&answer);
        // One sentence, and nothing of how the program is made.
        assert!(
            !said.contains('\n') && !said.contains("::") && !said.contains("/tmp"),
            "{said}"
        );
        said
    };
    let typed = || login().header("Content-Type: application/json");
    let huge = format!(
        r#"{{"username":"{}","password":"x"}}"#,
        "u".repeat(64 << 10)
    );
    let file = api.lab.path("huge");
    std::fs::write(&file, &huge).unwrap();
    let from_file = || {
        typed()
            .arg("--data-binary")
            .arg(format!("@{}", file.display()))
    };
    check(from_file().send(), 413);
    check(from_file().header("Transfer-Encoding: chunked").send(), 413);
    for body in [
        "",
        "{",
        "[]",
        "null",
        "{\"username\":\"a\"}",
        "\u{1}",
        "{\"username\":\"a\",\"password\":\"b\"} x",
    ] {
        check(typed().body(body).send(), 400);
    }
    check(typed().send(), 400);
    let good = json!({"username": "admin", "password": PASSWORD}).to_string();
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "multipart/form-data; boundary=x",
    ] {
        check(
            login()
                .header(&format!("Content-Type: {kind}"))
                .body(&good)
                .send(),
            415,
        );
    }
    check(login().header("Content-Type:").body(&good).send(), 415);
    login()
        .header("Content-Type: Application/JSON; charset=utf-8")
        .body(&good)
        .send()
        .ok();
    // Nesting without end.
    check(typed().body(&"[".repeat(60_000)).send(), 400);

    // Addresses and methods that there are not.
    for path in [
        "/api/v1",
        "/api/v1/",
        "/api/v2/vm-contexts",
        "/api/v1/vm-contexts/",
        "/nothing",
        "/api/v1/restore",
        "/%2e%2e/etc/passwd",
        "/../etc/passwd",
        "//etc/passwd",
        "/api/v1/backups/a/b",
        "/.git/config",
        "/docs/../metrics/x",
    ] {
        let answer = admin.get(path);
        assert!(check(answer, 404).contains("no such address"), "{path}");
    }
    for (method, path, allowed) in [
        ("DELETE", "/api/v1/vm-contexts", "GET"),
        ("GET", "/api/v1/auth/login", "POST"),
        ("PUT", "/api/v1/restore/mount", "POST"),
        ("PATCH", "/api/v1/restore/x", "DELETE"),
        ("POST", "/health", "GET"),
        ("TRACE", "/api/v1/vm-contexts", "GET"),
        ("OPTIONS", "/api/v1/vm-contexts", "GET"),
        ("NONSENSE", "/metrics", "GET"),
        ("POST", "/docs", "GET"),
    ] {
        let answer = admin.request(method, path).send();
        check(answer.clone(), 405);
        let allow = answer
            .header("allow")
            .unwrap_or_else(|| panic!("{method} {path}: no Allow"));
        assert!(
            allow.split(',').any(|one| one.trim() == allowed),
            "{method} {path}: {allow}"
        );
    }
    // Parts of the address that are no text.
    check(admin.get("/api/v1/backups/%ff"), 400);
    check(admin.get("/api/v1/backups/%00"), 400);
    check(admin.get("/api/v1/vm-contexts/..%2f..%2fetc"), 404);
    check(admin.get("/api/v1/backups?vm_name=%ff"), 400);
    check(
        admin.get(&format!("/api/v1/backups?{}", "a&".repeat(2100))),
        400,
    );
    check(
        admin.get(&format!("/api/v1/vm-contexts/{}", "x".repeat(20_000))),
        404,
    );
    // Everything else has the headers as well.
    for path in [
        "/health",
        "/metrics",
        "/docs",
        "/docs.js",
        "/docs.css",
        "/openapi.json",
        "/",
        "/api/v1/vm-contexts",
    ] {
        let answer = admin.get(path);
        assert!(
            answer.status == 200 || answer.status >= 303,
            "{path}: {}",
            answer.status
        );
        is_safe(&answer);
    }
    // Heads alone.
    let head = api
        .request("HEAD", "/api/v1/vm-contexts")
        .token(&admin.token)
        .send();
    assert_eq!((head.status, head.body.len()), (200, 0));

    // Heads that are too long or have too many lines: refused, or hung up on, and never read on.
    let token = format!("Host: x\r\nAuthorization: Bearer {}\r\n", admin.token);
    let lines: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
    let long = "y".repeat(200_000);
    for (what, text) in [
        (
            "lines",
            format!("GET /health HTTP/1.1\r\n{token}{lines}\r\n"),
        ),
        (
            "a line",
            format!("GET /health HTTP/1.1\r\n{token}X: {long}\r\n\r\n"),
        ),
        (
            "the address",
            format!("GET /health?{long} HTTP/1.1\r\n{token}\r\n"),
        ),
        ("no HTTP", "\u{16}\u{3}\u{1}nonsense\r\n\r\n".to_owned()),
        (
            "a smuggled length",
            format!(
                "POST /api/v1/auth/login HTTP/1.1\r\n{token}Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"
            ),
        ),
        (
            "a space before the colon",
            format!("GET /health HTTP/1.1\r\n{token}X : y\r\n\r\n"),
        ),
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", api.port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let _ = stream.write_all(text.as_bytes());
        let said = rest(&mut stream);
        let status = Answer::parse(&said).map(|answer| answer.status);
        assert!(
            status.is_none_or(|status| matches!(status, 400 | 414 | 431)),
            "{what}: {status:?}"
        );
    }
}

#[test]
fn idle_and_slow_clients_keep_nobody_out() {
    let api = Api::with("", |lab| many(lab, 1));
    let began = Instant::now();
    // One that sends its head a byte a second, one its body, one nothing.
    let slow = |first: &'static str, text: &'static str| {
        let mut stream = raw(&api, first);
        std::thread::spawn(move || {
            let began = Instant::now();
            let mut reader = stream.try_clone().unwrap();
            let answer = std::thread::spawn(move || (rest(&mut reader), began.elapsed()));
            for byte in text.bytes().cycle() {
                if answer.is_finished() || stream.write_all(&[byte]).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_secs(1));
            }
            answer.join().unwrap()
        })
    };
    let head = slow("GET /health HTTP/1.1\r\nHost: x\r\nX: ", "y");
    let body = slow(
        "POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n",
        " ",
    );
    let mut silent = raw(&api, "");
    let silent = std::thread::spawn(move || {
        let began = Instant::now();
        rest(&mut silent);
        began.elapsed()
    });

    let (answer, after) = body.join().unwrap();
    let answer = Answer::parse(&answer).expect("an answer");
    answer.refused(408);
    assert!((8..15).contains(&after.as_secs()), "{after:?}");
    let (_, after) = head.join().unwrap();
    assert!((25..36).contains(&after.as_secs()), "the head: {after:?}");
    let after = silent.join().unwrap();
    assert!((25..36).contains(&after.as_secs()), "nothing: {after:?}");
    assert!(began.elapsed() < Duration::from_secs(45));
}

#[test]
fn any_number_of_connections_keeps_nobody_out() {
    let api = Api::with("", |lab| many(lab, 1));
    let admin = api.login("admin");
    let mount = admin.mount(&admin.backups("vm0")[0], 0);
    let mut slow = crate::Slow::download(&admin, &mount);
    let heads = [
        "",
        "GET /he",
        "POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
        "GET /docs.css HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    let connections: Vec<TcpStream> = (0..1200)
        .map(|n| raw(&api, heads[n % heads.len()]))
        .collect();
    let began = Instant::now();
    for _ in 0..5 {
        admin.get("/api/v1/vm-contexts").ok();
    }
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    // What was being answered goes on.
    assert_eq!(slow.ended(), None);
    drop(connections);
    assert_eq!(api.get("/health").send().status, 200);
}

#[test]
fn wrong_passwords_take_no_memory_for_good() {
    let api = Api::with("", |_| {});
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", api.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap()
    };
    let before = resident();
    // Each takes 19 MiB while it is looked at; an address has thirty.
    for address in 2..5 {
        let from = format!("127.0.3.{address}");
        let guess = |n| {
            let body = json!({"username": format!("nobody-{address}-{n}"), "password": "wrong"});
            let request = api.post("/api/v1/auth/login", &body);
            request.with(["--interface", &from]).send().refused(401);
        };
        std::thread::scope(|scope| {
            for client in 0..5 {
                let guess = &guess;
                scope.spawn(move || (0..5).for_each(|n| guess(client * 5 + n)));
            }
        });
    }
    let grown = resident().saturating_sub(before) >> 10;
    assert!(grown < 64, "{grown} MiB more after 75 wrong passwords");
}
