//! The machine's interfaces and their addresses, and a wake-up when they change.

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::libc::{ENOBUFS, MSG_DONTWAIT, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK};
use pnet::datalink::{self, NetworkInterface};
use pnet::ipnetwork::IpNetwork;

use crate::masters;

/// A network interface at the time of [`interfaces`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name, such as `eth0`.
    pub name: String,
    /// Its number in the kernel; a new interface with the same name has another one.
    pub index: u32,
    /// Its own addresses, including IPv6 link-local ones, in the kernel's order.
    pub addresses: Vec<IpAddr>,
    /// Whether it is up (`ip link set eth0 up`).
    pub up: bool,
    /// Whether it is a loopback interface, where every outgoing packet comes in again.
    pub loopback: bool,
    /// Whether it is a port of another interface, such as a bridge, where everything that arrives here appears again.
    pub enslaved: bool,
}

/// Returns all interfaces of this network namespace, in the kernel's order; none if the kernel refuses to list them.
pub fn interfaces() -> Vec<Interface> {
    let mut interfaces: Vec<Interface> = Vec::new();
    // If the kernel does not tell, no interface has a master as far as we know.
    let enslaved = masters::enslaved().unwrap_or_default();
    // An interface that disappeared while the list was made gets 0; binding to 0 would bind to all.
    for found in datalink::interfaces().into_iter().filter(|found| found.index != 0) {
        let addresses = found.ips.iter().map(IpNetwork::ip);
        // getifaddrs(3) lists a labelled address (`eth0:1`) like a separate interface, with eth0's index.
        match interfaces.iter_mut().find(|known| known.index == found.index) {
            Some(known) => known.addresses.extend(addresses),
            None => interfaces.push(Interface {
                addresses: addresses.collect(),
                up: found.is_up(),
                loopback: found.is_loopback(),
                enslaved: enslaved.contains(&found.index),
                index: found.index,
                name: found.name,
            }),
        }
    }
    interfaces
}

impl Interface {
    /// Returns the same interface in the form that pnet needs to open a channel.
    pub(crate) fn to_pnet(&self) -> NetworkInterface {
        NetworkInterface {
            name: self.name.clone(),
            description: String::new(),
            index: self.index,
            mac: None,
            ips: Vec::new(),
            flags: 0,
        }
    }
}

/// A wake-up whenever an interface appears, disappears, or changes its state or addresses (rtnetlink(7)).
///
/// It does not say what changed: call [`interfaces`] again and compare. Open it before the first look, so no change
/// falls in between.
#[derive(Debug)]
pub struct LinkWatch {
    socket: Socket,
}

impl LinkWatch {
    /// Starts to listen; needs no privilege.
    ///
    /// # Errors
    ///
    /// When the kernel or a sandbox refuses a netlink socket.
    pub fn open() -> io::Result<Self> {
        let groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, groups.cast_unsigned()))?;
        Ok(Self { socket })
    }

    /// Blocks until something has changed since the last call or since [`Self::open`].
    ///
    /// Several changes may end one call; a spurious wake-up is possible, a missing one is not.
    ///
    /// # Errors
    ///
    /// When the socket fails for any reason except an interruption or an overrun, which are handled.
    pub fn wait(&self) -> io::Result<()> {
        self.receive(0)?;
        while self.receive(MSG_DONTWAIT)? {}
        Ok(())
    }

    /// Takes one message; `false` if none is queued.
    fn receive(&self, flags: i32) -> io::Result<bool> {
        // What does not fit is cut off: the existence of a message is all that matters.
        let mut buffer = [0; 64];
        loop {
            let Err(error) = self.socket.recv(&mut buffer.as_mut_slice(), flags) else { return Ok(true) };
            match error.kind() {
                // There were more messages than the socket could hold.
                _ if error.raw_os_error() == Some(ENOBUFS) => return Ok(true),
                io::ErrorKind::WouldBlock => return Ok(false),
                io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_listed_once_and_known_as_such() {
        let interfaces = interfaces();
        let loopbacks: Vec<_> = interfaces.iter().filter(|interface| interface.loopback).collect();
        assert_eq!(loopbacks.len(), 1, "{interfaces:?}");
        assert_ne!(loopbacks[0].index, 0);
    }
}
