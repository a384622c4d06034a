//! From a file's blocks to the volume's: extent trees (ext4), block maps (ext2,
//! ext3), inline content.
//!
//! The idea: a range of a file is a series of [`Run`]s; what lies between them
//! is a hole. Both trees are descended to the range that is asked for and left
//! as soon as the caller has enough, so that the cost follows the range and not
//! the file. Keys must rise and stay within what the parent promised: a tree
//! that loops cannot, so that it ends in an error.

use std::ops::{ControlFlow, Range, RangeInclusive};

use bytes::Bytes;
use fs_ext4::extent::{self, EXT4_EXT_MAX_DEPTH, ExtentHeader, ExtentIdx};
use fs_ext4::features::Incompat;
use fs_ext4::inode::InodeFlags;

use super::inode::Inode;
use super::{Ext, border, le32};
use crate::error::{Error, Result};
use crate::filesystem::Extent;

/// Length of `i_block`: the root of the tree, a short link's target, or the
/// beginning of inline content.
const I_BLOCK: usize = 60;

/// Blocks of a file that follow each other on the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First block within the file.
    pub(super) logical: u64,
    /// First block on the volume.
    pub(super) physical: u64,
    /// Number of blocks.
    pub(super) len: u64,
}

impl Run {
    fn end(&self) -> u64 {
        self.logical.saturating_add(self.len)
    }

    fn physical_end(&self) -> u64 {
        self.physical.saturating_add(self.len)
    }

    /// The part within `range`, if there is one.
    fn cut(self, range: &Range<u64>) -> Option<Self> {
        let logical = self.logical.max(range.start);
        let len = self.end().min(range.end).saturating_sub(logical);
        let skipped = logical.saturating_sub(self.logical);
        (len > 0).then(|| Self {
            logical,
            physical: self.physical.saturating_add(skipped),
            len,
        })
    }
}

/// Where a walk hands over what it finds: cuts it to the range, joins it, and
/// refuses what goes backwards or leaves the volume.
struct Runs<'a> {
    inode: &'a Inode,
    range: Range<u64>,
    /// Blocks of the file system.
    blocks: u64,
    pending: Option<Run>,
    each: &'a mut dyn FnMut(Run) -> ControlFlow<()>,
}

impl Runs<'_> {
    fn push(&mut self, run: Run) -> Result<ControlFlow<()>> {
        if run.physical == 0 || run.physical_end() > self.blocks {
            return Err(self.inode.corrupt(format!(
                "its data cannot lie in blocks {} to {}",
                run.physical,
                run.physical_end()
            )));
        }
        let Some(run) = run.cut(&self.range) else {
            return Ok(ControlFlow::Continue(()));
        };
        match &mut self.pending {
            Some(last) if run.logical < last.end() => Err(self
                .inode
                .corrupt(format!("block {} is mapped twice", run.logical))),
            Some(last) if run.logical == last.end() && run.physical == last.physical_end() => {
                last.len = last.len.saturating_add(run.len);
                Ok(ControlFlow::Continue(()))
            }
            pending => Ok(pending
                .replace(run)
                .map_or(ControlFlow::Continue(()), &mut self.each)),
        }
    }
}

impl Ext {
    /// Calls `each` with the runs of blocks `range` of a file, in order, each
    /// as long as it can be, until it breaks. What is between is a hole.
    pub(super) fn runs(
        &self,
        inode: &Inode,
        range: Range<u64>,
        each: &mut dyn FnMut(Run) -> ControlFlow<()>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let blocks = self.superblock.blocks_count;
        let mut runs = Runs {
            inode,
            range,
            blocks,
            pending: None,
            each,
        };
        let walked = if inode.has(InodeFlags::EXTENTS) {
            let root = inode.disk.block.as_slice();
            let header = border(|| inode.what(), || ExtentHeader::parse(root))?;
            if header.depth > EXT4_EXT_MAX_DEPTH {
                return Err(inode.corrupt(format!("its extent tree is {} deep", header.depth)));
            }
            self.walk_extents(root, header.depth, 0..=u64::from(u32::MAX), &mut runs)?
        } else {
            self.walk_block_map(&mut runs)?
        };
        if walked.is_continue()
            && let Some(last) = runs.pending
        {
            // The last one: whether to go on no longer matters.
            let _ = (runs.each)(last);
        }
        Ok(())
    }

