//! Formats that are known by their boot sector: NTFS, exFAT, FAT, ReFS and
//! BitLocker.
//!
//! The idea: all but ReFS end in `55 AA`, as a partition table does; whoever
//! looks for tables asks here first. Their labels lie in files of their own,
//! so these need one or two more reads.
#![deny(clippy::arithmetic_side_effects)]

use super::{Signature, utf16};
use crate::error::Result;
use crate::volume::head::{Head, is, le16, le32, le64};

/// The most bytes of a folder that are searched for a label.
const MAX_FOLDER: u64 = 64 << 10;

/// Whether the boot sector is one of these.
pub(super) fn is_known(bytes: &[u8]) -> bool {
    bitlocker(bytes).is_some()
        || Ntfs::parse(bytes).is_some()
        || Exfat::parse(bytes).is_some()
        || is(bytes, 3, b"ReFS\0\0\0\0")
        || Fat::parse(bytes).is_some()
}

/// NTFS, exFAT, ReFS or FAT.
pub(super) fn probe(head: &Head<'_>) -> Result<Option<Signature>> {
    let bytes = head.bytes();
    if let Some(ntfs) = Ntfs::parse(bytes) {
        return ntfs.signature(head).map(Some);
    }
    if let Some(exfat) = Exfat::parse(bytes) {
        return exfat.signature(head).map(Some);
    }
    if is(bytes, 3, b"ReFS\0\0\0\0") {
        return Ok(Some(Signature::new("ReFS")));
    }
    match Fat::parse(bytes) {
        Some(fat) => fat.signature(head).map(Some),
        None => Ok(None),
    }
}

/// BitLocker of a fixed disk, or BitLocker To Go, which looks like FAT.
pub(super) fn bitlocker(bytes: &[u8]) -> Option<Signature> {
    // 4967D63B-2E29-4AD8-8399-F6A339E3D001
    const TO_GO: [u8; 16] = [
        0x3b, 0xd6, 0x67, 0x49, 0x29, 0x2e, 0xd8, 0x4a, 0x83, 0x99, 0xf6, 0xa3, 0x39, 0xe3, 0xd0, 1,
    ];
    let found = is(bytes, 3, b"-FVE-FS-") || is(bytes, 3, b"MSWIN4.1") && is(bytes, 424, &TO_GO);
    found.then(|| Signature::new("BitLocker"))
}

/// The four bytes of a serial number as Windows and `blkid` print them.
fn serial(number: u32) -> String {
    let [a, b, c, d] = number.to_be_bytes();
    format!("{a:02X}{b:02X}-{c:02X}{d:02X}")
}

struct Ntfs {
    sector: u64,
    cluster: u64,
    sectors: u64,
    mft: u64,
    record: usize,
    serial: u64,
}

impl Ntfs {
    fn parse(b: &[u8]) -> Option<Self> {
        if !is(b, 3, b"NTFS    ") {
            return None;
        }
        let sector = u64::from(le16(b, 11)?);
        if !(256..=4096).contains(&sector) || !sector.is_power_of_two() {
            return None;
        }
        // Above 128 it is the negative of a power of two.
        let per_cluster = match *b.get(13)? {
            n @ 1..=128 if n.is_power_of_two() => u64::from(n),
            n @ 240..=255 => 1_u64.checked_shl(u32::from(n.wrapping_neg()))?,
            _ => return None,
        };
        let cluster = sector.checked_mul(per_cluster)?;
        let record = match i8::from_le_bytes([*b.get(64)?]) {
            n @ 1.. => cluster.checked_mul(u64::try_from(n).ok()?)?,
            n => 1_u64.checked_shl(u32::from(n.unsigned_abs()))?,
        };
        let record = usize::try_from(record)
            .ok()
            .filter(|r| (256..=65536).contains(r))?;
        let (sectors, mft, serial) = (le64(b, 40)?, le64(b, 48)?, le64(b, 72)?);
        Some(Self {
            sector,
            cluster,
            sectors,
            mft,
            record,
            serial,
        })
    }

    fn signature(&self, head: &Head<'_>) -> Result<Signature> {
        let found = Signature {
            uuid: format!("{:016X}", self.serial),
            ..Signature::new("ntfs").size(Some(self.sectors), self.sector)
        };
        // Record 3 of the MFT is $Volume.
        let at = u64::try_from(self.record).ok().and_then(|record| {
            self.mft
                .checked_mul(self.cluster)?
                .checked_add(record.checked_mul(3)?)
        });
        let record = match at {
            Some(at) => head.get(at, self.record)?,
            None => None,
        };
        let label = record
            .and_then(|record| volume_name(&record))
            .unwrap_or_default();
        Ok(Signature { label, ..found })
    }
}

