//! How the attempts of a source and of a network are found.

use std::net::{IpAddr, Ipv6Addr};

use hashbrown::hash_table::Entry::{Occupied, Vacant};

use super::{Attempt, Attempts, ClassId, Links, Order, Slot};
use crate::seed::Seed;

/// How many attempts at their first stage one IPv6 network of 64 bits may have.
pub(super) const PER_NETWORK: u32 = 1024;

/// How many times larger a table becomes when it is full.
const GROWTH: usize = 16;

/// The newest attempt of a source. With its hash, the table can grow without looking at the attempts, and hardly ever looks at
/// one in vain.
#[derive(Debug)]
pub(super) struct Head {
    hash: Hash,
    slot: Slot,
}

/// The hash of a source and a class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Hash(u32);

impl Hash {
    /// It is keyed, since strangers choose the sources. An address as a number takes fewer rounds than as an enum of bytes.
    fn of(seed: Seed, source: IpAddr, class: ClassId) -> Self {
        let hash = match source {
            IpAddr::V4(source) => seed.hash([u64::from(source.to_bits()) << 32 | u64::from(class.0)]),
            IpAddr::V6(source) => {
                let (high, low) = halves(source);
                seed.hash([high, low, class.0.into()])
            }
        };
        Self(u32::try_from(hash >> 32).unwrap_or_default())
    }

