//! Names of volumes: folder names in the tree.
//!
//! The idea: a name from a disk is kept as it is, unless it could not be a
//! folder's; the same disk always gives the same names.
#![deny(clippy::arithmetic_side_effects)]

use std::collections::HashSet;

/// The longest name in bytes; room is left for a suffix.
const MAX_LEN: usize = 240;

/// The longest sentence in bytes, about.
const MAX_SENTENCE: usize = 1000;

/// `name` with what a folder's name must not hold replaced by `_`.
pub(super) fn safe(name: &str) -> String {
    let mut safe: String = name
        .chars()
        .map(|c| if c == '/' || c.is_control() { '_' } else { c })
        .collect();
    if safe.starts_with('.') {
        safe.replace_range(..1, "_");
    }
    while safe.len() > MAX_LEN {
        safe.pop();
    }
    if safe.is_empty() { "_".into() } else { safe }
}

/// A sentence in which names from the disk stand, as one line of printable text
/// of bounded length: it goes into logs and attributes.
pub(super) fn sentence(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(MAX_SENTENCE));
    for character in text.chars() {
        if line.len() > MAX_SENTENCE {
            line.push('…');
            break;
        }
        // Line and paragraph separators, and what turns the direction of text.
        let turns = matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || turns {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Gives a suffix (`.2`, `.3`, …) to each name that was there before.
pub(super) fn make_unique<'a>(names: impl Iterator<Item = &'a mut String>) {
    let names: Vec<_> = names.collect();
    // Names that nobody else has are never given to a second one.
    let mut taken: HashSet<String> = names.iter().map(|name| (**name).clone()).collect();
    let mut seen = HashSet::new();
    for name in names {
        if seen.insert(name.clone()) {
            continue;
        }
        let free = (2_u32..)
            .map(|n| format!("{name}.{n}"))
            .find(|free| taken.insert(free.clone()));
        if let Some(free) = free {
            *name = free;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_and_unique() {
        assert_eq!(safe("vg0-root"), "vg0-root");
        assert_eq!(safe("../a\0b\n"), "_._a_b_");
        assert_eq!(safe(".."), "_.");
        assert_eq!(safe(""), "_");
        assert!(safe(&"é".repeat(500)).len() <= MAX_LEN);
        assert_eq!(sentence("Größe of vg0"), "Größe of vg0");
        assert_eq!(
            sentence("a\0b\n\x1b[31m\u{202e}"),
            "a\\u{0}b\\n\\u{1b}[31m\\u{202e}"
        );
        assert!(sentence(&"é\n".repeat(5000)).len() < MAX_SENTENCE + 10);
        let mut names = ["a", "a", "a.2", "b", "a"].map(str::to_owned);
        make_unique(names.iter_mut());
        assert_eq!(names, ["a", "a.3", "a.2", "b", "a.4"]);
    }
}
