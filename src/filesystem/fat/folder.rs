//! Folders: names to numbers and back.

use std::ops::ControlFlow;

use super::chain::Chain;
use super::entry::{Entry, Found};
use super::slots::{Folder, Place, SLOT};
use super::volume::Root;
use super::{Family, Fat, ROOT, exfat_entry, fat_entry, short_name};
use crate::error::{Error, Result};
use crate::filesystem::field::index;
use crate::filesystem::windows_name::{UpperCase, from_wtf8, push_units};
use crate::filesystem::{DirEntry, FileType};

/// The longest folder there can be, in slots: of FAT 2 MiB, of exFAT 256 MiB.
const MAX_FAT: u64 = (2 << 20) / SLOT;
const MAX_EXFAT: u64 = (256 << 20) / SLOT;

/// How deep folders are searched for a parent.
const MAX_DEPTH: usize = 1024;

/// The longest table of upper case, and the shortest, in bytes.
const MAX_UPPER_CASE: u64 = 128 << 10;
const MIN_UPPER_CASE: u64 = 2 * 128;

impl Fat {
    fn limit(&self) -> u64 {
        match self.family {
            Family::Fat => MAX_FAT,
            Family::Exfat => MAX_EXFAT,
        }
    }

    /// The root folder.
    pub(super) fn root_folder(&self) -> Folder {
        let (place, limit) = match self.volume.geometry.root {
            Root::Fixed { offset, len } => (Place::Fixed(offset, len), len / SLOT),
            Root::Chain(first) => {
                let contiguous = None;
                (Place::Chain(Chain { first, contiguous }), self.limit())
            }
        };
        Folder {
            ino: ROOT,
            place,
            limit,
            open_ended: true,
        }
    }

    /// The folder that this entry is of.
    fn folder_of(&self, ino: u64, entry: &Entry) -> Result<Folder> {
        let what = || self.what(ino);
        if !entry.is_directory() {
            return Err(Error::NotADirectory { what: what() });
        }
        let place = entry.chain.map(Place::Chain);
        match self.family {
            Family::Fat => Ok(Folder {
                ino,
                place: place
                    .ok_or_else(|| Error::corrupt(what(), "this folder has no clusters"))?,
                limit: MAX_FAT,
                open_ended: true,
            }),
            Family::Exfat if entry.size > MAX_EXFAT.saturating_mul(SLOT) => {
                Err(Error::corrupt(what(), "it is longer than a folder can be"))
            }
            Family::Exfat => Ok(Folder {
                ino,
                place: place.unwrap_or(Place::Fixed(0, 0)),
                limit: entry.size / SLOT,
                open_ended: place.is_none(),
            }),
        }
    }

    pub(super) fn folder(&self, ino: u64) -> Result<Folder> {
        if ino == ROOT {
            return Ok(self.root_folder());
        }
        self.folder_of(ino, &self.entry(ino)?)
    }

