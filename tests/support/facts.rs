//! All that can be said of a tree by looking at it from outside.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};

/// What is compared, in words, so that a difference can be read.
pub type Facts = BTreeMap<Vec<u8>, BTreeMap<String, String>>;

/// Facts of everything below `root`, `root` itself under the empty path.
pub fn facts(root: &Path) -> Facts {
    let mut all = Facts::new();
    walk(root, &mut Vec::new(), &mut all);
    all
}

fn walk(path: &Path, name: &mut Vec<u8>, all: &mut Facts) {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    all.insert(name.clone(), look_at(path, &meta));
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())) {
            let entry = entry.unwrap();
            let len = name.len();
            name.push(b'/');
            name.extend_from_slice(entry.file_name().as_bytes());
            let kind = entry.file_type().unwrap();
            walk(&entry.path(), name, all);
            assert_eq!(
                all[name.as_slice()]["type"],
                kind_of(kind),
                "d_type of {}",
                entry.path().display()
            );
            name.truncate(len);
        }
    }
}

fn kind_of(kind: fs::FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match () {
        () if kind.is_dir() => "directory",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () if kind.is_char_device() => "char",
        () if kind.is_block_device() => "block",
        () => "?",
    }
}

fn look_at(path: &Path, meta: &fs::Metadata) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    let mut fact = |name: &str, value: String| facts.insert(name.to_owned(), value);
    fact("type", kind_of(meta.file_type()).to_owned());
    fact("size", meta.size().to_string());
    fact("mode", format!("{:o}", meta.mode()));
    fact("owner", format!("{}:{}", meta.uid(), meta.gid()));
    fact("nlink", meta.nlink().to_string());
    fact(
        "rdev",
        format!("{}:{}", libc::major(meta.rdev()), libc::minor(meta.rdev())),
    );
    fact(
        "mtime",
        format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()),
    );
    fact(
        "atime",
        format!("{}.{:09}", meta.atime(), meta.atime_nsec()),
    );
    fact(
        "ctime",
        format!("{}.{:09}", meta.ctime(), meta.ctime_nsec()),
    );
    fact("blocks", meta.blocks().to_string());
    if meta.is_symlink() {
        fact("target", format!("{:?}", fs::read_link(path).unwrap()));
    }
    if meta.is_file() {
        fact("sha256", sha256(path));
    }
    for name in xattr::list(path).unwrap_or_else(|e| panic!("xattrs of {}: {e}", path.display())) {
        if name.as_bytes().starts_with(b"user.sendense.") {
            continue;
        }
        let value = xattr::get(path, &name).unwrap();
        fact(&format!("xattr {name:?}"), format!("{value:?}"));
    }
    // Not every attribute is listed to everybody; ACLs are asked for by name.
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        if !meta.is_symlink()
            && let Ok(value) = xattr::get(path, OsStr::new(name))
        {
            fact(&format!("acl {name}"), format!("{value:?}"));
        }
    }
    facts
}

pub fn sha256(path: &Path) -> String {
    let mut file = fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    loop {
        let n = file
            .read(&mut buf)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if n == 0 {
            break;
        }
        hash.update(&buf[..n]);
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The facts that `cp -a` keeps: not the time of the copy itself, nor what the
/// target's file system decides.
pub fn kept_by_a_copy(mut all: Facts) -> Facts {
    for facts in all.values_mut() {
        for key in ["ctime", "atime", "blocks"] {
            facts.remove(key);
        }
        if facts["type"] == "directory" {
            facts.remove("size");
        }
    }
    all
}

/// Compares what the kernel sees with what the tree shows.
pub fn assert_same(truth: &Facts, shown: &Facts) {
    let mut differences = Vec::new();
    for name in truth
        .keys()
        .chain(shown.keys().filter(|name| !truth.contains_key(*name)))
    {
        let path = String::from_utf8_lossy(name).into_owned();
        match (truth.get(name), shown.get(name)) {
            (Some(truth), Some(shown)) => {
                for key in truth
                    .keys()
                    .chain(shown.keys().filter(|key| !truth.contains_key(*key)))
                {
                    let (truth, shown) = (truth.get(key), shown.get(key));
                    if truth != shown {
                        differences.push(format!("{path:?}: {key}: {truth:?}, shown {shown:?}"));
                    }
                }
            }
            (Some(_), None) => differences.push(format!("{path:?}: not shown")),
            (None, _) => differences.push(format!("{path:?}: shown, and is not there")),
        }
    }
    let count = differences.len();
    differences.truncate(20);
    assert!(
        count == 0,
        "{count} differences over {} files:\n{}",
        truth.len(),
        differences.join("\n")
    );
}
