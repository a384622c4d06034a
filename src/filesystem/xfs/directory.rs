//! Folders: names in the inode, in one block, or in blocks with an index.
//!
//! The idea: whatever a folder's form, an entry has a place in an address space
//! of 32 GiB, counted in 8 bytes; that is its position (`d_off`), and what the
//! index tells. Listing reads the blocks of entries in order and never the index;
//! a look-up goes through the index, and through the blocks if the index is
//! damaged. A damaged block costs its own entries only: the error comes last.

use std::ops::ControlFlow;

use super::Xfs;
use super::field::{index, partition, slice_at, u8_at, u16_at, u32_at, u64_at, wide};
use super::index::{DIR_LEAF, DIR_LEAF1, Index, hash};
use super::inode::{Format, Inode};
use super::store::{DIR_DATA, Fault};
use crate::error::{Error, Result};
use crate::filesystem::{DirEntry, FileType, is_name};
use crate::image::patience;

/// Where the index begins in the address space, in bytes; entries end there.
const INDEX_START: u64 = 1 << 35;

/// Places count units of so many bytes.
const UNIT: u64 = 8;

/// `freetag` of what is not in use.
const FREE: u16 = 0xffff;

/// An entry as it is kept.
pub(super) struct Entry<'a> {
    pub(super) ino: u64,
    pub(super) name: &'a [u8],
    code: Option<u8>,
    /// Its place, in units of 8 bytes.
    place: u64,
}

/// What a visitor says: go on, stop, or what is wrong.
type Visit = std::result::Result<ControlFlow<()>, Fault>;

/// The number of an entry's bytes with a name of `len` bytes: number of the
/// inode, length, name, type, place of the entry; a multiple of 8.
fn entry_len(len: usize, ftype: bool) -> usize {
    len.saturating_add(11)
        .saturating_add(usize::from(ftype))
        .next_multiple_of(8)
}

