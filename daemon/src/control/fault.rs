//! Errors on their way through the control socket.
//!
//! The idea: the sentence is for people and goes as it is; those kinds that a
//! program answers differently go with what they hold, so that the client has the
//! same [`Error`] as the daemon had. All others arrive as [`Error::Daemon`].

use std::time::Duration;

use sendense::{Error, Shortage};
use serde::{Deserialize, Serialize};

/// What kind of error it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Fault {
    NotFound { what: String },
    Gone { what: String },
    Unknown,
    Expired,
    MountedAlready { what: String, mount_id: String },
    NoSlot { slots: usize, shortage: Shortage },
    Exhausted,
    Invalid,
    TimedOut { what: String, milliseconds: u64 },
    Other,
}

impl From<&Error> for Fault {
    fn from(error: &Error) -> Self {
        match error.clone() {
            Error::NotFound { what } => Self::NotFound { what },
            Error::Gone { what } => Self::Gone { what },
            Error::Unknown(_) => Self::Unknown,
            Error::Expired => Self::Expired,
            Error::MountedAlready { what, mount_id } => Self::MountedAlready { what, mount_id },
            Error::NoSlot { slots, shortage } => Self::NoSlot { slots, shortage },
            Error::Exhausted { .. } => Self::Exhausted,
            Error::Invalid(_) => Self::Invalid,
            Error::TimedOut { what, after } => Self::TimedOut {
                what,
                milliseconds: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
            },
            _ => Self::Other,
        }
    }
}

impl Fault {
    /// The error that it was, with its sentence.
    pub(super) fn into_error(self, message: String) -> Error {
        match self {
            Self::NotFound { what } => Error::NotFound { what },
            Self::Gone { what } => Error::Gone { what },
            Self::Unknown => Error::Unknown(message),
            Self::Expired => Error::Expired,
            Self::MountedAlready { what, mount_id } => Error::MountedAlready { what, mount_id },
            Self::NoSlot { slots, shortage } => Error::NoSlot { slots, shortage },
            Self::Exhausted => Error::Exhausted { what: message },
            Self::Invalid => Error::Invalid(message),
            Self::TimedOut { what, milliseconds } => Error::TimedOut {
                what,
                after: Duration::from_millis(milliseconds),
            },
            Self::Other => Error::Daemon(message),
        }
    }
}
