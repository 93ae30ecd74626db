//! The matcher: packets go in, the progress of knocks comes out.
//!
//! Its rules are those of knockd 0.8 without its faults; `docs/conformance.md` lists them one by one.

mod doors;
mod judge;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU32;

use self::doors::{Destination, Meaning, StepKey, Watched};
pub use self::view::Underway;
use crate::attempts::{Attempt, Attempts, COOLING, ClassId};
use crate::config::Door;
use crate::outcome::{DoorId, Event, EventKind, Visibility};
use crate::packet::{Hit, OwnAddress, Packet};
use crate::seed::Seed;
use crate::sequence::Step;
use crate::tcp_flags::{FlagRule, TcpFlags};
use crate::time::Timestamp;

/// One reason to look at a packet; input for a kernel filter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Interest {
    /// The port and protocol.
    pub step: Step,
    /// The flags that a TCP packet must have.
    pub flags: FlagRule,
    /// The destination address; `None` for any of the interface's own.
    pub target: Option<IpAddr>,
}

/// Follows the progress of every source at every door.
///
/// A pure state machine. The caller owns the clock: it passes the present with every call, never an earlier time than
/// before (an earlier one counts as the latest), and calls [`Self::handle_timeout`] at [`Self::poll_timeout`] or at
/// any other time. The cost of a packet depends on the number of doors that start with its port and on the attempts
/// of its own source, not on the total number of attempts. Memory is bounded by the number of attempts allowed.
#[derive(Debug)]
pub struct Matcher {
    doors: Vec<Watched>,
    addresses: BTreeSet<OwnAddress>,
    /// The class of the doors with each target, and of those without one.
    classes: BTreeMap<Option<IpAddr>, ClassId>,
    /// Like the next one, only the administrator fills it, so it needs no hash that resists attackers.
    watched: hashbrown::HashMap<IpAddr, Destination>,
    /// What each step means to the doors of each class.
    steps: hashbrown::HashMap<StepKey, Meaning>,
    attempts: Attempts,
    seed: Seed,
    latest: Timestamp,
    /// Counts packets, to know which doors the current one has already moved.
    packet: u64,
    events: Vec<Event>,
}

impl Matcher {
    /// Creates a matcher for these doors, with room for `max_attempts` attempts.
    ///
    /// The seed must be a secret wherever strangers send the packets.
    ///
    /// One-time doors stay closed until [`Self::set_sequence`] gives them a sequence, and doors without a `Target`
    /// until [`Self::set_addresses`] names our own addresses.
    pub fn new(doors: &[Door], max_attempts: NonZeroU32, seed: Seed) -> Self {
        let mut matcher = Self {
            doors: Vec::new(),
            addresses: BTreeSet::new(),
            classes: BTreeMap::new(),
            watched: hashbrown::HashMap::new(),
            steps: hashbrown::HashMap::new(),
            attempts: Attempts::new(max_attempts, 0, &[], seed),
            seed,
            latest: Timestamp::ZERO,
            packet: 0,
            events: Vec::new(),
        };
        matcher.set_doors(doors, max_attempts);
        matcher
    }

    /// Drops every attempt of a source. A door whose `Cooldown` is still running continues to ignore it.
    pub fn forget(&mut self, source: IpAddr) {
        for &class in self.classes.values() {
            let mut next = self.attempts.first_of_source(source, class);
            while let Some(slot) = next {
                next = self.attempts.next_of_source(slot);
                if self.attempts.get(slot).is_some_and(|attempt| attempt.stage != COOLING) {
                    self.attempts.remove(slot);
                }
            }
        }
    }

    /// Returns the number of attempts in progress, plus sources that a door ignores for its `Cooldown`.
    pub fn attempts(&self) -> usize {
        self.attempts.len()
    }

    /// Judges a packet and returns, in this order: attempts of any source that ended before `now`, and then, in door
    /// order, what the packet did to its own source's attempts and which others it evicted.
    ///
    /// A packet that no door sees ([`Self::visibility`]) changes nothing.
    pub fn handle_packet(&mut self, packet: &Packet, now: Timestamp) -> &[Event] {
        self.events.clear();
        self.expire(now);
        let (classes, is_elsewhere) = self.classes_of(packet);
        let step = packet.hit.step();
        if self.visibility_to(classes, packet.hit) == Visibility::Visible {
            self.packet += 1;
            let own = self.events.len();
            let mut completed = false;
            // Only to our own addresses is a packet sent that 0.8 does not see.
            let classes = classes.into_iter().zip([is_elsewhere, false]);
            let classes = classes.filter_map(|(class, is_lenient)| Some((class?, is_lenient)));
            for (class, is_lenient) in classes.clone() {
                completed |= self.judge(packet, class, is_lenient);
            }
            for (class, is_lenient) in classes {
                self.begin(packet, step, class, completed, is_lenient);
            }
            self.events.get_mut(own..).unwrap_or_default().sort_by_key(|event| event.door);
        }
        &self.events
    }

    /// Says whether any door sees a packet at present.
    pub fn visibility(&self, packet: &Packet) -> Visibility {
        self.visibility_to(self.classes_of(packet).0, packet.hit)
    }

    /// Ends the attempts that have timed out and returns them as [`EventKind::TimedOut`], for each `Seq_Timeout` the
    /// oldest first. Calling it early or twice is harmless.
    pub fn handle_timeout(&mut self, now: Timestamp) -> &[Event] {
        self.events.clear();
        self.expire(now);
        &self.events
    }

    /// Returns when [`Self::handle_timeout`] wants to be called; `None` if no attempt is in progress.
    ///
    /// It may be too early, never too late.
    pub const fn poll_timeout(&self) -> Option<Timestamp> {
        self.attempts.next_end()
    }

    fn expire(&mut self, now: Timestamp) {
        self.latest = self.latest.max(now);
        let events = &mut self.events;
        self.attempts.expire(self.latest, |Attempt { source, door, stage, .. }| {
            if stage != COOLING {
                events.push(Event { source, door: DoorId(door), kind: EventKind::TimedOut(stage) });
            }
        });
    }

    /// Returns the classes of doors that watch the packet's destination: doors without a `Target` if it is our own, and
    /// doors with it as their target. Also says whether it is an address of another interface than the one that shows
    /// the packet.
    fn classes_of(&self, packet: &Packet) -> ([Option<ClassId>; 2], bool) {
        let Some(destination) = self.watched.get(&packet.destination) else { return Default::default() };
        let is_elsewhere = !destination.is_of(packet.passage.interface);
        let own = destination.own.filter(|_| !is_elsewhere || destination.is_global);
        ([own, destination.target], is_elsewhere)
    }

