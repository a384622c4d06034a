//! Recording one image by hand, and taking rows out. Images themselves are never
//! touched.

use super::Catalog;
use super::found;
use super::identity::ImageIdentity;
use super::{layout, relations, repository};
use crate::error::{Error, Result};
use rusqlite::{Connection, OptionalExtension};
use std::path::{Path, PathBuf};

/// The image formats that are read. Never guessed: `qcow2` where not said.
pub(super) const FORMATS: &[&str] = &["qcow2", "raw"];

/// An image to record.
#[derive(Debug, Clone)]
pub struct NewImage {
    /// The VM's name.
    pub vm: String,
    /// Which of its disks.
    pub disk_index: u32,
    /// The image; inside a repository.
    pub image: PathBuf,
    /// The backup it belongs to; `backup-<vm>-<seconds>` where not said.
    pub backup: Option<String>,
    /// When it was taken, seconds since 1970; the image's time where not said.
    pub time: Option<i64>,
    /// The VM's context; needed where several have its name.
    pub context: Option<String>,
    /// `qcow2` or `raw`.
    pub format: String,
}

/// What was taken out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Removed {
    pub vm_contexts: u32,
    pub backups: u32,
    pub disks: u32,
    /// Backups that stay and have lost their parent by this.
    pub orphans: u32,
}

impl Catalog {
    /// Records one image, which must lie in one of `repositories` or in a
    /// recorded repository; the backup's id.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::ImageInvalid`], [`Error::Catalog`].
    pub fn add_image(&self, new: &NewImage, repositories: &[PathBuf]) -> Result<String> {
        if !layout::is_folder_name(&new.vm) {
            return Err(Error::Invalid(format!(
                "`{}` cannot be a VM's name",
                new.vm
            )));
        }
        if !FORMATS.contains(&new.format.as_str()) {
            return Err(Error::Invalid(format!(
                "the format `{}` is none of {}",
                new.format,
                FORMATS.join(", ")
            )));
        }
        let path = repository::canonical(&new.image)?;
        let metadata = std::fs::symlink_metadata(&path).map_err(|e| Error::io(&*path, e))?;
        if !metadata.is_file() {
            return Err(Error::image(Path::new(&path), "is not a regular file"));
        }
        let home = self.repository_of(&path, repositories)?;
        let examined = found::examine(Path::new(&path), &new.format);
        match &examined {
            Err(reason) => return Err(Error::image(Path::new(&path), reason)),
            Ok(probe) if probe.being_written => {
                return Err(Error::image(Path::new(&path), "is being written by QEMU"));
            }
            Ok(_) => {}
        }
        let identity = ImageIdentity::of(&metadata);
        let time = new.time.unwrap_or(identity.mtime_seconds);
        self.write(|connection| {
            let home = repository::record(connection, &home, None)?;
            let backup = backup_for(connection, new, home, time)?;
            refuse_taken(connection, new, &backup, &path)?;
            let image = (&examined, identity);
            found::insert_examined(
                connection,
                &backup,
                new.disk_index,
                &path,
                &new.format,
                image,
            )?;
            found::settle_backup(connection, &backup)?;
            relations::rebuild(connection)?;
            Ok(backup)
        })
    }

    /// The innermost repository that an image lies in.
    fn repository_of(&self, image: &str, configured: &[PathBuf]) -> Result<String> {
        let configured = configured
            .iter()
            .filter_map(|path| path.canonicalize().ok());
        let recorded = self
            .repositories()?
            .into_iter()
            .map(|repository| repository.path);
        configured
            .chain(recorded)
            .filter(|path| Path::new(image).starts_with(path))
            .filter_map(|path| path.into_os_string().into_string().ok())
            .max_by_key(String::len)
            .ok_or_else(|| {
                let folder = Path::new(image).parent().unwrap_or(Path::new("/"));
                Error::Invalid(format!(
                    "{image}: lies in no repository; record its folder first: \
                     `sendense catalog repository add {}`",
                    folder.display()
                ))
            })
    }

    /// Takes one backup out.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Catalog`].
    pub fn remove_backup(&self, id: &str) -> Result<Removed> {
        self.write(|connection| {
            let removed = count(connection, "j.id = ?1", &[id])?;
            if connection.execute("DELETE FROM backup_jobs WHERE id = ?1", [id])? == 0 {
                return Err(Error::not_found(format!("backup {id}")));
            }
            relations::rebuild(connection)?;
            Ok(removed)
        })
    }

    /// Takes a VM out, with all its backups and all that is known of it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Catalog`].
    pub fn remove_vm(&self, name: &str) -> Result<Removed> {
        self.write(|connection| {
            let removed = count(
                connection,
                "j.vm_backup_context_id IN
                     (SELECT context_id FROM vm_backup_contexts WHERE vm_name = ?1)",
                &[name],
            )?;
            let vm_contexts =
                connection.execute("DELETE FROM vm_backup_contexts WHERE vm_name = ?1", [name])?;
            if vm_contexts == 0 {
                return Err(Error::not_found(format!("VM {name}")));
            }
            relations::rebuild(connection)?;
            Ok(Removed {
                vm_contexts: u32::try_from(vm_contexts).unwrap_or(u32::MAX),
                ..removed
            })
        })
    }

