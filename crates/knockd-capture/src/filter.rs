//! Compiles the wishes of doors and the scanner guard into a classic BPF program, so the kernel drops all other
//! packets.
//!
//! The program may pass more than is wanted, never less: the matcher decides again.

mod assembler;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use knockd_core::{Interest, LocalPorts, Protocol, TcpFlags};
use socket2::{SockFilter, Socket};

use self::assembler::{
    AND, Assembler, Instruction, JUMP_IF_ANY_BIT, JUMP_IF_AT_LEAST, JUMP_IF_EQUAL, JUMP_IF_GREATER,
    LOAD_BYTE, LOAD_BYTE_AT_X, LOAD_HALF, LOAD_HALF_AT_X, LOAD_SAVED, LOAD_WORD, Label, RETURN, SAVE, SET_X,
    SET_X_TO_IPV4_HEADER_LENGTH,
};
use crate::decode::{EXTENSION_HEADERS, IPV4_FRAGMENT_BITS, TCP, UDP};
use crate::link::Interface;

/// More addresses than this in one IP version are not checked: checking would take longer than copying the packet.
const MAX_ADDRESSES: usize = 32;

/// Up to this many port ranges are searched linearly; more are halved first.
const MAX_LINEAR_RANGES: usize = 8;

/// Offsets that load the kernel's knowledge of a packet: `SKF_AD_OFF` plus `SKF_AD_*` (`linux/filter.h`).
const KERNEL_PROTOCOL: u32 = 0xffff_f000;
const KERNEL_PACKET_TYPE: u32 = 0xffff_f004;
const KERNEL_VLAN_TAG: u32 = 0xffff_f02c;
const KERNEL_VLAN_TAG_PRESENT: u32 = 0xffff_f030;

/// Values of `KERNEL_PROTOCOL` (`linux/if_ether.h`).
const ETHERTYPE_IPV4: u32 = 0x0800;
const ETHERTYPE_IPV6: u32 = 0x86dd;
/// The value of `KERNEL_PACKET_TYPE` for an outgoing packet: `PACKET_OUTGOING` (`linux/if_packet.h`).
const OUTGOING: u32 = 4;
/// The lower 12 bits of a tag are the VLAN number (IEEE 802.1Q); the others are a priority.
const VLAN_ID: u32 = 0x0fff;

/// The first byte of a packet: its version, then the length of an IPv4 header in words (RFC 791, RFC 8200).
const IPV4_WITHOUT_OPTIONS: u32 = 0x45;
/// A bit of the version that is set in 6 and clear in 4.
const ONLY_IN_IPV6: u32 = 0x20;

/// Offsets in the headers, and header lengths: RFC 791, RFC 8200, RFC 9293, RFC 768.
const IPV4_HEADER_LENGTH: u32 = 20;
const IPV4_OFFSET: u32 = 6;
const IPV4_PROTOCOL: u32 = 9;
const IPV4_DESTINATION: u32 = 16;
const IPV6_NEXT_HEADER: u32 = 6;
const IPV6_DESTINATION: u32 = 24;
const IPV6_HEADER_LENGTH: u32 = 40;
const DESTINATION_PORT: u32 = 2;
const TCP_FLAGS: u32 = 13;

/// How many bytes of a packet to keep: none, all.
const REJECT: u32 = 0;
const ACCEPT: u32 = u32::MAX;

/// A classic BPF program for a packet socket of type `SOCK_DGRAM`.
#[derive(Clone, Debug)]
pub struct Program {
    wanted: Wanted,
}

impl Program {
    /// The longest program that the kernel accepts (`BPF_MAXINSNS`, `linux/bpf_common.h`).
    pub const MAX_INSTRUCTIONS: usize = 4096;

    /// The longest program that every kernel accepts.
    ///
    /// A program is charged to its socket, after translation, against `net.core.optmem_max`: 20480 bytes before Linux
    /// 6.8, and both programs count while one replaces the other. This length fits twice.
    pub const SHORT: usize = 800;

    /// Creates the program that accepts every packet on this interface that one of the interests wants.
    ///
    /// An interest without a target wants the interface's own addresses. A loopback interface accepts only incoming
    /// packets, because everything that goes out there comes in again; other interfaces accept both directions. A
    /// packet with a VLAN tag belongs to another interface; one with only a priority tag (VLAN 0) is accepted.
    /// Without interests, nothing is accepted.
    pub fn new(interests: &[Interest], interface: &Interface, ipv4_only: bool) -> Self {
        Self::guarded(interests, interface, None, ipv4_only)
    }

    /// Makes a program that also accepts what the scanner guard counts as a stray, if it is on: for that it has to
    /// know the ports in use ([`knockd_core::LocalPorts`]).
    ///
    /// These are packets to a watched address and a port that is not in use: of TCP those with SYN and without ACK, or
    /// with neither ACK nor RST; of UDP, if an interest is, all.
    pub fn guarded(
        interests: &[Interest],
        interface: &Interface,
        guard: Option<&LocalPorts>,
        ipv4_only: bool,
    ) -> Self {
        Self { wanted: Wanted::new(interests, interface, guard, ipv4_only) }
    }

    /// Lets a packet socket receive only what the program accepts, and returns how many unwanted ports it accepts.
    ///
    /// That is 0 unless there are too many ports: then some between them are accepted as well.
    pub(crate) fn attach(&self, socket: &Socket) -> io::Result<u32> {
        let attach = |limit| {
            let Code { instructions, surplus } = self.code(limit);
            let instruction = |i: &Instruction| SockFilter::new(i.code, i.if_true, i.if_false, i.operand);
            socket.attach_filter(&instructions.iter().map(instruction).collect::<Vec<_>>())?;
            Ok(surplus)
        };
        attach(Self::MAX_INSTRUCTIONS).or_else(|error: io::Error| match error.kind() {
            io::ErrorKind::OutOfMemory => attach(Self::SHORT),
            _ => Err(error),
        })
    }

