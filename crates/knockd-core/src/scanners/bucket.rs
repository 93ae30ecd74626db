//! Some of the sources that have tried ports of no door, bounded.
//!
//! A flood of new sources reads a bucket for every packet, from memory that no cache holds. So everything that is
//! searched lies together, apart from what only the packet's own source needs.

use std::num::NonZeroU32;
use std::time::Duration;

use super::MINUTE;
use crate::network::Network;
use crate::sequence::Step;
use crate::time::Timestamp;

/// The number of sources in a bucket; all buckets together hold 65,536.
///
/// A full one makes room by dropping a source without a stray in the last minute, else the one that has tried the
/// fewest ports, of those the one whose last stray is the oldest. Scanners have tried the most and go last. So one
/// packet each from any number of sources pushes out only sources of one packet.
pub(super) const SOURCES: usize = 16;

/// A time in whole seconds since the origin, which takes half the space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(super) struct Second(pub(super) u32);

impl Second {
    /// The first moment at which more than a minute has passed, as far as whole seconds can tell.
    pub(super) fn over(self) -> Timestamp {
        Timestamp::ZERO.after(Duration::from_secs(u64::from(self.0) + u64::from(MINUTE) + 1))
    }

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
    /// The ports that each has tried, every port once, the latest last. One more than the limit is enough to tell
    /// scanners, so older ones are dropped. Used only from the second port on, since most of a flood's sources come
    /// once: what one of them leaves behind is whatever was here before.
    tries: [Vec<Try>; SOURCES],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct State {
    /// When its last stray came.
    seen: Second,
    /// The port that it tried, while it is only one.
    only: Step,
    /// How many ports it had tried within a minute when its last stray came; 0 for a place that nobody has had.
    tries: u8,
}

impl Default for State {
    fn default() -> Self {
        Self { seen: Second::default(), only: Step::tcp(0), tries: 0 }
    }
}

impl State {
    /// The lower, the sooner it makes room for another: first by tries, then by when it was seen; 40 bits.
    fn rank_at(self, now: Second) -> u64 {
        let tries = if self.seen.is_over(now) { 0 } else { u64::from(self.tries) };
        tries << 32 | u64::from(self.seen.0)
    }

    /// Whether it has tried more ports than the limit within the last minute.
    fn is_scanner(self, tries: &[Try], limit: NonZeroU32, now: Second) -> bool {
        self.scanned(tries, limit, now).is_some()
    }

    /// When it tried the port that makes it a scanner for a minute; `None` if it is none.
    fn scanned(self, tries: &[Try], limit: NonZeroU32, now: Second) -> Option<Second> {
        let limit = limit.get() as usize;
        let known = tries.iter().nth_back(limit).filter(|_| usize::from(self.tries) > limit)?;
        Some(known.at).filter(|at| !at.is_over(now))
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
        let place = self.place_of(network)?;
        Some(Source { state: self.states.get_mut(place)?, tries: self.tries.get_mut(place)? })
    }

    /// Says whether a source is a scanner.
    pub(super) fn is_scanner(&self, network: Network, limit: NonZeroU32, now: Second) -> bool {
        let known =
            self.place_of(network).and_then(|place| self.states.get(place).zip(self.tries.get(place)));
        known.is_some_and(|(state, tries)| state.is_scanner(tries, limit, now))
    }

    /// Returns the scanners, each with when it tried the port that makes it one for a minute.
    pub(super) fn scanners(
        &self,
        limit: NonZeroU32,
        now: Second,
    ) -> impl Iterator<Item = (Network, Second)> + '_ {
        let known = self.networks.iter().zip(&self.states).zip(&self.tries);
        known.filter_map(move |((&network, state), tries)| Some((network, state.scanned(tries, limit, now)?)))
    }

    /// Forgets what a source has tried.
    pub(super) fn forget(&mut self, network: Network) {
        if let Some(state) = self.place_of(network).and_then(|place| self.states.get_mut(place)) {
            *state = State::default();
        }
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
            *state = State { seen: first.at, only: first.step, tries: 1 };
        }
    }

    fn place_of(&self, network: Network) -> Option<usize> {
        // A place that nobody has had is the network 0, without a try.
        let mut known = self.networks.iter().zip(&self.states);
        known.position(|(known, state)| *known == network && state.tries > 0)
    }
}

