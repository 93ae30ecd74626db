//! IP packet bytes to [`Packet`]: the only code that reads hostile bytes.
//!
//! It accepts what a kernel would pass to a socket, as far as headers can tell. It ignores checksums, which the
//! network card may not have filled in yet. No input makes it panic or allocate.

use std::net::IpAddr;

use knockd_core::{Arrival, Hit, Packet, Passage, TcpFlags};

/// Protocol numbers of the two transports (IANA, Protocol Numbers).
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// The IPv6 extension headers that are skipped (IANA, IPv6 Extension Header Types). ESP is not among them: it
/// encrypts.
pub(crate) const EXTENSION_HEADERS: [u8; 8] =
    [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS, MOBILITY, HIP, SHIM6];
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// RFC 8200, section 4.1, recommends an order of seven headers; one more than that is skipped.
const MAX_EXTENSION_HEADERS: usize = 8;

/// The bits of an IPv4 flags and offset field that only a fragment has: more fragments, offset (RFC 791, section 3.1).
pub(crate) const IPV4_FRAGMENT_BITS: u16 = 0x3fff;
/// The same for IPv6: offset, more fragments, with two reserved bits between them (RFC 8200, section 4.5).
const IPV6_FRAGMENT_BITS: u16 = 0xfff9;

const MIN_TCP_HEADER: usize = 20;
const MIN_UDP_LENGTH: u16 = 8;

/// Why a packet does not count for knocking.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Ignored {
    /// The version is neither 4 nor 6.
    #[error("not an IP packet")]
    NotIp,
    /// It ends within a header, or a length field says so.
    #[error("truncated header")]
    Truncated,
    /// A header violates its protocol.
    #[error("malformed header")]
    Malformed,
    /// It is part of a packet. This excludes IPv6 atomic fragments (RFC 6946), which are whole.
    #[error("fragment")]
    Fragment,
    /// It carries another protocol, or is encrypted.
    #[error("neither TCP nor UDP")]
    NotTcpOrUdp,
    /// Its routing header names further destinations, so its destination address is only a waypoint.
    #[error("in transit to another destination")]
    OnItsWay,
    /// It has more extension headers than any harmless packet.
    #[error("too many extension headers")]
    TooManyHeaders,
}

/// Decodes a packet that starts with its IP header, as packet sockets of type `SOCK_DGRAM` deliver it on every link
/// type.
///
/// Bytes after the length in the IP header are link padding and are ignored; fewer bytes are fine if the headers are
/// complete. A length of 0 means all bytes: Linux uses it for packets that are too long for the field. How and where it
/// came is left unknown, because the link layer tells that.
///
/// # Errors
///
/// [`Ignored`] says why the packet does not count.
pub fn decode(ip_packet: &[u8]) -> Result<Packet, Ignored> {
    match ip_packet.first().ok_or(Ignored::Truncated)? >> 4 {
        4 => decode_ipv4(ip_packet),
        6 => decode_ipv6(ip_packet),
        _ => Err(Ignored::NotIp),
    }
}

/// Its bytes do not tell how it came.
const fn decoded(source: IpAddr, destination: IpAddr, (hit, tag): (Hit, u16)) -> Packet {
    Packet { source, destination, hit, arrival: Arrival::Unknown, passage: Passage { interface: 0, tag } }
}

/// RFC 791, section 3.1.
fn decode_ipv4(packet: &[u8]) -> Result<Packet, Ignored> {
    let (
        &[version_and_length, _, length_0, length_1, _, _, offset_0, offset_1, _, protocol, _, _],
        addresses,
    ) = packet.split_first_chunk().ok_or(Ignored::Truncated)?;
    let (&source, addresses) = addresses.split_first_chunk::<4>().ok_or(Ignored::Truncated)?;
    let &destination = addresses.first_chunk::<4>().ok_or(Ignored::Truncated)?;

    let header_length = usize::from(version_and_length & 0x0f) * 4;
    if header_length < 20 {
        return Err(Ignored::Malformed);
    }
    let packet = match usize::from(u16::from_be_bytes([length_0, length_1])) {
        0 => packet,
        total_length if total_length < header_length => return Err(Ignored::Malformed),
        total_length => packet.get(..total_length).unwrap_or(packet),
    };
    if u16::from_be_bytes([offset_0, offset_1]) & IPV4_FRAGMENT_BITS != 0 {
        return Err(Ignored::Fragment);
    }
    let payload = packet.get(header_length..).ok_or(Ignored::Truncated)?;
    let hit = decode_transport(protocol, payload)?;
    Ok(decoded(source.into(), destination.into(), hit))
}

