//! Sizes, counts and depths at which formats change.

use super::*;

#[test]
fn a_file_of_more_than_four_gibibytes_in_zip() {
    let dir = tempfile::tempdir().unwrap();
    shell_in(
        dir.path(),
        "mkdir t; cd t; echo end | dd of=sparse bs=1 seek=4300M status=none; echo small > z",
    );
    let file = dir.path().join("a.zip");
    pack(dir.path(), &[b"t/sparse", b"t/z"], Format::Zip, &file);
    assert!(file.metadata().unwrap().len() < 30_000_000);
    // All check the CRC, and only the true bytes have it.
    shell_in(
        dir.path(),
        "cat a.zip | bsdtar -xOf - sparse | tail -c 4 | grep end; 7zz t a.zip sparse; \
         unzip -p a.zip z | grep small; \
         python3 -c \"import zipfile; print(zipfile.ZipFile('a.zip').infolist())\" | \
         grep file_size=4508876804",
    );
}

/// The first is stored, and just so short that its sizes would fit into four bytes; the
/// last begins beyond.
#[test]
fn an_archive_of_more_than_four_gibibytes() {
    let dir = tempfile::tempdir().unwrap();
    shell_in(
        dir.path(),
        "mkdir t; cd t; truncate -s 4294900000 a.mp4; head -c 100000 /dev/urandom > b.jpg; \
         echo small > z",
    );
    let file = dir.path().join("a.zip");
    pack(dir.path(), &[b"t"], Format::Zip, &file);
    assert!(file.metadata().unwrap().len() > 4_294_967_295);
    shell_in(
        dir.path(),
        "unzip -p a.zip t/z | grep small; cat a.zip | bsdtar -xOf - t/z | grep small; \
         7zz t a.zip; python3 -c \"import zipfile; z = zipfile.ZipFile('a.zip')
assert z.read('t/z') == b'small\\n' and len(z.read('t/b.jpg')) == 100000\"",
    );
}

#[test]
fn a_sparse_file_of_more_than_eight_gibibytes_in_tar() {
    let dir = tempfile::tempdir().unwrap();
    shell_in(
        dir.path(),
        "mkdir t; echo end | dd of=t/sparse bs=1 seek=9G status=none",
    );
    let file = dir.path().join("a.tar.zst");
    pack(dir.path(), &[b"t"], Format::TarZst, &file);
    assert!(file.metadata().unwrap().len() < 10_000);
    for reader in ["zstd -dcq ../a.tar.zst | tar -x", "bsdtar -xf ../a.tar.zst"] {
        let check = "test $(stat -c %s t/sparse) = 9663676420; tail -c 4 t/sparse | grep end; \
                     test $(du -k t/sparse | cut -f1) -lt 100";
        let script = format!("mkdir out; cd out; {reader}; {check}; cd ..; rm -r out");
        shell_in(dir.path(), &script);
    }
}

/// More names of folders than may wait.
#[test]
fn a_folder_of_very_many_folders() {
    let dir = tempfile::tempdir().unwrap();
    shell_in(
        dir.path(),
        r#"python3 -c "
import os
for i in range(40000):
    os.makedirs('t/' + str(i).ljust(250, 'x') + ('/y' if i % 100 == 0 else ''))
""#,
    );
    let root = Beneath::at(dir.path()).unwrap();
    let path = vec![b"t".to_vec()];
    let time = std::time::Duration::from_secs(60);
    let measure = measure(&root, &[path], time, &AtomicBool::new(false)).unwrap();
    assert!(measure.complete);
    assert_eq!(measure.directories, 40_401);
    let file = dir.path().join("a.tar.zst");
    let summary = pack(dir.path(), &[b"t"], Format::TarZst, &file);
    assert_eq!((summary.folders, summary.left_out), (40_401, 0));
    let names = shell_in(
        dir.path(),
        "bsdtar -tf a.tar.zst | sort -u | wc -l; rm -r t",
    );
    assert_eq!(names.trim(), "40401");
}

/// They share the threads, and each comes out as if it were alone. (Not byte by byte:
/// what deflate finds depends a little on what the thread has compressed before.)
#[test]
fn many_archives_at_once() {
    let dir = tempfile::tempdir().unwrap();
    shell_in(
        dir.path(),
        "mkdir t; seq 1 400000 > t/numbers; head -c 2M /dev/urandom > t/random; \
         for i in $(seq 1 200); do seq 1 $i > t/$i; done",
    );
    let formats = [Format::Zip, Format::TarGz, Format::TarZst];
    let pool = Pool::with_threads(2).unwrap();
    std::thread::scope(|scope| {
        for number in 0..24_usize {
            let (pool, dir) = (&pool, dir.path());
            scope.spawn(move || {
                let job = job(&dir.join("t"), &[b""], formats[number % 3]);
                let file = File::create(dir.join(format!("archive-{number}"))).unwrap();
                write(&job, pool, &mut ToFile(file), &AtomicBool::new(false)).unwrap();
            });
        }
    });
    shell_in(
        dir.path(),
        "for a in archive-*; do mkdir out; bsdtar -xf $a -C out; diff -r t out; rm -r out; done",
    );
}

#[test]
fn more_entries_than_sixteen_bits() {
    let dir = tempfile::tempdir().unwrap();
    shell_in(
        dir.path(),
        "mkdir t; cd t; python3 -c \"
for i in range(70000): open(f'file-{i}', 'w').close()\"",
    );
    let file = dir.path().join("a.zip");
    let summary = pack(dir.path(), &[b"t"], Format::Zip, &file);
    assert_eq!(summary.files, 70_000);
    for reader in [
        "unzip -tq a.zip >&2; unzip -Z1 a.zip",
        "bsdtar -tf a.zip",
        "cat a.zip | bsdtar -tf -",
        "python3 -c \"import zipfile; [print(n) for n in zipfile.ZipFile('a.zip').namelist()]\"",
    ] {
        let got = shell_in(dir.path(), &format!("{{ {reader}; }} | sort -u | wc -l"));
        assert_eq!(got.trim(), "70001", "{reader}");
    }
    shell_in(dir.path(), "7zz t a.zip | grep 'Files: 70000'");
    let mut zip = ::zip::ZipArchive::new(File::open(&file).unwrap()).unwrap();
    assert_eq!(zip.len(), 70_001);
    zip.by_name("t/file-69999").unwrap();
}

/// Far deeper than folders stay open, and deeper than a path may be long.
#[test]
fn deep_folders() {
    let dir = tempfile::tempdir().unwrap();
    shell_in(
        dir.path(),
        r#"python3 -c "
import os
os.mkdir('t'); os.chdir('t')
for i in range(1100):
    os.mkdir('folder-%d' % i); os.mkdir('z')
    open('z/file-%d' % i, 'w').close()
    os.chdir('folder-%d' % i)
""#,
    );
    let file = dir.path().join("a.tar.gz");
    let summary = pack(dir.path(), &[b"t"], Format::TarGz, &file);
    let zip = pack(dir.path(), &[b"t"], Format::Zip, &file);
    for summary in [summary, zip] {
        // `t` is the first level, `folder-998` the last that is entered.
        assert_eq!(summary.left_out, 2, "{:?}", summary.unread);
        assert!(
            summary.unread[0]
                .1
                .starts_with("more than 1000 folders deep")
        );
        assert_eq!(summary.files, 999);
    }
    shell_in(dir.path(), "rm -r t");
}
