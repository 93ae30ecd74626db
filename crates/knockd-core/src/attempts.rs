//! The table of attempts in progress: found by source, ordered by age, shared among doors and stages, bounded.
//!
//! A stranger can make it grow by one attempt per packet, so every operation takes constant time, and a full table
//! drops an attempt that is in no share of a door: [`shares`] says which, and what an honest knock can rely on. A host
//! in an IPv6 network has 2^64 addresses, so each /64 keeps at most [`index::PER_NETWORK`] attempts, at any stages and
//! doors; another one drops one of them, and nobody else's.
//!
//! Every attempt has a place in one vector, and through it is in four lists, or in three if no network counts it:
//!
//! ```text
//!   hash tables                         entries                        vectors of lists
//!                          ┌──────┬──────┬──────┬──────┬──────┐
//!   (source, class) ─────▶ │  A1  │  B1  │ free │  A2  │  C1  │ ◀──── queue of each timeout
//!     oldest first         │      │      │      │      │      │         the next to end first
//!                          │ four pairs of links in each entry│
//!   IPv6 /64 ────────────▶ │      │      │      │      │      │ ◀──── stages of each door, and crowd
//!     oldest first         └──────┴──────┴──────┴──────┴──────┘         longest there first
//! ```
//!
//! - What a packet of this source means: its list in [`index::Sources`].
//! - Which attempts have ended: the fronts of the queues. All in a queue last equally long, so a new one goes to the back.
//! - Which attempt makes room: the front of the crowd in [`shares::Shares`].
//! - Which attempt makes room for another of its network: the front of one of its two lists in [`index::Networks`].
//!
//! `list.rs` links, `entries.rs` stores, `index.rs` finds, `shares.rs` decides which attempt makes room, and this file
//! does the rest; `properties.rs` states the invariants. Ordered maps were tried in place of the lists:
//! docs/architecture.md has the figures.

mod entries;
mod index;
mod list;
#[cfg(test)]
mod properties;
mod shares;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use self::entries::Entries;
pub(crate) use self::entries::Slot;
use self::index::{Networks, Sources};
use self::list::{List, Order};
use self::shares::Shares;
use crate::seed::Seed;
use crate::time::Timestamp;

/// The stage of a source that opened a door and is now ignored by it for its `Cooldown`.
pub(crate) const COOLING: u8 = 0;

/// How many attempts a source may have at one door.
pub(crate) const PER_DOOR: u8 = 4;

/// Attempts of one source are found together if their doors watch the same destination.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct ClassId(pub(crate) u32);

/// Attempts with the same timeout share a queue, ordered by the time at which they end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct QueueId(pub(crate) u32);

/// The progress of one source at one door.
///
/// It may have several there, at different stages; those begun later are less far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Attempt {
    pub(crate) source: IpAddr,
    /// Index of the door in the configuration.
    pub(crate) door: u32,
    pub(crate) class: ClassId,
    pub(crate) queue: QueueId,
    /// Number of steps done, from 1; or [`COOLING`].
    pub(crate) stage: u8,
    /// The stage at which knockd 0.8 has an attempt with the same beginning, as far as this door goes; 0 if it has none.
    /// A source has at most one such attempt at a door, and it is never further in 0.8 than here.
    pub(crate) strict: u8,
    /// When the first step was hit.
    pub(crate) begun: Timestamp,
}

#[derive(Debug)]
pub(crate) struct Attempts {
    limit: usize,
    entries: Entries,
    sources: Sources,
    networks: Networks,
    queues: Vec<Queue>,
    shares: Shares,
    /// No attempt ends before this moment.
    next_end: Option<Timestamp>,
}

/// Attempts with the same timeout, oldest first.
#[derive(Debug)]
struct Queue {
    lasts: Duration,
    list: List,
}

