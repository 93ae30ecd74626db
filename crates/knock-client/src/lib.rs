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

use std::io;

pub mod args;
mod connection;
pub mod draw;
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
mod send;
mod target;
pub mod uri;
pub mod value;
mod verify;

pub use connection::Failure;
pub use hit::Hit;
pub use knock::{Knock, Prepared};
pub use send::{Sender, reason};
pub use target::{Family, Target};
pub use verify::{Outcome, Sent, Verdict, Verification, Verify};

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
