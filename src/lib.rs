//! Reads the files inside VM backup images.
//!
//! The layers, from the disk up; each knows only the one below it:
//!
//! - [`image`]: one qcow2 image held open by `qemu-nbd`, our NBD client, the
//!   cache of metadata blocks;
//! - [`volume`]: what lies on a disk: partitions, logical volumes, signatures;
//! - [`filesystem`]: one trait, one module per guest format;
//! - [`catalog`]: which backups there are (SQLite);
//! - [`tree`]: VM, backup, disk, volume, file as one read-only tree.
//!
//! FUSE, the command line and later adapters (REST, archives) stand on the
//! tree and know nothing of each other.

pub mod catalog;
pub mod error;
pub mod filesystem;
pub mod image;
pub mod sys;
pub mod tree;
pub mod volume;

pub use error::{Error, Result, Shortage};
