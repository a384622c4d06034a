//! Folders, entry by entry.
//!
//! Each listing has positions that stay valid over calls: ids where the catalog
//! may change in between, what the file system gives inside a disk.

use std::ops::ControlFlow;

use super::attached::{AttachedDisk, AttachedVolume};
use super::node::{Detail, Entry, Node, file_node, file_system, folder_node, node_in};
use crate::catalog::{DiskRecord, Folder};
use crate::error::{Error, Result};
use crate::filesystem::FileType;

/// Name of the symbolic link to a VM's newest backup.
pub(crate) const LATEST: &[u8] = b"latest";
/// Position of `latest` in a listing: after all folders, whose positions are
/// their ids.
pub(crate) const LATEST_POSITION: u64 = 1 << 62;
/// For each disk its folder and its raw file, which `nodes` tells.
pub(crate) fn list_disks(
    disks: &[DiskRecord],
    nodes: impl Fn(&DiskRecord) -> Result<(Node, Node)>,
    position: u64,
    each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
) -> Result<()> {
    for record in disks {
        // In the order of the catalog's answer: by index.
        let first = u64::from(record.disk_index)
            .saturating_mul(2)
            .saturating_add(1);
        if first.saturating_add(1) <= position {
            continue;
        }
        let (folder, raw) = nodes(record)?;
        let name = format!("disk{}", record.disk_index);
        let entries = [(folder, name.clone()), (raw, format!("{name}.raw"))];
        for (next, (node, name)) in (first..).zip(entries) {
            if next > position && each(Entry::of(node, name.as_bytes(), next)).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Folders in the order of their ids, which are their positions: a listing that
/// goes on after the catalog has changed neither repeats nor skips any.
pub(crate) fn list_folders(
    mut folders: Vec<Folder>,
    position: u64,
    each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    folders.sort_by_key(|folder| folder.id);
    for folder in folders {
        let next = u64::try_from(folder.id).unwrap_or(0);
        if next <= position {
            continue;
        }
        let node = folder_node(&folder)?;
        if each(Entry::of(node, folder.name.as_bytes(), next)).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

pub(crate) fn list_volumes(
    disk: &AttachedDisk,
    position: u64,
    each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
) -> Result<()> {
    for (volume, next) in disk.volumes.iter().zip(1..) {
        if next <= position {
            continue;
        }
        let node = file_node(disk, volume.root())?;
        let name = volume.volume.name.as_bytes();
        if each(Entry::of(node, name, next)).is_break() {
            break;
        }
    }
    Ok(())
}

pub(crate) fn list_files(
    disk: &AttachedDisk,
    volume: &AttachedVolume,
    dir: u64,
    position: u64,
    detail: Detail,
    each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let fs = file_system(volume)?;
    let mut waits = false;
    fs.read_dir(dir, position, &mut |entry| {
        let node = match (detail, entry.kind) {
            (Detail::Names, Some(_)) => None,
            _ => match node_in(disk, volume, fs, entry.ino) {
                Ok(node) => Some(node),
                Err(Error::WouldWait) => {
                    waits = true;
                    return ControlFlow::Break(());
                }
                // One damaged inode does not hide its neighbours: it is listed,
                // and gives its error on use.
                Err(_) => None,
            },
        };
        let kind = node.as_ref().map(|node| node.attr.kind).or(entry.kind);
        each(Entry {
            ino: disk.number(volume, entry.ino).unwrap_or(u64::MAX),
            name: entry.name,
            kind: kind.unwrap_or(FileType::Regular),
            next: entry.next,
            node,
        })
    })?;
    if waits { Err(Error::WouldWait) } else { Ok(()) }
}
