//! Opening: superblocks, devices, the chunk map, the roots.
//!
//! Where the chunk tree lies is said by chunks as well: those are in the
//! superblock itself.

use super::Btrfs;
use super::chunk::{Chunks, Device};
use super::decoded::Decoded;
use super::description;
use super::node::{Key, Nodes};
use super::subvolume::{FIRST_OBJECT, ROOT_ITEM, Subvolumes};
use super::superblock::Superblock;
use super::tree::Tree;
use crate::error::{Error, Result};
use crate::filesystem::Source;
use crate::filesystem::field::{array_at, slice_at};

const DEV_ITEM: u8 = 216;
const CHUNK_ITEM: u8 = 228;

const CHECKSUM_TREE: u64 = 7;

impl Btrfs {
    /// Opens it; reads the chunk tree, the root tree, and one path of each
    /// subvolume's tree.
    ///
    /// # Errors
    /// `Corrupt` for what must be there and cannot be read, `Unsupported` for
    /// features that are not known and for a file system that grows from a seed.
    pub fn open(source: Source) -> Result<Self> {
        let Source { volume, members } = source;
        let (superblock, devices) = devices(volume.as_ref(), &members)?;
        let mut chunks = Chunks::new(devices);
        let mut array = superblock.system_chunks.as_slice();
        while !array.is_empty() {
            let cut = || Error::corrupt("btrfs superblock", "its system chunks are cut off");
            let key = Key::parse(array, 0).ok_or_else(cut)?;
            let item = array.get(17..).ok_or_else(cut)?;
            let len = chunks.add(key.offset, item)?;
            array = item.get(len..).ok_or_else(cut)?;
        }
        let mut nodes = Nodes::new(volume, chunks, &superblock);
        nodes.chunks = chunk_tree(&nodes, &superblock)?;

        let roots = Tree {
            root: superblock.root,
            level: superblock.root_level,
            generation: superblock.generation,
        };
        let last = Key::new(CHECKSUM_TREE, ROOT_ITEM, u64::MAX);
        let checksums = match nodes.last_until(&roots, last)? {
            Some(item) if (item.key.objectid, item.key.kind) == (last.objectid, last.kind) => {
                Tree::parse(item.data()?)
            }
            _ => None,
        };
        let subvolumes = Subvolumes::read(&nodes, &roots, superblock.root_dir)?;
        let root = subvolumes.root()?.number(FIRST_OBJECT);
        let description = description::describe(&superblock, &nodes.chunks, &subvolumes)?;
        Ok(Self {
            nodes,
            roots,
            checksums,
            subvolumes,
            root,
            decoded: Decoded::new(),
            description,
        })
    }
}

/// The newest superblock, and the devices that are there.
fn devices(
    volume: &dyn crate::image::BlockRead,
    members: &[u64],
) -> Result<(Superblock, Vec<Device>)> {
    let whole = [volume.size()];
    let members = if members.is_empty() { &whole } else { members };
    let mut found: Vec<(Superblock, (u64, u64))> = Vec::new();
    let mut trouble = None;
    let mut start = 0u64;
    for len in members {
        match Superblock::read(volume, start, *len) {
            Ok(superblock) => found.push((superblock, (start, *len))),
            Err(error @ (Error::Corrupt { .. } | Error::Unsupported { .. })) => {
                trouble = trouble.or(Some(error));
            }
            Err(error) => return Err(error),
        }
        start = start.saturating_add(*len);
    }
    // The newest first.
    found.sort_by_key(|(superblock, _)| std::cmp::Reverse(superblock.generation));
    let Some((newest, _)) = found.first().cloned() else {
        return Err(trouble.unwrap_or_else(|| Error::corrupt("btrfs", "there is no device")));
    };
    let mut devices: Vec<Device> = Vec::new();
    for (superblock, place) in found {
        let known = devices.iter().any(|device| device.id == superblock.device);
        if superblock.fsid == newest.fsid && !known {
            devices.push(Device {
                id: superblock.device,
                uuid: superblock.device_uuid,
                place: Some(place),
                stale: superblock.generation < newest.generation,
            });
        }
    }
    Ok((newest, devices))
}

/// The chunk map, and the devices that are missing.
fn chunk_tree(nodes: &Nodes, superblock: &Superblock) -> Result<Chunks> {
    let tree = Tree {
        root: superblock.chunk_root,
        level: superblock.chunk_root_level,
        generation: superblock.chunk_root_generation,
    };
    let mut chunks = nodes.chunks.emptied();
    let mut cursor = nodes.seek(&tree, Key::new(0, 0, 0))?;
    while let Some((key, item)) = cursor.next()? {
        match key.kind {
            CHUNK_ITEM => {
                chunks.add(key.offset, item)?;
            }
            DEV_ITEM => {
                let what = || format!("btrfs device {}", key.offset);
                let short = || Error::corrupt(what(), "its item is too short");
                if slice_at(item, 82, 16).ok_or_else(short)? != superblock.metadata_uuid {
                    return Err(Error::Unsupported {
                        what: what(),
                        reason: "it is a seed device, of another file system; that is not read \
                                 yet"
                        .into(),
                    });
                }
                chunks.device(key.offset, array_at(item, 66).ok_or_else(short)?)?;
            }
            _ => {}
        }
    }
    Ok(chunks)
}
