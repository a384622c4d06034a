//! Folders: names to numbers and back.
#![deny(clippy::arithmetic_side_effects)]

use std::ops::ControlFlow;
use std::sync::Arc;

use super::attribute;
use super::file::{FIRST_USER_FILE, flag};
use super::file_name::FileName;
use super::index::{I30, Index};
use super::mft::File;
use super::record::NUMBER;
use super::{Ntfs, ROOT};
use crate::error::{Error, Result};
use crate::filesystem::windows_name::{UpperCase, from_wtf8, on_disk, push_wtf8, to_wtf8, units};
use crate::filesystem::{DirEntry, FileType};

/// Record of $UpCase, and the longest that is read.
pub(super) const UPCASE: u64 = 10;
pub(super) const MAX_UPCASE: u64 = 128 << 10;

/// What a look-up calls with each entry that may be meant: with the wanted name
/// as on disk, and with the number of the entry's file.
type Candidate<'a> = dyn FnMut(FileName<'_>, &[u8], u64) -> ControlFlow<()> + 'a;

impl Ntfs {
    /// File `number`, which must be a folder.
    fn folder(&self, number: u64) -> Result<File> {
        let file = self.mft.file(number)?;
        if !file.record.is_directory() {
            return Err(Error::NotADirectory {
                what: file.record.what(),
            });
        }
        Ok(file)
    }

    fn index<'a>(&'a self, folder: &'a File) -> Result<Index<'a>> {
        Index::open(&self.mft, folder, I30)?
            .ok_or_else(|| Error::corrupt(folder.record.what(), "this folder has no index"))
    }

    /// The volume's table of upper case, read once.
    pub(super) fn upper_case(&self) -> Result<&Arc<UpperCase>> {
        if let Some(table) = self.upper_case.get() {
            return Ok(table);
        }
        let table = self
            .mft
            .file(UPCASE)
            .and_then(|file| self.mft.value(&file, attribute::DATA, &[], MAX_UPCASE));
        let table = match table {
            Ok(Some(table)) if table.len() >= 2 * 128 => UpperCase::new(&table),
            Err(Error::Corrupt { .. } | Error::NotFound { .. } | Error::TooLarge { .. })
            | Ok(_) => UpperCase::of_unicode(),
            Err(error) => return Err(error),
        };
        Ok(self.upper_case.get_or_init(|| table.shared()))
    }

