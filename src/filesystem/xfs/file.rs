//! The content of files and the targets of links.

use std::ops::ControlFlow;

use super::Xfs;
use super::field::{index, slice_at, wide};
use super::inode::{Format, Inode};
use super::store::{Fault, REMOTE};
use crate::error::{Error, Result};
use crate::filesystem::Extent;

/// The longest target (`XFS_SYMLINK_MAXLEN`).
const MAX_TARGET: u64 = 1024;

/// Bytes before a piece of a target in a block (`struct xfs_dsymlink_hdr`).
const HEAD: usize = 56;

impl Xfs {
    /// See [`crate::filesystem::FileSystem::extents`].
    pub(super) fn file_extents(
        &self,
        inode: &Inode,
        offset: u64,
        len: u64,
        out: &mut Vec<Extent>,
    ) -> Result<()> {
        let end = offset.saturating_add(len).min(inode.size);
        if offset >= end {
            return Ok(());
        }
        if inode.is_realtime() {
            return Err(Error::Unsupported {
                what: inode.what(),
                reason: "its content lies on the realtime device, which is not read".into(),
            });
        }
        let superblock = &self.store.superblock;
        let block_size = superblock.block_size();
        let blocks = offset.wrapping_shr(superblock.block_bits)..end.div_ceil(block_size.max(1));
        let mut at = offset;
        self.runs(inode, &inode.data()?, blocks, &mut |run| {
            let start = superblock.bytes(run.logical).max(offset);
            let stop = superblock.bytes(run.end()).min(end);
            if start > at {
                let len = start.saturating_sub(at);
                Extent::Hole { len }.append_to(out);
            }
            let len = stop.saturating_sub(start);
            let skip = start.saturating_sub(superblock.bytes(run.logical));
            let next = if run.unwritten {
                Extent::Hole { len }
            } else {
                let offset = superblock.bytes(run.physical).saturating_add(skip);
                Extent::Volume { offset, len }
            };
            next.append_to(out);
            at = stop;
            ControlFlow::Continue(())
        })?;
        if at < end {
            let len = end.saturating_sub(at);
            Extent::Hole { len }.append_to(out);
        }
        Ok(())
    }

    /// The target of a link: in the inode, or in up to three pieces.
    pub(super) fn target(&self, inode: &Inode) -> Result<Vec<u8>> {
        let fork = inode.data()?;
        if inode.size == 0 || inode.size > MAX_TARGET {
            return Err(inode.corrupt(format!("a target of {} bytes cannot be", inode.size)));
        }
        let size = index(inode.size);
        if fork.format == Format::Local {
            let target = fork.bytes.get(..size).map(<[u8]>::to_vec);
            return target.ok_or_else(|| inode.corrupt("its target is longer than it"));
        }
        self.remote_target(inode, size)
            .map_err(|fault| fault.named(|| inode.what()))
    }

    fn remote_target(&self, inode: &Inode, size: usize) -> std::result::Result<Vec<u8>, Fault> {
        let superblock = &self.store.superblock;
        let fork = inode.data()?;
        // Each piece has a head of its own, and so takes less than it has.
        let most = MAX_TARGET
            .saturating_mul(2)
            .div_ceil(superblock.block_size().max(1));
        let mut runs = Vec::new();
        self.runs(inode, &fork, 0..most, &mut |run| {
            runs.push(run);
            ControlFlow::Continue(())
        })?;
        let mut target = Vec::with_capacity(size);
        for run in runs {
            let rest = size.saturating_sub(target.len());
            if rest == 0 {
                break;
            }
            let block = self
                .store
                .block(run.physical, index(superblock.bytes(run.len)))?;
            let piece = if superblock.v5 {
                if slice_at(&block.bytes, 0, 4) != Some(b"XSLM") {
                    return Err("the blocks of its target hold something else".into());
                }
                self.store.verify(&block, &REMOTE, inode.ino)?;
                block.bytes.get(HEAD..).unwrap_or_default()
            } else {
                &block.bytes
            };
            target.extend(piece.iter().take(rest));
        }
        if wide(target.len()) == inode.size {
            Ok(target)
        } else {
            Err("a part of its target is missing".into())
        }
    }
}
