//! What a node of the tree looks like from outside.

use super::attached::{AttachedDisk, AttachedVolume, link_target};
use super::inode::Inode;
use crate::catalog::{DiskRecord, Folder};
use crate::error::{Error, Result};
use crate::filesystem::{Attr, FileSystem, FileType, Time};

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

impl<'a> Entry<'a> {
    pub(crate) fn of(node: Node, name: &'a [u8], next: u64) -> Self {
        Self {
            ino: node.attr.ino,
            name,
            kind: node.attr.kind,
            next,
            node: Some(node),
        }
    }
}

/// A disk's id as inode numbers take it.
pub(crate) fn disk_id(record: &DiskRecord) -> Result<u64> {
    u64::try_from(record.id)
        .map_err(|_| Error::Catalog(format!("disk id {} is negative", record.id)))
}

/// A folder that is ours and not a guest's.
pub(crate) fn directory(ino: u64, time: i64, nlink: u32) -> Attr {
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

pub(crate) fn folder_node(folder: &Folder) -> Result<Node> {
    let ino = Inode::Folder(folder.id).number()?;
    Ok(Node {
        attr: directory(ino, folder.time, 2),
        stable: false,
        named_by_catalog: true,
    })
}

pub(crate) fn latest_node(backup: &Folder) -> Result<Node> {
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
pub(crate) fn file_node(disk: &AttachedDisk, local: u64) -> Result<Node> {
    let (volume, ino) = disk.locate(local)?;
    // What depends on other disks of the backup may be another thing when one of
    // them is there that was not.
    let lasting = volume.volume.across.is_none();
    if let (Err(_), true) = (&volume.fs, local == volume.base) {
        let ino = Inode::File {
            disk: disk.id,
            local,
        }
        .number()?;
        let folder = directory(ino, disk.record().time, 2);
        let attr = match volume.link() {
            Some(index) => Attr {
                kind: FileType::Symlink,
                mode: 0o777,
                size: link_target(index).len() as u64,
                nlink: 1,
                ..folder
            },
            None => Attr {
                may_have_xattrs: true,
                ..folder
            },
        };
        return Ok(Node {
            attr,
            stable: lasting,
            named_by_catalog: !lasting,
        });
    }
    let (fs, volume, _) = disk.file(local)?;
    let node = node_in(disk, volume, fs, ino)?;
    Ok(Node {
        named_by_catalog: !lasting && local == volume.root(),
        ..node
    })
}

pub(crate) fn node_in(
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

pub(crate) fn file_system(volume: &AttachedVolume) -> Result<&dyn FileSystem> {
    match &volume.fs {
        Ok(fs) => Ok(fs.as_ref()),
        Err(error) => Err(error.clone()),
    }
}

pub(crate) fn root_of(volume: &AttachedVolume) -> Result<u64> {
    Ok(file_system(volume)?.root())
}
