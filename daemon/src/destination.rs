//! Where `cp` writes to.
//!
//! Names and the shape of the tree come from a guest that may be hostile: a
//! folder that holds a symlink `a` to `/etc` *and* a folder `a` must not make us
//! write into `/etc`. So no path is ever put together: every object is made in a
//! folder held open by descriptor ([`Folder`]), by one checked [`Name`], without
//! following symlinks. A new object is a [`Draft`] under a name of ours until it
//! is complete; then it is renamed to its place. A draft that is dropped is
//! removed.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fstatat, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use sendense::filesystem::{Attr, FileType, Time};
use sendense::{Error, Result};

/// One component of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(CString);

impl Name {
    /// # Errors
    /// `Invalid` for what is not the name of an entry: empty, `.`, `..`, with a
    /// slash or a NUL.
    pub(crate) fn new(bytes: &[u8]) -> Result<Self> {
        let refuse = || {
            let shown = crate::terminal::escape(bytes);
            Error::Invalid(format!("\"{shown}\" is not a name that a file can have"))
        };
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
            return Err(refuse());
        }
        CString::new(bytes).map(Self).map_err(|_| refuse())
    }

    fn c(&self) -> &CStr {
        &self.0
    }
}

/// A folder of the destination, held open.
#[derive(Debug)]
pub(crate) struct Folder(File);

impl Folder {
    /// Opens a folder that the user named; symlinks in the path are theirs and
    /// are followed.
    ///
    /// # Errors
    /// From the host.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(nix::fcntl::open(path, flags, Mode::empty())?.into()))
    }

    /// Opens the folder `name` in this one; a symlink is refused.
    ///
    /// # Errors
    /// `ENOTDIR` if it is something else, a symlink for example.
    pub(crate) fn enter(&self, name: &Name) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(Self(
            openat(&self.0, name.c(), flags, Mode::empty())?.into(),
        ))
    }

    /// Makes the folder `name`, for the owner only until its content is there, or
    /// opens the one that is there.
    ///
    /// # Errors
    /// `ENOTDIR` if something else has that name.
    pub(crate) fn make(&self, name: &Name) -> io::Result<Self> {
        match mkdirat(&self.0, name.c(), Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => self.enter(name),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What `name` is, symlinks not followed; `None` if it is not there.
    ///
    /// # Errors
    /// From the host.
    pub(crate) fn stat(&self, name: &Name) -> io::Result<Option<FileStat>> {
        self.stat_raw(name.c())
    }

    fn stat_raw(&self, name: &CStr) -> io::Result<Option<FileStat>> {
        match fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A new empty file.
    ///
    /// # Errors
    /// From the host.
    pub(crate) fn draft_file(&self) -> io::Result<(Draft<'_>, File)> {
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let (draft, fd) = self.draft(|name| openat(&self.0, name, flags, mode))?;
        Ok((draft, fd.into()))
    }

    /// A new symlink.
    ///
    /// # Errors
    /// From the host.
    pub(crate) fn draft_symlink(&self, target: &[u8]) -> io::Result<Draft<'_>> {
        let target = CString::new(target).map_err(io::Error::other)?;
        Ok(self
            .draft(|name| symlinkat(target.as_c_str(), &self.0, name))?
            .0)
    }

    /// A new pipe, socket or device file.
    ///
    /// # Errors
    /// From the host; `EPERM` for a device file if we are not root.
    pub(crate) fn draft_node(&self, kind: FileType, device: u64) -> io::Result<Draft<'_>> {
        let (kind, device) = match kind {
            FileType::Fifo => (SFlag::S_IFIFO, 0),
            FileType::Socket => (SFlag::S_IFSOCK, 0),
            FileType::CharDevice => (SFlag::S_IFCHR, device),
            FileType::BlockDevice => (SFlag::S_IFBLK, device),
            FileType::Regular | FileType::Directory | FileType::Symlink => {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        };
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        Ok(self
            .draft(|name| mknodat(&self.0, name, kind, mode, device))?
            .0)
    }

    /// A new name for the object `name` in `folder`, if it still is the one that
    /// `stat` told of.
    ///
    /// # Errors
    /// `ESTALE` if it is another; `EXDEV`, `EMLINK` and the like from the host.
    pub(crate) fn draft_link(
        &self,
        folder: &Folder,
        name: &Name,
        identity: (u64, u64),
    ) -> io::Result<Draft<'_>> {
        let link = |to: &CStr| linkat(&folder.0, name.c(), &self.0, to, AtFlags::empty());
        let draft = self.draft(link)?.0;
        match draft.identity()? {
            found if found == identity => Ok(draft),
            _ => Err(Errno::ESTALE.into()),
        }
    }

    /// Makes something under a name that nothing has yet.
    fn draft<T>(
        &self,
        mut make: impl FnMut(&CStr) -> nix::Result<T>,
    ) -> io::Result<(Draft<'_>, T)> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        for _ in 0..1000 {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let name = format!(".sendense-{}-{number}.part", std::process::id());
            let name = CString::new(name).map_err(io::Error::other)?;
            match make(&name) {
                Ok(made) => {
                    return Ok((
                        Draft {
                            folder: self,
                            name,
                            placed: false,
                        },
                        made,
                    ));
                }
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(io::Error::other("no free name for a temporary file"))
    }

    /// The folder as an object with metadata.
    pub(crate) fn object(&self) -> Object<'_> {
        Object::Open(&self.0)
    }
}

/// A new object that is not in its place yet; removed when dropped.
#[derive(Debug)]
pub(crate) struct Draft<'f> {
    folder: &'f Folder,
    name: CString,
    placed: bool,
}

