use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::super::entry::Kind;
use super::super::name::decode;
use super::*;

fn page(limit: usize, cursor: Option<String>, order: Option<Order>) -> Page {
    Page {
        limit: Some(limit),
        cursor,
        order,
    }
}

fn all_pages(disk: &Beneath, limit: usize, order: Option<Order>) -> (Vec<Entry>, usize) {
    let (mut files, mut pages, mut cursor) = (Vec::new(), 0, None);
    loop {
        let listing = list(disk, &GuestPath::root(), &page(limit, cursor, order)).unwrap();
        assert!(listing.files.len() <= limit);
        pages += 1;
        assert!(pages <= 1000, "pages without end");
        files.extend(listing.files);
        cursor = listing.next_cursor;
        if cursor.is_none() {
            return (files, pages);
        }
    }
}

/// The names as `find` has them, in the order of the contract.
fn truth(dir: &Path) -> Vec<Vec<u8>> {
    let find = |what: &[&str]| {
        let output = Command::new("find")
            .arg(dir)
            .args(["-mindepth", "1", "-maxdepth", "1"])
            .args(what)
            .args(["-printf", "%f\\0"])
            .output()
            .unwrap();
        let mut names: Vec<Vec<u8>> = output
            .stdout
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect();
        names.sort();
        names
    };
    let mut names = find(&["-type", "d"]);
    names.extend(find(&["!", "-type", "d"]));
    names
}

fn bytes(files: &[Entry]) -> Vec<Vec<u8>> {
    files.iter().map(|e| decode(e.name.as_bytes())).collect()
}

fn nasty(dir: &Path) {
    let at = |name: &[u8]| dir.join(std::ffi::OsStr::from_bytes(name));
    for name in [
        &b"line\nbreak"[..],
        b"quote\"'`",
        b"back\\slash\\x5c\\xff",
        b"caf\xe9",
        "größe".as_bytes(),
        b" ",
        b"-rf",
        b"%2e%2e",
        b"\x01\x7f",
        &[b'n'; 255],
        &[0xff; 255],
    ] {
        fs::write(at(name), name).unwrap();
    }
    for name in [&b"folder"[..], b"zz\xfe", b"..."] {
        fs::create_dir(at(name)).unwrap();
    }
    symlink("folder", at(b"a link to a folder")).unwrap();
    symlink("../..", at(b"out")).unwrap();
    symlink("caf\\xe9", at(b"dangling")).unwrap();
    nix::unistd::mkfifo(&at(b"pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
}

#[test]
fn names_of_every_kind_are_listed_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    nasty(dir.path());
    let disk = Beneath::at(dir.path()).unwrap();
    let listing = list(&disk, &GuestPath::root(), &Page::default()).unwrap();
    assert_eq!(bytes(&listing.files), truth(dir.path()));
    assert_eq!(listing.total_count, 18);
    assert_eq!(listing.order, Order::Name);
    for entry in &listing.files {
        // What a client reads is what it can ask for.
        let json = serde_json::to_string(entry).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let path = GuestPath::parse(json["path"].as_str().unwrap().as_bytes()).unwrap();
        let info = super::super::info::info(&disk, &path).unwrap();
        assert_eq!(&info.entry, entry);
    }
    let of = |name: &str| listing.files.iter().find(|e| e.name == name).unwrap();
    let link = of("a link to a folder");
    assert_eq!((link.kind, link.is_symlink), (Kind::Directory, true));
    assert_eq!(of("out").kind, Kind::File);
    let target = of("dangling").symlink_target.as_deref();
    assert_eq!(target, Some("caf\\x5cxe9"));
    for limit in [1, 2, 3, 17, 18, 19] {
        let (files, pages) = all_pages(&disk, limit, None);
        assert_eq!(files, listing.files, "limit {limit}");
        assert_eq!(pages, 18usize.div_ceil(limit));
        let (mut files, _) = all_pages(&disk, limit, Some(Order::Directory));
        files.sort_by_key(|entry| {
            let is_file = entry.kind == Kind::File || entry.is_symlink;
            (is_file, decode(entry.name.as_bytes()))
        });
        assert_eq!(files, listing.files, "limit {limit}");
    }
}

#[test]
fn what_is_no_folder_or_no_page_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    nasty(dir.path());
    let disk = Beneath::at(dir.path()).unwrap();
    let status = |path: &str, page: &Page| {
        let path = GuestPath::parse(path.as_bytes()).unwrap();
        let error = list(&disk, &path, page).unwrap_err();
        assert!(!error.to_string().contains("tmp"), "{error}");
        error.status()
    };
    let whole = Page::default();
    assert_eq!(status("pipe", &whole), 400);
    assert_eq!(status("-rf", &whole), 400);
    assert_eq!(status("-rf/x", &whole), 404);
    assert_eq!(status("nothing", &whole), 404);
    assert_eq!(status("out", &whole), 400);
    assert_eq!(status("dangling", &whole), 404);
    assert_eq!(status("/", &page(0, None, None)), 400);
    assert_eq!(status("/", &page(10_001, None, None)), 400);
    assert_eq!(status("/", &page(1, Some("x".into()), None)), 400);
    let first = list(&disk, &GuestPath::root(), &page(1, None, None)).unwrap();
    let other = page(1, first.next_cursor, Some(Order::Directory));
    assert_eq!(status("/", &other), 400);
    let through = GuestPath::parse(b"a link to a folder").unwrap();
    assert_eq!(list(&disk, &through, &whole).unwrap().total_count, 0);
}

