//! File systems on one or several image files: made by `mkfs.btrfs`, mounted and
//! filled by the kernel.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::filesystem::Source;
use crate::filesystem::btrfs::Btrfs;
use crate::filesystem::ext::tests::image::{run, unmount};
use crate::image::BlockRead;

/// Runs a program by its words; it must succeed.
pub(super) fn sh(words: &[&dyn AsRef<OsStr>]) -> String {
    let (program, args) = words.split_first().expect("a program");
    let args: Vec<&OsStr> = args.iter().map(|word| (*word).as_ref()).collect();
    run(program.as_ref().to_str().expect("its name"), &args)
}

/// Images in a folder of their own, which goes with them.
pub(super) struct Pool {
    folder: tempfile::TempDir,
    pub(super) devices: Vec<PathBuf>,
}

impl Pool {
    /// `mkfs.btrfs` with `options` on `count` new sparse files of `size`.
    pub(super) fn make(count: usize, size: u64, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let devices: Vec<_> = (0..count)
            .map(|n| folder.path().join(format!("device-{n}")))
            .collect();
        let mut words: Vec<&dyn AsRef<OsStr>> = vec![&"mkfs.btrfs", &"-q", &"-f"];
        words.extend(options.iter().map(|word| word as &dyn AsRef<OsStr>));
        for path in &devices {
            File::create(path)
                .and_then(|file| file.set_len(size))
                .expect("an image");
            words.push(path);
        }
        sh(&words);
        Self { folder, devices }
    }

    /// A copy as it is now.
    pub(super) fn copy(&self) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let copy = |path: &PathBuf| {
            let to = folder.path().join(path.file_name().expect("a name"));
            sh(&[&"cp", &"--sparse=always", path, &to]);
            to
        };
        let devices = self.devices.iter().map(copy).collect();
        Self { folder, devices }
    }

    /// Mounts them by loop devices.
    pub(super) fn mount(&self, options: &str) -> Mount {
        let at = tempfile::tempdir_in(self.folder.path())
            .expect("a mountpoint")
            .keep();
        let loops: Vec<String> = self
            .devices
            .iter()
            .map(|path| sh(&[&"losetup", &"-f", &"--show", path]).trim().to_owned())
            .collect();
        let mut mount = Mount {
            at,
            loops,
            mounted: false,
        };
        let mut options = options.to_owned();
        for device in &mount.loops {
            options.push_str(&format!(",device={device}"));
        }
        sh(&[
            &"mount",
            &"-t",
            &"btrfs",
            &"-o",
            &options,
            &mount.loops[0],
            &mount.at,
        ]);
        mount.mounted = true;
        mount
    }

    /// The devices one after the other.
    pub(super) fn reader(&self) -> Files {
        let open = |path: &PathBuf| {
            let file = File::open(path).expect("the image");
            let size = file.metadata().expect("its size").len();
            (file, size)
        };
        Files(self.devices.iter().map(open).collect())
    }

    pub(super) fn source(&self) -> Source {
        let reader = self.reader();
        let members = reader.0.iter().map(|(_, size)| *size).collect();
        Source {
            members: if reader.0.len() == 1 {
                Vec::new()
            } else {
                members
            },
            volume: Arc::new(reader),
        }
    }

    pub(super) fn open(&self) -> Btrfs {
        Btrfs::open(self.source()).expect("it opens")
    }

    pub(super) fn blkid(&self, tag: &str) -> String {
        let output = Command::new("blkid")
            .args(["-p", "-o", "value", "-s", tag])
            .arg(&self.devices[0])
            .output()
            .expect("blkid");
        String::from_utf8_lossy(&output.stdout)
            .trim_end_matches('\n')
            .to_owned()
    }
}

/// Mounted images; unmounted when dropped.
pub(super) struct Mount {
    at: PathBuf,
    loops: Vec<String>,
    mounted: bool,
}

impl Mount {
    pub(super) fn path(&self) -> &Path {
        &self.at
    }

    /// `btrfs` with a path below the mountpoint as its last word.
    pub(super) fn btrfs(&self, words: &[&str], path: &str) {
        let path = self.at.join(path);
        let mut all: Vec<&dyn AsRef<OsStr>> = vec![&"btrfs"];
        all.extend(words.iter().map(|word| word as &dyn AsRef<OsStr>));
        all.push(&path);
        sh(&all);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let quietly = |program: &str, words: &[&OsStr]| {
            let _ = Command::new(program).args(words).output();
        };
        if self.mounted {
            unmount(&self.at);
        }
        for device in &self.loops {
            // The kernel must not take a copy of the image for this one.
            quietly(
                "btrfs",
                &[
                    "device".as_ref(),
                    "scan".as_ref(),
                    "--forget".as_ref(),
                    device.as_ref(),
                ],
            );
            quietly("losetup", &["-d".as_ref(), device.as_ref()]);
        }
        let _ = fs::remove_dir(&self.at);
    }
}

/// Files, one after the other.
pub(super) struct Files(Vec<(File, u64)>);

impl BlockRead for Files {
    fn size(&self) -> u64 {
        self.0.iter().map(|(_, size)| size).sum()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = offset;
        for (file, size) in &self.0 {
            if at < *size && at + buf.len() as u64 <= *size {
                return file
                    .read_exact_at(buf, at)
                    .map_err(|error| Error::io("image", error));
            }
            at = at.wrapping_sub(*size);
        }
        Err(Error::corrupt(
            "image",
            format!("byte {offset} is past its end"),
        ))
    }
}
