//! The reader against the kernel: the same images, every attribute and byte.
//!
//! Needs root, loop devices, btrfs-progs, `setfacl` and `chattr`.
#![allow(clippy::arithmetic_side_effects, reason = "a test may panic")]

mod compare;
mod content;
mod damage;
mod format;
mod large;
mod pool;
mod speed;
mod subvolumes;
