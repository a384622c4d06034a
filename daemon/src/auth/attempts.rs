//! How often one may guess a password.
//!
//! An attempt is counted as a failure before the password is looked at, and taken
//! back when it was right: so a thousand attempts at the same moment are a thousand
//! failures, and not one. They are counted by account and address, by account, and
//! by address; the oldest names are forgotten where too many are known.

use std::collections::VecDeque;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

/// How long a failure counts.
const WINDOW: Duration = Duration::from_secs(15 * 60);
/// Failures of one account from one address.
const PER_PAIR: usize = 5;
/// Failures of one account from anywhere.
const PER_ACCOUNT: usize = 20;
/// Failures from one address.
const PER_ADDRESS: usize = 30;
/// Accounts, addresses and pairs that are remembered, of each.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(16_383);
/// What is kept of an account's name, in characters: none that is longer exists.
const NAME: usize = 64;

/// The failures of late.
pub(crate) struct Attempts(Mutex<Tables>);

struct Tables {
    pairs: Failures<(String, IpAddr), PER_PAIR>,
    accounts: Failures<String, PER_ACCOUNT>,
    addresses: Failures<IpAddr, PER_ADDRESS>,
}

/// When each failed, the oldest first; never more than `LIMIT` of one.
struct Failures<K: Hash + Eq, const LIMIT: usize>(LruCache<K, VecDeque<Instant>>);

impl<K: Hash + Eq, const LIMIT: usize> Failures<K, LIMIT> {
    fn new() -> Self {
        Self(LruCache::new(REMEMBERED))
    }

    /// How long there may be no attempt.
    fn wait(&mut self, key: &K, now: Instant) -> Option<Duration> {
        let times = self.0.peek_mut(key)?;
        while times
            .front()
            .is_some_and(|&time| now.saturating_duration_since(time) >= WINDOW)
        {
            times.pop_front();
        }
        let oldest = times.front().filter(|_| times.len() >= LIMIT)?;
        Some(WINDOW.saturating_sub(now.saturating_duration_since(*oldest)))
    }

    fn add(&mut self, key: K, now: Instant) {
        self.0.get_or_insert_mut(key, VecDeque::new).push_back(now);
    }

    /// Takes the failure of a moment back.
    fn take_back(&mut self, key: &K, when: Instant) {
        let Some(times) = self.0.peek_mut(key) else {
            return;
        };
        if let Some(at) = times.iter().rposition(|&time| time == when) {
            times.remove(at);
        }
        if times.is_empty() {
            self.0.pop(key);
        }
    }
}

/// An attempt that has begun, and counts as failed unless it is said otherwise.
#[derive(Debug)]
#[must_use = "an attempt that is right has to be taken back"]
pub(crate) struct Attempt {
    account: String,
    address: IpAddr,
    when: Instant,
}

impl Attempts {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Tables {
            pairs: Failures::new(),
            accounts: Failures::new(),
            addresses: Failures::new(),
        }))
    }

    /// Begins an attempt on an account, which need not exist.
    ///
    /// # Errors
    /// How long there may be none, rounded up to a second: at least one.
    pub(crate) fn begin(
        &self,
        account: &str,
        address: IpAddr,
        now: Instant,
    ) -> Result<Attempt, Duration> {
        let account: String = account.chars().take(NAME).collect();
        let address = network(address);
        let pair = (account, address);
        let mut tables = self.0.lock();
        let waits = [
            tables.pairs.wait(&pair, now),
            tables.accounts.wait(&pair.0, now),
            tables.addresses.wait(&address, now),
        ];
        if let Some(wait) = waits.into_iter().flatten().max() {
            let part = u64::from(wait.subsec_nanos() > 0);
            let seconds = wait.as_secs().saturating_add(part).max(1);
            return Err(Duration::from_secs(seconds));
        }
        tables.accounts.add(pair.0.clone(), now);
        tables.addresses.add(address, now);
        let account = pair.0.clone();
        tables.pairs.add(pair, now);
        Ok(Attempt {
            account,
            address,
            when: now,
        })
    }

    /// The password was right: what failed before for this account from this address
    /// is forgotten.
    pub(crate) fn succeeded(&self, attempt: Attempt) {
        let mut tables = self.0.lock();
        tables.accounts.take_back(&attempt.account, attempt.when);
        tables.addresses.take_back(&attempt.address, attempt.when);
        tables.pairs.0.pop(&(attempt.account, attempt.address));
    }

    /// The password was not looked at.
    pub(crate) fn withdrawn(&self, attempt: Attempt) {
        let mut tables = self.0.lock();
        tables.accounts.take_back(&attempt.account, attempt.when);
        tables.addresses.take_back(&attempt.address, attempt.when);
        let pair = (attempt.account, attempt.address);
        tables.pairs.take_back(&pair, attempt.when);
    }
}

