//! All that is known of one file.
//!
//! The idea: what one look gives is free, what extended attributes say costs a way to
//! the daemon each. So they are asked for last, no more of them than are told, and
//! what is wrong with them keeps nothing else back.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, fstat};
use xattr::FileExt;

use super::beneath::Beneath;
use super::entry::{Entry, count, file_type, link_at, time};
use super::error::FilesError;
use super::name::{GuestPath, encode};
use super::time::rfc3339;

/// The most streams and attributes whose sizes are told.
const MAX_SIZES: usize = 64;

/// Seconds from 1601, where NTFS begins to count, to 1970.
const NTFS_EPOCH: i64 = 11_644_473_600;

/// What Windows calls the bits of a file's attributes. That it is a folder is its
/// type, and that it is "normal" means that it has none of these.
const ATTRIBUTES: [(u32, &str); 19] = [
    (0x1, "readonly"),
    (0x2, "hidden"),
    (0x4, "system"),
    (0x20, "archive"),
    (0x40, "device"),
    (0x100, "temporary"),
    (0x200, "sparse"),
    (0x400, "reparse_point"),
    (0x800, "compressed"),
    (0x1000, "offline"),
    (0x2000, "not_content_indexed"),
    (0x4000, "encrypted"),
    (0x8000, "integrity_stream"),
    (0x1_0000, "virtual"),
    (0x2_0000, "no_scrub_data"),
    (0x4_0000, "recall_on_open"),
    (0x8_0000, "pinned"),
    (0x10_0000, "unpinned"),
    (0x40_0000, "recall_on_data_access"),
];

/// A file or a folder and what else is known of it.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub(crate) struct FileInfo {
    #[serde(flatten)]
    pub(crate) entry: Entry,
    /// When it was last read, in UTC, RFC 3339.
    pub(crate) accessed_time: String,
    /// When anything of it was last changed, its permissions for example.
    pub(crate) changed_time: String,
    /// When it was made; only on NTFS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) created_time: Option<String>,
    /// The guest's number of the owner.
    pub(crate) uid: u32,
    /// The guest's number of the owning group.
    pub(crate) gid: u32,
    /// How many names it has.
    pub(crate) links: u64,
    /// What its other names have too. A text, because JavaScript has no numbers of 64
    /// bits.
    #[schema(example = "1099511627820")]
    pub(crate) inode: String,
    /// Bytes that it takes on the guest's disk.
    pub(crate) allocated_size: u64,
    /// Attributes as Windows calls them; only on NTFS, and not of links.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>, example = json!(["hidden", "archive"]))]
    pub(crate) attributes: Option<Vec<&'static str>>,
    /// Alternate streams of NTFS, but those of more than 64 KiB.
    pub(crate) streams: Vec<NamedValue>,
    /// Other extended attributes.
    pub(crate) xattrs: Vec<NamedValue>,
}

/// A stream or an extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub(crate) struct NamedValue {
    /// In the form of a file's name.
    #[schema(example = "Zone.Identifier")]
    pub(crate) name: String,
    /// Bytes; missing where there are more than 64 of them, or it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<u64>,
}

/// Tells of the file, the folder or the link itself at `path`.
///
/// # Errors
/// Why it cannot be looked at. What is wrong with its attributes alone is told in
/// `error`.
pub(crate) fn info(disk: &Beneath, path: &GuestPath) -> Result<FileInfo, FilesError> {
    let failed = |error| FilesError::new(path.display(), error);
    let relative = path.relative();
    let place = disk
        .open(&relative, OFlag::O_PATH | OFlag::O_NOFOLLOW)
        .map_err(failed)?;
    let stat = fstat(&place).map_err(|e| failed(e.into()))?;
    let link = match file_type(&stat) {
        libc::S_IFLNK => Some(link_at(disk, &place, &relative).map_err(failed)?),
        _ => None,
    };
    let name = path.name().map_or_else(|| "/".to_owned(), encode);
    let mut info = FileInfo {
        entry: Entry::new(name, path.display(), &stat, link),
        accessed_time: time(stat.st_atime, stat.st_atime_nsec),
        changed_time: time(stat.st_ctime, stat.st_ctime_nsec),
        created_time: None,
        uid: stat.st_uid,
        gid: stat.st_gid,
        links: stat.st_nlink,
        inode: stat.st_ino.to_string(),
        allocated_size: count(stat.st_blocks).saturating_mul(512),
        attributes: None,
        streams: Vec::new(),
        xattrs: Vec::new(),
    };
    if let Err(error) = info.add_attributes(disk, &relative, &stat) {
        let error = failed(error);
        if error.is_general() {
            return Err(error);
        }
        info.entry.error = Some(format!("streams and attributes: {error}"));
    }
    Ok(info)
}

