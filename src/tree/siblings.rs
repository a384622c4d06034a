//! The images of the disks of a backup, while one of them is being attached.
//!
//! The idea: an image is what its row in the catalog was recorded of, or it is not
//! opened; that holds for a disk that is asked for and for one that it needs.

use std::cell::OnceCell;
use std::io;
use std::sync::Arc;

use super::node::disk_id;
use crate::catalog::DiskRecord;
use crate::error::{Error, Result};
use crate::image::{BlockCache, Disk, Export, ExportOptions};
use crate::volume::{Sibling, Siblings};

/// Opens the image that the row tells of, if it is still that one.
pub(super) fn open_image(
    record: &DiskRecord,
    options: &ExportOptions,
    cache: &Arc<BlockCache>,
) -> Result<Arc<Disk>> {
    let id = disk_id(record)?;
    let export = Export::open(&record.path, &record.format, options)?;
    // Inode numbers and all that the kernel keeps stand for the content that
    // the row was recorded of; other content needs another row.
    record.verify()?;
    let (known, actual) = (record.size, export.size());
    if known.is_some_and(|known| known != actual) {
        return Err(Error::image(
            &record.path,
            format!(
                "the disk is of {actual} bytes and the catalog says {}; run `sendense catalog \
                 scan`",
                known.unwrap_or(0)
            ),
        ));
    }
    Ok(Arc::new(Disk::new(id, export, Arc::clone(cache))))
}

/// The other disks of a backup, while one of them is being attached.
pub(super) struct Others<'a> {
    pub(super) records: Vec<DiskRecord>,
    options: &'a ExportOptions,
    cache: &'a Arc<BlockCache>,
    /// In the order of the records.
    opened: Vec<OnceCell<Arc<Disk>>>,
}

impl<'a> Others<'a> {
    /// Nothing is opened by this.
    pub(super) fn new(
        records: Vec<DiskRecord>,
        options: &'a ExportOptions,
        cache: &'a Arc<BlockCache>,
    ) -> Self {
        Self {
            opened: records.iter().map(|_| OnceCell::new()).collect(),
            records,
            options,
            cache,
        }
    }

    /// By device number, 1 and on.
    pub(super) fn disk(&self, device: usize) -> Option<&Arc<Disk>> {
        self.opened.get(device.checked_sub(1)?)?.get()
    }
}

impl Siblings for Others<'_> {
    fn indexes(&self) -> Vec<u32> {
        self.records
            .iter()
            .map(|record| record.disk_index)
            .collect()
    }

    fn open(&self, number: usize) -> Result<Sibling> {
        let (Some(record), Some(place)) = (self.records.get(number), self.opened.get(number))
        else {
            return Ok(Sibling::Lost("there is no such disk".into()));
        };
        match open_image(record, self.options, self.cache) {
            Ok(disk) => {
                let disk = place.get_or_init(|| disk);
                Ok(Sibling::Open(Arc::<Disk>::clone(disk)))
            }
            Err(error) if may_pass(&error) => Err(error),
            Err(error) => Ok(Sibling::Lost(error.to_string())),
        }
    }
}

/// Whether an image that could not be opened may be the next time, with nothing
/// done about it.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => !matches!(
            source.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
        ),
        Error::TimedOut { .. } | Error::WouldWait | Error::NoSlot { .. } | Error::Catalog(_) => {
            true
        }
        _ => false,
    }
}
