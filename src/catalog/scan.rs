//! Finding the images of a repository and bringing the catalog in line.
//!
//! The repository is walked and images that are new or not settled are examined
//! first, with no lock held; then one transaction compares with the rows as
//! they are and writes only what differs. So a second scan writes nothing.

use super::Catalog;
use super::found::{
    Examined, State, context, describe, examine, free_backup_id, gigabytes, insert, insert_backup,
    runs, settle_backup,
};
use super::identity::{self, ImageIdentity};
use super::relations;
use super::repository::{self, RepositoryKind};
use super::walk::{Found, Sighting, Walk, look};
use crate::error::{Error, Result};
use jiff::tz::TimeZone;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Disks whose stamps lie at most so many seconds after the first one's are of
/// one run.
const RUN_SECONDS: i64 = 60;

/// How a repository is scanned.
#[derive(Debug, Clone)]
pub struct ScanOptions {
    /// The repository's kind; found by `statfs` where not given.
    pub kind: Option<RepositoryKind>,
    /// The zone in which the stamps of image names are local time.
    pub time_zone: TimeZone,
    /// Whether to believe it when not one of the images that are known is there
    /// any more. Otherwise that is refused: most often a repository that is not
    /// mounted.
    pub all_gone: bool,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self {
            kind: None,
            time_zone: TimeZone::system(),
            all_gone: false,
        }
    }
}

/// What a scan meets, for progress and messages.
#[derive(Debug, Clone, Copy)]
pub enum ScanEvent<'a> {
    /// So many images have been found so far.
    Found(usize),
    /// So many of the images that had to be opened have been.
    Examined {
        /// Done so far.
        done: usize,
        /// All that have to be.
        of: usize,
    },
    /// A file that is not of the layout.
    Unknown(&'a Path),
    /// A symbolic link out of the repository; not followed.
    Outside {
        /// The link.
        path: &'a Path,
        /// Where it leads.
        target: &'a Path,
    },
    /// A folder or file of which nothing can be learnt; what the catalog says of
    /// it stays.
    Unreadable {
        /// The folder or file.
        path: &'a Path,
        /// Why not.
        reason: &'a str,
    },
    /// An image that is half-written or broken.
    Failed {
        /// The image.
        path: &'a Path,
        /// What is wrong with it.
        reason: &'a str,
    },
}

/// What a scan found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScanSummary {
    /// Images that are there: the sum of the next four.
    pub found: u64,
    /// Not in the catalog before.
    pub new: u64,
    /// As last seen.
    pub unchanged: u64,
    /// Their content may have changed: they have new ids.
    pub changed: u64,
    /// Were gone, and are back unchanged.
    pub returned: u64,
    /// Not there any more.
    pub gone: u64,
    /// Of those found: half-written or broken.
    pub failed: u64,
    /// Of those found: being written.
    pub in_progress: u64,
    /// Files that are not of the layout.
    pub unknown: u64,
    /// Symbolic links that lead out of the repository; not followed.
    pub outside: u64,
    /// Folders and files of which nothing could be learnt.
    pub unreadable: u64,
}

/// A row of `backup_disks`.
#[derive(Debug, Clone)]
struct Row {
    id: i64,
    job: String,
    disk_index: u32,
    format: String,
    /// Whether the backup was recorded by a scan, not by the hub.
    by_scan: bool,
    state: State,
}