    /// Takes out the disks whose images are gone, and the backups that have no
    /// other disk.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn remove_gone(&self) -> Result<Removed> {
        // Those with a missing disk, and no other: not those of which the hub
        // has told no disk yet.
        const EMPTIED: &str = "EXISTS (SELECT 1 FROM backup_disks d
                 WHERE d.backup_job_id = j.id AND d.status = 'missing')
             AND NOT EXISTS (SELECT 1 FROM backup_disks d
                 WHERE d.backup_job_id = j.id AND d.status <> 'missing')";
        self.write(|connection| {
            let removed = count(connection, EMPTIED, &[])?;
            let sql = format!(
                "DELETE FROM backup_jobs WHERE id IN (SELECT j.id FROM backup_jobs j WHERE {EMPTIED})"
            );
            connection.execute(&sql, [])?;
            let others =
                connection.execute("DELETE FROM backup_disks WHERE status = 'missing'", [])?;
            relations::rebuild(connection)?;
            let others = u32::try_from(others).unwrap_or(u32::MAX);
            Ok(Removed { disks: removed.disks.saturating_add(others), ..removed })
        })
    }
}

/// What goes with the backups that fulfil a condition.
fn count(connection: &Connection, condition: &str, params: &[&str]) -> Result<Removed> {
    let sql = format!(
        "WITH doomed AS (SELECT j.id FROM backup_jobs j WHERE {condition})
         SELECT (SELECT count(*) FROM doomed),
                (SELECT count(*) FROM backup_disks WHERE backup_job_id IN doomed),
                (SELECT count(*) FROM backup_jobs
                 WHERE parent_backup_id IN doomed AND id NOT IN doomed)"
    );
    Ok(
        connection.query_row(&sql, rusqlite::params_from_iter(params), |row| {
            Ok(Removed {
                vm_contexts: 0,
                backups: row.get(0)?,
                disks: row.get(1)?,
                orphans: row.get(2)?,
            })
        })?,
    )
}

/// The backup that a new image belongs to; recorded if need be.
fn backup_for(connection: &Connection, new: &NewImage, home: i64, time: i64) -> Result<String> {
    let id = match &new.backup {
        Some(id) if layout::is_folder_name(id) && id != "latest" => id.clone(),
        Some(id) => return Err(Error::Invalid(format!("`{id}` cannot be a backup's id"))),
        None => format!("backup-{}-{time}", new.vm),
    };
    let known: Option<(String, String, i64)> = connection
        .query_row(
            "SELECT c.context_id, c.vm_name, CAST(strftime('%s', j.created_at) AS INTEGER)
             FROM backup_jobs j
             JOIN vm_backup_contexts c ON c.context_id = j.vm_backup_context_id
             WHERE j.id = ?1",
            [&id],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?;
    if let Some((context, vm, taken)) = known {
        if vm != new.vm || new.context.as_ref().is_some_and(|given| *given != context) {
            return Err(Error::Invalid(format!(
                "the backup {id} belongs to the VM {vm} (context {context})"
            )));
        }
        if new.time.is_some_and(|given| given != taken) {
            return Err(Error::Invalid(format!(
                "the backup {id} was taken at {}",
                super::shapes::rfc3339(taken)?
            )));
        }
        return Ok(id);
    }
    let context = match &new.context {
        Some(context) => context.clone(),
        None => {
            let mut contexts: Vec<String> = connection
                .prepare("SELECT context_id FROM vm_backup_contexts WHERE vm_name = ?1")?
                .query_map([&new.vm], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            match (contexts.pop(), contexts.is_empty()) {
                (None, _) => format!("ctx-{}", new.vm),
                (Some(context), true) => context,
                (Some(context), false) => {
                    return Err(Error::Invalid(format!(
                        "several contexts have the VM name {}; say which: `--context {context}`",
                        new.vm
                    )));
                }
            }
        }
    };
    let owner: Option<String> = connection
        .query_row(
            "SELECT vm_name FROM vm_backup_contexts WHERE context_id = ?1",
            [&context],
            |row| row.get(0),
        )
        .optional()?;
    match owner {
        Some(vm) if vm != new.vm => {
            return Err(Error::Invalid(format!(
                "the context {context} belongs to the VM {vm}"
            )));
        }
        Some(_) => {}
        None => {
            connection.execute(
                "INSERT INTO vm_backup_contexts (context_id, vm_name, repository_id, created_at)
                 VALUES (?1, ?2, ?3, ?4)",
                (&context, &new.vm, home, super::shapes::rfc3339(time)?),
            )?;
        }
    }
    found::insert_backup(connection, &id, &context, time)?;
    Ok(id)
}

fn refuse_taken(connection: &Connection, new: &NewImage, backup: &str, path: &str) -> Result<()> {
    let taken: Option<(String, u32, Option<String>)> = connection
        .query_row(
            "SELECT backup_job_id, disk_index, qcow2_path FROM backup_disks
             WHERE status <> 'missing'
               AND (qcow2_path = ?1 OR (backup_job_id = ?2 AND disk_index = ?3))
             ORDER BY qcow2_path = ?1 DESC LIMIT 1",
            (path, backup, new.disk_index),
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?;
    match taken {
        None => Ok(()),
        Some((owner, disk, image)) if image.as_deref() == Some(path) => Err(Error::Invalid(
            format!("{path}: is recorded already, as disk {disk} of the backup {owner}"),
        )),
        Some((owner, disk, image)) => Err(Error::Invalid(format!(
            "disk {disk} of the backup {owner} is recorded already{}",
            image.map(|image| format!(": {image}")).unwrap_or_default()
        ))),
    }
}
