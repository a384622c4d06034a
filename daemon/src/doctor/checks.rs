//! The checks of [`super`], each a function of the configuration.

mod api;

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use nix::sys::statfs::{self, FsType};
use nix::unistd::{AccessFlags, access};
use sendense::catalog::Catalog;

use super::{Finding, Level};
use crate::config::{Config, GatePolicy, show_size};
use crate::gate::{self, Gate};

/// Descriptors of the daemon that no disk takes.
const DESCRIPTORS: u64 = 128;

/// Descriptors of one attached disk: connections, the process, its pipes.
const DESCRIPTORS_PER_DISK: u64 = 8;

/// What qemu-nbd and we take for one attached disk, in bytes.
const MEMORY_PER_DISK: u64 = 15 << 20;

/// All checks, in the order in which one would mend.
pub(super) fn all(config: &Config) -> Vec<Finding> {
    let mut findings = vec![fuse_device()];
    findings.extend(fuse_as_user(config));
    findings.push(program("qemu-nbd", 5));
    findings.push(program("qemu-img", 5));
    findings.extend(repositories(config));
    findings.push(own_folder("state_dir", &config.state_dir, config));
    findings.push(own_folder("runtime_dir", &config.runtime_dir, config));
    findings.push(mountpoint(config));
    findings.push(overlaps(config));
    findings.push(gate(config));
    findings.push(catalog(config));
    findings.push(open_files(config));
    findings.push(memory(config));
    findings.extend(state_space(config));
    findings.extend(api::all(config));
    findings.extend(socket_buffer());
    findings
}

fn fuse_device() -> Finding {
    let path = Path::new("/dev/fuse");
    match fs::metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Finding::fail(
            "fuse",
            "/dev/fuse is not there; the kernel cannot mount the tree",
        )
        .mend("modprobe fuse (in a container: give it the device /dev/fuse)"),
        Err(e) => Finding::fail("fuse", format!("/dev/fuse: {e}")),
        Ok(meta) if !meta.file_type().is_char_device() => {
            Finding::fail("fuse", "/dev/fuse is not a device")
                .mend("rm /dev/fuse; mknod -m 0666 /dev/fuse c 10 229")
        }
        Ok(_) => match fs::File::options().read(true).write(true).open(path) {
            Ok(_) => Finding::ok("fuse", "/dev/fuse can be opened"),
            Err(e) => Finding::fail("fuse", format!("/dev/fuse cannot be opened: {e}"))
                .mend("chmod 0666 /dev/fuse (in a container: allow the device 10:229)"),
        },
    }
}

/// What an ordinary user needs besides the device.
fn fuse_as_user(config: &Config) -> Vec<Finding> {
    if config.uid == 0 {
        return Vec::new();
    }
    let mut findings = vec![match find_program("fusermount3") {
        Some(path) => match fs::metadata(&path) {
            Ok(meta) if meta.mode() & 0o4000 != 0 && meta.uid() == 0 => {
                Finding::ok("fusermount3", path)
            }
            _ => Finding::fail("fusermount3", format!("{path} is not set-uid root"))
                .mend(format!("sudo chown root {path}; sudo chmod 4755 {path}")),
        },
        None => Finding::fail(
            "fusermount3",
            "is not installed; only root can mount without it",
        )
        .mend("sudo apt-get install fuse3"),
    }];
    if config.allows_other() {
        let text = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
        findings.push(
            if text.lines().any(|line| line.trim() == "user_allow_other") {
                Finding::ok("allow_other", "/etc/fuse.conf has user_allow_other")
            } else {
                Finding::fail(
                "allow_other",
                "allow_other is on, and /etc/fuse.conf does not allow it to ordinary users",
            )
            .mend("echo user_allow_other | sudo tee -a /etc/fuse.conf (or set allow_other = false)")
            },
        );
    }
    findings
}

fn find_program(name: &str) -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|program| {
            program.is_file() && access(program.as_path(), AccessFlags::X_OK).is_ok()
        })?;
    Some(found.display().to_string())
}

