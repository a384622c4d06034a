//! Images, and the programs that fill them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::filesystem::ext::tests::image::unmount;
use crate::filesystem::fat::Fat;
use crate::filesystem::ntfs::tests::scratch::{ImageFile, Random, run};
use crate::filesystem::{Options, parse_time_zone};
use crate::image::BlockRead;

/// A test's folder with an image in it; removed with all that is in it.
pub(super) struct Image {
    pub(super) folder: tempfile::TempDir,
    pub(super) path: PathBuf,
}

impl Image {
    fn new(size: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        File::create(&path).unwrap().set_len(size).unwrap();
        // As Linux does; mtools takes 850 otherwise.
        let settings = "mtools_skip_check=1\ndefault_codepage=437\n";
        fs::write(folder.path().join("mtoolsrc"), settings).unwrap();
        Self { folder, path }
    }

    pub(super) fn fat(size: u64, args: &[&str]) -> Self {
        let image = Self::new(size);
        let mut all = args.to_vec();
        all.push(image.path.to_str().unwrap());
        run("mkfs.vfat", &all);
        image
    }

    pub(super) fn exfat(size: u64, sector: u32, args: &[&str]) -> Self {
        let image = Self::new(size);
        let device = Loop::new(&image.path, sector);
        let mut all = args.to_vec();
        all.push(&device.0);
        run("mkfs.exfat", &all);
        drop(device);
        image
    }

