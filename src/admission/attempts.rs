//! How many wrong tokens an address may send: a few at once, then one a second. Pure: time is an
//! argument.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Wrong tokens an address may send at once.
const BURST: f64 = 10.0;
/// How long one of them takes to be forgotten.
const FORGET: Duration = Duration::from_secs(1);
/// Addresses that are remembered.
const ADDRESSES: usize = 1024;

/// What is remembered of those who sent wrong tokens.
#[derive(Debug, Default)]
pub struct Attempts {
    failures: HashMap<Option<IpAddr>, Failures>,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    /// How many are not forgotten, at `last`.
    count: f64,
    last: Instant,
}

impl Failures {
    fn count_at(self, now: Instant) -> f64 {
        let forgotten =
            now.saturating_duration_since(self.last).as_secs_f64() / FORGET.as_secs_f64();
        (self.count - forgotten).max(0.0)
    }
}

impl Attempts {
    /// Whether a call from `peer` may be looked at.
    ///
    /// # Errors
    /// How long it has to wait.
    pub fn check(&self, peer: Option<IpAddr>, now: Instant) -> Result<(), Duration> {
        let failures = self.failures.get(&network_of(peer));
        let over = failures.map_or(0.0, |failures| failures.count_at(now)) - (BURST - 1.0);
        if over <= 0.0 {
            Ok(())
        } else {
            Err(FORGET.mul_f64(over) + Duration::from_millis(1))
        }
    }

    /// Remembers that a call from `peer` had no right token.
    pub fn count_failure(&mut self, peer: Option<IpAddr>, now: Instant) {
        let network = network_of(peer);
        if !self.failures.contains_key(&network) && self.failures.len() >= ADDRESSES {
            self.make_room(now);
        }
        let failures = self.failures.entry(network).or_insert(Failures {
            count: 0.0,
            last: now,
        });
        let count = failures.count_at(now) + 1.0;
        *failures = Failures { count, last: now };
    }

    /// Forgets those who may send as many again as anyone, or else the one who was last heard of
    /// longest ago.
    fn make_room(&mut self, now: Instant) {
        self.failures
            .retain(|_, failures| failures.count_at(now) > 0.0);
        if self.failures.len() >= ADDRESSES {
            let oldest = self
                .failures
                .iter()
                .min_by_key(|(_, failures)| failures.last);
            if let Some(oldest) = oldest.map(|(network, _)| *network) {
                self.failures.remove(&oldest);
            }
        }
    }
}

/// One IPv6 customer has a /64, so that is what an address is there.
fn network_of(peer: Option<IpAddr>) -> Option<IpAddr> {
    peer.map(|peer| match peer.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(network.into())
        }
        v4 @ IpAddr::V4(_) => v4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_tokens_are_forgotten_one_a_second() {
        let mut attempts = Attempts::default();
        let peer = Some("192.0.2.1".parse().unwrap());
        let mut now = Instant::now();
        let mut looked_at = 0;
        // 1000 a second for a minute.
        for _ in 0..60_000 {
            now += Duration::from_millis(1);
            if attempts.check(peer, now).is_ok() {
                attempts.count_failure(peer, now);
                looked_at += 1;
            }
        }
        assert!((68..=71).contains(&looked_at), "{looked_at}");
    }

    #[test]
    fn many_addresses_take_bounded_memory_and_a_v6_network_is_one() {
        let mut attempts = Attempts::default();
        let now = Instant::now();
        for address in 0..100_000_u32 {
            attempts.count_failure(Some(IpAddr::V4(address.into())), now);
        }
        assert_eq!(attempts.failures.len(), ADDRESSES);
        let v6 = |last: u16| Some(IpAddr::V6([0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into()));
        for last in 0..10 {
            attempts.count_failure(v6(last), now);
        }
        assert!(attempts.check(v6(999), now).is_err());
    }
}
