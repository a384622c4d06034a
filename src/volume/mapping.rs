//! Where the bytes of a volume lie on the disk.
use crate::error::Result;
use crate::image::BlockRead;
use std::sync::Arc;

/// A piece of a volume on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Index of the device among those that the volume was found on.
    pub device: usize,
    /// Byte offset on that device.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Where each byte of a volume lies.
#[derive(Debug, Clone)]
pub struct Mapping {}

impl Mapping {
    /// Size of the volume in bytes.
    pub fn size(&self) -> u64 {
        0
    }
    /// Appends the runs that hold bytes `offset..offset + len`, in order,
    /// adjacent ones joined. A range past the end is `Corrupt`.
    pub fn runs(&self, _offset: u64, _len: u64, _out: &mut Vec<Run>) -> Result<()> {
        Ok(())
    }
}

/// Reads a volume through its mapping.
pub struct VolumeReader {
    _devices: Vec<Arc<dyn BlockRead>>,
    mapping: Mapping,
}
impl VolumeReader {
    /// Where the bytes lie.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// A reader of the volume that `mapping` describes on `devices`.
    pub fn new(mapping: Mapping, devices: Vec<Arc<dyn BlockRead>>) -> Self {
        Self { _devices: devices, mapping }
    }
}
impl BlockRead for VolumeReader {
    fn size(&self) -> u64 {
        0
    }
    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<()> {
        Ok(())
    }
}