/// RFC 8200, section 3.
fn decode_ipv6(packet: &[u8]) -> Result<Packet, Ignored> {
    let (&[_, _, _, _, length_0, length_1, next_header, _], addresses) =
        packet.split_first_chunk().ok_or(Ignored::Truncated)?;
    let (&source, addresses) = addresses.split_first_chunk::<16>().ok_or(Ignored::Truncated)?;
    let (&destination, payload) = addresses.split_first_chunk::<16>().ok_or(Ignored::Truncated)?;

    let payload = match usize::from(u16::from_be_bytes([length_0, length_1])) {
        0 => payload,
        payload_length => payload.get(..payload_length).unwrap_or(payload),
    };
    let (protocol, payload) = skip_extension_headers(next_header, payload)?;
    let hit = decode_transport(protocol, payload)?;
    Ok(decoded(source.into(), destination.into(), hit))
}

/// Returns the number of the first header that is not an extension header, and the bytes from there.
fn skip_extension_headers(mut header: u8, mut rest: &[u8]) -> Result<(u8, &[u8]), Ignored> {
    for position in 0..=MAX_EXTENSION_HEADERS {
        if !EXTENSION_HEADERS.contains(&header) {
            return Ok((header, rest));
        }
        let &[next_header, length, byte_2, byte_3] = rest.first_chunk().ok_or(Ignored::Truncated)?;
        let bytes = match header {
            // RFC 8200, section 4.1: it must be the first.
            HOP_BY_HOP if position > 0 => return Err(Ignored::Malformed),
            // RFC 8200, section 4.4: byte 3 counts the remaining destinations.
            ROUTING if byte_3 > 0 => return Err(Ignored::OnItsWay),
            FRAGMENT if u16::from_be_bytes([byte_2, byte_3]) & IPV6_FRAGMENT_BITS != 0 => {
                return Err(Ignored::Fragment);
            }
            FRAGMENT => 8,
            // RFC 4302, section 2.2: 32-bit words, minus two; the fixed part alone has three.
            AUTHENTICATION if length == 0 => return Err(Ignored::Malformed),
            AUTHENTICATION => (usize::from(length) + 2) * 4,
            _ => (usize::from(length) + 1) * 8,
        };
        rest = rest.get(bytes..).ok_or(Ignored::Truncated)?;
        header = next_header;
    }
    Err(Ignored::TooManyHeaders)
}

/// Also returns the packet's tag.
fn decode_transport(protocol: u8, payload: &[u8]) -> Result<(Hit, u16), Ignored> {
    match protocol {
        TCP => decode_tcp(payload),
        UDP => decode_udp(payload),
        _ => Err(Ignored::NotTcpOrUdp),
    }
}

/// RFC 9293, section 3.1.
fn decode_tcp(segment: &[u8]) -> Result<(Hit, u16), Ignored> {
    let &[from_0, from_1, port_0, port_1, a, b, c, d, _, _, _, _, data_offset, flags, _, _, _, _, _, _] =
        segment.first_chunk::<MIN_TCP_HEADER>().ok_or(Ignored::Truncated)?;
    let header_length = usize::from(data_offset >> 4) * 4;
    if header_length < MIN_TCP_HEADER {
        return Err(Ignored::Malformed);
    }
    if segment.len() < header_length {
        return Err(Ignored::Truncated);
    }
    let tag = Passage::tag_of(u16::from_be_bytes([from_0, from_1]), u32::from_be_bytes([a, b, c, d]));
    Ok((Hit::Tcp { port: u16::from_be_bytes([port_0, port_1]), flags: TcpFlags::from_wire(flags) }, tag))
}

/// RFC 768. A length of 0 belongs to IPv6 jumbograms (RFC 2675), which are never knocks.
fn decode_udp(datagram: &[u8]) -> Result<(Hit, u16), Ignored> {
    let &[from_0, from_1, port_0, port_1, length_0, length_1, _, _] =
        datagram.first_chunk().ok_or(Ignored::Truncated)?;
    if u16::from_be_bytes([length_0, length_1]) < MIN_UDP_LENGTH {
        return Err(Ignored::Malformed);
    }
    let tag = Passage::tag_of(u16::from_be_bytes([from_0, from_1]), 0);
    Ok((Hit::Udp { port: u16::from_be_bytes([port_0, port_1]) }, tag))
}

