//! Large compressed files: how they reach us.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::content::text;
use super::pool::{Files, Pool};
use crate::error::Result;
use crate::filesystem::btrfs::Btrfs;
use crate::filesystem::{FileSystem, Source};
use crate::image::BlockRead;

/// Tells reads through the block cache from those past it.
struct Counting {
    files: Files,
    cached: AtomicU64,
    direct: AtomicU64,
}

impl BlockRead for Counting {
    fn size(&self) -> u64 {
        self.files.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.cached.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.files.read_at(offset, buf)
    }

    fn read_data_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.direct.fetch_add(1, Ordering::Relaxed);
        self.files.read_at(offset, buf)
    }
}

#[test]
fn it_leaves_the_cache_alone() {
    const LEN: usize = 8 << 20;
    let pool = Pool::make(1, 300 << 20, &[]);
    {
        let mount = pool.mount("compress-force=zstd");
        fs::write(mount.path().join("large"), text(LEN, 1)).expect("a file");
        fs::write(mount.path().join("small"), text(60_000, 2)).expect("a file");
    }
    let volume = Arc::new(Counting {
        files: pool.reader(),
        cached: AtomicU64::new(0),
        direct: AtomicU64::new(0),
    });
    let fs = Btrfs::open(Source {
        volume: Arc::clone(&volume) as Arc<dyn BlockRead>,
        members: Vec::new(),
    })
    .expect("it opens");
    let read = |name: &[u8], len: usize| {
        let ino = fs.lookup(fs.root(), name).expect("a file");
        let mut all = vec![0; len];
        for (n, part) in all.chunks_mut(1 << 20).enumerate() {
            let at = (n as u64) << 20;
            assert_eq!(fs.read(ino, at, part).expect("data"), part.len());
        }
        all
    };
    let before = volume.cached.load(Ordering::Relaxed);
    assert!(read(b"large", LEN) == text(LEN, 1));
    // Two or three megabytes it is on disk; only metadata goes through the cache,
    // and a mebibyte of the file is one request, perhaps two.
    let cached = volume.cached.load(Ordering::Relaxed) - before;
    assert!(cached < 500_000, "{cached}");
    let direct = volume.direct.load(Ordering::Relaxed);
    assert!((1..=20).contains(&direct), "{direct}");
    assert!(read(b"small", 60_000) == text(60_000, 2));
    assert_eq!(volume.direct.load(Ordering::Relaxed), direct);
}