impl FileInfo {
    fn add_attributes(&mut self, disk: &Beneath, path: &[u8], stat: &FileStat) -> io::Result<()> {
        // Only these are opened: opening a pipe or a device has effects, and a link
        // has no attributes that could be asked for.
        let flags = match file_type(stat) {
            libc::S_IFREG => OFlag::O_RDONLY | OFlag::O_NOFOLLOW,
            libc::S_IFDIR => OFlag::O_RDONLY | OFlag::O_DIRECTORY,
            _ => return Ok(()),
        };
        let file = File::from(disk.open(path, flags)?);
        let bits = value(&file, "system.ntfs_attrib_be")?.and_then(|v| v.try_into().ok());
        if let Some(bits) = bits.map(u32::from_be_bytes) {
            let names = ATTRIBUTES.iter().filter(|(bit, _)| bits & bit != 0);
            self.attributes = Some(names.map(|(_, name)| *name).collect());
            let created = value(&file, "system.ntfs_crtime_be")?.and_then(|v| v.try_into().ok());
            self.created_time = created.map(|time| ntfs_time(u64::from_be_bytes(time)));
        }
        let names = match file.list_xattr() {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
            names => names?,
        };
        for (position, name) in names.enumerate() {
            let size = (position < MAX_SIZES)
                .then(|| file.get_xattr(&name).ok().flatten())
                .flatten()
                .and_then(|value| u64::try_from(value.len()).ok());
            let name = name.as_bytes();
            let stream = name
                .strip_prefix(b"user.")
                .filter(|name| bits.is_some() && !name.starts_with(b"sendense."));
            let (list, name) = match stream {
                Some(stream) => (&mut self.streams, stream),
                None => (&mut self.xattrs, name),
            };
            list.push(NamedValue {
                name: encode(name),
                size,
            });
        }
        Ok(())
    }
}

/// An attribute, `None` where the file or the whole volume has none such.
fn value(file: &File, name: &str) -> io::Result<Option<Vec<u8>>> {
    match file.get_xattr(OsStr::new(name)) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        value => value,
    }
}

/// A time of NTFS: units of 100 ns after 1601.
fn ntfs_time(time: u64) -> String {
    let seconds = i64::try_from(time / 10_000_000).unwrap_or(i64::MAX);
    let rest = u32::try_from(time % 10_000_000).unwrap_or(0);
    rfc3339(seconds.saturating_sub(NTFS_EPOCH), rest.saturating_mul(100))
}

#[cfg(test)]
mod tests {
    use super::super::ntfs_volume::NtfsVolume;
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    #[test]
    fn times_of_ntfs_begin_in_1601() {
        assert_eq!(ntfs_time(0), "1601-01-01T00:00:00Z");
        assert_eq!(
            ntfs_time(133_995_408_801_985_298),
            "2025-08-13T06:41:20.1985298Z"
        );
        ntfs_time(u64::MAX);
    }

