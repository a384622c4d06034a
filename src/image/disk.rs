//! Placeholder.
/// A disk.
pub struct Disk {}
