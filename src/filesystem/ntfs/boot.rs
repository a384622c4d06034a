//! The boot sector: how large sectors, clusters and records are, and where the
//! MFT begins.
#![deny(clippy::arithmetic_side_effects)]

use crate::error::{Error, Result};
use crate::filesystem::field::{u8_at, u16_at, u32_at, u64_at};

const WHAT: &str = "NTFS boot sector";

/// The largest cluster that Windows makes: 2 MiB.
const MAX_CLUSTER: u64 = 2 << 20;

/// The largest MFT record and index block that is accepted, in bytes.
const MAX_RECORD: u64 = 64 << 10;

/// What the boot sector says.
#[derive(Debug, Clone)]
pub(super) struct Boot {
    /// Bytes per cluster: a power of two.
    pub(super) cluster: u64,
    /// Clusters of the volume.
    pub(super) clusters: u64,
    /// Bytes per MFT record: a power of two, 512 at least.
    pub(super) record: u64,
    /// Byte offset of the MFT.
    pub(super) mft: u64,
    /// Byte offset of the copy of its first records.
    pub(super) mirror: u64,
    /// Serial number.
    pub(super) serial: u64,
    /// Bytes that the file system takes.
    pub(super) size: u64,
}

impl Boot {
    /// Parses the first 512 bytes of the volume.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let damaged = |reason: String| Error::corrupt(WHAT, reason);
        let short = || damaged("it is too short".into());
        if bytes.get(3..11) != Some(b"NTFS    ") {
            return Err(damaged("the signature of NTFS is missing".into()));
        }
        let sector = u64::from(u16_at(bytes, 0x0b).ok_or_else(short)?);
        if !sector.is_power_of_two() || !(256..=4096).contains(&sector) {
            return Err(damaged(format!("a sector cannot be {sector} bytes long")));
        }
        // Up to 128 sectors as a number; above that as a negative power of two.
        let factor = u8_at(bytes, 0x0d).ok_or_else(short)?;
        let per_cluster = if factor <= 0x80 {
            u64::from(factor)
        } else {
            power(factor).unwrap_or(0)
        };
        let cluster = sector.saturating_mul(per_cluster);
        if !cluster.is_power_of_two() || cluster > MAX_CLUSTER {
            return Err(damaged(format!("a cluster cannot be {cluster} bytes long")));
        }
        let sectors = u64_at(bytes, 0x28).ok_or_else(short)?;
        let mft = u64_at(bytes, 0x30).ok_or_else(short)?;
        let mirror = u64_at(bytes, 0x38).ok_or_else(short)?;
        let record = record_size(u8_at(bytes, 0x40).ok_or_else(short)?, cluster);
        if !record.is_power_of_two() || !(512..=MAX_RECORD).contains(&record) {
            return Err(damaged(format!(
                "an MFT record cannot be {record} bytes long"
            )));
        }
        // The size of index blocks (0x44) is also in each index, which counts.
        u32_at(bytes, 0x44).ok_or_else(short)?;
        let size = sectors.saturating_mul(sector);
        Ok(Self {
            cluster,
            clusters: size.checked_div(cluster).unwrap_or(0),
            record,
            mft: mft.saturating_mul(cluster),
            mirror: mirror.saturating_mul(cluster),
            serial: u64_at(bytes, 0x48).ok_or_else(short)?,
            size,
        })
    }
}

/// 2 to the power of a negative number's magnitude.
fn power(factor: u8) -> Option<u64> {
    1u64.checked_shl(u32::from(factor.wrapping_neg()))
}

/// A positive number counts clusters, a negative one is a power of two in bytes.
fn record_size(factor: u8, cluster: u64) -> u64 {
    if factor < 0x80 {
        cluster.saturating_mul(u64::from(factor))
    } else {
        power(factor).unwrap_or(0)
    }
}
