//! FAT12, FAT16, FAT32 with long names, and exFAT.
//!
//! The idea: in both families a folder is a file of 32-byte slots, a file is a
//! chain of clusters, and the slot that begins an entry holds all that is known
//! of a file. So the number of an inode is the place of that slot on the volume
//! (its byte offset divided by 32), and a call reads the slot and answers from
//! it. The root has no slot; its number is 1, a place in the boot sector. Whether
//! a number that was not given out by a listing is that of an entry can be seen
//! only as far as its bytes tell: that some folder holds it is not checked.
//!
//! From the disk up:
//! - [`boot`], [`exfat_boot`], [`volume`]: where things are, and the table;
//! - [`chain`]: from the n-th byte of a file to a cluster;
//! - [`slots`], [`fat_entry`] ([`short_name`]), [`exfat_entry`], [`entry`]:
//!   entries;
//! - [`folder`], [`holders`]: look-ups and parents;
//! - [`stamp`]: times; [`description`]: the volume.
//!
//! FAT keeps local time and exFAT may; [`Options::time_zone`] says which zone.
//! The size of a FAT folder is shown as one cluster. Of FAT's 11-byte names and
//! long ones the long one is shown, and the other found too where case is
//! ignored.
//!
//! Memory is bounded by: 1 MiB of maps and about 1 MiB of holders for a volume,
//! a table of upper case of 128 KiB for all; for a call, 128 KiB for a map, and
//! 1 MiB for the bitmap when the volume is opened. A chain is followed for at
//! most three times as many steps as there are clusters, a folder for 2 MiB
//! (FAT) or 256 MiB (exFAT).
#![deny(clippy::arithmetic_side_effects)]

mod boot;
mod chain;
mod description;
mod entry;
mod exfat_boot;
mod exfat_entry;
mod fat_entry;
mod folder;
mod holders;
mod short_name;
mod slots;
mod stamp;
#[cfg(test)]
mod tests;
mod volume;

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::windows_name::UpperCase;
use super::{Attr, Description, DirEntry, Extent, FileSystem, FileType, Options, Time};
use crate::error::{Error, Result};
use crate::image::BlockRead;
use chain::Maps;
use entry::{Entry, flag};
use holders::Holders;
use slots::SLOT;
use volume::{Geometry, Root, Volume};

/// The root folder's number: a place in the boot sector.
const ROOT: u64 = 1;

/// Which of the two kinds of entries there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Fat,
    Exfat,
}

/// A FAT or exFAT volume.
pub struct Fat {
    volume: Volume,
    family: Family,
    options: Options,
    description: Description,
    upper_case: OnceLock<Arc<UpperCase>>,
    /// The folder in which a name was found last, and the position after it.
    last_found: Mutex<(u64, u64)>,
}

impl Fat {
    /// Opens a FAT12, FAT16 or FAT32 volume.
    ///
    /// # Errors
    /// `Corrupt` for a boot sector that cannot be used (and no copy that can).
    pub fn open_vfat(source: Arc<dyn BlockRead>, options: Options) -> Result<Self> {
        let boot = boot::read(&*source)?;
        let mut fat = Self::new(Family::Fat, source, boot.geometry.clone(), options);
        fat.description = description::fat(&fat.volume, &boot, &fat.root_folder())?;
        Ok(fat)
    }

    /// Opens an exFAT volume.
    ///
    /// # Errors
    /// `Corrupt` as above, `Unsupported` for a version that is not known.
    pub fn open_exfat(source: Arc<dyn BlockRead>, options: Options) -> Result<Self> {
        let boot = exfat_boot::read(&*source)?;
        let mut fat = Self::new(Family::Exfat, source, boot.geometry.clone(), options);
        fat.description = description::exfat(&fat.volume, &boot, &fat.root_folder())?;
        Ok(fat)
    }

    fn new(
        family: Family,
        source: Arc<dyn BlockRead>,
        geometry: Geometry,
        options: Options,
    ) -> Self {
        Self {
            volume: Volume {
                source,
                geometry,
                maps: Maps::new(),
                holders: Holders::new(),
            },
            family,
            options,
            description: Description::default(),
            upper_case: OnceLock::new(),
            last_found: Mutex::new((0, 0)),
        }
    }

    /// Names an inode in errors.
    fn what(&self, ino: u64) -> String {
        match self.family {
            Family::Fat => format!("vfat inode {ino}"),
            Family::Exfat => format!("exfat inode {ino}"),
        }
    }

    /// The entry that begins at slot `ino` of the volume, which is not the root.
    fn entry(&self, ino: u64) -> Result<Entry> {
        if self.family == Family::Exfat {
            return exfat_entry::entry(&self.volume, ino);
        }
        let absent = || Error::not_found(self.what(ino));
        let geometry = &self.volume.geometry;
        let place = ino.checked_mul(SLOT).ok_or_else(absent)?;
        if let Some(cluster) = geometry.cluster_at(place) {
            if volume::Table::new(&self.volume).entry(cluster)? == 0 {
                return Err(absent());
            }
        } else {
            match geometry.root {
                Root::Fixed { offset, len }
                    if (offset..offset.saturating_add(len)).contains(&place) => {}
                _ => return Err(absent()),
            }
        }
        let mut slot = [0; 32];
        self.volume.source.read_at(place, &mut slot)?;
        fat_entry::parse(&slot, geometry.width).ok_or_else(absent)
    }

