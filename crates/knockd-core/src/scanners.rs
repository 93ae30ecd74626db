//! The scanner guard: detects and ignores sources that try many ports.
//!
//! With a filter that shows only the doors' own ports, one ascending port scan would open every ascending sequence.
//! Strays, which are connection attempts at ports that no door uses, give the scan away. This module does not affect
//! leases: a scanner keeps what it has opened.
//!
//! # Limits of detection
//!
//! A door opens at its last step without waiting for what comes after it, so only strays before it count. With the
//! limit of 10 strays a minute:
//!
//! - An ascending scan opens a sequence of neighbours (700,701,702) when it starts at most 10 strays below it. That is the case
//!   for every scan from port 1 when the first step is 11 or less, and else, if scans start anywhere, for one in 6,000. A source
//!   that tries just 700 to 702 has guessed.
//! - A scan in random order of n ports, among them the k of a sequence, opens it with a chance of
//!   C(10 + k, k) / (C(n, k) k!). With three steps: 1 in 10¹² for all ports, 1 in 3,000,000 for the thousand that nmap
//!   tries by default, 1 in 50 for the 25 best-known ports, which nmap tries first: they make a bad sequence. Ports in use that
//!   are no steps do not count among the n: if five of these 25 are, 1 in 24.
//! - A source that tries at most 10 strays a minute is no scanner. At that speed all TCP ports take four and a half days. An
//!   ascending scan gets four ports further within a `Seq_Timeout` of 25 seconds at an even pace, and ten when it tries ten at
//!   once and then pauses for a minute: only closer sequences open.
//! - A scanner is one for at most a minute after it has slowed down to 10 strays a minute. It may go on hitting ports of doors
//!   and ports in use meanwhile; nothing that it hits until then opens a door, and its attempts are gone.
//! - ACK and RST packets at other ports look like answers and never count, so scans with them open doors without
//!   `TCPFlags`. UDP at ephemeral ports looks like answers, too: steps of UDP belong below that range.
//! - A source with many addresses spreads a scan over them: several networks, or more of IPv6 than a /64.
//! - A source address can be forged: 11 strays in its name make a scanner of a source for a minute, and 11 a minute keep it one.
//!   A forger with N packets a second keeps N · 60 / 11 sources out, and never more than the 65,536 that are remembered, for
//!   which 12,000 packets a second are enough. It is the same behind one NAT.
//! - A flood from forged addresses lets a source with one stray be forgotten, at 500,000 a second after a tenth of a second, so
//!   under its cover a scan slower than that is not seen. With j packets for each address it takes j times as long, and lets
//!   sources with up to j strays be forgotten: scanners only if it makes 65,536 scanners within a minute.
//!
//! A source that has completed a TCP handshake has not forged its address, but is not spared for it: then anybody could
//! scan unseen after one connection to any open port, and those who knock have no connection yet.

mod bucket;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use self::bucket::{Bucket, Second, Try};
use crate::config::ScanLimit;
use crate::matcher::Interest;
use crate::network::Network;
use crate::packet::{Hit, Packet};
use crate::seed::Seed;
use crate::sequence::{Protocol, Step};
use crate::tcp_flags::TcpFlags;
use crate::time::Timestamp;

/// A keyed hash spreads sources over this many buckets, so no source can choose its bucket.
const BUCKETS: u16 = 4096;

/// How long a stray counts; up to a second more, since only whole seconds are kept.
const MINUTE: u32 = 60;

/// Detects scanners, and says of every packet whether the matcher may judge it.
///
/// A stray is a connection attempt at a port that no door uses and that [`LocalPorts`] does not have in use. A source
/// is a scanner exactly while it has tried more different strays than the limit within the last minute. Nothing else
/// that it sends makes it one or keeps it one, so whatever it does at doors and services, it is none a minute after the
/// strays that made it one; and a scan that goes on keeps its source a scanner, since it goes on to try other ports. A
/// connection attempt is
///
/// - a TCP packet with SYN and without ACK, or with neither ACK nor RST, as NULL, FIN and Xmas scans send it;
/// - a UDP packet, if any door uses UDP.
///
/// TCP and UDP ports of the same number are different ports, a port that is tried again counts once, from its latest
/// try on, and it does not matter which of the watched addresses was tried. Only services that use a new TCP port for
/// every connection, such as passive FTP, can make a scanner of their users, until [`LocalPorts`] knows these ports.
///
/// All IPv6 addresses of a /64 are one source, because any host in it can use all of them (RFC 7421); its neighbours
/// share its fate, like hosts behind one IPv4 address.
///
/// A packet costs one hash and one look through a bucket. Memory is bounded by 65,536 sources of at most one port more
/// than the limit: 12 MiB with the default limit, a quarter of that for sources of one stray each.
#[derive(Debug)]
pub struct Scanners {
    limit: Option<NonZeroU32>,
    /// The ports of the doors, ascending.
    steps: Vec<Step>,
    /// Whether a door uses UDP.
    udp: bool,
    /// The addresses that the doors watch, ascending.
    destinations: Vec<IpAddr>,
    local_ports: LocalPorts,
    /// `None` for buckets not used yet; empty while the guard is off.
    buckets: Vec<Option<Box<Bucket>>>,
    seed: Seed,
}

