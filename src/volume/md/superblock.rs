//! The superblock of a member of a Linux software RAID: formats 1.0, 1.1, 1.2
//! (`struct mdp_superblock_1`) and 0.90 (`struct mdp_superblock_s`), as in Linux'
//! `include/uapi/linux/raid/md_p.h`.
#![deny(clippy::arithmetic_side_effects)]

use crate::error::Result;
use crate::volume::head::{Head, array, be32, le16, le32, le64};

const MAGIC: u32 = 0xa92b_4efc;
/// Superblocks count in sectors of 512 bytes.
const SECTOR: u64 = 512;
/// Length of the part of format 1 before the list of roles, in bytes.
const V1: usize = 256;
/// Entries of the list of roles that are read.
const MAX_ROLES: usize = 1920;
/// Bytes of format 0.90.
const V0: usize = 4096;

/// What a member is in its array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It has the data of this number.
    Active(u16),
    /// It is a spare, failed, a journal, or being filled.
    Other,
}

/// What a superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) array: [u8; 16],
    /// The name of the array, `host:name` in format 1; empty in 0.90.
    pub(crate) name: String,
    /// 0, 1, 4, 5, 6, 10; -1: linear.
    pub(crate) level: i32,
    pub(crate) layout: u32,
    /// Bytes per chunk.
    pub(crate) chunk: u64,
    /// Members that the array has.
    pub(crate) members: usize,
    /// Bytes of each member that the array uses, where all use the same.
    pub(crate) each: u64,
    /// Where the data of this member begins, in bytes.
    pub(crate) data: u64,
    /// How much room for data this member has, in bytes.
    pub(crate) room: u64,
    /// Grows with each change.
    pub(crate) events: u64,
    pub(crate) role: Role,
    /// This member's number in [`Self::roles`].
    pub(crate) number: usize,
    /// What this member knows of all of them.
    pub(crate) roles: Vec<Role>,
    /// Whether the layout of RAID0 is said (it was not, before Linux 5.4).
    pub(crate) layout_is_said: bool,
    /// Whether the array was being given another shape.
    pub(crate) reshaping: bool,
}

impl Superblock {
    /// The superblock of the volume with this head, by its checksum; `None` if
    /// there is none that is whole. Format 0.90 does not say where it lies: that
    /// of a last partition looks like one of the disk. So it is asked for apart.
    ///
    /// # Errors
    /// From below, but for damage.
    pub(crate) fn find(head: &Head<'_>) -> Result<Option<Self>> {
        match Self::find_first(head)? {
            Some(found) => Ok(Some(found)),
            None => Self::find_last(head),
        }
    }

    /// Formats 1.1 and 1.2.
    ///
    /// # Errors
    /// From below, but for damage.
    pub(crate) fn find_first(head: &Head<'_>) -> Result<Option<Self>> {
        match Self::at(head, 0)? {
            Some(found) => Ok(Some(found)),
            None => Self::at(head, 4096),
        }
    }

    /// Format 1.0.
    ///
    /// # Errors
    /// From below, but for damage.
    pub(crate) fn find_last(head: &Head<'_>) -> Result<Option<Self>> {
        // 1.0: at least 8 KiB from the end, on a multiple of 4 KiB.
        let last = head.size().checked_sub(8192).map(|at| at & !4095);
        if let Some(at) = last
            && let Some(found) = Self::at(head, at)?
        {
            return Ok(Some(found));
        }
        Ok(None)
    }

    /// The same for format 0.90.
    ///
    /// # Errors
    /// From below, but for damage.
    pub(crate) fn find_old(head: &Head<'_>) -> Result<Option<Self>> {
        let old = (head.size() & !0xffff).checked_sub(0x1_0000);
        if let Some(at) = old
            && let Some(bytes) = head.get(at, V0)?
        {
            return Ok(parse0(&bytes, at));
        }
        Ok(None)
    }

    /// A superblock of format 1 at byte `at`.
    fn at(head: &Head<'_>, at: u64) -> Result<Option<Self>> {
        let Some(fixed) = head.get(at, V1)? else {
            return Ok(None);
        };
        let roles = le32(&fixed, 220).and_then(|n| usize::try_from(n).ok());
        let Some(roles) = roles.filter(|n| le32(&fixed, 0) == Some(MAGIC) && *n <= MAX_ROLES)
        else {
            return Ok(None);
        };
        let len = roles.saturating_mul(2).saturating_add(V1);
        let bytes = head.get(at, len)?;
        Ok(bytes.and_then(|bytes| parse1(&bytes, at, head.size())))
    }
}

/// The sum that format 1 keeps of itself (`calc_sb_1_csum`).
fn sum1(bytes: &[u8]) -> Option<u32> {
    let words = bytes.chunks(4).enumerate().map(|(index, word)| match word {
        _ if index == 54 => Some(0),
        [a, b, c, d] => Some(u64::from(u32::from_le_bytes([*a, *b, *c, *d]))),
        [a, b] => Some(u64::from(u16::from_le_bytes([*a, *b]))),
        _ => None,
    });
    fold(words.sum::<Option<u64>>()?)
}

