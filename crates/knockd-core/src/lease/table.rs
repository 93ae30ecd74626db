//! All leases, and what finds, counts and orders them.
//!
//! There may be very many, and most of them are of one kind: the lease of one address at a door with `Open`. So each is in one
//! place, and everything else has four or eight bytes for it. Every operation takes constant or logarithmic time.

use std::net::IpAddr;

use super::due::Due;
use super::index::{Counts, Index};
use super::life::Lease;
use super::slots::{Slot, Slots};
use super::{Access, LeaseId, LeaseKey};
use crate::exceptions::Prefix;
use crate::network::Network;
use crate::seed::Seed;
use crate::text::DoorName;

#[derive(Debug)]
pub(super) struct Table {
    slots: Slots,
    by_id: Index,
    /// The lease that the next knock of the same source extends.
    current: Index,
    due: Due,
    /// The number of leases of each door, each source, and each network at a door.
    of_door: Counts<DoorName>,
    of_source: Counts<IpAddr>,
    /// The number of leases for each network that is let in as a whole.
    of_admitted: Counts<Prefix>,
    of_network: Counts<(DoorName, Network)>,
    /// Keys the hashes.
    seed: Seed,
}

impl Default for Table {
    fn default() -> Self {
        Self::new(Seed::new(0, 0))
    }
}

