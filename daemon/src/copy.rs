//! The copying itself: nodes of the tree to objects of the destination.
//!
//! What goes wrong with one object is told and counted; the rest goes on. Only
//! Ctrl-C ends the copy early. The guest decides the shape of its folders: each
//! folder of it is entered once, and only so deep as descriptors last.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use sendense::filesystem::{Attr, FileType};
use sendense::tree::{Detail, Node, Tree};
use sendense::{Error, Result};

use crate::browse::{DataRanges, Stream};
use crate::destination::{Draft, Folder, Name, Object};
use crate::progress::Progress;
use crate::terminal::escape;

/// Each level of folders holds a descriptor and a stretch of the stack.
const DEEPEST: usize = 512;

/// Entries of a folder that are taken at once.
const BATCH: usize = 1024;

/// How to copy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Folders too.
    pub(crate) recursive: bool,
    /// Replace files that are there.
    pub(crate) force: bool,
    /// Metadata that the destination refuses is an error.
    pub(crate) strict: bool,
    /// Keep owners, and with them set-id bits; make device files.
    pub(crate) root: bool,
}

/// One run of `cp`.
pub(crate) struct Copy<'a> {
    tree: &'a Tree,
    options: Options,
    /// The folder that everything is copied into.
    base: &'a Folder,
    progress: Progress<'a>,
    interrupted: &'a AtomicBool,
    /// The files with several names that were written, by inode number.
    links: HashMap<u64, Written>,
    /// The guest's folders that were entered.
    entered: HashSet<u64>,
    /// The names from `base` to the folder at work.
    names: Vec<Name>,
    /// The path of the object at work, for messages.
    source: Vec<u8>,
    /// What was warned of already.
    warned: HashSet<String>,
    failures: u64,
}

/// Where a file with several names was written.
struct Written {
    folder: Vec<Name>,
    name: Name,
    /// Device and inode number.
    identity: (u64, u64),
}

impl<'a> Copy<'a> {
    /// A run into `base`.
    pub(crate) fn new(
        tree: &'a Tree,
        options: Options,
        base: &'a Folder,
        progress: Progress<'a>,
        interrupted: &'a AtomicBool,
    ) -> Self {
        Self {
            tree,
            options,
            base,
            progress,
            interrupted,
            links: HashMap::new(),
            entered: HashSet::new(),
            names: Vec::new(),
            source: Vec::new(),
            warned: HashSet::new(),
            failures: 0,
        }
    }

    /// Copies the node at `source`, and all below it, to `name` in the base.
    pub(crate) fn copy(&mut self, source: &[u8], node: &Node, name: &Name) {
        self.source = source.to_vec();
        self.entered.clear();
        self.object(self.base, name, node);
    }

    /// Tells of something that could not be copied.
    pub(crate) fn fail(&mut self, source: &[u8], reason: impl std::fmt::Display) {
        self.failures = self.failures.saturating_add(1);
        self.progress
            .complain(&crate::terminal::about(escape(source), reason));
    }

