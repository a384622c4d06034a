//! Subvolumes, and the numbers of their inodes.
//!
//! The idea: each subvolume counts its inodes for itself, so each gets a range of
//! our numbers, one after the other: first the root (the default subvolume), then
//! all by their ids. A range is as long as the largest number in the subvolume
//! says, and some times as long again for the stubs: the empty folders that stand in
//! a snapshot where nested subvolumes were. Each folder has some numbers for those in
//! it, which share them out by the ids of what was there. (With the kernel they all
//! have one number. Here it must lead back to the folder, and whoever caches by
//! number must not take one for another.)
//!
//! What lies outside the default subvolume is found below a folder that is not
//! listed, [`TOP_LEVEL`]; seen from there the default subvolume has a second
//! range, because a folder cannot lie in itself.
//!
//! Bounds: [`MAX_SUBVOLUMES`] of them (about 1 MiB), and [`MAX_NUMBER`]; what goes
//! beyond has number [`NOWHERE`], whose use is an error.

use super::Btrfs;
use super::node::{Key, Nodes};
use super::tree::Tree;
use crate::error::{Error, Result};
use crate::filesystem::field::{array_at, u16_at, u32_at, u64_at};

/// Subvolume that holds all others (`BTRFS_FS_TREE_OBJECTID`).
pub(super) const TOP: u64 = 5;
/// Smallest and largest number of an inode, and of a subvolume but [`TOP`].
pub(super) const FIRST_OBJECT: u64 = 256;
const LAST_OBJECT: u64 = u64::MAX - 255;

/// Name of the folder in the root, not listed, that shows subvolume [`TOP`] where
/// that is not the root itself.
pub(super) const TOP_LEVEL: &[u8] = b".top-level";

/// Subvolumes and snapshots that can be looked into.
const MAX_SUBVOLUMES: usize = 1 << 14;

/// Inode numbers are below this.
const MAX_NUMBER: u64 = 1 << 38;

/// Numbers that a folder has for the stubs in it, at most; fewer where all together
/// would be more than [`STUBS`], but one at least.
const STUBS_OF_FOLDER: u64 = 256;
const STUBS: u64 = 1 << 36;

/// The number of what cannot be given one.
pub(super) const NOWHERE: u64 = 1;

pub(super) const ROOT_ITEM: u8 = 132;
const ROOT_BACKREF: u8 = 144;
const ROOT_REF: u8 = 156;
const DIR_ITEM: u8 = 84;

/// A subvolume or snapshot.
#[derive(Debug, Clone)]
pub(super) struct Subvolume {
    pub(super) id: u64,
    pub(super) tree: Tree,
    /// What is added to its inodes' numbers.
    first: u64,
    /// One more than its largest inode number, at least that of its root folder.
    objects: u64,
    /// How many numbers a folder has for stubs.
    stubs: u64,
    /// Why nothing in it can be read.
    trouble: Option<Error>,
}

/// All that can be reached.
pub(super) struct Subvolumes {
    /// The root, then all by id; the root once more if it is not [`TOP`].
    list: Vec<Subvolume>,
    /// One more than the largest number.
    pub(super) bound: u64,
    /// How many there was no room for.
    pub(super) beyond: usize,
}

/// What a number stands for.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) subvolume: &'a Subvolume,
    /// The number in the subvolume; of a stub, that of the folder it lies in.
    pub(super) objectid: u64,
    /// Of an empty folder where a nested subvolume was, which one of its folder.
    pub(super) stub: Option<u64>,
}

impl Subvolume {
    /// Finds out how many inodes one may have. It has no numbers yet.
    fn measure(nodes: &Nodes, id: u64, tree: Tree) -> Result<Self> {
        let least = FIRST_OBJECT.saturating_add(1);
        let (objects, trouble) = match largest_object(nodes, &tree) {
            Ok(largest) => (largest.saturating_add(1).max(least), None),
            // What lies on the disk is always the same, and so are the numbers.
            Err(error @ (Error::Corrupt { .. } | Error::Unsupported { .. })) => {
                (least, Some(error))
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            id,
            tree,
            first: 0,
            objects,
            stubs: 1,
            trouble,
        })
    }

    /// The number of one of its inodes.
    pub(super) fn number(&self, objectid: u64) -> u64 {
        if objectid < self.objects {
            self.first.saturating_add(objectid)
        } else {
            NOWHERE
        }
    }

