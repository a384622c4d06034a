//! From words to values; every refusal names the key and where it was set.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Group, User};
use sendense::{Error, Result};

use super::keys::Key;
use super::{Origin, Written};

/// Turns words into values; every refusal names the key and where it was set.
pub(super) struct Values {
    pub(super) written: Vec<(&'static Key, Written)>,
}

impl Values {
    fn get(&self, name: &str) -> Result<&Written> {
        self.written
            .iter()
            .find(|(key, _)| key.name == name)
            .map(|(_, written)| written)
            .ok_or_else(|| Error::Invalid(format!("{name}: no such key")))
    }

    pub(super) fn refuse(&self, name: &str, reason: &str) -> Error {
        let origin = self.get(name).map_or(Origin::Default, |w| w.origin.clone());
        Error::Invalid(match origin {
            Origin::Default => format!("{name}: {reason}"),
            // The flag's or the variable's name is the key's already.
            Origin::Flag(_) | Origin::Environment(_) => format!("{origin}: {reason}"),
            Origin::File(..) => format!("{origin}: {name}: {reason}"),
        })
    }

    fn word_of(&self, name: &str) -> Result<&OsStr> {
        let written = self.get(name)?;
        match written.words.last() {
            Some(word) if !word.is_empty() && !written.list => Ok(word),
            _ => Err(self.refuse(name, "must not be empty")),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<String> {
        match self.word_of(name)?.to_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(self.refuse(name, "must be UTF-8 text")),
        }
    }

    fn absolute(&self, name: &str, word: &OsStr) -> Result<PathBuf> {
        let path = Path::new(word);
        if !path.is_absolute() {
            let reason = format!(
                "{word:?} is relative; give the absolute path, the daemon has no working folder"
            );
            return Err(self.refuse(name, &reason));
        }
        if path.components().any(|c| c == Component::ParentDir) {
            return Err(self.refuse(name, &format!("{word:?} must not contain `..`")));
        }
        if path.parent().is_none() {
            return Err(self.refuse(name, "must not be the root folder"));
        }
        Ok(path.components().collect())
    }

    pub(super) fn path(&self, name: &str) -> Result<PathBuf> {
        self.absolute(name, self.word_of(name)?)
    }

    /// `None` where it is empty.
    pub(super) fn optional_path(&self, name: &str) -> Result<Option<PathBuf>> {
        match self.get(name)?.words.last() {
            None => Ok(None),
            Some(word) if word.is_empty() => Ok(None),
            Some(word) => self.absolute(name, word).map(Some),
        }
    }

    pub(super) fn paths(&self, name: &str) -> Result<Vec<PathBuf>> {
        let words = &self.get(name)?.words;
        words.iter().map(|word| self.absolute(name, word)).collect()
    }

    pub(super) fn number(
        &self,
        name: &str,
        least: usize,
        most: usize,
        zero: &str,
    ) -> Result<usize> {
        let text = self.text(name)?;
        match text.parse::<usize>() {
            Ok(0) if least > 0 => Err(self.refuse(name, &format!("must not be 0: {zero}"))),
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            Ok(number) => {
                Err(self.refuse(name, &format!("{number} is not between {least} and {most}")))
            }
            Err(_) => Err(self.refuse(
                name,
                &format!("{text:?} is not a whole number ({least} to {most})"),
            )),
        }
    }

    pub(super) fn duration(&self, name: &str) -> Result<Duration> {
        let text = self.text(name)?;
        match humantime::parse_duration(&text) {
            Ok(Duration::ZERO) => Err(self.refuse(name, "must be longer than 0")),
            // Far more would overflow a deadline.
            Ok(duration) if duration.as_secs() > 10 * 365 * 86_400 => {
                Err(self.refuse(name, "must not be longer than ten years"))
            }
            Ok(duration) => Ok(duration),
            Err(_) => Err(self.refuse(
                name,
                &format!("{text:?} is not a duration with its unit, such as 500ms, 90s, 5m or 1h"),
            )),
        }
    }

    pub(super) fn size(&self, name: &str, least: u64, most: u64) -> Result<u64> {
        let text = self.text(name)?;
        let size = text
            .parse::<bytesize::ByteSize>()
            .map_err(|_| self.refuse(name, &format!("{text:?} is not a size, such as 64MiB")))?
            .as_u64();
        if size == 0 && least > 0 {
            return Err(self.refuse(
                name,
                &format!("must not be 0; at least {}", show_size(least)),
            ));
        }
        if !(least..=most).contains(&size) {
            let (least, most) = (show_size(least), show_size(most));
            return Err(self.refuse(name, &format!("{text} is not between {least} and {most}")));
        }
        Ok(size)
    }

    pub(super) fn word<T: Copy>(&self, name: &str, words: &[(&str, T)]) -> Result<T> {
        let text = self.text(name)?;
        words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                self.refuse(name, &format!("{text:?} is not one of {}", all.join(", ")))
            })
    }

    pub(super) fn time_zone(&self, name: &str) -> Result<jiff::tz::TimeZone> {
        sendense::filesystem::parse_time_zone(&self.text(name)?)
            .map_err(|error| self.refuse(name, &error.to_string()))
    }

    /// `USER:GROUP`, each a number or a name of this host.
    pub(super) fn owner(&self, name: &str) -> Result<(u32, u32)> {
        let text = self.text(name)?;
        let (user, group) = text
            .split_once(':')
            .filter(|(user, group)| !user.is_empty() && !group.is_empty())
            .ok_or_else(|| {
                let reason = format!(
                    "{text:?} is not an owner; write USER:GROUP, such as 1000:100 or alice:users"
                );
                self.refuse(name, &reason)
            })?;
        // The last number means "none" to the kernel.
        let number = |kind: &str, word: &str, known: Option<u32>| {
            let number = word.parse().ok().filter(|number| *number < u32::MAX);
            number.or(known).ok_or_else(|| {
                let reason = format!(
                    "there is no {kind} {word:?} on this host; write a name that there is, or a \
                     number (0 to {})",
                    u32::MAX - 1
                );
                self.refuse(name, &reason)
            })
        };
        let known = |word| User::from_name(word).ok().flatten();
        let user = number("user", user, known(user).map(|user| user.uid.as_raw()))?;
        let known = |word| Group::from_name(word).ok().flatten();
        let group = number("group", group, known(group).map(|group| group.gid.as_raw()))?;
        Ok((user, group))
    }

    /// Permissions in octal.
    pub(super) fn mode(&self, name: &str) -> Result<u16> {
        let text = self.text(name)?;
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        u16::from_str_radix(&text, 8)
            .ok()
            .filter(|mode| digits && *mode <= 0o777)
            .ok_or_else(|| {
                let reason = format!(
                    "{text:?} is not a mode; write it in octal (0 to 0777), such as \"0640\""
                );
                self.refuse(name, &reason)
            })
    }

    pub(super) fn parsed<T: std::str::FromStr>(&self, name: &str, wanted: &str) -> Result<T> {
        let text = self.text(name)?;
        text.parse()
            .map_err(|_| self.refuse(name, &format!("{text:?} is not {wanted}")))
    }
}

/// A size as people read it.
pub(crate) fn show_size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}
