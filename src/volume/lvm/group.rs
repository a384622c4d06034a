//! A volume group, as its metadata describes it.
#![deny(clippy::arithmetic_side_effects)]

use super::text::Section;
use std::collections::HashSet;

/// LVM2 counts in sectors of 512 bytes, whatever the disk's are.
const SECTOR: u64 = 512;

/// A volume group.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) id: String,
    /// Grows with each change.
    pub(super) seqno: u64,
    /// Bytes per extent.
    pub(super) extent: u64,
    pub(super) pvs: Vec<PvEntry>,
    pub(super) lvs: Vec<Lv>,
    /// Old-style snapshots, which are volumes of their own in the text.
    snapshots: Vec<Snapshot>,
}

/// A physical volume of the group.
#[derive(Debug)]
pub(super) struct PvEntry {
    /// The name that segments use, `pv0`.
    pub(super) name: String,
    /// UUID without dashes.
    pub(super) id: String,
    /// UUID as LVM prints it.
    pub(super) uuid: String,
    /// Where it was last seen.
    pub(super) device: String,
    /// Where its first extent begins, in bytes.
    pub(super) start: u64,
    /// Number of extents.
    pub(super) count: u64,
    /// Whether the group gave it up.
    pub(super) missing: bool,
}

/// A logical volume.
#[derive(Debug)]
pub(super) struct Lv {
    pub(super) name: String,
    pub(super) visible: bool,
    pub(super) segments: Vec<LvSegment>,
}

/// A segment of a logical volume.
#[derive(Debug)]
pub(super) struct LvSegment {
    /// First extent in the volume.
    pub(super) start: u64,
    /// Number of extents.
    pub(super) count: u64,
    /// `striped` (linear is striped over one), `thin`, `raid1`, …; after a `+`
    /// stand flags that must be understood.
    pub(super) kind: String,
    /// Bytes per stripe.
    pub(super) stripe: u64,
    /// Physical volume (or logical one) and first extent of each column, or of
    /// each copy of a mirror.
    pub(super) stripes: Vec<(String, u64)>,
    /// The logical volumes that a RAID consists of.
    pub(super) images: Vec<String>,
    /// Copies of each chunk of a RAID10.
    pub(super) copies: u64,
    /// Extents that a RAID keeps for being given another shape; 0 before the first
    /// time.
    pub(super) reshape: u64,
}

#[derive(Debug)]
struct Snapshot {
    /// The internal volume that stands for it.
    name: String,
    origin: String,
    store: String,
    merging: bool,
}

impl Group {
    /// Reads metadata text; `None` if it is not what LVM2 writes.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let all = Section::parse(text)?;
        let (name, group) = all
            .sections()
            .find(|(_, s)| s.number("extent_size").is_some())?;
        let none = Section::default();
        let pvs = group.section("physical_volumes").unwrap_or(&none);
        let lvs = group.section("logical_volumes").unwrap_or(&none);
        let snapshots = lvs.sections().filter_map(|(name, lv)| snapshot(name, lv));
        Some(Self {
            id: group.text("id")?,
            seqno: group.number("seqno")?,
            extent: group
                .number("extent_size")?
                .checked_mul(SECTOR)
                .filter(|size| *size > 0)?,
            pvs: pvs
                .sections()
                .map(|(name, pv)| physical(name, pv))
                .collect::<Option<_>>()?,
            lvs: lvs.sections().map(|(name, lv)| logical(name, lv)).collect(),
            snapshots: snapshots.collect(),
            name,
        })
    }

    /// Bytes of `lv`, whether it can be read or not.
    pub(super) fn size(&self, lv: &Lv) -> u64 {
        let extents = lv.segments.iter().map(|segment| segment.count);
        extents
            .fold(0, u64::saturating_add)
            .saturating_mul(self.extent)
    }

    /// The volumes that are a user's: not internal. Of a snapshot, the store is what
    /// a user sees by its name; a volume without a store stands for the two.
    pub(super) fn shown(&self) -> impl Iterator<Item = &Lv> {
        let all = |name: fn(&Snapshot) -> &String| -> HashSet<&String> {
            self.snapshots.iter().map(name).collect()
        };
        let (snapshots, stores) = (all(|s| &s.name), all(|s| &s.store));
        self.lvs.iter().filter(move |lv| {
            !snapshots.contains(&lv.name) && (lv.visible || stores.contains(&lv.name))
        })
    }

    /// Why the bytes of `lv` are not those that a guest sees there, if it is a
    /// snapshot or is being changed back to one.
    pub(super) fn snapshot(&self, lv: &Lv) -> Option<String> {
        self.snapshots.iter().find_map(|snapshot| {
            if snapshot.store == lv.name {
                let origin = &snapshot.origin;
                Some(format!(
                    "it is an LVM snapshot of {origin}; snapshots are not read"
                ))
            } else if snapshot.origin == lv.name && snapshot.merging {
                let store = &snapshot.store;
                Some(format!("the LVM snapshot {store} is being merged into it"))
            } else {
                None
            }
        })
    }
}

