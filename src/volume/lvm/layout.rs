//! Where the bytes of a logical volume lie.
//!
//! The idea: a segment lies on physical volumes, or on other logical volumes (the
//! images of a RAID) that lie there in turn; each is a mapping, and the segment
//! is one over them.
#![deny(clippy::arithmetic_side_effects)]

use super::Pv;
use super::group::{Group, Lv, LvSegment, PvEntry};
use crate::volume::mapping::{Layout, Mapping, Place, Segment};
use crate::volume::raid::{self, Copies, Mapped, Unmapped};
use std::cell::Cell;
use std::collections::HashMap;

/// Logical volumes within logical volumes; LVM2 itself needs three.
const MAX_DEPTH: usize = 4;
/// Logical volumes that are looked into for others, in one group.
const MAX_IMAGES: u32 = 50_000;

type Reason<T> = std::result::Result<T, String>;

/// The layouts of a group's volumes. Names are looked up in maps: a group may have
/// many thousands of each, and a segment names many.
pub(super) struct Layouts<'a> {
    /// What was found, by UUID; of copies the first.
    found: HashMap<&'a str, &'a Pv>,
    /// What the group has, by name; of several the first.
    pvs: HashMap<&'a str, &'a PvEntry>,
    lvs: HashMap<&'a str, &'a Lv>,
    extent: u64,
    absence: &'a str,
    /// Of [`MAX_IMAGES`].
    left: Cell<u32>,
}

/// Whether segments of this type are mapped.
pub(super) fn reads(segment: &LvSegment) -> bool {
    matches!(segment.kind.as_str(), "striped" | "mirror") || level(&segment.kind).is_some()
}

/// The RAID level of a type, and where RAID5 and RAID6 put their parity, as Linux
/// numbers it.
fn level(kind: &str) -> Option<(u32, u32)> {
    Some(match kind {
        "raid0" | "raid0_meta" => (0, 0),
        "raid1" => (1, 0),
        "raid10" | "raid10_near" => (10, 0),
        // Its parity is on the first image.
        "raid4" => (5, 4),
        "raid5_la" => (5, 0),
        "raid5_ra" => (5, 1),
        "raid5" | "raid5_ls" => (5, 2),
        "raid5_rs" => (5, 3),
        "raid5_n" => (5, 5),
        "raid6" | "raid6_zr" => (6, 8),
        "raid6_nr" => (6, 9),
        "raid6_nc" => (6, 10),
        "raid6_la_6" => (6, 16),
        "raid6_ra_6" => (6, 17),
        "raid6_ls_6" => (6, 18),
        "raid6_rs_6" => (6, 19),
        "raid6_n_6" => (6, 5),
        _ => return None,
    })
}

impl<'a> Layouts<'a> {
    pub(super) fn new(pvs: &'a [Pv], group: &'a Group, absence: &'a str) -> Self {
        Self {
            found: by(pvs, |pv| &pv.id),
            pvs: by(&group.pvs, |pv| &pv.name),
            lvs: by(&group.lvs, |lv| &lv.name),
            extent: group.extent,
            absence,
            left: Cell::new(MAX_IMAGES),
        }
    }

