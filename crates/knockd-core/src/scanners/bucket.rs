//! Some of the sources that have tried ports of no door, bounded.
//!
//! A flood of new sources reads a bucket for every packet, from memory that no cache holds. So everything that is
//! searched lies together, apart from what only the packet's own source needs.

use std::net::IpAddr;
use std::num::NonZeroU32;

use super::{MINUTE, Scanners};
use crate::sequence::Step;
use crate::time::Timestamp;

/// The number of sources in a bucket; all buckets together hold 65,536.
///
/// A full bucket makes room by dropping a source that has been quiet, or else one that has tried the fewest ports,
/// and of those the one seen longest ago; scanners go last. So single packets from any number of sources evict only
/// sources like themselves.
pub(super) const SOURCES: usize = 16;

/// The unit in which packets are counted: an IPv4 address, or the upper half of an IPv6 address.
///
/// IPv4 addresses use the numbers of IPv6 networks that are never assigned (RFC 4291, section 2.5.2).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Network(pub(super) u64);

impl Network {
    pub(super) fn of(source: IpAddr) -> Self {
        match source {
            IpAddr::V4(address) => Self(address.to_bits().into()),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments().map(u64::from);
                Self(a << 48 | b << 32 | c << 16 | d)
            }
        }
    }
}

/// A time in whole seconds since the origin, which takes half the space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(super) struct Second(pub(super) u32);

impl Second {
    pub(super) fn of(moment: Timestamp) -> Self {
        Self(u32::try_from(moment.since(Timestamp::ZERO).as_secs()).unwrap_or(u32::MAX))
    }

    /// Says whether more than a minute has passed until `now`, as far as whole seconds can tell.
    const fn is_over(self, now: Self) -> bool {
        now.0.saturating_sub(self.0) > MINUTE
    }
}

/// A port that was tried, and when last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Try {
    pub(super) step: Step,
    pub(super) at: Second,
}

/// Sources, each with the same place in all three lists.
#[derive(Default, Debug)]
pub(super) struct Bucket {
    networks: [Network; SOURCES],
    states: [State; SOURCES],
    /// The ports that each source has tried, each once, at most as many as the limit. They are stored only from the
    /// second port on, because most sources of a flood come once: for such a source, the place still has its previous
    /// content.
    tries: [Vec<Try>; SOURCES],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct State {
    /// When its last stray arrived; for a scanner, its last connection attempt.
    seen: Second,
    /// The port that it tried, if it is only one.
    only: Step,
    standing: Standing,
}

impl Default for State {
    fn default() -> Self {
        Self { seen: Second::default(), only: Step::tcp(0), standing: Standing::Quiet }
    }
}

/// How close a source is to being a scanner.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Standing {
    /// No source, or one that has been quiet for a minute.
    #[default]
    Quiet,
    /// It has tried this many ports.
    Suspect(u8),
    Scanner,
}

impl State {
    const fn standing_at(self, now: Second) -> Standing {
        if self.seen.is_over(now) { Standing::Quiet } else { self.standing }
    }

    /// Returns its rank: the lower, the sooner it makes room; first by standing, then by when it was seen; 48 bits.
    fn rank_at(self, now: Second) -> u64 {
        let standing: u64 = match self.standing_at(now) {
            Standing::Quiet => 0,
            Standing::Suspect(tries) => tries.into(),
            Standing::Scanner => 256,
        };
        standing << 32 | u64::from(self.seen.0)
    }
}

/// A source in a bucket.
pub(super) struct Source<'a> {
    state: &'a mut State,
    tries: &'a mut Vec<Try>,
}

impl Bucket {
    /// Finds a source.
    pub(super) fn source(&mut self, network: Network) -> Option<Source<'_>> {
        // A place that was never used has network 0, and is `Quiet`.
        let mut known = self.networks.iter().zip(&self.states);
        let place =
            known.position(|(known, state)| *known == network && state.standing != Standing::Quiet)?;
        self.at(place)
    }

    /// Says whether a source is a scanner.
    pub(super) fn is_scanner(&self, network: Network, now: Second) -> bool {
        let mut known = self.networks.iter().zip(&self.states);
        known.any(|(known, state)| *known == network && state.standing_at(now) == Standing::Scanner)
    }

    /// Adds a source that is not in the bucket.
    pub(super) fn remember(&mut self, network: Network, first: Try) {
        // As single numbers, they are compared without an unpredictable branch.
        let ranks = (0_u64..).zip(&self.states).map(|(place, state)| state.rank_at(first.at) << 8 | place);
        let place = ranks.min().map_or(0, |least| (least & 0xff) as usize);
        if let Some(known) = self.networks.get_mut(place) {
            *known = network;
        }
        if let Some(state) = self.states.get_mut(place) {
            *state = State { seen: first.at, only: first.step, standing: Standing::Suspect(1) };
        }
    }

    fn at(&mut self, place: usize) -> Option<Source<'_>> {
        Some(Source { state: self.states.get_mut(place)?, tries: self.tries.get_mut(place)? })
    }
}

