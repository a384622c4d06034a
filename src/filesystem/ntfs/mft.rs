//! The master file table: from a record's number to a file and its attributes,
//! whichever records those are spread over.
//!
//! The MFT is itself a file whose first record says where the others are, those
//! that extend the first one too; so opening it goes from piece to piece.
#![deny(clippy::arithmetic_side_effects)]

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::attribute::{self, Attribute};
use super::attribute_list::{self, Entry, MAX_LIST};
use super::boot::Boot;
use super::record::Record;
use super::stream::{Sizes, Stream, Volume, sizes};
use crate::error::{Error, Result};
use crate::filesystem::field::index;
use crate::image::BlockRead;

/// Runs of fragmented files that are kept in memory: 16 MiB, or one file's.
const KEPT_RUNS: usize = 1 << 20;

/// Extension records that one enumeration of a file's attributes reads at most.
const MAX_EXTENSIONS: usize = 16 << 10;

/// The MFT.
pub(super) struct Mft {
    pub(super) volume: Volume,
    data: Stream,
    kept: Mutex<Kept>,
}

/// Values whose run lists are spread over several records, by inode, type and
/// name: reading those again for each read of the file would be slow.
struct Kept {
    streams: LruCache<(u64, u32, Vec<u8>), Arc<Stream>>,
    runs: usize,
}

/// A file: its first record, and the list of the others if there are any.
#[derive(Debug)]
pub(super) struct File {
    pub(super) record: Record,
    list: Option<Vec<u8>>,
}

impl Mft {
    /// Reads the boot sector and the MFT's own record.
    pub(super) fn open(source: Arc<dyn BlockRead>) -> Result<Self> {
        let mut sector = [0; 512];
        source.read_at(0, &mut sector)?;
        let mut boot = Boot::parse(&sector)?;
        // What lies past the end of the volume is not to be had.
        let held = source.size().checked_div(boot.cluster).unwrap_or(0);
        boot.clusters = boot.clusters.min(held);
        let volume = Volume { source, boot };
        let (mft, mirror) = (volume.boot.mft, volume.boot.mirror);
        match Self::from_record(&volume, mft) {
            Ok(data) => Ok((data, volume)),
            Err(error @ Error::WouldWait) => Err(error),
            Err(error) => match Self::from_record(&volume, mirror) {
                Ok(data) => Ok((data, volume)),
                Err(second @ Error::WouldWait) => Err(second),
                Err(_) => Err(error),
            },
        }
        .map(|(data, volume)| {
            let kept = Kept {
                streams: LruCache::unbounded(),
                runs: 0,
            };
            Self {
                volume,
                data,
                kept: Mutex::new(kept),
            }
        })
    }

    /// The MFT's data, by its record at byte `offset` of the volume.
    fn from_record(volume: &Volume, offset: u64) -> Result<Stream> {
        const WHAT: &str = "NTFS MFT";
        let missing = || Error::corrupt(WHAT, "it does not say where it lies");
        let mut bytes = vec![0; index(volume.boot.record)];
        volume.source.read_at(offset, &mut bytes)?;
        let file = File::new(volume, Record::parse(0, bytes)?)?;
        let first = file
            .record
            .find(attribute::DATA, &[], 0)?
            .ok_or_else(missing)?;
        let mut data = Stream::new(WHAT.into(), &first, volume)?;
        for piece in file.pieces(attribute::DATA, &[]) {
            if piece.lowest == 0 {
                continue;
            }
            let record = if piece.record == 0 {
                Cow::Borrowed(&file.record)
            } else {
                Cow::Owned(read_record(volume, &data, piece.record)?)
            };
            let attribute = record.find(attribute::DATA, &[], piece.lowest)?;
            data.append(&attribute.ok_or_else(missing)?, volume)?;
        }
        Ok(data)
    }

    /// How many runs the MFT has.
    #[cfg(test)]
    pub(super) fn runs(&self) -> usize {
        self.data.runs()
    }

    /// File `number`.
    ///
    /// # Errors
    /// `NotFound` if the record is not in use or only extends another one.
    pub(super) fn file(&self, number: u64) -> Result<File> {
        let record = read_record(&self.volume, &self.data, number)?;
        if record.base() != 0 {
            return Err(Error::not_found(record.what()));
        }
        File::new(&self.volume, record)
    }

