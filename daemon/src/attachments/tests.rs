//! Slots with real images, each behind a real qemu-nbd.

use super::*;
use std::path::{Path, PathBuf};
use std::process::Command;

use sendense::catalog::NewImage;

/// A catalog, and slots over it.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) slots: Arc<Slots>,
}

impl World {
    pub(crate) fn new(slots: usize, idle_timeout: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("repository")).unwrap();
        let catalog = Arc::new(Catalog::open(&dir.path().join("catalog.db")).unwrap());
        let slots = Self::slots(&dir, &catalog, slots, idle_timeout);
        Self {
            dir,
            catalog,
            slots,
        }
    }

    pub(crate) fn slots(
        dir: &tempfile::TempDir,
        catalog: &Arc<Catalog>,
        slots: usize,
        idle_timeout: Duration,
    ) -> Arc<Slots> {
        let export = ExportOptions {
            runtime_dir: dir.path().join("exports"),
            repositories: vec![dir.path().join("repository")],
            connections: 1,
            request_timeout: Duration::from_secs(10),
            start_timeout: Duration::from_secs(10),
        };
        let limits = Limits {
            slots,
            idle_timeout,
            slot_timeout: Duration::from_secs(10),
            recorded_repositories: true,
        };
        Slots::new(
            Arc::clone(catalog),
            BlockCache::new(1 << 20),
            export,
            filesystem::Options::default(),
            limits,
        )
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.dir.path().join("repository")
    }

    /// A full backup of a VM whose only disk has an ext4; the disk's id.
    pub(crate) fn backup(&self, name: &str) -> u64 {
        let image = self.repository().join(format!("{name}.qcow2"));
        let raw = self.dir.path().join("raw");
        std::fs::write(&raw, b"").unwrap();
        std::fs::File::options()
            .write(true)
            .open(&raw)
            .unwrap()
            .set_len(8 << 20)
            .unwrap();
        run("mkfs.ext4", &["-q", "-F", "-L", "data", text(&raw)]);
        run(
            "qemu-img",
            &["convert", "-O", "qcow2", text(&raw), text(&image)],
        );
        self.record(name, &image)
    }

    /// Records an image as disk 0 of the backup `b-<name>`; the disk's id.
    pub(crate) fn record(&self, name: &str, image: &Path) -> u64 {
        let new = NewImage {
            vm: "vm".into(),
            disk_index: 0,
            image: image.to_owned(),
            backup: Some(format!("b-{name}")),
            time: None,
            context: None,
            format: "qcow2".into(),
        };
        self.catalog
            .add_image(&new, &[self.repository()])
            .unwrap_or_else(|e| panic!("{e}"));
        let record = self.catalog.disk_to_mount(&format!("b-{name}"), 0).unwrap();
        u64::try_from(record.id).unwrap()
    }

    /// What another implementation of SQLite says.
    pub(crate) fn sqlite(&self, sql: &str) -> String {
        let database = self.dir.path().join("catalog.db");
        let sql = format!("PRAGMA foreign_keys = on; {sql}");
        run("sqlite3", &[text(&database), &sql]).trim().to_owned()
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn attached(slots: &Slots, id: u64) -> bool {
    slots.peek(id).is_some()
}

#[test]
fn what_is_held_stays() {
    let world = World::new(2, Duration::from_millis(1));
    let (a, b, c) = (world.backup("a"), world.backup("b"), world.backup("c"));
    let slots = &world.slots;
    slots.hold(a).unwrap();
    slots.get(a).unwrap();
    slots.get(b).unwrap();
    // The least recently used of those that are not held goes.
    slots.get(c).unwrap();
    assert!(attached(slots, a) && !attached(slots, b) && attached(slots, c));
    // Nor does it go for being idle.
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(slots.sweep(), 1);
    assert!(attached(slots, a) && !attached(slots, c));
    slots.unhold(a);
    assert!(!attached(slots, a));
    assert_eq!(slots.taken(), 0);
}

#[test]
fn when_all_are_held_others_are_told_at_once() {
    let world = World::new(2, Duration::from_secs(60));
    let (a, b, c) = (world.backup("a"), world.backup("b"), world.backup("c"));
    let slots = &world.slots;
    // One that is attached for somebody gives way to one that is held.
    slots.get(c).unwrap();
    slots.hold(a).unwrap();
    slots.hold(b).unwrap();
    let began = Instant::now();
    let error = slots.hold(c).unwrap_err().to_string();
    assert_eq!(
        error,
        "Maximum concurrent mounts reached (limit: 2). Please unmount a backup first."
    );
    slots.hold(b).unwrap();
    slots.get(a).unwrap();
    slots.get(b).unwrap();
    let error = slots.get(c).err().unwrap();
    assert!(matches!(error, Error::NoSlot { .. }));
    assert!(error.to_string().contains("mounts hold all 2 slots"));
    assert!(began.elapsed() < Duration::from_secs(5));
    // A held disk that has to be attached anew has its slot.
    assert!(slots.release(a));
    slots.get(c).err().unwrap();
    slots.get(a).unwrap();
    slots.unhold(b);
    slots.get(c).unwrap();
    assert_eq!(slots.taken(), 2);
}

/// Who waits for a slot that will not come is told when that becomes certain.
#[test]
fn who_waits_is_told_when_mounts_take_all() {
    let world = World::new(1, Duration::from_secs(60));
    let (a, b) = (world.backup("a"), world.backup("b"));
    let slots = Arc::clone(&world.slots);
    let in_use = slots.get(a).unwrap();
    let waiting = std::thread::spawn({
        let slots = Arc::clone(&slots);
        move || slots.get(b).err().map(|e| e.to_string())
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(!waiting.is_finished());
    let began = Instant::now();
    slots.hold(a).unwrap();
    let error = waiting.join().unwrap().unwrap();
    assert!(error.contains("mounts hold all 1 slots"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(1));
    drop(in_use);
}
