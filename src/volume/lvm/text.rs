//! The text that LVM2 keeps its metadata in: `key = value`, `key = [ … ]`,
//! `key { … }`, comments from `#` to the end of the line.
//!
//! The idea: nothing is copied, everything is counted; a text may be long and
//! deep, but only as long and deep as is said here.
#![deny(clippy::arithmetic_side_effects)]

/// Values in one text; a group of a thousand volumes has about 30,000.
const MAX_VALUES: usize = 500_000;
/// Sections within sections; LVM2 itself needs four.
const MAX_DEPTH: usize = 8;

/// A section: keys and values, in order.
#[derive(Debug, Default)]
pub(super) struct Section<'a>(Vec<(&'a [u8], Value<'a>)>);

/// What a key stands for.
#[derive(Debug)]
enum Value<'a> {
    Section(Section<'a>),
    List(Vec<Value<'a>>),
    Text(&'a [u8]),
    /// Also what is no number and not needed (dates, floats): `None`.
    Number(Option<u64>),
}

impl<'a> Section<'a> {
    /// Reads a whole text; `None` if it does not follow the grammar or is too
    /// large.
    pub(super) fn parse(text: &'a [u8]) -> Option<Self> {
        // Zeros may follow the text.
        let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
        let mut parser = Parser {
            rest: text.get(..end)?,
            values: 0,
        };
        let section = parser.section(0)?;
        parser.rest.is_empty().then_some(section)
    }

    fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.0
            .iter()
            .find(|(k, _)| *k == key.as_bytes())
            .map(|(_, value)| value)
    }

    /// The number at `key`.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Value::Number(number) => *number,
            _ => None,
        }
    }

    /// The string at `key`.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        match self.get(key)? {
            Value::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        }
    }

    /// The section at `key`.
    pub(super) fn section(&self, key: &str) -> Option<&Section<'a>> {
        match self.get(key)? {
            Value::Section(section) => Some(section),
            _ => None,
        }
    }

    /// All sections in this one, with their names.
    pub(super) fn sections(&self) -> impl Iterator<Item = (String, &Section<'a>)> {
        self.0.iter().filter_map(|(key, value)| match value {
            Value::Section(section) => Some((String::from_utf8_lossy(key).into_owned(), section)),
            _ => None,
        })
    }

    /// Whether the list at `key` holds the string `word`.
    pub(super) fn lists(&self, key: &str, word: &str) -> bool {
        let Some(Value::List(list)) = self.get(key) else {
            return false;
        };
        list.iter()
            .any(|value| matches!(value, Value::Text(text) if *text == word.as_bytes()))
    }

    /// The strings of the list at `key`.
    pub(super) fn words(&self, key: &str) -> Option<Vec<String>> {
        let Value::List(list) = self.get(key)? else {
            return None;
        };
        let words = list.iter().filter_map(|value| match value {
            Value::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        });
        Some(words.collect())
    }

    /// The list at `key`, as pairs of a string and a number.
    pub(super) fn pairs(&self, key: &str) -> Option<Vec<(String, u64)>> {
        let Value::List(list) = self.get(key)? else {
            return None;
        };
        list.chunks(2)
            .map(|pair| match pair {
                [Value::Text(text), Value::Number(Some(number))] => {
                    Some((String::from_utf8_lossy(text).into_owned(), *number))
                }
                _ => None,
            })
            .collect()
    }
}

struct Parser<'a> {
    rest: &'a [u8],
    values: usize,
}

