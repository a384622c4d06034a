//! Giving up every right that the HTTP side does not need, before it listens.
//!
//! The idea: whatever it holds open by now (the catalog, the socket it listens on, its
//! keys) it keeps; from here on it can open nothing but files of the mounted tree for
//! reading, and the daemon's control socket. An ordinary user with the group that may
//! read the backups, no way to gain rights again, and Landlock where the kernel has
//! it. A hole in what parses requests is then worth what all users of the HTTP side may
//! have together. The catalog stays open for writing, so the daemon takes nothing from it
//! that would lead to other files of the host (`recorded_repositories`).

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::sys::prctl;
use nix::unistd::{Group, User, setgid, setgroups, setuid};
use sendense::{Error, Result};

use crate::config::Config;

/// Newer rights of Landlock would also forbid to reach the control socket.
const LANDLOCK: ABI = ABI::V6;

/// Becomes the ordinary user, and confines this thread and those it will start.
///
/// # Errors
/// `Invalid`: the user or group is not there, or is root; `Io` from the host. A kernel
/// without Landlock is no error, and is said in the log.
pub(super) fn confine(config: &Config) -> Result<()> {
    if config.uid == 0 {
        become_ordinary(&config.api_user, &config.group)?;
    }
    prctl::set_no_new_privs().map_err(|e| Error::io("giving up privileges", e.into()))?;
    // The folder above: the tree itself is another one after a restart of the daemon.
    let gate = config.mountpoint.parent().unwrap_or(&config.mountpoint);
    let confined = restrict(gate).map_err(|e| Error::Invalid(format!("landlock: {e}")))?;
    match confined {
        RulesetStatus::NotEnforced => tracing::warn!(
            "this kernel has no Landlock: the HTTP side is confined by its user alone"
        ),
        RulesetStatus::PartiallyEnforced => {
            tracing::debug!("Landlock confines what this kernel knows of");
        }
        RulesetStatus::FullyEnforced => {}
    }
    Ok(())
}

fn become_ordinary(user: &str, group: &str) -> Result<()> {
    let failed = |what: &str, e: nix::errno::Errno| Error::io(what.to_owned(), e.into());
    let account = User::from_name(user)
        .map_err(|e| failed("the users of this host", e))?
        .ok_or_else(|| {
            Error::Invalid(format!(
                "api_user: there is no user {user}; make it (useradd --system {user}), or name \
                 another"
            ))
        })?;
    if account.uid.is_root() {
        return Err(Error::Invalid(
            "api_user: must be an ordinary user, not root".into(),
        ));
    }
    let group = Group::from_name(group)
        .map_err(|e| failed("the groups of this host", e))?
        .ok_or_else(|| {
            Error::Invalid(format!(
                "the HTTP side needs the group {group}, which may read the backups; make it: \
                 groupadd --system {group}, and give it the folder above the mountpoint"
            ))
        })?;
    setgroups(&[group.gid]).map_err(|e| failed("giving up groups", e))?;
    setgid(group.gid).map_err(|e| failed("becoming a member of the group", e))?;
    setuid(account.uid).map_err(|e| failed("becoming an ordinary user", e))
}

fn restrict(gate: &Path) -> std::result::Result<RulesetStatus, Box<dyn std::error::Error>> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::ConnectTcp | AccessNet::BindTcp)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?
        .add_rule(PathBeneath::new(
            PathFd::new(gate)?,
            AccessFs::ReadFile | AccessFs::ReadDir,
        ))?;
    Ok(ruleset.restrict_self()?.ruleset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    // Confinement is for a thread and what it starts, so that a thread can be tried.
    #[test]
    fn a_confined_thread_opens_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let gate = dir.path().join("gate");
        fs::create_dir_all(gate.join("backups")).unwrap();
        fs::write(gate.join("backups/file"), "inside").unwrap();
        fs::write(dir.path().join("other"), "outside").unwrap();
        let outside = dir.path().join("other");
        std::thread::spawn(move || {
            let status = restrict(&gate).unwrap();
            assert_ne!(
                status,
                RulesetStatus::NotEnforced,
                "this kernel has no Landlock"
            );
            assert_eq!(fs::read(gate.join("backups/file")).unwrap(), b"inside");
            for refused in [
                fs::read(&outside).err(),
                fs::read("/etc/passwd").err(),
                fs::write(gate.join("backups/new"), "x").err(),
                fs::remove_file(gate.join("backups/file")).err(),
                std::net::TcpListener::bind("127.0.0.1:0").err(),
                std::process::Command::new("/bin/true").spawn().err(),
            ] {
                let error = refused.expect("it is refused");
                assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
            }
        })
        .join()
        .unwrap();
    }
}
