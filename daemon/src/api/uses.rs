//! Which mounts are in use, told to the daemon.
//!
//! The idea: a request marks its mount, and once a second all marks go to the daemon
//! in one message. What runs on, a download, keeps a mark for as long as it lives. So
//! a lease lives by use, at no cost for a request.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

/// The marks.
#[derive(Debug, Default)]
pub(crate) struct Uses(Mutex<Marks>);

/// Mounts whose last use is remembered: more than there are slots.
const REMEMBERED: usize = 20_000;

#[derive(Debug, Default)]
struct Marks {
    used: HashSet<String>,
    kept: HashMap<String, usize>,
    /// Ahead of what the daemon has written.
    last: HashMap<String, SystemTime>,
}

impl Marks {
    fn remember(&mut self, mount_id: &str) {
        let now = SystemTime::now();
        if let Some(last) = self.last.get_mut(mount_id) {
            *last = now;
        } else if self.last.len() < REMEMBERED {
            self.last.insert(mount_id.to_owned(), now);
        }
    }
}

impl Uses {
    /// A request used a mount.
    pub(crate) fn mark(&self, mount_id: &str) {
        let mut marks = self.0.lock();
        if !marks.used.contains(mount_id) {
            marks.used.insert(mount_id.to_owned());
        }
        marks.remember(mount_id);
    }

    /// When a mount was last used, as far as this process knows.
    pub(crate) fn last(&self, mount_id: &str) -> Option<SystemTime> {
        let marks = self.0.lock();
        if marks.kept.contains_key(mount_id) {
            return Some(SystemTime::now());
        }
        marks.last.get(mount_id).copied()
    }

    /// Forgets the mounts that are not among those that live.
    pub(crate) fn forget_others(&self, live: &HashSet<&str>) {
        let mut marks = self.0.lock();
        marks.last.retain(|id, _| live.contains(id.as_str()));
    }

    /// A mount is in use until the returned value is dropped.
    pub(crate) fn keep(self: &Arc<Self>, mount_id: &str) -> Kept {
        let mut marks = self.0.lock();
        let count = marks.kept.entry(mount_id.to_owned()).or_default();
        *count = count.saturating_add(1);
        Kept {
            uses: Arc::clone(self),
            mount_id: mount_id.to_owned(),
        }
    }

    /// What was used since the last call, and what is in use now.
    pub(crate) fn take(&self) -> Vec<String> {
        let mut marks = self.0.lock();
        let mut used = std::mem::take(&mut marks.used);
        used.extend(marks.kept.keys().cloned());
        used.into_iter().collect()
    }

    /// Marks that could not be told.
    pub(crate) fn give_back(&self, mount_ids: Vec<String>) {
        self.0.lock().used.extend(mount_ids);
    }
}

/// A mount in use.
#[derive(Debug)]
pub(crate) struct Kept {
    uses: Arc<Uses>,
    mount_id: String,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut marks = self.uses.0.lock();
        if let Some(count) = marks.kept.get_mut(&self.mount_id) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                marks.kept.remove(&self.mount_id);
            }
        }
        // The hour without use begins now.
        let id = std::mem::take(&mut self.mount_id);
        marks.remember(&id);
        marks.used.insert(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_told_each_time_and_once_after() {
        let uses = Arc::new(Uses::default());
        uses.mark("a");
        uses.mark("a");
        assert_eq!(uses.take(), ["a"]);
        assert!(uses.take().is_empty());
        let (first, second) = (uses.keep("b"), uses.keep("b"));
        assert_eq!(uses.take(), ["b"]);
        drop(first);
        assert_eq!(uses.take(), ["b"]);
        assert_eq!(uses.take(), ["b"]);
        drop(second);
        assert_eq!(uses.take(), ["b"]);
        assert!(uses.take().is_empty());
        uses.give_back(vec!["c".into()]);
        assert_eq!(uses.take(), ["c"]);
    }
}
