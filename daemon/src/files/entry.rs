//! What clients see of a file or a folder.
//!
//! The idea: an entry is told from one look at it, without opening it. Links alone
//! cost two looks more: what they say, and what they lead to, as far as that lies on
//! the disk.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{FileStat, fstat, fstatat};

use super::beneath::Beneath;
use super::error::FilesError;
use super::name::encode;
use super::time::rfc3339;

/// A file or a folder.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub(crate) struct Entry {
    /// The name; a byte that is not UTF-8 is `\xHH`, a backslash that would look like
    /// the start of that is `\x5c`. The disk's own folder is `/`.
    #[schema(example = "ReAgent.xml")]
    pub(crate) name: String,
    /// The path from the disk's folder, in the form of the name. `path` takes it.
    #[schema(example = "/Recovery/WindowsRE/ReAgent.xml")]
    pub(crate) path: String,
    /// What it is; of a link, what it leads to, and `file` if that is not on the disk.
    #[serde(rename = "type")]
    pub(crate) kind: Kind,
    /// Bytes of content: what a download gives. 0 for a folder.
    #[schema(example = 1129)]
    pub(crate) size: u64,
    /// Permissions as four octal digits.
    #[schema(example = "0777")]
    pub(crate) mode: String,
    /// When the content was last changed, in UTC, RFC 3339.
    #[schema(example = "2025-09-02T05:21:20.1985298Z")]
    pub(crate) modified_time: String,
    /// Whether it is a symbolic link. Mode and time are then the link's own.
    pub(crate) is_symlink: bool,
    /// What the link says, in the form of the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) symlink_target: Option<String>,
    /// A device, a pipe or a socket, which is shown and cannot be downloaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) special: Option<Special>,
    /// Why nothing more is known of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    File,
    Directory,
}

/// What is neither a file nor a folder nor a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Special {
    Fifo,
    Socket,
    Block,
    Character,
}

/// What a link says, and what is there.
pub(crate) struct Link {
    target: Vec<u8>,
    leads_to: Option<FileStat>,
}

impl Link {
    /// The link `name` in `folder`; `path` leads to it from the disk's folder.
    fn read(disk: &Beneath, folder: impl AsFd, name: &[u8], path: &[u8]) -> io::Result<Self> {
        let target = readlinkat(folder, OsStr::from_bytes(name))?.into_vec();
        let leads_to = disk.open(path, OFlag::O_PATH);
        Ok(Self {
            target,
            leads_to: leads_to.ok().and_then(|fd| fstat(fd).ok()),
        })
    }
}

/// The bits of a mode that say the type.
pub(crate) fn file_type(stat: &FileStat) -> libc::mode_t {
    stat.st_mode & libc::S_IFMT
}

/// A count of the kernel that is signed for no reason.
pub(crate) fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A time of `FileStat`.
pub(crate) fn time(seconds: i64, nanoseconds: i64) -> String {
    rfc3339(seconds, u32::try_from(nanoseconds).unwrap_or(0))
}

impl Entry {
    /// The entry called `name` at `path`, which is in the form of JSON.
    pub(crate) fn new(name: String, path: String, stat: &FileStat, link: Option<Link>) -> Self {
        let content = match &link {
            Some(link) => link.leads_to.as_ref(),
            None => Some(stat),
        };
        let kind = match content.map(file_type) {
            Some(libc::S_IFDIR) => Kind::Directory,
            _ => Kind::File,
        };
        let size = match content.map(file_type) {
            Some(libc::S_IFREG) => content.map_or(0, |stat| count(stat.st_size)),
            _ => 0,
        };
        let special = content.map(file_type).and_then(|kind| match kind {
            libc::S_IFIFO => Some(Special::Fifo),
            libc::S_IFSOCK => Some(Special::Socket),
            libc::S_IFBLK => Some(Special::Block),
            libc::S_IFCHR => Some(Special::Character),
            _ => None,
        });
        Self {
            name,
            path,
            kind,
            size,
            mode: format!("{:04o}", stat.st_mode & 0o7777),
            modified_time: time(stat.st_mtime, stat.st_mtime_nsec),
            is_symlink: link.is_some(),
            symlink_target: link.map(|link| encode(&link.target)),
            special,
            error: None,
        }
    }

