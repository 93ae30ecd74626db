//! The table of attempts under way: found by source, ordered by age and by progress, bounded.
//!
//! A stranger can make it grow, one attempt a packet, so every operation takes constant time, and a full table makes room
//! by dropping the least advanced attempt, of those the one that has stood at its stage longest. Whoever has a network of
//! IPv6 has 2^64 addresses or more, so of the attempts at their first stage from one /64 no more than [`index::PER_NETWORK`] are kept;
//! the oldest of them makes room.

mod index;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use hashbrown::HashTable;

use self::index::{Head, Network};
use crate::seed::Seed;
use crate::time::Timestamp;

/// Attempts of one source are found together when their doors watch the same destination.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct ClassId(pub(crate) u32);

/// Attempts that last equally long share a queue, in which they stand in the order in which they end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct QueueId(pub(crate) u32);

/// The progress of one source at one door.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Attempt {
    pub(crate) source: IpAddr,
    /// Index of the door in the configuration.
    pub(crate) door: u32,
    pub(crate) class: ClassId,
    pub(crate) queue: QueueId,
    /// Steps done, from 1.
    pub(crate) stage: u8,
    /// When the step of stage 1 was hit.
    pub(crate) begun: Timestamp,
}

/// A place in the table, counted from 1 so that an `Option` of it takes four bytes; it stays the attempt's own until the
/// attempt is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot(NonZeroU32);

impl Slot {
    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

#[derive(Debug)]
pub(crate) struct Attempts {
    limit: usize,
    entries: Vec<Entry>,
    /// Entries that hold no attempt, linked by `in_chain`.
    free: Option<Slot>,
    len: usize,
    /// The newest attempt of each (source, class).
    chains: HashTable<Head>,
    /// The IPv6 networks that have attempts at their first stage.
    networks: HashTable<Network>,
    seed: Seed,
    queues: Vec<Queue>,
    stages: Vec<List>,
    /// No attempt ends before this moment.
    next_end: Option<Timestamp>,
}

#[derive(Debug)]
struct Queue {
    lasts: Duration,
    list: List,
}

/// 72 bytes, so that the largest table of the default limit takes 18 MiB, and with its indexes 30 at most.
#[derive(Debug)]
struct Entry {
    attempt: Attempt,
    /// Among the attempts of the same source and class, the newest first; or among the free entries.
    in_chain: Links,
    in_queue: Links,
    in_stage: Links,
    /// Among the attempts at their first stage of the same IPv6 network, the oldest first.
    in_network: Links,
}

#[derive(Clone, Copy, Default, Debug)]
struct Links {
    previous: Option<Slot>,
    next: Option<Slot>,
}

/// Both ends of a list through the entries.
#[derive(Clone, Copy, Default, Debug)]
struct List {
    first: Option<Slot>,
    last: Option<Slot>,
    len: u32,
}

/// Which of its lists an entry is linked into.
#[derive(Clone, Copy)]
enum Order {
    Chain,
    Queue(QueueId),
    Stage(u8),
    Network,
}

impl Attempts {
    /// Makes an empty table with a queue for attempts that last that long each; it takes memory only as it fills.
    pub(crate) fn new(limit: NonZeroU32, lasts: &[Duration], seed: Seed) -> Self {
        let queues = lasts.iter().map(|&lasts| Queue { lasts, list: List::default() });
        Self {
            limit: limit.get() as usize,
            entries: Vec::new(),
            free: None,
            len: 0,
            chains: HashTable::new(),
            networks: HashTable::new(),
            seed,
            queues: queues.collect(),
            stages: vec![List::default(); crate::Sequence::MAX_STEPS + 1],
            next_end: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&Attempt> {
        self.entries.get(slot.index()).map(|entry| &entry.attempt)
    }

    pub(crate) fn next_of_source(&self, slot: Slot) -> Option<Slot> {
        self.entries.get(slot.index()).and_then(|entry| entry.in_chain.next)
    }

    /// The moment at which [`Self::expire`] has something to do; it may be earlier, never later.
    pub(crate) const fn next_end(&self) -> Option<Timestamp> {
        self.next_end
    }

    /// Removes the attempts that have ended by now, queue by queue, the oldest first.
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

    /// Removes the attempts for which `is_over` holds.
    pub(crate) fn remove_where(&mut self, is_over: impl Fn(&Attempt) -> bool) {
        let slots = self.slots().filter(|&slot| self.get(slot).is_some_and(&is_over));
        for slot in slots.collect::<Vec<_>>() {
            self.remove(slot);
        }
    }

    /// How many attempts are at this stage.
    pub(crate) fn len_at(&self, stage: u8) -> usize {
        self.stages.get(usize::from(stage)).map_or(0, |list| list.len as usize)
    }

    /// All attempts, the most advanced first, of those the longest at its stage.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Attempt> + '_ {
        self.slots().filter_map(|slot| self.get(slot).copied())
    }

    fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.stages.iter().rev().flat_map(|list| {
            std::iter::successors(list.first, |slot| self.entries.get(slot.index())?.in_stage.next)
        })
    }