    /// Writes the program with at most this many instructions.
    fn code(&self, limit: usize) -> Code {
        let mut instructions = self.wanted.assemble();
        let mut wanted = self.wanted.clone();
        // This ends: with one range in each list, everything else is about half as long as the shorter limit.
        while instructions.len() > limit {
            // No range takes less than one instruction.
            for ranges in [&mut wanted.tcp, &mut wanted.tcp_strays, &mut wanted.udp] {
                *ranges = merge_nearest(ranges, limit.min(ranges.len() * 7 / 8));
            }
            instructions = wanted.assemble();
        }
        let ports = |wanted: &Wanted| count(&wanted.tcp) + count(&wanted.tcp_strays) + count(&wanted.udp);
        Code { instructions, surplus: ports(&wanted) - ports(&self.wanted) }
    }
}

/// Counts the ports in ranges that do not overlap.
fn count(ranges: &[RangeInclusive<u16>]) -> u32 {
    ranges.iter().map(|range| u32::from(range.end() - range.start()) + 1).sum()
}

/// A finished program.
struct Code {
    instructions: Vec<Instruction>,
    /// How many unwanted ports it accepts.
    surplus: u32,
}

/// The interests, arranged in the way that the program looks at a packet.
#[derive(Clone, Debug)]
struct Wanted {
    loopback: bool,
    ipv4: Vec<Ipv4Addr>,
    ipv6: Vec<Ipv6Addr>,
    /// Flags that every TCP interest wants set, and those that it wants clear.
    flags_set: u8,
    flags_clear: u8,
    /// Ports, as ascending ranges with gaps between them.
    tcp: Vec<RangeInclusive<u16>>,
    /// Where connection attempts over TCP are wanted whatever flags the interests want; none without a guard.
    tcp_strays: Vec<RangeInclusive<u16>>,
    udp: Vec<RangeInclusive<u16>>,
}

impl Wanted {
    fn new(
        interests: &[Interest],
        interface: &Interface,
        guard: Option<&LocalPorts>,
        ipv4_only: bool,
    ) -> Self {
        let ports = |protocol| {
            interests
                .iter()
                .map(|i| i.step)
                .filter(move |step| step.protocol == protocol)
                .map(|step| step.port..=step.port)
        };
        let rules = || interests.iter().filter(|i| i.step.protocol == Protocol::Tcp).map(|i| i.flags);
        let own_wanted = interests.iter().any(|interest| interest.target.is_none());
        let own = interface.addresses.iter().copied().filter(|_| own_wanted);
        let addresses: BTreeSet<IpAddr> = interests.iter().filter_map(|i| i.target).chain(own).collect();
        let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => ipv4.push(address),
                IpAddr::V6(_) if ipv4_only => {}
                IpAddr::V6(address) => ipv6.push(address),
            }
        }
        let udp_strays = guard.filter(|_| ports(Protocol::Udp).next().is_some());
        Self {
            loopback: interface.loopback,
            ipv4,
            ipv6,
            flags_set: rules().map(|rule| rule.must_be_set().bits()).reduce(|a, b| a & b).unwrap_or(0),
            flags_clear: rules().map(|rule| rule.must_be_clear().bits()).reduce(|a, b| a & b).unwrap_or(0),
            tcp: joined(ports(Protocol::Tcp)),
            // Strays with the flags that a door wants are found at its port, too, so that they are looked for once.
            tcp_strays: joined(
                unused(guard, Protocol::Tcp).chain(ports(Protocol::Tcp).filter(|_| guard.is_some())),
            ),
            udp: joined(ports(Protocol::Udp).chain(unused(udp_strays, Protocol::Udp))),
        }
    }

    /// Writes the program from end to start; read it from the bottom up.
    fn assemble(&self) -> Vec<Instruction> {
        let mut code = Assembler::default();
        let reject = code.push(RETURN, REJECT);
        let mut accept = code.push(RETURN, ACCEPT);
        // Checked last, because most packets never get here.
        let mut tagged = code.branch(JUMP_IF_ANY_BIT, VLAN_ID, reject, accept);
        tagged = code.step(LOAD_WORD, KERNEL_VLAN_TAG, tagged);
        accept = code.branch(JUMP_IF_EQUAL, 0, accept, tagged);
        accept = code.step(LOAD_WORD, KERNEL_VLAN_TAG_PRESENT, accept);
        if self.loopback {
            accept = code.branch(JUMP_IF_EQUAL, OUTGOING, reject, accept);
            accept = code.step(LOAD_WORD, KERNEL_PACKET_TYPE, accept);
        }

        // The bytes of a fragment may look like a wanted port. In IPv6 they follow an extension header, which the
        // decoder handles.
        let fragment = code.branch(JUMP_IF_ANY_BIT, u32::from(IPV4_FRAGMENT_BITS), reject, accept);
        let ipv4 = code.step(LOAD_HALF, IPV4_OFFSET, fragment);
        let version = code.branch(JUMP_IF_ANY_BIT, ONLY_IN_IPV6, accept, reject);
        let ipv6 = code.step(LOAD_BYTE, 0, version);
        accept = code.branch(JUMP_IF_EQUAL, ETHERTYPE_IPV6, ipv6, reject);
        accept = code.branch(JUMP_IF_EQUAL, ETHERTYPE_IPV4, ipv4, accept);
        accept = code.step(LOAD_WORD, KERNEL_PROTOCOL, accept);

        // From here on up, X is the offset of the transport header.
        let udp = code.port_search(&self.udp, accept, reject);
        let udp = code.step(LOAD_HALF_AT_X, DESTINATION_PORT, udp);
        let flags_looked_at = self.flags_set | self.flags_clear;
        let check_flags = |code: &mut Assembler, then| {
            let is_right = code.branch(JUMP_IF_EQUAL, u32::from(self.flags_set), then, reject);
            code.step(AND, u32::from(flags_looked_at), is_right)
        };
        // Few ports are found sooner than the flags are loaded, and most packets have others; many are not.
        let ports_first =
            self.tcp.len() <= MAX_LINEAR_RANGES && self.tcp_strays.is_empty() && flags_looked_at != 0;
        let mut found = accept;
        if ports_first {
            found = check_flags(&mut code, found);
            found = code.step(LOAD_BYTE_AT_X, TCP_FLAGS, found);
        }
        let mut tcp = code.port_search(&self.tcp, found, reject);
        tcp = code.step(LOAD_HALF_AT_X, DESTINATION_PORT, tcp);
        if flags_looked_at != 0 && !ports_first {
            tcp = check_flags(&mut code, tcp);
        }
        if !self.tcp_strays.is_empty() {
            let mut stray = code.port_search(&self.tcp_strays, accept, reject);
            stray = code.step(LOAD_HALF_AT_X, DESTINATION_PORT, stray);
            let [syn, rst, ack] =
                [TcpFlags::SYN, TcpFlags::RST, TcpFlags::ACK].map(|flag| u32::from(flag.bits()));
            let no_syn = code.branch(JUMP_IF_ANY_BIT, rst, tcp, stray);
            let no_ack = code.branch(JUMP_IF_ANY_BIT, syn, stray, no_syn);
            tcp = code.branch(JUMP_IF_ANY_BIT, ack, tcp, no_ack);
        }
        if !self.tcp_strays.is_empty() || flags_looked_at != 0 && !ports_first {
            tcp = code.step(LOAD_BYTE_AT_X, TCP_FLAGS, tcp);
        }

        // After an IPv6 extension header, the decoder looks for the ports.
        let mut ipv6 = reject;
        for header in EXTENSION_HEADERS {
            ipv6 = code.branch(JUMP_IF_EQUAL, u32::from(header), accept, ipv6);
        }
        ipv6 = code.branch(JUMP_IF_EQUAL, u32::from(UDP), udp, ipv6);
        ipv6 = code.branch(JUMP_IF_EQUAL, u32::from(TCP), tcp, ipv6);
        ipv6 = code.step(LOAD_BYTE, IPV6_NEXT_HEADER, ipv6);
        ipv6 = code.step(SET_X, IPV6_HEADER_LENGTH, ipv6);
        ipv6 = code.ipv6_destination(&self.ipv6, ipv6, reject);

        let mut ipv4 = code.branch(JUMP_IF_EQUAL, u32::from(UDP), udp, reject);
        ipv4 = code.branch(JUMP_IF_EQUAL, u32::from(TCP), tcp, ipv4);
        ipv4 = code.step(LOAD_BYTE, IPV4_PROTOCOL, ipv4);
        let mut with_options = code.ipv4_destination(&self.ipv4, ipv4, reject);
        with_options = code.step(SET_X_TO_IPV4_HEADER_LENGTH, 0, with_options);
        let mut without = code.step(SET_X, IPV4_HEADER_LENGTH, ipv4);
        // Nearly all packets have another port, whatever their protocol; searching few ports twice costs the others
        // little.
        let ports = joined(self.tcp.iter().chain(&self.udp).cloned());
        if ports.len() <= MAX_LINEAR_RANGES && self.tcp_strays.is_empty() {
            without = code.port_search(&ports, without, reject);
            without = code.step(LOAD_HALF, IPV4_HEADER_LENGTH + DESTINATION_PORT, without);
        }
        without = code.ipv4_destination(&self.ipv4, without, reject);

        let mut start = code.branch(JUMP_IF_EQUAL, ETHERTYPE_IPV6, ipv6, reject);
        start = code.branch(JUMP_IF_EQUAL, ETHERTYPE_IPV4, with_options, start);
        start = code.step(LOAD_WORD, KERNEL_PROTOCOL, start);
        // Most packets show at once that they are IPv4 without options; whether the link agrees is checked last.
        start = code.branch(JUMP_IF_EQUAL, IPV4_WITHOUT_OPTIONS, without, start);
        code.step(LOAD_BYTE, 0, start);
        code.finish()
    }
}

