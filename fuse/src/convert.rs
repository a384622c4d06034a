//! From the tree's terms to fuser's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, INodeNo};
use sendense::filesystem::{Attr, FileType, Time};
use sendense::tree::{Node, Tree};

use crate::{FOLLOW, FOREVER};

/// Size of the pieces that programs should read in, in bytes.
const BLOCK_SIZE: u32 = 128 * 1024;

pub(crate) fn errno(error: &sendense::Error) -> Errno {
    Errno::from_i32(error.errno())
}

pub(crate) fn kind(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::Regular => fuser::FileType::RegularFile,
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::CharDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::Socket => fuser::FileType::Socket,
    }
}

/// How long the kernel may keep a node's name and its attributes.
///
/// A disk's own name comes from the catalog, which may change; its attributes
/// become the guest's as soon as somebody has looked inside, and must be asked
/// for until then.
pub(crate) fn ttls(node: &Node) -> (Duration, Duration) {
    match (node.named_by_catalog, node.stable) {
        (false, _) => (FOREVER, FOREVER),
        (true, true) => (FOLLOW, FOREVER),
        (true, false) if Tree::on_disk(node.attr.ino) => (FOLLOW, Duration::ZERO),
        (true, false) => (FOLLOW, FOLLOW),
    }
}

pub(crate) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        crtime: time(attr.btime.unwrap_or_default()),
        kind: kind(attr.kind),
        perm: attr.mode & 0o7777,
        // Samba takes a file without links for one that is being deleted.
        nlink: attr.nlink.max(1),
        uid: attr.uid,
        gid: attr.gid,
        rdev: rdev(attr.rdev),
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// FUSE carries device numbers in the kernel's 32-bit encoding (12-bit major,
/// 20-bit minor), not in the 64-bit one of `dev_t`.
fn rdev(dev: u64) -> u32 {
    let (major, minor) = (libc::major(dev), libc::minor(dev));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// A time that the host's clock type cannot hold is shown as 1970.
fn time(time: Time) -> SystemTime {
    let nanoseconds = Duration::from_nanos(u64::from(time.nanoseconds));
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    whole
        .and_then(|whole| whole.checked_add(nanoseconds))
        .unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let before = time(Time {
            seconds: -2,
            nanoseconds: 800_000_000,
        });
        assert_eq!(
            UNIX_EPOCH.duration_since(before).unwrap(),
            Duration::new(1, 200_000_000)
        );
        let far = time(Time {
            seconds: 15_032_385_535,
            nanoseconds: 999_999_999,
        });
        assert_eq!(
            far.duration_since(UNIX_EPOCH).unwrap().as_secs(),
            15_032_385_535
        );
    }

    #[test]
    fn device_numbers_take_the_encoding_of_the_kernel() {
        assert_eq!(rdev(libc::makedev(8, 1)), 0x801);
        assert_eq!(
            rdev(libc::makedev(259, 1_000_000)),
            (1_000_000 & 0xff) | (259 << 8) | ((1_000_000 & 0xf_ff00) << 12)
        );
    }
}
