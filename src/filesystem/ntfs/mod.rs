//! NTFS 3.0 and 3.1 (and 1.2), as Windows shows it.
//!
//! The idea: everything NTFS keeps is an attribute of a file, and every file is a
//! record of the MFT. So a call reads the file's record, finds the attribute, and
//! answers from it; nothing is kept but the run list of the MFT, those of badly
//! fragmented files, and a few decoded compression units, each within a bound.
//! The log ($LogFile) is not replayed; [`Description::notes`] says so where it
//! matters.
//!
//! From the disk up:
//! - [`boot`], [`record`], [`attribute`], [`attribute_list`], [`runs`]: the
//!   structures;
//! - [`stream`]: the value of an attribute; [`compress`] (LZNT1) decodes it, and
//!   [`decoded`] keeps what was decoded;
//! - [`mft`]: files; [`file`]: what they are; [`wof`] ([`xpress_huffman`],
//!   [`lzx`] over [`bits`] and [`huffman`]): those that Windows compacted;
//! - [`index`]: B+trees; [`directory`], [`file_name`]: folders;
//! - [`reparse`]: links; [`security`], [`xattr`]: extended attributes;
//! - [`description`]: the volume.
//!
//! Memory is bounded by: 16 MiB of run lists and 2 MiB of decoded units for a
//! volume; for a call, 32 MiB for one file's run list, 1 MiB for the bitmap of a
//! folder or the compressed bytes of what is decoded at once, 256 KiB for an
//! attribute list.
#![deny(clippy::arithmetic_side_effects)]

mod attribute;
mod attribute_list;
mod bits;
mod boot;
mod compress;
mod decoded;
mod description;
mod directory;
mod file;
mod file_name;
mod huffman;
mod index;
mod lzx;
mod mft;
mod record;
mod reparse;
mod runs;
mod security;
mod stream;
#[cfg(test)]
pub(super) mod tests;
mod times;
mod wof;
mod xattr;
mod xpress_huffman;

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use super::windows_name::UpperCase;
use super::{Attr, Description, DirEntry, Extent, FileSystem, Options};
use crate::error::{Error, Result};
use crate::image::BlockRead;
use decoded::Decoded;
use file::Kind;
use mft::{File, Mft};
use stream::Stream;
use wof::Compacted;

/// Record of the root folder, by definition.
const ROOT: u64 = 5;

/// An NTFS volume.
pub struct Ntfs {
    mft: Mft,
    options: Options,
    description: Description,
    upper_case: OnceLock<Arc<UpperCase>>,
    decoded: Decoded,
}

impl Ntfs {
    /// Opens it with the usual [`Options`].
    ///
    /// # Errors
    /// `Corrupt` for a boot sector or MFT that cannot be used, `Unsupported` for
    /// a version that is not known.
    pub fn open(volume: Arc<dyn BlockRead>) -> Result<Self> {
        Self::open_with(volume, Options::default())
    }

    /// Opens it.
    ///
    /// # Errors
    /// As [`Ntfs::open`].
    pub fn open_with(volume: Arc<dyn BlockRead>, options: Options) -> Result<Self> {
        let mft = Mft::open(volume)?;
        description::announce(&mft)?;
        let description = description::describe(&mft)?;
        let upper_case = OnceLock::new();
        let mut ntfs = Self {
            mft,
            options,
            description,
            upper_case,
            decoded: Decoded::new(),
        };
        if ntfs.is_hibernated()? {
            ntfs.description.notes.push(
                "Windows was hibernated (or shut down by fast start-up) on this volume: what it \
                 had not written yet is missing."
                    .into(),
            );
        }
        Ok(ntfs)
    }
}

/// The data of a regular file.
enum Data {
    Plain(Arc<Stream>),
    Compacted(Compacted),
}

impl Ntfs {
    /// The data of the file; `None` if it has none.
    fn data(&self, file: &File) -> Result<Option<Data>> {
        let what = || file.record.what();
        let size = || {
            let sizes = self.mft.sizes(file, attribute::DATA, &[])?;
            Ok::<_, Error>(sizes.map_or(0, |(sizes, _)| sizes.size))
        };
        match self.kind(file, &self.information(file)?)? {
            Kind::Plain => Ok(self
                .mft
                .stream(file, attribute::DATA, &[])?
                .map(Data::Plain)),
            Kind::Compacted(method) => {
                let stream = self.mft.stream(file, attribute::DATA, wof::STREAM)?;
                let stream = stream
                    .ok_or_else(|| Error::corrupt(what(), "its compacted content is missing"))?;
                let ino = file.record.number();
                Ok(Some(Data::Compacted(Compacted::new(
                    method,
                    stream,
                    size()?,
                    ino,
                ))))
            }
            Kind::Elsewhere(_) if size()? == 0 => Ok(None),
            Kind::Elsewhere(reason) => Err(Error::Unsupported {
                what: what(),
                reason,
            }),
            Kind::Directory => Err(Error::IsADirectory { what: what() }),
            Kind::Link(_) | Kind::Special(..) => {
                Err(Error::Invalid(format!("{}: not a regular file", what())))
            }
        }
    }
}

impl FileSystem for Ntfs {
    fn root(&self) -> u64 {
        ROOT
    }

    fn description(&self) -> &Description {
        &self.description
    }

    fn attr(&self, ino: u64) -> Result<Attr> {
        self.attributes(&self.mft.file(ino)?)
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<u64> {
        match name {
            b"." => Ok(dir),
            b".." => self.parent(dir),
            _ if self.options.ignore_case => self
                .lookup_ignoring_case(dir, name)
                .map(|(number, _)| number),
            _ => self.find(dir, name),
        }
    }

    fn parent(&self, dir: u64) -> Result<u64> {
        self.parent_folder(dir)
    }

    fn read_dir(
        &self,
        dir: u64,
        position: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.list(dir, position, each)
    }

    fn extents(&self, ino: u64, offset: u64, len: u64, out: &mut Vec<Extent>) -> Result<()> {
        let file = self.mft.file(ino)?;
        match self.data(&file)? {
            None => {}
            Some(Data::Plain(stream)) => stream.extents(&self.mft.volume, offset, len, out)?,
            Some(Data::Compacted(content)) => {
                let len = len.min(content.size().saturating_sub(offset));
                if len > 0 {
                    out.push(Extent::Decode { len });
                }
            }
        }
        Ok(())
    }

    fn read(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let file = self.mft.file(ino)?;
        match self.data(&file)? {
            None => Ok(0),
            Some(Data::Plain(stream)) => {
                stream.read(&self.mft.volume, offset, buf, Some((&self.decoded, ino)))
            }
            Some(Data::Compacted(content)) => {
                content.read(&self.mft.volume, offset, buf, &self.decoded)
            }
        }
    }

    fn read_link(&self, ino: u64) -> Result<Vec<u8>> {
        let file = self.mft.file(ino)?;
        match self.kind(&file, &self.information(&file)?)? {
            Kind::Link(target) => Ok(target),
            _ => Err(Error::Invalid(format!(
                "{}: not a symbolic link",
                file.record.what()
            ))),
        }
    }

    fn xattr_names(&self, ino: u64) -> Result<Vec<Vec<u8>>> {
        self.listed_xattrs(&self.mft.file(ino)?)
    }

    fn xattr(&self, ino: u64, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.xattr_value(&self.mft.file(ino)?, name)
    }
}
