//! The numbered migrations, and which of them a database has seen
//! (`PRAGMA user_version`).

use crate::error::{Error, Result};
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use std::time::{Duration, Instant};

/// Migration N is at index N - 1. A released one is never edited.
const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/0001_catalog.sql"),
    include_str!("../../migrations/0002_identity.sql"),
    include_str!("../../migrations/0003_mounts.sql"),
];

/// Brings the database up to date, all in one transaction, and switches it to
/// the write-ahead log. A database that is up to date is not locked.
pub(super) fn migrate(connection: &mut Connection) -> Result<()> {
    use_log(connection)?;
    if usize::try_from(version(connection)?).ok() == Some(MIGRATIONS.len()) {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Again, under the lock: another process may have been faster.
    let version = version(&transaction)?;
    let seen = usize::try_from(version).map_err(|_| newer(version))?;
    for migration in MIGRATIONS.get(seen..).ok_or_else(|| newer(version))? {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    transaction.commit()?;
    Ok(())
}

/// Number of the last migration that the database has seen.
pub(super) fn version(connection: &Connection) -> Result<i64> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// Whether a database of this version can be read without migrating it.
pub(super) fn check_current(version: i64) -> Result<()> {
    match usize::try_from(version) {
        Ok(seen) if seen == MIGRATIONS.len() => Ok(()),
        Ok(seen) if seen < MIGRATIONS.len() => Err(Error::Catalog(
            "it is of an older version; any `sendense catalog` command by its owner updates it"
                .into(),
        )),
        _ => Err(newer(version)),
    }
}

fn newer(version: i64) -> Error {
    Error::Catalog(format!(
        "it was written by a newer version of this program (schema {version}, this one knows \
         {}); update the program",
        MIGRATIONS.len()
    ))
}

/// SQLite does not call its busy handler for the switch, which several processes
/// may want to make at once.
fn use_log(connection: &Connection) -> Result<()> {
    let deadline = Instant::now().checked_add(super::BUSY_TIMEOUT);
    loop {
        let switched = connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0));
        match switched {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(mode) => {
                return Err(Error::Catalog(format!(
                    "its file system allows no write-ahead log (journal mode {mode}); move \
                     `state_dir` to a local one"
                )));
            }
            Err(e)
                if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && deadline.is_some_and(|deadline| Instant::now() < deadline) =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(e) => return Err(e.into()),
        }
    }
}
