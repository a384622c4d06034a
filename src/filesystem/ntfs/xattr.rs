//! Extended attributes under the names and with the values that ntfs-3g has, so
//! that Samba and backup programs find them: `user.<stream>` for streams, which
//! are listed; `system.ntfs_*` for what NTFS keeps of a file, which are not.
#![deny(clippy::arithmetic_side_effects)]

use std::ops::ControlFlow;

use super::attribute;
use super::file::{FIRST_USER_FILE, Information, Kind, flag};
use super::index::Index;
use super::mft::File;
use super::record::NUMBER;
use super::{Ntfs, ROOT, wof};
use crate::error::{Error, Result};
use crate::filesystem::field::{slice_at, u32_at, u64_at};
use crate::filesystem::windows_name::{from_wtf8, on_disk, push_wtf8, to_wtf8, units};

/// The longest value, in bytes: what Linux allows.
pub(super) const MAX_VALUE: u64 = 64 << 10;

/// Streams whose names begin so hold attributes of other namespaces.
const OTHER: &str = "ntfs-3g.";

/// Record of the folder $Extend.
const EXTEND: u64 = 11;

/// The index of object ids, as on disk.
const OBJECTS: &[u8] = b"$\0O\0";

impl Ntfs {
    /// Whether streams count as attributes of this file: not those of links and
    /// devices, nor of the file system's own files.
    fn shows_streams(file: &File, information: &Information, kind: &Kind) -> bool {
        let number = file.record.number();
        let own = number < FIRST_USER_FILE && number != ROOT;
        match kind {
            Kind::Link(_) | Kind::Special(..) => false,
            _ => !(own && information.attributes & flag::SYSTEM != 0),
        }
    }

    /// Calls `each` with the listed names, as on disk and without `user.`.
    fn each_listed(
        &self,
        file: &File,
        information: &Information,
        kind: &Kind,
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        if !Self::shows_streams(file, information, kind) {
            return Ok(());
        }
        let compacted = matches!(kind, Kind::Compacted(_));
        self.mft.each_stream(file, &mut |name| {
            let other = units(name).take(OTHER.len()).eq(OTHER.encode_utf16())
                && units(name).count() > OTHER.len().saturating_add(1);
            let content = compacted && name == wof::STREAM;
            if !other && !content {
                each(name);
            }
        })
    }

    /// Whether any attribute is listed.
    pub(super) fn has_listed_xattrs(
        &self,
        file: &File,
        information: &Information,
        kind: &Kind,
    ) -> Result<bool> {
        let mut any = false;
        self.each_listed(file, information, kind, &mut |_| any = true)?;
        Ok(any)
    }

    /// The names of the listed attributes. A stream that is longer than Linux lets
    /// an attribute be is none: `rsync -X` would leave out the whole file because
    /// of it, and `cp -a` complain.
    pub(super) fn listed_xattrs(&self, file: &File) -> Result<Vec<Vec<u8>>> {
        let information = self.information(file)?;
        let kind = self.kind(file, &information)?;
        let mut streams = Vec::new();
        self.each_listed(file, &information, &kind, &mut |name| {
            streams.push(name.to_vec());
        })?;
        let mut names = Vec::new();
        for stream in streams {
            if self.is_too_long(file, &stream)? {
                continue;
            }
            let mut listed = b"user.".to_vec();
            push_wtf8(&stream, &mut listed);
            names.push(listed);
        }
        Ok(names)
    }

