//! The four checksums that a file system may use, for nodes and for data, and
//! the hash of names.

use std::hash::Hasher;

use blake2::Blake2b256;
use sha2::{Digest, Sha256};
use twox_hash::XxHash64;

/// A kind of checksum (`csum_type` of the superblock).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksum {
    Crc32c,
    XxHash64,
    Sha256,
    Blake2b,
}

impl Checksum {
    /// By its number on disk; `None` for one that is not known.
    pub(super) fn new(kind: u16) -> Option<Self> {
        match kind {
            0 => Some(Self::Crc32c),
            1 => Some(Self::XxHash64),
            2 => Some(Self::Sha256),
            3 => Some(Self::Blake2b),
            _ => None,
        }
    }

    /// Its length in bytes.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Crc32c => 4,
            Self::XxHash64 => 8,
            Self::Sha256 | Self::Blake2b => 32,
        }
    }

    /// The checksum of `data`, filled up with zeros.
    pub(super) fn of(self, data: &[u8]) -> [u8; 32] {
        let mut sum = [0; 32];
        let mut put = |bytes: &[u8]| {
            for (to, from) in sum.iter_mut().zip(bytes) {
                *to = *from;
            }
        };
        match self {
            Self::Crc32c => put(&crc32c::crc32c(data).to_le_bytes()),
            Self::XxHash64 => {
                let mut hasher = XxHash64::with_seed(0);
                hasher.write(data);
                put(&hasher.finish().to_le_bytes());
            }
            Self::Sha256 => put(&Sha256::digest(data)),
            Self::Blake2b => put(&Blake2b256::digest(data)),
        }
        sum
    }

    /// Whether `stored`, of which the first [`Self::len`] bytes count, is the
    /// checksum of `data`.
    pub(super) fn matches(self, stored: &[u8], data: &[u8]) -> bool {
        stored
            .get(..self.len())
            .is_some_and(|stored| self.of(data).get(..self.len()) == Some(stored))
    }
}

/// The hash by which names of entries and of extended attributes are found
/// (`btrfs_name_hash`): crc32c that begins with ~1 and is not inverted.
pub(super) fn name_hash(name: &[u8]) -> u64 {
    u64::from(!crc32c::crc32c_append(1, name))
}
