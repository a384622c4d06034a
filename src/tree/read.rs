//! Reading file data: a plan made of what is known, then large parallel reads
//! straight into the answer.
//!
//! A [`ReadPlan`] is made from the file's extents (metadata, through the block
//! cache) and then carried out without any thread waiting: each piece that lies
//! on the disk is asked for at once, and whichever comes last hands the whole
//! buffer on. The buffer is one allocation, split for the requests and joined
//! again without copying.
//!
//! Small files are the exception: their neighbours on the disk are small files
//! too, which are likely to be asked for soon, so they go through the block cache
//! and its read-ahead. That pays even where files that are read one after the
//! other lie far apart.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;

use super::attached::AttachedDisk;
use super::repair;
use crate::error::{Error, Result};
use crate::filesystem::{Check, Extent, FileSystem, LARGEST_READ};
use crate::image::{BlockRead, Completion, patience};
use crate::volume::{Run, VolumeReader};

/// Files up to this size (in bytes) are read through the block cache.
pub(crate) const SMALL_FILE: u64 = 64 * 1024;

/// How long it may take to read anew what was wrong.
const REPAIR_LIMIT: Duration = Duration::from_secs(30);

/// Buffers kept for the next read.
const SPARE_BUFFERS: usize = 8;
/// Their size in bytes: the most that the kernel asks for at once.
const SPARE_SIZE: usize = 1024 * 1024;
/// Bytes of a page of memory.
const MEMORY_PAGE: usize = 4096;

static SPARE: Mutex<Vec<BytesMut>> = Mutex::new(Vec::new());

/// A buffer of `len` bytes whose content is arbitrary, from the spare ones if
/// there is one: a fresh one of a megabyte costs page faults and clearing.
///
/// It begins at a page: the kernel copies page by page, and one of its pages
/// would lie across two of ours.
fn buffer(len: usize) -> BytesMut {
    if len <= SPARE_SIZE
        && let Some(mut spare) = SPARE.lock().pop()
    {
        spare.resize(len, 0);
        return spare;
    }
    let mut buf = BytesMut::with_capacity(len.max(SPARE_SIZE).saturating_add(MEMORY_PAGE));
    // Below a page, whatever the pointer is.
    let unaligned = buf.as_ptr().align_offset(MEMORY_PAGE).min(MEMORY_PAGE);
    buf.resize(unaligned.saturating_add(len), 0);
    buf.advance(unaligned);
    buf
}

/// Takes back the buffer of an answer that was sent.
pub fn recycle(buf: BytesMut) {
    let mut spare = SPARE.lock();
    if spare.len() < SPARE_BUFFERS && buf.capacity() >= SPARE_SIZE {
        spare.push(buf);
    }
}

/// Frees the spare buffers.
pub fn free_spare_buffers() {
    SPARE.lock().clear();
}

enum Piece {
    Disk {
        device: usize,
        offset: u64,
        len: usize,
    },
    Zeros {
        len: usize,
    },
    Bytes(Bytes),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Disk { len, .. } | Self::Zeros { len } => *len,
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

/// What a read comes down to.
pub struct ReadPlan(Kind);

enum Kind {
    /// The bytes are here.
    Ready(BytesMut),
    /// They have to be gathered from the disk.
    Gather {
        disk: Arc<AttachedDisk>,
        pieces: Vec<Piece>,
        /// What is to be asked before they are believed.
        checks: Checks,
    },
}

/// Parts of a file's bytes that can be checked.
struct Checks {
    /// The file, as a place within the disk.
    local: u64,
    /// Where in it the read begins.
    offset: u64,
    /// Which bytes of the answer, and the question.
    parts: Vec<(Range<usize>, Check)>,
}

impl ReadPlan {
    /// An answer that is at hand.
    pub(crate) fn ready(bytes: BytesMut) -> Self {
        Self(Kind::Ready(bytes))
    }

    /// `len` bytes of the disk itself from `offset`; the range lies on it.
    pub(crate) fn raw(disk: Arc<AttachedDisk>, offset: u64, len: u64) -> Self {
        let len = len_of(len);
        Self(Kind::Gather {
            disk,
            pieces: vec![Piece::Disk {
                device: 0,
                offset,
                len,
            }],
            checks: Checks {
                local: 0,
                offset,
                parts: Vec::new(),
            },
        })
    }

