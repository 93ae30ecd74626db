//! Doors that may still be open although their time is over: what is told about them until a person has dealt with
//! them.

use std::path::PathBuf;

use knockd_core::{LeaseFilter, LeaseId, LeaseRecord};

/// How many are told apart. All are on disk; the others are told after the next start.
const MAX: usize = 1000;

/// What was kept of a lease that nothing more is done about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum LeftOpen {
    /// Its stop command failed for good, at `record.until`.
    GivenUp {
        /// The lease.
        record: LeaseRecord,
        /// How the stop command failed; empty if that was not stored.
        reason: String,
    },
    /// Its file cannot be read, so nobody knows which door it is about.
    Unreadable(PathBuf),
}

impl LeftOpen {
    /// Says whether a request concerns it. One that cannot be read is meant only by a request about all.
    pub(crate) fn is_meant(&self, which: &LeaseFilter) -> bool {
        match self {
            Self::GivenUp { record, .. } => which.includes(&record.key),
            Self::Unreadable(_) => *which == LeaseFilter::default(),
        }
    }
}

/// All of them, oldest first.
#[derive(Default, Debug)]
pub(crate) struct AllLeftOpen {
    /// Each with the number of its file, if it has one.
    known: Vec<(Option<LeaseId>, LeftOpen)>,
    more: usize,
}

impl AllLeftOpen {
    pub(crate) fn add(&mut self, file: Option<LeaseId>, left_open: LeftOpen) {
        if self.known.len() < MAX {
            self.known.push((file, left_open));
        } else {
            self.more += 1;
        }
    }

    /// Removes those that a request concerns and returns the numbers of their files.
    pub(crate) fn dismiss(&mut self, which: &LeaseFilter) -> Vec<Option<LeaseId>> {
        self.known.extract_if(.., |(_, left_open)| left_open.is_meant(which)).map(|(file, _)| file).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &LeftOpen> {
        self.known.iter().map(|(_, left_open)| left_open)
    }

    /// Returns how many there are besides these.
    pub(crate) const fn more(&self) -> usize {
        self.more
    }
}
