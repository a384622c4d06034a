//! Extended attributes, ACLs among them.
//!
//! The idea: an inode has up to two tables of entries, one in its own bytes and
//! one in a block; an entry's value lies in the table's own space or is the
//! content of an inode. On disk a name is a number for its prefix and the rest,
//! raw bytes; which of them Linux shows is [`PREFIXES`].
//!
//! `struct ext4_xattr_entry`, a multiple of 4 bytes long, the list ended by four
//! bytes of zero:
//!
//! ```text
//! 0 u8 e_name_len      2 u16 e_value_offs   8  u32 e_value_size
//! 1 u8 e_name_index    4 u32 e_value_inum   12 u32 e_hash      16 name
//! ```

use std::ops::ControlFlow;

use fs_ext4::acl;
use fs_ext4::inode::InodeFlags;

use super::inode::Inode;
use super::{Ext, border, le16, le32};
use crate::error::{Error, Result};

/// First four bytes of either table.
const MAGIC: u32 = 0xea02_0000;

/// Length of what stands before the entries in a block
/// (`struct ext4_xattr_header`).
const BLOCK_HEADER: usize = 32;

/// As long as Linux lets a value be (`XATTR_SIZE_MAX`).
const MAX_VALUE: u64 = 65536;

/// Access and default ACL of POSIX: the prefix is the whole name.
const ACL_ACCESS: u8 = 2;
const ACL_DEFAULT: u8 = 3;

/// `system.`, which Linux does not show: it keeps inline data there.
const SYSTEM: u8 = 7;

/// The name prefixes that Linux shows, by `e_name_index`.
const PREFIXES: [(u8, &[u8]); 6] = [
    (1, b"user."),
    (ACL_ACCESS, b"system.posix_acl_access"),
    (ACL_DEFAULT, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
    (10, b"gnu."),
];

fn prefix(index: u8) -> Option<&'static [u8]> {
    PREFIXES
        .iter()
        .find(|(known, _)| *known == index)
        .map(|(_, prefix)| *prefix)
}

/// Number and rest of a name as Linux tells it.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        let whole = matches!(*index, ACL_ACCESS | ACL_DEFAULT);
        (rest.is_empty() == whole).then_some((*index, rest))
    })
}

/// One table of entries.
#[derive(Clone, Copy)]
struct Table<'a> {
    /// What offsets of values count from, up to the end of the table.
    space: &'a [u8],
    /// Where the entries begin in it.
    start: usize,
}

struct Entry<'a> {
    index: u8,
    name: &'a [u8],
    offset: usize,
    inode: u32,
    size: u32,
}

impl<'a> Table<'a> {
    /// The table in an inode's own bytes: after its fields, to its end.
    fn in_inode(inode: &'a Inode) -> Option<Self> {
        let table = inode.raw.get(inode.fields_end()?..)?;
        let space = table.get(4..)?;
        (le32(table, 0) == Some(MAGIC)).then_some(Self { space, start: 0 })
    }

    /// The entries; `None` in place of one that is not all there.
    fn entries(self) -> impl Iterator<Item = Option<Entry<'a>>> {
        let mut at = Some(self.start);
        std::iter::from_fn(move || {
            let here = at?;
            if le32(self.space, here).unwrap_or(0) == 0 {
                return None;
            }
            let entry = self.entry(here);
            at = entry.as_ref().map(|entry| {
                here.saturating_add(16)
                    .saturating_add(entry.name.len())
                    .next_multiple_of(4)
            });
            Some(entry)
        })
    }

    fn entry(self, at: usize) -> Option<Entry<'a>> {
        let raw = self.space.get(at..)?;
        let name_len = usize::from(*raw.first()?);
        Some(Entry {
            index: *raw.get(1)?,
            name: raw.get(16..)?.get(..name_len)?,
            offset: usize::from(le16(raw, 2)?),
            inode: le32(raw, 4)?,
            size: le32(raw, 8)?,
        })
    }

    /// The value of an entry that lies in the table.
    fn value(self, entry: &Entry<'_>) -> Option<&'a [u8]> {
        if entry.size == 0 {
            return Some(&[]);
        }
        self.space
            .get(entry.offset..)?
            .get(..usize::try_from(entry.size).ok()?)
    }
}

impl Ext {
    /// Whether there is anything that [`Ext::attribute_names`] could tell.
    pub(super) fn may_have_attributes(&self, inode: &Inode) -> bool {
        let shown =
            |entry: Option<Entry<'_>>| entry.is_none_or(|entry| prefix(entry.index).is_some());
        inode.disk.file_acl != 0
            || Table::in_inode(inode).is_some_and(|table| table.entries().any(shown))
    }

