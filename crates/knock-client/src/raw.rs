//! TCP segments with chosen flags, through a raw socket.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;

use etherparse::TcpHeader;
use knockd_core::TcpFlags;
use socket2::{Protocol, Socket, Type};

use crate::Target;

/// A raw socket for TCP segments. The kernel writes the IP header.
#[derive(Debug)]
pub(crate) struct RawTcp {
    socket: Socket,
    target: Target,
}

impl RawTcp {
    pub(crate) fn open(target: Target) -> io::Result<Self> {
        Ok(Self { socket: target.socket(0, Type::RAW, Protocol::TCP)?, target })
    }

    pub(crate) fn send(&self, port: u16, flags: TcpFlags) -> io::Result<()> {
        let destination = self.target.at(port);
        // Connecting a UDP socket sends nothing; it makes the kernel choose the source address, which is part of the
        // checksum, and a source port, which stays ours until the segment is sent.
        let probe = self.target.socket(0, Type::DGRAM, Protocol::UDP)?;
        probe.connect(&with_port(destination, DISCARD).into())?;
        let source = probe.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let segment = segment(source, destination, flags)?;
        self.socket.bind(&with_port(source, 0).into())?;
        // In the address of a raw IPv6 socket the port means the protocol (ipv6(7)), and 0 means the socket's own.
        self.socket.send_to(&segment, &with_port(destination, 0).into()).map(|_| ())
    }
}

/// Any port would do, except that some systems do not connect to port 0.
const DISCARD: u16 = 9;

fn segment(source: SocketAddr, destination: SocketAddr, flags: TcpFlags) -> io::Result<Vec<u8>> {
    // Filters recognise scans by sequence number 0 and by odd windows; this is the window of an ordinary Linux SYN.
    let mut header = TcpHeader::new(source.port(), destination.port(), random_number(), 64240);
    header.fin = flags.contains(TcpFlags::FIN);
    header.syn = flags.contains(TcpFlags::SYN);
    header.rst = flags.contains(TcpFlags::RST);
    header.psh = flags.contains(TcpFlags::PSH);
    header.ack = flags.contains(TcpFlags::ACK);
    header.urg = flags.contains(TcpFlags::URG);
    let checksum = match (source, destination) {
        (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
            header.calc_checksum_ipv4_raw(source.ip().octets(), destination.ip().octets(), &[])
        }
        (SocketAddr::V6(source), SocketAddr::V6(destination)) => {
            header.calc_checksum_ipv6_raw(source.ip().octets(), destination.ip().octets(), &[])
        }
        _ => return Err(io::ErrorKind::AddrNotAvailable.into()),
    };
    header.checksum = checksum.map_err(io::Error::other)?;
    Ok(header.to_bytes().to_vec())
}

/// Returns a number random enough for a sequence number on which nothing depends.
fn random_number() -> u32 {
    let [a, b, c, d, ..] = RandomState::new().hash_one(()).to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

const fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}
