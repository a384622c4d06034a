//! What a process asks of the kernel for itself: descriptors, memory.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;
use parking_lot::Mutex;
use sendense::{Error, Result};

/// Raises the soft limit of open files to the hard one, as each attached disk
/// takes several; returns it. Programs started later inherit it.
///
/// # Errors
/// `Io` from the host.
pub(crate) fn raise_open_files() -> Result<u64> {
    let failed = |errno: nix::errno::Errno| Error::io("the limit of open files", errno.into());
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(failed)?;
    }
    Ok(hard)
}

/// A moment by the clock on the wall, as seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Resident memory of this process in bytes; 0 if it is unknown.
pub(crate) fn resident_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0).saturating_mul(1024)
}

/// What a process without rights can still learn of itself: files of /proc that were
/// opened before.
#[derive(Debug)]
pub(crate) struct Watched {
    memory: fs::File,
    descriptors: Mutex<Dir>,
}

impl Watched {
    /// Opens them.
    ///
    /// # Errors
    /// `Io` from the host.
    pub(crate) fn open() -> Result<Self> {
        let failed = |e| Error::io("/proc/self", e);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let descriptors = Dir::open("/proc/self/fd", flags, Mode::empty());
        Ok(Self {
            memory: fs::File::open("/proc/self/statm").map_err(failed)?,
            descriptors: Mutex::new(descriptors.map_err(|e| failed(e.into()))?),
        })
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> Option<u64> {
        let mut text = [0; 256];
        let len = self.memory.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(text.get(..len)?).ok()?;
        let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
        pages.checked_mul(u64::try_from(page).ok()?)
    }

    /// Open descriptors.
    pub(crate) fn descriptors(&self) -> Option<u64> {
        let mut folder = self.descriptors.lock();
        let names = folder.iter().filter_map(std::result::Result::ok);
        let count = names
            .filter(|name| !name.file_name().to_bytes().starts_with(b"."))
            .count();
        u64::try_from(count).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_rise_and_memory_is_told() {
        let limit = raise_open_files().unwrap();
        let now = fs::read_to_string("/proc/self/limits").unwrap();
        let line = now
            .lines()
            .find(|l| l.starts_with("Max open files"))
            .unwrap();
        assert_eq!(line.split_whitespace().nth(3).unwrap(), limit.to_string());
        assert!(resident_memory() > 1 << 20);
    }
}
