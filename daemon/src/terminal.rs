//! What may be written to standard output and to a terminal.
//!
//! Names in a backup come from the guest: on a terminal, an escape sequence in
//! one could do anything that the terminal can. Pipes get the raw bytes.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use sendense::{Error, Result};

/// What errors on standard output are about; `main` ends quietly when its
/// reader went away.
pub(crate) const STDOUT: &str = "standard output";

/// An error of writing to standard output.
pub(crate) fn output_failed(error: io::Error) -> Error {
    Error::io(STDOUT, error)
}

/// Whether an error is one of [`output_failed`].
pub(crate) fn is_about_output(error: &Error) -> bool {
    matches!(error, Error::Io { what, .. } if what == STDOUT)
}

/// A sentence about `object`, which an error may name already.
pub(crate) fn about(object: impl std::fmt::Display, reason: impl std::fmt::Display) -> String {
    let (object, reason) = (object.to_string(), reason.to_string());
    if reason.starts_with(&object) {
        reason
    } else {
        format!("{object}: {reason}")
    }
}

/// Says a sentence on standard error, as `sendense: …`.
pub(crate) fn complain(sentence: &str) {
    // If even this cannot be written there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "sendense: {}", harmless(sentence));
}

/// Writes `text` to standard output.
///
/// # Errors
/// `Io` about [`STDOUT`].
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(output_failed)
}

/// Whether standard output is a terminal.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// `bytes` with all that a terminal could obey, or a reader could mistake,
/// written as `\n`, `\x1b`, `\u{202e}`.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if deceives(c) => out.extend(c.escape_default()),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// A sentence for standard error: what could harm is escaped, the rest stays.
pub(crate) fn harmless(text: &str) -> String {
    text.chars()
        .fold(String::with_capacity(text.len()), |mut out, c| {
            if deceives(c) {
                out.extend(c.escape_default())
            } else {
                out.push(c)
            }
            out
        })
}

/// An RFC 3339 time as the clock on the wall showed it.
pub(crate) fn wall_clock(time: &str) -> String {
    time.parse::<jiff::Timestamp>()
        .map(|time| {
            let zoned = time.to_zoned(jiff::tz::TimeZone::system());
            zoned.strftime("%Y-%m-%d %H:%M:%S").to_string()
        })
        .unwrap_or_else(|_| time.to_owned())
}

/// Control characters, and those that change the direction of a line.
fn deceives(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Columns as wide as their widest cell.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        assert_eq!(escape(b"plain name.txt"), "plain name.txt");
        assert_eq!(escape("Größe.txt".as_bytes()), "Größe.txt");
        assert_eq!(escape(b"a\nb\x1b[2J"), "a\\nb\\u{1b}[2J");
        assert_eq!(escape(b"\xff\xfeback\\slash"), "\\xff\\xfeback\\\\slash");
        assert_eq!(escape("exe.\u{202e}txt".as_bytes()), "exe.\\u{202e}txt");
        assert_eq!(harmless("a\x07b\nc"), "a\\u{7}b\\nc");
    }
}
