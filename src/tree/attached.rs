//! A disk that is attached: its export and the volumes found on it.
//!
//! The idea: what an [`AttachedDisk`] shows follows from the disk's content
//! alone, so it can be dropped and made again at any time and nobody outside can
//! tell. A disk with exactly one volume shows that volume's root as its own; one
//! with several shows a folder for each. Where a volume lies on several disks of
//! the backup, the first of them has it, and holds the images of the others open
//! as well; each of the others shows a link to it.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::inode::{Inode, Numbers};
use super::node::disk_id;
use super::siblings::{Others, open_image};
use crate::catalog::DiskRecord;
use crate::error::{Error, Result};
use crate::filesystem::{self, FileSystem, Source};
use crate::image::{BlockCache, BlockRead, Disk, Export, ExportOptions};
use crate::volume::{self, Content, Volume, VolumeReader};

/// The type of a volume whose type is not known.
pub(super) const UNKNOWN: &str = "unknown";

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
            (Content::Unreadable(_) | Content::Elsewhere { .. }, _) => UNKNOWN,
        }
    }

    /// What one should know of it, a sentence a line; empty if there is nothing.
    pub(crate) fn notes(&self) -> String {
        let own = std::iter::once(&self.volume.note).filter(|note| !note.is_empty());
        let of_fs = self.fs.iter().flat_map(|fs| &fs.description().notes);
        let notes: Vec<&str> = own.chain(of_fs).map(String::as_str).collect();
        notes.join("\n")
    }

    /// The `N` of the `disk<N>` that shows what this stands for, if it is a link.
    pub(crate) fn link(&self) -> Option<u32> {
        match self.volume.content {
            Content::Elsewhere { disk, .. } => Some(disk),
            _ => None,
        }
    }
}

/// What a link to `disk<index>` points to.
pub(crate) fn link_target(index: u32) -> String {
    format!("../disk{index}")
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
        let others = Others::new(siblings, options, cache);
        let device: Arc<dyn BlockRead> = Arc::<Disk>::clone(&disk);
        let found = volume::detect_across(&device, record.disk_index, &others)?;
        let mut needed = BTreeSet::new();
        let mut numbers = Numbers::new(&found);
        let mut volumes = Vec::new();
        for volume in found {
            if matches!(volume.content, Content::NoFiles(_)) {
                // Without another disk it would not be known that it holds none, and
                // it would have numbers.
                if volume.across.is_some() {
                    numbers.take(&volume, None);
                }
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

    /// The `N` of the `disk<N>` that the link at a place within the disk points to;
    /// `None` if there is no link.
    ///
    /// # Errors
    /// As [`Self::locate`].
    pub(crate) fn link(&self, local: u64) -> Result<Option<u32>> {
        let (volume, _) = self.locate(local)?;
        Ok(volume.link().filter(|_| local == volume.base))
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

/// Whether a file system that could not be opened can never be: what is wrong lies
/// on the disk. A record that is not there is such a thing as well, and one that is
/// too large.
fn is_lasting(error: &Error) -> bool {
    matches!(
        error,
        Error::Corrupt { .. }
            | Error::Unsupported { .. }
            | Error::Locked { .. }
            | Error::Invalid(_)
            | Error::NotFound { .. }
            | Error::NotADirectory { .. }
            | Error::IsADirectory { .. }
            | Error::TooLarge { .. }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk in memory.
    struct Memory(Vec<u8>);

    impl BlockRead for Memory {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
            let at = usize::try_from(offset).unwrap();
            buf.copy_from_slice(&self.0[at..at + buf.len()]);
            Ok(())
        }
    }

    /// An NTFS whose table of files was overwritten with zeros is a damaged volume,
    /// and no reason to show none of its neighbours.
    #[test]
    fn a_volume_that_has_lost_its_table_is_lasting() {
        let mut disk = vec![0; 1 << 20];
        let mut put = |at: usize, bytes: &[u8]| disk[at..at + bytes.len()].copy_from_slice(bytes);
        put(3, b"NTFS    ");
        put(0x0b, &512_u16.to_le_bytes());
        put(0x0d, &[8]);
        put(0x28, &2047_u64.to_le_bytes());
        put(0x30, &4_u64.to_le_bytes());
        put(0x38, &100_u64.to_le_bytes());
        put(0x40, &[0xf6, 0, 0, 0, 1]);
        put(510, &[0x55, 0xaa]);
        let disk: Arc<dyn BlockRead> = Arc::new(Memory(disk));
        let volumes = volume::detect(&disk).unwrap();
        let [volume] = volumes.as_slice() else {
            panic!("{volumes:?}");
        };
        assert_eq!(volume.content, Content::FileSystem("ntfs".into()));
        let reader = VolumeReader::new(volume.mapping.clone(), vec![disk]);
        let options = filesystem::Options::default();
        let error = open_file_system(volume, &Arc::new(reader), &options).err();
        let error = error.expect("there is nothing to open");
        assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
        assert!(is_lasting(&error));
    }
}
