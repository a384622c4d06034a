//! The central directory of a ZIP file, kept until its end.
//!
//! The idea: it is the one thing that grows with the number of entries (55 bytes and
//! the name for each), and neighbours in it are much alike. So what is complete is kept
//! deflated and is inflated again, stretch by stretch, when it is written: some 15 to 25
//! bytes for an entry with an ordinary name.

use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use sendense::Error;

use super::super::{ArchiveError, Result};

/// Bytes that are compressed at once.
const STRETCH: usize = 64 * 1024;
/// Fast. The level below it of zlib-rs panics where the room for output ends.
const LEVEL: Compression = Compression::new(2);

/// The records so far.
pub(super) struct Directory {
    stretches: Vec<Box<[u8]>>,
    last: Vec<u8>,
    entries: u64,
}

impl Directory {
    pub(super) fn new() -> Self {
        Self {
            stretches: Vec::new(),
            last: Vec::new(),
            entries: 0,
        }
    }

    /// # Errors
    /// If compressing fails.
    pub(super) fn push(&mut self, record: &[u8]) -> Result<()> {
        self.entries = self.entries.saturating_add(1);
        self.last.extend_from_slice(record);
        if self.last.len() >= STRETCH {
            // Room for all of it at once, shrunk or not.
            let room = self.last.len().saturating_add(self.last.len() / 8);
            let mut packed = Vec::with_capacity(room.saturating_add(1024));
            let status = Compress::new(LEVEL, false)
                .compress_vec(&self.last, &mut packed, FlushCompress::Finish)
                .map_err(failed)?;
            if status != Status::StreamEnd {
                return Err(failed("a stretch of it did not become shorter"));
            }
            self.stretches.push(packed.into_boxed_slice());
            self.last.clear();
        }
        Ok(())
    }

    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// Bytes that are held.
    #[cfg(test)]
    fn held(&self) -> usize {
        self.stretches.iter().map(|stretch| stretch.len()).sum()
    }

    /// Gives all records to `write`, in order.
    ///
    /// # Errors
    /// Those of `write`.
    pub(super) fn each(self, mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut bytes = Vec::with_capacity(STRETCH);
        for stretch in self.stretches {
            let mut inflate = Decompress::new(false);
            let mut rest: &[u8] = &stretch;
            loop {
                bytes.clear();
                let (taken, given) = (inflate.total_in(), inflate.total_out());
                inflate
                    .decompress_vec(rest, &mut bytes, FlushDecompress::None)
                    .map_err(failed)?;
                let taken = inflate.total_in().saturating_sub(taken);
                let taken = usize::try_from(taken).map_err(failed)?;
                rest = rest.get(taken..).unwrap_or_default();
                if inflate.total_out() == given {
                    break;
                }
                write(&bytes)?;
            }
        }
        write(&self.last)
    }
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ArchiveError {
    Error::io("the directory of the archive", io::Error::other(error)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_and_takes_little() {
        let mut directory = Directory::new();
        let mut wanted = Vec::new();
        for number in 0..100_000_u64 {
            let mut record = b"PK\x01\x02 folder/with/a/name/file-".to_vec();
            record.extend_from_slice(&number.wrapping_mul(0x9e37_79b9).to_le_bytes());
            record.resize(80, 1);
            directory.push(&record).unwrap();
            wanted.extend(record);
        }
        assert_eq!(directory.entries(), 100_000);
        assert!(directory.held() < 2_500_000, "{}", directory.held());
        let mut got = Vec::new();
        let each = |bytes: &[u8]| {
            got.extend_from_slice(bytes);
            Ok(())
        };
        directory.each(each).unwrap();
        assert!(got == wanted);
    }

    #[test]
    fn what_does_not_shrink_comes_out_too() {
        let mut directory = Directory::new();
        let mut record = vec![0; 70_000];
        getrandom::fill(&mut record).unwrap();
        directory.push(&record).unwrap();
        let mut got = Vec::new();
        let each = |bytes: &[u8]| {
            got.extend_from_slice(bytes);
            Ok(())
        };
        directory.each(each).unwrap();
        assert!(got == record);
    }
}
