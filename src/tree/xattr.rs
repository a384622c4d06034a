//! What the tree says of a volume: extended attributes `user.sendense.*` on its
//! folder.

use super::Tree;
use super::attached::AttachedVolume;
use super::inode::Inode;
use crate::error::Result;

/// Names and values.
pub(crate) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// Why the volume, or the disk, cannot be read.
pub(crate) const ERROR: &[u8] = b"user.sendense.error";

/// Whether an attribute of this name is the tree's own.
pub(crate) fn is_ours(name: &[u8]) -> bool {
    name.starts_with(b"user.sendense.")
}

/// The attributes of a volume's folder: type, label, size in bytes, UUID, notes
/// (one sentence a line), error.
///
/// A link has none: Linux knows no attributes `user.*` of links.
pub(crate) fn of_volume(volume: &AttachedVolume) -> Attributes {
    if volume.link().is_some() {
        return Vec::new();
    }
    let mut attributes = vec![
        (
            b"user.sendense.name".to_vec(),
            volume.volume.name.clone().into_bytes(),
        ),
        (
            b"user.sendense.type".to_vec(),
            volume.kind().as_bytes().to_vec(),
        ),
        (
            b"user.sendense.size".to_vec(),
            volume.volume.size.to_string().into_bytes(),
        ),
    ];
    let mut add = |name: &[u8], value: &[u8]| {
        if !value.is_empty() {
            attributes.push((name.to_vec(), value.to_vec()));
        }
    };
    add(b"user.sendense.label", &volume.volume.label);
    add(b"user.sendense.uuid", volume.volume.uuid.as_bytes());
    add(
        b"user.sendense.partition_label",
        volume.volume.partition_label.as_bytes(),
    );
    add(b"user.sendense.note", volume.notes().as_bytes());
    if let Err(error) = &volume.fs {
        add(ERROR, error.to_string().as_bytes());
    }
    attributes
}

/// The value of attribute `name`.
pub(crate) fn find(attributes: Attributes, name: &[u8]) -> Option<Vec<u8>> {
    attributes
        .into_iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value)
}

impl Tree {
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
                    names.extend(of_volume(volume).into_iter().map(|(name, _)| name));
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
                if local == volume.root() && is_ours(name) {
                    return Ok(find(of_volume(volume), name));
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
        let xattrs = self.disk_xattrs(id)?;
        Ok(xattrs.into_iter().map(|(name, _)| name).collect())
    }

    fn disk_xattr(&self, id: u64, name: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(find(self.disk_xattrs(id)?, name))
    }

    fn disk_xattrs(&self, id: u64) -> Result<Attributes> {
        if let Some(root) = self.known_root(id)? {
            return Ok(root.xattrs.clone());
        }
        let error = self.attachments.last_error(id);
        let error = error.map(|error| (ERROR.to_vec(), error.to_string().into_bytes()));
        Ok(error.into_iter().collect())
    }
}
