//! How `ls`, `cat` and `cp` reach a backup without a mount: paths of the tree,
//! and file data read ahead.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use bytes::BytesMut;
use sendense::tree::{Node, Seek, Tree};
use sendense::{Error, Result};

/// One read, in bytes.
const PIECE: u64 = 1 << 20;

/// Reads under way at once.
const AHEAD: usize = 4;

/// A path of the tree as the user gave it, without empty components and dots.
///
/// # Errors
/// `Invalid` for `..`: the tree has folders whose parent is not the one before
/// the last slash.
pub(crate) fn normalise(path: &OsStr) -> Result<Vec<u8>> {
    let mut parts = Vec::new();
    for part in path.as_bytes().split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                return Err(Error::Invalid(format!(
                    "{}: `..` is not understood here; give the path from the VM on",
                    path.display()
                )));
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

/// The node at a path of the tree; the empty path is the root.
///
/// # Errors
/// From the tree.
pub(crate) fn find(tree: &Tree, path: &[u8]) -> Result<Node> {
    if path.is_empty() {
        tree.node(Tree::ROOT)
    } else {
        tree.resolve(path)
    }
}

/// The stretches of a file that hold data, found as it is read.
pub(crate) struct DataRanges<'t> {
    tree: &'t Tree,
    ino: u64,
    at: u64,
    size: u64,
}

impl<'t> DataRanges<'t> {
    /// Of a file of `size` bytes.
    pub(crate) fn new(tree: &'t Tree, ino: u64, size: u64) -> Self {
        Self {
            tree,
            ino,
            at: 0,
            size,
        }
    }

    fn step(&mut self) -> Result<Option<Range<u64>>> {
        if self.at >= self.size {
            return Ok(None);
        }
        let Some(start) = self.tree.seek(self.ino, self.at, Seek::Data)? else {
            return Ok(None);
        };
        let end = self
            .tree
            .seek(self.ino, start, Seek::Hole)?
            .unwrap_or(self.size)
            .min(self.size);
        if start < self.at || end <= start {
            return if start >= self.size {
                Ok(None)
            } else {
                Err(Error::corrupt(
                    "the map of holes",
                    format!("it stands still at byte {start}"),
                ))
            };
        }
        self.at = end;
        Ok(Some(start..end))
    }
}

impl Iterator for DataRanges<'_> {
    type Item = Result<Range<u64>>;
    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.at = self.size;
        }
        step.transpose()
    }
}

/// A file's data in order, a few pieces read ahead of whoever takes them.
pub(crate) struct Stream<'t, R> {
    tree: &'t Tree,
    ino: u64,
    ranges: R,
    current: Range<u64>,
    under_way: VecDeque<UnderWay>,
    interrupted: &'t AtomicBool,
}

struct UnderWay {
    offset: u64,
    len: u64,
    answer: Receiver<Result<BytesMut>>,
}

impl<'t, R: Iterator<Item = Result<Range<u64>>>> Stream<'t, R> {
    /// Of the file's bytes in `ranges`.
    pub(crate) fn new(tree: &'t Tree, ino: u64, ranges: R, interrupted: &'t AtomicBool) -> Self {
        Self {
            tree,
            ino,
            ranges,
            current: 0..0,
            under_way: VecDeque::new(),
            interrupted,
        }
    }

    /// The next piece and where it lies in the file; `None` at the end.
    ///
    /// # Errors
    /// From the tree; `Invalid` after Ctrl-C; `Corrupt` for a file that ends
    /// before its size.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, BytesMut)>> {
        while self.under_way.len() < AHEAD {
            if self.current.is_empty() {
                match self.ranges.next() {
                    Some(range) => self.current = range?,
                    None => break,
                }
                continue;
            }
            let offset = self.current.start;
            let len = (self.current.end - offset).min(PIECE);
            self.current.start = offset + len;
            let (sender, answer) = sync_channel(1);
            // At most 1 MiB, so it fits.
            let bytes = usize::try_from(len).unwrap_or(0);
            self.tree.read(
                self.ino,
                offset,
                bytes,
                Box::new(move |result| {
                    // Whoever asked may have given up.
                    let _ = sender.send(result);
                }),
            );
            self.under_way.push_back(UnderWay {
                offset,
                len,
                answer,
            });
        }
        let Some(piece) = self.under_way.pop_front() else {
            return Ok(None);
        };
        loop {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Invalid("interrupted".into()));
            }
            match piece.answer.recv_timeout(Duration::from_millis(200)) {
                Ok(data) => {
                    let data = data?;
                    if data.len() as u64 != piece.len {
                        return Err(Error::corrupt(
                            "the file",
                            format!("it ends before byte {}", piece.offset + piece.len),
                        ));
                    }
                    return Ok(Some((piece.offset, data)));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::io(
                        format!("byte {}", piece.offset),
                        std::io::Error::other("the read was given up"),
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_dots_refused() {
        let clean = |text: &str| normalise(OsStr::new(text)).map(|p| String::from_utf8(p).unwrap());
        assert_eq!(clean("").unwrap(), "");
        assert_eq!(clean("/").unwrap(), "");
        assert_eq!(clean("/vm//latest/./disk0/").unwrap(), "vm/latest/disk0");
        assert!(clean("vm/../other").is_err());
        assert_eq!(clean("vm/..name").unwrap(), "vm/..name");
    }
}