    /// The number of the stub in one of its folders where a subvolume was.
    pub(super) fn stub(&self, folder: u64, id: u64) -> u64 {
        if folder >= self.objects {
            return NOWHERE;
        }
        self.first
            .saturating_add(self.objects)
            .saturating_add(folder.saturating_mul(self.stubs))
            .saturating_add(id.checked_rem(self.stubs).unwrap_or(0))
    }

    /// How many numbers it takes.
    fn span(&self) -> u64 {
        let stubs = self.objects.saturating_mul(self.stubs);
        self.objects.saturating_add(stubs)
    }
}

impl Subvolumes {
    /// Finds all of them; reads one path of each one's tree.
    ///
    /// # Errors
    /// `Corrupt` if the root tree or the default subvolume cannot be read; from
    /// below.
    pub(super) fn read(nodes: &Nodes, roots: &Tree, root_dir: u64) -> Result<Self> {
        let default = default_subvolume(nodes, roots, root_dir)?;
        let mut found: Vec<(u64, Tree)> = Vec::new();
        let mut beyond = 0usize;
        let mut cursor = nodes.seek(roots, Key::new(TOP, ROOT_ITEM, 0))?;
        while let Some((key, item)) = cursor.next()? {
            let is_subvolume = key.objectid == TOP || key.objectid >= FIRST_OBJECT;
            if key.objectid > LAST_OBJECT {
                break;
            }
            // What has no references is being deleted.
            if key.kind != ROOT_ITEM || !is_subvolume || u32_at(item, 216) == Some(0) {
                continue;
            }
            let tree = Tree::parse(item).ok_or_else(|| {
                Error::corrupt(
                    format!("btrfs subvolume {}", key.objectid),
                    "its item is too short",
                )
            })?;
            let full = found.len() >= MAX_SUBVOLUMES && key.objectid != default;
            match found.last_mut() {
                // The last of several is the one that counts.
                Some((id, last)) if *id == key.objectid => *last = tree,
                _ if full => beyond = beyond.saturating_add(1),
                _ => found.push((key.objectid, tree)),
            }
        }
        let what = || format!("btrfs subvolume {default}");
        let root = found
            .iter()
            .find(|(id, _)| *id == default)
            .copied()
            .ok_or_else(|| Error::corrupt(what(), "it is the default one, and is not there"))?;
        if default == TOP {
            found.retain(|(id, _)| *id != TOP);
        }
        let mut measured = Vec::new();
        for (id, tree) in std::iter::once(root).chain(found) {
            measured.push(Subvolume::measure(nodes, id, tree)?);
        }
        let objects = measured
            .iter()
            .fold(0u64, |sum, subvolume| sum.saturating_add(subvolume.objects));
        let stubs = STUBS.checked_div(objects).unwrap_or(1);
        let stubs = stubs.clamp(1, STUBS_OF_FOLDER);
        let mut all = Self {
            list: Vec::new(),
            bound: 0,
            beyond,
        };
        for subvolume in measured {
            all.add(Subvolume { stubs, ..subvolume });
        }
        match all.list.first() {
            Some(Subvolume {
                trouble: Some(error),
                ..
            }) => Err(error.clone()),
            Some(_) => Ok(all),
            None => Err(Error::Unsupported {
                what: what(),
                reason: "it has more inodes than can be numbered".into(),
            }),
        }
    }

    /// Gives it the next numbers, if there are that many.
    fn add(&mut self, subvolume: Subvolume) {
        let (first, bound) = (self.bound, self.bound.saturating_add(subvolume.span()));
        if bound > MAX_NUMBER {
            self.beyond = self.beyond.saturating_add(1);
            return;
        }
        self.bound = bound;
        self.list.push(Subvolume { first, ..subvolume });
    }

    /// The one whose root folder is the root.
    ///
    /// # Errors
    /// None in fact: there is one.
    pub(super) fn root(&self) -> Result<&Subvolume> {
        self.list
            .first()
            .ok_or_else(|| Error::corrupt("btrfs", "it has no subvolume"))
    }

    /// The subvolume of this id as it is seen from outside of it.
    pub(super) fn outside(&self, id: u64) -> Option<&Subvolume> {
        let listed = self.list.get(1..).unwrap_or_default();
        match listed.binary_search_by_key(&id, |subvolume| subvolume.id) {
            Ok(at) => listed.get(at),
            Err(_) => self.list.first().filter(|root| root.id == id),
        }
    }

    /// The subvolume of this id as it is seen from within.
    fn inside(&self, id: u64) -> Option<&Subvolume> {
        let root = self.list.first().filter(|root| root.id == id);
        root.or_else(|| self.outside(id))
    }

