//! ZIP, written from front to back.
//!
//! The idea: everything goes through one row of [`Step`]s in the order of the archive.
//! What is compressed is under way in the pool meanwhile, and offsets, sizes and
//! checksums are settled when a step comes to its turn. A file of one block is
//! compressed whole before its header is written, so its header says all; a longer one
//! says its sizes behind its data.
//!
//! Links are entries that hold their target; other names of a file are files of their
//! own; devices, pipes and sockets have no form that others restore, and are left out.

mod directory;
mod extensions;
mod record;

use std::os::unix::ffi::OsStrExt;
use std::sync::LazyLock;

use flate2::{Compress, Compression, FlushCompress};
use nix::fcntl::readlinkat;
use nix::sys::stat::{FileStat, SFlag};

use self::directory::Directory;
use self::record::{Form, Meta, Method, Sizes, needs_zip64};
use super::account::Account;
use super::pool::{Block, How, Packed, Pending, Pool, Underway, WINDOW};
use super::probe::{Probe, STRETCH, is_worthwhile};
use super::source::{Source, broken};
use super::walk::{Found, Visitor};
use super::writer::Writer;
use super::{Result, Summary, reason};

/// Bytes that are compressed as one block.
const BLOCK: usize = 256 * 1024;
/// The longest name.
const MOST_NAME: usize = 0xffff;
/// Buffers that are kept for the next blocks.
const SPARE: usize = 2;

/// A ZIP archive in the making.
pub(super) struct Zip<'a> {
    writer: Writer<'a>,
    pool: &'a Pool,
    account: Account,
    underway: Underway<Step>,
    directory: Directory,
    /// The long file whose blocks come out now.
    open: Option<Open>,
    /// Buffers for blocks.
    spare: Vec<Vec<u8>>,
    /// Tries whether data shrinks.
    probe: Probe,
}

/// What is to be done, in the order of the archive.
enum Step {
    /// An entry whose data is one block.
    Whole(Meta, Pending),
    /// A long file begins.
    Begin(Meta, Form),
    /// Its next block.
    Part(Pending),
    /// A block of it that lies in a hole behind a block that is all hole.
    Hole,
    /// It ends.
    End,
}

/// A long file whose blocks come out.
struct Open {
    meta: Meta,
    form: Form,
    offset: u64,
    packed: u64,
    checksum: crc32fast::Hasher,
    size: u64,
}

/// A block of zeros after zeros, which is the same wherever it stands.
static ZEROS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let zeros = vec![0; BLOCK];
    let mut deflate = Compress::new(Compression::new(6), false);
    let mut output = Vec::with_capacity(BLOCK);
    let zeros_before = zeros.get(..WINDOW).unwrap_or_default();
    let made = deflate
        .set_dictionary(zeros_before)
        .and_then(|_| deflate.compress_vec(&zeros, &mut output, FlushCompress::Sync));
    match made {
        Ok(_) => output,
        // Nothing that a decoder could take for data.
        Err(_) => Vec::new(),
    }
});

static ZEROS_CHECKSUM: LazyLock<crc32fast::Hasher> = LazyLock::new(|| {
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&vec![0; BLOCK]);
    checksum
});

impl<'a> Zip<'a> {
    pub(super) fn new(writer: Writer<'a>, pool: &'a Pool, account: Account) -> Self {
        Self {
            writer,
            pool,
            account,
            underway: Underway::new(pool, BLOCK),
            directory: Directory::new(),
            open: None,
            spare: Vec::new(),
            probe: Probe::new(),
        }
    }

