//! Who may see what over HTTP: users, their roles, the VMs granted to them, and
//! which tokens still hold.
//!
//! A token names a user's id and generation. The generation rises with the
//! password and the role, an id is never used again, and a token that was given
//! back is remembered until it would have expired: so one look at the tables says
//! whether a token holds, and a change takes effect with the next request.

use super::{Catalog, layout, shapes};
use crate::error::{Error, Result};
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The longest name of a user, in bytes.
const MAX_NAME: usize = 64;

/// The head of the names under which local commands are recorded.
const LOCAL: &str = "local:";

/// The next generation of a user. The clock is in it, so that a number does not come
/// again where an older copy of the database was put back.
const GENERATION: &str = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";

/// What a user may do; each may do all that the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks at VMs, backups and what is mounted.
    Viewer,
    /// Mounts, downloads and unmounts as well.
    Operator,
    /// Does everything, with all VMs.
    Admin,
}

impl Role {
    /// As it is stored and written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        [Self::Admin, Self::Operator, Self::Viewer]
            .into_iter()
            .find(|role| role.name() == name)
            .ok_or_else(|| format!("`{name}` is none of admin, operator, viewer"))
    }
}

impl ToSql for Role {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.name().into())
    }
}

impl FromSql for Role {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let name = value.as_str()?;
        name.parse()
            .map_err(|e: String| FromSqlError::Other(e.into()))
    }
}

/// The VMs that a user may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grants {
    /// Every one.
    All,
    /// Those of these names.
    Only(BTreeSet<String>),
}

impl Grants {
    /// Whether a VM is among them.
    pub fn cover(&self, vm_name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(vm_name),
        }
    }
}

/// Somebody with a token that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// `users.id`.
    pub id: i64,
    /// The user's name.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// With which VMs; an admin with all.
    pub vms: Grants,
}

/// What is needed to log a user in.
#[derive(Clone)]
pub struct Login {
    /// `users.id`.
    pub id: i64,
    /// The user's name.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// To be named by the token.
    pub generation: i64,
    /// A PHC string.
    pub password_hash: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("id", &self.id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A user in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// Never used again.
    pub id: i64,
    /// Unique.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Whether they may see all VMs, as every admin may.
    pub all_vms: bool,
    /// The VMs that are granted by name, sorted.
    pub vms: Vec<String>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub last_login_at: Option<String>,
}

/// What is to become of a user's rights; what is not said stays.
#[derive(Debug, Clone, Default)]
pub struct UserChange {
    /// The new role.
    pub role: Option<Role>,
    /// Whether all VMs are granted.
    pub all_vms: Option<bool>,
    /// VMs to grant.
    pub grant: Vec<String>,
    /// VMs to take away; each has to be granted.
    pub revoke: Vec<String>,
}

impl Catalog {
    /// Adds a user; their id.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the name is taken or cannot be one, or a VM's cannot;
    /// [`Error::Catalog`].
    pub fn add_user(
        &self,
        name: &str,
        role: Role,
        password_hash: &str,
        all_vms: bool,
        vms: &[String],
    ) -> Result<i64> {
        check_user_name(name)?;
        self.write(|connection| {
            let sql = format!(
                "INSERT INTO users (name, role, password_hash, all_vms, generation)
                 VALUES (?1, ?2, ?3, ?4, {GENERATION}) ON CONFLICT (name) DO NOTHING"
            );
            if connection.execute(&sql, (name, role, password_hash, all_vms))? == 0 {
                return Err(Error::Invalid(format!("the user {name} is there already")));
            }
            let id = connection.last_insert_rowid();
            grant(connection, id, vms)?;
            Ok(id)
        })
    }

    /// Removes a user; their tokens hold no longer. The last admin is removed by
    /// `force` alone.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`], [`Error::Catalog`].
    pub fn remove_user(&self, name: &str, force: bool) -> Result<()> {
        self.write(|connection| {
            let (id, role, _) = find(connection, name)?;
            if !force && role == Role::Admin && is_last_admin(connection, id)? {
                return Err(Error::Invalid(format!(
                    "{name} is the last admin; add another one first, or say --force"
                )));
            }
            connection.execute("DELETE FROM users WHERE id = ?1", [id])?;
            Ok(())
        })
    }

