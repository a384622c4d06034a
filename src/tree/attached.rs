//! A disk that is attached: its export and the volumes found on it.
//!
//! The idea: what an [`AttachedDisk`] shows follows from the disk's content
//! alone, so it can be dropped and made again at any time and nobody outside can
//! tell. A disk with exactly one volume shows that volume's root as its own; one
//! with several shows a folder for each.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::inode::{self, Inode};
use crate::catalog::{DiskRecord, ImageIdentity};
use crate::error::{Error, Result};
use crate::filesystem::{self, FileSystem, Source};
use crate::image::{BlockCache, BlockRead, Disk, Export, ExportOptions};
use crate::volume::{self, Content, Volume, VolumeReader};

/// A volume as the tree shows it.
pub(crate) struct AttachedVolume {
    /// Name, label, mapping.
    pub(crate) volume: Volume,
    /// Its first inode number within the disk. The number itself is the folder
    /// of a volume that cannot be read; its files come after it.
    pub(crate) base: u64,
    /// How many numbers it takes.
    pub(crate) span: u64,
    /// Reads through the block cache.
    pub(crate) reader: Arc<VolumeReader>,
    /// The reader of its file system, or why there is none.
    pub(crate) fs: Result<Box<dyn FileSystem>>,
}

impl AttachedVolume {
    /// The volume's root folder, as a place within the disk.
    pub(crate) fn root(&self) -> u64 {
        match &self.fs {
            Ok(fs) => self.base.saturating_add(fs.root()),
            Err(_) => self.base,
        }
    }

    /// The type as a user may read it.
    pub(crate) fn kind(&self) -> &str {
        match (&self.volume.content, &self.fs) {
            (_, Ok(fs)) => fs.description().kind,
            (Content::FileSystem(kind) | Content::Locked(kind) | Content::NoFiles(kind), _) => kind,
            (Content::Unreadable(_), _) => "unknown",
        }
    }
}

/// How a disk was used since it was attached.
#[derive(Debug, Default)]
pub struct Usage {
    /// Reads of file data answered.
    pub reads: AtomicU64,
    /// Bytes of file data handed out.
    pub bytes: AtomicU64,
    /// Look-ups, attributes, listings.
    pub lookups: AtomicU64,
}

/// A disk whose image is open and whose volumes are known.
pub struct AttachedDisk {
    record: DiskRecord,
    pub(crate) id: u64,
    pub(crate) disk: Arc<Disk>,
    pub(crate) volumes: Vec<AttachedVolume>,
    usage: Usage,
    /// Whatever must live exactly as long as the disk is attached.
    _slot: Slot,
}

/// See [`AttachedDisk::open`].
pub type Slot = Box<dyn Any + Send + Sync>;

impl AttachedDisk {
    /// Opens the image and looks at what is on it. `slot` is dropped with the
    /// disk, after its `qemu-nbd`.
    ///
    /// # Errors
    /// What is wrong with the image. A volume that cannot be read is no error
    /// here: it is shown, and gives its error on use.
    pub fn open(
        record: DiskRecord,
        options: &ExportOptions,
        guest: &filesystem::Options,
        cache: &Arc<BlockCache>,
        slot: Slot,
    ) -> Result<Self> {
        let id = u64::try_from(record.id)
            .map_err(|_| Error::Catalog(format!("disk id {} is negative", record.id)))?;
        let export = Export::open(&record.path, &record.format, options)?;
        // Inode numbers and all that the kernel keeps stand for the content that
        // the row was recorded of; other content needs another row.
        if let Some(recorded) = record.identity {
            let now = std::fs::metadata(&record.path)
                .map_err(|e| Error::io(record.path.display().to_string(), e))?;
            if ImageIdentity::of(&now) != recorded {
                return Err(Error::image(
                    &record.path,
                    "the image was changed after it was recorded; run `sendense catalog scan`",
                ));
            }
        }
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
        let disk = Arc::new(Disk::new(id, export, Arc::clone(cache)));
        let device: Arc<dyn BlockRead> = Arc::<Disk>::clone(&disk);
        let mut volumes = Vec::new();
        let mut base = inode::FIRST_BASE;
        for volume in volume::detect(&device)? {
            if matches!(volume.content, Content::NoFiles(_)) {
                continue;
            }
            let reader = Arc::new(VolumeReader::new(
                volume.mapping.clone(),
                vec![Arc::clone(&device)],
            ));
            let fs = match open_file_system(&volume, &reader, guest) {
                // What lies on the disk will be the same the next time. Anything
                // else may pass: the disk is not attached, and tried again.
                Err(error) if !is_lasting(&error) => return Err(error),
                fs => fs,
            };
            let bound = fs.as_ref().ok().and_then(|fs| fs.inode_bound());
            let span = bound.unwrap_or_else(|| inode::span(volume.mapping.size()));
            volumes.push(AttachedVolume {
                volume,
                base,
                span,
                reader,
                fs,
            });
            base = base.saturating_add(span);
        }
        Ok(Self {
            record,
            id,
            disk,
            volumes,
            usage: Usage::default(),
            _slot: slot,
        })
    }

