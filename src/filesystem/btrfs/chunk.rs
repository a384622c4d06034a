//! Where logical bytes lie: chunks, their stripes, and the devices.
//!
//! The idea: all that btrfs points to is a logical byte. A chunk says for a range
//! of them on which devices they are and in how many copies (its RAID profile).
//! A device is a stretch of the volume, or is missing; what has another copy can
//! be read without it.
//!
//! `struct btrfs_chunk`: length 0, type 24, num_stripes u16 44, sub_stripes u16
//! 46, then at 48 for each stripe devid, offset on the device, device UUID[16].

use crate::error::{Error, Result};
use crate::filesystem::field::{array_at, slice_at, u16_at, u64_at};
use crate::image::patience;

/// Chunks that are kept: enough for 256 TiB of 1 GiB.
const MAX_CHUNKS: usize = 1 << 18;
/// Stripes that are kept: with the chunks 20 MiB at most.
const MAX_STRIPES: usize = 1 << 19;

const MAX_DEVICES: usize = 1024;

/// Bytes that lie together on a device of a striped chunk, as a power of two.
const STRIPE_BITS: u32 = 16;
const STRIPE: u64 = 1 << STRIPE_BITS;

const RAID0: u64 = 1 << 3;
const RAID1: u64 = 1 << 4;
const DUP: u64 = 1 << 5;
const RAID10: u64 = 1 << 6;
const RAID5: u64 = 1 << 7;
const RAID6: u64 = 1 << 8;
const RAID1C3: u64 = 1 << 9;
const RAID1C4: u64 = 1 << 10;
const DATA: u64 = 1;
const KNOWN: u64 = (1 << 11) - 1;

/// A device of the file system.
#[derive(Debug, Clone)]
pub(super) struct Device {
    /// Its number (devid).
    pub(super) id: u64,
    pub(super) uuid: [u8; 16],
    /// First byte on the volume, and length in bytes; `None` if it is missing.
    pub(super) place: Option<(u64, u64)>,
    /// Whether it was left out of the last changes.
    pub(super) stale: bool,
}

/// How the stripes of a chunk hold its bytes.
#[derive(Debug, Clone, Copy)]
enum Layout {
    /// Each stripe holds all of it.
    Copies,
    /// Stripes take turns; `copies` neighbours hold the same.
    Striped { copies: u16 },
    /// Stripes take turns, as many as `parity` say in each row hold parity.
    Parity { parity: u16 },
}

#[derive(Debug, Clone, Copy)]
struct Chunk {
    logical: u64,
    len: u64,
    layout: Layout,
    first: usize,
    count: u16,
}

#[derive(Debug, Clone, Copy)]
struct Stripe {
    device: usize,
    offset: u64,
}

/// A stretch of the volume, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// The chunk map.
#[derive(Debug, Clone)]
pub(super) struct Chunks {
    pub(super) devices: Vec<Device>,
    /// By logical byte.
    chunks: Vec<Chunk>,
    stripes: Vec<Stripe>,
    /// Copies of what data chunks hold; of the last one seen.
    pub(super) data_copies: u64,
}

impl Chunks {
    /// A map without chunks.
    pub(super) fn new(devices: Vec<Device>) -> Self {
        Self {
            devices,
            chunks: Vec::new(),
            stripes: Vec::new(),
            data_copies: 1,
        }
    }

    /// The same devices, without chunks.
    pub(super) fn emptied(&self) -> Self {
        Self::new(self.devices.clone())
    }

