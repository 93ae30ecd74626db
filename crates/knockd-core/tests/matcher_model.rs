//! The matcher against a naive model of it, on random doors and packets.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]
#![allow(missing_docs, unreachable_pub, reason = "tests")]

mod model;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use knockd_core::config::Key;
use knockd_core::{
    Arrival, Door, DoorName, FlagRule, Hit, OwnAddress, Packet, Passage, Protocol, Seconds, Sequence, Step,
    TcpFlags, Text,
};
use model::{Op, compare};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// The first two are the interface's own, most of the time.
fn addresses() -> [IpAddr; 4] {
    ["192.0.2.1", "2001:db8::1", "198.51.100.1", "198.51.100.2"].map(|text| text.parse().unwrap())
}

fn sources() -> impl Strategy<Value = IpAddr> {
    select(["203.0.113.1", "203.0.113.2", "2001:db8::2"].map(|text| text.parse().unwrap()).to_vec())
}

/// So few that sequences overlap, repeat ports and share their beginnings.
fn steps() -> impl Strategy<Value = Step> {
    (1..4_u16, prop_oneof![4 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp)])
        .prop_map(|(port, protocol)| Step { port, protocol })
}

fn sequences() -> impl Strategy<Value = Sequence> {
    let rest = prop_oneof![1 => vec(steps(), 0), 9 => vec(steps(), 1..4), 1 => vec(steps(), 31)];
    (steps(), rest).prop_map(|(first, rest)| Sequence::new(first, rest).unwrap())
}

fn flag_rules() -> impl Strategy<Value = FlagRule> {
    let syn = FlagRule::ANY.and_set(TcpFlags::SYN);
    prop_oneof![4 => Just(FlagRule::ANY), 1 => Just(syn), 1 => Just(syn.and_clear(TcpFlags::ACK))]
}

fn doors() -> impl Strategy<Value = Door> {
    let key = prop_oneof![
        5 => sequences().prop_map(Key::Sequence),
        1 => Just(Key::OneTime(Text::new("file").unwrap())),
    ];
    let cooldown = prop_oneof![4 => Just(0), 1 => 1..4_u32];
    let target = prop_oneof![4 => Just(None), 1 => select(addresses().to_vec()).prop_map(Some)];
    (select(vec!["a", "b", "c"]), key, (0..4_u32, cooldown), flag_rules(), target).prop_map(
        |(name, key, (seconds, cooldown), tcp_flags, target)| {
            let mut door = Door::new(DoorName::new(name).unwrap(), key);
            door.seq_timeout = Seconds::new(seconds);
            door.cooldown = Seconds::new(cooldown);
            door.tcp_flags = tcp_flags;
            door.target = target;
            door
        },
    )
}

fn packets() -> impl Strategy<Value = Packet> {
    let destination = prop_oneof![3 => Just(addresses()[0]), 1 => select(addresses().to_vec())];
    let flags = prop_oneof![3 => Just(TcpFlags::SYN), 1 => any::<u8>().prop_map(TcpFlags::from_wire)];
    (sources(), destination, steps(), flags, 0..3_u32).prop_map(
        |(source, destination, step, flags, interface)| {
            let hit = match step.protocol {
                Protocol::Tcp => Hit::Tcp { port: step.port, flags },
                Protocol::Udp => Hit::Udp { port: step.port },
            };
            Packet {
                source,
                destination,
                hit,
                arrival: Arrival::Incoming,
                passage: Passage { interface, tag: 0 },
            }
        },
    )
}

/// On one of two interfaces, or on all of them.
fn own_addresses() -> impl Strategy<Value = OwnAddress> {
    let address = select(addresses().to_vec());
    (address, 0..3_u32).prop_map(|(address, interface)| OwnAddress { address, interface })
}

fn ops() -> impl Strategy<Value = Op> {
    let moments = prop_oneof![
        select(vec![0, 1, 999_999_999, 1_000_000_000, 1_000_000_001, 2_000_000_000]),
        0..2_000_000_000_u64,
    ];
    prop_oneof![
        40 => packets().prop_map(Op::Packet),
        8 => moments.prop_map(|nanoseconds| Op::Wait(Duration::from_nanos(nanoseconds))),
        2 => Just(Op::Timeout),
        2 => Just(Op::TimeoutWhenDue),
        2 => (0..5_usize, proptest::option::of(sequences()))
            .prop_map(|(door, sequence)| Op::Sequence(door, sequence)),
        1 => vec(own_addresses(), 0..4).prop_map(Op::Addresses),
        1 => sources().prop_map(Op::Forget),
    ]
}

/// Doors, and now and then the same ones in another order, with one more or one less.
fn configured_ops() -> impl Strategy<Value = (Vec<Door>, Vec<Op>)> {
    vec(doors(), 1..6).prop_flat_map(|doors| {
        let shuffled = Just(doors.clone()).prop_shuffle();
        let changed = (shuffled, 0..2_usize, vec(self::doors(), 0..2))
            .prop_map(|(doors, skip, more)| Op::Doors(doors.into_iter().skip(skip).chain(more).collect()));
        (Just(doors), vec(prop_oneof![50 => ops(), 1 => changed], 0..120))
    })
}

fn bound(max_attempts: u32) -> NonZeroU32 {
    NonZeroU32::new(max_attempts).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_matcher_does_what_the_model_does((doors, ops) in configured_ops()) {
        compare(&doors, bound(1_000_000), &addresses()[..2], &ops);
    }

    #[test]
    fn a_full_matcher_keeps_its_bound_and_opens_nothing_without_a_knock(
        (doors, ops) in configured_ops(),
        max_attempts in 1..4_u32,
    ) {
        compare(&doors, bound(max_attempts), &addresses()[..2], &ops);
    }
}