    /// One node of an extent tree: a header (`eh_magic`, `eh_entries`, `eh_max`,
    /// `eh_depth`) and records of 12 bytes whose first four are the key. `keys`
    /// is what the parent says the node covers.
    fn walk_extents(
        &self,
        node: &[u8],
        depth: u16,
        keys: RangeInclusive<u64>,
        runs: &mut Runs<'_>,
    ) -> Result<ControlFlow<()>> {
        let inode = runs.inode;
        let header = border(|| inode.what(), || ExtentHeader::parse(node))?;
        let (_, records) = node.split_at_checked(12).unwrap_or_default();
        let records = records
            .as_chunks::<12>()
            .0
            .get(..usize::from(header.entries));
        let records = match records {
            Some(records) if header.depth == depth => records,
            _ => return Err(inode.corrupt("a node of its extent tree is not what it should be")),
        };
        if records.is_empty() && (depth > 0 || node.len() > I_BLOCK) {
            return Err(inode.corrupt("a node of its extent tree is empty"));
        }
        let key = |record: &[u8; 12]| {
            let [a, b, c, d, ..] = *record;
            u64::from(u32::from_le_bytes([a, b, c, d]))
        };
        let start = runs.range.start;
        let first = records
            .partition_point(|record| key(record) <= start)
            .saturating_sub(1);
        let mut records = records.iter().skip(first).peekable();
        let mut low = *keys.start();
        while let Some(record) = records.next() {
            let here = key(record);
            if here >= runs.range.end {
                break;
            }
            if here < low || here > *keys.end() {
                return Err(inode.corrupt("its extent tree is not in order"));
            }
            if depth == 0 {
                let extent = border(|| inode.what(), || extent::Extent::parse(record))?;
                if extent.length == 0 {
                    return Err(inode.corrupt("an extent is empty"));
                }
                let len = u64::from(extent.length);
                low = here.saturating_add(len);
                // Allocated but never written: reads as zeros.
                if extent.uninitialized {
                    continue;
                }
                let run = Run {
                    logical: here,
                    physical: extent.physical_block,
                    len,
                };
                if runs.push(run)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            } else {
                low = here.saturating_add(1);
                let index = border(|| inode.what(), || ExtentIdx::parse(record))?;
                let end = records
                    .peek()
                    .map_or(*keys.end(), |next| key(next).saturating_sub(1));
                let child = self.extent_block(inode, index.leaf_block)?;
                let depth = depth.saturating_sub(1);
                if self
                    .walk_extents(&child, depth, here..=end, runs)?
                    .is_break()
                {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Reads a block of an extent tree. Its checksum follows the last record
    /// that there is room for (`eh_max`), which for some block sizes is not the
    /// end of the block.
    fn extent_block(&self, inode: &Inode, block: u64) -> Result<Vec<u8>> {
        if block == 0 || block >= self.superblock.blocks_count {
            return Err(inode.corrupt(format!("its extent tree cannot lie in block {block}")));
        }
        let node = self.read_block(block)?;
        let sound = border(
            || inode.what(),
            || {
                let header = ExtentHeader::parse(&node)?;
                let tail = usize::from(header.max)
                    .saturating_mul(12)
                    .saturating_add(16);
                Ok(node.get(..tail).is_some_and(|covered| {
                    self.checksum
                        .verify_extent_tail(inode.ino, inode.disk.generation, covered)
                }) || !self.checksum.enabled)
            },
        )?;
        if !sound {
            return Err(inode.corrupt(format!("the checksum of extent block {block} is wrong")));
        }
        Ok(node)
    }

    /// The map of ext2 and ext3: 12 block numbers, then one each of a block of
    /// numbers, of a block of such blocks, and of a block of those.
    fn walk_block_map(&self, runs: &mut Runs<'_>) -> Result<ControlFlow<()>> {
        let pointers = runs.inode.disk.block;
        let mut base = 0u64;
        for (slot, pointer) in pointers.as_chunks::<4>().0.iter().enumerate() {
            let level = u32::try_from(slot.saturating_sub(11)).unwrap_or_default();
            let pointer = u32::from_le_bytes(*pointer);
            if self.walk_pointer(pointer, level, base, runs)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            base = base.saturating_add(1u64.wrapping_shl(self.span_bits(level)));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// How many of the file's blocks a block number of this level stands for,
    /// as a power of two.
    fn span_bits(&self, level: u32) -> u32 {
        self.block_bits.saturating_sub(2).saturating_mul(level)
    }

    /// One block number, which stands for the file's blocks from `base`.
    fn walk_pointer(
        &self,
        pointer: u32,
        level: u32,
        base: u64,
        runs: &mut Runs<'_>,
    ) -> Result<ControlFlow<()>> {
        let span = 1u64.wrapping_shl(self.span_bits(level));
        let range = &runs.range;
        if pointer == 0 || base >= range.end || base.saturating_add(span) <= range.start {
            return Ok(ControlFlow::Continue(()));
        }
        let physical = u64::from(pointer);
        let Some(below) = level.checked_sub(1) else {
            return runs.push(Run {
                logical: base,
                physical,
                len: 1,
            });
        };
        if physical >= self.superblock.blocks_count {
            return Err(runs
                .inode
                .corrupt(format!("its block map cannot lie in block {physical}")));
        }
        // Only the numbers of the range: the block has no checksum to verify.
        let step_bits = self.span_bits(below);
        let step = 1u64.wrapping_shl(step_bits);
        let first = range.start.saturating_sub(base).wrapping_shr(step_bits);
        let end = range
            .end
            .saturating_sub(base)
            .div_ceil(step)
            .min(self.block_size() / 4);
        let count = usize::try_from(end.saturating_sub(first)).unwrap_or_default();
        let mut numbers = vec![0; count.saturating_mul(4)];
        let offset = self
            .byte_of(physical)
            .saturating_add(first.saturating_mul(4));
        self.volume.read_at(offset, &mut numbers)?;
        let mut base = base.saturating_add(first.saturating_mul(step));
        for number in numbers.as_chunks::<4>().0 {
            if self
                .walk_pointer(u32::from_le_bytes(*number), below, base, runs)?
                .is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
            base = base.saturating_add(step);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The extents of a range of bytes of a regular file.
    pub(super) fn file_extents(
        &self,
        inode: &Inode,
        offset: u64,
        len: u64,
        out: &mut Vec<Extent>,
    ) -> Result<()> {
        inode.refuse_encrypted()?;
        let end = offset.saturating_add(len).min(inode.size);
        if offset >= end {
            return Ok(());
        }
        if inode.has(InodeFlags::INLINE_DATA) {
            let content = Bytes::from(self.inline_content(inode)?);
            let range = usize::try_from(offset).unwrap_or(usize::MAX)
                ..usize::try_from(end).unwrap_or(usize::MAX);
            if range.end > content.len() {
                return Err(inode.corrupt("its inline content is shorter than its size"));
            }
            out.push(Extent::Bytes(content.slice(range)));
            return Ok(());
        }
        let mut at = offset;
        self.runs(
            inode,
            self.block_of(offset)..self.blocks_for(end),
            &mut |run| {
                let start = self.byte_of(run.logical).max(offset);
                let stop = self.byte_of(run.end()).min(end);
                let skipped = start.saturating_sub(self.byte_of(run.logical));
                if start > at {
                    out.push(Extent::Hole {
                        len: start.saturating_sub(at),
                    });
                }
                out.push(Extent::Volume {
                    offset: self.byte_of(run.physical).saturating_add(skipped),
                    len: stop.saturating_sub(start),
                });
                at = stop;
                ControlFlow::Continue(())
            },
        )?;
        if at < end {
            out.push(Extent::Hole {
                len: end.saturating_sub(at),
            });
        }
        Ok(())
    }

    /// The whole content of a small file: a link's target, an attribute's value.
    /// `limit` is what the caller holds for possible.
    pub(super) fn content(&self, inode: &Inode, limit: u64) -> Result<Vec<u8>> {
        if inode.size > limit {
            return Err(inode.corrupt(format!("{} bytes are too many for it", inode.size)));
        }
        let size = usize::try_from(inode.size).unwrap_or_default();
        if inode.has(InodeFlags::INLINE_DATA) {
            let mut content = self.inline_content(inode)?;
            if content.len() < size {
                return Err(inode.corrupt("its inline content is shorter than its size"));
            }
            content.truncate(size);
            return Ok(content);
        }
        let mut pieces = Vec::new();
        self.runs(inode, 0..self.blocks_for(inode.size), &mut |run| {
            pieces.push(run);
            ControlFlow::Continue(())
        })?;
        let mut content = vec![0; size];
        for run in pieces {
            let start = usize::try_from(self.byte_of(run.logical)).unwrap_or(usize::MAX);
            let stop = usize::try_from(self.byte_of(run.end()))
                .unwrap_or(usize::MAX)
                .min(size);
            if let Some(part) = content.get_mut(start..stop) {
                self.volume.read_at(self.byte_of(run.physical), part)?;
            }
        }
        Ok(content)
    }

    /// Inline content: the 60 bytes of `i_block`, and what the attribute
    /// `system.data` in the inode adds to them.
    pub(super) fn inline_content(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut content = inode.disk.block.to_vec();
        content.extend_from_slice(self.inline_rest(inode)?.unwrap_or_default());
        Ok(content)
    }

    /// The target of a symbolic link: in `i_block` if it is short.
    pub(super) fn link_target(&self, inode: &Inode) -> Result<Vec<u8>> {
        inode.refuse_encrypted()?;
        let mut target = if self.is_fast_link(inode) {
            let size = usize::try_from(inode.size).unwrap_or(usize::MAX);
            let target = inode.disk.block.get(..size);
            target
                .ok_or_else(|| inode.corrupt("its target is too long"))?
                .to_vec()
        } else {
            self.content(inode, self.block_size())?
        };
        // The kernel takes it for a C string.
        if let Some(end) = target.iter().position(|byte| *byte == 0) {
            target.truncate(end);
        }
        if target.is_empty() {
            return Err(Error::corrupt(inode.what(), "its target is empty"));
        }
        Ok(target)
    }

    /// As the kernel decides: a short link has no blocks but that of its
    /// attributes; where those may lie in inodes, its length decides.
    fn is_fast_link(&self, inode: &Inode) -> bool {
        if inode.has(InodeFlags::INLINE_DATA) {
            return false;
        }
        if self.has_incompat(Incompat::EA_INODE) {
            return inode.size < 60;
        }
        let attributes = if inode.disk.file_acl != 0 {
            self.cluster_size() >> 9
        } else {
            0
        };
        self.sectors(inode) == attributes
    }

    /// Bytes per allocation unit (`s_log_cluster_size`, bigalloc only).
    fn cluster_size(&self) -> u64 {
        use fs_ext4::features::RoCompat;
        let log = le32(&self.superblock.raw, 0x1c).unwrap_or_default();
        if self.has_ro_compat(RoCompat::BIGALLOC) && log < 32 {
            1024u64.wrapping_shl(log)
        } else {
            self.block_size()
        }
    }
}
