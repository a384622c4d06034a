//! `sendense user …`: who may use the HTTP side, and with which VMs.
//!
//! A password is never an argument, which every user of the host could read. What a
//! command changes takes effect with the next request, also while the daemon runs,
//! and stands in the audit record under the name of the host's user.

use crate::auth::password;
use crate::config::Config;
use crate::terminal;
use clap::Args;
use nix::unistd::{Uid, User as HostUser};
use sendense::catalog::{Action, AuditRecord, Catalog, Role, User, UserChange, check_user_name};
use sendense::{Error, Result};
use std::io::{self, BufRead, Read};

/// Users of the HTTP side.
#[derive(Debug, Args)]
pub(crate) struct UserArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Add a user; asks for the password.
    Add {
        /// Name to log in with.
        name: String,
        /// admin (everything, all VMs), operator (mounts and downloads) or viewer.
        #[arg(long)]
        role: Role,
        /// A VM that the user may see; may be said several times.
        #[arg(long, value_name = "NAME")]
        vm: Vec<String>,
        /// The user may see all VMs, now and later.
        #[arg(long)]
        all_vms: bool,
        #[command(flatten)]
        source: PasswordSource,
    },
    /// Give a user another password; asks for it. Logs the user out everywhere.
    Passwd {
        /// The user.
        name: String,
        #[command(flatten)]
        source: PasswordSource,
    },
    /// Grant VMs to a user, take them away, or change the role.
    #[command(
        group = clap::ArgGroup::new("what").required(true).multiple(true),
        override_usage = "sendense user grant <NAME> [VM]... [--all-vms] [--revoke] [--role <ROLE>]"
    )]
    Grant {
        /// The user.
        name: String,
        /// The VMs.
        #[arg(value_name = "VM", group = "what")]
        vms: Vec<String>,
        /// All VMs, now and later.
        #[arg(long, group = "what")]
        all_vms: bool,
        /// Take away instead of granting.
        #[arg(long)]
        revoke: bool,
        /// The new role: admin, operator or viewer. Logs the user out everywhere.
        #[arg(long, group = "what")]
        role: Option<Role>,
    },
    /// List the users.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove a user. Logs the user out everywhere.
    Remove {
        /// The user.
        name: String,
        /// Also the last admin.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
struct PasswordSource {
    /// Read the password from the first line of the standard input.
    #[arg(long)]
    password_stdin: bool,
}

/// Runs a `user` command on the configuration's catalog.
///
/// # Errors
/// What the catalog says; a password that cannot be read or is refused.
pub(crate) fn run(args: &UserArgs, config: &Config) -> Result<()> {
    let path = &config.catalog_path();
    if let Command::List { json } = &args.command {
        // Whoever only looks needs no right to write.
        let catalog = Catalog::open(path)
            .or_else(|error| Catalog::open_read_only(path).map_err(|_| error))?;
        return list(&catalog, *json);
    }
    let catalog = Catalog::open(path)?;
    let done = |action, detail: String| {
        let record = AuditRecord {
            detail: Some(detail.clone()),
            ..AuditRecord::now(action, local_user(), "")
        };
        catalog.record_audit(&[record])?;
        terminal::print(&format!("{}\n", terminal::harmless(&detail)))
    };
    match &args.command {
        Command::Add {
            name,
            role,
            vm,
            all_vms,
            source,
        } => {
            // Before anybody types a password for nothing.
            check_user_name(name)?;
            if catalog.user(name)?.is_some() {
                return Err(Error::Invalid(format!(
                    "the user {name} is there already; `sendense user passwd` and `sendense user \
                     grant` change it"
                )));
            }
            let hash = password::hash(&source.read()?)?;
            warn_of_unknown(&catalog, vm)?;
            catalog.add_user(name, *role, &hash, *all_vms, vm)?;
            let user = found(&catalog, name)?;
            done(Action::UserAdded, format!("added {}", describe(&user)))
        }
        Command::Passwd { name, source } => {
            found(&catalog, name)?;
            let hash = password::hash(&source.read()?)?;
            catalog.set_password(name, &hash)?;
            done(
                Action::PasswordChanged,
                format!(
                    "{name} has another password; who was logged in as {name} has to log in again"
                ),
            )
        }
        Command::Grant {
            name,
            vms,
            all_vms,
            revoke,
            role,
        } => {
            let before = found(&catalog, name)?;
            if !revoke {
                warn_of_unknown(&catalog, vms)?;
            }
            let of_vms = || vms.clone();
            let user = catalog.change_user(
                name,
                &UserChange {
                    role: *role,
                    all_vms: all_vms.then_some(!revoke),
                    grant: (!revoke).then(of_vms).unwrap_or_default(),
                    revoke: revoke.then(of_vms).unwrap_or_default(),
                },
            )?;
            if user.role == Role::Admin && *revoke {
                terminal::complain(&format!("{name} is admin, and sees all VMs all the same"));
            }
            let action = match revoke {
                _ if before.role != user.role => Action::RoleChanged,
                true => Action::Revoked,
                false => Action::Granted,
            };
            done(action, describe(&user))
        }
        Command::Remove { name, force } => {
            catalog.remove_user(name, *force)?;
            done(Action::UserRemoved, format!("removed {name}"))
        }
        Command::List { .. } => Ok(()),
    }
}

impl PasswordSource {
    fn read(&self) -> Result<String> {
        if self.password_stdin {
            return first_line(io::stdin().lock());
        }
        let ask = |prompt: &str| {
            rpassword::prompt_password(prompt).map_err(|e| {
                Error::Invalid(format!(
                    "the password cannot be asked for on a terminal ({e}); give it with \
                     --password-stdin"
                ))
            })
        };
        let password = ask("Password: ")?;
        password::check_rules(&password)?;
        if ask("Again: ")? != password {
            return Err(Error::Invalid(
                "the two passwords differ; nothing was changed".into(),
            ));
        }
        Ok(password)
    }
}

/// A line without its end.
fn first_line(from: impl Read) -> Result<String> {
    // More than any password has; the rules say the limit.
    const LIMIT: u64 = 4096;
    let refuse = |why: String| Error::Invalid(format!("the password on standard input {why}"));
    let mut line = String::new();
    let mut from = io::BufReader::new(from.take(LIMIT));
    from.read_line(&mut line)
        .map_err(|e| refuse(format!("cannot be read: {e}")))?;
    let password = line.strip_suffix('\n').unwrap_or(&line);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(refuse("is empty".into()));
    }
    Ok(password.to_owned())
}

