//! Images: made by `mkfs`, mounted and filled by the kernel.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::fcntl::{AT_FDCWD, FallocateFlags, fallocate};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;

use crate::error::{Error, Result};
use crate::image::BlockRead;

/// Runs a program that must succeed; returns what it printed.
pub(in crate::filesystem) fn run(program: &str, args: &[&OsStr]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?}: {text}{errors}"
    );
    text
}

/// An image in a folder of its own, which goes with it.
pub(super) struct Image {
    folder: tempfile::TempDir,
    pub(super) path: PathBuf,
}

impl Image {
    /// `mke2fs` with `options` on a new sparse file.
    pub(super) fn make(size: &str, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("image");
        let mut args: Vec<&OsStr> = vec!["-q".as_ref(), "-F".as_ref()];
        args.extend(options.iter().map(AsRef::<OsStr>::as_ref));
        args.extend([path.as_os_str(), size.as_ref()]);
        run("mke2fs", &args);
        Self { folder, path }
    }

    /// A copy as it is now.
    pub(super) fn copy(&self) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("image");
        run(
            "cp",
            &[
                "--sparse=always".as_ref(),
                self.path.as_os_str(),
                path.as_os_str(),
            ],
        );
        Self { folder, path }
    }

    pub(super) fn mount(&self, options: &str) -> Mount {
        let path = self.folder.path().join("mount");
        fs::create_dir_all(&path).expect("a mountpoint");
        let options = format!("loop,{options}");
        let (image, at) = (self.path.as_os_str(), path.as_os_str());
        run(
            "mount",
            &[
                "-t".as_ref(),
                "ext4".as_ref(),
                "-o".as_ref(),
                options.as_ref(),
                image,
                at,
            ],
        );
        Mount(path)
    }

    /// `debugfs -w`: one command.
    pub(super) fn debugfs(&self, command: &str) {
        let args = [
            "-w".as_ref(),
            "-R".as_ref(),
            command.as_ref(),
            self.path.as_os_str(),
        ];
        run("debugfs", &args);
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

/// A mounted image; unmounted when dropped.
pub(in crate::filesystem) struct Mount(PathBuf);

impl Mount {
    /// What is mounted there already.
    pub(in crate::filesystem) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(in crate::filesystem) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

/// Unmounts what is not unmounted yet: all is written when this returns. A process
/// that another test is just starting may still hold files of the mount.
pub(in crate::filesystem) fn unmount(at: &Path) {
    for _ in 0..200 {
        let output = Command::new("umount").arg(at).output();
        let done = |output: Output| {
            output.status.success()
                || String::from_utf8_lossy(&output.stderr).contains("not mounted")
        };
        if output.is_ok_and(done) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(std::thread::panicking(), "{at:?} stays mounted");
}

/// An image file.
pub(in crate::filesystem) struct Reader {
    file: File,
    size: u64,
}

impl Reader {
    pub(in crate::filesystem) fn of(file: File) -> Self {
        let size = file.metadata().expect("its size").len();
        Self { file, size }
    }
}

impl BlockRead for Reader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        past_the_end(self.size, offset, buf)?;
        self.file
            .read_exact_at(buf, offset)
            .map_err(|error| Error::io("image", error))
    }
}

/// An image in memory.
pub(in crate::filesystem) struct Memory(pub(in crate::filesystem) Vec<u8>);

impl BlockRead for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        past_the_end(self.size(), offset, buf)?;
        let start = offset as usize;
        buf.copy_from_slice(&self.0[start..start + buf.len()]);
        Ok(())
    }
}

fn past_the_end(size: u64, offset: u64, buf: &[u8]) -> Result<()> {
    match offset.checked_add(buf.len() as u64) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::corrupt(
            "image",
            format!("byte {offset} is past its end"),
        )),
    }
}

/// Succeeds, or the file system has no such thing.
fn if_possible(what: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        let errno = error.raw_os_error().unwrap_or_default();
        let impossible = [
            libc::EOPNOTSUPP,
            libc::ENOSPC,
            libc::EFBIG,
            libc::E2BIG,
            libc::ERANGE,
            libc::EINVAL,
        ];
        assert!(impossible.contains(&errno), "{what}: {error}");
    }
}

/// Fills a mounted file system with one of everything.
pub(in crate::filesystem) fn populate(root: &Path) {
    names(&root.join("names"));
    content(&root.join("content"));
    special(&root.join("special"));
    times(&root.join("times"));
    attributes(&root.join("attributes"));
    many(&root.join("many"), 3000);
    let mut deep = root.join("deep");
    for level in 0..40 {
        fs::create_dir(&deep).expect("a folder");
        deep = deep.join(format!("level-{level}"));
    }
    for flag in ["+i", "+a"] {
        let path = root.join(format!("flag{flag}"));
        fs::write(&path, flag).expect("a file");
        run("chattr", &[flag.as_ref(), path.as_os_str()]);
    }
}