impl Xfs {
    /// The entry at `at` of a block.
    fn entry<'a>(&self, block: &'a [u8], at: usize) -> Option<Entry<'a>> {
        let len = usize::from(u8_at(block, at.checked_add(8)?)?);
        let name = slice_at(block, at.checked_add(9)?, len)?;
        let ftype = self.store.superblock.ftype;
        let code = if ftype {
            Some(u8_at(block, at.checked_add(9)?.checked_add(len)?)?)
        } else {
            None
        };
        (len > 0).then_some(Entry {
            ino: u64_at(block, at)?,
            name,
            code,
            place: 0,
        })
    }

    /// Calls `visit` with the entries of a block that begins at byte `start` of
    /// the address space.
    fn visit_block(
        &self,
        block: &[u8],
        start: u64,
        visit: &mut dyn FnMut(Entry<'_>) -> Visit,
    ) -> Visit {
        let (mut at, end) = self.entries_of(block)?;
        while at < end {
            patience::spend()?;
            let place = start.saturating_add(wide(at));
            let impossible = || format!("the entry at byte {place} is impossible");
            let len = if u16_at(block, at) == Some(FREE) {
                u16_at(block, at.saturating_add(2)).map(usize::from)
            } else {
                let entry = self.entry(block, at).ok_or_else(impossible)?;
                let len = entry_len(entry.name.len(), entry.code.is_some());
                if at.saturating_add(len) <= end {
                    let place = place / UNIT;
                    if visit(Entry { place, ..entry })?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Some(len)
            };
            let len = len.filter(|len| *len >= 8 && len % 8 == 0);
            at = at.saturating_add(len.ok_or_else(impossible)?);
            if at > end {
                return Err(impossible().into());
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Where the entries of a block begin and end.
    fn entries_of(&self, block: &[u8]) -> std::result::Result<(usize, usize), Fault> {
        let v5 = self.store.superblock.v5;
        let start = if v5 { 64 } else { 16 };
        match (slice_at(block, 0, 4), v5) {
            (Some(b"XDD3"), true) | (Some(b"XD2D"), false) => Ok((start, block.len())),
            (Some(b"XDB3"), true) | (Some(b"XD2B"), false) => {
                let (end, _) = index_in(block).ok_or("the index in its block makes no sense")?;
                Ok((start, end))
            }
            _ => Err("one of its blocks holds no entries".into()),
        }
    }

    /// The entries of a folder whose names stand in the inode
    /// (`struct xfs_dir2_sf_hdr`).
    fn visit_short(&self, dir: &Inode, visit: &mut dyn FnMut(Entry<'_>) -> Visit) -> Visit {
        let bytes = dir.data()?.bytes;
        let bytes = bytes
            .get(..index(dir.size))
            .ok_or("it is larger than its inode")?;
        let short = || Fault::from("its entries do not end within it");
        let count = u8_at(bytes, 0).ok_or_else(short)?;
        let width = short_width(bytes);
        let ftype = usize::from(self.store.superblock.ftype);
        let mut at = width.saturating_add(2);
        for _ in 0..count {
            let len = usize::from(u8_at(bytes, at).ok_or_else(short)?);
            let place = u16_at(bytes, at.saturating_add(1)).ok_or_else(short)?;
            let name = at.saturating_add(3);
            let after = name.saturating_add(len);
            let number = after.saturating_add(ftype);
            let entry = Entry {
                ino: short_number(bytes, number, width).ok_or_else(short)?,
                name: slice_at(bytes, name, len).ok_or_else(short)?,
                code: (ftype > 0).then(|| u8_at(bytes, after)).flatten(),
                place: u64::from(place) / UNIT,
            };
            at = number.saturating_add(width);
            if visit(entry)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Calls `visit` with the entries from byte `from` of the address space on,
    /// or a little before it, until it breaks. What is damaged is left out, and
    /// is the error in the end.
    fn visit_entries(
        &self,
        dir: &Inode,
        from: u64,
        visit: &mut dyn FnMut(Entry<'_>) -> Visit,
    ) -> Result<()> {
        let named = |fault: Fault| fault.named(|| dir.what());
        let fork = dir.data()?;
        if fork.format == Format::Local {
            return self.visit_short(dir, visit).map(drop).map_err(named);
        }
        if dir.size > self.store.volume.size() {
            return Err(dir.corrupt("the folder is larger than the volume"));
        }
        let superblock = &self.store.superblock;
        let step = superblock.blocks_per_dir_block();
        let block_of = |byte: u64| {
            byte.wrapping_shr(superblock.dir_block_bits)
                .saturating_mul(step)
        };
        let end = dir
            .size
            .min(INDEX_START)
            .wrapping_shr(superblock.block_bits);
        let mut at = block_of(from);
        let mut damage = None;
        while at < end {
            patience::spend()?;
            let Some(run) = self.first_run(dir, &fork, at..end)? else {
                break;
            };
            // Whole blocks of the folder that lie in one piece need no look-up each.
            let first = run.logical & !step.saturating_sub(1);
            let mut pieces = Vec::new();
            if first == run.logical && run.len >= step && !run.unwritten {
                for nr in 0..run.len.wrapping_shr(step.ilog2()) {
                    let skip = nr.saturating_mul(step);
                    pieces.push(super::map::Run {
                        logical: first.saturating_add(skip),
                        physical: run.physical.saturating_add(skip),
                        len: step,
                        unwritten: false,
                    });
                    if pieces.len() >= 256 {
                        break;
                    }
                }
            }
            let count = wide(pieces.len()).max(1);
            for nr in 0..count {
                let logical = first.saturating_add(nr.saturating_mul(step));
                let seen = match pieces.get(index(nr)) {
                    Some(piece) => Ok(vec![*piece]),
                    None => self.mapped(dir, &fork, logical..logical.saturating_add(step)),
                };
                let seen = seen
                    .map_err(Fault::from)
                    .and_then(|runs| self.gather(&runs, &DIR_DATA, dir.ino))
                    .and_then(|block| self.visit_block(&block, superblock.bytes(logical), visit));
                match seen.map_err(named) {
                    Ok(ControlFlow::Continue(())) => {}
                    Ok(ControlFlow::Break(())) => return Ok(()),
                    Err(error @ Error::Corrupt { .. }) => {
                        damage.get_or_insert(error);
                    }
                    Err(error) => return Err(error),
                }
            }
            at = first.saturating_add(count.saturating_mul(step));
        }
        damage.map_or(Ok(()), Err)
    }

    /// See [`crate::filesystem::FileSystem::read_dir`].
    pub(super) fn list(
        &self,
        dir: &Inode,
        position: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.visit_entries(dir, position.saturating_mul(UNIT), &mut |entry| {
            if entry.place < position || !is_name(entry.name) {
                return Ok(ControlFlow::Continue(()));
            }
            if self.store.superblock.inode_place(entry.ino).is_none() {
                return Err(format!(
                    "its entry {} points to inode {}, which cannot be",
                    entry.name.escape_ascii(),
                    entry.ino
                )
                .into());
            }
            Ok(each(DirEntry {
                ino: entry.ino,
                name: entry.name,
                kind: entry.code.and_then(FileType::of_entry),
                next: entry.place.saturating_add(1),
            }))
        })
    }

    /// The inode number of `name`, if the folder has it.
    pub(super) fn find(&self, dir: &Inode, name: &[u8]) -> Result<Option<u64>> {
        if !is_name(name) || name.len() > 255 {
            return Ok(None);
        }
        self.find_any(dir, name)
    }

    fn find_any(&self, dir: &Inode, name: &[u8]) -> Result<Option<u64>> {
        let mut search = Search {
            name,
            ignore_case: self.store.superblock.ignore_case,
            similar: None,
            exact: None,
        };
        if dir.data()?.format != Format::Local {
            match self.find_indexed(dir, &mut search) {
                // A damaged index: the entries may be whole.
                Err(Error::Corrupt { .. }) => {}
                done => return done.map(|()| search.exact.or(search.similar)),
            }
        }
        self.visit_entries(dir, 0, &mut |entry| Ok(search.consider(&entry)))
            .map(|()| search.exact.or(search.similar))
    }

    fn find_indexed(&self, dir: &Inode, search: &mut Search<'_>) -> Result<()> {
        let superblock = &self.store.superblock;
        let target = if superblock.ignore_case {
            let folded: Vec<u8> = search.name.iter().map(|byte| fold(*byte)).collect();
            hash(&folded)
        } else {
            hash(search.name)
        };
        let named = |fault: Fault| fault.named(|| dir.what());
        let fork = dir.data()?;
        let step = superblock.blocks_per_dir_block();
        if dir.size == superblock.bytes(step) {
            let runs = self.mapped(dir, &fork, 0..step)?;
            let block = self.gather(&runs, &DIR_DATA, dir.ino).map_err(named)?;
            if matches!(slice_at(&block, 0, 4), Some(b"XDB3" | b"XD2B")) {
                return self.find_in_block(&block, target, search).map_err(named);
            }
        }
        let tree = Index {
            inode: dir,
            fork,
            start: INDEX_START.wrapping_shr(superblock.block_bits),
            blocks: step,
            leaf: &[DIR_LEAF1, DIR_LEAF],
        };
        self.visit_index(&tree, Some(target), &mut |leaf, at| {
            let place = u32_at(&leaf.bytes, at.saturating_add(4)).unwrap_or_default();
            // 0: the entry is gone.
            if place == 0 {
                return Ok(ControlFlow::Continue(()));
            }
            let byte = u64::from(place).saturating_mul(UNIT);
            let first = byte
                .wrapping_shr(superblock.dir_block_bits)
                .saturating_mul(step);
            if byte >= dir.size.min(INDEX_START) {
                return Err("its index points past its end".into());
            }
            let runs = self.mapped(dir, &fork, first..first.saturating_add(step))?;
            let block = self.gather(&runs, &DIR_DATA, dir.ino)?;
            self.entries_of(&block)?;
            let within = index(byte.saturating_sub(superblock.bytes(first)));
            let entry = self.entry(&block, within);
            Ok(search.consider(&entry.ok_or("its index points to no entry")?))
        })
    }

    /// A look-up through the index at the end of the only block.
    fn find_in_block(
        &self,
        block: &[u8],
        target: u32,
        search: &mut Search<'_>,
    ) -> std::result::Result<(), Fault> {
        let (start, count) = index_in(block).ok_or("the index in its block makes no sense")?;
        let at = |nr: usize| start.saturating_add(nr.saturating_mul(8));
        let first = partition(count, |nr| {
            u32_at(block, at(nr)).is_some_and(|hash| hash < target)
        });
        for nr in first..count {
            if u32_at(block, at(nr)) != Some(target) {
                break;
            }
            let place = u32_at(block, at(nr).saturating_add(4)).unwrap_or_default();
            if place == 0 {
                continue;
            }
            let entry = self.entry(block, index(u64::from(place).saturating_mul(UNIT)));
            if search
                .consider(&entry.ok_or("its index points to no entry")?)
                .is_break()
            {
                break;
            }
        }
        Ok(())
    }

    /// The folder that `..` names.
    pub(super) fn parent_of(&self, dir: &Inode) -> Result<u64> {
        let fork = dir.data()?;
        let parent = if fork.format == Format::Local {
            short_number(fork.bytes, 2, short_width(fork.bytes))
        } else {
            self.find_any(dir, b"..")?
        };
        let place = |ino: &u64| self.store.superblock.inode_place(*ino).is_some();
        parent
            .filter(place)
            .ok_or_else(|| dir.corrupt("it does not say which folder holds it"))
    }
}

/// A name that is looked for.
struct Search<'a> {
    name: &'a [u8],
    ignore_case: bool,
    /// The first that differs in case only.
    similar: Option<u64>,
    exact: Option<u64>,
}

impl Search<'_> {
    fn consider(&mut self, entry: &Entry<'_>) -> ControlFlow<()> {
        if entry.name == self.name {
            self.exact = Some(entry.ino);
            return ControlFlow::Break(());
        }
        let same = |(a, b): (&u8, &u8)| fold(*a) == fold(*b);
        if self.ignore_case
            && self.similar.is_none()
            && entry.name.len() == self.name.len()
            && entry.name.iter().zip(self.name).all(same)
        {
            self.similar = Some(entry.ino);
        }
        ControlFlow::Continue(())
    }
}

/// Lower case of ASCII and Latin-1, as `mkfs.xfs -n version=ci` has it.
fn fold(byte: u8) -> u8 {
    match byte {
        b'A'..=b'Z' | 0xc0..=0xd6 | 0xd8..=0xde => byte.wrapping_add(0x20),
        other => other,
    }
}

/// Bytes of an inode number in an inode's folder.
fn short_width(bytes: &[u8]) -> usize {
    if u8_at(bytes, 1).unwrap_or_default() > 0 {
        8
    } else {
        4
    }
}

fn short_number(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    if width == 8 {
        u64_at(bytes, at)
    } else {
        u32_at(bytes, at).map(u64::from)
    }
}

/// Where the index of a folder of one block begins, and its number of entries:
/// they stand before the last 8 bytes, which tell it.
fn index_in(block: &[u8]) -> Option<(usize, usize)> {
    let tail = block.len().checked_sub(8)?;
    let count = usize::try_from(u32_at(block, tail)?).ok()?;
    let start = tail.checked_sub(count.checked_mul(8)?)?;
    Some((start, count))
}
