//! VM, backup, disk, volume, file: one read-only tree, addressed by inode
//! number. FUSE, the command line and later REST are adapters over it.
//!
//! ```text
//! <vm>/                    a folder of the catalog
//!   latest -> <backup>     the newest completed one
//!   <backup>/
//!     disk<N>/             attached on the first look inside
//!       …                  the only volume's files, or a folder for each volume
//!     disk<N>.raw          the whole disk
//! ```
//!
//! The idea: above the disks the tree is what the catalog says now; inside a
//! disk it is what the disk's content says for ever. So an inode number tells
//! where to look ([`inode`]), nothing is kept between calls, and a disk may be
//! released between any two of them. [`Node::stable`] tells an adapter which
//! side a node is on.

pub mod attached;
mod inode;
pub mod read;
mod xattr;

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use lru::LruCache;
use parking_lot::Mutex;

pub use attached::AttachedDisk;
use attached::AttachedVolume;
use inode::Inode;
pub use read::ReadPlan;

use crate::catalog::{Catalog, DiskRecord, Folder};
use crate::error::{Error, Result};
use crate::filesystem::{Attr, Extent, FileSystem, FileType, Time};
use crate::image::{BlockRead, Completion};

/// Attributes of a node of the tree; `attr.ino` is the tree's inode number.
#[derive(Debug, Clone)]
pub struct Node {
    /// What `stat` shows.
    pub attr: Attr,
    /// Whether its attributes can never change: they may be cached for ever.
    /// Folders above the disks follow the catalog and are not stable.
    pub stable: bool,
    /// Whether its name comes from the catalog, and may be gone the next time;
    /// names inside a disk are there for ever.
    pub named_by_catalog: bool,
}

/// What a listing tells of each entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Name, number and type.
    Names,
    /// The node as well.
    Nodes,
}

/// One entry of a folder of the tree.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// The tree's inode number.
    pub ino: u64,
    /// Raw bytes; never `.` or `..`.
    pub name: &'a [u8],
    /// Type of the node.
    pub kind: FileType,
    /// Position to go on from.
    pub next: u64,
    /// The node, where it was asked for and can be read.
    pub node: Option<Node>,
}

/// What to look for in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is data.
    Data,
    /// The next byte that lies in a hole (the end of the file is one).
    Hole,
}

/// Size of what a node lies on, as `statfs` shows it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Space {
    /// Bytes per unit.
    pub block_size: u32,
    /// Units in all.
    pub blocks: u64,
    /// Units free.
    pub blocks_free: u64,
    /// Inodes in all.
    pub files: u64,
    /// Inodes free.
    pub files_free: u64,
}

/// Gives out attached disks. The tree asks for a disk at every operation and
/// holds it for no longer than that.
pub trait Attachments: Send + Sync {
    /// The disk, attached now if it was not.
    ///
    /// # Errors
    /// `NotFound` if the catalog has no such disk, or why it cannot be attached.
    /// Before it waits it asks [`crate::image::patience::may_wait`].
    fn get(&self, disk: u64) -> Result<Arc<AttachedDisk>>;

    /// The disk if it is attached; does not wait and does not count as use.
    fn peek(&self, disk: u64) -> Option<Arc<AttachedDisk>>;

    /// Why the last attempt to attach the disk failed, if it did.
    fn last_error(&self, disk: u64) -> Option<Error>;
}

/// Name of the symbolic link to a VM's newest backup.
const LATEST: &[u8] = b"latest";
/// Position of `latest` in a listing: after all folders, whose positions are
/// their ids.
const LATEST_POSITION: u64 = 1 << 62;
/// Root folders of single-volume disks whose attributes are remembered.
const KNOWN_ROOTS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(65_535);

/// The tree.
pub struct Tree {
    catalog: Arc<Catalog>,
    attachments: Arc<dyn Attachments>,
    /// What the folders `disk<N>` of disks that were attached once look like, so
    /// that they look the same after the disk was released.
    roots: Mutex<LruCache<u64, Attr>>,
}

impl Tree {
    /// Inode number of the root.
    pub const ROOT: u64 = 1;

    /// The tree of the backups in `catalog`, whose disks `attachments` gives out.
    pub fn new(catalog: Arc<Catalog>, attachments: Arc<dyn Attachments>) -> Self {
        Self {
            catalog,
            attachments,
            roots: Mutex::new(LruCache::new(KNOWN_ROOTS)),
        }
    }

