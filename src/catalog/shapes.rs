//! The shapes in which clients know VMs, their disks and backups: the API's
//! field names, read from the rows.

use super::Catalog;
use crate::error::{Error, Result};
use rusqlite::{Connection, Row};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

/// A VM as the hub knows it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs)]
pub struct VmContext {
    pub context_id: String,
    pub vm_name: String,
    pub vm_path: Option<String>,
    pub vcenter_host: Option<String>,
    pub datacenter: Option<String>,
    pub current_status: String,
    pub cpu_count: Option<i64>,
    pub memory_mb: Option<i64>,
    pub os_type: Option<String>,
    pub power_state: Option<String>,
    pub created_at: String,
    /// `repositories.id`, as text like everywhere in the API.
    pub repository_id: Option<String>,
}

/// The disks that a VM has now.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs)]
pub struct VmDisks {
    pub context_id: String,
    pub vm_name: String,
    pub disks: Vec<VmDisk>,
    pub total_disks: usize,
}

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs)]
pub struct VmDisk {
    pub disk_index: u32,
    pub vmware_disk_key: Option<i64>,
    pub label: Option<String>,
    /// Gigabytes of 2^30 bytes, as all sizes named so.
    #[serde(serialize_with = "short_number")]
    pub size_gb: Option<f64>,
    pub datastore: Option<String>,
    pub path: Option<String>,
}

/// A backup in a list.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs)]
pub struct BackupSummary {
    pub backup_id: String,
    pub vm_name: String,
    pub backup_type: String,
    pub status: String,
    #[serde(serialize_with = "short_number")]
    pub total_size_gb: Option<f64>,
    pub disk_count: u32,
    /// How many of the disks have lost their image.
    pub missing_disks: u32,
    pub created_at: String,
    pub completed_at: Option<String>,
}

/// A backup with its disks.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs)]
pub struct Backup {
    pub backup_id: String,
    pub vm_context_id: String,
    pub vm_name: String,
    pub status: String,
    pub backup_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_backup_id: Option<String>,
    pub disks: Vec<BackupDisk>,
    #[serde(serialize_with = "short_number")]
    pub progress_percent: Option<f64>,
    pub bytes_transferred: Option<i64>,
    pub total_bytes: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// Whose word this is: `hub` or `scan`.
    pub recorded_by: String,
    pub created_at: String,
    pub completed_at: Option<String>,
}

/// A disk of a backup.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs)]
pub struct BackupDisk {
    pub disk_index: u32,
    pub status: String,
    #[serde(serialize_with = "short_number")]
    pub size_gb: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qcow2_path: Option<String>,
    pub format: String,
    /// Size of the disk in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmware_disk_key: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_change_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_transferred: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
}

/// To three decimals, and `102` rather than `102.0`.
pub(super) fn short_number<S: Serializer>(
    number: &Option<f64>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    match number.map(|number| (number * 1000.0).round() / 1000.0) {
        None => serializer.serialize_none(),
        // Exact: such a number is far below 2^53.
        Some(whole) if whole.fract() == 0.0 && whole.abs() < 1e15 => {
            serializer.serialize_i64(whole as i64)
        }
        Some(number) => serializer.serialize_f64(number),
    }
}

/// Seconds since 1970 as the catalog stores times.
pub(super) fn rfc3339(seconds: i64) -> Result<String> {
    jiff::Timestamp::from_second(seconds)
        .map(|time| time.to_string())
        .map_err(|_| Error::Invalid(format!("{seconds} seconds since 1970 is no time")))
}

/// All rows of a query on one connection.
fn all<T>(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    each: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    Ok(connection
        .prepare_cached(sql)?
        .query_map(params, each)?
        .collect::<rusqlite::Result<_>>()?)
}

