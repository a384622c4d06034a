//! The HTTP side as its clients see it: the real program, asked by the real `curl`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::images::RawDisk;
use super::{Daemon, Lab, run, shell, succeeded, wait_for};

/// The password of every user that [`Api::user`] makes.
pub const PASSWORD: &str = "correct horse battery staple";

/// A laboratory whose daemon serves HTTP. Its group is `daemon`, which every host has.
pub struct Api {
    /// Taken out to end it in another way than by a drop.
    pub daemon: Option<Daemon>,
    pub lab: Lab,
    pub port: u16,
    scheme: &'static str,
    /// The arguments that every call of curl has.
    usual: Vec<OsString>,
}

impl Api {
    /// A laboratory that is configured and not started: `extra` holds further lines
    /// of TOML; with `tls` the HTTP side has a certificate. The user `admin`,
    /// an administrator, is there.
    pub fn prepare(extra: &str, tls: bool) -> Self {
        let lab = Lab::new();
        // The way to the mountpoint is free for the HTTP side's user.
        shell(&format!(
            "chmod 0711 {:?}; chgrp daemon {:?}",
            lab.dir.path(),
            lab.path("gate")
        ));
        let port = free_port();
        let mut api = Self {
            lab,
            daemon: None,
            port,
            scheme: "http",
            usual: Vec::new(),
        };
        let mut lines = extra.to_owned();
        if tls {
            let (certificate, key) = certificate(&api.lab);
            lines += &format!("\ntls_certificate = {certificate:?}\ntls_key = {key:?}\n");
            api.scheme = "https";
            api.usual = vec!["--cacert".into(), certificate.into()];
        }
        api.configure(&lines);
        api.user("admin", &["--role", "admin"]);
        api
    }

    /// Writes the configuration anew; `extra` may say `api = false`.
    pub fn configure(&self, extra: &str) {
        let on = if extra.contains("api =") {
            ""
        } else {
            "api = true\n"
        };
        let group = if extra.contains("group =") {
            ""
        } else {
            "group = \"daemon\"\n"
        };
        self.lab.configure(&format!(
            "{on}{group}listen = \"127.0.0.1:{}\"\n{extra}",
            self.port
        ));
    }

    /// Scans the repository, starts the daemon, and waits until all is healthy.
    pub fn start(&mut self) {
        self.lab.scan();
        self.serve();
    }

    /// Starts the daemon, and waits until all is healthy.
    pub fn serve(&mut self) {
        self.daemon = Some(Daemon::start(&self.lab));
        self.wait_until_healthy();
    }

    pub fn wait_until_healthy(&self) {
        wait_for("the HTTP side", Duration::from_secs(15), || {
            self.get("/health")
                .try_send()
                .is_some_and(|answer| answer.status == 200)
        });
    }

    /// The same with a repository that `images` fills.
    pub fn with(extra: &str, images: impl FnOnce(&Lab)) -> Self {
        let mut api = Self::prepare(extra, false);
        images(&api.lab);
        api.start();
        api
    }

    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("the daemon runs")
    }

    /// The process that serves HTTP.
    pub fn pid(&self) -> u32 {
        let status: Value =
            serde_json::from_str(&self.lab.sendense_ok(["status", "--json"])).unwrap();
        u32::try_from(
            status["api"]["pid"]
                .as_u64()
                .unwrap_or_else(|| panic!("{status}")),
        )
        .unwrap()
    }

    /// Makes a user whose password is [`PASSWORD`].
    pub fn user(&self, name: &str, rest: &[&str]) {
        let args = ["user", "add", name, "--password-stdin"];
        self.given(PASSWORD, args.iter().chain(rest).copied());
    }

    /// Runs the program, which has to succeed, with something on its standard input.
    pub fn given<'a>(&self, input: &str, args: impl Iterator<Item = &'a str>) -> String {
        use std::io::Write;
        let mut child = Command::new(env!("CARGO_BIN_EXE_sendense"))
            .arg("--config")
            .arg(self.lab.config())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "{input}").unwrap();
        succeeded(child.wait_with_output().unwrap())
    }

    /// `scheme://address:port`.
    pub fn base(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// Tries to log in.
    pub fn try_login(&self, name: &str, password: &str) -> Answer {
        let body = serde_json::json!({ "username": name, "password": password });
        self.post("/api/v1/auth/login", &body).send()
    }

    /// Logs in with [`PASSWORD`].
    pub fn login(&self, name: &str) -> Session<'_> {
        let answer = self.try_login(name, PASSWORD);
        let body = answer.ok();
        Session {
            api: self,
            token: body["token"].as_str().unwrap().to_owned(),
            csrf: body["csrf_token"].as_str().unwrap().to_owned(),
        }
    }

    pub fn request(&self, method: &str, path: &str) -> Request {
        let mut args = self.usual.clone();
        if method == "HEAD" {
            args.push("--head".into());
        } else {
            args.extend(["-X".into(), method.into()]);
        }
        Request {
            args,
            url: format!("{}{path}", self.base()),
        }
    }

    pub fn get(&self, path: &str) -> Request {
        self.request("GET", path)
    }

    pub fn post(&self, path: &str, body: &Value) -> Request {
        self.request("POST", path).json(body)
    }
}

/// Somebody who is logged in, by token.
#[derive(Clone)]
pub struct Session<'a> {
    pub api: &'a Api,
    pub token: String,
    pub csrf: String,
}

