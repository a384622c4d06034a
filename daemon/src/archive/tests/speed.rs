//! How fast it is: `zip -qr -` of the same folder is the measure.

use super::*;
use std::time::Instant;

/// For a release build; wants the folder in `ARCHIVE_FOLDER`, the format in
/// `ARCHIVE_FORMAT`, and makes the file `ARCHIVE_FILE`.
#[test]
#[ignore = "measures"]
fn one_folder() {
    let given = |name| std::env::var(name).unwrap();
    let format = Format::from_name(&given("ARCHIVE_FORMAT")).unwrap();
    let folder = PathBuf::from(given("ARCHIVE_FOLDER"));
    let memory = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let peak = status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap();
        peak.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            / 1024
    };
    let before = memory();
    let pool = Pool::new().unwrap();
    let job = job(&folder, &[b""], format);
    let mut output = ToFile(File::create(given("ARCHIVE_FILE")).unwrap());
    let started = Instant::now();
    let summary = write(&job, &pool, &mut output, &AtomicBool::new(false)).unwrap();
    println!(
        "{format:?}: {:.2} s, {} MB of {} MB, {} files, peak of memory +{} MiB",
        started.elapsed().as_secs_f64(),
        summary.written / 1_000_000,
        summary.bytes / 1_000_000,
        summary.files,
        memory().saturating_sub(before)
    );
}
