//! Folders: a file of records, always read in the order they lie in.
//!
//! The idea: the position of a record is its byte offset, whatever kind of
//! folder it is. An index (see [`super::htree`]) hides in what looks like empty
//! records, so that indexed folders are read in the same way, and inline
//! folders are two short pieces at the offsets where their bytes would lie. A
//! damaged block costs its own entries only: the error comes last.

use std::ops::ControlFlow;

use fs_ext4::dir::has_csum_tail;
use fs_ext4::features::{Compat, Incompat};
use fs_ext4::inode::InodeFlags;

use super::inode::Inode;
use super::map::Run;
use super::{Ext, ROOT, border, le16, le32};
use crate::error::{Error, Result};
use crate::filesystem::{DirEntry, FileType, is_name};

/// How much of a folder is read at once.
const CHUNK: u64 = 32 * 1024;

/// Where the records of an inline folder begin: after its parent's number.
const INLINE_START: usize = 4;

/// Where `i_block` ends, and `system.data` goes on.
const INLINE_MIDDLE: usize = 60;

/// A record in use.
pub(super) struct Record<'a> {
    pub(super) ino: u32,
    pub(super) name: &'a [u8],
    kind: u8,
    /// Where it lies in its block.
    offset: usize,
    /// Where the next one lies.
    next: usize,
}

/// The records in use of one block, or of one of the two parts of an inline
/// folder (`struct ext4_dir_entry_2`):
///
/// ```text
/// 0 u32 inode (0: not in use)   6 u8 name_len
/// 4 u16 rec_len                 7 u8 file_type   8 name
/// ```
///
/// Ends with the reason if a record contradicts itself.
pub(super) struct Records<'a> {
    block: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    pub(super) fn new(block: &'a [u8]) -> Self {
        Self { block, at: 0 }
    }

    fn length(&self) -> Option<usize> {
        const BIG: usize = 65536;
        let raw = usize::from(le16(self.block, self.at.saturating_add(4))?);
        // 16 bits are not enough for blocks of 64 KiB: lengths are multiples of
        // 4, so that the lower two bits are free for more.
        Some(match raw {
            0 | 0xffff if self.block.len() >= BIG => self.block.len(),
            _ if self.block.len() >= BIG => (raw & 0xfffc) | ((raw & 3) << 16),
            _ => raw,
        })
    }

    /// The record at `self.at`, in use or not.
    fn record(&self) -> Option<Record<'a>> {
        let at = self.at;
        let length = self.length()?;
        let next = at.checked_add(length)?;
        let record = self.block.get(at..next)?;
        let ino = le32(record, 0)?;
        let name_len = usize::from(*record.get(6)?);
        let name = record.get(8..)?.get(..name_len);
        // A record that is not in use may hold anything for a name.
        let name = if ino == 0 {
            name.unwrap_or_default()
        } else {
            name?
        };
        let sound = length >= 8 && length % 4 == 0;
        sound.then_some(Record {
            ino,
            name,
            kind: *record.get(7)?,
            offset: at,
            next,
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = std::result::Result<Record<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        // Fewer than 8 bytes hold no record.
        while self.block.len().saturating_sub(self.at) >= 8 {
            let Some(record) = self.record() else {
                let reason = format!("the record at byte {} of a block is impossible", self.at);
                self.at = self.block.len();
                return Some(Err(reason));
            };
            self.at = record.next;
            if record.ino != 0 {
                return Some(Ok(record));
            }
        }
        None
    }
}

/// What a visitor of a folder's blocks says: go on, stop, or what is wrong.
type Visit = std::result::Result<ControlFlow<()>, String>;

