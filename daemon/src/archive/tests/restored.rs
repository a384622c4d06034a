//! What comes out of an archive is what went in.

use super::*;

/// A folder `tree` with everything that a file can be.
fn varied(root: &Path) {
    shell_in(
        root,
        r#"
mkdir tree; cd tree
mkdir -p etc/deep/er/est home/user var/log 'with space' $'new\nline' empty 'ünïcode 漢字'
echo hello > etc/hostname
: > etc/nothing
printf 'y%.0s' $(seq 1 255) | xargs -I{} cp etc/hostname home/user/{}
d=long; for i in $(seq 1 20); do d=$d/$(printf "folder-$i-%.0s" $(seq 1 8)); done
mkdir -p "$d"; echo deep > "$d/file"; echo 'quote"' > 'quote"file'
echo text > 'ünïcode 漢字/ﬁle.txt'; echo x > $'new\nline/\t\\file'; ln -s '漢字/ziel' ünï-link
ln etc/hostname etc/zhard1; ln etc/hostname home/user/hard2
ln -s hostname etc/soft; ln -s /absolute/target etc/soft-absolute
ln -s "$(printf 'l%.0s' $(seq 1 200))" etc/soft-long
head -c 3000000 /dev/urandom > var/random
head -c 700000 /dev/urandom > var/packed.jpg; head -c 1000 /dev/urandom > var/small.jpg
head -c 20000 /dev/urandom > var/small-random
seq 1 900000 > var/log/numbers; seq 1 30000 > var/log/few; seq 1 900000 > var/log/block2
cp var/log/block2 var/log/block; cp var/log/block2 var/log/block1; truncate -s 524288 var/log/block2
truncate -s 262144 var/log/block; truncate -s 262145 var/log/block1
truncate -s 100M var/sparse; echo middle | dd of=var/sparse bs=1 seek=50000000 conv=notrunc status=none
echo end | dd of=var/sparse bs=1 seek=104857590 conv=notrunc status=none
truncate -s 3M var/all-hole; truncate -s 300K var/ends-in-hole; echo start | dd of=var/ends-in-hole conv=notrunc status=none
head -c 4096 /dev/urandom | dd of=var/edge bs=4096 seek=63 status=none; truncate -s 2M var/edge
for i in $(seq 0 2 400); do dd if=/dev/urandom of=var/fragmented bs=4k count=1 seek=$i conv=notrunc status=none; done
zip -q var/inner.zip var/log/numbers; head -c 600000 /dev/zero | zip -q0 var/inner0.zip -
chmod 4755 etc/hostname; chmod 1777 var/log; chmod 0 etc/nothing; chmod 0500 'with space'
touch -d '2024-02-29 23:59:59.123456789 UTC' etc/hostname var/sparse; touch -h -d '2001-01-01 00:00:01.5 UTC' etc/soft
touch -d '1999-12-31 00:00:00.25 UTC' empty var etc/deep
"#,
    );
}

/// And with what only tar keeps.
fn special(root: &Path) {
    shell_in(
        &root.join("tree"),
        r#"
mkfifo var/pipe; mknod var/null c 1 3; mknod var/disk b 259 1000000
chown 1000:1001 home/user; chown 3000000:4000000000 var/random; chown -h 5:6 etc/soft
echo 'raw bytes' > $'home/user/\xff\xfe-not-utf8'; ln -s $'\xff\xfe' home/user/raw-link
setfattr -n user.comment -v 'a comment' etc/hostname
setfattr -n user.binary -v 0x00ff0102 home/user
setfattr -n 'user.with=sign%' -v 'x=y' etc/hostname
setfattr -n trusted.t -v 1 etc/deep; setfattr -n security.s -v 2 etc/deep
setfattr -n user.large -v "$(head -c 3000 /dev/zero | tr '\0' v)" var/random
setfacl -m u:1000:rw,g:1001:r etc/hostname; setfacl -d -m u:1000:rwx etc/deep
echo old > etc/old; touch -d '1950-01-02 03:04:05.123456789 UTC' etc/old
echo new > etc/new; touch -d '2100-01-02 03:04:05.987654321 UTC' etc/new
touch -d '1999-12-31 00:00:00.25 UTC' etc var home/user etc/deep
"#,
    );
}

