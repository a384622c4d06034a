//! Folders: by name, in order, and upwards.
//!
//! The idea: each entry is there twice, as a DIR_ITEM found by the hash of its
//! name and as a DIR_INDEX found by the number it was given when it was made.
//! That number is the position of a listing: it is never given again.
//!
//! `struct btrfs_dir_item`, one after the other where hashes are the same:
//! location (key[17]), transid 17, data_len u16 25, name_len u16 27, type u8 29,
//! then name and data.

use std::ops::ControlFlow;

use super::Btrfs;
use super::checksum::name_hash;
use super::inode::Inode;
use super::node::Key;
use super::subvolume::{FIRST_OBJECT, Place, ROOT_ITEM, TOP, TOP_LEVEL};
use crate::error::{Error, Result};
use crate::filesystem::field::{slice_at, u8_at, u16_at};
use crate::filesystem::{DirEntry, FileType, is_name};

const INODE_REF: u8 = 12;
const DIR_ITEM: u8 = 84;
const DIR_INDEX: u8 = 96;

/// One `struct btrfs_dir_item`.
pub(super) struct Entry<'a> {
    pub(super) location: Key,
    pub(super) name: &'a [u8],
    /// An extended attribute's value.
    pub(super) data: &'a [u8],
    kind: u8,
}

impl<'a> Entry<'a> {
    /// The one that `bytes` begin with, and what follows it.
    fn parse(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let data_len = usize::from(u16_at(bytes, 25)?);
        let name_len = usize::from(u16_at(bytes, 27)?);
        let rest = bytes.get(30..)?;
        let entry = Self {
            location: Key::parse(bytes, 0)?,
            name: rest.get(..name_len)?,
            data: slice_at(rest, name_len, data_len)?,
            kind: u8_at(bytes, 29)?,
        };
        Some((entry, rest.get(name_len.checked_add(data_len)?..)?))
    }

    fn kind(&self) -> Option<FileType> {
        if self.location.kind == ROOT_ITEM {
            return Some(FileType::Directory);
        }
        // The upper bit says that the name is encrypted.
        FileType::of_entry(self.kind & 0x7f)
    }

    fn has_sound_name(&self) -> bool {
        is_name(self.name) && self.name.len() <= 255
    }
}

/// The entries in one item; `None` in place of one that is not all there.
pub(super) fn entries(item: &[u8]) -> impl Iterator<Item = Option<Entry<'_>>> {
    let mut rest = item;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        match Entry::parse(rest) {
            Some((entry, after)) => {
                rest = after;
                Some(Some(entry))
            }
            None => {
                rest = &[];
                Some(None)
            }
        }
    })
}

impl Btrfs {
    /// The inode of a folder; that of a stub is the folder it lies in.
    fn folder<'a>(&self, place: &Place<'a>) -> Result<Inode<'a>> {
        let inode = self.inode(place)?;
        if inode.kind != FileType::Directory {
            return Err(Error::NotADirectory { what: inode.what() });
        }
        Ok(inode)
    }

    /// The number that a name has.
    pub(super) fn find(&self, place: &Place<'_>, name: &[u8]) -> Result<u64> {
        let folder = self.folder(place)?;
        let missing = || Error::not_found(format!("{} in {}", name.escape_ascii(), folder.what()));
        if place.stub.is_some() {
            return Err(missing());
        }
        let key = folder.key(DIR_ITEM, name_hash(name));
        if let Some(item) = self.nodes.get(&folder.subvolume.tree, key)? {
            for entry in entries(item.data()?) {
                let entry = entry.ok_or_else(|| folder.corrupt("an entry of it is cut off"))?;
                if entry.name == name && entry.has_sound_name() {
                    return self.target(place, name, entry.location);
                }
            }
        }
        let top = self.subvolumes.outside(TOP);
        match top.filter(|_| name == TOP_LEVEL && self.hides_top_level(&folder)) {
            Some(top) => Ok(top.number(FIRST_OBJECT)),
            None => Err(missing()),
        }
    }

    /// Whether it is the root, and the root is not the top level.
    fn hides_top_level(&self, folder: &Inode<'_>) -> bool {
        folder.subvolume.id != TOP && folder.number == self.root
    }

    /// Lists a folder: see [`crate::filesystem::FileSystem::read_dir`]. A
    /// position is one more than the number of the entry before.
    pub(super) fn list(
        &self,
        place: &Place<'_>,
        position: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let folder = self.folder(place)?;
        if place.stub.is_some() {
            return Ok(());
        }
        let mut damage = None;
        let first = folder.key(DIR_INDEX, position);
        let mut cursor = self.nodes.seek(&folder.subvolume.tree, first)?;
        while let Some((key, item)) = cursor.next()? {
            if (key.objectid, key.kind) != (first.objectid, first.kind) {
                break;
            }
            let Some(next) = key.offset.checked_add(1) else {
                break;
            };
            let entry = Entry::parse(item).map(|(entry, _)| entry);
            let Some(entry) = entry.filter(Entry::has_sound_name) else {
                damage = Some(folder.corrupt("it has an entry whose name is none"));
                continue;
            };
            let flow = each(DirEntry {
                ino: self.target(place, entry.name, entry.location)?,
                name: entry.name,
                kind: entry.kind(),
                next,
            });
            if flow.is_break() {
                return Ok(());
            }
        }
        damage.map_or(Ok(()), Err)
    }

    /// The folder that holds a folder.
    pub(super) fn parent_of(&self, place: &Place<'_>) -> Result<u64> {
        let folder = self.folder(place)?;
        if place.stub.is_some() {
            return Ok(folder.number);
        }
        if folder.objectid == FIRST_OBJECT {
            return self.parent_of_subvolume(folder.subvolume);
        }
        let last = folder.key(INODE_REF, u64::MAX);
        let item = self.nodes.last_until(&folder.subvolume.tree, last)?;
        let parent =
            item.filter(|item| (item.key.objectid, item.key.kind) == (last.objectid, last.kind));
        let parent = parent.ok_or_else(|| folder.corrupt("nothing says where it lies"))?;
        Ok(folder.subvolume.number(parent.key.offset))
    }
}