impl Attempts {
    /// Creates an empty table for doors that have `stages` stages in total, with one queue per timeout; it takes memory
    /// only as it fills.
    pub(crate) fn new(limit: NonZeroU32, stages: usize, lasts: &[Duration], seed: Seed) -> Self {
        let limit = limit.get() as usize;
        let queues = lasts.iter().map(|&lasts| Queue { lasts, list: List::default() });
        Self {
            limit,
            entries: Entries::default(),
            sources: Sources::new(seed),
            networks: Networks::new(seed),
            queues: queues.collect(),
            shares: Shares::new(limit, stages),
            next_end: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns how many of them are sources in a `Cooldown` instead of attempts.
    pub(crate) const fn cooling(&self) -> usize {
        self.shares.cooling()
    }

    /// Returns an attempt; `None` after its removal, until another one takes its place.
    pub(crate) fn get(&self, slot: Slot) -> Option<&Attempt> {
        self.entries.get(slot)
    }

    /// Returns the oldest attempt of this source at doors of this class.
    pub(crate) fn first_of_source(&self, source: IpAddr, class: ClassId) -> Option<Slot> {
        self.sources.oldest(source, class, &self.entries)
    }

    /// Returns the next younger attempt of the same source and class.
    pub(crate) fn next_of_source(&self, slot: Slot) -> Option<Slot> {
        self.entries.links(slot, Order::Source)?.next
    }

    /// Returns all attempts, most advanced first; [`Shares::iter`] has the whole order. Each takes the same time,
    /// however many there are.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Attempt> + '_ {
        self.slots().filter_map(|slot| self.get(slot).copied())
    }

    fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.shares.iter(&self.entries)
    }

    /// Returns when [`Self::expire`] next has something to do; it may be too early, never too late.
    pub(crate) const fn next_end(&self) -> Option<Timestamp> {
        self.next_end
    }

    /// Removes the attempts that have timed out, queue by queue, oldest first.
    pub(crate) fn expire(&mut self, now: Timestamp, mut ended: impl FnMut(Attempt)) {
        if self.next_end.is_none_or(|end| now < end) {
            return;
        }
        self.next_end = None;
        for queue in (0..).map(QueueId).take(self.queues.len()) {
            while let Some((slot, end)) = self.first_end(queue) {
                if now < end {
                    self.next_end = Some(self.next_end.map_or(end, |next| next.min(end)));
                    break;
                }
                self.remove(slot).into_iter().for_each(&mut ended);
            }
        }
    }

    /// Returns the oldest attempt of a queue, and when it ends.
    fn first_end(&self, queue: QueueId) -> Option<(Slot, Timestamp)> {
        let Queue { lasts, list } = self.queues.get(queue.0 as usize)?;
        let slot = list.first?;
        Some((slot, self.get(slot)?.begun.after(*lasts)))
    }

    /// Adds an attempt at the back of its queue, its stage and its network; returns the attempt dropped to make room.
    pub(crate) fn insert(&mut self, attempt: Attempt) -> Option<Attempt> {
        let evicted = match self.networks.crowded_by(&attempt, &self.entries) {
            Some(oldest) => self.remove(oldest),
            None if self.len() < self.limit => None,
            None => self.shares.first_to_go().and_then(|slot| self.remove(slot)),
        };
        self.grow();
        let slot = self.entries.add(attempt);
        self.sources.link(slot, &attempt, &mut self.entries);
        self.networks.link(slot, &attempt, &mut self.entries);
        self.enter_queue(slot, attempt.queue);
        self.shares.join(slot, &attempt, &mut self.entries);
        let lasts = self.queues.get(attempt.queue.0 as usize).map(|queue| queue.lasts).unwrap_or_default();
        let end = attempt.begun.after(lasts);
        self.next_end = Some(self.next_end.map_or(end, |next| next.min(end)));
        evicted
    }

    pub(crate) fn remove(&mut self, slot: Slot) -> Option<Attempt> {
        let attempt = *self.get(slot)?;
        self.leave_queue(slot, attempt.queue);
        self.shares.leave(slot, &attempt, &mut self.entries);
        self.networks.unlink(slot, &attempt, &mut self.entries);
        self.sources.unlink(slot, &attempt, &mut self.entries);
        self.entries.free(slot);
        Some(attempt)
    }

    /// Removes the attempts for which `is_over` returns true.
    pub(crate) fn remove_where(&mut self, is_over: impl Fn(&Attempt) -> bool) {
        let slots = self.slots().filter(|&slot| self.get(slot).is_some_and(&is_over));
        for slot in slots.collect::<Vec<_>>() {
            self.remove(slot);
        }
    }

    /// Moves an attempt to another stage, behind all others of its share and its network.
    pub(crate) fn move_to(&mut self, slot: Slot, stage: u8) {
        let Some(attempt) = self.get(slot).copied() else { return };
        let next = Attempt { stage, ..attempt };
        self.shares.leave(slot, &attempt, &mut self.entries);
        self.networks.unlink(slot, &attempt, &mut self.entries);
        if let Some(attempt) = self.entries.get_mut(slot) {
            *attempt = next;
        }
        self.networks.link(slot, &next, &mut self.entries);
        self.shares.join(slot, &next, &mut self.entries);
    }

