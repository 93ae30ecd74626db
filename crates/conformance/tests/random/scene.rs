//! Doors and packets at random, the same ones for the same seed.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use knockd_core::config::Key;
use knockd_core::{
    Arrival, Config, Door, FlagRule, Hit, Packet, Passage, Protocol, Sequence, Step, TcpFlags,
};
use testbed::{Flags, Frame};

/// The server's addresses, which doors without `Target` watch.
pub(crate) const OWN: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1)),
    IpAddr::V4(Ipv4Addr::new(10, 9, 0, 11)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1)),
];
/// Somebody else's address, which some doors have as their `Target`.
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77));
/// Addresses that no door watches.
const UNWATCHED: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(10, 9, 0, 77)),
    IpAddr::V4(Ipv4Addr::new(10, 9, 0, 255)),
    IpAddr::V4(Ipv4Addr::BROADCAST),
    IpAddr::V4(Ipv4Addr::new(224, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
];
/// In seconds: longer than any run, because knockd 0.8 counts whole seconds.
const SEQ_TIMEOUT: u32 = 50_000;

/// Doors, and what is sent to them.
#[derive(Debug)]
pub(crate) struct Scene {
    /// The doors as sections of a configuration.
    pub(crate) config: String,
    /// The same doors.
    pub(crate) doors: Vec<Door>,
    /// The packets of all sources in the order in which they are sent.
    pub(crate) packets: Vec<Packet>,
}

impl Scene {
    /// Makes the scene of a seed with so many sources.
    ///
    /// # Panics
    ///
    /// When it makes doors that are no configuration.
    pub(crate) fn new(seed: u64, sources: u16) -> Self {
        let mut random = Random(seed);
        let config = doors(&mut random);
        let doors = Config::parse(config.as_bytes()).expect("a configuration").config.doors;
        let mut stories: Vec<_> =
            (0..sources).map(|source| story(&mut random, &doors, source).into_iter()).collect();
        let mut turns: Vec<usize> =
            stories.iter().enumerate().flat_map(|(index, story)| vec![index; story.len()]).collect();
        random.shuffle(&mut turns);
        let packets = turns.into_iter().filter_map(|index| stories[index].next()).collect();
        Self { config, doors, packets }
    }
}

/// Returns the packet as a frame from the client to the server.
///
/// # Panics
///
/// When its addresses are of two families.
pub(crate) fn frame(packet: &Packet) -> Vec<u8> {
    let Packet { source, destination, hit, .. } = *packet;
    let frame = match hit {
        Hit::Tcp { port, flags } => Frame::tcp(source, destination, port, Flags(flags.bits())),
        Hit::Udp { port } => Frame::udp(source, destination, port, b"\0"),
    };
    frame.bytes().expect("a frame")
}

/// Writes the packet in the notation of `conformance::hits`.
pub(crate) fn word(packet: &Packet) -> String {
    let hit = match packet.hit {
        Hit::Tcp { port, flags } => {
            let letters = [("S", TcpFlags::SYN), ("A", TcpFlags::ACK), ("F", TcpFlags::FIN)]
                .into_iter()
                .chain([("R", TcpFlags::RST), ("P", TcpFlags::PSH), ("U", TcpFlags::URG)]);
            let set = letters.filter(|(_, flag)| flags.contains(*flag)).map(|(letter, _)| letter);
            format!("{port}/{}", set.collect::<String>())
        }
        Hit::Udp { port } => format!("{port}u"),
    };
    format!("{hit}@{}<{}", packet.destination, packet.source)
}

/// Doors that have much in common: few ports, equal beginnings, and some the reverse of others.
fn doors(random: &mut Random) -> String {
    let steps: Vec<Step> = (0..4 + random.below(5))
        .map(|index| {
            let port = 7000 + u16::try_from(index).expect("a port");
            if random.chance(25) { Step::udp(port) } else { Step::tcp(port) }
        })
        .collect();
    let mut sequences: Vec<Vec<Step>> = Vec::new();
    let mut text = String::new();
    for index in 0..3 + random.below(6) {
        let length = random.pick(&[1, 1, 2, 2, 3, 3, 3, 4, 5]);
        let mut sequence: Vec<Step> = (0..length).map(|_| random.pick(&steps)).collect();
        if !sequences.is_empty() && random.chance(40) {
            let mut other = random.pick(&sequences);
            if random.chance(40) {
                other.reverse();
                sequence = other;
            } else {
                other.truncate(1 + random.below(other.len()));
                sequence.splice(..0, other);
            }
        }
        let spelled: Vec<_> = sequence.iter().map(Step::to_string).collect();
        write!(text, "[d{index}]\nsequence = {}\nseq_timeout = {SEQ_TIMEOUT}\n", spelled.join(",")).unwrap();
        let flags = random.pick(&["", "", "", "syn", "syn", "syn", "syn,!ack", "!rst", "ack", "fin,!ack"]);
        if !flags.is_empty() {
            writeln!(text, "tcpflags = {flags}").unwrap();
        }
        if random.chance(25) {
            let target = random.pick(&[ELSEWHERE, OWN[1], OWN[1], OWN[2]]);
            writeln!(text, "target = {target}").unwrap();
        }
        sequences.push(sequence);
    }
    text
}

/// What one source sends: some knocks at random doors, each with accidents.
fn story(random: &mut Random, doors: &[Door], number: u16) -> Vec<Packet> {
    let [high, low] = number.to_be_bytes();
    let source: IpAddr = if random.chance(15) {
        // Each in a network of its own: of one, only so many lines are logged.
        Ipv6Addr::new(0x2001, 0xdb8, 0, number, 0, 0, 0, 1).into()
    } else {
        Ipv4Addr::new(198, 18, high, low).into()
    };
    let mut packets = Vec::new();
    for _ in 0..=random.below(4) {
        let door = &doors[random.below(doors.len())];
        let Key::Sequence(sequence) = &door.key else { continue };
        for step in sequence.steps() {
            if random.chance(12) {
                let other = &doors[random.below(doors.len())];
                packets.push(stray(random, source, other));
            }
            if random.chance(6) {
                continue;
            }
            let hit = aimed(random, source, door, step);
            packets.push(hit);
            if random.chance(8) {
                packets.push(hit);
            }
        }
    }
    packets
}

/// A packet that the door waits for, if its addresses are of the source's family.
fn aimed(random: &mut Random, source: IpAddr, door: &Door, step: Step) -> Packet {
    let is_possible = |address: &IpAddr| address.is_ipv4() == source.is_ipv4();
    let own: Vec<_> = OWN.into_iter().filter(is_possible).collect();
    let destination = door.target.filter(is_possible).unwrap_or_else(|| random.pick(&own));
    Packet {
        source,
        destination,
        hit: hit(random, step, door.tcp_flags),
        arrival: Arrival::Incoming,
        passage: Passage::default(),
    }
}

/// A packet with something wrong: the port, the flags, or the destination.
fn stray(random: &mut Random, source: IpAddr, door: &Door) -> Packet {
    let sequence = sequence(door);
    let step = sequence.step(random.below(sequence.len())).expect("a step");
    let mut packet = aimed(random, source, door, step);
    match random.below(5) {
        0 => packet.hit = hit(random, step, FlagRule::ANY),
        1 => {
            let all: Vec<_> = OWN.into_iter().chain(UNWATCHED).chain([ELSEWHERE]).collect();
            let possible: Vec<_> = all.into_iter().filter(|it| it.is_ipv4() == source.is_ipv4()).collect();
            packet.destination = random.pick(&possible);
        }
        2 => packet.hit = hit(random, Step { port: step.port + 1000, ..step }, door.tcp_flags),
        3 => {
            let protocol = if step.protocol == Protocol::Tcp { Protocol::Udp } else { Protocol::Tcp };
            packet.hit = hit(random, Step { protocol, ..step }, door.tcp_flags);
        }
        _ => (),
    }
    packet
}

/// A hit of the step with flags that satisfy the rule.
fn hit(random: &mut Random, step: Step, rule: FlagRule) -> Hit {
    let port = step.port;
    match step.protocol {
        Protocol::Udp => Hit::Udp { port },
        Protocol::Tcp => {
            let usual = [TcpFlags::SYN, TcpFlags::SYN, TcpFlags::SYN, TcpFlags::ACK, TcpFlags::RST];
            let any = TcpFlags::from_wire(u8::try_from(random.below(64)).expect("six bits"));
            let mut flags = if random.chance(80) { random.pick(&usual) } else { any };
            flags = flags.union(rule.must_be_set());
            flags = TcpFlags::from_wire(flags.bits() & !rule.must_be_clear().bits());
            Hit::Tcp { port, flags }
        }
    }
}

/// The sequence of a door whose key is one.
///
/// # Panics
///
/// When it has one-time sequences.
pub(crate) fn sequence(door: &Door) -> &Sequence {
    match &door.key {
        Key::Sequence(sequence) => sequence,
        _ => panic!("the door {} has no fixed sequence", door.name),
    }
}

/// The generator `SplitMix64` (Steele, Lea and Flood, 2014): small, and the same on every machine for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number from 0 to `limit` - 1.
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("less than a usize")
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            items.swap(index, self.below(index + 1));
        }
    }
}
