//! Forwarded ports: where the firewall leads a knocker, and whom else it lets in.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::exceptions::Prefix;
use crate::grammar;
use crate::sequence::{Protocol, SequenceError};

/// A port of this host that leads to a port of another host, or to another port of this one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Forward {
    protocol: Protocol,
    port: u16,
    target: Option<IpAddr>,
    target_port: u16,
}

impl Forward {
    /// Returns this forwarding, to this host if there is no target; `None` if a port is 0, or if the target is not the address of
    /// one other host.
    pub fn new(protocol: Protocol, port: u16, target: Option<IpAddr>, target_port: u16) -> Option<Self> {
        let is_host = |address: IpAddr| {
            let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
            !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_broadcast)
        };
        let is_valid = port > 0 && target_port > 0 && target.is_none_or(is_host);
        is_valid.then_some(Self { protocol, port, target, target_port })
    }

    /// Returns the transport protocol.
    pub const fn protocol(self) -> Protocol {
        self.protocol
    }

    /// Returns the port to which a knocker connects.
    pub const fn port(self) -> u16 {
        self.port
    }

    /// Returns the host to which the port leads; `None` if it is this one.
    pub const fn target(self) -> Option<IpAddr> {
        self.target
    }

    /// Returns the port there.
    pub const fn target_port(self) -> u16 {
        self.target_port
    }

    /// Says whether it leads sources of this address family anywhere.
    pub fn applies_to(self, source: IpAddr) -> bool {
        self.target.is_none_or(|target| target.is_ipv4() == source.is_ipv4())
    }

    /// Says whether some source would be led to both.
    pub fn contradicts(self, other: Self) -> bool {
        (self.protocol, self.port) == (other.protocol, other.port)
            && self.target.is_none_or(|target| other.applies_to(target))
    }
}

/// Prints `tcp/2222 > 172.17.0.2:22`, `tcp/2222 > [fd00::2]:22` or `tcp/2222 > self:22`.
impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} > ", self.protocol, self.port)?;
        match self.target {
            None => write!(f, "self")?,
            Some(IpAddr::V4(address)) => write!(f, "{address}")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]")?,
        }
        write!(f, ":{}", self.target_port)
    }
}

/// `Forward`: one or more ports that lead elsewhere; no two of them lead a source to different places.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Forwards {
    first: Forward,
    rest: Vec<Forward>,
}

impl Forwards {
    /// Returns these forwarded ports; `None` if two of them contradict each other.
    pub fn new(first: Forward, rest: Vec<Forward>) -> Option<Self> {
        let forwards = Self { first, rest };
        let is_new = |(index, forward): (usize, &Forward)| {
            forwards.iter().take(index).all(|earlier| !forward.contradicts(*earlier))
        };
        let is_valid = forwards.iter().enumerate().all(is_new);
        is_valid.then_some(forwards)
    }

    /// Returns them as written.
    pub fn iter(&self) -> impl Iterator<Item = &Forward> {
        std::iter::once(&self.first).chain(&self.rest)
    }
}

impl fmt::Display for Forwards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        self.rest.iter().try_for_each(|forward| write!(f, ", {forward}"))
    }
}

/// Parses `tcp/2222 > 172.17.0.2:22, TCP/2222>[fd00::2]:22`.
impl FromStr for Forwards {
    type Err = SequenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        grammar::whole(text, grammar::forwards).map_err(|error| SequenceError::new(text, &error))
    }
}

/// `Open_For`: whether a knock lets in only its source, or the network around it as well.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct OpenFor {
    /// Of an IPv4 source, its whole /24.
    pub ipv4_24: bool,
    /// Of an IPv6 source, its whole /64.
    pub ipv6_64: bool,
}

impl OpenFor {
    /// Returns the network that is let in with this source; `None` if it is only the source.
    pub fn network_of(self, source: IpAddr) -> Option<Prefix> {
        let is_meant = if source.is_ipv4() { self.ipv4_24 } else { self.ipv6_64 };
        is_meant.then(|| Prefix::around(source))
    }
}

/// Prints `address`, `/24`, `/64` or `/24, /64`.
impl fmt::Display for OpenFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.ipv4_24, self.ipv6_64) {
            (false, false) => "address",
            (true, false) => "/24",
            (false, true) => "/64",
            (true, true) => "/24, /64",
        })
    }
}

