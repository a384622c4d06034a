//! Headers of tar (POSIX.1-2001, "pax").
//!
//! The idea: a header of 512 bytes in the old form (ustar), and before it, where that
//! cannot say it all, a member of records `<length> <key>=<value>\n` that says it again
//! in full.

use nix::sys::stat::{FileStat, major, minor};
use tar::{EntryType, Header};

/// Bytes that everything in a tar archive is a multiple of.
pub(super) const UNIT: u64 = 512;

/// The largest number in eight and in twelve bytes of octal digits.
const OCTAL_8: u64 = 0o7_777_777;
const OCTAL_12: u64 = 0o77_777_777_777;

/// Records of one member.
#[derive(Default)]
pub(super) struct Records(Vec<u8>);

impl Records {
    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) {
        // A space, an equals sign, a newline, and the digits of the length itself.
        let rest = key.len().saturating_add(value.len()).saturating_add(3);
        let digits = |number: usize| number.to_string().len();
        let mut length = rest.saturating_add(digits(rest));
        length = rest.saturating_add(digits(length));
        self.0.extend_from_slice(format!("{length} ").as_bytes());
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    /// A time in seconds and nanoseconds since 1970.
    fn push_time(&mut self, key: &[u8], seconds: i64, nanoseconds: i64) {
        let total = i128::from(seconds)
            .saturating_mul(1_000_000_000)
            .saturating_add(i128::from(nanoseconds));
        let sign = if total < 0 { "-" } else { "" };
        let total = total.unsigned_abs();
        let (whole, part) = (total / 1_000_000_000, total % 1_000_000_000);
        let text = format!("{sign}{whole}.{part:09}");
        let text = text.trim_end_matches('0').trim_end_matches('.');
        self.push(key, text.as_bytes());
    }

    pub(super) fn number(&mut self, key: &[u8], value: u64) {
        self.push(key, value.to_string().as_bytes());
    }
}

/// What a member is.
pub(super) struct Member<'a> {
    /// Its path, with a `/` at the end for a folder.
    pub(super) path: &'a [u8],
    pub(super) kind: EntryType,
    /// What a link leads to; empty for anything else.
    pub(super) target: &'a [u8],
    pub(super) stat: &'a FileStat,
    /// Bytes that follow the header.
    pub(super) size: u64,
    /// The size of a sparse file with its holes.
    pub(super) sparse: Option<u64>,
    /// Extended attributes.
    pub(super) records: Records,
}

impl Member<'_> {
    /// The headers before the member's data, in whole units.
    pub(super) fn headers(mut self) -> Vec<u8> {
        let stat = self.stat;
        let mut all = Records::default();
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok();
        if !text(self.path) || !text(self.target) {
            all.push(b"hdrcharset", b"BINARY");
        }
        match self.sparse {
            Some(size) => {
                all.push(b"GNU.sparse.major", b"1");
                all.push(b"GNU.sparse.minor", b"0");
                all.push(b"GNU.sparse.name", self.path);
                all.number(b"GNU.sparse.realsize", size);
            }
            None if !fits(self.path) => all.push(b"path", self.path),
            None => {}
        }
        if !fits(self.target) {
            all.push(b"linkpath", self.target);
        }
        if self.size > OCTAL_12 {
            all.number(b"size", self.size);
        }
        for (key, id) in [(b"uid", stat.st_uid), (b"gid", stat.st_gid)] {
            if u64::from(id) > OCTAL_8 {
                all.number(key, id.into());
            }
        }
        all.push_time(b"mtime", stat.st_mtime, stat.st_mtime_nsec);
        all.push_time(b"atime", stat.st_atime, stat.st_atime_nsec);
        all.0.append(&mut self.records.0);

        let mut out = Vec::new();
        let name = name_part(self.path);
        let before = [b"PaxHeaders/", name].concat();
        let mut header = header(&before, EntryType::XHeader, stat);
        header.set_mode(0o644);
        header.set_size(all.0.len() as u64);
        finish(&mut out, header);
        out.extend_from_slice(&all.0);
        let rest = out.len().checked_rem(512).unwrap_or(0);
        out.resize(
            out.len()
                .saturating_add(512_usize.saturating_sub(rest) % 512),
            0,
        );

        let path = match self.sparse {
            Some(_) => &[b"GNUSparseFile.0/", name].concat(),
            None => self.path,
        };
        let mut header = self::header(path, self.kind, stat);
        header.set_size(self.size);
        if let Some(ustar) = header.as_ustar_mut() {
            copy(&mut ustar.linkname, self.target);
        }
        if matches!(self.kind, EntryType::Char | EntryType::Block) {
            let number = |part: u64| u32::try_from(part).unwrap_or(u32::MAX);
            // Only fails for headers older than ustar.
            let _ = header.set_device_major(number(major(stat.st_rdev)));
            let _ = header.set_device_minor(number(minor(stat.st_rdev)));
        }
        finish(&mut out, header);
        out
    }
}

