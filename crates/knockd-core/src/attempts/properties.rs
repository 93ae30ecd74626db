//! The invariants after every operation, and a naive table with the same rules.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;

use super::index::network_of;
use super::*;

impl Attempts {
    /// Panics if an invariant does not hold.
    fn check(&self) {
        let entries = &self.entries;
        let attempt = |slot: &Slot| entries.get(*slot).unwrap();
        assert!(self.len() <= self.limit, "more attempts than allowed");

        let live: BTreeSet<_> = entries.all().filter(|&slot| entries.get(slot).is_some()).collect();
        assert_eq!(live.len(), self.len());
        let free = entries.all_free();
        assert_eq!(free.len() + live.len(), entries.all().count(), "free places are lost, or free twice");

        assert_once(&live, self.sources.checked(entries));
        let counted =
            live.iter().copied().filter(|slot| network_of(attempt(slot).source).is_some()).collect();
        assert_once(&counted, self.networks.checked(entries));

        assert_once(&live, self.shares.checked(self.limit, entries));
        assert!(self.len() < self.limit || self.shares.first_to_go().is_some(), "nobody could make room");

        let mut all = Vec::new();
        let mut earliest = None;
        for (index, queue) in (0..).map(QueueId).zip(&self.queues) {
            let members = queue.list.checked(Order::Queue, entries);
            assert!(members.iter().all(|slot| attempt(slot).queue == index), "wrong queue");
            assert!(members.is_sorted_by_key(|slot| attempt(slot).begun), "who ends later stands behind");
            let ends = members.iter().map(|slot| attempt(slot).begun.after(queue.lasts));
            earliest = earliest.into_iter().chain(ends).min();
            all.extend(members);
        }
        assert_once(&live, all);
        assert!(
            earliest.is_none_or(|end| self.next_end.is_some_and(|next| next <= end)),
            "an attempt would end unnoticed at {earliest:?}, next is {:?}",
            self.next_end
        );
    }
}

/// Checks that the lists of one order have these entries, each once.
fn assert_once(expected: &BTreeSet<Slot>, listed: Vec<Slot>) {
    assert_eq!(listed.len(), expected.len(), "{listed:?} for {expected:?}");
    assert_eq!(&listed.into_iter().collect::<BTreeSet<_>>(), expected);
}

/// The rules of the table, without lists and hashes: it finds everything by looking at all attempts.
struct Naive {
    limit: usize,
    per_network: usize,
    lasts: Vec<Duration>,
    known: Vec<Known>,
    /// Counts events, to tell which of two came first.
    count: u64,
    /// How many came to each stage of each door since the last ones joined the crowd, and how many may.
    stages: BTreeMap<(u32, u8), (usize, usize)>,
    share: usize,
    shares_left: usize,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    attempt: Attempt,
    /// The attempt's place in the real table.
    slot: Slot,
    added: u64,
    /// When it last went to the back of its queue, its stage and its network.
    queued: u64,
    reached_stage: u64,
    joined_network: u64,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Place {
    Old,
    Young,
    /// Since when.
    Crowd(u64),
}

impl Naive {
    fn new(limit: usize, per_network: usize, stages: usize, lasts: &[Duration]) -> Self {
        Self {
            limit,
            per_network,
            lasts: lasts.to_vec(),
            known: Vec::new(),
            count: 0,
            stages: BTreeMap::new(),
            share: limit / 8 / stages,
            shares_left: stages,
        }
    }

    /// Returns the attempt that has to make room for this one.
    fn victim(&self, attempt: &Attempt) -> Option<Known> {
        let network = network_of(attempt.source);
        let of_network = |known: &&Known| network.is_some() && network_of(known.attempt.source) == network;
        let (first, further): (Vec<&Known>, Vec<_>) =
            self.known.iter().filter(of_network).partition(|known| known.attempt.stage <= 1);
        if first.len() + further.len() >= self.per_network {
            let longer = if first.len() >= further.len() { first } else { further };
            longer.into_iter().min_by_key(|known| known.joined_network).copied()
        } else if self.known.len() >= self.limit {
            let crowd = self.known.iter().filter(|known| matches!(known.place, Place::Crowd(_)));
            crowd.min_by_key(|known| (known.attempt.stage != COOLING, known.place)).copied()
        } else {
            None
        }
    }

