//! Properties of the gate: the same calls have the same results, coming early changes nothing, and every opening is
//! told once.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod gates;

use std::net::IpAddr;
use std::time::Duration;

use gates::{Burnt, Call, NAMES, check, destinations};
use knockd_core::{Arrival, DoorName, Hit, LeaseFilter, Packet, Passage, Seed, TcpFlags};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn sources() -> impl Strategy<Value = IpAddr> {
    select(vec![
        [203, 0, 113, 1].into(),
        [203, 0, 113, 2].into(),
        [203, 0, 113, 3].into(),
        "2001:db8::1".parse::<IpAddr>().unwrap(),
    ])
}

/// A knock from one source, or what looks like a part of it, and strays now and then.
fn packets() -> impl Strategy<Value = Packet> {
    let ports = prop_oneof![9 => 1..7_u16, 1 => 100..110_u16];
    let destination = prop_oneof![4 => Just(destinations()[0]), 1 => select(destinations().to_vec())];
    let flags = prop_oneof![9 => Just(TcpFlags::SYN), 1 => any::<u8>().prop_map(TcpFlags::from_wire)];
    let arrivals = prop_oneof![
        9 => Just(Arrival::Incoming),
        1 => select(vec![Arrival::Outgoing, Arrival::Loopback, Arrival::OtherHost, Arrival::Unknown]),
    ];
    let packets = (sources(), destination, ports, flags, 0..8_u8, arrivals);
    packets.prop_map(|(source, destination, port, flags, kind, arrival)| {
        let is_udp = if port == 4 { kind > 1 } else { kind == 0 };
        let hit = if is_udp { Hit::Udp { port } } else { Hit::Tcp { port, flags } };
        Packet { source, destination, hit, arrival, passage: Passage::default() }
    })
}

fn knocks() -> impl Strategy<Value = Vec<Call>> {
    let ports = select(vec![vec![1, 2, 3], vec![1, 4], vec![2], vec![1, 5], vec![6], vec![3, 3]]);
    (sources(), select(destinations()[..2].to_vec()), ports).prop_map(|(source, destination, ports)| {
        let hits = ports.into_iter().map(|port| match port {
            4 => Hit::Udp { port },
            _ => Hit::Tcp { port, flags: TcpFlags::SYN },
        });
        hits.map(|hit| Call::Packet(Packet::incoming(source, destination, hit))).collect()
    })
}

fn filters() -> impl Strategy<Value = LeaseFilter> {
    let names = select(NAMES.to_vec()).prop_map(|name| DoorName::new(name).unwrap());
    (option::of(names), option::of(sources())).prop_map(|(door, source)| LeaseFilter { door, source })
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let one = prop_oneof![
        20 => packets().prop_map(Call::Packet),
        12 => (0..3000_u64).prop_map(|milliseconds| Call::Wait(Duration::from_millis(milliseconds))),
        20 => (any::<usize>(), any::<bool>()).prop_map(|(which, succeeded)| Call::Exit { which, succeeded }),
        6 => (any::<usize>(), any::<bool>(), any::<bool>()).prop_map(|(which, works, is_readable)| {
            Call::Burnt { which, how: if works { Burnt::Struck } else { Burnt::Failed { is_readable } } }
        }),
        4 => Just(Call::Timeout),
        12 => Just(Call::TimeoutWhenDue),
        3 => (0..3_usize).prop_map(Call::Reload),
        1 => (0..4_usize).prop_map(|count| Call::Addresses(destinations()[..count.min(3)].to_vec())),
        1 => (any::<u16>(), vec(0..200_u16, 0..3)).prop_map(|(from, bound)| Call::Ports(from, bound)),
        3 => (select(NAMES.to_vec()), sources()).prop_map(|(name, source)| Call::Open(name, source)),
        3 => filters().prop_map(Call::Close),
        3 => (filters(), option::of(0..30_000_u64)).prop_map(|(which, time)| {
            Call::Extend(which, time.map(Duration::from_millis))
        }),
        1 => Just(Call::CloseAll),
        2 => Just(Call::Restart),
        2 => Just(Call::RestoreAgain),
    ];
    let some = prop_oneof![1 => knocks(), 3 => one.prop_map(|call| vec![call])];
    vec(some, 0..100).prop_map(|calls| calls.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_gates_say_the_same_whenever_one_is_called_early_and_tell_every_opening_once(
        seed: (u64, u64),
        calls in calls(),
    ) {
        check(Seed::new(seed.0, seed.1), &calls);
    }
}
