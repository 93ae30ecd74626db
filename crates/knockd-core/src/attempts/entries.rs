//! The places that hold attempts, each with its links in the lists.

use std::num::NonZeroU32;

use super::Attempt;
use super::list::{Links, Order};

/// The factor by which a full table grows.
const GROWTH: usize = 16;

/// A place in the table, counted from 1 so an `Option` of it takes four bytes; it belongs to an attempt until the
/// attempt is removed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Slot(NonZeroU32);

impl Slot {
    const fn index(self) -> usize {
        self.0.get() as usize - 1
    }

    /// Returns the last of `count` places. The limit is a `u32`, so the count fits.
    fn last_of(count: usize) -> Self {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Self(NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN))
    }
}

/// 72 bytes, so a table of the default limit takes 18 MiB.
#[derive(Debug)]
struct Entry {
    attempt: Attempt,
    of_source: Links,
    of_network: Links,
    in_queue: Links,
    in_share: Links,
}

/// All places; those without an attempt are chained through `of_source.next` and are reused first.
#[derive(Default, Debug)]
pub(super) struct Entries {
    places: Vec<Entry>,
    free: Option<Slot>,
    len: usize,
}

impl Entries {
    /// Returns the number of attempts.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Returns the attempt at a place; `None` for a free place, which is in no source's list.
    pub(super) fn get(&self, slot: Slot) -> Option<&Attempt> {
        let entry = self.places.get(slot.index())?;
        entry.of_source.is_linked().then_some(&entry.attempt)
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Attempt> {
        self.places.get_mut(slot.index()).map(|entry| &mut entry.attempt)
    }

    /// Stores an attempt at a free place, in no list yet.
    pub(super) fn add(&mut self, attempt: Attempt) -> Slot {
        self.len += 1;
        let none = Links::default();
        let entry = Entry { attempt, of_source: none, of_network: none, in_queue: none, in_share: none };
        if let Some(slot) = self.free
            && let Some(place) = self.places.get_mut(slot.index())
        {
            self.free = place.of_source.next;
            *place = entry;
            return slot;
        }
        self.places.push(entry);
        Slot::last_of(self.places.len())
    }

    /// Frees the place of an attempt that is in no list any more.
    pub(super) fn free(&mut self, slot: Slot) {
        let next = self.free.replace(slot);
        if let Some(links) = self.links_mut(slot, Order::Source) {
            links.next = next;
        }
        self.len -= 1;
    }

    pub(super) fn links(&self, slot: Slot, order: Order) -> Option<&Links> {
        let entry = self.places.get(slot.index())?;
        Some(match order {
            Order::Source => &entry.of_source,
            Order::Network => &entry.of_network,
            Order::Queue => &entry.in_queue,
            Order::Share => &entry.in_share,
        })
    }

    pub(super) fn links_mut(&mut self, slot: Slot, order: Order) -> Option<&mut Links> {
        let entry = self.places.get_mut(slot.index())?;
        Some(match order {
            Order::Source => &mut entry.of_source,
            Order::Network => &mut entry.of_network,
            Order::Queue => &mut entry.in_queue,
            Order::Share => &mut entry.in_share,
        })
    }

    /// Makes room for one more, and for many when it grows.
    pub(super) fn grow(&mut self, limit: usize) {
        let len = self.places.len();
        if len == self.places.capacity() {
            self.places.reserve_exact(more(len, limit));
        }
    }
}

/// Returns by how many places a full table of this length grows. Growing moves its contents, and a long move loses
/// packets, so a table grows seldom and by a large factor; unused places take almost no memory.
pub(super) fn more(len: usize, most: usize) -> usize {
    most.saturating_sub(len).min(len.max(64).saturating_mul(GROWTH - 1))
}

#[cfg(test)]
impl Entries {
    pub(super) const ENTRY_SIZE: usize = size_of::<Entry>();

    pub(super) fn capacity(&self) -> usize {
        self.places.capacity()
    }

    /// Returns all places.
    pub(super) fn all(&self) -> impl Iterator<Item = Slot> {
        (1..=self.places.len()).map(Slot::last_of)
    }

    /// Returns the free places, which are in no list.
    pub(super) fn all_free(&self) -> Vec<Slot> {
        let next = |&slot: &Slot| self.links(slot, Order::Source).unwrap().next;
        // One more than exist reveals an endless chain.
        let free: Vec<_> = std::iter::successors(self.free, next).take(self.places.len() + 1).collect();
        for &slot in &free {
            for order in [Order::Source, Order::Network, Order::Queue, Order::Share] {
                assert!(
                    !self.links(slot, order).unwrap().is_linked(),
                    "{slot:?} is free and linked: {order:?}"
                );
            }
        }
        free
    }
}
