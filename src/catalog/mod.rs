//! Which backups there are: SQLite, written by `catalog` commands, followed by
//! the tree.
//!
//! The idea: a row of `backup_disks` promises content. An image that is the same
//! file as last seen keeps its row and its id for ever; one that changed gets a
//! new row; one that is gone keeps its row, hidden, until it returns. So inode
//! numbers can be built on ids, and everything above may cache without end.
//!
//! Several processes hold the database open at once: the daemon reads while a
//! command writes. With the write-ahead log nobody waits for anybody but one
//! writer for another.
//!
//! - [`schema`]: the migrations; the tree's folders are kept by triggers there;
//! - [`query`]: what the tree asks;
//! - [`repository`]: the directories that may hold images;
//! - [`layout`]: what an image's name says;
//! - [`walk`] and [`scan`]: finding images; [`record`]: one image by hand, and
//!   removal; [`found`]: the rows that both write; [`relations`]: chains;
//! - [`users`]: who may see what over HTTP; [`audit`]: what was done by whom;
//! - [`readers`]: connections for reading, also where no file can be opened;
//! - [`identity`]: whether a file is still the one that a row speaks of;
//! - [`mounts`]: which disks are mounted over REST;
//! - [`shapes`], [`chain`], [`exchange`] and [`json`]: the JSON that clients know.

mod audit;
mod chain;
mod exchange;
mod found;
mod identity;
mod json;
mod layout;
mod mounts;
mod query;
mod readers;
mod record;
mod relations;
mod repository;
mod scan;
mod schema;
mod shapes;
#[cfg(test)]
mod tests;
mod users;
mod walk;

pub use audit::{Action, AuditFilter, AuditRecord, Outcome};
pub use chain::ChainLink;
pub use exchange::ImportSummary;
pub use identity::ImageIdentity;
pub use mounts::{Mount, MountEnd, MountUse, MountedDisk, NewMount};
pub use record::{NewImage, Removed};
pub use repository::{Repository, RepositoryKind};
pub use scan::{ScanEvent, ScanOptions, ScanSummary};
pub use shapes::{Backup, BackupDisk, BackupSummary, VmContext, VmDisk, VmDisks};
pub use users::{Grants, Login, Role, Session, User, UserChange, check_user_name};

use crate::error::{Error, Result};
use nix::unistd::{AccessFlags, access};
use parking_lot::{Mutex, MutexGuard};
use readers::Readers;
use rusqlite::{Connection, OpenFlags};
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a writer waits for another one, and at most anybody for a lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// What a commit waits for: an id that was handed out must survive a power cut, or
/// it could be handed out again.
const DURABLE: &str = "FULL";

/// A folder of the tree that the catalog knows: a VM or a backup. Its id is
/// given once and never again, so that inode numbers can be built on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Unique over VMs and backups, positive, never used again.
    pub id: i64,
    /// Name in the tree: the VM's name, or the backup's id.
    pub name: String,
    /// When it was last changed (a VM: its newest backup; a backup: when it was
    /// taken), seconds since 1970.
    pub time: i64,
}

/// One disk of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRecord {
    /// `backup_disks.id`; never used again.
    pub id: i64,
    /// `backup_jobs.id`.
    pub backup_id: String,
    /// The VM's name.
    pub vm_name: String,
    /// `disk<N>`.
    pub disk_index: u32,
    /// The image.
    pub path: PathBuf,
    /// Image format, never guessed: `qcow2`.
    pub format: String,
    /// Size of the disk in bytes, where known.
    pub size: Option<u64>,
    /// When the backup was taken, seconds since 1970.
    pub time: i64,
    /// What was recorded of the image's file when it was last looked at: the
    /// content that the row promises is that of this file alone. `None` where
    /// only the hub has told of the image.
    pub identity: Option<ImageIdentity>,
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy) => Self::Catalog(
                "another process is writing to it and did not finish in time; try again".into(),
            ),
            Some(rusqlite::ErrorCode::ReadOnly) => {
                Self::Catalog("it cannot be written to by this user".into())
            }
            _ => Self::Catalog(error.to_string()),
        }
    }
}

/// The catalog database.
///
/// Reads take a connection each and never wait for a writer; writes of this
/// process go one at a time through one connection.
pub struct Catalog {
    source: Source,
    writer: Mutex<Connection>,
    readers: Readers,
    /// Asked for nothing but the version, which is relative to a connection.
    watcher: Mutex<Connection>,
}

/// How connections to the database are made.
#[derive(Debug, Clone)]
struct Source {
    path: PathBuf,
    access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    ReadWrite,
    ReadOnly,
    /// Neither the log nor its index can be made: the file is read as it is.
    Frozen,
}

impl Source {
    fn connect(&self) -> Result<Connection> {
        self.try_connect()
            .map_err(|e| Error::Catalog(format!("{}: {e}", self.path.display())))
    }

    fn try_connect(&self) -> rusqlite::Result<Connection> {
        let flags = match self.access {
            Access::ReadWrite => OpenFlags::SQLITE_OPEN_READ_WRITE,
            Access::ReadOnly | Access::Frozen => OpenFlags::SQLITE_OPEN_READ_ONLY,
        } | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = match self.access {
            Access::Frozen => {
                let uri = format!("{}?immutable=1", file_uri(&self.path));
                Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?
            }
            _ => Connection::open_with_flags(&self.path, flags)?,
        };
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(64);
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "synchronous", DURABLE)?;
        Ok(connection)
    }
}

