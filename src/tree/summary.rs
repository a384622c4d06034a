//! What is on a disk, told without going inside it.

use serde::Serialize;

use super::attached::{AttachedDisk, AttachedVolume, UNKNOWN};
use crate::volume::Content;

/// What one should know of a volume without going inside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeSummary {
    /// The name of its folder in the disk's; empty where the disk's folder is its own.
    pub name: String,
    /// Its type as `blkid` names it, where it is known.
    pub filesystem: Option<String>,
    /// Its label; what is not UTF-8 in it is replaced.
    pub label: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Whether it can be read.
    pub state: VolumeState,
    /// Why it cannot be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What one should know of it, a sentence a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Whether a volume can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeState {
    /// Yes.
    Ready,
    /// It needs a key.
    Locked,
    /// It is damaged, incomplete, or of a type that is not read.
    Unreadable,
    /// It is shown in another disk of the backup.
    Elsewhere,
}

impl VolumeSummary {
    fn of(volume: &AttachedVolume) -> Self {
        let state = match (&volume.fs, &volume.volume.content) {
            (Ok(_), _) => VolumeState::Ready,
            (Err(_), Content::Locked(_)) => VolumeState::Locked,
            (Err(_), Content::Elsewhere { .. }) => VolumeState::Elsewhere,
            (Err(_), _) => VolumeState::Unreadable,
        };
        let filled = |text: String| (!text.is_empty()).then_some(text);
        Self {
            name: volume.volume.name.clone(),
            filesystem: Some(volume.kind().to_owned()).filter(|kind| kind != UNKNOWN),
            label: filled(String::from_utf8_lossy(&volume.volume.label).into_owned()),
            size: volume.volume.size,
            state,
            error: volume.fs.as_ref().err().map(ToString::to_string),
            note: filled(volume.notes()),
        }
    }
}

impl AttachedDisk {
    /// What is on it, in disk order.
    pub fn volumes(&self) -> Vec<VolumeSummary> {
        let mut all: Vec<_> = self.volumes.iter().map(VolumeSummary::of).collect();
        if self.single().is_some()
            && let [only] = all.as_mut_slice()
        {
            only.name.clear();
        }
        all
    }
}
