//! What was done by whom: one row for each action, kept for as long as the
//! administrator says.
//!
//! Rows are written many at a time and without waiting for the disk: there are
//! hundreds when somebody browses. What a power cut may take is the last of
//! them; the end of the process takes none.

use super::Catalog;
use crate::error::Result;
use jiff::Timestamp;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, Value, ValueRef};
use rusqlite::{Row, params_from_iter};
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// The most rows that are answered at once.
const MAX_ROWS: u32 = 10_000;
/// How many rows are removed in one transaction, for which other writers wait.
const PRUNED_AT_ONCE: u32 = 5_000;
/// What is kept of a text, in bytes: a client chooses its length.
const MAX_TEXT: usize = 4096;

/// A closed set of words with their stored form.
macro_rules! words {
    ($(#[$of:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$of])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// As it is stored and written.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(name: &str) -> std::result::Result<Self, String> {
                let words = || Self::ALL.iter().copied();
                words().find(|word| word.name() == name).ok_or_else(|| {
                    let all: Vec<_> = words().map(Self::name).collect();
                    format!("`{name}` is none of {}", all.join(", "))
                })
            }
        }

        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(self.name().into())
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                let name = value.as_str()?;
                name.parse().map_err(|e: String| FromSqlError::Other(e.into()))
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let words = Self::ALL.iter().map(|word| word.name());
                ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).into()
            }
        }

        impl ToSchema for $name {}

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
                to.serialize_str(self.name())
            }
        }
    };
}

words! {
    /// What was done.
    Action {
        /// Logged in.
        Login = "login",
        /// Tried to log in.
        LoginFailed = "login_failed",
        /// Gave a token back.
        Logout = "logout",
        /// Mounted a disk.
        Mount = "mount",
        /// Released a mount.
        Unmount = "unmount",
        /// A mount ended for want of use.
        Expire = "expire",
        /// Listed a folder.
        List = "list",
        /// Downloaded a file.
        Download = "download",
        /// Downloaded files and folders as an archive.
        Archive = "archive",
        /// Stopped a download.
        Cancel = "cancel",
        /// Was refused what is not granted to them.
        Denied = "denied",
        /// Added a user.
        UserAdded = "user_added",
        /// Removed a user.
        UserRemoved = "user_removed",
        /// Gave a user another password.
        PasswordChanged = "password_changed",
        /// Gave a user another role.
        RoleChanged = "role_changed",
        /// Granted VMs to a user.
        Granted = "granted",
        /// Took VMs away from a user.
        Revoked = "revoked",
    }
}

words! {
    /// How it ended.
    Outcome {
        /// Done.
        Ok = "ok",
        /// Not allowed, or not possible as things were.
        Refused = "refused",
        /// Begun, and not done.
        Failed = "failed",
        /// Stopped by somebody, or the client went away.
        Cancelled = "cancelled",
    }
}

/// One action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditRecord {
    /// Given when it is recorded, ascending; ignored there.
    pub id: i64,
    /// When; kept to the millisecond.
    #[serde(serialize_with = "milliseconds")]
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// Who: a user's name (the one that was tried, in [`Action::LoginFailed`]), or
    /// `local:` and the name of the host's user for a command.
    pub user: String,
    /// The client's address; empty for a command.
    pub address: String,
    /// What.
    pub action: Action,
    /// The VM concerned.
    pub vm_name: Option<String>,
    /// The backup concerned.
    pub backup_id: Option<String>,
    /// The disk concerned.
    pub disk_index: Option<u32>,
    /// The mount concerned.
    pub mount_id: Option<String>,
    /// The file or folder, in the form that clients use.
    pub path: Option<String>,
    /// How many were sent.
    pub bytes: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
    /// Anything else worth knowing: why it failed, which user was changed.
    pub detail: Option<String>,
}

impl AuditRecord {
    /// An action that is done now, about nothing in particular yet.
    pub fn now(action: Action, user: impl Into<String>, address: impl Into<String>) -> Self {
        Self {
            id: 0,
            at: Timestamp::now(),
            user: user.into(),
            address: address.into(),
            action,
            vm_name: None,
            backup_id: None,
            disk_index: None,
            mount_id: None,
            path: None,
            bytes: None,
            outcome: Outcome::Ok,
            detail: None,
        }
    }
}

/// Which records; all that is given has to fit.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Of this user.
    pub user: Option<String>,
    /// Of this kind.
    pub action: Option<Action>,
    /// About this VM.
    pub vm_name: Option<String>,
    /// About this backup.
    pub backup_id: Option<String>,
    /// About this mount.
    pub mount_id: Option<String>,
    /// At this time or later.
    pub since: Option<Timestamp>,
    /// Before this time.
    pub until: Option<Timestamp>,
    /// Older than this record, the last one of the page before.
    pub before_id: Option<i64>,
    /// At most so many; 10,000 at most whatever is said.
    pub limit: u32,
}