pub(super) fn vm_contexts(connection: &Connection) -> Result<Vec<VmContext>> {
    all(
        connection,
        "SELECT context_id, vm_name, vm_path, vcenter_host, datacenter, current_status, cpu_count,
                memory_mb, os_type, power_state, created_at, CAST(repository_id AS TEXT)
         FROM vm_backup_contexts ORDER BY vm_name, context_id",
        [],
        |row| {
            Ok(VmContext {
                context_id: row.get(0)?,
                vm_name: row.get(1)?,
                vm_path: row.get(2)?,
                vcenter_host: row.get(3)?,
                datacenter: row.get(4)?,
                current_status: row.get(5)?,
                cpu_count: row.get(6)?,
                memory_mb: row.get(7)?,
                os_type: row.get(8)?,
                power_state: row.get(9)?,
                created_at: row.get(10)?,
                repository_id: row.get(11)?,
            })
        },
    )
}

pub(super) fn vm_disks(connection: &Connection) -> Result<Vec<VmDisks>> {
    let rows = all(
        connection,
        "SELECT d.context_id, c.vm_name, d.disk_index, d.vmware_disk_key, d.label, d.size_gb,
                d.datastore, d.path
         FROM vm_disks d JOIN vm_backup_contexts c ON c.context_id = d.context_id
         ORDER BY c.vm_name, c.context_id, d.disk_index",
        [],
        |row| {
            let disk = VmDisk {
                disk_index: row.get(2)?,
                vmware_disk_key: row.get(3)?,
                label: row.get(4)?,
                size_gb: row.get(5)?,
                datastore: row.get(6)?,
                path: row.get(7)?,
            };
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, disk))
        },
    )?;
    let mut vms: Vec<VmDisks> = Vec::new();
    for (context_id, vm_name, disk) in rows {
        match vms.last_mut() {
            Some(vm) if vm.context_id == context_id => vm.disks.push(disk),
            _ => vms.push(VmDisks {
                context_id,
                vm_name,
                disks: vec![disk],
                total_disks: 0,
            }),
        }
    }
    for vm in &mut vms {
        vm.total_disks = vm.disks.len();
    }
    Ok(vms)
}

const BACKUP_DISKS: &str = "SELECT d.disk_index, d.status, d.size_gb, d.qcow2_path, d.format,
        d.virtual_size, d.vmware_disk_key, d.label, d.disk_change_id, d.bytes_transferred,
        d.backing_path, d.error_message
    FROM current_disks d WHERE d.backup_job_id = ?1 ORDER BY d.disk_index";

const BACKUPS: &str = "SELECT j.id, j.vm_backup_context_id, c.vm_name, j.status, j.backup_type,
        j.parent_backup_id, j.progress_percent, j.bytes_transferred, j.total_bytes,
        j.error_message, j.recorded_by, j.created_at, j.completed_at
    FROM backup_jobs j JOIN vm_backup_contexts c ON c.context_id = j.vm_backup_context_id";

fn vm_disk(row: &Row<'_>) -> rusqlite::Result<VmDisk> {
    Ok(VmDisk {
        disk_index: row.get(0)?,
        vmware_disk_key: row.get(1)?,
        label: row.get(2)?,
        size_gb: row.get(3)?,
        datastore: row.get(4)?,
        path: row.get(5)?,
    })
}

fn backup(row: &Row<'_>) -> rusqlite::Result<Backup> {
    Ok(Backup {
        backup_id: row.get(0)?,
        vm_context_id: row.get(1)?,
        vm_name: row.get(2)?,
        status: row.get(3)?,
        backup_type: row.get(4)?,
        parent_backup_id: row.get(5)?,
        disks: Vec::new(),
        progress_percent: row.get(6)?,
        bytes_transferred: row.get(7)?,
        total_bytes: row.get(8)?,
        error_message: row.get(9)?,
        recorded_by: row.get(10)?,
        created_at: row.get(11)?,
        completed_at: row.get(12)?,
    })
}

fn with_disks(connection: &Connection, mut backup: Backup) -> Result<Backup> {
    backup.disks = all(connection, BACKUP_DISKS, [&backup.backup_id], |row| {
        Ok(BackupDisk {
            disk_index: row.get(0)?,
            status: row.get(1)?,
            size_gb: row.get(2)?,
            qcow2_path: row.get(3)?,
            format: row.get(4)?,
            virtual_size: row.get(5)?,
            vmware_disk_key: row.get(6)?,
            label: row.get(7)?,
            disk_change_id: row.get(8)?,
            bytes_transferred: row.get(9)?,
            backing_path: row.get(10)?,
            error_message: row.get(11)?,
        })
    })?;
    Ok(backup)
}

