//! Sends port knocks: a TCP SYN or a UDP datagram to each port of a sequence, in order.
//!
//! ```no_run
//! use knock_client::{Hit, Sender, Target};
//!
//! let target = Target::resolve("gate.example.com", None)?;
//! let mut sender = Sender::new(target);
//! for hit in Hit::parse_list("7000, 8000:udp, ssh", false)? {
//!     sender.send(&hit)?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

use std::io;
use std::net::IpAddr;

pub mod args;
mod connection;
pub mod draw;
mod echo;
mod hit;
pub mod hosts;
#[cfg(target_os = "linux")]
mod icmp;
#[cfg(not(target_os = "linux"))]
#[path = "no_icmp.rs"]
mod icmp;
mod knock;
pub mod one_time;
pub mod profile;
#[cfg(not(unix))]
#[path = "no_raw.rs"]
mod raw;
#[cfg(unix)]
mod raw;
mod route;
mod send;
mod target;
pub mod uri;
pub mod value;
mod verify;

pub use connection::Failure;
pub use hit::{Hit, HitError, Packet, Tcp, ZERO_BYTE};
pub use knock::{Knock, Prepared};
pub use route::Route;
pub use send::{Sender, reason};
pub use target::{Family, Target};
pub use verify::{Outcome, Sent, Verdict, Verification, Verify};

/// Why a knock cannot start. With each of these, nothing has been sent.
#[derive(Debug, thiserror::Error)]
pub enum KnockError {
    /// An argument is no hit.
    #[error(transparent)]
    NotAHit(#[from] HitError),
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
        "TCP flags require permission to send raw packets; run knock as root (sudo knock ...) or with CAP_NET_RAW"
    )]
    RawForbidden,
    /// TCP flags were requested, and the system has no raw sockets for TCP.
    #[error("TCP flags do not work here: this system cannot send raw TCP packets: {0}")]
    RawUnavailable(io::Error),
    /// An echo request was requested, and the system has no socket for it that this process may open.
    #[error("cannot send echo requests: {}; {ECHO_HINT}", reason(.0))]
    EchoUnavailable(io::Error),
    /// The interface does not exist, or the system does not bind a socket to it.
    #[error("cannot use interface {name:?}: {}{}", reason(cause), here(present))]
    Interface {
        /// The interface as given.
        name: String,
        /// The system's error.
        cause: io::Error,
        /// The interfaces of this machine, if the system tells.
        present: Vec<String>,
    },
    /// The system cannot bind a socket to an interface.
    #[error("this system cannot bind a knock to an interface; choose its address with --source")]
    InterfaceUnavailable,
    /// The system does not send from this address.
    #[error("cannot send from {address}: {}; expected an address of this machine", reason(cause))]
    Source {
        /// The address as given.
        address: IpAddr,
        /// The system's error.
        cause: io::Error,
    },
    /// The source address is not of the target's family.
    #[error("cannot send from {address} to {target}: one is IPv4, the other IPv6")]
    SourceFamily {
        /// The source address as given.
        address: IpAddr,
        /// The address to knock at.
        target: IpAddr,
    },
    /// The target is a link-local IPv6 address, of which every link has its own, and nothing says which link is meant.
    #[error("{address} is a link-local address, which needs an interface: {address}%NAME{}", here(present))]
    NoInterface {
        /// The address to knock at.
        address: IpAddr,
        /// The interfaces of this machine, if the system tells.
        present: Vec<String>,
    },
}

const ECHO_HINT: &str = if cfg!(any(target_os = "linux", target_os = "android")) {
    "run knock as root (sudo knock ...), or allow your group in the sysctl net.ipv4.ping_group_range"
} else {
    "run knock as root or as an administrator"
};

/// Continues a message about an interface with those that exist.
fn here(present: &[String]) -> String {
    if present.is_empty() { String::new() } else { format!("; expected one of {}", present.join(", ")) }
}
