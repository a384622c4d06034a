//! The disks that a volume may lie on: the one that is looked at, and the other
//! disks of its backup.
//!
//! The idea: the disk that is looked at is device 0; the others follow in disk
//! order and are opened one after the other, only as long as something on the
//! disks that are open says that a part of it lies elsewhere.

use crate::error::Result;
use crate::image::BlockRead;
use std::fmt::Write as _;
use std::sync::Arc;

/// The other disks of a backup. Nothing is opened before it is asked for.
pub trait Siblings {
    /// The `N` of each one's `disk<N>`, ascending; never that of the disk that is
    /// looked at.
    fn indexes(&self) -> Vec<u32>;

    /// Opens the one at `number` of [`Self::indexes`].
    ///
    /// # Errors
    /// What may pass: it is tried again, with the whole disk.
    fn open(&self, number: usize) -> Result<Sibling>;
}

/// A disk that was to be opened.
pub enum Sibling {
    /// Here it is.
    Open(Arc<dyn BlockRead>),
    /// It cannot be opened, and will not be the next time; why.
    Lost(String),
}

/// A disk without siblings.
pub struct Alone;

impl Siblings for Alone {
    fn indexes(&self) -> Vec<u32> {
        Vec::new()
    }
    fn open(&self, _: usize) -> Result<Sibling> {
        Ok(Sibling::Lost("there is no such disk".into()))
    }
}

/// The disks that are open, by device number.
pub(super) struct Devices<'a> {
    siblings: &'a dyn Siblings,
    /// The `N` of each `disk<N>`; of device 0 first.
    indexes: Vec<u32>,
    open: Vec<Option<Arc<dyn BlockRead>>>,
    /// Those that cannot be opened: `N`, and why.
    lost: Vec<(u32, String)>,
}

impl<'a> Devices<'a> {
    pub(super) fn new(disk: &Arc<dyn BlockRead>, index: u32, siblings: &'a dyn Siblings) -> Self {
        let mut indexes = vec![index];
        indexes.extend(siblings.indexes());
        Self {
            siblings,
            indexes,
            open: vec![Some(Arc::clone(disk))],
            lost: Vec::new(),
        }
    }

    /// Opens one more; false if all were tried.
    pub(super) fn open_next(&mut self) -> Result<bool> {
        let device = self.open.len();
        let (Some(index), Some(number)) = (self.indexes.get(device), device.checked_sub(1)) else {
            return Ok(false);
        };
        let disk = match self.siblings.open(number)? {
            Sibling::Open(disk) => Some(disk),
            Sibling::Lost(reason) => {
                self.lost.push((*index, reason));
                None
            }
        };
        self.open.push(disk);
        Ok(true)
    }

    /// The open ones with their numbers, in disk order.
    pub(super) fn in_order(&self) -> Vec<(usize, Arc<dyn BlockRead>)> {
        let mut all: Vec<_> = (self.open.iter().enumerate())
            .filter_map(|(device, disk)| Some((device, Arc::clone(disk.as_ref()?))))
            .collect();
        all.sort_by_key(|(device, _)| self.index(*device));
        all
    }

    /// All that were tried, by device number.
    pub(super) fn all(&self) -> Vec<Option<Arc<dyn BlockRead>>> {
        self.open.clone()
    }

    /// The `N` of a device's `disk<N>`.
    pub(super) fn index(&self, device: usize) -> u32 {
        self.indexes.get(device).copied().unwrap_or(u32::MAX)
    }

    /// Where something is not that was looked for on all of them, as the end of
    /// a sentence; with what can be done.
    pub(super) fn absence(&self) -> String {
        const ADVICE: &str = ": a backup with all disks of the VM is needed";
        if self.indexes.len() <= 1 {
            return format!("not on this disk, and the backup has no other{ADVICE}");
        }
        let mut text = "not on this disk nor on any other of the backup".to_owned();
        if self.lost.is_empty() {
            text.push_str(ADVICE);
        }
        for (index, reason) in &self.lost {
            let _ = write!(text, "; disk{index} cannot be opened: {reason}");
        }
        text
    }
}