    /// Writes the list of what is missing, and the directory.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub(super) fn finish(mut self) -> Result<Summary> {
        if let Some((name, text)) = self.account.list() {
            let now = jiff::Timestamp::now().as_second();
            let meta = Meta {
                name: name.into_bytes(),
                mode: SFlag::S_IFREG.bits() | 0o644,
                modified: now,
                accessed: now,
            };
            self.whole(meta, text, How::Deflate { last: true })?;
        }
        while self.settle()? {}
        let Self {
            mut writer,
            directory,
            account,
            ..
        } = self;
        let start = writer.position();
        let entries = directory.entries();
        directory.each(|bytes| writer.write(bytes))?;
        let length = writer.position().saturating_sub(start);
        writer.write(&record::end(entries, start, length))?;
        let mut summary = account.summary;
        summary.written = writer.finish()?;
        Ok(summary)
    }

    /// Adds an entry whose data is at hand.
    fn whole(&mut self, meta: Meta, data: Vec<u8>, how: How) -> Result<()> {
        let bytes = data.capacity();
        let pending = self.pool.submit(Block {
            buffer: data,
            history: 0,
            how,
        });
        self.step(Step::Whole(meta, pending), bytes)
    }

    /// Adds a step, and settles the oldest ones while too much is under way.
    fn step(&mut self, step: Step, bytes: usize) -> Result<()> {
        self.underway.push(step, bytes);
        while self.underway.is_full() {
            self.settle()?;
        }
        Ok(())
    }

    /// Writes the oldest step; false if there is none.
    fn settle(&mut self) -> Result<bool> {
        let Some(step) = self.underway.pop() else {
            return Ok(false);
        };
        self.writer.check()?;
        match step {
            Step::Whole(meta, pending) => {
                let packed = pending.wait(|| self.writer.check())?;
                self.write_whole(&meta, packed)?;
            }
            Step::Begin(meta, form) => {
                let offset = self.writer.position();
                self.writer.write(&meta.local(form, Sizes::default()))?;
                self.open = Some(Open {
                    meta,
                    form,
                    offset,
                    packed: 0,
                    checksum: crc32fast::Hasher::new(),
                    size: 0,
                });
            }
            Step::Part(pending) => {
                let packed = pending.wait(|| self.writer.check())?;
                let stored = self
                    .open
                    .as_ref()
                    .is_some_and(|open| open.form.method == Method::Stored);
                let bytes = if stored {
                    packed.data()
                } else {
                    &packed.output
                };
                let size = packed.data().len();
                self.write_part(bytes, size, &packed.checksum)?;
                if packed.buffer.capacity() >= BLOCK && self.spare.len() < SPARE {
                    self.spare.push(packed.buffer);
                }
            }
            Step::Hole => self.write_part(&ZEROS, BLOCK, &ZEROS_CHECKSUM)?,
            Step::End => {
                if let Some(open) = self.open.take() {
                    let sizes = Sizes {
                        crc: open.checksum.finalize(),
                        packed: open.packed,
                        size: open.size,
                    };
                    self.writer.write(&open.form.descriptor(sizes))?;
                    self.directory
                        .push(&open.meta.central(open.form, sizes, open.offset))?;
                }
            }
        }
        Ok(true)
    }

    fn write_whole(&mut self, meta: &Meta, packed: Packed) -> Result<()> {
        let (data, output) = (packed.data(), packed.output.as_slice());
        let deflated = !output.is_empty() && is_worthwhile(output.len(), data.len());
        let (method, bytes) = if deflated {
            (Method::Deflated, output)
        } else {
            (Method::Stored, data)
        };
        let form = Form {
            method,
            descriptor: false,
            zip64: false,
        };
        let sizes = Sizes {
            crc: packed.checksum.clone().finalize(),
            packed: bytes.len() as u64,
            size: data.len() as u64,
        };
        let offset = self.writer.position();
        self.writer.write(&meta.local(form, sizes))?;
        self.writer.write(bytes)?;
        self.directory.push(&meta.central(form, sizes, offset))
    }

    fn write_part(
        &mut self,
        bytes: &[u8],
        size: usize,
        checksum: &crc32fast::Hasher,
    ) -> Result<()> {
        self.writer.write(bytes)?;
        if let Some(open) = &mut self.open {
            open.packed = open.packed.saturating_add(bytes.len() as u64);
            open.size = open.size.saturating_add(size as u64);
            open.checksum.combine(checksum);
        }
        Ok(())
    }

    /// Whether any of a long file shrinks, of which the first block is at hand: judged by
    /// that and by what lies at three more places.
    fn shrinks(&mut self, first: &[u8], source: &mut Source) -> bool {
        if self.probe.shrinks(first) {
            return true;
        }
        let mut sample = Vec::new();
        let place = source.size.saturating_sub(source.left());
        let places = [source.size / 4, source.size / 2, source.size / 4 * 3];
        let found = places.into_iter().filter(|at| *at >= place).any(|at| {
            source.seek(at);
            sample.clear();
            // What cannot be read there is told when its turn comes.
            source.read(STRETCH.saturating_mul(3), &mut sample).is_ok()
                && self.probe.shrinks(&sample)
        });
        source.seek(place);
        found
    }

    fn file(&mut self, found: &Found<'_>) -> Result<()> {
        let mut source = match Source::open(found) {
            Ok(source) => source,
            Err(error) => {
                let sentence = format!("the file could not be opened: {}", reason(&error));
                return self.unread(found.path, sentence);
            }
        };
        let first = usize::try_from(source.size)
            .unwrap_or(usize::MAX)
            .min(BLOCK);
        let long = source.size > first as u64;
        let hole = long && source.skip_hole(first);
        let mut buffer = if long {
            self.spare()
        } else {
            Vec::with_capacity(first)
        };
        if hole {
            buffer.resize(first, 0);
        } else if let Err(error) = source.read(first, &mut buffer) {
            let sentence = format!("the file could not be read: {}", reason(&error));
            return self.unread(found.path, sentence);
        }
        self.account.file(source.size)?;
        let meta = meta(found.path.to_vec(), &source.stat);
        let packed_already = extensions::is_packed(found.name);
        if !long {
            let how = if packed_already || first == 0 {
                How::Store
            } else {
                How::Deflate { last: true }
            };
            return self.whole(meta, buffer, how);
        }
        let method = if packed_already || !(hole || self.shrinks(&buffer, &mut source)) {
            Method::Stored
        } else {
            Method::Deflated
        };
        self.long(found.path, meta, method, source, buffer, hole)
    }

    /// Adds a file of more than one block, the first of which is in `buffer`.
    fn long(
        &mut self,
        path: &[u8],
        meta: Meta,
        method: Method,
        mut source: Source,
        mut buffer: Vec<u8>,
        mut hole: bool,
    ) -> Result<()> {
        let form = Form {
            method,
            descriptor: true,
            zip64: needs_zip64(source.size),
        };
        self.step(Step::Begin(meta, form), 0)?;
        let mut history = 0;
        loop {
            let last = source.left() == 0;
            let how = match method {
                Method::Stored => How::Store,
                Method::Deflated => How::Deflate { last },
            };
            let mut next = self.spare();
            if method == Method::Deflated {
                let tail = buffer.len().saturating_sub(WINDOW).max(history);
                next.extend_from_slice(buffer.get(tail..).unwrap_or_default());
            }
            let block = Block {
                buffer,
                history,
                how,
            };
            let pending = self.pool.submit(block);
            self.step(Step::Part(pending), BLOCK)?;
            // Holes behind a hole need neither reading nor compressing.
            let repeats = hole && method == Method::Deflated && !ZEROS.is_empty();
            while repeats && source.left() > BLOCK as u64 && source.skip_hole(BLOCK) {
                self.step(Step::Hole, 0)?;
            }
            if last {
                return self.step(Step::End, 0);
            }
            let left = usize::try_from(source.left()).unwrap_or(usize::MAX);
            let length = left.min(BLOCK);
            history = next.len();
            hole = source.skip_hole(length);
            if hole {
                next.resize(history.saturating_add(length), 0);
            } else {
                source
                    .read(length, &mut next)
                    .map_err(|error| broken(path, &error))?;
            }
            hole = hole && length == BLOCK;
            buffer = next;
        }
    }

    /// A buffer for a block and what lies before it.
    fn spare(&mut self) -> Vec<u8> {
        match self.spare.pop() {
            Some(mut buffer) => {
                buffer.clear();
                buffer
            }
            None => Vec::with_capacity(BLOCK.saturating_add(WINDOW)),
        }
    }
}

