//! What an ICMP message says about a connection: Linux passes it on, with its sender.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::libc::{SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, sock_extended_err};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use socket2::Socket;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;

use crate::connection::Failure;
use crate::{Family, Target};

/// Has the system keep ICMP messages about this socket. Without them, its errors still tell less.
pub(crate) fn ask_for_messages(socket: &Socket, target: Target) {
    let _ = match target.family() {
        Family::V4 => setsockopt(socket, sockopt::Ipv4RecvErr, &true),
        Family::V6 => setsockopt(socket, sockopt::Ipv6RecvErr, &true),
    };
}

/// Takes the message that has ended a connection to this target, if one has.
pub(crate) fn message(socket: &Socket, target: Target) -> Option<Failure> {
    // The packet that the message is about: its header and eight bytes are of no use here.
    let mut packet = [0; 128];
    let mut buffers = [IoSliceMut::new(&mut packet)];
    let mut control = nix::cmsg_space!(sock_extended_err, nix::libc::sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let received =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut buffers, Some(&mut control), flags).ok()?;
    let (error, by) = received.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4RecvErr(error, by) => {
            Some((error, IpAddr::from(Ipv4Addr::from(by?.sin_addr.s_addr.to_ne_bytes()))))
        }
        ControlMessageOwned::Ipv6RecvErr(error, by) => {
            Some((error, IpAddr::from(Ipv6Addr::from(by?.sin6_addr.s6_addr))))
        }
        _ => None,
    })?;
    let source = socket.local_addr().ok().and_then(|address| address.as_socket());
    let meaning = match error.ee_origin {
        SO_EE_ORIGIN_ICMP => of_icmp(error.ee_type, error.ee_code),
        SO_EE_ORIGIN_ICMP6 => of_icmpv6(error.ee_type, error.ee_code),
        _ => return None,
    };
    Some(judge(meaning, by, target.ip(), source.map(|address| address.ip())))
}

/// What a message says, before it counts who says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meaning {
    /// A firewall does not let the packet through. For TCP, "port unreachable" also means that.
    Rejected(&'static str),
    /// The packet gets no further.
    Unreachable(&'static str),
}

fn judge(meaning: Meaning, by: IpAddr, target: IpAddr, source: Option<IpAddr>) -> Failure {
    match meaning {
        Meaning::Rejected(message) => Failure::Rejected { by, message: message.to_owned() },
        // A host that says of itself that it cannot be reached has a firewall that says so.
        Meaning::Unreachable(message) if by == target => {
            Failure::Rejected { by, message: message.to_owned() }
        }
        // This system says it to itself when a neighbour does not answer.
        Meaning::Unreachable(_) if Some(by) == source => Failure::Unreachable {
            by: None,
            message: "no answer in the local network; is it switched on?".to_owned(),
        },
        Meaning::Unreachable(message) => Failure::Unreachable { by: Some(by), message: message.to_owned() },
    }
}

/// ICMP types and codes of RFC 792 and RFC 1812, section 5.2.7.1.
const fn of_icmp(kind: u8, code: u8) -> Meaning {
    match (kind, code) {
        (3, 0) => Meaning::Unreachable("network unreachable"),
        (3, 2) => Meaning::Rejected("protocol unreachable"),
        (3, 3) => Meaning::Rejected("port unreachable"),
        (3, 5) => Meaning::Unreachable("source route failed"),
        (3, 6) => Meaning::Unreachable("network unknown"),
        (3, 7) => Meaning::Unreachable("host unknown"),
        (3, 9) => Meaning::Rejected("network prohibited"),
        (3, 10) => Meaning::Rejected("host prohibited"),
        (3, 13) => Meaning::Rejected("administratively prohibited"),
        (11, _) => Meaning::Unreachable("time exceeded"),
        _ => Meaning::Unreachable("host unreachable"),
    }
}

/// Types and codes of ICMP version 6, of RFC 4443, section 3.
const fn of_icmpv6(kind: u8, code: u8) -> Meaning {
    match (kind, code) {
        (1, 0) => Meaning::Unreachable("no route"),
        (1, 1) => Meaning::Rejected("administratively prohibited"),
        (1, 2) => Meaning::Unreachable("beyond the scope of the source address"),
        (1, 4) => Meaning::Rejected("port unreachable"),
        (1, 5) => Meaning::Rejected("source address failed policy"),
        (1, 6) => Meaning::Unreachable("reject route"),
        (3, _) => Meaning::Unreachable("time exceeded"),
        _ => Meaning::Unreachable("address unreachable"),
    }
}
