//! Reading a volume through its mapping.
//!
//! The idea: the pieces of one device that a read needs are read from it at once
//! wherever they lie side by side there, and dealt out afterwards.
#![deny(clippy::arithmetic_side_effects)]

use super::mapping::{Mapping, Run};
use crate::error::{Error, Result};
use crate::image::BlockRead;
use std::sync::Arc;

/// Reads a volume through its mapping.
pub struct VolumeReader {
    mapping: Mapping,
    /// `None` for disks that the volume does not lie on.
    devices: Vec<Option<Arc<dyn BlockRead>>>,
}

impl VolumeReader {
    /// A reader of the volume that `mapping` describes on `devices`.
    pub fn new(mapping: Mapping, devices: Vec<Arc<dyn BlockRead>>) -> Self {
        Self::over(mapping, devices.into_iter().map(Some).collect())
    }

    /// As [`Self::new`], where only some of the devices are open.
    pub fn over(mapping: Mapping, devices: Vec<Option<Arc<dyn BlockRead>>>) -> Self {
        Self { mapping, devices }
    }

    /// Where the volume's bytes lie.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    fn device(&self, index: usize) -> Result<&Arc<dyn BlockRead>> {
        self.devices
            .get(index)
            .and_then(Option::as_ref)
            .ok_or_else(|| Error::not_found(format!("device {index} of the volume")))
    }

    /// One `read` of a device for each range of it that has no gap: the stripes
    /// of one column are read at once and dealt out afterwards.
    fn read_by(&self, read: ReadDevice, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut runs = Vec::new();
        self.mapping.runs(
            offset,
            u64::try_from(buf.len()).unwrap_or(u64::MAX),
            &mut runs,
        )?;
        // Each run with the part of the buffer that it fills.
        let mut parts: Vec<(Run, &mut [u8])> = Vec::with_capacity(runs.len());
        let mut rest = buf;
        for run in runs {
            let len = usize::try_from(run.len).unwrap_or(usize::MAX);
            let (part, after) = rest
                .split_at_mut_checked(len)
                .ok_or_else(|| Error::corrupt("the layout of a volume", "a run is too long"))?;
            parts.push((run, part));
            rest = after;
        }
        parts.sort_by_key(|(run, _)| (run.device, run.offset));
        for group in parts.chunk_by_mut(|(a, _), (b, _)| {
            a.device == b.device && a.offset.checked_add(a.len) == Some(b.offset)
        }) {
            match group {
                [(run, part)] => read(self.device(run.device)?.as_ref(), run.offset, part)?,
                [(first, _), ..] => {
                    let (device, start) = (first.device, first.offset);
                    let len = group
                        .iter()
                        .fold(0_usize, |n, (_, p)| n.saturating_add(p.len()));
                    let mut together = vec![0; len];
                    read(self.device(device)?.as_ref(), start, &mut together)?;
                    let mut rest = together.as_slice();
                    for (_, part) in group {
                        let Some((bytes, after)) = rest.split_at_checked(part.len()) else {
                            break;
                        };
                        part.copy_from_slice(bytes);
                        rest = after;
                    }
                }
                [] => {}
            }
        }
        Ok(())
    }
}

/// One of the ways to read a device.
type ReadDevice = fn(&dyn BlockRead, u64, &mut [u8]) -> Result<()>;

impl BlockRead for VolumeReader {
    fn size(&self) -> u64 {
        self.mapping.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_by(|device, at, part| device.read_at(at, part), offset, buf)
    }

    fn read_data_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_by(
            |device, at, part| device.read_data_at(at, part),
            offset,
            buf,
        )
    }

    fn will_need(&self, offset: u64, len: u64) {
        let len = len.min(self.size().saturating_sub(offset));
        let mut runs = Vec::new();
        if self.mapping.runs(offset, len, &mut runs).is_ok() {
            for run in runs {
                if let Ok(device) = self.device(run.device) {
                    device.will_need(run.offset, run.len);
                }
            }
        }
    }
}
