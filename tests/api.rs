//! The HTTP side by its contract.
#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::fs;

use support::http::{Api, disk_of};
use support::images::full;

#[test]
fn smoke() {
    let api = Api::with("", |lab| {
        let disk = disk_of(lab, "one", "16M", |root| {
            fs::write(root.join("file"), "content").unwrap();
        });
        full(lab, &disk.path, "vm", 0, "20251008-192431");
    });
    let admin = api.login("admin");
    let backups = admin.backups("vm");
    let mount = admin.try_mount(&backups[0], 0);
    println!("{:?} {}", mount.headers, mount.text());
    let id = mount.ok()["mount_id"].as_str().unwrap().to_owned();
    let files = admin.get(&format!("/api/v1/restore/{id}/files?path=/"));
    println!("{}", files.text());
    println!("{}", api.pid());
}
