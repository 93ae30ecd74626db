//! Sends hits.

use std::io;
use std::time::Duration;

use socket2::{Protocol, Socket, Type};

use crate::echo::Echo;
use crate::raw::RawTcp;
use crate::{Hit, KnockError, Packet, Target, Tcp};

/// How long a connection may take: less than the second after which Linux repeats a SYN (RFC 6298, section 2).
const ANSWER: Duration = Duration::from_millis(900);

/// Sends hits to one target.
#[derive(Debug)]
pub struct Sender {
    target: Target,
    raw: Option<RawTcp>,
    echo: Option<Echo>,
    /// The connection of the hit before.
    connection: Option<Socket>,
}

impl Sender {
    /// Creates a sender; it opens what a hit takes with the first that does.
    pub const fn new(target: Target) -> Self {
        Self { target, raw: None, echo: None, connection: None }
    }

    /// Opens what these hits take and looks at the route, so that a knock which cannot be sent fails before its first
    /// hit.
    ///
    /// # Errors
    ///
    /// [`KnockError::RawForbidden`], [`KnockError::RawUnavailable`] and [`KnockError::EchoUnavailable`] when the system
    /// does not send such packets for this process; the errors about interfaces and sources when the route is none.
    pub fn prepare(&mut self, hits: &[Hit]) -> Result<(), KnockError> {
        self.target.check()?;
        for hit in hits {
            match hit.packet {
                Packet::Tcp { kind: Tcp::Flags(_), .. } => {
                    self.raw().map_err(|error| match error.kind() {
                        io::ErrorKind::PermissionDenied => KnockError::RawForbidden,
                        _ => KnockError::RawUnavailable(error),
                    })?;
                }
                Packet::Echo { .. } => {
                    self.echo().map_err(KnockError::EchoUnavailable)?;
                }
                Packet::Tcp { kind: Tcp::Syn | Tcp::Connection, .. } | Packet::Udp { .. } => {}
            }
        }
        Ok(())
    }

    /// Sends one hit. It waits for an answer only if the hit is a connection, and then for 0.9 seconds at most.
    ///
    /// On Linux, the SYN of a TCP hit is never repeated. An open port that answers an ordinary hit at once receives a
    /// RST, perhaps after the ACK of its answer. A connection is closed after the next hit has been sent, or with the
    /// sender.
    ///
    /// A segment with chosen flags may be answered as well, and the system then rejects the answer with a RST: for the
    /// target, that is another packet to the same port.
    ///
    /// # Errors
    ///
    /// The system's error when it does not send the packet: no route, a local firewall, UDP port 0, no privilege.
    pub fn send(&mut self, hit: &Hit) -> io::Result<()> {
        let earlier = self.connection.take();
        let outcome = match &hit.packet {
            Packet::Tcp { port, kind: Tcp::Syn } => self.send_syn(*port),
            Packet::Tcp { port, kind: Tcp::Flags(flags) } => {
                self.raw().and_then(|raw| raw.send(*port, *flags))
            }
            Packet::Tcp { port, kind: Tcp::Connection } => self.connect(*port),
            Packet::Udp { port, payload } => self.send_datagram(*port, payload),
            Packet::Echo { size } => self.echo().and_then(|echo| echo.send(*size)),
        };
        drop(earlier);
        outcome
    }

    /// Closes the connection of the last hit.
    pub(crate) fn hang_up(&mut self) {
        self.connection = None;
    }

    fn raw(&mut self) -> io::Result<&RawTcp> {
        Ok(match &mut self.raw {
            Some(raw) => raw,
            none => none.insert(RawTcp::open(self.target)?),
        })
    }

    fn echo(&mut self) -> io::Result<&mut Echo> {
        Ok(match &mut self.echo {
            Some(echo) => echo,
            none => none.insert(Echo::open(self.target)?),
        })
    }

    /// Starts a connection and abandons it at once.
    fn send_syn(&self, port: u16) -> io::Result<()> {
        let socket = self.target.socket(port, Type::STREAM, Protocol::TCP)?;
        socket.set_nonblocking(true)?;
        // If a port answers at once, we leave with a RST: a FIN would be repeated until acknowledged, and a repeat that
        // arrives after a later hit would spoil the knock.
        socket.set_linger(Some(Duration::ZERO))?;
        match socket.connect(&self.target.at(port).into()) {
            Err(error) if !has_left(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes a connection and keeps it; one that is not answered in time is abandoned before its SYN is repeated.
    fn connect(&mut self, port: u16) -> io::Result<()> {
        let socket = self.target.socket(port, Type::STREAM, Protocol::TCP)?;
        match socket.connect_timeout(&self.target.at(port).into(), ANSWER) {
            Ok(()) => self.connection = Some(socket),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::ConnectionRefused) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Sends the datagram from a new socket, so no ICMP error of an earlier hit can be reported here.
    fn send_datagram(&self, port: u16, payload: &[u8]) -> io::Result<()> {
        let socket = self.target.socket(port, Type::DGRAM, Protocol::UDP)?;
        socket.send_to(payload, &self.target.at(port).into()).map(|_| ())
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
