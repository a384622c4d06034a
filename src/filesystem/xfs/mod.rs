//! XFS of versions 4 and 5, as a mount shows it.
//!
//! The idea: nothing is kept but what the log holds. Opening reads the superblock
//! and, if the file system was in use when the image was taken, lays the changes
//! in its log over the volume in memory ([`log`]), as a mount would write them.
//! Each call then reads exactly the structures it needs through the block cache
//! below, and verifies the checksum of each.
//!
//! - [`field`], [`superblock`], [`store`], [`overlay`]: structures, geometry,
//!   blocks that are what they say;
//! - [`log`]: what was not written yet;
//! - [`inode`] and [`allocation`]: from an inode number to attributes;
//! - [`map`] and [`file`]: from a file's blocks to the volume's;
//! - [`directory`], [`xattr`], and the [`index`] they share: names;
//! - [`description`]: the volume.
//!
//! Memory is bounded by: 128 MiB of changes from the log for a volume, and none
//! if it was unmounted; 64 MiB more while the log is read; for a call, 64 KiB for
//! a block of a folder, 64 KiB for a value, 64 KiB for the names of attributes.
#![deny(clippy::arithmetic_side_effects)]

mod allocation;
mod description;
mod directory;
mod field;
mod file;
mod index;
mod inode;
mod log;
mod map;
mod overlay;
mod store;
mod superblock;
#[cfg(test)]
mod tests;
mod xattr;

use std::ops::ControlFlow;
use std::sync::Arc;

use super::{Attr, Description, DirEntry, Extent, FileSystem, FileType};
use crate::error::{Error, Result};
use crate::image::BlockRead;
use overlay::Overlay;
use store::Store;
use superblock::Superblock;

/// An XFS.
pub struct Xfs {
    store: Store,
    description: Description,
    /// Whether the trees that say what is in use are as the guest left them.
    trees_are_current: bool,
}

impl Xfs {
    /// Opens it; reads the superblock, the end of the log, and what was not
    /// written yet.
    ///
    /// # Errors
    /// `Corrupt` for a superblock that contradicts itself, `Unsupported` for
    /// features that are not known. A log that cannot be used is none: the
    /// description tells.
    pub fn open(volume: Arc<dyn BlockRead>) -> Result<Self> {
        let len = Superblock::MAX_LEN.min(usize::try_from(volume.size()).unwrap_or(usize::MAX));
        let mut raw = vec![0; len];
        volume.read_at(0, &mut raw)?;
        let superblock = Superblock::parse(&raw, true)?;
        let mut store = Store {
            volume,
            superblock,
            overlay: Overlay::default(),
        };
        let state = log::recover(&mut store)?;
        let trees_are_current = state.is_current();
        let description = description::describe(&store, &state);
        Ok(Self {
            store,
            description,
            trees_are_current,
        })
    }
}

impl FileSystem for Xfs {
    fn root(&self) -> u64 {
        self.store.superblock.root
    }

    fn inode_bound(&self) -> Option<u64> {
        let bound = self.store.superblock.inode_bound();
        (bound > self.store.volume.size() / 128).then_some(bound)
    }

    fn description(&self) -> &Description {
        &self.description
    }

    fn attr(&self, ino: u64) -> Result<Attr> {
        Ok(self.stat(&self.inode(ino)?))
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<u64> {
        let folder = self.folder(dir)?;
        match name {
            b"." => Ok(dir),
            b".." => self.parent(dir),
            _ => self.find(&folder, name)?.ok_or_else(|| {
                Error::not_found(format!("{} in {}", name.escape_ascii(), folder.what()))
            }),
        }
    }

    fn parent(&self, dir: u64) -> Result<u64> {
        if dir == self.root() {
            Ok(dir)
        } else {
            self.parent_of(&self.folder(dir)?)
        }
    }

    fn read_dir(
        &self,
        dir: u64,
        position: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.list(&self.folder(dir)?, position, each)
    }

    fn extents(&self, ino: u64, offset: u64, len: u64, out: &mut Vec<Extent>) -> Result<()> {
        let inode = self.inode(ino)?;
        match inode.kind {
            FileType::Regular => self.file_extents(&inode, offset, len, out),
            FileType::Directory => Err(Error::IsADirectory { what: inode.what() }),
            _ => Err(Error::Invalid(format!(
                "{}: not a regular file",
                inode.what()
            ))),
        }
    }

    fn read(&self, ino: u64, _offset: u64, _buf: &mut [u8]) -> Result<usize> {
        Err(Error::Unsupported {
            what: inode::what(ino),
            reason: "nothing in XFS has to be decoded".into(),
        })
    }

    fn read_link(&self, ino: u64) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        match inode.kind {
            FileType::Symlink => self.target(&inode),
            _ => Err(Error::Invalid(format!(
                "{}: not a symbolic link",
                inode.what()
            ))),
        }
    }

    fn xattr_names(&self, ino: u64) -> Result<Vec<Vec<u8>>> {
        self.attribute_names(&self.inode(ino)?)
    }

    fn xattr(&self, ino: u64, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.attribute(&self.inode(ino)?, name)
    }
}
