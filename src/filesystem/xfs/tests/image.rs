//! Images: made by `mkfs.xfs`, mounted by the kernel.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use crate::filesystem::ext::tests::image::{Mount, Reader, run};

/// An image in a folder of its own, which goes with it.
pub(super) struct Image {
    folder: tempfile::TempDir,
    pub(super) path: PathBuf,
}

impl Image {
    /// `mkfs.xfs` with `options` on a new sparse file.
    pub(super) fn make(size: &str, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("image");
        run(
            "truncate",
            &["-s".as_ref(), size.as_ref(), path.as_os_str()],
        );
        // For images that are smaller than what it recommends.
        let mut args: Vec<&OsStr> = vec!["--unsupported".as_ref(), "-q".as_ref(), "-f".as_ref()];
        args.extend(options.iter().map(AsRef::<OsStr>::as_ref));
        args.push(path.as_os_str());
        run("mkfs.xfs", &args);
        Self { folder, path }
    }

    /// From what is in memory.
    pub(super) fn of(raw: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("image");
        fs::write(&path, raw).expect("an image");
        Self { folder, path }
    }

    /// A copy as it is now.
    pub(super) fn copy(&self) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("image");
        let sparse = "--sparse=always".as_ref();
        run("cp", &[sparse, self.path.as_os_str(), path.as_os_str()]);
        Self { folder, path }
    }

    pub(super) fn mount(&self, options: &str) -> Mount {
        let path = self.folder.path().join("mount");
        fs::create_dir_all(&path).expect("a mountpoint");
        let options = format!("loop,nouuid,{options}");
        let (image, at) = (self.path.as_os_str(), path.as_os_str());
        let (kind, with) = (OsStr::new("xfs"), OsStr::new(&options));
        run(
            "mount",
            &["-t".as_ref(), kind, "-o".as_ref(), with, image, at],
        );
        Mount::at(path)
    }

    /// `xfs_db -x`: one command after the other.
    pub(super) fn xfs_db(&self, commands: &[&str]) -> String {
        let mut args: Vec<&OsStr> = vec!["-x".as_ref()];
        for command in commands {
            args.extend(["-c".as_ref(), OsStr::new(command)]);
        }
        args.push(self.path.as_os_str());
        run("xfs_db", &args)
    }

    pub(super) fn blkid(&self, tag: &str) -> String {
        let output = Command::new("blkid")
            .args(["-p", "-o", "value", "-s", tag])
            .arg(&self.path)
            .output()
            .expect("blkid");
        String::from_utf8_lossy(&output.stdout)
            .trim_end_matches('\n')
            .to_owned()
    }

    pub(super) fn reader(&self) -> Reader {
        Reader::of(File::open(&self.path).expect("the image"))
    }
}
