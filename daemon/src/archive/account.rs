//! The books of one archive: what went in, and what was left out and why.
//!
//! The idea: an archive tells itself what is not in it, in a last member of its
//! own, and that list is bounded like everything else: beyond so many lines it says
//! how many more there are.

use super::{ArchiveError, Result, shown};

/// Lines of the list, and the bytes of all of them.
const MOST_LINES: usize = 20_000;
const MOST_BYTES: usize = 2 << 20;

/// What an archive holds.
#[derive(Debug, Default, Clone)]
pub(crate) struct Summary {
    /// Regular files, and devices and pipes; other names of a file count as well.
    pub(crate) files: u64,
    /// Folders.
    pub(crate) folders: u64,
    /// Symbolic links.
    pub(crate) links: u64,
    /// Bytes of file data before compression; holes count.
    pub(crate) bytes: u64,
    /// Bytes of the archive.
    pub(crate) written: u64,
    /// What is not in it: path in the archive, made printable, and the reason.
    /// Bounded; see `left_out`.
    pub(crate) unread: Vec<(String, String)>,
    /// How many things are not in it, those in `unread` included.
    pub(crate) left_out: u64,
}

/// Keeps a [`Summary`] while the archive is made.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) summary: Summary,
    limit: Option<u64>,
    /// Bytes of the lines in `summary.unread`.
    listed: usize,
    /// The highest number among the names at the top that the list could have;
    /// 0 for none.
    taken: u64,
}

impl Account {
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self {
            summary: Summary::default(),
            limit,
            listed: 0,
            taken: 0,
        }
    }

    /// Remembers what could collide with the name of the list.
    pub(super) fn name(&mut self, path: &[u8]) {
        self.taken = self.taken.max(list_number(path).unwrap_or(0));
    }

    /// Counts a file before its data is read.
    ///
    /// # Errors
    /// `TooLarge` where it would exceed the limit.
    pub(super) fn file(&mut self, size: u64) -> Result<()> {
        let bytes = self.summary.bytes.saturating_add(size);
        if let Some(limit) = self.limit
            && bytes > limit
        {
            return Err(ArchiveError::TooLarge { limit });
        }
        self.summary.bytes = bytes;
        self.summary.files = self.summary.files.saturating_add(1);
        Ok(())
    }

    /// Notes something that is not in the archive.
    pub(super) fn left_out(&mut self, path: &[u8], reason: String) {
        let path = shown(path);
        self.summary.left_out = self.summary.left_out.saturating_add(1);
        let length = path.len().saturating_add(reason.len());
        self.listed = self.listed.saturating_add(length);
        // Once full it stays full: a list with gaps would not say where they are.
        if self.listed <= MOST_BYTES && self.summary.unread.len() < MOST_LINES {
            self.summary.unread.push((path, reason));
        } else {
            self.listed = MOST_BYTES;
        }
    }

    /// The last member: name and text; none if nothing is missing.
    pub(super) fn list(&self) -> Option<(String, Vec<u8>)> {
        if self.summary.left_out == 0 {
            return None;
        }
        let name = match self.taken {
            0 => "NOT-RESTORED.txt".to_owned(),
            taken => format!("NOT-RESTORED-{}.txt", taken.saturating_add(1)),
        };
        let mut text = String::from(
            "These files and folders, or parts of what belongs to them, are not in this \
             archive:\n\n",
        );
        for (path, reason) in &self.summary.unread {
            text.push_str(&format!("{path}: {reason}\n"));
        }
        let listed = u64::try_from(self.summary.unread.len()).unwrap_or(u64::MAX);
        let more = self.summary.left_out.saturating_sub(listed);
        if more > 0 {
            text.push_str(&format!("… and {more} more\n"));
        }
        Some((name, text.into_bytes()))
    }
}

/// The number of a name like the list's, in any spelling (Windows does not tell
/// upper from lower case): 1 for `NOT-RESTORED.txt`, 7 for `NOT-RESTORED-7.txt`.
fn list_number(path: &[u8]) -> Option<u64> {
    let name = std::str::from_utf8(path).ok()?.to_ascii_lowercase();
    let number = name.strip_prefix("not-restored")?.strip_suffix(".txt")?;
    if number.is_empty() {
        return Some(1);
    }
    // Far above what is there in earnest, and far below where numbers end.
    let number = number.strip_prefix('-')?.parse().ok();
    number.filter(|number| *number < 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_a_name_of_its_own_and_ends() {
        let mut account = Account::new(None);
        assert!(account.list().is_none());
        account.left_out(b"a\nb", "gone".to_owned());
        let (name, text) = account.list().unwrap();
        assert_eq!(name, "NOT-RESTORED.txt");
        assert!(text.ends_with(b"\na\\nb: gone\n"));
        account.name(b"below/not-restored-9.txt");
        account.name(b"not-restored.TXT");
        assert_eq!(account.list().unwrap().0, "NOT-RESTORED-2.txt");
        account.name(b"NOT-RESTORED-7.txt");
        assert_eq!(account.list().unwrap().0, "NOT-RESTORED-8.txt");
        for _ in 0..30_000 {
            account.left_out(b"x", "gone".to_owned());
        }
        let (_, text) = account.list().unwrap();
        assert!(text.ends_with("x: gone\n… and 10001 more\n".as_bytes()));
        for _ in 0..100 {
            account.left_out(&[b'y'; 100_000], "gone".to_owned());
        }
        assert!(account.list().unwrap().1.len() < MOST_BYTES + 1000);
    }

    #[test]
    fn the_limit_is_kept() {
        let mut account = Account::new(Some(10));
        account.file(10).unwrap();
        account.file(0).unwrap();
        let error = account.file(1).unwrap_err();
        assert!(matches!(error, ArchiveError::TooLarge { limit: 10 }));
    }
}
