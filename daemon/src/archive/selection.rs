//! Which files and folders an archive is of, and what they are called in it.
//!
//! The idea: names in the archive begin where the paths part: all are relative to
//! the deepest folder that every one of them lies in. For one folder that is its
//! parent, so the archive holds that folder; for the root nothing is above it, so
//! the archive holds what is in it.

use sendense::Error;

use super::{Result, shown};

/// Paths that do not contain each other, relative to a folder common to all.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selection {
    /// The common folder, by its components.
    pub(super) base: Vec<Vec<u8>>,
    /// Below that, in order; an empty one is the base itself, whose entries have no
    /// prefix.
    pub(super) items: Vec<Vec<Vec<u8>>>,
}

impl Selection {
    /// Orders `paths` and drops those that are there twice or lie in another.
    ///
    /// # Errors
    /// `Invalid` for no paths at all, and for a component that is no name.
    pub(super) fn new(paths: &[Vec<Vec<u8>>]) -> Result<Self> {
        for name in paths.iter().flatten() {
            if name.is_empty()
                || matches!(name.as_slice(), b"." | b"..")
                || name.iter().any(|byte| matches!(byte, b'/' | 0))
            {
                let shown = shown(name);
                let sentence = format!("\"{shown}\" is not a name that a file can have");
                return Err(Error::Invalid(sentence).into());
            }
        }
        let mut sorted: Vec<&[Vec<u8>]> = paths.iter().map(Vec::as_slice).collect();
        // What lies in a folder comes right behind it.
        sorted.sort_unstable();
        sorted.dedup_by(|later, earlier| later.starts_with(earlier));
        let Some((first, others)) = sorted.split_first() else {
            return Err(Error::Invalid("an archive of no files at all".to_owned()).into());
        };
        let above = |path: &[Vec<u8>]| path.len().saturating_sub(1);
        let mut shared = above(first);
        for other in others {
            let same = first.iter().zip(other.iter()).take_while(|(a, b)| a == b);
            shared = shared.min(above(other)).min(same.count());
        }
        Ok(Self {
            base: first.iter().take(shared).cloned().collect(),
            items: sorted
                .iter()
                .map(|path| path.iter().skip(shared).cloned().collect())
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Vec<Vec<u8>> {
        let names = text.split('/').filter(|name| !name.is_empty());
        names.map(|name| name.as_bytes().to_vec()).collect()
    }

    fn select(paths: &[&str]) -> (String, Vec<String>) {
        let paths: Vec<_> = paths.iter().map(|text| path(text)).collect();
        let join = |names: &Vec<Vec<u8>>| String::from_utf8(names.join(&b'/')).unwrap();
        let selection = Selection::new(&paths).unwrap();
        let items = selection.items.iter().map(join).collect();
        (join(&selection.base), items)
    }

    #[test]
    fn names_begin_where_the_paths_part() {
        for (paths, base, items) in [
            (&["/a/Recovery"][..], "a", &["Recovery"][..]),
            (&["/"], "", &[""]),
            (&["/", "/a"], "", &[""]),
            (&["/a/b/c", "/a/b/d/e"], "a/b", &["c", "d/e"]),
            (&["/a/b", "/a/b"], "a", &["b"]),
            (&["/a/b/c", "/a/b"], "a", &["b"]),
            (&["/a/b", "/a/b!", "/a/b/c"], "a", &["b", "b!"]),
            (&["/x/1", "/y/1"], "", &["x/1", "y/1"]),
            (&["/x", "/y/z/1"], "", &["x", "y/z/1"]),
        ] {
            let wanted = items.iter().map(|item| (*item).to_owned()).collect();
            assert_eq!(select(paths), (base.to_owned(), wanted), "{paths:?}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in ["", ".", "..", "a/b", "a\0b"] {
            let path = vec![b"a".to_vec(), bad.as_bytes().to_vec()];
            assert!(Selection::new(&[path]).is_err(), "{bad:?}");
        }
        assert!(Selection::new(&[]).is_err());
    }
}