fn program(name: &str, least: u32) -> Finding {
    const INSTALL: &str = "apt-get install qemu-utils";
    let output = match Command::new(name).arg("--version").output() {
        Ok(output) => output,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Finding::fail(name, "is not installed; no image can be read").mend(INSTALL);
        }
        Err(e) => return Finding::fail(name, format!("cannot be run: {e}")).mend(INSTALL),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match version(&text) {
        Some((major, shown)) if major >= least => Finding::ok(name, format!("version {shown}")),
        Some((_, shown)) => Finding::fail(
            name,
            format!("version {shown} is too old; at least {least} is needed"),
        )
        .mend(INSTALL),
        None => Finding::warn(name, "does not tell its version").mend(INSTALL),
    }
}

/// The first word that looks like a version: its first number, and the word.
fn version(text: &str) -> Option<(u32, String)> {
    text.split_whitespace().find_map(|word| {
        let (major, _) = word.split_once('.')?;
        Some((major.parse().ok()?, word.to_owned()))
    })
}

fn repositories(config: &Config) -> Vec<Finding> {
    if config.repositories.is_empty() {
        return vec![
            Finding::warn("repositories", "none is configured; no image may be read")
                .mend("set repositories = [\"/path/to/the/images\"]"),
        ];
    }
    let real: Vec<_> = config
        .repositories
        .iter()
        .map(|path| path.canonicalize())
        .collect();
    let mut findings = Vec::new();
    for (path, here) in config.repositories.iter().zip(&real) {
        let shown = path.display();
        findings.push(match here {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                Finding::fail("repository", format!("{shown} is not there"))
                    .mend(format!("mount it, or mkdir -p {shown}"))
            }
            Err(e) => Finding::fail("repository", format!("{shown}: {e}")),
            Ok(here) => match fs::read_dir(here) {
                Err(e) => Finding::fail("repository", format!("{shown} cannot be read: {e}"))
                    .mend(format!("let user {} read {shown}", config.uid)),
                Ok(_) => Finding::ok("repository", format!("{shown} ({})", kind(here))),
            },
        });
    }
    for (path, here) in config.repositories.iter().zip(&real) {
        for (other, there) in config.repositories.iter().zip(&real) {
            let (Ok(here), Ok(there)) = (here, there) else {
                continue;
            };
            if path != other && here.starts_with(there) && (here != there || path < other) {
                findings.push(
                    Finding::warn(
                        "repository",
                        format!(
                            "{} lies inside {}: its images would be found twice",
                            path.display(),
                            other.display()
                        ),
                    )
                    .mend("leave one of them out"),
                );
            }
        }
    }
    findings
}

/// The kind of file system, as `statfs` tells it.
fn kind(path: &Path) -> String {
    // linux/magic.h; those of cifs are in fs/smb/client and not in it.
    const CIFS: FsType = FsType(0xFF53_4D42_u32 as _);
    const SMB2: FsType = FsType(0xFE53_4D42_u32 as _);
    match statfs::statfs(path).map(|found| found.filesystem_type()) {
        Ok(statfs::NFS_SUPER_MAGIC) => "nfs".into(),
        Ok(CIFS | SMB2 | statfs::SMB_SUPER_MAGIC) => "cifs".into(),
        Ok(statfs::EXT4_SUPER_MAGIC) => "local, ext4".into(),
        Ok(statfs::XFS_SUPER_MAGIC) => "local, xfs".into(),
        Ok(statfs::BTRFS_SUPER_MAGIC) => "local, btrfs".into(),
        Ok(statfs::TMPFS_MAGIC) => "local, tmpfs".into(),
        Ok(statfs::FUSE_SUPER_MAGIC) => "fuse".into(),
        Ok(FsType(other)) => format!("local, file system {other:#x}"),
        Err(errno) => format!("kind unknown: {errno}"),
    }
}

/// Whether the nearest folder above `path` that is there lets us make one.
fn can_be_made(path: &Path) -> bool {
    path.ancestors()
        .skip(1)
        .find(|above| above.exists())
        .is_some_and(|above| access(above, AccessFlags::W_OK | AccessFlags::X_OK).is_ok())
}

