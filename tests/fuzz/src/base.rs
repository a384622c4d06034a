//! A pristine image, and what of it is worth editing.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use flate2::read::GzDecoder;

use crate::mend::{self, Site};

pub(crate) const PAGE: usize = 4096;
pub(crate) const SECTOR: usize = 512;

/// An image in memory; pages of zeros take none.
pub(crate) struct Base {
    pages: Vec<Option<Box<[u8]>>>,
    /// How many disks of equal size it consists of, one after the other.
    pub(crate) disks: usize,
    /// Numbers of the sectors that are not all zeros, ascending.
    pub(crate) sectors: Vec<u64>,
    /// What has a checksum, ascending by its first byte.
    pub(crate) sites: Vec<Site>,
}

impl Base {
    fn read(path: &Path) -> Self {
        let file = File::open(path).expect("an image of the corpus");
        let mut decoder = GzDecoder::new(file);
        let (mut pages, mut sectors) = (Vec::new(), Vec::new());
        loop {
            let mut page = vec![0; PAGE];
            let mut filled = 0;
            while filled < PAGE {
                match decoder.read(&mut page[filled..]).expect("gzip") {
                    0 => break,
                    n => filled += n,
                }
            }
            if filled == 0 {
                break;
            }
            let first = pages.len() * (PAGE / SECTOR);
            for (sector, number) in page.chunks(SECTOR).zip(first..) {
                if sector.iter().any(|byte| *byte != 0) {
                    sectors.push(number as u64);
                }
            }
            let blank = page.iter().all(|byte| *byte == 0);
            pages.push((!blank).then(|| page.into_boxed_slice()));
        }
        // `raid-x3-….img.gz`: three disks.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let several = name
            .split('-')
            .nth(1)
            .and_then(|part| part.strip_prefix('x'));
        let mut base = Self {
            pages,
            disks: several.and_then(|n| n.parse().ok()).unwrap_or(1),
            sectors,
            sites: Vec::new(),
        };
        base.sites = mend::sites(&base);
        base
    }

    pub(crate) fn size(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }

    /// A page; `None` past the end.
    pub(crate) fn page(&self, number: usize) -> Option<&[u8]> {
        static BLANK: [u8; PAGE] = [0; PAGE];
        let page = self.pages.get(number)?;
        Some(page.as_deref().unwrap_or(&BLANK))
    }

    /// Bytes `start..start + len`, or fewer at the end.
    pub(crate) fn bytes(&self, start: u64, len: usize) -> Vec<u8> {
        let end = (start + len as u64).min(self.size());
        let mut bytes = Vec::with_capacity(len);
        let mut at = start;
        while at < end {
            let within = at as usize % PAGE;
            let take = (PAGE - within).min((end - at) as usize);
            let page = self.page(at as usize / PAGE).unwrap_or_default();
            bytes.extend_from_slice(&page[within..within + take]);
            at += take as u64;
        }
        bytes
    }
}

/// All images whose name is `<family>-….img.gz`, in the order of their names.
pub(crate) fn load(family: &str) -> Vec<Arc<Base>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
    let prefix = format!("{family}-");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .expect("the folder of images")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&prefix)
        })
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no image of family {family}");
    paths
        .iter()
        .map(|path| Arc::new(Base::read(path)))
        .collect()
}