    /// Ends the run; the number of objects that failed.
    pub(crate) fn finish(mut self) -> u64 {
        self.progress.finish();
        self.failures
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Tells of the object at work that it could not be copied.
    fn fail_here(&mut self, reason: impl std::fmt::Display) {
        // An interruption is told once, by the command.
        if !self.interrupted() {
            let source = std::mem::take(&mut self.source);
            self.fail(&source, reason);
            self.source = source;
        }
    }

    fn object(&mut self, folder: &Folder, name: &Name, node: &Node) {
        let attr = &node.attr;
        if attr.kind == FileType::Directory {
            return self.folder(folder, name, attr);
        }
        let result = match self.link(folder, name, attr) {
            Ok(true) => Ok(()),
            Ok(false) => match attr.kind {
                FileType::Regular => self.file(folder, name, attr),
                FileType::Symlink => self.symlink(folder, name, attr),
                _ => self.special(folder, name, attr),
            },
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => self.progress.file(),
            Err(error) => self.fail_here(error),
        }
    }

    fn folder(&mut self, parent: &Folder, name: &Name, attr: &Attr) {
        if !self.options.recursive {
            return self.fail_here("is a folder; give -r to copy it with all that is in it");
        }
        if !self.entered.insert(attr.ino) {
            return self.fail_here(
                "this folder is in two places, which no sound file system has; the second is left \
                 out",
            );
        }
        if self.names.len() >= DEEPEST {
            return self.fail_here(format!("more than {DEEPEST} folders deep; left out"));
        }
        let folder = match parent.make(name) {
            Ok(folder) => folder,
            Err(e) if e.raw_os_error() == Some(nix::libc::ENOTDIR) => {
                return self.fail_here(
                    "something that is no folder (a symbolic link, say) has this name at the \
                     destination; not followed",
                );
            }
            Err(e) => return self.fail_here(e),
        };
        self.names.push(name.clone());
        self.content(&folder, attr.ino);
        self.names.pop();
        if !self.interrupted() {
            // Last: each entry made in it changed its times, and a mode without
            // `w` would have kept them out. Asked for again, because a disk's own
            // folder is the guest's only once somebody has looked inside.
            let fresh = self.tree.node(attr.ino);
            let attr = fresh.as_ref().map_or(attr, |node| &node.attr);
            if let Err(error) = self.metadata(&folder.object(), attr) {
                self.fail_here(error);
            }
        }
    }

    fn content(&mut self, folder: &Folder, ino: u64) {
        let length = self.source.len();
        let mut position = 0;
        loop {
            let mut batch: Vec<(Vec<u8>, u64)> = Vec::new();
            let read = self
                .tree
                .read_dir(ino, position, Detail::Names, &mut |entry| {
                    batch.push((entry.name.to_vec(), entry.ino));
                    position = entry.next;
                    if batch.len() < BATCH {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                });
            let more = batch.len() >= BATCH;
            for (name, ino) in batch {
                if self.interrupted() {
                    return;
                }
                if !self.source.is_empty() {
                    self.source.push(b'/');
                }
                self.source.extend_from_slice(&name);
                match (Name::new(&name), self.tree.node(ino)) {
                    (Ok(name), Ok(node)) => self.object(folder, &name, &node),
                    (Err(error), _) | (_, Err(error)) => self.fail_here(error),
                }
                self.source.truncate(length);
            }
            if let Err(error) = read {
                return self.fail_here(error);
            }
            if !more {
                return;
            }
        }
    }

    /// Makes another name for a file that was written under a first one; false
    /// if this is the first.
    fn link(&mut self, folder: &Folder, name: &Name, attr: &Attr) -> Result<bool> {
        if attr.nlink < 2 {
            return Ok(false);
        }
        let Some(written) = self.links.get(&attr.ino) else {
            return Ok(false);
        };
        self.refuse_existing(folder, name)?;
        let linked = walk(self.base, &written.folder).and_then(|other| {
            let other = other.as_ref().unwrap_or(self.base);
            folder.draft_link(other, &written.name, written.identity)
        });
        match linked {
            Ok(draft) => {
                self.place(draft, name)?;
                self.progress.bytes(attr.size);
                Ok(true)
            }
            // Gone meanwhile, or the destination has no hard links: a copy then.
            Err(error) => {
                self.warn("hard link", &error)?;
                Ok(false)
            }
        }
    }

    fn file(&mut self, folder: &Folder, name: &Name, attr: &Attr) -> Result<()> {
        self.refuse_existing(folder, name)?;
        let (draft, file) = folder.draft_file().map_err(destination)?;
        self.data(&file, attr)?;
        self.metadata(&Object::Open(&file), attr)?;
        self.finish_object(draft, name, attr)
    }

    /// Copies the data and leaves the holes.
    fn data(&mut self, file: &File, attr: &Attr) -> Result<()> {
        let size = attr.size;
        file.set_len(size).map_err(destination)?;
        let tree = self.tree;
        let mut done = 0;
        let mut write = |progress: &mut Progress<'_>, offset: u64, data: &[u8]| {
            file.write_all_at(data, offset).map_err(destination)?;
            let end = offset.saturating_add(data.len() as u64);
            progress.bytes(end.saturating_sub(done));
            done = end;
            Ok::<(), Error>(())
        };
        // A file that takes all its space has no holes to look for.
        if attr.blocks.saturating_mul(512) >= size {
            let whole = std::iter::once(Ok(0..size));
            let mut stream = Stream::new(tree, attr.ino, whole, self.interrupted);
            while let Some((offset, data)) = stream.next()? {
                write(&mut self.progress, offset, &data)?;
            }
        } else {
            let ranges = DataRanges::new(tree, attr.ino, size);
            let mut stream = Stream::new(tree, attr.ino, ranges, self.interrupted);
            while let Some((offset, data)) = stream.next()? {
                write(&mut self.progress, offset, &data)?;
            }
        }
        self.progress.bytes(size.saturating_sub(done));
        Ok(())
    }

    fn symlink(&mut self, folder: &Folder, name: &Name, attr: &Attr) -> Result<()> {
        self.refuse_existing(folder, name)?;
        let target = self.tree.read_link(attr.ino)?;
        let draft = folder.draft_symlink(&target).map_err(destination)?;
        self.metadata(&draft.unopened(attr.kind).map_err(destination)?, attr)?;
        self.finish_object(draft, name, attr)
    }

    fn special(&mut self, folder: &Folder, name: &Name, attr: &Attr) -> Result<()> {
        let device = matches!(attr.kind, FileType::CharDevice | FileType::BlockDevice);
        if device && !self.options.root {
            return self.warn("device file", &io::Error::other("only root can make one"));
        }
        self.refuse_existing(folder, name)?;
        let draft = match folder.draft_node(attr.kind, attr.rdev) {
            Ok(draft) => draft,
            Err(error) => return self.warn("special file", &error),
        };
        self.metadata(&draft.unopened(attr.kind).map_err(destination)?, attr)?;
        self.finish_object(draft, name, attr)
    }

    fn finish_object(&mut self, draft: Draft<'_>, name: &Name, attr: &Attr) -> Result<()> {
        let identity = (attr.nlink > 1)
            .then(|| draft.identity())
            .transpose()
            .map_err(destination)?;
        self.place(draft, name)?;
        if let Some(identity) = identity {
            let written = Written {
                folder: self.names.clone(),
                name: name.clone(),
                identity,
            };
            self.links.insert(attr.ino, written);
        }
        Ok(())
    }

    /// Spares the reading of a file that could not be put in its place.
    fn refuse_existing(&self, folder: &Folder, name: &Name) -> Result<()> {
        let Some(stat) = folder.stat(name).map_err(destination)? else {
            return Ok(());
        };
        if stat.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR {
            return Err(Error::Invalid(
                "the destination has a folder of this name".into(),
            ));
        }
        if self.options.force {
            Ok(())
        } else {
            Err(exists())
        }
    }

    fn place(&self, draft: Draft<'_>, name: &Name) -> Result<()> {
        draft
            .place(name, self.options.force)
            .map_err(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => exists(),
                _ => destination(e),
            })
    }

