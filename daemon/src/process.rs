//! What the daemon asks of the kernel for itself: descriptors, memory.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
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