#[test]
fn zip_in_all_readers() {
    let dir = tempfile::tempdir().unwrap();
    varied(dir.path());
    let file = dir.path().join("a.zip");
    let summary = pack(dir.path(), &[b"tree"], Format::Zip, &file);
    assert_eq!(summary.left_out, 0, "{summary:?}");

    // What ZIP keeps: whole seconds, no owners, no names that share a file, no holes.
    let reduce = |root: &Path| {
        let mut seen = look(root);
        for (path, seen) in &mut seen {
            seen.first = path.clone();
            seen.modified.1 = 0;
            seen.blocks = 0;
        }
        seen
    };
    let wanted = reduce(&dir.path().join("tree"));
    let count = u64::try_from(wanted.len()).unwrap() + 1;
    assert_eq!(summary.files + summary.folders + summary.links, count);
    for (who, script) in [
        ("unzip", "unzip -tq ../a.zip && unzip -qK^ ../a.zip"),
        ("bsdtar", "bsdtar -xpf ../a.zip"),
        ("bsdtar from a pipe", "cat ../a.zip | bsdtar -xpf -"),
        ("7zz", "7zz t ../a.zip && 7zz x -snld ../a.zip"),
    ] {
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        shell_in(&out, script);
        let mut wanted = wanted.clone();
        let mut got = reduce(&out.join("tree"));
        for tree in [&mut wanted, &mut got] {
            for seen in tree.values_mut() {
                // unzip and 7zz do not give links their times, and 7zz goes by the umask; in
                // special bits; in a pipe nothing tells of modes and links (they are in
                // the directory at the end).
                if seen.kind == 'l' && matches!(who, "unzip" | "7zz") {
                    seen.modified = (0, 0);
                }
                // It also puts absolute links below where it extracts to.
                if who == "7zz" {
                    seen.mode &= if seen.kind == 'd' { 0 } else { 0o755 };
                    let out = out.as_os_str().as_bytes();
                    if let Some(target) = seen.content.strip_prefix(out) {
                        seen.size = target.len() as u64;
                        seen.content = target.to_vec();
                    }
                }
                if who.ends_with("pipe") {
                    seen.mode = 0;
                    if seen.kind == 'l' {
                        seen.kind = 'f';
                        seen.content = Sha256::digest(&seen.content).to_vec();
                    }
                }
            }
        }
        assert_same(&wanted, &got, who);
        fs::remove_dir_all(&out).unwrap();
    }
    shell_in(dir.path(), "python3 -m zipfile -t a.zip");
    let names = shell_in(
        dir.path(),
        "python3 -c \"import zipfile; print(len(zipfile.ZipFile('a.zip').namelist()))\"",
    );
    assert_eq!(names.trim(), count.to_string());

    // Compressed is what shrinks.
    let listing = shell_in(dir.path(), "zipinfo a.zip");
    let line = |name: &str| {
        let line = listing.lines().find(|line| line.ends_with(name));
        line.unwrap_or_else(|| panic!("{name} in {listing}"))
    };
    for (name, method) in [
        ("/random", "stor"),
        ("/packed.jpg", "stor"),
        ("/small.jpg", "stor"),
        ("/small-random", "stor"),
        ("/inner.zip", "stor"),
        ("/nothing", "stor"),
        ("/numbers", "defN"),
        ("/few", "defN"),
        ("/sparse", "defN"),
        ("/block1", "defN"),
    ] {
        assert!(line(name).contains(method), "{}", line(name));
    }
    assert!(line("/hostname").starts_with("-rwsr-xr-x  2.0 unx"));
    assert!(line("/soft").starts_with("lrwxrwxrwx"));

    // A reader of this language, that looks at every local header too.
    let mut zip = ::zip::ZipArchive::new(File::open(&file).unwrap()).unwrap();
    assert_eq!(zip.len() as u64, count);
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).unwrap();
        io::copy(&mut entry, &mut io::sink()).unwrap();
    }
}