/// The ports that the guard wants to see.
fn unused(guard: Option<&LocalPorts>, protocol: Protocol) -> impl Iterator<Item = RangeInclusive<u16>> {
    guard.into_iter().flat_map(move |ports| ports.unused(protocol))
}

/// Orders ranges of ports and joins those that overlap or touch, so that they ascend and are apart from each other.
fn joined(ranges: impl Iterator<Item = RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    let mut ranges: Vec<_> = ranges.collect();
    ranges.sort_unstable_by_key(|range| *range.start());
    let mut joined: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// Bridges the narrowest gaps until `keep` ranges, but at least one, are left.
fn merge_nearest(ranges: &[RangeInclusive<u16>], keep: usize) -> Vec<RangeInclusive<u16>> {
    let mut gaps: Vec<(u16, u16)> = ranges
        .iter()
        .zip(ranges.iter().skip(1))
        .map(|(left, right)| (right.start() - left.end(), *right.start()))
        .collect();
    gaps.sort_unstable();
    let bridged: BTreeSet<u16> =
        gaps.into_iter().take(ranges.len().saturating_sub(keep)).map(|(_, right)| right).collect();

    let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if bridged.contains(range.start()) => *last = *last.start()..=*range.end(),
            _ => merged.push(range.clone()),
        }
    }
    merged
}

/// The searches, each of which ends at one of two places in the program.
impl Assembler {
    /// Compares A, a port, with ascending ranges.
    fn port_search(&mut self, ranges: &[RangeInclusive<u16>], accept: Label, reject: Label) -> Label {
        let (left, right) = ranges.split_at(ranges.len() / 2);
        if let Some(middle) = right.first()
            && ranges.len() > MAX_LINEAR_RANGES
        {
            let right = self.port_search(right, accept, reject);
            let left = self.port_search(left, accept, reject);
            return self.branch(JUMP_IF_AT_LEAST, u32::from(*middle.start()), right, left);
        }
        let (accept, reject) = (self.near(accept), self.near(reject));
        ranges.iter().rev().fold(reject, |next, range| {
            let (first, last) = (u32::from(*range.start()), u32::from(*range.end()));
            if first == last {
                self.branch(JUMP_IF_EQUAL, first, accept, next)
            } else {
                let inside = self.branch(JUMP_IF_GREATER, last, next, accept);
                self.branch(JUMP_IF_AT_LEAST, first, inside, reject)
            }
        })
    }

