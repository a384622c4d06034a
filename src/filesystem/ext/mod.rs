//! Placeholder.
use super::{Attr, Description, DirEntry, Extent, FileSystem};
use crate::error::{Error, Result};
use crate::image::BlockRead;
use std::ops::ControlFlow;
use std::sync::Arc;
/// ext2, ext3 or ext4.
pub struct Ext {}
impl Ext {
    /// Opens it.
    pub fn open(_volume: Arc<dyn BlockRead>) -> Result<Self> {
        Err(Error::Invalid("placeholder".into()))
    }
}
impl FileSystem for Ext {
    fn root(&self) -> u64 { 2 }
    fn description(&self) -> &Description { static D: std::sync::OnceLock<Description> = std::sync::OnceLock::new(); D.get_or_init(Default::default) }
    fn attr(&self, _ino: u64) -> Result<Attr> { Err(Error::WouldWait) }
    fn lookup(&self, _dir: u64, _name: &[u8]) -> Result<u64> { Err(Error::WouldWait) }
    fn parent(&self, _dir: u64) -> Result<u64> { Err(Error::WouldWait) }
    fn read_dir(&self, _dir: u64, _position: u64, _each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>) -> Result<()> { Ok(()) }
    fn extents(&self, _ino: u64, _offset: u64, _len: u64, _out: &mut Vec<Extent>) -> Result<()> { Ok(()) }
    fn read(&self, _ino: u64, _offset: u64, _buf: &mut [u8]) -> Result<usize> { Ok(0) }
    fn read_link(&self, _ino: u64) -> Result<Vec<u8>> { Ok(vec![]) }
    fn xattr_names(&self, _ino: u64) -> Result<Vec<Vec<u8>>> { Ok(vec![]) }
    fn xattr(&self, _ino: u64, _name: &[u8]) -> Result<Option<Vec<u8>>> { Ok(None) }
}