/// A header with what both kinds have.
fn header(path: &[u8], kind: EntryType, stat: &FileStat) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0).min(OCTAL_12));
    if let Some(ustar) = header.as_ustar_mut() {
        copy(&mut ustar.name, path);
    }
    header
}

fn finish(out: &mut Vec<u8>, mut header: Header) {
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
}

/// As much of `value` as fits.
fn copy(field: &mut [u8], value: &[u8]) {
    for (to, from) in field.iter_mut().zip(value) {
        *to = *from;
    }
}

/// Whether the old header holds it, and everybody reads it alike.
fn fits(text: &[u8]) -> bool {
    text.len() <= 100 && text.is_ascii()
}

/// The last name of a path, as much as fits behind a prefix.
fn name_part(path: &[u8]) -> &[u8] {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    name.get(..80).unwrap_or(name)
}

/// The map of a sparse file of `size` bytes (GNU.sparse 1.0), which comes before its
/// data: numbers in lines, filled up to whole units.
pub(super) fn sparse_map(map: &[(u64, u64)], size: u64) -> Vec<u8> {
    let end = map
        .last()
        .map(|(offset, length)| offset.saturating_add(*length));
    // A hole at the end is told by a stretch without data behind it.
    let last = (end != Some(size)).then_some((size, 0));
    let count = map.len().saturating_add(last.iter().len());
    let mut out = format!("{count}\n").into_bytes();
    for (offset, length) in map.iter().copied().chain(last) {
        out.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
    }
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_length() {
        for length in [
            1, 90, 91, 92, 93, 94, 95, 989, 990, 991, 992, 993, 9_985, 9_990,
        ] {
            let mut records = Records::default();
            records.push(b"path", &vec![b'x'; length]);
            let text = String::from_utf8(records.0).unwrap();
            let said: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(said, text.len(), "{length}");
        }
    }

    #[test]
    fn times_before_1970_are_fractions_too() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "0"),
            (1, 500_000_000, "1.5"),
            (-2, 250_000_000, "-1.75"),
            (-1, 999_999_999, "-0.000000001"),
            (10, 0, "10"),
        ] {
            let mut records = Records::default();
            records.push_time(b"t", seconds, nanoseconds);
            let got = String::from_utf8(records.0).unwrap();
            assert!(got.ends_with(&format!(" t={text}\n")), "{got}");
        }
    }

    /// Sizes and owners that octal digits cannot say; only the header, since the data
    /// would take long.
    #[test]
    fn large_numbers() {
        let mut stat = nix::sys::stat::stat("/").unwrap();
        (stat.st_uid, stat.st_gid) = (3_000_000, 4_000_000_000);
        let headers = Member {
            path: b"large",
            kind: EntryType::Regular,
            target: b"",
            stat: &stat,
            size: 9 << 30,
            sparse: None,
            records: Records::default(),
        }
        .headers();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.tar"), headers).unwrap();
        for reader in ["tar", "bsdtar"] {
            let output = std::process::Command::new(reader)
                .args(["--numeric-owner", "-tvf", "a.tar"])
                .current_dir(dir.path())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            for number in [" 9663676416 ", "3000000", "4000000000"] {
                assert!(text.contains(number), "{reader}: {text}");
            }
        }
    }
}
