//! The header of a qcow2 image, as far as it says what else the image needs.
//!
//! Source: `docs/interop/qcow2.rst` of QEMU.

use crate::error::{Error, Result};
use nix::fcntl::OFlag;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Version 2's header ends here; version 3's is longer.
const V2_LENGTH: u64 = 72;
/// `QCOW_MAX_L1_SIZE` of QEMU, in bytes.
const MAX_L1: u64 = 32 << 20;
/// Longest name of a backing file, by the specification.
const MAX_NAME: usize = 1023;

const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
/// Dirty, corrupt, data file, compression type, extended L2 entries.
const INCOMPATIBLE_KNOWN: u64 = 0b1_1111;

const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// What the header of a qcow2 image says. Names are as they stand there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Size of a cluster in bytes.
    pub cluster_size: u64,
    /// Name of the backing file, relative to the image's folder if relative.
    pub backing_file: Option<PathBuf>,
    /// Format of the backing file (`qcow2`, `raw`), where the header says it.
    pub backing_format: Option<String>,
    /// Name of the external data file, likewise.
    pub data_file: Option<PathBuf>,
    pub(super) tables: Tables,
}

/// Where an image's tables lie, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tables {
    pub(super) l1_at: u64,
    pub(super) l1_len: u64,
    pub(super) refcount_at: u64,
    pub(super) refcount_clusters: u64,
    /// A reference count has `1 << refcount_order` bits.
    pub(super) refcount_order: u32,
    /// Entries of the second level take 16 bytes, not 8.
    pub(super) extended_l2: bool,
}

impl Header {
    /// Reads the header of the image at `path`. Opens nothing else, and follows no
    /// symbolic link at its end.
    ///
    /// # Errors
    /// `ImageMissing`, `Io`; `ImageInvalid` when the file is not a whole qcow2
    /// image; `Unsupported` for features that nobody here can read.
    pub fn read(path: &Path) -> Result<Self> {
        let (file, len) = open(path, "the image itself")?;
        Self::read_from(&file, len, path)
    }