    /// Whether what this node shows comes from a disk: it and its entries can
    /// never change.
    pub fn on_disk(ino: u64) -> bool {
        Self::disk_of(ino).is_some()
    }

    /// The id of the disk that a node lies on, if it lies on one.
    pub fn disk_of(ino: u64) -> Option<u64> {
        match Inode::parse(ino) {
            Ok(Inode::Disk(disk) | Inode::Raw(disk) | Inode::File { disk, .. }) => Some(disk),
            _ => None,
        }
    }

    /// The node that `name` is in folder `parent`. `.` and `..` are understood.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, or what keeps the disk from being read.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Node> {
        match name {
            b"." => return self.node(parent),
            b".." => return self.node(self.parent(parent)?),
            _ => {}
        }
        let missing = || Error::not_found(String::from_utf8_lossy(name));
        match Inode::parse(parent)? {
            Inode::Root => {
                let name = std::str::from_utf8(name).map_err(|_| missing())?;
                wait()?;
                let folder = self.catalog.vm_folder(name)?.ok_or_else(missing)?;
                folder_node(&folder)
            }
            Inode::Folder(id) => {
                wait()?;
                let (_, parent) = self.folder(id)?;
                let text = std::str::from_utf8(name).map_err(|_| missing())?;
                if parent.is_some() {
                    let (index, raw) = disk_name(text).ok_or_else(missing)?;
                    let record = self
                        .catalog
                        .disks(id)?
                        .into_iter()
                        .find(|disk| disk.disk_index == index)
                        .ok_or_else(missing)?;
                    if raw {
                        self.raw_node(&record)
                    } else {
                        self.disk_node(&record)
                    }
                } else if name == LATEST {
                    latest_node(&self.latest(id)?.ok_or_else(missing)?)
                } else {
                    let folder = self.catalog.backup_folder(id, text)?.ok_or_else(missing)?;
                    folder_node(&folder)
                }
            }
            Inode::Disk(id) => {
                let disk = self.attached(id)?;
                match disk.single() {
                    Some(volume) => self.lookup_in(&disk, volume, root_of(volume)?, name),
                    None => {
                        let volume = disk
                            .volumes
                            .iter()
                            .find(|volume| volume.volume.name.as_bytes() == name)
                            .ok_or_else(missing)?;
                        file_node(&disk, volume.root())
                    }
                }
            }
            Inode::File { disk, local } => {
                let disk = self.attached(disk)?;
                let (_, volume, ino) = disk.file(local)?;
                self.lookup_in(&disk, volume, ino, name)
            }
            Inode::Latest(_) | Inode::Raw(_) => Err(Error::NotADirectory {
                what: format!("inode {parent}"),
            }),
        }
    }

    fn lookup_in(
        &self,
        disk: &AttachedDisk,
        volume: &AttachedVolume,
        dir: u64,
        name: &[u8],
    ) -> Result<Node> {
        let fs = file_system(volume)?;
        let ino = fs.lookup(dir, name)?;
        node_in(disk, volume, fs, ino)
    }

    /// The node with this inode number.
    ///
    /// # Errors
    /// `NotFound` if there is none, or what keeps the disk from being read.
    pub fn node(&self, ino: u64) -> Result<Node> {
        match Inode::parse(ino)? {
            Inode::Root => {
                wait()?;
                let vms = self.catalog.vm_folders()?;
                let newest = vms.iter().map(|vm| vm.time).max().unwrap_or(0);
                let nlink = u32::try_from(vms.len())
                    .unwrap_or(u32::MAX)
                    .saturating_add(2);
                Ok(Node {
                    attr: directory(Self::ROOT, newest, nlink),
                    stable: false,
                    named_by_catalog: true,
                })
            }
            Inode::Folder(id) => {
                wait()?;
                folder_node(&self.folder(id)?.0)
            }
            Inode::Latest(id) => {
                wait()?;
                latest_node(&self.folder(id)?.0)
            }
            Inode::Disk(id) => {
                if let Some(attr) = self.known_root(id) {
                    return Ok(Node {
                        attr,
                        stable: true,
                        named_by_catalog: true,
                    });
                }
                wait()?;
                self.disk_node(&self.record(id)?.0)
            }
            Inode::Raw(id) => {
                wait()?;
                self.raw_node(&self.record(id)?.0)
            }
            Inode::File { disk, local } => file_node(&*self.attached(disk)?, local),
        }
    }

    /// The inode number of the folder that holds folder `ino`.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, or what keeps the disk from being read.
    pub fn parent(&self, ino: u64) -> Result<u64> {
        match Inode::parse(ino)? {
            Inode::Root => Ok(Self::ROOT),
            Inode::Folder(id) => {
                wait()?;
                match self.folder(id)?.1 {
                    Some(parent) => Inode::Folder(parent).number(),
                    None => Ok(Self::ROOT),
                }
            }
            Inode::Disk(id) => {
                wait()?;
                Inode::Folder(self.record(id)?.1).number()
            }
            Inode::File { disk, local } => {
                let disk = self.attached(disk)?;
                let (volume, ino) = disk.locate(local)?;
                if local == volume.root() {
                    return Inode::Disk(disk.id).number();
                }
                disk.number(volume, file_system(volume)?.parent(ino)?)
            }
            Inode::Latest(_) | Inode::Raw(_) => Err(Error::NotADirectory {
                what: format!("inode {ino}"),
            }),
        }
    }

    /// Calls `each` with the entries of a folder from `position` (0 or an
    /// earlier entry's `next`) until it breaks. `each` must not ask the tree for
    /// anything: this call holds the disk, and another that waited for the same
    /// disk to be attached again would wait for this one.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, or what keeps the disk from being read;
    /// entries given before an error are good.
    pub fn read_dir(
        &self,
        ino: u64,
        position: u64,
        detail: Detail,
        each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        match Inode::parse(ino)? {
            Inode::Root => {
                wait()?;
                list_folders(self.catalog.vm_folders()?, position, each).map(drop)
            }
            Inode::Folder(id) => {
                wait()?;
                if self.folder(id)?.1.is_some() {
                    return self.list_disks(&self.catalog.disks(id)?, position, each);
                }
                if list_folders(self.catalog.backup_folders(id)?, position, each)?.is_break()
                    || position >= LATEST_POSITION
                {
                    return Ok(());
                }
                if let Some(latest) = self.latest(id)? {
                    let node = latest_node(&latest)?;
                    let _ = each(Entry::of(node, LATEST, LATEST_POSITION));
                }
                Ok(())
            }
            Inode::Disk(id) => {
                let disk = self.attached(id)?;
                match disk.single() {
                    Some(volume) => {
                        list_files(&disk, volume, root_of(volume)?, position, detail, each)
                    }
                    None => list_volumes(&disk, position, each),
                }
            }
            Inode::File { disk, local } => {
                let disk = self.attached(disk)?;
                let (_, volume, ino) = disk.file(local)?;
                list_files(&disk, volume, ino, position, detail, each)
            }
            Inode::Latest(_) | Inode::Raw(_) => Err(Error::NotADirectory {
                what: format!("inode {ino}"),
            }),
        }
    }

    /// For each disk its folder and its raw file.
    fn list_disks(
        &self,
        disks: &[DiskRecord],
        position: u64,
        each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        for record in disks {
            let entries = [
                (
                    self.disk_node(record)?,
                    format!("disk{}", record.disk_index),
                ),
                (
                    self.raw_node(record)?,
                    format!("disk{}.raw", record.disk_index),
                ),
            ];
            for (next, (node, name)) in (disk_id(record)?.saturating_mul(2)..).zip(entries) {
                if next > position && each(Entry::of(node, name.as_bytes(), next)).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `Invalid` if the node is not one.
    pub fn read_link(&self, ino: u64) -> Result<Vec<u8>> {
        match Inode::parse(ino)? {
            Inode::Latest(id) => {
                wait()?;
                Ok(self.folder(id)?.0.name.into_bytes())
            }
            Inode::File { disk, local } => {
                let disk = self.attached(disk)?;
                let (fs, _, ino) = disk.file(local)?;
                fs.read_link(ino)
            }
            _ => Err(Error::Invalid(format!(
                "inode {ino} is not a symbolic link"
            ))),
        }
    }

    /// Names of a node's extended attributes.
    ///
    /// # Errors
    /// What keeps the disk from being read.
    pub fn xattr_names(&self, ino: u64) -> Result<Vec<Vec<u8>>> {
        match Inode::parse(ino)? {
            Inode::Disk(id) => self.disk_xattr_names(id),
            Inode::File { disk, local } => {
                let disk = self.attached(disk)?;
                let (volume, ino) = disk.locate(local)?;
                let mut names = Vec::new();
                if local == volume.root() {
                    names.extend(xattr::of_volume(volume).into_iter().map(|(name, _)| name));
                }
                if let Ok(fs) = &volume.fs {
                    names.extend(fs.xattr_names(ino)?);
                }
                Ok(names)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Value of one extended attribute; `None` if the node has none of that name.
    ///
    /// # Errors
    /// What keeps the disk from being read.
    pub fn xattr(&self, ino: u64, name: &[u8]) -> Result<Option<Vec<u8>>> {
        match Inode::parse(ino)? {
            Inode::Disk(id) => self.disk_xattr(id, name),
            Inode::File { disk, local } => {
                let disk = self.attached(disk)?;
                let (volume, ino) = disk.locate(local)?;
                if local == volume.root() && xattr::is_ours(name) {
                    return Ok(xattr::find(xattr::of_volume(volume), name));
                }
                match &volume.fs {
                    Ok(fs) => fs.xattr(ino, name),
                    Err(_) => Ok(None),
                }
            }
            _ => Ok(None),
        }
    }

    /// Whether the volume that a node lies on uses extended attributes called
    /// `name` at all. `false` lets a program like `ls` stop asking, where it
    /// would otherwise ask for each file.
    ///
    /// Only SELinux labels are looked into: a guest that labels its files labels
    /// its root folder.
    ///
    /// # Errors
    /// What keeps the disk from being read.
    pub fn uses_xattr(&self, ino: u64, name: &[u8]) -> Result<bool> {
        if name != b"security.selinux" {
            return Ok(true);
        }
        match Inode::parse(ino)? {
            Inode::File { disk, local } => {
                let disk = self.attached(disk)?;
                let (volume, _) = disk.locate(local)?;
                match &volume.fs {
                    Ok(fs) => Ok(fs.xattr(fs.root(), name)?.is_some()),
                    Err(_) => Ok(false),
                }
            }
            _ => Ok(true),
        }
    }

    // `ls -l` asks for the attributes of every folder `disk<N>` that it lists;
    // that must not attach it. So they show what is known without.
    fn disk_xattr_names(&self, id: u64) -> Result<Vec<Vec<u8>>> {
        let Some(disk) = self.attachments.peek(id) else {
            let error = self.attachments.last_error(id);
            return Ok(error.iter().map(|_| xattr::ERROR.to_vec()).collect());
        };
        let Some(volume) = disk.single() else {
            return Ok(Vec::new());
        };
        let ours = xattr::of_volume(volume).into_iter().map(|(name, _)| name);
        match &volume.fs {
            Ok(fs) => Ok(ours.chain(fs.xattr_names(fs.root())?).collect()),
            Err(_) => Ok(ours.collect()),
        }
    }

    fn disk_xattr(&self, id: u64, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(disk) = self.attachments.peek(id) else {
            let error = self
                .attachments
                .last_error(id)
                .filter(|_| name == xattr::ERROR);
            return Ok(error.map(|error| error.to_string().into_bytes()));
        };
        match disk.single() {
            Some(volume) if xattr::is_ours(name) => Ok(xattr::find(xattr::of_volume(volume), name)),
            Some(AttachedVolume { fs: Ok(fs), .. }) => fs.xattr(fs.root(), name),
            _ => Ok(None),
        }
    }

    /// Prepares the reading of up to `len` bytes of a file from `offset`.
    ///
    /// # Errors
    /// `IsADirectory`, or what keeps the file from being read.
    pub fn plan_read(&self, ino: u64, offset: u64, len: u64) -> Result<ReadPlan> {
        match Inode::parse(ino)? {
            Inode::Raw(id) => {
                let disk = self.attached(id)?;
                let len = disk.disk.size().saturating_sub(offset).min(len);
                count_read(&disk, len);
                if len == 0 {
                    return Ok(ReadPlan::ready(BytesMut::new()));
                }
                Ok(ReadPlan::raw(disk, offset, len))
            }
            Inode::File { disk, local } => {
                let disk = self.attached(disk)?;
                let plan = ReadPlan::file(&disk, local, offset, len)?;
                count_read(&disk, len);
                Ok(plan)
            }
            _ => Err(Error::IsADirectory {
                what: format!("inode {ino}"),
            }),
        }
    }

    /// Reads up to `len` bytes of a file from `offset` and calls `done` once with
    /// what there is (short only at the end of the file), or with the error.
    pub fn read(&self, ino: u64, offset: u64, len: usize, done: Completion) {
        match self.plan_read(ino, offset, len as u64) {
            Ok(plan) => plan.carry_out(done),
            Err(error) => done(Err(error)),
        }
    }

    /// Reads and waits; returns the number of bytes, short only at the end of
    /// the file.
    ///
    /// # Errors
    /// As [`Tree::plan_read`].
    pub fn read_at(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let done = Box::new(move |outcome| drop(sender.send(outcome)));
        self.read(ino, offset, buf.len(), done);
        let bytes = receiver
            .recv()
            .map_err(|_| Error::Invalid(format!("the read of inode {ino} was given up")))??;
        let n = bytes.len().min(buf.len());
        if let (Some(target), Some(source)) = (buf.get_mut(..n), bytes.get(..n)) {
            target.copy_from_slice(source);
        }
        read::recycle(bytes);
        Ok(n)
    }

    /// The next data or hole of a file at or after `offset`; `None` if there is
    /// none before the end of the file.
    ///
    /// # Errors
    /// As [`Tree::plan_read`].
    pub fn seek(&self, ino: u64, offset: u64, what: Seek) -> Result<Option<u64>> {
        const WINDOW: u64 = 1 << 30;
        let node = self.node(ino)?;
        let size = node.attr.size;
        let mut at = offset;
        while at < size {
            let window = size.saturating_sub(at).min(WINDOW);
            let stretches: Vec<(u64, bool)> = match Inode::parse(ino)? {
                Inode::Raw(id) => {
                    wait()?;
                    let disk = self.attached(id)?;
                    let status = disk.disk.block_status(at, window)?;
                    status
                        .into_iter()
                        .map(|stretch| (stretch.len, stretch.hole))
                        .collect()
                }
                Inode::File { disk, local } => {
                    let disk = self.attached(disk)?;
                    let (fs, _, ino) = disk.file(local)?;
                    let mut extents = Vec::new();
                    fs.extents(ino, at, window, &mut extents)?;
                    extents.iter().map(stretch).collect()
                }
                _ => {
                    return Err(Error::IsADirectory {
                        what: format!("inode {ino}"),
                    });
                }
            };
            let before = at;
            for (len, hole) in stretches {
                if hole == (what == Seek::Hole) {
                    return Ok(Some(at));
                }
                at = at.saturating_add(len);
            }
            if at <= before {
                break;
            }
        }
        Ok((what == Seek::Hole && offset < size).then_some(size))
    }

    /// Size of what a node lies on. Attaches nothing.
    pub fn space(&self, ino: u64) -> Space {
        let disk = Self::disk_of(ino).and_then(|id| self.attachments.peek(id));
        let volume = disk.as_ref().and_then(|disk| match Inode::parse(ino) {
            Ok(Inode::File { local, .. }) => disk.locate(local).ok().map(|(volume, _)| volume),
            _ => disk.single(),
        });
        match (volume.map(|volume| &volume.fs), &disk) {
            (Some(Ok(fs)), _) => {
                let description = fs.description();
                Space {
                    block_size: description.block_size,
                    blocks: description.blocks,
                    blocks_free: description.blocks_free,
                    files: description.files,
                    files_free: description.files_free,
                }
            }
            (_, Some(disk)) => Space {
                block_size: 4096,
                blocks: disk.disk.size() / 4096,
                ..Space::default()
            },
            (_, None) => Space {
                block_size: 4096,
                ..Space::default()
            },
        }
    }

    /// The node at a path below the root, its components separated by `/`; no
    /// symlink is followed but the tree's own `latest`.
    ///
    /// # Errors
    /// `NotFound` naming the path, or as [`Tree::lookup`].
    pub fn resolve(&self, path: &[u8]) -> Result<Node> {
        let mut node = self.node(Self::ROOT)?;
        for name in path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".")
        {
            let parent = node.attr.ino;
            node = self.lookup(parent, name).map_err(|error| match error {
                Error::NotFound { .. } => Error::not_found(String::from_utf8_lossy(path)),
                other => other,
            })?;
            if let Inode::Latest(id) = Inode::parse(node.attr.ino)? {
                node = folder_node(&self.folder(id)?.0)?;
            }
        }
        Ok(node)
    }

    fn attached(&self, id: u64) -> Result<Arc<AttachedDisk>> {
        self.attachments.get(id)
    }

    fn folder(&self, id: i64) -> Result<(Folder, Option<i64>)> {
        self.catalog
            .folder(id)?
            .ok_or_else(|| Error::not_found(format!("folder {id}")))
    }

    fn latest(&self, vm: i64) -> Result<Option<Folder>> {
        self.catalog.latest(vm)
    }

    fn record(&self, id: u64) -> Result<(DiskRecord, i64)> {
        let missing = || Error::not_found(format!("disk {id}"));
        let row = i64::try_from(id).map_err(|_| missing())?;
        self.catalog.disk(row)?.ok_or_else(missing)
    }

    /// The folder `disk<N>`: the guest's root folder where that is known, else
    /// what the catalog tells.
    fn disk_node(&self, record: &DiskRecord) -> Result<Node> {
        let id = disk_id(record)?;
        if let Some(attr) = self.known_root(id) {
            return Ok(Node {
                attr,
                stable: true,
                named_by_catalog: true,
            });
        }
        let ino = Inode::Disk(id).number()?;
        Ok(Node {
            attr: directory(ino, record.time, 2),
            stable: false,
            named_by_catalog: true,
        })
    }

    fn known_root(&self, id: u64) -> Option<Attr> {
        let Some(disk) = self.attachments.peek(id) else {
            return self.roots.lock().get(&id).cloned();
        };
        let ino = Inode::Disk(id).number().ok()?;
        let attr = match disk.single() {
            Some(AttachedVolume { fs: Ok(fs), .. }) => Attr {
                ino,
                ..fs.attr(fs.root()).ok()?
            },
            _ => {
                let nlink = u32::try_from(disk.volumes.len()).unwrap_or(u32::MAX);
                directory(ino, disk.record().time, nlink.saturating_add(2))
            }
        };
        self.roots.lock().put(id, attr.clone());
        Some(attr)
    }

    fn raw_node(&self, record: &DiskRecord) -> Result<Node> {
        let id = disk_id(record)?;
        let ino = Inode::Raw(id).number()?;
        let size = record
            .size
            .or_else(|| self.attachments.peek(id).map(|disk| disk.disk.size()));
        let allocated = std::fs::metadata(&record.path)
            .map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta));
        let time = Time {
            seconds: record.time,
            nanoseconds: 0,
        };
        let attr = Attr {
            kind: FileType::Regular,
            mode: 0o444,
            size: size.unwrap_or(0),
            blocks: allocated,
            nlink: 1,
            ..directory(ino, time.seconds, 1)
        };
        Ok(Node {
            attr,
            stable: size.is_some(),
            named_by_catalog: true,
        })
    }
}

/// The catalog is asked, which may take a disk access.
fn wait() -> Result<()> {
    crate::image::patience::may_wait()
}

fn disk_id(record: &DiskRecord) -> Result<u64> {
    u64::try_from(record.id)
        .map_err(|_| Error::Catalog(format!("disk id {} is negative", record.id)))
}

/// `disk<N>` or `disk<N>.raw`, written as the tree writes it.
fn disk_name(name: &str) -> Option<(u32, bool)> {
    let (digits, raw) = match name.strip_prefix("disk")? {
        rest if rest.ends_with(".raw") => (rest.strip_suffix(".raw")?, true),
        rest => (rest, false),
    };
    let index: u32 = digits.parse().ok()?;
    (index.to_string() == digits).then_some((index, raw))
}

fn directory(ino: u64, time: i64, nlink: u32) -> Attr {
    let time = Time {
        seconds: time,
        nanoseconds: 0,
    };
    Attr {
        ino,
        kind: FileType::Directory,
        mode: 0o555,
        size: 4096,
        blocks: 0,
        nlink,
        uid: 0,
        gid: 0,
        rdev: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: None,
        may_have_xattrs: false,
    }
}

fn folder_node(folder: &Folder) -> Result<Node> {
    let ino = Inode::Folder(folder.id).number()?;
    Ok(Node {
        attr: directory(ino, folder.time, 2),
        stable: false,
        named_by_catalog: true,
    })
}

fn latest_node(backup: &Folder) -> Result<Node> {
    let ino = Inode::Latest(backup.id).number()?;
    let attr = Attr {
        kind: FileType::Symlink,
        mode: 0o777,
        size: backup.name.len() as u64,
        ..directory(ino, backup.time, 1)
    };
    Ok(Node {
        attr,
        stable: false,
        named_by_catalog: true,
    })
}

/// A node inside a disk, by its place within it.
fn file_node(disk: &AttachedDisk, local: u64) -> Result<Node> {
    let (volume, ino) = disk.locate(local)?;
    if let (Err(_), true) = (&volume.fs, local == volume.base) {
        let ino = Inode::File {
            disk: disk.id,
            local,
        }
        .number()?;
        let attr = Attr {
            may_have_xattrs: true,
            ..directory(ino, disk.record().time, 2)
        };
        return Ok(Node {
            attr,
            stable: true,
            named_by_catalog: false,
        });
    }
    let (fs, volume, _) = disk.file(local)?;
    node_in(disk, volume, fs, ino)
}

fn node_in(
    disk: &AttachedDisk,
    volume: &AttachedVolume,
    fs: &dyn FileSystem,
    ino: u64,
) -> Result<Node> {
    let attr = fs.attr(ino)?;
    let number = disk.number(volume, ino)?;
    let root = ino == fs.root();
    Ok(Node {
        attr: Attr {
            ino: number,
            may_have_xattrs: attr.may_have_xattrs || root,
            ..attr
        },
        stable: true,
        named_by_catalog: false,
    })
}

fn file_system(volume: &AttachedVolume) -> Result<&dyn FileSystem> {
    match &volume.fs {
        Ok(fs) => Ok(fs.as_ref()),
        Err(error) => Err(error.clone()),
    }
}

fn root_of(volume: &AttachedVolume) -> Result<u64> {
    Ok(file_system(volume)?.root())
}

fn count_read(disk: &AttachedDisk, len: u64) {
    disk.usage().reads.fetch_add(1, Ordering::Relaxed);
    disk.usage().bytes.fetch_add(len, Ordering::Relaxed);
}

fn stretch(extent: &Extent) -> (u64, bool) {
    match extent {
        Extent::Hole { len } => (*len, true),
        Extent::Volume { len, .. } | Extent::Decode { len } => (*len, false),
        Extent::Bytes(bytes) => (bytes.len() as u64, false),
    }
}

impl<'a> Entry<'a> {
    fn of(node: Node, name: &'a [u8], next: u64) -> Self {
        Self {
            ino: node.attr.ino,
            name,
            kind: node.attr.kind,
            next,
            node: Some(node),
        }
    }
}

/// Folders in the order of their ids, which are their positions: a listing that
/// goes on after the catalog has changed neither repeats nor skips any.
fn list_folders(
    mut folders: Vec<Folder>,
    position: u64,
    each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    folders.sort_by_key(|folder| folder.id);
    for folder in folders {
        let next = u64::try_from(folder.id).unwrap_or(0);
        if next <= position {
            continue;
        }
        let node = folder_node(&folder)?;
        if each(Entry::of(node, folder.name.as_bytes(), next)).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn list_volumes(
    disk: &AttachedDisk,
    position: u64,
    each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
) -> Result<()> {
    for (volume, next) in disk.volumes.iter().zip(1..) {
        if next <= position {
            continue;
        }
        let node = file_node(disk, volume.root())?;
        let name = volume.volume.name.as_bytes();
        if each(Entry::of(node, name, next)).is_break() {
            break;
        }
    }
    Ok(())
}

fn list_files(
    disk: &AttachedDisk,
    volume: &AttachedVolume,
    dir: u64,
    position: u64,
    detail: Detail,
    each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let fs = file_system(volume)?;
    let mut waits = false;
    fs.read_dir(dir, position, &mut |entry| {
        let node = match (detail, entry.kind) {
            (Detail::Names, Some(_)) => None,
            _ => match node_in(disk, volume, fs, entry.ino) {
                Ok(node) => Some(node),
                Err(Error::WouldWait) => {
                    waits = true;
                    return ControlFlow::Break(());
                }
                // One damaged inode does not hide its neighbours: it is listed,
                // and gives its error on use.
                Err(_) => None,
            },
        };
        let kind = node.as_ref().map(|node| node.attr.kind).or(entry.kind);
        each(Entry {
            ino: disk.number(volume, entry.ino).unwrap_or(u64::MAX),
            name: entry.name,
            kind: kind.unwrap_or(FileType::Regular),
            next: entry.next,
            node,
        })
    })?;
    if waits { Err(Error::WouldWait) } else { Ok(()) }
}