    /// Whether a stream is too long for an attribute. One that is damaged is not:
    /// it is listed, and an error to who reads it.
    fn is_too_long(&self, file: &File, stream: &[u8]) -> Result<bool> {
        match self.mft.stream(file, attribute::DATA, stream) {
            Ok(found) => Ok(found.is_some_and(|stream| stream.size() > MAX_VALUE)),
            Err(Error::Corrupt { .. } | Error::Unsupported { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The value of one attribute, listed or not.
    pub(super) fn xattr_value(&self, file: &File, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if let Some(name) = name.strip_prefix(b"system.ntfs_") {
            return self.ntfs_value(file, name);
        }
        let stream = match name.strip_prefix(b"user.") {
            Some(stream) => stream.to_vec(),
            None if name.starts_with(b"security.") || name.starts_with(b"trusted.") => {
                [OTHER.as_bytes(), name].concat()
            }
            None => return Ok(None),
        };
        let Some(stream) = from_wtf8(&stream).filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let information = self.information(file)?;
        let kind = self.kind(file, &information)?;
        if !Self::shows_streams(file, &information, &kind) {
            return Ok(None);
        }
        self.mft
            .value(file, attribute::DATA, &on_disk(&stream), MAX_VALUE)
    }

    fn ntfs_value(&self, file: &File, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let information = self.information(file)?;
        let value = |kind| self.mft.value(file, kind, &[], MAX_VALUE);
        let [created, changed, record_changed, accessed] = information.times;
        let times = [created, changed, accessed, record_changed];
        Ok(match name {
            b"attrib" => Some(shown_attributes(file, &information).to_le_bytes().to_vec()),
            b"attrib_be" => Some(shown_attributes(file, &information).to_be_bytes().to_vec()),
            b"times" => Some(times.map(u64::to_le_bytes).concat()),
            b"times_be" => Some(times.map(u64::to_be_bytes).concat()),
            b"crtime" => Some(created.to_le_bytes().to_vec()),
            b"crtime_be" => Some(created.to_be_bytes().to_vec()),
            b"acl" => self.security_descriptor(file, &information)?,
            b"reparse_data" if information.attributes & flag::REPARSE_POINT != 0 => {
                self.reparse_data(file)?
            }
            b"object_id" => self.object_id(file)?,
            b"dos_name" => self.dos_name(file)?,
            b"ea" => value(attribute::EA)?,
            b"efsinfo" if information.attributes & flag::ENCRYPTED != 0 => self.efs_info(file)?,
            _ => None,
        })
    }

    /// The object id, followed by the three ids of its origin if the volume's
    /// index of object ids knows the file.
    fn object_id(&self, file: &File) -> Result<Option<Vec<u8>>> {
        let value = self.mft.value(file, attribute::OBJECT_ID, &[], MAX_VALUE)?;
        let Some(mut id) = value.filter(|id| id.len() == 16) else {
            return Ok(None);
        };
        let holder = self
            .find(EXTEND, b"$ObjId")
            .and_then(|number| self.mft.file(number));
        let holder = match holder {
            Ok(holder) => holder,
            Err(Error::NotFound { .. }) => return Ok(Some(id)),
            Err(error) => return Err(error),
        };
        let Some(objects) = Index::open(&self.mft, &holder, OBJECTS)? else {
            return Ok(Some(id));
        };
        // Sorted as four numbers of 32 bits each.
        let number = |id: &[u8], at| u32_at(id, at).unwrap_or(0);
        let order = |id: &[u8]| [0, 4, 8, 12].map(|at| number(id, at));
        let wanted = order(&id);
        let mut origin = None;
        objects.search(&|key| order(key).cmp(&wanted), &mut |entry| {
            let same =
                u64_at(entry.data(), 0).map(|file| file & NUMBER) == Some(file.record.number());
            origin = slice_at(entry.data(), 8, 48)
                .filter(|_| same)
                .map(<[u8]>::to_vec);
            ControlFlow::Break(())
        })?;
        id.extend(origin.unwrap_or_default());
        Ok(Some(id))
    }

    /// The name for DOS programs, in upper case; of a file with several names
    /// none, because it is not known which of them is meant.
    fn dos_name(&self, file: &File) -> Result<Option<Vec<u8>>> {
        if file.record.number() == ROOT {
            return Ok(None);
        }
        let (mut dos, mut names) = (None, 0u32);
        self.each_name(file, &mut |name| {
            if !name.is_dos_only() {
                names = names.saturating_add(1);
            }
            if name.is_dos() {
                dos = Some(name.name.to_vec());
            }
        })?;
        let Some(dos) = dos.filter(|_| names <= 1) else {
            return Ok(None);
        };
        let upper = self.upper_case()?;
        let dos: Vec<u16> = units(&dos).take(12).map(|unit| upper.of(unit)).collect();
        Ok(Some(to_wtf8(&on_disk(&dos))))
    }

    /// What EFS keeps to decrypt the file: keys for each who may.
    fn efs_info(&self, file: &File) -> Result<Option<Vec<u8>>> {
        const EFS: &[u8] = b"$\0E\0F\0S\0";
        self.mft
            .value(file, attribute::LOGGED_UTILITY_STREAM, EFS, MAX_VALUE)
    }
}

/// The file attributes as Windows shows them.
fn shown_attributes(file: &File, information: &Information) -> u32 {
    let attributes = match file.record.is_directory() {
        true => information.attributes | flag::DIRECTORY,
        false => information.attributes & !flag::DIRECTORY,
    };
    if attributes == 0 {
        flag::NORMAL
    } else {
        attributes
    }
}
