//! The content of files: `struct btrfs_file_extent_item`.
//!
//! The idea: a file's extents stand in its tree under their offsets in the file,
//! so a range is one search and a short scan. An extent is inline (its bytes
//! stand in the item), a hole, or a part of an extent on disk, which may be
//! compressed and is then decoded as a whole.
//!
//! ```text
//! 8 ram_bytes       17 encryption u8       21 inline bytes, or: disk_bytenr
//! 16 compression u8 18 other_encoding u16  29 disk_num_bytes  45 num_bytes
//! 20 type u8                               37 offset
//! ```

use bytes::Bytes;

use super::Btrfs;
use super::chunk::Piece;
use super::compress::{self, MAX_UNIT, Method};
use super::inode::Inode;
use super::node::Way;
use crate::error::{Error, Result};
use crate::filesystem::field::{index, u8_at, u16_at, u64_at};
use crate::filesystem::{Extent, FileType, LARGEST_READ};

const EXTENT_DATA: u8 = 108;

/// Files up to this size (in bytes) are small: the tree reads those through the
/// block cache anyway, so that they can as well be verified here.
const SMALL: u64 = 64 * 1024;

/// The most bytes on disk, and compressed extents, that are read by one request.
const MAX_RUN: u64 = 1 << 20;
const MAX_UNITS: usize = 64;

const INLINE: u8 = 0;
const REGULAR: u8 = 1;
const UNWRITTEN: u8 = 2;

/// A compressed extent, as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Unit {
    pub(super) logical: u64,
    /// Bytes on disk, at most [`MAX_UNIT`].
    pub(super) packed: u64,
    /// Bytes when decoded, at most [`MAX_UNIT`].
    pub(super) len: u64,
    pub(super) method: Method,
}

/// A stretch of a file.
pub(super) enum Content {
    Hole,
    Bytes(Bytes),
    /// Stored as it is, from this logical byte on.
    Plain(u64),
    Packed(Packed),
}

/// From byte `skip` of a compressed extent on.
#[derive(Clone, Copy)]
pub(super) struct Packed {
    unit: Unit,
    skip: u64,
}

impl Unit {
    /// The logical byte after it.
    fn end(self) -> u64 {
        self.logical.saturating_add(self.packed)
    }
}

impl Inode<'_> {
    /// How its data is read where that passes through our hands: that of a large
    /// file would drive metadata out of the block cache.
    pub(super) fn way(&self) -> Way {
        if self.size <= SMALL {
            Way::Cached
        } else {
            Way::Direct
        }
    }
}

impl Btrfs {
    /// Calls `each` with the content of bytes `offset..offset + len` of a file,
    /// in order and without gaps, cut at the end of the file, and its length.
    fn content(
        &self,
        inode: &Inode<'_>,
        offset: u64,
        len: u64,
        each: &mut dyn FnMut(Content, u64) -> Result<()>,
    ) -> Result<()> {
        let end = offset.saturating_add(len).min(inode.size);
        let mut at = offset;
        if at >= end {
            return Ok(());
        }
        let first = inode.key(EXTENT_DATA, 0);
        let mut cursor = self
            .nodes
            .seek_back(&inode.subvolume.tree, inode.key(EXTENT_DATA, offset))?;
        while let Some((key, item)) = cursor.next()? {
            if key < first {
                continue;
            }
            if (key.objectid, key.kind) != (first.objectid, first.kind) || key.offset >= end {
                break;
            }
            let (content, len) = self.parse(inode, item)?;
            let stop = key.offset.saturating_add(len).min(end);
            if stop <= at {
                continue;
            }
            if key.offset > at {
                each(Content::Hole, key.offset.saturating_sub(at))?;
                at = key.offset;
            }
            let n = stop.saturating_sub(at);
            each(part(content, at.saturating_sub(key.offset), n), n)?;
            at = stop;
            if at >= end {
                break;
            }
        }
        if at < end {
            each(Content::Hole, end.saturating_sub(at))?;
        }
        Ok(())
    }

