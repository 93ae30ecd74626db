//! What a person may see of the matcher.

use std::net::IpAddr;

use super::{COOLING, DoorId, Matcher};
use crate::attempts::Attempt;
use crate::packet::Packet;
use crate::sequence::{Sequence, Step};
use crate::time::Timestamp;

/// An attempt in progress, as shown to a person, without the remaining steps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Underway {
    /// The source.
    pub source: IpAddr,
    /// The door.
    pub door: DoorId,
    /// The number of steps done, from 1.
    pub stage: u8,
    /// When the first step was hit.
    pub begun: Timestamp,
}

impl Matcher {
    /// Returns the number of attempts in progress alone.
    pub fn underway_count(&self) -> usize {
        self.attempts.len() - self.attempts.cooling()
    }

    /// Returns the attempts in progress, most advanced first, and within a stage of a door the longest there first; in
    /// a flood, those that will be dropped last may come at the end. Each takes the same time, however many there are.
    pub fn underway(&self) -> impl Iterator<Item = Underway> + '_ {
        let attempts = self.attempts.iter().take_while(|attempt| attempt.stage != COOLING);
        attempts.map(|Attempt { source, door, stage, begun, .. }| Underway {
            source,
            door: DoorId(door),
            stage,
            begun,
        })
    }

    /// Returns the number of steps in a door's sequence; `None` if a door has no one-time sequence left.
    pub fn steps_of(&self, door: DoorId) -> Option<usize> {
        self.doors.get(door.index())?.sequence.as_ref().map(Sequence::len)
    }

    /// Returns the first door that watches the packet's destination and has its port in its sequence with the other
    /// protocol.
    pub fn door_for_other_protocol(&self, packet: &Packet) -> Option<DoorId> {
        let (classes, _) = self.classes_of(packet);
        let Step { port, protocol } = packet.hit.step();
        let is_meant = |step: Step| step.port == port && step.protocol != protocol;
        let wants = |sequence: &Sequence| sequence.steps().any(is_meant);
        let door = self.doors.iter().position(|door| {
            classes.contains(&Some(door.class)) && door.sequence.as_ref().is_some_and(wants)
        });
        door.map(DoorId::new)
    }

    /// Returns the number of packets so far that some door saw.
    pub const fn visible_packets(&self) -> u64 {
        self.packet
    }
}
