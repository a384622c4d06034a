//! The entries of a folder, a page at a time.
//!
//! The idea: reading all names of a folder is cheap, looking at each file is not. So
//! a page reads the names, keeps the few that belong to it in a heap no larger than
//! the page, and looks only at those. The order of names is kept up to
//! [`SORTED`] entries; a larger folder is given in its own order, in which a page
//! reads no more than itself.

use std::collections::BinaryHeap;
use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::beneath::Beneath;
use super::cursor::{self, Cursor, Key};
use super::dirents::{Dirent, Dirents};
use super::entry::{Entry, Folder, file_type};
use super::error::FilesError;
use super::name::GuestPath;

/// The most entries that a folder is sorted for without being asked, and the most in
/// an answer without a limit.
pub(crate) const SORTED: usize = 100_000;

/// The highest limit.
pub(crate) const MAX_LIMIT: usize = 10_000;

/// Bytes of names and paths in an answer, about. An answer that would be larger ends
/// early and says where to go on.
pub(crate) const MAX_TEXT: usize = 32 << 20;

/// Bytes of names that a page may have.
const MAX_NAMES: usize = 16 << 20;

/// How long the names of a folder may take to read.
const PATIENCE: Duration = Duration::from_secs(30);

/// In which order entries come.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Order {
    /// Folders first, then all else, each by the bytes of the name.
    Name,
    /// The folder's own, which is always the same.
    Directory,
}

/// Which part of a folder is wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Page {
    /// The most entries, 1 to 10,000; 100,000 if nothing is said.
    pub(crate) limit: Option<usize>,
    /// What the page before gave.
    pub(crate) cursor: Option<String>,
    /// If nothing is said, by name where the folder has no more than 100,000 entries.
    pub(crate) order: Option<Order>,
}

/// A page of a folder.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub(crate) struct Listing {
    /// The entries.
    pub(crate) files: Vec<Entry>,
    /// How many entries the folder has; in the folder's own order, where that is not
    /// known, how many are in this answer.
    pub(crate) total_count: usize,
    /// The order of the entries.
    pub(crate) order: Order,
    /// Give this as `cursor` for the next page; missing on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_cursor: Option<String>,
}

/// Lists a page of the folder at `path`, through links as far as they stay on the
/// disk. Takes up to 30 s for the names of an absurd folder.
///
/// # Errors
/// `Invalid` for a limit or a cursor that is none, `NotFolder`, or why the folder
/// cannot be read. An entry that cannot be looked at says so itself.
pub(crate) fn list(disk: &Beneath, path: &GuestPath, page: &Page) -> Result<Listing, FilesError> {
    let limit = match page.limit {
        None => SORTED,
        Some(limit @ 1..=MAX_LIMIT) => limit,
        Some(_) => {
            return Err(FilesError::Invalid(format!(
                "`limit`: give a number from 1 to {MAX_LIMIT}"
            )));
        }
    };
    let cursor = page.cursor.as_deref().map(Cursor::decode).transpose()?;
    let deadline = within(PATIENCE);
    let folder = Folder::open(disk, path.relative())?;
    let names = match (cursor, page.order) {
        (Some(Cursor::After(key)), None | Some(Order::Name)) => {
            by_name(&folder, Some(key), limit, usize::MAX, deadline)?
        }
        (Some(Cursor::At(at)), None | Some(Order::Directory)) => {
            by_position(&folder, at, limit, deadline)?
        }
        (Some(_), Some(_)) => return Err(cursor::invalid()),
        (None, Some(Order::Name)) => by_name(&folder, None, limit, usize::MAX, deadline)?,
        (None, Some(Order::Directory)) => by_position(&folder, 0, limit, deadline)?,
        (None, None) => match by_name(&folder, None, limit, SORTED, deadline)? {
            names if names.total.is_some() => names,
            _ => by_position(&folder, 0, limit, deadline)?,
        },
    };
    let (mut files, mut text, mut more) = (Vec::new(), 0usize, names.more);
    for key in &names.keys {
        if text > MAX_TEXT {
            more = true;
            break;
        }
        let entry = folder.entry(&key.name, !key.is_file)?;
        text = text.saturating_add(entry.text());
        files.push(entry);
    }
    Ok(Listing {
        total_count: names.total.unwrap_or(files.len()),
        order: names.order,
        next_cursor: more.then(|| names.cursor_after(files.len())).flatten(),
        files,
    })
}

