//! B-trees: search by key, and scan from there.

use std::sync::Arc;

use super::node::{Expected, Key, Node, Nodes};
use crate::error::{Error, Result};
use crate::filesystem::field::{u8_at, u64_at};
use crate::image::patience;

/// Levels that a tree may have (`BTRFS_MAX_LEVEL`).
const MAX_LEVELS: u8 = 8;

/// A tree, by its root node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tree {
    /// Logical byte of the root node.
    pub(super) root: u64,
    pub(super) level: u8,
    pub(super) generation: u64,
}

impl Tree {
    /// From a `struct btrfs_root_item`: generation 160, bytenr 176, level 238.
    pub(super) fn parse(item: &[u8]) -> Option<Self> {
        Some(Self {
            root: u64_at(item, 176)?,
            level: u8_at(item, 238)?,
            generation: u64_at(item, 160)?,
        })
    }
}

/// An item that was found.
pub(super) struct Item {
    node: Arc<Node>,
    slot: usize,
    pub(super) key: Key,
}

impl Item {
    /// What it holds.
    pub(super) fn data(&self) -> Result<&[u8]> {
        self.node.data(self.slot).ok_or_else(|| outside(self.key))
    }
}

fn outside(key: Key) -> Error {
    Error::corrupt(format!("btrfs item {key:?}"), "it does not lie in its node")
}

/// A place in a tree: the nodes from the root to a leaf, and the slot in each.
pub(super) struct Cursor<'a> {
    nodes: &'a Nodes,
    path: Vec<(Arc<Node>, usize)>,
}

impl Nodes {
    /// A cursor at the first item whose key is not smaller than `key`.
    ///
    /// # Errors
    /// `Corrupt`; from below.
    pub(super) fn seek(&self, tree: &Tree, key: Key) -> Result<Cursor<'_>> {
        let mut cursor = self.descend(tree, key)?;
        if let Some((leaf, slot)) = cursor.path.last_mut() {
            *slot = leaf.smaller(key);
        }
        Ok(cursor)
    }

    /// A cursor at the last item whose key is not greater than `key`; if there
    /// is none, at the first of all.
    ///
    /// # Errors
    /// As [`Nodes::seek`].
    pub(super) fn seek_back(&self, tree: &Tree, key: Key) -> Result<Cursor<'_>> {
        let mut cursor = self.descend(tree, key)?;
        if let Some((leaf, slot)) = cursor.path.last_mut() {
            *slot = at_or_before(leaf, key);
        }
        Ok(cursor)
    }

    /// The item of exactly this key.
    ///
    /// # Errors
    /// As [`Nodes::seek`].
    pub(super) fn get(&self, tree: &Tree, key: Key) -> Result<Option<Item>> {
        Ok(self.last_until(tree, key)?.filter(|item| item.key == key))
    }

    /// The last item whose key is not greater than `key`.
    ///
    /// # Errors
    /// As [`Nodes::seek`].
    pub(super) fn last_until(&self, tree: &Tree, key: Key) -> Result<Option<Item>> {
        let cursor = self.seek_back(tree, key)?;
        let Some((node, slot)) = cursor.path.into_iter().next_back() else {
            return Ok(None);
        };
        let found = node.key(slot).filter(|found| *found <= key);
        Ok(found.map(|key| Item { node, slot, key }))
    }

    fn descend(&self, tree: &Tree, key: Key) -> Result<Cursor<'_>> {
        if tree.level >= MAX_LEVELS {
            return Err(Error::corrupt(
                format!("btrfs tree {}", tree.root),
                "it has too many levels",
            ));
        }
        let expected = Expected {
            level: tree.level,
            generation: tree.generation,
            first: None,
        };
        let mut path = Vec::with_capacity(usize::from(tree.level).saturating_add(1));
        let mut node = self.node(tree.root, expected)?;
        while node.level > 0 {
            let slot = at_or_before(&node, key);
            let child = self.child(&node, slot)?;
            path.push((node, slot));
            node = child;
        }
        path.push((node, 0));
        Ok(Cursor { nodes: self, path })
    }

    fn child(&self, node: &Node, slot: usize) -> Result<Arc<Node>> {
        let (logical, expected) = node
            .child(slot)
            .ok_or_else(|| Error::corrupt("btrfs node", "a child of it is not there"))?;
        self.node(logical, expected)
    }
}

/// The slot of the last key that is not greater than `key`, or the first slot.
fn at_or_before(node: &Node, key: Key) -> usize {
    let slot = node.smaller(key);
    if node.key(slot) == Some(key) {
        slot
    } else {
        slot.saturating_sub(1)
    }
}

impl Cursor<'_> {
    /// The item here, if this leaf has one more; the cursor moves on.
    ///
    /// # Errors
    /// `Corrupt` if the item does not lie in its node.
    pub(super) fn next_in_leaf(&mut self) -> Result<Option<(Key, &[u8])>> {
        let Some((leaf, slot)) = self.path.last_mut() else {
            return Ok(None);
        };
        let Some(key) = leaf.key(*slot) else {
            return Ok(None);
        };
        let data = leaf.data(*slot).ok_or_else(|| outside(key))?;
        *slot = slot.saturating_add(1);
        Ok(Some((key, data)))
    }

    /// The item here; the cursor moves on, from leaf to leaf.
    ///
    /// # Errors
    /// `Corrupt`; from below.
    pub(super) fn next(&mut self) -> Result<Option<(Key, &[u8])>> {
        patience::spend()?;
        loop {
            let Some((leaf, slot)) = self.path.last() else {
                return Ok(None);
            };
            if *slot < leaf.count {
                return self.next_in_leaf();
            }
            self.next_leaf()?;
        }
    }

    /// Goes to the first item of the next leaf; past the last one the path is
    /// empty.
    fn next_leaf(&mut self) -> Result<()> {
        let last = self
            .path
            .pop()
            .and_then(|(leaf, _)| leaf.key(leaf.count.checked_sub(1)?));
        while let Some((node, slot)) = self.path.last_mut() {
            *slot = slot.saturating_add(1);
            if *slot >= node.count {
                self.path.pop();
                continue;
            }
            let mut child = self.nodes.child(node, *slot)?;
            // Forward only: no node is met twice.
            if child.key(0) <= last {
                return Err(Error::corrupt(
                    "btrfs tree",
                    "its leaves are not in the order of their keys",
                ));
            }
            while child.level > 0 {
                let next = self.nodes.child(&child, 0)?;
                self.path.push((child, 0));
                child = next;
            }
            self.path.push((child, 0));
            return Ok(());
        }
        Ok(())
    }
}