impl Visitor for Zip<'_> {
    fn entry(&mut self, found: &Found<'_>) -> Result<()> {
        self.account.name(found.path);
        let kind = found.kind();
        if found.path.len() >= MOST_NAME {
            let sentence = "its path is longer than a ZIP file can hold (65,535 bytes)";
            return self.unread(found.path, sentence.to_owned());
        }
        if kind == SFlag::S_IFREG {
            self.file(found)
        } else if kind == SFlag::S_IFDIR {
            let name = [found.path, b"/"].concat();
            self.account.summary.folders = self.account.summary.folders.saturating_add(1);
            self.whole(meta(name, found.stat), Vec::new(), How::Store)
        } else if kind == SFlag::S_IFLNK {
            match readlinkat(found.folder, found.name) {
                Ok(target) => {
                    self.account.summary.links = self.account.summary.links.saturating_add(1);
                    let meta = meta(found.path.to_vec(), found.stat);
                    self.whole(meta, target.as_bytes().to_vec(), How::Store)
                }
                Err(errno) => {
                    let sentence = format!("the link could not be read: {}", errno.desc());
                    self.unread(found.path, sentence)
                }
            }
        } else {
            let sentence = "devices, pipes and sockets have no form in a ZIP file";
            self.unread(found.path, sentence.to_owned())
        }
    }

    fn unread(&mut self, path: &[u8], reason: String) -> Result<()> {
        self.account.left_out(path, reason);
        Ok(())
    }
}

fn meta(name: Vec<u8>, stat: &FileStat) -> Meta {
    Meta {
        name,
        mode: stat.st_mode,
        modified: stat.st_mtime,
        accessed: stat.st_atime,
    }
}
