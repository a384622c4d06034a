//! tar in the pax form: everything that a file of Linux has.
//!
//! The idea: the first block of a file is read before its header is written, so that a
//! file that cannot be read is left out instead of breaking the archive. Other names of
//! a file are links to the first that was written; of sparse files only the data goes
//! in, with a map of it.

mod attributes;
mod pax;
mod stream;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;

use ::tar::EntryType;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag};

use self::pax::{Member, Records, UNIT, sparse_map};
pub(super) use self::stream::Codec;
use self::stream::Stream;
use super::account::Account;
use super::pool::Pool;
use super::source::{Source, broken};
use super::walk::{Found, Visitor};
use super::writer::Writer;
use super::{Result, Summary, reason};

/// Bytes that are read at once.
const BLOCK: usize = 256 * 1024;
/// Files with several names that are remembered, and the bytes of their paths. The
/// names of those beyond become files of their own.
const MOST_LINKS: usize = 200_000;
const MOST_LINK_BYTES: usize = 16 << 20;
/// Stretches of data that a sparse file's map has at most; what follows them is taken
/// for data.
const MOST_STRETCHES: usize = 65_536;
/// Bytes of the blocks that tapes have, which whole archives are filled up to.
const RECORD: u64 = 10_240;

/// A tar archive in the making.
pub(super) struct Tar<'a> {
    stream: Stream<'a>,
    account: Account,
    /// The first paths of files with several names, by device and inode number.
    links: HashMap<(u64, u64), Box<[u8]>>,
    link_bytes: usize,
    /// Data that was read and not written yet.
    block: Vec<u8>,
}

impl<'a> Tar<'a> {
    pub(super) fn new(writer: Writer<'a>, pool: &'a Pool, account: Account, codec: Codec) -> Self {
        Self {
            stream: Stream::new(writer, pool, codec),
            account,
            links: HashMap::new(),
            link_bytes: 0,
            block: Vec::new(),
        }
    }

    /// Writes the list of what is missing, and the end.
    ///
    /// # Errors
    /// [`super::ArchiveError`].
    pub(super) fn finish(mut self) -> Result<Summary> {
        if let Some((name, text)) = self.account.list() {
            let mut header = ::tar::Header::new_ustar();
            header.set_mode(0o644);
            let now = jiff::Timestamp::now().as_second();
            header.set_mtime(u64::try_from(now).unwrap_or(0));
            header.set_uid(0);
            header.set_gid(0);
            header.set_entry_type(EntryType::Regular);
            header.set_size(text.len() as u64);
            if let Some(ustar) = header.as_ustar_mut() {
                for (to, from) in ustar.name.iter_mut().zip(name.as_bytes()) {
                    *to = *from;
                }
            }
            header.set_cksum();
            self.stream.write(header.as_bytes())?;
            self.stream.write(&text)?;
            self.stream.pad(UNIT)?;
        }
        self.stream.write(&[0; 1024])?;
        self.stream.pad(RECORD)?;
        self.stream.finish(self.account.summary)
    }