impl Table {
    pub(super) fn new(seed: Seed) -> Self {
        Self {
            slots: Slots::default(),
            by_id: Index::default(),
            current: Index::default(),
            due: Due::default(),
            of_door: Counts::new(|key| key.door.clone()),
            of_source: Counts::new(|key| key.source),
            of_admitted: Counts::new(|key| Prefix::around(key.source)),
            of_network: Counts::new(at_network),
            seed,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Lease> {
        self.slots.get(slot)
    }

    /// After a change of its phase, [`Self::note_due`] wants to be called.
    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Lease> {
        self.slots.get_mut(slot)
    }

    /// Returns all leases, in no particular order. Phases must not change.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Lease> {
        self.slots.iter_mut()
    }

    pub(super) fn find(&self, id: LeaseId) -> Option<Slot> {
        self.by_id.find(self.seed.hash_of(&id), &self.slots, |lease| lease.id == id)
    }

    /// Returns the lease that the next knock with this key extends.
    pub(super) fn current(&self, key: &LeaseKey) -> Option<Slot> {
        self.current.find(self.seed.hash_of(key), &self.slots, |lease| lease.key == *key)
    }

    /// Returns the selected leases, oldest first.
    pub(super) fn oldest_first(&self, which: impl Fn(&Lease) -> bool) -> Vec<Slot> {
        let selected = self.slots.iter().filter(|(_, lease)| which(lease));
        let mut selected: Vec<_> = selected.map(|(slot, _)| slot).collect();
        selected.sort_unstable_by_key(|slot| self.slots.get(*slot).map(|lease| lease.id));
        selected
    }

    /// Returns the lease for which something is due first.
    pub(super) fn first_due(&self) -> Option<Slot> {
        self.due.first()
    }

    /// Takes note of when something is due for a lease now, if anything is.
    pub(super) fn note_due(&mut self, slot: Slot) {
        self.due.note(slot, &self.slots);
    }

    /// Returns the number of leases of this door.
    pub(super) fn at_door(&self, door: &DoorName) -> u32 {
        self.of_door.count(door, &self.slots, self.seed)
    }

    /// Returns the number of leases of the door and the network of this one.
    pub(super) fn at_door_of_network(&self, key: &LeaseKey) -> u32 {
        self.of_network.count(&at_network(key), &self.slots, self.seed)
    }

    /// Says whether there is a lease for this source.
    pub(super) fn has_any_for(&self, source: IpAddr) -> bool {
        self.of_source.count(&source, &self.slots, self.seed) > 0
            || self.of_admitted.count(&Prefix::around(source), &self.slots, self.seed) > 0
    }

    /// Adds a lease whose ID is new. If it is the current one, the next knock with its key extends it.
    pub(super) fn add(&mut self, lease: Lease, is_current: bool) {
        let (id, counts, is_for_network) = (lease.id, lease.counts, lease.key.access == Access::Network);
        let key_hash = self.seed.hash_of(&lease.key);
        if is_current && let Some(before) = self.current(&lease.key) {
            self.current.remove(key_hash, before);
        }
        let slot = self.slots.add(lease);
        self.by_id.add(self.seed.hash_of(&id), slot);
        if is_current {
            self.current.add(key_hash, slot);
        }
        if is_for_network {
            self.of_admitted.add(slot, &self.slots, self.seed);
        } else {
            self.of_source.add(slot, &self.slots, self.seed);
        }
        if counts {
            self.of_door.add(slot, &self.slots, self.seed);
            self.of_network.add(slot, &self.slots, self.seed);
        }
        self.note_due(slot);
    }

    /// Removes a lease for which nothing is due.
    pub(super) fn remove(&mut self, slot: Slot) {
        let Some(Lease { id, key, counts, .. }) = self.slots.take(slot) else { return };
        self.by_id.remove(self.seed.hash_of(&id), slot);
        self.current.remove(self.seed.hash_of(&key), slot);
        if key.access == Access::Network {
            self.of_admitted.remove(slot, &key, self.seed);
        } else {
            self.of_source.remove(slot, &key, self.seed);
        }
        if counts {
            self.of_door.remove(slot, &key, self.seed);
            self.of_network.remove(slot, &key, self.seed);
        }
    }
}

/// Returns what [`Leases::MAX_OF_NETWORK`](super::Leases::MAX_OF_NETWORK) limits.
fn at_network(key: &LeaseKey) -> (DoorName, Network) {
    (key.door.clone(), Network::of(key.source))
}

#[cfg(test)]
impl Table {
    fn bytes(&self) -> usize {
        let found = self.by_id.bytes() + self.current.bytes() + self.due.bytes();
        let counted = self.of_door.bytes()
            + self.of_source.bytes()
            + self.of_admitted.bytes()
            + self.of_network.bytes();
        self.slots.bytes() + found + counted
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::command::CommandLine;
    use crate::lease::life::Phase;
    use crate::time::Timestamp;

    /// What a lease is made of, in the ranges of the next function.
    type Sort = (usize, usize, usize, bool, bool);

    fn key((door, source, access, ..): Sort) -> LeaseKey {
        let door = DoorName::new(["ssh", "web"][door]).unwrap();
        let source = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"][source].parse().unwrap();
        let command = |text| CommandLine::new(text).unwrap();
        let access = match access {
            0 => Access::Firewall,
            1 => Access::Network,
            _ => Access::Commands { start: command("a"), stop: command(["b", "c"][access - 2]) },
        };
        LeaseKey { door, source, access }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Add(Sort, u8),
        /// Changes when something is due.
        Due(usize, Option<u8>),
        Remove(usize),
    }

    fn ops() -> impl Strategy<Value = Op> {
        let sort = (0..2_usize, 0..4_usize, 0..4_usize, any::<bool>(), any::<bool>());
        prop_oneof![
            4 => (sort, any::<u8>()).prop_map(|(sort, due)| Op::Add(sort, due)),
            3 => (any::<usize>(), proptest::option::of(any::<u8>())).prop_map(|(which, due)| Op::Due(which, due)),
            3 => any::<usize>().prop_map(Op::Remove),
        ]
    }

    fn at(seconds: u8) -> Timestamp {
        Timestamp::ZERO.after(Duration::from_secs(seconds.into()))
    }

    fn phase(due: Option<u8>) -> Phase {
        due.map_or(Phase::Starting { closes: false }, |due| Phase::Failing { failures: 1, again: at(due) })
    }

    /// The same without indexes.
    #[derive(Default)]
    struct Model {
        leases: BTreeMap<u64, (Sort, Option<u8>)>,
        current: BTreeMap<LeaseKey, u64>,
    }

    impl Model {
        fn nth(&self, which: usize) -> Option<u64> {
            self.leases.keys().nth(which % self.leases.len().max(1)).copied()
        }

        fn count(&self, is_it: impl Fn(Sort) -> bool) -> u32 {
            u32::try_from(self.leases.values().filter(|(sort, _)| is_it(*sort)).count()).unwrap()
        }

        fn compare(&self, table: &Table) {
            assert_eq!(table.len(), self.leases.len());
            let id_of = |slot: Slot| table.get(slot).unwrap().id.0;
            let all: Vec<_> = table.oldest_first(|_| true).into_iter().map(id_of).collect();
            assert_eq!(all, self.leases.keys().copied().collect::<Vec<_>>());
            let due: BTreeSet<_> =
                self.leases.iter().filter_map(|(id, (_, due))| Some(((*due)?, *id))).collect();
            assert_eq!(table.first_due().map(id_of), due.first().map(|(_, id)| *id));
            assert_eq!(table.due.len(), due.len());
            for id in self.leases.keys() {
                assert_eq!(table.find(LeaseId(*id)).map(id_of), Some(*id));
            }
            for door in 0..2 {
                let of_door = self.count(|sort| sort.0 == door && sort.4);
                assert_eq!(table.at_door(&key((door, 0, 0, true, true)).door), of_door);
                for source in 0..4 {
                    let sort = (door, source, 0, true, true);
                    let network = Network::of(key(sort).source);
                    let is_it =
                        |other: Sort| other.0 == door && other.4 && Network::of(key(other).source) == network;
                    assert_eq!(table.at_door_of_network(&key(sort)), self.count(is_it));
                    let is_for = |other: Sort| {
                        let (other, source) = (key(other), key(sort).source);
                        match other.access {
                            Access::Network => Prefix::around(other.source).contains(source),
                            _ => other.source == source,
                        }
                    };
                    assert_eq!(table.has_any_for(key(sort).source), self.count(is_for) > 0);
                    for access in 0..4 {
                        let key = key((door, source, access, true, true));
                        assert_eq!(table.current(&key).map(id_of), self.current.get(&key).copied());
                    }
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_finds_counts_and_orders_what_a_search_of_all_leases_does(ops in vec(ops(), 0..80)) {
            let (mut table, mut model) = (Table::default(), Model::default());
            for (id, op) in (1..).zip(ops) {
                match op {
                    Op::Add(sort, due) => {
                        let lease = Lease::new(LeaseId(id), key(sort), Duration::ZERO, None);
                        table.add(Lease { phase: phase(Some(due)), counts: sort.4, ..lease }, sort.3);
                        model.leases.insert(id, (sort, Some(due)));
                        if sort.3 {
                            model.current.insert(key(sort), id);
                        }
                    }
                    Op::Due(which, due) => {
                        let Some(id) = model.nth(which) else { continue };
                        let slot = table.find(LeaseId(id)).unwrap();
                        table.get_mut(slot).unwrap().phase = phase(due);
                        table.note_due(slot);
                        model.leases.get_mut(&id).unwrap().1 = due;
                    }
                    Op::Remove(which) => {
                        let Some(id) = model.nth(which) else { continue };
                        let slot = table.find(LeaseId(id)).unwrap();
                        table.get_mut(slot).unwrap().phase = phase(None);
                        table.note_due(slot);
                        table.remove(slot);
                        model.leases.remove(&id);
                        model.current.retain(|_, current| *current != id);
                    }
                }
                model.compare(&table);
            }
            // In which order everything falls due.
            let mut order = Vec::new();
            while let Some(slot) = table.first_due() {
                let lease = table.get_mut(slot).unwrap();
                order.push((lease.phase.due().unwrap(), lease.id.0));
                lease.phase = phase(None);
                table.note_due(slot);
            }
            let due = model.leases.iter().filter_map(|(id, (_, due))| Some((at((*due)?), *id)));
            prop_assert_eq!(order, due.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_hundred_thousand_leases_take_20_mib() {
        const COUNT: usize = 100_000;
        let mut table = Table::default();
        for number in 0..COUNT {
            let source = std::net::Ipv4Addr::from_bits(u32::try_from(number).unwrap());
            let key = LeaseKey {
                door: DoorName::new("ssh").unwrap(),
                source: source.into(),
                access: Access::Firewall,
            };
            let lease = Lease::new(LeaseId(1 + number as u64), key, Duration::ZERO, None);
            table.add(Lease { phase: phase(Some(1)), ..lease }, true);
        }
        let bytes = table.bytes();
        assert!(bytes <= 20 << 20, "{bytes}");
    }
}