    /// The attempt that was added as this one comes to its stage.
    fn join(&mut self, added: u64) {
        self.count += 1;
        let count = self.count;
        let known = self.known.iter_mut().find(|known| known.added == added).unwrap();
        let stage = (known.attempt.door, known.attempt.stage);
        let (came, most) = self.stages.entry(stage).or_insert_with(|| {
            let has_share = self.shares_left > 0;
            self.shares_left -= usize::from(has_share);
            (0, if has_share { self.share } else { 0 })
        });
        known.reached_stage = count;
        known.joined_network = count;
        known.place = if *most == 0 { Place::Crowd(count) } else { Place::Young };
        *came += usize::from(*most > 0);
        if *came < *most || *most == 0 {
            return;
        }
        *came = 0;
        let mut here: Vec<_> = self
            .known
            .iter_mut()
            .filter(|known| (known.attempt.door, known.attempt.stage) == stage)
            .collect();
        here.sort_by_key(|known| known.reached_stage);
        for known in here {
            known.place = match known.place {
                Place::Young => Place::Old,
                Place::Old => {
                    self.count += 1;
                    Place::Crowd(self.count)
                }
                crowd @ Place::Crowd(_) => crowd,
            };
        }
    }

    fn remove(&mut self, is_over: impl Fn(&Known) -> bool) {
        self.known.retain(|known| !is_over(known));
    }

    /// Removes and returns those that have timed out, queue by queue.
    fn expire(&mut self, now: Timestamp) -> Vec<Attempt> {
        let end = |known: &Known| known.attempt.begun.after(self.lasts[known.attempt.queue.0 as usize]);
        let mut ended: Vec<_> = self.known.iter().copied().filter(|known| end(known) <= now).collect();
        ended.sort_by_key(|known| (known.attempt.queue.0, known.queued));
        self.remove(|known| ended.iter().any(|ended| ended.added == known.added));
        ended.iter().map(|known| known.attempt).collect()
    }

    /// Returns them most advanced first, and within a stage the crowd first, then the shares.
    fn ranked(&self) -> Vec<Known> {
        let mut ranked = self.known.clone();
        ranked.sort_by_key(|Known { attempt, place, reached_stage, .. }| {
            let crowd_or_share = match *place {
                Place::Crowd(since) => (0, since, 0, Place::Old),
                place => (1, 0, attempt.door, place),
            };
            (Reverse(attempt.stage), crowd_or_share, *reached_stage)
        });
        ranked
    }

    fn of_source(&self, source: IpAddr, class: ClassId) -> Vec<Slot> {
        let is_it = |known: &&Known| known.attempt.source == source && known.attempt.class == class;
        let mut found: Vec<_> = self.known.iter().filter(is_it).collect();
        found.sort_by_key(|known| known.added);
        found.iter().map(|known| known.slot).collect()
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// Start this attempt.
    Insert(Attempt),
    /// Do this to one of the existing attempts.
    Remove(prop::sample::Index),
    MoveTo(prop::sample::Index, u8),
    Restart(prop::sample::Index),
    /// Remove the attempts of a door.
    RemoveDoor(u32),
    Expire,
    Wait(Duration),
}

const SOURCES: u32 = 8;

/// Two IPv4 addresses, and three in each of two IPv6 networks.
fn source(number: u32) -> IpAddr {
    match number {
        0 | 1 => Ipv4Addr::from_bits(number).into(),
        _ => Ipv6Addr::from_bits(u128::from(number % 2) << 64 | u128::from(number)).into(),
    }
}

fn attempts() -> impl Strategy<Value = Attempt> {
    let stage = prop_oneof![1 => Just(0), 8 => Just(1), 1 => 2..4_u8];
    (0..SOURCES, 0..3_u32, 0..2_u32, 0..3_u32, stage).prop_map(|(number, door, class, queue, stage)| {
        Attempt {
            source: source(number),
            door,
            class: ClassId(class),
            queue: QueueId(queue),
            stage,
            strict: 1,
            begun: Timestamp::ZERO,
        }
    })
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        16 => attempts().prop_map(Op::Insert),
        3 => any::<prop::sample::Index>().prop_map(Op::Remove),
        6 => (any::<prop::sample::Index>(), 1..6_u8).prop_map(|(index, stage)| Op::MoveTo(index, stage)),
        3 => any::<prop::sample::Index>().prop_map(Op::Restart),
        1 => (0..3_u32).prop_map(Op::RemoveDoor),
        3 => Just(Op::Expire),
        4 => (0..2000_u64).prop_map(|milliseconds| Op::Wait(Duration::from_millis(milliseconds))),
    ]
}

/// The attempts of a source, oldest first.
fn of_source(table: &Attempts, source: IpAddr, class: ClassId) -> Vec<Slot> {
    let first = table.first_of_source(source, class);
    std::iter::successors(first, |&slot| table.next_of_source(slot)).collect()
}

/// Both tables, which receive the same operations.
struct Pair {
    table: Attempts,
    naive: Naive,
    now: Timestamp,
}

impl Pair {
    fn new(limit: u32, per_network: u16, stages: usize) -> Self {
        let lasts = [1, 5, 0].map(Duration::from_secs);
        let mut table = Attempts::new(NonZeroU32::new(limit).unwrap(), stages, &lasts, Seed::new(1, 2));
        table.networks.most = per_network;
        let naive = Naive::new(limit as usize, per_network.into(), stages, &lasts);
        Self { table, naive, now: Timestamp::ZERO }
    }