/// `state_dir` and `runtime_dir`: there and ours, or can be made.
fn own_folder(key: &str, path: &Path, config: &Config) -> Finding {
    let shown = path.display();
    let make = format!(
        "install -d -m 0750 {shown} (as a user who may; owned by {})",
        config.uid
    );
    match fs::metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            if can_be_made(path) {
                Finding::ok(key, format!("{shown} will be made by serve"))
            } else {
                Finding::fail(key, format!("{shown} is not there and cannot be made")).mend(make)
            }
        }
        Err(e) => Finding::fail(key, format!("{shown}: {e}")).mend(make),
        Ok(meta) if !meta.is_dir() => Finding::fail(key, format!("{shown} is not a folder"))
            .mend(format!("remove it, or set {key}")),
        Ok(_) if access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_err() => Finding::fail(
            key,
            format!("{shown} is not writable for user {}", config.uid),
        )
        .mend(format!("chown {} {shown}", config.uid)),
        Ok(meta) if meta.mode() & 0o002 != 0 => Finding::fail(
            key,
            format!("{shown} is writable for every user of this host"),
        )
        .mend(format!("chmod o-w {shown}")),
        Ok(meta) if key == "state_dir" && meta.mode() & 0o005 != 0 => Finding::warn(
            key,
            format!("{shown} can be read by every user of this host"),
        )
        .mend(format!("chmod o-rx {shown}")),
        Ok(_) => Finding::ok(key, shown.to_string()),
    }
}

fn mountpoint(config: &Config) -> Finding {
    let path = &config.mountpoint;
    let shown = path.display();
    match fs::read_dir(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            if can_be_made(path) {
                Finding::ok("mountpoint", format!("{shown} will be made by serve"))
            } else {
                Finding::fail("mountpoint", format!("{shown} is not there"))
                    .mend(format!("install -d {shown} (owned by user {})", config.uid))
            }
        }
        // What is left of a daemon that was killed; serve clears it.
        Err(e) if e.raw_os_error() == Some(nix::libc::ENOTCONN) => Finding::warn(
            "mountpoint",
            format!("{shown}: the daemon that mounted it is gone"),
        )
        .mend(format!("fusermount3 -uz {shown} (serve does so, too)")),
        Err(e) => Finding::fail("mountpoint", format!("{shown}: {e}")),
        Ok(mut entries) => match mounted(path) {
            Ok(Some(kind)) if kind.starts_with("fuse") && kind.contains("sendense") => {
                Finding::ok("mountpoint", format!("{shown}: the tree is mounted"))
            }
            Ok(Some(kind)) => Finding::warn(
                "mountpoint",
                format!("{shown}: a file system ({kind}) is mounted here"),
            )
            .mend(format!("umount {shown}, unless it is the running daemon's")),
            _ if entries.next().is_some() => Finding::warn(
                "mountpoint",
                format!("{shown} is not empty; the tree will hide it"),
            )
            .mend("choose an empty folder"),
            _ => Finding::ok("mountpoint", format!("{shown} is empty")),
        },
    }
}

/// The type of the file system that is mounted at `path` itself.
fn mounted(path: &Path) -> io::Result<Option<String>> {
    let wanted = path.canonicalize()?;
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().rev().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let at = left.split(' ').nth(4)?.replace("\\040", " ");
        // Type and source: mounted by root, ours is of the plain type `fuse`.
        let what = || right.split(' ').take(2).collect::<Vec<_>>().join(" ");
        (Path::new(&at) == wanted).then(what)
    }))
}

fn overlaps(config: &Config) -> Finding {
    // A catalog that cannot be read is another finding.
    let recorded = || match Catalog::open_read_only(&config.catalog_path()) {
        Ok(catalog) => gate::recorded_overlap(config, &catalog),
        Err(_) => Ok(()),
    };
    match gate::overlaps(config).and_then(|()| recorded()) {
        Ok(()) => Finding::ok("folders", "none lies in the other's way"),
        Err(e) => Finding::fail("folders", e.to_string()),
    }
}

