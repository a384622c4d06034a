//! Damaged images: an error at worst, soon, and without much memory.

use std::collections::HashSet;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, symlink};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::content::text;
use super::pool::Pool;
use crate::error::{Error, Result};
use crate::filesystem::btrfs::Btrfs;
use crate::filesystem::btrfs::checksum::Checksum;
use crate::filesystem::ext::tests::image::{Memory, bytes};
use crate::filesystem::{Extent, FileSystem, Source};
use crate::image::BlockRead;

/// An image in memory, some stretches of which are others.
struct Patched {
    whole: Arc<Memory>,
    patches: Vec<(u64, Vec<u8>)>,
}

impl BlockRead for Patched {
    fn size(&self) -> u64 {
        self.whole.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.whole.read_at(offset, buf)?;
        for (at, patch) in &self.patches {
            let (from, to) = (
                offset.max(*at),
                (offset + buf.len() as u64).min(at + patch.len() as u64),
            );
            if from < to {
                let part = &patch[(from - at) as usize..(to - at) as usize];
                buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
            }
        }
        Ok(())
    }
}

/// A small image with a bit of everything.
fn small(options: &[&str]) -> Arc<Memory> {
    let pool = Pool::make(1, 120 << 20, options);
    {
        let mount = pool.mount("compress-force=zstd");
        let root = mount.path();
        mount.btrfs(&["subvolume", "create"], "sub");
        mount.btrfs(&["subvolume", "create"], "sub/nested");
        fs::create_dir_all(root.join("sub/many")).expect("a folder");
        for n in 0..150u64 {
            let name = format!("sub/many/{n}-{}", "n".repeat(n as usize));
            fs::write(root.join(&name), text(n as usize * 50, n)).expect("a file");
            xattr::set(root.join(&name), "user.a", &[7; 40]).expect("an attribute");
        }
        for method in ["zlib", "lzo", "zstd"] {
            let path = root.join(method);
            fs::write(&path, "").expect("a file");
            xattr::set(&path, "btrfs.compression", method.as_bytes()).expect("a property");
            fs::write(&path, text(300_000, 7)).expect("a file");
        }
        fs::write(root.join("plain"), bytes(20_000, 9)).expect("a file");
        let pieces = fs::File::create(root.join("pieces")).expect("a file");
        for n in 0..200 {
            pieces
                .write_all_at(&bytes(4096, n), n * 8192)
                .expect("data");
        }
        fs::hard_link(root.join("pieces"), root.join("link")).expect("a link");
        symlink("t".repeat(90), root.join("symlink")).expect("a link");
        let from = root.join("sub");
        let from = from.to_str().expect("a path");
        mount.btrfs(&["subvolume", "snapshot", from], "snapshot");
    }
    Arc::new(Memory(fs::read(&pool.devices[0]).expect("the image")))
}

fn open(whole: &Arc<Memory>, patches: Vec<(u64, Vec<u8>)>) -> Result<Btrfs> {
    let whole = Arc::clone(whole);
    Btrfs::open(Source {
        volume: Arc::new(Patched { whole, patches }),
        members: Vec::new(),
    })
}