/// What is to be done about an image.
enum Step<'a> {
    Nothing,
    /// The row is not settled: look again.
    Settle(&'a Row),
    /// Gone before, back unchanged.
    Return(&'a Row),
    /// Another file than this row's.
    Replace(&'a Row),
    /// Nothing is known of it.
    New,
}

impl Catalog {
    /// Finds the images of a repository, which is recorded by that.
    ///
    /// # Errors
    /// The repository cannot be read; [`Error::Invalid`] where it does not seem
    /// to be mounted; [`Error::Catalog`]. What is wrong with single images or
    /// folders is no error but an event.
    pub fn scan(
        &self,
        repository: &Path,
        options: &ScanOptions,
        events: &mut dyn FnMut(ScanEvent<'_>),
    ) -> Result<ScanSummary> {
        let root = repository::canonical_directory(repository)?;
        // An unreadable repository is an error, not one whose images are gone.
        std::fs::read_dir(&root).map_err(|e| Error::io(root.clone(), e))?;
        if options.kind.is_none() {
            self.refuse_unmounted(&root)?;
        }
        let mut walk = Walk::new(Path::new(&root), events);
        let mut found = std::mem::take(&mut walk.found);
        let unreadable = std::mem::take(&mut walk.unreadable);
        let summary = ScanSummary {
            unknown: walk.unknown,
            outside: walk.outside,
            unreadable: unreadable.len() as u64,
            ..ScanSummary::default()
        };
        found.sort_by(|a, b| {
            let key = |f: &'_ Found| (f.name.taken, f.name.disk_index);
            a.context
                .cmp(&b.context)
                .then(key(a).cmp(&key(b)))
                .then(a.path.cmp(&b.path))
        });

        let known = self.read(|connection| rows_below(connection, &root))?;
        if !options.all_gone && found.is_empty() {
            refuse_emptied(Path::new(&root), &known, &unreadable)?;
        }
        let unsettled: Vec<(&Found, &str)> = found
            .iter()
            .filter_map(|image| {
                let rows = known.get(&image.path).map_or(&[][..], Vec::as_slice);
                let step = step(rows, image.sighting.identity);
                let format = rows.last().map_or("qcow2", |row| &row.format);
                (!matches!(step, Step::Nothing)).then_some((image, format))
            })
            .collect();
        let mut examined = HashMap::new();
        for (done, (image, format)) in unsettled.iter().enumerate() {
            examined.insert(image.path.clone(), examine(&image.sighting.real, format));
            events(ScanEvent::Examined {
                done: done.saturating_add(1),
                of: unsettled.len(),
            });
        }

        self.write(|connection| {
            Scan {
                connection,
                root: Path::new(&root),
                repository: repository::record(connection, &root, options.kind)?,
                time_zone: &options.time_zone,
                examined,
                touched: BTreeSet::new(),
                renewed: Vec::new(),
                summary,
                events,
            }
            .run(&found, &unreadable)
        })
    }
}

/// Refuses a scan that would take out every image that is known.
fn refuse_emptied(
    root: &Path,
    known: &BTreeMap<String, Vec<Row>>,
    unreadable: &[PathBuf],
) -> Result<()> {
    let mut shown = 0_u64;
    for (path, _) in known.iter().filter(|(_, rows)| live(rows).is_some()) {
        let path = Path::new(path);
        let gone = !unreadable.iter().any(|folder| path.starts_with(folder))
            && matches!(look(root, path), Ok(None));
        if !gone {
            return Ok(());
        }
        shown = shown.saturating_add(1);
    }
    if shown == 0 {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{}: not one of the {shown} images that the catalog knows here is there, nor any other; if \
         the repository is not mounted, mount it; if they are really gone, scan with `--all-gone`",
        root.display()
    )))
}

/// The rows of all images below a directory, oldest first.
fn rows_below(connection: &Connection, root: &str) -> Result<BTreeMap<String, Vec<Row>>> {
    let root = root.trim_end_matches('/');
    let mut statement = connection.prepare_cached(
        "SELECT d.id, d.backup_job_id, d.disk_index, d.format, j.recorded_by = 'scan', d.status,
                d.error_message, d.virtual_size, d.backing_path, d.file_inode, d.file_size,
                d.file_mtime_ns, d.qcow2_path
         FROM backup_disks d JOIN backup_jobs j ON j.id = d.backup_job_id
         WHERE d.qcow2_path > ?1 || '/' AND d.qcow2_path < ?1 || '0' ORDER BY d.id",
    )?;
    let mut found: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    let mut rows = statement.query([root])?;
    while let Some(row) = rows.next()? {
        let state = State {
            status: row.get(5)?,
            error: row.get(6)?,
            virtual_size: row.get(7)?,
            backing: row.get(8)?,
            identity: identity::from_columns(row, 9)?,
        };
        found.entry(row.get(12)?).or_default().push(Row {
            id: row.get(0)?,
            job: row.get(1)?,
            disk_index: row.get(2)?,
            format: row.get(3)?,
            by_scan: row.get(4)?,
            state,
        });
    }
    Ok(found)
}

fn live(rows: &[Row]) -> Option<&Row> {
    rows.iter().find(|row| row.state.status != "missing")
}

fn step(rows: &[Row], identity: ImageIdentity) -> Step<'_> {
    let known = |row: &&Row| row.state.identity == Some(identity);
    match live(rows) {
        Some(row) if known(&row) && row.state.status == "completed" => Step::Nothing,
        Some(row) if known(&row) || row.state.identity.is_none() => Step::Settle(row),
        _ => match (rows.iter().rev().find(known), rows.last()) {
            (Some(row), _) => Step::Return(row),
            (None, Some(row)) => Step::Replace(live(rows).unwrap_or(row)),
            (None, None) => Step::New,
        },
    }
}

