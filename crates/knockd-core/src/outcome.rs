//! The results of packets, of time passing, and of requests.

use std::net::IpAddr;
use std::sync::Arc;

use crate::lease::{Effect, Full};
use crate::martian::Martian;
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
    /// Refers to the door with this index in the list of doors.
    pub fn new(index: usize) -> Self {
        Self(u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// Returns the index of the door in the list of doors.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// An event of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Event {
    /// The source.
    pub source: IpAddr,
    /// The door.
    pub door: DoorId,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to an attempt. A stage is the number of steps done, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum EventKind {
    /// It reached this stage. Stage 1 is its start; the last stage comes together with [`Self::Opened`]. If a packet
    /// advances several attempts of its source at a door, this is about the most advanced one.
    Stage(u8),
    /// The whole sequence was hit in time; the attempt is over.
    Opened,
    /// The rest of the sequence did not arrive within the door's `Seq_Timeout`; the attempt is over.
    TimedOut(u8),
    /// A packet hit a watched port that is neither the next step nor one already done; this attempt and all others of
    /// the source at the door, none of which is further, are over.
    Spoiled(u8),
    /// The table of attempts was full, or its network had too many, and this one made room for another.
    Evicted(u8),
    /// A packet repeated a step already done and is ignored; at stage 1 the timeout restarts.
    Repeated(u8),
    /// A packet that another door sees has flags that this one does not want, and is ignored. Stage 0 means no
    /// attempt: the packet would have started one.
    WrongFlags(u8),
    /// A packet to an address of another interface is neither the next step nor one already done, and is ignored.
    Elsewhere(u8),
    /// The source opened the door, and its `Cooldown` is still running: the packet is ignored.
    Cooling,
}

/// Whether any door sees a packet, and if not, how close it is to that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Visibility {
    /// No door watches its destination: it is neither a `Target` nor, for doors without one, one of our own
    /// addresses.
    NotWatched,
    /// No door that watches its destination has its port and protocol in its sequence.
    NoDoorsPort,
    /// This door watches its destination and has its port with the other protocol in its sequence; no door has both.
    WrongProtocol(DoorId),
    /// The doors with its port want other flags.
    WrongFlags,
    /// Some door sees it, so it can start, advance and spoil attempts.
    Visible,
    /// Its source is a scanner.
    FromScanner,
    /// No knocker can have sent it, for this reason.
    Martian(Martian),
    /// Another interface has just shown it.
    Copy,
}

/// One decision of a [`crate::Gate`]; the caller carries out and reports all of them, in order.
#[must_use = "an outcome that is not carried out leaves a door open or a knock lost"]
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Outcome {
    /// An event of an attempt.
    Attempt(Event),
    /// This source is a scanner from now on, and its attempts are dropped.
    Scanner(IpAddr),
    /// The result of an opening.
    Opening {
        /// Name of the door.
        door: DoorName,
        /// The source.
        source: IpAddr,
        /// The result.
        result: OpeningResult,
    },
    /// Something to do.
    Effect(Effect),
    /// This door's one-time sequences are used up, so it is disabled.
    UsedUp(DoorId),
    /// From now on, a packet filter must pass this.
    Wanted(Arc<Wanted>),
}

/// The result of an opening: a completed knock, or a request to open a door.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum OpeningResult {
    /// The start command runs.
    Opened,
    /// The door was open for this source, and stays open until then.
    Extended {
        /// When the stop command is due.
        until: Timestamp,
    },
    /// The start or stop command is running. The door stays open, or opens again, when that ends.
    Queued,
    /// The door has no start command and no service for this address family.
    NothingToRun,
    /// A limit on leases is reached.
    Full(Full),
    /// All doors are closing for good.
    Closing,
    /// The one-time sequence could not be struck out, so the door stays closed.
    NotBurnt,
}

/// What a packet filter must pass, derived by the gate from its doors, its addresses and the ports in use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Wanted {
    /// What the doors want to see, each once, in a fixed order.
    pub interests: Vec<Interest>,
    /// The ports in use, while connection attempts at all other ports are to be seen, too.
    pub strays: Option<LocalPorts>,
}

impl Wanted {
    /// Says whether a port of UDP matters, be it a door's or a stray's; only then the UDP ports of [`LocalPorts`] do.
    pub fn has_udp(&self) -> bool {
        self.interests.iter().any(|interest| interest.step.protocol == Protocol::Udp)
    }
}
