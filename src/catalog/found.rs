//! The rows of backups that were found, not told by the hub: what an image's
//! header makes of its row, and how a backup and its context come to be.

use super::identity::ImageIdentity;
use super::shapes::rfc3339;
use crate::error::{Error, Result};
use crate::image::chain::{self, Probe};
use rusqlite::{Connection, OptionalExtension};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// What a row says of its image.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
    pub(super) status: String,
    pub(super) error: Option<String>,
    pub(super) virtual_size: Option<i64>,
    pub(super) backing: Option<String>,
    pub(super) identity: Option<ImageIdentity>,
}

/// What an examined image is.
pub(super) type Examined = std::result::Result<Probe, String>;

/// Reads what an image says of itself, in the format given.
pub(super) fn examine(path: &Path, format: &str) -> Examined {
    chain::probe(path, format).map_err(|e| match e {
        // The path is told beside it.
        Error::ImageInvalid { reason, .. } | Error::Unsupported { reason, .. } => reason,
        Error::Io { source, .. } => source.to_string(),
        other => other.to_string(),
    })
}

/// The state of an image that was examined. The backing file's name is made
/// absolute; a name that is no path (`nbd://…`) is kept as it is.
pub(super) fn describe(
    examined: &Examined,
    real: &Path,
) -> (&'static str, Option<String>, Option<i64>, Option<String>) {
    match examined {
        Err(reason) => ("failed", Some(reason.clone()), None, None),
        Ok(probe) => {
            let status = if probe.being_written {
                "in_progress"
            } else {
                "completed"
            };
            let backing = probe
                .backing_file
                .as_ref()
                .map(|name| absolute(&name.to_string_lossy(), real));
            (
                status,
                None,
                i64::try_from(probe.virtual_size).ok(),
                backing,
            )
        }
    }
}

fn absolute(backing: &str, image: &Path) -> String {
    // QEMU: a colon before the first slash makes it a protocol, not a path.
    let before_slash = backing.split('/').next().unwrap_or_default();
    let (backing, is_path) = match backing.strip_prefix("file:") {
        Some(path) => (path, true),
        None => (backing, !before_slash.contains(':')),
    };
    if !is_path {
        return backing.to_owned();
    }
    let joined = image.parent().unwrap_or(Path::new("/")).join(backing);
    let found = joined.canonicalize().unwrap_or_else(|_| {
        // Gone: at least without `..`, as the catalog may still know it.
        let mut plain = PathBuf::new();
        for part in joined.components() {
            match part {
                std::path::Component::ParentDir => {
                    plain.pop();
                }
                other => plain.push(other),
            }
        }
        plain
    });
    found.to_string_lossy().into_owned()
}

/// The runs of a context: first stamp and backup id, and the disks they have.
pub(super) type Runs = BTreeMap<(i64, String), HashSet<u32>>;

/// Bytes as the API's gigabytes (2^30).
pub(super) fn gigabytes(bytes: i64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

pub(super) fn insert(
    connection: &Connection,
    job: &str,
    disk_index: u32,
    path: &str,
    format: &str,
    state: &State,
) -> Result<()> {
    let identity = state.identity;
    connection
        .prepare_cached(
            "INSERT INTO backup_disks (backup_job_id, disk_index, qcow2_path, format, status,
                 error_message, virtual_size, size_gb, backing_path, file_inode, file_size,
                 file_mtime_ns)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute((
            job,
            disk_index,
            path,
            format,
            &state.status,
            &state.error,
            state.virtual_size,
            state.virtual_size.map(gigabytes),
            &state.backing,
            identity.map(|i| i.inode_column()),
            identity.map(|i| i.size_column()),
            identity.map(|i| i.mtime_column()),
        ))?;
    Ok(())
}

/// Records an image that was examined and is in order.
pub(super) fn insert_examined(
    connection: &Connection,
    job: &str,
    disk_index: u32,
    path: &str,
    format: &str,
    (examined, identity): (&Examined, ImageIdentity),
) -> Result<()> {
    let (status, error, virtual_size, backing) = describe(examined, Path::new(path));
    let state = State {
        status: status.into(),
        error,
        virtual_size,
        backing,
        identity: Some(identity),
    };
    insert(connection, job, disk_index, path, format, &state)
}

/// Records a backup that a scan, or the administrator, has found.
pub(super) fn insert_backup(
    connection: &Connection,
    id: &str,
    context: &str,
    time: i64,
) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO backup_jobs (id, vm_backup_context_id, backup_type, status, recorded_by,
                 created_at) VALUES (?1, ?2, 'full', 'in_progress', 'scan', ?3)",
        )?
        .execute((id, context, rfc3339(time)?))?;
    Ok(())
}

