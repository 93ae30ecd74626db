//! The scanner guard: detects and ignores sources that try many ports.
//!
//! With a filter that shows only the doors' own ports, one ascending port scan would open every ascending sequence.
//! Strays, which are connection attempts at ports that no door uses, give the scan away. This module does not affect
//! leases: a scanner keeps what it has opened.
//!
//! # Limits of detection
//!
//! A door opens at its last step without waiting for what comes after it, so only strays before it count. With the limit
//! of 10 strays a minute:
//!
//! - An ascending scan opens a sequence of neighbours (700,701,702) if it starts at most 10 unused ports below it. If the
//!   first step is 11 or less, every scan from port 1 does that; otherwise, if scans start anywhere, one in 6,000 does. A
//!   source that tries just 700 to 702 has guessed.
//! - A scan of n ports in random order, among them the k of a sequence, opens it with a chance of
//!   C(10 + k, k) / (C(n, k) k!). With three steps: 1 in 10¹² for all ports, 1 in 3,000,000 for the thousand that nmap
//!   tries by default, 1 in 50 for the 25 best-known ports, which nmap tries first: they make a bad sequence.
//! - A source that tries at most 10 such ports a minute is not a scanner. At that speed all TCP ports take four and a half
//!   days, and an ascending scan advances by four ports within a `Seq_Timeout` of 25 seconds: only closer sequences open.
//! - ACK and RST packets to other ports look like answers and never count, so scans with them open doors without
//!   `TCPFlags`. UDP to ephemeral ports also looks like answers: UDP steps belong below that range.
//! - An attacker with many addresses can spread a scan over them: several IPv4 addresses, or more IPv6 than a /64.
//! - A source address can be forged: 11 strays from a forged address, or from behind the same NAT, get that address
//!   ignored. A flood from forged addresses makes the guard forget a source with one stray: at 500,000 a second after a
//!   tenth of a second, so the flood hides any scan slower than that.

mod bucket;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use self::bucket::{Bucket, Network, Second, Try};
use crate::config::ScanLimit;
use crate::matcher::Interest;
use crate::packet::{Hit, Packet};
use crate::seed::Seed;
use crate::sequence::{Protocol, Step};
use crate::tcp_flags::TcpFlags;
use crate::time::Timestamp;

/// A keyed hash spreads sources over this many buckets, so no source can choose its bucket.
const BUCKETS: u16 = 4096;

/// How long a stray counts, and how long a scanner has to be quiet; up to a second more, because only whole seconds
/// are stored.
const MINUTE: u32 = 60;

/// Detects scanners, and says of every packet whether the matcher may judge it.
///
/// A source that has tried more than the limit of different ports that no door uses within the last minute is a scanner.
/// It stops being one after a quiet minute: no connection attempt from it, neither at those ports nor at the doors' own. A
/// connection attempt is
///
/// - a TCP packet with SYN and without ACK, or with neither ACK nor RST, as NULL, FIN and Xmas scans send it;
/// - a UDP packet; but it is not a stray if no door uses UDP, or if [`LocalPorts`] has its port in use.
///
/// TCP and UDP ports with the same number are different ports, a repeated port counts once, and it does not matter which
/// of the watched addresses was tried. So a client of a local service tries one port, whatever it does there. Only
/// services that use a new TCP port for every connection, such as passive FTP, can turn their users into scanners.
///
/// All IPv6 addresses of a /64 are one source, because any host in it can use all of them (RFC 7421); its neighbours share
/// its fate, like hosts behind one IPv4 address.
///
/// A packet costs one hash and one search of a bucket. Memory is bounded by 65,536 sources of at most 64 ports: 12 MiB
/// with the default limit, a quarter of that for sources with one stray each.
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

/// The UDP ports of this machine at which packets may be answers or belong to a service, so they are not strays.
///
/// By default, all ports are in use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(from = "AsStored"))]
pub struct LocalPorts {
    ephemeral_from: u16,
    bound: Vec<u16>,
}

/// The serialised form may have been written by hand, in any order.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct AsStored {
    ephemeral_from: u16,
    bound: Vec<u16>,
}

#[cfg(feature = "serde")]
impl From<AsStored> for LocalPorts {
    fn from(AsStored { ephemeral_from, bound }: AsStored) -> Self {
        Self::new(ephemeral_from, bound)
    }
}

