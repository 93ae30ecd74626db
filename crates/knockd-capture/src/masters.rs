//! Which interfaces are ports of another one, such as a bridge.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, NlasIterator, parse_u32,
};
use nix::libc::{IFLA_MASTER, RTM_GETLINK};
use nix::sys::socket::{MsgFlags, recv, send};

use crate::link::routing_socket;

/// The size of a `struct ifinfomsg` (rtnetlink(7)), and the offset of the interface's number in it.
const HEADER: usize = 16;
const INDEX: std::ops::Range<usize> = 4..8;

/// Returns the numbers of all interfaces that have a master (`IFLA_MASTER`, rtnetlink(7)): what arrives at one of
/// them appears again at its master.
///
/// # Errors
///
/// When the kernel or a sandbox refuses the request.
pub(crate) fn enslaved() -> io::Result<HashSet<u32>> {
    let socket = routing_socket(0)?;
    // Without a destination, it goes to the kernel (netlink(7)).
    send(socket.as_raw_fd(), &question(), MsgFlags::empty())?;
    let mut indexes = HashSet::new();
    let mut datagram = Vec::new();
    loop {
        let length = recv(socket.as_raw_fd(), &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC)?;
        datagram.resize(length, 0);
        let length = recv(socket.as_raw_fd(), &mut datagram, MsgFlags::empty())?;
        let mut rest = datagram.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let message: NetlinkMessage<Link> =
                NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(indexes),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(link) if link.master != 0 => {
                    indexes.insert(link.index);
                }
                _ => {}
            }
            // Messages are aligned to four bytes; a length of 0 would never end.
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn question() -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_DUMP | NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(Link::default()));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The relevant part of a message about an interface; as a request, it asks for all of them.
///
/// netlink-packet-route would parse the whole message, with half as much code as all of the daemon's own.
#[derive(Default)]
struct Link {
    index: u32,
    /// 0 if it has none.
    master: u32,
}

impl NetlinkSerializable for Link {
    fn message_type(&self) -> u16 {
        RTM_GETLINK
    }

    fn buffer_len(&self) -> usize {
        HEADER
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

impl NetlinkDeserializable for Link {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let mut link = Self { index: parse_u32(payload.get(INDEX).unwrap_or_default())?, master: 0 };
        for attribute in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()) {
            let attribute = attribute?;
            if attribute.kind() == IFLA_MASTER {
                link.master = parse_u32(attribute.value())?;
            }
        }
        Ok(link)
    }
}
