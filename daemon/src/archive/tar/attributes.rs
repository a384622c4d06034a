//! Extended attributes and access control lists, as records of a tar archive.
//!
//! The idea: what others restore is kept. Attributes go as `SCHILY.xattr.<name>` with
//! their bytes as they are, lists as `SCHILY.acl.access` and `.default` in their text
//! form with numeric owners; GNU tar, bsdtar and star read both. Left out is what no
//! other file system takes (`system.*`, where NTFS's own are) and what Sendense adds.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use xattr::FileExt;

use super::pax::Records;

/// Bytes of attributes that one file may have.
const MOST: usize = 1 << 20;

/// Reads the attributes of an open file or folder; the records, and whether some had
/// to be left out for their size.
///
/// # Errors
/// As flistxattr(2) and fgetxattr(2).
pub(super) fn read(file: &File) -> io::Result<(Records, bool)> {
    let mut records = Records::default();
    let names = match file.list_xattr() {
        Ok(names) => names,
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
            return Ok((records, false));
        }
        Err(error) => return Err(error),
    };
    let (mut sum, mut too_many) = (0_usize, false);
    for name in names {
        let name = name.as_bytes();
        let acl = match name {
            b"system.posix_acl_access" => Some(&b"SCHILY.acl.access"[..]),
            b"system.posix_acl_default" => Some(&b"SCHILY.acl.default"[..]),
            _ => None,
        };
        if acl.is_none() && (name.starts_with(b"system.") || name.starts_with(b"user.sendense.")) {
            continue;
        }
        let value = match file.get_xattr(std::ffi::OsStr::from_bytes(name)) {
            Ok(Some(value)) => value,
            Ok(None) => continue,
            Err(error) if error.raw_os_error() == Some(Errno::E2BIG as i32) => {
                too_many = true;
                continue;
            }
            Err(error) => return Err(error),
        };
        sum = sum.saturating_add(name.len()).saturating_add(value.len());
        if sum > MOST {
            too_many = true;
            continue;
        }
        match acl {
            Some(key) => {
                if let Some(text) = acl_text(&value) {
                    records.push(key, text.as_bytes());
                }
            }
            None => records.push(&key(name), &value),
        }
    }
    Ok((records, too_many))
}

/// The key of an attribute. An equals sign would end it, so it is written as GNU tar
/// does.
fn key(name: &[u8]) -> Vec<u8> {
    let mut key = b"SCHILY.xattr.".to_vec();
    for byte in name {
        match byte {
            b'%' => key.extend_from_slice(b"%25"),
            b'=' => key.extend_from_slice(b"%3D"),
            byte => key.push(*byte),
        }
    }
    key
}

/// The text form of a POSIX access control list (version 2 of the attribute: tag,
/// permissions, id); `None` for what is none.
fn acl_text(value: &[u8]) -> Option<String> {
    let entries = value.strip_prefix(&[2, 0, 0, 0])?;
    let mut lines = Vec::new();
    for entry in entries.chunks(8) {
        let &[tag, tag_high, permissions, _, a, b, c, d] = entry else {
            return None;
        };
        let id = u32::from_le_bytes([a, b, c, d]);
        let who = match u16::from_le_bytes([tag, tag_high]) {
            0x01 => "user:".to_owned(),
            0x02 => format!("user:{id}"),
            0x04 => "group:".to_owned(),
            0x08 => format!("group:{id}"),
            0x10 => "mask:".to_owned(),
            0x20 => "other:".to_owned(),
            _ => return None,
        };
        let bit = |bit: u8, letter| if permissions & bit == 0 { '-' } else { letter };
        let (r, w, x) = (bit(4, 'r'), bit(2, 'w'), bit(1, 'x'));
        lines.push(format!("{who}:{r}{w}{x}"));
    }
    Some(lines.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_written_as_text() {
        let list = [
            &[2, 0, 0, 0][..],
            &[1, 0, 6, 0, 255, 255, 255, 255],
            &[2, 0, 5, 0, 0xe8, 3, 0, 0],
            &[0x20, 0, 0, 0, 255, 255, 255, 255],
        ]
        .concat();
        assert_eq!(
            acl_text(&list).unwrap(),
            "user::rw-,user:1000:r-x,other::---"
        );
        assert_eq!(acl_text(&list[..10]), None);
        assert_eq!(acl_text(b""), None);
    }
}