    /// The logical volume `name`, as a part of another one at `depth`.
    fn part(&self, name: &str, depth: usize) -> Option<&'a Lv> {
        self.left.set(self.left.get().checked_sub(1)?);
        let part = self.lvs.get(name).copied();
        part.filter(|_| depth < MAX_DEPTH)
    }

    /// The first byte of `lv` that lies on device 0, by the order of its segments.
    pub(super) fn first(&self, lv: &Lv) -> Option<u64> {
        self.first_in(lv, 0)
    }

    fn first_in(&self, lv: &Lv, depth: usize) -> Option<u64> {
        let inner = |name: &str| {
            let part = self.part(name, depth)?;
            self.first_in(part, depth.saturating_add(1))
        };
        lv.segments.iter().find_map(|segment| {
            let stripes = segment.stripes.iter().find_map(|(name, extent)| {
                match self.pvs.get(name.as_str()) {
                    Some(entry) => {
                        let pv = self.found.get(entry.id.as_str())?;
                        let at = extent.checked_mul(self.extent)?;
                        pv.mapping
                            .first_on(0)?
                            .checked_add(at)?
                            .checked_add(entry.start)
                    }
                    None => inner(name),
                }
            });
            stripes.or_else(|| segment.images.iter().find_map(|name| inner(name)))
        })
    }

    /// Where `lv` lies, or why that cannot be said.
    pub(super) fn mapping(&self, lv: &Lv) -> Reason<Mapping> {
        self.mapping_in(lv, 0)
    }

    fn damaged(lv: &Lv) -> String {
        format!("the LVM metadata of {} contradicts itself", lv.name)
    }

    fn mapping_in(&self, lv: &Lv, depth: usize) -> Reason<Mapping> {
        let damaged = || Self::damaged(lv);
        let mut next = 0_u64;
        let mut under = Vec::new();
        let mut all = Vec::new();
        for segment in &lv.segments {
            if segment.start != next {
                return Err(damaged());
            }
            next = next.checked_add(segment.count).ok_or_else(damaged)?;
            all.push(self.segment(lv, segment, depth, &mut under)?);
        }
        if all.is_empty() {
            return Err(damaged());
        }
        Mapping::over(all, &under).map_err(|error| error.to_string())
    }

    fn segment(
        &self,
        lv: &Lv,
        segment: &LvSegment,
        depth: usize,
        under: &mut Vec<Mapping>,
    ) -> Reason<Segment> {
        let damaged = || Self::damaged(lv);
        let len = segment.count.checked_mul(self.extent).ok_or_else(damaged)?;
        if let Some((level, layout)) = level(&segment.kind) {
            return self.raid(lv, segment, (level, layout, len), depth, under);
        }
        let copies = segment.kind == "mirror";
        let width = if copies { 1 } else { segment.stripes.len() };
        let width = u64::try_from(width).map_err(|_| damaged())?;
        if segment.count.checked_rem(width) != Some(0) {
            return Err(damaged());
        }
        let each = segment.count.checked_div(width).ok_or_else(damaged)?;
        let mut columns = segment
            .stripes
            .iter()
            .map(|(name, first)| self.place(name, *first, each, depth, under));
        if copies {
            // Any copy will do; of several reasons the first counts.
            let first = columns.next().ok_or_else(damaged)?;
            let place = first.or_else(|reason| columns.find_map(Reason::ok).ok_or(reason))?;
            return Ok(Segment {
                len,
                layout: Layout::Linear(place),
            });
        }
        let columns = columns.collect::<Reason<Vec<Place>>>()?;
        let layout = match columns.as_slice() {
            [only] => Layout::Linear(*only),
            _ => Layout::stripes(segment.stripe, columns),
        };
        Ok(Segment { len, layout })
    }

    /// A RAID of `level` over its images, `len` bytes long.
    fn raid(
        &self,
        lv: &Lv,
        segment: &LvSegment,
        (level, layout, len): (u32, u32, u64),
        depth: usize,
        under: &mut Vec<Mapping>,
    ) -> Reason<Segment> {
        let damaged = || Self::damaged(lv);
        if segment.images.len() > raid::MAX_MEMBERS {
            return Err(damaged());
        }
        // Where data begins on the images is told by these alone.
        if segment.reshape > 0 {
            return Err(format!(
                "the LVM RAID {} has been given another shape; such ones are not read",
                lv.name
            ));
        }
        let mut reasons = Vec::new();
        let mut each = u64::MAX;
        let mut members = Vec::new();
        for name in &segment.images {
            match self.image(name, depth) {
                Ok(mapping) => {
                    each = each.min(mapping.size());
                    members.push(Some(Place {
                        device: under.len(),
                        offset: 0,
                    }));
                    under.push(mapping);
                    reasons.push(String::new());
                }
                Err(reason) => {
                    members.push(None);
                    reasons.push(reason);
                }
            }
        }
        let stripe = segment.stripe;
        let copies = Copies {
            near: segment.copies,
            far: 1,
            offset: false,
            set: 0,
        };
        let mapped: Mapped<Segment> = match level {
            0 => raid::stripes(stripe, &members, len),
            1 => raid::mirror(&members, len),
            10 => raid::raid10(stripe, copies, &members, each),
            level => raid::parity(level, layout, stripe, &members, each),
        };
        match mapped {
            Ok(whole) if whole.len >= len => Ok(Segment { len, ..whole }),
            Err(Unmapped::Missing(number)) => {
                Err(reasons.get(number).cloned().unwrap_or_else(damaged))
            }
            Ok(_) | Err(Unmapped::Bad(_)) => Err(damaged()),
        }
    }

    /// A logical volume that another one is made of.
    fn image(&self, name: &str, depth: usize) -> Reason<Mapping> {
        let image = self.part(name, depth);
        let image = image.filter(|lv| lv.segments.iter().all(reads));
        let image = image.ok_or_else(|| {
            format!("it is built on the internal LVM volume {name}, which is not supported")
        })?;
        self.mapping_in(image, depth.saturating_add(1))
    }

    /// The place of `count` extents of the physical or logical volume `name`,
    /// from extent `extent`; what it lies on is added to `under`.
    fn place(
        &self,
        name: &str,
        extent: u64,
        count: u64,
        depth: usize,
        under: &mut Vec<Mapping>,
    ) -> Reason<Place> {
        let Some(entry) = self.pvs.get(name) else {
            if !self.lvs.contains_key(name) {
                return Err(format!(
                    "the LVM metadata names a physical volume {name} that it does not list"
                ));
            }
            let offset = extent.checked_mul(self.extent);
            let place = Place {
                device: under.len(),
                offset: offset.ok_or("the LVM metadata contradicts itself")?,
            };
            under.push(self.image(name, depth)?);
            return Ok(place);
        };
        let found = self.found.get(entry.id.as_str());
        let Some(pv) = found.filter(|_| !entry.missing) else {
            return Err(format!(
                "it needs the LVM physical volume {name} (last seen as {}, UUID {}), which is {}",
                entry.device, entry.uuid, self.absence
            ));
        };
        let range = || {
            extent
                .checked_add(count)
                .filter(|end| *end <= entry.count)?;
            let at = extent.checked_mul(self.extent)?.checked_add(entry.start)?;
            let end = at.checked_add(count.checked_mul(self.extent)?)?;
            (end <= pv.mapping.size()).then_some(at)
        };
        let offset = range().ok_or_else(|| {
            format!("the LVM metadata points past the end of physical volume {name}")
        })?;
        let device = under.len();
        under.push(pv.mapping.clone());
        Ok(Place { device, offset })
    }
}

