//! The part of an address that one knocker cannot change at will.

use std::net::IpAddr;

/// An IPv4 address, or the upper half of an IPv6 address: a host can use all addresses of its /64 (RFC 7421).
///
/// IPv4 addresses use the numbers of IPv6 networks that are never assigned (RFC 4291, section 2.5.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
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
}
