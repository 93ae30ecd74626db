//! From a frame in a capture file to the IP packet in it. With a packet socket, the kernel does all of this.

use knockd_capture::Ignored;
use knockd_core::Arrival;
use pcap_parser::Linktype;

use knockd_cli::control::explain::Unread;

/// `EtherType` numbers (IEEE 802 Numbers, IANA); Linux's cooked headers use them as well.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// VLAN tags: IEEE 802.1Q, and provider bridges.
const TAGS: [u16; 2] = [0x8100, 0x88a8];

/// The bits of a tag that hold the VLAN number; the others are its priority (IEEE 802.1Q).
const VLAN_ID: u16 = 0x0fff;

/// The type of a loopback interface (`linux/if_arp.h`).
const ARPHRD_LOOPBACK: u16 = 772;

/// Link types that the library does not name.
const LINUX_SLL2: Linktype = Linktype(276);
/// `DLT_RAW` as BSD systems number it, written into files by mistake.
const RAW_BSD: [Linktype; 2] = [Linktype(12), Linktype(14)];

/// The contents of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Carried<'a> {
    /// The bytes from the IP header on.
    pub ip_packet: &'a [u8],
    /// Whether the frame belongs to a VLAN interface.
    pub in_vlan: bool,
    /// How it came, where the link layer tells: an Ethernet frame tells no more than whether it was on `lo`.
    pub arrival: Arrival,
    /// A number of the interface, where the link layer tells one from another; otherwise 0.
    pub interface: u32,
}

/// Finds the IP packet in a frame.
///
/// # Errors
/// When there is none.
pub(crate) fn carried(link_type: Linktype, frame: &[u8]) -> Result<Carried<'_>, Unread> {
    let bare = |ip_packet, arrival| Carried { ip_packet, in_vlan: false, arrival, interface: 0 };
    let byte = |at: usize| frame.get(at).copied().unwrap_or_default();
    match link_type {
        // The LINKTYPE_ registry of tcpdump.org describes these headers.
        Linktype::ETHERNET => typed(frame, 12, 14, of_ethernet(frame)),
        // The older of the two does not name the interface, but what comes in and goes out passes two.
        Linktype::LINUX_SLL => typed(frame, 14, 16, cooked(byte(1), [byte(2), byte(3)]))
            .map(|carried| Carried { interface: u32::from(byte(1)) + 1, ..carried }),
        LINUX_SLL2 => typed(frame, 0, 20, cooked(byte(10), [byte(8), byte(9)])).map(|carried| {
            let interface = u32::from_be_bytes([byte(4), byte(5), byte(6), byte(7)]);
            Carried { interface, ..carried }
        }),
        Linktype::RAW | Linktype::IPV4 | Linktype::IPV6 => Ok(bare(frame, Arrival::Unknown)),
        _ if RAW_BSD.contains(&link_type) => Ok(bare(frame, Arrival::Unknown)),
        // The address family before the packet has a different number on every system; the packet itself has its
        // version.
        Linktype::NULL | Linktype::LOOP => {
            Ok(bare(frame.get(4..).ok_or(Ignored::Truncated)?, Arrival::Loopback))
        }
        _ => Err(Unread::LinkType),
    }
}

/// Only on Linux's `lo` are both hardware addresses zero.
fn of_ethernet(frame: &[u8]) -> Arrival {
    if frame.starts_with(&[0; 12]) { Arrival::Loopback } else { Arrival::Unknown }
}

/// The type of a packet and of its interface, as a packet socket tells them (packet(7)).
const fn cooked(packet_type: u8, interface_type: [u8; 2]) -> Arrival {
    match (u16::from_be_bytes(interface_type), packet_type) {
        (ARPHRD_LOOPBACK, _) => Arrival::Loopback,
        (_, 4) => Arrival::Outgoing,
        (_, 3) => Arrival::OtherHost,
        _ => Arrival::Incoming,
    }
}

