//! What a client shows at each request: a JWT (RFC 7519) signed by HMAC-SHA256.
//!
//! There is one kind of token, with one header, so that what a header says is never
//! asked: it is ours to the letter, or the token is not. A token proves that it was
//! made here and has not expired; whether its user is still the same is for the
//! catalog to say.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use sendense::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use uuid::Uuid;

/// `{"alg":"HS256","typ":"JWT"}`.
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";
/// Longer than any of ours.
const MAX_TOKEN: usize = 1024;
/// How far ahead the clock of another host may be that made a token with the same key.
const SKEW: i64 = 60;

/// The key's file in the state directory, and its size in bytes.
const KEY_FILE: &str = "token.key";
const KEY_SIZE: usize = 32;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claims {
    /// The user's id, in decimal.
    sub: String,
    /// The user's name when the token was made.
    pub(crate) name: String,
    /// The user's generation.
    #[serde(rename = "gen")]
    pub(crate) generation: i64,
    /// The token's own id, a UUID v4.
    pub(crate) jti: String,
    /// When it was made, seconds since 1970.
    pub(crate) iat: i64,
    /// From when on it does not hold, seconds since 1970.
    pub(crate) exp: i64,
}

impl Claims {
    /// The user's id; 0, which is nobody's, where the token names none.
    pub(crate) fn user_id(&self) -> i64 {
        self.sub.parse().unwrap_or_default()
    }
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It was not made with this key, or is no token at all.
    NotOurs,
    /// It has held, and does not any more.
    Expired,
}

/// The secret that tokens are signed with.
#[derive(Clone)]
pub(crate) struct TokenKey(Hmac<Sha256>);