fn gate(config: &Config) -> Finding {
    if !config.allows_other() {
        let user = config.uid;
        return Finding::ok(
            "gate",
            format!("only user {user} can enter (allow_other is off)"),
        );
    }
    if let Some(parent) = config.mountpoint.parent().filter(|parent| !parent.exists()) {
        let detail = format!("serve will make {} for its group only", parent.display());
        return if gate::group_exists(&config.group) {
            Finding::ok("gate", detail)
        } else {
            Finding::warn(
                "gate",
                format!("there is no group {}; {detail}", config.group),
            )
            .mend(gate::mend(config))
        };
    }
    match gate::inspect(&config.mountpoint, &config.group) {
        Ok(Gate::Open) => {
            let level = if config.gate == GatePolicy::Enforce {
                Level::Fail
            } else {
                Level::Warn
            };
            let detail = format!(
                "every user of this host could read all backups under {}",
                config.mountpoint.display()
            );
            Finding::new("gate", level, detail).mend(gate::mend(config))
        }
        Ok(Gate::Closed {
            folder,
            group,
            group_right: false,
        }) => Finding::warn("gate", gate::group_sentence(config, &folder, &group)).mend(format!(
            "chgrp {} {}",
            config.group,
            folder.display()
        )),
        Ok(Gate::Closed { folder, group, .. }) => {
            let folder = folder.display();
            Finding::ok(
                "gate",
                format!("{folder} lets in its owner and the group {group} only"),
            )
        }
        Err(e) => Finding::warn("gate", format!("cannot be examined: {e}")),
    }
}

fn catalog(config: &Config) -> Finding {
    let path = config.catalog_path();
    let shown = path.display();
    match fs::metadata(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Finding::ok(
            "catalog",
            format!("{shown} will be made when it is first used"),
        ),
        Err(e) => Finding::fail("catalog", format!("{shown}: {e}")),
        // Nothing is wrong with the catalog: it is somebody else's.
        Ok(meta) if access(&path, AccessFlags::R_OK | AccessFlags::W_OK).is_err() => Finding::fail(
            "catalog",
            format!("{shown} is not writable for user {}", config.uid),
        )
        .mend(format!(
            "run sendense as user {}, or set state_dir",
            meta.uid()
        )),
        Ok(_) => match Catalog::open(&path) {
            Ok(_) => Finding::ok("catalog", shown.to_string()),
            Err(e) => Finding::fail("catalog", format!("{shown} cannot be opened: {e}")).mend(
                format!("move {shown} away and run sendense catalog scan again"),
            ),
        },
    }
}

fn open_files(config: &Config) -> Finding {
    let slots = u64::try_from(config.slots).unwrap_or(u64::MAX);
    let needed = slots
        .saturating_mul(DESCRIPTORS_PER_DISK)
        .saturating_add(DESCRIPTORS);
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    match hard_limit(&limits, "Max open files") {
        Some(limit) if limit < needed => Finding::fail(
            "open files",
            format!("at most {limit}; {slots} slots may need {needed}"),
        )
        .mend(format!(
            "ulimit -Hn {needed} (systemd: LimitNOFILE={needed}), or fewer slots"
        )),
        Some(u64::MAX) => Finding::ok("open files", "no limit"),
        Some(limit) => Finding::ok(
            "open files",
            format!("up to {limit}; {needed} may be needed"),
        ),
        None => Finding::warn("open files", "the limit is unknown"),
    }
}

/// The hard limit in a line of `/proc/self/limits`: its second number.
fn hard_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let word = line.split_whitespace().nth(1)?;
    if word == "unlimited" {
        Some(u64::MAX)
    } else {
        word.parse().ok()
    }
}

fn memory(config: &Config) -> Finding {
    let slots = u64::try_from(config.slots).unwrap_or(u64::MAX);
    let needed = slots
        .saturating_mul(MEMORY_PER_DISK)
        .saturating_add(config.cache_size);
    let shown = show_size(needed);
    let table = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = table
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map(|kibibytes| kibibytes.saturating_mul(1024));
    match available {
        None => Finding::warn("memory", "how much is free is unknown"),
        Some(available) => {
            let detail = format!(
                "{} available; all slots and a full cache may take {shown}",
                show_size(available)
            );
            if available < needed {
                Finding::warn("memory", detail).mend("lower slots or cache_size")
            } else {
                Finding::ok("memory", detail)
            }
        }
    }
}