/// Everything that can be asked, of everything that can be reached.
fn touch(fs: &Btrfs) -> usize {
    let (mut seen, mut todo, mut asked) = (HashSet::new(), vec![fs.root()], 0);
    while let Some(ino) = todo.pop() {
        asked += 1;
        let size = fs.attr(ino).map_or(0, |attr| attr.size);
        for name in fs.xattr_names(ino).unwrap_or_default() {
            let _ = fs.xattr(ino, &name);
        }
        let _ = fs.read_link(ino);
        let mut extents = Vec::new();
        let _ = fs.extents(ino, 0, u64::MAX, &mut extents);
        assert!(extents.len() < 100_000);
        let mut buf = vec![0; 500_000];
        for at in [0, 4000, size.saturating_sub(1000)] {
            let _ = fs.read(ino, at, &mut buf);
        }
        let _ = fs.parent(ino);
        let mut names = Vec::new();
        let _ = fs.read_dir(ino, 0, &mut |entry| {
            names.push((entry.ino, entry.name.to_vec()));
            if names.len() < 100_000 {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        assert!(names.len() < 100_000);
        for (child, name) in names {
            let _ = fs.lookup(ino, &name);
            if seen.insert(child) {
                todo.push(child);
            }
        }
        let _ = fs.lookup(ino, b"not there");
    }
    asked
}

/// Random numbers.
struct Numbers(std::vec::IntoIter<u8>);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        let raw: Vec<u8> = self.0.by_ref().take(8).collect();
        u64::from_le_bytes(raw.try_into().expect("8")) as usize % limit
    }
}

fn spoil(raw: &mut [u8], from: usize, numbers: &mut Numbers) {
    // Where something is: zeros are mostly unused.
    let used: Vec<usize> = (from..raw.len()).filter(|at| raw[*at] != 0).collect();
    for _ in 0..=numbers.below(8) {
        // Half of it in the header and the first items.
        let near = used.len().min(200);
        let range = if numbers.below(2) == 0 {
            near
        } else {
            used.len()
        };
        let at = used[numbers.below(range)];
        raw[at] = match numbers.below(4) {
            0 => 0,
            1 => 0xff,
            2 => raw[at] ^ (1 << numbers.below(8)),
            _ => numbers.below(256) as u8,
        };
    }
}

#[test]
fn damage_under_right_checksums_ends_in_errors() {
    let images = [
        small(&["-m", "single", "-n", "4096"]),
        small(&["--mixed"]),
        small(&["-m", "dup", "-O", "^no-holes"]),
    ];
    let mut refused = 0;
    let mut differs = 0;
    let whole: Vec<(usize, Vec<(u64, usize)>)> = images
        .iter()
        .map(|image| {
            let fs = open(image, Vec::new()).expect("it opens");
            let asked = touch(&fs);
            assert!(asked > 300, "{asked}");
            // All nodes that are in use, each at its first copy.
            let nodes = fs.nodes.addresses().into_iter().map(|logical| {
                let mut pieces = Vec::new();
                fs.nodes
                    .chunks
                    .map(logical, 1, 0, &mut pieces)
                    .expect("a place");
                (pieces[0].offset, fs.nodes.node_size)
            });
            (asked, nodes.collect())
        })
        .collect();
    for seed in 0..200u64 {
        let (image, (asked, nodes)) = (&images[seed as usize % 3], &whole[seed as usize % 3]);
        let mut numbers = Numbers(bytes(8 * 500, seed + 1).into_iter());
        let mut patches = Vec::new();
        for _ in 0..=numbers.below(3) {
            let (at, len) = if numbers.below(20) == 0 {
                (64 << 10, 4096)
            } else {
                nodes[numbers.below(nodes.len())]
            };
            let mut raw = vec![0; len];
            image.read_at(at, &mut raw).expect("a node");
            spoil(&mut raw, 0x40, &mut numbers);
            let sum = Checksum::Crc32c.of(&raw[32..]);
            raw[..32].copy_from_slice(&sum);
            patches.push((at, raw));
        }
        let (image, asked) = (Arc::clone(image), *asked);
        let (sender, done) = mpsc::channel();
        let walker = std::thread::spawn(move || {
            let reached = open(&image, patches).map(|fs| touch(&fs));
            let _ = sender.send(reached.map(|reached| reached != asked));
        });
        match done.recv_timeout(Duration::from_secs(10)) {
            Ok(outcome) => {
                walker.join().expect("no panic");
                match outcome {
                    Ok(true) => differs += 1,
                    Ok(false) => {}
                    Err(Error::Corrupt { .. } | Error::Unsupported { .. }) => refused += 1,
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("seed {seed} hangs"),
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("seed {seed} panics"),
        }
    }
    // Most of it was seen past the checksums, and did something.
    assert!(refused < 120, "{refused}");
    assert!(differs > 20, "{differs}");
}

#[test]
fn damaged_data_is_not_shown() {
    let image = small(&["-m", "single"]);
    let whole = open(&image, Vec::new()).expect("it opens");
    for name in ["zlib", "lzo", "zstd"] {
        let ino = whole.lookup(whole.root(), name.as_bytes()).expect("a file");
        let mut expected = vec![0; 300_000];
        assert_eq!(whole.read(ino, 0, &mut expected).expect("data"), 300_000);
        let inode = whole
            .file(&whole.place(ino).expect("a place"))
            .expect("a file");
        let place = whole.first_place(&inode).expect("an extent");
        for seed in 0..60 {
            let mut raw = vec![0; 4096];
            image.read_at(place, &mut raw).expect("data");
            let mut numbers = Numbers(bytes(8 * 100, seed + 1).into_iter());
            spoil(&mut raw, 0, &mut numbers);
            let mut fs = open(&image, vec![(place, raw)]).expect("it opens");
            let mut buf = vec![0; 300_000];
            match fs.read(ino, 0, &mut buf) {
                Ok(_) => assert!(buf == expected, "damage that was seen as data"),
                Err(error) => assert!(error.to_string().contains("checksum"), "{error}"),
            }
            // Without checksums the decoders have to bear it.
            fs.checksums = None;
            let _ = fs.read(ino, 0, &mut buf);
        }
    }
    let ino = whole.lookup(whole.root(), b"plain").expect("a file");
    let inode = whole
        .file(&whole.place(ino).expect("a place"))
        .expect("a file");
    let place = whole.first_place(&inode).expect("an extent");
    let mut extents = Vec::new();
    whole
        .extents(ino, 5000, 9000, &mut extents)
        .expect("extents");
    let expected = bytes(20_000, 9)[5000..14_000].to_vec();
    assert_eq!(extents, [Extent::Bytes(expected.into())]);
    let fs = open(&image, vec![(place + 8192, vec![1])]).expect("it opens");
    let outcome = fs.extents(ino, 5000, 9000, &mut extents);
    assert!(matches!(outcome, Err(Error::Corrupt { .. })), "{outcome:?}");
    assert!(fs.extents(ino, 0, 8192, &mut extents).is_ok());
}

/// An image that refuses one read.
struct Reluctant {
    whole: Arc<Memory>,
    /// Reads until then.
    left: AtomicI64,
}

impl BlockRead for Reluctant {
    fn size(&self) -> u64 {
        self.whole.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Err(Error::WouldWait);
        }
        self.whole.read_at(offset, buf)
    }
}

#[test]
fn what_would_wait_says_so_and_is_forgotten() {
    let image = small(&["-m", "dup"]);
    let reluctant = |left| {
        let whole = Arc::clone(&image);
        let left = AtomicI64::new(left);
        let volume = Arc::new(Reluctant { whole, left });
        let source = Source {
            volume: Arc::clone(&volume) as Arc<dyn BlockRead>,
            members: Vec::new(),
        };
        (volume, Btrfs::open(source))
    };
    let mut refused = 0;
    for left in 0.. {
        match reluctant(left).1 {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, Error::WouldWait), "{error}"),
        }
        refused += 1;
    }
    assert!(refused >= 5, "{refused}");
    type Ask = fn(&Btrfs) -> Result<Vec<u8>>;
    let find = |fs: &Btrfs, path: &str| {
        path.split('/')
            .try_fold(fs.root(), |dir, name| fs.lookup(dir, name.as_bytes()))
    };
    let asks: [(&str, Ask); 6] = [
        ("sub/many", |fs| {
            let dir = fs.lookup(fs.lookup(fs.root(), b"sub")?, b"many")?;
            let mut names = Vec::new();
            fs.read_dir(dir, 0, &mut |entry| {
                names.extend(entry.name);
                ControlFlow::Continue(())
            })?;
            Ok(names)
        }),
        ("zlib", |fs| read(fs, b"zlib")),
        ("zstd", |fs| read(fs, b"zstd")),
        ("pieces", |fs| read(fs, b"pieces")),
        ("symlink", |fs| {
            fs.read_link(fs.lookup(fs.root(), b"symlink")?)
        }),
        ("snapshot/nested", |fs| {
            let stub = fs.lookup(fs.lookup(fs.root(), b"snapshot")?, b"nested")?;
            Ok(format!("{:?} {}", fs.attr(stub)?, fs.parent(stub)?).into())
        }),
    ];
    for (path, ask) in asks {
        let whole = open(&image, Vec::new()).expect("it opens");
        assert!(find(&whole, path).is_ok(), "{path}");
        let expected = ask(&whole).expect("an answer");
        for left in 0..10_000 {
            let (volume, fs) = reluctant(i64::MAX);
            let fs = fs.expect("it opens");
            volume.left.store(left, Ordering::Relaxed);
            let first = ask(&fs);
            volume.left.store(i64::MAX, Ordering::Relaxed);
            match &first {
                Ok(answer) => assert!(*answer == expected, "{path}"),
                Err(error) => assert!(matches!(error, Error::WouldWait), "{path}: {error}"),
            }
            assert!(ask(&fs).expect("an answer") == expected, "{path}");
            if first.is_ok() {
                break;
            }
        }
    }
}

fn read(fs: &Btrfs, name: &[u8]) -> Result<Vec<u8>> {
    let mut buf = vec![0; 400_000];
    let n = fs.read(fs.lookup(fs.root(), name)?, 0, &mut buf)?;
    buf.truncate(n);
    Ok(buf)
}