/// Parses `address`, `/24`, `/64` or both of these.
impl FromStr for OpenFor {
    type Err = SequenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        grammar::whole(text, grammar::open_for).map_err(|error| SequenceError::new(text, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_ports_are_read_and_printed() {
        for (text, printed) in [
            ("tcp/2222 > 172.17.0.2:22", "tcp/2222 > 172.17.0.2:22"),
            ("TCP/2222>[FD00::2]:22", "tcp/2222 > [fd00::2]:22"),
            ("udp/53 >  self:5353", "udp/53 > self:5353"),
            (
                "tcp/80 > 10.0.0.1:8080 ,tcp/80 > [fd00::1]:8080,udp/80 > 10.0.0.2:80",
                "tcp/80 > 10.0.0.1:8080, tcp/80 > [fd00::1]:8080, udp/80 > 10.0.0.2:80",
            ),
        ] {
            let forwards: Forwards = text.parse().unwrap();
            assert_eq!(forwards.to_string(), printed);
            assert_eq!(printed.parse(), Ok(forwards));
        }
    }

    #[test]
    fn what_is_no_forwarded_port_is_an_error_at_its_place() {
        for (text, at, what) in [
            ("", 0, "a port such as `tcp/2222`"),
            ("2222 > 10.0.0.1:22", 0, "a port such as `tcp/2222`"),
            ("tcp/random > 10.0.0.1:22", 4, "a port from 1 to 65535; random ports are not supported yet"),
            ("tcp/0 > 10.0.0.1:22", 4, "a port from 1 to 65535"),
            ("tcp/1-9 > 10.0.0.1:22", 4, "a port from 1 to 65535"),
            ("tcp/2222", 8, "`>` and a target"),
            ("tcp/2222 10.0.0.1:22", 9, "`>` and a target"),
            ("tcp/2222 > ", 11, "a target such as"),
            ("tcp/2222 > 10.0.0.1", 11, "a target such as"),
            ("tcp/2222 > 10.0.0.1:0", 11, "a target such as"),
            ("tcp/2222 > fd00::2:22", 11, "a target such as"),
            ("tcp/2222 > [10.0.0.1]:22", 11, "a target such as"),
            ("tcp/2222 > host:22", 11, "a target such as"),
            ("tcp/2222 > 127.0.0.1:22", 11, "`self` for this one"),
            ("tcp/2222 > [::1]:22", 11, "`self` for this one"),
            ("tcp/2222 > 0.0.0.0:22", 11, "a target such as"),
            ("tcp/2222 > 224.0.0.1:22", 11, "a target such as"),
            ("tcp/1 > self:2, tcp/1 > 10.0.0.1:22", 16, "a port that does not lead elsewhere already"),
            ("tcp/1 > 10.0.0.2:2, tcp/1 > 10.0.0.1:22", 20, "a port that does not lead elsewhere already"),
            ("tcp/1 > self:2,", 15, "a port such as `tcp/2222`"),
        ] {
            let error = grammar::whole(text, grammar::forwards).unwrap_err();
            assert_eq!(text.len() - error.at.len(), at, "{text:?}: {error:?}");
            assert!(error.what.contains(what), "{text:?}: {error:?}");
        }
    }

    #[test]
    fn whom_a_door_is_open_for_is_read_and_printed() {
        for (text, printed) in [
            ("address", "address"),
            ("Address", "address"),
            ("/24", "/24"),
            (" /64 ", "/64"),
            ("/64,/24", "/24, /64"),
            ("/24, /24", "/24"),
        ] {
            let open_for: OpenFor = text.parse().unwrap();
            assert_eq!(open_for.to_string(), printed);
            assert_eq!(printed.parse(), Ok(open_for));
        }
        for (text, at) in
            [("", 0), ("/25", 0), ("24", 0), ("/24 /64", 4), ("address, /24", 7), ("/24,", 4), ("/240", 0)]
        {
            let error = grammar::whole(text, grammar::open_for).unwrap_err();
            assert_eq!(text.len() - error.at.len(), at, "{text:?}: {error:?}");
        }
    }

    #[test]
    fn a_network_is_let_in_only_where_that_is_asked_for() {
        let network = |open_for: &str, source: &str| {
            let open_for: OpenFor = open_for.parse().unwrap();
            open_for.network_of(source.parse().unwrap()).map(|network| network.to_string())
        };
        assert_eq!(network("/24", "192.0.2.77").as_deref(), Some("192.0.2.0/24"));
        assert_eq!(network("/64", "2001:db8:1:2:3:4:5:6").as_deref(), Some("2001:db8:1:2::/64"));
        assert_eq!(network("/24", "2001:db8::1"), None);
        assert_eq!(network("/64", "192.0.2.77"), None);
        assert_eq!(network("address", "192.0.2.77"), None);
    }
}
