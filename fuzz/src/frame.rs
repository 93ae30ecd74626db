//! The decoder against etherparse.

use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket, TransportSlice};
use knockd_capture::decode;
use knockd_core::{Arrival, Hit, Packet, Passage, TcpFlags};

/// The extension headers that etherparse knows but does not look through: mobility, HIP, shim6.
const NOT_LOOKED_THROUGH: [IpNumber; 3] = [IpNumber(135), IpNumber(139), IpNumber(140)];

/// Whatever is decoded says what etherparse reads from the same bytes, and more bytes behind it do not matter.
pub fn frame(ip_packet: &[u8]) {
    let Ok(packet) = decode(ip_packet) else { return };
    if let Some(expected) = oracle(ip_packet) {
        assert_eq!(packet, expected);
    }
    // A length of 0 means all bytes, so that padding is no padding; headers that are complete do not change all the
    // same.
    let padded = [ip_packet, &[0xff; 7]].concat();
    assert_eq!(decode(&padded), Ok(packet), "what follows a packet changes it");
}

/// What etherparse reads; `None` where it stops before the transport header.
fn oracle(bytes: &[u8]) -> Option<Packet> {
    let sliced = LaxSlicedPacket::from_ip(bytes).expect("etherparse finds no IP header");
    let net = sliced.net.expect("etherparse finds no IP header");
    if net.ip_payload_ref().is_some_and(|payload| NOT_LOOKED_THROUGH.contains(&payload.ip_number)) {
        return None;
    }
    let (source, destination) = match net {
        LaxNetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        LaxNetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        LaxNetSlice::Arp(_) => panic!("etherparse finds ARP"),
    };
    let (hit, tag) = match sliced.transport.expect("etherparse finds no transport header") {
        TransportSlice::Tcp(tcp) => {
            let tag = Passage::tag_of(tcp.source_port(), tcp.sequence_number());
            (Hit::Tcp { port: tcp.destination_port(), flags: TcpFlags::from_wire(tcp.slice()[13]) }, tag)
        }
        TransportSlice::Udp(udp) => {
            (Hit::Udp { port: udp.destination_port() }, Passage::tag_of(udp.source_port(), 0))
        }
        other => panic!("etherparse finds {other:?}"),
    };
    Some(Packet { source, destination, hit, arrival: Arrival::Unknown, passage: Passage { interface: 0, tag } })
}
