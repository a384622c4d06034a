//! Sizes, counts and depths at which formats change.

use super::*;

#[test]
fn files_of_more_than_four_gibibytes() {
    let dir = tempfile::tempdir().unwrap();
    shell_in(
        dir.path(),
        "mkdir t; truncate -s 5G t/sparse; echo end | dd of=t/sparse bs=1 seek=5G status=none \
         conv=notrunc; echo small > t/z; truncate -s 4295000000 t/stored.mp4",
    );
    let file = dir.path().join("a.zip");
    pack(dir.path(), &[b"t/sparse", b"t/z"], Format::Zip, &file);
    assert!(file.metadata().unwrap().len() < 30_000_000);
    // All check the CRC, and only the true bytes have it.
    shell_in(
        dir.path(),
        "unzip -p a.zip sparse | cmp - t/sparse; cat a.zip | bsdtar -xOf - sparse | tail -c 4 | \
         grep end; 7zz t a.zip sparse; unzip -p a.zip z | grep small; \
         python3 -c \"import zipfile; print(zipfile.ZipFile('a.zip').infolist())\" | \
         grep file_size=5368709124",
    );

    // Stored, and what follows lies beyond four gibibytes.
    let paths: &[&[u8]] = &[b"t/stored.mp4", b"t/z"];
    pack(dir.path(), paths, Format::Zip, &file);
    assert!(file.metadata().unwrap().len() > 4_295_000_000);
    shell_in(
        dir.path(),
        "unzip -p a.zip z | grep small; cat a.zip | bsdtar -xOf - z | grep small; 7zz t a.zip; \
         python3 -c \"import zipfile; assert zipfile.ZipFile('a.zip').read('z') == b'small\\n'\"",
    );
    fs::remove_file(&file).unwrap();

    let file = dir.path().join("a.tar.zst");
    shell_in(dir.path(), "truncate -s 9G t/sparse");
    pack(dir.path(), &[b"t"], Format::TarZst, &file);
    shell_in(
        dir.path(),
        "mkdir out; cd out; zstd -dcq ../a.tar.zst | tar -x; cmp t/sparse ../t/sparse; \
         test $(stat -c %s t/sparse) = 9663676416; test $(du -k t/sparse | cut -f1) -lt 100; \
         cd ..; rm -r out; bsdtar -tf a.tar.zst > /dev/null",
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
