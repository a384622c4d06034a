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
use sendense::volume::{self, Content, VolumeReader};

use base::Base;
use edited::Edited;

/// A run over one of the disk images of `family`: partition tables, LVM and what
/// lies on them.
pub fn disk(family: &str, input: &[u8]) {
    let Some(image) = edited(family, input) else {
        return;
    };
    let device: Arc<dyn BlockRead> = image;
    let Ok(volumes) = volume::detect(&device) else {
        return;
    };
    for volume in volumes {
        let mut runs = Vec::new();
        let size = volume.mapping.size();
        let _ = volume.mapping.runs(0, size.min(1 << 30), &mut runs);
        if let Content::FileSystem(kind) = &volume.content {
            let reader = VolumeReader::new(volume.mapping.clone(), vec![Arc::clone(&device)]);
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

/// A run over one of the images of a file system of `family`, opened as what
/// `blkid` calls `kind`.
pub fn file_system(family: &str, kind: &str, input: &[u8]) {
    let Some(image) = edited(family, input) else {
        return;
    };
    let source = Source {
        volume: image,
        members: Vec::new(),
    };
    if let Ok(fs) = filesystem::open(kind, source, &Options::default()) {
        walk::everything(fs.as_ref());
    }
}

/// The first byte of an input chooses the image, the rest are edits.
fn edited(family: &str, input: &[u8]) -> Option<Arc<Edited>> {
    let (choice, edits) = input.split_first()?;
    let bases = bases(family);
    let base = bases.get(usize::from(*choice) % bases.len())?;
    Some(Arc::new(Edited::new(Arc::clone(base), edits)))
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