    /// The number that `name` has in folder `dir`: exactly this name.
    pub(super) fn find(&self, dir: u64, name: &[u8]) -> Result<u64> {
        let folder = self.folder(dir)?;
        let mut number = None;
        self.find_all(&folder, name, &mut |entry, wanted, number_of| {
            if entry.name == wanted && !entry.is_dos_only() {
                number = Some(number_of);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        number.ok_or_else(|| absent(&folder, name))
    }

    /// The number and the spelling of the entry of folder `dir` that Windows
    /// would open by `name`: that name exactly, or else the first that differs in
    /// case (upper case goes first), or else the file whose DOS name it is.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`.
    pub fn lookup_ignoring_case(&self, dir: u64, name: &[u8]) -> Result<(u64, Vec<u8>)> {
        let folder = self.folder(dir)?;
        let mut found: Option<(u64, Vec<u8>, bool)> = None;
        self.find_all(&folder, name, &mut |entry, wanted, number| {
            let dos = entry.is_dos_only();
            let exact = entry.name == wanted && !dos;
            let better = match &found {
                None => true,
                Some((_, name, of_dos)) => {
                    (dos, units(entry.name).collect()) < (*of_dos, units(name).collect::<Vec<_>>())
                }
            };
            if exact || better {
                found = Some((number, entry.name.to_vec(), dos));
            }
            if exact {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        let (number, spelled, dos) = found.ok_or_else(|| absent(&folder, name))?;
        let spelled = to_wtf8(&spelled);
        if !dos {
            return Ok((number, spelled));
        }
        // A DOS name is not listed; its file has a long one in the same folder.
        let file = self.mft.file(number)?;
        let mut long = None;
        self.each_name(&file, &mut |name| {
            if name.parent == dir && !name.is_dos_only() && long.is_none() {
                long = Some(to_wtf8(name.name));
            }
        })?;
        Ok((number, long.unwrap_or(spelled)))
    }

    /// Calls `each` with every entry of the folder whose name is `name` but for
    /// case.
    fn find_all(&self, folder: &File, name: &[u8], each: &mut Candidate<'_>) -> Result<()> {
        let Some(units) = from_wtf8(name).filter(|units| (1..=255).contains(&units.len())) else {
            return Ok(());
        };
        let upper = self.upper_case()?;
        let wanted = on_disk(&units);
        let key: Vec<u16> = units.into_iter().map(|unit| upper.of(unit)).collect();
        self.index(folder)?.search(
            &|entry| match FileName::parse(entry) {
                Some(name) => name.compare(&key, upper),
                None => std::cmp::Ordering::Less,
            },
            &mut |entry| match FileName::parse(entry.key) {
                Some(name) => each(name, &wanted, entry.reference() & NUMBER),
                None => ControlFlow::Continue(()),
            },
        )
    }

    /// Lists folder `dir`; see [`Index::list`] for what a position is.
    pub(super) fn list(
        &self,
        dir: u64,
        position: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let folder = self.folder(dir)?;
        let mut name = Vec::new();
        self.index(&folder)?.list(position, &mut |entry, next| {
            let Some(file_name) = FileName::parse(entry.key) else {
                return ControlFlow::Continue(());
            };
            let ino = entry.reference() & NUMBER;
            // The file system's own files, the root's entry for itself too.
            if file_name.is_dos_only() || ino < FIRST_USER_FILE {
                return ControlFlow::Continue(());
            }
            name.clear();
            push_wtf8(file_name.name, &mut name);
            if matches!(name.as_slice(), b"" | b"." | b"..")
                || name.iter().any(|byte| matches!(byte, b'/' | 0))
            {
                return ControlFlow::Continue(());
            }
            each(DirEntry {
                ino,
                name: &name,
                kind: listed_kind(file_name.attributes),
                next,
            })
        })
    }

    /// Calls `each` with all names of the file.
    pub(super) fn each_name(&self, file: &File, each: &mut dyn FnMut(FileName<'_>)) -> Result<()> {
        self.mft
            .each_of(file, attribute::FILE_NAME, &mut |attribute| {
                if let Some(name) = attribute.value().and_then(FileName::parse) {
                    each(name);
                }
                Ok(())
            })
    }

    /// The folder that the file is in; of several the first.
    pub(super) fn parent_of(&self, file: &File) -> Result<u64> {
        if file.record.number() == ROOT {
            return Ok(ROOT);
        }
        let mut parent = None;
        self.each_name(file, &mut |name| {
            parent.get_or_insert(name.parent);
        })?;
        parent.ok_or_else(|| Error::corrupt(file.record.what(), "it has no name"))
    }

    /// The folder that folder `dir` is in.
    pub(super) fn parent_folder(&self, dir: u64) -> Result<u64> {
        self.parent_of(&self.folder(dir)?)
    }
}

fn absent(folder: &File, name: &[u8]) -> Error {
    Error::not_found(format!(
        "{} in {}",
        name.escape_ascii(),
        folder.record.what()
    ))
}

/// The type, if the folder's copy of the attributes is enough to tell: a reparse
/// point or a system file may be anything.
fn listed_kind(attributes: u32) -> Option<FileType> {
    if attributes & flag::REPARSE_POINT != 0 {
        None
    } else if attributes & flag::IS_DIRECTORY != 0 {
        Some(FileType::Directory)
    } else if attributes & flag::SYSTEM != 0 {
        None
    } else {
        Some(FileType::Regular)
    }
}
