//! Reparse points: links, junctions, and files whose data is kept by somebody.
//!
//! A link's target becomes a relative path that stays inside the volume, in the
//! spelling that the folders have. A target on the own volume is recognised by
//! its first folder: nothing on the volume says which drive letter it had. What
//! leads elsewhere (another drive, a share) becomes a link that leads nowhere and
//! whose text says where it led.
#![deny(clippy::arithmetic_side_effects)]

use std::collections::BTreeSet;

use super::attribute;
use super::mft::File;
use super::{Ntfs, ROOT};
use crate::error::{Error, Result};
use crate::filesystem::field::{index, slice_at, u8_at, u16_at, u32_at};
use crate::filesystem::windows_name::to_wtf8;
use crate::filesystem::{FileSystem, FileType};

/// The longest reparse data, in bytes (Windows: 16 KiB).
const MAX_DATA: u64 = 64 << 10;

/// Folders above a link at most: a path of Linux has 4,096 characters.
const MAX_DEPTH: usize = 2048;

/// What a reparse point says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reparse<'a> {
    /// A Windows link.
    Link(Link),
    /// A link of WSL or of the NFS server: its target is a path of Linux.
    Raw(Vec<u8>),
    /// A special file of WSL or of the NFS server; major and minor device number
    /// where they are here.
    Special(FileType, Option<(u32, u32)>),
    /// Compacted data.
    Compacted(&'a [u8]),
    /// Data in the chunk store of Windows Server's deduplication.
    Deduplicated,
    /// Data that may be kept by a cloud service.
    Cloud,
    /// Stands for something else, as a link does.
    Placeholder(u32),
    /// Anything else.
    Unknown(u32),
}

/// A Windows link: symbolic link, junction or mount point.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Its target, with backslashes.
    target: Vec<u8>,
    /// Whether the target counts from where the link is.
    relative: bool,
}

impl<'a> Reparse<'a> {
    /// Parses the value of $REPARSE_POINT.
    pub(super) fn parse(bytes: &'a [u8]) -> Self {
        let tag = u32_at(bytes, 0).unwrap_or(0);
        let len = index(u16_at(bytes, 4).unwrap_or(0));
        let data = slice_at(bytes, 8, len).unwrap_or_default();
        match tag {
            0xa000_0003 => Link::parse(data, 8, 0).map_or(Self::Placeholder(tag), Self::Link),
            0xa000_000c => {
                let flags = u32_at(data, 8).unwrap_or(0);
                Link::parse(data, 12, flags).map_or(Self::Placeholder(tag), Self::Link)
            }
            0xa000_001d => match data.get(4..) {
                Some(target) if !target.is_empty() && !target.contains(&0) => {
                    Self::Raw(target.to_vec())
                }
                _ => Self::Placeholder(tag),
            },
            0x8000_0023 => Self::Special(FileType::Socket, None),
            0x8000_0024 => Self::Special(FileType::Fifo, None),
            0x8000_0025 => Self::Special(FileType::CharDevice, None),
            0x8000_0026 => Self::Special(FileType::BlockDevice, None),
            0x8000_0014 => Self::of_nfs(data).unwrap_or(Self::Unknown(tag)),
            0x8000_0017 => Self::Compacted(data),
            0x8000_0013 => Self::Deduplicated,
            _ if tag & 0xffff_0fff == 0x9000_001a => Self::Cloud,
            _ if tag & 0x2000_0000 != 0 => Self::Placeholder(tag),
            _ => Self::Unknown(tag),
        }
    }
}

impl Reparse<'_> {
    /// Parses what the NFS server of Windows keeps ([MS-FSCC] 2.1.2.6).
    fn of_nfs(data: &[u8]) -> Option<Self> {
        let numbers = || u32_at(data, 8).zip(u32_at(data, 12));
        Some(match data.first_chunk::<8>()? {
            b"LNK\x01\0\0\0\0" => {
                let target = to_wtf8(data.get(8..)?);
                return (!target.is_empty() && !target.contains(&0)).then_some(Self::Raw(target));
            }
            b"CHR\0\0\0\0\0" => Self::Special(FileType::CharDevice, numbers()),
            b"BLK\0\0\0\0\0" => Self::Special(FileType::BlockDevice, numbers()),
            b"FIFO\0\0\0\0" => Self::Special(FileType::Fifo, None),
            b"SOCK\0\0\0\0" => Self::Special(FileType::Socket, None),
            _ => return None,
        })
    }
}

impl Link {
    fn parse(data: &[u8], paths: usize, flags: u32) -> Option<Self> {
        let offset = index(u16_at(data, 0)?);
        let len = index(u16_at(data, 2)?);
        let target = slice_at(data, paths.checked_add(offset)?, len)?;
        Some(Self {
            target: to_wtf8(target),
            relative: flags & 1 != 0,
        })
    }
}

/// The text of a link that cannot be followed, as ntfs-3g has it.
pub(super) fn unsupported(tag: u32) -> Vec<u8> {
    format!("unsupported reparse tag {tag:#010x}").into_bytes()
}

/// The value of one extended attribute in the value of $EA.
pub(super) fn extended_attribute<'a>(list: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut rest = list;
    loop {
        let name_len = index(u8_at(rest, 5)?);
        let value = 8usize.saturating_add(name_len).saturating_add(1);
        if slice_at(rest, 8, name_len)?.eq_ignore_ascii_case(name) {
            return slice_at(rest, value, index(u16_at(rest, 6)?));
        }
        let next = index(u32_at(rest, 0)?);
        rest = rest.get(next..).filter(|_| next > 0)?;
    }
}

