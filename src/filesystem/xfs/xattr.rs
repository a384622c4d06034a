//! Extended attributes, ACLs among them.
//!
//! The idea: attributes stand in the inode, or in leaves that are indexed by the
//! hash of their names; a large value lies in blocks of its own. On disk a name
//! is a flag for its prefix and the rest, raw bytes. As on Linux, an ACL shows
//! twice: as `system.posix_acl_…` and as what it is kept as, `trusted.SGI_ACL_…`.

use std::ops::ControlFlow;

use super::Xfs;
use super::field::{index, slice_at, u8_at, u16_at, u32_at, wide};
use super::index::{ATTR_LEAF, Index, hash};
use super::inode::{Format, Inode};
use super::store::{Fault, REMOTE};
use crate::error::{Error, Result};

/// Flags of an entry: the value lies in the leaf; the namespaces; not finished.
const LOCAL: u8 = 0x01;
const ROOT: u8 = 0x02;
const SECURE: u8 = 0x04;
const PARENT: u8 = 0x08;
const INCOMPLETE: u8 = 0x80;

/// As long as Linux lets a value and a list of names be (`XATTR_SIZE_MAX`,
/// `XATTR_LIST_MAX`).
const MAX_VALUE: usize = 65536;
const MAX_NAMES: usize = 65536;

/// Bytes before a piece of a value in a block (`struct xfs_attr3_rmt_hdr`).
const REMOTE_HEAD: usize = 56;

/// ACLs, as Linux shows them and as XFS keeps them.
const ACLS: [(&[u8], &[u8]); 2] = [
    (b"system.posix_acl_access", b"SGI_ACL_FILE"),
    (b"system.posix_acl_default", b"SGI_ACL_DEFAULT"),
];

/// The namespaces that Linux shows.
const PREFIXES: [(u8, &[u8]); 3] = [(0, b"user."), (ROOT, b"trusted."), (SECURE, b"security.")];

/// Where a value lies.
enum Value<'a> {
    Here(&'a [u8]),
    /// From a block of the fork on, so many bytes.
    Blocks(u32, usize),
}

struct Entry<'a> {
    flags: u8,
    name: &'a [u8],
    value: Value<'a>,
}

impl Entry<'_> {
    fn namespace(&self) -> u8 {
        self.flags & !LOCAL
    }

    /// The prefix of its name; `None` if Linux does not show it: what is not
    /// finished, and the pointers to parents.
    fn prefix(&self) -> Option<&'static [u8]> {
        let known = PREFIXES.iter().find(|(flag, _)| *flag == self.namespace());
        known.map(|(_, prefix)| *prefix)
    }
}

/// Flag and rest of a name as Linux tells it, and whether it is an ACL.
fn split(name: &[u8]) -> Option<(u8, &[u8], bool)> {
    if let Some((_, kept)) = ACLS.iter().find(|(shown, _)| *shown == name) {
        return Some((ROOT, kept, true));
    }
    PREFIXES.iter().find_map(|(flag, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        (!rest.is_empty()).then_some((*flag, rest, false))
    })
}

type Visit = std::result::Result<ControlFlow<()>, Fault>;

