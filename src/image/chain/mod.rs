//! Checks, before any process starts, that an image and all that it depends on
//! are whole and lie inside the repositories.
//!
//! The idea: an image's header names files, and whoever wrote the image chose
//! the names. So we read the headers ourselves first, and only when every file
//! named is one that may be opened does a qemu program open any. Then `qemu-img`
//! is asked for its view of the chain, and both must agree: a difference would
//! mean that we check something other than what qemu opens.
//!
//! Paths can lead elsewhere between the check and the use. So the process that
//! serves the chain is told each file and each format, whatever the headers say
//! by then, and when it has opened them its open files are held against the
//! checked ones ([`Chain::verify_opened`]). What goes unnoticed is only what
//! leaves inode, size and times as they were: a change within the resolution of
//! the file system's clock.

#![deny(clippy::arithmetic_side_effects)]

mod header;
mod probe;
mod truncation;

pub use header::Header;
pub use probe::{Probe, probe};

use crate::error::{Error, Result};
use crate::image::qemu_img;
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::fs::Metadata;
use std::hash::{Hash, Hasher};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

/// Longest chain. QEMU itself opens no more than some hundreds.
const MAX_DEPTH: usize = 1000;
/// How many checked chains are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Pauses between looks at what a process has open, before it is refused.
const LOOKS: [Duration; 3] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(20),
];

/// An image and all that it depends on, top first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// The images; each one's backing file is the next.
    pub images: Vec<ChainImage>,
}

/// One image of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChainImage {
    /// The file, all symlinks resolved.
    pub path: PathBuf,
    /// `qcow2` or `raw`.
    pub format: String,
    /// The external data file, all symlinks resolved.
    pub data_file: Option<PathBuf>,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    identities: Vec<Identity>,
}

/// What tells that a file still has the content that it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FileIdentity {
    /// Device number of the file system.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
    /// Last change of the content, seconds since 1970 …
    pub mtime: i64,
    /// … and nanoseconds.
    pub mtime_nsec: i64,
}

impl From<&Metadata> for FileIdentity {
    fn from(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            mtime: meta.mtime(),
            mtime_nsec: meta.mtime_nsec(),
        }
    }
}

/// What tells that a file is still the one that was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    file: FileIdentity,
    /// Changes with everything, names and rights included, and nobody can set it.
    changed: (i64, i64),
}