    /// As the table wants it, which takes its place from the lowest bits and seven more from the highest.
    const fn wide(self) -> u64 {
        (self.0 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// An IPv6 network of 64 bits; which one, its attempts tell.
#[derive(Debug)]
pub(super) struct Network {
    first: Slot,
    last: Slot,
    count: u32,
}

impl Attempts {
    /// The newest attempt of this source at doors of this class; [`Self::next_of_source`] leads to the older ones.
    pub(crate) fn first_of_source(&self, source: IpAddr, class: ClassId) -> Option<Slot> {
        let hash = Hash::of(self.seed, source, class);
        let is_it = |head: &Head| head.hash == hash && self.is_of(head.slot, source, class);
        self.chains.find(hash.wide(), is_it).map(|head| head.slot)
    }

    fn is_of(&self, slot: Slot, source: IpAddr, class: ClassId) -> bool {
        self.get(slot).is_some_and(|attempt| attempt.source == source && attempt.class == class)
    }

    /// Makes room for one more, and then for many: whatever is in a hash table has to move when it grows, during which packets
    /// are lost if it is much. What is not used yet takes next to no memory.
    pub(super) fn grow(&mut self) {
        let Self { chains, networks, entries, seed, limit, .. } = self;
        let more =
            |len: usize, most: usize| most.saturating_sub(len).min(len.max(64).saturating_mul(GROWTH - 1));
        // A hash table that is at most half full hardly ever has to be tidied up, which would take as long: in less than one of
        // a thousand removals all 15 neighbours are taken, so that a mark has to be left. A larger one is slower to look into.
        let roomy = limit.saturating_mul(7) / 4;
        if chains.len() == chains.capacity() {
            chains.reserve(more(chains.len(), roomy), |head| head.hash.wide());
        }
        if networks.len() == networks.capacity() {
            let prefix = |network: &Network| {
                entries.get(network.first.index()).and_then(|entry| network_of(&entry.attempt))
            };
            let hash = |network: &Network| prefix(network).map_or(0, |prefix| seed.hash([prefix]));
            networks.reserve(more(networks.len(), *limit), hash);
        }
        if entries.len() == entries.capacity() {
            entries.reserve_exact(more(entries.len(), *limit));
        }
    }

    /// Puts an entry at the head of the chain of its source.
    pub(super) fn chain(&mut self, slot: Slot) {
        let Some(&Attempt { source, class, .. }) = self.get(slot) else { return };
        let hash = Hash::of(self.seed, source, class);
        let Self { chains, entries, .. } = &mut *self;
        let key =
            |slot: Slot| entries.get(slot.index()).map(|entry| (entry.attempt.source, entry.attempt.class));
        let is_it = |head: &Head| head.hash == hash && key(head.slot) == Some((source, class));
        let next = match chains.entry(hash.wide(), is_it, |head| head.hash.wide()) {
            Vacant(vacant) => {
                vacant.insert(Head { hash, slot });
                None
            }
            Occupied(mut head) => Some(std::mem::replace(&mut head.get_mut().slot, slot)),
        };
        if let Some(links) = next.and_then(|next| self.links(next, Order::Chain)) {
            links.previous = Some(slot);
        }
        if let Some(links) = self.links(slot, Order::Chain) {
            links.next = next;
        }
    }

    pub(super) fn unchain(&mut self, slot: Slot) {
        let Some(&Attempt { source, class, .. }) = self.get(slot) else { return };
        let Some(&mut Links { previous, next }) = self.links(slot, Order::Chain) else { return };
        if let Some(links) = next.and_then(|next| self.links(next, Order::Chain)) {
            links.previous = previous;
        }
        if let Some(links) = previous.and_then(|previous| self.links(previous, Order::Chain)) {
            links.next = next;
        } else if let Ok(mut head) =
            self.chains.find_entry(Hash::of(self.seed, source, class).wide(), |head| head.slot == slot)
        {
            match next {
                Some(next) => head.get_mut().slot = next,
                None => drop(head.remove()),
            }
        }
    }

    /// The oldest attempt that has to make room because there are too many of its network.
    pub(super) fn crowded(&self, attempt: &Attempt) -> Option<Slot> {
        let prefix = network_of(attempt)?;
        let network =
            self.networks.find(self.seed.hash([prefix]), |network| self.is_in(network.first, prefix))?;
        (network.count >= PER_NETWORK).then_some(network.first)
    }

    fn is_in(&self, slot: Slot, prefix: u64) -> bool {
        self.get(slot).and_then(network_of) == Some(prefix)
    }

    pub(super) fn join_network(&mut self, slot: Slot) {
        let Some(prefix) = self.get(slot).and_then(network_of) else { return };
        let Self { networks, entries, seed, .. } = &mut *self;
        let prefix_of = |network: &Network| {
            entries.get(network.first.index()).and_then(|entry| network_of(&entry.attempt))
        };
        let place = networks.entry(
            seed.hash([prefix]),
            |network| prefix_of(network) == Some(prefix),
            |network| prefix_of(network).map_or(0, |prefix| seed.hash([prefix])),
        );
        let previous = match place {
            Vacant(vacant) => {
                vacant.insert(Network { first: slot, last: slot, count: 1 });
                None
            }
            Occupied(mut network) => {
                let network = network.get_mut();
                network.count += 1;
                Some(std::mem::replace(&mut network.last, slot))
            }
        };
        if let Some(links) = previous.and_then(|previous| self.links(previous, Order::Network)) {
            links.next = Some(slot);
        }
        if let Some(links) = self.links(slot, Order::Network) {
            *links = Links { previous, next: None };
        }
    }

    pub(super) fn leave_network(&mut self, slot: Slot) {
        let Some(prefix) = self.get(slot).and_then(network_of) else { return };
        let Some(&mut Links { previous, next }) = self.links(slot, Order::Network) else { return };
        if let Some(links) = previous.and_then(|previous| self.links(previous, Order::Network)) {
            links.next = next;
        }
        if let Some(links) = next.and_then(|next| self.links(next, Order::Network)) {
            links.previous = previous;
        }
        let entries = &self.entries;
        let is_it = |network: &Network| {
            entries.get(network.first.index()).and_then(|entry| network_of(&entry.attempt)) == Some(prefix)
        };
        let Ok(mut place) = self.networks.find_entry(self.seed.hash([prefix]), is_it) else { return };
        let network = place.get_mut();
        network.count -= 1;
        match (previous, next) {
            (None, None) => drop(place.remove()),
            (None, Some(next)) => network.first = next,
            (Some(previous), None) => network.last = previous,
            (Some(_), Some(_)) => {}
        }
    }
}

/// The IPv6 network that an attempt counts for; none at later stages.
fn network_of(attempt: &Attempt) -> Option<u64> {
    match attempt.source {
        IpAddr::V6(source) if attempt.stage <= 1 => Some(halves(source).0),
        _ => None,
    }
}

fn halves(address: Ipv6Addr) -> (u64, u64) {
    let bits = address.to_bits();
    let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
    (half(bits >> 64), half(bits))
}
