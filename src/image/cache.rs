//! Placeholder.
/// The cache.
pub struct BlockCache {}
