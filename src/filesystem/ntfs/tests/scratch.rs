//! A folder for one test: images made by mkntfs, mounted by ntfs-3g.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::filesystem::ext::tests::image::unmount;
use crate::filesystem::ntfs::Ntfs;
use crate::image::BlockRead;

/// A fixed sequence of numbers that look random.
pub(in crate::filesystem) struct Random(pub(in crate::filesystem) u64);

impl Random {
    pub(in crate::filesystem) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(in crate::filesystem) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(in crate::filesystem) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8))
            .flat_map(|_| self.next().to_le_bytes())
            .take(len)
            .collect()
    }

    /// Words from a small vocabulary, which compress well, with some noise.
    pub(super) fn text(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 16);
        while out.len() < len {
            match self.below(12) {
                0 => out.extend(self.next().to_le_bytes()),
                1 => out.extend(std::iter::repeat_n(b' ', self.below(200) as usize)),
                // What looks like a call to an x86 compiler.
                2 => {
                    out.push(0xe8);
                    out.extend((self.below(1 << 16) as i32 - 30000).to_le_bytes());
                }
                n => out.extend(format!("word{} of {n}, ", self.below(500)).into_bytes()),
            }
        }
        out.truncate(len);
        out
    }
}

/// Runs a program that must succeed.
pub(in crate::filesystem) fn run(program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// An image file.
pub(in crate::filesystem) struct ImageFile(pub(in crate::filesystem) File);

impl BlockRead for ImageFile {
    fn size(&self) -> u64 {
        self.0.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if offset
            .checked_add(buf.len() as u64)
            .is_none_or(|end| end > self.size())
        {
            return Err(Error::corrupt("image", "a read reaches past its end"));
        }
        self.0
            .read_exact_at(buf, offset)
            .map_err(|error| Error::io("image", error))
    }
}

/// A test's folder; removed with all that is in it.
pub(super) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Formats an image of `size` bytes.
    pub(super) fn mkntfs(&self, name: &str, size: u64, args: &[&str]) -> PathBuf {
        let image = self.path(name);
        File::create(&image).unwrap().set_len(size).unwrap();
        let mut all = vec!["-F", "-Q", "-q", "-p", "0", "-H", "16", "-S", "63"];
        all.extend(args);
        all.push(image.to_str().unwrap());
        run("mkntfs", &all);
        image
    }

    pub(super) fn mount(&self, image: &Path, options: &str) -> Mount {
        let at = tempfile::tempdir_in(self.0.path()).unwrap().keep();
        Mount::new(image, at, options)
    }
}

/// An image mounted by ntfs-3g, until dropped.
pub(super) struct Mount {
    at: PathBuf,
    daemon: Child,
}

impl Mount {
    fn new(image: &Path, at: PathBuf, options: &str) -> Self {
        let options = format!("no_detach,streams_interface=xattr,{options}");
        let mut daemon = Command::new("ntfs-3g")
            .arg(image)
            .arg(&at)
            .args(["-o", &options])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ntfs-3g is needed");
        let start = Instant::now();
        loop {
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            if mounts
                .lines()
                .any(|line| line.split(' ').nth(1) == at.to_str())
            {
                return Self { at, daemon };
            }
            if let Some(status) = daemon.try_wait().unwrap() {
                panic!("ntfs-3g ended: {status}");
            }
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "ntfs-3g does not mount"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    pub(super) fn root(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        unmount(&self.at);
        // The daemon writes what it still has before it ends.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if self.daemon.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Opens an image with the reader under test.
pub(super) fn open(image: &Path) -> Ntfs {
    Ntfs::open(Arc::new(ImageFile(File::open(image).unwrap()))).unwrap()
}