#[test]
fn names_that_are_not_utf8_in_zip() {
    let dir = tempfile::tempdir().unwrap();
    shell_in(
        dir.path(),
        r#"mkdir tree out; echo raw > tree/$'\xff\xfe-raw'; echo a > tree/ä; mkfifo tree/pipe"#,
    );
    let summary = pack(
        dir.path(),
        &[b"tree"],
        Format::Zip,
        &dir.path().join("a.zip"),
    );
    assert_eq!(summary.unread.len(), 1);
    assert_eq!(summary.unread[0].0, "tree/pipe");
    shell_in(&dir.path().join("out"), "bsdtar -xpf ../a.zip");
    shell_in(
        dir.path(),
        "rm tree/pipe; diff -r tree out/tree; grep 'tree/pipe: devices' out/NOT-RESTORED.txt; \
         unzip -tq a.zip; 7zz t a.zip; python3 -m zipfile -t a.zip",
    );
}

#[test]
fn tar_in_all_readers() {
    let dir = tempfile::tempdir().unwrap();
    varied(dir.path());
    special(dir.path());
    let wanted = look(&dir.path().join("tree"));
    for format in [Format::TarGz, Format::TarZst] {
        let file = dir.path().join("archive");
        let summary = pack(dir.path(), &[b"tree"], format, &file);
        assert_eq!(summary.left_out, 0, "{summary:?}");
        let (test, filter) = match format {
            Format::TarGz => ("gzip -t < ../archive", "gzip -dc"),
            _ => ("zstd -tq ../archive", "zstd -dcq"),
        };
        let gnu = "tar -x --xattrs --xattrs-include='*' --acls --numeric-owner -p \
                   --warning=no-timestamp --warning=no-unknown-keyword";
        for (who, script) in [
            ("tar", format!("{test}; {filter} < ../archive | {gnu} 2>&1")),
            (
                "bsdtar",
                "bsdtar -xp --acls --xattrs --numeric-owner -f ../archive".to_owned(),
            ),
            (
                "bsdtar from a pipe",
                "cat ../archive | bsdtar -xp --numeric-owner -f -".to_owned(),
            ),
        ] {
            let out = dir.path().join("out");
            fs::create_dir(&out).unwrap();
            let said = shell_in(&out, &script);
            assert_eq!(said, "", "{who}");
            let mut wanted = wanted.clone();
            let mut got = look(&out.join("tree"));
            for tree in [&mut wanted, &mut got] {
                for seen in tree.values_mut() {
                    // bsdtar does not decode the name as GNU tar writes it, and adds a
                    // fraction of a second before 1970 to the wrong side.
                    if who.starts_with("bsdtar") {
                        seen.modified.0 = seen.modified.0.max(0);
                        if seen.modified.0 == 0 {
                            seen.modified.1 = 0;
                        }
                        seen.attributes.remove(&b"user.with=sign%"[..]);
                        seen.attributes.remove(&b"user.with%3Dsign%25"[..]);
                    }
                }
            }
            for (path, got) in &mut got {
                let wanted = &wanted[path];
                // Not more than was allocated, give or take a block of the file system.
                assert!(
                    got.blocks <= wanted.blocks + 64,
                    "{who}: {path:?} {}",
                    got.blocks
                );
                got.blocks = wanted.blocks;
            }
            assert_same(&wanted, &got, who);
            shell_in(dir.path(), "rm -r out");
        }
        // Holes take no room, and Python reads it too.
        let listing = "import tarfile, sys\n\
                       print(sum(1 for _ in tarfile.open(fileobj=sys.stdin.buffer, mode='r|')))";
        let script = format!("{filter} < archive | python3 -c \"{listing}\"");
        assert_eq!(
            shell_in(dir.path(), &script).trim(),
            (wanted.len() + 1).to_string()
        );
    }
}

#[test]
fn sockets_are_listed_in_tar() {
    let dir = tempfile::tempdir().unwrap();
    shell_in(
        dir.path(),
        "mkdir tree out; \
         python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('tree/socket')\"",
    );
    let file = dir.path().join("a");
    let summary = pack(&dir.path().join("tree"), &[b""], Format::TarGz, &file);
    assert_eq!(summary.unread.len(), 1);
    shell_in(
        &dir.path().join("out"),
        "tar -xzf ../a; grep ^socket: NOT-RESTORED.txt",
    );
}
