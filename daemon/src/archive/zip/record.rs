//! The records of a ZIP file, byte by byte (APPNOTE 6.3; the extended timestamp is
//! Info-ZIP's).
//!
//! The idea: an entry is ZIP64 or not from its local header on, decided by the size
//! of its data before compression, so that its data descriptor has the right width
//! before anybody knows how long the compressed data will be.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// What does not fit into four bytes is said in ZIP64 fields.
const FULL: u64 = 0xffff_ffff;
const FULL_16: u64 = 0xffff;

/// Sizes and CRC follow the data.
const FLAG_DESCRIPTOR: u16 = 1 << 3;
const FLAG_UTF8: u16 = 1 << 11;

const VERSION: u16 = 20;
const VERSION_ZIP64: u16 = 45;
const MADE_BY_UNIX: u16 = 3 << 8;

/// How data is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Stored,
    Deflated,
}

impl Method {
    fn number(self) -> u16 {
        match self {
            Self::Stored => 0,
            Self::Deflated => 8,
        }
    }
}

/// What an entry is called and looks like.
#[derive(Debug, Clone)]
pub(super) struct Meta {
    /// With a `/` at the end for a folder.
    pub(super) name: Vec<u8>,
    /// Type and permissions of Unix.
    pub(super) mode: u32,
    /// Seconds since 1970.
    pub(super) modified: i64,
    pub(super) accessed: i64,
}

/// Sizes and checksum of an entry's data.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sizes {
    pub(super) crc: u32,
    pub(super) packed: u64,
    pub(super) size: u64,
}

/// How an entry was begun, which its other records must agree with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub(super) method: Method,
    /// Sizes and CRC come behind the data.
    pub(super) descriptor: bool,
    /// Sizes are eight bytes.
    pub(super) zip64: bool,
}

/// Whether data of this size, compressed or not, may exceed four bytes.
pub(super) fn needs_zip64(size: u64) -> bool {
    // Deflate makes data that does not shrink longer by less than this.
    size.saturating_add(size >> 10).saturating_add(1024) >= FULL
}

/// Little-endian fields.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn two(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn four(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn eight(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A length that was checked before.
    fn length(&mut self, bytes: &[u8]) -> &mut Self {
        self.two(u16::try_from(bytes.len()).unwrap_or(u16::MAX))
    }
}