impl Session<'_> {
    pub fn request(&self, method: &str, path: &str) -> Request {
        self.api.request(method, path).token(&self.token)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path).send()
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.request("DELETE", path).send()
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path).json(body).send()
    }

    /// Asks for a mount.
    pub fn try_mount(&self, backup_id: &str, disk_index: u32) -> Answer {
        let body = serde_json::json!({ "backup_id": backup_id, "disk_index": disk_index });
        self.post("/api/v1/restore/mount", &body)
    }

    /// Mounts; the mount's id.
    pub fn mount(&self, backup_id: &str, disk_index: u32) -> String {
        let answer = self.try_mount(backup_id, disk_index).ok();
        answer["mount_id"].as_str().unwrap().to_owned()
    }

    /// The ids of a VM's backups, oldest first.
    pub fn backups(&self, vm: &str) -> Vec<String> {
        let answer = self
            .get(&format!("/api/v1/backups?vm_name={}", encoded(vm)))
            .ok();
        let all = answer["backups"].as_array().unwrap();
        all.iter()
            .map(|backup| backup["backup_id"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// A call of curl.
#[derive(Clone)]
pub struct Request {
    pub args: Vec<OsString>,
    pub url: String,
}

impl Request {
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn with<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.args.extend(args.into_iter().map(OsString::from));
        self
    }

    pub fn header(self, line: &str) -> Self {
        self.arg("-H").arg(line)
    }

    pub fn token(self, token: &str) -> Self {
        self.header(&format!("Authorization: Bearer {token}"))
    }

    pub fn cookie(self, token: &str) -> Self {
        self.header(&format!("Cookie: sendense_session={token}"))
    }

    pub fn json(self, body: &Value) -> Self {
        self.header("Content-Type: application/json")
            .body(&body.to_string())
    }

    pub fn body(self, body: &str) -> Self {
        self.arg("--data-binary").arg(body)
    }

    /// The command, whose output is the answer's head and body.
    pub fn command(&self) -> Command {
        let mut command = Command::new("curl");
        command
            .args(["-q", "-sS", "-i", "--path-as-is", "--globoff", "--http1.1"])
            .args(["--max-time", "60"])
            .args(&self.args)
            .arg(&self.url)
            .env_remove("http_proxy")
            .env_remove("https_proxy")
            .stdin(Stdio::null());
        command
    }

    /// The answer; `None` if there was none, or it broke.
    pub fn try_send(&self) -> Option<Answer> {
        let output = self
            .command()
            .output()
            .expect("curl; run scripts/setup --test");
        output
            .status
            .success()
            .then(|| Answer::parse(&output.stdout))?
    }

    pub fn send(&self) -> Answer {
        let output = self
            .command()
            .output()
            .expect("curl; run scripts/setup --test");
        assert!(
            output.status.success(),
            "{}: {}",
            self.url,
            String::from_utf8_lossy(&output.stderr)
        );
        Answer::parse(&output.stdout).unwrap_or_else(|| panic!("{}: no answer", self.url))
    }
}

/// What was answered.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// From a head and a body as they went over the wire; heads of 1xx are passed over.
    pub fn parse(mut bytes: &[u8]) -> Option<Self> {
        loop {
            let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
            let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
            bytes = &bytes[end + 4..];
            let mut lines = head.split("\r\n");
            let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
            if status >= 200 {
                let pairs = lines.filter_map(|line| line.split_once(':'));
                return Some(Self {
                    status,
                    headers: pairs
                        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
                        .collect(),
                    body: bytes.to_vec(),
                });
            }
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        assert_eq!(
            self.header("content-type"),
            Some("application/json"),
            "{}",
            self.text()
        );
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The body of an answer that has to be 200.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The sentence of an answer that has to be this error.
    pub fn refused(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        let body = self.json();
        let sentence = body["error"].as_str().unwrap_or_else(|| panic!("{body}"));
        assert!(!sentence.is_empty());
        sentence.to_owned()
    }
}

/// A port that nobody listens at, below those that the kernel gives to clients, and
/// another one each time.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(61);
    loop {
        let n = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(12_000 + n % 20_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Text as it stands in a query.
pub fn encoded(text: impl AsRef<[u8]>) -> String {
    let one = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
            char::from(*byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    text.as_ref().iter().map(one).collect()
}

/// A certificate for 127.0.0.1 that is its own authority, and its key.
pub fn certificate(lab: &Lab) -> (PathBuf, PathBuf) {
    let (certificate, key) = (lab.path("tls.crt"), lab.path("tls.key"));
    shell(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
         -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1,DNS:localhost \
         -keyout {key:?} -out {certificate:?} 2>/dev/null; chmod 0600 {key:?}"
    ));
    (certificate, key)
}

/// A disk with one ext4 file system that holds what `fill` writes to a folder.
pub fn disk_of(lab: &Lab, name: &str, size: &str, fill: impl FnOnce(&std::path::Path)) -> RawDisk {
    let folder = lab.path(format!("work/{name}.d"));
    fs::create_dir_all(&folder).unwrap();
    fill(&folder);
    let raw = lab.path(format!("work/{name}.raw"));
    run("truncate", ["-s".as_ref(), size.as_ref(), raw.as_os_str()]);
    shell(&format!(
        "mke2fs -q -t ext4 -F -L {name:.16} -d {folder:?} {raw:?}"
    ));
    RawDisk::at(&raw, 0)
}