    /// The record `number` that extends `file`.
    fn extension<'a>(&self, file: &'a File, number: u64) -> Result<Cow<'a, Record>> {
        if number == file.record.number() {
            return Ok(Cow::Borrowed(&file.record));
        }
        let gone = || Error::corrupt(file.record.what(), "a record that belongs to it is gone");
        match read_record(&self.volume, &self.data, number) {
            Ok(record) if record.base() == file.record.number() => Ok(Cow::Owned(record)),
            Ok(_) | Err(Error::NotFound { .. }) => Err(gone()),
            Err(error) => Err(error),
        }
    }

    /// Calls `each` with the pieces of one attribute, from its beginning on.
    fn each_piece(
        &self,
        file: &File,
        kind: u32,
        name: &[u8],
        only_first: bool,
        each: &mut dyn FnMut(&Attribute<'_>) -> Result<()>,
    ) -> Result<()> {
        if file.list.is_none() {
            return match file.record.find(kind, name, 0)? {
                Some(attribute) => each(&attribute),
                None => Ok(()),
            };
        }
        for piece in file.pieces(kind, name) {
            if only_first && piece.lowest != 0 {
                break;
            }
            let record = self.extension(file, piece.record)?;
            let attribute = record.find(kind, name, piece.lowest)?.ok_or_else(|| {
                Error::corrupt(
                    file.record.what(),
                    format!("attribute {kind:#x} is not in the record that its list names"),
                )
            })?;
            each(&attribute)?;
        }
        Ok(())
    }

    /// The sizes of an attribute's value and its flags, if there is one.
    pub(super) fn sizes(
        &self,
        file: &File,
        kind: u32,
        name: &[u8],
    ) -> Result<Option<(Sizes, u16)>> {
        let mut found = None;
        self.each_piece(file, kind, name, true, &mut |attribute| {
            found = Some((sizes(attribute), attribute.flags));
            Ok(())
        })?;
        Ok(found)
    }

    /// The value of an attribute that is resident by its nature.
    pub(super) fn resident(&self, file: &File, kind: u32, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut found = None;
        self.each_piece(file, kind, name, true, &mut |attribute| {
            found = attribute.value().map(<[u8]>::to_vec);
            Ok(())
        })?;
        Ok(found)
    }

    /// An attribute's value, ready to be read.
    pub(super) fn stream(
        &self,
        file: &File,
        kind: u32,
        name: &[u8],
    ) -> Result<Option<Arc<Stream>>> {
        let key = (file.record.number(), kind, name.to_vec());
        if file.list.is_some()
            && let Some(stream) = self.kept.lock().streams.get(&key)
        {
            return Ok(Some(Arc::clone(stream)));
        }
        let mut stream: Option<Stream> = None;
        self.each_piece(
            file,
            kind,
            name,
            false,
            &mut |attribute| match &mut stream {
                Some(stream) => stream.append(attribute, &self.volume),
                None if attribute.lowest() == 0 => {
                    stream = Some(Stream::new(file.record.what(), attribute, &self.volume)?);
                    Ok(())
                }
                None => Err(Error::corrupt(
                    file.record.what(),
                    "an attribute's beginning is missing",
                )),
            },
        )?;
        let stream = stream.map(Arc::new);
        if file.list.is_some()
            && let Some(stream) = &stream
        {
            self.kept.lock().keep(key, Arc::clone(stream));
        }
        Ok(stream)
    }

    /// A whole value in memory, if there is one; `cap` is the most that it may
    /// have.
    ///
    /// # Errors
    /// `TooLarge` past the cap.
    pub(super) fn value(
        &self,
        file: &File,
        kind: u32,
        name: &[u8],
        cap: u64,
    ) -> Result<Option<Vec<u8>>> {
        let Some(stream) = self.stream(file, kind, name)? else {
            return Ok(None);
        };
        if stream.size() > cap {
            return Err(Error::TooLarge {
                what: file.record.what(),
                limit: cap,
            });
        }
        stream.will_need(&self.volume, 0, stream.size());
        let mut value = vec![0; index(stream.size())];
        stream.read(&self.volume, 0, &mut value, None)?;
        Ok(Some(value))
    }

    /// Calls `each` with every attribute of type `kind` that begins in a record,
    /// in all records of the file.
    pub(super) fn each_of(
        &self,
        file: &File,
        kind: u32,
        each: &mut dyn FnMut(&Attribute<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut visit = |record: &Record| {
            for attribute in record.attributes() {
                let attribute = attribute?;
                if attribute.kind == kind && attribute.lowest() == 0 {
                    each(&attribute)?;
                }
            }
            Ok(())
        };
        let Some(list) = &file.list else {
            return visit(&file.record);
        };
        let entries = attribute_list::entries(list);
        let records: BTreeSet<u64> = entries
            .filter(|entry| entry.kind == kind)
            .map(|entry| entry.record)
            .collect();
        for number in records.into_iter().take(MAX_EXTENSIONS) {
            visit(self.extension(file, number)?.as_ref())?;
        }
        Ok(())
    }

    /// Calls `each` with the names of the file's streams, as on disk.
    pub(super) fn each_stream(&self, file: &File, each: &mut dyn FnMut(&[u8])) -> Result<()> {
        if let Some(list) = &file.list {
            attribute_list::entries(list)
                .filter(|entry| entry.kind == attribute::DATA && entry.lowest == 0)
                .filter(|entry| !entry.name.is_empty())
                .for_each(|entry| each(entry.name));
            return Ok(());
        }
        for attribute in file.record.attributes() {
            let attribute = attribute?;
            if attribute.kind == attribute::DATA && !attribute.name.is_empty() {
                each(attribute.name);
            }
        }
        Ok(())
    }
}

impl Kept {
    fn keep(&mut self, key: (u64, u32, Vec<u8>), stream: Arc<Stream>) {
        // A value without runs takes memory too.
        let cost = |stream: &Stream| stream.runs().saturating_add(64);
        self.runs = self.runs.saturating_add(cost(&stream));
        if let Some((_, old)) = self.streams.push(key, stream) {
            self.runs = self.runs.saturating_sub(cost(&old));
        }
        while self.runs > KEPT_RUNS && self.streams.len() > 1 {
            let Some((_, old)) = self.streams.pop_lru() else {
                break;
            };
            self.runs = self.runs.saturating_sub(cost(&old));
        }
    }
}

impl File {
    fn new(volume: &Volume, record: Record) -> Result<Self> {
        let list = match record.find(attribute::ATTRIBUTE_LIST, &[], 0)? {
            None => None,
            Some(attribute) => {
                let what = format!("attribute list of {}", record.what());
                let stream = Stream::new(what.clone(), &attribute, volume)?;
                if stream.size() > MAX_LIST {
                    return Err(Error::corrupt(what, "it is longer than one can be"));
                }
                let mut list = vec![0; index(stream.size())];
                stream.read(volume, 0, &mut list, None)?;
                Some(list)
            }
        };
        Ok(Self { record, list })
    }

    /// The pieces of one attribute by the attribute list, from its beginning on.
    fn pieces(&self, kind: u32, name: &[u8]) -> Vec<Entry<'_>> {
        let list = self.list.as_deref().unwrap_or_default();
        let mut pieces: Vec<_> = attribute_list::entries(list)
            .filter(|entry| entry.kind == kind && entry.name == name)
            .collect();
        pieces.sort_by_key(|entry| entry.lowest);
        pieces
    }
}

/// Reads MFT record `number`.
fn read_record(volume: &Volume, mft: &Stream, number: u64) -> Result<Record> {
    let size = volume.boot.record;
    let offset = number.checked_mul(size).filter(|offset| {
        offset
            .checked_add(size)
            .is_some_and(|end| end <= mft.size())
    });
    let offset = offset.ok_or_else(|| Error::not_found(format!("NTFS file {number}")))?;
    let mut bytes = vec![0; index(size)];
    mft.read(volume, offset, &mut bytes, None)?;
    Record::parse(number, bytes)
}
