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
mod data;
mod inode;
mod listing;
mod node;
pub mod read;
mod repair;
mod roots;
mod siblings;
mod summary;
mod xattr;

use std::ops::ControlFlow;
use std::sync::Arc;

pub use attached::AttachedDisk;
use attached::{AttachedVolume, link_target};
pub use data::Seek;
use inode::Inode;
use listing::{LATEST, LATEST_POSITION, list_disks, list_files, list_folders, list_volumes};
pub use node::{Detail, Entry, Node, Space};
use node::{
    directory, disk_id, file_node, file_system, folder_node, latest_node, node_in, root_of,
};
pub use read::ReadPlan;
use roots::{DiskRoot, DiskRoots};
pub use summary::{VolumeState, VolumeSummary};

use crate::catalog::{Catalog, DiskRecord, Folder};
use crate::error::{Error, Result};
use crate::filesystem::{Attr, FileType};
use crate::image::BlockRead;

/// Gives out attached disks. The tree asks for a disk at every operation and
/// holds it for no longer than that.
pub trait Attachments: Send + Sync {
    /// The disk, attached now if it was not.
    ///
    /// # Errors
    /// `Gone` if the catalog has no such disk any more, or why it cannot be attached.
    /// Before it waits it asks [`crate::image::patience::may_wait`].
    fn get(&self, disk: u64) -> Result<Arc<AttachedDisk>>;

    /// The disk if it is attached; does not wait and does not count as use.
    fn peek(&self, disk: u64) -> Option<Arc<AttachedDisk>>;

    /// Why the last attempt to attach the disk failed, if it did.
    fn last_error(&self, disk: u64) -> Option<Error>;
}

/// The tree.
pub struct Tree {
    catalog: Arc<Catalog>,
    attachments: Arc<dyn Attachments>,
    roots: DiskRoots,
}

impl Tree {
    /// Inode number of the root.
    pub const ROOT: u64 = 1;

    /// The tree of the backups in `catalog`, whose disks `attachments` gives out.
    pub fn new(catalog: Arc<Catalog>, attachments: Arc<dyn Attachments>) -> Self {
        Self {
            catalog,
            attachments,
            roots: DiskRoots::new(),
        }
    }

    /// Whether what this node shows comes from a disk: it and its entries can
    /// never change.
    pub fn on_disk(ino: u64) -> bool {
        Self::disk_of(ino).is_some()
    }

    /// Whether the names in this folder of a disk, and those that are not in it,
    /// may be kept for ever. Those of the volumes of a disk may not if other disks
    /// of its backup decide which there are.
    pub fn keeps_its_names(&self, ino: u64) -> bool {
        match Inode::parse(ino) {
            Ok(Inode::Disk(id)) => {
                let disk = self.attachments.peek(id);
                disk.is_some_and(|disk| disk.depends_on().is_none())
            }
            _ => Self::on_disk(ino),
        }
    }

    /// The id of the disk that a node lies on, if it lies on one.
    pub fn disk_of(ino: u64) -> Option<u64> {
        match Inode::parse(ino) {
            Ok(Inode::Disk(disk) | Inode::Raw(disk) | Inode::File { disk, .. }) => Some(disk),
            _ => None,
        }
    }

    /// `<vm>/<backup>/disk<N>` of the disk that a node lies on, while it is attached.
    pub fn disk_path(&self, ino: u64) -> Option<String> {
        let disk = self.attachments.peek(Self::disk_of(ino)?)?;
        Some(disk.path())
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
                if let Some(root) = self.known_root(id)? {
                    return Ok(root_node(&root));
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
                    let nodes =
                        |record: &DiskRecord| Ok((self.disk_node(record)?, self.raw_node(record)?));
                    return list_disks(&self.catalog.disks(id)?, nodes, position, each);
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
                if let Some(index) = disk.link(local)? {
                    return Ok(link_target(index).into_bytes());
                }
                let (fs, _, ino) = disk.file(local)?;
                fs.read_link(ino)
            }
            _ => Err(Error::Invalid(format!(
                "inode {ino} is not a symbolic link"
            ))),
        }
    }

    /// The node at a path below the root, its components separated by `/`; no
    /// symlink is followed but the tree's own: `latest`, and one to another disk.
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
            if node.attr.kind == FileType::Symlink {
                return Err(self.not_followed(&node, path));
            }
            node = self.lookup(parent, name).map_err(|error| match error {
                Error::NotFound { .. } => Error::not_found(String::from_utf8_lossy(path)),
                other => other,
            })?;
            match Inode::parse(node.attr.ino)? {
                Inode::Latest(id) => node = folder_node(&self.folder(id)?.0)?,
                Inode::File { disk, local } if node.attr.kind == FileType::Symlink => {
                    let link = self.attached(disk)?.link(local)?;
                    if let Some(index) = link {
                        let (_, backup) = self.record(disk)?;
                        let name = format!("disk{index}");
                        node = self.lookup(Inode::Folder(backup).number()?, name.as_bytes())?;
                    }
                }
                _ => {}
            }
        }
        Ok(node)
    }

    /// Says which link of the guest a path leads through.
    fn not_followed(&self, link: &Node, path: &[u8]) -> Error {
        let path = String::from_utf8_lossy(path);
        match self.read_link(link.attr.ino) {
            Ok(target) => Error::Invalid(format!(
                "{path}: one of its folders is a link to {}, and links are not followed here; give \
                 the path that it leads to",
                target.escape_ascii()
            )),
            Err(error) => error,
        }
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
        let missing = || Error::Gone {
            what: format!("disk {id}"),
        };
        let row = i64::try_from(id).map_err(|_| missing())?;
        self.catalog.disk(row)?.ok_or_else(missing)
    }

    /// The folder `disk<N>`: the guest's root folder where that is known, else
    /// what the catalog tells.
    fn disk_node(&self, record: &DiskRecord) -> Result<Node> {
        let id = disk_id(record)?;
        if let Some(root) = self.known_root(id)? {
            return Ok(root_node(&root));
        }
        let ino = Inode::Disk(id).number()?;
        Ok(Node {
            attr: directory(ino, record.time, 2),
            stable: false,
            named_by_catalog: true,
        })
    }

    fn known_root(&self, id: u64) -> Result<Option<Arc<DiskRoot>>> {
        self.roots.get(id, || self.attachments.peek(id))
    }

    /// The file `disk<N>.raw`. The image itself is not looked at: a repository
    /// that hangs must not hold up a listing.
    fn raw_node(&self, record: &DiskRecord) -> Result<Node> {
        let id = disk_id(record)?;
        let ino = Inode::Raw(id).number()?;
        let attached = || self.attachments.peek(id).map(|disk| disk.disk.size());
        let size = record.size.or_else(attached);
        let attr = Attr {
            kind: FileType::Regular,
            mode: 0o444,
            size: size.unwrap_or(0),
            nlink: 1,
            ..directory(ino, record.time, 1)
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

fn root_node(root: &DiskRoot) -> Node {
    Node {
        attr: root.attr.clone(),
        stable: root.lasting,
        named_by_catalog: true,
    }
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