fn physical(name: String, pv: &Section<'_>) -> Option<PvEntry> {
    let uuid = pv.text("id")?;
    Some(PvEntry {
        name,
        id: uuid.replace('-', ""),
        uuid,
        device: pv
            .text("device")
            .unwrap_or_else(|| "an unknown device".into()),
        start: pv.number("pe_start")?.checked_mul(SECTOR)?,
        count: pv.number("pe_count")?,
        missing: pv.lists("flags", "MISSING"),
    })
}

fn logical(name: String, lv: &Section<'_>) -> Lv {
    let mut segments: Vec<LvSegment> = lv
        .sections()
        .filter_map(|(_, segment)| self::segment(segment))
        .collect();
    segments.sort_by_key(|segment| segment.start);
    // A segment that cannot be understood must not be taken for none.
    let whole = lv.number("segment_count") == u64::try_from(segments.len()).ok();
    if !whole {
        segments.clear();
    }
    Lv {
        name,
        visible: lv.lists("status", "VISIBLE"),
        segments,
    }
}

fn segment(segment: &Section<'_>) -> Option<LvSegment> {
    let kind = segment.text("type")?;
    let stripe = segment
        .number("stripe_size")
        .unwrap_or(0)
        .checked_mul(SECTOR)?;
    let stripes = match kind.as_str() {
        "striped" => segment
            .pairs("stripes")
            .filter(|stripes| !stripes.is_empty())?,
        "mirror" => segment
            .pairs("mirrors")
            .filter(|copies| !copies.is_empty())?,
        _ => Vec::new(),
    };
    // Metadata and data of each take turns, but RAID0 may have no metadata.
    let images = match segment.words("raid0_lvs") {
        Some(images) => images,
        None => segment
            .words("raids")
            .unwrap_or_default()
            .chunks_exact(2)
            .filter_map(|pair| pair.last().cloned())
            .collect(),
    };
    let (start, count) = (
        segment.number("start_extent")?,
        segment.number("extent_count")?,
    );
    Some(LvSegment {
        start,
        count,
        kind,
        stripe,
        stripes,
        images,
        copies: segment.number("data_copies").unwrap_or(2),
        reshape: segment.number("reshape_count").unwrap_or(0),
    })
}

fn snapshot(name: String, lv: &Section<'_>) -> Option<Snapshot> {
    let (_, segment) = lv
        .sections()
        .find(|(_, s)| s.text("type").is_some_and(|kind| kind == "snapshot"))?;
    let merging = segment.text("merging_store");
    Some(Snapshot {
        name,
        origin: segment.text("origin")?,
        merging: merging.is_some(),
        store: merging.or_else(|| segment.text("cow_store"))?,
    })
}