    pub(super) fn read_from(file: &File, len: u64, path: &Path) -> Result<Self> {
        let bad = |reason: &str| Error::image(path, reason);
        let io = |e| Error::io(path.display().to_string(), e);
        if len == 0 {
            return Err(bad("the file is empty (0 bytes), not a qcow2 image"));
        }
        let mut head = [0; 104];
        let got = read_up_to(file, &mut head, 0).map_err(io)?;
        let head = head.get(..got).unwrap_or_default();
        if !head.starts_with(&MAGIC) {
            return Err(bad("not a qcow2 image (it does not begin with QFI\\xfb)"));
        }
        let truncated = || bad("the qcow2 image is truncated: it ends within its header");
        let u32_at = |at: usize| {
            field(head, at)
                .map(u32::from_be_bytes)
                .ok_or_else(truncated)
        };
        let u64_at = |at: usize| {
            field(head, at)
                .map(u64::from_be_bytes)
                .ok_or_else(truncated)
        };

        let version = u32_at(4)?;
        if version != 2 && version != 3 {
            return Err(unsupported(path, format!("qcow2 version {version}")));
        }
        let bits = u32_at(20)?;
        if !(9..=21).contains(&bits) {
            return Err(bad("the qcow2 header is damaged: impossible cluster size"));
        }
        let cluster_size = 1_u64 << bits;
        if u32_at(32)? != 0 {
            return Err(unsupported(path, "the image is encrypted"));
        }
        let virtual_size = u64_at(24)?;
        if virtual_size > i64::MAX.unsigned_abs() {
            return Err(bad("the qcow2 header is damaged: impossible disk size"));
        }
        let (incompatible, refcount_order, header_length) = if version == 2 {
            (0, 4, V2_LENGTH)
        } else {
            (u64_at(72)?, u32_at(96)?, u64::from(u32_at(100)?))
        };
        if incompatible & !INCOMPATIBLE_KNOWN != 0 {
            let unknown = incompatible & !INCOMPATIBLE_KNOWN;
            return Err(unsupported(
                path,
                format!("unknown qcow2 features {unknown:#x}"),
            ));
        }
        if header_length < V2_LENGTH || header_length > cluster_size {
            return Err(bad("the qcow2 header is damaged: impossible header length"));
        }
        let l1_len = u64::from(u32_at(36)?).saturating_mul(8);
        if l1_len > MAX_L1 {
            return Err(bad("the qcow2 header is damaged: impossible table size"));
        }
        let tables = Tables {
            l1_at: u64_at(40)?,
            l1_len,
            refcount_at: u64_at(48)?,
            refcount_clusters: u64::from(u32_at(56)?),
            refcount_order,
            extended_l2: incompatible & INCOMPATIBLE_EXTENDED_L2 != 0,
        };
        if tables.refcount_order > 6 {
            return Err(bad(
                "the qcow2 header is damaged: impossible reference counts",
            ));
        }
        // Both are written in full when they are made.
        let refcount_len = tables.refcount_clusters.saturating_mul(cluster_size);
        if tables.l1_at.saturating_add(l1_len) > len
            || tables.refcount_at.saturating_add(refcount_len) > len
        {
            return Err(bad(
                "the qcow2 image is truncated: it ends before its tables do",
            ));
        }

        let (backing_at, backing_len) = (u64_at(8)?, u32_at(16)?);
        let area = cluster_size.min(len);
        let mut area = vec![0; usize::try_from(area).map_err(|_| truncated())?];
        let got = read_up_to(file, &mut area, 0).map_err(io)?;
        area.truncate(got);
        let backing_file = if backing_at == 0 || backing_len == 0 {
            None
        } else {
            let name = slice(&area, backing_at, u64::from(backing_len))
                .filter(|name| name.len() <= MAX_NAME && !name.contains(&0))
                .ok_or_else(|| bad("the qcow2 header is damaged: no sound backing file name"))?;
            Some(PathBuf::from(std::ffi::OsStr::from_bytes(name)))
        };
        let extensions_end = if backing_at == 0 {
            cluster_size
        } else {
            backing_at
        };
        let (mut backing_format, mut data_file) = (None, None);
        let mut at = header_length;
        // Each turn goes on by 8 bytes at least, within one cluster.
        while at < extensions_end {
            // An image may end where its extensions do.
            let Some(kind) = number(&area, at).filter(|&kind| kind != 0) else {
                break;
            };
            let (Some(len), Some(start)) = (
                at.checked_add(4).and_then(|at| number(&area, at)),
                at.checked_add(8),
            ) else {
                return Err(truncated());
            };
            let data = slice(&area, start, u64::from(len))
                .filter(|_| start.saturating_add(len.into()) <= extensions_end)
                .ok_or_else(|| bad("the qcow2 header is damaged: an extension is too long"))?;
            match kind {
                EXTENSION_BACKING_FORMAT => {
                    backing_format = Some(String::from_utf8_lossy(data).into_owned());
                }
                EXTENSION_DATA_FILE => {
                    data_file = Some(PathBuf::from(std::ffi::OsStr::from_bytes(data)));
                }
                _ => {}
            }
            at = start.saturating_add(u64::from(len).next_multiple_of(8));
        }
        let external = incompatible & INCOMPATIBLE_DATA_FILE != 0;
        if external && data_file.is_none() {
            return Err(bad(
                "the image needs an external data file and does not name it",
            ));
        }
        let data_file = data_file.filter(|_| external);
        Ok(Self {
            version,
            virtual_size,
            cluster_size,
            backing_file,
            backing_format,
            data_file,
            tables,
        })
    }
}

/// Opens a regular file for reading, without following a symlink at the end and
/// without waiting for a pipe's other end; says its length.
pub(super) fn open(path: &Path, used_by: &str) -> Result<(File, u64)> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Error::ImageMissing {
            path: path.to_owned(),
            used_by: used_by.to_owned(),
        },
        _ => Error::io(format!("{} ({used_by})", path.display()), e),
    };
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let regular = |meta: &std::fs::Metadata| match meta.is_file() {
        true => Ok(()),
        false => Err(Error::image(
            path,
            format!("not a regular file ({used_by})"),
        )),
    };
    // Asked first, because opening a device can have effects.
    regular(&path.symlink_metadata().map_err(failed)?)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    regular(&meta)?;
    Ok((file, meta.len()))
}

fn unsupported(path: &Path, reason: impl Into<String>) -> Error {
    Error::Unsupported {
        what: path.display().to_string(),
        reason: reason.into(),
    }
}

/// Fills `buf` from `at`, less at the end of the file; says how much.
pub(super) fn read_up_to(file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0_usize;
    while let Some(rest) = buf.get_mut(filled..)
        && !rest.is_empty()
    {
        match file.read_at(rest, at.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(n) => filled = filled.saturating_add(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn number(bytes: &[u8], at: u64) -> Option<u32> {
    field(bytes, usize::try_from(at).ok()?).map(u32::from_be_bytes)
}

fn slice(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    let end = at.checked_add(len)?;
    bytes.get(usize::try_from(at).ok()?..usize::try_from(end).ok()?)
}
