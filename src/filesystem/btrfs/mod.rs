//! btrfs, as `mount -o ro,rescue=nologreplay` shows it.
//!
//! The idea: all metadata is B-trees of items by key, so every question is a
//! search by key and perhaps a short scan. A reader keeps the chunk map (which
//! says where the trees lie), the list of subvolumes (which says how inodes are
//! numbered), and a few verified nodes and decoded extents.
//!
//! From the disk up:
//! - [`superblock`], [`chunk`] (devices, RAID profiles), [`open`];
//! - [`node`] (verified by [`checksum`]) and [`tree`] (search and scan);
//! - [`subvolume`]: which trees hold files, and the numbers of their inodes;
//! - [`inode`], [`directory`], [`xattr`];
//! - [`extent`]: the content of files; [`compress`] and [`lzo`] decode it,
//!   [`verified`] reads what is verified here, [`decoded`] keeps what was decoded;
//! - [`description`].
//!
//! Every node's checksum is verified, and that of data: what is decoded here or
//! belongs to a small file by this reader, the rest by whoever reads it
//! ([`super::Check`]), who comes back for another copy if one is wrong. The log tree
//! (what was fsynced after the last commit) is not replayed; [`Description::notes`]
//! says so where it matters.
//!
//! Memory is bounded by: 4 MiB of nodes and 2 MiB of decoded extents; 20 MiB of
//! chunks (1 MiB for 10 TiB as they are made today); 2 MiB of subvolumes; 1 MiB for
//! each read under way of compressed data.
#![deny(clippy::arithmetic_side_effects)]

mod checksum;
mod chunk;
mod compress;
mod decoded;
mod description;
mod directory;
mod extent;
mod inode;
mod lzo;
mod node;
mod open;
mod subvolume;
mod superblock;
#[cfg(test)]
mod tests;
mod tree;
mod verified;
mod xattr;

use std::ops::ControlFlow;

use super::{Attr, Description, DirEntry, Extent, FileSystem, FileType};
use crate::error::{Error, Result};
use decoded::Decoded;
use node::Nodes;
use subvolume::{Place, Subvolumes};
use tree::Tree;

/// A btrfs file system on one or several devices.
pub struct Btrfs {
    nodes: Nodes,
    /// The root tree, which says where the others are.
    roots: Tree,
    /// The checksums of data; a file system need not have them.
    checksums: Option<Tree>,
    subvolumes: Subvolumes,
    /// Number of the root folder.
    root: u64,
    decoded: Decoded,
    description: Description,
}

impl Btrfs {
    fn place(&self, ino: u64) -> Result<Place<'_>> {
        self.subvolumes.place(ino)
    }

    /// The inode of a regular file.
    fn file<'a>(&self, place: &Place<'a>) -> Result<inode::Inode<'a>> {
        let inode = self.inode(place)?;
        match inode.kind {
            FileType::Regular => Ok(inode),
            FileType::Directory => Err(Error::IsADirectory { what: inode.what() }),
            _ => Err(Error::Invalid(format!(
                "{}: not a regular file",
                inode.what()
            ))),
        }
    }
}

impl FileSystem for Btrfs {
    fn root(&self) -> u64 {
        self.root
    }

    fn inode_bound(&self) -> Option<u64> {
        Some(self.subvolumes.bound)
    }

    fn description(&self) -> &Description {
        &self.description
    }

    fn attr(&self, ino: u64) -> Result<Attr> {
        self.attributes(&self.place(ino)?)
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<u64> {
        match name {
            b"." => Ok(dir),
            b".." => self.parent(dir),
            _ => self.find(&self.place(dir)?, name),
        }
    }

    fn parent(&self, dir: u64) -> Result<u64> {
        self.parent_of(&self.place(dir)?)
    }

    fn read_dir(
        &self,
        dir: u64,
        position: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.list(&self.place(dir)?, position, each)
    }

    fn extents(&self, ino: u64, offset: u64, len: u64, out: &mut Vec<Extent>) -> Result<()> {
        self.file_extents(&self.file(&self.place(ino)?)?, offset, len, out)
    }

    fn read(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.read_content(&self.file(&self.place(ino)?)?, offset, buf)
    }

    fn read_link(&self, ino: u64) -> Result<Vec<u8>> {
        self.link_target(&self.inode(&self.place(ino)?)?)
    }

    fn xattr_names(&self, ino: u64) -> Result<Vec<Vec<u8>>> {
        let place = self.place(ino)?;
        if place.stub.is_some() {
            return Ok(Vec::new());
        }
        self.attribute_names(&self.inode(&place)?)
    }

    fn xattr(&self, ino: u64, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let place = self.place(ino)?;
        if place.stub.is_some() {
            return Ok(None);
        }
        self.attribute(&self.inode(&place)?, name)
    }
}
