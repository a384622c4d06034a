//! Passwords, as argon2id hashes.
//!
//! A log-in costs the same whether the user is there or not: without one the
//! password is compared with a hash that nothing matches. Each hashing takes
//! [`MEMORY`], so that only so many run at once, and who waits too long is told.

use std::sync::OnceLock;
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use parking_lot::{Condvar, Mutex};
use sendense::{Error, Result};

/// Memory, rounds and lanes, as OWASP has them for argon2id. In KiB.
const MEMORY: u32 = 19 * 1024;
const ROUNDS: u32 = 2;
const LANES: u32 = 1;

const MIN_CHARACTERS: usize = 8;
const MAX_BYTES: usize = 1024;

/// Refuses a new password that is too short or too long.
///
/// # Errors
/// `Invalid`, which does not say the password.
pub(crate) fn check_rules(password: &str) -> Result<()> {
    let refuse = |text: String| Err(Error::Invalid(text));
    if password.chars().count() < MIN_CHARACTERS {
        return refuse(format!(
            "the password is too short: it needs at least {MIN_CHARACTERS} characters"
        ));
    }
    if password.len() > MAX_BYTES {
        return refuse(format!(
            "the password is too long: it may have at most {MAX_BYTES} bytes"
        ));
    }
    Ok(())
}

/// The hash of a new password as a PHC string, with a salt of its own.
///
/// # Errors
/// As [`check_rules`]; `Invalid` where the host has no randomness.
pub(crate) fn hash(password: &str) -> Result<String> {
    check_rules(password)?;
    let hashed = argon2id().and_then(|argon2| argon2.hash_password(password.as_bytes()));
    hashed
        .map(|hash| hash.to_string())
        .map_err(|e| Error::Invalid(format!("the password could not be hashed: {e}")))
}

/// Whether a password is the one of `stored`, a PHC string; without one (no such
/// user) it is not, after the same work.
pub(crate) fn verify(password: &str, stored: Option<&str>) -> bool {
    // No password of this length was ever taken, whoever the user is.
    if password.len() > MAX_BYTES {
        return false;
    }
    let matches = |stored: &str| {
        // With the parameters that it was made with.
        PasswordHash::new(stored).is_ok_and(|stored| {
            Argon2::default()
                .verify_password(password.as_bytes(), &stored)
                .is_ok()
        })
    };
    match stored {
        Some(stored) => matches(stored),
        None => {
            matches(nobodys());
            false
        }
    }
}

fn argon2id() -> argon2::password_hash::Result<Argon2<'static>> {
    let params = Params::new(MEMORY, ROUNDS, LANES, None)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// A hash of the usual cost that belongs to no user.
fn nobodys() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| {
        argon2id()
            .and_then(|argon2| argon2.hash_password_with_salt(b"nobody's", b"nobody's salt 16"))
            .map(|hash| hash.to_string())
            .unwrap_or_default()
    })
}

/// Hashes and compares, a few at a time.
pub(crate) struct Hasher {
    free: Mutex<usize>,
    freed: Condvar,
    patience: Duration,
}

impl Hasher {
    /// At most `at_once` at a time; others wait for `patience`.
    pub(crate) fn new(at_once: usize, patience: Duration) -> Self {
        // Not at the first log-in of an unknown user, which would take longer.
        nobodys();
        Self {
            free: Mutex::new(at_once),
            freed: Condvar::new(),
            patience,
        }
    }

    /// As [`verify`]. Blocks.
    ///
    /// # Errors
    /// `TimedOut` where too many wait already: try again.
    pub(crate) fn verify(&self, password: &str, stored: Option<&str>) -> Result<bool> {
        self.admitted(|| verify(password, stored))
    }

    fn admitted<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let mut free = self.free.lock();
        self.freed
            .wait_while_for(&mut free, |free| *free == 0, self.patience);
        *free = free.checked_sub(1).ok_or_else(|| Error::TimedOut {
            what: "checking a password, as too many log in at once".into(),
            after: self.patience,
        })?;
        drop(free);
        let _turn = Turn(self);
        Ok(work())
    }
}

