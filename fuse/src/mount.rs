//! Mounting the tree and taking it away again.
//!
//! The tree is always mounted read-only, nosuid, nodev and noexec. Taking it away
//! never fails for being busy: if somebody stands in it, it is detached, and ends
//! with the process.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use sendense::Error;
use sendense::tree::Tree;

use crate::adapter::Adapter;
use crate::complaints::Complaints;

/// Threads that take requests from the kernel. Two let serial look-ups overlap
/// with the answers before them; each takes 16 MiB of address space.
const LOOP_THREADS: usize = 2;

/// How the tree is mounted.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// Where.
    pub mountpoint: PathBuf,
    /// Whether users other than the one who mounts may look inside.
    pub allow_other: bool,
    /// Whether extended attributes are shown.
    pub xattrs: bool,
    /// How long one operation may take.
    pub time_limit: Duration,
    /// What the kernel reads ahead, in bytes; only root can set it. 0 leaves
    /// it as it is.
    pub read_ahead: u64,
}

/// The mounted tree.
pub struct Mount {
    mountpoint: PathBuf,
    session: Option<BackgroundSession>,
    complaints: Arc<Complaints>,
}

impl Mount {
    /// Mounts the tree and serves it on threads of its own.
    ///
    /// # Errors
    /// What keeps it from being mounted, naming the mountpoint.
    pub fn new(tree: Arc<Tree>, options: &MountOptions) -> sendense::Result<Self> {
        let mountpoint = &options.mountpoint;
        let failed = |error: io::Error| {
            Error::io(
                format!("mounting the tree on {}", mountpoint.display()),
                error,
            )
        };
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::RO,
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoExec,
            MountOption::NoAtime,
            MountOption::FSName("sendense".into()),
            MountOption::Subtype("sendense".into()),
        ];
        config.acl = if options.allow_other {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        config.n_threads = Some(LOOP_THREADS);
        config.clone_fd = true;
        let complaints = Arc::new(Complaints::new(Arc::clone(&tree)));
        let adapter = Adapter::new(
            tree,
            options.xattrs,
            options.time_limit,
            Arc::clone(&complaints),
        );
        let listed = as_listed(mountpoint);
        let session = Session::new(adapter, mountpoint, &config).map_err(failed)?;
        let session = session.spawn().map_err(failed)?;
        if options.read_ahead > 0
            && let Some(listed) = listed
        {
            set_read_ahead(&listed, options.read_ahead);
        }
        Ok(Self {
            mountpoint: mountpoint.clone(),
            session: Some(session),
            complaints,
        })
    }

    /// How many operations have ended in an error of ours, so far.
    pub fn errors(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let complaints = Arc::clone(&self.complaints);
        move || complaints.count()
    }

    /// Whether the tree is still served: false once somebody has unmounted it.
    pub fn is_served(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| !session.guard.is_finished())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        if session.guard.is_finished() {
            return;
        }
        for _ in 0..5 {
            match unmount(&self.mountpoint, false) {
                Ok(()) => {
                    let _ = session.join();
                    return;
                }
                // As the tree is read-only, waiting for a reader saves nothing but
                // its last read; a moment is enough.
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        tracing::info!(mountpoint = %self.mountpoint.display(), "still in use; detached");
        if let Err(error) = unmount(&self.mountpoint, true) {
            tracing::warn!(mountpoint = %self.mountpoint.display(), %error, "cannot be unmounted");
        }
        // The session would wait for the last user; it ends with the process.
        std::mem::forget(session);
    }
}

/// Unmounts, by the system call or, for an ordinary user, by `fusermount3`.
fn unmount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    use nix::mount::{MntFlags, umount2};
    let flags = if lazy {
        MntFlags::MNT_DETACH
    } else {
        MntFlags::UMOUNT_NOFOLLOW
    };
    match umount2(mountpoint, flags) {
        Err(Errno::EPERM) => {}
        other => return other.map_err(io::Error::from),
    }
    let mut command = Command::new("fusermount3");
    command
        .arg("-u")
        .args(lazy.then_some("-z"))
        .arg("--")
        .arg(mountpoint);
    let status = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::ResourceBusy))
    }
}

/// Takes away what an earlier run that was killed has left mounted.
///
/// # Errors
/// If something is left that cannot be taken away, or if another daemon serves
/// there.
pub fn clear_stale(mountpoint: &Path) -> sendense::Result<()> {
    let named = |error: io::Error| Error::io(mountpoint.display().to_string(), error);
    // More than one may be stacked. `stat` would not do: the kernel answers it
    // from what it has kept.
    for _ in 0..16 {
        match nix::sys::statvfs::statvfs(mountpoint) {
            Err(Errno::ENOTCONN | Errno::ECONNABORTED) => {
                tracing::info!(mountpoint = %mountpoint.display(), "clearing what an earlier run left");
                unmount(mountpoint, true).map_err(named)?;
            }
            Err(errno) => return Err(named(errno.into())),
            Ok(_) if is_our_mount(mountpoint) => {
                return Err(Error::Invalid(format!(
                    "{}: another sendense serves there; end it first, or choose another mountpoint",
                    mountpoint.display()
                )));
            }
            Ok(_) => return Ok(()),
        }
    }
    Err(Error::Invalid(format!(
        "{}: cannot be cleared of earlier mounts; run: umount -l {0}",
        mountpoint.display()
    )))
}

/// Whether the kernel lists a tree of ours there (`/proc/self/mounts`, where odd
/// bytes of paths are written as octal escapes).
fn is_our_mount(mountpoint: &Path) -> bool {
    let Some(listed) = as_listed(mountpoint) else {
        return false;
    };
    let mounts = fs::read("/proc/self/mounts").unwrap_or_default();
    mounts.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        fields.next() == Some(b"sendense") && fields.next() == Some(&listed)
    })
}

/// A path as the kernel writes it in its lists of mounts.
fn as_listed(mountpoint: &Path) -> Option<Vec<u8>> {
    let real = mountpoint.canonicalize().ok()?;
    let mut listed = Vec::new();
    for byte in real.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => listed.extend(format!("\\{byte:03o}").bytes()),
            _ => listed.push(*byte),
        }
    }
    Some(listed)
}

/// The kernel's default of 128 KiB costs 40 % of a sequential read.
///
/// The device's number comes from the list of mounts: to `stat` the mountpoint
/// would be a question to this very process, and if it were killed before it has
/// answered, the one thread that waits for the answer could never end.
fn set_read_ahead(listed: &[u8], bytes: u64) {
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    // The last one lies on top.
    let device = mounts.rsplit(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = fields.nth(2)?;
        (fields.nth(1)? == listed).then_some(device)
    });
    let Some(device) = device.and_then(|device| std::str::from_utf8(device).ok()) else {
        return;
    };
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = fs::write(&path, (bytes / 1024).to_string()) {
        tracing::debug!(path, %error, "read-ahead stays at the kernel's default");
    }
}
