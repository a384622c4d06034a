//! A folder as a row of slots of 32 bytes.

use super::chain::{Chain, Cursor};
use super::volume::Volume;
use crate::error::{Error, Result};
use crate::filesystem::field::index;

/// Bytes of a slot.
pub(super) const SLOT: u64 = 32;

/// In so many slots of the root folder things are looked for that are not files:
/// 1 MiB. They are nearly always among the first.
pub(super) const SEARCHED: u64 = (1 << 20) / SLOT;

/// Bytes of a folder that are read at once.
const PIECE: u64 = 4096;

/// A folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Folder {
    /// Its inode number; 0 if it is not known.
    pub(super) ino: u64,
    /// Where its slots are.
    pub(super) place: Place,
    /// The most slots that it may have.
    pub(super) limit: u64,
    /// Whether it may end before the limit: it has no length but its chain's.
    pub(super) open_ended: bool,
}

/// Where a folder's slots are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Byte offset and length.
    Fixed(u64, u64),
    /// In clusters.
    Chain(Chain),
}

/// One slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// Its number within the folder.
    pub(super) number: u64,
    /// Its inode number: which 32 bytes of the volume it is.
    pub(super) ino: u64,
    pub(super) bytes: [u8; 32],
}

/// Reads the slots of a folder one after the other.
pub(super) struct Slots<'a> {
    volume: &'a Volume,
    folder: &'a Folder,
    cursor: Option<Cursor<'a>>,
    /// Number of the next slot.
    number: u64,
    /// Byte offset of the next slot that is not in `piece`, and how many bytes
    /// follow it without a gap.
    place: u64,
    left: u64,
    piece: Vec<u8>,
    used: usize,
}

impl<'a> Slots<'a> {
    /// From slot `number` on.
    pub(super) fn new(volume: &'a Volume, folder: &'a Folder, number: u64) -> Result<Self> {
        let skip = number.saturating_mul(SLOT);
        let mut slots = Self {
            volume,
            folder,
            cursor: None,
            number,
            place: 0,
            left: 0,
            piece: Vec::new(),
            used: 0,
        };
        match folder.place {
            Place::Fixed(offset, len) => {
                slots.place = offset.saturating_add(skip);
                slots.left = len.saturating_sub(skip);
            }
            Place::Chain(chain) => {
                let cluster = volume.geometry.cluster;
                let first = skip.checked_div(cluster).unwrap_or(0);
                slots.cursor = Some(volume.seek(chain, first)?);
                if slots.enter()? {
                    let skip = skip.checked_rem(cluster).unwrap_or(0);
                    slots.place = slots.place.saturating_add(skip);
                    slots.left = slots.left.saturating_sub(skip);
                }
            }
        }
        Ok(slots)
    }

    /// Goes to the next cluster, if there is one.
    fn enter(&mut self) -> Result<bool> {
        let Some(cursor) = &mut self.cursor else {
            return Ok(false);
        };
        let Some(cluster) = cursor.next()? else {
            return match cursor.broken() {
                Some(reason) => Err(self.damaged(reason)),
                None => Ok(false),
            };
        };
        if self.folder.ino != 0 {
            self.volume.holders.note(cluster, self.folder.ino);
        }
        self.place = self.volume.geometry.offset(cluster);
        self.left = self.volume.geometry.cluster;
        Ok(true)
    }

    fn damaged(&self, reason: &str) -> Error {
        Error::corrupt(format!("folder {}", self.folder.ino), reason)
    }

    /// The next slot; `None` at the end.
    ///
    /// # Errors
    /// From below; `Corrupt` if the folder goes on in a way that cannot be.
    pub(super) fn next(&mut self) -> Result<Option<Slot>> {
        if self.used >= self.piece.len() {
            if self.number >= self.folder.limit {
                return if self.folder.open_ended && (self.left > 0 || self.enter()?) {
                    Err(self.damaged("it is longer than a folder can be"))
                } else {
                    Ok(None)
                };
            }
            if self.left < SLOT && !self.enter()? {
                return if self.folder.open_ended {
                    Ok(None)
                } else {
                    Err(self.damaged("its chain of clusters ends before its entries"))
                };
            }
            let room = self.folder.limit.saturating_sub(self.number);
            let len = self.left.min(PIECE).min(room.saturating_mul(SLOT));
            let len = len.checked_div(SLOT).unwrap_or(0).saturating_mul(SLOT);
            self.piece.resize(index(len), 0);
            self.used = self.piece.len();
            self.volume.source.read_at(self.place, &mut self.piece)?;
            self.used = 0;
            self.place = self.place.saturating_add(len);
            self.left = self.left.saturating_sub(len);
        }
        let Some(bytes) = self.piece.get(self.used..).and_then(<[u8]>::first_chunk) else {
            return Ok(None);
        };
        let rest = u64::try_from(self.piece.len().saturating_sub(self.used)).unwrap_or(0);
        let place = self.place.saturating_sub(rest);
        let slot = Slot {
            number: self.number,
            ino: place.checked_div(SLOT).unwrap_or(0),
            bytes: *bytes,
        };
        self.used = self.used.saturating_add(32);
        self.number = self.number.saturating_add(1);
        Ok(Some(slot))
    }
}