#[test]
fn a_large_folder_is_told_once_in_either_order() {
    const FILES: usize = 100_000;
    // In memory where there is such a place: it is about names.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let dir = dir.unwrap();
    for number in 0..FILES {
        let name = format!(
            "{:08x}-{number}.txt",
            (number as u32).wrapping_mul(2_654_435_761)
        );
        let path = dir.path().join(name);
        if number % 1000 == 7 {
            fs::create_dir(path).unwrap();
        } else {
            File::create(path).unwrap();
        }
    }
    let disk = Beneath::at(dir.path()).unwrap();
    let truth = truth(dir.path());
    let timed = |what: &str, page: &Page| {
        let start = Instant::now();
        let listing = list(&disk, &GuestPath::root(), page).unwrap();
        let json = serde_json::to_vec(&listing).unwrap();
        println!(
            "{what}: {} entries, {} bytes, {:?}",
            listing.files.len(),
            json.len(),
            start.elapsed()
        );
        listing
    };
    timed("first page by name", &page(1000, None, None));
    timed(
        "first page by directory",
        &page(1000, None, Some(Order::Directory)),
    );
    let whole = timed("all", &Page::default());
    assert_eq!(bytes(&whole.files), truth);
    assert_eq!((whole.total_count, whole.next_cursor), (FILES, None));

    let (files, pages) = all_pages(&disk, 9999, None);
    assert_eq!((bytes(&files), pages), (truth.clone(), 11));
    let (files, pages) = all_pages(&disk, 9999, Some(Order::Directory));
    let mut names = bytes(&files);
    names.sort();
    let mut sorted = truth.clone();
    sorted.sort();
    assert!(names == sorted && pages == 11);

    // One more, and it is not sorted unless asked.
    File::create(dir.path().join("one more")).unwrap();
    let first = list(&disk, &GuestPath::root(), &page(1000, None, None)).unwrap();
    assert_eq!((first.order, first.total_count), (Order::Directory, 1000));
    let (files, _) = all_pages(&disk, 10_000, None);
    let mut names = bytes(&files);
    names.sort();
    sorted.push(b"one more".to_vec());
    sorted.sort();
    assert!(names == sorted);
    let first = page(1000, None, Some(Order::Name));
    let first = list(&disk, &GuestPath::root(), &first).unwrap();
    assert_eq!((first.order, first.total_count), (Order::Name, FILES + 1));
    assert_eq!(bytes(&first.files), truth[..1000]);
    let whole = list(&disk, &GuestPath::root(), &Page::default()).unwrap();
    assert_eq!(
        (whole.files.len(), whole.next_cursor.is_some()),
        (FILES, true)
    );
}

/// However long what the guest says is, an answer is not.
#[test]
fn an_answer_that_would_be_too_large_goes_on_in_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let target = "t/".repeat(2000);
    for number in 0..9000 {
        symlink(&target, dir.path().join(format!("{number}"))).unwrap();
    }
    let disk = Beneath::at(dir.path()).unwrap();
    for order in [Order::Name, Order::Directory] {
        let (mut files, mut pages) = (Vec::new(), Vec::new());
        let mut cursor = None;
        loop {
            let page = Page {
                limit: None,
                cursor,
                order: Some(order),
            };
            let listing = list(&disk, &GuestPath::root(), &page).unwrap();
            assert!(order == Order::Directory || listing.total_count == 9000);
            assert!(pages.len() < 10, "pages without end");
            pages.push(listing.files.iter().map(Entry::text).sum::<usize>());
            files.extend(bytes(&listing.files));
            cursor = listing.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert!(pages.len() == 2 && pages[0] < MAX_TEXT + 5000, "{pages:?}");
        files.sort();
        assert_eq!(files, truth(dir.path()), "{order:?}");
    }
    let below = super::super::recursion::list_below(&disk, &GuestPath::root(), Some(10_000));
    let below = below.unwrap();
    assert!(below.truncated && below.files.len() < 9000);
}