    fn ipv4_destination(&mut self, addresses: &[Ipv4Addr], accept: Label, reject: Label) -> Label {
        if addresses.is_empty() {
            return reject;
        }
        if addresses.len() > MAX_ADDRESSES {
            return accept;
        }
        let compare = addresses
            .iter()
            .fold(reject, |next, address| self.branch(JUMP_IF_EQUAL, address.to_bits(), accept, next));
        self.step(LOAD_WORD, IPV4_DESTINATION, compare)
    }

    fn ipv6_destination(&mut self, addresses: &[Ipv6Addr], accept: Label, reject: Label) -> Label {
        if addresses.is_empty() {
            return reject;
        }
        if addresses.len() > MAX_ADDRESSES {
            return accept;
        }
        let compare = addresses.iter().fold(reject, |next, address| {
            let octets = address.octets();
            let (words, _) = octets.as_chunks::<4>();
            // The last word is compared first: it varies most.
            (0..).zip(words).fold(accept, |matched, (index, word)| {
                let test = self.branch(JUMP_IF_EQUAL, u32::from_be_bytes(*word), matched, next);
                self.step(LOAD_SAVED, index, test)
            })
        });
        // The kernel turns a load from the packet into eleven instructions, and one from the scratch memory into one.
        (0..4).fold(compare, |next, index| {
            let save = self.step(SAVE, index, next);
            self.step(LOAD_WORD, IPV6_DESTINATION + 4 * index, save)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use etherparse::{PacketBuilder, TcpHeader};
    use knockd_core::{FlagRule, Hit, Packet, Step, TcpFlags};
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::assembler::JUMP;
    use super::*;
    use crate::decode::decode;

    const INCOMING: u32 = 0;

    /// The program at its full length.
    fn unguarded(interests: &[Interest], interface: &Interface, ipv4_only: bool) -> Code {
        guarded(interests, interface, None, ipv4_only)
    }

    fn guarded(
        interests: &[Interest],
        interface: &Interface,
        guard: Option<&LocalPorts>,
        ipv4_only: bool,
    ) -> Code {
        Program::guarded(interests, interface, guard, ipv4_only).code(Program::MAX_INSTRUCTIONS)
    }

    /// What the kernel shows a filter.
    struct Frame {
        bytes: Vec<u8>,
        protocol: u32,
        packet_type: u32,
        vlan_tag: Option<u16>,
    }

    impl Frame {
        fn incoming(bytes: Vec<u8>) -> Self {
            let protocol = if bytes.first().is_some_and(|byte| byte >> 4 == 6) { 0x86dd } else { 0x0800 };
            Self { bytes, protocol, packet_type: INCOMING, vlan_tag: None }
        }

        fn load(&self, offset: u32, size: usize) -> Option<u32> {
            match offset {
                KERNEL_PROTOCOL => return Some(self.protocol),
                KERNEL_PACKET_TYPE => return Some(self.packet_type),
                KERNEL_VLAN_TAG => return Some(self.vlan_tag.unwrap_or(0xffff).into()),
                KERNEL_VLAN_TAG_PRESENT => return Some(self.vlan_tag.is_some().into()),
                _ => {}
            }
            let bytes = self.bytes.get(offset as usize..)?.get(..size)?;
            Some(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
        }
    }

    /// Runs a program as the kernel does (Documentation/networking/filter.rst); a load beyond the packet rejects it.
    fn accepts(program: &Code, frame: &Frame) -> bool {
        let (mut a, mut x, mut next, mut saved) = (0, 0, 0, [None; 16]);
        loop {
            let Instruction { code, if_true, if_false, operand: k } = program.instructions[next];
            next += 1;
            let loaded = match code {
                LOAD_WORD => frame.load(k, 4),
                LOAD_HALF => frame.load(k, 2),
                LOAD_BYTE => frame.load(k, 1),
                LOAD_HALF_AT_X => frame.load(x + k, 2),
                LOAD_BYTE_AT_X => frame.load(x + k, 1),
                LOAD_SAVED => saved[k as usize],
                AND => Some(a & k),
                _ => Some(a),
            };
            let Some(loaded) = loaded else { return false };
            a = loaded;
            let mut branch = |test| next += usize::from(if test { if_true } else { if_false });
            match code {
                SAVE => saved[k as usize] = Some(a),
                SET_X => x = k,
                SET_X_TO_IPV4_HEADER_LENGTH => match frame.load(k, 1) {
                    Some(byte) => x = (byte & 0x0f) * 4,
                    None => return false,
                },
                JUMP => next += k as usize,
                JUMP_IF_EQUAL => branch(a == k),
                JUMP_IF_GREATER => branch(a > k),
                JUMP_IF_AT_LEAST => branch(a >= k),
                JUMP_IF_ANY_BIT => branch(a & k != 0),
                RETURN => return k > 0,
                LOAD_WORD | LOAD_HALF | LOAD_BYTE | LOAD_HALF_AT_X | LOAD_BYTE_AT_X | LOAD_SAVED | AND => {}
                _ => panic!("operation {code:#x} is not modelled"),
            }
        }
    }

    fn interface(addresses: &[&str], loopback: bool) -> Interface {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let (alternative_names, labels) = (Vec::new(), Vec::new());
        let name = "test0".to_owned();
        Interface { name, index: 1, addresses, up: true, loopback, master: None, alternative_names, labels }
    }

    fn eth() -> Interface {
        interface(&["192.0.2.1", "2001:db8::1", "fe80::1"], false)
    }

    const fn any_flags(step: Step) -> Interest {
        Interest { step, flags: FlagRule::ANY, target: None }
    }

    fn with_flags(port: u16, flags: FlagRule) -> Interest {
        Interest { step: Step::tcp(port), flags, target: None }
    }

    fn bytes(destination: &str, hit: Hit) -> Vec<u8> {
        let builder = match destination.parse().unwrap() {
            IpAddr::V4(address) => PacketBuilder::ipv4([203, 0, 113, 9], address.octets(), 64),
            IpAddr::V6(address) => PacketBuilder::ipv6([0xfd; 16], address.octets(), 64),
        };
        let mut bytes = Vec::new();
        match hit {
            Hit::Udp { port } => builder.udp(9, port).write(&mut bytes, &[0]).unwrap(),
            Hit::Tcp { port, flags } => {
                builder.tcp_header(TcpHeader::new(9, port, 1, 1)).write(&mut bytes, &[]).unwrap();
                let offset = bytes.len() - 20 + 13;
                bytes[offset] = flags.bits();
            }
        }
        bytes
    }

    fn tcp(destination: &str, port: u16, flags: TcpFlags) -> Frame {
        Frame::incoming(bytes(destination, Hit::Tcp { port, flags }))
    }

    fn syn(destination: &str, port: u16) -> Frame {
        tcp(destination, port, TcpFlags::SYN)
    }

    fn udp(destination: &str, port: u16) -> Frame {
        Frame::incoming(bytes(destination, Hit::Udp { port }))
    }

    /// Adds four bytes of no-operation options to an IPv4 header; the total length becomes 0, for the whole buffer.
    fn add_ipv4_option(bytes: &mut Vec<u8>) {
        bytes[0] = 0x46;
        bytes[2..4].fill(0);
        bytes.splice(20..20, [1; 4]);
    }

    /// Inserts an extension header after an IPv6 header; the payload length becomes 0, for the whole buffer.
    fn add_extension_header(bytes: &mut Vec<u8>, header: u8) {
        let next = std::mem::replace(&mut bytes[6], header);
        bytes[4..6].fill(0);
        // Only the authentication header counts 32-bit words and has more than eight bytes.
        let (length, size) = if header == 51 { (2, 16) } else { (0, 8) };
        bytes.splice(40..40, [next, length].into_iter().chain([0; 14]).take(size));
    }

    /// What the matcher wants of a packet.
    fn wants(interests: &[Interest], interface: &Interface, packet: &Packet) -> bool {
        interests.iter().any(|interest| {
            interest.step == packet.hit.step()
                && match packet.hit {
                    Hit::Tcp { flags, .. } => interest.flags.accepts(flags),
                    Hit::Udp { .. } => true,
                }
                && interest.target.map_or_else(
                    || interface.addresses.contains(&packet.destination),
                    |target| target == packet.destination,
                )
        })
    }

    /// What the scanner guard wants of a packet.
    fn is_stray(
        interests: &[Interest],
        interface: &Interface,
        guard: Option<&LocalPorts>,
        packet: &Packet,
    ) -> bool {
        let is_watched = |interest: &Interest| match interest.target {
            Some(target) => target == packet.destination,
            None => interface.addresses.contains(&packet.destination),
        };
        let has_udp = interests.iter().any(|interest| interest.step.protocol == Protocol::Udp);
        let shows_a_scan = |guard: &LocalPorts| match packet.hit {
            Hit::Tcp { flags, .. } => {
                let (syn, ack, rst) = (TcpFlags::SYN, TcpFlags::ACK, TcpFlags::RST);
                !guard.is_in_use(packet.hit.step())
                    && !flags.contains(ack)
                    && (flags.contains(syn) || !flags.contains(rst))
            }
            Hit::Udp { .. } => has_udp && !guard.is_in_use(packet.hit.step()),
        };
        guard.is_some_and(shows_a_scan) && interests.iter().any(is_watched)
    }

    /// UDP ports 53 and 5353 are bound, those from 32768 on are ephemeral; something listens on TCP ports 80 and 40000.
    fn guard() -> LocalPorts {
        LocalPorts::new(32768, [Step::udp(53), Step::tcp(40000), Step::udp(5353), Step::tcp(80)])
    }

    #[test]
    fn a_wanted_packet_is_accepted_in_both_ip_versions_and_others_are_not() {
        let program = unguarded(&[any_flags(Step::tcp(7000)), any_flags(Step::udp(53))], &eth(), false);
        for address in ["192.0.2.1", "2001:db8::1", "fe80::1"] {
            assert!(accepts(&program, &syn(address, 7000)));
            assert!(accepts(&program, &udp(address, 53)));
            assert!(!accepts(&program, &syn(address, 53)));
            assert!(!accepts(&program, &udp(address, 7000)));
        }
        for address in ["192.0.2.2", "2001:db8::2", "2001:db8:0:1::1", "2001:db9::1", "fe80::1:0:0:1"] {
            assert!(!accepts(&program, &syn(address, 7000)), "{address}");
        }
    }

    #[test]
    fn own_addresses_are_only_wanted_by_interests_without_target() {
        let target = Some("198.51.100.7".parse().unwrap());
        let aimed = Interest { target, ..any_flags(Step::tcp(7000)) };
        let program = unguarded(&[aimed], &eth(), false);
        assert!(accepts(&program, &syn("198.51.100.7", 7000)));
        assert!(!accepts(&program, &syn("192.0.2.1", 7000)));
        let program = unguarded(&[aimed, any_flags(Step::tcp(1))], &eth(), false);
        assert!(accepts(&program, &syn("198.51.100.7", 7000)));
        assert!(accepts(&program, &syn("192.0.2.1", 1)));
    }

    #[test]
    fn without_interests_or_addresses_nothing_is_accepted() {
        let frames = || [syn("192.0.2.1", 7000), syn("2001:db8::1", 7000), udp("192.0.2.1", 0)];
        let deaf = unguarded(&[], &eth(), false);
        let unnumbered = unguarded(&[any_flags(Step::tcp(7000))], &interface(&[], false), false);
        for frame in frames() {
            assert!(!accepts(&deaf, &frame));
            assert!(!accepts(&unnumbered, &frame));
        }
    }

    #[test]
    fn ipv6_is_rejected_when_only_ipv4_is_wanted() {
        let program = unguarded(&[any_flags(Step::tcp(7000))], &eth(), true);
        assert!(accepts(&program, &syn("192.0.2.1", 7000)));
        assert!(!accepts(&program, &syn("2001:db8::1", 7000)));
    }

    #[test]
    fn flags_that_all_tcp_interests_share_are_checked_and_udp_does_not_matter() {
        let syn_only = FlagRule::ANY.and_set(TcpFlags::SYN).and_clear(TcpFlags::ACK);
        let fin_too = syn_only.and_set(TcpFlags::FIN);
        let interests = [with_flags(1, syn_only), with_flags(2, fin_too), any_flags(Step::udp(3))];
        let program = unguarded(&interests, &eth(), false);
        assert!(accepts(&program, &syn("192.0.2.1", 1)));
        assert!(!accepts(&program, &tcp("192.0.2.1", 1, TcpFlags::FIN)));
        assert!(!accepts(&program, &tcp("2001:db8::1", 1, TcpFlags::SYN.union(TcpFlags::ACK))));
        assert!(accepts(&program, &udp("192.0.2.1", 3)));
        let program = unguarded(&[with_flags(1, syn_only), any_flags(Step::tcp(2))], &eth(), false);
        assert!(accepts(&program, &tcp("192.0.2.1", 2, TcpFlags::NONE)));
    }

    #[test]
    fn with_the_guard_connection_attempts_are_accepted_at_every_port_not_in_use_whatever_flags_the_doors_want()
     {
        let syn_ack = TcpFlags::SYN.union(TcpFlags::ACK);
        for rule in [FlagRule::ANY, FlagRule::ANY.and_set(TcpFlags::SYN), FlagRule::ANY.and_set(syn_ack)] {
            let program = guarded(&[with_flags(7000, rule)], &eth(), Some(&guard()), false);
            for (bits, expected) in [
                (0x02, true),
                (0xc2, true),
                (0, true),
                (0x01, true),
                (0x29, true),
                (0x06, true),
                (0x03, true),
            ]
            .into_iter()
            .chain([0x10, 0x11, 0x04, 0x14, 0x12, 0x18].map(|bits| (bits, false)))
            {
                let flags = TcpFlags::from_wire(bits);
                for port in [0, 53, 6999, 7001, 65535] {
                    assert_eq!(accepts(&program, &tcp("192.0.2.1", port, flags)), expected, "{flags:?}");
                    assert_eq!(accepts(&program, &tcp("2001:db8::1", port, flags)), expected, "{flags:?}");
                    assert!(!accepts(&program, &tcp("192.0.2.2", port, flags)));
                }
                for port in [80, 40000] {
                    assert!(!accepts(&program, &tcp("192.0.2.1", port, flags)), "{port}: {flags:?}");
                }
                let is_hit = rule.accepts(flags);
                assert_eq!(
                    accepts(&program, &tcp("192.0.2.1", 7000, flags)),
                    expected || is_hit,
                    "{flags:?}"
                );
            }
        }
    }

    #[test]
    fn a_door_at_a_port_on_which_something_listens_sees_what_it_wants_there() {
        let rule = FlagRule::ANY.and_set(TcpFlags::SYN).and_clear(TcpFlags::FIN);
        for rule in [FlagRule::ANY, rule] {
            let program = guarded(&[with_flags(80, rule)], &eth(), Some(&guard()), false);
            for bits in 0..=u8::MAX {
                let flags = TcpFlags::from_wire(bits);
                if rule.accepts(flags) {
                    assert!(accepts(&program, &tcp("192.0.2.1", 80, flags)), "{flags:?}");
                }
                assert!(!accepts(&program, &tcp("192.0.2.1", 40000, flags)), "{flags:?}");
            }
        }
    }

    #[test]
    fn with_the_guard_udp_is_accepted_at_ports_not_in_use_if_a_door_uses_udp() {
        let doors = [any_flags(Step::tcp(1)), any_flags(Step::udp(5353)), any_flags(Step::udp(40000))];
        let program = guarded(&doors, &eth(), Some(&guard()), false);
        assert_eq!(program.surplus, 0);
        for port in 0..=u16::MAX {
            let expected = [5353, 40000].contains(&port) || (port < 32768 && port != 53);
            assert_eq!(accepts(&program, &udp("192.0.2.1", port)), expected, "{port}");
        }
        let without_udp = guarded(&doors[..1], &eth(), Some(&guard()), false);
        assert!((0..=u16::MAX).all(|port| !accepts(&without_udp, &udp("192.0.2.1", port))));
    }

    #[test]
    fn with_the_guard_and_very_many_bound_ports_no_stray_is_missed() {
        let even = || (0..16384).map(|port| port * 2);
        let local_ports = LocalPorts::new(32768, even().map(Step::udp).chain(even().map(Step::tcp)));
        let program = guarded(&[any_flags(Step::udp(1))], &eth(), Some(&local_ports), false);
        assert!(program.surplus > 0);
        assert!(program.instructions.len() <= Program::MAX_INSTRUCTIONS);
        let seen = |protocol, frame: fn(&str, u16) -> Frame| {
            local_ports.unused(protocol).flatten().all(|port| accepts(&program, &frame("192.0.2.1", port)))
        };
        assert!(seen(Protocol::Udp, udp) && seen(Protocol::Tcp, syn));
    }

    #[test]
    fn a_frame_of_a_vlan_is_rejected_and_one_with_a_priority_tag_is_not() {
        let program = unguarded(&[any_flags(Step::tcp(7000))], &eth(), false);
        for (tag, expected) in [(0, true), (0xe000, true), (5, false), (0xe005, false), (0x0fff, false)] {
            let frame = Frame { vlan_tag: Some(tag), ..syn("192.0.2.1", 7000) };
            assert_eq!(accepts(&program, &frame), expected, "{tag:#06x}");
        }
    }

    #[test]
    fn packets_that_go_out_count_except_on_loopback() {
        let outgoing = || Frame { packet_type: OUTGOING, ..syn("192.0.2.1", 7000) };
        let interests = [any_flags(Step::tcp(7000))];
        assert!(accepts(&unguarded(&interests, &eth(), false), &outgoing()));
        let loopback = unguarded(&interests, &interface(&["192.0.2.1"], true), false);
        assert!(!accepts(&loopback, &outgoing()));
        assert!(accepts(&loopback, &syn("192.0.2.1", 7000)));
    }

    #[test]
    fn fragments_other_protocols_and_other_ethertypes_are_rejected() {
        let program = unguarded(&[any_flags(Step::tcp(7000))], &eth(), false);
        for (offset, byte) in [(6, 0x20), (6, 0x01), (7, 0x01), (9, 1)] {
            let mut frame = syn("192.0.2.1", 7000);
            frame.bytes[offset] = byte;
            assert!(!accepts(&program, &frame));
        }
        let mut frame = syn("2001:db8::1", 7000);
        frame.bytes[6] = 58;
        assert!(!accepts(&program, &frame));
        for (protocol, address) in [
            (0x0806, "192.0.2.1"),
            (0x8100, "192.0.2.1"),
            (0x88a8, "192.0.2.1"),
            (ETHERTYPE_IPV6, "192.0.2.1"),
            (ETHERTYPE_IPV4, "2001:db8::1"),
        ] {
            assert!(!accepts(&program, &Frame { protocol, ..syn(address, 7000) }));
        }
    }

    #[test]
    fn extension_headers_leave_the_decision_to_the_decoder_if_the_address_is_wanted() {
        let program = unguarded(&[any_flags(Step::tcp(7000))], &eth(), false);
        for header in EXTENSION_HEADERS {
            let mut frame = syn("2001:db8::1", 1);
            frame.bytes[6] = header;
            assert!(accepts(&program, &frame));
            let mut frame = syn("2001:db8::2", 7000);
            frame.bytes[6] = header;
            assert!(!accepts(&program, &frame));
        }
    }

    #[test]
    fn ports_are_found_behind_ipv4_options() {
        let program = unguarded(&[any_flags(Step::tcp(7000))], &eth(), false);
        for (port, expected) in [(7000, true), (7001, false)] {
            let mut frame = syn("192.0.2.1", port);
            add_ipv4_option(&mut frame.bytes);
            assert_eq!(accepts(&program, &frame), expected);
        }
    }

    #[test]
    fn with_very_many_addresses_they_are_not_checked() {
        let aimed = |last| Interest {
            target: Some(Ipv4Addr::new(198, 51, 100, last).into()),
            ..any_flags(Step::tcp(7000))
        };
        let few: Vec<_> = (1..=32).map(aimed).collect();
        let program = unguarded(&few, &eth(), false);
        assert!((1..=32).all(|last| accepts(&program, &syn(&format!("198.51.100.{last}"), 7000))));
        assert!(!accepts(&program, &syn("198.51.100.33", 7000)));
        let many: Vec<_> = (1..=33).map(aimed).collect();
        assert!(accepts(&unguarded(&many, &eth(), false), &syn("198.51.100.200", 7000)));
    }

    #[test]
    fn every_port_of_a_large_program_is_judged_rightly() {
        let (odd, steps): (Vec<u16>, Vec<Interest>) =
            (0..400).map(|i| (i * 163 + i % 3, any_flags(Step::udp(i * 163 + i % 3)))).unzip();
        let program = unguarded(&steps, &eth(), false);
        assert_eq!(program.surplus, 0);
        for port in 0..=u16::MAX {
            assert_eq!(accepts(&program, &udp("192.0.2.1", port)), odd.contains(&port), "{port}");
        }
    }

    #[test]
    fn a_whole_range_of_ports_costs_no_more_than_two() {
        let all: Vec<_> = (0..=u16::MAX).map(|port| any_flags(Step::tcp(port))).collect();
        let program = unguarded(&all, &eth(), false);
        assert_eq!(program.surplus, 0);
        let two = unguarded(&[any_flags(Step::tcp(1)), any_flags(Step::tcp(3))], &eth(), false);
        assert_eq!(program.instructions.len(), two.instructions.len());
        assert!([0, 1, 32768, 65535].iter().all(|port| accepts(&program, &syn("192.0.2.1", *port))));
    }

    #[test]
    fn too_many_ports_make_a_program_that_is_short_enough_and_says_that_it_is_not_exact() {
        // A linear congruential generator with a full period: all values differ, in no particular order.
        let ports = |count| {
            std::iter::successors(Some(1_u16), |port| Some(port.wrapping_mul(25173).wrapping_add(13849)))
                .take(count)
        };
        for (count, limit) in [
            (1_000, Program::SHORT),
            (30_000, Program::SHORT),
            (2_000, Program::MAX_INSTRUCTIONS),
            (10_000, Program::MAX_INSTRUCTIONS),
            (30_000, Program::MAX_INSTRUCTIONS),
        ] {
            let interests: Vec<_> =
                ports(count).flat_map(|port| [Step::tcp(port), Step::udp(!port)]).map(any_flags).collect();
            let program = Program::new(&interests, &eth(), false).code(limit);
            let accepted = |hit: fn(&str, u16) -> Frame| {
                (0..=u16::MAX).filter(|&port| accepts(&program, &hit("192.0.2.1", port))).count()
            };
            assert_eq!(accepted(syn) + accepted(udp), 2 * count + program.surplus as usize);
            assert!(program.surplus > 0);
            assert!(program.instructions.len() <= limit);
            assert!(program.instructions.len() > limit / 2, "merged more than needed");
            for port in ports(count) {
                assert!(accepts(&program, &syn("2001:db8::1", port)));
                assert!(accepts(&program, &udp("192.0.2.1", !port)));
            }
        }
    }

    #[test]
    fn ranges_are_joined_when_they_overlap_or_touch() {
        let ranges = [40..=50, 7..=7, 1..=3, 4..=5, 45..=47, 50..=60, 65534..=65535, 65535..=65535, 7..=7];
        assert_eq!(joined(ranges.into_iter()), [1..=5, 7..=7, 40..=60, 65534..=65535]);
    }

    #[test]
    fn the_nearest_ports_are_merged_first() {
        let merged = merge_nearest(&[1..=1, 3..=3, 10..=20, 30..=30, 32..=32], 3);
        assert_eq!(merged, [1..=3, 10..=20, 30..=32]);
        assert_eq!(merge_nearest(&[1..=1, 3..=3], 0), [1..=3]);
        assert_eq!(merge_nearest(&[], 0), []);
    }

    #[test]
    fn the_kernel_takes_the_smallest_and_the_largest_program() {
        let socket = socket2::Socket::from(UdpSocket::bind("127.0.0.1:0").unwrap());
        let many: Vec<_> = (0..=u16::MAX).step_by(3).map(|port| any_flags(Step::tcp(port))).collect();
        for interests in [&[][..], &[any_flags(Step::tcp(1))], &many] {
            for guard in [None, Some(&guard())] {
                let loopback = interface(&["127.0.0.1", "::1"], true);
                let program = Program::guarded(interests, &loopback, guard, false);
                let surplus = program.attach(&socket).unwrap();
                assert_eq!(surplus > 0, interests.len() > 1, "{surplus}");
            }
        }
    }

    fn hits() -> impl Strategy<Value = Hit> {
        (select(vec![0, 1, 2, 3, 80, 81, 7000, 65535]), any::<Option<u8>>()).prop_map(|(port, flags)| {
            match flags {
                None => Hit::Udp { port },
                Some(bits) => Hit::Tcp { port, flags: TcpFlags::from_wire(bits) },
            }
        })
    }

    fn interests(max: usize) -> impl Strategy<Value = Vec<Interest>> {
        let target = prop_oneof![
            3 => Just(None),
            1 => select(vec!["198.51.100.7", "2001:db8::7"]).prop_map(|address| address.parse().ok()),
        ];
        let port = prop_oneof![select(vec![0, 1, 2, 3, 80, 81, 7000, 65535]), any::<u16>()];
        let flags = (any::<u8>(), any::<u8>()).prop_map(|(set, clear)| {
            FlagRule::ANY
                .and_set(TcpFlags::from_wire(set & 0x12))
                .and_clear(TcpFlags::from_wire(clear & 0x14))
        });
        let interest = (port, any::<bool>(), flags, target).prop_map(|(port, is_tcp, flags, target)| {
            let protocol = if is_tcp { Protocol::Tcp } else { Protocol::Udp };
            Interest { step: Step { port, protocol }, flags, target }
        });
        prop::collection::vec(interest, 0..max)
    }

    fn guards() -> impl Strategy<Value = Option<LocalPorts>> {
        let port = prop_oneof![select(vec![1, 2, 80]), any::<u16>()];
        let step = (port, any::<bool>())
            .prop_map(|(port, is_tcp)| if is_tcp { Step::tcp(port) } else { Step::udp(port) });
        let ports = prop::collection::vec(step, 0..20);
        let ephemeral_from = select(vec![0, 2, 1024, 32768, 65535]);
        prop::option::of((ephemeral_from, ports).prop_map(|(from, ports)| LocalPorts::new(from, ports)))
    }

    /// A packet to one of the addresses in the interests, intact or with a few bytes changed.
    fn packets() -> impl Strategy<Value = Vec<u8>> {
        let addresses =
            vec!["192.0.2.1", "2001:db8::1", "198.51.100.7", "2001:db8::7", "192.0.2.99", "fe80::99"];
        let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
        let extension_header = prop::option::of(select(EXTENSION_HEADERS.as_slice()));
        (select(addresses), hits(), extension_header, damage).prop_map(|(address, hit, extension, damage)| {
            let mut bytes = bytes(address, hit);
            match extension {
                Some(header) if bytes[0] == 0x60 => add_extension_header(&mut bytes, header),
                Some(_) => add_ipv4_option(&mut bytes),
                None => {}
            }
            for (index, byte) in damage {
                *index.get_mut(&mut bytes) = byte;
            }
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn whatever_the_decoder_reads_and_an_interest_or_the_guard_wants_is_accepted(
            interests in prop_oneof![30 => interests(12), 1 => interests(2500)],
            packet in packets(),
            vlan_tag in select(vec![None, Some(0), Some(0x6000)]),
            guard in guards(),
        ) {
            let program = guarded(&interests, &eth(), guard.as_ref(), false);
            if let Ok(read) = decode(&packet)
                && (wants(&interests, &eth(), &read) || is_stray(&interests, &eth(), guard.as_ref(), &read))
            {
                let frame = Frame { vlan_tag, ..Frame::incoming(packet) };
                prop_assert!(accepts(&program, &frame));
            }
        }

        #[test]
        fn an_exact_program_accepts_no_port_and_no_address_that_neither_an_interest_nor_the_guard_wants(
            interests in interests(300),
            address in select(vec!["192.0.2.1", "2001:db8::1", "198.51.100.7", "2001:db8::7", "192.0.2.99"]),
            hit in hits(),
            guard in guards(),
        ) {
            let program = guarded(&interests, &eth(), guard.as_ref(), false);
            prop_assert_eq!(program.surplus, 0);
            let packet = decode(&bytes(address, hit)).unwrap();
            let named = interests.iter().any(|interest| interest.step == hit.step())
                && interests.iter().any(|interest| match interest.target {
                    Some(target) => target == packet.destination,
                    None => eth().addresses.contains(&packet.destination),
                });
            if !named && !is_stray(&interests, &eth(), guard.as_ref(), &packet) {
                prop_assert!(!accepts(&program, &Frame::incoming(bytes(address, hit))));
            }
        }
    }
}
