//! Sends hits.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use knockd_core::{Protocol, Step, TcpFlags};
use socket2::{Domain, Socket, Type};

use crate::raw::RawTcp;
use crate::{KnockError, Target};

/// Sends hits to one target.
#[derive(Debug)]
pub struct Sender {
    target: Target,
    raw: Option<RawTcp>,
}

impl Sender {
    /// Creates a sender whose TCP hits are ordinary SYNs; needs no privilege.
    pub const fn new(target: Target) -> Self {
        Self { target, raw: None }
    }

    /// Creates a sender whose TCP hits have exactly these flags; UDP hits are not affected.
    ///
    /// A peer may answer such a packet, and the system then rejects the answer with a RST: for the target, that is
    /// another packet to the same port.
    ///
    /// # Errors
    ///
    /// [`KnockError::RawForbidden`] without the privilege to open a raw socket (on Linux `CAP_NET_RAW`), and
    /// [`KnockError::RawUnavailable`] when there is no such socket for another reason.
    pub fn with_flags(target: Target, flags: TcpFlags) -> Result<Self, KnockError> {
        let raw =
            RawTcp::open(Domain::for_address(target.address), flags).map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => KnockError::RawForbidden,
                _ => KnockError::RawUnavailable(error),
            })?;
        Ok(Self { target, raw: Some(raw) })
    }

    /// Sends one hit and returns without waiting for an answer.
    ///
    /// A TCP hit is one segment that is never repeated; a UDP hit is a datagram of one zero byte. An open TCP port
    /// that answers at once then receives a RST, perhaps after the ACK of its answer.
    ///
    /// # Errors
    ///
    /// The system's error when it does not send the packet: no route, a local firewall, UDP port 0.
    pub fn send(&self, step: Step) -> io::Result<()> {
        let address = self.target.at(step.port);
        match (step.protocol, &self.raw) {
            (Protocol::Tcp, None) => send_syn(address),
            (Protocol::Tcp, Some(raw)) => raw.send(address),
            (Protocol::Udp, _) => send_datagram(address),
        }
    }
}

/// Starts a connection and abandons it at once.
fn send_syn(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // If a port answers at once, we leave with a RST: a FIN would be repeated until acknowledged, and a repeat that
    // arrives after a later hit would spoil the knock.
    socket.set_linger(Some(Duration::ZERO))?;
    match socket.connect(&address.into()) {
        Err(error) if !has_left(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Says whether a connect that "failed" with this error has sent its SYN.
pub(crate) fn has_left(error: &io::Error) -> bool {
    #[cfg(unix)]
    let in_progress = error.raw_os_error() == Some(nix::libc::EINPROGRESS);
    #[cfg(not(unix))]
    let in_progress = error.kind() == io::ErrorKind::WouldBlock;
    // A nearby host can refuse before connect returns.
    in_progress || error.kind() == io::ErrorKind::ConnectionRefused
}

/// Sends the datagram from a new socket, so no ICMP error of an earlier hit can be reported here.
fn send_datagram(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(socket2::Protocol::UDP))?;
    socket.send_to(&[0], &address.into()).map(|_| ())
}

/// Returns the system's reason why a hit was not sent in words, with what that usually means.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let code = error.raw_os_error().map(|code| format!(" (os error {code})")).unwrap_or_default();
    let words = text.strip_suffix(&code).unwrap_or(&text);
    let hint = match error.kind() {
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => "; is the network up?",
        io::ErrorKind::HostUnreachable => "; is there a route to it?",
        // EPERM; EACCES is about broadcast addresses.
        io::ErrorKind::PermissionDenied if words.starts_with("Operation not permitted") => {
            "; does a local firewall drop it?"
        }
        _ => "",
    };
    format!("{words}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_reason_is_in_words() {
        for (code, words) in [
            (nix::libc::ENETUNREACH, "Network is unreachable; is the network up?"),
            (nix::libc::EHOSTUNREACH, "No route to host; is there a route to it?"),
            (nix::libc::EPERM, "Operation not permitted; does a local firewall drop it?"),
            (nix::libc::EACCES, "Permission denied"),
            (nix::libc::EINVAL, "Invalid argument"),
        ] {
            assert_eq!(reason(&io::Error::from_raw_os_error(code)), words);
        }
        assert_eq!(reason(&io::Error::other("other")), "other");
    }
}