/// Names of one link that are looked at.
const MAX_NAMES: usize = 64;

/// Where a target's components count from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Base {
    /// The root of a drive, which may be this one.
    Drive,
    /// The root of this volume.
    Root,
    /// The folder that the link is in.
    Parent,
}

impl Ntfs {
    /// The value of the file's $REPARSE_POINT.
    pub(super) fn reparse_data(&self, file: &File) -> Result<Option<Vec<u8>>> {
        self.mft
            .value(file, attribute::REPARSE_POINT, &[], MAX_DATA)
    }

    /// The target of a Windows link as a path on Linux.
    pub(super) fn link_target(&self, file: &File, link: &Link) -> Result<Vec<u8>> {
        let target = link.target.as_slice();
        let plain = [&br"\??\"[..], br"\\?\"]
            .iter()
            .find_map(|head| target.strip_prefix(*head));
        let (base, path) = match (plain.unwrap_or(target), plain.is_none()) {
            ([drive, b':', b'\\', rest @ ..], _) if drive.is_ascii_alphabetic() => {
                (Base::Drive, rest)
            }
            ([b'\\', b'\\', ..], _) | (_, false) => return Ok(foreign(target)),
            ([b'\\', rest @ ..], true) => (Base::Root, rest),
            (path, true) if link.relative => (Base::Parent, path),
            _ => return Ok(foreign(target)),
        };
        let parents = self.parents(file)?;
        let depth = parents.len().saturating_sub(1);
        let mut ups = 0usize;
        let mut downs: Vec<Vec<u8>> = Vec::new();
        for part in path.split(|byte| matches!(byte, b'\\' | b'/')) {
            match part {
                b"" | b"." => {}
                // Windows goes up by the text, and not above the root.
                b".." => {
                    if downs.pop().is_none() && base == Base::Parent {
                        ups = ups.saturating_add(1).min(depth);
                    }
                }
                part => downs.push(
                    part.iter()
                        .map(|b| if *b == 0 { b'_' } else { *b })
                        .collect(),
                ),
            }
        }
        let start = match base {
            Base::Drive | Base::Root => ROOT,
            Base::Parent => parents.get(ups).copied().unwrap_or(ROOT),
        };
        let known = self.respell(start, &mut downs)?;
        if base == Base::Drive && known == 0 {
            return Ok(foreign(target));
        }
        if base != Base::Parent {
            ups = depth;
        }
        let mut parts = vec![b"..".to_vec(); ups];
        parts.append(&mut downs);
        if parts.is_empty() {
            parts.push(b".".to_vec());
        }
        Ok(parts.join(&b'/'))
    }

    /// Spells the path `parts` from folder `start` on as the folders do, as far as
    /// it can be followed without going through links. Answers how far.
    fn respell(&self, start: u64, parts: &mut [Vec<u8>]) -> Result<usize> {
        let mut folder = start;
        let mut known = 0usize;
        for part in parts {
            match self.lookup_ignoring_case(folder, part) {
                Ok((ino, spelled)) => {
                    *part = spelled;
                    folder = ino;
                    known = known.saturating_add(1);
                }
                // A damaged folder on the way does not make the link unreadable.
                Err(
                    Error::NotFound { .. }
                    | Error::NotADirectory { .. }
                    | Error::Corrupt { .. }
                    | Error::Unsupported { .. },
                ) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(known)
    }

    /// The folder that the file is in, the one above, and so on to the root. Of
    /// several names the one nearest to the root counts: a target that is right
    /// for another would lead out of the volume from there.
    fn parents(&self, file: &File) -> Result<Vec<u64>> {
        let mut folders = BTreeSet::new();
        self.each_name(file, &mut |name| {
            if folders.len() < MAX_NAMES {
                folders.insert(name.parent);
            }
        })?;
        let mut nearest: Option<Vec<u64>> = None;
        for folder in folders {
            let limit = nearest.as_ref().map_or(MAX_DEPTH, Vec::len);
            if let Some(parents) = self.folders_above(folder, limit)? {
                nearest = Some(parents);
            }
        }
        nearest.ok_or_else(|| {
            let reason = "its folders do not lead to the root";
            Error::corrupt(file.record.what(), reason)
        })
    }

    /// `folder` and those above it to the root, if they are fewer than `limit`.
    fn folders_above(&self, folder: u64, limit: usize) -> Result<Option<Vec<u64>>> {
        let mut folders = vec![folder];
        let mut folder = folder;
        while folder != ROOT {
            folder = self.parent(folder)?;
            folders.push(folder);
            if folders.len() >= limit {
                return Ok(None);
            }
        }
        Ok(Some(folders).filter(|folders| folders.len() < limit))
    }
}

/// The target of a link that leads out of the volume: one name that is nowhere.
fn foreign(target: &[u8]) -> Vec<u8> {
    let target = target.strip_prefix(br"\??\").unwrap_or(target);
    let text: Vec<u8> = target
        .iter()
        .map(|byte| {
            if matches!(byte, b'/' | 0) {
                b'_'
            } else {
                *byte
            }
        })
        .collect();
    match text.as_slice() {
        b"" | b"." | b".." => b"unsupported link".to_vec(),
        _ => text,
    }
}