    /// Bytes of the texts whose length the guest decides.
    pub(crate) fn text(&self) -> usize {
        let target = self.symlink_target.as_ref().map_or(0, String::len);
        let path = self.path.len().saturating_add(self.name.len());
        path.saturating_add(target)
    }

    /// What is listed in its folder and cannot be looked at.
    fn unreadable(name: String, path: String, is_folder: bool, error: &FilesError) -> Self {
        Self {
            name,
            path,
            kind: if is_folder {
                Kind::Directory
            } else {
                Kind::File
            },
            size: 0,
            mode: "0000".into(),
            modified_time: time(0, 0),
            is_symlink: false,
            symlink_target: None,
            special: None,
            error: Some(error.to_string()),
        }
    }
}

/// A folder whose entries are looked at.
pub(crate) struct Folder {
    disk: Beneath,
    place: Beneath,
    /// The way here from the disk's folder, as bytes and as JSON holds it; the latter
    /// is empty for the disk's folder.
    path: Vec<u8>,
    shown: String,
}

impl Folder {
    /// The folder that `path` leads to from the disk's folder.
    ///
    /// # Errors
    /// `NotFolder` if it is something else, or as for every look-up.
    pub(crate) fn open(disk: &Beneath, path: Vec<u8>) -> Result<Self, FilesError> {
        let shown = match path.as_slice() {
            [] => String::new(),
            path => format!("/{}", encode(path)),
        };
        let place = disk.folder(&path).map_err(|error| {
            let what = if path.is_empty() { "/" } else { shown.as_str() };
            let is_file = error.raw_os_error() == Some(libc::ENOTDIR)
                && disk.open(&path, OFlag::O_PATH).is_ok();
            match is_file {
                true => FilesError::NotFolder { path: what.into() },
                false => FilesError::new(what, error),
            }
        })?;
        Ok(Self {
            disk: disk.clone(),
            place,
            path,
            shown,
        })
    }

    /// The path, as JSON holds it.
    pub(crate) fn shown(&self) -> &str {
        match self.shown.as_str() {
            "" => "/",
            shown => shown,
        }
    }

    /// The folder, opened only to name what is in it.
    pub(crate) fn place(&self) -> &Beneath {
        &self.place
    }

    /// The path of an entry, as bytes, from the disk's folder.
    pub(crate) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        match self.path.as_slice() {
            [] => name.to_vec(),
            path => [path, name].join(&b'/'),
        }
    }

    /// Looks at an entry, not through it if it is a link.
    ///
    /// # Errors
    /// As fstatat(2).
    pub(crate) fn look(&self, name: &[u8]) -> io::Result<FileStat> {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        Ok(fstatat(&self.place, OsStr::from_bytes(name), flags)?)
    }

    /// The entry `name`. One that cannot be looked at is told all the same, with the
    /// reason, as the file or folder that its folder says it is.
    ///
    /// # Errors
    /// What concerns more than this entry.
    pub(crate) fn entry(&self, name: &[u8], is_folder: bool) -> Result<Entry, FilesError> {
        let shown = encode(name);
        let path = format!("{}/{shown}", self.shown);
        let looked = self.look(name).and_then(|stat| {
            let is_link = file_type(&stat) == libc::S_IFLNK;
            let link =
                is_link.then(|| Link::read(&self.disk, &self.place, name, &self.path_of(name)));
            Ok((stat, link.transpose()?))
        });
        match looked {
            Ok((stat, link)) => Ok(Entry::new(shown, path, &stat, link)),
            Err(error) => {
                let error = FilesError::new(path.as_str(), error);
                if error.is_general() {
                    return Err(error);
                }
                Ok(Entry::unreadable(shown, path, is_folder, &error))
            }
        }
    }
}

/// What a link opened itself (`O_PATH`, `O_NOFOLLOW`) says.
pub(crate) fn link_at(disk: &Beneath, link: impl AsFd, path: &[u8]) -> io::Result<Link> {
    Link::read(disk, link, b"", path)
}
