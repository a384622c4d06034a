//! Where a listing goes on.
//!
//! The idea: nothing is kept between two pages. The cursor itself says where the last
//! one ended: after a name, or at a position of the folder. Both mean the same for
//! ever, since a backup does not change.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::error::FilesError;

/// More characters than a cursor has: the longest name of FUSE is 4096 bytes.
const MAX_LENGTH: usize = 8192;

/// An entry's place in the order of a listing: folders first, then by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) is_file: bool,
    pub(crate) name: Box<[u8]>,
}

/// Where a page ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cursor {
    /// After this entry, in the order of names.
    After(Key),
    /// At this position, in the folder's own order.
    At(i64),
}

impl Cursor {
    /// The text that a client gives back.
    pub(crate) fn encode(&self) -> String {
        let bytes = match self {
            Self::After(key) => [if key.is_file { b"f" } else { b"d" }, &*key.name].concat(),
            Self::At(position) => [&b"p"[..], &position.to_be_bytes()].concat(),
        };
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// What [`Self::encode`] made a text of.
    ///
    /// # Errors
    /// `Invalid` for every other text.
    pub(crate) fn decode(text: &str) -> Result<Self, FilesError> {
        let bytes = (text.len() <= MAX_LENGTH)
            .then(|| URL_SAFE_NO_PAD.decode(text).ok())
            .flatten();
        let cursor = bytes.as_deref().and_then(|bytes| match bytes {
            [kind @ (b'd' | b'f'), name @ ..] if !name.is_empty() => Some(Self::After(Key {
                is_file: *kind == b'f',
                name: name.into(),
            })),
            [b'p', position @ ..] => {
                let position = i64::from_be_bytes(position.try_into().ok()?);
                (position >= 0).then_some(Self::At(position))
            }
            _ => None,
        });
        cursor.ok_or_else(invalid)
    }
}

/// The refusal of a cursor that no listing gave.
pub(crate) fn invalid() -> FilesError {
    FilesError::Invalid(
        "`cursor`: not one that a listing of this folder gave; begin without one".into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_come_back() {
        for cursor in [
            Cursor::After(Key {
                is_file: true,
                name: (*b"a\n\xff\"").into(),
            }),
            Cursor::After(Key {
                is_file: false,
                name: vec![b'x'; 1024].into(),
            }),
            Cursor::At(0),
            Cursor::At(i64::MAX),
        ] {
            let text = cursor.encode();
            assert!(
                text.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            );
            assert_eq!(Cursor::decode(&text).unwrap(), cursor);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let long = "ZmFh".repeat(4000);
        let negative = URL_SAFE_NO_PAD.encode([&b"p"[..], &(-1i64).to_be_bytes()].concat());
        for text in [
            "", "Zg", "ZA", "eHl6", "cA", "cHA", "!", "Z=", "é", &long, &negative,
        ] {
            assert_eq!(Cursor::decode(text).unwrap_err().status(), 400, "{text:?}");
        }
    }
}