impl Source<'_> {
    pub(super) fn is_scanner_at(&self, now: Second) -> bool {
        self.state.standing_at(now) == Standing::Scanner
    }

    /// Notes a connection attempt by a scanner.
    pub(super) const fn see(&mut self, now: Second) {
        self.state.seen = now;
    }

    /// Adds a try of a source that is not a scanner, and says whether it is one now.
    pub(super) fn exceeds(&mut self, limit: NonZeroU32, new: Try) -> bool {
        if self.state.standing == Standing::Suspect(1) {
            // If it was its only port, this was also its last stray.
            self.tries.clear();
            self.tries.push(Try { step: self.state.only, at: self.state.seen });
        }
        self.state.seen = new.at;
        self.tries.retain(|known| !known.at.is_over(new.at));
        if let Some(known) = self.tries.iter_mut().find(|known| known.step == new.step) {
            known.at = new.at;
        } else if self.tries.len() < limit.get().min(Scanners::MAX_LIMIT) as usize {
            self.tries.push(new);
        } else {
            *self.tries = Vec::new();
            self.state.standing = Standing::Scanner;
            return true;
        }
        if let [only] = self.tries.as_slice() {
            self.state.only = only.step;
        }
        self.state.standing = Standing::Suspect(u8::try_from(self.tries.len()).unwrap_or(u8::MAX));
        false
    }
}

#[cfg(test)]
impl Bucket {
    /// Returns the room in its lists of tries.
    pub(super) fn capacities(&self) -> impl Iterator<Item = usize> + '_ {
        self.tries.iter().map(Vec::capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: NonZeroU32 = NonZeroU32::MAX;

    fn attempt(port: u16, seen: u32) -> Try {
        Try { step: Step::tcp(port), at: Second(seen) }
    }

    impl Bucket {
        fn with_suspect(mut self, network: u64, tries: u16, seen: u32) -> Self {
            self.remember(Network(network), attempt(0, seen));
            for port in 1..tries {
                assert!(!self.source(Network(network)).unwrap().exceeds(LIMIT, attempt(port, seen)));
            }
            self
        }

        fn with_scanner(self, network: u64, seen: u32) -> Self {
            let mut bucket = self.with_suspect(network, 1, seen);
            let mut source = bucket.source(Network(network)).unwrap();
            assert!(source.exceeds(NonZeroU32::MIN, attempt(1, seen)));
            bucket
        }

        /// Returns which sources are evicted, one after another, by new sources that arrive at `now`.
        fn pushed_out(mut self, count: u64, now: u32) -> Vec<u64> {
            let mut gone = Vec::new();
            for index in 0..count {
                let before = self.networks;
                self.remember(Network(1000 + index), attempt(1, now));
                let is_gone = |known: &&Network| known.0 != 0 && !self.networks.contains(known);
                gone.extend(before.iter().filter(is_gone).map(|known| known.0));
            }
            gone
        }
    }

    #[test]
    fn a_full_bucket_drops_who_was_quiet_then_the_fewest_tries_then_the_oldest_and_scanners_last() {
        let mut bucket = Bucket::default()
            .with_suspect(1, 3, 100)
            .with_suspect(2, 2, 90)
            .with_scanner(3, 39)
            .with_scanner(4, 80);
        for network in 5..16 {
            bucket = bucket.with_suspect(network, 4, 100);
        }
        let bucket = bucket.with_suspect(16, 2, 91);
        assert_eq!(bucket.pushed_out(3, 100), [3, 1000, 1001]);

        let advanced = (0..15_u32)
            .fold(Bucket::default(), |bucket, n| bucket.with_suspect(u64::from(n) + 1, 2, 100 - n))
            .with_scanner(16, 50);
        assert_eq!(advanced.pushed_out(1, 100), [15]);

        let scanners =
            (1..=16_u32).fold(Bucket::default(), |bucket, n| bucket.with_scanner(n.into(), 60 + n));
        assert_eq!(scanners.pushed_out(3, 100), [1, 1000, 1001]);
    }

    #[test]
    fn nobody_is_pushed_out_while_there_is_room_or_somebody_was_quiet() {
        let bucket = Bucket::default().with_suspect(1, 9, 39).with_suspect(2, 1, 100);
        assert_eq!(bucket.pushed_out(14, 99), [0; 0]);
        let bucket = (1..=16).fold(Bucket::default(), |bucket, n| bucket.with_suspect(n, 1, 100));
        let bucket = bucket.with_suspect(17, 9, 39);
        assert_eq!(bucket.pushed_out(1, 100), [17]);
    }

    #[test]
    fn the_network_with_the_number_0_is_one_like_others() {
        assert!(Bucket::default().source(Network(0)).is_none());
        let mut bucket = Bucket::default().with_suspect(7, 1, 1).with_suspect(0, 1, 1);
        assert!(bucket.source(Network(0)).unwrap().exceeds(NonZeroU32::MIN, attempt(2, 1)));
        assert!(bucket.source(Network(0)).unwrap().is_scanner_at(Second(61)));
        assert!(!bucket.source(Network(0)).unwrap().is_scanner_at(Second(62)));
    }

    #[test]
    fn addresses_of_a_64_are_one_network_and_ipv4_addresses_are_one_each() {
        let of = |text: &str| Network::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn what_is_looked_through_takes_320_bytes() {
        assert_eq!((size_of::<Network>(), size_of::<State>(), size_of::<Try>()), (8, 12, 8));
    }
}