#[cfg(test)]
mod tests {
    use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket, PacketBuilder, TransportSlice};
    use proptest::prelude::*;

    use super::*;

    /// 192.0.2.1:40000 to 198.51.100.7:7000, SYN with ECE and CWR, four bytes of options.
    #[rustfmt::skip]
    const TCP_OVER_IPV4: [u8; 44] = [
        0x45, 0x00, 0x00, 0x2c, 0x12, 0x34, 0x40, 0x00, 0x40, 0x06, 0x00, 0x00,
        192, 0, 2, 1, 198, 51, 100, 7,
        0x9c, 0x40, 0x1b, 0x58, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 0xc2, 0xfa, 0xf0, 0, 0, 0, 0,
        0x02, 0x04, 0x05, 0xb4,
    ];

    /// The same addresses and port over UDP, with the router alert option (RFC 2113) and one byte of payload.
    #[rustfmt::skip]
    const UDP_OVER_IPV4_WITH_OPTIONS: [u8; 33] = [
        0x46, 0x00, 0x00, 0x21, 0x12, 0x34, 0x00, 0x00, 0x40, 0x11, 0x00, 0x00,
        192, 0, 2, 1, 198, 51, 100, 7,
        0x94, 0x04, 0x00, 0x00,
        0x9c, 0x40, 0x1b, 0x58, 0x00, 0x09, 0, 0,
        0x00,
    ];

    /// `2001:db8::1` to `2001:db8::7`, UDP 7000, one byte of payload.
    #[rustfmt::skip]
    const UDP_OVER_IPV6: [u8; 49] = [
        0x60, 0, 0, 0, 0x00, 0x09, 0x11, 0x40,
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01,
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x07,
        0x9c, 0x40, 0x1b, 0x58, 0x00, 0x09, 0, 0,
        0x00,
    ];

    /// The same addresses, TCP 7000 with SYN and ACK after every extension header that is skipped.
    #[rustfmt::skip]
    const TCP_BEHIND_ALL_EXTENSION_HEADERS: [u8; 128] = [
        0x60, 0, 0, 0, 0x00, 0x58, HOP_BY_HOP, 0x40,
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01,
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x07,
        DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0,
        ROUTING, 0, 1, 4, 0, 0, 0, 0,
        FRAGMENT, 0, 4, 0, 0, 0, 0, 0,
        AUTHENTICATION, 0, 0x00, 0x06, 0xde, 0xad, 0xbe, 0xef,
        MOBILITY, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1,
        HIP, 0, 0, 0, 0, 0, 0, 0,
        SHIM6, 0, 0, 0, 0, 0, 0, 0,
        TCP, 0, 0, 0, 0, 0, 0, 0,
        0x9c, 0x40, 0x1b, 0x58, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x12, 0xfa, 0xf0, 0, 0, 0, 0,
    ];

    fn ipv4(hit: Hit) -> Packet {
        decoded("192.0.2.1".parse().unwrap(), "198.51.100.7".parse().unwrap(), (hit, tag(40000, hit)))
    }

    fn ipv6(hit: Hit) -> Packet {
        decoded("2001:db8::1".parse().unwrap(), "2001:db8::7".parse().unwrap(), (hit, tag(40000, hit)))
    }

    /// The tag of a packet from this port; the sequence number of a TCP segment here is 1.
    fn tag(source_port: u16, hit: Hit) -> u16 {
        Passage::tag_of(source_port, matches!(hit, Hit::Tcp { .. }).into())
    }

    fn fixtures() -> [(&'static [u8], usize, Packet); 4] {
        let udp = Hit::Udp { port: 7000 };
        let syn_ack = TcpFlags::SYN.union(TcpFlags::ACK);
        [
            (&TCP_OVER_IPV4, 44, ipv4(Hit::Tcp { port: 7000, flags: TcpFlags::SYN })),
            (&UDP_OVER_IPV4_WITH_OPTIONS, 32, ipv4(udp)),
            (&UDP_OVER_IPV6, 48, ipv6(udp)),
            (&TCP_BEHIND_ALL_EXTENSION_HEADERS, 128, ipv6(Hit::Tcp { port: 7000, flags: syn_ack })),
        ]
    }

    fn changed<const N: usize>(packet: &[u8; N], changes: &[(usize, u8)]) -> [u8; N] {
        let mut packet = *packet;
        for &(offset, byte) in changes {
            packet[offset] = byte;
        }
        packet
    }

    #[test]
    fn real_packets_are_read() {
        for (bytes, _, packet) in fixtures() {
            assert_eq!(decode(bytes), Ok(packet));
        }
    }

    #[test]
    fn a_packet_cut_within_its_headers_is_ignored_and_one_cut_behind_them_is_read() {
        for (bytes, headers, packet) in fixtures() {
            for length in 0..bytes.len() {
                let expected = if length < headers { Err(Ignored::Truncated) } else { Ok(packet) };
                assert_eq!(decode(&bytes[..length]), expected, "{length} of {} bytes", bytes.len());
            }
        }
    }

    #[test]
    fn link_padding_is_not_read_as_headers() {
        let short = changed(&TCP_OVER_IPV4, &[(3, 39)]);
        assert_eq!(decode(&short), Err(Ignored::Truncated));
        let short = changed(&UDP_OVER_IPV6, &[(5, 7)]);
        assert_eq!(decode(&short), Err(Ignored::Truncated));
        let mut padded = TCP_OVER_IPV4.to_vec();
        padded.extend([0xff; 6]);
        assert_eq!(decode(&padded), decode(&TCP_OVER_IPV4));
    }

    #[test]
    fn a_length_of_zero_means_the_whole_buffer() {
        assert_eq!(decode(&changed(&TCP_OVER_IPV4, &[(2, 0), (3, 0)])), decode(&TCP_OVER_IPV4));
        assert_eq!(decode(&changed(&UDP_OVER_IPV6, &[(4, 0), (5, 0)])), decode(&UDP_OVER_IPV6));
    }

    #[test]
    fn a_length_beyond_the_buffer_is_no_fault_of_the_packet() {
        assert_eq!(decode(&changed(&TCP_OVER_IPV4, &[(2, 0xff)])), decode(&TCP_OVER_IPV4));
        assert_eq!(decode(&changed(&UDP_OVER_IPV6, &[(4, 0xff)])), decode(&UDP_OVER_IPV6));
    }

    #[test]
    fn headers_that_contradict_their_protocol_are_malformed() {
        let malformed = Err(Ignored::Malformed);
        assert_eq!(decode(&changed(&TCP_OVER_IPV4, &[(0, 0x44)])), malformed, "IHL below 5");
        assert_eq!(
            decode(&changed(&TCP_OVER_IPV4, &[(3, 19)])),
            malformed,
            "total length below the header's"
        );
        assert_eq!(decode(&changed(&TCP_OVER_IPV4, &[(32, 0x40)])), malformed, "data offset below 5");
        assert_eq!(decode(&changed(&UDP_OVER_IPV6, &[(45, 7)])), malformed, "UDP length below 8");
        assert_eq!(decode(&changed(&UDP_OVER_IPV6, &[(45, 0)])), malformed, "UDP length of a jumbogram");
        let packet = &TCP_BEHIND_ALL_EXTENSION_HEADERS;
        assert_eq!(decode(&changed(packet, &[(40, HOP_BY_HOP)])), malformed, "hop-by-hop options not first");
        assert_eq!(decode(&changed(packet, &[(73, 0)])), malformed, "authentication header below 12 bytes");
    }

    #[test]
    fn a_tcp_header_longer_than_its_packet_is_truncated() {
        assert_eq!(decode(&changed(&TCP_OVER_IPV4, &[(32, 0x70)])), Err(Ignored::Truncated));
    }

    #[test]
    fn two_packets_have_another_tag_if_source_port_or_sequence_number_differ() {
        let tag = |bytes: &[u8]| decode(bytes).unwrap().passage.tag;
        let first = tag(&TCP_OVER_IPV4);
        // The time to live of a copy that a router passes on is one less.
        assert_eq!(tag(&changed(&TCP_OVER_IPV4, &[(8, 0x3f)])), first);
        for (offset, byte) in [(20, 0x9d), (21, 0x41), (24, 1), (25, 1), (26, 1), (27, 2)] {
            assert_ne!(tag(&changed(&TCP_OVER_IPV4, &[(offset, byte)])), first, "byte {offset}");
        }
        assert_ne!(tag(&changed(&UDP_OVER_IPV6, &[(41, 0x41)])), tag(&UDP_OVER_IPV6));
        for packet in fixtures().map(|(_, _, packet)| packet) {
            assert_ne!(packet.passage.tag, 0);
        }
    }

    #[test]
    fn fragments_are_ignored_but_not_atomic_ones_or_other_bits_of_the_field() {
        for (offset, byte) in [(6, 0x20), (6, 0x01), (7, 0x01), (6, 0x60)] {
            assert_eq!(decode(&changed(&TCP_OVER_IPV4, &[(offset, byte)])), Err(Ignored::Fragment));
        }
        let reserved = changed(&TCP_OVER_IPV4, &[(6, 0xc0)]);
        assert_eq!(decode(&reserved), decode(&TCP_OVER_IPV4));
        let packet = &TCP_BEHIND_ALL_EXTENSION_HEADERS;
        for (offset, byte) in [(66, 0x01), (67, 0x01), (67, 0x08)] {
            assert_eq!(decode(&changed(packet, &[(offset, byte)])), Err(Ignored::Fragment));
        }
        assert_eq!(decode(&changed(packet, &[(67, 0)])), decode(packet), "reserved bits");
    }

    #[test]
    fn a_packet_with_routing_segments_left_is_still_on_its_way() {
        let packet = changed(&TCP_BEHIND_ALL_EXTENSION_HEADERS, &[(59, 1)]);
        assert_eq!(decode(&packet), Err(Ignored::OnItsWay));
    }

    #[test]
    fn other_protocols_and_versions_are_ignored() {
        for protocol in [1, 4, 41, 47, 50, 51, 58, 59, 132] {
            assert_eq!(decode(&changed(&TCP_OVER_IPV4, &[(9, protocol)])), Err(Ignored::NotTcpOrUdp));
        }
        for protocol in [1, 4, 41, 47, 50, 58, 59, 132] {
            assert_eq!(decode(&changed(&UDP_OVER_IPV6, &[(6, protocol)])), Err(Ignored::NotTcpOrUdp));
        }
        for version in [0x05, 0x15, 0x55, 0xf5] {
            assert_eq!(decode(&changed(&TCP_OVER_IPV4, &[(0, version)])), Err(Ignored::NotIp));
        }
    }

    #[test]
    fn the_walk_over_extension_headers_ends() {
        let with_headers = |count: usize| {
            let mut packet = UDP_OVER_IPV6[..40].to_vec();
            packet[4..7].copy_from_slice(&[0, 0, DESTINATION_OPTIONS]);
            for index in 1..=count {
                let next = if index == count { UDP } else { DESTINATION_OPTIONS };
                packet.extend([next, 0, 1, 4, 0, 0, 0, 0]);
            }
            packet.extend(&UDP_OVER_IPV6[40..]);
            decode(&packet)
        };
        assert_eq!(with_headers(8), decode(&UDP_OVER_IPV6));
        assert_eq!(with_headers(9), Err(Ignored::TooManyHeaders));
        assert_eq!(with_headers(5000), Err(Ignored::TooManyHeaders));
    }

    /// The result of etherparse; `None` if it finds no transport header, or a header that it does not skip.
    fn oracle(bytes: &[u8]) -> Option<Packet> {
        let sliced = LaxSlicedPacket::from_ip(bytes).ok()?;
        let (source, destination) = match sliced.net? {
            LaxNetSlice::Ipv4(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            LaxNetSlice::Ipv6(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            LaxNetSlice::Arp(_) => return None,
        };
        let tagged = match sliced.transport? {
            TransportSlice::Tcp(tcp) => {
                let tag = Passage::tag_of(tcp.source_port(), tcp.sequence_number());
                let mut flags = TcpFlags::NONE;
                for (set, flag) in [
                    (tcp.fin(), TcpFlags::FIN),
                    (tcp.syn(), TcpFlags::SYN),
                    (tcp.rst(), TcpFlags::RST),
                    (tcp.psh(), TcpFlags::PSH),
                    (tcp.ack(), TcpFlags::ACK),
                    (tcp.urg(), TcpFlags::URG),
                ] {
                    if set {
                        flags = flags.union(flag);
                    }
                }
                (Hit::Tcp { port: tcp.destination_port(), flags }, tag)
            }
            TransportSlice::Udp(udp) => {
                (Hit::Udp { port: udp.destination_port() }, Passage::tag_of(udp.source_port(), 0))
            }
            _ => return None,
        };
        Some(decoded(source, destination, tagged))
    }

    /// Says whether etherparse stopped at one of the three extension headers that it knows but does not skip.
    fn oracle_stopped_early(bytes: &[u8]) -> bool {
        LaxSlicedPacket::from_ip(bytes).ok().and_then(|sliced| sliced.net).is_some_and(|net| {
            net.ip_payload_ref()
                .is_some_and(|payload| [MOBILITY, HIP, SHIM6].map(IpNumber).contains(&payload.ip_number))
        })
    }

    fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        prop_oneof![
            any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (a.into(), b.into())),
            any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (a.into(), b.into())),
        ]
    }

    /// A packet built by etherparse.
    fn built(packet: Packet, payload: &[u8]) -> Vec<u8> {
        let builder = match (packet.source, packet.destination) {
            (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64),
            (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64),
            mixed => panic!("{mixed:?}"),
        };
        let mut bytes = Vec::new();
        match packet.hit {
            Hit::Udp { port } => builder.udp(9, port).write(&mut bytes, payload).unwrap(),
            Hit::Tcp { port, flags } => {
                let mut tcp = etherparse::TcpHeader::new(9, port, 1, 1024);
                tcp.fin = flags.contains(TcpFlags::FIN);
                tcp.syn = flags.contains(TcpFlags::SYN);
                tcp.rst = flags.contains(TcpFlags::RST);
                tcp.psh = flags.contains(TcpFlags::PSH);
                tcp.ack = flags.contains(TcpFlags::ACK);
                tcp.urg = flags.contains(TcpFlags::URG);
                builder.tcp_header(tcp).write(&mut bytes, payload).unwrap();
            }
        }
        bytes
    }

    fn hits() -> impl Strategy<Value = Hit> {
        (any::<u16>(), any::<Option<u8>>()).prop_map(|(port, flags)| match flags {
            None => Hit::Udp { port },
            Some(bits) => Hit::Tcp { port, flags: TcpFlags::from_wire(bits) },
        })
    }

    /// Bytes that pass the first checks often enough to reach the last ones.
    fn plausible_bytes() -> impl Strategy<Value = Vec<u8>> {
        let header = prop_oneof![Just(TCP), Just(UDP), prop::sample::select(EXTENSION_HEADERS.as_slice())];
        let version = prop_oneof![Just(0x45), Just(0x46), Just(0x60), any::<u8>()];
        (version, header, prop::collection::vec(prop_oneof![Just(0), 0..12_u8, any::<u8>()], 0..160))
            .prop_map(|(version, header, mut bytes)| {
                if let Some(byte) = bytes.get_mut(0) {
                    *byte = version;
                }
                let offset = if version >> 4 == 4 { 9 } else { 6 };
                if let Some(byte) = bytes.get_mut(offset) {
                    *byte = header;
                }
                bytes
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn what_etherparse_builds_is_read(
            (source, destination) in addresses(),
            hit in hits(),
            payload in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let packet = decoded(source, destination, (hit, tag(9, hit)));
            prop_assert_eq!(decode(&built(packet, &payload)), Ok(packet));
        }

        #[test]
        fn whatever_is_read_is_read_so_by_etherparse(bytes in plausible_bytes()) {
            if let Ok(packet) = decode(&bytes) && !oracle_stopped_early(&bytes) {
                prop_assert_eq!(oracle(&bytes), Some(packet));
            }
        }

        #[test]
        fn a_damaged_packet_is_read_as_etherparse_reads_it_or_not_at_all(
            fixture in 0_usize..4,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut bytes = fixtures()[fixture].0.to_vec();
            for (index, byte) in damage {
                *index.get_mut(&mut bytes) = byte;
            }
            if let Ok(packet) = decode(&bytes) && !oracle_stopped_early(&bytes) {
                prop_assert_eq!(oracle(&bytes), Some(packet));
            }
        }
    }
}