impl Ext {
    /// Hands the blocks of a folder from byte `from` on to `visit`, each with
    /// the byte offset of its beginning, until it breaks.
    ///
    /// # Errors
    /// What could not be read of the folder, after all the rest was visited.
    fn visit_blocks(
        &self,
        dir: &Inode,
        from: u64,
        visit: &mut dyn FnMut(u64, &[u8]) -> Visit,
    ) -> Result<()> {
        dir.refuse_encrypted()?;
        if dir.has(InodeFlags::INLINE_DATA) {
            return self.visit_inline(dir, from, visit);
        }
        if dir.size > self.volume.size() {
            return Err(dir.corrupt("the folder is larger than the volume"));
        }
        let (end, chunk) = (self.block_of(dir.size), self.block_of(CHUNK).max(1));
        let block_size = usize::try_from(self.block_size()).unwrap_or(usize::MAX);
        let mut damage = None;
        let mut buffer = Vec::new();
        let mut at = self.block_of(from);
        while at < end {
            let near = self.first_run(dir, at, at.saturating_add(chunk).min(end));
            let run = match near {
                Ok(None) => self.first_run(dir, at, end),
                near => near,
            };
            let Some(run) = run? else {
                damage.get_or_insert("a part of it is missing".to_owned());
                break;
            };
            if run.logical > at {
                damage.get_or_insert("a part of it is missing".to_owned());
            }
            let blocks = run.len.min(chunk);
            buffer.resize(usize::try_from(self.byte_of(blocks)).unwrap_or_default(), 0);
            self.volume
                .read_at(self.byte_of(run.physical), &mut buffer)?;
            let mut offset = self.byte_of(run.logical);
            for block in buffer.chunks_exact(block_size) {
                let seen = self
                    .verify_block(dir, block)
                    .and_then(|()| visit(offset, block));
                match seen {
                    Ok(ControlFlow::Continue(())) => {}
                    Ok(ControlFlow::Break(())) => return Ok(()),
                    Err(reason) => {
                        damage.get_or_insert(reason);
                    }
                }
                offset = offset.saturating_add(self.block_size());
            }
            at = run.logical.saturating_add(blocks);
        }
        damage.map_or(Ok(()), |reason| Err(dir.corrupt(reason)))
    }

    fn visit_inline(
        &self,
        dir: &Inode,
        from: u64,
        visit: &mut dyn FnMut(u64, &[u8]) -> Visit,
    ) -> Result<()> {
        let content = self.inline_content(dir)?;
        let size = usize::try_from(dir.size)
            .unwrap_or(usize::MAX)
            .max(INLINE_MIDDLE);
        let mut damage = None;
        for (start, end) in [(INLINE_START, INLINE_MIDDLE), (INLINE_MIDDLE, size)] {
            let offset = u64::try_from(start).unwrap_or_default();
            let seen = match content.get(start..end) {
                _ if u64::try_from(end).unwrap_or_default() <= from => continue,
                Some(part) => visit(offset, part),
                None => Err("its inline content is shorter than its size".into()),
            };
            match seen {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return Ok(()),
                Err(reason) => {
                    damage.get_or_insert(reason);
                }
            }
        }
        damage.map_or(Ok(()), |reason| Err(dir.corrupt(reason)))
    }

    /// The first run of a file within blocks `from..end`.
    fn first_run(&self, inode: &Inode, from: u64, end: u64) -> Result<Option<Run>> {
        let mut first = None;
        self.runs(inode, from..end, &mut |run| {
            first = Some(run);
            ControlFlow::Break(())
        })?;
        Ok(first)
    }

