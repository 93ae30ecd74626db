//! What the kernel knows of interfaces beyond their addresses: of which other one they are ports, such as a bridge, and
//! their other names.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, NlasIterator, parse_u32,
};
use nix::libc::{IFLA_ALT_IFNAME, IFLA_MASTER, IFLA_PROP_LIST, RTM_GETLINK};
use nix::sys::socket::{MsgFlags, recv, send};

use crate::link::routing_socket;

/// The size of a `struct ifinfomsg` (rtnetlink(7)), and the offset of the interface's number in it.
const HEADER: usize = 16;
const INDEX: std::ops::Range<usize> = 4..8;

/// What is known of an interface.
#[derive(Default)]
pub(crate) struct Attributes {
    /// The number of its master (`IFLA_MASTER`, rtnetlink(7)), where everything that arrives here appears again.
    pub(crate) master: Option<u32>,
    /// Its other names (`ip link property add … altname`).
    pub(crate) alternative_names: Vec<String>,
}

/// Returns the attributes of all interfaces, by number.
///
/// # Errors
///
/// When the kernel or a sandbox refuses the request.
pub(crate) fn attributes() -> io::Result<HashMap<u32, Attributes>> {
    let socket = routing_socket(0)?;
    // Without a destination, it goes to the kernel (netlink(7)).
    send(socket.as_raw_fd(), &question(), MsgFlags::empty())?;
    let mut found = HashMap::new();
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
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(link) => {
                    found.insert(link.index, link.attributes);
                }
                _ => {}
            }
            // Messages are aligned to four bytes; a length of 0 would never end.
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

/// Reads a name, which ends with a zero byte.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
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
    attributes: Attributes,
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
        let index = parse_u32(payload.get(INDEX).unwrap_or_default())?;
        let mut attributes = Attributes::default();
        for attribute in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()) {
            let attribute = attribute?;
            match attribute.kind() {
                // 0 if it has none.
                IFLA_MASTER => {
                    attributes.master = Some(parse_u32(attribute.value())?).filter(|master| *master != 0);
                }
                IFLA_PROP_LIST => {
                    for property in NlasIterator::new(attribute.value()) {
                        let property = property?;
                        if property.kind() == IFLA_ALT_IFNAME {
                            attributes.alternative_names.push(text(property.value()));
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(Self { index, attributes })
    }
}