    /// The content and length of an extent.
    fn parse(&self, inode: &Inode<'_>, item: &[u8]) -> Result<(Content, u64)> {
        let short = || inode.corrupt("one of its extents is too short");
        let unsupported = |reason: String| Error::Unsupported {
            what: inode.what(),
            reason,
        };
        if u8_at(item, 17).ok_or_else(short)? != 0 || u16_at(item, 18).ok_or_else(short)? != 0 {
            return Err(unsupported("it is encrypted".into()));
        }
        let compression = u8_at(item, 16).ok_or_else(short)?;
        let method = match compression {
            0 => None,
            kind => Some(Method::new(kind).ok_or_else(|| {
                unsupported(format!(
                    "it is compressed in a way that is not known ({kind})"
                ))
            })?),
        };
        let ram_bytes = u64_at(item, 8).ok_or_else(short)?;
        let kind = u8_at(item, 20).ok_or_else(short)?;
        if kind == INLINE {
            let bytes = item.get(21..).ok_or_else(short)?;
            let Some(method) = method else {
                return Ok((
                    Content::Bytes(Bytes::copy_from_slice(bytes)),
                    bytes.len() as u64,
                ));
            };
            if ram_bytes > MAX_UNIT {
                return Err(inode.corrupt("its inline content is too long"));
            }
            let sector = index(self.nodes.sector_size);
            let bytes = compress::decode(method, bytes, index(ram_bytes), sector)
                .ok_or_else(|| inode.corrupt("its inline content cannot be decoded"))?;
            return Ok((Content::Bytes(bytes), ram_bytes));
        }
        let logical = u64_at(item, 21).ok_or_else(short)?;
        let packed = u64_at(item, 29).ok_or_else(short)?;
        let skip = u64_at(item, 37).ok_or_else(short)?;
        let len = u64_at(item, 45).ok_or_else(short)?;
        let content = match (kind, method) {
            (UNWRITTEN, _) => Content::Hole,
            (REGULAR, _) if logical == 0 => Content::Hole,
            (REGULAR, None) => {
                let inside = skip.checked_add(len).is_some_and(|end| end <= packed);
                let start = logical.checked_add(skip).filter(|_| inside);
                Content::Plain(
                    start.ok_or_else(|| inode.corrupt("it goes past the end of an extent"))?,
                )
            }
            (REGULAR, Some(method)) => {
                let inside = skip.checked_add(len).is_some_and(|end| end <= ram_bytes);
                if !inside || packed > MAX_UNIT || ram_bytes > MAX_UNIT {
                    return Err(inode.corrupt("a compressed extent of it is too long"));
                }
                let unit = Unit {
                    logical,
                    packed,
                    len: ram_bytes,
                    method,
                };
                Content::Packed(Packed { unit, skip })
            }
            _ => return Err(inode.corrupt(format!("type {kind} of an extent is not known"))),
        };
        Ok((content, len))
    }

    /// See [`crate::filesystem::FileSystem::extents`].
    pub(super) fn file_extents(
        &self,
        inode: &Inode<'_>,
        offset: u64,
        len: u64,
        out: &mut Vec<Extent>,
    ) -> Result<()> {
        let asked = len;
        let mut pieces = Vec::new();
        let mut found = Vec::new();
        self.content(inode, offset, len, &mut |content, len| {
            match content {
                Content::Hole => push(&mut found, Extent::Hole { len }),
                Content::Bytes(bytes) => found.push(Extent::Bytes(bytes)),
                Content::Packed(_) => push(&mut found, Extent::Decode { len }),
                Content::Plain(logical) if inode.size <= SMALL && inode.has_checksums => {
                    found.push(Extent::Bytes(self.verified_part(logical, len, inode)?));
                }
                Content::Plain(logical) if inode.has_checksums && asked <= LARGEST_READ => {
                    self.checked(logical, len, inode, &mut found)?;
                }
                Content::Plain(logical) => {
                    pieces.clear();
                    self.nodes.chunks.map(logical, len, 0, &mut pieces)?;
                    for Piece { offset, len } in &pieces {
                        let (offset, len) = (*offset, *len);
                        push(&mut found, Extent::Volume { offset, len });
                    }
                }
            }
            Ok(())
        })?;
        out.append(&mut found);
        Ok(())
    }

    /// Reads a file or the target of a link; answers how many bytes there were.
    ///
    /// # Errors
    /// `Corrupt` for what cannot be decoded or has a wrong checksum.
    pub(super) fn read_content(
        &self,
        inode: &Inode<'_>,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize> {
        let len = buf.len() as u64;
        let mut rest = buf;
        let mut done = 0usize;
        let mut run: Vec<(Packed, &mut [u8])> = Vec::new();
        self.content(inode, offset, len, &mut |content, len| {
            let part = std::mem::take(&mut rest);
            let Some((part, after)) = part.split_at_mut_checked(index(len)) else {
                return Ok(());
            };
            rest = after;
            done = done.saturating_add(part.len());
            match content {
                Content::Hole => part.fill(0),
                Content::Bytes(bytes) => copy(&bytes, 0, part),
                Content::Plain(logical) => {
                    copy(&self.verified_part(logical, len, inode)?, 0, part);
                }
                Content::Packed(packed) => {
                    if !goes_on(&run, packed.unit) {
                        self.run(std::mem::take(&mut run), inode)?;
                    }
                    run.push((packed, part));
                }
            }
            Ok(())
        })?;
        self.run(run, inode)?;
        Ok(done)
    }

