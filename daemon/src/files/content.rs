//! A file as a download: its bytes, its type, its name.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::beneath::Beneath;
use super::conditions::State;
use super::entry::{count, file_type};
use super::error::FilesError;
use super::name::GuestPath;

/// What stands for itself in `filename*` (RFC 8187, `attr-char`).
const ATTR_CHAR: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// The last second that a date of HTTP can say: the end of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

/// A file that is open for reading, and what is told before its bytes.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) file: File,
    /// Bytes.
    pub(crate) size: u64,
    /// A strong validator, quotes included.
    pub(crate) etag: String,
    /// To the second, as HTTP has it; `None` before 1970 and after 9999.
    pub(crate) modified: Option<SystemTime>,
}

/// Opens the file at `path`, through links as far as they stay on the disk.
///
/// # Errors
/// `IsFolder`, `Special`, or why it cannot be opened.
pub(crate) fn open_file(disk: &Beneath, path: &GuestPath) -> Result<Content, FilesError> {
    let failed = |error| FilesError::new(path.display(), error);
    let relative = path.relative();
    // Looked at before it is opened for reading: opening a pipe or a device has
    // effects.
    let place = disk.open(&relative, OFlag::O_PATH).map_err(failed)?;
    let stat = fstat(&place).map_err(|error| failed(error.into()))?;
    let path = || path.display();
    match file_type(&stat) {
        libc::S_IFREG => {}
        libc::S_IFDIR => return Err(FilesError::IsFolder { path: path() }),
        _ => return Err(FilesError::Special { path: path() }),
    }
    let file = File::from(disk.open(&relative, OFlag::O_RDONLY).map_err(failed)?);
    let stat = fstat(&file).map_err(|error| failed(error.into()))?;
    if file_type(&stat) != libc::S_IFREG {
        return Err(FilesError::Special { path: path() });
    }
    let size = count(stat.st_size);
    Ok(Content {
        file,
        size,
        // The tree's inode numbers belong to the backup's content: they name it for
        // ever.
        etag: format!(
            "\"{:x}-{size:x}-{:x}.{:x}\"",
            stat.st_ino, stat.st_mtime, stat.st_mtime_nsec
        ),
        modified: u64::try_from(stat.st_mtime)
            .ok()
            .filter(|seconds| *seconds <= LAST_SECOND)
            .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds))),
    })
}

impl Content {
    /// What the conditions of a request are compared with.
    pub(crate) fn state(&self) -> State<'_> {
        State {
            etag: &self.etag,
            modified: self.modified,
        }
    }

    /// The value of `Last-Modified`, if it can be said.
    pub(crate) fn last_modified(&self) -> Option<String> {
        self.modified.map(httpdate::fmt_http_date)
    }
}

/// The value of `Content-Type` for a file of this name. A text has no charset: which
/// one it is in is not known.
pub(crate) fn content_type(name: &[u8]) -> &'static str {
    let name = std::str::from_utf8(name).unwrap_or_default();
    mime_guess::from_path(Path::new(name))
        .first_raw()
        .unwrap_or("application/octet-stream")
}