    /// What a number stands for.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` for [`NOWHERE`]; what is wrong with the
    /// subvolume.
    pub(super) fn place(&self, number: u64) -> Result<Place<'_>> {
        let what = || format!("btrfs inode {number}");
        if number == NOWHERE {
            return Err(Error::Unsupported {
                what: "btrfs inode".into(),
                reason: format!(
                    "it is damaged, or lies in one of the subvolumes for which there is no room \
                     (past the first {MAX_SUBVOLUMES})"
                ),
            });
        }
        let at = self.list.partition_point(|sub| sub.first <= number);
        let subvolume = at.checked_sub(1).and_then(|at| self.list.get(at));
        let subvolume = subvolume.ok_or_else(|| Error::not_found(what()))?;
        if let Some(trouble) = &subvolume.trouble {
            return Err(trouble.clone());
        }
        let within = number.saturating_sub(subvolume.first);
        let stub = within.checked_sub(subvolume.objects);
        let folder = stub.and_then(|stub| stub.checked_div(subvolume.stubs));
        let place = Place {
            subvolume,
            objectid: folder.unwrap_or(within),
            stub: stub.and_then(|stub| stub.checked_rem(subvolume.stubs)),
        };
        if place.objectid < FIRST_OBJECT || place.objectid >= subvolume.objects {
            return Err(Error::not_found(what()));
        }
        Ok(place)
    }
}

/// The largest inode number of a subvolume, from the last path of its tree.
fn largest_object(nodes: &Nodes, tree: &Tree) -> Result<u64> {
    let last = nodes.last_until(tree, Key::new(LAST_OBJECT, u8::MAX, u64::MAX))?;
    Ok(last.map_or(0, |item| item.key.objectid))
}

/// The id of the subvolume that is mounted if none is named.
fn default_subvolume(nodes: &Nodes, roots: &Tree, root_dir: u64) -> Result<u64> {
    const NAME: &[u8] = b"default";
    let key = Key::new(root_dir, DIR_ITEM, super::checksum::name_hash(NAME));
    let Some(item) = nodes.get(roots, key)? else {
        return Ok(TOP);
    };
    let entry = super::directory::entries(item.data()?)
        .flatten()
        .find(|entry| entry.name == NAME);
    Ok(entry.map_or(TOP, |entry| entry.location.objectid))
}

impl Btrfs {
    /// The number of what an entry of a folder points to.
    pub(super) fn target(&self, folder: &Place<'_>, name: &[u8], location: Key) -> Result<u64> {
        if location.kind != ROOT_ITEM {
            return Ok(folder.subvolume.number(location.objectid));
        }
        // A nested subvolume lies here if the root tree says so too; in a
        // snapshot of this folder it does not, and the kernel shows an empty one.
        let key = Key::new(folder.subvolume.id, ROOT_REF, location.objectid);
        let here = match self.nodes.get(&self.roots, key)? {
            Some(item) => {
                let item = item.data()?;
                u64_at(item, 0) == Some(folder.objectid)
                    && u16_at(item, 16).map(usize::from) == Some(name.len())
                    && item.get(18..).is_some_and(|rest| rest.starts_with(name))
            }
            None => false,
        };
        if !here {
            return Ok(folder.subvolume.stub(folder.objectid, location.objectid));
        }
        Ok(match self.subvolumes.outside(location.objectid) {
            Some(subvolume) => subvolume.number(FIRST_OBJECT),
            None => NOWHERE,
        })
    }

    /// The folder in which a subvolume lies.
    pub(super) fn parent_of_subvolume(&self, subvolume: &Subvolume) -> Result<u64> {
        let root = self.subvolumes.root()?;
        if subvolume.first == root.first || subvolume.id == TOP {
            return Ok(root.number(FIRST_OBJECT));
        }
        let lost = |reason| Error::corrupt(format!("btrfs subvolume {}", subvolume.id), reason);
        let first = Key::new(subvolume.id, ROOT_BACKREF, 0);
        let mut cursor = self.nodes.seek(&self.roots, first)?;
        let Some((key, item)) = cursor
            .next()?
            .filter(|(key, _)| (key.objectid, key.kind) == (first.objectid, first.kind))
        else {
            return Err(lost("nothing says where it lies"));
        };
        let folder = array_at(item, 0).map(u64::from_le_bytes);
        let folder = folder.ok_or_else(|| lost("what says where it lies is too short"))?;
        let above = self.subvolumes.inside(key.offset);
        Ok(above.map_or(NOWHERE, |above| above.number(folder)))
    }
}