fn fold(sum: u64) -> Option<u32> {
    let sum = (sum & u64::from(u32::MAX)).checked_add(sum >> 32)?;
    u32::try_from(sum & u64::from(u32::MAX)).ok()
}

fn parse1(b: &[u8], at: u64, size: u64) -> Option<Superblock> {
    const RECOVERY_OFFSET: u32 = 2;
    const RESHAPE_ACTIVE: u32 = 4;
    const REPLACEMENT: u32 = 16;
    const RAID0_LAYOUT: u32 = 4096;
    let valid = le32(b, 4)? == 1
        && le32(b, 92)? > 0
        && le64(b, 144)?.checked_mul(SECTOR)? == at
        && le32(b, 216)? == sum1(b)?;
    if !valid {
        return None;
    }
    let features = le32(b, 8)?;
    let (data, room) = (
        le64(b, 128)?.checked_mul(SECTOR)?,
        le64(b, 136)?.checked_mul(SECTOR)?,
    );
    // What a smaller volume has at its end may be the superblock of a larger one.
    if data.checked_add(room)? > size {
        return None;
    }
    let roles: Vec<Role> = b
        .get(V1..)?
        .chunks_exact(2)
        .map(|raw| {
            let role = le16(raw, 0).unwrap_or(u16::MAX);
            if role < 0xfffd {
                Role::Active(role)
            } else {
                Role::Other
            }
        })
        .collect();
    let number = usize::try_from(le32(b, 160)?).ok()?;
    let filled = features & RECOVERY_OFFSET == 0 || le64(b, 152)? == u64::MAX;
    let role = match roles.get(number) {
        Some(role) if filled && features & REPLACEMENT == 0 => *role,
        _ => Role::Other,
    };
    let name = b.get(32..64)?.split(|byte| *byte == 0).next()?;
    Some(Superblock {
        array: array(b, 16)?,
        name: String::from_utf8_lossy(name).trim_end().to_owned(),
        level: i32::from_le_bytes(array(b, 72)?),
        layout: le32(b, 76)?,
        chunk: u64::from(le32(b, 88)?).checked_mul(SECTOR)?,
        members: usize::try_from(le32(b, 92)?).ok()?,
        each: le64(b, 80)?.checked_mul(SECTOR)?,
        data,
        room,
        events: le64(b, 200)?,
        role,
        number,
        roles,
        layout_is_said: features & RAID0_LAYOUT != 0,
        reshaping: features & RESHAPE_ACTIVE != 0,
    })
}

/// A superblock of format 0.90, in the byte order of the machine that wrote it.
fn parse0(bytes: &[u8], at: u64) -> Option<Superblock> {
    const SYNC: u32 = 1 << 2;
    const FAULTY: u32 = 1;
    const DISKS: usize = 27;
    type Read = fn(&[u8], usize) -> Option<u32>;
    let (get, big): (Read, bool) = match (le32(bytes, 0)?, be32(bytes, 0)?) {
        (MAGIC, _) => (le32, false),
        (_, MAGIC) => (be32, true),
        _ => return None,
    };
    let word = |index: usize| get(bytes, index.checked_mul(4)?);
    let words = (0..V0.checked_div(4)?).filter(|index| *index != 38);
    let sum = words
        .map(|index| word(index).map(u64::from))
        .sum::<Option<u64>>()?;
    // Linux compares what both come to in 16 bits.
    let short = |sum: u32| {
        let sum = (sum & 0xffff).checked_add(sum >> 16)?;
        (sum & 0xffff).checked_add(sum >> 16)
    };
    let valid =
        word(1)? == 0 && word(2)? >= 90 && word(10)? > 0 && short(fold(sum)?)? == short(word(38)?)?;
    if !valid {
        return None;
    }
    let role = |disk: usize| {
        let first = disk.checked_mul(32)?.checked_add(128)?;
        let state = word(first.checked_add(4)?)?;
        let number = u16::try_from(word(first.checked_add(3)?)?).ok();
        let in_sync = state & SYNC != 0 && state & FAULTY == 0;
        Some(number.filter(|_| in_sync).map_or(Role::Other, Role::Active))
    };
    let roles: Vec<Role> = (0..DISKS).map(role).collect::<Option<_>>()?;
    // `this_disk` stands behind all others.
    let number = usize::try_from(word(992)?).ok()?;
    let (high, low) = if big { (39, 40) } else { (40, 39) };
    let mut id = [0; 16];
    for (four, index) in id.chunks_exact_mut(4).zip([5, 13, 14, 15]) {
        four.copy_from_slice(&word(index)?.to_be_bytes());
    }
    Some(Superblock {
        array: id,
        name: String::new(),
        level: i32::from_le_bytes(word(7)?.to_le_bytes()),
        layout: word(64)?,
        chunk: u64::from(word(65)?),
        members: usize::try_from(word(10)?).ok()?,
        each: u64::from(word(8)?).checked_mul(1024)?,
        data: 0,
        room: at,
        events: u64::from(word(high)?).checked_shl(32)? | u64::from(word(low)?),
        role: roles.get(number).copied().unwrap_or(Role::Other),
        number,
        roles,
        layout_is_said: false,
        // Minor version 91 says so.
        reshaping: word(2)? != 90,
    })
}