    fn do_op(&mut self, op: &Op) {
        let Self { table, naive, now } = self;
        naive.count += 1;
        let count = naive.count;
        let ranked = naive.ranked();
        let chosen =
            |index: &prop::sample::Index| (!ranked.is_empty()).then(|| ranked[index.index(ranked.len())]);
        match op {
            Op::Insert(attempt) => {
                let attempt = Attempt { begun: *now, ..*attempt };
                let victim = naive.victim(&attempt);
                assert_eq!(table.insert(attempt), victim.map(|known| known.attempt));
                naive.remove(|known| victim.is_some_and(|victim| victim.added == known.added));
                let slot = of_source(table, attempt.source, attempt.class).pop().unwrap();
                let known = Known {
                    attempt,
                    slot,
                    added: count,
                    queued: count,
                    reached_stage: count,
                    joined_network: count,
                    place: Place::Young,
                };
                naive.known.push(known);
                naive.join(count);
            }
            Op::Remove(index) => {
                let Some(known) = chosen(index) else { return };
                assert_eq!(table.remove(known.slot), Some(known.attempt));
                assert_eq!(table.remove(known.slot), None, "it has gone");
                naive.remove(|other| other.added == known.added);
            }
            Op::MoveTo(index, stage) => {
                let Some(known) = chosen(index) else { return };
                table.move_to(known.slot, *stage);
                let known = naive.known.iter_mut().find(|other| other.added == known.added).unwrap();
                known.attempt.stage = *stage;
                let added = known.added;
                naive.join(added);
            }
            Op::Restart(index) => {
                let Some(known) = chosen(index) else { return };
                table.restart(known.slot, *now, 0);
                let known = naive.known.iter_mut().find(|other| other.added == known.added).unwrap();
                (known.attempt.begun, known.attempt.strict) = (*now, 0);
                known.queued = count;
                let added = known.added;
                naive.join(added);
            }
            Op::RemoveDoor(door) => {
                table.remove_where(|attempt| attempt.door == *door);
                naive.remove(|known| known.attempt.door == *door);
            }
            Op::Expire => {
                let mut ended = Vec::new();
                table.expire(*now, |attempt| ended.push(attempt));
                assert_eq!(ended, naive.expire(*now));
            }
            Op::Wait(wait) => *now = now.after(*wait),
        }
    }

    fn compare(&self) {
        let Self { table, naive, .. } = self;
        table.check();
        assert_eq!(table.len(), naive.known.len());
        let ranked = naive.ranked();
        assert_eq!(
            table.slots().collect::<Vec<_>>(),
            ranked.iter().map(|known| known.slot).collect::<Vec<_>>()
        );
        assert_eq!(
            table.iter().collect::<Vec<_>>(),
            ranked.iter().map(|known| known.attempt).collect::<Vec<_>>()
        );
        assert_eq!(table.cooling(), ranked.iter().filter(|known| known.attempt.stage == COOLING).count());
        for (source, class) in
            (0..SOURCES).flat_map(|number| [0, 1].map(|class| (source(number), ClassId(class))))
        {
            assert_eq!(of_source(table, source, class), naive.of_source(source, class), "{source} {class:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_table_does_what_the_naive_one_does_and_is_sound_after_every_operation(
        limit in prop_oneof![1..12_u32, 16..64_u32, Just(1000)],
        per_network in prop_oneof![1..6_u16, Just(1000)],
        stages in 1..6_usize,
        ops in vec(ops(), 0..200),
    ) {
        let mut pair = Pair::new(limit, per_network, stages);
        for op in &ops {
            pair.do_op(op);
            pair.compare();
        }
    }
}
