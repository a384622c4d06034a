//! Who can reach the mounted tree, and whether the folders get in each other's way.
//!
//! Modes inside the tree are the guests' and are not enforced; the gate stands
//! outside: at least one folder above the mountpoint must keep out the host's
//! other users (no `x` for others). The mountpoint's own mode does not count:
//! the mounted tree covers it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group};
use sendense::catalog::Catalog;
use sendense::{Error, Result};

use crate::config::{AllowOther, Config, GatePolicy};

/// Folders that belong to the system: closing one of them would close much more.
const SHARED: &[&str] = &[
    "/",
    "/dev",
    "/dev/shm",
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/run",
    "/srv",
    "/tmp",
    "/usr",
    "/usr/local",
    "/var",
    "/var/lib",
    "/var/tmp",
];

/// What stands between the host's users and the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gate {
    /// `folder` keeps out whoever is not in its group.
    Closed {
        /// The innermost such folder.
        folder: PathBuf,
        /// Its group: a name, or a number without one.
        group: String,
        /// Whether it is the configured one (or no group may enter at all).
        group_right: bool,
    },
    /// Any user of this host can get in.
    Open,
}

/// Looks at the folders above `mountpoint`; those that are not there yet keep
/// nobody out.
///
/// # Errors
/// `Io` for a folder that cannot be examined.
pub(crate) fn inspect(mountpoint: &Path, group: &str) -> Result<Gate> {
    let real = settle(mountpoint)?;
    // From the inside out; the mountpoint itself is skipped.
    for folder in real.ancestors().skip(1) {
        let meta = match fs::metadata(folder) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io(folder.display().to_string(), e)),
        };
        if meta.mode() & 0o001 == 0 {
            let name = group_name(meta.gid());
            let group_right = name == group || meta.mode() & 0o010 == 0;
            return Ok(Gate::Closed {
                folder: folder.to_owned(),
                group: name,
                group_right,
            });
        }
    }
    Ok(Gate::Open)
}

/// Makes the mountpoint if it is not there. A folder above it that has to be
/// made, too, becomes the gate: 0750, for the configured group.
///
/// # Errors
/// `Io` naming the folder that cannot be made.
pub(crate) fn make_mountpoint(config: &Config) -> Result<()> {
    // Not `exists()`: what a dead daemon left there cannot be examined, and is.
    let absent = |path: &Path| matches!(fs::symlink_metadata(path), Err(e) if e.kind() == io::ErrorKind::NotFound);
    let failed = |path: &Path, e| Error::io(path.display().to_string(), e);
    if let Some(parent) = config.mountpoint.parent()
        && absent(parent)
    {
        if let Some(above) = parent.parent() {
            fs::create_dir_all(above).map_err(|e| failed(above, e))?;
        }
        let mut builder = fs::DirBuilder::new();
        builder
            .mode(0o750)
            .create(parent)
            .map_err(|e| failed(parent, e))?;
        if let Ok(Some(group)) = Group::from_name(&config.group)
            && let Err(errno) = nix::unistd::chown(parent, None, Some(group.gid))
        {
            tracing::warn!("{}: group {}: {errno}", parent.display(), config.group);
        }
    }
    if absent(&config.mountpoint) {
        fs::create_dir(&config.mountpoint).map_err(|e| failed(&config.mountpoint, e))?;
    }
    Ok(())
}

/// What `serve` asks before it mounts: refuses an open gate, or warns of it.
/// Nothing to ask if only the daemon's own user may enter.
///
/// # Errors
/// `Invalid` with the commands that close the gate.
pub(crate) fn check(config: &Config) -> Result<()> {
    if !config.allows_other() {
        return Ok(());
    }
    match inspect(&config.mountpoint, &config.group)? {
        Gate::Open if config.gate == GatePolicy::Enforce => {
            Err(Error::Invalid(open_sentence(config)))
        }
        Gate::Open => {
            tracing::warn!("{}", open_sentence(config));
            Ok(())
        }
        Gate::Closed {
            folder,
            group,
            group_right: false,
        } => {
            tracing::warn!("{}", group_sentence(config, &folder, &group));
            Ok(())
        }
        Gate::Closed { .. } => Ok(()),
    }
}

