//! Finds leases, and counts those that have something in common. The keys are only in the leases, so an entry takes eight bytes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hash::Hash;

use hashbrown::HashTable;

use super::LeaseKey;
use super::life::Lease;
use super::slots::{Slot, Slots};
use crate::seed::{Seed, ShortHash};

/// Finds at most one lease by each key.
#[derive(Default, Debug)]
pub(super) struct Index(HashTable<Found>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Found {
    hash: ShortHash,
    slot: Slot,
}

impl Index {
    /// Returns the lease that is found by this hash and is the one that is meant.
    pub(super) fn find(
        &self,
        hash: ShortHash,
        leases: &Slots,
        is_it: impl Fn(&Lease) -> bool,
    ) -> Option<Slot> {
        let is_it = |found: &Found| found.hash == hash && leases.get(found.slot).is_some_and(&is_it);
        self.0.find(hash.wide(), is_it).map(|found| found.slot)
    }

    /// Adds a lease whose key finds no other.
    pub(super) fn add(&mut self, hash: ShortHash, slot: Slot) {
        self.0.insert_unique(hash.wide(), Found { hash, slot }, |found| found.hash.wide());
    }

    /// Removes a lease, and says whether it was here.
    pub(super) fn remove(&mut self, hash: ShortHash, slot: Slot) -> bool {
        let found = self.0.find_entry(hash.wide(), |found| *found == Found { hash, slot });
        found.map(hashbrown::hash_table::OccupiedEntry::remove).is_ok()
    }
}

/// Counts the leases that have something in common: this part of their keys.
#[derive(Debug)]
pub(super) struct Counts<K> {
    part: fn(&LeaseKey) -> K,
    /// One lease with each part, unless it has ended before the others.
    one: Index,
    /// How many leases there are beside that one. Few parts have any.
    others: BTreeMap<K, u32>,
}

impl<K: Hash + Ord> Counts<K> {
    pub(super) fn new(part: fn(&LeaseKey) -> K) -> Self {
        Self { part, one: Index::default(), others: BTreeMap::new() }
    }

    /// Returns how many leases have this part.
    pub(super) fn count(&self, part: &K, leases: &Slots, seed: Seed) -> u32 {
        let others = self.others.get(part).copied().unwrap_or(0);
        others + u32::from(self.has_one(part, leases, seed))
    }

    fn has_one(&self, part: &K, leases: &Slots, seed: Seed) -> bool {
        // A packet of a scanner is not hashed while no door is open.
        !self.one.0.is_empty()
            && self.one.find(seed.hash_of(part), leases, |lease| (self.part)(&lease.key) == *part).is_some()
    }

    pub(super) fn add(&mut self, slot: Slot, leases: &Slots, seed: Seed) {
        let Some(part) = leases.get(slot).map(|lease| (self.part)(&lease.key)) else { return };
        if self.has_one(&part, leases, seed) {
            *self.others.entry(part).or_default() += 1;
        } else {
            self.one.add(seed.hash_of(&part), slot);
        }
    }

    /// Removes a lease that had this key.
    pub(super) fn remove(&mut self, slot: Slot, key: &LeaseKey, seed: Seed) {
        let part = (self.part)(key);
        if self.one.remove(seed.hash_of(&part), slot) {
            return;
        }
        if let Entry::Occupied(mut others) = self.others.entry(part) {
            *others.get_mut() -= 1;
            if *others.get() == 0 {
                others.remove();
            }
        }
    }
}

#[cfg(test)]
impl Index {
    pub(super) fn bytes(&self) -> usize {
        self.0.allocation_size()
    }
}

#[cfg(test)]
impl<K> Counts<K> {
    /// Returns the memory for those who are alone.
    pub(super) fn bytes(&self) -> usize {
        self.one.bytes()
    }
}