impl Catalog {
    /// Records what was done, in this order. Longer texts than 4 KiB are cut. A power
    /// cut may undo it.
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub fn record_audit(&self, records: &[AuditRecord]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        self.write_relaxed(|connection| {
            let mut insert = connection.prepare_cached(
                "INSERT INTO audit (at, user, address, action, vm_name, backup_id, disk_index,
                     mount_id, path, bytes, outcome, detail)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )?;
            for record in records {
                insert.execute((
                    stored(record.at),
                    cut(&record.user),
                    cut(&record.address),
                    record.action,
                    record.vm_name.as_deref().map(cut),
                    record.backup_id.as_deref().map(cut),
                    record.disk_index,
                    record.mount_id.as_deref().map(cut),
                    record.path.as_deref().map(cut),
                    record.bytes.map(|n| i64::try_from(n).unwrap_or(i64::MAX)),
                    record.outcome,
                    record.detail.as_deref().map(cut),
                ))?;
            }
            Ok(())
        })
    }

    /// The records that fit, the newest first.
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRecord>> {
        let (sql, values) = select(filter);
        self.rows(&sql, params_from_iter(values), record)
    }

    /// Removes what is older than `before`; how much.
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub fn prune_audit(&self, before: Timestamp) -> Result<u64> {
        let before = stored(before);
        let mut pruned = 0;
        loop {
            let gone = self.write_relaxed(|connection| {
                let gone = connection.execute(
                    "DELETE FROM audit WHERE id IN
                         (SELECT id FROM audit WHERE at < ?1 ORDER BY at LIMIT ?2)",
                    (&before, PRUNED_AT_ONCE),
                )?;
                Ok(u32::try_from(gone).unwrap_or(u32::MAX))
            })?;
            pruned = u64::saturating_add(pruned, gone.into());
            if gone < PRUNED_AT_ONCE {
                return Ok(pruned);
            }
        }
    }
}

/// The query for a filter, with the values of its parameters.
pub(super) fn select(filter: &AuditFilter) -> (String, Vec<Value>) {
    let text = |text: &Option<String>| text.clone().map(Value::from);
    let time = |time: Option<Timestamp>| time.map(|time| stored(time).into());
    let conditions = [
        ("user = ?", text(&filter.user)),
        (
            "action = ?",
            filter.action.map(|action| action.name().to_owned().into()),
        ),
        ("vm_name = ?", text(&filter.vm_name)),
        ("backup_id = ?", text(&filter.backup_id)),
        ("mount_id = ?", text(&filter.mount_id)),
        ("at >= ?", time(filter.since)),
        ("at < ?", time(filter.until)),
        // Nothing is older than one that was removed.
        (
            "(at, id) < (SELECT at, id FROM audit WHERE id = ?)",
            filter.before_id.map(Value::from),
        ),
    ];
    let mut sql = "SELECT id, at, user, address, action, vm_name, backup_id, disk_index,
             mount_id, path, bytes, outcome, detail FROM audit"
        .to_owned();
    let mut values = Vec::new();
    for (condition, value) in conditions {
        if let Some(value) = value {
            sql.push_str(if values.is_empty() {
                " WHERE "
            } else {
                " AND "
            });
            sql.push_str(condition);
            values.push(value);
        }
    }
    // Records of several processes may not come in the order of their times.
    sql.push_str(" ORDER BY at DESC, id DESC LIMIT ?");
    values.push(i64::from(filter.limit.min(MAX_ROWS)).into());
    (sql, values)
}

fn record(row: &Row<'_>) -> rusqlite::Result<AuditRecord> {
    let at: String = row.get(1)?;
    let at = at.parse().map_err(|e| {
        rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(e))
    });
    Ok(AuditRecord {
        id: row.get(0)?,
        at: at?,
        user: row.get(2)?,
        address: row.get(3)?,
        action: row.get(4)?,
        vm_name: row.get(5)?,
        backup_id: row.get(6)?,
        disk_index: row.get(7)?,
        mount_id: row.get(8)?,
        path: row.get(9)?,
        bytes: row
            .get::<_, Option<i64>>(10)?
            .and_then(|bytes| u64::try_from(bytes).ok()),
        outcome: row.get(11)?,
        detail: row.get(12)?,
    })
}

/// As times stand in the table.
fn stored(at: Timestamp) -> String {
    format!("{at:.3}")
}

fn milliseconds<S: Serializer>(at: &Timestamp, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{at:.3}"))
}

/// The head of a text that is too long.
fn cut(text: &str) -> &str {
    if text.len() <= MAX_TEXT {
        return text;
    }
    let mut ends = (0..=MAX_TEXT).rev();
    ends.find_map(|end| text.get(..end)).unwrap_or_default()
}