/// One scan inside its transaction.
struct Scan<'a> {
    connection: &'a Connection,
    root: &'a Path,
    repository: i64,
    time_zone: &'a TimeZone,
    examined: HashMap<String, Examined>,
    /// The backups whose disks changed.
    touched: BTreeSet<String>,
    /// The images at whose paths there is another content now.
    renewed: Vec<String>,
    summary: ScanSummary,
    events: &'a mut dyn FnMut(ScanEvent<'_>),
}

impl Scan<'_> {
    fn run(mut self, found: &[Found], unreadable: &[PathBuf]) -> Result<ScanSummary> {
        let root = self.root.to_string_lossy().into_owned();
        let mut known = rows_below(self.connection, &root)?;
        let mut fresh = Vec::new();
        // What is gone leaves its place first: a file may have moved.
        let mut here = Vec::with_capacity(found.len());
        for image in found {
            here.push((image, known.remove(&image.path).unwrap_or_default()));
        }
        let mut elsewhere = Vec::new();
        for (path, rows) in known {
            if unreadable
                .iter()
                .any(|folder| Path::new(&path).starts_with(folder))
            {
                continue;
            }
            match look(self.root, Path::new(&path)) {
                Ok(Some(sighting)) => elsewhere.push((path, sighting, rows)),
                Ok(None) => {
                    if let Some(row) = live(&rows) {
                        self.summary.gone = self.summary.gone.saturating_add(1);
                        self.retire(row)?;
                    }
                }
                Err(e) => {
                    self.summary.unreadable = self.summary.unreadable.saturating_add(1);
                    (self.events)(ScanEvent::Unreadable {
                        path: Path::new(&path),
                        reason: &e.to_string(),
                    });
                }
            }
        }
        for (image, rows) in here {
            if !self.reconcile(&image.path, &image.sighting, &rows)? {
                fresh.push(image);
            }
        }
        for (path, sighting, rows) in elsewhere {
            if !self.reconcile(&path, &sighting, &rows)? {
                let reason = "another image has taken its place in the backup; add it again";
                (self.events)(ScanEvent::Unreadable {
                    path: Path::new(&path),
                    reason,
                });
            }
        }
        self.record(&fresh)?;
        self.renew_dependents()?;
        if !self.touched.is_empty() {
            for job in std::mem::take(&mut self.touched) {
                settle_backup(self.connection, &job)?;
            }
            relations::rebuild(self.connection)?;
        }
        Ok(self.summary)
    }

    fn examined(&mut self, path: &str, real: &Path, format: &str) -> Examined {
        self.examined
            .remove(path)
            .unwrap_or_else(|| examine(real, format))
    }

    /// Brings the rows of an image that is there in line; `false` where it needs
    /// a backup to belong to first.
    fn reconcile(&mut self, path: &str, sighting: &Sighting, rows: &[Row]) -> Result<bool> {
        let format = rows.last().map_or("qcow2", |row| &row.format);
        let step = step(rows, sighting.identity);
        let row = match step {
            Step::New => return Ok(false),
            Step::Nothing => {
                self.summary.unchanged = self.summary.unchanged.saturating_add(1);
                self.summary.found = self.summary.found.saturating_add(1);
                return Ok(true);
            }
            Step::Settle(row) | Step::Return(row) | Step::Replace(row) => row,
        };
        if !matches!(step, Step::Settle(_)) {
            if let Some(other) = live(rows) {
                self.retire(other)?;
            }
            if live(rows).is_some() || matches!(step, Step::Replace(_)) {
                self.renewed.push(path.to_owned());
            }
            if !self.is_free(&row.job, row.disk_index)? {
                return Ok(false);
            }
        }
        let examined = self.examined(path, &sighting.real, format);
        let state = self.state(path, sighting, &examined);
        let count = match step {
            Step::Return(_) => {
                self.update(row, &state)?;
                &mut self.summary.returned
            }
            Step::Replace(_) => {
                insert(
                    self.connection,
                    &row.job,
                    row.disk_index,
                    path,
                    format,
                    &state,
                )?;
                self.touched.insert(row.job.clone());
                &mut self.summary.changed
            }
            _ => {
                self.settle(row, state, examined.is_err())?;
                &mut self.summary.unchanged
            }
        };
        *count = count.saturating_add(1);
        self.summary.found = self.summary.found.saturating_add(1);
        Ok(true)
    }

    /// Takes over what another look at an image whose row is not settled told.
    fn settle(&mut self, row: &Row, mut state: State, broken: bool) -> Result<()> {
        if !row.by_scan {
            // The hub's word on an image stands while it is the one it spoke of.
            if broken {
                return Ok(());
            }
            state.status.clone_from(&row.state.status);
            state.error.clone_from(&row.state.error);
        }
        if state != row.state {
            self.update(row, &state)?;
        }
        Ok(())
    }

    /// The state that a row of an examined image has; counts and reports it.
    fn state(&mut self, path: &str, sighting: &Sighting, examined: &Examined) -> State {
        let (status, error, virtual_size, backing) = describe(examined, &sighting.real);
        match status {
            "failed" => self.summary.failed = self.summary.failed.saturating_add(1),
            "in_progress" => self.summary.in_progress = self.summary.in_progress.saturating_add(1),
            _ => {}
        }
        if let Some(reason) = &error {
            (self.events)(ScanEvent::Failed {
                path: Path::new(path),
                reason,
            });
        }
        State {
            status: status.to_owned(),
            error,
            virtual_size,
            backing,
            identity: Some(sighting.identity),
        }
    }

    fn is_free(&self, job: &str, disk_index: u32) -> Result<bool> {
        let taken = self
            .connection
            .prepare_cached(
                "SELECT 1 FROM backup_disks
                 WHERE backup_job_id = ?1 AND disk_index = ?2 AND status <> 'missing'",
            )?
            .exists((job, disk_index))?;
        Ok(!taken)
    }

    /// Takes a row out of the tree. One whose content was never complete has
    /// nothing that could return.
    fn retire(&mut self, row: &Row) -> Result<()> {
        let sql = if row.state.status == "completed" || !row.by_scan {
            "UPDATE backup_disks SET status = 'missing' WHERE id = ?1"
        } else {
            "DELETE FROM backup_disks WHERE id = ?1"
        };
        self.connection.prepare_cached(sql)?.execute([row.id])?;
        self.touched.insert(row.job.clone());
        Ok(())
    }

    fn update(&mut self, row: &Row, state: &State) -> Result<()> {
        let identity = state.identity;
        self.connection
            .prepare_cached(
                "UPDATE backup_disks SET status = ?2, error_message = ?3, virtual_size = ?4,
                     backing_path = ?5, file_inode = ?6, file_size = ?7, file_mtime_ns = ?8,
                     size_gb = coalesce(size_gb, ?9) WHERE id = ?1",
            )?
            .execute((
                row.id,
                &state.status,
                &state.error,
                state.virtual_size,
                &state.backing,
                identity.map(|i| i.inode_column()),
                identity.map(|i| i.size_column()),
                identity.map(|i| i.mtime_column()),
                state.virtual_size.map(gigabytes),
            ))?;
        self.touched.insert(row.job.clone());
        Ok(())
    }

    /// What an image shows depends on its backing files: where one of them has
    /// another content now, those above it need new rows too.
    fn renew_dependents(&mut self) -> Result<()> {
        let mut seen: HashSet<String> = HashSet::new();
        while let Some(backing) = self.renewed.pop() {
            if !seen.insert(backing.clone()) {
                continue;
            }
            let dependents: Vec<(i64, String, String, String)> = self
                .connection
                .prepare_cached(
                    "SELECT d.id, d.backup_job_id, d.qcow2_path, d.status
                     FROM backup_disks d WHERE d.backing_path = ?1
                       AND d.status <> 'missing' AND d.qcow2_path IS NOT NULL",
                )?
                .query_map([&backing], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
                })?
                .collect::<rusqlite::Result<_>>()?;
            for (id, job, path, status) in dependents {
                if seen.contains(&path) {
                    continue;
                }
                self.connection
                    .prepare_cached("UPDATE backup_disks SET status = 'missing' WHERE id = ?1")?
                    .execute([id])?;
                self.connection
                    .prepare_cached(
                        "INSERT INTO backup_disks (backup_job_id, disk_index, vmware_disk_key,
                             label, qcow2_path, format, disk_change_id, size_gb, virtual_size,
                             bytes_transferred, status, error_message, backing_path, file_inode,
                             file_size, file_mtime_ns)
                         SELECT backup_job_id, disk_index, vmware_disk_key, label, qcow2_path,
                             format, disk_change_id, size_gb, virtual_size, bytes_transferred, ?2,
                             error_message, backing_path, file_inode, file_size, file_mtime_ns
                         FROM backup_disks WHERE id = ?1",
                    )?
                    .execute((id, status))?;
                self.touched.insert(job);
                self.renewed.push(path);
            }
        }
        Ok(())
    }

    /// Gives images of which nothing is known, sorted by context and stamp, to
    /// backups.
    fn record(&mut self, fresh: &[&Found]) -> Result<()> {
        for images in fresh.chunk_by(|a, b| a.context == b.context) {
            let Some((first, newest)) = images.first().zip(images.last()) else {
                continue;
            };
            let Some(time) = first.name.seconds(self.time_zone) else {
                continue;
            };
            let context = context(
                self.connection,
                self.repository,
                &first.context,
                &newest.name.vm,
                time,
            )?;
            let mut runs = runs(self.connection, &context)?;
            for image in images {
                let Some(time) = image.name.seconds(self.time_zone) else {
                    continue;
                };
                let disk_index = image.name.disk_index;
                let near = (time.saturating_sub(RUN_SECONDS), String::new())
                    ..(
                        time.saturating_add(RUN_SECONDS).saturating_add(1),
                        String::new(),
                    );
                let run = runs
                    .range_mut(near)
                    .filter(|(_, disks)| !disks.contains(&disk_index))
                    .min_by_key(|((first, _), _)| first.abs_diff(time));
                let job = match run {
                    Some(((_, job), disks)) => {
                        disks.insert(disk_index);
                        job.clone()
                    }
                    None => {
                        let job = free_backup_id(self.connection, &image.name.vm, time)?;
                        insert_backup(self.connection, &job, &context, time)?;
                        runs.insert((time, job.clone()), HashSet::from([disk_index]));
                        job
                    }
                };
                let examined = self.examined(&image.path, &image.sighting.real, "qcow2");
                let state = self.state(&image.path, &image.sighting, &examined);
                insert(
                    self.connection,
                    &job,
                    disk_index,
                    &image.path,
                    "qcow2",
                    &state,
                )?;
                self.touched.insert(job);
                self.summary.new = self.summary.new.saturating_add(1);
                self.summary.found = self.summary.found.saturating_add(1);
            }
        }
        Ok(())
    }
}
