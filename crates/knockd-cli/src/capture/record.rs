//! What the decoder process tells the daemon: records of one size, which the daemon checks before it uses them.
//!
//! A compromised decoder can write anything, so every byte is checked: a valid record encodes back to the same bytes,
//! and anything else is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use knockd_core::{Arrival, Hit, Packet, Passage, TcpFlags};

/// The bytes of a record.
///
/// | bytes | of a packet | of anything else |
/// | --- | --- | --- |
/// | 0 | kind: 1 | kind: 2 progress, 3 failed, 4 ready, 5 dropped |
/// | 1 | upper half: 4 or 6, the IP version of both addresses; lower half: how it came, 0 incoming, 1 outgoing, 2 over loopback, 3 for another machine, 4 unknown | 0 |
/// | 2 | 6 or 17: TCP or UDP (IANA, Protocol Numbers) | 0 |
/// | 3 | TCP flags, the upper two bits 0; 0 for UDP | 0 |
/// | 4–5 | destination port, big-endian | 0 |
/// | 6–7 | tag ([`Passage::tag_of`]), big-endian | 0 |
/// | 8–23 | source; an IPv4 address first, then 0 | failed: error number; ready: those of [`Kept`]; dropped: the count's upper and lower half; two bytes each, big-endian, then 0 |
/// | 24–39 | destination, likewise | 0 |
pub type Bytes = [u8; SIZE];

/// The length of a record, in bytes.
pub const SIZE: usize = 40;

/// The most bytes of records sent at once, which wake the daemon once.
pub const BATCH: usize = 512 * SIZE;

const PACKET: u8 = 1;
const PROGRESS: u8 = 2;
const FAILED: u8 = 3;
const READY: u8 = 4;
const DROPPED: u8 = 5;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What the decoder reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record {
    /// A packet arrived.
    Packet(Packet),
    /// The decoder has read packets that it has nothing to say about: it is not stuck.
    Progress,
    /// Packets cannot be read, for the reason with this error number; the decoder ends.
    Failed(u16),
    /// The decoder is about to read, and kept this.
    Ready(Kept),
    /// The kernel dropped this many more packets because they were not read in time.
    Dropped(u32),
}

/// What the decoder could not give up: for each item the error number that says why, or 0 if it gave it up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Kept {
    /// The user that started it.
    pub user: u16,
    /// Sharing its user with other programs, which could stop it: the error that says why there is no other user.
    pub shared_user: u16,
    /// Capabilities.
    pub capabilities: u16,
    /// Access to the file system.
    pub files: u16,
    /// System calls that it does not need.
    pub calls: u16,
}

/// The bytes are not a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a decoder record")]
pub struct Malformed;

impl Record {
    /// Returns the bytes that [`Self::from_bytes`] reads.
    pub fn to_bytes(&self) -> Bytes {
        match self {
            Self::Packet(packet) => packet_to_bytes(packet),
            Self::Progress => join([PROGRESS, 0, 0, 0, 0, 0, 0, 0], [0; 16], [0; 16]),
            Self::Failed(error) => numbers_to_bytes(FAILED, [*error, 0, 0, 0, 0]),
            Self::Ready(Kept { user, shared_user, capabilities, files, calls }) => {
                numbers_to_bytes(READY, [*user, *shared_user, *capabilities, *files, *calls])
            }
            Self::Dropped(count) => {
                let [a, b, c, d] = count.to_be_bytes();
                numbers_to_bytes(DROPPED, [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]), 0, 0, 0])
            }
        }
    }

    /// Reads a record and checks every byte.
    ///
    /// # Errors
    /// When the bytes are not the output of [`Self::to_bytes`] for some record.
    pub fn from_bytes(bytes: &Bytes) -> Result<Self, Malformed> {
        let [kind, ..] = *bytes;
        let record = match kind {
            PACKET => Self::Packet(packet_from_bytes(bytes)?),
            PROGRESS => Self::Progress,
            FAILED => {
                let [error, ..] = numbers_from_bytes(bytes)?;
                Self::Failed(error)
            }
            READY => {
                let [user, shared_user, capabilities, files, calls] = numbers_from_bytes(bytes)?;
                Self::Ready(Kept { user, shared_user, capabilities, files, calls })
            }
            DROPPED => {
                let [high, low, ..] = numbers_from_bytes(bytes)?;
                Self::Dropped(u32::from(high) << 16 | u32::from(low))
            }
            _ => return Err(Malformed),
        };
        // Unused bytes must be zero, as in every written record.
        if record.to_bytes() == *bytes { Ok(record) } else { Err(Malformed) }
    }
}

