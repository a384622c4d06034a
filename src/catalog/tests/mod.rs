//! Real databases, real images made by `qemu-img`, real processes.

mod ahead;
mod exchange;
mod folders;
mod layout;
mod mounts;
mod processes;
mod record;
mod scan;
mod users;

use super::*;
use jiff::tz::{TimeZone, offset};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A repository and a catalog.
struct World {
    _dir: TempDir,
    repository: PathBuf,
    database: PathBuf,
    catalog: Catalog,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let repository = dir.path().canonicalize().unwrap().join("repository");
        std::fs::create_dir(&repository).unwrap();
        let database = dir.path().join("state/catalog.db");
        let catalog = Catalog::open(&database).unwrap();
        Self {
            _dir: dir,
            repository,
            database,
            catalog,
        }
    }

    /// A path by the layout; its folders are made.
    fn path(&self, context: &str, vm: &str, disk: u32, stamp: &str) -> PathBuf {
        let folder = self.repository.join(context).join(format!("disk-{disk}"));
        std::fs::create_dir_all(&folder).unwrap();
        folder.join(format!("backup-{vm}-disk{disk}-{stamp}.qcow2"))
    }

    /// A full image.
    fn image(&self, context: &str, vm: &str, disk: u32, stamp: &str) -> PathBuf {
        let path = self.path(context, vm, disk, stamp);
        qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "5M"]);
        path
    }

    /// An incremental image.
    fn overlay(&self, backing: &Path, stamp: &str) -> PathBuf {
        let name = backing.file_name().unwrap().to_str().unwrap();
        let stem = name.strip_suffix(".qcow2").unwrap();
        let (rest, _) = stem.rsplit_once('-').unwrap();
        let (rest, _) = rest.rsplit_once('-').unwrap();
        let path = backing.with_file_name(format!("{rest}-{stamp}.qcow2"));
        let (path_text, backing) = (path.to_str().unwrap(), backing.to_str().unwrap());
        qemu_img(&[
            "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, path_text,
        ]);
        path
    }

    fn scan(&self) -> ScanSummary {
        self.scan_with(&mut |_| {})
    }

    fn scan_with(&self, events: &mut dyn FnMut(ScanEvent<'_>)) -> ScanSummary {
        let time_zone = TimeZone::fixed(offset(1));
        self.catalog
            .scan(
                &self.repository,
                &ScanOptions {
                    time_zone,
                    all_gone: true,
                    ..ScanOptions::default()
                },
                events,
            )
            .unwrap()
    }

    /// The contents of every table, ids included.
    fn dump(&self) -> String {
        dump(&self.database)
    }

    fn sql(&self, sql: &str) {
        self.catalog.writer.lock().execute_batch(sql).unwrap();
    }

    fn value<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        self.catalog
            .row(sql, [], |row| row.get(0))
            .unwrap()
            .unwrap()
    }

    /// All that the tree would show, as `vm/backup/disk<N>`, with the ids.
    fn tree(&self) -> Vec<(String, i64)> {
        let mut shown = Vec::new();
        for vm in self.catalog.vm_folders().unwrap() {
            shown.push((vm.name.clone(), vm.id));
            for backup in self.catalog.backup_folders(vm.id).unwrap() {
                let path = format!("{}/{}", vm.name, backup.name);
                shown.push((path.clone(), backup.id));
                for disk in self.catalog.disks(backup.id).unwrap() {
                    assert_eq!(disk.backup_id, backup.name);
                    assert_eq!(disk.vm_name, vm.name);
                    assert_eq!(
                        self.catalog.disk(disk.id).unwrap(),
                        Some((disk.clone(), backup.id))
                    );
                    shown.push((format!("{path}/disk{}", disk.disk_index), disk.id));
                }
            }
        }
        shown
    }

    fn names(&self) -> Vec<String> {
        self.tree().into_iter().map(|(name, _)| name).collect()
    }

    fn id(&self, name: &str) -> i64 {
        let tree = self.tree();
        tree.iter()
            .find(|(path, _)| path == name)
            .unwrap_or_else(|| panic!("{name}: {tree:?}"))
            .1
    }
}

fn dump(database: &Path) -> String {
    let output = Command::new("sqlite3")
        .args(["-readonly", database.to_str().unwrap(), ".dump"])
        .output()
        .expect("the program sqlite3 is needed");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn qemu_img(args: &[&str]) -> String {
    let output = Command::new("qemu-img")
        .args(args)
        .output()
        .expect("qemu-img is needed");
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