    fn mode(&self, entry: &Entry) -> u16 {
        if entry.is_directory() {
            // Of a folder the bit means something else to Windows.
            self.options.directory_mode
        } else if entry.attributes & flag::READ_ONLY != 0 {
            self.options.file_mode & !0o222
        } else {
            self.options.file_mode
        }
    }

    fn attributes(&self, ino: u64) -> Result<Attr> {
        let cluster = self.volume.geometry.cluster;
        let mut attr = Attr {
            ino,
            kind: FileType::Directory,
            mode: self.options.directory_mode,
            size: cluster,
            blocks: cluster / 512,
            // Of a folder: not counted.
            nlink: 1,
            uid: self.options.uid,
            gid: self.options.gid,
            rdev: 0,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            btime: None,
            may_have_xattrs: false,
        };
        if ino == ROOT {
            return Ok(attr);
        }
        let entry = self.entry(ino)?;
        attr.mode = self.mode(&entry);
        if !entry.is_directory() {
            attr.kind = FileType::Regular;
        }
        if !entry.is_directory() || self.family == Family::Exfat {
            attr.size = entry.size;
            let clusters = self.volume.geometry.clusters_of(entry.size);
            attr.blocks = clusters.saturating_mul(cluster / 512);
        }
        let zone = &self.options.time_zone;
        attr.mtime = entry.modified.resolve(zone);
        attr.ctime = attr.mtime;
        attr.atime = match entry.accessed {
            Some(stamp) => stamp.resolve(zone),
            None => attr.mtime,
        };
        attr.btime = entry.created.map(|stamp| stamp.resolve(zone));
        Ok(attr)
    }

    /// The extents of bytes `offset..end` of the file, all of them written.
    fn written(
        &self,
        ino: u64,
        entry: &Entry,
        offset: u64,
        end: u64,
        out: &mut Vec<Extent>,
    ) -> Result<()> {
        let damaged = |reason: &str| Error::corrupt(self.what(ino), reason);
        let cluster = self.volume.geometry.cluster;
        let chain = entry
            .chain
            .ok_or_else(|| damaged("it has a length but no clusters"))?;
        let mut cursor = self
            .volume
            .seek(chain, offset.checked_div(cluster).unwrap_or(0))?;
        let mut skip = offset.checked_rem(cluster).unwrap_or(0);
        let mut at = offset;
        while at < end {
            let Some(number) = cursor.next()? else {
                let reason = cursor.broken();
                return Err(damaged(
                    reason.unwrap_or("its chain of clusters is shorter than the file"),
                ));
            };
            let skipped = std::mem::take(&mut skip);
            let place = self.volume.geometry.offset(number).saturating_add(skipped);
            let more = cluster.saturating_sub(skipped).min(end.saturating_sub(at));
            at = at.saturating_add(more);
            let (offset, len) = (place, more);
            Extent::Volume { offset, len }.append_to(out);
        }
        Ok(())
    }
}

impl FileSystem for Fat {
    fn root(&self) -> u64 {
        ROOT
    }

    fn inode_bound(&self) -> Option<u64> {
        Some((self.volume.source.size() / SLOT).saturating_add(1))
    }

    fn description(&self) -> &Description {
        &self.description
    }

    fn attr(&self, ino: u64) -> Result<Attr> {
        self.attributes(ino)
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<u64> {
        match name {
            b"." => self.folder(dir).map(|folder| folder.ino),
            b".." => self.holder(dir),
            _ => self.find(dir, name),
        }
    }

    fn parent(&self, dir: u64) -> Result<u64> {
        self.holder(dir)
    }

    fn read_dir(
        &self,
        dir: u64,
        position: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.list(dir, position, each)
    }

    fn extents(&self, ino: u64, offset: u64, len: u64, out: &mut Vec<Extent>) -> Result<()> {
        let is_directory = || Error::IsADirectory {
            what: self.what(ino),
        };
        if ino == ROOT {
            return Err(is_directory());
        }
        let entry = self.entry(ino)?;
        if entry.is_directory() {
            return Err(is_directory());
        }
        if let Some(reason) = entry.sealed {
            return Err(Error::Unsupported {
                what: self.what(ino),
                reason: reason.into(),
            });
        }
        let end = offset.saturating_add(len).min(entry.size);
        let written = end.min(entry.written);
        if offset < written {
            self.written(ino, &entry, offset, written, out)?;
        }
        let hole = end.saturating_sub(written.max(offset));
        if hole > 0 {
            Extent::Hole { len: hole }.append_to(out);
        }
        Ok(())
    }

    fn read(&self, ino: u64, _offset: u64, _buf: &mut [u8]) -> Result<usize> {
        Err(Error::Unsupported {
            what: self.what(ino),
            reason: "nothing on this volume has to be decoded".into(),
        })
    }

    fn read_link(&self, ino: u64) -> Result<Vec<u8>> {
        Err(Error::Invalid(format!(
            "{}: not a symbolic link",
            self.what(ino)
        )))
    }

    fn xattr_names(&self, _ino: u64) -> Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }

    fn xattr(&self, _ino: u64, _name: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
}
