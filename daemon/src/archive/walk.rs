//! Finding what an archive holds: every entry below the selected paths, once, in an
//! order that is the same each time.
//!
//! The idea: of each folder first everything that it holds, then, when its listing
//! is closed again, its folders one after the other. So only *names of folders* wait,
//! and nothing is open but the folders on the way down. Listings are read in portions,
//! and each portion is put in order.
//!
//! A guest decides the shape of its folders, so all of this has a bound: of the
//! folders on the way down only the deepest [`MOST_OPEN`] stay open, the others are
//! opened again, name by name beneath the root, when their turn comes; when too many
//! names wait, folders are entered at once while the listing stays open, and that only
//! [`MOST_LISTINGS`] levels deep; nothing is followed deeper than [`DEEPEST`], and a
//! folder that lies in itself is not entered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, vec};

use nix::dir::{Dir, OwningIter};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat};

use super::selection::Selection;
use super::{ArchiveError, Result, reason};
use crate::files::beneath::Beneath;

/// Levels of folders below a selected one.
const DEEPEST: usize = 1000;
/// Folders on the way down that stay open.
const MOST_OPEN: usize = 64;
/// Names that are read, and put in order, at once.
const PORTION: usize = 1024;
/// Bytes of names of folders that wait for their turn.
const MOST_WAITING: usize = 8 << 20;
/// Listings that are open at once.
const MOST_LISTINGS: usize = 16;

/// Something that was found.
pub(super) struct Found<'a> {
    /// Its path in the archive.
    pub(super) path: &'a [u8],
    /// The folder it lies in.
    pub(super) folder: &'a Beneath,
    /// Its name there.
    pub(super) name: &'a [u8],
    /// What it is; links are not followed.
    pub(super) stat: &'a FileStat,
}

impl Found<'_> {
    /// The type bits of its mode.
    pub(super) fn kind(&self) -> SFlag {
        kind(self.stat)
    }
}

/// The type bits of a mode.
fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Who is told of what was found. An error ends the walk.
pub(super) trait Visitor {
    /// An entry; a folder comes before what lies in it.
    fn entry(&mut self, found: &Found<'_>) -> Result<()>;
    /// Something that could not be looked at.
    fn unread(&mut self, path: &[u8], reason: String) -> Result<()>;
}

/// Tells `visitor` of everything in the selection.
///
/// # Errors
/// `Cancelled`, and those of the visitor.
pub(super) fn walk(
    root: &Beneath,
    selection: &Selection,
    cancelled: &AtomicBool,
    visitor: &mut dyn Visitor,
) -> Result<()> {
    for item in &selection.items {
        let mut walk = Walk {
            visitor: &mut *visitor,
            cancelled,
            path: item.join(&b'/'),
            levels: Vec::new(),
            waiting: 0,
        };
        let all: Vec<&[u8]> = selection
            .base
            .iter()
            .chain(item)
            .map(Vec::as_slice)
            .collect();
        let above = match (item.is_empty(), all.split_last()) {
            // The root, or nothing but it.
            (true, _) | (false, None) => {
                walk.enter(root.folder(&all.join(&b'/')))?;
                walk.run()?;
                continue;
            }
            (false, Some((_, above))) => above,
        };
        match root.folder(&above.join(&b'/')) {
            Ok(folder) => {
                let name = item.last().map(Vec::as_slice).unwrap_or_default();
                walk.visit(&folder, name)?;
                walk.run()?;
            }
            Err(error) => walk.unreached(&error)?,
        }
    }
    Ok(())
}

struct Walk<'a> {
    visitor: &'a mut dyn Visitor,
    cancelled: &'a AtomicBool,
    /// Of the entry at work, in the archive.
    path: Vec<u8>,
    /// The folders on the way down.
    levels: Vec<Level>,
    /// Bytes of names that wait in all levels.
    waiting: usize,
}

struct Level {
    /// `None` while too many deeper ones are open.
    folder: Option<Beneath>,
    /// Device and inode number.
    identity: (u64, u64),
    /// Length of its path.
    path: usize,
    /// What is still to be read.
    listing: Option<OwningIter>,
    portion: vec::IntoIter<Vec<u8>>,
    /// Its folders that wait.
    folders: Names,
}

/// Names in a row, each ended by a NUL, which no name contains.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    at: usize,
}

impl Names {
    fn push(&mut self, name: &[u8]) {
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let rest = self.bytes.get(self.at..)?;
        let name = rest.split(|byte| *byte == 0).next()?;
        if name.is_empty() {
            return None;
        }
        self.at = self.at.saturating_add(name.len()).saturating_add(1);
        Some(name.to_vec())
    }
}

