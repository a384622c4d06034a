//! From a file's attributes to what it is on Linux: a folder, data, a link, a
//! device.
#![deny(clippy::arithmetic_side_effects)]

use super::attribute;
use super::index::I30;
use super::mft::File;
use super::reparse::{self, Reparse};
use super::wof::{self, Method};
use super::{Ntfs, times};
use crate::error::{Error, Result};
use crate::filesystem::field::{u32_at, u64_at};
use crate::filesystem::windows_name;
use crate::filesystem::{Attr, FileType};

/// File attributes, as Windows has them.
pub(super) mod flag {
    pub(crate) const READ_ONLY: u32 = 0x1;
    pub(crate) const HIDDEN: u32 = 0x2;
    pub(crate) const SYSTEM: u32 = 0x4;
    pub(crate) const DIRECTORY: u32 = 0x10;
    pub(crate) const NORMAL: u32 = 0x80;
    pub(crate) const REPARSE_POINT: u32 = 0x400;
    pub(crate) const OFFLINE: u32 = 0x1000;
    pub(crate) const ENCRYPTED: u32 = 0x4000;
    pub(crate) const RECALL_ON_OPEN: u32 = 0x4_0000;
    pub(crate) const RECALL_ON_DATA_ACCESS: u32 = 0x40_0000;
    /// In folders: the entry is a folder's.
    pub(crate) const IS_DIRECTORY: u32 = 0x1000_0000;
}

/// The first records are the file system's own.
pub(super) const FIRST_USER_FILE: u64 = 16;

/// The longest value that tells an Interix special file: a link of `PATH_MAX`
/// characters.
const MAX_INTERIX: u64 = 8 + 2 * 4096;

/// The attribute $STANDARD_INFORMATION.
#[derive(Debug, Clone, Copy)]
pub(super) struct Information {
    /// Creation, change of data, change of the record, access: as on disk.
    pub(super) times: [u64; 4],
    /// See [`flag`].
    pub(super) attributes: u32,
    /// Number of the security descriptor in $Secure.
    pub(super) security: Option<u32>,
}

impl Information {
    fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            times: [
                u64_at(bytes, 0)?,
                u64_at(bytes, 8)?,
                u64_at(bytes, 16)?,
                u64_at(bytes, 24)?,
            ],
            attributes: u32_at(bytes, 32)?,
            // Longer since NTFS 3.0.
            security: u32_at(bytes, 52).filter(|_| bytes.len() >= 72),
        })
    }
}

/// What a file is.
#[derive(Debug)]
pub(super) enum Kind {
    /// A folder.
    Directory,
    /// A file whose data is its own.
    Plain,
    /// A file whose data is compacted.
    Compacted(Method),
    /// A file whose data cannot be had, and why.
    Elsewhere(String),
    /// A symbolic link and its target.
    Link(Vec<u8>),
    /// A device, pipe or socket; device number.
    Special(FileType, u64),
}

impl Kind {
    fn file_type(&self) -> FileType {
        match self {
            Self::Directory => FileType::Directory,
            Self::Plain | Self::Compacted(_) | Self::Elsewhere(_) => FileType::Regular,
            Self::Link(_) => FileType::Symlink,
            Self::Special(kind, _) => *kind,
        }
    }
}

impl Ntfs {
    /// The file's $STANDARD_INFORMATION.
    pub(super) fn information(&self, file: &File) -> Result<Information> {
        let value = self
            .mft
            .resident(file, attribute::STANDARD_INFORMATION, &[])?;
        value
            .as_deref()
            .and_then(Information::parse)
            .ok_or_else(|| {
                Error::corrupt(file.record.what(), "its standard information is missing")
            })
    }

    /// What the file is.
    pub(super) fn kind(&self, file: &File, information: &Information) -> Result<Kind> {
        if information.attributes & flag::REPARSE_POINT != 0
            && let Some(data) = self.reparse_data(file)?
        {
            return self.reparse_kind(file, information, &data);
        }
        if file.record.is_directory() {
            return Ok(Kind::Directory);
        }
        if information.attributes & flag::SYSTEM != 0 && file.record.number() >= FIRST_USER_FILE {
            return self.interix_kind(file, information);
        }
        Ok(Kind::Plain)
    }

    fn reparse_kind(&self, file: &File, information: &Information, data: &[u8]) -> Result<Kind> {
        let folder = file.record.is_directory();
        let away = flag::OFFLINE | flag::RECALL_ON_OPEN | flag::RECALL_ON_DATA_ACCESS;
        Ok(match Reparse::parse(data) {
            Reparse::Link(link) => Kind::Link(self.link_target(file, &link)?),
            Reparse::Raw(target) => Kind::Link(target),
            Reparse::Special(kind, Some((major, minor))) => {
                Kind::Special(kind, device_number(major, minor))
            }
            Reparse::Special(kind, None) => Kind::Special(kind, self.device_number(file)?),
            Reparse::Placeholder(tag) => Kind::Link(reparse::unsupported(tag)),
            _ if folder => Kind::Directory,
            Reparse::Compacted(data) => match Method::parse(data) {
                Ok(method) => Kind::Compacted(method),
                Err(reason) => Kind::Elsewhere(reason),
            },
            Reparse::Deduplicated => Kind::Elsewhere(
                "its data was deduplicated by Windows Server and lies in the volume's chunk \
                 store, which is not read"
                    .into(),
            ),
            Reparse::Cloud if information.attributes & away == 0 => Kind::Plain,
            Reparse::Cloud => Kind::Elsewhere("its data is kept by a cloud service".into()),
            Reparse::Unknown(tag) => Kind::Elsewhere(format!(
                "its data is managed by a reparse point of a kind that is not known ({tag:#010x})"
            )),
        })
    }