    /// The catalog's row.
    pub fn record(&self) -> &DiskRecord {
        &self.record
    }

    /// What serves the blocks.
    pub fn export(&self) -> &Export {
        self.disk.export()
    }

    /// How it was used.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// The only volume, where there is only one.
    pub(crate) fn single(&self) -> Option<&AttachedVolume> {
        match self.volumes.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    /// The volume that a place within the disk belongs to, and the inode number
    /// in it (0 for the folder of a volume that cannot be read).
    ///
    /// # Errors
    /// `NotFound` for a place that no volume has.
    pub(crate) fn locate(&self, local: u64) -> Result<(&AttachedVolume, u64)> {
        self.volumes
            .iter()
            .rev()
            .find(|volume| volume.base <= local)
            .map(|volume| (volume, local.saturating_sub(volume.base)))
            .ok_or_else(|| Error::not_found(format!("{}: inode {local}", self.path())))
    }

    /// The file system and inode number of a place within the disk.
    ///
    /// # Errors
    /// Why the volume cannot be read.
    pub(crate) fn file(&self, local: u64) -> Result<(&dyn FileSystem, &AttachedVolume, u64)> {
        let (volume, ino) = self.locate(local)?;
        self.usage.lookups.fetch_add(1, Ordering::Relaxed);
        match &volume.fs {
            Ok(fs) => Ok((fs.as_ref(), volume, ino)),
            Err(error) => Err(error.clone()),
        }
    }

    /// The tree's inode number of inode `ino` of `volume`.
    ///
    /// # Errors
    /// `Unsupported` if it does not fit.
    pub(crate) fn number(&self, volume: &AttachedVolume, ino: u64) -> Result<u64> {
        let local = volume.base.saturating_add(ino);
        if self.single().is_some() && local == volume.root() {
            return Inode::Disk(self.id).number();
        }
        if ino >= volume.span {
            return Err(Error::Unsupported {
                what: format!("{}: inode {ino} of {}", self.path(), volume.volume.name),
                reason: "the number is larger than its volume can hold".into(),
            });
        }
        Inode::File {
            disk: self.id,
            local,
        }
        .number()
    }

    /// `<vm>/<backup>/disk<N>`.
    pub fn path(&self) -> String {
        let DiskRecord {
            vm_name,
            backup_id,
            disk_index,
            ..
        } = &self.record;
        format!("{vm_name}/{backup_id}/disk{disk_index}")
    }
}

fn is_lasting(error: &Error) -> bool {
    matches!(
        error,
        Error::Corrupt { .. } | Error::Unsupported { .. } | Error::Invalid(_)
    )
}

fn open_file_system(
    volume: &Volume,
    reader: &Arc<VolumeReader>,
    options: &filesystem::Options,
) -> Result<Box<dyn FileSystem>> {
    let what = || format!("volume {}", volume.name);
    match &volume.content {
        Content::FileSystem(kind) => {
            let source = Source {
                volume: Arc::<VolumeReader>::clone(reader),
                members: volume.members.clone(),
            };
            filesystem::open(kind, source, options)
        }
        Content::Locked(kind) => Err(Error::Unsupported {
            what: what(),
            reason: format!("it is locked ({kind}) and needs a key, which cannot be given yet"),
        }),
        Content::NoFiles(kind) => Err(Error::Unsupported {
            what: what(),
            reason: format!("it holds no files ({kind})"),
        }),
        Content::Unreadable(reason) => Err(Error::Unsupported {
            what: what(),
            reason: reason.clone(),
        }),
    }
}