    /// Verifies the checksum of a folder's block, whichever of its kinds it is:
    /// records end in a record that holds it, an index in a tail of its own.
    pub(super) fn verify_block(
        &self,
        dir: &Inode,
        block: &[u8],
    ) -> std::result::Result<(), String> {
        if !self.checksum.enabled {
            return Ok(());
        }
        let (ino, generation) = (dir.ino, dir.disk.generation);
        let verified = border(
            || dir.what(),
            || {
                // An index first: its tail looks like the other one.
                if let Some(counts) = index_counts(block)
                    && dir.has(InodeFlags::INDEX)
                {
                    return Ok(self.checksum.verify_dx_tail(ino, generation, block, counts));
                }
                Ok(has_csum_tail(block)
                    .then(|| self.checksum.verify_dir_entry_tail(ino, generation, block)))
            },
        );
        match verified {
            Ok(Some(false)) => Err("the checksum of one of its blocks is wrong".into()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// One block of a folder, verified.
    pub(super) fn folder_block(&self, dir: &Inode, block: u64) -> Result<Vec<u8>> {
        let run = self.first_run(dir, block, block.saturating_add(1))?;
        let run = run.ok_or_else(|| dir.corrupt(format!("its block {block} is missing")))?;
        let bytes = self.read_block(run.physical)?;
        self.verify_block(dir, &bytes)
            .map_err(|reason| dir.corrupt(reason))?;
        Ok(bytes)
    }

    /// See [`crate::filesystem::FileSystem::read_dir`].
    pub(super) fn entries(
        &self,
        dir: &Inode,
        position: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let typed = self.has_incompat(Incompat::FILETYPE);
        self.visit_blocks(dir, position, &mut |start, block| {
            let place = |at: usize| start.saturating_add(u64::try_from(at).unwrap_or_default());
            for record in Records::new(block) {
                let record = record?;
                if place(record.offset) < position || !is_name(record.name) {
                    continue;
                }
                if record.ino > self.superblock.inodes_count {
                    return Err(format!(
                        "its entry {} points to inode {}, which cannot be",
                        record.name.escape_ascii(),
                        record.ino
                    ));
                }
                let entry = DirEntry {
                    ino: u64::from(record.ino),
                    name: record.name,
                    kind: if typed {
                        FileType::of_entry(record.kind)
                    } else {
                        None
                    },
                    next: place(record.next),
                };
                if each(entry).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    /// The inode number of `name`, if the folder has it.
    pub(super) fn find(&self, dir: &Inode, name: &[u8]) -> Result<Option<u64>> {
        dir.refuse_encrypted()?;
        if !is_name(name) || name.len() > 255 {
            return Ok(None);
        }
        let indexed = dir.has(InodeFlags::INDEX)
            && !dir.has(InodeFlags::INLINE_DATA)
            && self.has_compat(Compat::DIR_INDEX);
        if indexed {
            match self.find_indexed(dir, name) {
                // A damaged index, or one by a hash that is not known.
                Err(Error::Corrupt { .. }) => {}
                // Whether names are folded as the guest does it is not certain.
                Ok(None) if self.is_casefolded(dir) => {}
                answer => return answer,
            }
        }
        let mut found = None;
        self.visit_blocks(dir, 0, &mut |_, block| {
            found = find_in(block, name)?;
            Ok(if found.is_some() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })?;
        Ok(found)
    }

    /// Whether the folder takes names that differ in case for the same
    /// (`EXT4_CASEFOLD_FL`).
    pub(super) fn is_casefolded(&self, dir: &Inode) -> bool {
        self.has_incompat(Incompat::CASEFOLD) && dir.disk.flags & 0x4000_0000 != 0
    }

    /// The folder that `..` names.
    pub(super) fn parent_of(&self, dir: &Inode) -> Result<u64> {
        let parent = if dir.has(InodeFlags::INLINE_DATA) {
            le32(&dir.disk.block, 0).map(u64::from)
        } else {
            // Not encrypted, even where the other names are.
            let block = self.folder_block(dir, 0)?;
            find_in(&block, b"..").map_err(|reason| dir.corrupt(reason))?
        };
        match parent {
            Some(parent) if parent >= ROOT && parent <= u64::from(self.superblock.inodes_count) => {
                Ok(parent)
            }
            _ => Err(dir.corrupt("it does not say which folder holds it")),
        }
    }
}

/// Where the entries of an index begin if the block looks like a part of one,
/// by the kernel's rule: an inner node is one record that fills the block, the
/// root is `.`, `..` that fills the rest, and 8 bytes of information.
fn index_counts(block: &[u8]) -> Option<usize> {
    let length = |at| Records { block, at }.length();
    let first = length(0)?;
    if first == block.len() {
        return Some(8);
    }
    let root = first == 12
        && length(12)? == block.len().saturating_sub(12)
        && le32(block, 24)? == 0
        && *block.get(29)? == 8;
    root.then_some(32)
}

/// The inode number that a block of records gives `name`.
pub(super) fn find_in(block: &[u8], name: &[u8]) -> std::result::Result<Option<u64>, String> {
    for record in Records::new(block) {
        let record = record?;
        if record.name == name {
            return Ok(Some(u64::from(record.ino)));
        }
    }
    Ok(None)
}