    /// The users, by name.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn users(&self) -> Result<Vec<User>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!("{USERS} ORDER BY name"))?
                .query_map([], user)?
                .map(|user| with_vms(connection, user?))
                .collect()
        })
    }

    /// One user by name.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn user(&self, name: &str) -> Result<Option<User>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!("{USERS} WHERE name = ?1"))?
                .query_row([name], user)
                .optional()?
                .map(|user| with_vms(connection, user))
                .transpose()
        })
    }

    /// Gives a user another password; tokens made before hold no longer.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Catalog`].
    pub fn set_password(&self, name: &str, password_hash: &str) -> Result<()> {
        self.write(|connection| {
            let (id, ..) = find(connection, name)?;
            connection.execute(
                "UPDATE users SET password_hash = ?2 WHERE id = ?1",
                (id, password_hash),
            )?;
            void_tokens(connection, id)
        })
    }

    /// Changes a user's role and VMs, all or nothing; the user as they are then.
    /// With another role, tokens made before hold no longer.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Invalid`] where nobody would be admin, or a VM
    /// to take away was not granted; [`Error::Catalog`].
    pub fn change_user(&self, name: &str, change: &UserChange) -> Result<User> {
        self.write(|connection| {
            let (id, role, all_vms) = find(connection, name)?;
            if let Some(next) = change.role.filter(|next| *next != role) {
                if role == Role::Admin && is_last_admin(connection, id)? {
                    return Err(Error::Invalid(format!(
                        "{name} is the last admin; make another user admin first"
                    )));
                }
                connection.execute("UPDATE users SET role = ?2 WHERE id = ?1", (id, next))?;
                void_tokens(connection, id)?;
            }
            let all_vms = change.all_vms.unwrap_or(all_vms);
            connection.execute("UPDATE users SET all_vms = ?2 WHERE id = ?1", (id, all_vms))?;
            if all_vms && !change.revoke.is_empty() {
                return Err(Error::Invalid(format!(
                    "{name} may see all VMs, so that taking one away would change nothing; take \
                     all away first: `sendense user grant {name} --revoke --all-vms`"
                )));
            }
            for vm in &change.revoke {
                let gone = connection.execute(
                    "DELETE FROM user_grants WHERE user_id = ?1 AND vm_name = ?2",
                    (id, vm),
                )?;
                if gone == 0 {
                    return Err(Error::Invalid(format!(
                        "the VM {vm} is not granted to {name}; nothing was changed"
                    )));
                }
            }
            grant(connection, id, &change.grant)?;
            let changed = connection.query_row(&format!("{USERS} WHERE id = ?1"), [id], user)?;
            with_vms(connection, changed)
        })
    }

    /// What is needed to log in, if there is such a user.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn user_for_login(&self, name: &str) -> Result<Option<Login>> {
        self.row(
            "SELECT id, name, role, generation, password_hash FROM users WHERE name = ?1",
            [name],
            |row| {
                Ok(Login {
                    id: row.get(0)?,
                    name: row.get(1)?,
                    role: row.get(2)?,
                    generation: row.get(3)?,
                    password_hash: row.get(4)?,
                })
            },
        )
    }

    /// Notes that a user has logged in now. A power cut may undo it.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn record_login(&self, user_id: i64) -> Result<()> {
        self.write_relaxed(|connection| {
            connection.execute(
                "UPDATE users SET last_login_at = strftime('%Y-%m-%dT%H:%M:%SZ', 'now')
                 WHERE id = ?1",
                [user_id],
            )?;
            Ok(())
        })
    }

    /// Whose token this is, if it holds: the user is there, of this generation, and
    /// has not given the token back. Whether it has expired is for the caller to say.
    /// Cheap enough for every request.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn session(&self, user_id: i64, generation: i64, token: &str) -> Result<Option<Session>> {
        self.read(|connection| {
            let found = connection
                .prepare_cached(
                    "SELECT name, role, all_vms FROM users WHERE id = ?1 AND generation = ?2
                         AND NOT EXISTS (SELECT 1 FROM revoked_tokens WHERE id = ?3)",
                )?
                .query_row((user_id, generation, token), |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })
                .optional()?;
            let Some((name, role, all_vms)) = found else {
                return Ok(None);
            };
            let vms = if all_vms || role == Role::Admin {
                Grants::All
            } else {
                Grants::Only(vms_of(connection, user_id)?)
            };
            Ok(Some(Session {
                id: user_id,
                name,
                role,
                vms,
            }))
        })
    }

    /// Lets a token hold no longer; it has to be remembered until it would expire,
    /// `expires_at` seconds after 1970.
    ///
    /// # Errors
    /// [`Error::Invalid`] where that is no time; [`Error::Catalog`].
    pub fn revoke_token(&self, token: &str, expires_at: i64) -> Result<()> {
        let expires_at = shapes::rfc3339(expires_at)?;
        self.write(|connection| {
            connection.execute(
                "INSERT INTO revoked_tokens (id, expires_at) VALUES (?1, ?2)
                 ON CONFLICT (id) DO NOTHING",
                (token, expires_at),
            )?;
            Ok(())
        })
    }

    /// Forgets the tokens that have expired by `now`, seconds after 1970; how many.
    ///
    /// # Errors
    /// As [`Self::revoke_token`].
    pub fn prune_tokens(&self, now: i64) -> Result<usize> {
        let now = shapes::rfc3339(now)?;
        self.write_relaxed(|connection| {
            Ok(connection.execute("DELETE FROM revoked_tokens WHERE expires_at <= ?1", [now])?)
        })
    }

    /// Whether the catalog knows a VM of this name.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn knows_vm(&self, name: &str) -> Result<bool> {
        let found = self.row(
            "SELECT 1 FROM vm_backup_contexts WHERE vm_name = ?1 LIMIT 1",
            [name],
            |_| Ok(()),
        )?;
        Ok(found.is_some())
    }
}

