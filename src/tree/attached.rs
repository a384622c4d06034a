//! A disk that is attached: its export and the volumes found on it.
//!
//! The idea: what an [`AttachedDisk`] shows follows from the disk's content
//! alone, so it can be dropped and made again at any time and nobody outside can
//! tell. A disk with exactly one volume shows that volume's root as its own; one
//! with several shows a folder for each. Where a volume lies on several disks of
//! the backup, the first of them has it, and holds the images of the others open
//! as well; each of the others shows a link to it.

use std::any::Any;
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::inode::{self, Inode};
use super::node::disk_id;
use crate::catalog::{DiskRecord, ImageIdentity};
use crate::error::{Error, Result};
use crate::filesystem::{self, FileSystem, Source};
use crate::image::{BlockCache, BlockRead, Disk, Export, ExportOptions};
use crate::volume::{self, Content, Sibling, Siblings, Volume, VolumeReader};

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
            (Content::FileSystem(kind) | Content::NoFiles(kind), _) => kind,
            (Content::Locked(lock), _) => &lock.kind,
            (Content::Unreadable(_) | Content::Elsewhere { .. }, _) => "unknown",
        }
    }

    /// The target of the link that stands for what another disk shows.
    pub(crate) fn link(&self) -> Option<String> {
        match &self.volume.content {
            Content::Elsewhere { disk, .. } => Some(format!("../disk{disk}")),
            _ => None,
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
    /// Other disks of the backup that volumes of this one lie on: device 1 and
    /// on. `None` for those that are not needed.
    siblings: Vec<Option<Arc<Disk>>>,
    /// The rows of all siblings, if what is shown depends on them.
    depends_on: Option<Vec<i64>>,
    pub(crate) volumes: Vec<AttachedVolume>,
    usage: Usage,
    /// Whatever must live exactly as long as the disk is attached.
    _slot: Slot,
}

/// See [`AttachedDisk::open`].
pub type Slot = Box<dyn Any + Send + Sync>;

impl AttachedDisk {
    /// Opens the image and looks at what is on it. `siblings` are the other disks
    /// of the same backup, in disk order; they are opened only if something on
    /// this disk has a part on another, and those that hold such parts stay open
    /// with it. All of them together count as this one disk: `slot` is dropped
    /// with them, after their `qemu-nbd`s.
    ///
    /// # Errors
    /// What is wrong with the image. A volume that cannot be read is no error
    /// here: it is shown, and gives its error on use. Nor is a sibling that cannot
    /// be opened, unless that may pass.
    pub fn open(
        record: DiskRecord,
        siblings: Vec<DiskRecord>,
        options: &ExportOptions,
        guest: &filesystem::Options,
        cache: &Arc<BlockCache>,
        slot: Slot,
    ) -> Result<Self> {
        let disk = open_image(&record, options, cache)?;
        let others = Others {
            opened: siblings.iter().map(|_| OnceCell::new()).collect(),
            records: siblings,
            options,
            cache,
        };
        let device: Arc<dyn BlockRead> = Arc::<Disk>::clone(&disk);
        let found = volume::detect_across(&device, record.disk_index, &others)?;
        let mut needed = BTreeSet::new();
        let mut numbers = Numbers::new(&found);
        let mut volumes = Vec::new();
        for volume in found {
            if matches!(volume.content, Content::NoFiles(_)) {
                continue;
            }
            let devices = volume.mapping.devices();
            let open = (0..=others.records.len()).map(|number| {
                let wanted = devices.contains(&number);
                let disk = if number == 0 {
                    Some(&disk)
                } else {
                    others.disk(number)
                };
                disk.filter(|_| wanted)
                    .map(|disk| Arc::<Disk>::clone(disk) as Arc<dyn BlockRead>)
            });
            let reader = Arc::new(VolumeReader::over(volume.mapping.clone(), open.collect()));
            let fs = match open_file_system(&volume, &reader, guest) {
                // What lies on the disk will be the same the next time. Anything
                // else may pass: the disk is not attached, and tried again.
                Err(error) if !is_lasting(&error) => return Err(error),
                fs => fs,
            };
            if fs.is_ok() {
                needed.extend(devices);
            }
            let bound = fs.as_ref().ok().and_then(|fs| fs.inode_bound());
            let (base, span) = numbers.take(&volume, bound);
            volumes.push(AttachedVolume {
                volume,
                base,
                span,
                reader,
                fs,
            });
        }
        let depends = volumes.iter().any(|volume| volume.volume.across.is_some());
        let kept = |number: usize| {
            needed
                .contains(&number)
                .then(|| others.disk(number).cloned())
        };
        Ok(Self {
            id: disk_id(&record)?,
            record,
            disk,
            siblings: (1..=others.records.len())
                .map(|number| kept(number).flatten())
                .collect(),
            depends_on: depends.then(|| others.records.iter().map(|record| record.id).collect()),
            volumes,
            usage: Usage::default(),
            _slot: slot,
        })
    }

    /// The rows of the other disks of the backup, if what is shown here depends
    /// on them.
    pub fn depends_on(&self) -> Option<&[i64]> {
        self.depends_on.as_deref()
    }

    /// The disk that a [`crate::volume::Run`] of one of the volumes names.
    pub(crate) fn device(&self, device: usize) -> Result<&Arc<Disk>> {
        let Some(sibling) = device.checked_sub(1) else {
            return Ok(&self.disk);
        };
        let sibling = self.siblings.get(sibling).and_then(Option::as_ref);
        sibling.ok_or_else(|| Error::not_found(format!("{}: device {device}", self.path())))
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
            [only] if only.link().is_none() => Some(only),
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
            .find_map(|volume| {
                let ino = local.checked_sub(volume.base)?;
                (ino < volume.span).then_some((volume, ino))
            })
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

/// Opens the image that the row tells of, if it is still that one.
fn open_image(
    record: &DiskRecord,
    options: &ExportOptions,
    cache: &Arc<BlockCache>,
) -> Result<Arc<Disk>> {
    let id = disk_id(record)?;
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
    Ok(Arc::new(Disk::new(id, export, Arc::clone(cache))))
}

/// The other disks of a backup, while one of them is being attached.
struct Others<'a> {
    records: Vec<DiskRecord>,
    options: &'a ExportOptions,
    cache: &'a Arc<BlockCache>,
    /// In the order of the records.
    opened: Vec<OnceCell<Arc<Disk>>>,
}

impl Others<'_> {
    /// By device number, 1 and on.
    fn disk(&self, device: usize) -> Option<&Arc<Disk>> {
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

/// Gives out inode numbers to volumes.
///
/// Volumes of this disk alone have the lower half, one after the other. Those
/// that lie on several have a part of the upper half for each thing that they
/// belong to: whether a disk of theirs is there moves nobody else's numbers.
struct Numbers {
    /// The next of each range, and its end. The first is this disk's own.
    ranges: Vec<(u64, u64)>,
}

impl Numbers {
    fn new(volumes: &[Volume]) -> Self {
        let across = volumes.iter().find_map(|volume| volume.across);
        let groups = across.map_or(0, |across| u64::from(across.groups));
        let mut ranges = match groups {
            0 => vec![(inode::FIRST_BASE, inode::END)],
            _ => vec![(inode::FIRST_BASE, inode::MIDDLE)],
        };
        let width = inode::END.saturating_sub(inode::MIDDLE).checked_div(groups);
        ranges.extend((0..groups).map(|group| {
            let width = width.unwrap_or(0);
            let start = inode::MIDDLE.saturating_add(group.saturating_mul(width));
            (start, start.saturating_add(width))
        }));
        Self { ranges }
    }

    /// The first number of a volume, and how many it has.
    fn take(&mut self, volume: &Volume, bound: Option<u64>) -> (u64, u64) {
        let range = volume.across.map_or(Some(0), |across| {
            usize::try_from(across.group).ok()?.checked_add(1)
        });
        let Some((next, end)) = range.and_then(|range| self.ranges.get_mut(range)) else {
            return (inode::END, 0);
        };
        let base = *next;
        let usual = inode::span(volume.size);
        let wanted = match volume.across {
            // It must not depend on whether the volume can be read, where it can.
            Some(_) => bound.unwrap_or(0).max(usual),
            None => bound.unwrap_or(usual),
        };
        let span = wanted.min(end.saturating_sub(base));
        *next = base.saturating_add(span);
        (base, span)
    }
}

fn is_lasting(error: &Error) -> bool {
    matches!(
        error,
        Error::Corrupt { .. }
            | Error::Unsupported { .. }
            | Error::Locked { .. }
            | Error::Invalid(_)
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
        Content::Locked(lock) => Err(Error::Locked {
            what: what(),
            kind: lock.name().to_owned(),
        }),
        Content::Elsewhere { disk, what: whole } => Err(Error::Unsupported {
            what: what(),
            reason: format!("it is part of {whole}, which is shown in disk{disk}"),
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
