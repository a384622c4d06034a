//! Names and paths of guests in JSON, and back.
//!
//! The idea: a guest's name is bytes, JSON has text. What is valid UTF-8 stands as it
//! is. A byte that is not part of any is written `\xHH`, and a backslash that would
//! be read as the start of such an escape is written `\x5c`. So nearly every name is
//! itself, backslashes included, and every name is told from every other.

use super::error::FilesError;

/// The most bytes in a name. Linux's own file systems stop at 255, but a name of 255
/// UTF-16 units on NTFS has up to 765, and FUSE gives out up to this many.
const MAX_NAME: usize = 1024;

/// The most bytes in a path: what the kernel takes, the zero at the end left out.
const MAX_PATH: usize = 4095;

/// The backslash, which begins an escape.
const BACKSLASH: u8 = b'\\';

/// A name, a path or a link's target as JSON holds it.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        let mut rest = chunk.valid();
        while let Some((before, after)) = rest.split_once('\\') {
            out.push_str(before);
            // What an escape consists of is ASCII: it lies within this chunk.
            if escaped(after.as_bytes()).is_some() {
                out.push_str("\\x5c");
            } else {
                out.push('\\');
            }
            rest = after;
        }
        out.push_str(rest);
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// The bytes that [`encode`] made `text` of. Text that it never makes, such as an
/// escape of a byte that needs none, is taken at its word.
pub(crate) fn decode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        match escaped(after).filter(|_| first == BACKSLASH) {
            Some(byte) => {
                out.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    out
}

/// The byte that an escape stands for, if one follows a backslash here.
fn escaped(after: &[u8]) -> Option<u8> {
    let [b'x', high, low, ..] = after else {
        return None;
    };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let value = u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?;
    (value >= 0x80 || value == BACKSLASH).then_some(value)
}

/// A path inside a disk: names only, no `.`, no `..`. The empty one is the disk's
/// folder itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GuestPath {
    names: Vec<Vec<u8>>,
}

impl GuestPath {
    /// The disk's folder.
    pub(crate) fn root() -> Self {
        Self::default()
    }