    fn scan(
        &self,
        folder: &Folder,
        position: u64,
        each: &mut dyn FnMut(Found<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        match self.family {
            Family::Fat => fat_entry::scan(&self.volume, folder, position, each),
            Family::Exfat => exfat_entry::scan(&self.volume, folder, position, each),
        }
    }

    /// Lists folder `dir`. A position is the number of the slot to go on with.
    pub(super) fn list(
        &self,
        dir: u64,
        position: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut name = Vec::new();
        self.scan(&self.folder(dir)?, position, &mut |found| {
            name.clear();
            push_units(found.name.iter().copied(), &mut name);
            each(DirEntry {
                ino: found.ino,
                name: &name,
                kind: Some(if found.entry.is_directory() {
                    FileType::Directory
                } else {
                    FileType::Regular
                }),
                next: found.next,
            })
        })
    }

    /// The number that `name` has in folder `dir`: of exactly this name; else, if
    /// case is to be ignored, of one that differs in case, or else of the file
    /// whose short name it is.
    pub(super) fn find(&self, dir: u64, name: &[u8]) -> Result<u64> {
        let folder = self.folder(dir)?;
        let absent = || Error::not_found(format!("{} in {}", name.escape_ascii(), self.what(dir)));
        let wanted = from_wtf8(name).ok_or_else(absent)?;
        let upper = if self.options.ignore_case {
            Some(self.upper_case()?)
        } else {
            None
        };
        let like = |name: &[u16], upper: &UpperCase| {
            name.len() == wanted.len()
                && std::iter::zip(name, &wanted).all(|(a, b)| upper.of(*a) == upper.of(*b))
        };
        // Names are mostly asked for in the order in which they were listed, so
        // the search goes on where the last one ended, and once around.
        let begin = match *self.last_found.lock() {
            (last, position) if last == dir => position,
            _ => 0,
        };
        let mut units = Vec::new();
        let (mut exact, mut similar, mut short) = (None, None, None);
        let mut damage = Ok(());
        for (from, until) in [(begin, u64::MAX), (0, begin)] {
            if from == until || exact.is_some() {
                break;
            }
            let outcome = self.scan(&folder, from, &mut |found| {
                if found.next > until {
                    return ControlFlow::Break(());
                }
                let place = (found.next, found.ino);
                if found.name == wanted {
                    exact = Some(place);
                    return ControlFlow::Break(());
                }
                let Some(upper) = upper else {
                    return ControlFlow::Continue(());
                };
                if like(found.name, upper) {
                    similar = similar.into_iter().chain([place]).min();
                }
                if let Some(alias) = found.alias {
                    units.clear();
                    short_name::push(alias, 0, &mut units);
                    if like(&units, upper) {
                        short = short.into_iter().chain([place]).min();
                    }
                }
                ControlFlow::Continue(())
            });
            match outcome {
                Ok(()) => {}
                Err(Error::Corrupt { .. }) => damage = outcome,
                Err(error) => return Err(error),
            }
        }
        // What is damaged elsewhere in the folder does not matter.
        if let Some((position, ino)) = exact.or(similar).or(short) {
            *self.last_found.lock() = (dir, position);
            return match self.entry(ino) {
                // What is listed is not absent, whatever the table says.
                Err(Error::NotFound { what }) => Err(Error::corrupt(
                    what,
                    "it is listed, in a cluster that is marked as free",
                )),
                Err(Error::WouldWait) => Err(Error::WouldWait),
                // What else is wrong with it is for those to hear who ask.
                _ => Ok(ino),
            };
        }
        damage?;
        Err(absent())
    }

    /// The upper case of letters: of exFAT as the volume has it, else Unicode's.
    fn upper_case(&self) -> Result<&UpperCase> {
        if let Some(table) = self.upper_case.get() {
            return Ok(table);
        }
        let table = match self.family {
            Family::Fat => None,
            Family::Exfat => match self.read_upper_case() {
                Err(Error::Corrupt { .. }) => None,
                table => table?,
            },
        };
        let table = table.unwrap_or_else(UpperCase::of_unicode);
        Ok(self.upper_case.get_or_init(|| table.shared()))
    }

    /// exFAT's table: code units in order, with runs of unchanged ones written as
    /// 0xFFFF and their number. `None` if its checksum is wrong.
    fn read_upper_case(&self) -> Result<Option<UpperCase>> {
        let kinds = [exfat_entry::kind::UPPER_CASE];
        let [slot] = exfat_entry::special(&self.volume, &self.root_folder(), kinds)?;
        let Some((slot, size)) = slot.and_then(|slot| {
            let size = exfat_entry::size(&slot)?;
            (MIN_UPPER_CASE..=MAX_UPPER_CASE)
                .contains(&size)
                .then_some((slot, size))
        }) else {
            return Ok(None);
        };
        let mut packed = vec![0; index(size)];
        let Some(()) = exfat_entry::read_special(&self.volume, &slot, &mut packed)? else {
            return Ok(None);
        };
        Ok(exfat_entry::upper_case(&slot, &packed).map(|table| UpperCase::new(&table)))
    }

    /// The folder that holds folder `dir`.
    ///
    /// It is known if its entries were read lately. Otherwise FAT's `..` leads
    /// two folders up, where the entry of the one between is looked for; exFAT
    /// has no such thing, and all folders are searched.
    pub(super) fn holder(&self, dir: u64) -> Result<u64> {
        self.folder(dir)?;
        if dir == ROOT {
            return Ok(ROOT);
        }
        let Some(cluster) = self.volume.geometry.cluster_at(dir.saturating_mul(SLOT)) else {
            // FAT12 and FAT16: only the root is outside the clusters.
            return Ok(ROOT);
        };
        if let Some(holder) = self.volume.holders.get(cluster) {
            return Ok(holder);
        }
        let found = match self.family {
            Family::Fat => match self.holder_by_dots(dir) {
                Err(Error::Corrupt { .. }) => None,
                found => found?,
            },
            Family::Exfat => None,
        };
        match found {
            Some(holder) => Ok(holder),
            None => self.search(dir),
        }
    }

    fn holder_by_dots(&self, dir: u64) -> Result<Option<u64>> {
        let first = |folder: &Folder| match folder.place {
            Place::Chain(chain) => Some(chain.first),
            Place::Fixed(..) => None,
        };
        let root = self.root_folder();
        let up = |from: Option<u32>| match from {
            None => Ok(None),
            from if from == first(&root) => Ok(None),
            Some(from) => fat_entry::above(&self.volume, from),
        };
        let holder = up(first(&self.folder(dir)?))?;
        if holder.is_none() || holder == first(&root) {
            return Ok(Some(ROOT));
        }
        let mut place = root.place;
        if let Some(first) = up(holder)? {
            let contiguous = None;
            place = Place::Chain(Chain { first, contiguous });
        }
        let above = Folder {
            ino: 0,
            place,
            ..self.root_folder()
        };
        let mut found = None;
        self.scan(&above, 0, &mut |entry| {
            let chain = entry.entry.chain;
            if entry.entry.is_directory() && chain.map(|chain| chain.first) == holder {
                found = Some(entry.ino);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Searches all folders for the entry of `dir`.
    fn search(&self, dir: u64) -> Result<u64> {
        let mut path = vec![(self.root_folder(), 0)];
        while let Some((folder, position)) = path.last_mut() {
            let holder = folder.ino;
            let (mut hit, mut below) = (false, None);
            let outcome = self.scan(folder, *position, &mut |found| {
                hit = found.ino == dir;
                if found.entry.is_directory() {
                    below = Some((found.ino, *found.entry));
                    *position = found.next;
                }
                if hit || below.is_some() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            if hit {
                return Ok(holder);
            }
            match outcome {
                Ok(()) | Err(Error::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
            let Some((ino, entry)) = below else {
                path.pop();
                continue;
            };
            // A folder that is its own ancestor would have no end.
            if let Ok(folder) = self.folder_of(ino, &entry)
                && path.len() < MAX_DEPTH
                && path.iter().all(|(above, _)| above.place != folder.place)
            {
                path.push((folder, 0));
            }
        }
        Err(Error::corrupt(self.what(dir), "no folder holds it"))
    }
}
