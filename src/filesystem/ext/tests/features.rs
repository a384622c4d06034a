//! What the kernel at hand does not mount, and what needs a certain state.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::image::{Image, Memory, Reader, bytes, many, run};
use super::walk;
use crate::error::{Error, Result};
use crate::filesystem::ext::Ext;
use crate::filesystem::{Extent, FileSystem};
use crate::image::BlockRead;

/// A folder on the host, put into an image by `mke2fs -d`; every file is read
/// back. For block sizes and features that the kernel does not mount.
fn made_from_folder(size: &str, options: &[&str]) -> Image {
    let source = tempfile::tempdir().expect("a folder");
    let from = source.path();
    many(&from.join("many"), 500);
    fs::create_dir(from.join("sub")).expect("a folder");
    for size in [0, 1, 60, 61, 150, 70_000, 1_000_000] {
        fs::write(from.join(format!("sub/size-{size}")), bytes(size, 3)).expect("a file");
    }
    std::os::unix::fs::symlink("t".repeat(40), from.join("short")).expect("a link");
    std::os::unix::fs::symlink("t".repeat(200), from.join("long")).expect("a link");
    let folder = from.to_str().expect("a path");
    let image = Image::make(size, &[&["-d", folder], options].concat());
    let reader = image.open();
    let mut checked = 0;
    let sub = reader.lookup(reader.root(), b"sub").expect("a folder");
    let many = reader.lookup(reader.root(), b"many").expect("a folder");
    for (dir, at) in [(sub, "sub"), (many, "many")] {
        for item in fs::read_dir(from.join(at)).expect("a listing") {
            let item = item.expect("an entry");
            let ino = reader
                .lookup(dir, item.file_name().as_bytes())
                .expect("a name");
            let expected = fs::read(item.path()).expect("a file");
            assert_eq!(
                whole(&reader, &image.reader(), ino).expect("content"),
                expected
            );
            checked += 1;
        }
    }
    assert!(checked > 400);
    let link = reader.lookup(reader.root(), b"long").expect("a link");
    assert_eq!(
        reader.read_link(link).expect("a target"),
        "t".repeat(200).into_bytes()
    );
    let link = reader.lookup(reader.root(), b"short").expect("a link");
    assert_eq!(
        reader.read_link(link).expect("a target"),
        "t".repeat(40).into_bytes()
    );
    walk::ours(&reader, &image.reader());
    image
}

fn whole(reader: &Ext, volume: &Reader, ino: u64) -> Result<Vec<u8>> {
    let (mut extents, mut content) = (Vec::new(), Vec::new());
    reader.extents(ino, 0, u64::MAX, &mut extents)?;
    for extent in extents {
        let start = content.len();
        match extent {
            Extent::Volume { offset, len } => {
                content.resize(start + len as usize, 0);
                volume.read_at(offset, &mut content[start..])?;
            }
            Extent::Hole { len } => content.resize(start + len as usize, 0),
            Extent::Bytes(bytes) => content.extend_from_slice(&bytes),
            other => panic!("{other:?}"),
        }
    }
    Ok(content)
}

#[test]
fn blocks_larger_than_a_page() {
    for size in ["8192", "16384", "32768", "65536"] {
        made_from_folder("500M", &["-t", "ext4", "-b", size]);
    }
    made_from_folder("500M", &["-t", "ext2", "-b", "65536"]);
}

#[test]
fn features_that_this_kernel_lacks() {
    made_from_folder("100M", &["-t", "ext4", "-O", "casefold"]);
    made_from_folder("100M", &["-t", "ext4", "-O", "quota,project"]);
}

#[test]
fn casefolded_folders_are_read_as_bytes() {
    let image = made_from_folder("100M", &["-t", "ext4", "-O", "casefold"]);
    image.debugfs("set_inode_field many flags 0x40081000");
    image.debugfs("set_inode_field sub flags 0x40080000");
    walk::ours(&image.open(), &image.reader());
}

