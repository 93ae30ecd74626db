//! Capture files, pcap and pcapng, read from start to end in constant memory.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::time::Duration;

use knockd_capture::decode;
use knockd_core::{Packet, Passage};
use pcap_parser::pcapng::Block;
use pcap_parser::traits::PcapNGPacketBlock;
use pcap_parser::{
    InterfaceDescriptionBlock, Linktype, PcapBlockOwned, PcapError, PcapHeader, create_reader,
};

use crate::link_layer::{Carried, carried};
use knockd_cli::control::explain::Unread;

/// How much is read at a time; most packets are far smaller.
const BUFFER_BYTES: usize = 1 << 18;

/// The largest accepted block. tcpdump and Wireshark write at most 262,144 bytes and some options.
const MAX_BLOCK_BYTES: usize = 1 << 24;

/// How many interfaces a section of a pcapng file may have; each takes a few bytes of memory.
const MAX_INTERFACES: usize = 1 << 16;

const MICROSECONDS: u64 = 1_000_000;
const NANOSECONDS: u64 = 1_000_000_000;

/// One packet of a capture file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Captured<'a> {
    /// Its number in the file, from 1, as tcpdump and Wireshark count.
    pub number: u64,
    /// When it was captured, since 1970.
    pub time: Duration,
    /// The contents of its frame.
    pub carried: Result<Carried<'a>, Unread>,
}

impl Captured<'_> {
    /// Decodes the packet as the daemon does.
    ///
    /// # Errors
    /// When it is not a packet that counts for knocking.
    pub fn packet(&self) -> Result<Packet, Unread> {
        match self.carried? {
            Carried { in_vlan: true, .. } => Err(Unread::Vlan),
            Carried { ip_packet, arrival, interface, .. } => {
                let packet = decode(ip_packet)?;
                Ok(Packet { arrival, passage: Passage { interface, ..packet.passage }, ..packet })
            }
        }
    }
}

/// Why a capture file cannot be read to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Damage {
    /// There are no bytes.
    #[error("empty file")]
    Empty,
    /// It starts unlike any capture file.
    #[error(
        "not a pcap or pcapng file, as written by tcpdump -w or Wireshark; if it is compressed, \
         decompress it first"
    )]
    Unknown,
    /// It ends before the first packet.
    #[error("truncated file header")]
    NoHeader,
    /// The system failed to read on.
    #[error("read error after packet {after}")]
    Unreadable {
        /// The last packet before the error.
        after: u64,
    },
    /// The last packet is incomplete.
    #[error("packet {number} is truncated")]
    Truncated {
        /// The number of that packet.
        number: u64,
    },
    /// A packet, or something before it, violates the format.
    #[error("packet {number} is damaged")]
    Damaged {
        /// The number of that packet.
        number: u64,
    },
}

/// Passes every packet of a capture file to `receive`, until that breaks.
///
/// # Errors
/// When the file cannot be read or is damaged; everything before that has been passed on.
pub fn read(
    input: impl Read + Send,
    mut receive: impl FnMut(Captured<'_>) -> ControlFlow<()>,
) -> Result<(), Damage> {
    let mut reader = create_reader(BUFFER_BYTES, Whole(input)).map_err(|error| match error {
        PcapError::Eof => Damage::Empty,
        PcapError::Incomplete(_) => Damage::NoHeader,
        PcapError::ReadError => Damage::Unreadable { after: 0 },
        _ => Damage::Unknown,
    })?;
    let is_pcapng = reader.data().starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]);
    let mut section = Section::default();
    let mut capacity = BUFFER_BYTES;
    let mut number = 1;
    loop {
        if is_pcapng && is_too_short(reader.data()) {
            return Err(Damage::Damaged { number });
        }
        let error = match reader.next() {
            Ok((used, block)) => {
                if let Some(captured) = section.read(&block, number)? {
                    if receive(captured).is_break() {
                        return Ok(());
                    }
                    number += 1;
                }
                reader.consume(used);
                continue;
            }
            Err(error) => error.to_owned_vec(),
        };
        match error {
            PcapError::Eof => return Ok(()),
            PcapError::Incomplete(_) | PcapError::BufferTooSmall => {
                let before = reader.data().len();
                reader.refill().map_err(|_| Damage::Unreadable { after: number - 1 })?;
                if reader.data().len() == before && !reader.reader_exhausted() {
                    // The block does not fit.
                    if capacity >= MAX_BLOCK_BYTES {
                        return Err(Damage::Damaged { number });
                    }
                    capacity *= 2;
                    reader.grow(capacity);
                }
            }
            PcapError::UnexpectedEof => return Err(Damage::Truncated { number }),
            PcapError::ReadError => return Err(Damage::Unreadable { after: number - 1 }),
            _ => return Err(Damage::Damaged { number }),
        }
    }
}