impl LocalPorts {
    /// Declares every port from `ephemeral_from` on to be in use, and those in `bound`, which may be in any order and
    /// contain duplicates.
    pub fn new(ephemeral_from: u16, mut bound: Vec<u16>) -> Self {
        bound.retain(|&port| port < ephemeral_from);
        bound.sort_unstable();
        bound.dedup();
        Self { ephemeral_from, bound }
    }

    /// Says whether a packet to this port is not a stray.
    pub fn is_in_use(&self, port: u16) -> bool {
        port >= self.ephemeral_from || self.bound.binary_search(&port).is_ok()
    }

    /// Returns the unused ports, as ascending ranges with gaps between them.
    pub fn unused(&self) -> impl Iterator<Item = RangeInclusive<u16>> + '_ {
        let bound = || self.bound.iter().copied();
        let starts = std::iter::once(0).chain(bound().map(|port| port + 1));
        let ends = bound().chain(std::iter::once(self.ephemeral_from));
        starts.zip(ends).filter(|(start, end)| start < end).map(|(start, end)| start..=end - 1)
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

    /// Changes the limit. Scanners stay scanners, except that without a limit everything is forgotten.
    pub fn set_limit(&mut self, limit: Option<NonZeroU32>) {
        self.limit = limit;
        let buckets = if limit.is_some() { usize::from(BUCKETS) } else { 0 };
        self.buckets.resize_with(buckets, || None);
    }

    /// Sets what the doors want to see ([`crate::Matcher::interests`]) and our own addresses.
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

    /// Sets the UDP ports in use on this machine.
    pub fn set_local_ports(&mut self, local_ports: LocalPorts) {
        self.local_ports = local_ports;
    }

    /// Returns the UDP ports in use, for the kernel filter; `None` without a limit, because strays need not be seen
    /// then.
    pub fn local_ports(&self) -> Option<&LocalPorts> {
        self.limit.map(|_| &self.local_ports)
    }

    /// Says whether a source is a scanner at present.
    pub fn is_scanner(&self, source: IpAddr, now: Timestamp) -> bool {
        let (network, now) = (Network::of(source), Second::of(now));
        let bucket = self.buckets.get(self.place_of(network)).and_then(Option::as_ref);
        bucket.is_some_and(|bucket| bucket.is_scanner(network, now))
    }

    /// Judges a packet before the matcher does.
    ///
    /// The caller owns the clock, as with the matcher.
    pub fn handle_packet(&mut self, packet: &Packet, now: Timestamp) -> Sighting {
        let step = packet.hit.step();
        let at_door = self.steps.binary_search(&step).is_ok();
        let is_attempt = is_attempt(packet.hit);
        let is_stray = !at_door && is_attempt && self.counts(packet);
        let harmless = if at_door { Sighting::AtDoor } else { Sighting::Elsewhere };
        if !at_door && !is_stray {
            return harmless;
        }
        let Some(limit) = self.limit else { return harmless };
        let now = Second::of(now);
        let network = Network::of(packet.source);
        let Some(bucket) = self.bucket(network) else { return harmless };
        let Some(mut source) = bucket.as_mut().and_then(|bucket| bucket.source(network)) else {
            if is_stray {
                bucket.get_or_insert_default().remember(network, Try { step, at: now });
            }
            return harmless;
        };
        if source.is_scanner_at(now) {
            if is_attempt {
                source.see(now);
            }
            Sighting::Ignored
        } else if is_stray && source.exceeds(limit, Try { step, at: now }) {
            Sighting::NewScanner
        } else {
            harmless
        }
    }

