//! `sendense serve`: mounts the tree and keeps it until told to end.
//!
//! Everything that lives as long as the daemon is put together here and taken
//! apart in the reverse order: instance lock, catalog, slots, tree, leases, mount,
//! control socket, HTTP side. The main thread then has two jobs: once a second it
//! looks whether the catalog has changed, and at every sweep it lets idle disks go.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use sendense::catalog::Catalog;
use sendense::filesystem;
use sendense::image::{BlockCache, ExportOptions};
use sendense::tree::{Tree, read};
use sendense::{Error, Result, sys};
use sendense_fuse::{Mount, MountOptions};

use crate::attachments::{Limits, Slots};
use crate::config::Config;
use crate::control::Instance;
use crate::gate;
use crate::handler::Handler;
use crate::leases::{Keeper, Leases};
use crate::process;
use crate::restorable::Restorable;
use crate::sidecar::{self, Sidecar};
use crate::signals::Shutdown;
use crate::watch::Watch;

/// How often the main thread looks at the catalog.
const TICK: Duration = Duration::from_secs(1);

/// How long the end waits for disks that are still being read.
const LAST_READS: Duration = Duration::from_secs(3);

/// Serves until a signal comes or somebody unmounts the tree.
///
/// # Errors
/// What keeps it from serving, as a sentence that says what to do.
pub(crate) fn run(config: &Config) -> Result<()> {
    sys::share_heap();
    let shutdown = Shutdown::install()?;
    process::raise_open_files()?;
    gate::overlaps(config)?;
    let instance = Instance::claim(&config.runtime_dir, &config.group)?;
    gate::make_mountpoint(config)?;
    gate::check(config)?;
    // Only the one instance may take away what an earlier one has left.
    sendense_fuse::clear_stale(&config.mountpoint)?;
    let backups = Backups::open(config)?;
    gate::recorded_overlap(config, &backups.catalog)?;
    let watch = Watch::new(&config.state_dir, &backups.repositories(config)?);
    // Before anybody can look into the tree and take their slots.
    let leases = Leases::resume(
        Arc::clone(&backups.catalog),
        Arc::clone(&backups.slots),
        Arc::clone(&watch),
        &config.mountpoint,
    )?;
    let mount = Mount::new(
        Arc::clone(&backups.tree),
        &MountOptions {
            mountpoint: config.mountpoint.clone(),
            allow_other: config.allows_other(),
            xattrs: config.xattrs,
            time_limit: config.request_timeout.saturating_add(config.start_timeout),
            read_ahead: config.read_ahead,
        },
    )?;
    let handler = Handler {
        tree: Arc::clone(&backups.tree),
        slots: Arc::clone(&backups.slots),
        mountpoint: config.mountpoint.clone(),
        errors: Box::new(mount.errors()),
        started: SystemTime::now(),
        catalog: Arc::clone(&backups.catalog),
        leases: Arc::clone(&leases),
        restorable: Restorable::new(Arc::clone(&backups.catalog), Arc::clone(&backups.slots)),
        watch: Arc::clone(&watch),
        api: sidecar::state(config),
    };
    let api = Arc::clone(&handler.api);
    let control = instance.serve(Arc::new(handler), &config.api_user)?;
    let keeper = Keeper::start(&leases)?;
    let sidecar = Sidecar::start(config, api)?;
    tracing::info!(mountpoint = %config.mountpoint.display(), "serving");

    let mut version = backups.catalog.version()?;
    let mut swept = Instant::now();
    let reason = loop {
        if let Some(reason) = shutdown.wait_for(TICK.min(config.sweep_interval)) {
            break reason.to_string();
        }
        if !mount.is_served() {
            break "the tree was unmounted".to_owned();
        }
        // A catalog that cannot be read for a moment is asked again.
        let now = backups.catalog.version().unwrap_or(version);
        let changed = now != version;
        version = now;
        if changed && let Ok(repositories) = backups.repositories(config) {
            watch.set_repositories(&repositories);
        }
        watch.ask();
        let due = swept.elapsed() >= config.sweep_interval;
        if due {
            swept = Instant::now();
        }
        if (due || changed) && backups.slots.sweep() > 0 {
            read::free_spare_buffers();
            sys::trim_memory();
        }
    };
    tracing::info!(reason, "ending");
    // The HTTP side reads the tree; then mounts are left for the next start.
    drop(sidecar);
    drop(keeper);
    drop(mount);
    drop(control);
    backups.close();
    Ok(())
}

/// The catalog, the slots and the tree over them: what `serve` mounts, and what
/// `ls`, `cat` and `cp` read without a mount.
pub(crate) struct Backups {
    pub(crate) tree: Arc<Tree>,
    catalog: Arc<Catalog>,
    slots: Arc<Slots>,
    sockets: PathBuf,
}

