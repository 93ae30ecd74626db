//! What the matcher says of packets and attempts.

use std::net::IpAddr;

/// A door of the matcher: its index in the list that the matcher was given.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DoorId(pub(crate) u32);

impl DoorId {
    /// The door with this index in the list of doors.
    pub fn new(index: usize) -> Self {
        Self(u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// The index of the door in the list of doors.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Something that happened to an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Event {
    /// Whose attempt.
    pub source: IpAddr,
    /// At which door.
    pub door: DoorId,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to an attempt. Stages are the number of steps done, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EventKind {
    /// It reached this stage. Stage 1 is its beginning, the last stage comes together with [`Self::Opened`].
    Stage(u8),
    /// The whole sequence was hit in time; the attempt is over.
    Opened,
    /// The rest of the sequence did not come within the door's `Seq_Timeout`; the attempt is over.
    TimedOut(u8),
    /// A packet hit a watched port that was not the next step; the attempt is over.
    Spoiled(u8),
    /// The table of attempts was full and this one was the least advanced, of those the longest at its stage.
    Evicted(u8),
    /// A packet hit the step that was hit last once more and is ignored; at stage 1 the clock starts anew.
    Repeated(u8),
    /// A packet that another door wants to see has flags that this one does not want, and is ignored. At stage 0 there is no
    /// attempt, and it would have begun one.
    WrongFlags(u8),
    /// The source has opened the door, and its `Cooldown` is not over: the packet is ignored.
    Cooling,
}

/// Whether any door looks at a packet, and if not, how far it is from that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Visibility {
    /// No door watches its destination: that is neither a `Target` nor, for doors without one, an address of our own.
    NotWatched,
    /// No door that watches its destination has its port and protocol in its sequence.
    NoDoorsPort,
    /// Its flags are not those that the doors with its port want.
    WrongFlags,
    /// Some door looks at it, so it can begin, advance and spoil.
    Visible,
}
