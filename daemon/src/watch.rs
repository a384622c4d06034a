//! What the host has left, and whether that is enough to take on more work.
//!
//! The idea: what the kernel tells of this process it tells at once, and is asked
//! when it is needed. A file system may hang for ever when it is asked, so each is
//! asked by a thread of its own every few seconds, one at a time, and whoever wants
//! to know gets the last answer and its age.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use parking_lot::Mutex;
use sendense::{Error, Result};

use crate::config::show_size;
use crate::control::{Resources, Space};

/// How often each file system is asked.
const INTERVAL: Duration = Duration::from_secs(5);

/// How long the first answers may take at the start.
const FIRST_ANSWERS: Duration = Duration::from_millis(200);

/// With fewer descriptors left a disk could not be attached.
const DESCRIPTORS: u64 = 32;

/// With less space for it the catalog could not be written to.
const STATE_SPACE: u64 = 8 << 20;

/// With less memory a qemu-nbd could be the end of another program.
const MEMORY: u64 = 64 << 20;

pub(crate) const STATE: &str = "state_dir";

/// The role of a repository's space.
pub(crate) const REPOSITORY: &str = "repository";

/// Keeps the figures up to date.
pub(crate) struct Watch {
    places: Mutex<BTreeMap<PathBuf, Place>>,
}

/// A folder whose file system is watched.
#[derive(Debug, Clone, Default)]
struct Place {
    role: &'static str,
    asked: Option<Instant>,
    /// A thread waits for the answer.
    asking: bool,
    answered: Option<Instant>,
    /// Free and total bytes.
    space: Option<(u64, u64)>,
    error: Option<String>,
}

impl Watch {
    /// Watches the daemon's own folder and the repositories.
    pub(crate) fn new(state_dir: &Path, repositories: &[PathBuf]) -> Arc<Self> {
        let watch = Arc::new(Self {
            places: Mutex::default(),
        });
        watch.add(STATE, state_dir);
        watch.set_repositories(repositories);
        watch.ask();
        let began = Instant::now();
        while watch.places.lock().values().any(|place| place.asking)
            && began.elapsed() < FIRST_ANSWERS
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        watch
    }

    /// The repositories are these from now on.
    pub(crate) fn set_repositories(&self, repositories: &[PathBuf]) {
        self.places
            .lock()
            .retain(|path, place| place.role == STATE || repositories.contains(path));
        for path in repositories {
            self.add(REPOSITORY, path);
        }
    }

    fn add(&self, role: &'static str, path: &Path) {
        let mut places = self.places.lock();
        places.entry(path.to_owned()).or_insert(Place {
            role,
            ..Place::default()
        });
    }

    /// Asks those file systems whose answers are old; waits for none.
    pub(crate) fn ask(self: &Arc<Self>) {
        let mut due = Vec::new();
        for (path, place) in self.places.lock().iter_mut() {
            let old = place.asked.is_none_or(|asked| asked.elapsed() >= INTERVAL);
            if old && !place.asking {
                place.asking = true;
                place.asked = Some(Instant::now());
                due.push(path.clone());
            }
        }
        for path in due {
            let (watch, asked) = (Arc::clone(self), path.clone());
            let started = std::thread::Builder::new()
                .name("free space".into())
                .spawn(move || watch.answer(&asked, measure(&asked)));
            if let Err(e) = started {
                self.answer(&path, Err(e.to_string()));
            }
        }
    }

    fn answer(&self, path: &Path, answer: std::result::Result<(u64, u64), String>) {
        if let Some(place) = self.places.lock().get_mut(path) {
            place.asking = false;
            match answer {
                Ok(space) => {
                    place.space = Some(space);
                    place.answered = Some(Instant::now());
                    place.error = None;
                }
                Err(error) => place.error = Some(error),
            }
        }
    }

    /// How things are.
    pub(crate) fn resources(&self) -> Resources {
        let places = self.places.lock().clone();
        let mut spaces: Vec<Space> = places
            .iter()
            .map(|(path, place)| Space {
                role: place.role.into(),
                path: path.display().to_string(),
                free: place.space.map(|(free, _)| free),
                total: place.space.map(|(_, total)| total),
                age: place.answered.map(|at| at.elapsed().as_secs()),
                error: place.error.clone().or_else(|| {
                    let waited = place.asked.filter(|_| place.asking)?.elapsed();
                    (waited >= INTERVAL).then(|| format!("no answer for {} s", waited.as_secs()))
                }),
            })
            .collect();
        spaces.sort_by_key(|space| space.role != STATE);
        Resources {
            memory_available: memory_available(),
            descriptors_used: fs::read_dir("/proc/self/fd")
                .ok()
                // One of them reads this folder.
                .and_then(|entries| u64::try_from(entries.count()).ok()?.checked_sub(1)),
            descriptors_limit: getrlimit(Resource::RLIMIT_NOFILE)
                .ok()
                .map(|(soft, _)| soft),
            spaces,
        }
    }

