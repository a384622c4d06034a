//! Images made by mkntfs, ntfs-3g and wimlib, compared with what ntfs-3g shows of
//! them and with the files that went in.
//!
//! The tests need root, /dev/fuse and the programs mkntfs, ntfs-3g and
//! wimlib-imagex; without them they fail.
#![allow(clippy::arithmetic_side_effects, reason = "a test may panic")]

pub(in crate::filesystem) mod compare;
mod content;
pub(in crate::filesystem) mod damage;
mod format;
mod mixed;
pub(in crate::filesystem) mod scratch;
mod speed;
mod structures;
mod wof;
