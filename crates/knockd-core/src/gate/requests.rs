//! What a person may ask of a gate: what it knows, and to open, close and extend doors or forgive scanners.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Gate, OneTimeFiles, Outcomes};
use crate::lease::{LeaseFilter, LeaseId, LeaseView};
use crate::matcher::Underway;
use crate::outcome::{DoorId, Outcome};
use crate::scanners::Scanner;
use crate::time::{Now, Timestamp};

impl Gate {
    /// Opens the doors with this name for a source as if it had knocked, each with its own [`Outcome::Opening`]. No
    /// one-time sequence is used up.
    pub fn open(&mut self, name: &str, source: IpAddr, now: Now) -> Outcomes<'_> {
        let config = Arc::clone(&self.config);
        for door in config.doors.iter().filter(|door| door.name == *name) {
            self.open_door(door, source, now);
        }
        self.take_outcomes()
    }

    /// Closes leases early.
    ///
    /// A lease whose start command is still running closes once that ends, unless another knock arrives before. A
    /// running stop command is the last one, even if a knock arrived meanwhile, and one that waits for a retry is
    /// retried at once.
    pub fn close(&mut self, which: &LeaseFilter, now: Now) -> Outcomes<'_> {
        let effects = self.leases.close(which, now);
        self.outcomes.extend(effects.into_iter().map(Outcome::Effect));
        self.take_outcomes()
    }

    /// Keeps leases open for `time` from now or, without one, for their `Cmd_Timeout`, but never shorter than before;
    /// each returns an [`Effect::EndMoved`](crate::Effect::EndMoved).
    ///
    /// If its start command is still running, the time starts when that ends. A lease that is closing does not
    /// change.
    pub fn extend(&mut self, which: &LeaseFilter, time: Option<Duration>, now: Now) -> Outcomes<'_> {
        let effects = self.leases.extend(which, time, now);
        self.outcomes.extend(effects.into_iter().map(Outcome::Effect));
        self.take_outcomes()
    }

    /// Has the firewall let in whom it let in before it forgot them.
    pub fn admit_again(&mut self, now: Now) -> Outcomes<'_> {
        let effects = self.leases.admit_again(now);
        self.outcomes.extend(effects.into_iter().map(Outcome::Effect));
        self.take_outcomes()
    }

    /// Closes every door for good: from now on nothing opens, a lease whose start command is still running closes
    /// once that ends, and a failed stop command is left to the next process that restores its record.
    pub fn close_all(&mut self, now: Now) -> Outcomes<'_> {
        let effects = self.leases.close_all(now);
        self.outcomes.extend(effects.into_iter().map(Outcome::Effect));
        self.take_outcomes()
    }

    /// Returns the sources that are scanners at present, in no particular order. This looks through everything that is
    /// remembered of sources.
    pub fn scanners(&self, now: Timestamp) -> impl Iterator<Item = Scanner> + '_ {
        self.scanners.scanners(now)
    }

    /// Forgets what a source has tried so far, so it is no scanner any more, and says whether it was one. All addresses
    /// of an IPv6 /64 are one source.
    pub fn forgive(&mut self, source: IpAddr, now: Timestamp) -> bool {
        self.scanners.forgive(source, now)
    }

    /// Returns all leases, oldest first, including those whose stop command is still running.
    pub fn leases(&self) -> impl Iterator<Item = LeaseView<'_>> {
        self.leases.iter()
    }

    /// Returns a lease, unless it has ended.
    pub fn lease(&self, id: LeaseId) -> Option<LeaseView<'_>> {
        self.leases.get(id)
    }

    /// Returns the number of leases.
    pub fn lease_count(&self) -> usize {
        self.leases.len()
    }

    /// Returns the attempts in progress, most advanced first, and within a stage of a door the longest there first; in
    /// a flood, those that will be dropped last may come at the end. Each takes the same time, however many there are.
    pub fn attempts(&self) -> impl Iterator<Item = Underway> + '_ {
        self.matcher.underway()
    }

    /// Returns the number of attempts in progress.
    pub fn attempt_count(&self) -> usize {
        self.matcher.underway_count()
    }

    /// Returns the number of steps in a door's sequence; `None` if a door has no one-time sequence left.
    pub fn steps_of(&self, door: DoorId) -> Option<usize> {
        self.matcher.steps_of(door)
    }

    /// Returns the one-time files, including which lines have been used.
    pub const fn one_time_files(&self) -> &OneTimeFiles {
        &self.files
    }

    /// Returns the number of packets so far that some door saw.
    pub const fn visible_packets(&self) -> u64 {
        self.matcher.visible_packets()
    }
}