/// What to say of an open gate.
pub(crate) fn open_sentence(config: &Config) -> String {
    let auto = if config.allow_other == AllowOther::Auto {
        " (auto)"
    } else {
        ""
    };
    format!(
        "every user of this host could read all backups under {}: no folder above it keeps others \
         out, and allow_other is on{auto}; mend it with: {} (or set gate = \"warn\" or allow_other \
         = false)",
        config.mountpoint.display(),
        mend(config),
    )
}

/// What to say of a gate whose folder has another group.
pub(crate) fn group_sentence(config: &Config, folder: &Path, group: &str) -> String {
    format!(
        "{} is what keeps others out, and its group is {group}, not {}: who may read all backups \
         is decided by {group}",
        folder.display(),
        config.group
    )
}

/// The commands that close the gate.
pub(crate) fn mend(config: &Config) -> String {
    let mut commands = Vec::new();
    if !group_exists(&config.group) {
        commands.push(format!("groupadd --system {}", config.group));
    }
    let parent = config.mountpoint.parent().unwrap_or(Path::new("/"));
    let install = |folder: &Path| {
        format!(
            "install -d -m 0750 -g {} {}",
            config.group,
            folder.display()
        )
    };
    if SHARED.iter().any(|shared| parent == Path::new(shared)) {
        // The parent is everybody's: put a folder in between.
        let name = config.mountpoint.file_name().unwrap_or_default();
        let between = parent.join("sendense");
        commands.push(install(&between));
        let inside = between.join(name);
        commands.push(format!(
            "mkdir -p {0}; set mountpoint = \"{0}\"",
            inside.display()
        ));
    } else {
        commands.push(install(parent));
    }
    commands.join("; ")
}

/// Whether the host knows the group.
pub(crate) fn group_exists(name: &str) -> bool {
    matches!(Group::from_name(name), Ok(Some(_)))
}

fn group_name(gid: u32) -> String {
    match Group::from_gid(Gid::from_raw(gid)) {
        Ok(Some(group)) => group.name,
        _ => gid.to_string(),
    }
}

/// The mountpoint must not overlap a repository (reading an image would wait
/// for the tree, which waits for the image), and what the daemon writes must not
/// lie under the tree that covers it.
///
/// # Errors
/// `Invalid` naming both folders.
pub(crate) fn overlaps(config: &Config) -> Result<()> {
    repositories_overlap(&config.mountpoint, &config.repositories)?;
    let mountpoint = settle(&config.mountpoint)?;
    for (key, folder) in [
        ("state_dir", &config.state_dir),
        ("runtime_dir", &config.runtime_dir),
    ] {
        if settle(folder)?.starts_with(&mountpoint) {
            return Err(Error::Invalid(format!(
                "{key} {} lies inside the mountpoint {}, where the tree would cover it; choose \
                 another folder",
                folder.display(),
                config.mountpoint.display()
            )));
        }
    }
    Ok(())
}

/// The same of these repositories alone: those that the catalog has, or is to
/// have. They need not be there.
///
/// # Errors
/// `Invalid` naming both folders.
pub(crate) fn repositories_overlap<P: AsRef<Path>>(
    mountpoint: &Path,
    repositories: impl IntoIterator<Item = P>,
) -> Result<()> {
    let mountpoint_real = settle(mountpoint)?;
    for repository in repositories {
        let repository = repository.as_ref();
        let real = settle(repository)?;
        if mountpoint_real.starts_with(&real) || real.starts_with(&mountpoint_real) {
            return Err(Error::Invalid(format!(
                "mountpoint {} and repository {} overlap: reading an image would wait for the \
                 tree that it is read for; choose folders that do not contain each other",
                mountpoint.display(),
                repository.display()
            )));
        }
    }
    Ok(())
}

/// The same of the repositories that the catalog has.
///
/// # Errors
/// `Invalid` naming both folders, and how to take the repository out; from the
/// catalog.
pub(crate) fn recorded_overlap(config: &Config, catalog: &Catalog) -> Result<()> {
    for repository in catalog.repositories()? {
        repositories_overlap(&config.mountpoint, [&repository.path]).map_err(|e| {
            Error::Invalid(format!(
                "{e}; the repository is recorded in the catalog: `sendense catalog repository \
                 remove {}` takes it out",
                repository.path.display()
            ))
        })?;
    }
    Ok(())
}

