//! Reading JSON from outside so that every complaint names the field, as
//! `backups[3].disks[0].disk_index`.

use crate::error::{Error, Result};
use serde_json::Value;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct At<'a> {
    value: &'a Value,
    place: String,
}

impl<'a> At<'a> {
    /// The whole document, which must be an object.
    pub(super) fn root(value: &'a Value) -> Result<Self> {
        let root = Self {
            value,
            place: String::new(),
        };
        if value.is_object() {
            Ok(root)
        } else {
            Err(root.fail("must be an object"))
        }
    }

    /// An error about this value.
    pub(super) fn fail(&self, why: impl std::fmt::Display) -> Error {
        let place = if self.place.is_empty() {
            "the document"
        } else {
            &self.place
        };
        Error::Invalid(format!("{place}: {why}"))
    }

    /// A field, if it is there and not null.
    pub(super) fn field(&self, name: &str) -> Option<Self> {
        let value = self.value.get(name).filter(|value| !value.is_null())?;
        let dot = if self.place.is_empty() { "" } else { "." };
        Some(Self {
            value,
            place: format!("{}{dot}{name}", self.place),
        })
    }

    /// A field that must be there.
    pub(super) fn required(&self, name: &str) -> Result<Self> {
        self.field(name)
            .ok_or_else(|| self.fail(format!("the field `{name}` is missing")))
    }

    /// The objects of a list; none where the field is not there.
    pub(super) fn objects(&self, name: &str) -> Result<Vec<At<'a>>> {
        let Some(list) = self.field(name) else {
            return Ok(Vec::new());
        };
        let Value::Array(values) = list.value else {
            return Err(list.fail("must be a list"));
        };
        let items = values.iter().enumerate().map(|(index, value)| {
            let item = Self {
                value,
                place: format!("{}[{index}]", list.place),
            };
            if value.is_object() {
                Ok(item)
            } else {
                Err(item.fail("must be an object"))
            }
        });
        items.collect()
    }

    /// Whether it is an object.
    pub(super) fn is_object(&self) -> bool {
        self.value.is_object()
    }

    /// Text that is not empty and holds no NUL.
    pub(super) fn text(&self) -> Result<String> {
        match self.value {
            Value::String(text) if text.is_empty() => Err(self.fail("must not be empty")),
            Value::String(text) if text.contains('\0') => Err(self.fail("must not hold a NUL")),
            Value::String(text) => Ok(text.clone()),
            _ => Err(self.fail("must be a string")),
        }
    }

    /// An optional text field; an empty one counts as not there.
    pub(super) fn text_field(&self, name: &str) -> Result<Option<String>> {
        match self.field(name) {
            Some(at) if at.value.as_str() == Some("") => Ok(None),
            Some(at) => at.text().map(Some),
            None => Ok(None),
        }
    }

    /// An id: text, or a whole number.
    pub(super) fn id(&self) -> Result<String> {
        match self.value {
            Value::Number(number) if number.is_u64() => Ok(number.to_string()),
            _ => self.text(),
        }
    }

    /// A whole number, not negative, that fits.
    pub(super) fn whole<T: TryFrom<i64>>(&self) -> Result<T> {
        self.value
            .as_i64()
            .filter(|number| *number >= 0)
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| self.fail("must be a whole number, 0 or more, in range"))
    }

    /// An optional whole number.
    pub(super) fn whole_field(&self, name: &str) -> Result<Option<i64>> {
        self.field(name).map(|at| at.whole()).transpose()
    }

    /// An optional number, not negative and at most `max`.
    pub(super) fn number_field(&self, name: &str, max: f64) -> Result<Option<f64>> {
        let Some(at) = self.field(name) else {
            return Ok(None);
        };
        match at.value.as_f64() {
            Some(number) if (0.0..=max).contains(&number) => Ok(Some(number)),
            _ => Err(at.fail(format!("must be a number from 0 to {max}"))),
        }
    }

    /// One of several words.
    pub(super) fn word(&self, words: &[&str]) -> Result<String> {
        let text = self.text()?;
        if words.contains(&text.as_str()) {
            return Ok(text);
        }
        Err(self.fail(format!("`{text}` is none of {}", words.join(", "))))
    }

    /// An RFC 3339 time, as the catalog stores it.
    pub(super) fn time(&self) -> Result<String> {
        let text = self.text()?;
        let time: jiff::Timestamp = text
            .parse()
            .map_err(|_| self.fail(format!("`{text}` is no RFC 3339 time")))?;
        super::shapes::rfc3339(time.as_second())
    }

    /// An optional time.
    pub(super) fn time_field(&self, name: &str) -> Result<Option<String>> {
        self.field(name).map(|at| at.time()).transpose()
    }

    /// A name that can be a folder of the tree.
    pub(super) fn folder_name(&self) -> Result<String> {
        let text = self.text()?;
        if super::layout::is_folder_name(&text) {
            return Ok(text);
        }
        Err(self.fail(format!("`{text}` cannot be the name of a folder")))
    }

    /// An absolute path without `.` and `..`.
    pub(super) fn path(&self) -> Result<String> {
        let text = self.text()?;
        let plain = text
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")));
        if plain {
            return Ok(text);
        }
        Err(self.fail(format!(
            "`{text}` is not an absolute path without `.`, `..` and `//`"
        )))
    }
}
