//! The places that hold leases. Whatever finds or orders leases has the number of a place, four bytes, and reads its key there.

use super::life::Lease;

/// The place of a lease, until the lease has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot(u32);

impl Slot {
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// All places, in one vector: a part of it that was never used takes no memory.
#[derive(Default, Debug)]
pub(super) struct Slots {
    places: Vec<Option<Lease>>,
    /// Those without a lease.
    free: Vec<Slot>,
}

impl Slots {
    /// Returns the number of leases.
    pub(super) const fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Lease> {
        self.places.get(slot.index())?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Lease> {
        self.places.get_mut(slot.index())?.as_mut()
    }

    pub(super) fn add(&mut self, lease: Lease) -> Slot {
        let free = self.free.pop().and_then(|slot| Some((slot, self.places.get_mut(slot.index())?)));
        if let Some((slot, place)) = free {
            *place = Some(lease);
            return slot;
        }
        self.places.push(Some(lease));
        // Memory ends before.
        Slot(u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX))
    }

    pub(super) fn take(&mut self, slot: Slot) -> Option<Lease> {
        let lease = self.places.get_mut(slot.index())?.take()?;
        self.free.push(slot);
        Some(lease)
    }

    /// Returns all leases, in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Lease)> {
        (0..).map(Slot).zip(&self.places).filter_map(|(slot, place)| Some((slot, place.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Lease> {
        self.places.iter_mut().flatten()
    }
}

#[cfg(test)]
impl Slots {
    /// Returns the memory that is in use: what a vector has never used takes none.
    pub(super) const fn bytes(&self) -> usize {
        self.places.len() * size_of::<Option<Lease>>() + self.free.len() * size_of::<Slot>()
    }
}
