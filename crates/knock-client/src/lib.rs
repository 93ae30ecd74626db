//! Sends port knocks: a TCP SYN or a UDP datagram to each port of a sequence, in order.
//!
//! ```no_run
//! use knock_client::{Hit, Sender, Target};
//!
//! let target = Target::resolve("gate.example.com", None)?;
//! let sender = Sender::new(target);
//! for text in ["7000", "8000:udp", "ssh"] {
//!     sender.send(Hit::parse(text, false)?.step)?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use dns_lookup::{AddrFamily, AddrInfoHints, SockType};
use knockd_core::{Protocol, Step, TcpFlags};
use socket2::{Domain, Socket, Type};

pub mod args;
#[cfg(not(unix))]
#[path = "no_raw.rs"]
mod raw;
#[cfg(unix)]
mod raw;

use raw::RawTcp;

/// Why a knock cannot start. With each of these, nothing has been sent.
#[derive(Debug, thiserror::Error)]
pub enum KnockError {
    /// An argument is neither a port number nor a service that the system knows.
    #[error("invalid port {0:?}; expected 0 to 65535 or a service name, optionally followed by :tcp or :udp")]
    NotAPort(String),
    /// The system found no address for the host.
    #[error("cannot resolve host {host:?}{}: {cause}", family.map_or("", Family::to_an_address))]
    Unresolved {
        /// The host as given.
        host: String,
        /// The only family allowed, if any.
        family: Option<Family>,
        /// The error of getaddrinfo(3).
        cause: io::Error,
    },
    /// TCP flags were requested, and the system refuses the raw socket that they need.
    #[error(
        "--tcpflags requires permission to send raw packets; run knock as root (sudo knock ...) or with \
         CAP_NET_RAW"
    )]
    RawForbidden,
    /// TCP flags were requested, and the system has no raw sockets for TCP.
    #[error("--tcpflags does not work here: this system cannot send raw TCP packets: {0}")]
    RawUnavailable(io::Error),
}

/// The IP version that a host name resolves to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    const fn to_an_address(self) -> &'static str {
        match self {
            Self::V4 => " to an IPv4 address",
            Self::V6 => " to an IPv6 address",
        }
    }
}

/// The address to knock at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    // The port is 0; a `SocketAddr` because it keeps the interface of a link-local address.
    address: SocketAddr,
}

impl Target {
    /// Resolves a host name or numeric address, once for a whole knock, to the address that getaddrinfo(3) puts
    /// first.
    ///
    /// # Errors
    ///
    /// [`KnockError::Unresolved`] when there is no address, or none of the given family.
    pub fn resolve(host: &str, family: Option<Family>) -> Result<Self, KnockError> {
        let family_number = match family {
            None => 0,
            Some(Family::V4) => AddrFamily::Inet.into(),
            Some(Family::V6) => AddrFamily::Inet6.into(),
        };
        first_address(Some(host), None, family_number, SockType::Stream)
            .map(|address| Self { address })
            .map_err(|cause| KnockError::Unresolved { host: host.to_owned(), family, cause })
    }

    /// Returns the socket address of a port at this target.
    const fn at(self, port: u16) -> SocketAddr {
        let mut address = self.address;
        address.set_port(port);
        address
    }
}

/// Prints the numeric address; for a link-local one with its interface: `fe80::1%eth0`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The standard library knows an interface only by number.
        #[cfg(unix)]
        if let Ok((host, _)) =
            dns_lookup::getnameinfo(&self.address, nix::libc::NI_NUMERICHOST | nix::libc::NI_NUMERICSERV)
        {
            return f.write_str(&host);
        }
        self.address.ip().fmt(f)
    }
}

/// One hit of a knock as the user wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hit {
    /// The port and protocol to hit.
    pub step: Step,
    /// The port as given: a number or a service name.
    pub port_text: String,
}

impl Hit {
    /// Parses `7000`, `7000:udp`, `ssh` or `domain:UDP`; the protocol is TCP if absent, and always UDP with
    /// `only_udp`.
    ///
    /// A service name is looked up for its protocol with getaddrinfo(3).
    ///
    /// # Errors
    ///
    /// [`KnockError::NotAPort`] when the port is neither a number from 0 to 65535 nor a service that the system
    /// knows, or the protocol is neither `tcp` nor `udp`.
    pub fn parse(text: &str, only_udp: bool) -> Result<Self, KnockError> {
        Self::parse_known(text, only_udp).ok_or_else(|| KnockError::NotAPort(text.to_owned()))
    }

    /// Parses a list of hits, as `Sequence` in a knockd.conf has it: `7101,8202:udp, 9303`. A list may start or end
    /// with a comma, because the shell splits one with spaces into several words.
    ///
    /// # Errors
    ///
    /// As [`Self::parse`], and when nothing is between two commas.
    pub fn parse_list(text: &str, only_udp: bool) -> Result<Vec<Self>, KnockError> {
        let list = text.trim();
        let list = list.strip_prefix(',').unwrap_or(list);
        let list = list.strip_suffix(',').unwrap_or(list);
        if list.trim().is_empty() && text.contains(',') {
            return Ok(Vec::new());
        }
        list.split(',').map(|hit| Self::parse(hit.trim(), only_udp)).collect()
    }