fn names(dir: &Path) {
    fs::create_dir(dir).expect("a folder");
    for byte in (1..=255u8).filter(|byte| !b"/.".contains(byte)) {
        fs::write(dir.join(OsStr::from_bytes(&[byte])), [byte]).expect("a file");
    }
    for name in [[b'x'; 255], [0xfe; 255]] {
        fs::write(dir.join(OsStr::from_bytes(&name)), name).expect("a file");
    }
    for name in ["two\nlines", "...", "  ", "Ünïcode", "日本語"] {
        fs::create_dir(dir.join(name)).expect("a folder");
    }
    for link in 0..20 {
        fs::hard_link(dir.join("a"), dir.join(format!("link to a {link}"))).expect("a link");
    }
}

/// Different in each block, so that a block in the wrong place shows.
pub(in crate::filesystem) fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
    }
    out.truncate(len);
    out
}

fn content(dir: &Path) {
    fs::create_dir(dir).expect("a folder");
    for size in [
        0, 1, 59, 60, 61, 100, 150, 500, 1023, 1024, 1025, 4096, 12289, 300_000,
    ] {
        fs::write(dir.join(format!("size-{size}")), bytes(size, size as u64)).expect("a file");
    }
    let write = |file: &File, at: u64, data: &[u8]| file.write_all_at(data, at);
    let sparse = File::create(dir.join("sparse")).expect("a file");
    for at in [0, 1 << 20, 100 << 20, (2 << 30) - 5, 5 << 30] {
        if_possible("sparse", write(&sparse, at, &bytes(5000, at)));
    }
    let hole = File::create(dir.join("nothing but a hole")).expect("a file");
    hole.set_len(2 << 30).expect("a hole");
    let leading = File::create(dir.join("data after a hole")).expect("a file");
    leading.write_all_at(b"end", 77 << 20).expect("data");
    let tail = File::create(dir.join("hole after data")).expect("a file");
    tail.write_all_at(&bytes(10_000, 7), 0).expect("data");
    tail.set_len(1_000_003).expect("a hole");
    let unwritten = File::create(dir.join("unwritten")).expect("a file");
    if_possible(
        "fallocate",
        fallocate(&unwritten, FallocateFlags::empty(), 0, 1 << 20).map_err(Into::into),
    );
    unwritten
        .write_all_at(&bytes(9000, 8), 300_000)
        .expect("data");
    let beyond = File::create(dir.join("allocated past the end")).expect("a file");
    beyond.write_all_at(&bytes(9000, 9), 0).expect("data");
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    if_possible(
        "fallocate",
        fallocate(&beyond, keep, 0, 1 << 20).map_err(Into::into),
    );
    // Every second block: thousands of extents, a tree of two levels.
    let pieces = File::create(dir.join("pieces")).expect("a file");
    for piece in 0..2500u64 {
        pieces
            .write_all_at(&bytes(4096, piece), piece * 8192 + 8192)
            .expect("data");
    }
    let punched = File::create(dir.join("punched")).expect("a file");
    punched.write_all_at(&bytes(4 << 20, 10), 0).expect("data");
    punched.sync_all().expect("data");
    for piece in (0..512).step_by(2) {
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep;
        let at = piece * 8192;
        if_possible(
            "punch",
            fallocate(&punched, punch, at, 8192).map_err(Into::into),
        );
    }
}

fn special(dir: &Path) {
    fs::create_dir(dir).expect("a folder");
    for len in [1, 10, 58, 59, 60, 61, 70, 100, 150, 900] {
        let target = OsStr::from_bytes(&[0xe9; 900][..len]).to_owned();
        symlink(target, dir.join(format!("link-{len}"))).expect("a link");
    }
    let node = |name: &str, kind: SFlag, major: u32, minor: u32| {
        let device = libc::makedev(major, minor);
        let made = mknod(
            &dir.join(name),
            kind,
            Mode::from_bits_truncate(0o640),
            device,
        );
        // XFS has fewer bits for the major number.
        if_possible("a node", made.map_err(Into::into));
    };
    node("fifo", SFlag::S_IFIFO, 0, 0);
    node("socket", SFlag::S_IFSOCK, 0, 0);
    node("null", SFlag::S_IFCHR, 1, 3);
    node("zero", SFlag::S_IFCHR, 0, 0);
    node("sda1", SFlag::S_IFBLK, 8, 1);
    node("255", SFlag::S_IFBLK, 255, 255);
    node("256", SFlag::S_IFBLK, 255, 256);
    node("259", SFlag::S_IFBLK, 259, 70_000);
    node("largest", SFlag::S_IFCHR, 4095, 1_048_575);
    for mode in [0o4755, 0o2755, 0o1777, 0o7777, 0o000, 0o111] {
        let path = dir.join(format!("mode-{mode:o}"));
        fs::write(&path, "mode").expect("a file");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a mode");
    }
    for owner in [1, 65_535, 65_536, 70_000, 4_294_967_293] {
        let path = dir.join(format!("owner-{owner}"));
        fs::write(&path, "owner").expect("a file");
        lchown(&path, Some(owner), Some(owner - 1)).expect("an owner");
    }
}

