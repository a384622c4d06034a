//! Whether a qcow2 file ends before its clusters do.
//!
//! QEMU reads zeros past the end of a file, so that a backup whose copy was cut
//! off would look whole and give wrong bytes. The idea: the highest cluster that
//! has a reference count lies within a file that is whole, and finding it takes
//! two reads. Only if it lies outside (it may be a mere leak, left by a crash) are
//! the mapping tables walked for a cluster in use that is not there.

use super::header::{Header, read_up_to};
use crate::error::{Error, Result};
use std::fs::File;
use std::path::Path;

/// `QCOW_MAX_REFTABLE_SIZE` of QEMU.
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// How much of the mapping tables is read at most: those of a disk of 8 TiB.
const MAX_WALK: u64 = 1 << 30;

/// Bits 9 to 55 of an entry of the mapping tables.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ALL_ZEROS: u64 = 1;

/// Fails if the image in `file`, `len` bytes long, is cut off.
pub(super) fn check(file: &File, len: u64, header: &Header, path: &Path) -> Result<()> {
    let look = Look {
        file,
        len,
        header,
        path,
    };
    if look.counted_end()? && look.missing_cluster()? {
        let reason = format!(
            "the qcow2 image is truncated: it ends at {len} bytes, before data that it refers to"
        );
        return Err(Error::image(path, reason));
    }
    Ok(())
}

struct Look<'a> {
    file: &'a File,
    len: u64,
    header: &'a Header,
    path: &'a Path,
}

impl Look<'_> {
    /// Bytes `at..at + len`, fewer at the end of the file.
    fn bytes(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let len = len.min(self.len.saturating_sub(at));
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let got = read_up_to(self.file, &mut bytes, at)
            .map_err(|e| Error::io(self.path.display().to_string(), e))?;
        bytes.truncate(got);
        Ok(bytes)
    }

    /// Whether a cluster past the end of the file has a reference count.
    fn counted_end(&self) -> Result<bool> {
        let tables = &self.header.tables;
        let cluster = self.header.cluster_size;
        let table_len = tables
            .refcount_clusters
            .saturating_mul(cluster)
            .min(MAX_REFCOUNT_TABLE);
        let table = self.bytes(tables.refcount_at, table_len)?;
        let last = entries(&table)
            .enumerate()
            .filter(|(_, entry)| entry & !0x1ff != 0)
            .last();
        let Some((index, block)) = last else {
            return Ok(false);
        };
        let block = self.bytes(block & !0x1ff, cluster)?;
        let Some(byte) = block.iter().rposition(|&b| b != 0) else {
            return Ok(block.is_empty());
        };
        let top_bit = block.get(byte).and_then(|b| b.checked_ilog2()).unwrap_or(0);
        // Counts are 1 to 64 bits wide; those below a byte start at its low bits.
        let in_block = ((byte as u64)
            .saturating_mul(8)
            .saturating_add(top_bit.into()))
            >> tables.refcount_order;
        let per_block = cluster.saturating_mul(8) >> tables.refcount_order;
        let number = (index as u64)
            .saturating_mul(per_block)
            .saturating_add(in_block);
        // The last cluster need not be full.
        Ok(number.saturating_mul(cluster) >= self.len)
    }

    /// Whether the mapping tables lead past the end of the file.
    fn missing_cluster(&self) -> Result<bool> {
        let tables = &self.header.tables;
        let cluster = self.header.cluster_size;
        let offset_bits = 62_u32.saturating_sub(cluster.ilog2().saturating_sub(8));
        let compressed_offset = !u64::MAX.unbounded_shl(offset_bits);
        let mut walked = 0_u64;
        for entry in entries(&self.bytes(tables.l1_at, tables.l1_len)?) {
            let table = entry & OFFSET;
            if table == 0 {
                continue;
            }
            if table.saturating_add(cluster) > self.len {
                return Ok(true);
            }
            walked = walked.saturating_add(cluster);
            if self.header.data_file.is_some() || walked > MAX_WALK {
                continue;
            }
            let table = self.bytes(table, cluster)?;
            let step = if tables.extended_l2 { 2 } else { 1 };
            for entry in entries(&table).step_by(step) {
                let at = if entry & COMPRESSED != 0 {
                    entry & compressed_offset
                } else if entry & ALL_ZEROS != 0 && !tables.extended_l2 {
                    0
                } else {
                    entry & OFFSET
                };
                if at >= self.len {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    table
        .as_chunks()
        .0
        .iter()
        .map(|entry| u64::from_be_bytes(*entry))
}
