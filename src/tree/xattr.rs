//! What the tree says of a volume: extended attributes `user.sendense.*` on its
//! folder.

use super::attached::AttachedVolume;

/// Why the volume, or the disk, cannot be read.
pub(crate) const ERROR: &[u8] = b"user.sendense.error";

/// Whether an attribute of this name is the tree's own.
pub(crate) fn is_ours(name: &[u8]) -> bool {
    name.starts_with(b"user.sendense.")
}

/// The attributes of a volume's folder: type, label, size in bytes, UUID, notes
/// (one sentence a line), error.
pub(crate) fn of_volume(volume: &AttachedVolume) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut attributes = vec![
        (
            b"user.sendense.name".to_vec(),
            volume.volume.name.clone().into_bytes(),
        ),
        (
            b"user.sendense.type".to_vec(),
            volume.kind().as_bytes().to_vec(),
        ),
        (
            b"user.sendense.size".to_vec(),
            volume.volume.mapping.size().to_string().into_bytes(),
        ),
    ];
    let mut add = |name: &[u8], value: &[u8]| {
        if !value.is_empty() {
            attributes.push((name.to_vec(), value.to_vec()));
        }
    };
    add(b"user.sendense.label", &volume.volume.label);
    add(b"user.sendense.uuid", volume.volume.uuid.as_bytes());
    add(
        b"user.sendense.partition_label",
        volume.volume.partition_label.as_bytes(),
    );
    match &volume.fs {
        Ok(fs) => add(
            b"user.sendense.note",
            fs.description().notes.join("\n").as_bytes(),
        ),
        Err(error) => add(ERROR, error.to_string().as_bytes()),
    }
    attributes
}

/// The value of attribute `name`.
pub(crate) fn find(attributes: Vec<(Vec<u8>, Vec<u8>)>, name: &[u8]) -> Option<Vec<u8>> {
    attributes
        .into_iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value)
}
