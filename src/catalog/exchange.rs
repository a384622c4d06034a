//! The catalog as JSON, out and in: for what only the hub knows of its VMs and
//! disks, and for moving a catalog.
//!
//! Importing merges: what the document says is taken over, what it leaves out
//! stays. All of it is imported, or nothing.

use super::json::At;
use super::shapes::{self, Backup, VmContext, VmDisks};
use super::{Catalog, relations, repository};
use crate::error::{Error, Result};
use rusqlite::{Connection, OptionalExtension};
use serde::Serialize;
use serde_json::Value;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::Path;

/// No catalog is larger; a document is held in memory while it is imported.
const MAX_DOCUMENT: u64 = 1 << 30;
const DISK_STATES: &[&str] = &[
    "pending",
    "started",
    "in_progress",
    "completed",
    "failed",
    "missing",
];
const BACKUP_STATES: &[&str] = &["started", "in_progress", "completed", "failed"];
/// No disk is larger, in gigabytes.
const MAX_GB: f64 = 1e12;

/// What was imported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ImportSummary {
    pub repositories: usize,
    pub vm_contexts: usize,
    pub vm_disks: usize,
    pub backups: usize,
    pub backup_disks: usize,
}

#[derive(Serialize)]
struct Document {
    repositories: Vec<RepositoryShape>,
    vm_contexts: Vec<VmContext>,
    disks: Vec<VmDisks>,
    backups: Vec<Backup>,
}

#[derive(Serialize)]
struct RepositoryShape {
    id: String,
    path: String,
    kind: String,
}

impl Catalog {
    /// Writes the whole catalog as one JSON document.
    ///
    /// # Errors
    /// [`Error::Catalog`]; `to` cannot be written.
    pub fn export(&self, to: &mut dyn Write) -> Result<()> {
        let document = self.read(|connection| {
            // One state of the database for all that is read.
            let snapshot = connection.unchecked_transaction()?;
            let repositories = snapshot
                .prepare("SELECT CAST(id AS TEXT), path, kind FROM repositories ORDER BY id")?
                .query_map([], |row| {
                    Ok(RepositoryShape {
                        id: row.get(0)?,
                        path: row.get(1)?,
                        kind: row.get(2)?,
                    })
                })?
                .collect::<rusqlite::Result<_>>()?;
            Ok(Document {
                repositories,
                vm_contexts: shapes::vm_contexts(&snapshot)?,
                disks: shapes::vm_disks(&snapshot)?,
                backups: shapes::backups(&snapshot)?,
            })
        })?;
        let fail = |e: std::io::Error| Error::io("the export", e);
        serde_json::to_writer_pretty(&mut *to, &document).map_err(|e| fail(e.into()))?;
        to.write_all(b"\n").and_then(|()| to.flush()).map_err(fail)
    }

    /// Merges a JSON document, in the shapes of the API, into the catalog.
    /// `accept` is asked about each of its repositories.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the field; what `accept` says;
    /// [`Error::Catalog`]. Then nothing was imported.
    pub fn import(
        &self,
        from: impl Read,
        accept: &dyn Fn(&Path) -> Result<()>,
    ) -> Result<ImportSummary> {
        let mut text = Vec::new();
        from.take(MAX_DOCUMENT)
            .read_to_end(&mut text)
            .map_err(|e| Error::io("the document", e))?;
        let document: Value = serde_json::from_slice(&text)
            .map_err(|e| Error::Invalid(format!("the document is not JSON: {e}")))?;
        let root = At::root(&document)?;
        if !["repositories", "vm_contexts", "disks", "backups"]
            .iter()
            .any(|name| root.field(name).is_some())
        {
            return Err(root
                .fail("has none of the fields `repositories`, `vm_contexts`, `disks`, `backups`"));
        }
        self.write(|connection| {
            let mut import = Import {
                connection,
                accept,
                repositories: HashMap::new(),
                summary: ImportSummary::default(),
            };
            import.repositories(&root)?;
            import.vm_contexts(&root)?;
            import.vm_disks(&root)?;
            import.backups(&root)?;
            relations::rebuild(connection)?;
            Ok(import.summary)
        })
    }
}