/// What counts as one address: of IPv6 the /64 that one customer has.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Tries until it is refused: how many attempts were let through, and the wait.
    fn exhaust(
        attempts: &Attempts,
        now: Instant,
        mut next: impl FnMut(usize) -> (String, IpAddr),
    ) -> (usize, Duration) {
        for count in 0..1000 {
            let (account, address) = next(count);
            if let Err(wait) = attempts.begin(&account, address, now) {
                return (count, wait);
            }
        }
        panic!("never refused");
    }

    #[test]
    fn each_limit_holds() {
        let (now, home) = (Instant::now(), address("192.0.2.1"));
        let far = |n: usize| IpAddr::from([198, 51, 100, u8::try_from(n).unwrap()]);
        let all = Duration::from_secs(900);
        let pair = exhaust(&Attempts::new(), now, |_| ("anna".into(), home));
        assert_eq!(pair, (5, all));
        let account = exhaust(&Attempts::new(), now, |n| ("anna".into(), far(n)));
        assert_eq!(account, (20, all));
        let from_one = exhaust(&Attempts::new(), now, |n| (format!("user{n}"), home));
        assert_eq!(from_one, (30, all));
    }

    #[test]
    fn a_limit_passes_with_time() {
        let (attempts, start) = (Attempts::new(), Instant::now());
        let home = address("192.0.2.1");
        let minute = Duration::from_secs(60);
        for n in 0..5 {
            let _ = attempts.begin("anna", home, start + minute * n).unwrap();
        }
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let wait = attempts.begin("anna", home, at(300.0)).unwrap_err();
        assert_eq!(wait, Duration::from_secs(600));
        let wait = attempts.begin("anna", home, at(899.5)).unwrap_err();
        assert_eq!(wait, Duration::from_secs(1));
        // Being refused does not make it longer; then the second is the oldest.
        let _ = attempts.begin("anna", home, at(900.0)).unwrap();
        let wait = attempts.begin("anna", home, at(900.0)).unwrap_err();
        assert_eq!(wait, Duration::from_secs(60));
        // Others are not concerned.
        let _ = attempts.begin("bert", home, at(900.0)).unwrap();
        let _ = attempts
            .begin("anna", address("192.0.2.2"), at(900.0))
            .unwrap();
    }

    #[test]
    fn success_clears_the_pair_and_counts_nowhere() {
        let (attempts, now) = (Attempts::new(), Instant::now());
        let home = address("192.0.2.1");
        for _ in 0..100 {
            let right = attempts.begin("anna", home, now).unwrap();
            attempts.succeeded(right);
        }
        for _ in 0..4 {
            let _ = attempts.begin("anna", home, now).unwrap();
        }
        let right = attempts.begin("anna", home, now).unwrap();
        attempts.succeeded(right);
        let (let_through, _) = exhaust(&attempts, now, |_| ("anna".into(), home));
        assert_eq!(let_through, 5);
        // The address has 9 failures by now: one's own account does not clear them.
        let (let_through, _) = exhaust(&attempts, now, |n| {
            let right = attempts.begin("mine", home, now);
            right
                .into_iter()
                .for_each(|right| attempts.succeeded(right));
            (format!("user{n}"), home)
        });
        assert_eq!(let_through, 21);
    }

    #[test]
    fn what_was_not_looked_at_counts_nowhere() {
        let (attempts, now) = (Attempts::new(), Instant::now());
        let home = address("192.0.2.1");
        let _ = attempts.begin("anna", home, now).unwrap();
        for _ in 0..100 {
            let busy = attempts.begin("anna", home, now).unwrap();
            attempts.withdrawn(busy);
        }
        let (let_through, _) = exhaust(&attempts, now, |_| ("anna".into(), home));
        assert_eq!(let_through, 4);
    }

    #[test]
    fn an_address_is_a_network() {
        let now = Instant::now();
        let mut hosts =
            (1_u128..).map(|n| IpAddr::from(Ipv6Addr::from_bits((0x2001_0db8 << 96) | n)));
        let one = exhaust(&Attempts::new(), now, |_| {
            ("anna".into(), hosts.next().unwrap())
        });
        assert_eq!(one.0, 5);
        assert_eq!(network(address("::ffff:192.0.2.1")), address("192.0.2.1"));
        assert_ne!(
            network(address("2001:db8:0:1::1")),
            network(address("2001:db8:0:2::1"))
        );
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (attempts, now) = (Attempts::new(), Instant::now());
        for n in 0..40_000_u32 {
            let address = IpAddr::from(n.to_be_bytes());
            let _ = attempts.begin(&format!("{n}{}", "x".repeat(10_000)), address, now);
        }
        let tables = attempts.0.lock();
        assert_eq!(tables.pairs.0.len(), REMEMBERED.get());
        assert_eq!(tables.accounts.0.len(), REMEMBERED.get());
        assert_eq!(tables.addresses.0.len(), REMEMBERED.get());
        assert!(tables.accounts.0.iter().all(|(name, _)| name.len() <= NAME));
    }
}
