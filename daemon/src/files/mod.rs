//! The guests' files as a client far away may have them: read through the mounted
//! tree, and never from anywhere else.
//!
//! The idea: whatever a client names is looked up by the kernel beneath one open
//! folder, in one call that cannot leave it ([`beneath`]). No path is ever put
//! together from a client's string.

pub(crate) mod beneath;
pub(crate) mod conditions;
pub(crate) mod content;
mod cursor;
mod dirents;
pub(crate) mod entry;
pub(crate) mod error;
pub(crate) mod info;
pub(crate) mod listing;
pub(crate) mod name;
#[cfg(test)]
mod ntfs_volume;
pub(crate) mod recursion;
pub(crate) mod root;
mod time;