    fn file(&mut self, found: &Found<'_>) -> Result<()> {
        let identity = (found.stat.st_dev, found.stat.st_ino);
        if let Some(first) = self.links.get(&identity) {
            let headers = Member {
                path: found.path,
                kind: EntryType::Link,
                target: first,
                stat: found.stat,
                size: 0,
                sparse: None,
                records: Records::default(),
            }
            .headers();
            self.account.file(0)?;
            return self.stream.write(&headers);
        }
        let mut source = match Source::open(found) {
            Ok(source) => source,
            Err(error) => {
                let sentence = format!("the file could not be opened: {}", reason(&error));
                return self.unread(found.path, sentence);
            }
        };
        let map = source.map(MOST_STRETCHES);
        let whole = [(0, source.size)];
        let stretches = map.as_deref().unwrap_or(&whole);
        let first = stretches.first().copied().unwrap_or((0, 0));
        source.seek(first.0);
        self.block.clear();
        let length = usize::try_from(first.1).unwrap_or(usize::MAX).min(BLOCK);
        if let Err(error) = source.read(length, &mut self.block) {
            let sentence = format!("the file could not be read: {}", reason(&error));
            return self.unread(found.path, sentence);
        }
        self.account.file(source.size)?;
        let records = self.attributes(found.path, &source.file);
        let lengths = stretches.iter().map(|(_, length)| *length);
        let data = lengths.fold(0_u64, u64::saturating_add);
        let text = map
            .as_deref()
            .map(|map| sparse_map(map, source.size))
            .unwrap_or_default();
        let headers = Member {
            path: found.path,
            kind: EntryType::Regular,
            target: b"",
            stat: &source.stat,
            size: data.saturating_add(text.len() as u64),
            sparse: map.is_some().then_some(source.size),
            records,
        }
        .headers();
        self.stream.write(&headers)?;
        self.stream.write(&text)?;
        self.remember(found.path, &source.stat);
        self.stream.write(&self.block)?;
        let mut done = length as u64;
        for (offset, length) in stretches {
            source.seek(offset.saturating_add(done));
            let mut left = length.saturating_sub(done);
            while left > 0 {
                let now = usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK);
                self.block.clear();
                source
                    .read(now, &mut self.block)
                    .map_err(|error| broken(found.path, &error))?;
                self.stream.write(&self.block)?;
                left = left.saturating_sub(now as u64);
            }
            done = 0;
        }
        self.stream.pad(UNIT)
    }

    /// Remembers a file that has other names.
    fn remember(&mut self, path: &[u8], stat: &FileStat) {
        let bytes = self.link_bytes.saturating_add(path.len());
        if stat.st_nlink > 1 && self.links.len() < MOST_LINKS && bytes <= MOST_LINK_BYTES {
            self.link_bytes = bytes;
            self.links.insert((stat.st_dev, stat.st_ino), path.into());
        }
    }

    /// The attributes of an open file; what could not be read of them is noted.
    fn attributes(&mut self, path: &[u8], file: &File) -> Records {
        match attributes::read(file) {
            Ok((records, false)) => records,
            Ok((records, true)) => {
                let sentence = "some of its extended attributes are too large";
                self.account.left_out(path, sentence.to_owned());
                records
            }
            Err(error) => {
                let sentence = format!(
                    "its extended attributes could not be read: {}",
                    reason(&error)
                );
                self.account.left_out(path, sentence);
                Records::default()
            }
        }
    }

    fn folder(&mut self, found: &Found<'_>) -> Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        // One that cannot be opened is an entry all the same; the walk tells why it
        // has no content.
        let records = match found.folder.open_unfollowed(found.name, flags) {
            Ok(folder) => self.attributes(found.path, &File::from(folder)),
            Err(_) => Records::default(),
        };
        self.account.summary.folders = self.account.summary.folders.saturating_add(1);
        let path = [found.path, b"/"].concat();
        self.member(&path, EntryType::Directory, b"", found.stat, records)
    }

    /// A member without data.
    fn member(
        &mut self,
        path: &[u8],
        kind: EntryType,
        target: &[u8],
        stat: &FileStat,
        records: Records,
    ) -> Result<()> {
        let headers = Member {
            path,
            kind,
            target,
            stat,
            size: 0,
            sparse: None,
            records,
        }
        .headers();
        self.stream.write(&headers)
    }

    fn special(&mut self, found: &Found<'_>, kind: EntryType) -> Result<()> {
        self.account.file(0)?;
        self.member(found.path, kind, b"", found.stat, Records::default())
    }
}

impl Visitor for Tar<'_> {
    fn entry(&mut self, found: &Found<'_>) -> Result<()> {
        self.account.name(found.path);
        let kind = found.kind();
        if kind == SFlag::S_IFREG {
            self.file(found)
        } else if kind == SFlag::S_IFDIR {
            self.folder(found)
        } else if kind == SFlag::S_IFLNK {
            match readlinkat(found.folder, found.name) {
                Ok(target) => {
                    self.account.summary.links = self.account.summary.links.saturating_add(1);
                    let (kind, target) = (EntryType::Symlink, target.as_bytes());
                    self.member(found.path, kind, target, found.stat, Records::default())
                }
                Err(errno) => {
                    let sentence = format!("the link could not be read: {}", errno.desc());
                    self.unread(found.path, sentence)
                }
            }
        } else if kind == SFlag::S_IFCHR {
            self.special(found, EntryType::Char)
        } else if kind == SFlag::S_IFBLK {
            self.special(found, EntryType::Block)
        } else if kind == SFlag::S_IFIFO {
            self.special(found, EntryType::Fifo)
        } else {
            let sentence = "sockets have no form in a tar archive";
            self.unread(found.path, sentence.to_owned())
        }
    }

    fn unread(&mut self, path: &[u8], reason: String) -> Result<()> {
        self.account.left_out(path, reason);
        Ok(())
    }
}