    fn metadata(&mut self, object: &Object<'_>, attr: &Attr) -> Result<()> {
        let mut xattrs = Vec::new();
        if attr.may_have_xattrs {
            for name in self.tree.xattr_names(attr.ino)? {
                // What the tree says of a volume is no attribute of the guest's.
                if name.starts_with(b"user.sendense.") {
                    continue;
                }
                if let Some(value) = self.tree.xattr(attr.ino, &name)? {
                    xattrs.push((name, value));
                }
            }
        }
        for refused in object.set(attr, &xattrs, self.options.root) {
            self.warn(&refused.what, &refused.error)?;
        }
        Ok(())
    }

    /// Something of the object at work does not come along: an error with
    /// `--strict`, else a warning, the first time.
    fn warn(&mut self, what: &str, error: &io::Error) -> Result<()> {
        if self.options.strict {
            return Err(Error::Invalid(format!("{what}: {error}")));
        }
        if self.warned.insert(what.to_owned()) {
            self.progress.complain(&format!(
                "warning: {}: {what} not kept: {error} (further cases are not told)",
                escape(&self.source)
            ));
        }
        Ok(())
    }
}

/// The folder that `names` lead to; `None` for the base itself.
fn walk(base: &Folder, names: &[Name]) -> io::Result<Option<Folder>> {
    let mut here: Option<Folder> = None;
    for name in names {
        here = Some(here.as_ref().unwrap_or(base).enter(name)?);
    }
    Ok(here)
}

fn destination(error: io::Error) -> Error {
    Error::io("the destination", error)
}

fn exists() -> Error {
    Error::Invalid("the destination has a file of this name; give -f to replace it".into())
}
