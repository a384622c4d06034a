//! Volumes that need a key: LUKS and BitLocker.
//!
//! The idea: a [`Lock`] says what is locked and by what; a volume that has been
//! opened with a key would be another [`super::Mapping`] over this one, with a
//! rule that decrypts, and this is the place where it would come from. Nothing
//! here knows any cryptography.

/// What keeps a volume closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// As `blkid` names it: `crypto_LUKS`, `BitLocker`.
    pub kind: String,
    /// The UUID in its header, empty if there is none: what a key is kept under.
    pub uuid: String,
}

impl Lock {
    /// What a user calls it.
    pub fn name(&self) -> &str {
        match self.kind.as_str() {
            "crypto_LUKS" => "LUKS",
            other => other,
        }
    }
}
