//! Mounts asked for over REST: the rows of `restore_mounts`.
//!
//! The idea: a row goes through its states in one direction (`mounting`,
//! `mounted`, `unmounting`, `unmounted`, or `failed` from any), each step is one
//! transaction that names the state it comes from, and the unique index over live
//! rows decides who of several has a disk. So whoever comes too late, after a
//! restart too, changes nothing.
//!
//! Only the daemon takes these steps; every process may read. Moments are seconds
//! since 1970.

use super::shapes::rfc3339;
use super::{Catalog, DiskRecord};
use crate::error::{Error, Result};
use rusqlite::{OptionalExtension, Row};
use serde::{Deserialize, Serialize};

/// Why an expired mount has ended: the `error_message` of its row.
const EXPIRED: &str = "mount expired, please remount backup";

/// Rows of mounts that have ended are kept for so long, in seconds.
const KEPT: i64 = 90 * 24 * 60 * 60;

const LIVE: &str = "status IN ('mounting', 'mounted', 'unmounting')";

const MOUNTS: &str = "SELECT m.id, m.backup_disk_id, j.id, c.vm_name, d.disk_index, m.mount_path,
        m.nbd_device, m.filesystem_type, m.volumes, m.status, m.error_message, m.created_at,
        m.last_accessed_at, m.expires_at, m.unmounted_at, j.created_at
    FROM restore_mounts m
    JOIN backup_disks d ON d.id = m.backup_disk_id
    JOIN backup_jobs j ON j.id = d.backup_job_id
    JOIN vm_backup_contexts c ON c.context_id = j.vm_backup_context_id";

/// A mount, live or ended. Times are RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// UUID.
    pub id: String,
    /// `backup_disks.id`.
    pub backup_disk_id: i64,
    /// `backup_jobs.id`.
    pub backup_id: String,
    /// The VM's name.
    pub vm_name: String,
    /// `disk<N>`.
    pub disk_index: u32,
    /// The disk's folder in the tree.
    pub mount_path: Option<String>,
    /// What serves the blocks; `None` while the disk is being attached.
    pub nbd_device: Option<String>,
    /// The type of the largest file system, if there is any.
    pub filesystem_type: Option<String>,
    /// A JSON list of what the disk holds ([`crate::tree::VolumeSummary`]).
    pub volumes: Option<String>,
    /// `mounting`, `mounted`, `unmounting`, `failed`, `unmounted`.
    pub status: String,
    /// Why it has failed, or has ended without being asked to.
    pub error_message: Option<String>,
    /// When it was asked for.
    pub created_at: String,
    /// When it was last used; up to a second late.
    pub last_accessed_at: Option<String>,
    /// When it ends if nobody uses it; up to a second late.
    pub expires_at: Option<String>,
    /// When it ended, or failed.
    pub unmounted_at: Option<String>,
    /// When the backup was taken.
    pub backup_created_at: String,
}

impl Mount {
    /// Whether its disk is held, or about to be.
    pub fn is_live(&self) -> bool {
        matches!(&*self.status, "mounting" | "mounted" | "unmounting")
    }

    /// Whether it ended because nobody used it.
    pub fn is_expired(&self) -> bool {
        self.status == "unmounted" && self.error_message.as_deref() == Some(EXPIRED)
    }
}

/// A mount that is about to be.
#[derive(Debug, Clone)]
pub struct NewMount {
    /// UUID.
    pub id: String,
    /// `backup_disks.id`.
    pub backup_disk_id: i64,
    /// The disk's folder in the tree.
    pub mount_path: String,
    /// Now.
    pub now: i64,
    /// When it ends if nobody uses it.
    pub expires: i64,
}

/// What is known of a mount once its disk is attached.
#[derive(Debug, Clone)]
pub struct MountedDisk {
    /// The disk's folder in the tree.
    pub mount_path: String,
    /// What serves the blocks.
    pub nbd_device: String,
    /// The type of the largest file system.
    pub filesystem_type: Option<String>,
    /// A JSON list.
    pub volumes: String,
    /// Now, or when it was last used.
    pub last_used: i64,
    /// When it ends if nobody uses it.
    pub expires: i64,
}

/// Why a mount ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountEnd<'a> {
    /// Somebody wanted it.
    Asked,
    /// Nobody used it.
    Expired,
    /// It could not be made, or be kept: why.
    Failed(&'a str),
}

/// When a mount was last used.
#[derive(Debug, Clone)]
pub struct MountUse {
    /// `restore_mounts.id`.
    pub id: String,
    /// When it was.
    pub last_used: i64,
    /// When it ends if nobody uses it.
    pub expires: i64,
}