/// Says whether this starts with a block that claims to be shorter than any block. The parser (pcap-parser 0.17)
/// checks that itself, except for process information (type 0x80000001): there it subtracts too much.
fn is_too_short(block: &[u8]) -> bool {
    let length = match *block {
        [0x80, 0, 0, 1, a, b, c, d, ..] => u32::from_be_bytes([a, b, c, d]),
        [1, 0, 0, 0x80, a, b, c, d, ..] => u32::from_le_bytes([a, b, c, d]),
        _ => return false,
    };
    // Its type, and its length twice.
    length < 12
}

/// Fills every buffer, because the parser looks for the whole header in its first read, and a pipe may return less.
struct Whole<R>(R);

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.0.read(rest) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

/// A section of a file, with its own interfaces; a pcap file has only one.
#[derive(Default)]
struct Section {
    interfaces: Vec<CaptureInterface>,
    /// The time of the latest packet, because some packets have none.
    time: Duration,
}

/// What the packets of one interface share.
struct CaptureInterface {
    /// Its place in its section, from 1; a pcap file does not have several, so there it is 0.
    number: u32,
    link_type: Linktype,
    /// Units of time per second.
    resolution: u64,
    /// Seconds to add.
    offset: i64,
}

impl Section {
    /// Reads a block; returns `None` for one without a packet.
    fn read<'a>(
        &mut self,
        block: &'a PcapBlockOwned<'_>,
        number: u64,
    ) -> Result<Option<Captured<'a>>, Damage> {
        let damaged = Damage::Damaged { number };
        let (interface, units, frame) = match block {
            PcapBlockOwned::LegacyHeader(header) => {
                self.interfaces = vec![CaptureInterface::of_file(header)];
                return Ok(None);
            }
            PcapBlockOwned::Legacy(packet) => {
                let interface = self.interfaces.first().ok_or(damaged)?;
                let units = u64::from(packet.ts_sec) * interface.resolution + u64::from(packet.ts_usec);
                (interface, Some(units), packet.data)
            }
            PcapBlockOwned::NG(Block::SectionHeader(_)) => {
                self.interfaces.clear();
                return Ok(None);
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(_)) if self.interfaces.len() >= MAX_INTERFACES => {
                return Err(damaged);
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                let number = u32::try_from(self.interfaces.len() + 1).unwrap_or_default();
                self.interfaces.push(CaptureInterface::of_block(number, interface));
                return Ok(None);
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let index = usize::try_from(packet.if_id).map_err(|_| damaged)?;
                let units = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                (self.interfaces.get(index).ok_or(damaged)?, Some(units), packet.packet_data())
            }
            PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                (self.interfaces.first().ok_or(damaged)?, None, packet.packet_data())
            }
            PcapBlockOwned::NG(_) => return Ok(None),
        };
        self.time = units.map_or(self.time, |units| interface.time(units));
        let carried = carried(interface.link_type, frame).map(|carried| match carried.interface {
            0 => Carried { interface: interface.number, ..carried },
            _ => carried,
        });
        Ok(Some(Captured { number, time: self.time, carried }))
    }
}

impl CaptureInterface {
    fn of_file(header: &PcapHeader) -> Self {
        let resolution = if header.is_nanosecond_precision() { NANOSECONDS } else { MICROSECONDS };
        // The upper bits say whether frames end with a checksum.
        Self { number: 0, link_type: Linktype(header.network.0 & 0xffff), resolution, offset: 0 }
    }

    fn of_block(number: u32, block: &InterfaceDescriptionBlock<'_>) -> Self {
        // if_tsresol: the upper bit selects powers of 2 or of 10.
        let exponent = u32::from(block.if_tsresol & 0x7f);
        let resolution = if block.if_tsresol & 0x80 == 0 {
            10_u64.checked_pow(exponent)
        } else {
            1_u64.checked_shl(exponent)
        };
        let resolution = resolution.unwrap_or(MICROSECONDS);
        Self { number, link_type: block.linktype, resolution, offset: block.if_tsoffset }
    }