impl TokenKey {
    /// Reads the key from the state directory, and makes it first where there is none.
    ///
    /// # Errors
    /// `Invalid` where it has another size or others may read it; `Io` from the host.
    pub(crate) fn load(state_dir: &Path) -> Result<Self> {
        let path = state_dir.join(KEY_FILE);
        let fail = |e| Error::io(path.display().to_string(), e);
        let refuse = |why: &str| {
            Error::Invalid(format!(
                "{}: {why}; remove it, and the next start makes another one (all users then have \
                 to log in again)",
                path.display()
            ))
        };
        let open = || {
            OpenOptions::new()
                .read(true)
                // A pipe in its place would keep us waiting.
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(&path)
        };
        let file = match open() {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                make(state_dir, &path)?;
                open()
            }
            opened => opened,
        };
        let file = file.map_err(|e| match e.raw_os_error() {
            Some(libc::ELOOP) => refuse("is a symbolic link"),
            _ => fail(e),
        })?;
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file() {
            return Err(refuse("is not a regular file"));
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(Error::Invalid(format!(
                "{}: others may read it (mode {mode:04o}), and with it be anybody; if nobody has, \
                 `chmod 600` it, and otherwise remove it: the next start makes another one",
                path.display()
            )));
        }
        let mut secret = Vec::new();
        let limit = KEY_SIZE.saturating_add(1);
        file.take(limit as u64)
            .read_to_end(&mut secret)
            .map_err(fail)?;
        if secret.len() != KEY_SIZE {
            return Err(refuse(&format!("does not hold {KEY_SIZE} bytes")));
        }
        Self::new(&secret)
    }

    fn new(secret: &[u8]) -> Result<Self> {
        Hmac::new_from_slice(secret)
            .map(Self)
            .map_err(|_| Error::Invalid("the token key has no usable length".into()))
    }

    /// A new token for a user, who is of `generation`, that holds for `lifetime`.
    ///
    /// # Errors
    /// `Invalid` where it would be longer than any that is taken back.
    pub(crate) fn issue(
        &self,
        user_id: i64,
        name: &str,
        generation: i64,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<(String, Claims)> {
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        let claims = Claims {
            sub: user_id.to_string(),
            name: name.to_owned(),
            generation,
            jti: Uuid::new_v4().to_string(),
            iat: now.as_second(),
            exp: now.as_second().saturating_add(lifetime),
        };
        let payload = serde_json::to_vec(&claims)
            .map_err(|e| Error::Invalid(format!("a token for {name}: {e}")))?;
        let mut token = format!("{HEADER}.{}", BASE64.encode(payload));
        let signature = self.sign(token.as_bytes()).finalize().into_bytes();
        token.push('.');
        token.push_str(&BASE64.encode(signature));
        if token.len() > MAX_TOKEN {
            return Err(Error::Invalid(format!(
                "the name {name} is too long for a token"
            )));
        }
        Ok((token, claims))
    }

    /// What a token says, if it was made with this key and holds at `now`.
    pub(crate) fn verify(
        &self,
        token: &str,
        now: Timestamp,
    ) -> std::result::Result<Claims, Refusal> {
        let claims = self.read(token).ok_or(Refusal::NotOurs)?;
        let now = now.as_second();
        if claims.iat > now.saturating_add(SKEW) {
            return Err(Refusal::NotOurs);
        }
        if claims.exp <= now {
            return Err(Refusal::Expired);
        }
        Ok(claims)
    }

    fn read(&self, token: &str) -> Option<Claims> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let payload = signed.strip_prefix(HEADER)?.strip_prefix('.')?;
        let signature = BASE64.decode(signature).ok()?;
        // Takes as long whatever the signature is.
        self.sign(signed.as_bytes()).verify_slice(&signature).ok()?;
        let claims: Claims = serde_json::from_slice(&BASE64.decode(payload).ok()?).ok()?;
        (claims.user_id() > 0).then_some(claims)
    }

    /// What a page has to send back with each request that changes something, where
    /// the token came as a cookie: a page of another site cannot know it.
    pub(crate) fn csrf(&self, jti: &str) -> String {
        let tag = self.csrf_tag(jti).finalize().into_bytes();
        tag.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether that is [`Self::csrf`]. Takes as long whatever is given.
    pub(crate) fn csrf_matches(&self, jti: &str, given: &str) -> bool {
        let (pairs, rest) = given.as_bytes().as_chunks::<2>();
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte.wrapping_sub(b'0')),
            b'a'..=b'f' => Some(byte.wrapping_sub(b'a').wrapping_add(10)),
            _ => None,
        };
        let tag: Option<Vec<u8>> = pairs
            .iter()
            .take(KEY_SIZE.saturating_add(1))
            .map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?))
            .collect();
        let tag = tag.filter(|_| rest.is_empty());
        tag.is_some_and(|tag| self.csrf_tag(jti).verify_slice(&tag).is_ok())
    }

    /// No token begins like this: the two uses of the key cannot be mixed up.
    fn csrf_tag(&self, jti: &str) -> Hmac<Sha256> {
        self.sign(b"csrf:").chain_update(jti)
    }

    fn sign(&self, text: &[u8]) -> Hmac<Sha256> {
        self.0.clone().chain_update(text)
    }
}

/// Makes the key's file as a whole or not at all: several processes may start at once,
/// and all have to read the same key.
fn make(state_dir: &Path, path: &Path) -> Result<()> {
    let fail = |e| Error::io(path.display().to_string(), e);
    let mut secret = [0; KEY_SIZE];
    getrandom::fill(&mut secret).map_err(|e| fail(std::io::Error::other(e)))?;
    let beside = state_dir.join(format!("{KEY_FILE}.{}", Uuid::new_v4()));
    let linked = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| {
            file.write_all(&secret)?;
            file.sync_all()
        })
        // Unlike a rename, it leaves one that is there.
        .and_then(|()| fs::hard_link(&beside, path));
    // Nothing but litter if it stays.
    let _ = fs::remove_file(&beside);
    match linked {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(fail(e)),
        Ok(()) => File::open(state_dir)
            .and_then(|d| d.sync_all())
            .map_err(fail),
    }
}

#[cfg(test)]
mod tests;
