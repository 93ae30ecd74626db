//! Lists linked through the entries.
//!
//! An entry has a pair of links for each kind of list, so it is in four lists and needs no other memory. A list's owner
//! stores its first entry, four bytes; the first entry's `previous` is the last one, so both ends are at hand.
//!
//! ```text
//!                   ┌──────────────── previous ───────────────┐
//!                   │                                         ▼
//!   List ─ first ─▶ A ── next ──▶ B ── next ──▶ C ── next ──▶ D ── next ──▶ None
//!                   A ◀─ previous B ◀─ previous C ◀─ previous D
//! ```

use super::entries::{Entries, Slot};

/// The kinds of lists, by what the entries of a list share.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    Source,
    Network,
    Queue,
    Share,
}

/// An entry's neighbours in a list; both are `None` if it is in no list.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Links {
    previous: Option<Slot>,
    pub(super) next: Option<Slot>,
}

impl Links {
    /// Says whether the entry is in a list: even a single entry has a previous one, itself.
    pub(super) const fn is_linked(self) -> bool {
        self.previous.is_some()
    }
}

/// A list of entries. All calls for one list name the same order.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct List {
    pub(super) first: Option<Slot>,
}

impl List {
    /// Adds an entry that is in no list of this order, at the end.
    pub(super) fn push_back(&mut self, slot: Slot, order: Order, entries: &mut Entries) {
        let first = *self.first.get_or_insert(slot);
        let last = entries.links_mut(first, order).and_then(|links| links.previous.replace(slot));
        if let Some(links) = last.and_then(|last| entries.links_mut(last, order)) {
            links.next = Some(slot);
        }
        if let Some(links) = entries.links_mut(slot, order) {
            // The first of all comes after itself.
            *links = Links { previous: last.or(Some(slot)), next: None };
        }
    }

    /// Removes an entry of this list.
    pub(super) fn unlink(&mut self, slot: Slot, order: Order, entries: &mut Entries) {
        let Some(Links { previous: Some(previous), next }) =
            entries.links_mut(slot, order).map(std::mem::take)
        else {
            return;
        };
        if self.first == Some(slot) {
            self.first = next;
        } else if let Some(links) = entries.links_mut(previous, order) {
            links.next = next;
        }
        // In the direction of `previous`, the first follows the last.
        if let Some(links) = next.or(self.first).and_then(|after| entries.links_mut(after, order)) {
            links.previous = Some(previous);
        }
    }

    /// Removes an entry from whichever of these lists it is in.
    pub(super) fn unlink_from(lists: [&mut Self; 3], slot: Slot, order: Order, entries: &mut Entries) {
        let is_last = entries.links(slot, order).is_some_and(|links| links.next.is_none());
        let is_end_of = |list: &&mut Self| {
            let last_of = |first| entries.links(first, order)?.previous;
            list.first.is_some_and(|first| first == slot || is_last && last_of(first) == Some(slot))
        };
        match lists.into_iter().find(is_end_of) {
            Some(list) => list.unlink(slot, order, entries),
            // Between two other entries, only their links change.
            None => Self::default().unlink(slot, order, entries),
        }
    }

    /// Moves all entries of another list to its end.
    pub(super) fn append(&mut self, other: Self, order: Order, entries: &mut Entries) {
        let (Some(first), Some(behind)) = (self.first, other.first) else {
            self.first = self.first.or(other.first);
            return;
        };
        let end = entries.links(behind, order).and_then(|links| links.previous);
        let last =
            entries.links_mut(first, order).and_then(|links| std::mem::replace(&mut links.previous, end));
        if let Some(links) = entries.links_mut(behind, order) {
            links.previous = last;
        }
        if let Some(links) = last.and_then(|last| entries.links_mut(last, order)) {
            links.next = Some(behind);
        }
    }

    /// Returns its entries from first to last.
    pub(super) fn iter(self, order: Order, entries: &Entries) -> impl Iterator<Item = Slot> {
        std::iter::successors(self.first, move |&slot| entries.links(slot, order)?.next)
    }
}

#[cfg(test)]
impl List {
    /// Returns its entries, after comparing their links from both sides.
    pub(super) fn checked(self, order: Order, entries: &Entries) -> Vec<Slot> {
        // One more than exist reveals an endless list.
        let members: Vec<_> = self.iter(order, entries).take(entries.len() + 1).collect();
        assert!(members.len() <= entries.len(), "a list has more entries than there are: {order:?}");
        let previous = members.iter().skip(members.len().saturating_sub(1)).chain(&members);
        for (slot, previous) in members.iter().zip(previous) {
            assert!(entries.get(*slot).is_some(), "{slot:?} is in a list and free: {order:?}");
            assert_eq!(
                entries.links(*slot, order).unwrap().previous,
                Some(*previous),
                "before {slot:?}: {order:?}"
            );
        }
        members
    }
}
