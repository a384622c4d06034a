//! From records to the items of finished transactions.
//!
//! A record holds operations (`struct xlog_op_header`), each a piece of a
//! transaction, which is told by its number: a beginning, regions that make up
//! items, a commit. Regions and transactions may run over into the next record.
//! What was not committed before the log ends never happened.

use std::collections::BTreeMap;

use super::super::field::{index, le16_at, le32_at, slice_at, u8_at, u32_at};
use super::ring::{Record, corrupt};
use crate::error::{Error, Result};
use crate::image::patience;

/// Flags of an operation.
const START: u8 = 0x01;
const COMMIT: u8 = 0x02;
/// It goes on in the next record; it is the rest of one; the last such.
const CONTINUES: u8 = 0x04;
const CONTINUED: u8 = 0x08;
const END: u8 = 0x10;
const UNMOUNT: u8 = 0x20;

/// Bytes before an operation's region.
const HEAD: usize = 12;

/// The head of a transaction (`struct xfs_trans_header`): its length, and what
/// it begins with.
const TRANSACTION_HEAD: usize = 16;
const MAGIC: u32 = 0x5452_414e;

/// Regions that an item may have: a buffer of 64 KiB in pieces of 128 bytes.
const MAX_REGIONS: usize = 1024;

/// How much memory transactions that are not finished may take, in bytes.
const CAPACITY: usize = 64 << 20;

/// What a region takes besides its bytes, about.
const REGION: usize = 64;

/// One change: what it is, and the regions that belong to it.
#[derive(Default)]
pub(super) struct Item {
    pub(super) regions: Vec<Vec<u8>>,
    total: usize,
}

impl Item {
    pub(super) fn region(&self, nr: usize) -> &[u8] {
        self.regions.get(nr).map_or(&[], Vec::as_slice)
    }

    /// What it changes (`XFS_LI_…`).
    pub(super) fn kind(&self) -> u16 {
        le16_at(self.region(0), 0).unwrap_or_default()
    }
}

/// A transaction that is not finished.
struct Pending {
    lsn: u64,
    head: Vec<u8>,
    items: Vec<Item>,
    memory: usize,
}

/// Those under way, by their number.
#[derive(Default)]
pub(super) struct Transactions {
    pending: BTreeMap<u32, Pending>,
    memory: usize,
}

impl Transactions {
    /// Reads a record; hands each transaction that it finishes to `commit`, with
    /// the place in the log where it began.
    pub(super) fn read(
        &mut self,
        record: &Record,
        content: &[u8],
        commit: &mut dyn FnMut(u64, Vec<Item>) -> Result<()>,
    ) -> Result<()> {
        let mut at = 0usize;
        for _ in 0..record.operations {
            patience::spend()?;
            if at >= content.len() {
                break;
            }
            let cut = || corrupt("an operation runs past its record");
            let number = u32_at(content, at).ok_or_else(cut)?;
            let len = index(u32_at(content, at.saturating_add(4)).ok_or_else(cut)?);
            let flags = u8_at(content, at.saturating_add(9)).ok_or_else(cut)?;
            let region = slice_at(content, at.saturating_add(HEAD), len).ok_or_else(cut)?;
            at = at.saturating_add(HEAD).saturating_add(len);
            if flags & START != 0 {
                let pending = Pending {
                    lsn: record.lsn,
                    head: Vec::new(),
                    items: Vec::new(),
                    memory: REGION,
                };
                self.memory = self.memory.saturating_add(REGION);
                let before = self.pending.insert(number, pending);
                self.release(before.as_ref());
                self.check()?;
                continue;
            }
            // One that began before the tail was written long ago.
            if !self.pending.contains_key(&number) {
                continue;
            }
            match flags & !END {
                UNMOUNT => {
                    let gone = self.pending.remove(&number);
                    self.release(gone.as_ref());
                }
                COMMIT => {
                    if let Some(done) = self.pending.remove(&number) {
                        self.release(Some(&done));
                        commit(done.lsn, done.items)?;
                    }
                }
                flags if flags & !(CONTINUES | CONTINUED) == 0 => {
                    self.add(number, region, flags & CONTINUED != 0)?;
                }
                other => return Err(corrupt(format!("an operation is marked {other:#x}"))),
            }
        }
        Ok(())
    }

    fn release(&mut self, gone: Option<&Pending>) {
        let memory = gone.map_or(0, |pending| pending.memory);
        self.memory = self.memory.saturating_sub(memory);
    }

    fn check(&self) -> Result<()> {
        if self.memory <= CAPACITY {
            return Ok(());
        }
        Err(Error::TooLarge {
            what: "the unfinished transactions of the log".into(),
            limit: u64::try_from(CAPACITY).unwrap_or(u64::MAX),
        })
    }

    fn add(&mut self, number: u32, region: &[u8], continued: bool) -> Result<()> {
        let Some(pending) = self.pending.get_mut(&number) else {
            return Ok(());
        };
        let memory = region.len().saturating_add(REGION);
        pending.memory = pending.memory.saturating_add(memory);
        self.memory = self.memory.saturating_add(memory);
        pending.add(region, continued)?;
        self.check()
    }
}

impl Pending {
    fn add(&mut self, region: &[u8], continued: bool) -> Result<()> {
        if self.head.len() < TRANSACTION_HEAD {
            self.head.extend_from_slice(region);
            let sound = self.head.len() <= TRANSACTION_HEAD
                && (self.head.len() < 4 || le32_at(&self.head, 0) == Some(MAGIC));
            return if sound {
                Ok(())
            } else {
                Err(corrupt("a transaction does not begin with its head"))
            };
        }
        if region.is_empty() {
            return Ok(());
        }
        if continued {
            let last = self
                .items
                .last_mut()
                .and_then(|item| item.regions.last_mut());
            let last = last.ok_or_else(|| corrupt("the rest of nothing stands in it"))?;
            last.extend_from_slice(region);
            return Ok(());
        }
        if let Some(item) = self.items.last_mut()
            && item.regions.len() < item.total
        {
            item.regions.push(region.to_vec());
            return Ok(());
        }
        let total = le16_at(region, 2).map(usize::from).unwrap_or_default();
        if total == 0 || total > MAX_REGIONS {
            return Err(corrupt(format!("an item in it has {total} regions")));
        }
        self.items.push(Item {
            regions: vec![region.to_vec()],
            total,
        });
        Ok(())
    }
}
