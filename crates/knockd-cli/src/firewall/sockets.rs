//! Ends connections of this host's own sockets, see `linux/inet_diag.h`: a server whose client is cut off would wait for it.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use knockd_core::{Prefix, Protocol, Services};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use super::nft::TCP;

/// Types of messages.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;

/// The size of `struct nlmsghdr`.
const HEADER: usize = 16;

/// The size of `struct inet_diag_sockid`, which begins with the ports, our address and that of the other end.
const ID: usize = 48;

/// States of TCP as bits: established, and closed by one end or being closed by both.
const CONNECTED: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

const ANSWER: usize = 64 * 1024;

/// Ends the TCP connections of each source to these services, and returns how many it had.
///
/// # Errors
/// When the kernel does not tell which there are, or does not end one of them.
pub(super) fn end(cut: &[(Prefix, Option<Services>)]) -> Result<Vec<usize>, Errno> {
    let sockets = Sockets::open()?;
    let mut ended = vec![0; cut.len()];
    let mut result = Ok(());
    // A socket for both families counts as one for IPv6.
    for family in [2, 10] {
        for connection in sockets.connections(family)? {
            let is_its_own = |(source, services): &(Prefix, Option<Services>)| {
                connection.is_of(*source, services.as_ref())
            };
            for (_, count) in cut.iter().zip(&mut ended).filter(|(cut, _)| is_its_own(cut)) {
                match sockets.end(family, &connection) {
                    Ok(()) => *count += 1,
                    // It has just ended.
                    Err(Errno::ENOENT) => {}
                    Err(error) => result = Err(error),
                }
            }
        }
    }
    result.map(|()| ended)
}

/// A connection of a socket of this host.
#[derive(Debug)]
struct Connection {
    /// How the kernel knows it.
    id: [u8; ID],
    port: u16,
    other_end: IpAddr,
}

impl Connection {
    /// Reads a `struct inet_diag_msg`.
    fn read(message: &[u8]) -> Option<Self> {
        let (&family, rest) = message.split_first()?;
        let id: [u8; ID] = rest.get(3..3 + ID)?.try_into().ok()?;
        let port = u16::from_be_bytes(id.get(..2)?.try_into().ok()?);
        let other_end = id.get(20..36)?;
        let other_end = if family == 2 {
            IpAddr::from(<[u8; 4]>::try_from(other_end.get(..4)?).ok()?)
        } else {
            Ipv6Addr::from(<[u8; 16]>::try_from(other_end).ok()?).to_canonical()
        };
        Some(Self { id, port, other_end })
    }

    fn is_of(&self, source: Prefix, services: Option<&Services>) -> bool {
        let services = services.into_iter().flat_map(Services::iter);
        let mut services = services.filter(|service| service.protocol() == Protocol::Tcp);
        source.contains(self.other_end) && services.any(|service| service.ports().contains(&self.port))
    }
}

/// The socket to the kernel's list of sockets.
struct Sockets(OwnedFd);

impl Sockets {
    fn open() -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    fn connections(&self, family: u8) -> Result<Vec<Connection>, Errno> {
        self.send(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, &[0; ID])?;
        let mut connections = Vec::new();
        loop {
            for (kind, payload) in messages(&self.read()?) {
                match kind {
                    NLMSG_DONE => return Ok(connections),
                    NLMSG_ERROR => return Err(errno(payload)),
                    _ => connections.extend(Connection::read(payload)),
                }
            }
        }
    }

    fn end(&self, family: u8, connection: &Connection) -> Result<(), Errno> {
        self.send(SOCK_DESTROY, NLM_F_ACK, family, &connection.id)?;
        let answer = self.read()?;
        let mut errors = messages(&answer).filter(|(kind, _)| *kind == NLMSG_ERROR);
        match errors.next().map(|(_, payload)| errno(payload)) {
            Some(Errno::UnknownErrno) => Ok(()),
            Some(error) => Err(error),
            None => Err(Errno::ENOMSG),
        }
    }

    /// Sends a `struct inet_diag_req_v2`.
    fn send(&self, kind: u16, flags: u16, family: u8, id: &[u8; ID]) -> Result<(), Errno> {
        let body = [&[family, TCP, 0, 0], &CONNECTED.to_ne_bytes()[..], id].concat();
        let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX).to_ne_bytes();
        let (kind, flags) = (kind.to_ne_bytes(), (NLM_F_REQUEST | flags).to_ne_bytes());
        // Neither the number of the message nor the sender matters.
        let message = [&length[..], &kind, &flags, &[0; 8], &body].concat();
        send(self.0.as_raw_fd(), &message, MsgFlags::empty()).map(drop)
    }

    /// Reads some messages. The kernel has answered when a message has been sent.
    fn read(&self) -> Result<Vec<u8>, Errno> {
        let mut buffer = vec![0; ANSWER];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    buffer.truncate(length);
                    return Ok(buffer);
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Returns type and payload of each message.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?);
        let length = usize::try_from(length).ok()?;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        let payload = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// Returns the error in an answer; 0 is none.
fn errno(payload: &[u8]) -> Errno {
    let code = payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    Errno::from_raw(code.wrapping_neg())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `struct inet_diag_msg` of a connection from port 40000 of this address to port 22.
    fn message(family: u8, other_end: [u8; 16]) -> Vec<u8> {
        let ports = [22_u16.to_be_bytes(), 40000_u16.to_be_bytes()].concat();
        let head = [family, 1, 0, 0];
        [&head[..], &ports, &[9; 16], &other_end, &[7; 12], &[0; 20]].concat()
    }

    #[test]
    fn a_connection_is_known_by_its_port_and_other_end_whatever_the_family_of_its_socket() {
        let mut v4 = [0; 16];
        v4[..4].copy_from_slice(&[192, 0, 2, 7]);
        let mapped = "::ffff:192.0.2.7".parse::<Ipv6Addr>().unwrap().octets();
        let services: Services = "udp/22, tcp/20-25".parse().unwrap();
        let source = "192.0.2.7".parse().unwrap();
        for message in [message(2, v4), message(10, mapped)] {
            let connection = Connection::read(&message).unwrap();
            assert!(connection.is_of(source, Some(&services)));
            assert!(!connection.is_of("192.0.2.8".parse().unwrap(), Some(&services)));
            assert!(!connection.is_of(source, Some(&"udp/22, tcp/40000".parse().unwrap())));
            assert_eq!(connection.id[..], message[4..4 + ID]);
        }
        let six = "2001:db8::7".parse::<Ipv6Addr>().unwrap();
        assert_eq!(Connection::read(&message(10, six.octets())).unwrap().other_end, six);
    }

    #[test]
    fn what_the_kernel_tells_is_read_to_its_end_and_no_further() {
        let whole = message(10, [1; 16]);
        for length in 0..4 + ID {
            assert!(Connection::read(&whole[..length]).is_none(), "{length}");
        }
        let two = [&20_u32.to_ne_bytes()[..], &[20, 0], &[0; 10], &[1, 2, 3, 4]].concat().repeat(2);
        assert_eq!(messages(&two).collect::<Vec<_>>(), [(20, &[1, 2, 3, 4][..]); 2]);
        for length in 20..40 {
            assert_eq!(messages(&two[..length]).count(), 1, "{length}");
        }
        assert_eq!(errno(&(-1_i32).to_ne_bytes()), Errno::EPERM);
    }
}