    /// Notes at which stage knockd 0.8 has an attempt.
    pub(crate) fn set_strict(&mut self, slot: Slot, strict: u8) {
        if let Some(attempt) = self.entries.get_mut(slot) {
            attempt.strict = strict;
        }
    }

    /// Begins an attempt anew, at the back of its queue, its stage and its network.
    pub(crate) fn restart(&mut self, slot: Slot, now: Timestamp, strict: u8) {
        let Some(attempt) = self.get(slot).copied() else { return };
        self.leave_queue(slot, attempt.queue);
        self.shares.leave(slot, &attempt, &mut self.entries);
        self.networks.unlink(slot, &attempt, &mut self.entries);
        if let Some(attempt) = self.entries.get_mut(slot) {
            (attempt.begun, attempt.strict) = (now, strict);
        }
        self.networks.link(slot, &attempt, &mut self.entries);
        self.enter_queue(slot, attempt.queue);
        self.shares.join(slot, &attempt, &mut self.entries);
    }

    fn enter_queue(&mut self, slot: Slot, queue: QueueId) {
        if let Some(queue) = self.queues.get_mut(queue.0 as usize) {
            queue.list.push_back(slot, Order::Queue, &mut self.entries);
        }
    }

    fn leave_queue(&mut self, slot: Slot, queue: QueueId) {
        if let Some(queue) = self.queues.get_mut(queue.0 as usize) {
            queue.list.unlink(slot, Order::Queue, &mut self.entries);
        }
    }