    fn parse_known(text: &str, only_udp: bool) -> Option<Self> {
        let (port_text, protocol) = match text.split_once(':') {
            None => (text.trim(), Protocol::Tcp),
            // Scripts write "$port:$proto" with an empty proto; knock 0.8 reads that as TCP.
            Some((port, protocol)) if protocol.trim().is_empty() => (port.trim(), Protocol::Tcp),
            Some((port, protocol)) => (port.trim(), parse_protocol(protocol.trim())?),
        };
        let protocol = if only_udp { Protocol::Udp } else { protocol };
        // A service name contains a letter (RFC 6335, section 5.1). Without one, getaddrinfo would read 99999 as
        // 34463.
        let port = if port_text.contains(|c: char| c.is_ascii_alphabetic()) {
            service_port(port_text, protocol)?
        } else {
            port_text.parse().ok()?
        };
        Some(Self { step: Step { port, protocol }, port_text: port_text.to_owned() })
    }
}

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
fn has_left(error: &io::Error) -> bool {
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

fn parse_protocol(name: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp].into_iter().find(|known| known.to_string().eq_ignore_ascii_case(name))
}

fn service_port(name: &str, protocol: Protocol) -> Option<u16> {
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::DGram,
    };
    first_address(None, Some(name), 0, kind).ok().map(|address| address.port())
}

fn first_address(
    host: Option<&str>,
    service: Option<&str>,
    family: i32,
    kind: SockType,
) -> io::Result<SocketAddr> {
    let hints = AddrInfoHints { address: family, socktype: kind.into(), ..AddrInfoHints::default() };
    let mut answers = dns_lookup::getaddrinfo(host, service, Some(hints))?;
    let first = answers.next().ok_or(io::ErrorKind::NotFound)??;
    Ok(first.sockaddr)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(text: &str) -> Option<Step> {
        Hit::parse(text, false).ok().map(|hit| hit.step)
    }

    #[test]
    fn a_hit_is_a_port_with_an_optional_protocol_in_any_case() {
        assert_eq!(step("7000"), Some(Step::tcp(7000)));
        assert_eq!(step("7000:tcp"), Some(Step::tcp(7000)));
        assert_eq!(step("7000:"), Some(Step::tcp(7000)));
        assert_eq!(step("7000:UdP"), Some(Step::udp(7000)));
        assert_eq!(step("0"), Some(Step::tcp(0)));
        assert_eq!(step("65535"), Some(Step::tcp(65535)));
    }

    #[test]
    fn a_list_is_a_sequence_of_a_configuration_whole_or_as_the_shell_splits_it() {
        let expected = [Step::tcp(7101), Step::udp(8202), Step::tcp(9303)];
        for words in [
            &["7101,8202:udp,9303"][..],
            &[" 7101 , 8202 : UDP,\t9303:tcp "],
            &["7101,", "8202:udp,", "9303"],
            &["7101", ",8202:udp", ",", "9303"],
            &["7101", "8202:udp,9303"],
        ] {
            let hits: Result<Vec<_>, _> = words.iter().map(|word| Hit::parse_list(word, false)).collect();
            let steps: Vec<_> = hits.unwrap().concat().into_iter().map(|hit| hit.step).collect();
            assert_eq!(steps, expected, "{words:?}");
        }
        for text in ["", "7101,,8202", ",,7101", "7101;8202", "7101,x", "7101 8202"] {
            assert!(Hit::parse_list(text, false).is_err(), "{text:?}");
        }
    }

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

    #[test]
    fn with_only_udp_the_protocol_of_the_argument_does_not_count() {
        assert_eq!(Hit::parse("7000:tcp", true).unwrap().step, Step::udp(7000));
    }

    #[test]
    fn a_service_name_is_looked_up_and_kept_for_display() {
        let hit = Hit::parse("domain:udp", false).unwrap();
        assert_eq!((hit.step, hit.port_text.as_str()), (Step::udp(53), "domain"));
        assert_eq!(step("ssh"), Some(Step::tcp(22)));
    }

    #[test]
    fn what_is_not_a_port_is_refused() {
        for text in
            ["", ":tcp", "65536", "99999", "+99999", "-1", "1:foo", "1:tcp:udp", "7000x", "no-such-service"]
        {
            assert_eq!(step(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_numeric_host_resolves_to_itself_in_its_family_only() {
        let display = |host, family| Target::resolve(host, family).ok().map(|target| target.to_string());
        assert_eq!(display("192.0.2.1", None).as_deref(), Some("192.0.2.1"));
        assert_eq!(display("2001:db8::1", Some(Family::V6)).as_deref(), Some("2001:db8::1"));
        assert_eq!(display("2001:db8::1", Some(Family::V4)), None);
        assert_eq!(display("192.0.2.1", Some(Family::V6)), None);
    }

    #[test]
    fn an_unresolved_host_is_named_with_the_family_that_was_asked_for() {
        let error = Target::resolve("192.0.2.1", Some(Family::V6)).unwrap_err().to_string();
        assert!(error.starts_with("cannot resolve host \"192.0.2.1\" to an IPv6 address: "), "{error}");
    }
}
