//! ICMP echo requests.

use std::io;
use std::net::SocketAddr;

use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type};
use socket2::{Protocol, Socket, Type};

use crate::Target;

/// A socket for echo requests to one address.
#[derive(Debug)]
pub(crate) struct Echo {
    socket: Socket,
    destination: SocketAddr,
    sent: u16,
}

impl Echo {
    /// Opens a socket that needs no privilege where the system has one, else a raw one.
    pub(crate) fn open(target: Target) -> io::Result<Self> {
        let destination = target.at(0);
        let protocol = if destination.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
        let socket =
            target.socket(0, Type::DGRAM, protocol).or_else(|_| target.socket(0, Type::RAW, protocol))?;
        Ok(Self { socket, destination, sent: 0 })
    }

    /// Sends a request with this many bytes, as ping(8) counts them.
    pub(crate) fn send(&mut self, size: u16) -> io::Result<()> {
        // The pattern of ping(8).
        let data: Vec<u8> = (0..=u8::MAX).cycle().take(size.into()).collect();
        self.sent = self.sent.wrapping_add(1);
        // Linux puts an ID of its own in, unless the socket is raw.
        let [.., high, low] = std::process::id().to_be_bytes();
        let header = IcmpEchoHeader { id: u16::from_be_bytes([high, low]), seq: self.sent };
        let mut message = match self.destination {
            SocketAddr::V4(_) => {
                Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(header), &data).to_bytes().to_vec()
            }
            // The kernel writes the checksum (RFC 3542, section 3.1), which depends on addresses that it chooses.
            SocketAddr::V6(_) => Icmpv6Header::new(Icmpv6Type::EchoRequest(header)).to_bytes().to_vec(),
        };
        message.extend(data);
        self.socket.send_to(&message, &self.destination.into()).map(|_| ())
    }
}
