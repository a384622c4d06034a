//! Where bytes lie, by arithmetic, against memory.

use super::*;
use crate::error::Error;
use parking_lot::Mutex;

/// Bytes in memory that count how often they are read.
struct Memory {
    bytes: Vec<u8>,
    reads: Mutex<Vec<(u64, usize)>>,
}

impl Memory {
    fn new(len: usize, seed: usize) -> Arc<Self> {
        let bytes = (0..len)
            .map(|i| ((i * 31 + i / 251 + seed) % 256) as u8)
            .collect();
        Arc::new(Self {
            bytes,
            reads: Mutex::default(),
        })
    }
}

impl BlockRead for Memory {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.reads.lock().push((offset, buf.len()));
        let at = offset as usize;
        let bytes = self.bytes.get(at..at + buf.len());
        buf.copy_from_slice(bytes.ok_or_else(|| Error::corrupt("memory", "past the end"))?);
        Ok(())
    }
}

fn runs(mapping: &Mapping, offset: u64, len: u64) -> Vec<(usize, u64, u64)> {
    let mut out = Vec::new();
    mapping.runs(offset, len, &mut out).unwrap();
    out.iter().map(|r| (r.device, r.offset, r.len)).collect()
}

fn striped(len: u64, stripe: u64, columns: &[(usize, u64)]) -> Segment {
    let columns = columns
        .iter()
        .map(|&(device, offset)| Place { device, offset })
        .collect();
    Segment {
        len,
        layout: Layout::stripes(stripe, columns),
    }
}

fn linear(len: u64, offset: u64) -> Segment {
    Segment {
        len,
        layout: Layout::Linear(Place { device: 0, offset }),
    }
}

#[test]
fn linear_runs_are_joined_and_bounded() {
    let m = Mapping::from_segments([linear(100, 1000), linear(50, 1100), linear(10, 5)]).unwrap();
    assert_eq!(m.size(), 160);
    assert_eq!(runs(&m, 0, 160), [(0, 1000, 150), (0, 5, 10)]);
    assert_eq!(runs(&m, 90, 20), [(0, 1090, 20)]);
    assert_eq!(runs(&m, 160, 0), []);
    let mut out = vec![Run {
        device: 0,
        offset: 990,
        len: 10,
    }];
    m.runs(0, 1, &mut out).unwrap();
    assert_eq!(out.len(), 2, "what was there before is not touched");
    for (offset, len) in [(0, 161), (160, 1), (u64::MAX, 1), (1, u64::MAX)] {
        assert!(matches!(
            m.runs(offset, len, &mut out),
            Err(Error::Corrupt { .. })
        ));
    }
    assert_eq!(Mapping::linear(0, u64::MAX, 5).size(), 0);
}

#[test]
fn stripes_go_round_the_columns() {
    // Three columns, stripes of 4: 0123 4567 89.. | ..
    let m = Mapping::from_segments([striped(36, 4, &[(0, 100), (1, 200), (0, 300)])]).unwrap();
    assert_eq!(
        runs(&m, 2, 20),
        [
            (0, 102, 2),
            (1, 200, 4),
            (0, 300, 4),
            (0, 104, 4),
            (1, 204, 4),
            (0, 304, 2)
        ]
    );
    // Adjacent stripes of one column are one run.
    let one = Mapping::from_segments([striped(40, 4, &[(0, 7)])]).unwrap();
    assert_eq!(runs(&one, 0, 40), [(0, 7, 40)]);
}

#[test]
fn impossible_layouts_are_refused() {
    for segment in [
        striped(10, 0, &[(0, 0)]),
        striped(10, 4, &[]),
        striped(10, 4, &[(0, u64::MAX), (0, 0)]),
        linear(2, u64::MAX),
    ] {
        assert!(Mapping::from_segments([segment]).is_err());
    }
    assert!(Mapping::from_segments([linear(1 << 63, 0), linear(1 << 63, 0)]).is_err());
    assert_eq!(Mapping::from_segments([]).unwrap().size(), 0);
}