/// The path as an SQLite URI: its special characters escaped.
fn file_uri(path: &Path) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let mut uri = String::from("file:");
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri
}

impl Catalog {
    /// Opens the database for reading and writing; creates it (mode 0600, its
    /// directory 0700) and applies migrations where needed.
    ///
    /// # Errors
    /// [`Error::Catalog`], naming the file: it cannot be made or written, is no
    /// database, or was written by a newer version of the program.
    pub fn open(path: &Path) -> Result<Self> {
        create(path).map_err(|e| {
            Error::Catalog(format!(
                "{}: cannot be opened for writing: {e}; its directory (`state_dir`) must exist \
                 or be makeable, and be writable by this user",
                path.display()
            ))
        })?;
        let source = Source {
            path: path.to_owned(),
            access: Access::ReadWrite,
        };
        let mut writer = source.connect()?;
        schema::migrate(&mut writer)
            .map_err(|e| Error::Catalog(format!("{}: {}", path.display(), bare(&e))))?;
        Self::from_source(source, writer)
    }

    /// Opens an existing database for reading, also where its directory cannot
    /// be written to. Where no process has it open, such a catalog does not see
    /// what others write later: it is meant for commands that end soon.
    ///
    /// # Errors
    /// [`Error::Catalog`], naming the file: it is not there, cannot be read, or
    /// is of another version of the program.
    pub fn open_read_only(path: &Path) -> Result<Self> {
        let fail = |e: String| Error::Catalog(format!("{}: cannot be read: {e}", path.display()));
        // SQLite says the same for every cause; the kernel says which.
        access(path, AccessFlags::R_OK).map_err(|e| fail(io::Error::from(e).to_string()))?;
        let mut failed = None;
        for access in [Access::ReadOnly, Access::Frozen] {
            if access == Access::Frozen && has_log(path) {
                break;
            }
            let source = Source {
                path: path.to_owned(),
                access,
            };
            let probe = source
                .connect()
                .and_then(|connection| Ok((schema::version(&connection)?, connection)));
            match probe {
                Ok((version, connection)) => {
                    schema::check_current(version).map_err(|e| fail(bare(&e)))?;
                    return Self::from_source(source, connection);
                }
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        Err(failed.unwrap_or_else(|| fail("unknown reason".into())))
    }

    /// As [`Self::open`], for a process that then gives up the right to open
    /// files: all connections are made and used now, `readers` of them for
    /// reading, and none is made or closed later. A reader that finds them all in
    /// use waits, 30 s at most.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_ahead(path: &Path, readers: usize) -> Result<Self> {
        let catalog = Self {
            readers: Readers::fixed(),
            ..Self::open(path)?
        };
        catalog.open_files(readers)?;
        Ok(catalog)
    }

    fn from_source(source: Source, writer: Connection) -> Result<Self> {
        let watcher = source.connect()?;
        Ok(Self {
            writer: Mutex::new(writer),
            readers: Readers::on_demand(),
            watcher: Mutex::new(watcher),
            source,
        })
    }

    /// A number that changes whenever any process, this one included, changed
    /// the database. Cheap. Comparable only within the life of this object.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn version(&self) -> Result<u64> {
        // The watcher never writes, so even this process's own changes are
        // another connection's to it.
        let version: i64 = self
            .watcher
            .lock()
            .pragma_query_value(None, "data_version", |row| row.get(0))?;
        Ok(u64::try_from(version).unwrap_or_default())
    }

    /// Runs `read` on a connection of its own.
    fn read<T>(&self, read: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        self.readers.with(&self.source, read)
    }

    /// The connection for writing; whoever holds it is this process's writer.
    fn writer(&self) -> Result<MutexGuard<'_, Connection>> {
        if self.source.access != Access::ReadWrite {
            return Err(Error::Catalog(format!(
                "{}: was opened for reading only",
                self.source.path.display()
            )));
        }
        Ok(self.writer.lock())
    }

    /// Runs `write` in one transaction: all of it is done, or nothing. Where
    /// `write` changes nothing, [`Self::version`] stays as it was.
    fn write<T>(&self, write: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        transact(&mut *self.writer()?, write)
    }

    /// As [`Self::write`], without waiting for the disk: a power cut or a crash of
    /// the kernel may undo what was written this way since the last [`Self::write`]
    /// of any process, in whole transactions; the end of this process cannot.
    fn write_relaxed<T>(&self, write: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let mut connection = self.writer()?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let result = transact(&mut connection, write);
        connection.pragma_update(None, "synchronous", DURABLE)?;
        result
    }
}

fn transact<T>(
    connection: &mut Connection,
    write: impl FnOnce(&Connection) -> Result<T>,
) -> Result<T> {
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let result = write(&transaction)?;
    transaction.commit()?;
    Ok(result)
}

/// Makes the file and its directory, for this user alone, if they are not there,
/// and checks that it can be written.
///
/// A file that is there is not opened: closing it again would drop the locks
/// that SQLite holds on it for other connections of this process (fcntl(2)).
fn create(path: &Path) -> io::Result<()> {
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)?;
    }
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match made {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            Ok(access(path, AccessFlags::R_OK | AccessFlags::W_OK)?)
        }
        Err(e) => Err(e),
    }
}

/// Whether there are changes that are not in the database file yet.
fn has_log(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    std::fs::symlink_metadata(log).is_ok_and(|log| log.len() > 0)
}

/// The message without the prefix that every error of the catalog has, for use
/// inside another one.
fn bare(error: &Error) -> String {
    match error {
        Error::Catalog(message) => message.clone(),
        other => other.to_string(),
    }
}
