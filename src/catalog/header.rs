//! The few bytes of a qcow2 header that the catalog needs, read without opening
//! the backing chain (QEMU, docs/interop/qcow2.rst, "Header").
//!
//! To be replaced by the header reader of [`crate::image::chain`].
#![deny(clippy::arithmetic_side_effects)]

use nix::fcntl::{FcntlArg, fcntl};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// The byte that QEMU locks, shared, while it may write to an image
/// (block/file-posix.c: `RAW_LOCK_PERM_BASE` + bit of `BLK_PERM_WRITE`).
const WRITER_LOCK: i64 = 101;

/// What an image's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// Size of the disk in bytes.
    pub(super) virtual_size: u64,
    /// The backing file's name as written there; lossy where it is not UTF-8.
    pub(super) backing: Option<String>,
    /// Whether QEMU has the image open for writing: it is not finished.
    pub(super) being_written: bool,
}

/// Reads the header of a qcow2 image, or says what is wrong with it. Follows no
/// symbolic link and never waits.
pub(super) fn read_qcow2(path: &Path) -> Result<Header, String> {
    let file = open(path)?;
    let size = file.metadata().map_err(|e| e.to_string())?.len();
    if size == 0 {
        return Err("the file is empty".into());
    }
    let mut header = [0_u8; 104];
    let len = read_up_to(&file, &mut header).map_err(|e| e.to_string())?;
    let header = header.get(..len).unwrap_or_default();
    let cut = || format!("is cut short: {size} bytes are fewer than a qcow2 header");
    if !header.starts_with(b"QFI\xfb") {
        return Err("is not a qcow2 image (wrong magic number)".into());
    }
    let word = |at: usize| {
        let bytes = header.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_be_bytes(*bytes))
    };
    let long = |at: usize| {
        let bytes = header.get(at..)?.first_chunk::<8>()?;
        Some(u64::from_be_bytes(*bytes))
    };
    let version = word(4).ok_or_else(cut)?;
    if !matches!(version, 2 | 3) {
        return Err(format!("is of qcow2 version {version}, which is not known"));
    }
    let cluster_bits = word(20).ok_or_else(cut)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(format!(
            "its header is damaged: cluster_bits is {cluster_bits}"
        ));
    }
    let virtual_size = long(24).ok_or_else(cut)?;
    if i64::try_from(virtual_size).is_err() {
        return Err(format!(
            "its header is damaged: the disk's size is {virtual_size}"
        ));
    }
    // Both tables are written in full when the image is made; QEMU itself reads
    // zeros past the end of the file, silently.
    let cluster = 1_u64 << cluster_bits.min(21);
    let tables = [
        (
            "L1 table",
            long(40),
            word(36).map(u64::from).and_then(|n| n.checked_mul(8)),
        ),
        (
            "refcount table",
            long(48),
            word(56).map(u64::from).and_then(|n| n.checked_mul(cluster)),
        ),
    ];
    for (name, offset, len) in tables {
        let end = offset
            .zip(len)
            .and_then(|(offset, len)| offset.checked_add(len));
        if end.ok_or_else(cut)? > size {
            return Err(format!(
                "is cut short: its {name} lies past the end of the file ({size} bytes)"
            ));
        }
    }
    let backing = match (long(8).ok_or_else(cut)?, word(16).ok_or_else(cut)?) {
        (0, _) | (_, 0) => None,
        (offset, len) if len <= 1023 && offset < cluster => {
            let mut name = vec![0; usize::try_from(len).unwrap_or_default()];
            file.read_exact_at(&mut name, offset)
                .map_err(|e| format!("the name of its backing file: {e}"))?;
            Some(String::from_utf8_lossy(&name).into_owned())
        }
        _ => return Err("its header is damaged: the name of the backing file".into()),
    };
    Ok(Header {
        virtual_size,
        backing,
        being_written: is_being_written(&file),
    })
}

/// The size of a raw image, which has no header.
pub(super) fn read_raw(path: &Path) -> Result<Header, String> {
    let file = open(path)?;
    let virtual_size = file.metadata().map_err(|e| e.to_string())?.len();
    if virtual_size == 0 {
        return Err("the file is empty".into());
    }
    Ok(Header {
        virtual_size,
        backing: None,
        being_written: is_being_written(&file),
    })
}

fn open(path: &Path) -> Result<File, String> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(|e| e.to_string())?;
    if !file.metadata().map_err(|e| e.to_string())?.is_file() {
        return Err("is not a regular file".into());
    }
    Ok(file)
}

fn read_up_to(file: &File, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, u64::try_from(done).unwrap_or(u64::MAX)) {
            Ok(0) => break,
            Ok(n) => done = done.saturating_add(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

fn is_being_written(file: &File) -> bool {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: WRITER_LOCK,
        l_len: 1,
        l_pid: 0,
    };
    // A file system without locks tells nothing: then its images count as done.
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok()
        && lock.l_type != libc::F_UNLCK as libc::c_short
}
