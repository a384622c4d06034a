//! The folder of a disk in the mounted tree.
//!
//! The idea: an empty folder where the tree should be must never pass for an empty
//! disk. So the mountpoint is opened once, asked whether it is the tree at all, and
//! the way down goes through that same open folder, by names and through no link.

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::statfs::{FUSE_SUPER_MAGIC, fstatfs};

use super::beneath::Beneath;
use super::error::FilesError;

/// Finds the folders of disks.
pub(crate) struct DiskRoot;

impl DiskRoot {
    /// Opens `<mountpoint>/<vm>/<backup>/disk<index>`; `vm` and `backup` are the names
    /// of the folders in the tree.
    ///
    /// # Errors
    /// `DaemonGone` where the tree is not mounted or not served, `NotFound` where it
    /// has no such disk, `Invalid` for what is no name.
    pub(crate) fn open(
        mountpoint: &Path,
        vm: &str,
        backup: &str,
        index: u32,
    ) -> Result<Beneath, FilesError> {
        Self::below(&Self::tree(mountpoint)?, vm, backup, index)
    }

    /// The folder of all VMs.
    ///
    /// # Errors
    /// `DaemonGone` where the tree is not mounted or not served.
    pub(crate) fn tree(mountpoint: &Path) -> Result<Beneath, FilesError> {
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => FilesError::DaemonGone,
            // That is about this program's rights and not about a volume.
            Some(libc::EACCES | libc::EPERM) => FilesError::Other {
                path: "the tree of backups".into(),
                source,
            },
            _ => FilesError::new("the tree of backups", source),
        };
        let tree = Beneath::at(mountpoint).map_err(failed)?;
        let kind = fstatfs(&tree).map_err(|error| failed(error.into()))?;
        if kind.filesystem_type() != FUSE_SUPER_MAGIC {
            return Err(FilesError::DaemonGone);
        }
        Ok(tree)
    }

    fn below(tree: &Beneath, vm: &str, backup: &str, index: u32) -> Result<Beneath, FilesError> {
        let disk = format!("disk{index}");
        let mut folder = tree.clone();
        let mut shown = String::new();
        for name in [vm, backup, disk.as_str()] {
            if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
                return Err(FilesError::Invalid(format!(
                    "{name:?}: not a folder's name"
                )));
            }
            shown = match shown.as_str() {
                "" => name.to_owned(),
                above => format!("{above}/{name}"),
            };
            folder = folder.folder_unfollowed(name.as_bytes()).map_err(|error| {
                match error.raw_os_error().map(Errno::from_raw) {
                    // A link, or a file, where the tree has folders: none of ours.
                    Some(Errno::ELOOP | Errno::ENOTDIR) => FilesError::NotFound {
                        path: shown.clone(),
                    },
                    _ => FilesError::new(shown.as_str(), error),
                }
            })?;
        }
        Ok(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ntfs_volume::NtfsVolume;
    use super::*;
    use nix::fcntl::OFlag;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_folder_that_is_not_the_tree_is_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("vm/backup/disk0")).unwrap();
        for mountpoint in [dir.path(), Path::new("/nowhere")] {
            let error = DiskRoot::open(mountpoint, "vm", "backup", 0).unwrap_err();
            assert!(matches!(error, FilesError::DaemonGone), "{error}");
            assert_eq!(error.status(), 503);
        }
    }

    #[test]
    fn a_tree_that_nobody_serves_any_more_is_none() {
        let mut volume = NtfsVolume::new("mkdir -p vm/backup/disk0; echo x > vm/backup/disk0/f");
        let open = |volume: &NtfsVolume| DiskRoot::open(&volume.path(), "vm", "backup", 0);
        let disk = open(&volume).unwrap();
        disk.open(b"f", OFlag::O_RDONLY).unwrap();
        volume.abandon();
        let error = open(&volume).unwrap_err();
        assert!(matches!(error, FilesError::DaemonGone), "{error}");
        let error = FilesError::new("/g", disk.open(b"g", OFlag::O_RDONLY).unwrap_err());
        assert!(matches!(error, FilesError::DaemonGone), "{error}");
    }

    #[test]
    fn the_way_down_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("vm/backup/disk0/inside")).unwrap();
        fs::write(dir.path().join("vm/backup/disk1"), "").unwrap();
        symlink("backup", dir.path().join("vm/latest")).unwrap();
        symlink("/etc", dir.path().join("vm/backup/disk2")).unwrap();
        let tree = Beneath::at(dir.path()).unwrap();
        let disk = DiskRoot::below(&tree, "vm", "backup", 0).unwrap();
        disk.open(b"inside", OFlag::O_PATH).unwrap();
        for (vm, backup, index, status) in [
            ("vm", "latest", 0, 404),
            ("vm", "backup", 1, 404),
            ("vm", "backup", 2, 404),
            ("vm", "backup", 3, 404),
            ("vm", "..", 0, 400),
            ("vm/backup", "disk0", 0, 400),
            ("", "vm", 0, 400),
        ] {
            let error = DiskRoot::below(&tree, vm, backup, index).unwrap_err();
            assert_eq!(error.status(), status, "{vm} {backup} {index}: {error}");
        }
    }
}
