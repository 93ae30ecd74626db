//! What a person may see of the matcher.

use std::net::IpAddr;

use super::{COOLING, DoorId, Matcher};
use crate::attempts::Attempt;
use crate::sequence::Sequence;
use crate::time::Timestamp;

/// An attempt under way, as a person may see it: what is still to be hit is no part of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Underway {
    /// Whose attempt.
    pub source: IpAddr,
    /// At which door.
    pub door: DoorId,
    /// The number of steps done, from 1.
    pub stage: u8,
    /// When the first step was hit.
    pub begun: Timestamp,
}

impl Matcher {
    /// The number of attempts under way alone.
    pub fn underway_count(&self) -> usize {
        self.attempts.len() - self.attempts.len_at(COOLING)
    }

    /// The attempts under way, the most advanced first, of those the longest at its stage. Each costs the same, however many
    /// there are.
    pub fn underway(&self) -> impl Iterator<Item = Underway> + '_ {
        let attempts = self.attempts.iter().take_while(|attempt| attempt.stage != COOLING);
        attempts.map(|Attempt { source, door, stage, begun, .. }| Underway {
            source,
            door: DoorId(door),
            stage,
            begun,
        })
    }

    /// The number of steps of a door's sequence; `None` while a door with one-time sequences has none left.
    pub fn steps_of(&self, door: DoorId) -> Option<usize> {
        self.doors.get(door.index())?.sequence.as_ref().map(Sequence::len)
    }

    /// The number of packets so far that some door wanted to see.
    pub const fn visible_packets(&self) -> u64 {
        self.packet
    }
}
