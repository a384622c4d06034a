//! Images made by mkfs.vfat and mkfs.exfat, filled by mtools and exfat-fuse, and
//! compared with what these and the Sleuth Kit show of them.
//!
//! The tests need root, loop devices, /dev/fuse, and the packages dosfstools,
//! mtools, exfatprogs, exfat-fuse and sleuthkit; without them they fail.
#![allow(clippy::arithmetic_side_effects, reason = "a test may panic")]

mod damage;
mod exfat;
mod fat;
mod image;
mod names;
mod speed;
mod walk;
