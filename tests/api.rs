//! The HTTP side by its contract, asked by curl.
#![allow(missing_docs, unreachable_pub)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

#[path = "api/access.rs"]
mod access;
#[path = "api/contract.rs"]
mod contract;
#[path = "api/leases.rs"]
mod leases;
#[path = "api/limits.rs"]
mod limits;
#[path = "api/service.rs"]
mod service;
#[path = "api/tls.rs"]
mod tls;

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use serde_json::Value;
use support::http::{Session, disk_of};
use support::images::{full, incremental};
use support::{Lab, shell, wait_for};

/// A VM of one small disk and one full backup.
pub fn small(lab: &Lab, vm: &str) -> PathBuf {
    let disk = disk_of(lab, vm, "8M", |root| {
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/hostname"), format!("{vm}\n")).unwrap();
        // More than the kernel takes off our hands, and no byte of it in the image.
        let large = fs::File::create(root.join("large")).unwrap();
        large.set_len(64 << 20).unwrap();
    });
    full(lab, &disk.path, vm, 0, "20251008-192431")
}

/// Many VMs, named with a number, whose disks are copies of one.
pub fn many(lab: &Lab, vms: usize) {
    let image = small(lab, "vm0");
    for n in 1..vms {
        let copy = support::images::layout(lab, &format!("vm{n}"), 0, "20251008-192431");
        fs::copy(&image, copy).unwrap();
    }
}

/// The VM `pgtest1` of the contract: two disks, the first of them NTFS, a full backup
/// and an incremental one, known from the hub as well. The images, the oldest first.
pub fn pgtest1(lab: &Lab) -> Vec<PathBuf> {
    let ntfs = lab.path("work/windows.raw");
    let folder = lab.path("work/windows");
    fs::create_dir(&folder).unwrap();
    shell(&format!(
        "truncate -s 24M {ntfs:?}; mkntfs -F -Q -q -c 4096 -p 0 -H 16 -S 63 {ntfs:?}
         ntfs-3g {ntfs:?} {folder:?}; trap 'umount {folder:?}' EXIT; cd {folder:?}
         mkdir -p Recovery/WindowsRE/sub
         head -c 1129 /dev/urandom > Recovery/WindowsRE/ReAgent.xml
         touch -d '2025-09-02 05:21:20.1985298 UTC' Recovery/WindowsRE/ReAgent.xml
         head -c 300000 /dev/urandom > Recovery/WindowsRE/Winre.wim; cd /"
    ));
    let data = disk_of(lab, "data", "8M", |root| {
        fs::write(root.join("numbers"), "1\n2\n3\n").unwrap();
    });
    let first = full(lab, &ntfs, "pgtest1", 0, "20251008-182431");
    let second = full(lab, &data.path, "pgtest1", 1, "20251008-182431");
    shell(&format!(
        "ntfs-3g {ntfs:?} {folder:?}; trap 'umount {folder:?}' EXIT
         echo later > {folder:?}/Recovery/later.txt"
    ));
    let later = |raw, disk, on| incremental(lab, raw, "pgtest1", disk, "20251008-184313", on);
    let third = later(&ntfs, 0, &first);
    let fourth = later(&data.path, 1, &second);
    vec![first, second, third, fourth]
}

/// A client that takes 200 KB a second of the `large` file of a mount, until it is killed.
pub struct Slow(Child);

impl Slow {
    pub fn download(who: &Session<'_>, mount: &str) -> Self {
        let path = format!("/api/v1/restore/{mount}/download?path=/large");
        let request = who.request("GET", &path);
        let request = request.with(["--limit-rate", "200K", "-o", "/dev/null"]);
        let slow = Self(request.command().spawn().unwrap());
        wait_for("the download", Duration::from_secs(10), || {
            let running = who.get("/api/v1/restore/downloads").ok();
            let all = running["downloads"].as_array().unwrap();
            all.iter().any(|download| download["mount_id"] == mount)
        });
        slow
    }

    /// Whether it has ended, and if so, well.
    pub fn ended(&mut self) -> Option<bool> {
        self.0.try_wait().unwrap().map(|status| status.success())
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// That all of the contract's `example` is in what was answered; there may be more.
pub fn holds(answer: &Value, example: &Value) {
    fn compare(answer: &Value, example: &Value, place: &str) {
        match (answer, example) {
            (Value::Object(answer), Value::Object(example)) => {
                for (key, value) in example {
                    let place = format!("{place}.{key}");
                    let answer = answer
                        .get(key)
                        .unwrap_or_else(|| panic!("{place}: missing"));
                    compare(answer, value, &place);
                }
            }
            (Value::Array(answer), Value::Array(example)) => {
                assert_eq!(answer.len(), example.len(), "{place}");
                for (n, (answer, example)) in answer.iter().zip(example).enumerate() {
                    compare(answer, example, &format!("{place}[{n}]"));
                }
            }
            _ => assert_eq!(answer, example, "{place}"),
        }
    }
    compare(answer, example, "");
}
