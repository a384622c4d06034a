//! Names: what is shown, and what is found.

use std::fs;

use super::image::Image;
use super::walk::find;
use crate::error::Error;
use crate::filesystem::fat::{Fat, short_name};
use crate::filesystem::ntfs::tests::compare::list;
use crate::filesystem::{FileSystem, Options};

fn shown(name: &[u8; 11], case: u8) -> String {
    let mut units = Vec::new();
    short_name::push(name, case, &mut units);
    String::from_utf16(&units).unwrap()
}

// As Linux shows them (`fat_parse_short` and its table of code page 437).
#[test]
fn short_names_are_as_linux_shows_them() {
    assert_eq!(shown(b"README  TXT", 0), "README.TXT");
    assert_eq!(shown(b"README  TXT", 0x08), "readme.TXT");
    assert_eq!(shown(b"README  TXT", 0x10), "README.txt");
    assert_eq!(shown(b"README  TXT", 0x18), "readme.txt");
    assert_eq!(shown(b"NOEXT      ", 0), "NOEXT");
    assert_eq!(shown(b"A B     C D", 0), "A B.C D");
    assert_eq!(shown(b"\x05BC        ", 0), "\u{3c3}BC");
    assert_eq!(shown(b"\x8e\x99\x9a     TXT", 0), "ÄÖÜ.TXT");
    assert_eq!(shown(b"\x8e\x99\x9a\x90    TXT", 0x08), "äöüé.TXT");
    assert_eq!(shown(b"\xe1\xff\xb0\x80       ", 0), "ß\u{a0}░Ç");
}

fn names(fs: &Fat) -> Vec<Vec<u8>> {
    let all = list(fs, fs.root(), 100).unwrap();
    all.into_iter().map(|(name, ..)| name).collect()
}

/// An image with one file; its long name's units are replaced one by one.
fn renamed(name: &str, units: &[(char, u16)]) -> Image {
    let image = with(&[name]);
    let mut bytes = image.bytes();
    let root = bytes
        .windows(12)
        .position(|slot| slot[0] & 0x40 != 0 && slot[11] == 0x0f)
        .unwrap();
    let slots = usize::from(bytes[root] & 0x3f);
    for slot in bytes[root..root + 32 * slots].chunks_exact_mut(32) {
        for at in [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30] {
            let unit = u16::from_le_bytes([slot[at], slot[at + 1]]);
            if let Some((_, other)) = units.iter().find(|(from, _)| *from as u16 == unit) {
                slot[at..at + 2].copy_from_slice(&other.to_le_bytes());
            }
        }
    }
    image.patch(0, &bytes);
    image
}

fn with(names: &[&str]) -> Image {
    let image = Image::fat(2 << 20, &["-F", "12"]);
    for name in names {
        let file = image.beside(name);
        fs::write(&file, name).unwrap();
        image.mtool("mcopy", "UTC", &[file.to_str().unwrap(), "::/"]);
    }
    image
}

#[test]
fn long_names_are_utf16() {
    let image = renamed("a face ()", &[('(', 0xd83d), (')', 0xde00)]);
    assert_eq!(names(&image.open()), ["a face 😀".as_bytes()]);
    assert_eq!(image.fls("UTC")[0].0, "a face 😀");
    // Half a pair is carried as it is, and found again.
    let image = renamed("half a face(", &[('(', 0xd83d)]);
    let fs = image.open();
    assert_eq!(names(&fs), [b"half a face\xed\xa0\xbd"]);
    assert!(fs.lookup(fs.root(), b"half a face\xed\xa0\xbd").is_ok());
    let image = renamed("spaces and dots (((", &[('(', u16::from(b'.'))]);
    assert_eq!(names(&image.open()), [b"spaces and dots ..."]);
    let image = renamed("spaces and dots (((", &[('(', u16::from(b' '))]);
    assert_eq!(names(&image.open()), [b"spaces and dots    "]);
}

#[test]
fn a_name_of_255_units_is_shown() {
    let ascii = "n".repeat(245) + ".0123456";
    let image = renamed(&ascii, &[('n', 0x65e5)]);
    let expected = "日".repeat(245) + ".0123456";
    let fs = image.open();
    assert_eq!(names(&fs), [expected.as_bytes()]);
    assert_eq!(find(&fs, &expected), find(&fs, &expected));
    let longest = "n".repeat(255);
    let image = with(&[&longest]);
    assert_eq!(names(&image.open()), [longest.as_bytes()]);
}

#[test]
fn what_is_no_long_name_leaves_the_short_one() {
    // A slash cannot be shown.
    let image = renamed("a slash (", &[('(', u16::from(b'/'))]);
    assert_eq!(names(&image.open()), [b"ASLASH~1"]);
    // Long names without their file, of another file, or with a piece missing.
    let long = "a long name that takes several entries";
    let image = with(&[long]);
    let bytes = image.bytes();
    let root = bytes
        .windows(12)
        .position(|w| w[0] == 0x43 && w[11] == 0x0f);
    let root = root.unwrap() as u64;
    for (at, byte) in [
        (96, b'X'), // the short name changed
        (13, 0),    // the checksum of a piece
        (32, 0xe5), // a piece deleted
        (64, 3),    // pieces out of order
        (0, 3),     // the last piece is not marked
    ] {
        let old = bytes[root as usize + at as usize];
        image.patch(root + at, &[byte]);
        let short = if at == 96 { "XLONGN~1" } else { "ALONGN~1" };
        assert_eq!(names(&image.open()), [short.as_bytes()], "byte {at}");
        let out = image.copy_out("UTC");
        assert!(out.join(short).exists(), "byte {at}: mtools");
        image.patch(root + at, &[old]);
    }
    assert_eq!(names(&image.open()), [long.as_bytes()]);
}

#[test]
fn names_that_differ_in_case_are_found_if_asked_for() {
    let image = with(&["Grüße aus Köln.txt", "UPPER.TXT"]);
    let exact = image.open();
    let loose = image.open_with(Options {
        ignore_case: true,
        ..Options::default()
    });
    let root = exact.root();
    for name in ["grüSSe AUS köln.TXT", "upper.txt", "GRÜßEA~1.TXT", "other"] {
        assert!(
            matches!(
                exact.lookup(root, name.as_bytes()),
                Err(Error::NotFound { .. })
            ),
            "{name}"
        );
    }
    let long = find(&exact, "Grüße aus Köln.txt");
    for name in ["GRÜßE AUS KÖLN.TXT", "grüße aus köln.TxT", "grüßea~1.txt"] {
        assert_eq!(loose.lookup(root, name.as_bytes()).unwrap(), long, "{name}");
    }
    let upper = find(&exact, "UPPER.TXT");
    assert_eq!(loose.lookup(root, b"upper.TXT").unwrap(), upper);
    assert!(loose.lookup(root, b"upper.TX").is_err());
}

#[test]
fn a_label_is_no_file() {
    let image = with(&["file"]);
    assert!(image.open().description().label.is_empty());
    image.mtool("mlabel", "UTC", &["::My Label"]);
    let fs = image.open();
    assert_eq!(names(&fs), [b"file"]);
    assert_eq!(fs.description().label, image.blkid("LABEL").into_bytes());
    assert_eq!(fs.description().label, b"MY LABEL");
}