/// Calls `visit` with the attributes that stand in an inode
/// (`struct xfs_attr_sf_hdr`).
fn visit_short(bytes: &[u8], visit: &mut dyn FnMut(Entry<'_>) -> Visit) -> Visit {
    let short = "its attributes do not end within it";
    let len = usize::from(u16_at(bytes, 0).ok_or(short)?);
    let bytes = bytes.get(..len).ok_or(short)?;
    let mut at = 4;
    for _ in 0..u8_at(bytes, 2).ok_or(short)? {
        let name_len = usize::from(u8_at(bytes, at).ok_or(short)?);
        let value_len = usize::from(u8_at(bytes, at.saturating_add(1)).ok_or(short)?);
        let name = at.saturating_add(3);
        let value = name.saturating_add(name_len);
        let entry = Entry {
            flags: u8_at(bytes, at.saturating_add(2)).ok_or(short)?,
            name: slice_at(bytes, name, name_len).ok_or(short)?,
            value: Value::Here(slice_at(bytes, value, value_len).ok_or(short)?),
        };
        at = value.saturating_add(value_len);
        if visit(entry)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The attribute that an entry of a leaf at `at` tells of.
fn in_leaf(leaf: &[u8], at: usize) -> Option<Entry<'_>> {
    let place = usize::from(u16_at(leaf, at.checked_add(4)?)?);
    let flags = u8_at(leaf, at.checked_add(6)?)?;
    if flags & LOCAL != 0 {
        // `struct xfs_attr_leaf_name_local`
        let len = usize::from(u16_at(leaf, place)?);
        let name_len = usize::from(u8_at(leaf, place.checked_add(2)?)?);
        let name = place.checked_add(3)?;
        return Some(Entry {
            flags,
            name: slice_at(leaf, name, name_len)?,
            value: Value::Here(slice_at(leaf, name.checked_add(name_len)?, len)?),
        });
    }
    // `struct xfs_attr_leaf_name_remote`
    let name_len = usize::from(u8_at(leaf, place.checked_add(8)?)?);
    let len = u32_at(leaf, place.checked_add(4)?)?;
    Some(Entry {
        flags,
        name: slice_at(leaf, place.checked_add(9)?, name_len)?,
        value: Value::Blocks(u32_at(leaf, place)?, index(len)),
    })
}

impl Xfs {
    /// Whether there is anything that [`Xfs::attribute_names`] could tell.
    pub(super) fn may_have_attributes(&self, inode: &Inode) -> bool {
        match inode.attributes() {
            Ok(None) => false,
            Ok(Some(fork)) if fork.format == Format::Extents => fork.extents > 0,
            Ok(Some(fork)) if fork.format == Format::Local => {
                let mut shown = false;
                let seen = visit_short(fork.bytes, &mut |entry| {
                    shown |= entry.prefix().is_some();
                    Ok(ControlFlow::Continue(()))
                });
                shown || seen.is_err()
            }
            _ => true,
        }
    }

    /// Calls `visit` with each attribute, or with those whose names have the hash
    /// of `name` at least, until it breaks.
    fn visit_attributes(
        &self,
        inode: &Inode,
        name: Option<&[u8]>,
        visit: &mut dyn FnMut(Entry<'_>) -> Visit,
    ) -> Result<()> {
        let Some(fork) = inode.attributes()? else {
            return Ok(());
        };
        match fork.format {
            Format::Local => visit_short(fork.bytes, visit)
                .map(drop)
                .map_err(|fault| fault.named(|| inode.what())),
            Format::Extents if fork.extents == 0 => Ok(()),
            _ => {
                let tree = Index {
                    inode,
                    fork,
                    start: 0,
                    blocks: 1,
                    leaf: &[ATTR_LEAF],
                };
                self.visit_index(&tree, name.map(hash), &mut |leaf, at| {
                    let entry = in_leaf(&leaf.bytes, at);
                    visit(entry.ok_or("an attribute lies outside its leaf")?)
                })
            }
        }
    }

    /// The names as Linux shows them.
    pub(super) fn attribute_names(&self, inode: &Inode) -> Result<Vec<Vec<u8>>> {
        let (mut names, mut bytes) = (Vec::new(), 0usize);
        self.visit_attributes(inode, None, &mut |entry| {
            let Some(prefix) = entry.prefix() else {
                return Ok(ControlFlow::Continue(()));
            };
            if entry.namespace() == ROOT
                && let Some((shown, _)) = ACLS.iter().find(|(_, kept)| *kept == entry.name)
            {
                bytes = bytes.saturating_add(shown.len());
                names.push(shown.to_vec());
            }
            let name = [prefix, entry.name].concat();
            bytes = bytes.saturating_add(name.len()).saturating_add(1);
            if bytes > MAX_NAMES {
                return Err(Fault::Below(Error::TooLarge {
                    what: format!("the names of the attributes of {}", inode.what()),
                    limit: wide(MAX_NAMES),
                }));
            }
            names.push(name);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(names)
    }

    /// The value of an attribute, ACLs in the form that `getxattr` gives.
    pub(super) fn attribute(&self, inode: &Inode, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some((namespace, rest, is_acl)) = split(name) else {
            return Ok(None);
        };
        let mut value = None;
        self.visit_attributes(inode, Some(rest), &mut |entry| {
            let wanted = entry.namespace() == namespace && entry.name == rest;
            if !wanted || entry.flags & (PARENT | INCOMPLETE) != 0 {
                return Ok(ControlFlow::Continue(()));
            }
            value = Some(match entry.value {
                Value::Here(bytes) => bytes.to_vec(),
                Value::Blocks(block, len) => self.remote_value(inode, block, len)?,
            });
            Ok(ControlFlow::Break(()))
        })?;
        match value {
            Some(kept) if is_acl => acl_as_attribute(&kept)
                .map(Some)
                .ok_or_else(|| inode.corrupt("its ACL makes no sense")),
            value => Ok(value),
        }
    }

    fn remote_value(
        &self,
        inode: &Inode,
        block: u32,
        len: usize,
    ) -> std::result::Result<Vec<u8>, Fault> {
        if len > MAX_VALUE {
            return Err(format!("an attribute cannot be {len} bytes long").into());
        }
        let superblock = &self.store.superblock;
        let size = index(superblock.block_size());
        let head = if superblock.v5 { REMOTE_HEAD } else { 0 };
        let fork = inode.attributes()?.ok_or("it has no attributes")?;
        let first = u64::from(block);
        let count = len.div_ceil(size.saturating_sub(head).max(1));
        let range = first..first.saturating_add(wide(count));
        let mut value = Vec::with_capacity(len);
        for run in self.mapped(inode, &fork, range)? {
            for nr in 0..run.len {
                let block = self.store.block(run.physical.saturating_add(nr), size)?;
                if superblock.v5 {
                    let place = u32_at(&block.bytes, 4).map(index);
                    let sound =
                        slice_at(&block.bytes, 0, 4) == Some(b"XARM") && place == Some(value.len());
                    if !sound {
                        return Err("the blocks of an attribute hold something else".into());
                    }
                    self.store.verify(&block, &REMOTE, inode.ino)?;
                }
                let piece = block.bytes.get(head..).unwrap_or_default();
                let rest = len.saturating_sub(value.len());
                value.extend(piece.iter().take(rest));
            }
        }
        Ok(value)
    }
}

/// Turns the form in which XFS keeps an ACL (`struct xfs_acl`: a count, and
/// entries of tag, id and permissions, big-endian) into that of `getxattr`
/// (`struct posix_acl_xattr_header`, version 2, little-endian).
fn acl_as_attribute(kept: &[u8]) -> Option<Vec<u8>> {
    /// `ACL_USER` and `ACL_GROUP`: the entries that have an id.
    const NAMED: [u16; 2] = [0x02, 0x08];
    /// `ACL_UNDEFINED_ID`.
    const NOBODY: u32 = u32::MAX;
    let count = usize::try_from(u32_at(kept, 0)?).ok()?;
    let mut value = 2u32.to_le_bytes().to_vec();
    for entry in slice_at(kept, 4, count.checked_mul(12)?)?.chunks_exact(12) {
        let tag = u16::try_from(u32_at(entry, 0)?).ok()?;
        let id = if NAMED.contains(&tag) {
            u32_at(entry, 4)?
        } else {
            NOBODY
        };
        value.extend(tag.to_le_bytes());
        value.extend(u16_at(entry, 8)?.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    Some(value)
}