    /// Says whether a connection attempt at a port that no door uses counts as a sign of a scan.
    fn counts(&self, packet: &Packet) -> bool {
        let is_telling = match packet.hit {
            Hit::Tcp { .. } => true,
            Hit::Udp { port } => self.udp && !self.local_ports.is_in_use(port),
        };
        is_telling && self.destinations.binary_search(&packet.destination).is_ok()
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

    /// A guard whose doors use 700 to 702, and 7000 over UDP; UDP port 53 is bound, and those from 32768 on are
    /// ephemeral.
    fn guard(limit: u32) -> Scanners {
        let mut guard = Scanners::new(NonZeroU32::new(limit), Seed::new(1, 2));
        let steps = [Step::tcp(700), Step::tcp(701), Step::tcp(702), Step::udp(7000)];
        guard.watch(&steps.map(interest), ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(address));
        guard.set_local_ports(LocalPorts::new(32768, vec![5353, 53, 53, 40000]));
        guard
    }

    fn tcp(port: u16, flags: TcpFlags) -> Packet {
        Packet { source: address(ME), destination: address("192.0.2.1"), hit: Hit::Tcp { port, flags } }
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
    fn a_scanner_is_ignored_until_it_has_been_quiet_for_a_minute() {
        let mut guard = guard(1);
        assert_last_makes_a_scanner(&mut guard, [syn(1), syn(2)], 0);
        for (packet, second) in [(syn(700), 60), (syn(1), 120), (udp(7000), 180), (udp(9), 240)] {
            assert_eq!(guard.handle_packet(&packet, seconds(second)), Ignored);
        }
        assert_eq!(guard.handle_packet(&syn(700), seconds(301)), AtDoor);
        // It starts over.
        assert_last_makes_a_scanner(&mut guard, [syn(3), syn(4)], 301);
    }

    #[test]
    fn packets_that_are_no_attempts_are_ignored_but_do_not_disturb_the_quiet() {
        let mut guard = guard(1);
        assert_last_makes_a_scanner(&mut guard, [syn(1), syn(2)], 0);
        assert_eq!(guard.handle_packet(&tcp(700, TcpFlags::ACK), seconds(60)), Ignored);
        assert_eq!(guard.handle_packet(&tcp(3, TcpFlags::ACK), seconds(60)), Elsewhere);
        assert_eq!(guard.handle_packet(&tcp(700, TcpFlags::ACK), seconds(61)), AtDoor);
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
        assert!(guard.local_ports().is_some_and(|ports| ports.is_in_use(53) && !ports.is_in_use(54)));
    }

    #[test]
    fn a_new_limit_counts_from_the_next_port_on_and_leaves_scanners_what_they_are() {
        let mut guard = guard(5);
        assert_last_makes_a_scanner(&mut guard, (1..=6).map(syn), 0);
        let other = |port| from("203.0.113.2", syn(port));
        (1..=5).for_each(|port| assert_eq!(guard.handle_packet(&other(port), seconds(0)), Elsewhere));
        guard.set_limit(NonZeroU32::new(3));
        assert_eq!(guard.handle_packet(&other(5), seconds(0)), Elsewhere);
        assert_eq!(guard.handle_packet(&other(6), seconds(0)), NewScanner);
        assert_eq!(guard.handle_packet(&syn(700), seconds(0)), Ignored);
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
        let ports = LocalPorts::new(6, vec![3, 1, 3, 900]);
        assert_eq!(ports.unused().collect::<Vec<_>>(), [0..=0, 2..=2, 4..=5]);
        assert_eq!(LocalPorts::new(2, vec![0, 1]).unused().count(), 0);
        assert_eq!(LocalPorts::new(65535, vec![0, 65534]).unused().collect::<Vec<_>>(), [1..=65533]);
        assert_eq!(ports, LocalPorts::new(6, vec![1, 3]));
        assert_eq!(LocalPorts::default().unused().count(), 0);
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

    /// The same rule without bounds: everything that a source has ever tried.
    #[derive(Default)]
    struct Model {
        tries: Vec<(Step, u64)>,
        ignored_since: Option<u64>,
    }

    impl Model {
        fn handle(&mut self, limit: usize, step: Step, at_door: bool, now: u64) -> Sighting {
            if let Some(seen) = self.ignored_since.as_mut().filter(|seen| now - **seen <= 60) {
                *seen = now;
                return Ignored;
            }
            if at_door {
                return AtDoor;
            }
            if self.ignored_since.take().is_some() {
                self.tries.clear();
            }
            self.tries.push((step, now));
            let recent = self.tries.iter().filter(|(_, at)| now - at <= 60).map(|(step, _)| step);
            if recent.collect::<std::collections::HashSet<_>>().len() > limit {
                self.ignored_since = Some(now);
                return NewScanner;
            }
            Elsewhere
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_does_what_the_rule_says(
            limit in 1..6_u32,
            packets in prop::collection::vec((0..4_u8, 0..8_u16, any::<bool>(), 0..25_u64), 0..200),
        ) {
            let mut guard = guard(limit);
            let mut models: [Model; 4] = Default::default();
            let mut now = 0;
            for (last, port, is_tcp, wait) in packets {
                now += wait;
                // Two ports of doors and six strays.
                let port = 700 + port;
                let hit = if is_tcp { syn(port) } else { udp(port) };
                let packet = from(&format!("203.0.113.{last}"), hit);
                let at_door = is_tcp && port <= 702;
                let model = &mut models[usize::from(last)];
                let expected = model.handle(limit as usize, packet.hit.step(), at_door, now);
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
