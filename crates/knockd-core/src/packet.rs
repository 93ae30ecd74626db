//! The part of a frame that matters to a knock daemon, as types.

use std::net::IpAddr;

use crate::sequence::{Protocol, Step};
use crate::tcp_flags::TcpFlags;

/// One TCP or UDP packet, reduced to what matters for knocking.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Packet {
    /// The address that it claims to come from.
    pub source: IpAddr,
    /// The address that it was sent to.
    pub destination: IpAddr,
    /// The port that it hits, and how.
    pub hit: Hit,
    /// How it came here.
    #[cfg_attr(feature = "serde", serde(default))]
    pub arrival: Arrival,
}

/// How a packet came here, as far as a packet socket tells (`sll_pkttype` and `sll_hatype`, packet(7)).
///
/// With it a gate refuses packets whose source is forged beyond doubt, or that do not concern this host: see
/// [`crate::Martian`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Arrival {
    /// From elsewhere, in a frame for this host or for many.
    Incoming,
    /// This host sent it.
    Outgoing,
    /// Over a loopback interface, so this host sent it as well.
    Loopback,
    /// From elsewhere, in a frame for another machine: the interface is in promiscuous mode.
    OtherHost,
    /// Nobody knows, as with most capture files. It counts as outgoing if its source is one of our own addresses, and
    /// otherwise as incoming.
    #[default]
    Unknown,
}

/// The part of a [`Packet`] that differs between the protocols.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Hit {
    /// A TCP segment to `port`, in host byte order, with these flags.
    Tcp {
        /// Destination port.
        port: u16,
        /// The six classic flags.
        flags: TcpFlags,
    },
    /// A UDP datagram to `port`, in host byte order.
    Udp {
        /// Destination port.
        port: u16,
    },
}

impl Hit {
    /// Returns the step of a sequence that this hit can be.
    pub const fn step(self) -> Step {
        match self {
            Self::Tcp { port, .. } => Step { port, protocol: Protocol::Tcp },
            Self::Udp { port } => Step { port, protocol: Protocol::Udp },
        }
    }
}
