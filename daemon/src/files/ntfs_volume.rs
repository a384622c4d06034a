//! For tests: a volume that ntfs-3g serves, which is a tree over FUSE, of another
//! make, with the attributes that NTFS has.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};

/// Mounted while this lives.
pub(crate) struct NtfsVolume {
    dir: tempfile::TempDir,
    server: Child,
}

impl NtfsVolume {
    /// A new volume on which `script` has run.
    pub(crate) fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shell = |script: &str, place: PathBuf| {
            let done = Command::new("sh")
                .args(["-ec", script])
                .current_dir(place)
                .output()
                .unwrap();
            assert!(done.status.success(), "{done:?}");
        };
        shell(
            "truncate -s 20M image; mkntfs -q -F -f image; mkdir m",
            dir.path().to_owned(),
        );
        let server = Command::new("ntfs-3g")
            .args(["-o", "no_detach,streams_interface=xattr", "image", "m"])
            .current_dir(dir.path())
            .spawn()
            .unwrap();
        let volume = Self { dir, server };
        let start = Instant::now();
        while statfs(&volume.path()).unwrap().filesystem_type() != FUSE_SUPER_MAGIC {
            assert!(start.elapsed() < Duration::from_secs(10), "not mounted");
            std::thread::sleep(Duration::from_millis(10));
        }
        shell(script, volume.path());
        volume
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("m")
    }

    /// Ends the server and leaves the mount without one.
    pub(crate) fn abandon(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}

impl Drop for NtfsVolume {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
