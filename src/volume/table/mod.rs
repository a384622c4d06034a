//! Partition tables: GPT and MBR, read as Linux reads them.
//!
//! The idea: a table gives places and what its type codes promise; what really
//! lies in a partition is told by its signature. An image does not say how
//! large its disk's sectors were (512 or 4096 bytes), so both sizes are tried.
#![deny(clippy::arithmetic_side_effects)]

mod gpt;
mod mbr;

use super::head::Head;
use super::signature;
use crate::error::Result;

/// More partitions than this are not listed (Linux' own limit).
pub(super) const MAX_PARTITIONS: usize = 256;

/// The partition of a GPT that the database of a dynamic disk lies in.
pub(super) const LDM_METADATA: Role = Role::NoFiles("Windows LDM metadata");

/// What a partition's type code says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It may hold anything.
    Data,
    /// It never holds files; the name of its use.
    NoFiles(&'static str),
    /// Swap, if no signature says otherwise.
    Swap,
    /// Part of a dynamic disk of Windows.
    Dynamic,
    /// An extended partition some of whose logical partitions cannot be found.
    LostLogical,
    /// The entry that stands for a GPT that could not be read.
    LostGpt,
}

/// An entry of a partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partition {
    /// The number that Linux gives it.
    pub(super) number: u32,
    /// First byte on the disk.
    pub(super) start: u64,
    /// Length in bytes.
    pub(super) len: u64,
    /// What its type says.
    pub(super) role: Role,
    /// Its name in the table (GPT).
    pub(super) label: String,
}

/// A partition table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// What `blkid` calls it: `gpt` or `dos`.
    pub(super) kind: &'static str,
    /// Its partitions, in its order.
    pub(super) partitions: Vec<Partition>,
}

/// Reads the partition table of the disk with this head; `None` if it has none.
///
/// # Errors
/// From below.
pub(super) fn read(head: &Head<'_>) -> Result<Option<Table>> {
    if mbr::is_protective(head.bytes()) {
        for sector in [512, 4096] {
            if let Some(partitions) = gpt::read(head, sector)? {
                return Ok(Some(Table {
                    kind: "gpt",
                    partitions,
                }));
            }
        }
    }
    read_mbr(head, 512)
}

/// Reads an MBR whose numbers count sectors of `sector` bytes; `None` if there
/// is none.
///
/// # Errors
/// From below.
pub(super) fn read_mbr(head: &Head<'_>, sector: u32) -> Result<Option<Table>> {
    // The boot sectors of some file systems end in the same two bytes.
    if signature::has_boot_sector(head) {
        return Ok(None);
    }
    Ok(mbr::read(head, sector)?.map(|partitions| Table {
        kind: "dos",
        partitions,
    }))
}