    /// Adds a chunk from its item, which `item` begins with; answers the item's
    /// length in bytes.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub(super) fn add(&mut self, logical: u64, item: &[u8]) -> Result<usize> {
        let what = || format!("btrfs chunk {logical}");
        let corrupt = |reason: &str| Error::corrupt(what(), reason);
        let short = || corrupt("its item is too short");
        let len = u64_at(item, 0).ok_or_else(short)?;
        let kind = u64_at(item, 24).ok_or_else(short)?;
        let count = u16_at(item, 44).ok_or_else(short)?;
        let sub_stripes = u16_at(item, 46).ok_or_else(short)?;
        if kind & !KNOWN != 0 {
            return Err(Error::Unsupported {
                what: what(),
                reason: format!("its type {kind:#x} is not known"),
            });
        }
        let profile = kind & (KNOWN & !7);
        let (layout, sound) = match profile {
            0 => (Layout::Copies, count == 1),
            DUP | RAID1 => (Layout::Copies, count == 2),
            RAID1C3 => (Layout::Copies, count == 3),
            RAID1C4 => (Layout::Copies, count == 4),
            RAID0 => (Layout::Striped { copies: 1 }, count >= 1),
            RAID10 => {
                let even = sub_stripes == 2 && count >= 2 && count.is_multiple_of(2);
                (Layout::Striped { copies: 2 }, even)
            }
            RAID5 => (Layout::Parity { parity: 1 }, count > 1),
            RAID6 => (Layout::Parity { parity: 2 }, count > 2),
            _ => (Layout::Copies, false),
        };
        if !sound {
            return Err(corrupt("its stripes do not fit its profile"));
        }
        if !matches!(layout, Layout::Copies) && u64_at(item, 16) != Some(STRIPE) {
            return Err(corrupt("its stripes are not 64 KiB long"));
        }
        let at = self.chunks.partition_point(|chunk| chunk.logical < logical);
        let before = at.checked_sub(1).and_then(|at| self.chunks.get(at));
        let end = logical.checked_add(len).filter(|_| len > 0);
        let overlaps = before
            .is_some_and(|chunk| chunk.logical.saturating_add(chunk.len) > logical)
            || self
                .chunks
                .get(at)
                .is_some_and(|next| end.is_none_or(|end| end > next.logical));
        if end.is_none() || overlaps {
            return Err(corrupt("it overlaps another one"));
        }
        let stripes = self.stripes.len().saturating_add(usize::from(count));
        if self.chunks.len() >= MAX_CHUNKS || stripes > MAX_STRIPES {
            return Err(Error::Unsupported {
                what: "btrfs".into(),
                reason: format!("it has more than {MAX_CHUNKS} chunks or {MAX_STRIPES} stripes"),
            });
        }
        let first = self.stripes.len();
        for stripe in 0..usize::from(count) {
            let at = stripe.saturating_mul(32).saturating_add(48);
            let raw = slice_at(item, at, 32).ok_or_else(short)?;
            let id = u64_at(raw, 0).ok_or_else(short)?;
            let offset = u64_at(raw, 8).ok_or_else(short)?;
            let uuid = array_at(raw, 16).ok_or_else(short)?;
            let device = self.device(id, uuid)?;
            self.stripes.push(Stripe { device, offset });
        }
        self.chunks.insert(
            at,
            Chunk {
                logical,
                len,
                layout,
                first,
                count,
            },
        );
        if kind & DATA != 0 {
            self.data_copies = match layout {
                Layout::Copies => u64::from(count),
                Layout::Striped { copies } => u64::from(copies),
                Layout::Parity { .. } => 1,
            };
        }
        Ok(usize::from(count).saturating_mul(32).saturating_add(48))
    }

    /// The index of a device; one that was not known is missing.
    ///
    /// # Errors
    /// `Unsupported` if there are too many.
    pub(super) fn device(&mut self, id: u64, uuid: [u8; 16]) -> Result<usize> {
        if let Some(known) = self.devices.iter().position(|device| device.id == id) {
            return Ok(known);
        }
        if self.devices.len() >= MAX_DEVICES {
            return Err(Error::Unsupported {
                what: "btrfs".into(),
                reason: format!("it has more than {MAX_DEVICES} devices"),
            });
        }
        self.devices.push(Device {
            id,
            uuid,
            place: None,
            stale: false,
        });
        Ok(self.devices.len().saturating_sub(1))
    }

    fn find(&self, logical: u64) -> Result<&Chunk> {
        let at = self
            .chunks
            .partition_point(|chunk| chunk.logical <= logical);
        at.checked_sub(1)
            .and_then(|at| self.chunks.get(at))
            .filter(|chunk| logical.saturating_sub(chunk.logical) < chunk.len)
            .ok_or_else(|| {
                let what = format!("btrfs logical byte {logical}");
                Error::corrupt(what, "no chunk holds it")
            })
    }

    /// In how many copies a logical byte is kept, at least 1.
    ///
    /// # Errors
    /// `Corrupt` if no chunk holds it.
    pub(super) fn copies(&self, logical: u64) -> Result<u16> {
        let chunk = self.find(logical)?;
        Ok(match chunk.layout {
            Layout::Copies => chunk.count,
            Layout::Striped { copies } => copies,
            Layout::Parity { .. } => 1,
        })
    }

    /// Appends to `out` where `len` bytes from `logical` lie. Of each piece it
    /// takes copy number `copy`, or else another one whose device is there.
    ///
    /// # Errors
    /// `Corrupt` for what no chunk holds, what lies past a device's end, and what
    /// lies on a missing device alone.
    pub(super) fn map(
        &self,
        logical: u64,
        len: u64,
        copy: u16,
        out: &mut Vec<Piece>,
    ) -> Result<()> {
        let (mut at, mut left) = (logical, len);
        while left > 0 {
            patience::spend()?;
            let chunk = self.find(at)?;
            let within = at.saturating_sub(chunk.logical);
            let (turn, inside) = (within >> STRIPE_BITS, within & STRIPE.saturating_sub(1));
            let count = u64::from(chunk.count);
            let div = |a: u64, b: u64| {
                let sound = || Error::corrupt("btrfs chunk", "it has no stripes");
                Ok::<_, Error>((
                    a.checked_div(b).ok_or_else(sound)?,
                    a.checked_rem(b).ok_or_else(sound)?,
                ))
            };
            // Which stripe is the first that holds it, in which row, how many do.
            let (index, row, copies) = match chunk.layout {
                Layout::Copies => (0, 0, chunk.count),
                Layout::Striped { copies } => {
                    let (columns, _) = div(count, u64::from(copies))?;
                    let (row, column) = div(turn, columns)?;
                    (column.saturating_mul(u64::from(copies)), row, copies)
                }
                Layout::Parity { parity } => {
                    let (row, column) = div(turn, count.saturating_sub(u64::from(parity)))?;
                    (div(column.saturating_add(row), count)?.1, row, 1)
                }
            };
            let (offset, together) = match chunk.layout {
                Layout::Copies => (within, chunk.len.saturating_sub(within)),
                _ => (
                    row.saturating_mul(STRIPE).saturating_add(inside),
                    STRIPE
                        .saturating_sub(inside)
                        .min(chunk.len.saturating_sub(within)),
                ),
            };
            let n = left.min(together);
            let first = chunk
                .first
                .saturating_add(crate::filesystem::field::index(index));
            out.push(self.place(at, first, (copy, copies), offset, n)?);
            at = at.saturating_add(n);
            left = left.saturating_sub(n);
        }
        Ok(())
    }

    /// Where `len` bytes from `offset` of one of the stripes from `first` on lie.
    fn place(
        &self,
        logical: u64,
        first: usize,
        (copy, copies): (u16, u16),
        offset: u64,
        len: u64,
    ) -> Result<Piece> {
        let what = || format!("btrfs logical byte {logical}");
        let mut trouble = None;
        // Those that are up to date first.
        for (stale, turn) in (0..copies)
            .map(|turn| (false, turn))
            .chain((0..copies).map(|turn| (true, turn)))
        {
            let other = copy.saturating_add(turn).checked_rem(copies).unwrap_or(0);
            let stripe = self.stripes.get(first.saturating_add(usize::from(other)));
            let Some((stripe, device)) =
                stripe.and_then(|stripe| Some((stripe, self.devices.get(stripe.device)?)))
            else {
                continue;
            };
            if device.stale != stale {
                continue;
            }
            let from = stripe.offset.saturating_add(offset);
            match device.place {
                Some((start, size)) if from.saturating_add(len) <= size => {
                    return Ok(Piece {
                        offset: start.saturating_add(from),
                        len,
                    });
                }
                Some((_, size)) => {
                    trouble.get_or_insert_with(|| {
                        let id = device.id;
                        let reason = format!("it lies past the end of device {id} at {size} bytes");
                        Error::corrupt(what(), reason)
                    });
                }
                None => {
                    trouble = Some(Error::corrupt(
                        what(),
                        format!(
                            "it lies on device {} (UUID {}), which is missing",
                            device.id,
                            uuid::Uuid::from_bytes(device.uuid)
                        ),
                    ));
                }
            }
        }
        Err(trouble.unwrap_or_else(|| Error::corrupt(what(), "its chunk has no stripes")))
    }
}
