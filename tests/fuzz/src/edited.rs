//! An image with edits over it.
//!
//! An edit is an operation byte (upper half: what, lower half: how many bytes
//! less one), the index of a sector among those that are not empty, an offset
//! in it (both of 16 bits, taken modulo what there is), and the bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use sendense::image::BlockRead;
use sendense::{Error, Result};

use crate::base::{Base, PAGE, SECTOR};

/// Edits past this number are left out.
const MOST_EDITS: usize = 64;

pub(crate) struct Edited {
    base: Arc<Base>,
    /// Pages that differ from the base.
    pages: BTreeMap<usize, Box<[u8]>>,
}

impl Edited {
    pub(crate) fn new(base: Arc<Base>, mut edits: &[u8]) -> Self {
        let mut image = Self {
            base,
            pages: BTreeMap::new(),
        };
        let mut touched = Vec::new();
        for _ in 0..MOST_EDITS {
            let Some((place, rest)) = image.edit(edits) else {
                break;
            };
            touched.push(place);
            edits = rest;
        }
        image.mend(&touched);
        image
    }

    /// Carries out one edit; the byte where it was, and what follows it.
    fn edit<'a>(&mut self, edits: &'a [u8]) -> Option<(u64, &'a [u8])> {
        let (head, rest) = edits.split_first_chunk::<5>()?;
        let [operation, a, b, c, d] = *head;
        let pick = |index: u16| {
            let sectors = &self.base.sectors;
            let sector = sectors.get(usize::from(index) % sectors.len().max(1))?;
            Some(sector * SECTOR as u64)
        };
        let sector = pick(u16::from_le_bytes([a, b]))?;
        let argument = u16::from_le_bytes([c, d]);
        match operation >> 4 {
            15 => self.write(sector, &[0; SECTOR]),
            14 => {
                let other = self.base.bytes(pick(argument)?, SECTOR);
                self.write(sector, &other);
            }
            _ => {
                let len = usize::from(operation & 15) + 1;
                let (bytes, rest) = rest.split_at_checked(len)?;
                let at = sector + u64::from(argument) % SECTOR as u64;
                self.write(at, bytes);
                return Some((at, rest));
            }
        }
        Some((sector, rest))
    }

    fn write(&mut self, start: u64, bytes: &[u8]) {
        let (mut at, mut rest) = (start as usize, bytes);
        while !rest.is_empty() {
            let (number, within) = (at / PAGE, at % PAGE);
            let (part, after) = rest.split_at((PAGE - within).min(rest.len()));
            if let Some(pristine) = self.base.page(number) {
                let page = self.pages.entry(number).or_insert_with(|| pristine.into());
                page[within..within + part.len()].copy_from_slice(part);
            }
            rest = after;
            at += part.len();
        }
    }

    fn bytes(&self, start: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(start, &mut bytes);
        bytes
    }

    fn fill(&self, start: u64, buf: &mut [u8]) {
        let (mut at, mut rest) = (start as usize, buf);
        while !rest.is_empty() {
            let (number, within) = (at / PAGE, at % PAGE);
            let take = (PAGE - within).min(rest.len());
            let page = match self.pages.get(&number) {
                Some(page) => page,
                None => self.base.page(number).unwrap_or(&[0; PAGE]),
            };
            let (part, after) = rest.split_at_mut(take);
            part.copy_from_slice(&page[within..within + take]);
            rest = after;
            at += take;
        }
    }

    /// Makes the checksums right of what was touched: the innermost first, since
    /// one may cover another.
    fn mend(&mut self, touched: &[u64]) {
        let base = Arc::clone(&self.base);
        let mut sites: Vec<_> = base
            .sites
            .iter()
            .filter(|site| {
                let end = site.start + site.len as u64;
                // An edit is of at most a sector.
                let from = site.start.saturating_sub(SECTOR as u64);
                touched.iter().any(|at| (from..end).contains(at))
            })
            .collect();
        sites.sort_by_key(|site| site.len);
        for site in sites {
            let mut bytes = self.bytes(site.start, site.len);
            (site.mend)(&mut bytes);
            self.write(site.start, &bytes);
        }
    }
}

impl BlockRead for Edited {
    fn size(&self) -> u64 {
        self.base.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        sendense::image::patience::spend()?;
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.size()) {
            return Err(Error::corrupt(
                "the image",
                "a structure points past its end",
            ));
        }
        self.fill(offset, buf);
        Ok(())
    }
}

/// One of several disks that lie one after the other in an image.
struct Part {
    image: Arc<Edited>,
    start: u64,
    len: u64,
}

impl BlockRead for Part {
    fn size(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(Error::corrupt(
                "the disk",
                "a structure points past its end",
            ));
        }
        self.image.read_at(self.start + offset, buf)
    }
}

/// The `number` disks of equal size that an image consists of.
pub(crate) fn disks(image: &Arc<Edited>, number: usize) -> Vec<Arc<dyn BlockRead>> {
    let len = image.size() / number as u64;
    let part = |index: usize| {
        Arc::new(Part {
            image: Arc::clone(image),
            start: index as u64 * len,
            len,
        }) as Arc<dyn BlockRead>
    };
    (0..number).map(part).collect()
}
