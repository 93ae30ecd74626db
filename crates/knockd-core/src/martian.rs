//! Packets that no knocker can have sent, by their source and by how they came.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::{Arrival, Packet};

/// Why a packet cannot be part of a knock: nobody could use a door that is open for its source, or it does not
/// concern this host.
///
/// RFC 1812, section 5.3.7, calls such sources martian.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Martian {
    /// The source is in 0.0.0.0/8, or ::.
    #[error("unspecified source address")]
    Unspecified,
    /// The source is a loopback address, and the packet did not come over a loopback interface.
    #[error("loopback source address on another interface")]
    Loopback,
    /// The source is a multicast address.
    #[error("multicast source address")]
    Multicast,
    /// The source is in 240.0.0.0/4, which has no hosts (RFC 1112, section 4), or 255.255.255.255.
    #[error("reserved or broadcast source address")]
    Reserved,
    /// The source is an IPv4 address within an IPv6 one, which no packet should have (RFC 4291, section 2.5.5).
    #[error("source is an IPv4 address written as an IPv6 one")]
    EmbeddedIpv4,
    /// The source is one of our own addresses, but not a link-local one, and the packet came from elsewhere.
    #[error("comes from elsewhere with a local source address")]
    OwnSource,
    /// It is addressed to one of our own addresses, and its frame to another machine.
    #[error("the frame is addressed to another machine")]
    OtherHost,
}

/// Our own addresses, ascending. There are few, so as plain numbers they are found sooner than in a hash table.
#[derive(Debug, Default)]
pub(crate) struct OwnAddresses {
    v4: Vec<u32>,
    v6: Vec<u128>,
}

impl FromIterator<IpAddr> for OwnAddresses {
    fn from_iter<T: IntoIterator<Item = IpAddr>>(addresses: T) -> Self {
        let mut own = Self::default();
        for address in addresses {
            match address {
                IpAddr::V4(address) => own.v4.push(address.to_bits()),
                IpAddr::V6(address) => own.v6.push(address.to_bits()),
            }
        }
        own.v4.sort_unstable();
        own.v6.sort_unstable();
        own
    }
}

impl OwnAddresses {
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.binary_search(&address.to_bits()).is_ok(),
            IpAddr::V6(address) => self.v6.binary_search(&address.to_bits()).is_ok(),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let v4 = self.v4.iter().map(|&bits| Ipv4Addr::from_bits(bits).into());
        v4.chain(self.v6.iter().map(|&bits| Ipv6Addr::from_bits(bits).into()))
    }
}

impl Martian {
    /// Says what is wrong with a packet.
    pub(crate) fn of(packet: &Packet, own: &OwnAddresses) -> Option<Self> {
        let Packet { source, destination, arrival, .. } = *packet;
        let impossible = match source {
            IpAddr::V4(source) => of_ipv4(source),
            IpAddr::V6(source) => of_ipv6(source),
        };
        match arrival {
            Arrival::Loopback => impossible.filter(|martian| *martian != Self::Loopback),
            _ if impossible.is_some() => impossible,
            Arrival::Outgoing | Arrival::Unknown => None,
            Arrival::OtherHost if own.contains(destination) => Some(Self::OtherHost),
            // On another link, somebody else may have the same link-local address.
            _ if matches!(source, IpAddr::V6(source) if source.is_unicast_link_local()) => None,
            Arrival::Incoming | Arrival::OtherHost => own.contains(source).then_some(Self::OwnSource),
        }
    }
}

const fn of_ipv4(source: Ipv4Addr) -> Option<Martian> {
    match source.octets() {
        [0, ..] => Some(Martian::Unspecified),
        [127, ..] => Some(Martian::Loopback),
        [224..=239, ..] => Some(Martian::Multicast),
        [240..=255, ..] => Some(Martian::Reserved),
        _ => None,
    }
}

const fn of_ipv6(source: Ipv6Addr) -> Option<Martian> {
    match source.segments() {
        [0xff00..=0xffff, ..] => Some(Martian::Multicast),
        [0, 0, 0, 0, 0, 0, 0, 0] => Some(Martian::Unspecified),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(Martian::Loopback),
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] => Some(Martian::EmbeddedIpv4),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Hit, Passage};

    const OWN: &str = "192.0.2.1";

    fn of(source: &str, destination: &str, arrival: Arrival) -> Option<Martian> {
        let [source, destination, own] = [source, destination, OWN].map(|text| text.parse().unwrap());
        let packet =
            Packet { source, destination, hit: Hit::Udp { port: 1 }, arrival, passage: Passage::default() };
        Martian::of(&packet, &[own].into_iter().collect())
    }

    const ALL: [Arrival; 5] =
        [Arrival::Incoming, Arrival::Outgoing, Arrival::Loopback, Arrival::OtherHost, Arrival::Unknown];

    #[test]
    fn a_source_that_no_host_has_is_one_however_the_packet_came() {
        for (sources, expected) in [
            (&["0.0.0.0", "0.255.255.255", "::"][..], Martian::Unspecified),
            (&["224.0.0.1", "239.255.255.255", "ff02::1", "ff00::", "ffff::1"], Martian::Multicast),
            (&["240.0.0.1", "255.255.255.255"], Martian::Reserved),
            (&["::ffff:203.0.113.7", "::203.0.113.7", "::2", "::ffff:0:0"], Martian::EmbeddedIpv4),
        ] {
            for (source, arrival) in sources.iter().flat_map(|source| ALL.map(|arrival| (source, arrival))) {
                assert_eq!(of(source, "203.0.113.1", arrival), Some(expected), "{source} {arrival:?}");
            }
        }
        for source in ["1.0.0.0", "126.255.255.255", "128.0.0.0", "223.255.255.255", "fe80::1", "2001:db8::"]
        {
            for arrival in ALL {
                assert_eq!(of(source, "203.0.113.1", arrival), None, "{source} {arrival:?}");
            }
        }
    }

    #[test]
    fn a_loopback_source_knocks_only_over_a_loopback_interface() {
        for (source, arrival) in ["127.0.0.1", "127.9.9.9", "::1"].iter().flat_map(|s| ALL.map(|a| (s, a))) {
            let expected = (arrival != Arrival::Loopback).then_some(Martian::Loopback);
            assert_eq!(of(source, OWN, arrival), expected, "{source} {arrival:?}");
        }
    }

    #[test]
    fn an_own_address_is_a_source_only_of_what_goes_out_or_comes_over_loopback() {
        for arrival in ALL {
            let from_elsewhere = [Arrival::Incoming, Arrival::OtherHost].contains(&arrival);
            let expected = from_elsewhere.then_some(Martian::OwnSource);
            assert_eq!(of(OWN, "203.0.113.1", arrival), expected, "{arrival:?}");
        }
    }

    #[test]
    fn a_frame_for_another_machine_counts_only_for_an_address_that_is_not_our_own() {
        for arrival in ALL {
            let expected = (arrival == Arrival::OtherHost).then_some(Martian::OtherHost);
            assert_eq!(of("203.0.113.7", OWN, arrival), expected, "{arrival:?}");
            assert_eq!(of("203.0.113.7", "203.0.113.1", arrival), None, "{arrival:?}");
        }
    }
}
