//! A disk over the block cache: what it reads, and by how many requests.

use super::*;
use crate::image::cache::PAGE;
use crate::image::{BlockCache, BlockRead, Disk, patience};

fn disk(export: Arc<Export>, cache: &Arc<BlockCache>) -> Disk {
    Disk::new(1, export, Arc::clone(cache))
}

#[test]
fn moving_forward_fetches_more_and_more_at_once() {
    let place = Place::new();
    let image = place.image();
    let truth = place.raw(&image);
    let export = Export::open(&image, "qcow2", &place.options()).unwrap();
    let cache = BlockCache::new(16 << 20);
    let disk = disk(export, &cache);
    let before = disk.export().requests();
    let mut buf = vec![0; 5000];
    for at in (0..truth.len()).step_by(5000) {
        let len = buf.len().min(truth.len() - at);
        disk.read_at(at as u64, &mut buf[..len]).unwrap();
        assert!(buf[..len] == truth[at..at + len], "{len} at {at}");
    }
    // Two for each 17 pages of the 1,024, and some to begin with.
    let requests = disk.export().requests() - before;
    assert!(requests < 150, "{requests} requests");
    assert!(cache.figures().bytes <= 16 << 20);
    // Here and there nothing is fetched that was not asked for.
    let before = disk.export().requests();
    for page in [900u64, 100, 500, 300] {
        disk.read_at(page * PAGE, &mut buf).unwrap();
    }
    assert!(disk.export().requests() - before <= 4);
}

#[test]
fn what_was_announced_is_there_without_waiting() {
    let place = Place::new();
    let image = place.image();
    let truth = place.raw(&image);
    let export = Export::open(&image, "qcow2", &place.options()).unwrap();
    let cache = BlockCache::new(16 << 20);
    let disk = disk(export, &cache);
    let (at, len) = (32 << 20, 300_000);
    let mut buf = vec![0; len];
    // Who must not wait does not send either.
    let before = disk.export().requests();
    patience::without_waiting(|| disk.will_need(at, len as u64)).expect("it did not wait");
    assert_eq!(disk.export().requests(), before);
    disk.will_need(at, len as u64);
    disk.will_need(at, len as u64);
    eventually("it arrives", || {
        patience::without_waiting(|| disk.read_at(at, &mut buf)).is_some_and(|read| read.is_ok())
    });
    assert!(buf == truth[at as usize..][..len]);
    assert_eq!(disk.export().requests() - before, 1);
    // Past the end there is nothing to fetch; of much only the beginning is.
    disk.will_need(truth.len() as u64, 1 << 30);
    disk.will_need(u64::MAX - 5, u64::MAX);
    assert_eq!(disk.export().requests() - before, 1);
    disk.will_need(0, u64::MAX);
    eventually("1 MiB arrives", || cache.figures().bytes == 21 * PAGE);
    // Data leaves the cache alone, and always waits.
    let filled = cache.figures();
    disk.read_data_at(at, &mut buf).unwrap();
    disk.read_data_at(10_000_000, &mut buf).unwrap();
    assert!(buf == truth[10_000_000..][..len]);
    assert_eq!(cache.figures().bytes, filled.bytes);
    assert!(patience::without_waiting(|| disk.read_data_at(at, &mut buf)).is_none());
    assert!(disk.read_data_at(truth.len() as u64 - 5, &mut buf).is_err());
}

#[test]
fn a_page_that_cannot_be_read_costs_its_neighbours_nothing() {
    let place = Place::new();
    // Page 10 of a disk of letters is bad.
    let script = r#"pread=
        if [ $4 -lt 720896 ] && [ $(( $4 + $3 )) -gt 655360 ]; then echo 'EIO bad' >&2; exit 1; fi
        head -c $3 /dev/zero | tr '\0' x"#;
    let arguments = ["eval", "get_size=echo 8M", script];
    let export = place.nbdkit(&arguments, &place.options()).unwrap();
    let disk = disk(export, &BlockCache::new(16 << 20));
    let mut buf = vec![0; 1000];
    for _ in 0..3 {
        disk.will_need(0, 1 << 20);
        for page in 0..16 {
            let read = disk.read_at(page * PAGE, &mut buf);
            assert_eq!(read.is_ok(), page != 10, "page {page}: {read:?}");
        }
    }
    assert!(buf.iter().all(|byte| *byte == b'x'));
}
