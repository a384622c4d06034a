//! The backups of a VM as chains: a full backup and what was put on it since.

use super::Catalog;
use super::shapes::short_number;
use crate::error::Result;
use serde::Serialize;
use utoipa::ToSchema;

/// A backup in its chain.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs)]
pub struct ChainLink {
    pub backup_id: String,
    pub backup_type: String,
    pub status: String,
    /// 1 for the full backup that the chain begins with.
    pub sequence_number: u32,
    pub created_at: String,
    /// Of a full backup the size of its disks; of an incremental one what it added.
    /// Gigabytes of 2^30 bytes.
    #[serde(serialize_with = "short_number")]
    pub size_gb: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_backup_id: Option<String>,
    #[serde(skip)]
    pub repository_id: Option<String>,
}

impl Catalog {
    /// The backups of a VM, in one repository or in all, oldest chain first.
    ///
    /// # Errors
    /// [`crate::Error::Catalog`].
    pub fn chain(&self, vm_name: &str, repository_id: Option<&str>) -> Result<Vec<ChainLink>> {
        self.rows(
            "SELECT j.id, j.backup_type, j.status, coalesce(h.sequence_number, 1), j.created_at,
                    CASE j.backup_type WHEN 'full' THEN sum(d.size_gb)
                         ELSE coalesce(sum(coalesce(d.bytes_transferred, d.file_size)),
                                       j.bytes_transferred) / 1073741824.0 END,
                    j.parent_backup_id, CAST(c.repository_id AS TEXT)
             FROM backup_jobs j
             JOIN vm_backup_contexts c ON c.context_id = j.vm_backup_context_id
             LEFT JOIN backup_chains h ON h.backup_job_id = j.id
             LEFT JOIN backup_jobs f ON f.id = h.full_backup_id
             LEFT JOIN current_disks d ON d.backup_job_id = j.id
             WHERE c.vm_name = ?1 AND (?2 IS NULL OR CAST(c.repository_id AS TEXT) = ?2)
             GROUP BY j.id
             ORDER BY coalesce(f.created_at, j.created_at), coalesce(f.id, j.id),
                      coalesce(h.sequence_number, 1), j.created_at, j.id",
            (vm_name, repository_id),
            |row| {
                Ok(ChainLink {
                    backup_id: row.get(0)?,
                    backup_type: row.get(1)?,
                    status: row.get(2)?,
                    sequence_number: row.get(3)?,
                    created_at: row.get(4)?,
                    size_gb: row.get(5)?,
                    parent_backup_id: row.get(6)?,
                    repository_id: row.get(7)?,
                })
            },
        )
    }
}
