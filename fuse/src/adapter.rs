//! The operations of FUSE in terms of the tree.

use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};
use sendense::filesystem::FileType;
use sendense::image::patience;
use sendense::tree::{Detail, Node, Seek, Tree, read};
use sendense::{Error, Result};

use crate::FOREVER;
use crate::complaints::Complaints;
use crate::convert;
use crate::workers::Workers;

/// Requests that the kernel may have under way in the background (read-ahead).
const MAX_BACKGROUND: u16 = 64;

pub(crate) struct Adapter {
    tree: Arc<Tree>,
    workers: Arc<Workers>,
    xattrs: bool,
    complaints: Arc<Complaints>,
    /// How long one operation may take.
    time_limit: Duration,
    /// The kernel does without `open` and `release` when told so.
    no_open: bool,
}

impl Adapter {
    pub(crate) fn new(
        tree: Arc<Tree>,
        xattrs: bool,
        time_limit: Duration,
        complaints: Arc<Complaints>,
    ) -> Self {
        Self {
            tree,
            workers: Workers::new(),
            xattrs,
            complaints,
            time_limit,
            no_open: false,
        }
    }

    /// Answers `reply` with what `work` finds: on this thread if that needs no
    /// waiting, else on a worker of the disk that `ino` lies on.
    fn answer<T, R>(
        &self,
        operation: &'static str,
        ino: u64,
        reply: R,
        work: impl Fn(&Tree) -> Result<T> + Send + 'static,
        send: impl FnOnce(R, Result<T>) + Send + 'static,
    ) where
        T: 'static,
        R: Send + 'static,
    {
        if let Some(result) = patience::without_waiting(|| guarded(ino, &self.tree, &work)) {
            self.complaints.look_at(operation, ino, &result);
            return send(reply, result);
        }
        let tree = Arc::clone(&self.tree);
        let complaints = Arc::clone(&self.complaints);
        let limit = self.time_limit;
        let lane = Tree::disk_of(ino).unwrap_or(0);
        let job = move || {
            let result = patience::within(limit, || guarded(ino, &tree, &work));
            complaints.look_at(operation, ino, &result);
            send(reply, result);
        };
        self.workers.run(lane, Box::new(job));
    }
}

/// Runs `work`; a panic in it (a bug that foreign data has found) is an error of
/// this one operation.
fn guarded<T>(ino: u64, tree: &Tree, work: &impl Fn(&Tree) -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(|| work(tree))).unwrap_or_else(|_| {
        let reason = "reading it failed unexpectedly";
        Err(Error::corrupt(format!("inode {ino}"), reason))
    })
}

fn send_entry(reply: ReplyEntry, result: Result<Node>, stable_parent: bool) {
    match result {
        Ok(node) => {
            let (entry, attr) = convert::ttls(&node);
            reply.entry_with_ttls(&attr, &entry, &convert::attr(&node.attr), Generation(0));
        }
        // Inside a disk a name that is not there never will be.
        Err(Error::NotFound { .. }) if stable_parent => {
            // Inode number 0 means "no such name", to be kept.
            let nothing = unknown(0, fuser::FileType::RegularFile);
            reply.entry(&FOREVER, &nothing, Generation(0));
        }
        Err(error) => reply.error(convert::errno(&error)),
    }
}