/// The value of $VOLUME_NAME in an MFT record.
fn volume_name(record: &[u8]) -> Option<Vec<u8>> {
    if !is(record, 0, b"FILE") {
        return None;
    }
    let mut at = usize::from(le16(record, 20)?);
    // Each attribute takes 16 bytes at least, so this ends.
    loop {
        let (kind, len) = (le32(record, at)?, le32(record, at.checked_add(4)?)?);
        let attribute = record.get(at..at.checked_add(usize::try_from(len).ok()?)?)?;
        if kind == 0x60 {
            let len = usize::try_from(le32(attribute, 16)?).ok()?;
            let value = usize::from(le16(attribute, 20)?);
            let value = attribute.get(value..value.checked_add(len)?)?;
            return Some(utf16(value, u16::from_le_bytes));
        }
        if kind == u32::MAX || attribute.len() < 16 {
            return None;
        }
        at = at.checked_add(attribute.len())?;
    }
}

struct Exfat {
    sector: u64,
    sectors: u64,
    root: u64,
    cluster: u64,
    serial: u32,
}

impl Exfat {
    fn parse(b: &[u8]) -> Option<Self> {
        if !is(b, 3, b"EXFAT   ") || !is(b, 510, &[0x55, 0xaa]) {
            return None;
        }
        let sector_bits = u32::from(*b.get(108)?);
        let cluster_bits = sector_bits.checked_add(u32::from(*b.get(109)?))?;
        if !(9..=12).contains(&sector_bits) || cluster_bits > 25 {
            return None;
        }
        let sector = 1_u64.checked_shl(sector_bits)?;
        let cluster = 1_u64.checked_shl(cluster_bits)?;
        let heap = u64::from(le32(b, 88)?).checked_mul(sector)?;
        let root = u64::from(le32(b, 96)?).checked_sub(2)?;
        let root = root.checked_mul(cluster)?.checked_add(heap)?;
        Some(Self {
            sector,
            sectors: le64(b, 72)?,
            root,
            cluster,
            serial: le32(b, 100)?,
        })
    }

    fn signature(&self, head: &Head<'_>) -> Result<Signature> {
        let len = usize::try_from(self.cluster.min(MAX_FOLDER)).unwrap_or(usize::MAX);
        // The label is among the first entries of the root folder.
        let label = head.get(self.root, len)?.and_then(|folder| {
            let entries = folder.chunks_exact(32).take_while(|e| !is(e, 0, &[0]));
            entries
                .into_iter()
                .find(|e| is(e, 0, &[0x83]))
                .and_then(|entry| {
                    let units = usize::from(*entry.get(1)?).min(11);
                    Some(utf16(
                        entry.get(2..units.checked_mul(2)?.checked_add(2)?)?,
                        u16::from_le_bytes,
                    ))
                })
        });
        Ok(Signature {
            label: label.unwrap_or_default(),
            uuid: serial(self.serial),
            ..Signature::new("exfat").size(Some(self.sectors), self.sector)
        })
    }
}

struct Fat {
    sector: u64,
    sectors: u64,
    /// First byte of the first FAT.
    table: u64,
    /// Where the root folder is: FAT12 and FAT16 have a place for it.
    root: Root,
    serial: u32,
    label: [u8; 11],
}

enum Root {
    Fixed {
        at: u64,
        len: u64,
    },
    Chain {
        first: u32,
        heap: u64,
        cluster: u64,
        clusters: u64,
    },
}