pub(super) fn backups(connection: &Connection) -> Result<Vec<Backup>> {
    all(
        connection,
        &format!("{BACKUPS} ORDER BY j.created_at, j.id"),
        [],
        backup,
    )?
    .into_iter()
    .map(|backup| with_disks(connection, backup))
    .collect()
}

impl Catalog {
    /// The backups, oldest first, of one VM and with one status where given.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn backup_summaries(
        &self,
        vm_name: Option<&str>,
        status: Option<&str>,
    ) -> Result<Vec<BackupSummary>> {
        self.rows(
            "SELECT j.id, c.vm_name, j.backup_type, j.status, sum(d.size_gb), count(d.id),
                    count(d.id) FILTER (WHERE d.status = 'missing'), j.created_at, j.completed_at
             FROM backup_jobs j
             JOIN vm_backup_contexts c ON c.context_id = j.vm_backup_context_id
             LEFT JOIN current_disks d ON d.backup_job_id = j.id
             WHERE (?1 IS NULL OR c.vm_name = ?1) AND (?2 IS NULL OR j.status = ?2)
             GROUP BY j.id ORDER BY j.created_at, j.id",
            (vm_name, status),
            |row| {
                Ok(BackupSummary {
                    backup_id: row.get(0)?,
                    vm_name: row.get(1)?,
                    backup_type: row.get(2)?,
                    status: row.get(3)?,
                    total_size_gb: row.get(4)?,
                    disk_count: row.get(5)?,
                    missing_disks: row.get(6)?,
                    created_at: row.get(7)?,
                    completed_at: row.get(8)?,
                })
            },
        )
    }

    /// One backup with its disks.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn backup(&self, id: &str) -> Result<Option<Backup>> {
        self.read(|connection| {
            all(
                connection,
                &format!("{BACKUPS} WHERE j.id = ?1"),
                [id],
                backup,
            )?
            .pop()
            .map(|backup| with_disks(connection, backup))
            .transpose()
        })
    }

    /// The disks that a VM has, as the hub tells; where it does not, those of the
    /// newest completed backup. `None` if there is no such VM.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn vm_disks(&self, vm_name: &str) -> Result<Option<VmDisks>> {
        self.read(|connection| {
            let context: Option<String> = all(
                connection,
                "SELECT context_id FROM vm_backup_contexts WHERE vm_name = ?1
                 ORDER BY created_at DESC, context_id DESC LIMIT 1",
                [vm_name],
                |row| row.get(0),
            )?
            .pop();
            let Some(context_id) = context else {
                return Ok(None);
            };
            let told = all(
                connection,
                "SELECT disk_index, vmware_disk_key, label, size_gb, datastore, path
                 FROM vm_disks WHERE context_id = ?1 ORDER BY disk_index",
                [&context_id],
                vm_disk,
            )?;
            let disks = if told.is_empty() {
                all(
                    connection,
                    "SELECT disk_index, vmware_disk_key,
                            coalesce(label, 'Hard disk ' || (disk_index + 1)), size_gb, NULL, NULL
                     FROM current_disks WHERE backup_job_id =
                         (SELECT j.id FROM backup_jobs j
                          JOIN vm_backup_contexts c ON c.context_id = j.vm_backup_context_id
                          WHERE c.vm_name = ?1 AND j.status = 'completed'
                          ORDER BY j.created_at DESC, j.id DESC LIMIT 1)
                     ORDER BY disk_index",
                    [vm_name],
                    vm_disk,
                )?
            } else {
                told
            };
            Ok(Some(VmDisks {
                context_id,
                vm_name: vm_name.to_owned(),
                total_disks: disks.len(),
                disks,
            }))
        })
    }

    /// The VMs, by name.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn vm_contexts(&self) -> Result<Vec<VmContext>> {
        self.read(vm_contexts)
    }
}