fn mount(row: &Row<'_>) -> rusqlite::Result<Mount> {
    Ok(Mount {
        id: row.get(0)?,
        backup_disk_id: row.get(1)?,
        backup_id: row.get(2)?,
        vm_name: row.get(3)?,
        disk_index: row.get(4)?,
        mount_path: row.get(5)?,
        nbd_device: row.get(6)?,
        filesystem_type: row.get(7)?,
        volumes: row.get(8)?,
        status: row.get(9)?,
        error_message: row.get(10)?,
        created_at: row.get(11)?,
        last_accessed_at: row.get(12)?,
        expires_at: row.get(13)?,
        unmounted_at: row.get(14)?,
        backup_created_at: row.get(15)?,
    })
}

/// The sentence for a mount that is not there.
fn no_mount(id: &str) -> Error {
    Error::Unknown(format!("mount not found: {id}"))
}

impl Catalog {
    /// One mount, live or ended; ended ones are known for 90 days.
    ///
    /// # Errors
    /// [`Error::Catalog`], as for every query.
    pub fn mount(&self, id: &str) -> Result<Option<Mount>> {
        self.row(&format!("{MOUNTS} WHERE m.id = ?1"), [id], mount)
    }

    /// The mounts that have a disk, or are about to, oldest first.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn live_mounts(&self) -> Result<Vec<Mount>> {
        let sql = format!("{MOUNTS} WHERE m.{LIVE} ORDER BY m.created_at, m.rowid");
        self.rows(&sql, [], mount)
    }

    /// The ids of the live mounts, and whether the tree shows the disk of each.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn live_mount_ids(&self) -> Result<Vec<(String, bool)>> {
        let sql = format!(
            "SELECT m.id, EXISTS (SELECT 1 FROM shown_disks s WHERE s.id = m.backup_disk_id)
             FROM restore_mounts m WHERE m.{LIVE}"
        );
        self.rows(&sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// How many mounts there have ever been, those that failed left out.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn mounts_so_far(&self) -> Result<u64> {
        let sql = "SELECT mounts FROM restore_mounts_so_far";
        let count: Option<i64> = self.row(sql, [], |row| row.get(0))?;
        Ok(count.and_then(|n| u64::try_from(n).ok()).unwrap_or(0))
    }

    /// The disk of a completed backup that can be mounted.
    ///
    /// # Errors
    /// [`Error::Unknown`] with the sentence that clients know; [`Error::Catalog`].
    pub fn disk_to_mount(&self, backup_id: &str, disk_index: u32) -> Result<DiskRecord> {
        if let Some((_, disk)) = self
            .shown_disks_of(backup_id)?
            .into_iter()
            .find(|(index, _)| *index == disk_index)
            && let Some((record, _)) = self.disk(disk)?
        {
            return Ok(record);
        }
        let known = "SELECT 1 FROM backup_jobs WHERE id = ?1";
        Err(Error::Unknown(
            if self.row(known, [backup_id], |_| Ok(()))?.is_some() {
                format!("disk not found: backup_id={backup_id}, disk_index={disk_index}")
            } else {
                format!("backup not found: {backup_id}")
            },
        ))
    }

    /// Index and row of each disk of a backup that the tree shows, by index.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn shown_disks_of(&self, backup_id: &str) -> Result<Vec<(u32, i64)>> {
        self.rows(
            "SELECT disk_index, id FROM shown_disks WHERE backup_id = ?1 ORDER BY disk_index",
            [backup_id],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
    }

    /// The disk of the same index in the newest backup of the same chain that the
    /// tree shows.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn newest_of_chain(&self, disk: &DiskRecord) -> Result<Option<DiskRecord>> {
        let newest: Option<i64> = self.row(
            "SELECT s.id FROM backup_chains c JOIN shown_disks s ON s.backup_id = c.backup_job_id
             WHERE c.full_backup_id =
                       (SELECT full_backup_id FROM backup_chains WHERE backup_job_id = ?1)
               AND s.disk_index = ?2
             ORDER BY c.sequence_number DESC LIMIT 1",
            (&disk.backup_id, disk.disk_index),
            |row| row.get(0),
        )?;
        match newest {
            Some(id) => Ok(self.disk(id)?.map(|(record, _)| record)),
            None => Ok(None),
        }
    }

    /// Begins a mount; rows that have ended long ago go.
    ///
    /// # Errors
    /// [`Error::MountedAlready`] with the id of the live mount that the disk has;
    /// [`Error::Catalog`].
    pub fn begin_mount(&self, new: &NewMount) -> Result<()> {
        let (now, expires) = (rfc3339(new.now)?, rfc3339(new.expires)?);
        let long_ago = rfc3339(new.now.saturating_sub(KEPT))?;
        self.write(|connection| {
            let taken: Option<String> = connection
                .query_row(
                    &format!("SELECT id FROM restore_mounts WHERE backup_disk_id = ?1 AND {LIVE}"),
                    [new.backup_disk_id],
                    |row| row.get(0),
                )
                .optional()?;
            if let Some(mount_id) = taken {
                return Err(Error::MountedAlready {
                    what: new.mount_path.clone(),
                    mount_id,
                });
            }
            connection.execute(
                "DELETE FROM restore_mounts WHERE unmounted_at < ?1",
                [long_ago],
            )?;
            connection.execute(
                "INSERT INTO restore_mounts
                     (id, backup_disk_id, mount_path, status, created_at, last_accessed_at,
                      expires_at)
                 VALUES (?1, ?2, ?3, 'mounting', ?4, ?4, ?5)",
                (&new.id, new.backup_disk_id, &new.mount_path, now, expires),
            )?;
            Ok(())
        })
    }

    /// A mount's disk is attached, for the first time or anew.
    ///
    /// # Errors
    /// [`Error::Unknown`] if the mount has ended meanwhile; [`Error::Catalog`].
    pub fn settle_mount(&self, id: &str, disk: &MountedDisk) -> Result<Mount> {
        let (last_used, expires) = (rfc3339(disk.last_used)?, rfc3339(disk.expires)?);
        self.write(|connection| {
            let changed = connection.execute(
                "UPDATE restore_mounts
                 SET status = 'mounted', mount_path = ?2, nbd_device = ?3, filesystem_type = ?4,
                     volumes = ?5, last_accessed_at = ?6, expires_at = ?7
                 WHERE id = ?1 AND status IN ('mounting', 'mounted')",
                (
                    id,
                    &disk.mount_path,
                    &disk.nbd_device,
                    &disk.filesystem_type,
                    &disk.volumes,
                    last_used,
                    expires,
                ),
            )?;
            if changed == 0 {
                return Err(no_mount(id));
            }
            let sql = format!("{MOUNTS} WHERE m.id = ?1");
            Ok(connection.query_row(&sql, [id], mount)?)
        })
    }

    /// A mount is about to end; false if it is not live.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn begin_unmount(&self, id: &str) -> Result<bool> {
        self.write(|connection| {
            let sql =
                format!("UPDATE restore_mounts SET status = 'unmounting' WHERE id = ?1 AND {LIVE}");
            Ok(connection.execute(&sql, [id])? > 0)
        })
    }

    /// A mount has ended; false if it had before.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn end_mount(&self, id: &str, end: MountEnd<'_>, now: i64) -> Result<bool> {
        let now = rfc3339(now)?;
        let (status, message) = match end {
            MountEnd::Asked => ("unmounted", None),
            MountEnd::Expired => ("unmounted", Some(EXPIRED)),
            MountEnd::Failed(why) => ("failed", Some(why)),
        };
        self.write(|connection| {
            let sql = format!(
                "UPDATE restore_mounts SET status = ?2, error_message = ?3, unmounted_at = ?4
                 WHERE id = ?1 AND {LIVE}"
            );
            Ok(connection.execute(&sql, (id, status, message, now))? > 0)
        })
    }

    /// Records when mounts were last used, all in one transaction.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn touch_mounts(&self, uses: &[MountUse]) -> Result<()> {
        self.write(|connection| {
            let mut statement = connection.prepare_cached(
                "UPDATE restore_mounts SET last_accessed_at = ?2, expires_at = ?3
                 WHERE id = ?1 AND status = 'mounted'",
            )?;
            for each in uses {
                statement.execute((&each.id, rfc3339(each.last_used)?, rfc3339(each.expires)?))?;
            }
            Ok(())
        })
    }

    /// Ends the mounts that an earlier run of the daemon has left half done or that
    /// have expired since; the others, which are to live on. Those name no device
    /// until their disks are attached again.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn resume_mounts(&self, now: i64) -> Result<Vec<Mount>> {
        let now = rfc3339(now)?;
        self.write(|connection| {
            let live: bool = connection.query_row(
                &format!("SELECT EXISTS (SELECT 1 FROM restore_mounts WHERE {LIVE})"),
                [],
                |row| row.get(0),
            )?;
            if !live {
                return Ok(Vec::new());
            }
            connection.execute(
                "UPDATE restore_mounts SET status = 'failed', unmounted_at = ?1,
                     error_message = 'the daemon ended while the disk was being attached'
                 WHERE status = 'mounting'",
                [&now],
            )?;
            connection.execute(
                "UPDATE restore_mounts SET status = 'unmounted', unmounted_at = ?1
                 WHERE status = 'unmounting'",
                [&now],
            )?;
            connection.execute(
                "UPDATE restore_mounts
                 SET status = 'unmounted', unmounted_at = ?1, error_message = ?2
                 WHERE status = 'mounted'
                   AND (expires_at IS NULL OR strftime('%s', expires_at) IS NULL
                        OR julianday(expires_at) <= julianday(?1))",
                (&now, EXPIRED),
            )?;
            connection.execute(
                "UPDATE restore_mounts SET nbd_device = NULL WHERE status = 'mounted'",
                [],
            )?;
            let sql = format!("{MOUNTS} WHERE m.status = 'mounted' ORDER BY m.created_at, m.rowid");
            let mut statement = connection.prepare(&sql)?;
            let mounts = statement
                .query_map([], mount)?
                .collect::<rusqlite::Result<_>>()?;
            Ok(mounts)
        })
    }
}