/// The value, or all ones for one that ZIP64 says.
fn clipped(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// The value, or all ones for one that ZIP64 says.
fn clipped_16(value: u64) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

impl Meta {
    fn flags(&self, form: Form) -> u16 {
        let mut flags = 0;
        if form.descriptor {
            flags |= FLAG_DESCRIPTOR;
        }
        if std::str::from_utf8(&self.name).is_ok() {
            flags |= FLAG_UTF8;
        }
        flags
    }

    /// The extended timestamp: the times of a local header, or as much of it as
    /// the central directory has.
    fn timestamps(&self, central: bool) -> Vec<u8> {
        let mut fields = Fields::default();
        let Ok(modified) = i32::try_from(self.modified) else {
            return fields.0;
        };
        let (known, accessed) = match i32::try_from(self.accessed) {
            Ok(accessed) => (0b11, Some(accessed)),
            Err(_) => (0b01, None),
        };
        let accessed = accessed.filter(|_| !central);
        let length = if accessed.is_some() { 9 } else { 5 };
        fields.bytes(b"UT").two(length).bytes(&[known]);
        fields.bytes(&modified.to_le_bytes());
        if let Some(accessed) = accessed {
            fields.bytes(&accessed.to_le_bytes());
        }
        fields.0
    }

    /// Before the data. `sizes` are known unless the form has a descriptor.
    pub(super) fn local(&self, form: Form, sizes: Sizes) -> Vec<u8> {
        let mut extra = Fields::default();
        let (packed, size) = if form.zip64 {
            extra.two(1).two(16).eight(sizes.size).eight(sizes.packed);
            (u32::MAX, u32::MAX)
        } else {
            (clipped(sizes.packed), clipped(sizes.size))
        };
        extra.bytes(&self.timestamps(false));
        let mut fields = Fields::default();
        fields.bytes(b"PK\x03\x04").two(form.version());
        fields.two(self.flags(form)).two(form.method.number());
        fields.four(dos_time(self.modified));
        fields.four(sizes.crc).four(packed).four(size);
        fields.length(&self.name).length(&extra.0);
        fields.bytes(&self.name).bytes(&extra.0);
        fields.0
    }

    /// In the central directory.
    pub(super) fn central(&self, form: Form, sizes: Sizes, offset: u64) -> Vec<u8> {
        // Sizes are as wide here as in the local header.
        let mut large = Fields::default();
        if form.zip64 {
            large.eight(sizes.size).eight(sizes.packed);
        }
        if offset >= FULL {
            large.eight(offset);
        }
        let (packed, size) = if form.zip64 {
            (u32::MAX, u32::MAX)
        } else {
            (clipped(sizes.packed), clipped(sizes.size))
        };
        let mut extra = Fields::default();
        if !large.0.is_empty() {
            extra.two(1).length(&large.0).bytes(&large.0);
        }
        extra.bytes(&self.timestamps(true));
        let version = if large.0.is_empty() {
            form.version()
        } else {
            VERSION_ZIP64
        };
        // What DOS knows: folder, and read-only.
        let folder = self.name.ends_with(b"/");
        let dos = u32::from(folder) << 4 | u32::from(self.mode & 0o222 == 0);
        let mut fields = Fields::default();
        fields
            .bytes(b"PK\x01\x02")
            .two(MADE_BY_UNIX | version)
            .two(version);
        fields.two(self.flags(form)).two(form.method.number());
        fields.four(dos_time(self.modified)).four(sizes.crc);
        fields.four(packed).four(size);
        fields.length(&self.name).length(&extra.0);
        // Comment, disk, internal attributes.
        fields.two(0).two(0).two(0);
        fields.four(self.mode << 16 | dos).four(clipped(offset));
        fields.bytes(&self.name).bytes(&extra.0);
        fields.0
    }
}

impl Form {
    fn version(self) -> u16 {
        if self.zip64 { VERSION_ZIP64 } else { VERSION }
    }

    /// Behind the data.
    pub(super) fn descriptor(self, sizes: Sizes) -> Vec<u8> {
        let mut fields = Fields::default();
        fields.bytes(b"PK\x07\x08").four(sizes.crc);
        if self.zip64 {
            fields.eight(sizes.packed).eight(sizes.size);
        } else {
            fields.four(clipped(sizes.packed)).four(clipped(sizes.size));
        }
        fields.0
    }
}

/// Behind the central directory of `length` bytes, which began at `start`.
pub(super) fn end(entries: u64, start: u64, length: u64) -> Vec<u8> {
    let mut fields = Fields::default();
    if entries >= FULL_16 || start >= FULL || length >= FULL {
        // Length of the record from here on.
        fields.bytes(b"PK\x06\x06").eight(44);
        fields.two(MADE_BY_UNIX | VERSION_ZIP64).two(VERSION_ZIP64);
        fields.four(0).four(0).eight(entries).eight(entries);
        fields.eight(length).eight(start);
        // Where it is.
        fields.bytes(b"PK\x06\x07").four(0);
        fields.eight(start.saturating_add(length)).four(1);
    }
    fields.bytes(b"PK\x05\x06").two(0).two(0);
    fields.two(clipped_16(entries)).two(clipped_16(entries));
    fields.four(clipped(length)).four(clipped(start)).two(0);
    fields.0
}

/// Date and time of DOS, of seconds since 1970, in UTC: 1980 to 2107, in steps of two
/// seconds. The time is in the lower half.
fn dos_time(seconds: i64) -> u32 {
    const FIRST: u32 = 1 << 21 | 1 << 16;
    const LAST: u32 = 127 << 25 | 12 << 21 | 31 << 16 | 23 << 11 | 59 << 5 | 29;
    let clock = match Timestamp::from_second(seconds) {
        Ok(time) => time.to_zoned(TimeZone::UTC),
        Err(_) if seconds < 0 => return FIRST,
        Err(_) => return LAST,
    };
    let part = |value: i8| u32::from(value.unsigned_abs());
    match clock.year() {
        ..1980 => FIRST,
        year @ 1980..=2107 => {
            u32::from(year.abs_diff(1980)) << 25
                | part(clock.month()) << 21
                | part(clock.day()) << 16
                | part(clock.hour()) << 11
                | part(clock.minute()) << 5
                | part(clock.second()) >> 1
        }
        2108.. => LAST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_dos_are_in_utc_and_have_bounds() {
        let parts = |seconds| {
            let time = dos_time(seconds);
            let date = (1980 + (time >> 25), time >> 21 & 15, time >> 16 & 31);
            (date, (time >> 11 & 31, time >> 5 & 63, time << 1 & 62))
        };
        assert_eq!(parts(1_700_000_001), ((2023, 11, 14), (22, 13, 20)));
        assert_eq!(parts(-1), ((1980, 1, 1), (0, 0, 0)));
        assert_eq!(parts(i64::MIN), ((1980, 1, 1), (0, 0, 0)));
        assert_eq!(parts(i64::MAX), ((2107, 12, 31), (23, 59, 58)));
        assert_eq!(parts(15_000_000_000), ((2107, 12, 31), (23, 59, 58)));
    }
}