    /// Whether there is enough of everything for one more disk.
    ///
    /// # Errors
    /// `Exhausted`, saying what has run out.
    pub(crate) fn admit(&self) -> Result<()> {
        match shortage(&self.resources()) {
            Some(what) => Err(Error::Exhausted { what }),
            None => Ok(()),
        }
    }
}

/// What there is too little of for one more disk, as a sentence.
fn shortage(resources: &Resources) -> Option<String> {
    if let (Some(used), Some(limit)) = (resources.descriptors_used, resources.descriptors_limit) {
        let left = limit.saturating_sub(used);
        if left < DESCRIPTORS {
            return Some(format!(
                "the daemon has run out of file descriptors ({used} of {limit} used); unmount a \
                 backup, or raise its limit of open files"
            ));
        }
    }
    let state = resources.spaces.iter().find(|space| space.role == STATE);
    if let Some((state, free)) = state.and_then(|state| Some((state, state.free?)))
        && free < STATE_SPACE
    {
        return Some(format!(
            "no space is left for the daemon's own files ({} free in {}); make room there",
            show_size(free),
            state.path
        ));
    }
    let available = resources
        .memory_available
        .filter(|available| *available < MEMORY)?;
    Some(format!(
        "the host has run out of memory ({} available); unmount a backup, or end other programs",
        show_size(available)
    ))
}

/// Free and total bytes of the file system that a folder lies on.
fn measure(path: &Path) -> std::result::Result<(u64, u64), String> {
    let space = statvfs(path).map_err(|errno| errno.desc().to_owned())?;
    let unit = space.fragment_size();
    let free = space.blocks_available().saturating_mul(unit);
    Ok((free, space.blocks().saturating_mul(unit)))
}

/// Bytes that programs can still have without swapping.
fn memory_available() -> Option<u64> {
    let table = fs::read_to_string("/proc/meminfo").ok()?;
    let line = table
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let watch = Watch::new(dir.path(), &[PathBuf::from("/"), gone.clone()]);
        let resources = watch.resources();
        let [state, root, missing] = resources.spaces.as_slice() else {
            panic!("{resources:?}");
        };
        assert_eq!((&*state.role, &*root.role), ("state_dir", "repository"));
        let output = std::process::Command::new("stat")
            .args(["-f", "-c", "%S %b", "/"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let numbers: Vec<u64> = text
            .split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect();
        assert_eq!(root.total, Some(numbers[0] * numbers[1]));
        assert_eq!(root.age, Some(0));
        assert!(missing.free.is_none() && missing.error.is_some());
        watch.set_repositories(std::slice::from_ref(&gone));
        assert_eq!(watch.resources().spaces.len(), 2);

        let before = resources.descriptors_used.unwrap();
        let files: Vec<_> = (0..50)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        // Other tests of this process open and close files as well.
        assert!(watch.resources().descriptors_used.unwrap() > before + 20);
        drop(files);
        assert!(resources.memory_available.unwrap() > 1 << 20);
        assert!(watch.admit().is_ok());
    }

    #[test]
    fn refused_work_says_what_has_run_out() {
        let enough = Resources {
            memory_available: Some(MEMORY),
            descriptors_used: Some(1024 - DESCRIPTORS),
            descriptors_limit: Some(1024),
            spaces: vec![Space {
                role: STATE.into(),
                path: "/var/lib/x".into(),
                free: Some(STATE_SPACE),
                ..Space::default()
            }],
        };
        assert_eq!(shortage(&enough), None);
        assert_eq!(shortage(&Resources::default()), None, "nothing is known");
        let mut less = enough.clone();
        less.memory_available = Some(MEMORY - 1);
        assert!(shortage(&less).unwrap().contains("memory (64.0 MiB"));
        let mut less = enough.clone();
        less.descriptors_used = Some(1024 - DESCRIPTORS + 1);
        assert!(shortage(&less).unwrap().contains("993 of 1024"));
        let mut less = enough;
        less.spaces[0].free = Some(0);
        assert!(shortage(&less).unwrap().contains("/var/lib/x"));
    }
}
