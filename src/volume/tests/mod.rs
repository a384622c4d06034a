//! Real tools write, `blkid`, `partx`, `sfdisk` and LVM2 say what is there.

mod across;
mod damage;
mod ldm;
mod logical;
mod mapping;
mod partitions;
mod raid;
mod raid_volumes;
mod signatures;
mod unreadable;

use super::*;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub(super) const MIB: u64 = 1 << 20;

/// A disk in a sparse file.
pub(super) struct Image {
    dir: tempfile::TempDir,
    file: Arc<File>,
}

impl Image {
    pub(super) fn new(size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(dir.path().join("disk"))
            .unwrap();
        file.set_len(size).unwrap();
        Self {
            dir,
            file: Arc::new(file),
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    pub(super) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    pub(super) fn resize(&self, size: u64) {
        self.file.set_len(size).unwrap();
    }

    pub(super) fn disk(&self) -> Arc<dyn BlockRead> {
        // Tools may have replaced the file.
        Arc::new(Reader(File::open(self.path()).unwrap()))
    }

    pub(super) fn detect(&self) -> Vec<Volume> {
        detect(&self.disk()).unwrap()
    }

    /// Puts the file that `make` fills at byte `at` of the disk.
    pub(super) fn fill(&self, at: u64, size: u64, make: impl FnOnce(&Path)) {
        let part = Image::new(size);
        make(&part.path());
        let copy = format!("of={}", self.path().display());
        let from = format!("if={}", part.path().display());
        let seek = format!("seek={at}");
        let options = [
            "bs=1M",
            "conv=notrunc,sparse",
            "oflag=seek_bytes",
            "status=none",
        ];
        run(
            "dd",
            [&[from.as_str(), &copy, &seek][..], &options].concat(),
        );
    }
}

struct Reader(File);

impl BlockRead for Reader {
    fn size(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0
            .read_exact_at(buf, offset)
            .map_err(|e| crate::Error::io("test image", e))
    }
}

/// Keeps disks of equal size, one after the other, as `<name>.img` in the folder
/// that the environment names.
pub(super) fn keep_for_fuzzing(name: &str, disks: &[Image]) {
    let folder = std::env::var_os("SENDENSE_FUZZ_IMAGES").expect("SENDENSE_FUZZ_IMAGES");
    let all = File::create(Path::new(&folder).join(format!("{name}.img"))).unwrap();
    let mut at = 0;
    for disk in disks {
        let size = disk.file.metadata().unwrap().len();
        all.write_all_at(&disk.bytes(0, size as usize), at).unwrap();
        at += size;
    }
}

/// A loop device, gone at the end.
pub(super) struct Loop(pub(super) String);

impl Loop {
    pub(super) fn new(image: &Image, sector: u32) -> Self {
        let (path, sector) = (image.path().display().to_string(), sector.to_string());
        Self(
            run("losetup", ["-f", "--show", "-b", &sector, &path])
                .trim()
                .to_owned(),
        )
    }
}

impl Loop {
    /// Of a part of a disk.
    pub(super) fn part(image: &Image, at: u64, size: u64) -> Self {
        let (at, size) = (at.to_string(), size.to_string());
        let path = image.path().display().to_string();
        let args = ["-f", "--show", "-o", &at, "--sizelimit", &size, &path];
        Self(run("losetup", args).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", ["-d", &self.0]);
    }
}

/// Runs a program, which must succeed, and returns what it printed.
pub(super) fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    run_with(program, args, "")
}

pub(super) fn run_with<S: AsRef<OsStr>>(
    program: &str,
    args: impl IntoIterator<Item = S>,
    input: &str,
) -> String {
    let mut command = Command::new(program);
    command
        .args(args)
        .env("LC_ALL", "C.UTF-8")
        .env("LVM_SUPPRESS_FD_WARNINGS", "1");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program} is needed for this test: {e}"));
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {error}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// What `blkid` says of `tag` on a part of a file, empty if nothing.
pub(super) fn blkid(path: &Path, tag: &str, at: u64, size: u64) -> String {
    let (at, size) = (at.to_string(), size.to_string());
    let out = Command::new("blkid")
        .args(["-p", "-o", "value", "-s", tag, "-O", &at, "-S", &size])
        .arg(path)
        .output()
        .unwrap();
    assert!(matches!(out.status.code(), Some(0 | 2)), "{out:?}");
    String::from_utf8(out.stdout)
        .unwrap()
        .trim_end_matches('\n')
        .to_owned()
}

/// Checks a linear volume against `blkid`; returns the type.
pub(super) fn same_as_blkid(image: &Image, volume: &Volume) -> String {
    let (at, size) = (
        volume.mapping.first().unwrap().offset,
        volume.mapping.size(),
    );
    let tell = |tag| blkid(&image.path(), tag, at, size);
    let kind = tell("TYPE");
    let label = String::from_utf8_lossy(&volume.label).into_owned();
    assert_eq!(label, tell("LABEL"), "label of {volume:?}");
    assert_eq!(volume.uuid, tell("UUID"), "UUID of {volume:?}");
    let expected = match kind.as_str() {
        "crypto_LUKS" | "BitLocker" => Content::Locked(Lock {
            kind: kind.clone(),
            uuid: volume.uuid.clone(),
        }),
        "swap" | "LVM2_member" | "jbd" | "swsuspend" => Content::NoFiles(kind.clone()),
        "linux_raid_member" | "" => {
            assert!(
                matches!(volume.content, Content::Unreadable(_)),
                "{volume:?}"
            );
            return kind;
        }
        _ => Content::FileSystem(kind.clone()),
    };
    assert_eq!(volume.content, expected);
    kind
}