    /// Bytes `offset..offset + len` of the file at `local`, cut at its end.
    ///
    /// # Errors
    /// From the file system.
    pub(crate) fn file(
        disk: &Arc<AttachedDisk>,
        local: u64,
        offset: u64,
        len: u64,
    ) -> Result<Self> {
        let (fs, volume, ino) = disk.file(local)?;
        let reader = volume.reader.as_ref();
        let mut extents = Vec::new();
        let len = len.min(LARGEST_READ);
        fs.extents(ino, offset, len, &mut extents)?;
        let found = extents.iter().map(extent_len).fold(0, u64::saturating_add);
        let size = if found < len || found <= SMALL_FILE {
            Some(fs.attr(ino)?.size)
        } else {
            None
        };
        // The kernel takes a short answer for the end of the file, and keeps it.
        if size.is_some_and(|size| found < len && offset.saturating_add(found) < size) {
            return Err(Error::corrupt(
                format!("inode {ino} of {}", volume.volume.name),
                format!("its map ends at byte {}", offset.saturating_add(found)),
            ));
        }
        if size.is_some_and(|size| size <= SMALL_FILE) {
            return cached(fs, reader, ino, offset, &extents);
        }
        let mut pieces = Vec::with_capacity(extents.len());
        let mut checks = Vec::new();
        let mut runs: Vec<Run> = Vec::new();
        let mut at = offset;
        for extent in extents {
            let extent_len = extent_len(&extent);
            if let Extent::Checked { check, .. } = &extent {
                let begin = len_of(at.saturating_sub(offset));
                let end = begin.saturating_add(len_of(extent_len));
                checks.push((begin..end, check.clone()));
            }
            match extent {
                Extent::Volume { offset, len } | Extent::Checked { offset, len, .. } => {
                    runs.clear();
                    reader.mapping().runs(offset, len, &mut runs)?;
                    pieces.extend(runs.iter().map(|run| Piece::Disk {
                        device: run.device,
                        offset: run.offset,
                        len: len_of(run.len),
                    }));
                }
                Extent::Hole { len } => pieces.push(Piece::Zeros { len: len_of(len) }),
                Extent::Bytes(bytes) => pieces.push(Piece::Bytes(bytes)),
                Extent::Decode { len } => {
                    // Takes longer than those may wait who wait for this thread.
                    if len > SMALL_FILE {
                        patience::may_wait()?;
                    }
                    let mut buf = buffer(len_of(len));
                    decode(fs, ino, at, &mut buf)?;
                    if len == found {
                        return Ok(Self::ready(buf));
                    }
                    pieces.push(Piece::Bytes(buf.freeze()));
                }
            }
            at = at.saturating_add(extent_len);
        }
        Ok(Self(Kind::Gather {
            disk: Arc::clone(disk),
            pieces,
            checks: Checks {
                local,
                offset,
                parts: checks,
            },
        }))
    }