impl Backups {
    /// For `serve`: with a catalog that is brought up to date.
    ///
    /// # Errors
    /// From the catalog and the host.
    pub(crate) fn open(config: &Config) -> Result<Self> {
        Self::over(Catalog::open(&config.catalog_path())?, config, !config.api)
    }

    /// For commands that only read: a catalog that is there is not written to,
    /// and need not be writable.
    ///
    /// # Errors
    /// As [`Self::open`]; from a catalog of another version of the program.
    pub(crate) fn read(config: &Config) -> Result<Self> {
        let path = config.catalog_path();
        let catalog = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Catalog::open(&path)?,
            _ => Catalog::open_read_only(&path)?,
        };
        Self::over(catalog, config, true)
    }

    /// Makes a folder of this process for sockets.
    fn over(catalog: Catalog, config: &Config, recorded_repositories: bool) -> Result<Self> {
        let catalog = Arc::new(catalog);
        let sockets = socket_folder(&config.runtime_dir)?;
        let export = ExportOptions {
            runtime_dir: sockets.clone(),
            repositories: config.repositories.clone(),
            connections: config.connections,
            request_timeout: config.request_timeout,
            start_timeout: config.start_timeout,
        };
        let limits = Limits {
            slots: config.slots,
            idle_timeout: config.idle_timeout,
            slot_timeout: config.request_timeout.saturating_add(config.start_timeout),
            recorded_repositories,
        };
        let cache = BlockCache::new(config.cache_size);
        let (uid, gid) = config.guest_owner;
        let guest = filesystem::Options {
            uid,
            gid,
            file_mode: config.guest_file_mode,
            directory_mode: config.guest_folder_mode,
            ignore_case: config.guest_ignore_case,
            time_zone: config.guest_time_zone.clone(),
        };
        let slots = Slots::new(Arc::clone(&catalog), cache, export, guest, limits);
        let tree = Tree::new(Arc::clone(&catalog), Arc::<Slots>::clone(&slots));
        Ok(Self {
            tree: Arc::new(tree),
            catalog,
            slots,
            sockets,
        })
    }

    /// The configured repositories, and those that the catalog knows of.
    fn repositories(&self, config: &Config) -> Result<Vec<PathBuf>> {
        let mut all = config.repositories.clone();
        let recorded = self.catalog.repositories()?;
        all.extend(recorded.into_iter().map(|repository| repository.path));
        all.sort();
        all.dedup();
        Ok(all)
    }

    fn close(&self) {
        self.slots.release_all();
        let began = Instant::now();
        while self.slots.taken() > 0 && began.elapsed() < LAST_READS {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Backups {
    fn drop(&mut self) {
        self.close();
        let _ = fs::remove_dir_all(&self.sockets);
    }
}

/// `<runtime_dir>/exports-<pid>`; those of processes that are gone are removed.
fn socket_folder(runtime_dir: &Path) -> Result<PathBuf> {
    let failed = |path: &Path, e| Error::io(path.display().to_string(), e);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(runtime_dir)
        .map_err(|e| failed(runtime_dir, e))?;
    for entry in fs::read_dir(runtime_dir)
        .map_err(|e| failed(runtime_dir, e))?
        .flatten()
    {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("exports-"));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let folder = runtime_dir.join(format!("exports-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&folder)
        .map_err(|e| failed(&folder, e))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, Sources};

    #[test]
    fn who_only_reads_does_not_write_the_catalog() {
        let dir = tempfile::tempdir().unwrap();
        let place = |key: &str, name: &str| (key.into(), dir.path().join(name).into_os_string());
        let config = Config::load(&Sources {
            environment: vec![
                place("SENDENSE_STATE_DIR", "state"),
                place("SENDENSE_RUNTIME_DIR", "run"),
            ],
            flags: Overrides::default(),
            ..Sources::default()
        })
        .unwrap();
        // Nothing there yet: an empty tree, not an error.
        let path = config.catalog_path();
        drop(Backups::read(&config).unwrap());
        let sql = |command: &str| {
            let output = std::process::Command::new("sqlite3")
                .arg(&path)
                .arg(command)
                .output()
                .expect("the program sqlite3 is needed");
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let current = sql("PRAGMA user_version");
        let backups = Backups::read(&config).unwrap();
        let error = backups.catalog.remove_gone().unwrap_err().to_string();
        assert!(error.contains("for reading only"), "{error}");
        drop(backups);
        // One of an earlier version is left as it is.
        for file in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
            let _ = fs::remove_file(path.with_file_name(file));
        }
        let first = include_str!("../../migrations/0001_catalog.sql");
        sql(&format!("PRAGMA user_version = 1; {first}"));
        let error = Backups::read(&config).err().unwrap().to_string();
        assert!(error.contains("older version"), "{error}");
        assert_eq!(sql("PRAGMA user_version"), "1\n");
        drop(Backups::open(&config).unwrap());
        assert_eq!(sql("PRAGMA user_version"), current);
    }
}
