//! Checksums of the formats, found and made right again.
//!
//! The idea: a [`Site`] is a range of bytes and a function that makes the
//! checksum in it right. Candidates are tried all over a pristine image; one is
//! a site if mending it changes nothing. So no parser is needed to find them, and
//! a mistake here can only mean a site less.

use crate::base::{Base, SECTOR};

/// A range with a checksum in it.
pub(crate) struct Site {
    /// First byte.
    pub(crate) start: u64,
    /// Length in bytes.
    pub(crate) len: usize,
    /// Makes the checksum of these bytes right.
    pub(crate) mend: Mend,
}

type Mend = Box<dyn Fn(&mut [u8]) + Send + Sync>;

/// All sites of an image.
pub(crate) fn sites(base: &Base) -> Vec<Site> {
    let mut search = Search {
        base,
        sites: Vec::new(),
    };
    search.gpt();
    search.lvm();
    search.md();
    search.exfat();
    search.xfs();
    search.btrfs();
    search.ext();
    search.sites.sort_by_key(|site| site.start);
    search.sites
}

struct Search<'a> {
    base: &'a Base,
    sites: Vec<Site>,
}

impl Search<'_> {
    /// Keeps the candidate if its checksum is right.
    fn offer(&mut self, start: u64, len: usize, mend: Mend) -> bool {
        let pristine = self.base.bytes(start, len);
        if pristine.len() < len || pristine.iter().all(|byte| *byte == 0) {
            return false;
        }
        let mut bytes = pristine.clone();
        mend(&mut bytes);
        let right = bytes == pristine;
        if right {
            self.sites.push(Site { start, len, mend });
        }
        right
    }

    fn sector(&self, number: u64) -> Vec<u8> {
        self.base.bytes(number * SECTOR as u64, SECTOR)
    }

    /// UEFI 2.10, 5.3: the header's checksum covers that of the entries.
    fn gpt(&mut self) {
        let size = self.base.size();
        for (start, header, entries) in [
            (512, 0, 512_usize),
            (size.saturating_sub(33 * 512), 32 * 512, 0),
        ] {
            let mend = move |bytes: &mut [u8]| {
                let number = word(bytes, header + 80) as usize;
                let each = word(bytes, header + 84) as usize;
                let len = number.saturating_mul(each);
                let crc = entries
                    .checked_add(len)
                    .and_then(|end| bytes.get(entries..end));
                if let Some(crc) = crc.map(crc32fast::hash) {
                    put(bytes, header + 88, crc);
                }
                let len = (word(bytes, header + 12) as usize).clamp(92, 512);
                put(bytes, header + 16, 0);
                let crc = crc32fast::hash(&bytes[header..header + len]);
                put(bytes, header + 16, crc);
            };
            if self.base.bytes(start + header as u64, 8) == b"EFI PART" {
                self.offer(start, 33 * 512, Box::new(mend));
            }
        }
    }

    /// LVM2's `format_text`: label, metadata area header, text.
    fn lvm(&mut self) {
        let crc = |bytes: &[u8]| {
            let mut hasher = crc32fast::Hasher::new_with_initial(!0xf597_a6cf);
            hasher.update(bytes);
            !hasher.finalize()
        };
        for sector in self.base.sectors.clone() {
            let start = sector * SECTOR as u64;
            let head = self.sector(sector);
            if head.starts_with(b"LABELONE") {
                let mend = move |bytes: &mut [u8]| {
                    let crc = crc(&bytes[20..512]);
                    put(bytes, 16, crc);
                };
                self.offer(start, 512, Box::new(mend));
            }
            if head[4..].starts_with(b" LVM2 x[5A%r0N*>") {
                let size = (word(&head, 32) as usize).min(1 << 20);
                let mend = move |bytes: &mut [u8]| {
                    let (at, len) = (word(bytes, 40) as usize, word(bytes, 48) as usize);
                    let text = at.checked_add(len).and_then(|end| bytes.get(at..end));
                    if let Some(crc) = text.map(crc) {
                        put(bytes, 56, crc);
                    }
                    let crc = crc(&bytes[4..512]);
                    put(bytes, 0, crc);
                };
                self.offer(start, size, Box::new(mend));
            }
        }
    }

    /// Linux md, superblock 1.x: a sum of words.
    fn md(&mut self) {
        for sector in self.base.sectors.clone() {
            let head = self.sector(sector);
            if word(&head, 0) != 0xa92b_4efc {
                continue;
            }
            let len = 256 + 2 * (word(&head, 220) as usize).min(384);
            let mend = move |bytes: &mut [u8]| {
                put(bytes, 216, 0);
                let mut sum: u64 = bytes
                    .chunks_exact(4)
                    .map(|word| u64::from(u32::from_le_bytes(word.try_into().unwrap())))
                    .sum();
                if let [a, b] = bytes.chunks_exact(4).remainder() {
                    sum += u64::from(u16::from_le_bytes([*a, *b]));
                }
                put(bytes, 216, (sum as u32).wrapping_add((sum >> 32) as u32));
            };
            self.offer(sector * SECTOR as u64, len, Box::new(mend));
        }
    }

    /// exFAT 3.4 and 6.3.3: the boot region and each set of entries.
    fn exfat(&mut self) {
        if self.base.bytes(3, 8) != b"EXFAT   " {
            return;
        }
        for boot in [0, 12 * 512] {
            let mend = |bytes: &mut [u8]| {
                let sum = bytes[..11 * 512]
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| ![106, 107, 112].contains(at))
                    .fold(0_u32, |sum, (_, byte)| {
                        sum.rotate_right(1).wrapping_add(u32::from(*byte))
                    });
                for at in (11 * 512..12 * 512).step_by(4) {
                    put(bytes, at, sum);
                }
            };
            self.offer(boot, 12 * 512, Box::new(mend));
        }
        for sector in self.base.sectors.clone() {
            let head = self.sector(sector);
            for at in (0..SECTOR).step_by(32).filter(|at| head[*at] == 0x85) {
                let len = (usize::from(head[at + 1]) + 1) * 32;
                let mend = |bytes: &mut [u8]| {
                    let sum = bytes
                        .iter()
                        .enumerate()
                        .filter(|(at, _)| ![2, 3].contains(at))
                        .fold(0_u16, |sum, (_, byte)| {
                            sum.rotate_right(1).wrapping_add(u16::from(*byte))
                        });
                    bytes[2..4].copy_from_slice(&sum.to_le_bytes());
                };
                self.offer(sector * SECTOR as u64 + at as u64, len, Box::new(mend));
            }
        }
    }

    /// XFS version 5: CRC32C over a block with its checksum taken as zero, which
    /// stands at a place of its own for each kind of block.
    fn xfs(&mut self) {
        const FIELDS: [usize; 9] = [4, 12, 32, 52, 64, 100, 216, 224, 312];
        const SIZES: [usize; 5] = [256, 512, 1024, 2048, 4096];
        if self.base.bytes(0, 4) != b"XFSB" {
            return;
        }
        for sector in self.base.sectors.clone() {
            let start = sector * SECTOR as u64;
            if self.sector(sector).starts_with(&[0xfe, 0xed, 0xba, 0xbe]) {
                self.xfs_log_record(start);
            }
            for (field, size) in FIELDS.iter().flat_map(|f| SIZES.map(|s| (*f, s))) {
                if field + 4 <= size {
                    let mend = move |bytes: &mut [u8]| {
                        put(bytes, field, 0);
                        let crc = crc32c::crc32c(bytes);
                        put(bytes, field, crc);
                    };
                    self.offer(start, size, Box::new(mend));
                }
            }
        }
    }

    /// A record of the log: its header without padding, then the rest.
    fn xfs_log_record(&mut self, start: u64) {
        let head = self.base.bytes(start, 512);
        let size = u32::from_be_bytes(head[12..16].try_into().unwrap()) as usize;
        for header in [328, 324] {
            let mend = move |bytes: &mut [u8]| {
                put(bytes, 32, 0);
                let crc = crc32c::crc32c(&bytes[..header]);
                let crc = crc32c::crc32c_append(crc, &bytes[512..]);
                put(bytes, 32, crc);
            };
            if self.offer(start, 512 + size.min(256 << 10), Box::new(mend)) {
                break;
            }
        }
    }

    /// btrfs with CRC32C: superblocks and nodes alike.
    fn btrfs(&mut self) {
        if self.base.bytes(0x1_0040, 8) != b"_BHRfS_M" {
            return;
        }
        let pages: Vec<u64> = self.base.sectors.iter().map(|s| s / 8).collect();
        for page in pages.into_iter().collect::<std::collections::BTreeSet<_>>() {
            for size in [4096, 16384] {
                let mend = |bytes: &mut [u8]| {
                    let crc = crc32c::crc32c(&bytes[32..]);
                    put(bytes, 0, crc);
                };
                if self.offer(page * 4096, size, Box::new(mend)) {
                    break;
                }
            }
        }
    }

    /// ext4 with `metadata_csum`; CRC32C without the last inversion.
    fn ext(&mut self) {
        let block = self.base.bytes(1024, 1024);
        if block.len() < 1024 || half(&block, 56) != 0xef53 {
            return;
        }
        let mend = |bytes: &mut [u8]| {
            let crc = update(!0, &bytes[..1020]);
            put(bytes, 1020, crc);
        };
        if !self.offer(1024, 1024, Box::new(mend)) {
            return;
        }
        let incompatible = word(&block, 96);
        let seed = if incompatible & 0x2000 != 0 {
            word(&block, 624)
        } else {
            update(!0, &block[104..120])
        };
        let size = 1024_u64 << word(&block, 24).min(6);
        let descriptor = if incompatible & 0x80 != 0 { 64 } else { 32 };
        let table = (u64::from(word(&block, 20)) + 1) * size;
        let in_group = word(&block, 40);
        let inode_size = usize::from(half(&block, 88));
        let mut owners = Vec::new();
        for group in 0..word(&block, 0).div_ceil(in_group.max(1)) {
            let at = table + u64::from(group) * descriptor as u64;
            let mend = move |bytes: &mut [u8]| {
                bytes[30..32].fill(0);
                let crc = update(update(seed, &group.to_le_bytes()), bytes);
                bytes[30..32].copy_from_slice(&(crc as u16).to_le_bytes());
            };
            self.offer(at, descriptor, Box::new(mend));
            let inodes = u64::from(word(&self.base.bytes(at, descriptor), 8)) * size;
            for index in 0..in_group {
                let at = inodes + u64::from(index) * inode_size as u64;
                let number = group * in_group + index + 1;
                let of_inode = update(seed, &number.to_le_bytes());
                let mend = move |bytes: &mut [u8]| {
                    bytes[124..126].fill(0);
                    bytes[130..132].fill(0);
                    let crc = update(update(of_inode, &bytes[100..104].to_vec()), bytes);
                    bytes[124..126].copy_from_slice(&(crc as u16).to_le_bytes());
                    bytes[130..132].copy_from_slice(&((crc >> 16) as u16).to_le_bytes());
                };
                let generation = self.base.bytes(at + 100, 4);
                if inode_size >= 160 && self.offer(at, inode_size, Box::new(mend)) {
                    owners.push(update(of_inode, &generation));
                }
            }
        }
        self.ext_blocks(size, seed, &owners);
    }

    /// Blocks of folders, extents and attributes, whose owner is not known: all
    /// are tried.
    fn ext_blocks(&mut self, size: u64, seed: u32, owners: &[u32]) {
        let blocks: Vec<u64> = self.base.sectors.iter().map(|s| s * 512 / size).collect();
        for block in blocks
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
        {
            let bytes = self.base.bytes(block * size, size as usize);
            let end = bytes.len();
            let mut covered = None;
            if bytes[end - 8..end - 4] == [12, 0, 0, 0xde] {
                covered = Some(end - 12);
            } else if half(&bytes, 0) == 0xf30a {
                covered = Some((12 + 12 * usize::from(half(&bytes, 4))).min(end - 4));
            } else if word(&bytes, 0) == 0xea02_0000 {
                let of_block = update(seed, &block.to_le_bytes());
                let mend = move |bytes: &mut [u8]| {
                    put(bytes, 16, 0);
                    let crc = update(of_block, bytes);
                    put(bytes, 16, crc);
                };
                self.offer(block * size, end, Box::new(mend));
            }
            let Some(covered) = covered else { continue };
            let field = if covered == end - 12 {
                end - 4
            } else {
                covered
            };
            for owner in owners.iter().copied() {
                let mend = move |bytes: &mut [u8]| {
                    let crc = update(owner, &bytes[..covered]);
                    put(bytes, field, crc);
                };
                if self.offer(block * size, end, Box::new(mend)) {
                    break;
                }
            }
        }
    }
}

/// CRC32C without the inversions at its ends.
fn update(crc: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!crc, bytes)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