/// `backup-<vm>-<seconds>`, with a number behind it where that is taken.
pub(super) fn free_backup_id(connection: &Connection, vm: &str, time: i64) -> Result<String> {
    let plain = format!("backup-{vm}-{time}");
    let mut taken = connection.prepare_cached("SELECT 1 FROM backup_jobs WHERE id = ?1")?;
    let mut id = plain.clone();
    let mut number: u64 = 1;
    while taken.exists([&id])? {
        number = number.saturating_add(1);
        id = format!("{plain}-{number}");
    }
    Ok(id)
}

/// The context that a folder of a repository stands for; recorded if need be.
/// A copy of the folder in another repository is another context.
pub(super) fn context(
    connection: &Connection,
    repository: i64,
    folder: &str,
    vm: &str,
    time: i64,
) -> Result<String> {
    let copy = format!("{folder}@{repository}");
    for id in [folder, &copy] {
        let known: Option<Option<i64>> = connection
            .prepare_cached("SELECT repository_id FROM vm_backup_contexts WHERE context_id = ?1")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        match known {
            Some(Some(known)) if known == repository => {}
            Some(Some(_)) => continue,
            Some(None) => {
                connection.execute(
                    "UPDATE vm_backup_contexts SET repository_id = ?2 WHERE context_id = ?1",
                    (id, repository),
                )?;
            }
            None => {
                connection
                    .prepare_cached(
                        "INSERT INTO vm_backup_contexts
                             (context_id, vm_name, repository_id, created_at)
                         VALUES (?1, ?2, ?3, ?4)",
                    )?
                    .execute((id, vm, repository, rfc3339(time)?))?;
            }
        }
        return Ok(id.to_owned());
    }
    Err(crate::Error::Catalog(format!(
        "the context {folder} is recorded in another repository"
    )))
}

pub(super) fn runs(connection: &Connection, context: &str) -> Result<Runs> {
    let mut statement = connection.prepare_cached(
        "SELECT CAST(strftime('%s', j.created_at) AS INTEGER), j.id, d.disk_index
         FROM backup_jobs j
         LEFT JOIN backup_disks d ON d.backup_job_id = j.id AND d.status <> 'missing'
         WHERE j.vm_backup_context_id = ?1",
    )?;
    let mut runs = Runs::new();
    let mut rows = statement.query([context])?;
    while let Some(row) = rows.next()? {
        let disks = runs.entry((row.get(0)?, row.get(1)?)).or_default();
        disks.extend(row.get::<_, Option<u32>>(2)?);
    }
    Ok(runs)
}

/// What follows for a backup that the hub says nothing of from its disks: it is
/// complete when nothing writes to it and at least one image can be read. With
/// no image left it stays what it was.
pub(super) fn settle_backup(connection: &Connection, job: &str) -> Result<()> {
    connection
        .prepare_cached(
            "UPDATE backup_jobs SET status = new.status, completed_at = new.completed_at
             FROM (SELECT
                 CASE WHEN max(status IN ('pending', 'started', 'in_progress')) THEN 'in_progress'
                      WHEN max(status = 'completed') THEN 'completed'
                      ELSE 'failed' END AS status,
                 CASE WHEN max(status IN ('pending', 'started', 'in_progress')) THEN NULL
                      ELSE strftime('%Y-%m-%dT%H:%M:%SZ',
                          max(file_mtime_ns) FILTER (WHERE status = 'completed') / 1000000000,
                          'unixepoch') END AS completed_at
                 FROM backup_disks WHERE backup_job_id = ?1 AND status <> 'missing'
                 HAVING count(*) > 0) AS new
             WHERE id = ?1 AND recorded_by = 'scan'",
        )?
        .execute([job])?;
    // A run of which nothing was ever complete, and nothing is left.
    connection
        .prepare_cached(
            "DELETE FROM backup_jobs WHERE id = ?1 AND recorded_by = 'scan'
             AND NOT EXISTS (SELECT 1 FROM backup_disks WHERE backup_job_id = ?1)",
        )?
        .execute([job])?;
    Ok(())
}
