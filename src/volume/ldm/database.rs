//! The database that Windows keeps on each dynamic disk: private header
//! (`PRIVHEAD`), table of contents (`TOCBLOCK`), database header (`VMDB`) and its
//! records (`VBLK`). Linux' `block/partitions/ldm.c` and libldm describe them.
//!
//! The idea: all numbers are big-endian, many of them as a length and as many
//! bytes; a record may be cut into several blocks. A record that cannot be read
//! makes the database a damaged one: half of it would be wrong.
#![deny(clippy::arithmetic_side_effects)]

use crate::error::Result;
use crate::volume::head::{Head, array, be16, be32, is};
use std::collections::{BTreeMap, BTreeSet};

/// LDM counts in sectors of 512 bytes.
pub(super) const SECTOR: u64 = 512;
/// The most that is read of a database, in bytes: what Windows makes.
const MAX_CONFIG: u64 = 1 << 20;
/// The smallest block of a record, in bytes: what Windows makes. Bounds the number
/// of records to 8192.
const MIN_BLOCK: usize = 128;
/// Where tables of contents stand in the database, in sectors.
const CONTENTS: [u64; 4] = [2, 1, 2046, 2045];

/// What a disk says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// The disk's GUID, in lower case.
    pub(crate) disk: String,
    /// First byte of the part that volumes lie on.
    pub(crate) data: u64,
    /// Where the database is, in bytes.
    at: u64,
    len: u64,
}

/// A database.
#[derive(Debug, Default)]
pub(crate) struct Database {
    /// GUID of the disk group.
    pub(crate) group: String,
    /// Grows with each change.
    pub(crate) sequence: u64,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) components: Vec<Component>,
    pub(crate) partitions: Vec<Partition>,
    pub(crate) disks: Vec<Disk>,
}

#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) id: u64,
    pub(crate) name: String,
    /// Bytes.
    pub(crate) size: u64,
}

/// What a component does with its partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Striped,
    Spanned,
    Raid5,
}

/// A volume has one component, or one for each copy.
#[derive(Debug)]
pub(crate) struct Component {
    pub(crate) id: u64,
    pub(crate) volume: u64,
    pub(crate) state: String,
    pub(crate) kind: Kind,
    pub(crate) parts: u64,
    /// Bytes.
    pub(crate) chunk: u64,
}

#[derive(Debug)]
pub(crate) struct Partition {
    /// Bytes after [`Header::data`].
    pub(crate) start: u64,
    /// Bytes after the beginning of the component.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) component: u64,
    pub(crate) disk: u64,
    /// Its place among the columns.
    pub(crate) index: u64,
}

#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) id: u64,
    pub(crate) name: String,
    /// GUID, in lower case.
    pub(crate) guid: String,
}

impl Header {
    /// The private header at byte `at` of a disk; `None` if there is none.
    ///
    /// # Errors
    /// From below, but for damage.
    pub(crate) fn read(head: &Head<'_>, at: u64) -> Result<Option<Self>> {
        let bytes = head.get(at, 512)?;
        let header = bytes.and_then(|b| {
            is(&b, 0, b"PRIVHEAD").then_some(())?;
            let sectors = |at| u64::from_be_bytes(array(&b, at)?).checked_mul(SECTOR);
            Some(Self {
                disk: text(b.get(48..112)?),
                data: sectors(283)?,
                at: sectors(299)?,
                len: sectors(307)?,
            })
        });
        Ok(header)
    }

    /// The database; `None` if it is damaged.
    ///
    /// # Errors
    /// From below, but for damage.
    pub(crate) fn database(&self, head: &Head<'_>) -> Result<Option<Database>> {
        let len = usize::try_from(self.len.min(MAX_CONFIG)).unwrap_or(0);
        let config = head.get(self.at, len)?;
        Ok(config.and_then(|config| {
            let mut contents = CONTENTS.iter().filter_map(|sector| {
                let at = usize::try_from(sector.checked_mul(SECTOR)?).ok()?;
                database_place(config.get(at..)?)
            });
            contents.find_map(|place| {
                let at = usize::try_from(place.checked_mul(SECTOR)?).ok()?;
                Database::parse(config.get(at..)?)
            })
        }))
    }
}

/// Text up to the first NUL, in lower case.
fn text(raw: &[u8]) -> String {
    let text = raw.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).to_ascii_lowercase()
}

/// The sector of the database by the table of contents in `b`.
fn database_place(b: &[u8]) -> Option<u64> {
    is(b, 0, b"TOCBLOCK").then_some(())?;
    [36_usize, 70].into_iter().find_map(|at| {
        is(b, at, b"config\0").then_some(())?;
        Some(u64::from_be_bytes(array(b, at.checked_add(10)?)?))
    })
}