fn packet_to_bytes(packet: &Packet) -> Bytes {
    let (protocol, port, flags) = match packet.hit {
        Hit::Tcp { port, flags } => (TCP, port, flags.bits()),
        Hit::Udp { port } => (UDP, port, 0),
    };
    // A decoder never has a packet with addresses of two kinds; the daemon would refuse this version.
    let version: u8 = match (packet.source, packet.destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) => 4,
        (IpAddr::V6(_), IpAddr::V6(_)) => 6,
        _ => 0,
    };
    let [high, low] = port.to_be_bytes();
    let arrival: u8 = match packet.arrival {
        Arrival::Incoming => 0,
        Arrival::Outgoing => 1,
        Arrival::Loopback => 2,
        Arrival::OtherHost => 3,
        Arrival::Unknown => 4,
    };
    let [tag_high, tag_low] = packet.passage.tag.to_be_bytes();
    let head = [PACKET, version << 4 | arrival, protocol, flags, high, low, tag_high, tag_low];
    join(head, address_to_bytes(packet.source), address_to_bytes(packet.destination))
}

fn packet_from_bytes(bytes: &Bytes) -> Result<Packet, Malformed> {
    let ([_, first, protocol, flags, high, low, tag_high, tag_low], source, destination) = split(bytes)?;
    let (version, arrival) = (first >> 4, first & 0x0f);
    // The listener knows the interface.
    let passage = Passage { interface: 0, tag: u16::from_be_bytes([tag_high, tag_low]) };
    let port = u16::from_be_bytes([high, low]);
    let hit = match protocol {
        TCP => Hit::Tcp { port, flags: TcpFlags::from_wire(flags) },
        UDP => Hit::Udp { port },
        _ => return Err(Malformed),
    };
    let arrival = match arrival {
        0 => Arrival::Incoming,
        1 => Arrival::Outgoing,
        2 => Arrival::Loopback,
        3 => Arrival::OtherHost,
        4 => Arrival::Unknown,
        _ => return Err(Malformed),
    };
    let address = |bytes: [u8; 16]| match (version, bytes) {
        (4, [a, b, c, d, ..]) => Ok(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
        (6, _) => Ok(IpAddr::V6(Ipv6Addr::from(bytes))),
        _ => Err(Malformed),
    };
    Ok(Packet { source: address(source)?, destination: address(destination)?, hit, arrival, passage })
}

fn address_to_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn numbers_to_bytes(kind: u8, numbers: [u16; 5]) -> Bytes {
    let mut middle = [0; 16];
    for (byte, value) in middle.iter_mut().zip(numbers.into_iter().flat_map(u16::to_be_bytes)) {
        *byte = value;
    }
    join([kind, 0, 0, 0, 0, 0, 0, 0], middle, [0; 16])
}

fn numbers_from_bytes(bytes: &Bytes) -> Result<[u16; 5], Malformed> {
    let (_, middle, _) = split(bytes)?;
    match middle.as_chunks() {
        ([first, second, third, fourth, fifth, ..], _) => {
            Ok([first, second, third, fourth, fifth].map(|number| u16::from_be_bytes(*number)))
        }
        _ => Err(Malformed),
    }
}

/// The three parts of a record: eight single bytes, and room for two addresses.
type Parts = ([u8; 8], [u8; 16], [u8; 16]);

fn join(head: [u8; 8], middle: [u8; 16], tail: [u8; 16]) -> Bytes {
    let mut bytes = [0; SIZE];
    if let Some((first, rest)) = bytes.split_first_chunk_mut()
        && let Some((second, rest)) = rest.split_first_chunk_mut()
        && let Some(third) = rest.first_chunk_mut()
    {
        (*first, *second, *third) = (head, middle, tail);
    }
    bytes
}

fn split(bytes: &Bytes) -> Result<Parts, Malformed> {
    let (head, rest) = bytes.split_first_chunk().ok_or(Malformed)?;
    let (middle, rest) = rest.split_first_chunk().ok_or(Malformed)?;
    Ok((*head, *middle, rest.try_into().map_err(|_| Malformed)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    fn packet(source: &str, destination: &str, hit: Hit) -> Record {
        Record::Packet(Packet {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            hit,
            arrival: Arrival::Incoming,
            passage: Passage { interface: 0, tag: 0x0a0b },
        })
    }

    fn syn() -> Bytes {
        packet("192.0.2.1", "192.0.2.2", Hit::Tcp { port: 7000, flags: TcpFlags::SYN }).to_bytes()
    }

    fn records() -> impl Strategy<Value = Record> {
        let hits = prop_oneof![
            (any::<u16>(), any::<u8>())
                .prop_map(|(port, flags)| Hit::Tcp { port, flags: TcpFlags::from_wire(flags) }),
            any::<u16>().prop_map(|port| Hit::Udp { port }),
        ];
        let addresses = prop_oneof![
            any::<[[u8; 4]; 2]>().prop_map(|pair| pair.map(IpAddr::from)),
            any::<[[u8; 16]; 2]>().prop_map(|pair| pair.map(IpAddr::from)),
        ];
        let arrivals = select(vec![
            Arrival::Incoming,
            Arrival::Outgoing,
            Arrival::Loopback,
            Arrival::OtherHost,
            Arrival::Unknown,
        ]);
        prop_oneof![
            (addresses, hits, arrivals, any::<u16>()).prop_map(
                |([source, destination], hit, arrival, tag)| {
                    let passage = Passage { interface: 0, tag };
                    Record::Packet(Packet { source, destination, hit, arrival, passage })
                }
            ),
            Just(Record::Progress),
            any::<u16>().prop_map(Record::Failed),
            any::<u32>().prop_map(Record::Dropped),
            any::<[u16; 5]>().prop_map(|[user, shared_user, capabilities, files, calls]| Record::Ready(
                Kept { user, shared_user, capabilities, files, calls }
            )),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(record in records()) {
            prop_assert_eq!(Record::from_bytes(&record.to_bytes()), Ok(record));
        }

        #[test]
        fn any_bytes_are_refused_or_a_record_with_these_bytes(bytes: Bytes) {
            if let Ok(record) = Record::from_bytes(&bytes) {
                prop_assert_eq!(record.to_bytes(), bytes);
            }
        }

        /// Random bytes are hardly ever a record; these are one except for a single byte.
        #[test]
        fn a_record_with_one_other_byte_is_refused_or_another_record(
            record in records(), at in 0..SIZE, value: u8
        ) {
            let mut bytes = record.to_bytes();
            bytes[at] = value;
            if let Ok(read) = Record::from_bytes(&bytes) {
                prop_assert_eq!(read.to_bytes(), bytes);
            }
        }
    }

    #[test]
    fn the_layout_is_as_documented() {
        let mut expected = [0; SIZE];
        expected[..8].copy_from_slice(&[1, 0x40, 6, 0x02, 0x1b, 0x58, 0x0a, 0x0b]);
        expected[8..12].copy_from_slice(&[192, 0, 2, 1]);
        expected[24..28].copy_from_slice(&[192, 0, 2, 2]);
        assert_eq!(syn(), expected);
    }

    #[test]
    fn whatever_is_not_as_documented_is_refused() {
        let kinds = [0, 6, 255].map(|kind| (0, kind));
        let versions = [0, 4, 0x50, 255].map(|version| (1, version));
        let protocols = [0, 1, 255].map(|protocol| (2, protocol));
        // Reserved flag bits, an arrival, and the bytes after an IPv4 address.
        let others = [(3, 0x42), (3, 0x82), (1, 0x45), (12, 1), (23, 1), (28, 1), (39, 1)];
        for (at, value) in [&kinds[..], &versions, &protocols, &others].concat() {
            let mut bytes = syn();
            bytes[at] = value;
            assert_eq!(Record::from_bytes(&bytes), Err(Malformed), "byte {at} is {value}");
        }
        let mut udp = packet("::1", "::2", Hit::Udp { port: 1 }).to_bytes();
        udp[3] = 0x02;
        assert_eq!(Record::from_bytes(&udp), Err(Malformed));
        let mixed = packet("192.0.2.1", "::2", Hit::Udp { port: 1 });
        assert_eq!(Record::from_bytes(&mixed.to_bytes()), Err(Malformed));
    }
}
