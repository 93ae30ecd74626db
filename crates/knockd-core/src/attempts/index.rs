//! Finds the attempts of a source and of a network: two hash tables of lists.
//!
//! The keys are only in the attempts, so a table takes eight bytes per list; a lookup compares with the first attempt
//! of the list.

use std::net::{IpAddr, Ipv6Addr};

use hashbrown::HashTable;

use super::entries::{Entries, Slot, more};
use super::list::{List, Order};
use super::{Attempt, ClassId};
use crate::seed::{Seed, ShortHash};

/// How many attempts one IPv6 /64 network may have, at any stages of any doors.
pub(super) const PER_NETWORK: u16 = 1024;

/// The attempts of each source at doors of each class, oldest first.
#[derive(Debug)]
pub(super) struct Sources {
    table: HashTable<OfSource>,
    seed: Seed,
}

/// With its hash, the table can grow without reading the attempts, and rarely reads one in vain.
#[derive(Debug)]
struct OfSource {
    hash: ShortHash,
    list: List,
}

impl OfSource {
    fn is_of(&self, (source, class): (IpAddr, ClassId), entries: &Entries) -> bool {
        let first = self.list.first.and_then(|first| entries.get(first));
        first.is_some_and(|attempt| attempt.source == source && attempt.class == class)
    }
}

/// Returns the hash of a source and a class. It is keyed, because strangers choose the sources.
fn hash_of_source((source, class): (IpAddr, ClassId), seed: Seed) -> ShortHash {
    let class = u64::from(class.0);
    // Both are hashed in the same form: with another form for IPv4, the code for IPv6 compiles to half the speed.
    let hash = match source {
        IpAddr::V4(source) => seed.hash_all([u64::from(source.to_bits()) << 32 | class]),
        IpAddr::V6(source) => {
            let (prefix, host) = halves(source);
            seed.hash_all([prefix, host, class])
        }
    };
    ShortHash::of(hash)
}

impl Sources {
    pub(super) const fn new(seed: Seed) -> Self {
        Self { table: HashTable::new(), seed }
    }

    /// Returns the oldest attempt of a source at doors of a class.
    pub(super) fn oldest(&self, source: IpAddr, class: ClassId, entries: &Entries) -> Option<Slot> {
        let key = (source, class);
        let hash = hash_of_source(key, self.seed);
        let is_it = |known: &OfSource| known.hash == hash && known.is_of(key, entries);
        self.table.find(hash.wide(), is_it)?.list.first
    }

    pub(super) fn link(&mut self, slot: Slot, attempt: &Attempt, entries: &mut Entries) {
        let key = (attempt.source, attempt.class);
        let hash = hash_of_source(key, self.seed);
        let is_it = |known: &OfSource| known.hash == hash && known.is_of(key, entries);
        let place = self.table.entry(hash.wide(), is_it, |known| known.hash.wide());
        let mut place = place.or_insert(OfSource { hash, list: List::default() });
        place.get_mut().list.push_back(slot, Order::Source, entries);
    }

    pub(super) fn unlink(&mut self, slot: Slot, attempt: &Attempt, entries: &mut Entries) {
        let key = (attempt.source, attempt.class);
        let hash = hash_of_source(key, self.seed);
        let is_it = |known: &OfSource| known.hash == hash && known.is_of(key, entries);
        let Ok(mut place) = self.table.find_entry(hash.wide(), is_it) else { return };
        let list = &mut place.get_mut().list;
        list.unlink(slot, Order::Source, entries);
        if list.first.is_none() {
            place.remove();
        }
    }

    /// Makes room for one more, and for many when it grows.
    pub(super) fn grow(&mut self, limit: usize) {
        // A hash table at most half full rarely needs tidying, which would take as long as growing: in fewer than one
        // of a thousand removals all 15 neighbours are taken, so a mark remains. A larger table is slower to look up.
        let roomy = limit.saturating_mul(7) / 4;
        let len = self.table.len();
        if len == self.table.capacity() {
            self.table.reserve(more(len, roomy), |known| known.hash.wide());
        }
    }
}

/// The attempts of each IPv6 /64 network.
///
/// A network has one list for attempts at their first stage and one for the others, and the longer one makes room. So
/// neither somebody who knows the first step nor somebody who knows more locks their neighbours out at once: an attempt
/// stays until at least half of [`PER_NETWORK`] have come after it.
#[derive(Debug)]
pub(super) struct Networks {
    table: HashTable<OfNetwork>,
    seed: Seed,
    /// How many one network may have.
    pub(super) most: u16,
}

/// Who came to their stage first are at the front of both lists.
#[derive(Default, Debug)]
struct OfNetwork {
    first_stage: List,
    further: List,
    first_stage_len: u16,
    further_len: u16,
}

impl OfNetwork {
    fn prefix(&self, entries: &Entries) -> Option<u64> {
        let any = self.first_stage.first.or(self.further.first)?;
        network_of(entries.get(any)?.source)
    }

    /// The list of those who are at this stage, and its length.
    const fn at(&mut self, stage: u8) -> (&mut List, &mut u16) {
        if stage <= 1 {
            (&mut self.first_stage, &mut self.first_stage_len)
        } else {
            (&mut self.further, &mut self.further_len)
        }
    }

