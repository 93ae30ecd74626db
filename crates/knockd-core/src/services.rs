//! Services behind a door: what the firewall lets a knocker reach.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::grammar;
use crate::sequence::{Protocol, SequenceError};

/// A port, or a range of ports, of one protocol.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Service {
    protocol: Protocol,
    ports: RangeInclusive<u16>,
}

impl Service {
    /// Returns the service at these ports; `None` if there are none, or port 0 is one of them.
    pub fn new(protocol: Protocol, ports: RangeInclusive<u16>) -> Option<Self> {
        (!ports.is_empty() && *ports.start() > 0).then_some(Self { protocol, ports })
    }

    /// Returns the transport protocol.
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Returns the ports, in host byte order.
    pub const fn ports(&self) -> &RangeInclusive<u16> {
        &self.ports
    }

    /// Says whether some port belongs to both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.ports.start() <= other.ports.end()
            && other.ports.start() <= self.ports.end()
    }
}

/// Prints `tcp/22` or `udp/60000-61000`.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol, self.ports.start())?;
        if self.ports.start() < self.ports.end() {
            write!(f, "-{}", self.ports.end())?;
        }
        Ok(())
    }
}

/// `Open`: one or more services.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Services {
    first: Service,
    rest: Vec<Service>,
}

impl Services {
    /// Returns these services.
    pub const fn new(first: Service, rest: Vec<Service>) -> Self {
        Self { first, rest }
    }

    /// Returns the services as written.
    pub fn iter(&self) -> impl Iterator<Item = &Service> {
        std::iter::once(&self.first).chain(&self.rest)
    }
}

/// Prints `tcp/22, udp/60000-61000`.
impl fmt::Display for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        self.rest.iter().try_for_each(|service| write!(f, ", {service}"))
    }
}

/// Parses `tcp/22, UDP/60000-61000`.
impl FromStr for Services {
    type Err = SequenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        grammar::whole(text, grammar::services).map_err(|error| SequenceError::new(text, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_read_and_printed() {
        for (text, printed) in [
            ("tcp/22", "tcp/22"),
            ("UDP/60000-61000 ,tcp/+22", "udp/60000-61000, tcp/22"),
            ("tcp/22-22", "tcp/22"),
            ("tcp/1-65535", "tcp/1-65535"),
        ] {
            let services: Services = text.parse().unwrap();
            assert_eq!(services.to_string(), printed);
            assert_eq!(printed.parse(), Ok(services));
        }
    }

    #[test]
    fn what_is_no_service_is_an_error_at_its_place() {
        for (text, at) in [
            ("", 0),
            ("22", 0),
            ("22:tcp", 0),
            ("tcp", 3),
            ("tcp/", 4),
            ("tcp/0", 4),
            ("tcp/70000", 4),
            ("tcp/30-20", 4),
            ("tcp/22,", 7),
            ("tcp/22 udp/23", 7),
            ("icmp/1", 0),
        ] {
            let error = grammar::whole(text, grammar::services).unwrap_err();
            assert_eq!(text.len() - error.at.len(), at, "{text:?}: {error:?}");
        }
    }
}
