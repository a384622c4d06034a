//! Which backups there are: SQLite, written by `catalog` commands, followed by
//! the tree.

use crate::error::Result;
use std::path::{Path, PathBuf};

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
}

/// The catalog database.
pub struct Catalog {}

impl Catalog {
    /// Opens the database, creates it and applies migrations where needed.
    pub fn open(_path: &Path) -> Result<Self> {
        Ok(Self {})
    }
    /// A number that changes whenever any process changed the database.
    pub fn version(&self) -> Result<u64> {
        Ok(0)
    }
    /// The VMs that have a completed backup, by name.
    pub fn vm_folders(&self) -> Result<Vec<Folder>> {
        Ok(vec![])
    }
    /// One VM's folder by its name.
    pub fn vm_folder(&self, _name: &str) -> Result<Option<Folder>> {
        Ok(None)
    }
    /// The completed backups of a VM, oldest first.
    pub fn backup_folders(&self, _vm_folder: i64) -> Result<Vec<Folder>> {
        Ok(vec![])
    }
    /// One completed backup of a VM by its id.
    pub fn backup_folder(&self, _vm_folder: i64, _name: &str) -> Result<Option<Folder>> {
        Ok(None)
    }
    /// newest
    pub fn latest(&self, _vm: i64) -> Result<Option<Folder>> {
        Ok(None)
    }
    /// A folder by its id, with its parent's id (a VM's parent is `None`).
    pub fn folder(&self, _id: i64) -> Result<Option<(Folder, Option<i64>)>> {
        Ok(None)
    }
    /// The disks of a backup that are not gone, by index.
    pub fn disks(&self, _backup_folder: i64) -> Result<Vec<DiskRecord>> {
        Ok(vec![])
    }
    /// One disk by its id, if it is still in the tree, with the id of its
    /// backup's folder.
    pub fn disk(&self, _id: i64) -> Result<Option<(DiskRecord, i64)>> {
        Ok(None)
    }
}