    /// The path that a client gives: percent-decoded already, in the form of
    /// [`encode`], with or without a `/` at its beginning.
    ///
    /// # Errors
    /// `Invalid` for `..`, a zero byte, a name or a path too long.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, FilesError> {
        let invalid = |reason: &str| Err(FilesError::Invalid(format!("`path`: {reason}")));
        let path = decode(text);
        if path.contains(&0) {
            return invalid("a path has no zero bytes");
        }
        if path.len() > MAX_PATH {
            return invalid(&format!("longer than {MAX_PATH} bytes"));
        }
        let mut names = Vec::new();
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." => return invalid("`..` is not taken; give the path from the disk's root"),
                name if name.len() > MAX_NAME => {
                    return invalid(&format!("a name in it is longer than {MAX_NAME} bytes"));
                }
                name => names.push(name.to_vec()),
            }
        }
        Ok(Self { names })
    }

    /// The path for a look-up beneath the disk's folder; empty for that folder.
    pub(crate) fn relative(&self) -> Vec<u8> {
        self.names.join(&b'/')
    }

    /// The path as JSON holds it, from `/` on.
    pub(crate) fn display(&self) -> String {
        format!("/{}", encode(&self.relative()))
    }

    /// The last name; `None` for the disk's folder.
    pub(crate) fn name(&self) -> Option<&[u8]> {
        self.names.last().map(Vec::as_slice)
    }

    /// The names, from the disk's folder down.
    pub(crate) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.iter().map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(name: &[u8]) {
        let text = encode(name);
        assert_eq!(decode(text.as_bytes()), name, "{name:?} was {text:?}");
    }

    #[test]
    fn forms_are_as_promised() {
        for (name, text) in [
            (&b"plain name.txt"[..], "plain name.txt"),
            ("Größe \u{202e}.txt".as_bytes(), "Größe \u{202e}.txt"),
            (b"line\nbreak\"quote", "line\nbreak\"quote"),
            (b"C:\\temp\\x41", "C:\\temp\\x41"),
            (b"caf\xe9", "caf\\xe9"),
            (b"a\\xe9", "a\\x5cxe9"),
            (b"a\\xE9", "a\\x5cxE9"),
            (b"\\x5c", "\\x5cx5c"),
            (b"\\x5C", "\\x5cx5C"),
            (b"\\\\xff\xff", "\\\\x5cxff\\xff"),
            (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
            (b"\\x7f\\x8", "\\x7f\\x8"),
        ] {
            assert_eq!(encode(name), text);
            assert_eq!(decode(text.as_bytes()), name);
        }
        assert_eq!(decode(b"\\xE9\\x41\\X80"), b"\xe9\\x41\\X80");
    }

    #[test]
    fn every_short_string_of_nasty_bytes_comes_back_and_is_alone() {
        let alphabet = b"\\x5cCf80\xff\xc3\xa9";
        let mut seen = std::collections::HashMap::new();
        for length in 0..=5u32 {
            for number in 0..alphabet.len().pow(length) {
                let mut rest = number;
                let name: Vec<u8> = (0..length)
                    .map(|_| {
                        let byte = alphabet[rest % alphabet.len()];
                        rest /= alphabet.len();
                        byte
                    })
                    .collect();
                back(&name);
                if let Some(other) = seen.insert(encode(&name), name.clone()) {
                    panic!("{other:?} and {name:?} have one form");
                }
            }
        }
    }

    #[test]
    fn random_names_come_back_and_ordinary_ones_are_themselves() {
        // Escapes that look right in one half of the names, any bytes in the other.
        let mut bytes = [0u8; 40];
        for round in 0..20_000 {
            getrandom::fill(&mut bytes).unwrap();
            let length = usize::from(bytes[0]) % bytes.len();
            let mut name = bytes[..length].to_vec();
            if round % 2 == 0 {
                for byte in &mut name {
                    *byte = b"\\x589abAF\xe9\xc3\xa9/"[usize::from(*byte) % 13];
                }
            }
            back(&name);
            let alike = name.windows(2).any(|pair| pair == b"\\x" || pair == b"\\X");
            if !alike && let Ok(text) = std::str::from_utf8(&name) {
                assert_eq!(encode(&name), text);
            }
        }
    }

    #[test]
    fn paths_are_cleaned() {
        for (text, shown) in [
            ("", "/"),
            ("/", "/"),
            ("//./", "/"),
            ("a/b", "/a/b"),
            ("/a//./b/", "/a/b"),
            ("/a/\\xff", "/a/\\xff"),
            ("/a/\\x5cxff", "/a/\\x5cxff"),
            ("/...", "/..."),
            ("/..a", "/..a"),
            ("/\n", "/\n"),
        ] {
            let path = GuestPath::parse(text.as_bytes()).unwrap();
            assert_eq!(path.display(), shown, "{text:?}");
            assert_eq!(GuestPath::parse(shown.as_bytes()).unwrap(), path);
        }
        let path = GuestPath::parse(b"/a/\\xff\xfe").unwrap();
        assert_eq!(path.relative(), b"a/\xff\xfe");
        assert_eq!(path.name(), Some(&b"\xff\xfe"[..]));
        assert_eq!(GuestPath::root().name(), None);
    }

    #[test]
    fn paths_that_are_none_are_refused_with_a_sentence() {
        let long = "a".repeat(1025);
        let deep = "a/".repeat(2048);
        let bytes = "\\xff".repeat(1025);
        for text in [
            "..", "/..", "a/../b", "/a/..", "a\0b", "\0", &long, &deep, &bytes,
        ] {
            let refused = GuestPath::parse(text.as_bytes()).unwrap_err();
            assert_eq!(refused.status(), 400);
            assert!(refused.to_string().starts_with("`path`: "), "{refused}");
        }
        GuestPath::parse("\\xff".repeat(1024).as_bytes()).unwrap();
        GuestPath::parse("a".repeat(1024).as_bytes()).unwrap();
        GuestPath::parse("a/".repeat(2047).as_bytes()).unwrap();
    }
}
