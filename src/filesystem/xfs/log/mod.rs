//! The log: what was decided and not written yet.
//!
//! The idea: a mount writes the log's changes to their places before it shows
//! anything; here they are laid over the volume in memory instead
//! ([`super::overlay`]), in one pass from the log's tail to its head. A buffer
//! that was freed later on ("cancelled") is let go again at that point, which
//! comes to the same as not having changed it.
//!
//! - [`ring`]: records, their checksums;
//! - [`head`]: where the log ends, without reading all of it;
//! - [`transaction`]: from records to the items of finished transactions;
//! - [`replay`] and [`inode_item`]: from items to sectors.
//!
//! What a mount does besides is left out: it finishes what was decided (intents)
//! and frees files that were open without a name. That concerns what is free;
//! only unfinished changes of a file's map would be seen, and [`State::notes`]
//! tells of those. If anything about the log makes no sense, or its changes take
//! more than [`super::overlay`] holds, nothing of it is used.

mod head;
mod inode_item;
mod replay;
pub(super) mod ring;
mod transaction;

use super::overlay::{Overlay, SECTOR};
use super::store::Store;
use super::superblock::Superblock;
use crate::error::{Error, Result};
use head::End;
use replay::Replay;
use ring::Ring;
use transaction::Transactions;

/// What became of the log.
pub(super) enum State {
    /// There is nothing in it.
    Clean,
    /// Its changes are in the overlay; so many changes of files' maps had been
    /// begun and are not finished.
    Replayed { unfinished: usize },
    /// It was not used, and why.
    Left(String),
}

impl State {
    /// Whether the file system is as the guest left it.
    pub(super) fn is_current(&self) -> bool {
        !matches!(self, Self::Left(_))
    }

    /// What a user should know.
    pub(super) fn notes(&self) -> Vec<String> {
        match self {
            Self::Clean => Vec::new(),
            Self::Replayed { unfinished } => {
                let mut notes = vec![
                    "The file system was in use when the image was taken; its log was replayed \
                     in memory."
                        .into(),
                ];
                if *unfinished > 0 {
                    notes.push(format!(
                        "{unfinished} changes of where files lie or of their attributes had been \
                         begun when the image was taken, and were not finished."
                    ));
                }
                notes
            }
            Self::Left(reason) => vec![format!(
                "The log was not replayed: {reason}. The last changes before the image was taken \
                 may be missing or half done."
            )],
        }
    }
}

/// Lays the log's changes over the volume.
///
/// # Errors
/// What comes from below and may pass; a log that cannot be used is
/// [`State::Left`].
pub(super) fn recover(store: &mut Store) -> Result<State> {
    match replay(store) {
        Ok(state) => Ok(state),
        Err(error) => {
            store.overlay = Overlay::default();
            match error {
                Error::Corrupt { .. } | Error::Unsupported { .. } | Error::TooLarge { .. } => {
                    Ok(State::Left(error.to_string()))
                }
                passing => Err(passing),
            }
        }
    }
}

fn replay(store: &mut Store) -> Result<State> {
    let Some(ring) = Ring::of(store) else {
        return Ok(State::Left("it lies on another device".into()));
    };
    let Some(End { tail, head }) = head::find(&ring)? else {
        return Ok(State::Clean);
    };
    // `XFS_SB_FEAT_INCOMPAT_LOG_XATTRS`: attributes by intents, noted as such.
    let unknown = store.superblock.log_incompat & !1;
    if unknown != 0 {
        return Err(Error::Unsupported {
            what: "the log".into(),
            reason: format!("it holds changes that are not known ({unknown:#x})"),
        });
    }
    let mut transactions = Transactions::default();
    let mut replay = Replay::default();
    let mut at = tail;
    let mut left = ring.sectors();
    while at != head {
        let record = ring.record(at)?;
        left = left.checked_sub(record.sectors).ok_or_else(|| {
            Error::corrupt(
                "the log",
                "its records do not lead from its tail to its head",
            )
        })?;
        at = ring.add(at, record.sectors);
        let content = ring.content(&record)?;
        transactions.read(&record, &content, &mut |lsn, items| {
            replay.apply(store, lsn, items)
        })?;
    }
    reread_superblock(store)?;
    Ok(State::Replayed {
        unfinished: replay.unfinished(),
    })
}

/// The log may have changed the superblock, for example by growing the volume.
fn reread_superblock(store: &mut Store) -> Result<()> {
    let mut raw = vec![0; usize::from(store.superblock.sector_size).max(SECTOR)];
    if store.read(0, &mut raw)? {
        let superblock = Superblock::parse(&raw, false)?;
        let old = &store.superblock;
        let same = (
            superblock.block_bits,
            superblock.inode_bits,
            superblock.ag_blocks,
        ) == (old.block_bits, old.inode_bits, old.ag_blocks);
        if !same {
            return Err(Error::corrupt(
                Superblock::WHAT,
                "the log changes its sizes",
            ));
        }
        store.superblock = superblock;
    }
    Ok(())
}
