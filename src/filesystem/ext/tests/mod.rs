//! The reader against the kernel: the same images, every attribute and byte.
//!
//! Needs root, loop devices, e2fsprogs, `setfacl` and `chattr`.
#![allow(clippy::arithmetic_side_effects)]

mod damage;
mod features;
pub(in crate::filesystem) mod image;
pub(in crate::filesystem) mod walk;

use std::sync::Arc;

use super::Ext;
use crate::filesystem::{Description, FileSystem};
use image::{Image, populate};

/// Fills a new file system through the kernel and compares what we read with
/// what the kernel reads.
fn agrees(size: &str, options: &[&str]) -> Description {
    let image = Image::make(size, options);
    {
        let mount = image.mount("rw");
        populate(mount.path());
    }
    image.agrees()
}

impl Image {
    fn open(&self) -> Ext {
        Ext::open(Arc::new(self.reader())).expect("the image opens")
    }

    /// Compares with the kernel; `blkid` must agree on the rest.
    fn agrees(&self) -> Description {
        let ours = self.open();
        {
            let mount = self.mount("ro,noload");
            walk::compare(
                &walk::ours(&ours, &self.reader()),
                &walk::kernel(mount.path()),
            );
        }
        let description = ours.description();
        assert_eq!(description.kind, self.blkid("TYPE"));
        assert_eq!(description.uuid, self.blkid("UUID"));
        assert_eq!(description.label, self.blkid("LABEL").into_bytes());
        description.clone()
    }
}

#[test]
fn ext4_as_mkfs_makes_it() {
    let description = agrees("200M", &["-t", "ext4", "-b", "4096", "-L", "data"]);
    assert_eq!(description.kind, "ext4");
    assert_eq!(description.label, b"data");
    assert_eq!(description.block_size, 4096);
    assert!(description.notes.is_empty(), "{:?}", description.notes);
}

#[test]
fn ext4_with_small_blocks() {
    agrees("100M", &["-t", "ext4", "-b", "1024"]);
    agrees("100M", &["-t", "ext4", "-b", "2048"]);
}

#[test]
fn ext2_and_ext3() {
    assert_eq!(agrees("100M", &["-t", "ext2", "-b", "1024"]).kind, "ext2");
    assert_eq!(agrees("100M", &["-t", "ext2", "-b", "4096"]).kind, "ext2");
    assert_eq!(agrees("100M", &["-t", "ext3", "-b", "1024"]).kind, "ext3");
    assert_eq!(
        agrees("100M", &["-t", "ext3", "-b", "4096", "-I", "128"]).kind,
        "ext3"
    );
    assert_eq!(
        agrees(
            "100M",
            &["-t", "ext2", "-b", "1024", "-r", "0", "-O", "none"]
        )
        .kind,
        "ext2"
    );
}

#[test]
fn every_size_of_inode() {
    agrees("100M", &["-t", "ext4", "-I", "128"]);
    agrees("100M", &["-t", "ext4", "-I", "1024"]);
    agrees(
        "300M",
        &["-t", "ext4", "-I", "4096", "-b", "4096", "-N", "20000"],
    );
}

#[test]
fn inline_data() {
    agrees("100M", &["-t", "ext4", "-O", "inline_data", "-I", "256"]);
    agrees(
        "100M",
        &[
            "-t",
            "ext4",
            "-O",
            "inline_data,ea_inode",
            "-I",
            "1024",
            "-b",
            "1024",
        ],
    );
}

#[test]
fn clusters() {
    agrees("200M", &["-t", "ext4", "-O", "bigalloc", "-C", "16384"]);
    agrees(
        "200M",
        &["-t", "ext4", "-O", "bigalloc", "-b", "1024", "-C", "8192"],
    );
}

#[test]
fn values_in_inodes() {
    agrees("100M", &["-t", "ext4", "-O", "ea_inode"]);
}

#[test]
fn layouts_of_groups() {
    agrees(
        "100M",
        &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"],
    );
    agrees(
        "100M",
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "meta_bg,^resize_inode,^64bit,^flex_bg",
        ],
    );
    agrees(
        "100M",
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "sparse_super2",
            "-g",
            "256",
        ],
    );
    agrees(
        "100M",
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "^sparse_super,^resize_inode,^64bit",
        ],
    );
}

#[test]
fn checksums_of_before() {
    agrees("100M", &["-t", "ext4", "-O", "^metadata_csum,uninit_bg"]);
    agrees(
        "100M",
        &[
            "-t",
            "ext4",
            "-O",
            "^metadata_csum,uninit_bg,^64bit",
            "-b",
            "1024",
        ],
    );
    agrees("100M", &["-t", "ext4", "-O", "^metadata_csum,^uninit_bg"]);
    agrees("100M", &["-t", "ext4", "-O", "metadata_csum_seed"]);
}

#[test]
fn folders_without_types_or_index() {
    agrees("100M", &["-t", "ext4", "-O", "^filetype"]);
    agrees("100M", &["-t", "ext4", "-O", "^dir_index"]);
    agrees("100M", &["-t", "ext4", "-b", "1024", "-O", "large_dir"]);
}

#[test]
fn features_that_change_nothing_for_a_reader() {
    agrees("100M", &["-t", "ext4", "-O", "^has_journal"]);
    agrees(
        "100M",
        &["-t", "ext4", "-O", "mmp,verity,encrypt,stable_inodes"],
    );
    agrees("100M", &["-t", "ext4", "-O", "fast_commit"]);
    agrees(
        "100M",
        &["-t", "ext4", "-O", "^huge_file,^dir_nlink,^extra_isize"],
    );
    agrees(
        "100M",
        &[
            "-t",
            "ext4",
            "-E",
            "hash_seed=01234567-89ab-cdef-0123-456789abcdef",
        ],
    );
}