fn by<'a, T>(all: &'a [T], key: impl Fn(&'a T) -> &'a str) -> HashMap<&'a str, &'a T> {
    let mut map = HashMap::with_capacity(all.len());
    for one in all {
        map.entry(key(one)).or_insert(one);
    }
    map
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    /// Images of images of images, each named many times: counted, not followed.
    #[test]
    fn a_tree_of_images_is_bounded() {
        let mut text =
            "vg0 {\nid = \"a\"\nseqno = 1\nextent_size = 8\nlogical_volumes {\n".to_owned();
        for (level, next) in [("a", "b"), ("b", "c"), ("c", "d"), ("d", "a")] {
            let pair = format!("\"m\", \"{next}\",");
            text += &format!(
                "{level} {{\nid = \"{level}\"\nstatus = [\"VISIBLE\"]\nsegment_count = 1\n\
                 segment1 {{\nstart_extent = 0\nextent_count = 1\ntype = \"raid1\"\n\
                 raids = [{}]\n}}\n}}\n",
                pair.repeat(120)
            );
        }
        text += "}\n}\n";
        let group = Group::parse(text.as_bytes()).unwrap();
        let began = std::time::Instant::now();
        let layouts = Layouts::new(&[], &group, "nowhere");
        for lv in &group.lvs {
            assert!(layouts.mapping(lv).is_err() && layouts.first(lv).is_none());
        }
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    }

    /// After a reshape the images hold more than the data, before or after it.
    #[test]
    fn a_reshaped_raid_is_not_read() {
        let image = |name: &str, start: u64| {
            format!(
                "{name} {{\nsegment_count = 1\ns {{ start_extent = 0 extent_count = 8 \
                 type = \"striped\" stripes = [\"pv0\", {start}] }} }}\n"
            )
        };
        let text = |reshape: &str| {
            format!(
                "vg0 {{\nid = \"a\"\nseqno = 1\nextent_size = 8\nphysical_volumes {{\n\
                 pv0 {{ id = \"b\" pe_start = 8 pe_count = 100 }} }}\nlogical_volumes {{\n\
                 lv {{\nstatus = [\"VISIBLE\"]\nsegment_count = 1\ns {{ start_extent = 0 \
                 extent_count = 16 type = \"raid5_ls\" stripe_size = 8 {reshape} \
                 raids = [\"m\", \"i0\", \"m\", \"i1\", \"m\", \"i2\"] }} }}\n{}{}{} }} }}",
                image("i0", 0),
                image("i1", 8),
                image("i2", 16)
            )
        };
        let pvs = [Pv {
            id: "b".into(),
            mapping: Mapping::linear(0, 0, 1 << 20),
            damaged: false,
            in_use: true,
        }];
        let mapping = |text: &str| {
            let group = Group::parse(text.as_bytes()).unwrap();
            Layouts::new(&pvs, &group, "nowhere").mapping(&group.lvs[0])
        };
        assert_eq!(mapping(&text("")).unwrap().size(), 16 * 4096);
        let why = mapping(&text("reshape_count = 1")).unwrap_err();
        assert!(why.contains("another shape"), "{why}");
    }

    /// As many names as a text may have, each looked up among as many others.
    #[test]
    fn many_names_are_found_soon() {
        let mut text =
            "vg0 {\nid = \"a\"\nseqno = 1\nextent_size = 8\nphysical_volumes {\n".to_owned();
        for number in 0..50_000 {
            text += &format!("p{number} {{ id = \"{number}\" pe_start = 1 pe_count = 1 }}\n");
        }
        text += "}\nlogical_volumes {\n";
        for number in 0..1000 {
            text += &format!(
                "l{number} {{\nsegment_count = 1\ns {{ start_extent = 0 extent_count = 100 \
                 type = \"striped\" stripes = [{}] }} }}\n",
                "\"p49999\", 1,".repeat(100)
            );
        }
        text += "s0 { s { type = \"snapshot\" origin = \"l1\" cow_store = \"l2\" } }\n}\n}\n";
        let group = Group::parse(text.as_bytes()).unwrap();
        let began = std::time::Instant::now();
        let layouts = Layouts::new(&[], &group, "nowhere");
        for lv in &group.lvs {
            assert!(layouts.mapping(lv).is_err() && layouts.first(lv).is_none());
        }
        let shown: Vec<&str> = group.shown().map(|lv| lv.name.as_str()).collect();
        assert_eq!(shown, ["l2"]);
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    }
}