    /// Carries the plan out. `done` is called once, on this thread or on one
    /// that receives from the disk.
    pub fn carry_out(self, done: Completion) {
        match self.0 {
            Kind::Ready(bytes) => done(Ok(bytes)),
            Kind::Gather {
                disk,
                pieces,
                checks,
            } => {
                // The disk stays attached until the answer is given.
                let attached = Arc::clone(&disk);
                let done = Box::new(move |outcome| match outcome {
                    Ok(bytes) => checks.ask(bytes, attached, done),
                    Err(error) => {
                        done(Err(error));
                        drop(attached);
                    }
                });
                gather(&disk, pieces, done);
            }
        }
    }
}

impl Checks {
    /// Hands the bytes on, those that are wrong read anew by the file system, on
    /// a thread that may wait for that.
    fn ask(self, bytes: BytesMut, disk: Arc<AttachedDisk>, done: Completion) {
        let is_wrong = |(part, check): &(Range<usize>, Check)| {
            !bytes.get(part.clone()).is_some_and(|b| check.is_right(b))
        };
        let wrong: Vec<_> = self.parts.iter().filter(|part| is_wrong(part)).collect();
        if wrong.is_empty() {
            return done(Ok(bytes));
        }
        let wrong: Vec<_> = wrong.into_iter().map(|(part, _)| part.clone()).collect();
        let (local, offset) = (self.local, self.offset);
        repair::later(move || {
            let outcome = patience::within(REPAIR_LIMIT, || {
                let mut bytes = bytes;
                let (fs, _, ino) = disk.file(local)?;
                for part in wrong {
                    let at = offset.saturating_add(part.start as u64);
                    if let Some(target) = bytes.get_mut(part) {
                        decode(fs, ino, at, target)?;
                    }
                }
                Ok(bytes)
            });
            done(outcome);
        });
    }
}

/// A small file's bytes through the block cache.
fn cached(
    fs: &dyn FileSystem,
    reader: &VolumeReader,
    ino: u64,
    offset: u64,
    extents: &[Extent],
) -> Result<ReadPlan> {
    let total: u64 = extents.iter().map(extent_len).sum();
    let mut buf = BytesMut::zeroed(len_of(total));
    let mut rest: &mut [u8] = &mut buf;
    let mut at = offset;
    for extent in extents {
        let len = extent_len(extent);
        let Some((target, remaining)) = rest.split_at_mut_checked(len_of(len)) else {
            break;
        };
        match extent {
            Extent::Volume { offset, .. } => reader.read_at(*offset, target)?,
            Extent::Checked { offset, check, .. } => {
                reader.read_at(*offset, target)?;
                if !check.is_right(target) {
                    decode(fs, ino, at, target)?;
                }
            }
            Extent::Hole { .. } => {}
            Extent::Bytes(bytes) => target.copy_from_slice(bytes),
            Extent::Decode { .. } => decode(fs, ino, at, target)?,
        }
        rest = remaining;
        at = at.saturating_add(len);
    }
    Ok(ReadPlan::ready(buf))
}

/// Fills `buf` from what only the reader can produce. Less than it has promised
/// is an error: the rest would be taken for zeros.
fn decode(fs: &dyn FileSystem, ino: u64, offset: u64, buf: &mut [u8]) -> Result<()> {
    let n = fs.read(ino, offset, buf)?;
    if n < buf.len() {
        return Err(Error::corrupt(
            format!("inode {ino}"),
            format!("it ends {} bytes too early", buf.len().saturating_sub(n)),
        ));
    }
    Ok(())
}

/// The pieces of one read that are under way.
struct Gathering {
    state: Mutex<State>,
}

struct State {
    /// In order; `None` while a piece is under way.
    parts: Vec<Option<BytesMut>>,
    missing: usize,
    error: Option<Error>,
    done: Option<Completion>,
}

impl Gathering {
    fn arrived(&self, index: usize, outcome: Result<BytesMut>) {
        let mut state = self.state.lock();
        match outcome {
            Ok(part) => {
                if let Some(slot) = state.parts.get_mut(index) {
                    *slot = Some(part);
                }
            }
            Err(error) => state.error = Some(error),
        }
        state.missing = state.missing.saturating_sub(1);
        if state.missing > 0 {
            return;
        }
        let Some(done) = state.done.take() else {
            return;
        };
        let answer = match state.error.take() {
            Some(error) => Err(error),
            None => {
                let mut parts = std::mem::take(&mut state.parts).into_iter().flatten();
                let mut whole = parts.next().unwrap_or_default();
                for part in parts {
                    whole.unsplit(part);
                }
                Ok(whole)
            }
        };
        drop(state);
        done(answer);
    }
}

fn gather(disk: &AttachedDisk, pieces: Vec<Piece>, done: Completion) {
    // The usual case: one stretch of a disk.
    if let [
        Piece::Disk {
            device,
            offset,
            len,
        },
    ] = pieces.as_slice()
    {
        return submit(disk, *device, *offset, buffer(*len), done);
    }
    let total = pieces.iter().map(Piece::len).fold(0, usize::saturating_add);
    let mut rest = buffer(total);
    let mut parts = Vec::with_capacity(pieces.len());
    let mut requests = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        let mut part = rest.split_to(piece.len().min(rest.len()));
        match piece {
            Piece::Disk { device, offset, .. } => {
                requests.push((index, *device, *offset, part));
                parts.push(None);
                continue;
            }
            Piece::Zeros { .. } => part.fill(0),
            Piece::Bytes(bytes) => part.copy_from_slice(bytes),
        }
        parts.push(Some(part));
    }
    // One more than the requests, for this function itself: the answer is given
    // by whoever comes last, also when there are no requests.
    let gathering = Arc::new(Gathering {
        state: Mutex::new(State {
            parts,
            missing: requests.len().saturating_add(1),
            error: None,
            done: Some(done),
        }),
    });
    for (index, device, offset, part) in requests {
        let gathering = Arc::clone(&gathering);
        let arrived = move |outcome| gathering.arrived(index, outcome);
        submit(disk, device, offset, part, Box::new(arrived));
    }
    gathering.arrived(usize::MAX, Ok(BytesMut::new()));
}

fn submit(disk: &AttachedDisk, device: usize, offset: u64, buf: BytesMut, done: Completion) {
    match disk.device(device) {
        Ok(disk) => disk.submit(offset, buf, done),
        Err(error) => done(Err(error)),
    }
}

pub(crate) fn extent_len(extent: &Extent) -> u64 {
    match extent {
        Extent::Volume { len, .. }
        | Extent::Checked { len, .. }
        | Extent::Hole { len }
        | Extent::Decode { len } => *len,
        Extent::Bytes(bytes) => bytes.len() as u64,
    }
}

/// A length within one read, which is at most [`LARGEST_READ`].
fn len_of(len: u64) -> usize {
    usize::try_from(len).unwrap_or(0)
}