/// The value of `Content-Disposition` (RFC 6266) for a file of this name. What a
/// quoted string of ASCII cannot hold without doubt is `_` there, and as it is in
/// `filename*` (RFC 8187), which every browser prefers; bytes that are not UTF-8 are
/// U+FFFD.
pub(crate) fn disposition(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    let plain = |c: char| matches!(c, ' '..='~') && !matches!(c, '"' | '\\' | '%' | '/');
    let fallback: String = name
        .chars()
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    if fallback == name {
        return format!("attachment; filename=\"{fallback}\"");
    }
    let exact = utf8_percent_encode(&name, ATTR_CHAR);
    format!("attachment; filename=\"{fallback}\"; filename*=UTF-8''{exact}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::process::{Command, Stdio};

    #[test]
    fn dispositions_have_their_forms() {
        for (name, wanted) in [
            (&b"ReAgent.xml"[..], "attachment; filename=\"ReAgent.xml\""),
            (
                b"a b;c=d,e'f.txt",
                "attachment; filename=\"a b;c=d,e'f.txt\"",
            ),
            (
                b"a\"b\\c",
                "attachment; filename=\"a_b_c\"; filename*=UTF-8''a%22b%5Cc",
            ),
            (
                "Größe.txt".as_bytes(),
                "attachment; filename=\"Gr__e.txt\"; filename*=UTF-8''Gr%C3%B6%C3%9Fe.txt",
            ),
            (
                b"a\r\nSet-Cookie: x",
                "attachment; filename=\"a__Set-Cookie: x\"; filename*=UTF-8''a%0D%0ASet-Cookie%3A%20x",
            ),
            (
                b"caf\xe9",
                "attachment; filename=\"caf_\"; filename*=UTF-8''caf%EF%BF%BD",
            ),
            (
                b"100%41",
                "attachment; filename=\"100_41\"; filename*=UTF-8''100%2541",
            ),
        ] {
            assert_eq!(disposition(name), wanted);
        }
    }

    /// Python's parser of MIME headers is the other opinion.
    #[test]
    fn python_reads_the_names_back() {
        const PARSER: &str = r"
import sys, json, email.message
def name(header):
    message = email.message.Message()
    message['Content-Disposition'] = header
    assert message.get_content_disposition() == 'attachment', header
    return message.get_filename()
for line in sys.stdin:
    header = json.loads(line)
    plain, star, exact = header.partition('; filename*=')
    fallback = name(plain)
    assert fallback.isascii() and fallback.isprintable(), header
    print(json.dumps(name('attachment; filename*=' + exact) if star else fallback))
";
        let mut names: Vec<String> = (1..=0x17f)
            .filter_map(char::from_u32)
            .filter(|c| *c != '/')
            .map(|c| format!("a{c}b.txt"))
            .collect();
        names.extend(["語\u{202e}💾", "''", "UTF-8''x", "a; filename=b", "\""].map(String::from));
        let mut python = Command::new("python3")
            .args(["-c", PARSER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let headers: String = names
            .iter()
            .map(|name| serde_json::to_string(&disposition(name.as_bytes())).unwrap() + "\n")
            .collect();
        let mut input = python.stdin.take().unwrap();
        let writer = std::thread::spawn(move || input.write_all(headers.as_bytes()).unwrap());
        let output = python.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success());
        let read: Vec<String> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(read.len(), names.len());
        for (read, name) in read.iter().zip(&names) {
            assert_eq!(read, name);
        }
    }

    #[test]
    fn types_go_by_the_name() {
        for (name, wanted) in [
            (&b"ReAgent.xml"[..], "text/xml"),
            (b"a.TXT", "text/plain"),
            (b"report.pdf", "application/pdf"),
            (b"photo.jpeg", "image/jpeg"),
            (b"noextension", "application/octet-stream"),
            (b".profile", "application/octet-stream"),
            (b"strange.\xff", "application/octet-stream"),
            (b"", "application/octet-stream"),
        ] {
            assert_eq!(content_type(name), wanted, "{name:?}");
        }
    }

    #[test]
    fn files_are_opened_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "12345").unwrap();
        fs::create_dir(at("folder")).unwrap();
        symlink("file", at("link")).unwrap();
        symlink("/etc/passwd", at("out")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let disk = Beneath::at(dir.path()).unwrap();
        let open = |name: &str| open_file(&disk, &GuestPath::parse(name.as_bytes()).unwrap());
        let content = open("file").unwrap();
        assert_eq!(content.size, 5);
        assert_eq!(content.etag, open("link").unwrap().etag);
        assert_eq!(std::io::read_to_string(&content.file).unwrap(), "12345");
        for (name, status) in [
            ("folder", 400),
            ("/", 400),
            ("pipe", 400),
            ("out", 400),
            ("nothing", 404),
            ("file/x", 404),
        ] {
            let error = open(name).unwrap_err();
            assert_eq!(error.status(), status, "{error}");
            assert!(!error.to_string().contains("tmp"), "{error}");
        }
        let old = content.etag;
        fs::File::options()
            .write(true)
            .open(at("file"))
            .unwrap()
            .set_modified(UNIX_EPOCH - Duration::from_millis(1))
            .unwrap();
        let content = open("file").unwrap();
        assert_ne!(content.etag, old);
        assert_eq!(content.last_modified(), None);
    }
}