    #[test]
    fn all_is_as_stat_says() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), vec![1; 5000]).unwrap();
        fs::hard_link(at("file"), at("second name")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        symlink("file", at("link")).unwrap();
        symlink("folder", at("way")).unwrap();
        symlink("/etc/passwd", at("out")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let script = "touch -d '1920-02-29 12:34:56.7890001 UTC' file; chown 12:34 file; \
                      chmod 4751 file; chmod 1777 folder; truncate -s 1M sparse; \
                      mknod null c 1 3; mknod disk b 7 7";
        let made = Command::new("sh")
            .args(["-ec", script])
            .current_dir(dir.path())
            .status();
        assert!(made.unwrap().success());
        let disk = Beneath::at(dir.path()).unwrap();
        for name in [
            "file",
            "second name",
            "folder",
            "link",
            "way",
            "out",
            "pipe",
            "sparse",
            "null",
            "disk",
        ] {
            // Reading a link moves its time of access, once.
            let _ = fs::read_link(at(name));
            let info = info(&disk, &GuestPath::parse(name.as_bytes()).unwrap()).unwrap();
            let stat = Command::new("stat")
                .args(["-c", "%a %u %g %h %i %b %B %y|%x|%z", name])
                .env("TZ", "UTC")
                .current_dir(dir.path())
                .output()
                .unwrap();
            let truth = String::from_utf8(stat.stdout).unwrap();
            // 1920-02-29 12:34:56.789000100 +0000
            let as_stat = |time: &str| {
                let (date, time) = time.strip_suffix('Z').unwrap().split_once('T').unwrap();
                let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
                format!("{date} {time}.{fraction:0<9} +0000")
            };
            let ours = format!(
                "{} {} {} {} {} {} 512 {}|{}|{}\n",
                info.entry.mode.trim_start_matches('0'),
                info.uid,
                info.gid,
                info.links,
                info.inode,
                info.allocated_size / 512,
                as_stat(&info.entry.modified_time),
                as_stat(&info.accessed_time),
                as_stat(&info.changed_time),
            );
            assert_eq!(ours, truth, "{name}");
            assert_eq!(info.entry.error, None, "{name}");
        }
        let json = |name: &str| {
            let info = info(&disk, &GuestPath::parse(name.as_bytes()).unwrap()).unwrap();
            serde_json::to_value(info).unwrap()
        };
        let file = json("file");
        assert_eq!(file["mode"], "4751");
        assert_eq!(file["size"], 5000);
        assert_eq!(file["type"], "file");
        assert_eq!(file["modified_time"], "1920-02-29T12:34:56.7890001Z");
        assert_eq!(file["is_symlink"], false);
        assert_eq!(file.get("symlink_target"), None);
        for (name, kind, size, target, special) in [
            ("link", "file", 5000, Some("file"), None),
            ("way", "directory", 0, Some("folder"), None),
            ("out", "file", 0, Some("/etc/passwd"), None),
            ("pipe", "file", 0, None, Some("fifo")),
            ("null", "file", 0, None, Some("character")),
            ("disk", "file", 0, None, Some("block")),
            ("folder", "directory", 0, None, None),
            ("/", "directory", 0, None, None),
        ] {
            let info = json(name);
            assert_eq!(info["type"], kind, "{name}");
            assert_eq!(info["size"], size, "{name}");
            assert_eq!(info["is_symlink"], target.is_some(), "{name}");
            let text = |key: &str| info.get(key).and_then(|value| value.as_str());
            assert_eq!(text("symlink_target"), target, "{name}");
            assert_eq!(text("special"), special, "{name}");
        }
        assert_eq!(json("/")["path"], "/");
        assert_eq!(
            json("/way/../file".trim_start_matches("/way/.."))["path"],
            "/file"
        );
    }

    #[test]
    fn attributes_have_names_and_sizes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        xattr::set(&file, "user.Zone.Identifier", b"[ZoneTransfer]").unwrap();
        xattr::set(&file, OsStr::from_bytes(b"user.\xff"), b"").unwrap();
        let disk = Beneath::at(dir.path()).unwrap();
        let info = info(&disk, &GuestPath::parse(b"file").unwrap()).unwrap();
        let mut found = info.xattrs;
        found.retain(|value| value.name.starts_with("user."));
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let value = |name: &str, size| NamedValue {
            name: name.into(),
            size: Some(size),
        };
        assert_eq!(
            found,
            [value("user.Zone.Identifier", 14), value("user.\\xff", 0)]
        );
        assert_eq!((info.attributes, info.streams), (None, Vec::new()));
    }

    /// The tree has the names that ntfs-3g gives.
    #[test]
    fn what_windows_keeps_is_told() {
        let volume = NtfsVolume::new(
            "echo hello > file; setfattr -n user.Zone.Identifier -v '[ZoneTransfer]' file
             setfattr -n system.ntfs_attrib_be -v 0x00002023 file
             setfattr -n system.ntfs_crtime_be -v 0x01dc1bc96a6a1312 file
             python3 -c \"open('\\u8a9e' * 255, 'w')\"",
        );
        let disk = Beneath::at(&volume.path()).unwrap();
        let file = info(&disk, &GuestPath::parse(b"file").unwrap()).unwrap();
        let attributes = ["readonly", "hidden", "archive", "not_content_indexed"];
        assert_eq!(file.attributes.as_deref(), Some(&attributes[..]));
        let created = file.created_time.as_deref();
        assert_eq!(created, Some("2025-09-02T05:21:20.1985298Z"));
        let stream = NamedValue {
            name: "Zone.Identifier".into(),
            size: Some(14),
        };
        assert_eq!((file.streams, file.xattrs), (vec![stream], Vec::new()));
        let long = "語".repeat(255);
        let page = super::super::listing::Page::default();
        let listing = super::super::listing::list(&disk, &GuestPath::root(), &page).unwrap();
        assert!(listing.files.iter().any(|entry| entry.name == long));
        info(&disk, &GuestPath::parse(long.as_bytes()).unwrap()).unwrap();
    }
}
