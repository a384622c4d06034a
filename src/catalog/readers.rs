//! Connections for reading: each reader has one to itself, so that nobody waits.
//!
//! A process that gives up the right to open files cannot make one more. SQLite
//! opens its files when a connection is first used and may open others later
//! (temporary ones, the directory of a new log, the source of randomness). So all
//! of that is done once, ahead, and from then on a reader waits for a connection.

use super::{BUSY_TIMEOUT, Catalog, Source, schema};
use crate::error::{Error, Result};
use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Idle connections kept for the next reader, where more can be made.
const KEPT: usize = 4;

/// The idle connections.
pub(super) struct Readers {
    idle: Mutex<Vec<Connection>>,
    returned: Condvar,
    /// Whether no other connection can be made.
    fixed: bool,
}

impl Readers {
    /// Connections are made as they are needed.
    pub(super) fn on_demand() -> Self {
        Self {
            idle: Mutex::default(),
            returned: Condvar::new(),
            fixed: false,
        }
    }

    /// There are those that are put in, and no others.
    pub(super) fn fixed() -> Self {
        Self {
            fixed: true,
            ..Self::on_demand()
        }
    }

    /// Runs `read` on a connection that nobody else uses.
    pub(super) fn with<T>(
        &self,
        source: &Source,
        read: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        let connection = self.take(source)?;
        // A reader that panics must not take its connection along.
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&connection)));
        self.put(connection);
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn take(&self, source: &Source) -> Result<Connection> {
        let mut idle = self.idle.lock();
        if self.fixed {
            self.returned
                .wait_while_for(&mut idle, |idle| idle.is_empty(), BUSY_TIMEOUT);
        }
        match idle.pop() {
            Some(connection) => Ok(connection),
            None if self.fixed => Err(Error::Catalog(
                "too many are reading it at once; try again".into(),
            )),
            None => {
                drop(idle);
                connect(source)
            }
        }
    }

    fn put(&self, connection: Connection) {
        let mut idle = self.idle.lock();
        if self.fixed || idle.len() < KEPT {
            idle.push(connection);
        }
        drop(idle);
        self.returned.notify_one();
    }
}

fn connect(source: &Source) -> Result<Connection> {
    let connection = source.connect()?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

impl Catalog {
    /// Makes SQLite open all that it ever will, with so many readers.
    pub(super) fn open_files(&self, readers: usize) -> Result<()> {
        for _ in 0..readers.max(1) {
            let reader = connect(&self.source)?;
            touch(&reader)?;
            self.readers.put(reader);
        }
        touch(&self.watcher.lock())?;
        let mut writer = self.writer()?;
        touch(&writer)?;
        // The first commit that waits for the disk opens the log's directory: one
        // that changes nothing but has to be written.
        super::transact(&mut writer, |connection| {
            let version = schema::version(connection)?;
            Ok(connection.pragma_update(None, "user_version", version)?)
        })
    }
}

/// Uses a connection once: its files are open then, and what it stores for a while
/// stays in memory.
fn touch(connection: &Connection) -> Result<()> {
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // Reads the database, and the source of randomness of the process.
    connection.query_row("SELECT count(*), random() FROM sqlite_schema", [], |_| {
        Ok(())
    })?;
    connection.pragma_query_value(None, "data_version", |_| Ok(()))?;
    Ok(())
}