    /// The attempt of a queue that began first, and when it ends.
    fn first_end(&self, queue: QueueId) -> Option<(Slot, Timestamp)> {
        let Queue { lasts, list } = self.queues.get(queue.0 as usize)?;
        let slot = list.first?;
        Some((slot, self.get(slot)?.begun.after(*lasts)))
    }

    /// Adds an attempt behind all others of its queue and its stage; returns the one that had to make room for it.
    pub(crate) fn insert(&mut self, attempt: Attempt) -> Option<Attempt> {
        let evicted = match self.crowded(&attempt) {
            Some(oldest) => self.remove(oldest),
            None if self.len < self.limit => None,
            None => self.evict(),
        };
        self.grow();
        let none = Links::default();
        let entry = Entry { attempt, in_chain: none, in_queue: none, in_stage: none, in_network: none };
        let slot = self.place(entry);
        self.len += 1;
        self.chain(slot);
        self.push(slot, Order::Queue(attempt.queue));
        self.push(slot, Order::Stage(attempt.stage));
        self.join_network(slot);
        let lasts = self.queues.get(attempt.queue.0 as usize).map(|queue| queue.lasts).unwrap_or_default();
        let end = attempt.begun.after(lasts);
        self.next_end = Some(self.next_end.map_or(end, |next| next.min(end)));
        evicted
    }

    pub(crate) fn remove(&mut self, slot: Slot) -> Option<Attempt> {
        let attempt = *self.get(slot)?;
        self.unlink(slot, Order::Queue(attempt.queue));
        self.unlink(slot, Order::Stage(attempt.stage));
        self.leave_network(slot);
        self.unchain(slot);
        let next = self.free.replace(slot);
        if let Some(links) = self.links(slot, Order::Chain) {
            *links = Links { previous: None, next };
        }
        self.len -= 1;
        Some(attempt)
    }

    /// Moves an attempt to the next stage.
    pub(crate) fn advance(&mut self, slot: Slot) {
        let Some(attempt) = self.get(slot).copied() else { return };
        self.unlink(slot, Order::Stage(attempt.stage));
        self.leave_network(slot);
        let stage = attempt.stage + 1;
        if let Some(entry) = self.entries.get_mut(slot.index()) {
            entry.attempt.stage = stage;
        }
        self.push(slot, Order::Stage(stage));
    }

    /// Lets the time of an attempt begin again.
    pub(crate) fn restart_clock(&mut self, slot: Slot, now: Timestamp) {
        let Some(attempt) = self.get(slot).copied() else { return };
        for order in [Order::Queue(attempt.queue), Order::Stage(attempt.stage)] {
            self.unlink(slot, order);
            self.push(slot, order);
        }
        self.leave_network(slot);
        self.join_network(slot);
        if let Some(entry) = self.entries.get_mut(slot.index()) {
            entry.attempt.begun = now;
        }
    }

    /// Puts an entry where none is.
    fn place(&mut self, entry: Entry) -> Slot {
        if let Some(slot) = self.free
            && let Some(place) = self.entries.get_mut(slot.index())
        {
            self.free = place.in_chain.next;
            *place = entry;
            return slot;
        }
        self.entries.push(entry);
        // The limit is a u32, so the count of entries fits one, and it is not 0 after a push.
        let count = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        Slot(NonZeroU32::new(count).unwrap_or(NonZeroU32::MAX))
    }

    fn evict(&mut self) -> Option<Attempt> {
        let first = self.stages.iter().find_map(|list| list.first)?;
        self.remove(first)
    }

    fn list(&mut self, order: Order) -> Option<&mut List> {
        match order {
            // Their ends stand in the hash tables.
            Order::Chain | Order::Network => None,
            Order::Queue(queue) => self.queues.get_mut(queue.0 as usize).map(|queue| &mut queue.list),
            Order::Stage(stage) => self.stages.get_mut(usize::from(stage)),
        }
    }

    fn links(&mut self, slot: Slot, order: Order) -> Option<&mut Links> {
        let entry = self.entries.get_mut(slot.index())?;
        Some(match order {
            Order::Chain => &mut entry.in_chain,
            Order::Queue(_) => &mut entry.in_queue,
            Order::Stage(_) => &mut entry.in_stage,
            Order::Network => &mut entry.in_network,
        })
    }

