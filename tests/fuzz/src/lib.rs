//! What the fuzz targets share.
//!
//! The idea: an input is not an image but a list of edits to one of a few small
//! real images (`images/`, made by `make-images`). The edits hit places that are
//! not empty, checksums are made right again afterwards, and then everything
//! that can be asked of the result is asked. So a fuzzer of a few bytes gets past
//! the checks that keep random damage out.

mod base;
mod edited;
mod mend;
mod walk;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use sendense::filesystem::{self, Options, Source};
use sendense::image::BlockRead;
use sendense::volume::{self, Content, Sibling, Siblings, VolumeReader};

use base::Base;
use edited::Edited;

/// A run over one of the disk images of `family`: partition tables, what joins
/// volumes over disks, and what lies on them.
pub fn disk(family: &str, input: &[u8]) {
    let Some((base, image)) = edited(family, input) else {
        return;
    };
    let disks = edited::disks(&image, base.disks);
    for index in 0..disks.len() {
        let siblings = Others {
            disks: &disks,
            without: index,
        };
        let Some(device) = disks.get(index) else {
            break;
        };
        let volumes = volume::detect_across(device, index as u32, &siblings);
        for volume in volumes.unwrap_or_default() {
            let mut runs = Vec::new();
            let size = volume.mapping.size();
            let _ = volume.mapping.runs(0, size.min(1 << 26), &mut runs);
            // Device 0 is the disk itself, the others follow in their order.
            let mut devices = vec![Arc::clone(device)];
            let others = disks.iter().enumerate().filter(|(n, _)| *n != index);
            devices.extend(others.map(|(_, disk)| Arc::clone(disk)));
            if let Content::FileSystem(kind) = &volume.content {
                let reader = VolumeReader::new(volume.mapping.clone(), devices);
                let source = Source {
                    volume: Arc::new(reader),
                    members: volume.members.clone(),
                };
                if let Ok(fs) = filesystem::open(kind, source, &Options::default()) {
                    let _ = fs.attr(fs.root());
                }
            }
        }
    }
}

/// The disks of a backup but for one.
struct Others<'a> {
    disks: &'a [Arc<dyn BlockRead>],
    without: usize,
}

impl Siblings for Others<'_> {
    fn indexes(&self) -> Vec<u32> {
        let all = 0..self.disks.len();
        all.filter(|index| *index != self.without)
            .map(|index| index as u32)
            .collect()
    }

    fn open(&self, number: usize) -> sendense::Result<Sibling> {
        let index = number + usize::from(number >= self.without);
        Ok(Sibling::Open(Arc::clone(&self.disks[index])))
    }
}

/// A run over one of the images of a file system of `family`, opened as what
/// `blkid` calls `kind`.
pub fn file_system(family: &str, kind: &str, input: &[u8]) {
    let Some((base, image)) = edited(family, input) else {
        return;
    };
    let members = match base.disks {
        1 => Vec::new(),
        n => vec![base.size() / n as u64; n],
    };
    let source = Source {
        volume: image,
        members,
    };
    if let Ok(fs) = filesystem::open(kind, source, &Options::default()) {
        walk::everything(fs.as_ref());
    }
}

/// The first byte of an input chooses the image, the rest are edits.
fn edited(family: &str, input: &[u8]) -> Option<(Arc<Base>, Arc<Edited>)> {
    let (choice, edits) = input.split_first()?;
    let bases = bases(family);
    let base = bases.get(usize::from(*choice) % bases.len())?;
    let image = Arc::new(Edited::new(Arc::clone(base), edits));
    Some((Arc::clone(base), image))
}

/// The images of a family, read once.
fn bases(family: &str) -> Arc<Vec<Arc<Base>>> {
    type Families = Mutex<HashMap<String, Arc<Vec<Arc<Base>>>>>;
    static FAMILIES: OnceLock<Families> = OnceLock::new();
    let mut families = FAMILIES.get_or_init(Families::default).lock().unwrap();
    let bases = families
        .entry(family.to_owned())
        .or_insert_with(|| Arc::new(base::load(family)));
    Arc::clone(bases)
}