/// Reads the `EtherType` at `at`, looking through the tags that start at `payload`.
///
/// As in the kernel, a tag with number 0 is only a priority, and any other leads to another interface.
fn typed(frame: &[u8], at: usize, payload: usize, arrival: Arrival) -> Result<Carried<'_>, Unread> {
    let number = |at: usize| {
        let &bytes = frame.get(at..).and_then(|rest| rest.first_chunk()).ok_or(Ignored::Truncated)?;
        Ok::<_, Ignored>(u16::from_be_bytes(bytes))
    };
    let (mut kind, mut start, mut in_vlan) = (number(at)?, payload, false);
    while TAGS.contains(&kind) {
        in_vlan |= number(start)? & VLAN_ID != 0;
        kind = number(start + 2)?;
        start += 4;
    }
    if kind != IPV4 && kind != IPV6 {
        return Err(Ignored::NotIp.into());
    }
    let ip_packet = frame.get(start..).ok_or(Ignored::Truncated)?;
    Ok(Carried { ip_packet, in_vlan, arrival, interface: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: [u8; 3] = [0x45, 1, 2];

    /// A frame made of these parts.
    fn frame(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn the_packet_is_found_behind_the_header_of_every_link_type() {
        let frames = [
            (Linktype::ETHERNET, frame(&[&[7; 12], &[0x08, 0x00], &PACKET]), Arrival::Unknown, 0),
            (Linktype::LINUX_SLL, frame(&[&[7; 14], &[0x86, 0xdd], &PACKET]), Arrival::Incoming, 8),
            (LINUX_SLL2, frame(&[&[0x08, 0x00], &[7; 18], &PACKET]), Arrival::Incoming, 0x0707_0707),
            (Linktype::RAW, PACKET.to_vec(), Arrival::Unknown, 0),
            (Linktype(12), PACKET.to_vec(), Arrival::Unknown, 0),
            (Linktype::IPV4, PACKET.to_vec(), Arrival::Unknown, 0),
            (Linktype::NULL, frame(&[&[2, 0, 0, 0], &PACKET]), Arrival::Loopback, 0),
            (Linktype::LOOP, frame(&[&[0, 0, 0, 30], &PACKET]), Arrival::Loopback, 0),
        ];
        for (link_type, frame, arrival, interface) in &frames {
            let (arrival, interface) = (*arrival, *interface);
            let expected = Ok(Carried { ip_packet: &PACKET, in_vlan: false, arrival, interface });
            assert_eq!(carried(*link_type, frame), expected, "{link_type}");
            for length in 0..frame.len() {
                let cut = carried(*link_type, &frame[..length]);
                assert!(cut != expected && cut != Err(Unread::LinkType), "{link_type} {length}");
            }
        }
        assert_eq!(carried(Linktype(127), &PACKET), Err(Unread::LinkType));
    }

    #[test]
    fn a_priority_tag_is_looked_through_and_a_vlan_is_another_interface() {
        for (tags, in_vlan) in [
            (&[0x81, 0x00, 0xe0, 0x00, 0x08, 0x00][..], false),
            (&[0x81, 0x00, 0x00, 0x05, 0x08, 0x00], true),
            (&[0x88, 0xa8, 0x00, 0x00, 0x81, 0x00, 0x00, 0x05, 0x08, 0x00], true),
        ] {
            let frame = frame(&[&[7; 12], tags, &PACKET]);
            let expected =
                Ok(Carried { ip_packet: &PACKET, in_vlan, arrival: Arrival::Unknown, interface: 0 });
            assert_eq!(carried(Linktype::ETHERNET, &frame), expected, "{tags:?}");
        }
        let endless = [&[7; 12][..], &[0x81, 0x00, 0x00, 0x00].repeat(1000)].concat();
        assert_eq!(carried(Linktype::ETHERNET, &endless), Err(Ignored::Truncated.into()));
    }

    #[test]
    fn how_a_packet_came_is_read_where_the_link_layer_tells() {
        let ethernet = frame(&[&[0; 12], &[0x08, 0x00], &PACKET]);
        assert_eq!(carried(Linktype::ETHERNET, &ethernet).unwrap().arrival, Arrival::Loopback);
        for (packet_type, interface_type, expected) in [
            (0, [0, 1], Arrival::Incoming),
            (3, [0, 1], Arrival::OtherHost),
            (4, [0, 1], Arrival::Outgoing),
            (0, [3, 4], Arrival::Loopback),
        ] {
            let v1 = frame(&[&[0, packet_type], &interface_type, &[7; 10], &[0x08, 0x00], &PACKET]);
            let v2 = frame(&[&[0x08, 0x00], &[7; 6], &interface_type, &[packet_type], &[7; 9], &PACKET]);
            assert_eq!(carried(Linktype::LINUX_SLL, &v1).unwrap().arrival, expected);
            assert_eq!(carried(LINUX_SLL2, &v2).unwrap().arrival, expected);
        }
    }

    #[test]
    fn what_is_not_ip_is_said_to_be_so() {
        let arp = frame(&[&[7; 12], &[0x08, 0x06], &[0; 28]]);
        assert_eq!(carried(Linktype::ETHERNET, &arp), Err(Ignored::NotIp.into()));
    }
}
