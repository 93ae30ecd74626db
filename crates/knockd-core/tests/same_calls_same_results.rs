//! With the same seed, the same calls have the same results, down to who makes room for whom.
#![expect(clippy::unwrap_used, reason = "a test's own helpers, too")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use knockd_core::parts::{Matcher, Scanners, Sighting};
use knockd_core::{
    Config, Door, Event, EventKind, Hit, LocalPorts, Packet, Seed, TcpFlags, Timestamp, Underway,
};
use proptest::collection::vec;
use proptest::prelude::*;

const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const TARGET: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

/// Two time-outs, two classes, a cooldown, and sequences that begin alike.
const DOORS: &str = "
[a]
sequence = 1,2,3
seq_timeout = 5
[b]
sequence = 1,3:udp
seq_timeout = 2
cooldown = 3
[c]
sequence = 2,1,1
target = 192.0.2.2
seq_timeout = 5
[d]
sequence = 1
cooldown = 1
";

fn doors() -> Vec<Door> {
    Config::parse(DOORS.as_bytes()).unwrap().config.doors
}

fn syn(source: IpAddr, destination: IpAddr, port: u16) -> Packet {
    Packet::incoming(source, destination, Hit::Tcp { port, flags: TcpFlags::SYN })
}

fn seeds() -> impl Strategy<Value = Seed> {
    any::<(u64, u64)>().prop_map(|(first, second)| Seed::new(first, second))
}

fn sources() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        2 => (0..12_u32).prop_map(|host| Ipv4Addr::from_bits(host).into()),
        1 => (0..3_u128, 0..4_u128).prop_map(|(net, host)| Ipv6Addr::from_bits(net << 64 | host).into()),
    ]
}

#[derive(Clone, Debug)]
enum Call {
    Wait(u64),
    Packet(Packet),
    Timeout,
    Forget(IpAddr),
    /// The doors are turned by so many, and there is room for so many attempts.
    Doors(usize, NonZeroU32),
}

fn limits() -> impl Strategy<Value = NonZeroU32> {
    (1..8_u32).prop_map(|limit| NonZeroU32::new(limit).unwrap())
}

fn calls() -> impl Strategy<Value = Call> {
    let packets = (sources(), any::<bool>(), 1..4_u16, any::<bool>()).prop_map(|(source, own, port, tcp)| {
        let packet = syn(source, if own { OWN } else { TARGET }, port);
        if tcp || port < 3 { packet } else { Packet { hit: Hit::Udp { port }, ..packet } }
    });
    prop_oneof![
        40 => packets.prop_map(Call::Packet),
        4 => (0..1500_u64).prop_map(Call::Wait),
        1 => Just(Call::Timeout),
        1 => sources().prop_map(Call::Forget),
        1 => (0..4_usize, limits()).prop_map(|(turn, limit)| Call::Doors(turn, limit)),
    ]
}

/// All that a matcher has said, and all that can be asked of it after each call.
fn answers(
    seed: Seed,
    limit: NonZeroU32,
    calls: &[Call],
) -> Vec<(Vec<Event>, Vec<Underway>, Option<Timestamp>)> {
    let mut matcher = Matcher::new(&doors(), limit, seed);
    matcher.set_addresses([OWN]);
    let mut now = Timestamp::ZERO;
    let mut answer = |call: &Call| {
        let events = match call {
            Call::Wait(milliseconds) => {
                now = now.after(Duration::from_millis(*milliseconds));
                Vec::new()
            }
            Call::Packet(packet) => matcher.handle_packet(packet, now).to_vec(),
            Call::Timeout => matcher.handle_timeout(now).to_vec(),
            Call::Forget(source) => {
                matcher.forget(*source);
                Vec::new()
            }
            Call::Doors(turn, limit) => {
                let mut doors = doors();
                doors.rotate_left(*turn);
                matcher.set_doors(&doors, *limit);
                Vec::new()
            }
        };
        (events, matcher.underway().collect(), matcher.poll_timeout())
    };
    calls.iter().map(&mut answer).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_matchers_with_one_seed_say_the_same_and_drop_the_same_attempts(
        seed in seeds(),
        limit in limits(),
        calls in vec(calls(), 0..150),
    ) {
        prop_assert_eq!(answers(seed, limit, &calls), answers(seed, limit, &calls));
    }

    #[test]
    fn what_two_matchers_look_for_stands_in_the_same_order(seed in seeds(), turn in 0..4_usize) {
        let mut doors = doors();
        doors.rotate_left(turn);
        let interests = || Matcher::new(&doors, NonZeroU32::MIN, seed).interests();
        prop_assert_eq!(interests(), interests());
    }
}

#[test]
fn a_small_table_does_drop_attempts_in_these_calls() {
    let calls: Vec<_> =
        (0..9).map(|host| Call::Packet(syn(Ipv4Addr::from_bits(host).into(), OWN, 1))).collect();
    let said = answers(Seed::new(1, 2), NonZeroU32::new(3).unwrap(), &calls);
    let is_dropped = |event: &Event| matches!(event.kind, EventKind::Evicted(_));
    assert!(said.iter().any(|(events, _, _)| events.iter().any(is_dropped)));
}

/// Which of the first sources a guard still knows after as many as fill it: a second stray makes a scanner of those.
fn still_known(seed: Seed, first: u32) -> Vec<Sighting> {
    const SOURCES: u32 = 66_000;
    let mut guard = Scanners::new(NonZeroU32::new(1), seed);
    let matcher = Matcher::new(&doors(), NonZeroU32::MIN, seed);
    guard.watch(&matcher.interests(), [OWN]);
    guard.set_local_ports(LocalPorts::default());
    let mut handle = |host: u32, port| {
        guard.handle_packet(
            &syn(Ipv4Addr::from_bits(first.wrapping_add(host)).into(), OWN, port),
            Timestamp::ZERO,
        )
    };
    (0..SOURCES).for_each(|host| _ = handle(host, 80));
    (0..1000).map(|host| handle(host, 81)).collect()
}

proptest! {
    // Each case fills two guards.
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 4, ..ProptestConfig::default() })]

    #[test]
    fn two_guards_with_one_seed_push_out_the_same_sources(seed in seeds(), first: u32) {
        let known = still_known(seed, first);
        prop_assert!(known.contains(&Sighting::NewScanner) && known.contains(&Sighting::Elsewhere));
        prop_assert_eq!(known, still_known(seed, first));
    }
}

#[test]
fn guards_with_other_seeds_push_out_other_sources() {
    let [one, two] = [1, 2].map(|first| still_known(Seed::new(first, 0), 0));
    assert_ne!(one, two);
}
