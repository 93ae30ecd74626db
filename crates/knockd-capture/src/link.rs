//! The machine's interfaces and their addresses, and a wake-up when they change.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use knockd_core::OwnAddress;
use nix::errno::Errno;
use nix::libc::{RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use pnet_datalink::NetworkInterface;

use crate::attributes::{Attributes, attributes};

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
    /// The number of its master, if it is a port of another interface, such as a bridge: everything that arrives here
    /// appears again there.
    pub master: Option<u32>,
    /// Its other names (`ip link property add dev eth0 altname lan`).
    pub alternative_names: Vec<String>,
    /// Which of its addresses have a label of their own (`ip address add … label eth0:1`).
    pub labels: Vec<(String, IpAddr)>,
}

/// Returns all interfaces of this network namespace, in the kernel's order; none if the kernel refuses to list them.
pub fn interfaces() -> Vec<Interface> {
    let mut interfaces: Vec<Interface> = Vec::new();
    // If the kernel does not tell, no interface has a master or another name as far as we know.
    let mut attributes = attributes().unwrap_or_default();
    // An interface that disappeared while the list was made gets 0; binding to 0 would bind to all.
    for found in pnet_datalink::interfaces().into_iter().filter(|found| found.index != 0) {
        #[allow(
            clippy::redundant_closure_for_method_calls,
            reason = "pnet_datalink does not export the type"
        )]
        let addresses: Vec<_> = found.ips.iter().map(|network| network.ip()).collect();
        // getifaddrs(3) lists a labelled address (`eth0:1`) like a separate interface, with eth0's index.
        if let Some(known) = interfaces.iter_mut().find(|known| known.index == found.index) {
            known.labels.extend(addresses.iter().map(|address| (found.name.clone(), *address)));
            known.addresses.extend(addresses);
            continue;
        }
        let Attributes { master, alternative_names } = attributes.remove(&found.index).unwrap_or_default();
        interfaces.push(Interface {
            addresses,
            up: found.is_up(),
            loopback: found.is_loopback(),
            master,
            alternative_names,
            labels: Vec::new(),
            index: found.index,
            name: found.name,
        });
    }
    interfaces
}

impl Interface {
    /// Returns its addresses.
    pub fn own_addresses(&self) -> impl Iterator<Item = OwnAddress> + '_ {
        self.addresses.iter().map(|&address| OwnAddress { address, interface: self.index })
    }

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
    socket: OwnedFd,
}

impl LinkWatch {
    /// Starts to listen; needs no privilege.
    ///
    /// # Errors
    ///
    /// When the kernel or a sandbox refuses a netlink socket.
    pub fn open() -> io::Result<Self> {
        let groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
        Ok(Self { socket: routing_socket(groups.cast_unsigned())? })
    }

    /// Blocks until something has changed since the last call or since [`Self::open`].
    ///
    /// Several changes may end one call; a spurious wake-up is possible, a missing one is not.
    ///
    /// # Errors
    ///
    /// When the socket fails for any reason except an interruption or an overrun, which are handled.
    pub fn wait(&self) -> io::Result<()> {
        self.receive(MsgFlags::empty())?;
        while self.receive(MsgFlags::MSG_DONTWAIT)? {}
        Ok(())
    }

    /// Takes one message; `false` if none is queued.
    fn receive(&self, flags: MsgFlags) -> io::Result<bool> {
        // What does not fit is cut off: the existence of a message is all that matters.
        let mut buffer = [0; 64];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, flags) {
                // There were more messages than the socket could hold.
                Ok(_) | Err(Errno::ENOBUFS) => return Ok(true),
                Err(Errno::EAGAIN) => return Ok(false),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Opens a socket for the kernel's messages about interfaces, and subscribes it to these groups (rtnetlink(7)).
pub(crate) fn routing_socket(groups: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
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