impl From<&Metadata> for Identity {
    fn from(meta: &Metadata) -> Self {
        Self {
            file: meta.into(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl ChainImage {
    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.path).chain(&self.data_file)
    }
}

impl Chain {
    /// All files, top first, as they were when they were checked.
    pub fn files(&self) -> impl Iterator<Item = (PathBuf, FileIdentity)> {
        self.images.iter().flat_map(|image| {
            let identities = image.identities.iter().map(|i| i.file);
            image.files().cloned().zip(identities)
        })
    }

    /// One number for each image, top first, that stands for it and for all below
    /// it: the same names, formats and files, unchanged.
    pub fn fingerprints(&self) -> Vec<u64> {
        let mut below = 0_u64;
        let mut prints: Vec<u64> = self
            .images
            .iter()
            .rev()
            .map(|image| {
                let mut hasher = std::hash::DefaultHasher::new();
                (below, image).hash(&mut hasher);
                below = hasher.finish();
                below
            })
            .collect();
        prints.reverse();
        prints
    }

    /// Looks at the files that a process has open: each must be one that was
    /// checked, and unchanged since. However paths were bent in between, it reads
    /// nothing else. A process that is gone has nothing open.
    ///
    /// # Errors
    /// `ImageInvalid` for the first other one; `Io` when the process's files
    /// cannot be looked at.
    pub(crate) fn verify_opened(&self, pid: u32) -> Result<()> {
        // A library may be reading a file of the system at this moment: only what
        // stays open counts.
        for pause in LOOKS {
            if self.look_at_opened(pid).is_ok() {
                return Ok(());
            }
            std::thread::sleep(pause);
        }
        self.look_at_opened(pid)
    }

    fn look_at_opened(&self, pid: u32) -> Result<()> {
        let failed = |e| Error::io(format!("the open files of process {pid}"), e);
        let folder = PathBuf::from(format!("/proc/{pid}/fd"));
        for entry in folder.read_dir().map_err(failed)? {
            let entry = entry.map_err(failed)?.path();
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                // Closed meanwhile.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(e)),
            };
            let kind = meta.file_type();
            // Sockets, pipes, /dev/null; what has no name at all is no kind of file.
            if !kind.is_file() && !kind.is_block_device() && !kind.is_dir() {
                continue;
            }
            let identity = Identity::from(&meta);
            let checked = self.images.iter().flat_map(|i| &i.identities);
            if !checked.clone().any(|checked| *checked == identity) {
                let same = |c: &Identity| {
                    (c.file.device, c.file.inode) == (identity.file.device, identity.file.inode)
                };
                let reason = if checked.clone().any(same) {
                    "the file was changed while it was opened"
                } else {
                    "the process opened this file in place of one that was checked; refused"
                };
                let path = entry.read_link().unwrap_or(entry);
                return Err(Error::image(&path, reason));
            }
        }
        Ok(())
    }
}

/// Checks the image at `image`, of format `qcow2` or `raw`, and everything it
/// depends on. Costs reading the headers; a look at the ends of the files and a run
/// of `qemu-img` (some 7 ms) come on top the first time, and when a file has
/// changed since.
///
/// # Errors
/// `ImageMissing`, `ImageOutside`, `ImageInvalid`, `Unsupported`, `Io`: each names
/// the file and what needs it. `Qemu`, `TimedOut`.
pub fn check(image: &Path, format: &str, repositories: &[PathBuf]) -> Result<Chain> {
    static CHECKED: LazyLock<Mutex<LruCache<PathBuf, Chain>>> =
        LazyLock::new(|| Mutex::new(LruCache::new(REMEMBERED)));
    let image =
        &std::path::absolute(image).map_err(|e| Error::io(image.display().to_string(), e))?;
    let chain = walk(image, format, repositories)?;
    if format == "qcow2" && CHECKED.lock().get(image) != Some(&chain) {
        for below in chain.images.iter().filter(|i| i.format == "qcow2") {
            let (file, len) = header::open(&below.path, "the image itself")?;
            let header = Header::read_from(&file, len, &below.path)?;
            truncation::check(&file, len, &header, &below.path)?;
        }
        agree(image, &chain)?;
        CHECKED.lock().put(image.clone(), chain.clone());
    }
    Ok(chain)
}

/// Reads which images the one at `image` depends on, and refuses what may not be
/// opened: the first half of [`check`], which costs reading the headers.
///
/// # Errors
/// As there, but for damage that headers do not show.
pub fn read(image: &Path, format: &str, repositories: &[PathBuf]) -> Result<Chain> {
    let image =
        &std::path::absolute(image).map_err(|e| Error::io(image.display().to_string(), e))?;
    walk(image, format, repositories)
}

/// Our own reading of the chain.
fn walk(image: &Path, format: &str, repositories: &[PathBuf]) -> Result<Chain> {
    // One that is not there (yet) holds no images.
    let repositories: Vec<_> = repositories
        .iter()
        .filter_map(|r| r.canonicalize().ok())
        .collect();
    let mut chain = Chain::default();
    let mut seen = HashSet::new();
    let mut next = Some((
        image.to_owned(),
        format.to_owned(),
        String::from("the image itself"),
    ));
    while let Some((named, format, used_by)) = next.take() {
        if chain.images.len() >= MAX_DEPTH {
            let reason = format!("its chain of backing files is longer than {MAX_DEPTH} images");
            return Err(Error::image(image, reason));
        }
        let (path, identity) = admit(&named, &used_by, &repositories)?;
        if !seen.insert(path.clone()) {
            let reason = if chain.images.len() == 1 {
                "the image is its own backing file".to_owned()
            } else {
                format!("the chain of backing files is a loop ({used_by})")
            };
            return Err(Error::image(&path, reason));
        }
        let mut identities = vec![identity];
        let (file, len) = header::open(&path, &used_by)?;
        let (virtual_size, data_file) = match format.as_str() {
            "raw" => (len, None),
            "qcow2" => {
                let header = Header::read_from(&file, len, &path)?;
                // QEMU takes names as relative to the folder under whose name it
                // opened the image, not to the one where a symlink leads.
                let folder = named.parent().unwrap_or(Path::new("/"));
                let data = match &header.data_file {
                    None => None,
                    Some(data) => {
                        let used_by = format!("data file of {}", named.display());
                        // QEMU takes this name as relative to its working folder, which
                        // for us is the top image's (see `agree`).
                        if data.is_relative() && image.parent() != named.parent() {
                            return Err(Error::Unsupported {
                                what: format!("“{}” ({used_by})", data.display()),
                                reason: "a relative name of a data file is read only where the \
                                         image lies in the folder of the chain's first image"
                                    .into(),
                            });
                        }
                        let data = folder.join(plain(data, &used_by)?);
                        let (data, identity) = admit(&data, &used_by, &repositories)?;
                        header::open(&data, &used_by)?;
                        if !seen.insert(data.clone()) {
                            let reason = format!("an image cannot also be the {used_by}");
                            return Err(Error::image(&data, reason));
                        }
                        identities.push(identity);
                        Some(data)
                    }
                };
                if let Some(backing) = &header.backing_file {
                    let used_by = format!("backing file of {}", named.display());
                    let backing = folder.join(plain(backing, &used_by)?);
                    // Without a word in the header it must be qcow2, by its magic;
                    // nothing is ever taken for raw by guessing.
                    let format = header
                        .backing_format
                        .clone()
                        .unwrap_or_else(|| "qcow2".into());
                    next = Some((backing, format, used_by));
                }
                (header.virtual_size, data)
            }
            other => {
                return Err(Error::Unsupported {
                    what: format!("{} ({used_by})", path.display()),
                    reason: format!("images of format “{other}” are not read"),
                });
            }
        };
        chain.images.push(ChainImage {
            path,
            format,
            data_file,
            virtual_size,
            identities,
        });
    }
    Ok(chain)
}

/// A name from a header must be a plain path: qemu would take `json:{…}`,
/// `nbd://…` and the like for something else.
fn plain<'a>(name: &'a Path, used_by: &str) -> Result<&'a Path> {
    let bytes = name.as_os_str().as_bytes();
    let before_slash = bytes.split(|&b| b == b'/').next().unwrap_or_default();
    if before_slash.contains(&b':') {
        return Err(Error::Unsupported {
            what: format!("“{}” ({used_by})", name.display()),
            reason: "the name is not a plain path but has a protocol; refused".into(),
        });
    }
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(Error::Unsupported {
            what: format!("“{}” ({used_by})", name.display()),
            reason: "the name is not a path".into(),
        });
    }
    Ok(name)
}

