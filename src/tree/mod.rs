//! VM, backup, disk, volume, file: one read-only tree, addressed by inode
//! number. FUSE, the command line and later REST are adapters over it.

use crate::catalog::Catalog;
use crate::error::Result;
use crate::filesystem::{Attr, FileType};
use crate::image::Completion;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Attributes of a node of the tree; `attr.ino` is the tree's inode number.
#[derive(Debug, Clone)]
pub struct Node {
    /// What `stat` shows.
    pub attr: Attr,
    /// Whether it can never change: it may be cached for ever. Folders above
    /// the disks follow the catalog and are not stable.
    pub stable: bool,
}

/// One entry of a folder of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The tree's inode number.
    pub ino: u64,
    /// Raw bytes; never `.` or `..`.
    pub name: &'a [u8],
    /// Type of the node.
    pub kind: FileType,
    /// Position to go on from.
    pub next: u64,
}

/// What to look for in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is data.
    Data,
    /// The next byte that lies in a hole (the end of the file is one).
    Hole,
}

/// Attached disks, given out on demand.
pub trait Attachments: Send + Sync {}

/// The tree.
pub struct Tree {}

impl Tree {
    /// Inode number of the root.
    pub const ROOT: u64 = 1;
    /// The tree of the backups in `catalog`, whose disks `attachments` gives out.
    pub fn new(_catalog: Arc<Catalog>, _attachments: Arc<dyn Attachments>) -> Self {
        Self {}
    }
    /// The node that `name` is in folder `parent`.
    pub fn lookup(&self, _parent: u64, _name: &[u8]) -> Result<Node> {
        Err(crate::Error::WouldWait)
    }
    /// The node with this inode number.
    pub fn node(&self, _ino: u64) -> Result<Node> {
        Err(crate::Error::WouldWait)
    }
    /// The inode number of the folder that holds folder `ino`.
    pub fn parent(&self, _ino: u64) -> Result<u64> {
        Err(crate::Error::WouldWait)
    }
    /// Calls `each` with the entries of a folder from `position` (0 or an
    /// earlier entry's `next`) until it breaks.
    pub fn read_dir(
        &self,
        _ino: u64,
        _position: u64,
        _each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        Ok(())
    }
    /// The target of a symbolic link.
    pub fn read_link(&self, _ino: u64) -> Result<Vec<u8>> {
        Ok(vec![])
    }
    /// Names of the extended attributes.
    pub fn xattr_names(&self, _ino: u64) -> Result<Vec<Vec<u8>>> {
        Ok(vec![])
    }
    /// Value of one extended attribute.
    pub fn xattr(&self, _ino: u64, _name: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    /// Reads up to `len` bytes of a file from `offset` and calls `done` with
    /// what there is (shorter only at the end of the file).
    pub fn read(&self, _ino: u64, _offset: u64, _len: usize, _done: Completion) {}
    /// Reads and waits; returns the number of bytes, short only at the end.
    pub fn read_at(&self, _ino: u64, _offset: u64, _buf: &mut [u8]) -> Result<usize> {
        Ok(0)
    }
    /// The next data or hole of a file at or after `offset`; `None` past the end.
    pub fn seek(&self, _ino: u64, _offset: u64, _what: Seek) -> Result<Option<u64>> {
        Ok(None)
    }
    /// The node at a path below the root, its components separated by `/`; no
    /// symlink is followed but the tree's own `latest`.
    pub fn resolve(&self, _path: &[u8]) -> Result<Node> {
        Err(crate::Error::WouldWait)
    }
}