    fn grow(&mut self) {
        self.sources.grow(self.limit);
        self.networks.grow(self.limit, &self.entries);
        self.entries.grow(self.limit);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::index::PER_NETWORK;
    use super::*;

    fn attempt(source: u32, door: u32, stage: u8) -> Attempt {
        let source = Ipv4Addr::from_bits(source).into();
        Attempt {
            source,
            door,
            class: ClassId(0),
            queue: QueueId(0),
            stage,
            strict: 1,
            begun: Timestamp::ZERO,
        }
    }

    fn table(limit: u32) -> Attempts {
        Attempts::new(NonZeroU32::new(limit).unwrap(), 4, &[Duration::from_secs(1)], Seed::new(1, 2))
    }

    fn doors_of(table: &Attempts, source: u32) -> Vec<u32> {
        let first = table.first_of_source(Ipv4Addr::from_bits(source).into(), ClassId(0));
        std::iter::successors(first, |&slot| table.next_of_source(slot))
            .filter_map(|slot| table.get(slot).map(|attempt| attempt.door))
            .collect()
    }

    #[test]
    fn an_entry_takes_72_bytes_and_what_finds_it_8_and_12() {
        assert_eq!((Entries::ENTRY_SIZE, Sources::ITEM_SIZE, Networks::ITEM_SIZE), (72, 8, 12));
    }

    #[test]
    fn a_full_table_drops_who_left_a_share_first_and_nobody_who_is_in_one() {
        // A share counts two.
        let mut table = table(64);
        assert_eq!(table.insert(attempt(1, 1, 2)), None);
        for source in 2..=64 {
            assert_eq!(table.insert(attempt(source, 0, 1)), None);
        }
        for source in 65..1000 {
            assert_eq!(table.insert(attempt(source, 0, 1)), Some(attempt(source - 63, 0, 1)));
        }
        assert_eq!((table.len(), doors_of(&table, 1)), (64, vec![1]));
        // Three more, and it is neither among the last two nor among the two before them.
        for source in 1001..=1003 {
            assert_eq!(table.insert(attempt(source, 1, 2)), Some(attempt(source - 64, 0, 1)));
        }
        let evicted =
            (2000..3000).find(|&source| table.insert(attempt(source, 0, 2)) == Some(attempt(1, 1, 2)));
        // First go the 58 that have been in the crowd longer.
        assert_eq!(evicted, Some(2058));
    }

    #[test]
    fn who_cools_down_goes_first_but_not_from_a_share() {
        let mut table = table(64);
        table.insert(attempt(1, 1, COOLING));
        for source in 2..=64 {
            let (door, stage) = if source < 60 { (0, 1) } else { (2, COOLING) };
            assert_eq!(table.insert(attempt(source, door, stage)), None);
        }
        assert_eq!(table.insert(attempt(65, 0, 1)), Some(attempt(60, 2, COOLING)));
        assert_eq!(table.insert(attempt(66, 0, 1)), Some(attempt(61, 2, COOLING)));
        assert_eq!(table.insert(attempt(67, 0, 1)), Some(attempt(2, 0, 1)));
        assert_eq!((table.cooling(), doors_of(&table, 1)), (4, vec![1]));
    }

    #[test]
    fn attempts_of_one_source_are_found_together_and_leave_one_by_one() {
        let mut table = table(100);
        for door in 0..5 {
            table.insert(attempt(1, door, 1));
            table.insert(attempt(2, door, 1));
        }
        for (door, left) in
            [(2, vec![0, 1, 3, 4]), (4, vec![0, 1, 3]), (0, vec![1, 3]), (3, vec![1]), (1, vec![])]
        {
            let first = table.first_of_source(Ipv4Addr::from_bits(1).into(), ClassId(0));
            let slot = std::iter::successors(first, |&slot| table.next_of_source(slot))
                .find(|&slot| table.get(slot).unwrap().door == door)
                .unwrap();
            table.remove(slot);
            assert_eq!(doors_of(&table, 1), left, "after door {door} left");
        }
        assert_eq!(doors_of(&table, 2), [0, 1, 2, 3, 4]);
        assert_eq!(table.iter().count(), table.len());
    }

    #[test]
    fn the_tables_move_only_while_they_are_small_and_never_beyond_the_limit() {
        let mut table = table(100_000);
        let mut moved = Vec::new();
        for source in 0..200_000 {
            let before = (table.entries.capacity(), table.sources.buckets());
            table.insert(attempt(source, 0, 1));
            if before != (table.entries.capacity(), table.sources.buckets()) {
                moved.push(source);
            }
        }
        assert!(moved.len() < 12 && moved.iter().all(|&source| source <= 40_000), "{moved:?}");
        assert_eq!(table.entries.capacity(), 100_000);
    }

    #[test]
    fn a_place_is_used_again() {
        let mut table = table(1000);
        for source in 0..10_000 {
            table.insert(attempt(source, 0, 1));
            let (slot, _) = table.first_end(QueueId(0)).unwrap();
            if source > 3 {
                table.remove(slot);
            }
        }
        assert_eq!((table.len(), table.entries.all().count()), (4, 5));
    }

    fn in_network(network: u16, host: u128, stage: u8) -> Attempt {
        let source = std::net::Ipv6Addr::from_bits(u128::from(network) << 64 | host).into();
        Attempt { source, ..attempt(0, 0, stage) }
    }

    #[test]
    fn a_crowded_ipv6_network_makes_room_for_itself_and_nobody_else_does() {
        let mut table = table(10_000);
        let limit = u128::from(PER_NETWORK);
        table.insert(in_network(2, 0, 1));
        table.insert(attempt(1, 0, 1));
        for host in 0..limit {
            assert_eq!(table.insert(in_network(1, host, 1)), None);
        }
        let slot_of = |table: &Attempts, host| {
            table.first_of_source(in_network(1, host, 1).source, ClassId(0)).unwrap()
        };
        // One moves on and counts as before; one restarts and is now the youngest.
        table.move_to(slot_of(&table, 0), 2);
        table.restart(slot_of(&table, 1), Timestamp::ZERO, 1);
        for host in 2..limit {
            assert_eq!(table.insert(in_network(1, limit + host, 1)), Some(in_network(1, host, 1)));
        }
        assert_eq!(table.insert(in_network(1, 9 * limit, 1)), Some(in_network(1, 1, 1)));
        assert_eq!(table.len(), 2 + usize::from(PER_NETWORK));
        assert_eq!(table.iter().count(), table.len());
    }

    #[test]
    fn whatever_stage_others_of_a_crowded_network_are_at_a_neighbour_has_half_of_its_room() {
        let limit = u128::from(PER_NETWORK);
        for (theirs, own) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            let mut table = table(10_000);
            for host in 0..2 * limit {
                table.insert(in_network(1, host, theirs));
            }
            let neighbour = in_network(1, 1 << 32, own);
            table.insert(neighbour);
            for host in 0..limit / 2 - 1 {
                let evicted = table.insert(in_network(1, 3 * limit + host, theirs));
                assert!(evicted.is_some_and(|evicted| evicted.source != neighbour.source));
            }
            assert_eq!(table.len(), usize::from(PER_NETWORK));
        }
    }

    #[test]
    fn a_network_without_attempts_is_forgotten() {
        let mut table = table(100);
        for round in 0..3 {
            for host in 0..5 {
                table.insert(in_network(host, u128::from(host), 1));
            }
            assert_eq!(table.networks.len(), 5, "round {round}");
            table.remove_where(|_| true);
            assert_eq!((table.networks.len(), table.len()), (0, 0));
        }
    }
}