    fn visibility_to(&self, classes: [Option<ClassId>; 2], hit: Hit) -> Visibility {
        let flags = match hit {
            Hit::Tcp { flags, .. } => flags,
            Hit::Udp { .. } => TcpFlags::NONE,
        };
        let step = hit.step();
        let mut nearest = Visibility::NotWatched;
        for class in classes.into_iter().flatten() {
            let visibility = match self.steps.get(&StepKey::new(class, step)) {
                None => Visibility::NoDoorsPort,
                Some(meaning) if meaning.visible >> flags.bits() & 1 == 1 => return Visibility::Visible,
                Some(_) => Visibility::WrongFlags,
            };
            nearest = nearest.max(visibility);
        }
        nearest
    }
}

#[cfg(test)]
mod tests {
    use super::EventKind::{
        Cooling, Elsewhere, Evicted, Opened, Repeated, Spoiled, Stage, TimedOut, WrongFlags,
    };
    use std::time::Duration;

    use super::*;
    use crate::config::{Key, Options};
    use crate::packet::Passage;
    use crate::sequence::Sequence;
    use crate::text::{DoorName, Text};
    use crate::time::Seconds;

    const SYN: TcpFlags = TcpFlags::SYN;
    const ACK: TcpFlags = TcpFlags::ACK;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn sequence(text: &str) -> Sequence {
        text.parse().unwrap()
    }

    fn door(name: &str, steps: &str) -> Door {
        Door::new(DoorName::new(name).unwrap(), Key::Sequence(sequence(steps)))
    }

    fn one_time(name: &str) -> Door {
        Door::new(DoorName::new(name).unwrap(), Key::OneTime(Text::new("file").unwrap()))
    }

    fn with_flags(tcp_flags: FlagRule, door: Door) -> Door {
        Door { tcp_flags, ..door }
    }

    fn with_target(target: &str, door: Door) -> Door {
        Door { target: Some(address(target)), ..door }
    }

    fn with_timeout(seconds: u32, door: Door) -> Door {
        Door { seq_timeout: Seconds::new(seconds), ..door }
    }

    fn limit(max_attempts: u32) -> NonZeroU32 {
        NonZeroU32::new(max_attempts).unwrap()
    }

    fn matcher(doors: &[Door]) -> Matcher {
        limited(doors, 1000)
    }