impl Draft<'_> {
    /// Device and inode number.
    ///
    /// # Errors
    /// From the host.
    pub(crate) fn identity(&self) -> io::Result<(u64, u64)> {
        let stat = self
            .folder
            .stat_raw(&self.name)?
            .ok_or(io::ErrorKind::NotFound)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// The object, for setting its metadata without opening it.
    ///
    /// # Errors
    /// From the host.
    pub(crate) fn unopened(&self, kind: FileType) -> io::Result<Object<'static>> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.folder.0, self.name.as_c_str(), flags, Mode::empty())?;
        Ok(Object::Unopened {
            fd,
            symlink: kind == FileType::Symlink,
        })
    }

    /// Gives it its name. What is there already is replaced only with `force`,
    /// and a folder never.
    ///
    /// # Errors
    /// `EEXIST`, `EISDIR`, and others from the host.
    pub(crate) fn place(mut self, name: &Name, force: bool) -> io::Result<()> {
        let folder = &self.folder.0;
        let (from, to) = (self.name.as_c_str(), name.c());
        let moved = if force {
            renameat(folder, from, folder, to)
        } else {
            match renameat2(folder, from, folder, to, RenameFlags::RENAME_NOREPLACE) {
                // Some network file systems do not know the flag.
                Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                    if self.folder.stat(name)?.is_some() {
                        return Err(Errno::EEXIST.into());
                    }
                    renameat(folder, from, folder, to)
                }
                result => result,
            }
        };
        moved?;
        // A rename of one name of a file over another of the same file does
        // nothing, and leaves ours.
        self.placed = !force || self.folder.stat_raw(&self.name)?.is_none();
        Ok(())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.placed {
            let _ = unlinkat(
                &self.folder.0,
                self.name.as_c_str(),
                UnlinkatFlags::NoRemoveDir,
            );
        }
    }
}

/// Something whose metadata is to be set.
#[derive(Debug)]
pub(crate) enum Object<'a> {
    /// A file or folder that we have open.
    Open(&'a File),
    /// What must not be opened (a pipe would wait, a device would act).
    Unopened {
        /// Opened with `O_PATH`.
        fd: OwnedFd,
        /// A symlink has no mode of its own.
        symlink: bool,
    },
}

/// A piece of metadata that the destination did not take.
#[derive(Debug)]
pub(crate) struct Refused {
    /// What, for example `owner` or `extended attribute user.x`.
    pub(crate) what: String,
    /// Why.
    pub(crate) error: io::Error,
}

impl Object<'_> {
    /// Sets owner (if `owners`), xattrs, mode and times, in the order in which
    /// none undoes another, and returns what the destination refused.
    ///
    /// Set-id bits and capabilities give the owner's rights away: they are kept
    /// only with the owner.
    pub(crate) fn set(
        &self,
        attr: &Attr,
        xattrs: &[(Vec<u8>, Vec<u8>)],
        owners: bool,
    ) -> Vec<Refused> {
        let mut refused = Vec::new();
        let mut check = |what: &str, result: io::Result<()>| {
            let failed = result.is_err();
            if let Err(error) = result {
                refused.push(Refused {
                    what: what.to_owned(),
                    error,
                });
            }
            !failed
        };
        let owned = owners && check("owner", self.set_owner(attr.uid, attr.gid));
        for (name, value) in xattrs {
            if name == b"security.capability" && !owned {
                continue;
            }
            let what = format!("extended attribute {}", crate::terminal::escape(name));
            check(&what, self.set_xattr(name, value));
        }
        let mode = if owned {
            attr.mode & 0o7777
        } else {
            attr.mode & 0o1777
        };
        check("mode", self.set_mode(mode));
        check("times", self.set_times(attr.atime, attr.mtime));
        refused
    }

    /// The magic link leads to the very object, wherever its names lead by now.
    fn magic_link(fd: &OwnedFd) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
    }

    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match self {
            Self::Open(file) => nix::unistd::fchown(file, uid, gid)?,
            Self::Unopened { fd, .. } => fchownat(fd, c"", uid, gid, AtFlags::AT_EMPTY_PATH)?,
        }
        Ok(())
    }

    fn set_xattr(&self, name: &[u8], value: &[u8]) -> io::Result<()> {
        let name = std::ffi::OsStr::from_bytes(name);
        match self {
            Self::Open(file) => xattr::FileExt::set_xattr(*file, name, value),
            Self::Unopened { fd, .. } => xattr::set_deref(Self::magic_link(fd), name, value),
        }
    }

    fn set_mode(&self, mode: u16) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let permissions = std::fs::Permissions::from_mode(mode.into());
        match self {
            Self::Open(file) => file.set_permissions(permissions),
            Self::Unopened { symlink: true, .. } => Ok(()),
            Self::Unopened { fd, .. } => {
                std::fs::set_permissions(Self::magic_link(fd), permissions)
            }
        }
    }

    fn set_times(&self, atime: Time, mtime: Time) -> io::Result<()> {
        let [atime, mtime] =
            [atime, mtime].map(|time| TimeSpec::new(time.seconds, time.nanoseconds.into()));
        match self {
            Self::Open(file) => nix::sys::stat::futimens(file, &atime, &mtime)?,
            Self::Unopened { fd, .. } => {
                let (path, follow) = (Self::magic_link(fd), UtimensatFlags::FollowSymlink);
                utimensat(nix::fcntl::AT_FDCWD, &path, &atime, &mtime, follow)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