const USERS: &str = "SELECT id, name, role, all_vms, created_at, last_login_at FROM users";

fn user(row: &Row<'_>) -> rusqlite::Result<User> {
    let role = row.get(2)?;
    Ok(User {
        id: row.get(0)?,
        name: row.get(1)?,
        role,
        all_vms: role == Role::Admin || row.get(3)?,
        vms: Vec::new(),
        created_at: row.get(4)?,
        last_login_at: row.get(5)?,
    })
}

fn with_vms(connection: &Connection, user: User) -> Result<User> {
    Ok(User {
        vms: vms_of(connection, user.id)?,
        ..user
    })
}

/// The VMs granted to a user by name, sorted.
fn vms_of<C: FromIterator<String>>(connection: &Connection, user_id: i64) -> Result<C> {
    Ok(connection
        .prepare_cached("SELECT vm_name FROM user_grants WHERE user_id = ?1 ORDER BY vm_name")?
        .query_map([user_id], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?)
}

/// A user's id, role and whether all VMs are granted to them.
fn find(connection: &Connection, name: &str) -> Result<(i64, Role, bool)> {
    connection
        .query_row(
            "SELECT id, role, all_vms FROM users WHERE name = ?1",
            [name],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?
        .ok_or_else(|| Error::not_found(format!("user {name}")))
}

fn is_last_admin(connection: &Connection, id: i64) -> Result<bool> {
    Ok(connection.query_row(
        "SELECT NOT EXISTS (SELECT 1 FROM users WHERE role = 'admin' AND id <> ?1)",
        [id],
        |row| row.get(0),
    )?)
}

fn void_tokens(connection: &Connection, id: i64) -> Result<()> {
    let sql =
        format!("UPDATE users SET generation = max(generation + 1, {GENERATION}) WHERE id = ?1");
    connection.execute(&sql, [id])?;
    Ok(())
}

fn grant(connection: &Connection, id: i64, vms: &[String]) -> Result<()> {
    for vm in vms {
        if !layout::is_folder_name(vm) {
            return Err(Error::Invalid(format!("`{vm}` cannot be a VM's name")));
        }
        connection
            .prepare_cached(
                "INSERT INTO user_grants (user_id, vm_name) VALUES (?1, ?2)
                 ON CONFLICT (user_id, vm_name) DO NOTHING",
            )?
            .execute((id, vm))?;
    }
    Ok(())
}

/// Whether a new user can have this name.
///
/// # Errors
/// [`Error::Invalid`], which says why not.
pub fn check_user_name(name: &str) -> Result<()> {
    let refuse = |why: &str| {
        Err(Error::Invalid(format!(
            "`{name}` cannot be a user's name: it {why}"
        )))
    };
    match name {
        "" => refuse("is empty"),
        _ if name.len() > MAX_NAME => refuse(&format!("is longer than {MAX_NAME} bytes")),
        _ if name.chars().any(char::is_control) => refuse("has control characters"),
        _ if name.trim() != name => refuse("begins or ends with a blank"),
        _ if name.starts_with(LOCAL) => {
            refuse("begins with `local:`, under which commands on this host are recorded")
        }
        _ => Ok(()),
    }
}