#[test]
fn a_column_is_read_at_once() {
    let devices = [Memory::new(4096, 1), Memory::new(4096, 2)];
    let m = Mapping::from_segments([
        linear(10, 5),
        striped(1024, 16, &[(0, 100), (1, 50), (0, 2000), (1, 3000)]),
    ])
    .unwrap();
    let reader = VolumeReader::new(m.clone(), devices.iter().map(|d| d.clone() as _).collect());
    let mut truth = Vec::new();
    for at in 0..m.size() {
        let (device, offset, _) = runs(&m, at, 1)[0];
        truth.push(devices[device].bytes[offset as usize]);
    }
    let mut buf = vec![0; m.size() as usize];
    reader.read_at(0, &mut buf).unwrap();
    assert_eq!(buf, truth);
    assert_eq!(
        devices[0].reads.lock().len(),
        3,
        "the linear piece and two columns"
    );
    assert_eq!(devices[1].reads.lock().len(), 2);
    for (at, len) in [
        (0, 1),
        (3, 60),
        (9, 2),
        (10, 16),
        (11, 17),
        (500, 500),
        (1033, 1),
    ] {
        let mut buf = vec![0; len];
        reader.read_at(at as u64, &mut buf).unwrap();
        assert_eq!(buf, truth[at..at + len], "{len} bytes at {at}");
    }
    assert!(matches!(
        reader.read_at(1033, &mut [0; 2]),
        Err(Error::Corrupt { .. })
    ));
    let lost = VolumeReader::new(Mapping::linear(7, 0, 10), Vec::new());
    assert!(lost.read_at(0, &mut [0; 1]).is_err());
}

/// A pattern that takes three rounds of places to repeat, on top of stripes.
#[test]
fn a_mapping_over_mappings_reads_the_disks_directly() {
    let devices = [
        Memory::new(8192, 3),
        Memory::new(8192, 4),
        Memory::new(8192, 5),
    ];
    let striped = Mapping::from_segments([striped(2048, 16, &[(0, 64), (1, 128)])]).unwrap();
    let plain = Mapping::linear(2, 1000, 2048);
    let pattern = |len| Segment {
        len,
        layout: Layout::Striped {
            stripe: 24,
            cells: [(0, 0), (1, 24), (1, 0)]
                .map(|(device, offset)| Place { device, offset })
                .to_vec(),
            advance: 48,
        },
    };
    let under = [striped.clone(), plain.clone()];
    let all = Mapping::over([pattern(1000)], &under).unwrap();
    assert_eq!(all.devices().into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(all.first_on(1), Some(128));
    assert_eq!(all.first_on(2), Some(1000));
    assert_eq!(
        all.first(),
        Some(Place {
            device: 0,
            offset: 64
        })
    );
    let reader = VolumeReader::new(
        all.clone(),
        devices.iter().map(|d| d.clone() as _).collect(),
    );
    let mut whole = vec![0; 1000];
    reader.read_at(0, &mut whole).unwrap();
    for (at, byte) in whole.iter().enumerate() {
        let (cell, round, within) = (at / 24 % 3, at / 72, at % 24);
        let place = [0, 24, 0][cell] + round * 48 + within;
        let (device, offset) = if cell == 0 {
            (
                place / 16 % 2,
                [64, 128][place / 16 % 2] + place / 32 * 16 + place % 16,
            )
        } else {
            (2, 1000 + place)
        };
        assert_eq!(*byte, devices[device].bytes[offset], "byte {at}");
    }
    // Linear on linear costs nothing.
    let flat = Mapping::over([linear(100, 50)], &[plain]).unwrap();
    assert_eq!(flat, Mapping::linear(2, 1050, 100));
    // Past the end of what is below: by a byte, and by the last round alone.
    assert!(Mapping::over([linear(2048, 1)], &under).is_err());
    assert!(Mapping::over([pattern(43 * 72)], &[striped, Mapping::linear(2, 0, 2063)]).is_err());
    assert!(Mapping::over([pattern(42 * 72 + 24)], &under).is_ok());
    assert!(Mapping::over([linear(1, 0)], &[]).is_err());
}

/// What lies on what is looked at once, and not once for each piece.
#[test]
fn mappings_over_mappings_are_not_searched_again_and_again() {
    let began = std::time::Instant::now();
    let mut mapping = Mapping::linear(3, 0, 1 << 40);
    for _ in 0..4 {
        let cells: Vec<(usize, u64)> = (0..10_000).map(|cell| (0, cell * 512)).collect();
        let segment = striped(10_000 * 512, 512, &cells);
        mapping = Mapping::over([segment], &[mapping]).unwrap();
    }
    assert_eq!((mapping.first_on(0), mapping.first_on(3)), (None, Some(0)));
    assert_eq!(mapping.devices().into_iter().collect::<Vec<_>>(), [3]);
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}