/// The names of a page.
pub(crate) struct Names {
    pub(crate) keys: Vec<Key>,
    /// The positions after them, in the folder's own order.
    positions: Vec<i64>,
    /// How many the folder has, if that is known.
    total: Option<usize>,
    order: Order,
    /// Whether there are more.
    pub(crate) more: bool,
}

impl Names {
    /// Where to go on after the first `count` of them.
    fn cursor_after(&self, count: usize) -> Option<String> {
        let last = count.checked_sub(1)?;
        let cursor = match self.order {
            Order::Name => Cursor::After(self.keys.get(last)?.clone()),
            Order::Directory => Cursor::At(*self.positions.get(last)?),
        };
        Some(cursor.encode())
    }
}

/// The first `limit` names after `after` in the order of names. Gives up, and gives
/// an unknown total, where the folder has more than `most` entries.
///
/// # Errors
/// Why the folder cannot be read.
pub(crate) fn by_name(
    folder: &Folder,
    after: Option<Key>,
    limit: usize,
    most: usize,
    deadline: Instant,
) -> Result<Names, FilesError> {
    // The last of the page on top: it goes when the page is full, and what comes
    // after it is not taken any more.
    let mut page: BinaryHeap<Key> = BinaryHeap::new();
    let mut beyond: Option<Key> = None;
    let (mut total, mut size) = (0usize, 0usize);
    read(folder, 0, deadline, &mut |entry| {
        total = total.saturating_add(1);
        if total > most {
            return Ok(ControlFlow::Break(()));
        }
        let place = (!is_folder(folder, &entry), entry.name);
        let told = after.as_ref().is_some_and(|after| place <= order(after));
        let later = beyond.as_ref().is_some_and(|beyond| place >= order(beyond));
        if told || later {
            return Ok(ControlFlow::Continue(()));
        }
        page.push(key(place.0, place.1));
        size = size.saturating_add(place.1.len());
        while page.len() > limit || size > MAX_NAMES {
            let Some(last) = page.pop() else { break };
            size = size.saturating_sub(last.name.len());
            beyond = Some(last);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(Names {
        keys: page.into_sorted_vec(),
        positions: Vec::new(),
        total: (total <= most).then_some(total),
        order: Order::Name,
        more: beyond.is_some(),
    })
}

/// The `limit` names from a position on, in the folder's own order.
fn by_position(
    folder: &Folder,
    start: i64,
    limit: usize,
    deadline: Instant,
) -> Result<Names, FilesError> {
    let (mut keys, mut positions) = (Vec::new(), Vec::new());
    let (mut size, mut more) = (0usize, false);
    read(folder, start, deadline, &mut |entry| {
        if keys.len() >= limit || size > MAX_NAMES {
            more = true;
            return Ok(ControlFlow::Break(()));
        }
        size = size.saturating_add(entry.name.len());
        positions.push(entry.next);
        keys.push(key(!is_folder(folder, &entry), entry.name));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(Names {
        total: (start == 0 && !more).then_some(keys.len()),
        keys,
        positions,
        order: Order::Directory,
        more,
    })
}

fn read(
    folder: &Folder,
    start: i64,
    deadline: Instant,
    each: &mut dyn FnMut(Dirent<'_>) -> io::Result<ControlFlow<()>>,
) -> Result<(), FilesError> {
    Dirents::open(folder.place(), start, deadline)
        .and_then(|mut entries| entries.each(each))
        .map_err(|error| match error.raw_os_error() {
            // The folder is open: what is wrong is the position.
            Some(libc::EINVAL) if start != 0 => cursor::invalid(),
            _ => FilesError::new(folder.shown(), error),
        })
}

/// The end of a time that begins now.
pub(crate) fn within(patience: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(patience).unwrap_or(now)
}

/// A link to a folder is none here: what it leads to is not worth a look for the
/// order.
fn is_folder(folder: &Folder, entry: &Dirent<'_>) -> bool {
    entry.is_folder.unwrap_or_else(|| {
        folder
            .look(entry.name)
            .is_ok_and(|stat| file_type(&stat) == libc::S_IFDIR)
    })
}

fn key(is_file: bool, name: &[u8]) -> Key {
    Key {
        is_file,
        name: name.into(),
    }
}

fn order(key: &Key) -> (bool, &[u8]) {
    (key.is_file, &key.name)
}

#[cfg(test)]
mod tests;
