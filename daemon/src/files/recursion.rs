//! All that lies below a folder, as far as an answer goes.
//!
//! The idea: what is still to be told is one queue, the nearest first. It is never
//! longer than what the answer has room for, because what would come after that is
//! not told anyway; so memory is bounded however wide and deep the guest's folders
//! are, and only what is told is looked at.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::beneath::Beneath;
use super::entry::{Entry, Folder, Kind};
use super::error::FilesError;
use super::listing::{MAX_LIMIT, MAX_TEXT, by_name, within};
use super::name::GuestPath;

/// The entries in an answer if nothing is said.
const DEFAULT_LIMIT: usize = 1000;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What lies below a folder.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub(crate) struct Below {
    /// The entries: those of a folder follow it; folders first, then all else, each by
    /// the bytes of the name.
    pub(crate) files: Vec<Entry>,
    /// How many entries are in this answer.
    pub(crate) total_count: usize,
    /// Whether there is more than the answer holds.
    pub(crate) truncated: bool,
}

/// What is still to be told: an entry of a folder.
struct Pending {
    folder: Arc<Vec<u8>>,
    name: Box<[u8]>,
    is_folder: bool,
}

/// Lists all below the folder at `path`, at most `limit` entries (1 to 10,000; 1,000
/// if nothing is said) and for about 5 s. Links are told and not followed. A folder
/// that cannot be read says so in its entry.
///
/// # Errors
/// As [`super::listing::list`].
pub(crate) fn list_below(
    disk: &Beneath,
    path: &GuestPath,
    limit: Option<usize>,
) -> Result<Below, FilesError> {
    let limit = match limit.unwrap_or(DEFAULT_LIMIT) {
        limit @ 1..=MAX_LIMIT => limit,
        _ => {
            return Err(FilesError::Invalid(format!(
                "`limit`: give a number from 1 to {MAX_LIMIT}"
            )));
        }
    };
    let deadline = within(PATIENCE);
    let top = Arc::new(path.relative());
    let mut current = Folder::open(disk, top.to_vec())?;
    let mut current_path = Arc::clone(&top);
    let mut files: Vec<Entry> = Vec::new();
    let mut text = 0usize;
    let mut queue = VecDeque::new();
    let mut truncated = queue_entries(&mut queue, &current, &top, limit, deadline)?;
    while let Some(next) = queue.pop_front() {
        if Instant::now() > deadline || text > MAX_TEXT {
            truncated = true;
            break;
        }
        // Few folders are open at once, however deep the guest's are.
        if !Arc::ptr_eq(&next.folder, &current_path) {
            current = Folder::open(disk, next.folder.to_vec())?;
            current_path = Arc::clone(&next.folder);
        }
        let mut entry = current.entry(&next.name, next.is_folder)?;
        let inside = entry.kind == Kind::Directory && !entry.is_symlink && entry.error.is_none();
        let mut opened = None;
        if inside {
            let path = current.path_of(&next.name);
            let room = limit.saturating_sub(files.len()).saturating_sub(1);
            let folder = Folder::open(disk, path.clone());
            let below = folder.and_then(|folder| {
                let path = Arc::new(path);
                let more = queue_entries(&mut queue, &folder, &path, room, deadline)?;
                opened = Some((folder, path));
                Ok(more)
            });
            match below {
                Ok(more) => truncated |= more,
                Err(error) if error.is_general() => return Err(error),
                Err(error) => entry.error = Some(error.to_string()),
            }
        }
        if let Some((folder, path)) = opened {
            (current, current_path) = (folder, path);
        }
        text = text.saturating_add(entry.text());
        files.push(entry);
    }
    Ok(Below {
        total_count: files.len(),
        files,
        truncated,
    })
}

/// Puts the entries of a folder before all others and lets go of what is beyond
/// `room`. Says whether anything was left out.
fn queue_entries(
    queue: &mut VecDeque<Pending>,
    folder: &Folder,
    path: &Arc<Vec<u8>>,
    room: usize,
    deadline: Instant,
) -> Result<bool, FilesError> {
    let names = by_name(folder, None, room, usize::MAX, deadline)?;
    let left_out = names.more;
    for key in names.keys.into_iter().rev() {
        queue.push_front(Pending {
            folder: Arc::clone(path),
            name: key.name,
            is_folder: !key.is_file,
        });
    }
    let too_many = queue.len() > room;
    queue.truncate(room);
    Ok(left_out || too_many)
}
