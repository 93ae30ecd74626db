//! What comes of packets, of time, and of requests.

use std::net::IpAddr;
use std::sync::Arc;

use crate::lease::{Effect, Full};
use crate::matcher::Interest;
use crate::scanners::LocalPorts;
use crate::sequence::Protocol;
use crate::text::DoorName;
use crate::time::Timestamp;

/// A door of the current configuration, by its index in the list of doors.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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
    /// Its source is a scanner.
    FromScanner,
}

/// One thing that a [`crate::Gate`] has decided; the caller carries out and tells all of them, in order.
#[must_use = "an outcome that is not carried out leaves a door open or a knock lost"]
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Something happened to an attempt.
    Attempt(Event),
    /// This source is a scanner from now on, and its attempts are dropped.
    Scanner(IpAddr),
    /// What an opening came to.
    Opening {
        /// Name of the door.
        door: DoorName,
        /// For whom.
        source: IpAddr,
        /// What it came to.
        result: OpeningResult,
    },
    /// Something has to be done.
    Effect(Effect),
    /// This door's one-time sequences are used up, and it is disabled.
    UsedUp(DoorId),
    /// From now on a packet filter has to let this through.
    Wanted(Arc<Wanted>),
}

/// What an opening came to: a completed knock, or a request to open a door.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OpeningResult {
    /// The start command runs.
    Opened,
    /// The door was open for this source, and stays open until then.
    Extended {
        /// When the stop command is due.
        until: Timestamp,
    },
    /// The start or the stop command is running. The door stays open, or opens again, when that has ended.
    Queued,
    /// The door has no start command for this address family.
    NothingToRun,
    /// There are as many leases as there may be.
    Full(Full),
    /// All doors are being closed for good.
    Closing,
    /// The one-time sequence could not be struck out, so that the door stays closed.
    NotBurnt,
}

/// What a packet filter has to let through, and what the gate has derived from its doors, its addresses and the ports in use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// What the doors look for, each once, in a fixed order.
    pub interests: Vec<Interest>,
    /// The UDP ports in use, while connection attempts at all other ports are to be seen, too.
    pub strays: Option<LocalPorts>,
}

impl Wanted {
    /// Says whether a port of UDP matters, be it a door's or a stray's; only then [`LocalPorts`] do.
    pub fn has_udp(&self) -> bool {
        self.interests.iter().any(|interest| interest.step.protocol == Protocol::Udp)
    }
}
