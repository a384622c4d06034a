//! Reading the data of files, and finding their holes.

use std::sync::atomic::Ordering;

use bytes::BytesMut;

use super::Tree;
use super::attached::AttachedDisk;
use super::inode::Inode;
use super::node::Space;
use super::read::{self, ReadPlan, extent_len};
use crate::error::{Error, Result};
use crate::filesystem::Extent;
use crate::image::{BlockRead, Completion, patience};

/// How far a search for data or holes looks first, in bytes: the next one is
/// near in most sparse files, and finding it must not cost the whole map.
const FIRST_WINDOW: u64 = 1 << 20;
/// How far it looks at once in the end. Bounds the memory for the extents.
const LAST_WINDOW: u64 = 4 << 30;

/// What to look for in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is data.
    Data,
    /// The next byte that lies in a hole (the end of the file is one).
    Hole,
}

impl Tree {
    /// Prepares the reading of up to `len` bytes of a file from `offset`.
    ///
    /// # Errors
    /// `IsADirectory`, or what keeps the file from being read.
    pub fn plan_read(&self, ino: u64, offset: u64, len: u64) -> Result<ReadPlan> {
        match Inode::parse(ino)? {
            Inode::Raw(id) => {
                let disk = self.attached(id)?;
                let len = disk.disk.size().saturating_sub(offset).min(len);
                count_read(&disk, len);
                if len == 0 {
                    return Ok(ReadPlan::ready(BytesMut::new()));
                }
                Ok(ReadPlan::raw(disk, offset, len))
            }
            Inode::File { disk, local } => {
                let disk = self.attached(disk)?;
                let plan = ReadPlan::file(&disk, local, offset, len)?;
                count_read(&disk, len);
                Ok(plan)
            }
            _ => Err(Error::IsADirectory {
                what: format!("inode {ino}"),
            }),
        }
    }

    /// Reads up to `len` bytes of a file from `offset` and calls `done` once with
    /// what there is (short only at the end of the file), or with the error.
    pub fn read(&self, ino: u64, offset: u64, len: usize, done: Completion) {
        match self.plan_read(ino, offset, len as u64) {
            Ok(plan) => plan.carry_out(done),
            Err(error) => done(Err(error)),
        }
    }

    /// Reads and waits; returns the number of bytes, short only at the end of
    /// the file.
    ///
    /// # Errors
    /// As [`Tree::plan_read`].
    pub fn read_at(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let done = Box::new(move |outcome| drop(sender.send(outcome)));
        self.read(ino, offset, buf.len(), done);
        let bytes = receiver
            .recv()
            .map_err(|_| Error::Invalid(format!("the read of inode {ino} was given up")))??;
        let n = bytes.len().min(buf.len());
        if let (Some(target), Some(source)) = (buf.get_mut(..n), bytes.get(..n)) {
            target.copy_from_slice(source);
        }
        read::recycle(bytes);
        Ok(n)
    }

    /// The next data or hole of a file at or after `offset`; `None` if there is
    /// none before the end of the file.
    ///
    /// # Errors
    /// As [`Tree::plan_read`].
    pub fn seek(&self, ino: u64, offset: u64, what: Seek) -> Result<Option<u64>> {
        let size = self.node(ino)?.attr.size;
        let mut at = offset;
        let mut window = FIRST_WINDOW;
        while at < size {
            patience::spend()?;
            let asked = size.saturating_sub(at).min(window);
            let before = at;
            for (len, hole) in self.stretches(ino, at, asked)? {
                if hole == (what == Seek::Hole) {
                    return Ok(Some(at));
                }
                at = at.saturating_add(len);
            }
            if at <= before {
                break;
            }
            window = window.saturating_mul(2).min(LAST_WINDOW);
        }
        Ok((what == Seek::Hole && offset < size).then_some(size))
    }

    /// Lengths, and whether each is a hole.
    fn stretches(&self, ino: u64, offset: u64, len: u64) -> Result<Vec<(u64, bool)>> {
        match Inode::parse(ino)? {
            Inode::Raw(id) => {
                patience::may_wait()?;
                let status = self.attached(id)?.disk.block_status(offset, len)?;
                Ok(status.iter().map(|part| (part.len, part.hole)).collect())
            }
            Inode::File { disk, local } => {
                let disk = self.attached(disk)?;
                let (fs, _, ino) = disk.file(local)?;
                let mut extents = Vec::new();
                fs.extents(ino, offset, len, &mut extents)?;
                let hole = |extent: &Extent| matches!(extent, Extent::Hole { .. });
                Ok(extents.iter().map(|e| (extent_len(e), hole(e))).collect())
            }
            _ => Err(Error::IsADirectory {
                what: format!("inode {ino}"),
            }),
        }
    }

    /// Size of what a node lies on. Attaches nothing.
    pub fn space(&self, ino: u64) -> Space {
        let disk = Self::disk_of(ino).and_then(|id| self.attachments.peek(id));
        let volume = disk.as_ref().and_then(|disk| match Inode::parse(ino) {
            Ok(Inode::File { local, .. }) => disk.locate(local).ok().map(|(volume, _)| volume),
            _ => disk.single(),
        });
        match (volume.map(|volume| &volume.fs), &disk) {
            (Some(Ok(fs)), _) => {
                let description = fs.description();
                Space {
                    block_size: description.block_size,
                    blocks: description.blocks,
                    blocks_free: description.blocks_free,
                    files: description.files,
                    files_free: description.files_free,
                }
            }
            (_, Some(disk)) => Space {
                block_size: 4096,
                blocks: disk.disk.size() / 4096,
                ..Space::default()
            },
            (_, None) => Space {
                block_size: 4096,
                ..Space::default()
            },
        }
    }
}

fn count_read(disk: &AttachedDisk, len: u64) {
    disk.usage().reads.fetch_add(1, Ordering::Relaxed);
    disk.usage().bytes.fetch_add(len, Ordering::Relaxed);
}