/// Attributes of which nothing is known but the number and the type.
fn unknown(ino: u64, kind: fuser::FileType) -> FileAttr {
    let epoch = std::time::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// An entry of a folder, gathered before the answer is filled.
struct Listed {
    ino: u64,
    name: Vec<u8>,
    kind: FileType,
    next: u64,
    node: Option<Node>,
}

impl Listed {
    fn dot(ino: u64, name: &[u8], next: u64) -> Self {
        Self {
            ino,
            name: name.to_vec(),
            kind: FileType::Directory,
            next,
            node: None,
        }
    }

    fn name(&self) -> &OsStr {
        OsStr::from_bytes(&self.name)
    }
}

/// Positions that the kernel sees: 1 stands for "after `.`", 2 for "after `..`",
/// the tree's own follow. (The tree's positions reach 2⁶² at most.)
const DOTS: u64 = 2;

/// Room for entries in one answer, in bytes. The kernel asks with a buffer of a
/// page to 128 KiB and does not tell us how large; what does not fit is gathered
/// again.
const ROOM: usize = 128 * 1024;

/// Entries of `ino` after `offset`, `.` and `..` among them.
fn list(tree: &Tree, ino: u64, offset: u64, detail: Detail) -> Result<Vec<Listed>> {
    // Bytes of `struct fuse_dirent` and `struct fuse_direntplus` without the name.
    let overhead = match detail {
        Detail::Names => 24,
        Detail::Nodes => 152,
    };
    let mut listed = Vec::new();
    if offset < 1 {
        listed.push(Listed::dot(ino, b".", 1));
    }
    if offset < 2 {
        // A damaged `..` costs itself only.
        let parent = match tree.parent(ino) {
            Err(Error::WouldWait) => return Err(Error::WouldWait),
            parent => parent.unwrap_or(ino),
        };
        listed.push(Listed::dot(parent, b"..", 2));
    }
    let dots = listed.len();
    let mut room = ROOM;
    let read = tree.read_dir(ino, offset.saturating_sub(DOTS), detail, &mut |entry| {
        let size = (entry.name.len().next_multiple_of(8)).saturating_add(overhead);
        if size > room {
            return ControlFlow::Break(());
        }
        room = room.saturating_sub(size);
        listed.push(Listed {
            ino: entry.ino,
            name: entry.name.to_vec(),
            kind: entry.kind,
            next: entry.next.saturating_add(DOTS),
            node: entry.node,
        });
        ControlFlow::Continue(())
    });
    match read {
        Ok(()) => Ok(listed),
        // What was listed before the damage is good; the error comes when the
        // reader asks for what follows.
        Err(error) if listed.len() > dots && !matches!(error, Error::WouldWait) => Ok(listed),
        Err(error) => Err(error),
    }
}

fn send_xattr(reply: ReplyXattr, result: Result<Option<Vec<u8>>>, size: u32) {
    match result {
        Ok(Some(value)) => match u32::try_from(value.len()) {
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len <= size => reply.data(&value),
            _ => reply.error(Errno::ERANGE),
        },
        Ok(None) => reply.error(Errno::ENODATA),
        Err(error) => reply.error(convert::errno(&error)),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        let wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_EXPORT_SUPPORT
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA;
        // Whatever this kernel does not know, it does without.
        let _ = config.add_capabilities(wanted & offered);
        self.no_open = offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        let tree = Arc::clone(&self.tree);
        self.answer(
            "lookup",
            parent.0,
            reply,
            move |tree| tree.lookup(parent.0, &name),
            move |reply, result| {
                let missing = matches!(result, Err(Error::NotFound { .. }));
                send_entry(reply, result, missing && tree.keeps_its_names(parent.0));
            },
        );
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(
            "getattr",
            ino.0,
            reply,
            move |tree| tree.node(ino.0),
            |reply, result| match result {
                Ok(node) => reply.attr(&convert::ttls(&node).1, &convert::attr(&node.attr)),
                Err(error) => reply.error(convert::errno(&error)),
            },
        );
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.answer(
            "readlink",
            ino.0,
            reply,
            move |tree| tree.read_link(ino.0),
            |reply, result| match result {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(convert::errno(&error)),
            },
        );
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Nothing is kept for an open file, so that it survives the release of its
        // disk; the kernel need not even tell us.
        if self.no_open {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let complaints = Arc::clone(&self.complaints);
        self.answer(
            "read",
            ino.0,
            reply,
            move |tree| tree.plan_read(ino.0, offset, u64::from(size)),
            move |reply, plan| match plan {
                Ok(plan) => plan.carry_out(Box::new(move |outcome| match outcome {
                    Ok(bytes) => {
                        reply.data(&bytes);
                        read::recycle(bytes);
                    }
                    Err(error) => {
                        complaints.tell("read", ino.0, &error);
                        reply.error(convert::errno(&error));
                    }
                })),
                Err(error) => reply.error(convert::errno(&error)),
            },
        );
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Nothing to flush: the kernel need not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // Modes are the guest's and not enforced; the kernel need not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if !Tree::on_disk(ino.0) {
            return reply.opened(FileHandle(0), FopenFlags::empty());
        }
        // Going inside a disk attaches it here and not at the first entry, so that
        // the folder's own attributes are the guest's from now on.
        self.answer(
            "opendir",
            ino.0,
            reply,
            move |tree| {
                tree.read_dir(ino.0, 0, Detail::Names, &mut |_| ControlFlow::Break(()))?;
                Ok(tree.keeps_its_names(ino.0))
            },
            |reply, result| match result {
                Ok(true) => reply.opened(
                    FileHandle(0),
                    FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR,
                ),
                Ok(false) => reply.opened(FileHandle(0), FopenFlags::empty()),
                Err(error) => reply.error(convert::errno(&error)),
            },
        );
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.answer(
            "readdir",
            ino.0,
            reply,
            move |tree| list(tree, ino.0, offset, Detail::Names),
            |mut reply, result| match result {
                Ok(listed) => {
                    for entry in &listed {
                        let kind = convert::kind(entry.kind);
                        if reply.add(INodeNo(entry.ino), entry.next, kind, entry.name()) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(convert::errno(&error)),
            },
        );
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.answer(
            "readdirplus",
            ino.0,
            reply,
            move |tree| list(tree, ino.0, offset, Detail::Nodes),
            |mut reply, result| match result {
                Ok(listed) => {
                    for entry in &listed {
                        let (ttl, attr) = match &entry.node {
                            Some(node) => {
                                let (entry, attr) = convert::ttls(node);
                                (entry.min(attr), convert::attr(&node.attr))
                            }
                            // The dots, which the kernel does not keep, and what is
                            // damaged, which it looks up when it is needed.
                            None => (
                                Duration::ZERO,
                                unknown(entry.ino, convert::kind(entry.kind)),
                            ),
                        };
                        if reply.add(
                            INodeNo(entry.ino),
                            entry.next,
                            entry.name(),
                            &ttl,
                            &attr,
                            Generation(0),
                        ) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(convert::errno(&error)),
            },
        );
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.answer(
            "statfs",
            ino.0,
            reply,
            move |tree| Ok(tree.space(ino.0)),
            |reply, result| match result {
                Ok(s) => reply.statfs(
                    s.blocks,
                    s.blocks_free,
                    s.blocks_free,
                    s.files,
                    s.files_free,
                    s.block_size,
                    255,
                    s.block_size,
                ),
                Err(error) => reply.error(convert::errno(&error)),
            },
        );
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !self.xattrs {
            return reply.error(Errno::ENOSYS);
        }
        let name = name.as_bytes().to_vec();
        self.answer(
            "getxattr",
            ino.0,
            reply,
            move |tree| match tree.xattr(ino.0, &name)? {
                Some(value) => Ok((Some(value), true)),
                None => Ok((None, tree.uses_xattr(ino.0, &name)?)),
            },
            move |reply, result| match result {
                // To `ls` this means: do not ask for any other file either.
                Ok((None, false)) => reply.error(Errno::EOPNOTSUPP),
                result => send_xattr(reply, result.map(|(value, _)| value), size),
            },
        );
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.xattrs {
            return reply.error(Errno::ENOSYS);
        }
        self.answer(
            "listxattr",
            ino.0,
            reply,
            move |tree| tree.xattr_names(ino.0),
            move |reply, result| {
                let list = result.map(|names| {
                    let mut list = Vec::new();
                    for name in names {
                        list.extend_from_slice(&name);
                        list.push(0);
                    }
                    Some(list)
                });
                send_xattr(reply, list, size);
            },
        );
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let (Ok(from), Some(what)) = (
            u64::try_from(offset),
            match whence {
                libc::SEEK_DATA => Some(Seek::Data),
                libc::SEEK_HOLE => Some(Seek::Hole),
                _ => None,
            },
        ) else {
            return reply.error(Errno::EINVAL);
        };
        self.answer(
            "lseek",
            ino.0,
            reply,
            move |tree| tree.seek(ino.0, from, what),
            |reply, result| match result {
                Ok(Some(at)) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
                Ok(None) => reply.error(Errno::ENXIO),
                Err(error) => reply.error(convert::errno(&error)),
            },
        );
    }

    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {
        // Numbers say what they stand for; nothing is kept that could be forgotten.
    }
}