/// What [`Scanners::handle_packet`] says about a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Sighting {
    /// It hits a port that a door uses: the matcher decides.
    AtDoor,
    /// It hits another port; nothing more is to be done.
    Elsewhere,
    /// It hits another port and has made its source a scanner: drop its attempts.
    NewScanner,
    /// Its source is a scanner.
    Ignored,
}

/// A source that is a scanner at present.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Scanner {
    /// The source: an IPv4 address, or the first address of an IPv6 /64, all of which is one source.
    pub source: IpAddr,
    /// When it is none any more, if it tries no further port.
    pub until: Timestamp,
}

/// The ports of the machine at which packets belong to a service or may be answers, so that they are no strays.
///
/// The default is that all UDP ports are in use and no TCP port is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(from = "AsStored"))]
pub struct LocalPorts {
    /// All UDP ports from this one on are in use.
    ephemeral_from: u16,
    /// Ascending, each once.
    udp: Vec<u16>,
    tcp: Vec<u16>,
}

/// The serialised form may have been written by hand, in any order.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct AsStored {
    ephemeral_from: u16,
    udp: Vec<u16>,
    tcp: Vec<u16>,
}

#[cfg(feature = "serde")]
impl From<AsStored> for LocalPorts {
    fn from(AsStored { ephemeral_from, udp, tcp }: AsStored) -> Self {
        Self::new(ephemeral_from, udp.into_iter().map(Step::udp).chain(tcp.into_iter().map(Step::tcp)))
    }
}

impl LocalPorts {
    /// The ports of these sockets are in use: TCP sockets that listen, and bound UDP sockets. They may be in any order
    /// and repeat themselves. From `ephemeral_from` on every UDP port is in use, because answers come there; answers of
    /// TCP show it.
    pub fn new(ephemeral_from: u16, sockets: impl IntoIterator<Item = Step>) -> Self {
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for Step { port, protocol } in sockets {
            match protocol {
                Protocol::Tcp => tcp.push(port),
                Protocol::Udp if port < ephemeral_from => udp.push(port),
                Protocol::Udp => {}
            }
        }
        for ports in [&mut tcp, &mut udp] {
            ports.sort_unstable();
            ports.dedup();
        }
        Self { ephemeral_from, udp, tcp }
    }

    /// Says whether a packet to this port is no stray.
    pub fn is_in_use(&self, step: Step) -> bool {
        let Step { port, protocol } = step;
        match protocol {
            Protocol::Tcp => self.tcp.binary_search(&port).is_ok(),
            Protocol::Udp => port >= self.ephemeral_from || self.udp.binary_search(&port).is_ok(),
        }
    }

    /// The ports that are not in use, in ranges that ascend and are apart from each other.
    pub fn unused(&self, protocol: Protocol) -> impl Iterator<Item = RangeInclusive<u16>> + '_ {
        let (ports, end) = match protocol {
            Protocol::Tcp => (&self.tcp, 1 << 16),
            Protocol::Udp => (&self.udp, u32::from(self.ephemeral_from)),
        };
        let ports = || ports.iter().copied().map(u32::from);
        let starts = std::iter::once(0).chain(ports().map(|port| port + 1));
        let ranges = starts.zip(ports().chain(std::iter::once(end))).filter(|(start, end)| start < end);
        ranges.filter_map(|(start, end)| Some(start.try_into().ok()?..=(end - 1).try_into().ok()?))
    }
}

impl Scanners {
    /// The largest limit; a larger one counts as this one.
    pub const MAX_LIMIT: u32 = ScanLimit::MAX;

    /// Creates a guard that has seen no source yet; without a limit it ignores none.
    ///
    /// Every port counts as a stray's until [`Self::watch`] names the doors' own, and no address is watched. The seed
    /// must be a secret wherever strangers send the packets.
    pub fn new(limit: Option<NonZeroU32>, seed: Seed) -> Self {
        let mut scanners = Self {
            limit: None,
            steps: Vec::new(),
            udp: false,
            destinations: Vec::new(),
            local_ports: LocalPorts::default(),
            buckets: Vec::new(),
            seed,
        };
        scanners.set_limit(limit);
        scanners
    }

    /// Changes the limit. What sources have tried stays known, as far as the old limit needed it; without a limit
    /// everything is forgotten.
    pub fn set_limit(&mut self, limit: Option<NonZeroU32>) {
        self.limit = limit.min(NonZeroU32::new(Self::MAX_LIMIT));
        let buckets = if limit.is_some() { usize::from(BUCKETS) } else { 0 };
        self.buckets.resize_with(buckets, || None);
    }

