//! Where a knock goes: a host's name, and the address that stands for it.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use dns_lookup::{AddrFamily, AddrInfoHints, SockType};

use crate::KnockError;

/// The IP version that a host name resolves to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
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
}

impl Target {
    /// Resolves a host name or numeric address, once for a whole knock, to the address that getaddrinfo(3) puts
    /// first.
    ///
    /// # Errors
    ///
    /// [`KnockError::Unresolved`] when there is no address, or none of the given family.
    pub fn resolve(host: &str, family: Option<Family>) -> Result<Self, KnockError> {
        let family_number = match family {
            None => 0,
            Some(Family::V4) => AddrFamily::Inet.into(),
            Some(Family::V6) => AddrFamily::Inet6.into(),
        };
        first_address(Some(host), None, family_number, SockType::Stream)
            .map(|address| Self { address })
            .map_err(|cause| KnockError::Unresolved { host: host.to_owned(), family, cause })
    }

    /// Returns the socket address of a port at this target.
    pub(crate) const fn at(self, port: u16) -> SocketAddr {
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

pub(crate) fn first_address(
    host: Option<&str>,
    service: Option<&str>,
    family: i32,
    kind: SockType,
) -> io::Result<SocketAddr> {
    let hints = AddrInfoHints { address: family, socktype: kind.into(), ..AddrInfoHints::default() };
    let mut answers = dns_lookup::getaddrinfo(host, service, Some(hints))?;
    let first = answers.next().ok_or(io::ErrorKind::NotFound)??;
    Ok(first.sockaddr)
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
