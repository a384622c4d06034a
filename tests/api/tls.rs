//! Encryption, and where it may be missing.

use std::process::Command;

use crate::many;
use crate::support::http::{Api, PASSWORD, certificate};
use crate::support::shell;

#[test]
fn with_a_certificate_there_is_tls_and_nothing_else() {
    let mut api = Api::prepare("", true);
    many(&api.lab, 1);
    api.start();
    let answer = api.try_login("admin", PASSWORD);
    answer.ok();
    let attributes = answer.header("set-cookie").unwrap().to_owned();
    assert!(
        attributes.split("; ").any(|part| part == "Secure"),
        "{attributes}"
    );
    assert_eq!(
        answer.header("strict-transport-security"),
        Some("max-age=31536000")
    );
    let refused = api.get("/api/v1/audit").send();
    refused.refused(401);
    assert!(refused.header("strict-transport-security").is_some());

    let curl = |args: &str| {
        let output = Command::new("curl")
            .args(["-q", "-sS", "--max-time", "5"])
            .args(args.split(' '))
            .output();
        output.unwrap()
    };
    // A certificate that nobody vouches for, and a client that speaks plainly.
    let port = api.port;
    assert_eq!(
        curl(&format!("https://127.0.0.1:{port}/health"))
            .status
            .code(),
        Some(60)
    );
    let plain = curl(&format!("http://127.0.0.1:{port}/health"));
    assert!(
        !plain.status.success() || plain.stdout.is_empty(),
        "{plain:?}"
    );
    // An old version of the protocol; a new one.
    let (ca, _) = (api.lab.path("tls.crt"), ());
    for (version, works) in [
        ("--tls-max 1.1", false),
        ("--tlsv1.2 --tls-max 1.2", true),
        ("--tlsv1.3", true),
    ] {
        let args = format!(
            "{version} --cacert {} https://127.0.0.1:{port}/health",
            ca.display()
        );
        assert_eq!(curl(&args).status.success(), works, "{version}");
    }
    api.daemon.take().unwrap().stop();
}

#[test]
fn without_a_certificate_only_this_host_is_served() {
    let api = Api::prepare("", false);
    let refused = |lines: &str, command: &str, code: i32| {
        api.configure("");
        let text = std::fs::read_to_string(api.lab.config()).unwrap();
        let listen = format!("listen = \"127.0.0.1:{}\"\n", api.port);
        let text = if lines.contains("listen") {
            text.replace(&listen, "")
        } else {
            text
        };
        std::fs::write(api.lab.config(), format!("{text}{lines}\n")).unwrap();
        let output = Command::new("timeout")
            .arg("10")
            .arg(env!("CARGO_BIN_EXE_sendense"))
            .arg("--config")
            .arg(api.lab.config())
            .arg(command)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert_eq!(
            said.lines().filter(|line| !line.contains(" WARN ")).count(),
            1,
            "{said}"
        );
        said
    };
    for (command, code) in [("serve", 1), ("api", 78)] {
        let said = refused("listen = \"0.0.0.0:8082\"", command, code);
        assert!(
            said.contains("tls_certificate") && said.contains("listen"),
            "{said}"
        );
    }
    // A certificate that is none, a key of another one, no file at all.
    let (crt, key) = certificate(&api.lab);
    let nothing = api.lab.path("nothing");
    let other = api.lab.path("other.key");
    shell(&format!(
        "openssl genpkey -algorithm ed25519 -out {other:?}"
    ));
    for (crt, key, named) in [
        (&key, &key, &key),
        (&crt, &other, &other),
        (&nothing, &key, &nothing),
        (&crt, &crt, &crt),
    ] {
        let said = refused(
            &format!("tls_certificate = {crt:?}\ntls_key = {key:?}"),
            "api",
            78,
        );
        assert!(said.contains(&*named.to_string_lossy()), "{said}");
    }
    let said = refused(&format!("tls_certificate = {crt:?}"), "api", 78);
    assert!(said.contains("tls_key"), "{said}");
}