    /// Sets what the doors want to see ([`crate::parts::Matcher::interests`]) and our own addresses.
    pub fn watch(&mut self, interests: &[Interest], own: impl IntoIterator<Item = IpAddr>) {
        self.steps = interests.iter().map(|interest| interest.step).collect();
        self.steps.sort_unstable();
        self.steps.dedup();
        self.udp = self.steps.iter().any(|step| step.protocol == Protocol::Udp);
        self.destinations = interests.iter().filter_map(|interest| interest.target).collect();
        if interests.iter().any(|interest| interest.target.is_none()) {
            self.destinations.extend(own);
        }
        self.destinations.sort_unstable();
        self.destinations.dedup();
    }

    /// Says which ports are in use on this machine.
    pub fn set_local_ports(&mut self, local_ports: LocalPorts) {
        self.local_ports = local_ports;
    }

    /// The ports in use, for the filter in the kernel; `None` while there is no limit, so that strays need not be seen.
    pub fn local_ports(&self) -> Option<&LocalPorts> {
        self.limit.map(|_| &self.local_ports)
    }

    /// Says whether a source is a scanner at present.
    pub fn is_scanner(&self, source: IpAddr, now: Timestamp) -> bool {
        let Some(limit) = self.limit else { return false };
        let (network, now) = (Network::of(source), Second::of(now));
        let bucket = self.buckets.get(self.place_of(network)).and_then(Option::as_ref);
        bucket.is_some_and(|bucket| bucket.is_scanner(network, limit, now))
    }

    /// Returns the scanners of the present, in no particular order. This looks through everything that is remembered.
    pub fn scanners(&self, now: Timestamp) -> impl Iterator<Item = Scanner> + '_ {
        let now = Second::of(now);
        let buckets = self.limit.into_iter().flat_map(move |limit| {
            let used = self.buckets.iter().flatten();
            used.flat_map(move |bucket| bucket.scanners(limit, now))
        });
        buckets.map(|(network, scanned)| Scanner { source: network.first(), until: scanned.over() })
    }

    /// Forgets what a source has tried so far, and says whether it was a scanner. All addresses of an IPv6 /64 are one
    /// source.
    pub fn forgive(&mut self, source: IpAddr, now: Timestamp) -> bool {
        let is_scanner = self.is_scanner(source, now);
        let network = Network::of(source);
        if let Some(Some(bucket)) = self.bucket(network) {
            bucket.forget(network);
        }
        is_scanner
    }

    /// Judges a packet before the matcher does.
    ///
    /// The caller owns the clock, as with the matcher.
    pub fn handle_packet(&mut self, packet: &Packet, now: Timestamp) -> Sighting {
        let step = packet.hit.step();
        let at_door = self.steps.binary_search(&step).is_ok();
        let is_stray = !at_door && self.is_stray(packet);
        let harmless = if at_door { Sighting::AtDoor } else { Sighting::Elsewhere };
        if !at_door && !is_stray {
            return harmless;
        }
        let Some(limit) = self.limit else { return harmless };
        let now = Second::of(now);
        let network = Network::of(packet.source);
        let Some(bucket) = self.bucket(network) else { return harmless };
        let new = Try { step, at: now };
        let Some(mut source) = bucket.as_mut().and_then(|bucket| bucket.source(network)) else {
            if is_stray {
                bucket.get_or_insert_default().remember(network, new);
            }
            return harmless;
        };
        let was_scanner = source.is_scanner(limit, now);
        if is_stray {
            source.add(new, limit);
        }
        if was_scanner {
            Sighting::Ignored
        } else if is_stray && source.is_scanner(limit, now) {
            Sighting::NewScanner
        } else {
            harmless
        }
    }

    /// Whether a packet to a port that no door uses shows a scan.
    fn is_stray(&self, packet: &Packet) -> bool {
        let step = packet.hit.step();
        is_attempt(packet.hit)
            && (self.udp || step.protocol == Protocol::Tcp)
            && self.destinations.binary_search(&packet.destination).is_ok()
            && !self.local_ports.is_in_use(step)
    }

    fn bucket(&mut self, network: Network) -> Option<&mut Option<Box<Bucket>>> {
        let place = self.place_of(network);
        self.buckets.get_mut(place)
    }

    fn place_of(&self, network: Network) -> usize {
        let place = self.seed.hash(network.0) % u64::from(BUCKETS);
        usize::try_from(place).unwrap_or_default()
    }
}

