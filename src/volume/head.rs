//! The beginning of a volume, read once for everybody who looks for something.
//!
//! The idea: nearly all signatures and tables lie in the first 68 KiB (btrfs'
//! superblock at 64 KiB is the last), so one read serves all probes; on a cold
//! disk each read is a round trip. The few that lie elsewhere are read when
//! something in the head says that they are there.
#![deny(clippy::arithmetic_side_effects)]

use crate::error::{Error, Result};
use crate::image::BlockRead;
use std::borrow::Cow;
use std::cell::OnceCell;
use std::io;

/// Bytes read at once from the beginning of each volume.
const LEN: usize = 68 << 10;

/// Bytes that are read instead where some of these are damaged: most of what
/// tells what lies there.
const SHORT: usize = 4096;

/// The beginning of a volume, and a way to the rest.
///
/// Bytes that the image cannot give because it is damaged are as good as absent
/// for whoever looks for something; that there are such is remembered.
pub(super) struct Head<'a> {
    volume: &'a dyn BlockRead,
    bytes: Vec<u8>,
    damage: OnceCell<Error>,
}

/// Whether reading failed because of what lies in the image, as in a damaged
/// cluster: it will fail again. Whatever else went wrong may be over when it is
/// tried again, so nothing must be concluded from it.
fn is_damage(error: &Error) -> bool {
    // EIO is what QEMU answers for such a cluster; it goes on serving the others.
    // Of an answer that came with a message only the kind of it is left.
    let answer = io::Error::from_raw_os_error(libc::EIO).kind();
    matches!(error, Error::Io { source, .. } if source.kind() == answer)
}

impl<'a> Head<'a> {
    /// Reads the head of `volume`: less than 68 KiB if there is no more, or if
    /// some of it is damaged.
    ///
    /// # Errors
    /// From below, but for damage.
    pub(super) fn read(volume: &'a dyn BlockRead) -> Result<Self> {
        let len = usize::try_from(volume.size())
            .unwrap_or(usize::MAX)
            .min(LEN);
        let mut head = Self {
            volume,
            bytes: Vec::new(),
            damage: OnceCell::new(),
        };
        for len in [len, len.min(SHORT)] {
            if let Some(bytes) = head.get(0, len)? {
                head.bytes = bytes.into_owned();
                break;
            }
        }
        Ok(head)
    }

    /// The bytes of the head.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Why the first bytes that were found damaged cannot be read, if any were.
    pub(super) fn damage(&self) -> Option<&Error> {
        self.damage.get()
    }

    /// Size of the volume in bytes.
    pub(super) fn size(&self) -> u64 {
        self.volume.size()
    }

    /// `len` bytes from byte `offset` of the volume; `None` if they reach past
    /// its end or are damaged. The caller bounds `len`.
    ///
    /// # Errors
    /// From below, but for damage.
    pub(super) fn get(&self, offset: u64, len: usize) -> Result<Option<Cow<'_, [u8]>>> {
        let Some(end) = u64::try_from(len)
            .ok()
            .and_then(|len| offset.checked_add(len))
        else {
            return Ok(None);
        };
        if end > self.size() {
            return Ok(None);
        }
        let within = usize::try_from(offset)
            .ok()
            .and_then(|at| self.bytes.get(at..at.checked_add(len)?));
        if let Some(bytes) = within {
            return Ok(Some(Cow::Borrowed(bytes)));
        }
        let mut bytes = vec![0; len];
        match self.volume.read_at(offset, &mut bytes) {
            Ok(()) => Ok(Some(Cow::Owned(bytes))),
            Err(error) if is_damage(&error) => {
                // The first counts.
                let _ = self.damage.set(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// The `N` bytes at `at`.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// The little-endian 16-bit number at `at`.
pub(super) fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// The little-endian 32-bit number at `at`.
pub(super) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// The little-endian 64-bit number at `at`.
pub(super) fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// The big-endian 16-bit number at `at`.
pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// The big-endian 32-bit number at `at`.
pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// The big-endian 64-bit number at `at`.
pub(super) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

/// Whether `what` stands at `at`.
pub(super) fn is(bytes: &[u8], at: usize, what: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(what))
}
