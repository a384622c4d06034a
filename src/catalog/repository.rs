//! The directories that may hold images.

use super::Catalog;
use crate::error::{Error, Result};
use nix::sys::statfs::{self, statfs};
use rusqlite::{Connection, OptionalExtension};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What kind of storage a repository is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepositoryKind {
    /// A disk of this host.
    Local,
    /// A network file system, NFS.
    Nfs,
    /// A network file system, SMB.
    Cifs,
    /// Storage on which nothing can be changed; only the administrator knows.
    Immutable,
}

impl RepositoryKind {
    /// Its name in the database and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Nfs => "nfs",
            Self::Cifs => "cifs",
            Self::Immutable => "immutable",
        }
    }

    /// What `statfs` says of a directory.
    fn of(path: &Path) -> Self {
        // SMB2_SUPER_MAGIC and CIFS_SUPER_MAGIC of linux/magic.h.
        const SMB: [i64; 2] = [0xfe53_4d42, 0xff53_4d42];
        match statfs(path).map(|found| found.filesystem_type()) {
            Ok(statfs::NFS_SUPER_MAGIC) => Self::Nfs,
            Ok(statfs::SMB_SUPER_MAGIC) => Self::Cifs,
            Ok(other) if SMB.contains(&other.0) => Self::Cifs,
            _ => Self::Local,
        }
    }
}

impl FromStr for RepositoryKind {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        [Self::Local, Self::Nfs, Self::Cifs, Self::Immutable]
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| format!("`{name}` is none of local, nfs, cifs, immutable"))
    }
}

/// A directory that may hold images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// `repositories.id`.
    pub id: i64,
    /// Its absolute path, without symbolic links at the time it was added.
    pub path: PathBuf,
    /// Its kind.
    pub kind: RepositoryKind,
}

/// An absolute path without symbolic links, as text: what the catalog stores.
pub(super) fn canonical(path: &Path) -> Result<String> {
    let found = path
        .canonicalize()
        .map_err(|e| Error::io(path.display().to_string(), e))?
        .into_os_string();
    found.into_string().map_err(|raw| {
        Error::Invalid(format!(
            "{}: the path is not UTF-8",
            Path::new(&raw).display()
        ))
    })
}

/// The same of a directory.
pub(super) fn canonical_directory(path: &Path) -> Result<String> {
    let found = canonical(path)?;
    if !Path::new(&found).is_dir() {
        return Err(Error::NotADirectory { what: found });
    }
    Ok(found)
}

/// Records a repository, or changes its kind where one is given; its id.
pub(super) fn record(
    connection: &Connection,
    path: &str,
    kind: Option<RepositoryKind>,
) -> Result<i64> {
    let known: Option<(i64, String)> = connection
        .prepare_cached("SELECT id, kind FROM repositories WHERE path = ?1")?
        .query_row([path], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match known {
        Some((id, known)) => {
            if let Some(kind) = kind.filter(|kind| kind.name() != known) {
                connection.execute(
                    "UPDATE repositories SET kind = ?2 WHERE id = ?1",
                    (id, kind.name()),
                )?;
            }
            Ok(id)
        }
        None => {
            let kind = kind.unwrap_or_else(|| RepositoryKind::of(Path::new(path)));
            connection.execute(
                "INSERT INTO repositories (path, kind) VALUES (?1, ?2)",
                (path, kind.name()),
            )?;
            Ok(connection.last_insert_rowid())
        }
    }
}

impl Catalog {
    /// The recorded repositories, by path.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn repositories(&self) -> Result<Vec<Repository>> {
        self.rows(
            "SELECT id, path, kind FROM repositories ORDER BY path",
            [],
            |row| {
                let kind: String = row.get(2)?;
                Ok(Repository {
                    id: row.get(0)?,
                    path: PathBuf::from(row.get::<_, String>(1)?),
                    kind: kind.parse().unwrap_or(RepositoryKind::Local),
                })
            },
        )
    }

    /// Records a directory as a repository; its kind is found by `statfs` where
    /// it is not given. Recording it again changes its kind where one is given.
    ///
    /// # Errors
    /// It is not there or no directory; [`Error::Catalog`].
    pub fn add_repository(&self, path: &Path, kind: Option<RepositoryKind>) -> Result<Repository> {
        let path = canonical_directory(path)?;
        self.write(|connection| record(connection, &path, kind))?;
        self.repositories()?
            .into_iter()
            .find(|repository| repository.path == Path::new(&path))
            .ok_or_else(|| Error::not_found(format!("repository {path}")))
    }

    /// Refuses a repository that is recorded as one on the network and is on a
    /// file system of this host now: it is the empty folder that it is mounted
    /// on.
    pub(super) fn refuse_unmounted(&self, path: &str) -> Result<()> {
        use RepositoryKind::{Cifs, Nfs};
        let repositories = self.repositories()?;
        let Some(Repository { kind, .. }) = repositories
            .iter()
            .find(|repository| repository.path == Path::new(path))
        else {
            return Ok(());
        };
        let remote = |kind| matches!(kind, Nfs | Cifs);
        if remote(*kind) && !remote(RepositoryKind::of(Path::new(path))) {
            return Err(Error::Invalid(format!(
                "{path}: is recorded as {0}, and is on a local file system now: it is not mounted; \
                 mount it, or scan with `--kind local` if it has moved to this host for good \
                 (`--kind {0}` if it is {0} all the same)",
                kind.name()
            )));
        }
        Ok(())
    }

    /// Removes a repository's row. It need not be there any more.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`] while VMs are recorded in it.
    pub fn remove_repository(&self, path: &Path) -> Result<()> {
        // As recorded, or as it resolves now.
        let resolved = path.canonicalize().ok();
        let given = Some(path.to_owned());
        let names: Vec<String> = [given, resolved]
            .into_iter()
            .flatten()
            .filter_map(|path| path.into_os_string().into_string().ok())
            .collect();
        self.write(|connection| {
            for name in &names {
                let id: Option<i64> = connection
                    .query_row(
                        "SELECT id FROM repositories WHERE path = ?1",
                        [name],
                        |row| row.get(0),
                    )
                    .optional()?;
                let Some(id) = id else { continue };
                let vm: Option<(String, i64)> = connection
                    .query_row(
                        "SELECT vm_name, count(*) OVER () FROM vm_backup_contexts
                         WHERE repository_id = ?1 ORDER BY vm_name LIMIT 1",
                        [id],
                        |row| Ok((row.get(0)?, row.get(1)?)),
                    )
                    .optional()?;
                if let Some((vm, contexts)) = vm {
                    return Err(Error::Invalid(format!(
                        "{name}: {contexts} VM contexts are recorded in this repository (first \
                         of them {vm}); remove them first: `sendense catalog remove --vm NAME`"
                    )));
                }
                connection.execute("DELETE FROM repositories WHERE id = ?1", [id])?;
                return Ok(());
            }
            Err(Error::not_found(format!("repository {}", path.display())))
        })
    }
}
