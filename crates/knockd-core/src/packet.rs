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
    /// Where it was seen, and what tells it from other packets.
    #[cfg_attr(feature = "serde", serde(default))]
    pub passage: Passage,
}

impl Packet {
    /// Returns a packet that came from elsewhere, over an interface that is not known.
    pub const fn incoming(source: IpAddr, destination: IpAddr, hit: Hit) -> Self {
        let passage = Passage { interface: 0, tag: 0 };
        Self { source, destination, hit, arrival: Arrival::Incoming, passage }
    }
}

/// Where a packet was seen, and what its copies share: a packet that passes several interfaces is one hit.
///
/// By default nothing is known; such a packet is no copy of any other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct Passage {
    /// The number of the interface that showed it; 0 if that is not known.
    pub interface: u32,
    /// A value made of its source port and, with TCP, its sequence number ([`Self::tag_of`]); 0 if that is not known.
    pub tag: u16,
}

impl Passage {
    /// Returns the tag of a packet with this source port and sequence number; UDP has none, so it is 0.
    pub const fn tag_of(source_port: u16, sequence_number: u32) -> u16 {
        let mixed =
            (source_port as u32).wrapping_mul(0x9e37_79b9) ^ sequence_number.wrapping_mul(0x85eb_ca6b);
        match (mixed >> 16) as u16 {
            0 => 1,
            tag => tag,
        }
    }
}

/// One of our own addresses.
///
/// A packet to it counts on whichever interface it is seen, because the host takes it there. On an interface other than
/// its own it never spoils an attempt: knockd 0.8 does not see it. An address of a single link, such as a link-local
/// one, and a loopback address count on their own interface only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct OwnAddress {
    /// The address.
    pub address: IpAddr,
    /// The number of its interface, as in [`Passage::interface`]; 0 for all of them.
    pub interface: u32,
}

/// An address of all interfaces.
impl From<IpAddr> for OwnAddress {
    fn from(address: IpAddr) -> Self {
        Self { address, interface: 0 }
    }
}

impl OwnAddress {
    /// Says whether a packet to it can come over any interface.
    pub const fn is_global(&self) -> bool {
        match self.address {
            IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
            IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
        }
    }
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