/// Resolves a path and lets it pass if it is a regular file in a repository.
fn admit(named: &Path, used_by: &str, repositories: &[PathBuf]) -> Result<(PathBuf, Identity)> {
    let outside = |path: &Path| Error::ImageOutside {
        path: path.to_owned(),
        used_by: used_by.to_owned(),
    };
    let path = named.canonicalize().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::ImageMissing {
            path: named.to_owned(),
            used_by: used_by.to_owned(),
        },
        _ => Error::io(format!("{} ({used_by})", named.display()), e),
    })?;
    if !repositories.iter().any(|r| path.starts_with(r)) {
        return Err(outside(&path));
    }
    let meta = path
        .symlink_metadata()
        .map_err(|e| Error::io(path.display().to_string(), e))?;
    if !meta.is_file() {
        return Err(Error::image(
            &path,
            format!("not a regular file ({used_by})"),
        ));
    }
    Ok((path, Identity::from(&meta)))
}

/// The part of `qemu-img info` that says which files there are.
#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    filename: PathBuf,
    format: String,
    virtual_size: u64,
    format_specific: Option<FormatSpecific>,
}

#[derive(serde::Deserialize)]
struct FormatSpecific {
    data: Specific,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Specific {
    data_file: Option<PathBuf>,
}

/// Asks qemu for its view of the chain.
fn agree(image: &Path, chain: &Chain) -> Result<()> {
    let arguments = [
        "info",
        "-U",
        "-f",
        "qcow2",
        "--backing-chain",
        "--output=json",
    ];
    let folder = image.parent().unwrap_or(Path::new("/"));
    let answer = qemu_img::run(&arguments, image, folder)?;
    let infos: Vec<Info> = serde_json::from_slice(&answer).map_err(|e| Error::Qemu {
        program: "qemu-img",
        path: image.to_owned(),
        reason: format!("its answer is not understood: {e}"),
    })?;
    let same = infos.len() == chain.images.len()
        && infos.iter().zip(&chain.images).all(|(info, ours)| {
            let specific = info.format_specific.as_ref();
            let data = specific.and_then(|s| s.data.data_file.as_ref());
            let data = data
                .map(|d| folder.join(d))
                .map(|d| d.canonicalize().unwrap_or(d));
            info.filename
                .canonicalize()
                .is_ok_and(|path| path == ours.path)
                && info.format == ours.format
                && info.virtual_size == ours.virtual_size
                && data == ours.data_file
        });
    if same {
        Ok(())
    } else {
        Err(Error::image(
            image,
            "qemu-img sees another chain of backing files than its headers tell",
        ))
    }
}

#[cfg(test)]
mod tests;