fn times(dir: &Path) {
    fs::create_dir(dir).expect("a folder");
    for seconds in [
        -0x8000_0000,
        -0x7fff_ffff,
        -1,
        0,
        1,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x1_0000_0000,
        0x1_8000_0000,
        0x2_8000_0000,
        0x3_7fff_ffff_i64,
    ] {
        for nanoseconds in [0, 1, 500_000_000, 999_999_999] {
            let path = dir.join(format!("{seconds}.{nanoseconds}"));
            fs::write(&path, "time").expect("a file");
            let (mtime, atime) = (
                TimeSpec::new(seconds, nanoseconds),
                TimeSpec::new(seconds, 999_999_999),
            );
            utimensat(
                AT_FDCWD,
                &path,
                &atime,
                &mtime,
                UtimensatFlags::NoFollowSymlink,
            )
            .expect("times");
        }
    }
}

fn attributes(dir: &Path) {
    fs::create_dir(dir).expect("a folder");
    let set = |path: &Path, name: &[u8], value: &[u8]| {
        if_possible("xattr", xattr::set(path, OsStr::from_bytes(name), value));
    };
    let small = dir.join("small");
    fs::write(&small, "small").expect("a file");
    set(&small, b"user.a", b"1");
    set(&small, b"user.empty", b"");
    set(&small, b"user.\xff\xfe not utf-8", b"\0\xff");
    set(&small, b"trusted.t", b"trusted");
    set(&small, b"security.selinux", b"system_u:object_r:etc_t:s0\0");
    let block = dir.join("block");
    fs::write(&block, "block").expect("a file");
    for number in 0..12u8 {
        set(
            &block,
            format!("user.number {number}").as_bytes(),
            &[number; 60],
        );
    }
    for len in [200, 900, 3000, 4000, 5000, 60_000, 65_536] {
        let path = dir.join(format!("value-{len}"));
        fs::write(&path, "value").expect("a file");
        set(&path, b"user.value", &bytes(len, 11));
        set(&path, b"user.other", b"other");
    }
    // The same block of attributes for several inodes.
    for number in 0..5 {
        let path = dir.join(format!("shared-{number}"));
        fs::write(&path, "shared").expect("a file");
        set(&path, b"user.shared", &[5; 700]);
    }
    let link = dir.join("link");
    symlink("nowhere", &link).expect("a link");
    set(&link, b"trusted.of a link", b"yes");
    set(&link, b"security.large", &[6; 800]);
    let folder = dir.join("folder");
    fs::create_dir(&folder).expect("a folder");
    set(&folder, b"user.of a folder", b"yes");
    for (path, acl) in [(&small, "u:1000:rw,g:70000:r,m::rwx"), (&block, "u:0:---")] {
        run("setfacl", &["-m".as_ref(), acl.as_ref(), path.as_os_str()]);
    }
    let acl = "u:4000000000:rwx,d:u:1000:rwx,d:g:5:r,d:m::rwx";
    run(
        "setfacl",
        &["-m".as_ref(), acl.as_ref(), folder.as_os_str()],
    );
    fs::write(folder.join("heir"), "inherits").expect("a file");
    fs::create_dir(folder.join("heir folder")).expect("a folder");
}

/// A folder of many files, some deleted again; long names make the index deep.
pub(in crate::filesystem) fn many(dir: &Path, count: u32) {
    fs::create_dir(dir).expect("a folder");
    for number in 0..count {
        let padding = "n".repeat((number % 200) as usize);
        fs::write(
            dir.join(format!("{number}-{padding}")),
            number.to_le_bytes(),
        )
        .expect("a file");
    }
    for number in (0..count).step_by(7) {
        let padding = "n".repeat((number % 200) as usize);
        let gone = fs::remove_file(dir.join(format!("{number}-{padding}")));
        assert!(gone.map_err(|error| error.kind()) != Err(ErrorKind::NotFound));
    }
}