    /// A file or folder beside the image.
    pub(super) fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs one of mtools on the image, in this time zone; what it printed.
    pub(super) fn mtool(&self, program: &str, zone: &str, args: &[&str]) -> String {
        let output = Command::new(program)
            .args(["-i", self.path.to_str().unwrap()])
            .args(args)
            .env("MTOOLSRC", self.beside("mtoolsrc"))
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", zone)
            .output()
            .unwrap_or_else(|error| panic!("{program} is needed: {error}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{program} {args:?}: {text}{errors}"
        );
        text
    }

    /// Copies what a folder holds into the image.
    pub(super) fn copy_in(&self, from: &Path, zone: &str) {
        let mut names: Vec<String> = fs::read_dir(from)
            .unwrap()
            .map(|entry| entry.unwrap().path().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        let mut args = vec!["-s", "-p", "-m", "-n"];
        args.extend(names.iter().map(String::as_str));
        args.push("::/");
        self.mtool("mcopy", zone, &args);
    }

    /// Copies all that the image holds to a folder beside it.
    pub(super) fn copy_out(&self, zone: &str) -> PathBuf {
        let to = tempfile::tempdir_in(self.folder.path()).unwrap().keep();
        let args = ["-s", "-p", "-m", "-n", "::/", to.to_str().unwrap()];
        self.mtool("mcopy", zone, &args);
        to
    }

    /// What `fls` says of each file that is not deleted: path, then size, atime,
    /// mtime and creation, in seconds.
    pub(super) fn fls(&self, zone: &str) -> Vec<(String, [i64; 4])> {
        let output = Command::new("fls")
            .args(["-r", "-p", "-u", "-m", "/"])
            .arg(&self.path)
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", zone)
            .output()
            .expect("fls is needed");
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| {
                let fields: Vec<&str> = line.split('|').collect();
                let path = fields[1].strip_prefix('/').unwrap();
                let special = path.starts_with('$') || path.ends_with(" (Volume Label Entry)");
                let number = |at: usize| fields[at].parse::<i64>().unwrap();
                (!special).then(|| (path.to_owned(), [6, 7, 8, 10].map(number)))
            })
            .collect()
    }

    pub(super) fn check(&self, program: &str) {
        run(program, &["-n", self.path.to_str().unwrap()]);
    }

    pub(super) fn blkid(&self, tag: &str) -> String {
        let output = Command::new("blkid")
            .args(["-p", "-o", "value", "-s", tag])
            .arg(&self.path)
            .output()
            .expect("blkid is needed");
        String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned()
    }

    /// Mounts it by exfat-fuse.
    pub(super) fn mount(&self, sector: u32, options: &str) -> Mount {
        let at = tempfile::tempdir_in(self.folder.path()).unwrap().keep();
        let device = Loop::new(&self.path, sector);
        run(
            "mount.exfat-fuse",
            &["-o", options, &device.0, at.to_str().unwrap()],
        );
        Mount {
            at,
            _device: device,
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }

    pub(super) fn patch(&self, at: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(&self.path).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    pub(super) fn source(&self) -> Arc<ImageFile> {
        Arc::new(ImageFile(File::open(&self.path).unwrap()))
    }

    pub(super) fn open(&self) -> Fat {
        self.open_with(Options::default())
    }

    pub(super) fn open_in(&self, zone: &str) -> Fat {
        self.open_with(Options {
            time_zone: parse_time_zone(zone).unwrap(),
            ..Options::default()
        })
    }

    pub(super) fn open_with(&self, options: Options) -> Fat {
        let mut head = [0; 8];
        let file = File::open(&self.path).unwrap();
        file.read_exact_at(&mut head, 3).unwrap();
        if head == *b"EXFAT   " {
            Fat::open_exfat(self.source(), options).unwrap()
        } else {
            Fat::open_vfat(self.source(), options).unwrap()
        }
    }
}

/// An image of which only the beginning is in memory; the rest is zeros.
pub(super) struct Head {
    pub(super) head: Vec<u8>,
    pub(super) size: u64,
}

impl BlockRead for Head {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(Error::corrupt("image", "a read past its end"));
        }
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let from = self.head.get(begin..).unwrap_or_default();
        let n = from.len().min(buf.len());
        buf[..n].copy_from_slice(&from[..n]);
        buf[n..].fill(0);
        Ok(())
    }
}

/// A loop device.
struct Loop(String);

impl Loop {
    fn new(image: &Path, sector: u32) -> Self {
        let output = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &sector.to_string()])
            .arg(image)
            .output()
            .unwrap();
        assert!(output.status.success(), "losetup: {output:?}");
        Self(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // What was written to it is in the image when this returns.
        let _ = File::open(&self.0).and_then(|device| device.sync_all());
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// An image mounted by exfat-fuse, until dropped.
pub(super) struct Mount {
    pub(super) at: PathBuf,
    _device: Loop,
}

impl Drop for Mount {
    fn drop(&mut self) {
        unmount(&self.at);
    }
}

/// Sets the time of last change, in seconds since 1970.
pub(super) fn set_time(path: &Path, seconds: u64) {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    let file = File::open(path).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(time).set_accessed(time))
        .unwrap();
}

/// Fills a folder with all kinds of names, sizes and times.
pub(super) fn fill(folder: &Path, cluster: usize) {
    let mut random = Random(7);
    let mut time = 1_000_000_000;
    let mut add = |path: String, data: &[u8]| {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, data).unwrap();
        time += 5_000_002;
        set_time(&path, time);
    };
    for size in [
        0,
        1,
        511,
        cluster - 1,
        cluster,
        cluster + 1,
        5 * cluster + 77,
    ] {
        add(format!("size {size}"), &random.bytes(size));
    }
    let longest = "\u{e4}".repeat(125) + ".txt";
    for name in [
        "UPPER.TXT",
        "lower.txt",
        "BASE.ext",
        "other.EXT",
        "MiXed.TxT",
        "NOEXT",
        "Grüße aus Köln.txt",
        "ÄÖÜ.TXT",
        "éàü long.txt",
        "日本語のファイル名.txt",
        "a.b.c.d",
        ".hidden",
        "with, comma; [brackets] = + signs",
        "exactly 13 un",
        "exactly 26 units in a name",
        longest.as_str(),
    ] {
        add(format!("names/{name}"), name.as_bytes());
    }
    for n in 0..120 {
        add(format!("many/a name of some length, number {n}"), b"x");
    }
    add("deep/er/and/Even Deeper/file".into(), b"deep");
    fs::create_dir(folder.join("empty folder")).unwrap();
}
