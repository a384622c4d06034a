//! The images that lie in a repository by the layout, looked at by `stat` only.

use super::identity::ImageIdentity;
use super::layout::ImageName;
use super::scan::ScanEvent;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

/// An image file that is there.
#[derive(Debug, Clone)]
pub(super) struct Sighting {
    /// Its path without symbolic links.
    pub(super) real: PathBuf,
    pub(super) identity: ImageIdentity,
}

/// An image that lies in the repository by the layout.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// The path by the layout, below the repository's.
    pub(super) path: String,
    /// Name of the context's folder.
    pub(super) context: String,
    pub(super) name: ImageName,
    pub(super) sighting: Sighting,
}

/// Looks at one file: `Ok(None)` where there is none inside the repository.
pub(super) fn look(repository: &Path, path: &Path) -> io::Result<Option<Sighting>> {
    let found = path.canonicalize().and_then(|real| {
        let metadata = fs::symlink_metadata(&real)?;
        Ok((real, metadata))
    });
    match found {
        Ok((real, metadata)) if metadata.is_file() && real.starts_with(repository) => {
            Ok(Some(Sighting {
                real,
                identity: ImageIdentity::of(&metadata),
            }))
        }
        Ok(_) => Ok(None),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// What lies in a repository.
pub(super) struct Walk<'a> {
    root: PathBuf,
    /// The images, in no order.
    pub(super) found: Vec<Found>,
    /// Folders that could not be read: nothing is known of what lies below.
    pub(super) unreadable: Vec<PathBuf>,
    /// Files that are not of the layout.
    pub(super) unknown: u64,
    /// Symbolic links that lead out of the repository.
    pub(super) outside: u64,
    events: &'a mut dyn FnMut(ScanEvent<'_>),
}

/// A folder or file met on the way.
struct Met {
    name: Option<String>,
    path: PathBuf,
    metadata: Metadata,
    /// Reached over a symbolic link (that stays inside the repository).
    linked: bool,
}

impl<'a> Walk<'a> {
    /// Walks the repository, which is given without symbolic links.
    pub(super) fn new(root: &Path, events: &'a mut dyn FnMut(ScanEvent<'_>)) -> Self {
        let mut walk = Self {
            root: root.to_owned(),
            found: Vec::new(),
            unreadable: Vec::new(),
            unknown: 0,
            outside: 0,
            events,
        };
        for context in walk.entries(root, false) {
            walk.context(&context);
        }
        walk
    }

    fn context(&mut self, context: &Met) {
        let name = match &context.name {
            Some(name) if context.metadata.is_dir() => name,
            _ => return self.unknown(&context.path),
        };
        for disk in self.entries(&context.path, context.linked) {
            match disk.name.as_deref() {
                Some(folder) if disk.metadata.is_dir() && folder.starts_with("disk-") => {
                    for image in self.entries(&disk.path, disk.linked) {
                        self.image(name, folder, &image);
                    }
                }
                _ => self.unknown(&disk.path),
            }
        }
    }

    fn image(&mut self, context: &str, folder: &str, image: &Met) {
        let name = image
            .name
            .as_deref()
            .and_then(|file| ImageName::parse(folder, file));
        let (Some(name), Some(path), true) = (name, image.path.to_str(), image.metadata.is_file())
        else {
            return self.unknown(&image.path);
        };
        let sighting = if image.linked {
            match look(&self.root, &image.path) {
                // The target is found by its own name.
                Ok(Some(sighting)) if self.is_of_layout(&sighting.real) => return,
                Ok(Some(sighting)) => sighting,
                Ok(None) => return self.unknown(&image.path),
                Err(e) => return self.unreadable(&image.path, &e),
            }
        } else {
            Sighting {
                real: image.path.clone(),
                identity: ImageIdentity::of(&image.metadata),
            }
        };
        self.found.push(Found {
            path: path.to_owned(),
            context: context.to_owned(),
            name,
            sighting,
        });
        (self.events)(ScanEvent::Found(self.found.len()));
    }

    fn is_of_layout(&self, path: &Path) -> bool {
        let Ok(below) = path.strip_prefix(&self.root) else {
            return false;
        };
        let names: Option<Vec<&str>> = below.iter().map(|name| name.to_str()).collect();
        matches!(names.as_deref(), Some([_, disk, file]) if ImageName::parse(disk, file).is_some())
    }

    fn entries(&mut self, folder: &Path, linked: bool) -> Vec<Met> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(e) => {
                self.unreadable(folder, &e);
                return Vec::new();
            }
        };
        let mut met = Vec::new();
        for entry in entries {
            let path = match &entry {
                Ok(entry) => entry.path(),
                Err(e) => {
                    self.unreadable(folder, e);
                    break;
                }
            };
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_symlink() => met.extend(self.follow(path)),
                Ok(metadata) => {
                    let name = path
                        .file_name()
                        .and_then(|name| name.to_str())
                        .map(str::to_owned);
                    met.push(Met {
                        name,
                        path,
                        metadata,
                        linked,
                    });
                }
                // Removed meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => self.unreadable(&path, &e),
            }
        }
        met
    }

    /// What a symbolic link leads to, where that is inside the repository.
    fn follow(&mut self, path: PathBuf) -> Option<Met> {
        match path.canonicalize() {
            Ok(target) if target.starts_with(&self.root) => match fs::metadata(&target) {
                Ok(metadata) => {
                    let name = path
                        .file_name()
                        .and_then(|name| name.to_str())
                        .map(str::to_owned);
                    return Some(Met {
                        name,
                        path,
                        metadata,
                        linked: true,
                    });
                }
                Err(e) => self.unreadable(&path, &e),
            },
            Ok(target) => {
                self.outside = self.outside.saturating_add(1);
                (self.events)(ScanEvent::Outside {
                    path: &path,
                    target: &target,
                });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.unknown(&path),
            Err(e) => self.unreadable(&path, &e),
        }
        None
    }

    fn unknown(&mut self, path: &Path) {
        self.unknown = self.unknown.saturating_add(1);
        (self.events)(ScanEvent::Unknown(path));
    }

    fn unreadable(&mut self, path: &Path, error: &io::Error) {
        self.unreadable.push(path.to_owned());
        (self.events)(ScanEvent::Unreadable {
            path,
            reason: &error.to_string(),
        });
    }
}
