//! What the tree asks. What it may see is said once, in the views
//! `shown_backups` and `shown_disks` of the schema.

use super::{Catalog, DiskRecord, Folder, identity};
use crate::error::Result;
use rusqlite::{OptionalExtension, Params, Row};
use std::path::PathBuf;

/// A VM's time is that of its newest backup; one that has none is not shown.
const VMS: &str = "SELECT v.id, v.name,
        (SELECT b.time FROM shown_backups b WHERE b.parent = v.id ORDER BY b.time DESC LIMIT 1)
            AS newest
    FROM folders v WHERE v.parent IS NULL AND newest IS NOT NULL";

const BACKUPS: &str = "SELECT id, name, time FROM shown_backups WHERE parent = ?1";

const DISKS: &str = "SELECT id, backup_id, vm_name, disk_index, path, format, virtual_size, time,
        folder, file_inode, file_size, file_mtime_ns FROM shown_disks";

fn folder(row: &Row<'_>) -> rusqlite::Result<Folder> {
    Ok(Folder {
        id: row.get(0)?,
        name: row.get(1)?,
        time: row.get(2)?,
    })
}

fn disk(row: &Row<'_>) -> rusqlite::Result<(DiskRecord, i64)> {
    let record = DiskRecord {
        id: row.get(0)?,
        backup_id: row.get(1)?,
        vm_name: row.get(2)?,
        disk_index: row.get(3)?,
        path: PathBuf::from(row.get::<_, String>(4)?),
        format: row.get(5)?,
        size: row
            .get::<_, Option<i64>>(6)?
            .and_then(|size| u64::try_from(size).ok()),
        time: row.get(7)?,
        identity: identity::from_columns(row, 9)?,
    };
    Ok((record, row.get(8)?))
}

impl Catalog {
    /// All rows of a query.
    pub(super) fn rows<T>(
        &self,
        sql: &str,
        params: impl Params,
        each: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(sql)?;
            let rows = statement
                .query_map(params, each)?
                .collect::<rusqlite::Result<_>>()?;
            Ok(rows)
        })
    }

    /// The one row of a query, if there is one.
    pub(super) fn row<T>(
        &self,
        sql: &str,
        params: impl Params,
        each: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        self.read(|connection| {
            Ok(connection
                .prepare_cached(sql)?
                .query_row(params, each)
                .optional()?)
        })
    }

    /// The VMs that have a completed backup, by name.
    ///
    /// # Errors
    /// [`crate::Error::Catalog`], as for every query.
    pub fn vm_folders(&self) -> Result<Vec<Folder>> {
        self.rows(&format!("{VMS} ORDER BY v.name"), [], folder)
    }

    /// One VM's folder by its name.
    ///
    /// # Errors
    /// As [`Self::vm_folders`].
    pub fn vm_folder(&self, name: &str) -> Result<Option<Folder>> {
        self.row(&format!("{VMS} AND v.name = ?1"), [name], folder)
    }

    /// The completed backups of a VM, oldest first.
    ///
    /// # Errors
    /// As [`Self::vm_folders`].
    pub fn backup_folders(&self, vm_folder: i64) -> Result<Vec<Folder>> {
        self.rows(&format!("{BACKUPS} ORDER BY time, id"), [vm_folder], folder)
    }

    /// One completed backup of a VM by its id.
    ///
    /// # Errors
    /// As [`Self::vm_folders`].
    pub fn backup_folder(&self, vm_folder: i64, name: &str) -> Result<Option<Folder>> {
        self.row(
            &format!("{BACKUPS} AND name = ?2"),
            (vm_folder, name),
            folder,
        )
    }

    /// The newest completed backup of a VM: the last of [`Self::backup_folders`].
    ///
    /// # Errors
    /// As [`Self::vm_folders`].
    pub fn latest(&self, vm_folder: i64) -> Result<Option<Folder>> {
        let sql = format!("{BACKUPS} ORDER BY time DESC, id DESC LIMIT 1");
        self.row(&sql, [vm_folder], folder)
    }

    /// A folder by its id, with its parent's id (a VM's parent is `None`).
    ///
    /// # Errors
    /// As [`Self::vm_folders`].
    pub fn folder(&self, id: i64) -> Result<Option<(Folder, Option<i64>)>> {
        let backup = self.row(
            "SELECT id, name, time, parent FROM shown_backups WHERE id = ?1",
            [id],
            |row| Ok((folder(row)?, row.get(3)?)),
        )?;
        if backup.is_some() {
            return Ok(backup);
        }
        self.row(&format!("{VMS} AND v.id = ?1"), [id], |row| {
            Ok((folder(row)?, None))
        })
    }

    /// The disks of a backup that are not gone, by index.
    ///
    /// # Errors
    /// As [`Self::vm_folders`].
    pub fn disks(&self, backup_folder: i64) -> Result<Vec<DiskRecord>> {
        let sql = format!("{DISKS} WHERE folder = ?1 ORDER BY disk_index");
        self.rows(&sql, [backup_folder], |row| Ok(disk(row)?.0))
    }

    /// One disk by its id, if it is still in the tree, with the id of its
    /// backup's folder.
    ///
    /// # Errors
    /// As [`Self::vm_folders`].
    pub fn disk(&self, id: i64) -> Result<Option<(DiskRecord, i64)>> {
        self.row(&format!("{DISKS} WHERE id = ?1"), [id], disk)
    }
}
