//! What is due first, as a heap: each entry has up to four children, none of which is due earlier.
//!
//! The place of each lease is known, so its time can change. An ordered set would take three times the memory: its nodes are half empty,
//! because most leases are due later than all others when they begin.

use std::num::NonZeroU32;

use super::slots::{Slot, Slots};
use crate::time::Timestamp;

/// Leases in the order of [`Phase::due`](super::Phase::due), those of one time in the order of their IDs.
#[derive(Default, Debug)]
pub(super) struct Due {
    heap: Vec<Entry>,
    /// Where each lease is, by its slot. Apart from the leases, it fits into a cache.
    places: Vec<Option<Place>>,
}

/// With the time, most comparisons read no lease.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: Timestamp,
    slot: Slot,
}

impl Entry {
    fn is_before(self, other: Self, leases: &Slots) -> bool {
        let id = |entry: Self| leases.get(entry.slot).map(|lease| lease.id);
        self.at < other.at || self.at == other.at && id(self) < id(other)
    }
}

/// A place in the heap, from 1 on, so an `Option` of it takes four bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place(NonZeroU32);

impl Place {
    /// Returns the place with this index. There are as many as leases, so it fits.
    fn at(index: usize) -> Option<Self> {
        u32::try_from(index + 1).ok().and_then(NonZeroU32::new).map(Self)
    }

    const fn index(self) -> usize {
        self.0.get() as usize - 1
    }

    /// `None` for the first place.
    fn parent(self) -> Option<Self> {
        Self::at(self.index().checked_sub(1)? / CHILDREN)
    }

    const fn first_child(self) -> usize {
        self.index() * CHILDREN + 1
    }
}

/// With four, the children of an entry are one or two lines of a cache, and the heap is half as high as with two.
const CHILDREN: usize = 4;

impl Due {
    /// Returns what is due first.
    pub(super) fn first(&self) -> Option<Slot> {
        self.heap.first().map(|entry| entry.slot)
    }

    /// Takes note of when something is due for a lease now, if anything is.
    pub(super) fn note(&mut self, slot: Slot, leases: &Slots) {
        let at = leases.get(slot).and_then(|lease| lease.phase.due());
        let place = self.places.get(slot.index()).copied().flatten();
        match (at, place) {
            (Some(at), Some(place)) => self.settle(Entry { at, slot }, place, leases),
            (Some(at), None) => {
                let entry = Entry { at, slot };
                if self.places.len() <= slot.index() {
                    self.places.resize(slot.index() + 1, None);
                }
                if let Some(last) = Place::at(self.heap.len()) {
                    self.heap.push(entry);
                    self.settle(entry, last, leases);
                }
            }
            (None, Some(place)) => {
                if let Some(place) = self.places.get_mut(slot.index()) {
                    *place = None;
                }
                if let Some(last) = self.heap.pop().filter(|last| last.slot != slot) {
                    self.settle(last, place, leases);
                }
            }
            (None, None) => {}
        }
    }

    /// Puts an entry where it belongs: at this place, above it, or below it.
    fn settle(&mut self, entry: Entry, mut place: Place, leases: &Slots) {
        while let Some(parent) = place.parent()
            && let Some(&above) = self.heap.get(parent.index())
            && entry.is_before(above, leases)
        {
            self.put(above, place);
            place = parent;
        }
        while let Some((below, child)) = self.first_child(place, leases)
            && below.is_before(entry, leases)
        {
            self.put(below, place);
            place = child;
        }
        self.put(entry, place);
    }

    /// Returns the child that is due first.
    fn first_child(&self, place: Place, leases: &Slots) -> Option<(Entry, Place)> {
        let from = place.first_child();
        let mut children = (from..).zip(self.heap.get(from..)?.iter().copied().take(CHILDREN));
        let first = children.next()?;
        let earlier = |first: (usize, Entry), next: (usize, Entry)| {
            if next.1.is_before(first.1, leases) { next } else { first }
        };
        let (index, entry) = children.fold(first, earlier);
        Some((entry, Place::at(index)?))
    }

    fn put(&mut self, entry: Entry, place: Place) {
        if let Some(found) = self.heap.get_mut(place.index()) {
            *found = entry;
        }
        if let Some(found) = self.places.get_mut(entry.slot.index()) {
            *found = Some(place);
        }
    }
}

#[cfg(test)]
impl Due {
    pub(super) const fn len(&self) -> usize {
        self.heap.len()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.heap.len() * size_of::<Entry>() + self.places.len() * size_of::<Option<Place>>()
    }
}