/// `path` without symlinks, as far as it exists. The last component is only
/// followed if it is a symlink: a mountpoint whose daemon has died cannot be
/// examined (ENOTCONN), and must not be.
fn settle(path: &Path) -> Result<PathBuf> {
    let absolute =
        std::path::absolute(path).map_err(|e| Error::io(path.display().to_string(), e))?;
    settle_within(&absolute, 40)
}

fn settle_within(path: &Path, symlinks: u32) -> Result<PathBuf> {
    let failed = |e| Error::io(path.display().to_string(), e);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        // The root, or a path that ends with `..`.
        return path.canonicalize().map_err(failed);
    };
    let parent = match parent.canonicalize() {
        Ok(parent) => parent,
        Err(e) if e.kind() == io::ErrorKind::NotFound => settle_within(parent, symlinks)?,
        Err(e) => return Err(failed(e)),
    };
    let here = parent.join(name);
    match fs::read_link(&here) {
        Ok(_) if symlinks == 0 => Err(Error::Invalid(format!(
            "{}: too many symbolic links",
            path.display()
        ))),
        Ok(target) => settle_within(&parent.join(target), symlinks.saturating_sub(1)),
        Err(_) => Ok(here),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, Sources};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    /// A folder whose ancestors let everybody through, as `/tmp` does.
    fn open_folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        chmod(dir.path(), 0o755);
        dir
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn config(values: &[(&str, &Path)]) -> Config {
        let environment = values
            .iter()
            .map(|(key, path)| {
                (
                    format!("SENDENSE_{key}").into(),
                    path.as_os_str().to_owned(),
                )
            })
            .collect();
        let flags = Overrides::default();
        Config::load(&Sources {
            environment,
            flags,
            ..Sources::default()
        })
        .unwrap()
    }

    #[test]
    fn one_folder_without_x_for_others_closes_the_gate() {
        let dir = open_folder();
        let mountpoint = dir.path().join("gate/backups");
        fs::create_dir_all(&mountpoint).unwrap();
        let gate = dir.path().join("gate");
        for (mode, closed) in [
            (0o755, false),
            (0o750, true),
            (0o700, true),
            (0o701, false),
            (0o754, true),
        ] {
            chmod(&gate, mode);
            let found = inspect(&mountpoint, "root").unwrap();
            assert_eq!(found != Gate::Open, closed, "{mode:o}: {found:?}");
        }
        // The mountpoint's own mode is covered by the tree.
        chmod(&gate, 0o755);
        chmod(&mountpoint, 0o700);
        assert_eq!(inspect(&mountpoint, "root").unwrap(), Gate::Open);
        // Further out counts as well.
        chmod(dir.path(), 0o750);
        assert!(matches!(
            inspect(&mountpoint, "root").unwrap(),
            Gate::Closed { .. }
        ));
    }

    #[test]
    fn a_mountpoint_that_is_made_is_behind_a_gate() {
        let dir = open_folder();
        let mountpoint = dir.path().join("above/gate/backups");
        let config = config(&[("MOUNTPOINT", &mountpoint), ("GROUP", Path::new("daemon"))]);
        assert_eq!(inspect(&mountpoint, "daemon").unwrap(), Gate::Open);
        make_mountpoint(&config).unwrap();
        assert!(mountpoint.is_dir());
        let closed = Gate::Closed {
            folder: dir.path().join("above/gate").canonicalize().unwrap(),
            group: "daemon".into(),
            group_right: true,
        };
        assert_eq!(inspect(&mountpoint, "daemon").unwrap(), closed);
        make_mountpoint(&config).unwrap();
    }

    #[test]
    fn the_group_of_the_closing_folder_is_compared() {
        let dir = open_folder();
        let mountpoint = dir.path().join("backups");
        fs::create_dir(&mountpoint).unwrap();
        chown(dir.path(), None, Some(1)).unwrap(); // daemon, on every Debian
        chmod(dir.path(), 0o750);
        let right = |group| match inspect(&mountpoint, group).unwrap() {
            Gate::Closed { group_right, .. } => group_right,
            Gate::Open => panic!("open"),
        };
        assert!(right("daemon"));
        assert!(!right("sendense"));
        // Nobody of the group may enter: nothing to compare.
        chmod(dir.path(), 0o700);
        assert!(right("sendense"));
    }

    #[test]
    fn a_symlink_to_an_open_place_is_seen_through() {
        let dir = open_folder();
        let open = dir.path().join("open");
        let closed = dir.path().join("closed");
        fs::create_dir_all(open.join("backups")).unwrap();
        fs::create_dir(&closed).unwrap();
        chmod(&closed, 0o700);
        symlink(open.join("backups"), closed.join("backups")).unwrap();
        assert_eq!(
            inspect(&closed.join("backups"), "root").unwrap(),
            Gate::Open
        );
    }

    #[test]
    fn an_open_gate_is_refused_with_the_command_that_closes_it() {
        let dir = open_folder();
        let parent = dir.path().join("parent");
        let mountpoint = parent.join("backups");
        fs::create_dir_all(&mountpoint).unwrap();
        chmod(&parent, 0o755);
        let enforced = config(&[("MOUNTPOINT", &mountpoint), ("GROUP", Path::new("root"))]);
        let error = check(&enforced).unwrap_err().to_string();
        let command = format!("install -d -m 0750 -g root {}", parent.display());
        assert!(error.contains(&command), "{error}");
        // The command does mend it.
        let status = std::process::Command::new("sh")
            .arg("-c")
            .arg(&command)
            .status()
            .unwrap();
        assert!(status.success());
        check(&enforced).unwrap();

        chmod(&parent, 0o755);
        check(&config(&[
            ("MOUNTPOINT", &mountpoint),
            ("GATE", Path::new("warn")),
        ]))
        .unwrap();
        let alone = config(&[
            ("MOUNTPOINT", &mountpoint),
            ("ALLOW_OTHER", Path::new("false")),
        ]);
        check(&alone).unwrap();
    }

    #[test]
    fn a_folder_of_the_system_is_not_closed() {
        let commands = mend(&config(&[
            ("MOUNTPOINT", Path::new("/srv/backups")),
            ("GROUP", Path::new("root")),
        ]));
        assert!(
            commands.contains("install -d -m 0750 -g root /srv/sendense;"),
            "{commands}"
        );
        let commands = mend(&config(&[
            ("MOUNTPOINT", Path::new("/srv/sendense/backups")),
            ("GROUP", Path::new("no-such-group")),
        ]));
        assert_eq!(
            commands,
            "groupadd --system no-such-group; install -d -m 0750 -g no-such-group /srv/sendense"
        );
    }

    #[test]
    fn folders_that_contain_each_other_are_refused() {
        let dir = open_folder();
        let make = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (outer, inner, other) = (make("a"), make("a/b"), make("ab"));
        let link = dir.path().join("link");
        symlink(&outer, &link).unwrap();
        let test = |mountpoint: &Path, repository: &Path| {
            overlaps(&config(&[
                ("MOUNTPOINT", mountpoint),
                ("REPOSITORIES", repository),
            ]))
        };
        for (mountpoint, repository) in [
            (&outer, &inner),
            (&inner, &outer),
            (&outer, &outer),
            (&inner, &link),
            (&link, &inner),
            (&link.join("not-there-yet"), &outer),
        ] {
            let error = test(mountpoint, repository).unwrap_err().to_string();
            assert!(error.contains("overlap"), "{error}");
        }
        // As somebody types them in a shell.
        let typed = [
            outer.join("b/.."),
            outer.join("b/../../a/b/./"),
            inner.join("x"),
        ];
        for repository in &typed {
            let error = repositories_overlap(&inner, [repository]).unwrap_err();
            assert!(error.to_string().contains("overlap"), "{error}");
        }
        let here = std::env::current_dir().unwrap();
        repositories_overlap(&here, ["."]).unwrap_err();
        repositories_overlap(&here, [".."]).unwrap_err();
        repositories_overlap(&outer, [&other]).unwrap();
        // A common beginning of the name is no overlap.
        test(&other, &outer).unwrap();
        test(&outer, &other).unwrap();

        for key in ["STATE_DIR", "RUNTIME_DIR"] {
            let bad = config(&[("MOUNTPOINT", &outer), (key, &inner.join("below"))]);
            let error = overlaps(&bad).unwrap_err().to_string();
            assert!(error.starts_with(&key.to_ascii_lowercase()), "{error}");
        }
    }
}