#[test]
fn a_thousand_files_are_listed_as_stat_has_them() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..1000u32 {
        let file = File::create(dir.path().join(format!("f{number}"))).unwrap();
        file.set_len(u64::from(number) * 1_000_003).unwrap();
    }
    let disk = Beneath::at(dir.path()).unwrap();
    let start = Instant::now();
    let listing = list(&disk, &GuestPath::root(), &Page::default()).unwrap();
    let json = serde_json::to_vec(&listing).unwrap();
    println!("1,000 files, {} bytes: {:?}", json.len(), start.elapsed());
    let ours: String = listing
        .files
        .iter()
        .map(|e| format!("{} {} {}\n", e.name, e.size, e.mode))
        .collect();
    let stat = Command::new("sh")
        .args(["-c", "LC_ALL=C; export LC_ALL; stat -c '%n %s 0%a' *"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(ours, String::from_utf8(stat.stdout).unwrap());
}

#[test]
fn all_below_is_what_find_says() {
    use super::super::recursion::list_below;
    let dir = tempfile::tempdir().unwrap();
    nasty(dir.path());
    nasty(&dir.path().join("folder"));
    fs::create_dir_all(dir.path().join("folder/folder/deep/er")).unwrap();
    symlink(".", dir.path().join("folder/circle")).unwrap();
    let disk = Beneath::at(dir.path()).unwrap();
    let below = list_below(&disk, &GuestPath::root(), None).unwrap();
    assert!(!below.truncated);
    let paths: Vec<Vec<u8>> = below
        .files
        .iter()
        .map(|e| GuestPath::parse(e.path.as_bytes()).unwrap().relative())
        .collect();
    let find = Command::new("find")
        .args([".", "-mindepth", "1", "-printf", "%P\\0"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let mut truth: Vec<&[u8]> = find.stdout.split(|byte| *byte == 0).collect();
    truth.retain(|path| !path.is_empty());
    let mut sorted: Vec<&[u8]> = paths.iter().map(Vec::as_slice).collect();
    truth.sort_unstable();
    sorted.sort_unstable();
    assert_eq!(sorted, truth);
    // Whatever the limit, it is the beginning of the same answer.
    for limit in 1..paths.len() {
        let some = list_below(&disk, &GuestPath::root(), Some(limit)).unwrap();
        assert_eq!(some.files, below.files[..limit], "limit {limit}");
        assert!(some.truncated);
    }
    let exact = list_below(&disk, &GuestPath::root(), Some(paths.len())).unwrap();
    assert!(!exact.truncated);
    // A folder, then what is in it, in the order of a listing.
    let folder = GuestPath::parse(b"folder").unwrap();
    let inside = list(&disk, &folder, &Page::default()).unwrap();
    let below = list_below(&disk, &folder, None).unwrap();
    let direct: Vec<&Entry> = below
        .files
        .iter()
        .filter(|e| GuestPath::parse(e.path.as_bytes()).unwrap().names().count() == 2)
        .collect();
    assert_eq!(direct, inside.files.iter().collect::<Vec<_>>());
    let names: Vec<&str> = below.files.iter().map(|e| e.name.as_str()).collect();
    let at = names.iter().position(|name| *name == "folder").unwrap();
    assert_eq!(names[at + 1..at + 3], ["deep", "er"]);
}

#[test]
fn a_hostile_width_and_depth_is_bounded() {
    use super::super::recursion::list_below;
    let dir = tempfile::tempdir().unwrap();
    let mut place = dir.path().to_owned();
    for _ in 0..40 {
        for number in 0..300 {
            File::create(place.join(format!("{number}"))).unwrap();
        }
        place.push("deeper");
        fs::create_dir(&place).unwrap();
    }
    let disk = Beneath::at(dir.path()).unwrap();
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    let below = list_below(&disk, &GuestPath::root(), Some(10_000)).unwrap();
    assert_eq!((below.files.len(), below.truncated), (10_000, true));
    assert_eq!(below.files[39].name, "deeper");
    assert!(open() < before + 20);
    let name = std::ffi::OsString::from_vec(vec![b'x'; 250]);
    let deepest = below.files[39].path.clone();
    assert_eq!(deepest.matches('/').count(), 40);
    fs::create_dir(dir.path().join(&name)).unwrap();
    list_below(&disk, &GuestPath::root(), Some(1)).unwrap();
}
