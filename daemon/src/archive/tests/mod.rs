//! Archives of real trees, as other people's programs read them.

mod failing;
mod large;
mod restored;
mod selected;
mod speed;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::*;

/// An archive goes into a file.
struct ToFile(File);

impl Output for ToFile {
    fn put(&mut self, piece: Bytes) -> io::Result<()> {
        assert!(piece.len() <= 128 * 1024);
        // Zeros need no room.
        if piece.iter().all(|byte| *byte == 0) {
            let end = self.0.seek(SeekFrom::Current(piece.len() as i64))?;
            return self.0.set_len(end);
        }
        self.0.write_all(&piece)
    }
}

/// The paths `/a/b` below `root` as a job.
fn job(root: &Path, paths: &[&[u8]], format: Format) -> Job {
    let parts = |path: &&[u8]| -> Vec<Vec<u8>> {
        let names = path.split(|byte| *byte == b'/');
        names
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect()
    };
    Job {
        root: Beneath::at(root).unwrap(),
        paths: paths.iter().map(parts).collect(),
        format,
        limit: None,
    }
}

/// Writes an archive into `file`.
fn pack_job(job: &Job, file: &Path) -> Result<Summary> {
    let pool = Pool::with_threads(3).unwrap();
    let mut output = ToFile(File::create(file).unwrap());
    let summary = write(job, &pool, &mut output, &AtomicBool::new(false))?;
    assert_eq!(summary.written, output.0.metadata().unwrap().len());
    Ok(summary)
}

fn pack(root: &Path, paths: &[&[u8]], format: Format, file: &Path) -> Summary {
    pack_job(&job(root, paths, format), file).unwrap()
}

/// Runs a line of bash in a folder; what it prints.
fn shell_in(folder: &Path, script: &str) -> String {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(folder)
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "Pacific/Auckland")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{script}\n{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// What can be seen of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    /// `f`, `d`, `l`, `p`, `c`, `b`, `s`.
    kind: char,
    mode: u32,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    size: u64,
    /// A digest of the data, or a link's target.
    content: Vec<u8>,
    owner: (u32, u32),
    device: u64,
    /// The first name of the same file.
    first: PathBuf,
    /// 512-byte blocks.
    blocks: u64,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Everything below `root`.
fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut firsts = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    let mut all = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                folders.push(path.clone());
            }
            all.push(path);
        }
    }
    all.sort();
    for path in all {
        let data = path.symlink_metadata().unwrap();
        let kind = data.file_type();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let (letter, content) = if kind.is_dir() {
            ('d', Vec::new())
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).unwrap();
            ('l', target.as_os_str().as_bytes().to_vec())
        } else if kind.is_file() {
            let mut digest = Sha256::new();
            io::copy(&mut File::open(&path).unwrap(), &mut Sum(&mut digest)).unwrap();
            ('f', digest.finalize().to_vec())
        } else if kind.is_fifo() {
            ('p', Vec::new())
        } else if kind.is_char_device() {
            ('c', Vec::new())
        } else if kind.is_block_device() {
            ('b', Vec::new())
        } else {
            ('s', Vec::new())
        };
        let attributes = xattr::list(&path).unwrap().map(|key| {
            let value = xattr::get(&path, &key).unwrap().unwrap();
            (key.as_bytes().to_vec(), value)
        });
        let first = firsts.entry(data.ino()).or_insert_with(|| name.clone());
        let what = Seen {
            kind: letter,
            mode: data.mode() & 0o7777,
            modified: (data.mtime(), data.mtime_nsec()),
            size: if letter == 'd' { 0 } else { data.size() },
            content,
            owner: (data.uid(), data.gid()),
            device: data.rdev(),
            first: first.clone(),
            blocks: if letter == 'f' { data.blocks() } else { 0 },
            attributes: attributes.collect(),
        };
        seen.insert(name, what);
    }
    seen
}

struct Sum<'a>(&'a mut Sha256);

impl Write for Sum<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Both trees are the same, and what differs is named.
fn assert_same(wanted: &BTreeMap<PathBuf, Seen>, got: &BTreeMap<PathBuf, Seen>, who: &str) {
    let names = |seen: &BTreeMap<PathBuf, Seen>| seen.keys().cloned().collect::<Vec<_>>();
    let (wanted_names, got_names) = (names(wanted), names(got));
    let differ = wanted_names.iter().zip(&got_names).find(|(a, b)| a != b);
    assert_eq!(differ, None, "{who}");
    assert_eq!(wanted_names.len(), got_names.len(), "{who}");
    for (path, wanted) in wanted {
        assert_eq!(wanted, &got[path], "{who}: {path:?}");
    }
}