impl Source<'_> {
    pub(super) fn is_scanner(&self, limit: NonZeroU32, now: Second) -> bool {
        self.state.is_scanner(self.tries, limit, now)
    }

    /// Adds a try, be the source a scanner or not.
    pub(super) fn add(&mut self, new: Try, limit: NonZeroU32) {
        if self.state.tries == 1 {
            self.tries.clear();
            self.push(Try { step: self.state.only, at: self.state.seen }, limit);
        }
        let over = self.tries.iter().take_while(|known| known.at.is_over(new.at)).count();
        self.tries.drain(..over);
        if let Some(place) = self.tries.iter().position(|known| known.step == new.step) {
            self.tries.remove(place);
        }
        let surplus = self.tries.len().saturating_sub(limit.get() as usize);
        self.tries.drain(..surplus);
        self.push(new, limit);
        let tries = u8::try_from(self.tries.len()).unwrap_or(u8::MAX);
        *self.state = State { seen: new.at, only: new.step, tries };
    }

    fn push(&mut self, new: Try, limit: NonZeroU32) {
        let (len, room) = (self.tries.len(), self.tries.capacity());
        if len == room {
            // Left to itself, the vector would take more than can ever be needed.
            self.tries.reserve_exact((2 * room).clamp(2, limit.get() as usize + 1).saturating_sub(len));
        }
        self.tries.push(new);
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

    /// A source with more than ten tries is a scanner.
    const LIMIT: NonZeroU32 = NonZeroU32::new(10).unwrap();

    fn attempt(port: u16, seen: u32) -> Try {
        Try { step: Step::tcp(port), at: Second(seen) }
    }

    impl Bucket {
        fn with_suspect(mut self, network: u64, tries: u16, seen: u32) -> Self {
            self.remember(Network(network), attempt(0, seen));
            for port in 1..tries {
                let mut source = self.source(Network(network)).unwrap();
                assert!(!source.is_scanner(LIMIT, Second(seen)));
                source.add(attempt(port, seen), LIMIT);
            }
            self
        }

        fn with_scanner(self, network: u64, seen: u32) -> Self {
            let bucket = self.with_suspect(network, 11, seen);
            assert!(bucket.is_scanner(Network(network), LIMIT, Second(seen)));
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
    fn a_full_bucket_drops_sources_without_a_recent_stray_then_the_fewest_tries_then_the_oldest_and_scanners_last()
     {
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
        bucket.source(Network(0)).unwrap().add(attempt(2, 1), NonZeroU32::MIN);
        assert!(bucket.is_scanner(Network(0), NonZeroU32::MIN, Second(61)));
        assert!(!bucket.is_scanner(Network(0), NonZeroU32::MIN, Second(62)));
    }

    #[test]
    fn a_source_has_room_for_one_port_more_than_the_limit_and_no_more() {
        for limit in [1, 2, 10, 64] {
            let limit = NonZeroU32::new(limit).unwrap();
            let mut bucket = Bucket::default().with_suspect(1, 1, 0);
            for port in 1..1000 {
                bucket.source(Network(1)).unwrap().add(attempt(port, 0), limit);
            }
            assert_eq!(bucket.capacities().max(), Some(limit.get() as usize + 1));
        }
    }

    #[test]
    fn of_more_ports_than_can_be_kept_the_latest_are_kept() {
        let mut bucket = Bucket::default().with_scanner(1, 0);
        // Eleven others, one each second, of which the first is tried again at the end.
        for (port, second) in (100..111).zip(1..).chain([(100, 12)]) {
            bucket.source(Network(1)).unwrap().add(attempt(port, second), LIMIT);
        }
        // The oldest of the latest eleven is the second one.
        assert!(bucket.is_scanner(Network(1), LIMIT, Second(62)));
        assert!(!bucket.is_scanner(Network(1), LIMIT, Second(63)));
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