    /// Calls `visit` with each entry until it breaks, those in the inode first,
    /// as the kernel does.
    fn visit_attributes(
        &self,
        inode: &Inode,
        visit: &mut dyn FnMut(Table<'_>, &Entry<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut walk = |table: Table<'_>| {
            for entry in table.entries() {
                let entry =
                    entry.ok_or_else(|| inode.corrupt("its extended attributes do not end"))?;
                if visit(table, &entry)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        };
        if let Some(table) = Table::in_inode(inode)
            && walk(table)?.is_break()
        {
            return Ok(());
        }
        let number = inode.disk.file_acl;
        if number == 0 {
            return Ok(());
        }
        if number >= self.superblock.blocks_count {
            return Err(inode.corrupt(format!("its attributes cannot lie in block {number}")));
        }
        let block = self.read_block(number)?;
        let sound = border(
            || inode.what(),
            || Ok(self.checksum.verify_xattr_block(number, &block)),
        )?;
        if !sound || le32(&block, 0) != Some(MAGIC) {
            return Err(inode.corrupt(format!("block {number} does not hold its attributes")));
        }
        walk(Table {
            space: &block,
            start: BLOCK_HEADER,
        })
        .map(|_| ())
    }

    /// The names as Linux shows them.
    pub(super) fn attribute_names(&self, inode: &Inode) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        self.visit_attributes(inode, &mut |_, entry| {
            if let Some(prefix) = prefix(entry.index) {
                names.push([prefix, entry.name].concat());
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(names)
    }

    /// The value of an attribute, ACLs in the form that `getxattr` gives.
    pub(super) fn attribute(&self, inode: &Inode, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some((index, rest)) = split(name) else {
            return Ok(None);
        };
        let mut value = None;
        self.visit_attributes(inode, &mut |table, entry| {
            if entry.index != index || entry.name != rest {
                return Ok(ControlFlow::Continue(()));
            }
            value = Some(self.value(inode, table, entry)?);
            Ok(ControlFlow::Break(()))
        })?;
        match value {
            Some(stored) if matches!(index, ACL_ACCESS | ACL_DEFAULT) => {
                acl_as_attribute(inode, &stored)
            }
            value => Ok(value),
        }
    }

    fn value(&self, inode: &Inode, table: Table<'_>, entry: &Entry<'_>) -> Result<Vec<u8>> {
        if entry.inode == 0 {
            let value = table.value(entry);
            return Ok(value
                .ok_or_else(|| inode.corrupt("an extended attribute lies outside its place"))?
                .to_vec());
        }
        // `ea_inode`: the value is the content of an inode of its own.
        let holder = self
            .inode(u64::from(entry.inode))
            .map_err(|error| match error {
                // The file is there: what is not is a part of it.
                Error::NotFound { .. } => inode.corrupt(format!("its attribute's {error}")),
                error => error,
            })?;
        if !holder.has(InodeFlags::EA_INODE) || holder.size != u64::from(entry.size) {
            return Err(holder.corrupt(format!("it is not an attribute of inode {}", inode.ino)));
        }
        self.content(&holder, MAX_VALUE)
    }

    /// The part of inline content that `i_block` has no room for.
    pub(super) fn inline_rest<'a>(&self, inode: &'a Inode) -> Result<Option<&'a [u8]>> {
        let Some(table) = Table::in_inode(inode) else {
            return Ok(None);
        };
        for entry in table.entries().flatten() {
            if entry.index == SYSTEM && entry.name == b"data" {
                let rest = table.value(&entry);
                return rest
                    .map(Some)
                    .ok_or_else(|| inode.corrupt("its inline content lies outside the inode"));
            }
        }
        Ok(None)
    }
}

/// Turns the form in which ext4 keeps an ACL (version 1; only the entries of
/// named users and groups have an id) into that of `getxattr`
/// (`struct posix_acl_xattr_header`, version 2; each entry has an id).
fn acl_as_attribute(inode: &Inode, stored: &[u8]) -> Result<Option<Vec<u8>>> {
    /// `ACL_UNDEFINED_ID`.
    const NOBODY: u32 = u32::MAX;
    let entries = border(
        || format!("ACL of {}", inode.what()),
        || acl::decode(stored),
    )?;
    if entries.is_empty() {
        return Ok(None);
    }
    let mut value = 2u32.to_le_bytes().to_vec();
    for entry in entries {
        value.extend((entry.tag as u16).to_le_bytes());
        value.extend(entry.perm.to_le_bytes());
        value.extend(entry.id.unwrap_or(NOBODY).to_le_bytes());
    }
    Ok(Some(value))
}
