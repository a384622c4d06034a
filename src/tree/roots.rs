//! What the folders `disk<N>` look like.
//!
//! Nobody can know before somebody has looked inside the disk; after that they
//! are the guest's root folder, and stay it when the disk is released. So what a
//! look inside has shown is remembered here.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::attached::{AttachedDisk, AttachedVolume};
use super::inode::Inode;
use super::node::directory;
use super::xattr;
use crate::error::Result;
use crate::filesystem::Attr;

/// Folders that are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(16_383);

/// A folder `disk<N>`.
pub(crate) struct DiskRoot {
    /// With the tree's inode number.
    pub(crate) attr: Attr,
    /// Names and values.
    pub(crate) xattrs: xattr::Attributes,
    /// Whether it will always look like this: not where something is not shown
    /// for want of another disk.
    pub(crate) lasting: bool,
}

impl DiskRoot {
    fn of(disk: &AttachedDisk) -> Result<Self> {
        let ino = Inode::Disk(disk.id).number()?;
        let ours = |links: usize| {
            let nlink = u32::try_from(links).unwrap_or(u32::MAX).saturating_add(2);
            directory(ino, disk.record().time, nlink)
        };
        let own = disk.depends_on().is_none();
        let Some(volume) = disk.single() else {
            return Ok(Self {
                attr: ours(disk.volumes.len()),
                xattrs: Vec::new(),
                lasting: own,
            });
        };
        let mut xattrs = xattr::of_volume(volume);
        let AttachedVolume { fs: Ok(fs), .. } = volume else {
            return Ok(Self {
                attr: ours(0),
                xattrs,
                lasting: own,
            });
        };
        for name in fs.xattr_names(fs.root())? {
            if let Some(value) = fs.xattr(fs.root(), &name)? {
                xattrs.push((name, value));
            }
        }
        let attr = Attr {
            ino,
            may_have_xattrs: true,
            ..fs.attr(fs.root())?
        };
        Ok(Self {
            attr,
            xattrs,
            lasting: true,
        })
    }
}

/// All that are known.
pub(crate) struct DiskRoots(Mutex<LruCache<u64, Arc<DiskRoot>>>);

impl DiskRoots {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(LruCache::new(REMEMBERED)))
    }

    /// The folder of disk `id`, if it is known, or if `attached` finds the disk
    /// attached.
    ///
    /// # Errors
    /// What keeps the root folder from being read.
    pub(crate) fn get(
        &self,
        id: u64,
        attached: impl FnOnce() -> Option<Arc<AttachedDisk>>,
    ) -> Result<Option<Arc<DiskRoot>>> {
        if let Some(known) = self.0.lock().get(&id) {
            return Ok(Some(Arc::clone(known)));
        }
        let Some(disk) = attached() else {
            return Ok(None);
        };
        let root = Arc::new(DiskRoot::of(&disk)?);
        if root.lasting {
            self.0.lock().put(id, Arc::clone(&root));
        }
        Ok(Some(root))
    }
}