    /// Special files as Interix (Services for UNIX) and ntfs-3g keep them: in
    /// the data of a file with the attribute "system".
    fn interix_kind(&self, file: &File, information: &Information) -> Result<Kind> {
        let Some((sizes, _)) = self.mft.sizes(file, attribute::DATA, &[])? else {
            return Ok(Kind::Plain);
        };
        let hidden = information.attributes & flag::HIDDEN != 0;
        match sizes.size {
            0 if !hidden => return Ok(Kind::Special(FileType::Fifo, 0)),
            1 if !hidden => return Ok(Kind::Special(FileType::Socket, 0)),
            9..=MAX_INTERIX => {}
            _ => return Ok(Kind::Plain),
        }
        let value = self.mft.value(file, attribute::DATA, &[], MAX_INTERIX);
        let value = match value {
            Ok(value) => value.unwrap_or_default(),
            // Encrypted: it is no special file.
            Err(Error::Unsupported { .. }) => return Ok(Kind::Plain),
            Err(error) => return Err(error),
        };
        let Some((magic, rest)) = value.split_at_checked(8) else {
            return Ok(Kind::Plain);
        };
        let device = || {
            let number = |at| u32::try_from(u64_at(rest, at)?).ok();
            Some(device_number(number(0)?, number(8)?)).filter(|_| rest.len() == 16)
        };
        Ok(match magic {
            b"IntxLNK\x01" => Kind::Link(windows_name::to_wtf8(rest)),
            b"IntxCHR\0" => {
                device().map_or(Kind::Plain, |n| Kind::Special(FileType::CharDevice, n))
            }
            b"IntxBLK\0" => {
                device().map_or(Kind::Plain, |n| Kind::Special(FileType::BlockDevice, n))
            }
            _ => Kind::Plain,
        })
    }

    /// The device number that WSL keeps in the extended attribute `$LXDEV`.
    fn device_number(&self, file: &File) -> Result<u64> {
        let Some(list) = self.mft.value(file, attribute::EA, &[], 64 << 10)? else {
            return Ok(0);
        };
        let value = reparse::extended_attribute(&list, b"$LXDEV").unwrap_or_default();
        let number = |at| u32_at(value, at);
        Ok(number(0)
            .zip(number(4))
            .map_or(0, |(major, minor)| device_number(major, minor)))
    }

    /// What `stat` tells of the file.
    pub(super) fn attributes(&self, file: &File) -> Result<Attr> {
        let information = self.information(file)?;
        let kind = self.kind(file, &information)?;
        let data = match kind {
            Kind::Directory => self.mft.sizes(file, attribute::INDEX_ALLOCATION, I30)?,
            _ => self.mft.sizes(file, attribute::DATA, &[])?,
        };
        let mut sizes = data.map(|(sizes, _)| sizes).unwrap_or_default();
        match &kind {
            Kind::Link(target) => sizes.size = u64::try_from(target.len()).unwrap_or(0),
            Kind::Compacted(_) => {
                let content = self.mft.sizes(file, attribute::DATA, wof::STREAM)?;
                let content = content.map_or(0, |(sizes, _)| sizes.allocated);
                sizes.allocated = sizes.allocated.saturating_add(content);
            }
            Kind::Special(..) => sizes.size = 0,
            _ => {}
        }
        let options = &self.options;
        let mode = match kind {
            Kind::Directory => options.directory_mode,
            Kind::Link(_) => 0o777,
            _ if information.attributes & flag::READ_ONLY != 0 => options.file_mode & !0o222,
            _ => options.file_mode,
        };
        let [created, changed, record_changed, accessed] = information.times;
        Ok(Attr {
            ino: file.record.number(),
            kind: kind.file_type(),
            mode,
            size: sizes.size,
            blocks: sizes.allocated.div_ceil(512),
            // Folders have one name; 1 tells `find` not to count subfolders.
            nlink: match kind {
                Kind::Directory => 1,
                _ => u32::from(file.record.links()),
            },
            uid: options.uid,
            gid: options.gid,
            rdev: match kind {
                Kind::Special(_, number) => number,
                _ => 0,
            },
            atime: times::time(accessed),
            mtime: times::time(changed),
            ctime: times::time(record_changed),
            btime: Some(times::time(created)),
            may_have_xattrs: self.has_listed_xattrs(file, &information, &kind)?,
        })
    }
}

/// Linux's `dev_t`.
fn device_number(major: u32, minor: u32) -> u64 {
    nix::sys::stat::makedev(u64::from(major), u64::from(minor))
}
