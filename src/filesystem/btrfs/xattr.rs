//! Extended attributes, ACLs among them: items that look like entries of folders.
//! Names and values stand there as Linux shows them.

use super::Btrfs;
use super::checksum::name_hash;
use super::directory::entries;
use super::inode::Inode;
use crate::error::Result;

pub(super) const XATTR_ITEM: u8 = 24;

impl Btrfs {
    pub(super) fn attribute_names(&self, inode: &Inode<'_>) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        let first = inode.key(XATTR_ITEM, 0);
        let mut cursor = self.nodes.seek(&inode.subvolume.tree, first)?;
        while let Some((key, item)) = cursor.next()? {
            if (key.objectid, key.kind) != (first.objectid, first.kind) {
                break;
            }
            for entry in entries(item) {
                let entry = entry.ok_or_else(|| inode.corrupt("an attribute of it is cut off"))?;
                names.push(entry.name.to_vec());
            }
        }
        Ok(names)
    }

    pub(super) fn attribute(&self, inode: &Inode<'_>, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let key = inode.key(XATTR_ITEM, name_hash(name));
        let Some(item) = self.nodes.get(&inode.subvolume.tree, key)? else {
            return Ok(None);
        };
        for entry in entries(item.data()?) {
            let entry = entry.ok_or_else(|| inode.corrupt("an attribute of it is cut off"))?;
            if entry.name == name {
                return Ok(Some(entry.data.to_vec()));
            }
        }
        Ok(None)
    }
}
