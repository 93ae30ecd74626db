//! Copies of one packet: a host sees it once on every interface that it passes.
//!
//! A router sees a packet come in on one interface and leave on another, and a host with a bridge sees it at a port and
//! at the bridge. That is one hit. So the interface that shows a packet first is the one that counts, for a moment;
//! what other interfaces show of it then are copies. On one interface, a packet that comes again is no copy: somebody
//! has sent it again.

use std::net::IpAddr;
use std::time::Duration;

use crate::packet::{Hit, Packet};
use crate::seed::Seed;
use crate::time::Timestamp;

/// How much later a copy may come: a busy machine may read the packets of one interface long after those of another. If
/// the packet is sent again within this time, it counts on the interface that showed it first.
const MOMENT: Duration = Duration::from_secs(5);

/// How many packets are remembered: 24 KiB. One that has the place of another takes it, which at worst counts a copy as
/// a hit.
const PLACES: u16 = 1024;

#[derive(Debug)]
pub(crate) struct Copies {
    /// Empty until a packet tells where it was seen.
    places: Vec<Seen>,
    seed: Seed,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The hash of what copies of one packet share.
    hash: u64,
    interface: u32,
    at: Timestamp,
}

impl Copies {
    pub(crate) const fn new(seed: Seed) -> Self {
        Self { places: Vec::new(), seed }
    }

    /// Says whether another interface has just shown this packet.
    pub(crate) fn is_copy(&self, packet: &Packet, now: Timestamp) -> bool {
        let Some(hash) = self.hash(packet) else { return false };
        self.places.get(place(hash)).is_some_and(|seen| seen.is_first_of(hash, packet, now))
    }

    /// Says the same, and remembers where the packet was seen first.
    pub(crate) fn take(&mut self, packet: &Packet, now: Timestamp) -> bool {
        let Some(hash) = self.hash(packet) else { return false };
        let interface = packet.passage.interface;
        if self.places.is_empty() {
            self.places.resize(PLACES.into(), Seen { hash: 0, interface, at: Timestamp::ZERO });
        }
        let Some(seen) = self.places.get_mut(place(hash)) else { return false };
        let is_copy = seen.is_first_of(hash, packet, now);
        if !is_copy {
            *seen = Seen { hash, interface, at: now };
        }
        is_copy
    }

    /// Returns the hash of what copies of a packet share; `None` if it is not known where it was seen, or what it
    /// looked like.
    fn hash(&self, packet: &Packet) -> Option<u64> {
        let Packet { source, destination, hit, passage, .. } = *packet;
        if passage.interface == 0 || passage.tag == 0 {
            return None;
        }
        let (protocol, port, flags) = match hit {
            Hit::Tcp { port, flags } => (0_u64, port, flags.bits()),
            Hit::Udp { port } => (1, port, 0),
        };
        let what = protocol << 40 | u64::from(flags) << 32 | u64::from(port) << 16 | u64::from(passage.tag);
        if let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) {
            let both = u64::from(source.to_bits()) << 32 | u64::from(destination.to_bits());
            return Some(self.seed.hash_all([both, what]));
        }
        let ([a, b], [c, d]) = (halves(source), halves(destination));
        Some(self.seed.hash_all([a, b, c, d, what]))
    }
}

impl Seen {
    fn is_first_of(&self, hash: u64, packet: &Packet, now: Timestamp) -> bool {
        self.hash == hash && self.interface != packet.passage.interface && now.since(self.at) < MOMENT
    }
}

fn place(hash: u64) -> usize {
    usize::try_from(hash % u64::from(PLACES)).unwrap_or_default()
}

fn halves(address: IpAddr) -> [u64; 2] {
    let octets = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let (halves, _) = octets.as_chunks::<8>();
    [0, 1].map(|index| halves.get(index).copied().map_or(0, u64::from_be_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Arrival, Passage};
    use crate::tcp_flags::TcpFlags;

    fn packet(interface: u32, tag: u16) -> Packet {
        let [source, destination] = [1, 2].map(|host| IpAddr::from([192, 0, 2, host]));
        let hit = Hit::Tcp { port: 7101, flags: TcpFlags::SYN };
        Packet { source, destination, hit, arrival: Arrival::Incoming, passage: Passage { interface, tag } }
    }

    /// Which of these are copies: interface, tag, milliseconds.
    fn copies(seen: &[(u32, u16, u64)]) -> Vec<bool> {
        let mut copies = Copies::new(Seed::new(1, 2));
        let mut take = |&(interface, tag, at): &(u32, u16, u64)| {
            let (packet, now) = (packet(interface, tag), Timestamp::new(Duration::from_millis(at)));
            let is_copy = copies.is_copy(&packet, now);
            assert_eq!(copies.take(&packet, now), is_copy);
            is_copy
        };
        seen.iter().map(&mut take).collect()
    }

    #[test]
    fn what_a_second_and_a_third_interface_show_of_a_packet_are_copies() {
        assert_eq!(copies(&[(1, 7, 0), (2, 7, 1), (3, 7, 4999)]), [false, true, true]);
        assert_eq!(
            copies(&[(1, 7, 0), (2, 8, 1), (2, 7, 5000)]),
            [false; 3],
            "another packet, and a late one"
        );
    }

    #[test]
    fn a_packet_that_is_sent_again_is_a_hit_on_the_interface_that_showed_it_first() {
        assert_eq!(copies(&[(1, 7, 0), (1, 7, 0), (1, 7, 1)]), [false; 3]);
        let again = [(1, 7, 0), (2, 7, 1), (1, 7, 1000), (2, 7, 1001), (2, 7, 3000), (1, 7, 3001)];
        assert_eq!(copies(&again), [false, true, false, true, true, false]);
    }

    #[test]
    fn a_packet_of_which_nothing_is_known_is_no_copy() {
        assert_eq!(copies(&[(0, 7, 0), (1, 7, 0), (0, 7, 0), (1, 0, 0), (2, 0, 0)]), [false; 5]);
    }

    #[test]
    fn packets_that_differ_in_anything_are_no_copies() {
        let first = packet(1, 7);
        let second = packet(2, 7);
        let address = |last| IpAddr::from([192, 0, 2, last]);
        let v6 = |last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
        let others = [
            Packet { source: address(9), ..second },
            Packet { destination: address(9), ..second },
            Packet { source: v6(1), destination: v6(2), ..second },
            Packet { hit: Hit::Tcp { port: 7102, flags: TcpFlags::SYN }, ..second },
            Packet { hit: Hit::Tcp { port: 7101, flags: TcpFlags::ACK }, ..second },
            Packet { hit: Hit::Udp { port: 7101 }, ..second },
        ];
        for other in others {
            let mut copies = Copies::new(Seed::new(1, 2));
            assert!(!copies.take(&first, Timestamp::ZERO));
            assert!(!copies.take(&other, Timestamp::ZERO), "{other:?}");
            assert!(copies.take(&second, Timestamp::ZERO) || place_is_shared(&first, &other));
        }
    }

    /// Two packets may have the same place.
    fn place_is_shared(one: &Packet, other: &Packet) -> bool {
        let copies = Copies::new(Seed::new(1, 2));
        let place_of = |packet| copies.hash(packet).map(place);
        place_of(one) == place_of(other)
    }
}