impl Walk<'_> {
    /// Works until the way down has come to its end.
    fn run(&mut self) -> Result<()> {
        while let Some(level) = self.levels.last_mut() {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(ArchiveError::Cancelled);
            }
            self.path.truncate(level.path);
            if let Some(name) = level.portion.next() {
                self.listed(&name)?;
            } else if level.listing.is_some() {
                self.read_portion()?;
            } else if let Some(name) = level.folders.next() {
                let length = name.len().saturating_add(1);
                self.waiting = self.waiting.saturating_sub(length);
                self.lengthen(&name);
                match self.last_folder() {
                    Ok(folder) => self.visit(&folder, &name)?,
                    Err(error) => self.unreached(&error)?,
                }
            } else {
                self.levels.pop();
            }
        }
        Ok(())
    }

    /// An entry of the last level: a folder waits, everything else is told of.
    fn listed(&mut self, name: &[u8]) -> Result<()> {
        self.lengthen(name);
        let folder = match self.last_folder() {
            Ok(folder) => folder,
            Err(error) => return self.unreached(&error),
        };
        let Some(stat) = self.look(&folder, name)? else {
            return Ok(());
        };
        if kind(&stat) != SFlag::S_IFDIR {
            return self.tell(&folder, name, &stat);
        }
        let length = name.len().saturating_add(1);
        if self.waiting.saturating_add(length) <= MOST_WAITING
            && let Some(level) = self.levels.last_mut()
        {
            level.folders.push(name);
            self.waiting = self.waiting.saturating_add(length);
            return Ok(());
        }
        let open = |level: &&Level| level.listing.is_some();
        if self.levels.iter().filter(open).count() < MOST_LISTINGS {
            return self.visit(&folder, name);
        }
        self.tell(&folder, name, &stat)?;
        self.unread("too many folders lie beside and in each other here; what is in it is left out")
    }

    /// Tells of what `path` names, and enters it if it is a folder. Its entry comes
    /// right before what is in it: some programs settle a folder's times when the next
    /// entry lies elsewhere.
    fn visit(&mut self, folder: &Beneath, name: &[u8]) -> Result<()> {
        let Some(stat) = self.look(folder, name)? else {
            return Ok(());
        };
        self.tell(folder, name, &stat)?;
        if kind(&stat) == SFlag::S_IFDIR {
            self.enter(folder.folder_unfollowed(name))?;
        }
        Ok(())
    }

    fn look(&mut self, folder: &Beneath, name: &[u8]) -> Result<Option<FileStat>> {
        match fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(errno) => {
                self.unread(&format!("could not be looked at: {}", errno.desc()))?;
                Ok(None)
            }
        }
    }

    fn tell(&mut self, folder: &Beneath, name: &[u8], stat: &FileStat) -> Result<()> {
        self.visitor.entry(&Found {
            path: &self.path,
            folder,
            name,
            stat,
        })
    }

    /// Goes into the folder that `path` names.
    fn enter(&mut self, folder: io::Result<Beneath>) -> Result<()> {
        let opened = folder.and_then(|folder| {
            let stat = fstat(&folder)?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            let listing = Dir::from_fd(folder.open_unfollowed(b"", flags)?)?;
            Ok((folder, (stat.st_dev, stat.st_ino), listing))
        });
        let (folder, identity, listing) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                return self.unread(&format!(
                    "the folder could not be opened: {}",
                    reason(&error)
                ));
            }
        };
        if self.levels.len() >= DEEPEST {
            return self.unread(&format!(
                "more than {DEEPEST} folders deep; what is in it is left out"
            ));
        }
        if self.levels.iter().any(|level| level.identity == identity) {
            return self.unread("this folder lies in itself, which no sound file system has");
        }
        self.levels.push(Level {
            folder: Some(folder),
            identity,
            path: self.path.len(),
            listing: Some(listing.into_iter()),
            portion: Vec::new().into_iter(),
            folders: Names::default(),
        });
        let far = self.levels.len().checked_sub(MOST_OPEN);
        if let Some(level) = far.and_then(|far| self.levels.get_mut(far))
            && far != Some(0)
        {
            level.folder = None;
        }
        Ok(())
    }

    /// Reads the next names of the last level.
    fn read_portion(&mut self) -> Result<()> {
        let Some(level) = self.levels.last_mut() else {
            return Ok(());
        };
        let mut names = Vec::new();
        let mut failed = None;
        while names.len() < PORTION {
            match level.listing.as_mut().and_then(Iterator::next) {
                Some(Ok(entry)) => {
                    let name = entry.file_name().to_bytes();
                    if !matches!(name, b"." | b"..") {
                        names.push(name.to_vec());
                    }
                }
                Some(Err(errno)) => {
                    failed = Some(errno);
                    level.listing = None;
                    break;
                }
                None => {
                    level.listing = None;
                    break;
                }
            }
        }
        names.sort_unstable();
        level.portion = names.into_iter();
        match failed {
            Some(errno) => self.unread(&format!(
                "the folder could not be listed to its end: {}",
                errno.desc()
            )),
            None => Ok(()),
        }
    }

    /// The last folder, opened again if need be.
    fn last_folder(&mut self) -> io::Result<Beneath> {
        let open = self.levels.iter().rposition(|level| level.folder.is_some());
        let start = open.ok_or(Errno::ESTALE)?;
        let mut levels = self.levels.iter().skip(start);
        let first = levels.next().ok_or(Errno::ESTALE)?;
        let mut folder = first.folder.clone().ok_or(Errno::ESTALE)?;
        let mut end = first.path;
        for level in levels {
            let name = self.path.get(end..level.path).unwrap_or_default();
            folder = folder.folder_unfollowed(name.strip_prefix(b"/").unwrap_or(name))?;
            let stat = fstat(&folder)?;
            if (stat.st_dev, stat.st_ino) != level.identity {
                return Err(Errno::ESTALE.into());
            }
            end = level.path;
        }
        if let Some(last) = self.levels.last_mut() {
            last.folder = Some(folder.clone());
        }
        Ok(folder)
    }

    fn lengthen(&mut self, name: &[u8]) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
    }

    fn unreached(&mut self, error: &io::Error) -> Result<()> {
        self.unread(&format!("could not be reached: {}", reason(error)))
    }

    fn unread(&mut self, reason: &str) -> Result<()> {
        self.visitor.unread(&self.path, reason.to_owned())
    }
}
