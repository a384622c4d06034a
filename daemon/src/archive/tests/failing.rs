//! What happens when files cannot be read, and when nobody wants the archive.

use super::*;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A btrfs in a file, with files `good`, `bad` (damaged at its beginning) and `late`
/// (damaged at its end), mounted while the guard lives.
struct Damaged(tempfile::TempDir);

impl Damaged {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        shell_in(
            dir.path(),
            r#"
mkdir tree m; seq 1 1000 > tree/good
head -c 100000 /dev/zero | tr '\0' B > tree/bad
{ seq 1 1000000; head -c 1000000 /dev/zero | tr '\0' L; } > tree/late
truncate -s 256M image; mkfs.btrfs -q -m single -d single -r tree image
python3 - <<'PY'
import mmap
with open('image', 'r+b') as image:
    data = mmap.mmap(image.fileno(), 0)
    for letter in (b'B', b'L'):
        at = data.find(letter * 50000)
        assert at > 0
        data[at + 1] = 0
PY
mount -o loop,ro image m
"#,
        );
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Damaged {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path().join("m")).status();
    }
}

#[test]
fn a_file_that_cannot_be_read_is_left_out_and_one_that_breaks_off_ends_it() {
    let damaged = Damaged::new();
    let (root, file) = (damaged.path().join("m"), damaged.path().join("archive"));
    for format in [Format::Zip, Format::TarGz, Format::TarZst] {
        let summary = pack(&root, &[b"good", b"bad"], format, &file);
        assert_eq!(summary.files, 1, "{format:?}");
        assert_eq!(
            summary.unread,
            [(
                "bad".to_owned(),
                "the file could not be read: I/O error".to_owned()
            )]
        );
        let text = shell_in(damaged.path(), "bsdtar -xOf archive NOT-RESTORED.txt");
        assert!(text.ends_with("\nbad: the file could not be read: I/O error\n"));

        let error = pack_job(&job(&root, &[b"good", b"late"], format), &file).unwrap_err();
        assert!(matches!(error, ArchiveError::Failed(Error::Io { .. })));
        assert!(
            error.to_string().starts_with("late: reading broke off: "),
            "{error}"
        );
    }
}

/// Does something at the first piece.
struct AtFirst<F: FnMut() + Send>(F, u64);

impl<F: FnMut() + Send> Output for AtFirst<F> {
    fn put(&mut self, piece: Bytes) -> io::Result<()> {
        if self.1 == 0 {
            (self.0)();
        }
        self.1 += piece.len() as u64;
        Ok(())
    }
}

#[test]
fn a_file_that_becomes_shorter_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("random");
    for format in [Format::Zip, Format::TarGz, Format::TarZst] {
        shell_in(dir.path(), "head -c 50M /dev/urandom > random");
        let cut = || {
            let file = File::options().write(true).open(&path).unwrap();
            file.set_len(40 << 20).unwrap();
        };
        let pool = Pool::with_threads(2).unwrap();
        let job = job(dir.path(), &[b"random"], format);
        let result = write(&job, &pool, &mut AtFirst(cut, 0), &AtomicBool::new(false));
        let text = result.unwrap_err().to_string();
        assert_eq!(
            text,
            "random: reading broke off: it is shorter than its size of 52428800 bytes"
        );
    }
}

#[test]
fn what_cannot_be_opened_or_entered_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    // Another mount is outside.
    shell_in(
        dir.path(),
        "mkdir -p t/in/other; echo 1 > t/file; echo 2 > t/good; echo 3 > t/NOT-RESTORED.txt; \
         mount -t tmpfs none t/in/other; touch t/in/other/x; mount --bind /etc/passwd t/file",
    );
    let file = dir.path().join("archive");
    let result = std::panic::catch_unwind(|| {
        for format in [Format::Zip, Format::TarGz] {
            let summary = pack(&dir.path().join("t"), &[b""], format, &file);
            let unread: Vec<&str> = summary
                .unread
                .iter()
                .map(|(path, _)| path.as_str())
                .collect();
            assert_eq!(unread, ["file", "in/other"]);
            let names = shell_in(dir.path(), "bsdtar -tf archive");
            assert_eq!(
                names,
                "NOT-RESTORED.txt\ngood\nin/\nin/other/\nNOT-RESTORED-2.txt\n"
            );
        }
    });
    shell_in(dir.path(), "umount t/in/other t/file");
    result.unwrap();
}

#[test]
fn a_client_that_goes_and_a_cancelled_archive() {
    struct Gone(u64);
    impl Output for Gone {
        fn put(&mut self, piece: Bytes) -> io::Result<()> {
            self.0 += piece.len() as u64;
            match self.0 {
                ..1_000_000 => Ok(()),
                _ => Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    shell_in(
        dir.path(),
        "truncate -s 1T holes; head -c 20M /dev/urandom > random",
    );
    let pool = Pool::with_threads(2).unwrap();
    for format in [Format::Zip, Format::TarGz, Format::TarZst] {
        let job = job(dir.path(), &[b"random"], format);
        let mut output = Gone(0);
        let error = write(&job, &pool, &mut output, &AtomicBool::new(false)).unwrap_err();
        assert!(matches!(error, ArchiveError::Output(_)));
        assert!(output.0 < 1_300_000, "{}", output.0);
    }
    // Nothing is put for long while holes are passed over, and it ends all the same.
    for paths in [&[&b"holes"[..]][..], &[b""]] {
        let cancelled = AtomicBool::new(false);
        let started = Instant::now();
        let job = job(dir.path(), paths, Format::Zip);
        std::thread::scope(|scope| {
            let archive = scope.spawn(|| write(&job, &pool, &mut AtFirst(|| {}, 0), &cancelled));
            std::thread::sleep(Duration::from_millis(300));
            cancelled.store(true, Ordering::Relaxed);
            let error = archive.join().unwrap().unwrap_err();
            assert!(matches!(error, ArchiveError::Cancelled));
        });
        assert!(started.elapsed() < Duration::from_secs(2));
    }
}