    fn push(&mut self, slot: Slot, order: Order) {
        let Some(list) = self.list(order) else { return };
        list.len += 1;
        let previous = list.last.replace(slot);
        if previous.is_none() {
            list.first = Some(slot);
        }
        if let Some(links) = previous.and_then(|previous| self.links(previous, order)) {
            links.next = Some(slot);
        }
        if let Some(links) = self.links(slot, order) {
            *links = Links { previous, next: None };
        }
    }

    fn unlink(&mut self, slot: Slot, order: Order) {
        let Some(&mut Links { previous, next }) = self.links(slot, order) else { return };
        self.list(order).into_iter().for_each(|list| list.len -= 1);
        match previous.and_then(|previous| self.links(previous, order)) {
            Some(links) => links.next = next,
            None => self.list(order).into_iter().for_each(|list| list.first = next),
        }
        match next.and_then(|next| self.links(next, order)) {
            Some(links) => links.previous = previous,
            None => self.list(order).into_iter().for_each(|list| list.last = previous),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::index::PER_NETWORK;
    use super::*;

    fn attempt(source: u32, door: u32, stage: u8) -> Attempt {
        let source = Ipv4Addr::from_bits(source).into();
        Attempt { source, door, class: ClassId(0), queue: QueueId(0), stage, begun: Timestamp::ZERO }
    }

    fn table(limit: u32) -> Attempts {
        Attempts::new(NonZeroU32::new(limit).unwrap(), &[Duration::from_secs(1)], Seed::new(1, 2))
    }

    fn doors_of(table: &Attempts, source: u32) -> Vec<u32> {
        let first = table.first_of_source(Ipv4Addr::from_bits(source).into(), ClassId(0));
        std::iter::successors(first, |&slot| table.next_of_source(slot))
            .filter_map(|slot| table.get(slot).map(|attempt| attempt.door))
            .collect()
    }

    #[test]
    fn an_entry_takes_72_bytes_and_a_network_12() {
        assert_eq!((size_of::<Entry>(), size_of::<Network>()), (72, 12));
    }

    #[test]
    fn a_full_table_drops_the_least_advanced_then_the_longest_at_its_stage() {
        let mut table = table(3);
        for (source, stage) in [(1, 2), (2, 1), (3, 1)] {
            assert_eq!(table.insert(attempt(source, 0, stage)), None);
        }
        assert_eq!(table.insert(attempt(4, 0, 1)), Some(attempt(2, 0, 1)));
        assert_eq!(table.insert(attempt(5, 0, 2)), Some(attempt(3, 0, 1)));
        assert_eq!(table.insert(attempt(6, 0, 1)), Some(attempt(4, 0, 1)));
        assert_eq!(table.insert(attempt(7, 0, 2)), Some(attempt(6, 0, 1)));
        assert_eq!(table.insert(attempt(8, 0, 1)), Some(attempt(1, 0, 2)));
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn attempts_of_one_source_are_found_together_and_leave_one_by_one() {
        let mut table = table(100);
        for door in 0..5 {
            table.insert(attempt(1, door, 1));
            table.insert(attempt(2, door, 1));
        }
        for (door, left) in
            [(2, vec![4, 3, 1, 0]), (4, vec![3, 1, 0]), (0, vec![3, 1]), (3, vec![1]), (1, vec![])]
        {
            let first = table.first_of_source(Ipv4Addr::from_bits(1).into(), ClassId(0));
            let slot = std::iter::successors(first, |&slot| table.next_of_source(slot))
                .find(|&slot| table.get(slot).unwrap().door == door)
                .unwrap();
            table.remove(slot);
            assert_eq!(doors_of(&table, 1), left, "after door {door} left");
        }
        assert_eq!(doors_of(&table, 2), [4, 3, 2, 1, 0]);
        assert_eq!(table.iter().count(), table.len());
    }

    #[test]
    fn the_tables_move_only_while_they_are_small_and_never_beyond_the_limit() {
        let mut table = table(100_000);
        let mut moved = Vec::new();
        for source in 0..200_000 {
            let before = (table.entries.capacity(), table.chains.num_buckets());
            table.insert(attempt(source, 0, 1));
            if before != (table.entries.capacity(), table.chains.num_buckets()) {
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
        assert_eq!((table.len(), table.entries.len()), (4, 5));
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
        // One moves on and no longer counts, one begins anew and is the youngest.
        table.advance(slot_of(&table, 0));
        table.restart_clock(slot_of(&table, 1), Timestamp::ZERO);
        assert_eq!(table.insert(in_network(1, limit, 1)), None);
        for host in 2..limit {
            assert_eq!(table.insert(in_network(1, limit + host, 1)), Some(in_network(1, host, 1)));
        }
        assert_eq!(table.insert(in_network(1, 9 * limit, 1)), Some(in_network(1, 1, 1)));
        assert_eq!(table.len(), 2 + 1 + PER_NETWORK as usize);
        assert_eq!(table.iter().count(), table.len());
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
