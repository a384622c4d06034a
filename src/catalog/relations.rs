//! What follows from the disks of the backups: full or incremental, the parent,
//! the place in the chain. Computed anew after every change, in the same
//! transaction; only differences are written.

use crate::error::Result;
use rusqlite::Connection;
use std::collections::HashMap;

/// A backup whose images have been seen, and what they say.
struct Facts {
    id: String,
    backup_type: String,
    parent: Option<String>,
    by_scan: bool,
    /// Whether one of its images has a backing file.
    backed: bool,
    /// The backup that holds that backing file.
    backing: Option<String>,
}

/// Brings types, parents and chains of all backups in line with their images.
pub(super) fn rebuild(connection: &Connection) -> Result<()> {
    link_parents(connection)?;
    number_chains(connection)
}

fn link_parents(connection: &Connection) -> Result<()> {
    let facts = connection
        .prepare_cached(
            "SELECT j.id, j.backup_type, j.parent_backup_id, j.recorded_by = 'scan',
                 EXISTS (SELECT 1 FROM backup_disks d WHERE d.backup_job_id = j.id
                         AND d.status <> 'missing' AND d.backing_path IS NOT NULL),
                 (SELECT p.backup_job_id
                  FROM backup_disks d JOIN backup_disks p ON p.qcow2_path = d.backing_path
                  WHERE d.backup_job_id = j.id AND d.status <> 'missing'
                    AND p.backup_job_id <> j.id
                  ORDER BY p.status = 'missing', d.disk_index, p.id DESC LIMIT 1)
             FROM backup_jobs j WHERE EXISTS
                 (SELECT 1 FROM backup_disks d WHERE d.backup_job_id = j.id
                  AND d.status <> 'missing' AND d.file_inode IS NOT NULL)",
        )?
        .query_map([], |row| {
            Ok(Facts {
                id: row.get(0)?,
                backup_type: row.get(1)?,
                parent: row.get(2)?,
                by_scan: row.get(3)?,
                backed: row.get(4)?,
                backing: row.get(5)?,
            })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let mut update = connection.prepare_cached(
        "UPDATE backup_jobs SET backup_type = ?2, parent_backup_id = ?3 WHERE id = ?1",
    )?;
    for backup in facts {
        let (backup_type, parent) = if !backup.by_scan {
            // The hub's word stands; what it left out is filled in.
            (
                backup.backup_type.as_str(),
                backup.parent.clone().or(backup.backing),
            )
        } else if backup.backed {
            (
                "incremental",
                backup.backing.or_else(|| backup.parent.clone()),
            )
        } else {
            ("full", None)
        };
        if backup_type != backup.backup_type || parent != backup.parent {
            update.execute((&backup.id, backup_type, parent))?;
        }
    }
    Ok(())
}

fn number_chains(connection: &Connection) -> Result<()> {
    type Places = HashMap<String, (String, i64)>;
    let places = |sql: &str| -> Result<Places> {
        let found = connection
            .prepare_cached(sql)?
            .query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?
            .collect::<rusqlite::Result<_>>()?;
        Ok(found)
    };
    // Ends, whatever the rows say: it starts at full backups, goes to
    // incremental ones only, and each of these has one parent.
    let right = places(
        "WITH RECURSIVE chain (id, full_id, number) AS (
             SELECT id, id, 1 FROM backup_jobs WHERE backup_type = 'full'
             UNION ALL
             SELECT j.id, c.full_id, c.number + 1
             FROM chain c JOIN backup_jobs j ON j.parent_backup_id = c.id
             WHERE j.backup_type = 'incremental')
         SELECT id, full_id, number FROM chain",
    )?;
    let known = places("SELECT backup_job_id, full_backup_id, sequence_number FROM backup_chains")?;
    for id in known.keys().filter(|id| !right.contains_key(*id)) {
        connection
            .prepare_cached("DELETE FROM backup_chains WHERE backup_job_id = ?1")?
            .execute([id])?;
    }
    for (id, place) in right
        .iter()
        .filter(|(id, place)| known.get(*id) != Some(place))
    {
        connection
            .prepare_cached(
                "INSERT INTO backup_chains (backup_job_id, full_backup_id, sequence_number)
                 VALUES (?1, ?2, ?3)
                 ON CONFLICT (backup_job_id) DO UPDATE SET
                     full_backup_id = excluded.full_backup_id,
                     sequence_number = excluded.sequence_number",
            )?
            .execute((id, &place.0, place.1))?;
    }
    Ok(())
}
