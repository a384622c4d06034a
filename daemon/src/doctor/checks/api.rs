//! What the HTTP side needs.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::unistd::User;

use super::super::Finding;
use crate::config::Config;
use crate::control::Client;

/// How long a running daemon is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// All checks of the HTTP side; none where the daemon does not run it.
pub(super) fn all(config: &Config) -> Vec<Finding> {
    if !config.api {
        return Vec::new();
    }
    let mut findings = vec![address(config)];
    findings.extend(user(config));
    findings.extend(tls(config));
    findings
}

/// The address can be listened at, or is by this daemon's own HTTP side.
fn address(config: &Config) -> Finding {
    let address = config.listen;
    let error = match TcpListener::bind(address) {
        Ok(_) => return Finding::ok("api", format!("{address} is free")),
        Err(error) => error,
    };
    if error.kind() == ErrorKind::AddrInUse {
        let status = Client::new(config).status_within(PATIENCE);
        if status.is_ok_and(|status| status.api.pid.is_some()) {
            return Finding::ok("api", format!("listens at {address}"));
        }
    }
    let mend = match error.kind() {
        ErrorKind::AddrInUse => "end the other program, or set listen (or api = false)",
        ErrorKind::PermissionDenied => "set listen to a port above 1023",
        _ => "set listen to an address of this host",
    };
    Finding::fail("api", format!("{address} cannot be listened at: {error}")).mend(mend)
}

/// The user that the HTTP side becomes.
fn user(config: &Config) -> Option<Finding> {
    if config.uid != 0 {
        return None;
    }
    let name = &config.api_user;
    Some(match User::from_name(name) {
        Ok(Some(user)) if user.uid.is_root() => Finding::warn(
            "api_user",
            format!("{name} is root: the HTTP side would keep all rights"),
        )
        .mend("set api_user to an ordinary user"),
        Ok(Some(_)) => Finding::ok("api_user", name),
        Ok(None) => Finding::fail("api_user", format!("there is no user {name}"))
            .mend(format!("useradd --system --no-create-home {name}")),
        Err(errno) => Finding::warn("api_user", format!("{name}: {errno}")),
    })
}

fn tls(config: &Config) -> Vec<Finding> {
    let Some((certificate, key)) = &config.tls else {
        return Vec::new();
    };
    vec![
        readable("tls_certificate", certificate),
        match fs::metadata(key) {
            Ok(meta) if meta.mode() & 0o077 != 0 => Finding::warn(
                "tls_key",
                format!("{} can be read by others than its owner", key.display()),
            )
            .mend(format!("chmod 0600 {}", key.display())),
            _ => readable("tls_key", key),
        },
    ]
}

fn readable(check: &str, path: &Path) -> Finding {
    match fs::File::open(path) {
        Ok(_) => Finding::ok(check, path.display().to_string()),
        Err(e) => Finding::fail(check, format!("{}: {e}", path.display()))
            .mend(format!("set {check}, or make the file readable")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, Sources};
    use crate::doctor::Level;
    use std::os::unix::fs::PermissionsExt;

    fn levels(environment: &[(&str, &str)]) -> Vec<(String, Level)> {
        let environment = environment
            .iter()
            .map(|(key, value)| (format!("SENDENSE_{key}").into(), value.into()))
            .collect();
        let config = Config::load(&Sources {
            environment,
            flags: Overrides::default(),
            ..Sources::default()
        })
        .unwrap();
        let findings = all(&config).into_iter();
        findings.map(|f| (f.check, f.level)).collect()
    }

    #[test]
    fn what_the_http_side_lacks_is_told() {
        assert!(levels(&[("API", "false")]).is_empty());
        let dir = tempfile::tempdir().unwrap();
        let runtime = dir.path().to_str().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let key = dir.path().join("key.pem");
        fs::write(&key, b"").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let found = levels(&[
            ("LISTEN", &address),
            ("RUNTIME_DIR", runtime),
            ("API_USER", "no-such-user"),
            ("TLS_CERTIFICATE", "/no/such/file"),
            ("TLS_KEY", key.to_str().unwrap()),
        ]);
        let wanted = [
            ("api", Level::Fail),
            ("api_user", Level::Fail),
            ("tls_certificate", Level::Fail),
            ("tls_key", Level::Warn),
        ];
        let wanted: Vec<_> = wanted
            .map(|(check, level)| (check.to_owned(), level))
            .into();
        assert_eq!(found, wanted);
        drop(taken);
        let found = levels(&[("LISTEN", "127.0.0.1:0"), ("RUNTIME_DIR", runtime)]);
        assert!(
            found.iter().all(|(_, level)| *level == Level::Ok),
            "{found:?}"
        );
    }
}
