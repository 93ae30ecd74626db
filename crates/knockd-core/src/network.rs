//! The part of an address that one knocker cannot change at will.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 address, or the upper half of an IPv6 address: a host can use all addresses of its /64 (RFC 7421).
///
/// IPv4 addresses use the numbers of IPv6 networks that are never assigned (RFC 4291, section 2.5.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub(crate) struct Network(pub(crate) u64);

impl Network {
    pub(crate) fn of(source: IpAddr) -> Self {
        match source {
            IpAddr::V4(address) => Self(address.to_bits().into()),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments().map(u64::from);
                Self(a << 48 | b << 32 | c << 16 | d)
            }
        }
    }

    /// Returns the IPv4 address, or the first IPv6 address.
    pub(crate) fn first(self) -> IpAddr {
        match u32::try_from(self.0) {
            Ok(address) => Ipv4Addr::from_bits(address).into(),
            Err(_) => Ipv6Addr::from_bits(u128::from(self.0) << 64).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_address_of_a_network_is_one_of_its_own() {
        for (address, first) in
            [("192.0.2.7", "192.0.2.7"), ("2001:db8:1:2:3::4", "2001:db8:1:2::"), ("0.0.0.0", "0.0.0.0")]
        {
            let network = Network::of(address.parse().unwrap());
            assert_eq!(network.first(), first.parse::<IpAddr>().unwrap());
            assert_eq!(Network::of(network.first()), network);
        }
    }
}
