//! The hits of a knock, as a person writes them.

mod parse;

use std::fmt;
use std::time::Duration;

use knockd_core::{Protocol, Step, TcpFlags};

use crate::Target;
pub use parse::HitError;
pub(crate) use parse::flags;

/// One hit of a knock as the user wrote it.
///
/// # Grammar
///
/// ```text
/// hit      = port [":" [protocol]] *(":" setting) / "icmp" *(":" setting)
/// protocol = "tcp" / "udp" / "tcp-connect"
/// setting  = "delay=" MILLISECONDS
///          / "flags=" FLAG *("+" FLAG)          ; of tcp: fin, syn, rst, psh, ack, urg, or none alone
///          / "hex=" / "text=" / "base64="       ; of udp: the payload
///          / "size=" BYTES                      ; of icmp
/// ```
///
/// Case counts only in a text and in base64. A setting appears once, and so does a payload. A payload ends at the next
/// colon, and in a list of hits at the next comma.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hit {
    /// What is sent.
    pub packet: Packet,
    /// How long to wait after it, if not as long as after the other hits of its knock.
    pub delay: Option<Duration>,
    /// The port as given: a number or a service name; `icmp` for an echo request.
    pub port_text: String,
}

/// What a hit sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Packet {
    /// TCP to a port.
    Tcp {
        /// The port.
        port: u16,
        /// How it is hit.
        kind: Tcp,
    },
    /// A datagram to a port.
    Udp {
        /// The port.
        port: u16,
        /// What is in it; 0.8 sends [`ZERO_BYTE`].
        payload: Vec<u8>,
    },
    /// An ICMP echo request.
    Echo {
        /// The bytes behind its header.
        size: u16,
    },
}

/// How a TCP port is hit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Tcp {
    /// By one SYN. An answer is refused.
    #[default]
    Syn,
    /// By one segment with exactly these flags. That takes the privilege to send raw packets.
    Flags(TcpFlags),
    /// By a connection that stays open until the next hit is sent.
    Connection,
}

/// The payload of a datagram unless the hit says otherwise.
pub const ZERO_BYTE: [u8; 1] = [0];

/// The size of an echo request unless the hit says otherwise: what ping(8) sends.
const ECHO_SIZE: u16 = 56;

impl Hit {
    /// Parses one hit, such as `7000`, `domain:UDP` or `7000:tcp:delay=300`; the protocol is TCP if absent, and always
    /// UDP with `only_udp`.
    ///
    /// A service name is looked up for its protocol with getaddrinfo(3).
    ///
    /// # Errors
    ///
    /// When the text is not in the grammar of hits, a number is out of range, the system does not know the service, or
    /// `only_udp` contradicts the hit.
    pub fn parse(text: &str, only_udp: bool) -> Result<Self, HitError> {
        parse::one(text, only_udp)
    }

    /// Parses a list of hits, as `Sequence` in a knockd.conf has it: `7101,8202:udp, 9303`. A list may start or end
    /// with a comma, because the shell splits one with spaces into several words.
    ///
    /// # Errors
    ///
    /// As [`Self::parse`], and when nothing is between two commas.
    pub fn parse_list(text: &str, only_udp: bool) -> Result<Vec<Self>, HitError> {
        parse::list(text, only_udp)
    }

    /// Returns the port and protocol; `None` for an echo request, which has no port.
    pub const fn step(&self) -> Option<Step> {
        match self.packet {
            Packet::Tcp { port, .. } => Some(Step::tcp(port)),
            Packet::Udp { port, .. } => Some(Step::udp(port)),
            Packet::Echo { .. } => None,
        }
    }

    /// Returns what `knock --verbose` and messages call it: `tcp 192.0.2.1:ssh`, `icmp 192.0.2.1`.
    pub fn name_at(&self, target: Target) -> String {
        match self.step() {
            Some(step) => format!("{} {target}:{}", step.protocol, self.port_text),
            None => format!("icmp {target}"),
        }
    }

    /// Returns the hit as `-u` sends it; one that has no port stays what it is.
    pub(crate) fn over_udp(mut self) -> Self {
        if let Packet::Tcp { port, .. } = self.packet {
            self.packet = Packet::Udp { port, payload: ZERO_BYTE.to_vec() };
        }
        self
    }

    /// Returns the hit as a knock sends it whose TCP hits are of this kind unless they say otherwise.
    pub(crate) fn with_kind(mut self, usual: Tcp) -> Self {
        if let Packet::Tcp { kind, .. } = &mut self.packet
            && *kind == Tcp::Syn
        {
            *kind = usual;
        }
        self
    }
}

/// The hit of a door's step.
impl From<Step> for Hit {
    fn from(Step { port, protocol }: Step) -> Self {
        let packet = match protocol {
            Protocol::Tcp => Packet::Tcp { port, kind: Tcp::Syn },
            Protocol::Udp => Packet::Udp { port, payload: ZERO_BYTE.to_vec() },
        };
        Self { packet, delay: None, port_text: port.to_string() }
    }
}

/// Prints a text that [`Hit::parse`] reads as this hit.
impl fmt::Display for Hit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.port_text)?;
        match &self.packet {
            Packet::Tcp { kind: Tcp::Syn, .. } | Packet::Echo { size: ECHO_SIZE } => {}
            Packet::Tcp { kind: Tcp::Connection, .. } => f.write_str(":tcp-connect")?,
            Packet::Tcp { kind: Tcp::Flags(TcpFlags::NONE), .. } => f.write_str(":flags=none")?,
            Packet::Tcp { kind: Tcp::Flags(flags), .. } => {
                write!(f, ":flags={}", flags.to_string().replace(',', "+"))?;
            }
            Packet::Udp { payload, .. } if *payload == ZERO_BYTE => f.write_str(":udp")?,
            Packet::Udp { payload, .. } => {
                write!(f, ":udp:hex={}", data_encoding::HEXLOWER.encode(payload))?;
            }
            Packet::Echo { size } => write!(f, ":size={size}")?,
        }
        match self.delay {
            Some(delay) => write!(f, ":delay={}", delay.as_millis()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