#[test]
fn encrypted_files_are_refused_by_name() {
    let image = made_from_folder("100M", &["-t", "ext4", "-O", "encrypt"]);
    image.debugfs("set_inode_field sub/size-70000 flags 0x80800");
    image.debugfs("set_inode_field many flags 0x81800");
    let reader = image.open();
    let many = reader.lookup(reader.root(), b"many").expect("a folder");
    let sub = reader.lookup(reader.root(), b"sub").expect("a folder");
    let file = reader.lookup(sub, b"size-70000").expect("a file");
    assert_eq!(reader.attr(file).expect("attributes").size, 70_000);
    assert_eq!(reader.parent(many).expect("a parent"), reader.root());
    let refused = reader.extents(file, 0, 1, &mut Vec::new());
    assert!(
        matches!(refused, Err(Error::Unsupported { .. })),
        "{refused:?}"
    );
    let refused = reader.lookup(many, b"1-n");
    assert!(
        matches!(refused, Err(Error::Unsupported { .. })),
        "{refused:?}"
    );
    let refused = reader.read_dir(many, 0, &mut |_| std::ops::ControlFlow::Continue(()));
    assert!(
        matches!(refused, Err(Error::Unsupported { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_folder_of_ten_thousand_files() {
    let image = Image::make("200M", &["-t", "ext4", "-b", "1024", "-N", "40000"]);
    {
        let mount = image.mount("rw");
        many(&mount.path().join("many"), 12_000);
    }
    image.agrees();
}

/// A folder is damaged in its index only: names are found without it.
#[test]
fn a_damaged_index_is_not_needed() {
    let image = Image::make("100M", &["-t", "ext4", "-O", "^metadata_csum"]);
    {
        let mount = image.mount("rw");
        many(&mount.path().join("many"), 3000);
    }
    let reader = image.open();
    let dir = reader.lookup(reader.root(), b"many").expect("a folder");
    let inode = reader.folder(dir).expect("a folder");
    let mut root = None;
    reader
        .runs(&inode, 0..1, &mut |run| {
            root = Some(reader.byte_of(run.physical) as usize);
            std::ops::ControlFlow::Break(())
        })
        .expect("its first block");
    let mut raw = fs::read(&image.path).expect("the image");
    raw[root.expect("a block") + 28] = 99;
    let damaged = Ext::open(Arc::new(Memory(raw))).expect("the image opens");
    let inode = damaged.folder(dir).expect("a folder");
    assert!(damaged.find_indexed(&inode, b"1-n").is_err());
    damaged
        .lookup(dir, b"1-n")
        .expect("found without the index");
}

/// Copied while mounted, as a snapshot of a running guest is.
#[test]
fn an_image_in_use() {
    let image = Image::make("100M", &["-t", "ext4", "-b", "4096"]);
    let copy = {
        let mount = image.mount("rw,commit=100");
        many(&mount.path().join("on disk"), 2000);
        run("sync", &["-f".as_ref(), mount.path().as_os_str()]);
        many(&mount.path().join("in the journal"), 500);
        for number in (1..2000).step_by(13) {
            let padding = "n".repeat(number % 200);
            let _ = fs::remove_file(mount.path().join(format!("on disk/{number}-{padding}")));
        }
        fs::File::open(mount.path().join("on disk/1-n"))
            .or_else(|_| fs::File::open(mount.path().join("on disk/2-nn")))
            .and_then(|file| file.sync_all())
            .expect("a journal commit");
        image.copy()
    };
    let reader = copy.open();
    let notes = &reader.description().notes;
    assert!(
        notes
            .iter()
            .any(|note| note.contains("journal was not replayed")),
        "{notes:?}"
    );
    let mount = copy.mount("ro,noload");
    walk::compare(
        &walk::ours(&reader, &copy.reader()),
        &walk::kernel(mount.path()),
    );
}

#[test]
fn states_that_a_user_should_know_of() {
    let image = Image::make("20M", &["-t", "ext4", "-O", "^has_journal"]);
    image.debugfs("set_super_value state 2");
    let notes = image.open().description().notes.clone();
    assert!(
        notes
            .iter()
            .any(|note| note.contains("not unmounted cleanly")),
        "{notes:?}"
    );
    assert!(
        notes.iter().any(|note| note.contains("found errors")),
        "{notes:?}"
    );
    let mut raw = fs::read(&image.path).expect("the image");
    raw.truncate(10 << 20);
    let short = Ext::open(Arc::new(Memory(raw))).expect("a truncated volume");
    let notes = &short.description().notes;
    assert!(
        notes
            .iter()
            .any(|note| note.contains("10485760 bytes shorter")),
        "{notes:?}"
    );
}

#[test]
fn what_is_no_file_system_is_refused() {
    let journal = Image::make("20M", &["-O", "journal_dev", "-b", "4096"]);
    let refused = Ext::open(Arc::new(journal.reader())).err();
    assert!(
        matches!(refused, Some(Error::Unsupported { .. })),
        "{refused:?}"
    );
    let refused = Ext::open(Arc::new(Memory(vec![0; 4096]))).err();
    assert!(
        matches!(refused, Some(Error::Corrupt { .. })),
        "{refused:?}"
    );
    assert!(Ext::open(Arc::new(Memory(Vec::new()))).is_err());
}

#[test]
fn inodes_that_no_name_leads_to_are_not_found() {
    let image = Image::make("20M", &["-t", "ext4"]);
    let reader = image.open();
    for ino in [0, 1, 7, 8, 500, u64::from(u32::MAX), u64::MAX] {
        let answer = reader.attr(ino);
        assert!(
            matches!(answer, Err(Error::NotFound { .. })),
            "{ino}: {answer:?}"
        );
    }
    let root = reader.root();
    assert!(matches!(
        reader.extents(root, 0, 1, &mut vec![]),
        Err(Error::IsADirectory { .. })
    ));
    assert!(matches!(reader.read_link(root), Err(Error::Invalid(_))));
}

/// A reader that may not wait.
struct Impatient(Reader, std::sync::atomic::AtomicBool);

impl BlockRead for Impatient {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if self.1.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Error::WouldWait);
        }
        self.0.read_at(offset, buf)
    }
}

#[test]
fn having_to_wait_is_said_unchanged() {
    let image = Image::make("100M", &["-t", "ext4"]);
    {
        let mount = image.mount("rw");
        many(&mount.path().join("many"), 1000);
    }
    let volume = Arc::new(Impatient(image.reader(), false.into()));
    let reader = Ext::open(volume.clone()).expect("the image opens");
    let dir = reader.lookup(reader.root(), b"many").expect("a folder");
    volume.1.store(true, std::sync::atomic::Ordering::Relaxed);
    let would_wait = |error: Option<Error>| assert!(matches!(error, Some(Error::WouldWait)));
    would_wait(reader.attr(dir).err());
    would_wait(reader.lookup(dir, b"1-n").err());
    would_wait(reader.parent(dir).err());
    would_wait(
        reader
            .read_dir(dir, 0, &mut |_| std::ops::ControlFlow::Continue(()))
            .err(),
    );
    would_wait(reader.extents(dir, 0, 1, &mut Vec::new()).err());
    would_wait(reader.xattr_names(dir).err());
}