    fn time(&self, units: u64) -> Duration {
        let part =
            u128::from(units % self.resolution) * u128::from(NANOSECONDS) / u128::from(self.resolution);
        let seconds = (units / self.resolution).saturating_add_signed(self.offset);
        Duration::new(seconds, u32::try_from(part).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A 32-bit number in the file's byte order.
    type Word = fn(u32) -> [u8; 4];
    const ORDERS: [Word; 2] = [u32::to_le_bytes, u32::to_be_bytes];

    /// Pairs of 16-bit numbers in each byte order.
    fn halves(word: Word, first: u16, second: u16) -> [u8; 4] {
        let is_little = word(1) == [1, 0, 0, 0];
        let half = if is_little { u16::to_le_bytes } else { u16::to_be_bytes };
        let ([a, b], [c, d]) = (half(first), half(second));
        [a, b, c, d]
    }

    /// A pcap file of raw IP packets with these times and bytes.
    fn pcap(word: Word, magic: u32, packets: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let mut file = [word(magic), halves(word, 2, 4), word(0), word(0), word(65535), word(101)].concat();
        for (seconds, part, bytes) in packets {
            let length = u32::try_from(bytes.len()).unwrap();
            file.extend([word(*seconds), word(*part), word(length), word(length)].concat());
            file.extend(*bytes);
        }
        file
    }

    fn block(word: Word, kind: u32, body: &[u8]) -> Vec<u8> {
        let padding = vec![0; body.len().next_multiple_of(4) - body.len()];
        let length = u32::try_from(12 + body.len() + padding.len()).unwrap();
        [&word(kind)[..], &word(length), body, &padding, &word(length)].concat()
    }

    fn section(word: Word) -> Vec<u8> {
        let body = [word(0x1a2b_3c4d), halves(word, 1, 0), word(u32::MAX), word(u32::MAX)].concat();
        block(word, 0x0a0d_0d0a, &body)
    }

    /// An interface of raw IP with this `if_tsresol`, if any.
    fn interface(word: Word, resolution: Option<u8>) -> Vec<u8> {
        let mut body = [halves(word, 101, 0), word(65535)].concat();
        if let Some(resolution) = resolution {
            body.extend([&halves(word, 9, 1)[..], &[resolution, 0, 0, 0], &halves(word, 0, 0)].concat());
        }
        block(word, 1, &body)
    }

    fn enhanced(word: Word, interface: u32, units: u64, bytes: &[u8]) -> Vec<u8> {
        let [high, low] = [units >> 32, units & 0xffff_ffff].map(|half| u32::try_from(half).unwrap());
        let length = u32::try_from(bytes.len()).unwrap();
        let head = [word(interface), word(high), word(low), word(length), word(length)].concat();
        block(word, 6, &[&head, bytes].concat())
    }

    type ReadResult = (Vec<(u64, Duration, Vec<u8>)>, Result<(), Damage>);

    fn read_all(file: &[u8]) -> ReadResult {
        let mut packets = Vec::new();
        let result = read(file, |Captured { number, time, carried }| {
            packets.push((number, time, carried.unwrap().ip_packet.to_vec()));
            ControlFlow::Continue(())
        });
        (packets, result)
    }

    #[test]
    fn pcap_files_of_both_byte_orders_and_both_precisions_are_read() {
        for word in ORDERS {
            for (magic, nanoseconds) in [(0xa1b2_c3d4, 1000), (0xa1b2_3c4d, 1)] {
                let file = pcap(word, magic, &[(100, 7, b"one"), (101, 8, b"three")]);
                let expected = vec![
                    (1, Duration::new(100, 7 * nanoseconds), b"one".to_vec()),
                    (2, Duration::new(101, 8 * nanoseconds), b"three".to_vec()),
                ];
                assert_eq!(read_all(&file), (expected, Ok(())), "{magic:#x}");
            }
        }
    }

    #[test]
    fn a_block_that_is_shorter_than_a_block_can_be_is_damage() {
        for word in ORDERS {
            for kind in [1, 3, 6, 7, 0x8000_0001] {
                let short = [word(kind), word(6)].concat();
                let file =
                    [section(word), interface(word, None), enhanced(word, 0, 0, b"one"), short].concat();
                let (packets, result) = read_all(&[file, vec![0; 100]].concat());
                assert_eq!((packets.len(), result), (1, Err(Damage::Damaged { number: 2 })), "{kind:#x}");
            }
        }
    }

    #[test]
    fn pcapng_files_of_both_byte_orders_and_any_precision_are_read() {
        for word in ORDERS {
            let file = [
                section(word),
                interface(word, None),
                interface(word, Some(9)),
                // A power of 2.
                interface(word, Some(0x8a)),
                enhanced(word, 0, 1_500_000, b"one"),
                // Name resolution, which is skipped.
                block(word, 4, &word(0)),
                enhanced(word, 1, 2_000_000_001, b"two"),
                enhanced(word, 2, 3 * 1024 + 512, b"four"),
                // A simple packet has no time.
                block(word, 3, &[&word(3)[..], b"six"].concat()),
                // Another section starts with its own interfaces.
                section(word),
                interface(word, Some(0)),
                enhanced(word, 0, 9, b"seven"),
            ];
            let (packets, result) = read_all(&file.concat());
            let times: Vec<_> = packets.iter().map(|(_, time, _)| time.as_nanos()).collect();
            assert_eq!(times, [1_500_000_000, 2_000_000_001, 3_500_000_000, 3_500_000_000, 9_000_000_000]);
            let bytes: Vec<_> = packets.into_iter().map(|(.., bytes)| bytes).collect();
            assert_eq!(bytes, [&b"one"[..], b"two", b"four", b"six", b"seven"]);
            assert_eq!(result, Ok(()));
        }
    }

    #[test]
    fn a_packet_of_an_interface_that_is_not_described_is_damaged() {
        let word = ORDERS[0];
        let file = [section(word), interface(word, None), enhanced(word, 1, 0, b"x")].concat();
        assert_eq!(read_all(&file), (vec![], Err(Damage::Damaged { number: 1 })));
    }

    #[test]
    fn a_packet_larger_than_the_buffer_is_read_and_one_that_claims_more_than_any_is_not() {
        let word = ORDERS[0];
        let large = vec![7; 3 * BUFFER_BYTES];
        let file = pcap(word, 0xa1b2_c3d4, &[(1, 0, &large), (2, 0, b"x")]);
        let (packets, result) = read_all(&file);
        assert_eq!((packets.len(), packets[0].2.len(), result), (2, large.len(), Ok(())));

        let mut claims = pcap(word, 0xa1b2_c3d4, &[(1, 0, b"x")]);
        claims.extend([word(1), word(0), word(u32::MAX), word(u32::MAX)].concat());
        claims.extend(vec![0; MAX_BLOCK_BYTES + BUFFER_BYTES]);
        assert_eq!(read_all(&claims).1, Err(Damage::Damaged { number: 2 }));
    }

    #[test]
    fn an_input_that_comes_in_small_pieces_is_read_all_the_same() {
        struct Dripping<'a>(&'a [u8]);
        impl Read for Dripping<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let room = buffer.len().min(1);
                self.0.read(buffer.get_mut(..room).unwrap_or_default())
            }
        }
        let file = pcap(ORDERS[0], 0xa1b2_c3d4, &[(1, 0, b"one"), (2, 0, b"two")]);
        let mut count = 0;
        let result = read(Dripping(&file), |_| {
            count += 1;
            ControlFlow::Continue(())
        });
        assert_eq!((count, result), (2, Ok(())));
    }

    #[test]
    fn whoever_has_seen_enough_can_break_off() {
        let file = pcap(ORDERS[0], 0xa1b2_c3d4, &[(1, 0, b"one"), (2, 0, b"two")]);
        let mut count = 0;
        let result = read(&file[..file.len() - 1], |_| {
            count += 1;
            ControlFlow::Break(())
        });
        assert_eq!((count, result), (1, Ok(())));
    }

    /// Whatever the length, a truncated file still has its complete packets and an error that says where it ends.
    fn check_truncations(file: &[u8]) {
        let (whole, result) = read_all(file);
        assert_eq!(result, Ok(()));
        for length in 0..file.len() {
            let (packets, result) = read_all(&file[..length]);
            assert_eq!(packets, whole[..packets.len()], "{length}");
            match result {
                // Between two packets.
                Ok(()) => {}
                Err(Damage::Truncated { number }) => assert_eq!(number, packets.len() as u64 + 1, "{length}"),
                Err(Damage::Empty) => assert_eq!(length, 0),
                Err(Damage::NoHeader | Damage::Unknown) => assert!(length < 28, "{length}"),
                Err(error) => panic!("{length}: {error}"),
            }
        }
    }

    #[test]
    fn every_truncation_gives_the_packets_before_it() {
        for word in ORDERS {
            check_truncations(&pcap(word, 0xa1b2_c3d4, &[(1, 0, b"one"), (2, 0, b"three"), (3, 0, b"")]));
            let packets = [enhanced(word, 0, 1, b"one"), enhanced(word, 1, 2, b"three")].concat();
            let interfaces = [interface(word, None), interface(word, Some(9))].concat();
            check_truncations(&[section(word), interfaces, packets].concat());
        }
    }

    proptest! {
        #[test]
        fn bytes_that_are_changed_anywhere_do_no_harm(
            is_big in any::<bool>(), is_ng in any::<bool>(), changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..20)
        ) {
            let word = ORDERS[usize::from(is_big)];
            let mut file = if is_ng {
                [section(word), interface(word, Some(9)), enhanced(word, 0, 1, b"one"), enhanced(word, 0, 2, b"two")].concat()
            } else {
                pcap(word, 0xa1b2_c3d4, &[(1, 0, b"one"), (2, 0, b"two")])
            };
            for (at, byte) in changes {
                let at = at % file.len();
                file[at] = byte;
            }
            let mut count = 0;
            let _ = read(&file[..], |captured| {
                count += 1;
                assert_eq!(captured.number, count);
                ControlFlow::Continue(())
            });
            prop_assert!(count <= 10);
        }
    }
}
