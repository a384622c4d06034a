//! Chains of real images, each opened by a real qemu-nbd.

use super::*;
use crate::attachments::tests::{World, run, text};
use std::path::PathBuf;

fn chain_of(world: &World, length: usize) -> Vec<PathBuf> {
    let mut images: Vec<PathBuf> = Vec::new();
    for number in 0..length {
        let image = world.repository().join(format!("{number}.qcow2"));
        match images.last() {
            None => run("qemu-img", &["create", "-f", "qcow2", text(&image), "4M"]),
            Some(below) => run(
                "qemu-img",
                &[
                    "create",
                    "-f",
                    "qcow2",
                    "-F",
                    "qcow2",
                    "-b",
                    text(below),
                    text(&image),
                ],
            ),
        };
        world.record(&number.to_string(), &image);
        images.push(image);
    }
    images
}

fn restorable(world: &World) -> Arc<Restorable> {
    Restorable::new(Arc::clone(&world.catalog), Arc::clone(&world.slots))
}

fn error(of: &Arc<Restorable>, number: usize) -> Option<String> {
    let checked = of.check(&format!("b-{number}")).unwrap();
    assert_eq!((checked.len(), checked[0].disk_index), (1, 0));
    checked[0].error.clone()
}

#[test]
fn one_process_proves_a_whole_chain() {
    let world = World::new(1, Duration::from_secs(60));
    let images = chain_of(&world, 8);
    let restorable = restorable(&world);
    for number in 0..8 {
        assert_eq!(error(&restorable, number), None);
    }
    assert_eq!(restorable.opened.load(Ordering::Relaxed), 1);
    assert_eq!(world.slots.taken(), 0);
    // A longer chain is another one.
    let image = world.repository().join("8.qcow2");
    run(
        "qemu-img",
        &[
            "create",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            text(&images[7]),
            text(&image),
        ],
    );
    world.record("8", &image);
    assert_eq!(error(&restorable, 8), None);
    assert_eq!(restorable.opened.load(Ordering::Relaxed), 2);
    let unknown = restorable.check("b-99").unwrap_err().to_string();
    assert_eq!(unknown, "backup not found: b-99");
}

#[test]
fn what_lost_an_image_says_which() {
    let world = World::new(1, Duration::from_secs(60));
    let images = chain_of(&world, 4);
    let restorable = restorable(&world);
    assert_eq!(error(&restorable, 3), None);
    std::fs::rename(&images[2], world.dir.path().join("away")).unwrap();
    for number in [2, 3] {
        let error = error(&restorable, number).unwrap();
        assert!(error.contains("2.qcow2"), "{error}");
    }
    assert_eq!(error(&restorable, 1), None);
    // It is believed again as soon as it is there.
    std::fs::rename(world.dir.path().join("away"), &images[2]).unwrap();
    assert_eq!(error(&restorable, 3), None);
    // Content that is cut off is found, though the headers are whole.
    let file = std::fs::File::options()
        .write(true)
        .open(&images[0])
        .unwrap();
    file.set_len(70_000).unwrap();
    drop(file);
    assert!(error(&restorable, 0).is_some());
}

/// A backup that is attached opens, and one that is not finished does not.
#[test]
fn only_what_is_complete_can_be_restored() {
    let world = World::new(1, Duration::from_secs(60));
    let disk = world.backup("0");
    let restorable = restorable(&world);
    world.slots.get(disk).unwrap();
    assert_eq!(error(&restorable, 0), None);
    assert_eq!(restorable.opened.load(Ordering::Relaxed), 0);
    world.sqlite("UPDATE backup_jobs SET status = 'in_progress'");
    assert_eq!(
        error(&restorable, 0).as_deref(),
        Some("the backup is in_progress")
    );
    world.sqlite(
        "UPDATE backup_jobs SET status = 'completed';
         UPDATE backup_disks SET status = 'missing'",
    );
    assert!(
        error(&restorable, 0)
            .unwrap()
            .contains("0.qcow2: the image is not there")
    );
}
