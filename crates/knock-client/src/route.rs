//! The way out of this machine.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::num::NonZero;

use socket2::{Domain, Protocol, Socket, Type};

use crate::{Family, KnockError};

/// What the sockets of a knock are bound to; by default nothing, and the system's routes decide.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Route {
    /// The number of the interface.
    interface: Option<NonZero<u32>>,
    /// The address of this machine.
    source: Option<IpAddr>,
}

impl Route {
    /// What takes the system's routes.
    pub(crate) const ANY: Self = Self { interface: None, source: None };

    /// Makes the route through an interface, from an address of this machine, or both.
    ///
    /// # Errors
    ///
    /// [`KnockError::Interface`] and [`KnockError::InterfaceUnavailable`] when the interface does not exist, or the system
    /// does not bind sockets to interfaces.
    pub fn new(interface: Option<&str>, source: Option<IpAddr>) -> Result<Self, KnockError> {
        let interface = interface
            .map(|name| {
                usable(name).map_err(|cause| match cause.kind() {
                    io::ErrorKind::Unsupported => KnockError::InterfaceUnavailable,
                    _ => KnockError::Interface { name: name.to_owned(), cause, present: interfaces() },
                })
            })
            .transpose()?;
        Ok(Self { interface, source })
    }

    /// Returns the only family that it can be used with, if there is only one.
    pub(crate) fn family(self) -> Option<Family> {
        self.source.map(Family::of)
    }

    /// Makes a socket for packets to this address.
    pub(crate) fn socket(
        self,
        destination: SocketAddr,
        kind: Type,
        protocol: Option<Protocol>,
    ) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(destination), kind, protocol)?;
        if let Some(number) = self.interface {
            bind_interface(&socket, number, destination.is_ipv4())?;
        }
        if let Some(source) = self.source_towards(destination) {
            socket.bind(&source.into())?;
        }
        Ok(socket)
    }

    /// Returns the address to bind to: a link-local one is of the interface that the destination names.
    fn source_towards(self, destination: SocketAddr) -> Option<SocketAddr> {
        Some(match (self.source?, destination) {
            (IpAddr::V6(source), SocketAddr::V6(to)) if source.is_unicast_link_local() => {
                SocketAddrV6::new(source, 0, 0, to.scope_id()).into()
            }
            (source, _) => SocketAddr::new(source, 0),
        })
    }

    /// Tries whether sockets can be made for this address; nothing is sent.
    pub(crate) fn check(self, destination: SocketAddr) -> Result<(), KnockError> {
        if let SocketAddr::V6(to) = destination
            && to.ip().is_unicast_link_local()
            && to.scope_id() == 0
            && self.interface.is_none()
        {
            return Err(KnockError::NoInterface { address: destination.ip(), present: interfaces() });
        }
        let Some(address) = self.source else { return Ok(()) };
        if Family::of(address) != Family::of(destination.ip()) {
            return Err(KnockError::SourceFamily { address, target: destination.ip() });
        }
        self.socket(destination, Type::DGRAM, Some(Protocol::UDP))
            .map(|_| ())
            .map_err(|cause| KnockError::Source { address, cause })
    }
}

/// Returns the number of an interface to which a socket can be bound.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn usable(name: &str) -> io::Result<NonZero<u32>> {
    // By number, because Linux cuts off a name that is too long.
    let number = NonZero::new(nix::net::if_::if_nametoindex(name)?).ok_or(io::ErrorKind::NotFound)?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    bind_interface(&socket, number, true)?;
    Ok(number)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn usable(_name: &str) -> io::Result<NonZero<u32>> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn bind_interface(socket: &Socket, number: NonZero<u32>, is_ipv4: bool) -> io::Result<()> {
    if is_ipv4 {
        socket.bind_device_by_index_v4(Some(number))
    } else {
        socket.bind_device_by_index_v6(Some(number))
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn bind_interface(_socket: &Socket, _number: NonZero<u32>, _is_ipv4: bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Returns the names of this machine's interfaces; none where the system cannot be asked.
fn interfaces() -> Vec<String> {
    #[cfg(unix)]
    if let Ok(all) = nix::net::if_::if_nameindex() {
        return all.into_iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect();
    }
    Vec::new()
}