struct Import<'a> {
    connection: &'a Connection,
    /// Whether a directory may be a repository.
    accept: &'a dyn Fn(&Path) -> Result<()>,
    /// Ids in the document, and ours.
    repositories: HashMap<String, i64>,
    summary: ImportSummary,
}

/// A disk as the document describes it.
struct ImportedDisk<'a> {
    at: &'a At<'a>,
    job: &'a str,
    disk_index: u32,
    path: Option<String>,
}

impl Import<'_> {
    fn repositories(&mut self, root: &At<'_>) -> Result<()> {
        for item in root.objects("repositories")? {
            let at = item.required("path")?;
            let path = at.path()?;
            (self.accept)(Path::new(&path)).map_err(|e| at.fail(e))?;
            let kind = item.field("kind").map(|at| {
                at.text()?
                    .parse::<super::RepositoryKind>()
                    .map_err(|why| at.fail(why))
            });
            let kind = kind.transpose()?;
            let given = item.field("id").map(|at| at.id()).transpose()?;
            let wanted = given.as_ref().and_then(|id| id.parse::<i64>().ok());
            let known = self
                .connection
                .prepare_cached("SELECT 1 FROM repositories WHERE path = ?1")?
                .exists([&path])?;
            let id = repository::record(self.connection, &path, kind)?;
            let id = match wanted.filter(|wanted| !known && *wanted > 0 && *wanted != id) {
                // A new one keeps its number where that is free.
                Some(wanted) => {
                    let moved = self.connection.execute(
                        "UPDATE OR IGNORE repositories SET id = ?2 WHERE id = ?1",
                        (id, wanted),
                    )?;
                    if moved > 0 { wanted } else { id }
                }
                None => id,
            };
            if let Some(given) = given {
                self.repositories.insert(given, id);
            }
            self.summary.repositories = self.summary.repositories.saturating_add(1);
        }
        Ok(())
    }

    fn repository(&self, at: &At<'_>) -> Result<i64> {
        let given = at.id()?;
        if let Some(id) = self.repositories.get(&given) {
            return Ok(*id);
        }
        // A document without repositories speaks of those that are recorded.
        let known: Option<i64> = self
            .connection
            .query_row(
                "SELECT id FROM repositories WHERE CAST(id AS TEXT) = ?1",
                [&given],
                |row| row.get(0),
            )
            .optional()?;
        known
            .filter(|_| self.repositories.is_empty())
            .ok_or_else(|| {
                at.fail(format!(
                    "there is no repository `{given}`; list it in `repositories`"
                ))
            })
    }

    fn vm_contexts(&mut self, root: &At<'_>) -> Result<()> {
        for item in root.objects("vm_contexts")? {
            let repository = item.field("repository_id").map(|at| self.repository(&at));
            self.connection
                .prepare_cached(
                    "INSERT INTO vm_backup_contexts (context_id, vm_name, repository_id, vm_path,
                         vcenter_host, datacenter, current_status, cpu_count, memory_mb, os_type,
                         power_state, created_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, coalesce(?7, 'ready'), ?8, ?9, ?10, ?11,
                         coalesce(?12, strftime('%Y-%m-%dT%H:%M:%SZ', 'now')))
                     ON CONFLICT (context_id) DO UPDATE SET
                         vm_name = excluded.vm_name,
                         repository_id = coalesce(excluded.repository_id, repository_id),
                         vm_path = coalesce(excluded.vm_path, vm_path),
                         vcenter_host = coalesce(excluded.vcenter_host, vcenter_host),
                         datacenter = coalesce(excluded.datacenter, datacenter),
                         current_status = coalesce(?7, current_status),
                         cpu_count = coalesce(excluded.cpu_count, cpu_count),
                         memory_mb = coalesce(excluded.memory_mb, memory_mb),
                         os_type = coalesce(excluded.os_type, os_type),
                         power_state = coalesce(excluded.power_state, power_state),
                         created_at = coalesce(?12, created_at)",
                )?
                .execute((
                    item.required("context_id")?.text()?,
                    item.required("vm_name")?.folder_name()?,
                    repository.transpose()?,
                    item.text_field("vm_path")?,
                    item.text_field("vcenter_host")?,
                    item.text_field("datacenter")?,
                    item.text_field("current_status")?,
                    item.whole_field("cpu_count")?,
                    item.whole_field("memory_mb")?,
                    item.text_field("os_type")?,
                    item.text_field("power_state")?,
                    item.time_field("created_at")?,
                ))?;
            self.summary.vm_contexts = self.summary.vm_contexts.saturating_add(1);
        }
        Ok(())
    }

    /// The contexts that an object speaks of: the one it names, or all of its VM.
    fn contexts(&self, item: &At<'_>, id_field: &str) -> Result<Vec<String>> {
        let (at, sql) = match item.field(id_field) {
            Some(at) => (
                at,
                "SELECT context_id FROM vm_backup_contexts WHERE context_id = ?1",
            ),
            None => (
                item.required("vm_name")?,
                "SELECT context_id FROM vm_backup_contexts WHERE vm_name = ?1 ORDER BY context_id",
            ),
        };
        let name = at.text()?;
        let found: Vec<String> = self
            .connection
            .prepare_cached(sql)?
            .query_map([&name], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        if found.is_empty() {
            return Err(at.fail(format!("there is no VM context `{name}`")));
        }
        Ok(found)
    }

    fn vm_disks(&mut self, root: &At<'_>) -> Result<()> {
        // One VM's answer of the API as it is, or a list of such.
        let vms = match root.field("disks") {
            Some(at) if at.is_object() => vec![at],
            _ => root.objects("disks")?,
        };
        for vm in vms {
            for context in self.contexts(&vm, "context_id")? {
                for disk in vm.objects("disks")? {
                    self.connection
                        .prepare_cached(
                            "INSERT INTO vm_disks (context_id, disk_index, vmware_disk_key, label,
                                 size_gb, datastore, path) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                             ON CONFLICT (context_id, disk_index) DO UPDATE SET
                                 vmware_disk_key =
                                     coalesce(excluded.vmware_disk_key, vmware_disk_key),
                                 label = coalesce(excluded.label, label),
                                 size_gb = coalesce(excluded.size_gb, size_gb),
                                 datastore = coalesce(excluded.datastore, datastore),
                                 path = coalesce(excluded.path, path)",
                        )?
                        .execute((
                            &context,
                            disk.required("disk_index")?.whole::<u32>()?,
                            disk.whole_field("vmware_disk_key")?,
                            disk.text_field("label")?,
                            disk.number_field("size_gb", MAX_GB)?,
                            disk.text_field("datastore")?,
                            disk.text_field("path")?,
                        ))?;
                    self.summary.vm_disks = self.summary.vm_disks.saturating_add(1);
                }
            }
        }
        Ok(())
    }

    fn backups(&mut self, root: &At<'_>) -> Result<()> {
        let items = root.objects("backups")?;
        for item in &items {
            let id = self.backup(item)?;
            for disk in item.objects("disks")? {
                let path = disk.field("qcow2_path").map(|at| at.path()).transpose()?;
                self.disk(&ImportedDisk {
                    at: &disk,
                    job: &id,
                    disk_index: disk.required("disk_index")?.whole()?,
                    path,
                })?;
                self.summary.backup_disks = self.summary.backup_disks.saturating_add(1);
            }
            self.summary.backups = self.summary.backups.saturating_add(1);
        }
        // A parent may stand behind its child.
        for item in &items {
            let Some(at) = item.field("parent_backup_id") else {
                continue;
            };
            let (id, parent) = (item.required("backup_id")?.text()?, at.text()?);
            let known = self
                .connection
                .prepare_cached("SELECT 1 FROM backup_jobs WHERE id = ?1")?
                .exists([&parent])?;
            if !known || parent == id {
                return Err(at.fail(format!("`{parent}` is no other backup of the catalog")));
            }
            self.connection
                .prepare_cached("UPDATE backup_jobs SET parent_backup_id = ?2 WHERE id = ?1")?
                .execute((id, parent))?;
        }
        Ok(())
    }

    fn backup(&mut self, item: &At<'_>) -> Result<String> {
        let at = item.required("backup_id")?;
        let id = at.folder_name()?;
        if id == "latest" {
            return Err(at.fail("`latest` is the name of a link in the tree"));
        }
        let recorded: Option<String> = self
            .connection
            .prepare_cached("SELECT vm_backup_context_id FROM backup_jobs WHERE id = ?1")?
            .query_row([&id], |row| row.get(0))
            .optional()?;
        let context = match (item.field("vm_context_id"), recorded) {
            (None, Some(recorded)) => recorded,
            _ => {
                let mut contexts = self.contexts(item, "vm_context_id")?;
                match (contexts.pop(), contexts.is_empty()) {
                    (Some(context), true) => context,
                    _ => {
                        return Err(item.fail(
                            "several contexts have this `vm_name`; the field `vm_context_id` is \
                             needed",
                        ));
                    }
                }
            }
        };
        self.connection
            .prepare_cached(
                "INSERT INTO backup_jobs (id, vm_backup_context_id, backup_type, status,
                     progress_percent, bytes_transferred, total_bytes, error_message, recorded_by,
                     created_at, completed_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, coalesce(?9, 'hub'), ?10, ?11)
                 ON CONFLICT (id) DO UPDATE SET
                     vm_backup_context_id = excluded.vm_backup_context_id,
                     backup_type = excluded.backup_type,
                     status = excluded.status,
                     progress_percent = coalesce(excluded.progress_percent, progress_percent),
                     bytes_transferred = coalesce(excluded.bytes_transferred, bytes_transferred),
                     total_bytes = coalesce(excluded.total_bytes, total_bytes),
                     error_message = excluded.error_message,
                     recorded_by = excluded.recorded_by,
                     created_at = excluded.created_at,
                     completed_at = coalesce(excluded.completed_at, completed_at)",
            )?
            .execute((
                &id,
                context,
                item.required("backup_type")?
                    .word(&["full", "incremental"])?,
                item.required("status")?.word(BACKUP_STATES)?,
                item.number_field("progress_percent", 100.0)?,
                item.whole_field("bytes_transferred")?,
                item.whole_field("total_bytes")?,
                item.text_field("error_message")?,
                item.field("recorded_by")
                    .map(|at| at.word(&["hub", "scan"]))
                    .transpose()?,
                item.required("created_at")?.time()?,
                item.time_field("completed_at")?,
            ))?;
        Ok(id)
    }

    fn disk(&self, disk: &ImportedDisk<'_>) -> Result<()> {
        let format = disk.at.field("format").map(|at| {
            // As `add`: what is not known cannot be read either.
            at.word(super::record::FORMATS)
        });
        let format = format.transpose()?;
        let id = match (self.row_of(disk)?, &format) {
            (Some(id), Some(format)) => self.row_with_format(id, format)?,
            (Some(id), None) => id,
            (None, _) => {
                self.connection
                    .prepare_cached(
                        "INSERT INTO backup_disks (backup_job_id, disk_index, qcow2_path, status)
                         VALUES (?1, ?2, ?3, 'missing')",
                    )?
                    .execute((disk.job, disk.disk_index, &disk.path))?;
                self.connection.last_insert_rowid()
            }
        };
        let at = disk.at;
        let virtual_size = at.whole_field("virtual_size")?;
        let size_gb = at
            .number_field("size_gb", MAX_GB)?
            .or(virtual_size.map(super::found::gigabytes));
        self.connection
            .prepare_cached(
                "UPDATE backup_disks SET
                     status = ?2,
                     qcow2_path = coalesce(?3, qcow2_path),
                     format = coalesce(?4, format),
                     size_gb = coalesce(?5, size_gb),
                     virtual_size = coalesce(?6, virtual_size),
                     vmware_disk_key = coalesce(?7, vmware_disk_key),
                     label = coalesce(?8, label),
                     disk_change_id = coalesce(?9, disk_change_id),
                     bytes_transferred = coalesce(?10, bytes_transferred),
                     backing_path = coalesce(?11, backing_path),
                     error_message = ?12
                 WHERE id = ?1",
            )?
            .execute((
                id,
                at.required("status")?.word(DISK_STATES)?,
                &disk.path,
                format,
                size_gb,
                virtual_size,
                at.whole_field("vmware_disk_key")?,
                at.text_field("label")?,
                at.text_field("disk_change_id")?,
                at.whole_field("bytes_transferred")?,
                at.text_field("backing_path")?,
                at.text_field("error_message")?,
            ))?;
        Ok(())
    }

    /// This row if its format is the given one. Otherwise another one, and it is
    /// gone for good: the same file in another format is another disk.
    fn row_with_format(&self, id: i64, format: &str) -> Result<i64> {
        let known: String = self
            .connection
            .prepare_cached("SELECT format FROM backup_disks WHERE id = ?1")?
            .query_row([id], |row| row.get(0))?;
        if known == format {
            return Ok(id);
        }
        // What the image said of itself, it said in the other format: the next
        // scan asks it again.
        self.connection
            .prepare_cached(
                "INSERT INTO backup_disks (backup_job_id, disk_index, vmware_disk_key, label,
                     qcow2_path, format, disk_change_id, bytes_transferred, status)
                 SELECT backup_job_id, disk_index, vmware_disk_key, label, qcow2_path, ?2,
                     disk_change_id, bytes_transferred, 'missing'
                 FROM backup_disks WHERE id = ?1",
            )?
            .execute((id, format))?;
        let new = self.connection.last_insert_rowid();
        self.connection
            .prepare_cached("DELETE FROM backup_disks WHERE id = ?1")?
            .execute([id])?;
        Ok(new)
    }

    /// The row that the disk has already; room is made where another one is in
    /// its place.
    fn row_of(&self, disk: &ImportedDisk<'_>) -> Result<Option<i64>> {
        let by_path: Option<(i64, String)> = self
            .connection
            .prepare_cached(
                "SELECT id, backup_job_id FROM backup_disks
                 WHERE qcow2_path = ?1 AND (status <> 'missing'
                     OR (backup_job_id = ?2 AND disk_index = ?3))
                 ORDER BY status = 'missing', id DESC LIMIT 1",
            )?
            .query_row((&disk.path, disk.job, disk.disk_index), |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let in_place: Option<(i64, Option<String>)> = self
            .connection
            .prepare_cached(
                "SELECT id, qcow2_path FROM backup_disks
                 WHERE backup_job_id = ?1 AND disk_index = ?2 AND status <> 'missing'",
            )?
            .query_row((disk.job, disk.disk_index), |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let same_image = |known: &Option<String>| match (known, &disk.path) {
            (Some(known), Some(path)) => known == path,
            _ => true,
        };
        match (by_path, in_place) {
            (None, Some((id, known))) if same_image(&known) => Ok(Some(id)),
            (Some((id, _)), Some((other, _))) if id == other => Ok(Some(id)),
            (by_path, in_place) => {
                if let Some((other, _)) = in_place {
                    self.connection.execute(
                        "UPDATE backup_disks SET status = 'missing' WHERE id = ?1",
                        [other],
                    )?;
                }
                let Some((id, job)) = by_path else {
                    return Ok(None);
                };
                // The hub knows better than a scan to which backup it belongs.
                self.connection.execute(
                    "UPDATE backup_disks SET backup_job_id = ?2, disk_index = ?3 WHERE id = ?1",
                    (id, disk.job, disk.disk_index),
                )?;
                self.connection.execute(
                    "DELETE FROM backup_jobs WHERE id = ?1 AND recorded_by = 'scan' AND NOT EXISTS
                         (SELECT 1 FROM backup_disks WHERE backup_job_id = ?1)",
                    [job],
                )?;
                Ok(Some(id))
            }
        }
    }
}