    /// Fills the parts with what is decoded of a run of compressed extents that
    /// follow each other on disk, read by one request.
    fn run(&self, run: Vec<(Packed, &mut [u8])>, inode: &Inode<'_>) -> Result<()> {
        let missing = run
            .iter()
            .filter(|(packed, _)| !self.decoded.has(&packed.unit));
        let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else {
            return Ok(());
        };
        let start = first.unit.logical;
        let raw = if missing.count() > 1 {
            let len = last.unit.end().saturating_sub(start);
            self.verified_at_once(start, len, inode)?
        } else {
            None
        };
        for (Packed { unit, skip }, part) in run {
            let whole = self.decoded.get(unit, || {
                let at = index(unit.logical.saturating_sub(start));
                let raw = raw.as_deref().and_then(|raw| raw.get(at..));
                match raw.and_then(|raw| raw.get(..index(unit.packed))) {
                    Some(raw) => self.decode(unit, raw, inode),
                    // Alone, and from whichever copy is right.
                    None => self.decode(
                        unit,
                        &self.verified(unit.logical, unit.packed, inode)?,
                        inode,
                    ),
                }
            })?;
            copy(&whole, index(skip), part);
        }
        Ok(())
    }

    fn decode(&self, unit: Unit, raw: &[u8], inode: &Inode<'_>) -> Result<Bytes> {
        let sector = index(self.nodes.sector_size);
        compress::decode(unit.method, raw, index(unit.len), sector)
            .ok_or_else(|| inode.corrupt("a compressed extent of it cannot be decoded"))
    }

    /// Where on the volume the first extent of a file lies.
    #[cfg(test)]
    pub(super) fn first_place(&self, inode: &Inode<'_>) -> Option<u64> {
        let mut place = None;
        let outcome = self.content(inode, 0, u64::MAX, &mut |content, _| {
            let logical = match content {
                Content::Packed(packed) => Some(packed.unit.logical),
                Content::Plain(logical) => Some(logical),
                _ => None,
            };
            if let (Some(logical), None) = (logical, place) {
                let mut pieces = Vec::new();
                self.nodes.chunks.map(logical, 1, 0, &mut pieces)?;
                place = pieces.first().map(|piece| piece.offset);
            }
            Ok(())
        });
        outcome.ok().and(place)
    }

    /// The target of a symbolic link.
    pub(super) fn link_target(&self, inode: &Inode<'_>) -> Result<Vec<u8>> {
        /// More than Linux lets a target be (`PATH_MAX`).
        const LONGEST: u64 = 4096;
        if inode.kind != FileType::Symlink {
            let what = inode.what();
            return Err(Error::Invalid(format!("{what}: not a symbolic link")));
        }
        if inode.size > LONGEST {
            return Err(inode.corrupt("its target is too long"));
        }
        let mut target = vec![0; index(inode.size)];
        let n = self.read_content(inode, 0, &mut target)?;
        target.truncate(n);
        Ok(target)
    }
}

/// Whether an extent goes on where a run of others ends, and there is room for it.
fn goes_on(run: &[(Packed, &mut [u8])], unit: Unit) -> bool {
    let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else {
        return true;
    };
    let len = unit.end().saturating_sub(first.unit.logical);
    last.unit.end() == unit.logical && len <= MAX_RUN && run.len() < MAX_UNITS
}

/// `len` bytes of an extent's content from byte `skip` on.
fn part(content: Content, skip: u64, len: u64) -> Content {
    match content {
        Content::Hole => Content::Hole,
        Content::Bytes(bytes) => {
            let end = bytes.len().min(index(skip.saturating_add(len)));
            Content::Bytes(bytes.slice(index(skip).min(end)..end))
        }
        Content::Plain(logical) => Content::Plain(logical.saturating_add(skip)),
        Content::Packed(packed) => Content::Packed(Packed {
            skip: packed.skip.saturating_add(skip),
            ..packed
        }),
    }
}

/// Appends a piece, joined to the last one where it goes on from there.
fn push(out: &mut Vec<Extent>, extent: Extent) {
    match (out.last_mut(), &extent) {
        (Some(Extent::Hole { len }), Extent::Hole { len: more })
        | (Some(Extent::Decode { len }), Extent::Decode { len: more }) => {
            *len = len.saturating_add(*more);
        }
        (
            Some(Extent::Volume { offset, len }),
            Extent::Volume {
                offset: next,
                len: more,
            },
        ) if offset.saturating_add(*len) == *next => *len = len.saturating_add(*more),
        _ => out.push(extent),
    }
}

/// Fills `to` with the bytes of `from` after the first `skip`.
fn copy(from: &[u8], skip: usize, to: &mut [u8]) {
    let from = from.get(skip..).and_then(|from| from.get(..to.len()));
    if let Some(from) = from {
        to.copy_from_slice(from);
    }
}