impl Fat {
    fn parse(b: &[u8]) -> Option<Self> {
        let strong = is(b, 54, b"MSDOS")
            || [b"FAT12   ", b"FAT16   ", b"FAT     "]
                .iter()
                .any(|m| is(b, 54, *m))
            || is(b, 82, b"FAT32   ")
            || is(b, 82, b"MSWIN");
        if !strong {
            // A jump instruction alone says little; OS/2 puts such a sector
            // before file systems of other kinds.
            let jump = matches!(*b.first()?, 0xe9 | 0xeb) && is(b, 510, &[0x55, 0xaa]);
            if !jump || is(b, 54, b"JFS     ") || is(b, 54, b"HPFS    ") {
                return None;
            }
        }
        let sector = u64::from(le16(b, 11)?);
        let per_cluster = u64::from(*b.get(13)?);
        let reserved = u64::from(le16(b, 14)?);
        let fats = u64::from(*b.get(16)?);
        let entries = u64::from(le16(b, 17)?);
        let media = *b.get(21)?;
        if fats == 0
            || reserved == 0
            || !(media >= 0xf8 || media == 0xf0)
            || !per_cluster.is_power_of_two()
            || !sector.is_power_of_two()
            || !(512..=4096).contains(&sector)
        {
            return None;
        }
        let small = le16(b, 22)?;
        let large = le32(b, 36)?;
        let fat_len = if small != 0 {
            u64::from(small)
        } else {
            u64::from(large)
        };
        let sectors = match le16(b, 19)? {
            0 => u64::from(le32(b, 32)?),
            n => u64::from(n),
        };
        let table = reserved.checked_mul(sector)?;
        let heap_sector = reserved.checked_add(fat_len.checked_mul(fats)?)?;
        let folder = entries.checked_mul(32)?;
        let before = heap_sector.checked_add(folder.div_ceil(sector))?;
        let clusters = sectors.checked_sub(before)?.checked_div(per_cluster)?;
        let most = match small {
            0 if large == 0 => return None,
            0 => 0x0fff_fff6,
            _ => 0xfff4,
        };
        if clusters > most {
            return None;
        }
        let heap = heap_sector.checked_mul(sector)?;
        let (root, serial, label) = if small != 0 {
            (
                Root::Fixed {
                    at: heap,
                    len: folder,
                },
                39,
                43,
            )
        } else {
            let cluster = per_cluster.checked_mul(sector)?;
            (
                Root::Chain {
                    first: le32(b, 44)?,
                    heap,
                    cluster,
                    clusters,
                },
                67,
                71,
            )
        };
        Some(Self {
            sector,
            sectors,
            table,
            root,
            serial: le32(b, serial)?,
            label: crate::volume::head::array(b, label)?,
        })
    }

    fn signature(&self, head: &Head<'_>) -> Result<Signature> {
        let mut found = Signature {
            uuid: serial(self.serial),
            ..Signature::new("vfat").size(Some(self.sectors), self.sector)
        };
        // The entry in the root folder is the label that Windows changes; the
        // boot sector keeps the one of the day it was formatted.
        if let Some(label) = self.root_label(head)? {
            found = found.label(&label);
        } else if self.label != *b"NO NAME    " {
            found = found.label(&self.label);
        }
        Ok(found)
    }

    fn root_label(&self, head: &Head<'_>) -> Result<Option<[u8; 11]>> {
        let folder = |at: u64, len: u64| -> Result<Option<[u8; 11]>> {
            let len = usize::try_from(len.min(MAX_FOLDER)).unwrap_or(usize::MAX);
            Ok(head.get(at, len)?.and_then(|folder| fat_label(&folder)))
        };
        match self.root {
            Root::Fixed { at, len } => folder(at, len),
            Root::Chain {
                first,
                heap,
                cluster,
                clusters,
            } => {
                let mut number = first;
                // The label is nearly always the first entry of all.
                for _ in 0..4 {
                    let Some(index) = u64::from(number)
                        .checked_sub(2)
                        .filter(|index| *index < clusters)
                    else {
                        break;
                    };
                    let at = index.saturating_mul(cluster).saturating_add(heap);
                    if let Some(label) = folder(at, cluster)? {
                        return Ok(Some(label));
                    }
                    let at = u64::from(number)
                        .saturating_mul(4)
                        .saturating_add(self.table);
                    let Some(next) = head.get(at, 4)?.and_then(|raw| le32(&raw, 0)) else {
                        break;
                    };
                    number = next & 0x0fff_ffff;
                }
                Ok(None)
            }
        }
    }
}

/// The label among the entries of a FAT folder.
fn fat_label(folder: &[u8]) -> Option<[u8; 11]> {
    for entry in folder.chunks_exact(32) {
        let mut name: [u8; 11] = crate::volume::head::array(entry, 0)?;
        let attributes = *entry.get(11)?;
        let cluster = (le16(entry, 20)?, le16(entry, 26)?);
        match name.first_mut() {
            Some(0) => return None,
            Some(0xe5) => continue,
            // Attribute 0x08 is a label, 0x10 a folder, 0x0F a piece of a long name.
            _ if cluster != (0, 0) || attributes & 0x3f == 0x0f || attributes & 0x18 != 0x08 => {}
            Some(first) => {
                if *first == 0x05 {
                    *first = 0xe5;
                }
                return Some(name);
            }
            None => {}
        }
    }
    None
}
