//! The reader against the kernel: the same images, every attribute and byte.
//!
//! Needs root, loop devices, xfsprogs, `setfacl`, `setfattr` and `chattr`.
#![allow(clippy::arithmetic_side_effects)]

mod damage;
mod features;
mod image;
mod log;
mod speed;
mod version4;

use std::sync::Arc;

use super::Xfs;
use crate::filesystem::ext::tests::image::populate;
use crate::filesystem::ext::tests::walk;
use crate::filesystem::{Description, FileSystem};
use image::Image;

/// Fills a new file system through the kernel and compares what we read with
/// what the kernel reads.
fn agrees(size: &str, options: &[&str]) -> Description {
    let image = Image::make(size, options);
    // The log as mkfs leaves it.
    let fresh = image.open();
    assert!(
        fresh.description().notes.is_empty(),
        "{:?}",
        fresh.description().notes
    );
    {
        let mount = image.mount("rw");
        populate(mount.path());
        features::populate(mount.path());
    }
    let description = image.agrees();
    assert!(description.notes.is_empty(), "{:?}", description.notes);
    description
}

impl Image {
    fn open(&self) -> Xfs {
        Xfs::open(Arc::new(self.reader())).expect("the image opens")
    }

    /// Compares with the kernel, on a copy if its log must be replayed; `blkid`
    /// must agree on the rest.
    fn agrees(&self) -> Description {
        let ours = self.open();
        let tree = walk::ours(&ours, &self.reader());
        {
            let mount = self.mount("ro");
            walk::compare(&tree, &walk::kernel(mount.path()));
        }
        let description = ours.description();
        assert_eq!(description.kind, self.blkid("TYPE"));
        assert_eq!(description.uuid, self.blkid("UUID"));
        assert_eq!(description.label, self.blkid("LABEL").into_bytes());
        description.clone()
    }
}
