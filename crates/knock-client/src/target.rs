//! Where a knock goes: a host's name, and the address that stands for it.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};

use dns_lookup::{AddrFamily, AddrInfoHints, SockType};
use socket2::{Protocol, Socket, Type};

use crate::value::Families;
use crate::{KnockError, Route};

/// The IP version that a host name resolves to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Returns the family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    pub(crate) const fn to_an_address(self) -> &'static str {
        match self {
            Self::V4 => " to an IPv4 address",
            Self::V6 => " to an IPv6 address",
        }
    }
}

/// The address to knock at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    // The port is 0; a `SocketAddr` because it keeps the interface of a link-local address.
    pub(crate) address: SocketAddr,
    /// What all sockets for it are bound to.
    route: Route,
}

impl Target {
    /// Resolves a host name or numeric address, once for a whole knock, to the address that getaddrinfo(3) puts
    /// first.
    ///
    /// # Errors
    ///
    /// [`KnockError::Unresolved`] when there is no address, or none of the given family.
    pub fn resolve(host: &str, family: Option<Family>) -> Result<Self, KnockError> {
        first_address(Some(host), None, family_number(family), SockType::Stream)
            .map(|address| Self { address, route: Route::ANY })
            .map_err(|cause| KnockError::Unresolved { host: host.to_owned(), family, cause })
    }

    /// Resolves a host name or numeric address to all of its addresses, in the order of getaddrinfo(3), which begins with
    /// the one that a connection should try first.
    ///
    /// # Errors
    ///
    /// As [`Self::resolve`].
    pub fn resolve_all(host: &str, family: Option<Family>) -> Result<Vec<Self>, KnockError> {
        let unresolved = |cause| KnockError::Unresolved { host: host.to_owned(), family, cause };
        let answers =
            addresses(Some(host), None, family_number(family), SockType::Stream).map_err(unresolved)?;
        let mut targets: Vec<Self> = Vec::new();
        for address in answers {
            let target = Self { address, route: Route::ANY };
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        if targets.is_empty() {
            return Err(unresolved(io::ErrorKind::NotFound.into()));
        }
        Ok(targets)
    }

    /// Resolves a host to the addresses to use through this route, at least one: the first of each family, if it is to be
    /// both, and otherwise the first that the system has a route to. A source address decides the family.
    ///
    /// # Errors
    ///
    /// As [`Self::resolve`].
    pub fn choose(host: &str, families: Option<Families>, route: Route) -> Result<Vec<Self>, KnockError> {
        let of_route = route.family().map(Families::Only);
        let families =
            families.filter(|families| matches!(families, Families::Only(_)) || of_route.is_none());
        let families = families.or(of_route);
        let all = Self::resolve_all(host, Families::only(families))?;
        let all: Vec<_> = all.into_iter().map(|target| target.via(route)).collect();
        let chosen: Vec<_> = if families == Some(Families::Both) {
            let first_of = |family| all.iter().find(|target| target.family() == family);
            [Family::V4, Family::V6].into_iter().filter_map(first_of).collect()
        } else {
            let routed = all.iter().find(|target| target.source().is_ok());
            routed.or_else(|| all.first()).into_iter().collect()
        };
        Ok(chosen.into_iter().copied().collect())
    }

    /// Makes everything that is sent to it take this route.
    #[must_use]
    pub const fn via(self, route: Route) -> Self {
        Self { route, ..self }
    }

    /// Makes a socket for this port, bound as the route says.
    pub(crate) fn socket(self, port: u16, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        self.route.socket(self.at(port), kind, Some(protocol))
    }

    /// Tries whether its route leads to it as far as this machine can tell; nothing is sent.
    ///
    /// # Errors
    ///
    /// [`KnockError::NoInterface`], [`KnockError::Source`] and [`KnockError::SourceFamily`].
    pub fn check(self) -> Result<(), KnockError> {
        self.route.check(self.address)
    }

    /// Returns the numeric address.
    pub const fn ip(self) -> IpAddr {
        self.address.ip()
    }

    /// Returns the family of the address.
    pub const fn family(self) -> Family {
        Family::of(self.ip())
    }

    /// Connects to a port, with the patience of the system.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn connect(self, port: u16) -> io::Result<TcpStream> {
        let socket = self.socket(port, Type::STREAM, Protocol::TCP)?;
        socket.connect(&self.at(port).into())?;
        Ok(socket.into())
    }

    /// Asks the system for the address from which it sends to this target; nothing is sent.
    ///
    /// # Errors
    ///
    /// The system's error, above all when it has no route there.
    pub fn source(self) -> io::Result<IpAddr> {
        let probe = self.socket(0, Type::DGRAM, Protocol::UDP)?;
        // Some systems do not connect to port 0.
        probe.connect(&self.at(DISCARD).into())?;
        let source = probe.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(source.ip())
    }

    /// Returns the socket address of a port at this target.
    pub const fn at(self, port: u16) -> SocketAddr {
        let mut address = self.address;
        address.set_port(port);
        address
    }
}

/// Prints the numeric address; for a link-local one with its interface: `fe80::1%eth0`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The standard library knows an interface only by number.
        #[cfg(unix)]
        if let Ok((host, _)) =
            dns_lookup::getnameinfo(&self.address, nix::libc::NI_NUMERICHOST | nix::libc::NI_NUMERICSERV)
        {
            return f.write_str(&host);
        }
        self.address.ip().fmt(f)
    }
}

/// The port of a service that throws everything away (RFC 863).
const DISCARD: u16 = 9;

fn family_number(family: Option<Family>) -> i32 {
    match family {
        None => 0,
        Some(Family::V4) => AddrFamily::Inet.into(),
        Some(Family::V6) => AddrFamily::Inet6.into(),
    }
}

pub(crate) fn first_address(
    host: Option<&str>,
    service: Option<&str>,
    family: i32,
    kind: SockType,
) -> io::Result<SocketAddr> {
    addresses(host, service, family, kind)?.into_iter().next().ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn addresses(
    host: Option<&str>,
    service: Option<&str>,
    family: i32,
    kind: SockType,
) -> io::Result<Vec<SocketAddr>> {
    let hints = AddrInfoHints { address: family, socktype: kind.into(), ..AddrInfoHints::default() };
    let answers = dns_lookup::getaddrinfo(host, service, Some(hints))?;
    answers.map(|answer| answer.map(|answer| answer.sockaddr)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_numeric_host_resolves_to_itself_in_its_family_only() {
        let display = |host, family| Target::resolve(host, family).ok().map(|target| target.to_string());
        assert_eq!(display("192.0.2.1", None).as_deref(), Some("192.0.2.1"));
        assert_eq!(display("2001:db8::1", Some(Family::V6)).as_deref(), Some("2001:db8::1"));
        assert_eq!(display("2001:db8::1", Some(Family::V4)), None);
        assert_eq!(display("192.0.2.1", Some(Family::V6)), None);
    }

    #[test]
    fn an_unresolved_host_is_named_with_the_family_that_was_asked_for() {
        let error = Target::resolve("192.0.2.1", Some(Family::V6)).unwrap_err().to_string();
        assert!(error.starts_with("cannot resolve host \"192.0.2.1\" to an IPv6 address: "), "{error}");
    }
}