    /// Its own addresses are 192.0.2.1, 192.0.2.2 and `2001:db8::1`.
    fn limited(doors: &[Door], max_attempts: u32) -> Matcher {
        let mut matcher = Matcher::new(doors, limit(max_attempts), Seed::new(1, 2));
        matcher.set_addresses(["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(address));
        matcher
    }

    fn milliseconds(count: u64) -> Timestamp {
        Timestamp::ZERO.after(Duration::from_millis(count))
    }

    fn tcp(port: u16, flags: TcpFlags) -> Packet {
        Packet::incoming(address("203.0.113.1"), address("192.0.2.1"), Hit::Tcp { port, flags })
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

    /// Returns what these packets cause, one after another at the latest time, for the source of [`tcp`].
    fn send(matcher: &mut Matcher, packets: &[Packet]) -> Vec<(usize, EventKind)> {
        let now = matcher.latest;
        packets.iter().flat_map(|packet| matcher.handle_packet(packet, now).to_vec()).map(plain).collect()
    }

    /// Does the same for SYNs to these ports.
    fn knock(matcher: &mut Matcher, ports: &[u16]) -> Vec<(usize, EventKind)> {
        send(matcher, &ports.iter().map(|&port| syn(port)).collect::<Vec<_>>())
    }

    fn plain(event: Event) -> (usize, EventKind) {
        assert_eq!(event.source, address("203.0.113.1"));
        (event.door.index(), event.kind)
    }

    fn event(source: &str, door: usize, kind: EventKind) -> Event {
        Event { source: address(source), door: DoorId::new(door), kind }
    }

    #[test]
    fn the_steps_in_order_open_the_door_and_the_last_stage_is_reported_too() {
        let mut matcher = matcher(&[door("a", "7000,8000:udp,9000")]);
        let events = send(&mut matcher, &[syn(7000), udp(8000), syn(9000)]);
        assert_eq!(events, [(0, Stage(1)), (0, Stage(2)), (0, Stage(3)), (0, Opened)]);
        assert_eq!((matcher.attempts(), matcher.poll_timeout()), (0, Some(milliseconds(25_000))));
        assert_eq!(matcher.handle_timeout(milliseconds(25_000)), [], "the attempt is over");
        assert_eq!(matcher.poll_timeout(), None);
    }

    #[test]
    fn the_same_port_of_the_other_protocol_is_another_step() {
        let mut matcher = matcher(&[door("a", "7000,8000:udp"), door("b", "1,8000")]);
        assert_eq!(knock(&mut matcher, &[7000, 8000]), [(0, Stage(1)), (0, Spoiled(1))]);
    }

    #[test]
    fn a_sequence_may_have_32_steps_and_repeat_a_port_throughout() {
        let mut matcher = matcher(&[door("a", &["7000"; 32].join(","))]);
        let mut expected: Vec<_> = (1..=32).map(|stage| (0, Stage(stage))).collect();
        expected.push((0, Opened));
        assert_eq!(knock(&mut matcher, &[7000; 32]), expected);
    }

    #[test]
    fn a_door_of_one_step_opens_at_every_hit_and_keeps_no_attempt() {
        let mut matcher = matcher(&[door("a", "7000")]);
        let events = knock(&mut matcher, &[7000, 7000]);
        assert_eq!(events, [(0, Stage(1)), (0, Opened), (0, Stage(1)), (0, Opened)]);
        assert_eq!((matcher.attempts(), matcher.poll_timeout()), (0, None));
    }

    #[test]
    fn doors_with_the_same_beginning_run_side_by_side() {
        let mut matcher = matcher(&[door("a", "1,2,3"), door("b", "1,2,4"), door("c", "1,2")]);
        assert_eq!(knock(&mut matcher, &[1]), [(0, Stage(1)), (1, Stage(1)), (2, Stage(1))]);
        assert_eq!(knock(&mut matcher, &[2]), [(0, Stage(2)), (1, Stage(2)), (2, Stage(2)), (2, Opened)]);
        assert_eq!(knock(&mut matcher, &[4]), [(0, Spoiled(2)), (1, Stage(3)), (1, Opened)]);
    }

    #[test]
    fn doors_of_one_sequence_all_open() {
        let mut matcher = matcher(&[door("a", "1,2"), door("a", "1,2")]);
        knock(&mut matcher, &[1]);
        assert_eq!(knock(&mut matcher, &[2]), [(0, Stage(2)), (0, Opened), (1, Stage(2)), (1, Opened)]);
    }

    #[test]
    fn a_door_can_be_begun_while_an_attempt_at_another_is_under_way() {
        let mut matcher = matcher(&[door("a", "1,2,5"), door("b", "2,5,2,6")]);
        assert_eq!(knock(&mut matcher, &[1, 2]), [(0, Stage(1)), (0, Stage(2)), (1, Stage(1))]);
        let events = knock(&mut matcher, &[5]);
        assert_eq!(events, [(0, Stage(3)), (0, Opened), (1, Stage(2))]);
        assert_eq!(knock(&mut matcher, &[2, 6]), [(1, Stage(3)), (1, Stage(4)), (1, Opened)]);
    }

    #[test]
    fn sources_do_not_disturb_each_other() {
        let mut matcher = matcher(&[door("a", "1,2,3")]);
        let (first, second) = ("203.0.113.1", "2001:db8::9");
        let to_own = |packet| to("2001:db8::1", from(second, packet));
        let packets = [syn(1), to_own(syn(1)), syn(2), to_own(syn(3)), syn(3)];
        let events: Vec<_> = packets
            .iter()
            .flat_map(|packet| matcher.handle_packet(packet, milliseconds(0)).to_vec())
            .collect();
        let expected = [
            event(first, 0, Stage(1)),
            event(second, 0, Stage(1)),
            event(first, 0, Stage(2)),
            event(second, 0, Spoiled(1)),
            event(first, 0, Stage(3)),
            event(first, 0, Opened),
        ];
        assert_eq!(events, expected);
    }

    #[test]
    fn the_end_of_the_oldest_attempt_ends_no_other_sources() {
        let mut matcher = matcher(&[door("a", "1,2")]);
        let other = |port| from("203.0.113.2", syn(port));
        knock(&mut matcher, &[1]);
        assert_eq!(matcher.handle_packet(&other(1), milliseconds(1)), [event("203.0.113.2", 0, Stage(1))]);
        assert_eq!(knock(&mut matcher, &[2]), [(0, Stage(2)), (0, Opened)]);
        let opened = [event("203.0.113.2", 0, Stage(2)), event("203.0.113.2", 0, Opened)];
        assert_eq!(matcher.handle_packet(&other(2), milliseconds(2)), opened);
    }

    #[test]
    fn a_step_out_of_order_spoils_the_attempt() {
        let mut matcher = matcher(&[door("a", "1,2,3")]);
        assert_eq!(knock(&mut matcher, &[1, 3, 2, 3]), [(0, Stage(1)), (0, Spoiled(1))]);
        assert_eq!(knock(&mut matcher, &[1, 2, 3]).last(), Some(&(0, Opened)));
    }

    #[test]
    fn a_port_of_another_door_spoils_the_attempt_and_a_port_of_no_door_does_not() {
        let mut matcher = matcher(&[door("a", "1,2"), door("b", "8,9")]);
        assert_eq!(knock(&mut matcher, &[1, 5, 2]), [(0, Stage(1)), (0, Stage(2)), (0, Opened)]);
        assert_eq!(knock(&mut matcher, &[1, 9, 2]), [(0, Stage(1)), (0, Spoiled(1))]);
    }

    #[test]
    fn a_first_step_begins_another_attempt_beside_the_one_under_way() {
        let mut matcher = matcher(&[door("a", "1,2,3")]);
        assert_eq!(knock(&mut matcher, &[1, 2, 1]), [(0, Stage(1)), (0, Stage(2)), (0, Stage(1))]);
        assert_eq!(knock(&mut matcher, &[3]), [(0, Stage(3)), (0, Opened)]);
        assert_eq!(matcher.attempts(), 0, "the others are over with the first that opens");
    }

    #[test]
    fn an_attempt_that_is_overtaken_by_a_younger_one_goes() {
        let mut matcher = matcher(&[with_timeout(5, door("a", "1,2,3"))]);
        knock(&mut matcher, &[1, 2]);
        matcher.handle_packet(&syn(1), milliseconds(4000));
        assert_eq!((matcher.attempts(), matcher.poll_timeout()), (2, Some(milliseconds(5000))));
        matcher.handle_packet(&syn(2), milliseconds(4000));
        assert_eq!(matcher.attempts(), 1);
        assert_eq!(matcher.handle_timeout(milliseconds(8999)), []);
        assert_eq!(knock(&mut matcher, &[3]), [(0, Stage(3)), (0, Opened)]);
    }

    #[test]
    fn a_source_has_at_most_four_attempts_at_a_door_and_a_fifth_takes_the_place_of_the_oldest() {
        let mut matcher = matcher(&[door("a", "1,2,3,4,5,6,7"), door("b", "1,9")]);
        let stages = |matcher: &Matcher| {
            matcher.underway().filter(|it| it.door.index() == 0).map(|it| it.stage).collect::<Vec<_>>()
        };
        for last in (1..6).rev() {
            knock(&mut matcher, &(1..=last).collect::<Vec<_>>());
        }
        assert_eq!(stages(&matcher), [4, 3, 2, 1]);
        assert_eq!(knock(&mut matcher, &[2, 3, 4, 5, 6, 7]).last(), Some(&(0, Opened)));
        assert_eq!(stages(&matcher), []);
    }

    #[test]
    fn a_packet_that_spoils_one_attempt_begins_another_door() {
        let mut matcher = matcher(&[door("a", "1,2"), door("b", "8,9")]);
        assert_eq!(knock(&mut matcher, &[1, 8]), [(0, Stage(1)), (0, Spoiled(1)), (1, Stage(1))]);
    }

    #[test]
    fn a_repeat_of_the_last_step_is_ignored() {
        let mut matcher = matcher(&[door("a", "1,2,3")]);
        assert_eq!(knock(&mut matcher, &[1, 1, 1]), [(0, Stage(1)), (0, Repeated(1)), (0, Repeated(1))]);
        assert_eq!(knock(&mut matcher, &[2, 2]), [(0, Stage(2)), (0, Repeated(2))]);
        assert_eq!(knock(&mut matcher, &[3]), [(0, Stage(3)), (0, Opened)]);
    }

    #[test]
    fn a_repeat_of_an_earlier_step_is_ignored_and_a_later_step_spoils() {
        let mut matcher = matcher(&[door("a", "1,2,3,4,5")]);
        knock(&mut matcher, &[1, 2, 3]);
        assert_eq!(knock(&mut matcher, &[2, 4, 3]), [(0, Repeated(3)), (0, Stage(4)), (0, Repeated(4))]);
        assert_eq!(knock(&mut matcher, &[5]), [(0, Stage(5)), (0, Opened)]);
        knock(&mut matcher, &[1, 2, 3]);
        assert_eq!(knock(&mut matcher, &[5, 4, 5]), [(0, Spoiled(3))]);
    }

    #[test]
    fn a_repeat_that_is_also_the_next_step_advances() {
        let mut matcher = matcher(&[door("a", "1,1,2")]);
        assert_eq!(knock(&mut matcher, &[1, 1]), [(0, Stage(1)), (0, Stage(2))]);
        assert_eq!(matcher.attempts(), 1);
        assert_eq!(knock(&mut matcher, &[1, 2]), [(0, Stage(1)), (0, Stage(3)), (0, Opened)]);
    }

    #[test]
    fn a_repeat_at_stage_1_restarts_the_clock_and_one_at_a_later_stage_does_not() {
        let mut matcher = matcher(&[with_timeout(5, door("a", "1,2,3"))]);
        matcher.handle_packet(&syn(1), milliseconds(0));
        assert_eq!(
            matcher.handle_packet(&syn(1), milliseconds(4000)),
            [event("203.0.113.1", 0, Repeated(1))]
        );
        assert_eq!(matcher.handle_timeout(milliseconds(8999)), []);
        assert_eq!(knock(&mut matcher, &[2]), [(0, Stage(2))]);
        assert_eq!(knock(&mut matcher, &[2]), [(0, Repeated(2))]);
        assert_eq!(matcher.poll_timeout(), Some(milliseconds(9000)));
        assert_eq!(matcher.handle_timeout(milliseconds(9000)), [event("203.0.113.1", 0, TimedOut(2))]);
    }

    #[test]
    fn a_packet_that_completes_a_longer_sequence_begins_no_other() {
        let mut matcher = matcher(&[door("open", "1,2,3"), door("close", "3,2,1")]);
        knock(&mut matcher, &[1, 2]);
        assert_eq!(knock(&mut matcher, &[3]), [(0, Stage(3)), (0, Opened)]);
        assert_eq!(knock(&mut matcher, &[2, 1]), [(0, Stage(1))], "closing needs all of its steps");
        assert_eq!(matcher.attempts(), 1);
    }

    #[test]
    fn a_packet_that_completes_begins_no_attempt_beside_another() {
        let mut matcher = matcher(&[door("a", "1,2"), door("b", "2,1,1,5")]);
        assert_eq!(
            knock(&mut matcher, &[2, 1, 1]),
            [(1, Stage(1)), (0, Stage(1)), (1, Stage(2)), (0, Repeated(1)), (1, Stage(3)),]
        );
        assert_eq!(knock(&mut matcher, &[2]), [(0, Stage(2)), (0, Opened), (1, Repeated(3))]);
        assert_eq!(matcher.attempts(), 1);
    }

    #[test]
    fn a_packet_that_completes_opens_doors_of_one_step_and_lets_other_attempts_move_on() {
        let mut matcher = matcher(&[door("one", "2"), door("a", "1,2"), door("b", "1,2,3")]);
        knock(&mut matcher, &[1]);
        assert_eq!(
            knock(&mut matcher, &[2]),
            [(0, Stage(1)), (0, Opened), (1, Stage(2)), (1, Opened), (2, Stage(2)),]
        );
    }

    #[test]
    fn opening_a_door_of_one_step_keeps_no_door_from_beginning() {
        let mut matcher = matcher(&[door("one", "1"), door("a", "1,2")]);
        assert_eq!(knock(&mut matcher, &[1]), [(0, Stage(1)), (0, Opened), (1, Stage(1))]);
    }

    #[test]
    fn a_packet_with_the_wrong_flags_is_ignored_by_the_attempt_and_begins_none() {
        let rule = FlagRule::ANY.and_set(SYN).and_clear(ACK);
        let mut matcher = matcher(&[with_flags(rule, door("a", "1,2")), door("b", "8,1,2")]);
        assert_eq!(send(&mut matcher, &[tcp(1, SYN.union(ACK))]), [(0, WrongFlags(0))]);
        assert_eq!(send(&mut matcher, &[tcp(1, SYN)]), [(0, Stage(1))]);
        assert_eq!(send(&mut matcher, &[tcp(8, ACK)]), [(0, WrongFlags(1)), (1, Stage(1))]);
        assert_eq!(send(&mut matcher, &[tcp(2, SYN.union(ACK))]), [(0, WrongFlags(1)), (1, Spoiled(1))]);
        assert_eq!(send(&mut matcher, &[tcp(2, SYN.union(TcpFlags::PSH))]), [(0, Stage(2)), (0, Opened)]);
    }

    #[test]
    fn a_packet_whose_flags_fit_no_door_of_its_port_spoils_nothing() {
        let syn_only = FlagRule::ANY.and_set(SYN);
        let doors = [
            with_flags(syn_only, door("a", "1,2")),
            with_flags(FlagRule::ANY.and_set(ACK), door("b", "8,9")),
        ];
        let mut matcher = matcher(&doors);
        knock(&mut matcher, &[1]);
        assert_eq!(send(&mut matcher, &[tcp(9, SYN)]), [], "port 9 is looked at with ACK only");
        assert_eq!(send(&mut matcher, &[tcp(9, SYN.union(ACK))]), [(0, Spoiled(1))]);
    }

    #[test]
    fn what_no_door_looks_at_has_a_reason() {
        use Visibility::{NoDoorsPort, NotWatched, Visible, WrongFlags};
        let syn_only = FlagRule::ANY.and_set(SYN);
        let doors = [
            with_flags(syn_only, door("a", "1,2")),
            with_target("198.51.100.1", door("b", "1")),
            with_target("192.0.2.1", door("c", "3:udp")),
        ];
        let matcher = matcher(&doors);
        for (packet, expected) in [
            (syn(1), Visible),
            (to("198.51.100.9", syn(1)), NotWatched),
            (syn(4), NoDoorsPort),
            (udp(1), NoDoorsPort),
            (tcp(1, ACK), WrongFlags),
            (to("198.51.100.1", tcp(1, ACK)), Visible),
            (udp(3), Visible),
            (to("192.0.2.2", udp(3)), NoDoorsPort),
        ] {
            assert_eq!(matcher.visibility(&packet), expected, "{packet:?}");
        }
    }

    #[test]
    fn flags_do_not_concern_udp_steps() {
        let rule = FlagRule::ANY.and_set(SYN);
        let mut matcher = matcher(&[with_flags(rule, door("a", "1:udp,2,3:udp"))]);
        let events = send(&mut matcher, &[udp(1), syn(2), udp(3)]);
        assert_eq!(events, [(0, Stage(1)), (0, Stage(2)), (0, Stage(3)), (0, Opened)]);
    }

    #[test]
    fn a_door_without_target_is_hit_at_any_own_address_and_nowhere_else() {
        let mut matcher = matcher(&[door("a", "1,2,3")]);
        assert_eq!(send(&mut matcher, &[to("198.51.100.1", syn(1))]), []);
        let steps = [syn(1), to("198.51.100.1", syn(3)), to("192.0.2.2", syn(2)), to("2001:db8::1", syn(3))];
        assert_eq!(send(&mut matcher, &steps), [(0, Stage(1)), (0, Stage(2)), (0, Stage(3)), (0, Opened)]);
    }

    #[test]
    fn a_door_with_target_is_hit_there_and_not_at_our_own_addresses() {
        let mut matcher = matcher(&[with_target("198.51.100.1", door("a", "1,2"))]);
        assert_eq!(send(&mut matcher, &[syn(1)]), []);
        let steps = [to("198.51.100.1", syn(1)), syn(1), syn(2), to("198.51.100.1", syn(2))];
        assert_eq!(send(&mut matcher, &steps), [(0, Stage(1)), (0, Stage(2)), (0, Opened)]);
    }

    #[test]
    fn a_target_that_is_an_own_address_is_hit_by_packets_for_doors_without_target_too() {
        let mut matcher = matcher(&[with_target("192.0.2.1", door("a", "1,2")), door("b", "1,3")]);
        assert_eq!(send(&mut matcher, &[syn(1)]), [(0, Stage(1)), (1, Stage(1))]);
        assert_eq!(send(&mut matcher, &[to("192.0.2.2", syn(2))]), [], "no door hit there uses port 2");
        assert_eq!(send(&mut matcher, &[syn(2)]), [(0, Stage(2)), (0, Opened), (1, Spoiled(1))]);
    }

    #[test]
    fn a_packet_to_a_target_spoils_no_attempt_at_our_own_addresses() {
        let mut matcher = matcher(&[door("a", "1,2"), with_target("198.51.100.1", door("b", "9,8"))]);
        let packets = [syn(1), to("198.51.100.1", syn(9)), syn(9), syn(2)];
        let expected = [(0, Stage(1)), (1, Stage(1)), (0, Stage(2)), (0, Opened)];
        assert_eq!(send(&mut matcher, &packets), expected);
    }

    #[test]
    fn addresses_that_change_are_followed_and_attempts_stay() {
        let mut matcher = matcher(&[door("a", "1,2")]);
        assert_eq!(knock(&mut matcher, &[1]), [(0, Stage(1))]);
        matcher.set_addresses([address("192.0.2.9")]);
        assert_eq!(knock(&mut matcher, &[2]), []);
        assert_eq!(send(&mut matcher, &[to("192.0.2.9", syn(2))]), [(0, Stage(2)), (0, Opened)]);
    }

    #[test]
    fn a_packet_to_an_address_of_another_interface_begins_and_advances_and_spoils_nothing() {
        let mut matcher = matcher(&[door("a", "1,2,3,4"), with_target("192.0.2.2", door("b", "9,8"))]);
        let own = |text, interface| OwnAddress { address: address(text), interface };
        matcher.set_addresses([own("192.0.2.1", 7), own("192.0.2.2", 8), own("fe80::1", 8)]);
        let on = |interface, packet| Packet { passage: Passage { interface, tag: 0 }, ..packet };
        let there = |port| on(7, to("192.0.2.2", syn(port)));
        let events = send(&mut matcher, &[there(1), on(7, syn(2)), there(4), there(3)]);
        assert_eq!(events, [(0, Stage(1)), (0, Stage(2)), (0, Elsewhere(2)), (0, Stage(3))]);
        assert_eq!(
            send(&mut matcher, &[there(9), on(7, syn(4))]),
            [(0, Elsewhere(3)), (1, Stage(1)), (0, Stage(4)), (0, Opened)]
        );
        assert_eq!(send(&mut matcher, &[there(4)]), [(1, Spoiled(1))], "a target is one on any interface");
        let here = [on(8, there(1)), on(8, there(4)), there(1)];
        assert_eq!(send(&mut matcher, &here), [(0, Stage(1)), (0, Spoiled(1)), (0, Stage(1))]);
        for (interface, expected) in [(7, Visibility::NotWatched), (8, Visibility::Visible)] {
            let local = on(interface, from("fe80::2", to("fe80::1", syn(1))));
            assert_eq!(matcher.visibility(&local), expected);
        }
    }

    #[test]
    fn without_addresses_only_targets_are_watched() {
        let doors = [door("a", "1"), with_target("198.51.100.1", door("b", "1"))];
        let mut matcher = Matcher::new(&doors, limit(10), Seed::new(1, 2));
        assert_eq!(send(&mut matcher, &[syn(1), to("198.51.100.1", syn(1))]), [(1, Stage(1)), (1, Opened)]);
    }

    #[test]
    fn a_sequence_has_to_be_complete_before_its_timeout_to_the_nanosecond() {
        let begun = Timestamp::new(Duration::from_nanos(700_000_001));
        let last_moment = begun.after(Duration::from_nanos(4_999_999_999));
        for (now, expected) in [
            (last_moment, vec![(0, Stage(2)), (0, Opened)]),
            (begun.after(Duration::from_secs(5)), vec![(0, TimedOut(1))]),
        ] {
            let mut matcher = matcher(&[with_timeout(5, door("a", "1,2"))]);
            matcher.handle_packet(&syn(1), begun);
            let events: Vec<_> = matcher.handle_packet(&syn(2), now).iter().copied().map(plain).collect();
            assert_eq!(events, expected);
        }
    }

    #[test]
    fn a_packet_that_comes_too_late_is_judged_without_the_attempt_that_it_finds_ended() {
        let mut matcher = matcher(&[with_timeout(5, door("a", "1,2"))]);
        matcher.handle_packet(&syn(1), milliseconds(0));
        let expected = [event("203.0.113.1", 0, TimedOut(1)), event("203.0.113.1", 0, Stage(1))];
        assert_eq!(matcher.handle_packet(&syn(1), milliseconds(5000)), expected);
    }

    #[test]
    fn with_a_timeout_of_zero_only_doors_of_one_step_open() {
        let mut matcher = matcher(&[with_timeout(0, door("a", "1,2")), with_timeout(0, door("b", "1"))]);
        assert_eq!(knock(&mut matcher, &[1]), [(0, Stage(1)), (1, Stage(1)), (1, Opened)]);
        assert_eq!(matcher.poll_timeout(), Some(milliseconds(0)));
        assert_eq!(knock(&mut matcher, &[2]), [(0, TimedOut(1))]);
        assert_eq!(matcher.poll_timeout(), None);
    }

    #[test]
    fn attempts_time_out_at_every_packet_even_one_that_no_door_wants() {
        let mut matcher = matcher(&[with_timeout(5, door("a", "1,2"))]);
        knock(&mut matcher, &[1]);
        let unwanted = from("203.0.113.99", syn(4444));
        assert_eq!(
            matcher.handle_packet(&unwanted, milliseconds(5000)),
            [event("203.0.113.1", 0, TimedOut(1))]
        );
    }

    #[test]
    fn time_that_goes_back_is_taken_for_the_latest() {
        let mut matcher = matcher(&[with_timeout(5, door("a", "1,2"))]);
        matcher.handle_timeout(milliseconds(10_000));
        matcher.handle_packet(&syn(1), milliseconds(0));
        assert_eq!(matcher.poll_timeout(), Some(milliseconds(15_000)));
        assert_eq!(matcher.handle_timeout(milliseconds(14_999)), []);
    }

    #[test]
    fn for_each_timeout_the_oldest_attempt_ends_first() {
        let mut matcher = matcher(&[with_timeout(5, door("a", "1,2")), with_timeout(3, door("b", "1,3"))]);
        let sources = ["203.0.113.3", "203.0.113.1", "203.0.113.2"];
        // The last packet restarts the clock of the first source.
        for (source, now) in sources.into_iter().chain(["203.0.113.3"]).zip(0..) {
            matcher.handle_packet(&from(source, syn(1)), milliseconds(now));
        }
        let expected: Vec<_> = (0..2)
            .flat_map(|door| {
                ["203.0.113.1", "203.0.113.2", "203.0.113.3"].map(|source| event(source, door, TimedOut(1)))
            })
            .collect();
        assert_eq!(matcher.handle_timeout(milliseconds(9000)), expected);
    }

    #[test]
    fn a_full_table_drops_the_attempt_longest_at_its_stage_and_says_so() {
        let mut matcher = limited(&[door("a", "1,2,3")], 2);
        for (source, port) in [("203.0.113.2", 1), ("203.0.113.3", 1), ("203.0.113.2", 2)] {
            matcher.handle_packet(&from(source, syn(port)), milliseconds(0));
        }
        let expected = [event("203.0.113.1", 0, Stage(1)), event("203.0.113.3", 0, Evicted(1))];
        assert_eq!(matcher.handle_packet(&syn(1), milliseconds(1)), expected);
        assert_eq!(matcher.attempts(), 2);
        let opened = [event("203.0.113.2", 0, Stage(3)), event("203.0.113.2", 0, Opened)];
        assert_eq!(matcher.handle_packet(&from("203.0.113.2", syn(3)), milliseconds(2)), opened);
    }

    #[test]
    fn doors_that_stay_the_same_keep_their_attempts_in_any_order() {
        let (a, b) = (door("a", "1,2,3"), with_timeout(7, door("b", "1,2,4")));
        let mut matcher = matcher(&[a.clone(), b.clone()]);
        knock(&mut matcher, &[1]);
        matcher.set_doors(&[door("new", "5,6"), b, a], limit(1000));
        assert_eq!((matcher.attempts(), matcher.poll_timeout()), (2, Some(milliseconds(7000))));
        assert_eq!(knock(&mut matcher, &[2]), [(1, Stage(2)), (2, Stage(2))]);
        assert_eq!(knock(&mut matcher, &[4]), [(1, Stage(3)), (1, Opened), (2, Spoiled(2))]);
    }

    #[test]
    fn what_does_not_concern_matching_may_change_and_attempts_stay() {
        let mut matcher = matcher(&[door("a", "1,2")]);
        knock(&mut matcher, &[1]);
        let cmd_timeout = Seconds::new(99);
        matcher.set_doors(&[Door { cmd_timeout, ..door("a", "1,2") }], limit(1000));
        assert_eq!(knock(&mut matcher, &[2]), [(0, Stage(2)), (0, Opened)]);
    }

    #[test]
    fn doors_that_change_lose_their_attempts_without_an_event() {
        let syn_only = FlagRule::ANY.and_set(SYN);
        for changed in [
            door("b", "1,2"),
            door("a", "1,2,3"),
            with_timeout(26, door("a", "1,2")),
            with_flags(syn_only, door("a", "1,2")),
            with_target("192.0.2.1", door("a", "1,2")),
            one_time("a"),
        ] {
            let mut matcher = matcher(&[door("a", "1,2")]);
            knock(&mut matcher, &[1]);
            matcher.set_doors(std::slice::from_ref(&changed), limit(1000));
            assert_eq!((matcher.attempts(), matcher.poll_timeout()), (0, None), "{changed:?}");
            assert_eq!(knock(&mut matcher, &[2]), [], "{changed:?}");
        }
    }

    #[test]
    fn doors_of_one_name_are_told_apart_by_their_order() {
        let (first, second) = (door("a", "1,2"), door("a", "1,3"));
        let mut matcher = matcher(&[first.clone(), second.clone()]);
        knock(&mut matcher, &[1]);
        matcher.set_doors(&[first, door("b", "5,6"), second], limit(1000));
        assert_eq!(matcher.attempts(), 2);
        assert_eq!(knock(&mut matcher, &[3]), [(0, Spoiled(1)), (2, Stage(2)), (2, Opened)]);
    }

    #[test]
    fn a_lower_bound_is_kept_at_once() {
        let mut matcher = matcher(&[door("a", "1,2")]);
        for source in ["203.0.113.2", "203.0.113.3", "203.0.113.4"] {
            matcher.handle_packet(&from(source, syn(1)), milliseconds(0));
        }
        matcher.set_doors(&[door("a", "1,2")], limit(2));
        assert_eq!(matcher.attempts(), 2);
    }

    #[test]
    fn a_one_time_door_without_a_sequence_sees_nothing_and_makes_nothing_visible() {
        let mut matcher = matcher(&[one_time("a"), door("b", "1,2")]);
        assert_eq!(knock(&mut matcher, &[8, 9]), []);
        matcher.set_sequence(DoorId::new(0), Some(sequence("8,9")));
        assert_eq!(knock(&mut matcher, &[8, 9]), [(0, Stage(1)), (0, Stage(2)), (0, Opened)]);
        matcher.set_sequence(DoorId::new(0), None);
        assert_eq!(knock(&mut matcher, &[8, 1, 8, 2]), [(1, Stage(1)), (1, Stage(2)), (1, Opened)]);
    }

    #[test]
    fn another_sequence_drops_the_attempts_at_its_door_only_and_the_same_one_drops_none() {
        let mut matcher = matcher(&[one_time("a"), door("b", "1,2,4")]);
        matcher.set_sequence(DoorId::new(0), Some(sequence("1,2,3")));
        knock(&mut matcher, &[1]);
        matcher.set_sequence(DoorId::new(0), Some(sequence("1,2,3")));
        assert_eq!(knock(&mut matcher, &[2]), [(0, Stage(2)), (1, Stage(2))]);
        matcher.set_sequence(DoorId::new(0), Some(sequence("1,2,5")));
        assert_eq!(knock(&mut matcher, &[4]), [(1, Stage(3)), (1, Opened)]);
    }

    #[test]
    fn new_doors_keep_the_sequence_and_the_attempts_of_an_unchanged_one_time_door() {
        let mut matcher = matcher(&[one_time("a")]);
        matcher.set_sequence(DoorId::new(0), Some(sequence("1,2")));
        knock(&mut matcher, &[1]);
        matcher.set_doors(&[door("b", "8,9"), one_time("a")], limit(1000));
        assert_eq!(knock(&mut matcher, &[2]), [(1, Stage(2)), (1, Opened)]);
        let other_file = Door::new(DoorName::new("a").unwrap(), Key::OneTime(Text::new("other").unwrap()));
        matcher.set_doors(&[other_file], limit(1000));
        assert_eq!(knock(&mut matcher, &[1, 2]), [], "another file, another sequence");
    }

    #[test]
    fn interests_are_the_steps_of_all_doors_once_each_and_in_order() {
        let syn_only = FlagRule::ANY.and_set(SYN);
        let target = with_target("198.51.100.1", door("c", "1"));
        let doors = [
            with_flags(syn_only, door("a", "1,2:udp,1")),
            with_flags(syn_only, door("b", "1")),
            target,
            one_time("d"),
        ];
        let mut matcher = matcher(&doors);
        let wanted = |step, flags, target| Interest { step, flags, target };
        let mut expected = vec![
            wanted(Step::tcp(1), syn_only, None),
            wanted(Step::udp(2), syn_only, None),
            wanted(Step::tcp(1), FlagRule::ANY, Some(address("198.51.100.1"))),
        ];
        assert_eq!(matcher.interests(), expected);
        matcher.set_sequence(DoorId::new(3), Some(sequence("9")));
        expected.push(wanted(Step::tcp(9), FlagRule::ANY, None));
        assert_eq!(matcher.interests(), expected);
    }

    fn with_cooldown(seconds: u32, door: Door) -> Door {
        Door { cooldown: Seconds::new(seconds), ..door }
    }

    #[test]
    fn a_source_that_is_forgotten_begins_anew_and_others_go_on() {
        let doors = [door("a", "1,2"), door("b", "1,3"), with_target("198.51.100.9", door("c", "1,2"))];
        let mut matcher = matcher(&doors);
        let other = from("203.0.113.2", syn(1));
        for packet in [syn(1), to("198.51.100.9", syn(1)), other] {
            matcher.handle_packet(&packet, Timestamp::ZERO);
        }
        matcher.forget(address("203.0.113.1"));
        assert_eq!((matcher.attempts(), knock(&mut matcher, &[2, 3])), (2, vec![]));
        let opened = matcher.handle_packet(&Packet { hit: syn(2).hit, ..other }, Timestamp::ZERO);
        assert!(opened.contains(&event("203.0.113.2", 0, Opened)));
    }

    #[test]
    fn a_door_with_a_cooldown_does_not_look_at_who_has_opened_it_until_that_is_over() {
        for steps in ["1", "1,2"] {
            let ports: Vec<u16> = if steps == "1" { vec![1] } else { vec![1, 2] };
            let mut matcher = matcher(&[with_cooldown(10, door("wake", steps)), door("other", "1,3")]);
            let packets: Vec<_> = ports.iter().map(|&port| syn(port)).collect();
            assert!(send(&mut matcher, &packets).contains(&(0, Opened)));
            matcher.handle_timeout(milliseconds(9_999));
            for packets in [&packets[..], &[syn(1)]] {
                let events = send(&mut matcher, packets);
                let at_wake = events.iter().filter(|&&(door, _)| door == 0);
                assert_eq!(at_wake.collect::<Vec<_>>(), vec![&(0, Cooling); packets.len()], "{steps}");
            }
            assert_eq!(matcher.handle_timeout(milliseconds(10_000)), []);
            assert!(send(&mut matcher, &packets).contains(&(0, Opened)), "{steps}");
        }
    }

    #[test]
    fn a_source_that_is_forgotten_still_cools_down() {
        let mut matcher = matcher(&[with_cooldown(10, door("wake", "1")), door("other", "2,3")]);
        knock(&mut matcher, &[2, 1, 2]);
        matcher.forget(address("203.0.113.1"));
        assert_eq!(knock(&mut matcher, &[3, 1]), [(0, Cooling), (0, Cooling)]);
    }

    #[test]
    fn who_cools_down_is_the_first_to_leave_a_full_table_and_nobody_is_told() {
        let mut matcher = limited(&[with_cooldown(10, door("wake", "1")), door("slow", "2,3")], 2);
        knock(&mut matcher, &[2]);
        matcher.handle_packet(&from("198.51.100.1", syn(1)), Timestamp::ZERO);
        let events = matcher.handle_packet(&from("198.51.100.2", syn(2)), Timestamp::ZERO);
        assert_eq!(events, [event("198.51.100.2", 1, Stage(1))]);
        assert_eq!(knock(&mut matcher, &[3]), [(1, Stage(2)), (1, Opened)]);
    }

    #[test]
    fn a_one_time_door_that_cools_down_and_has_no_line_left_does_not_hide_other_doors_attempts() {
        let mut matcher = matcher(&[door("other", "9,8"), with_cooldown(10, one_time("once"))]);
        matcher.set_sequence(DoorId::new(1), Some(sequence("1,2")));
        knock(&mut matcher, &[9, 1]);
        assert!(knock(&mut matcher, &[9, 1, 2]).contains(&(1, Opened)));
        matcher.set_sequence(DoorId::new(1), None);
        let events = knock(&mut matcher, &[9, 8]);
        assert_eq!(events, [(0, Stage(1)), (1, Cooling), (0, Stage(2)), (0, Opened), (1, Cooling)]);
    }

    #[test]
    fn a_cooldown_takes_the_room_of_the_attempt_that_opened_in_a_full_table_and_a_full_network() {
        let doors = [
            with_flags(FlagRule::ANY.and_set(ACK), with_timeout(100, door("first", "1,9"))),
            with_cooldown(10, with_timeout(100, door("cooled", "1,2,3"))),
            with_timeout(100, door("crowd", "7,8")),
        ];
        for (most, max_attempts) in [(1024, 10_000), (100, 100)] {
            let mut matcher = limited(&doors, max_attempts);
            let of = |host: u128, port, flags| {
                Packet::incoming(
                    std::net::Ipv6Addr::from_bits(1 << 64 | host).into(),
                    address("2001:db8::1"),
                    Hit::Tcp { port, flags },
                )
            };
            let mut send = |packet: Packet| {
                let events = matcher.handle_packet(&packet, Timestamp::ZERO).iter();
                events.map(|event| (event.door.index(), event.kind)).collect::<Vec<_>>()
            };
            assert_eq!(send(of(0, 1, SYN.union(ACK))), [(0, Stage(1)), (1, Stage(1))]);
            assert_eq!(send(of(0, 2, SYN)), [(0, WrongFlags(1)), (1, Stage(2))]);
            (2..most).for_each(|host| assert_eq!(send(of(host, 7, SYN)), [(2, Stage(1))]));
            assert_eq!(send(of(0, 3, SYN)), [(0, WrongFlags(1)), (1, Stage(3)), (1, Opened)]);
            assert_eq!(send(of(0, 9, SYN.union(ACK))), [(0, Stage(2)), (0, Opened), (1, Cooling)]);
            assert_eq!(send(of(0, 1, SYN)), [(0, WrongFlags(0)), (1, Cooling)]);
        }
    }

    #[test]
    fn a_cooldown_outlives_new_doors_as_long_as_its_door_has_one() {
        let doors = [with_cooldown(10, door("wake", "1"))];
        let mut matcher = matcher(&doors);
        knock(&mut matcher, &[1]);
        matcher.set_doors(&doors, limit(1000));
        assert_eq!(knock(&mut matcher, &[1]), [(0, Cooling)]);
        matcher.set_doors(&[door("wake", "1")], limit(1000));
        assert_eq!(knock(&mut matcher, &[1]), [(0, Stage(1)), (0, Opened)]);
    }

    #[test]
    fn a_million_spoofed_first_steps_do_not_push_out_who_is_past_the_first() {
        let mut matcher = Matcher::new(&[door("a", "1,2,3")], Options::DEFAULT_MAX_ATTEMPTS, Seed::new(1, 2));
        matcher.set_addresses([address("192.0.2.1")]);
        knock(&mut matcher, &[1, 2]);
        for number in 0..1_000_000_u32 {
            let source = std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into();
            matcher.handle_packet(&Packet { source, ..syn(1) }, Timestamp::ZERO);
        }
        assert!(matcher.attempts() <= 262_144);
        let now = Timestamp::ZERO;
        let events = matcher.handle_packet(&syn(3), now).to_vec();
        assert!(events.contains(&event("203.0.113.1", 0, Opened)), "{events:?}");
    }

    #[test]
    fn what_is_under_way_is_shown_from_the_most_advanced_and_without_those_who_wait() {
        let cooled = Door { cooldown: Seconds::new(60), ..door("one", "9") };
        let mut matcher = matcher(&[door("three", "1,2,3"), cooled, one_time("once")]);
        let step = |seconds: u64, source, port| (from(source, syn(port)), milliseconds(seconds * 1000));
        let packets =
            [(0, "192.0.2.11", 1), (1, "192.0.2.12", 1), (2, "192.0.2.13", 1), (3, "192.0.2.12", 2)];
        for (packet, now) in packets.into_iter().chain([(4, "192.0.2.14", 9)]).map(|(a, b, c)| step(a, b, c))
        {
            matcher.handle_packet(&packet, now);
        }
        let shown: Vec<_> = matcher.underway().collect();
        let expected = [("192.0.2.12", 2, 1), ("192.0.2.11", 1, 0), ("192.0.2.13", 1, 2)];
        let expected = expected.map(|(source, stage, second)| Underway {
            source: address(source),
            door: DoorId::new(0),
            stage,
            begun: milliseconds(second * 1000),
        });
        assert_eq!(shown, expected);
        assert_eq!((matcher.underway_count(), matcher.attempts(), matcher.visible_packets()), (3, 4, 5));
        let steps: Vec<_> = (0..4).map(|index| matcher.steps_of(DoorId::new(index))).collect();
        assert_eq!(steps, [Some(3), Some(1), None, None]);
    }
}