/// Says whether a packet wants to start something at its destination, or makes sense only in a scan.
fn is_attempt(hit: Hit) -> bool {
    match hit {
        Hit::Udp { .. } => true,
        Hit::Tcp { flags, .. } => {
            let has = |flag| flags.contains(flag);
            !has(TcpFlags::ACK) && (has(TcpFlags::SYN) || !has(TcpFlags::RST))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use proptest::prelude::*;
    use proptest::sample::select;

    use super::Sighting::{AtDoor, Elsewhere, Ignored, NewScanner};
    use super::*;
    use crate::tcp_flags::FlagRule;

    const SYN: TcpFlags = TcpFlags::SYN;
    const ME: &str = "203.0.113.1";

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn seconds(count: u64) -> Timestamp {
        Timestamp::ZERO.after(Duration::from_secs(count))
    }

    fn interest(step: Step) -> Interest {
        Interest { step, flags: FlagRule::ANY, target: None }
    }

    /// Doors use 700 to 702, and 7000 over UDP. UDP ports 53 and 5353 are bound, those from 32768 on are ephemeral.
    /// Programs listen on TCP ports 80, 443, and 50000, which is ephemeral.
    fn guard(limit: u32) -> Scanners {
        let mut guard = Scanners::new(NonZeroU32::new(limit), Seed::new(1, 2));
        let steps = [Step::tcp(700), Step::tcp(701), Step::tcp(702), Step::udp(7000)];
        guard.watch(&steps.map(interest), ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(address));
        let udp = [5353, 53, 53, 40000].map(Step::udp);
        guard.set_local_ports(LocalPorts::new(32768, udp.into_iter().chain([443, 50000, 80].map(Step::tcp))));
        guard
    }

    fn tcp(port: u16, flags: TcpFlags) -> Packet {
        Packet::incoming(address(ME), address("192.0.2.1"), Hit::Tcp { port, flags })
    }

    fn syn(port: u16) -> Packet {
        tcp(port, SYN)
    }

    fn udp(port: u16) -> Packet {
        Packet { hit: Hit::Udp { port }, ..syn(port) }
    }

    fn from(source: &str, packet: Packet) -> Packet {
        Packet { source: address(source), ..packet }
    }

    fn to(destination: &str, packet: Packet) -> Packet {
        Packet { destination: address(destination), ..packet }
    }

    /// Passes all packets at the same time; the last one must make a scanner, and none before it.
    fn assert_last_makes_a_scanner(guard: &mut Scanners, packets: impl IntoIterator<Item = Packet>, at: u64) {
        let mut seen: Vec<_> =
            packets.into_iter().map(|packet| guard.handle_packet(&packet, seconds(at))).collect();
        assert_eq!(seen.pop(), Some(NewScanner));
        assert!(seen.iter().all(|&sighting| sighting == Elsewhere), "{seen:?}");
    }

    /// Says whether this packet counts: whether it makes a scanner of a source that needs only one more.
    fn counts(packet: Packet) -> bool {
        let mut guard = guard(1);
        guard.handle_packet(&syn(1), seconds(0));
        guard.handle_packet(&packet, seconds(0)) == NewScanner
    }

    #[test]
    fn one_port_more_than_the_limit_makes_a_scanner_once_and_of_nobody_else() {
        let mut guard = guard(10);
        assert_last_makes_a_scanner(&mut guard, (1..=11).map(syn), 5);
        assert_eq!(guard.handle_packet(&syn(12), seconds(5)), Ignored);
        assert_eq!(guard.handle_packet(&syn(700), seconds(5)), Ignored);
        assert_eq!(guard.handle_packet(&from("203.0.113.2", syn(700)), seconds(5)), AtDoor);
        assert_eq!(guard.handle_packet(&from("203.0.113.2", syn(12)), seconds(5)), Elsewhere);
    }

    #[test]
    fn a_scanner_is_listed_until_it_is_none_any_more() {
        let mut guard = guard(10);
        let listed = |guard: &Scanners, second| guard.scanners(seconds(second)).collect::<Vec<_>>();
        for port in 1..=10 {
            guard.handle_packet(&syn(port), seconds(5));
        }
        assert_eq!(listed(&guard, 5), []);
        guard.handle_packet(&syn(11), seconds(7));
        let until = seconds(66);
        assert_eq!(listed(&guard, 7), [Scanner { source: address(ME), until }]);
        assert_eq!((listed(&guard, 65).len(), guard.is_scanner(address(ME), seconds(65))), (1, true));
        assert_eq!((listed(&guard, 66).len(), guard.is_scanner(address(ME), seconds(66))), (0, false));
        for port in 1..=11 {
            guard.handle_packet(&from("2001:db8:1:2:3::4", syn(port)), seconds(100));
        }
        let [scanner] = listed(&guard, 100)[..] else { panic!() };
        assert_eq!(scanner.source, address("2001:db8:1:2::"));
        guard.set_limit(None);
        assert_eq!(listed(&guard, 100), []);
    }

    #[test]
    fn who_is_forgiven_has_tried_nothing_and_nobody_else_is_forgiven() {
        for (who, neighbour, other) in
            [(ME, ME, "203.0.113.2"), ("2001:db8:1::1", "2001:db8:1::2", "2001:db8:2::1")]
        {
            let mut guard = guard(10);
            for source in [who, other] {
                assert_last_makes_a_scanner(&mut guard, (1..=11).map(|port| from(source, syn(port))), 5);
            }
            assert!(guard.forgive(address(neighbour), seconds(6)));
            assert!(!guard.forgive(address(who), seconds(6)));
            assert_eq!(guard.handle_packet(&from(who, syn(700)), seconds(6)), AtDoor);
            assert_eq!(guard.handle_packet(&from(other, syn(700)), seconds(6)), Ignored);
            assert_eq!(guard.scanners(seconds(6)).count(), 1);
            assert_last_makes_a_scanner(&mut guard, (1..=11).map(|port| from(who, syn(port))), 7);
        }
        assert!(!guard(10).forgive(address(ME), seconds(0)), "whoever was never seen");
    }

    #[test]
    fn a_port_counts_once_however_often_and_wherever_it_is_tried() {
        let mut guard = guard(10);
        for second in 0..100 {
            for destination in ["192.0.2.1", "192.0.2.2", "2001:db8::1"] {
                assert_eq!(guard.handle_packet(&to(destination, syn(22)), seconds(second)), Elsewhere);
            }
        }
        assert_last_makes_a_scanner(&mut guard, (1..=10).map(syn), 99);
    }

    #[test]
    fn the_doors_own_ports_never_count() {
        let mut guard = guard(1);
        for port in [700, 701, 702, 700, 702] {
            assert_eq!(guard.handle_packet(&syn(port), seconds(0)), AtDoor);
        }
        assert_eq!(guard.handle_packet(&udp(7000), seconds(0)), AtDoor);
        assert_last_makes_a_scanner(&mut guard, [syn(7000), udp(700)], 0);
    }

    #[test]
    fn a_try_counts_for_a_minute_after_its_last_repetition() {
        let mut guard = guard(2);
        guard.handle_packet(&syn(1), seconds(0));
        guard.handle_packet(&syn(2), seconds(30));
        assert_eq!(guard.handle_packet(&syn(3), seconds(61)), Elsewhere);
        guard.handle_packet(&syn(2), seconds(90));
        assert_eq!(guard.handle_packet(&syn(3), seconds(150)), Elsewhere);
        assert_eq!(guard.handle_packet(&syn(4), seconds(150)), NewScanner);
    }

    #[test]
    fn a_slow_scan_is_none() {
        let mut guard = guard(10);
        for port in 1..=600 {
            assert_eq!(guard.handle_packet(&syn(port), seconds(u64::from(port) * 7)), Elsewhere);
        }
    }

    #[test]
    fn whatever_a_scanner_does_at_doors_and_at_ports_in_use_it_is_none_a_minute_after_its_strays() {
        let mut guard = guard(1);
        assert_last_makes_a_scanner(&mut guard, [syn(1), syn(2)], 0);
        for second in 1..=60 {
            for packet in [syn(700), tcp(701, TcpFlags::ACK), udp(7000)] {
                assert_eq!(guard.handle_packet(&packet, seconds(second)), Ignored);
            }
            for packet in [syn(80), syn(443), syn(50000), udp(53), udp(40000), tcp(3, TcpFlags::ACK)] {
                assert_eq!(guard.handle_packet(&packet, seconds(second)), Elsewhere);
            }
        }
        assert!(guard.is_scanner(address(ME), seconds(60)) && !guard.is_scanner(address(ME), seconds(61)));
        assert_eq!(guard.handle_packet(&syn(700), seconds(61)), AtDoor);
        // It begins anew.
        assert_last_makes_a_scanner(&mut guard, [syn(3), syn(4)], 61);
    }

    #[test]
    fn the_same_strays_again_keep_a_scanner_only_as_long_as_there_are_more_than_the_limit() {
        let mut guard = guard(2);
        assert_last_makes_a_scanner(&mut guard, [syn(1), syn(2), syn(3)], 0);
        // Two of the three, for ever.
        for second in (10..=60).step_by(10) {
            for port in [1, 2] {
                assert_eq!(guard.handle_packet(&syn(port), seconds(second)), Ignored);
            }
        }
        assert_eq!(guard.handle_packet(&syn(700), seconds(61)), AtDoor);
        assert_eq!(guard.handle_packet(&syn(1), seconds(61)), Elsewhere);
        // The third once more is one too many.
        assert_eq!(guard.handle_packet(&syn(3), seconds(70)), NewScanner);
        assert_eq!(guard.handle_packet(&syn(700), seconds(120)), Ignored);
    }

    #[test]
    fn a_scan_that_goes_on_keeps_its_source_a_scanner_however_long_it_takes() {
        let mut guard = guard(10);
        assert_last_makes_a_scanner(&mut guard, (1001..=1011).map(syn), 0);
        // Eleven more within any minute, that of the doors' own ports among them.
        for (port, second) in (1012..3000).zip((0..).step_by(5)) {
            assert_eq!(guard.handle_packet(&syn(port), seconds(second)), Ignored);
            assert_eq!(guard.handle_packet(&syn(700), seconds(second)), Ignored);
        }
    }

    #[test]
    fn a_forger_pays_eleven_packets_a_minute_for_each_victim() {
        let mut guard = guard(10);
        let mut paid = 0;
        for minute in 0..10 {
            for port in 1..=11 {
                paid += 1;
                guard.handle_packet(&syn(port), seconds(minute * 60));
            }
            for second in 0..60 {
                assert_eq!(guard.handle_packet(&syn(700), seconds(minute * 60 + second)), Ignored);
            }
        }
        assert_eq!(paid, 110);
        // Ten are not enough.
        for port in 1..=10 {
            assert_eq!(guard.handle_packet(&syn(port), seconds(600)), Ignored);
        }
        assert_eq!(guard.handle_packet(&syn(700), seconds(661)), AtDoor);
    }

    #[test]
    fn any_number_of_connections_to_ports_in_use_are_no_strays() {
        let mut guard = guard(1);
        guard.set_local_ports(LocalPorts::new(32768, (1..=40).chain(60000..60040).map(Step::tcp)));
        for port in (1..=40).chain(60000..60040) {
            assert_eq!(guard.handle_packet(&syn(port), seconds(0)), Elsewhere);
        }
        assert_last_makes_a_scanner(&mut guard, [syn(41), syn(60040)], 0);
    }

    #[test]
    fn tcp_counts_with_syn_and_without_ack_and_with_neither_ack_nor_rst() {
        let scans = [
            ("-sS", 0x02, true),
            ("-sS with ECN", 0xc2, true),
            ("-sN", 0x00, true),
            ("-sF", 0x01, true),
            ("-sX", 0x29, true),
            ("SYN, RST", 0x06, true),
            ("SYN, FIN", 0x03, true),
            ("-sA", 0x10, false),
            ("-sM", 0x11, false),
            ("a RST", 0x04, false),
            ("a RST, ACK", 0x14, false),
            ("a SYN, ACK", 0x12, false),
            ("data", 0x18, false),
        ];
        for (name, bits, expected) in scans {
            assert_eq!(counts(tcp(2, TcpFlags::from_wire(bits))), expected, "{name}");
        }
    }

    #[test]
    fn udp_counts_at_ports_below_the_ephemeral_ones_that_nobody_has_bound() {
        for port in [0, 52, 54, 5352, 32767] {
            assert!(counts(udp(port)), "{port}");
        }
        for port in [53, 5353, 32768, 40000, 65535] {
            assert!(!counts(udp(port)), "{port}");
        }
    }

    #[test]
    fn udp_does_not_count_while_no_door_uses_it_or_nothing_is_known_of_local_ports() {
        let mut without_udp = guard(1);
        without_udp.watch(&[interest(Step::tcp(700))], [address("192.0.2.1")]);
        let mut unknown = guard(1);
        unknown.set_local_ports(LocalPorts::default());
        for guard in [&mut without_udp, &mut unknown] {
            for port in 1..=100 {
                assert_eq!(guard.handle_packet(&udp(port), seconds(0)), Elsewhere);
            }
            assert_last_makes_a_scanner(guard, [syn(1), syn(2)], 0);
        }
    }

    #[test]
    fn only_what_is_sent_to_a_watched_address_counts() {
        let target = Some(address("198.51.100.7"));
        let aimed = Interest { target, ..interest(Step::tcp(700)) };
        let mut guard = guard(1);
        guard.watch(&[aimed], [address("192.0.2.1")]);
        for port in 1..=100 {
            assert_eq!(guard.handle_packet(&syn(port), seconds(0)), Elsewhere);
        }
        assert_last_makes_a_scanner(&mut guard, [1, 2].map(|port| to("198.51.100.7", syn(port))), 0);
        guard.watch(&[aimed, interest(Step::tcp(701))], [address("192.0.2.1")]);
        assert_last_makes_a_scanner(&mut guard, [1, 2].map(|port| from("203.0.113.2", syn(port))), 0);
    }

    #[test]
    fn a_network_of_64_bits_is_one_source_in_ipv6() {
        let mut guard = guard(2);
        let six = |source, port| from(source, to("2001:db8::1", syn(port)));
        let rotating = [six("2001:db8:1::1", 1), six("2001:db8:1::2", 2), six("2001:db8:1:0:ffff::", 3)];
        assert_last_makes_a_scanner(&mut guard, rotating, 0);
        assert_eq!(guard.handle_packet(&six("2001:db8:1::4", 700), seconds(0)), Ignored);
        assert_eq!(guard.handle_packet(&six("2001:db8:1:1::4", 700), seconds(0)), AtDoor);
        // In IPv4 every address is a separate source.
        for port in 1..=10 {
            let neighbour = from(&format!("203.0.113.{port}"), syn(port));
            assert_eq!(guard.handle_packet(&neighbour, seconds(0)), Elsewhere);
        }
    }

    #[test]
    fn without_a_limit_nobody_is_ignored_and_the_kernel_need_not_show_strays() {
        let mut guard = guard(0);
        for port in 1..=699 {
            assert_eq!(guard.handle_packet(&syn(port), seconds(0)), Elsewhere);
        }
        assert_eq!(guard.handle_packet(&syn(700), seconds(0)), AtDoor);
        assert_eq!(guard.local_ports(), None);
        guard.set_limit(NonZeroU32::new(1));
        assert!(
            guard
                .local_ports()
                .is_some_and(|ports| ports.is_in_use(Step::udp(53)) && !ports.is_in_use(Step::udp(54)))
        );
    }

    #[test]
    fn a_new_limit_counts_at_once_and_no_limit_forgets_everything() {
        let mut guard = guard(5);
        assert_last_makes_a_scanner(&mut guard, (1..=6).map(syn), 0);
        let other = |port| from("203.0.113.2", syn(port));
        (1..=5).for_each(|port| assert_eq!(guard.handle_packet(&other(port), seconds(0)), Elsewhere));
        guard.set_limit(NonZeroU32::new(4));
        assert_eq!(guard.handle_packet(&other(700), seconds(0)), Ignored);
        assert_eq!(guard.handle_packet(&syn(700), seconds(0)), Ignored);
        guard.set_limit(NonZeroU32::new(6));
        assert_eq!(guard.handle_packet(&syn(700), seconds(0)), AtDoor);
        assert_last_makes_a_scanner(&mut guard, [syn(7)], 0);
        guard.set_limit(None);
        guard.set_limit(NonZeroU32::new(3));
        assert_eq!(guard.handle_packet(&syn(700), seconds(0)), AtDoor);
    }

    #[test]
    fn a_limit_that_is_too_large_is_taken_for_the_largest() {
        let mut guard = guard(u32::MAX);
        let most = u16::try_from(Scanners::MAX_LIMIT).unwrap();
        assert_last_makes_a_scanner(&mut guard, (1..=most + 1).map(syn), 0);
    }

    #[test]
    fn unused_local_ports_are_those_that_are_not_in_use() {
        let unused = |ports: &LocalPorts, protocol| ports.unused(protocol).collect::<Vec<_>>();
        let ports = LocalPorts::new(6, [3, 1, 3, 900].map(Step::udp));
        assert_eq!(unused(&ports, Protocol::Udp), [0..=0, 2..=2, 4..=5]);
        assert_eq!(unused(&ports, Protocol::Tcp), [0..=u16::MAX]);
        assert_eq!(unused(&LocalPorts::new(2, [0, 1].map(Step::udp)), Protocol::Udp), []);
        let ends = LocalPorts::new(65535, [0, 65534, 65535].map(Step::udp));
        assert_eq!(unused(&ends, Protocol::Udp), [1..=65533]);
        assert_eq!(ports, LocalPorts::new(6, [1, 3].map(Step::udp)));
        let listening = LocalPorts::new(6, [65535, 80, 0, 80].map(Step::tcp));
        assert_eq!(unused(&listening, Protocol::Tcp), [1..=79, 81..=65534]);
        assert_eq!(unused(&listening, Protocol::Udp), [0..=5]);
        assert_eq!(unused(&LocalPorts::default(), Protocol::Udp), []);
        assert_eq!(unused(&LocalPorts::default(), Protocol::Tcp), [0..=u16::MAX]);
    }

    #[test]
    fn a_million_sources_take_bounded_memory_and_hide_neither_scanners_nor_those_on_their_way() {
        let mut guard = guard(3);
        assert_last_makes_a_scanner(&mut guard, (1..=4).map(syn), 0);
        let on_its_way = |port| from("203.0.113.2", syn(port));
        (1..=3).for_each(|port| assert_eq!(guard.handle_packet(&on_its_way(port), seconds(0)), Elsewhere));
        for spoofed in 0..1_000_000_u32 {
            let source = Ipv4Addr::from_bits(0x0a00_0000 | spoofed).into();
            let port = u16::try_from(spoofed % 600).unwrap();
            assert_eq!(guard.handle_packet(&Packet { source, ..syn(port) }, seconds(1)), Elsewhere);
        }
        assert_eq!(guard.handle_packet(&syn(700), seconds(1)), Ignored);
        assert_eq!(guard.handle_packet(&on_its_way(4), seconds(1)), NewScanner);

        assert_eq!(guard.buckets.len(), usize::from(BUCKETS));
        assert!(
            guard.buckets.iter().flatten().flat_map(|bucket| bucket.capacities()).all(|tries| tries <= 4)
        );
    }

    #[test]
    fn a_whole_network_of_forged_scanners_is_out_for_a_minute_and_never_more_sources_than_are_remembered() {
        let mut guard = guard(10);
        let forge = |guard: &mut Scanners, hosts: u32, second| {
            for host in 0..hosts {
                let source = Ipv4Addr::from_bits(0x0a00_0000 | host).into();
                for port in 1..=11 {
                    guard.handle_packet(&Packet { source, ..syn(port) }, seconds(second));
                }
            }
        };
        let out = |guard: &Scanners, hosts: u32, second| {
            let source = |host| Ipv4Addr::from_bits(0x0a00_0000 | host).into();
            (0..hosts).filter(|&host| guard.is_scanner(source(host), seconds(second))).count()
        };
        forge(&mut guard, 1 << 16, 0);
        let of_a_16 = out(&guard, 1 << 16, 60);
        assert!((58_000..65_536).contains(&of_a_16), "{of_a_16}");
        assert_eq!(out(&guard, 1 << 16, 61), 0);
        forge(&mut guard, 1 << 17, 100);
        let of_a_15 = out(&guard, 1 << 17, 100);
        assert!((of_a_16..=65_536).contains(&of_a_15), "{of_a_15}");
    }

    /// The same rule without a bound: all that a source has ever tried.
    #[derive(Default)]
    struct Model {
        strays: Vec<(Step, u64)>,
    }

    impl Model {
        fn is_scanner(&self, limit: usize, now: u64) -> bool {
            let recent = self.strays.iter().filter(|(_, at)| now - at <= 60).map(|(step, _)| step);
            recent.collect::<std::collections::HashSet<_>>().len() > limit
        }

        fn handle(&mut self, limit: usize, step: Step, now: u64) -> Sighting {
            let at_door = step.protocol == Protocol::Tcp && step.port <= 702;
            if !at_door && [Step::tcp(708), Step::udp(709)].contains(&step) {
                return Elsewhere;
            }
            let was_scanner = self.is_scanner(limit, now);
            if !at_door {
                self.strays.push((step, now));
            }
            match (was_scanner, self.is_scanner(limit, now)) {
                (true, _) => Ignored,
                (false, true) => NewScanner,
                (false, false) if at_door => AtDoor,
                (false, false) => Elsewhere,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_source_is_a_scanner_exactly_while_it_has_tried_more_strays_than_the_limit_within_a_minute(
            limit in 1..12_u32,
            longest_wait in select(vec![2_u64, 6, 25, 70]),
            packets in prop::collection::vec((0..3_u8, 0..11_u16, any::<bool>(), any::<u64>()), 0..300),
        ) {
            let mut guard = guard(limit);
            guard.set_local_ports(LocalPorts::new(32768, [Step::tcp(708), Step::udp(709)]));
            let mut models: [Model; 3] = Default::default();
            let mut now = 0;
            for (last, port, is_tcp, wait) in packets {
                now += wait % longest_wait;
                // Three ports of doors, two in use, and sixteen strays; or the source is forgiven.
                let is_forgiven = port == 10 && is_tcp;
                let port = 700 + port;
                let hit = if is_tcp { syn(port) } else { udp(port) };
                let packet = from(&format!("203.0.113.{last}"), hit);
                let model = &mut models[usize::from(last)];
                let is_scanner = model.is_scanner(limit as usize, now);
                prop_assert_eq!(guard.is_scanner(packet.source, seconds(now)), is_scanner);
                let listed = guard.scanners(seconds(now)).filter(|scanner| scanner.source == packet.source);
                let until: Vec<_> = listed.map(|scanner| scanner.until).collect();
                prop_assert_eq!(until.len(), usize::from(is_scanner));
                for until in until {
                    let until = until.since(Timestamp::ZERO).as_secs();
                    prop_assert!(model.is_scanner(limit as usize, until - 1));
                    prop_assert!(!model.is_scanner(limit as usize, until));
                }
                if is_forgiven {
                    prop_assert_eq!(guard.forgive(packet.source, seconds(now)), is_scanner);
                    model.strays.clear();
                    continue;
                }
                let expected = model.handle(limit as usize, packet.hit.step(), now);
                prop_assert_eq!(guard.handle_packet(&packet, seconds(now)), expected);
            }
        }

        #[test]
        fn no_scan_in_any_order_opens_a_door_after_more_strays_than_the_limit(
            mut ports in prop::collection::vec(select((660..740).collect::<Vec<u16>>()), 1..120),
            spread in 1..4_u64,
        ) {
            ports.extend([700, 701, 702]);
            let mut guard = guard(10);
            let mut strays = std::collections::HashSet::new();
            let mut next = [700, 701, 702].into_iter().peekable();
            for (port, index) in ports.into_iter().zip(0..) {
                if guard.handle_packet(&syn(port), seconds(index / 10 / spread)) == AtDoor {
                    next.next_if_eq(&port);
                }
                if !(700..=702).contains(&port) {
                    strays.insert(port);
                }
                // Whatever comes after the door opened is too late to tell.
                if next.peek().is_none() {
                    prop_assert!(strays.len() <= 10);
                    return Ok(());
                }
            }
        }
    }
}
