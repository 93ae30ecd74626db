//! Exceptions from the guard: packets that it never looks at.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::grammar;
use crate::sequence::SequenceError;
use crate::text::Text;

/// The addresses that share the first bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// Returns the network; `None` if it has no bits, or more than its address, or if the address has others set.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let (bits, width) = match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
            IpAddr::V6(address) => (address.to_bits(), 128),
        };
        let others = u128::MAX.checked_shr(length.into()).unwrap_or(0);
        (length > 0 && length <= width && bits & others == 0).then_some(Self { address, length })
    }

    /// Returns the network in which the neighbours of an address usually are: its IPv4 /24 or its IPv6 /64.
    pub fn around(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => {
                let first = Ipv4Addr::from_bits(address.to_bits() & (u32::MAX << 8));
                Self { address: first.into(), length: 24 }
            }
            IpAddr::V6(address) => {
                let first = Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64));
                Self { address: first.into(), length: 64 }
            }
        }
    }

    /// Returns the first address.
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// Returns how many bits the addresses share.
    pub const fn length(self) -> u8 {
        self.length
    }

    /// Returns an address of which exactly the bits are set that all addresses of the network share.
    pub fn mask(self) -> IpAddr {
        let width = if self.address.is_ipv4() { 32 } else { 128 };
        let hosts = u32::from(width - self.length.min(width));
        match self.address {
            IpAddr::V4(_) => Ipv4Addr::from_bits(u32::MAX.checked_shl(hosts).unwrap_or(0)).into(),
            IpAddr::V6(_) => Ipv6Addr::from_bits(u128::MAX.checked_shl(hosts).unwrap_or(0)).into(),
        }
    }

    /// Says whether this address is one of its own.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, self.mask(), address) {
            (IpAddr::V4(first), IpAddr::V4(mask), IpAddr::V4(address)) => address & mask == first,
            (IpAddr::V6(first), IpAddr::V6(mask), IpAddr::V6(address)) => address & mask == first,
            _ => false,
        }
    }

    /// Says whether it is a single address.
    pub const fn is_host(self) -> bool {
        self.length == if self.address.is_ipv4() { 32 } else { 128 }
    }
}

/// The network with only this address.
impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }
}

/// Prints `10.0.0.0/8`, or for a single address only that.
impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() {
            return write!(f, "{}", self.address);
        }
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Parses `10.0.0.0/8` or `10.0.0.1`.
impl FromStr for Prefix {
    type Err = SequenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        grammar::whole(text, grammar::network).map_err(|error| SequenceError::new(text, &error))
    }
}

/// Packets that the guard never looks at.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Exception {
    /// Those that come over an interface with this name, or with one that begins so before a final `*`.
    Interface(Text),
    /// Those from a network.
    Network(Prefix),
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(name) => write!(f, "{name}"),
            Self::Network(network) => write!(f, "{network}"),
        }
    }
}

/// `GuardExcept`: one or more exceptions.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Exceptions {
    first: Exception,
    rest: Vec<Exception>,
}

impl Exceptions {
    /// Returns these exceptions.
    pub const fn new(first: Exception, rest: Vec<Exception>) -> Self {
        Self { first, rest }
    }

    /// Returns the exceptions as written.
    pub fn iter(&self) -> impl Iterator<Item = &Exception> {
        std::iter::once(&self.first).chain(&self.rest)
    }
}

/// The host with itself.
impl Default for Exceptions {
    fn default() -> Self {
        Self::new(Exception::Interface(Text::from_static("lo")), Vec::new())
    }
}

/// Prints `lo, docker0, 10.0.0.0/8`.
impl fmt::Display for Exceptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        self.rest.iter().try_for_each(|exception| write!(f, ", {exception}"))
    }
}

/// Parses `lo, br-*, 10.0.0.0/8, fd00::7`.
impl FromStr for Exceptions {
    type Err = SequenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        grammar::whole(text, grammar::exceptions).map_err(|error| SequenceError::new(text, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_read_and_printed() {
        for (text, printed) in [
            ("lo", "lo"),
            ("lo,docker0 , br-*", "lo, docker0, br-*"),
            ("10.0.0.0/8, 192.0.2.7", "10.0.0.0/8, 192.0.2.7"),
            ("192.0.2.7/32, FD00::/8, fd00::7", "192.0.2.7, fd00::/8, fd00::7"),
            ("0.0.0.0/1, 8000::/1, 255.255.255.254/31", "0.0.0.0/1, 8000::/1, 255.255.255.254/31"),
        ] {
            let exceptions: Exceptions = text.parse().unwrap();
            assert_eq!(exceptions.to_string(), printed);
            assert_eq!(printed.parse(), Ok(exceptions));
        }
        assert_eq!(Exceptions::default().to_string(), "lo");
    }

    #[test]
    fn what_is_no_exception_is_an_error_at_its_place() {
        for (text, at) in [
            ("", 0),
            ("lo,", 3),
            ("lo, a name", 6),
            ("lo docker0", 3),
            ("an-interface-name-of-more-than-15", 0),
            ("*", 0),
            ("br*0", 0),
            ("a\"b", 0),
            (".", 0),
            ("..", 0),
            ("lo, 10.0.0.1/8", 4),
            ("10.0.0.0/33", 0),
            ("10.0.0.0/", 0),
            ("10.0.0.0/0", 0),
            ("::/0", 0),
            ("fd00::/129", 0),
            ("10.0.0.0/8/8", 0),
            ("10.0.0.0/+8", 0),
            ("docker0/8", 0),
            ("münchen0", 0),
        ] {
            let error = grammar::whole(text, grammar::exceptions).unwrap_err();
            assert_eq!(text.len() - error.at.len(), at, "{text:?}: {error:?}");
        }
    }

    #[test]
    fn a_mask_has_the_bits_of_the_network() {
        for (network, mask) in [
            ("10.0.0.0/8", "255.0.0.0"),
            ("192.0.2.7", "255.255.255.255"),
            ("128.0.0.0/1", "128.0.0.0"),
            ("fd00::/8", "ff00::"),
            ("fd00::7", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            let exceptions: Exceptions = network.parse().unwrap();
            let Some(Exception::Network(network)) = exceptions.iter().next() else { panic!("{network}") };
            assert_eq!(network.mask(), mask.parse::<IpAddr>().unwrap());
        }
    }

    #[test]
    fn a_network_contains_the_addresses_that_share_its_first_bits() {
        for (network, address, expected) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.6", false),
            ("2001:db8::/64", "2001:db8::1:2:3:4", true),
            ("2001:db8::/64", "2001:db8:0:1::", false),
            ("0.0.0.0/1", "::1", false),
        ] {
            let (network, address): (Prefix, IpAddr) = (network.parse().unwrap(), address.parse().unwrap());
            assert_eq!(network.contains(address), expected, "{network} {address}");
            let around = Prefix::around(address);
            assert!(
                around.contains(address) && Prefix::new(around.address(), around.length()) == Some(around)
            );
        }
        assert!("10.0.0.1/8".parse::<Prefix>().is_err() && "lo".parse::<Prefix>().is_err());
    }
}