impl<'a> Parser<'a> {
    /// Entries up to the closing brace, which is left, or the end.
    fn section(&mut self, depth: usize) -> Option<Section<'a>> {
        if depth > MAX_DEPTH {
            return None;
        }
        let mut section = Section::default();
        loop {
            self.skip_blanks();
            if matches!(self.rest.first(), None | Some(b'}')) {
                return Some(section);
            }
            let key = self.word()?;
            self.skip_blanks();
            let value = match self.rest.first()? {
                b'{' => {
                    self.skip(1);
                    let inner = self.section(depth.checked_add(1)?)?;
                    self.take(b'}')?;
                    Value::Section(inner)
                }
                b'=' => {
                    self.skip(1);
                    self.value()?
                }
                _ => return None,
            };
            self.count()?;
            section.0.push((key, value));
        }
    }

    fn value(&mut self) -> Option<Value<'a>> {
        self.skip_blanks();
        if self.rest.first() != Some(&b'[') {
            return self.scalar();
        }
        self.skip(1);
        let mut list = Vec::new();
        loop {
            self.skip_blanks();
            match self.rest.first()? {
                b']' => {
                    self.skip(1);
                    return Some(Value::List(list));
                }
                b',' => self.skip(1),
                _ => {
                    self.count()?;
                    list.push(self.scalar()?);
                }
            }
        }
    }

    fn scalar(&mut self) -> Option<Value<'a>> {
        if self.rest.first() != Some(&b'"') {
            let word = self.word()?;
            return Some(Value::Number(
                std::str::from_utf8(word).ok().and_then(|w| w.parse().ok()),
            ));
        }
        self.skip(1);
        let mut escaped = false;
        let end = self.rest.iter().position(|b| {
            let ends = *b == b'"' && !escaped;
            escaped = *b == b'\\' && !escaped;
            ends
        })?;
        let (text, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        self.skip(1);
        Some(Value::Text(text))
    }

    fn word(&mut self) -> Option<&'a [u8]> {
        let ends = |b: &u8| b.is_ascii_whitespace() || b"{}[]=,#\"".contains(b);
        let len = self.rest.iter().position(ends).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.rest.first() == Some(&byte)).then(|| self.skip(1))
    }

    fn skip(&mut self, len: usize) {
        self.rest = self.rest.get(len..).unwrap_or_default();
    }

    fn skip_blanks(&mut self) {
        loop {
            self.rest = self.rest.trim_ascii_start();
            if self.rest.first() != Some(&b'#') {
                return;
            }
            let line = self
                .rest
                .iter()
                .position(|b| *b == b'\n')
                .unwrap_or(self.rest.len());
            self.skip(line);
        }
    }

    fn count(&mut self) -> Option<()> {
        self.values = self.values.checked_add(1)?;
        (self.values <= MAX_VALUES).then_some(())
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_lvm_writes() {
        let text = b"# made by hand\nvg {\n\tid = \"a\\\"b\" # note\n\tseqno = 7\n\tflags = []\n\
            status = [\"READ\", \"WRITE\"]\n x { stripes = [\n\"pv0\", 1,\n\"pv1\", 22\n] } }\n\
            version = 1.5\n\0\0garbage {";
        let all = Section::parse(text).unwrap();
        let vg = all.section("vg").unwrap();
        assert_eq!(vg.text("id").unwrap(), "a\\\"b");
        assert_eq!(vg.number("seqno"), Some(7));
        assert!(vg.lists("status", "WRITE") && !vg.lists("flags", "WRITE"));
        let pairs = vg.section("x").unwrap().pairs("stripes").unwrap();
        assert_eq!(pairs, [("pv0".to_owned(), 1), ("pv1".to_owned(), 22)]);
        assert_eq!(all.number("version"), None);
        assert_eq!(all.sections().count(), 1);
    }

    #[test]
    fn refuses_what_is_no_such_text() {
        for text in [
            "a",
            "a {",
            "a = ",
            "a = \"x",
            "a = [1, ",
            "}",
            "a = {",
            "= 1",
            "a = [[1]]",
        ] {
            assert!(Section::parse(text.as_bytes()).is_none(), "{text}");
        }
        assert!(Section::parse("a {".repeat(100_000).as_bytes()).is_none());
        assert!(Section::parse("a=1 ".repeat(MAX_VALUES + 1).as_bytes()).is_none());
        assert!(Section::parse("a=1 ".repeat(1000).as_bytes()).is_some());
    }
}