    const fn len(&self) -> u16 {
        self.first_stage_len + self.further_len
    }
}

impl Networks {
    pub(super) const fn new(seed: Seed) -> Self {
        Self { table: HashTable::new(), seed, most: PER_NETWORK }
    }

    /// Returns the attempt of the network that makes room for a new one, if that would be one too many.
    pub(super) fn crowded_by(&self, attempt: &Attempt, entries: &Entries) -> Option<Slot> {
        let prefix = network_of(attempt.source)?;
        let is_it = |known: &OfNetwork| known.prefix(entries) == Some(prefix);
        let network =
            self.table.find(self.seed.hash(prefix), is_it).filter(|known| known.len() >= self.most)?;
        let longer = if network.first_stage_len >= network.further_len {
            network.first_stage
        } else {
            network.further
        };
        longer.first
    }

    pub(super) fn link(&mut self, slot: Slot, attempt: &Attempt, entries: &mut Entries) {
        let Some(prefix) = network_of(attempt.source) else { return };
        let is_it = |known: &OfNetwork| known.prefix(entries) == Some(prefix);
        let place = self.table.entry(self.seed.hash(prefix), is_it, hash_of(self.seed, entries));
        let mut place = place.or_insert(OfNetwork::default());
        let (list, len) = place.get_mut().at(attempt.stage);
        list.push_back(slot, Order::Network, entries);
        *len += 1;
    }

    pub(super) fn unlink(&mut self, slot: Slot, attempt: &Attempt, entries: &mut Entries) {
        let Some(prefix) = network_of(attempt.source) else { return };
        let is_it = |known: &OfNetwork| known.prefix(entries) == Some(prefix);
        let Ok(mut place) = self.table.find_entry(self.seed.hash(prefix), is_it) else { return };
        let (list, len) = place.get_mut().at(attempt.stage);
        list.unlink(slot, Order::Network, entries);
        *len -= 1;
        if place.get().len() == 0 {
            place.remove();
        }
    }

    /// Makes room for one more, and for many when it grows.
    pub(super) fn grow(&mut self, limit: usize, entries: &Entries) {
        let len = self.table.len();
        if len == self.table.capacity() {
            self.table.reserve(more(len, limit), hash_of(self.seed, entries));
        }
    }
}

fn hash_of(seed: Seed, entries: &Entries) -> impl Fn(&OfNetwork) -> u64 {
    move |network| network.prefix(entries).map_or(0, |prefix| seed.hash(prefix))
}

/// Returns the IPv6 network that a source belongs to.
pub(super) fn network_of(source: IpAddr) -> Option<u64> {
    match source {
        IpAddr::V6(source) => Some(halves(source).0),
        IpAddr::V4(_) => None,
    }
}

fn halves(address: Ipv6Addr) -> (u64, u64) {
    let bits = address.to_bits();
    let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
    (half(bits >> 64), half(bits))
}

#[cfg(test)]
impl Sources {
    pub(super) const ITEM_SIZE: usize = size_of::<OfSource>();

    pub(super) fn buckets(&self) -> usize {
        self.table.num_buckets()
    }

    /// Checks that every list is found by what its attempts share, and returns all attempts.
    pub(super) fn checked(&self, entries: &Entries) -> Vec<Slot> {
        let check = |known: &OfSource| {
            let members = known.list.checked(Order::Source, entries);
            assert!(!members.is_empty(), "a source without attempts");
            for attempt in members.iter().map(|&slot| entries.get(slot).unwrap()) {
                assert_eq!(known.hash, hash_of_source((attempt.source, attempt.class), self.seed));
                assert_eq!(self.oldest(attempt.source, attempt.class, entries), known.list.first);
            }
            members
        };
        self.table.iter().flat_map(check).collect()
    }
}

#[cfg(test)]
impl Networks {
    pub(super) const ITEM_SIZE: usize = size_of::<OfNetwork>();

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Does the same, and checks that no network exceeds its limit.
    pub(super) fn checked(&self, entries: &Entries) -> Vec<Slot> {
        let check = |known: &OfNetwork| {
            let mut all = Vec::new();
            let lists =
                [(known.first_stage, known.first_stage_len, false), (known.further, known.further_len, true)];
            for (list, len, is_further) in lists {
                let members = list.checked(Order::Network, entries);
                assert_eq!(members.len(), usize::from(len));
                for attempt in members.iter().map(|&slot| entries.get(slot).unwrap()) {
                    assert_eq!(attempt.stage > 1, is_further);
                    assert_eq!(network_of(attempt.source), known.prefix(entries));
                    let hash = self.seed.hash(known.prefix(entries).unwrap());
                    let is_it = |other: &OfNetwork| other.prefix(entries) == network_of(attempt.source);
                    assert!(std::ptr::eq(self.table.find(hash, is_it).unwrap(), known), "two of one network");
                }
                all.extend(members);
            }
            assert!((1..=usize::from(self.most)).contains(&all.len()), "{} of one network", all.len());
            all
        };
        self.table.iter().flat_map(check).collect()
    }
}
