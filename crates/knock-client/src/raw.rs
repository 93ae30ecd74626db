//! TCP segments with chosen flags, through a raw socket.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use etherparse::TcpHeader;
use knockd_core::TcpFlags;
use socket2::{Domain, Protocol, Socket, Type};

/// A raw socket for TCP segments that all have the same flags. The kernel writes the IP header.
#[derive(Debug)]
pub(crate) struct RawTcp {
    socket: Socket,
    flags: TcpFlags,
}

impl RawTcp {
    pub(crate) fn open(domain: Domain, flags: TcpFlags) -> io::Result<Self> {
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::TCP))?;
        Ok(Self { socket, flags })
    }

    pub(crate) fn send(&self, destination: SocketAddr) -> io::Result<()> {
        // Connecting a UDP socket sends nothing; it makes the kernel choose the source address, which is part of the
        // checksum, and a source port, which stays ours until the segment is sent.
        let probe = UdpSocket::bind(match destination {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        })?;
        probe.connect(with_port(destination, DISCARD))?;
        let source = probe.local_addr()?;
        let segment = segment(source, destination, self.flags)?;
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