/// Somebody's turn, which ends also by a panic.
struct Turn<'a>(&'a Hasher);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut free = self.0.free.lock();
        *free = free.saturating_add(1);
        drop(free);
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const PASSWORD: &str = "correct horse";

    #[test]
    fn a_password_is_known_again_and_no_other() {
        let first = hash(PASSWORD).unwrap();
        assert!(
            first.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{first}"
        );
        assert_ne!(first, hash(PASSWORD).unwrap(), "each has its own salt");
        assert!(verify(PASSWORD, Some(&first)));
        for wrong in ["", "correct hors", "correct horse ", "Correct horse"] {
            assert!(!verify(wrong, Some(&first)), "{wrong}");
            assert!(!verify(wrong, None), "{wrong}");
        }
        for no_hash in ["", "x", "$argon2id$v=19$m=19456,t=2,p=1$"] {
            assert!(!verify("", Some(no_hash)) && !verify(PASSWORD, Some(no_hash)));
        }
        assert!(!verify("nobody's", None), "nobody logs in as nobody");
        // Whoever typed it, in any language.
        let umlauts = hash("pässwörd\u{1f511}").unwrap();
        assert!(verify("pässwörd\u{1f511}", Some(&umlauts)));
    }

    /// The reference implementation's command: `echo -n password | argon2 salt…`.
    #[test]
    fn the_reference_implementation_agrees() {
        let ours = argon2id()
            .unwrap()
            .hash_password_with_salt(PASSWORD.as_bytes(), b"0123456789abcdef")
            .unwrap()
            .to_string();
        let script =
            format!("printf %s '{PASSWORD}' | argon2 0123456789abcdef -id -t 2 -k 19456 -p 1 -e");
        let said = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&said.stdout).trim(),
            ours,
            "{said:?}"
        );
    }

    #[test]
    fn bad_passwords_are_refused_without_being_said() {
        for bad in ["", "seven77", "ééééééé", &"x".repeat(1025)] {
            let error = hash(bad).unwrap_err().to_string();
            assert!(error.starts_with("the password is too "), "{error}");
            assert!(bad.is_empty() || !error.contains(bad));
        }
        check_rules("éééééééé").unwrap();
        check_rules(&"x".repeat(1024)).unwrap();
        let long = "x".repeat(1025);
        assert!(!verify(&long, None));
    }

    #[test]
    fn an_unknown_user_takes_as_long() {
        let stored = hash(PASSWORD).unwrap();
        Hasher::new(1, Duration::ZERO);
        // Time on the processor, the shortest of several: what else runs here only adds.
        let on_processor = || -> u64 {
            let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
            told.split(' ').next().unwrap().parse().unwrap()
        };
        let cost = |stored: Option<&str>| {
            let before = on_processor();
            assert!(!verify("another password", stored));
            on_processor() - before
        };
        let costs = (0..12).map(|_| (cost(Some(&stored)), cost(None)));
        let (known, unknown) = costs.fold((u64::MAX, u64::MAX), |least, cost| {
            (least.0.min(cost.0), least.1.min(cost.1))
        });
        let ratio = known as f64 / unknown as f64;
        assert!((0.6..1.7).contains(&ratio), "{known:?} {unknown:?}");
    }

    #[test]
    fn only_so_many_are_hashed_at_once() {
        let hasher = Hasher::new(2, Duration::from_secs(30));
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let done = hasher.admitted(|| {
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(5));
                        now.fetch_sub(1, Ordering::SeqCst);
                    });
                    done.unwrap();
                });
            }
        });
        assert_eq!(most.into_inner(), 2);

        let hasher = Hasher::new(1, Duration::from_millis(10));
        let refused = hasher.admitted(|| hasher.verify(PASSWORD, None)).unwrap();
        assert!(
            matches!(refused, Err(Error::TimedOut { .. })),
            "{refused:?}"
        );
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            hasher.admitted(|| panic!("in the middle"))
        }));
        assert!(panicked.is_err());
        let stored = hash(PASSWORD).unwrap();
        assert!(hasher.verify(PASSWORD, Some(&stored)).unwrap());
    }
}