fn found(catalog: &Catalog, name: &str) -> Result<User> {
    catalog.user(name)?.ok_or_else(|| {
        Error::Invalid(format!(
            "user {name}: not found; `sendense user list` names all"
        ))
    })
}

/// A VM may be granted before its first backup; or its name is mistyped.
fn warn_of_unknown(catalog: &Catalog, vms: &[String]) -> Result<()> {
    for vm in vms {
        if !catalog.knows_vm(vm)? {
            terminal::complain(&format!(
                "the catalog knows no VM {vm} yet; it is granted for when there is one"
            ));
        }
    }
    Ok(())
}

/// `anna: viewer, VMs: a, b`.
fn describe(user: &User) -> String {
    format!("{}: {}, VMs: {}", user.name, user.role, vms(user))
}

fn vms(user: &User) -> String {
    match (user.all_vms, user.vms.as_slice()) {
        (true, _) => "all".into(),
        (false, []) => "none".into(),
        (false, names) => names.join(", "),
    }
}

fn list(catalog: &Catalog, json: bool) -> Result<()> {
    #[derive(serde::Serialize)]
    struct Answer {
        count: usize,
        users: Vec<User>,
    }
    let users = catalog.users()?;
    if json {
        let count = users.len();
        let text = serde_json::to_string_pretty(&Answer { count, users })
            .map_err(|e| Error::Catalog(format!("the users as JSON: {e}")))?;
        return terminal::print(&(text + "\n"));
    }
    let head = ["USER", "ROLE", "VMS", "LAST LOG-IN"];
    let mut rows = vec![head.map(str::to_owned)];
    for user in users {
        let last = user.last_login_at.as_deref();
        rows.push([
            terminal::harmless(&user.name),
            user.role.to_string(),
            terminal::harmless(&vms(&user)),
            last.map_or_else(|| "never".into(), terminal::wall_clock),
        ]);
    }
    terminal::print(&terminal::table(&rows))
}

/// Whom the audit record names for a command.
pub(crate) fn local_user() -> String {
    let uid = Uid::current();
    let known = HostUser::from_uid(uid).ok().flatten();
    format!(
        "local:{}",
        known.map_or_else(|| uid.to_string(), |user| user.name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_password_without_its_end() {
        for (input, password) in [
            ("secret word\n", "secret word"),
            ("secret word", "secret word"),
            ("secret word\r\n", "secret word"),
            (" blanks count \n", " blanks count "),
            ("one\ntwo\n", "one"),
        ] {
            assert_eq!(first_line(input.as_bytes()).unwrap(), password);
        }
        for input in [b"".as_slice(), b"\n", b"\r\n", b"\xff\xfe\n"] {
            assert!(first_line(input).is_err(), "{input:?}");
        }
        // Not cut where it could be taken for a shorter one.
        let endless = first_line(io::repeat(b'x')).unwrap();
        assert!(password::check_rules(&endless).is_err());
    }
}
