//! Look-up by the index of a large folder (`dir_index`).
//!
//! The idea: a sorted tree of name hashes leads to the block that holds the
//! name. Names of one hash may run over into the following blocks, which the
//! index then marks by an odd hash, so the path to the leaf is kept and moved
//! on. Whatever is wrong with an index is `Corrupt`, and the caller reads the
//! folder from its beginning instead.

use fs_ext4::casefold::casefold_name_hash;
use fs_ext4::hash::{effective_version, name_hash};
use fs_ext4::htree::{DxEntry, parse_node_entries, parse_root_entries, parse_root_info};

use super::directory::find_in;
use super::inode::Inode;
use super::{Ext, border};
use crate::error::Result;

/// Levels below the root that `large_dir` allows, and more.
const MAX_LEVELS: u8 = 3;

/// A node on the way to a leaf, and which of its entries was taken.
struct Step {
    entries: Vec<DxEntry>,
    taken: usize,
}

impl Step {
    fn entry(&self) -> Option<DxEntry> {
        self.entries.get(self.taken).copied()
    }
}

impl Ext {
    /// The inode number that the index gives `name`.
    ///
    /// # Errors
    /// `Corrupt` if the index cannot be used.
    pub(super) fn find_indexed(&self, dir: &Inode, name: &[u8]) -> Result<Option<u64>> {
        let root = self.folder_block(dir, 0)?;
        let seed = &self.superblock.hash_seed;
        let (info, hash, entries) = border(
            || dir.what(),
            || {
                let info = parse_root_info(&root)?;
                let version = effective_version(info.hash_version, self.superblock.unsigned_hash());
                let hash = if self.is_casefolded(dir) {
                    casefold_name_hash(name, version, seed)
                } else {
                    name_hash(name, version, seed)
                };
                Ok((info, hash.major, parse_root_entries(&root)?.1))
            },
        )?;
        if info.indirect_levels > MAX_LEVELS {
            return Err(dir.corrupt("its index is too deep"));
        }
        let mut path = vec![step_for(entries, hash)];
        for _ in 0..info.indirect_levels {
            let entries = self.index_node(dir, &path)?;
            path.push(step_for(entries, hash));
        }
        // A leaf can be visited once; more is a loop.
        for _ in 0..=self.block_of(dir.size) {
            let block = self.folder_block(dir, child(dir, &path)?)?;
            let found = find_in(&block, name).map_err(|reason| dir.corrupt(reason))?;
            if found.is_some() || !self.next_leaf(dir, &mut path, hash)? {
                return Ok(found);
            }
        }
        Err(dir.corrupt("its index goes in circles"))
    }

    /// Moves on to the next leaf if it goes on with names of the same hash.
    fn next_leaf(&self, dir: &Inode, path: &mut Vec<Step>, hash: u32) -> Result<bool> {
        let levels = path.len();
        while let Some(step) = path.last_mut() {
            step.taken = step.taken.saturating_add(1);
            match step.entry() {
                None => {
                    path.pop();
                }
                Some(entry) if entry.hash & !1 == hash => {
                    while path.len() < levels {
                        let entries = self.index_node(dir, path)?;
                        path.push(Step { entries, taken: 0 });
                    }
                    return Ok(true);
                }
                Some(_) => return Ok(false),
            }
        }
        Ok(false)
    }

    /// The entries of the inner node that the path leads to.
    fn index_node(&self, dir: &Inode, path: &[Step]) -> Result<Vec<DxEntry>> {
        let block = self.folder_block(dir, child(dir, path)?)?;
        Ok(border(|| dir.what(), || parse_node_entries(&block))?.1)
    }
}

/// The entry that covers `hash`: the last one that does not begin after it.
fn step_for(entries: Vec<DxEntry>, hash: u32) -> Step {
    let rest = entries.get(1..).unwrap_or_default();
    let taken = rest.partition_point(|entry| entry.hash <= hash);
    Step { entries, taken }
}

/// The block of the folder that the path leads to; the upper four bits of the
/// number are reserved.
fn child(dir: &Inode, path: &[Step]) -> Result<u64> {
    let entry = path.last().and_then(Step::entry);
    let entry = entry.ok_or_else(|| dir.corrupt("its index is empty"))?;
    Ok(u64::from(entry.block & 0x0fff_ffff))
}