impl Database {
    fn parse(b: &[u8]) -> Option<Self> {
        is(b, 0, b"VMDB").then_some(())?;
        let each = usize::try_from(be32(b, 8)?).ok()?;
        let first = usize::try_from(be32(b, 12)?).ok()?;
        if !(MIN_BLOCK..=4096).contains(&each) {
            return None;
        }
        let mut all = Self {
            group: text(b.get(53..117)?),
            sequence: u64::from_be_bytes(array(b, 117)?),
            ..Self::default()
        };
        // Records in several blocks: each part by its number.
        let mut cut: BTreeMap<u32, BTreeMap<u16, &[u8]>> = BTreeMap::new();
        let mut totals: BTreeMap<u32, u16> = BTreeMap::new();
        for block in b.get(first..)?.chunks_exact(each) {
            if !is(block, 0, b"VBLK") {
                break;
            }
            let (id, number, total) = (be32(block, 8)?, be16(block, 12)?, be16(block, 14)?);
            let content = block.get(16..)?;
            if total > 1 {
                cut.entry(id).or_default().insert(number, content);
                totals.insert(id, total);
            } else {
                all.record(content)?;
            }
        }
        for (id, parts) in cut {
            let total = totals.get(&id).copied()?;
            let whole = parts.keys().copied().eq(0..total);
            let bytes: Vec<u8> = parts.into_values().flatten().copied().collect();
            whole.then(|| all.record(&bytes))??;
        }
        let told = |at: usize| be32(b, at).and_then(|n| usize::try_from(n).ok());
        let complete = told(133)? == all.volumes.len()
            && told(137)? == all.components.len()
            && told(141)? == all.partitions.len()
            && told(145)? == all.disks.len();
        // Two of the same number would each have all that belongs to either.
        let unique = all_differ(all.volumes.iter().map(|volume| volume.id))
            && all_differ(all.components.iter().map(|component| component.id))
            && all_differ(all.disks.iter().map(|disk| disk.id));
        (complete && unique).then_some(all)
    }

    /// Takes one record; `None` if it cannot be read.
    fn record(&mut self, b: &[u8]) -> Option<()> {
        let (flags, kind) = (*b.get(2)?, *b.get(3)?);
        let mut rest = Fields(b.get(8..)?);
        match (kind & 15, kind >> 4) {
            // None, and the group itself.
            (0 | 5, _) => {}
            (1, 5) => {
                let (id, name) = (rest.number()?, rest.text()?);
                // Kind in words, a state; states, kind, number, flags.
                rest.skip_text()?;
                rest.skip_text()?;
                rest.skip(21)?;
                // How many components; two identifiers.
                rest.number()?;
                rest.skip(16)?;
                let size = rest.number()?.checked_mul(SECTOR)?;
                self.volumes.push(Volume { id, name, size });
            }
            (2, 3) => {
                let id = rest.number()?;
                rest.skip_text()?;
                let state = rest.text()?;
                let kind = match rest.byte()? {
                    1 => Kind::Striped,
                    2 => Kind::Spanned,
                    3 => Kind::Raid5,
                    _ => return None,
                };
                rest.skip(4)?;
                let parts = rest.number()?;
                rest.skip(16)?;
                let volume = rest.number()?;
                rest.skip(1)?;
                let chunk = if flags & 16 == 0 { 0 } else { rest.number()? };
                self.components.push(Component {
                    id,
                    volume,
                    state,
                    kind,
                    parts,
                    chunk: chunk.checked_mul(SECTOR)?,
                });
            }
            (3, 3) => {
                rest.number()?;
                rest.skip_text()?;
                rest.skip(12)?;
                let start = rest.be64()?.checked_mul(SECTOR)?;
                let offset = rest.be64()?.checked_mul(SECTOR)?;
                let size = rest.number()?.checked_mul(SECTOR)?;
                let (component, disk) = (rest.number()?, rest.number()?);
                self.partitions.push(Partition {
                    start,
                    offset,
                    size,
                    component,
                    disk,
                    index: if flags & 8 == 0 { 0 } else { rest.number()? },
                });
            }
            (4, 3) => {
                let (id, name, guid) = (rest.number()?, rest.text()?, rest.text()?);
                let guid = guid.to_ascii_lowercase();
                self.disks.push(Disk { id, name, guid });
            }
            (4, 4) => {
                let (id, name) = (rest.number()?, rest.text()?);
                let guid = uuid::Uuid::from_bytes(array(rest.0, 0)?);
                let guid = guid.hyphenated().to_string();
                self.disks.push(Disk { id, name, guid });
            }
            _ => return None,
        }
        Some(())
    }
}

fn all_differ(ids: impl Iterator<Item = u64>) -> bool {
    let mut seen = BTreeSet::new();
    let mut ids = ids;
    ids.all(|id| seen.insert(id))
}

/// The fields of a record, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn skip(&mut self, len: usize) -> Option<()> {
        self.take(len).map(drop)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn be64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(array(self.take(8)?, 0)?))
    }

    /// A length, and as many bytes.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let len = self.byte()?;
        self.take(usize::from(len))
    }

    fn skip_text(&mut self) -> Option<()> {
        self.counted().map(drop)
    }

    fn text(&mut self) -> Option<String> {
        Some(String::from_utf8_lossy(self.counted()?).into_owned())
    }

    fn number(&mut self) -> Option<u64> {
        let bytes = self.counted().filter(|bytes| bytes.len() <= 8)?;
        Some(
            bytes
                .iter()
                .fold(0, |number, byte| number << 8 | u64::from(*byte)),
        )
    }
}