/// Room for the catalog to grow.
fn state_space(config: &Config) -> Option<Finding> {
    const WANTED: u64 = 64 << 20;
    // Not there yet: it will lie where the nearest folder above it lies.
    let place = config.state_dir.ancestors().find(|path| path.exists())?;
    let space = nix::sys::statvfs::statvfs(place).ok()?;
    let free = space
        .blocks_available()
        .saturating_mul(space.fragment_size());
    let detail = format!("{} free in {}", show_size(free), config.state_dir.display());
    Some(if free < WANTED {
        Finding::warn("space", detail).mend("make room there, or set state_dir")
    } else {
        Finding::ok("space", detail)
    })
}

/// qemu-nbd answers reads up to an eighth faster with a larger socket buffer.
fn socket_buffer() -> Option<Finding> {
    const WANTED: u64 = 1 << 20;
    let text = fs::read_to_string("/proc/sys/net/core/wmem_default").ok()?;
    let current: u64 = text.trim().parse().ok()?;
    Some(if current >= WANTED {
        Finding::ok(
            "socket buffer",
            format!("net.core.wmem_default is {}", show_size(current)),
        )
    } else {
        let detail = format!(
            "net.core.wmem_default is {}; with 1 MiB large reads are about 12 % faster",
            show_size(current)
        );
        Finding::new("socket buffer", Level::Hint, detail)
            .mend(format!("sysctl -w net.core.wmem_default={WANTED}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, Sources};
    use std::os::unix::fs::PermissionsExt;

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
    fn programs_tell_their_version() {
        assert_eq!(
            version("qemu-nbd 10.0.2 (Debian 1:10.0.2)"),
            Some((10, "10.0.2".into()))
        );
        assert_eq!(
            version("qemu-img version 4.2.1 (x)\nCopyright"),
            Some((4, "4.2.1".into()))
        );
        assert_eq!(version("nonsense"), None);
        assert_eq!(program("qemu-nbd", 5).level, Level::Ok);
        assert_eq!(program("qemu-nbd", 500).level, Level::Fail);
        let missing = program("no-such-program", 5);
        assert_eq!((missing.level, missing.mend.is_some()), (Level::Fail, true));
    }

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(hard_limit(text, "Max open files"), Some(524_288));
        let few = config(&[("SLOTS", Path::new("1"))]);
        assert_eq!(open_files(&few).level, Level::Ok);
    }

    #[test]
    fn repositories_are_named_with_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let list = format!(
            "{}:{}:/no/such/folder",
            dir.path().display(),
            inner.display()
        );
        let findings = repositories(&config(&[("REPOSITORIES", Path::new(&list))]));
        let levels: Vec<Level> = findings.iter().map(|finding| finding.level).collect();
        assert_eq!(
            levels,
            [Level::Ok, Level::Ok, Level::Fail, Level::Warn],
            "{findings:?}"
        );
        assert!(findings[3].detail.contains("lies inside"));
        assert_eq!(repositories(&config(&[]))[0].level, Level::Warn);
    }

    #[test]
    fn folders_of_the_daemon_are_not_for_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("state");
        let config = config(&[]);
        let level = || own_folder("state_dir", &folder, &config).level;
        assert_eq!(level(), Level::Ok, "can be made");
        fs::create_dir(&folder).unwrap();
        for (mode, wanted) in [
            (0o750, Level::Ok),
            (0o755, Level::Warn),
            (0o777, Level::Fail),
        ] {
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(level(), wanted, "{mode:o}");
        }
        fs::remove_dir(&folder).unwrap();
        fs::write(&folder, b"").unwrap();
        assert_eq!(level(), Level::Fail);
    }

    #[test]
    fn a_mountpoint_is_empty_and_nothing_else_is_mounted_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &Path| mountpoint(&config(&[("MOUNTPOINT", path)])).level;
        assert_eq!(at(dir.path()), Level::Ok);
        fs::write(dir.path().join("f"), b"").unwrap();
        assert_eq!(at(dir.path()), Level::Warn);
        assert_eq!(at(&dir.path().join("new")), Level::Ok);
        assert_eq!(at(Path::new("/proc")), Level::Warn);
        assert_eq!(at(&dir.path().join("f")), Level::Fail);
    }
}
