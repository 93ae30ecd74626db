//! Several knocks of one address at the same door, at the same time, and what knockd 0.8 makes of the same packets.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::net::IpAddr;
use std::time::Duration;

use knockd_core::config::Options;
use knockd_core::parts::Matcher;
use knockd_core::{Config, EventKind, Hit, OwnAddress, Packet, Passage, Seed, TcpFlags, Timestamp};
use proptest::bool::weighted;
use proptest::collection::vec;
use proptest::prelude::*;

const SEQ_TIMEOUT: u32 = 10;
/// A step of another door, which nobody can begin with it.
const ELSEWHERE: u16 = 98;

/// A hit at a port, at so many milliseconds.
type HitAt = (u64, u16);

fn packet(port: u16) -> Packet {
    let [source, destination] = [1, 2].map(|host| IpAddr::from([192, 0, 2, host]));
    let hit = Hit::Tcp { port, flags: TcpFlags::SYN };
    Packet::incoming(source, destination, hit)
}

fn milliseconds(count: u64) -> Timestamp {
    Timestamp::new(Duration::from_millis(count))
}

/// The hits that open a door with this sequence, by their index.
fn opened_by(sequence: &[u16], hits: &[HitAt]) -> Vec<usize> {
    let hits: Vec<_> = hits.iter().map(|&hit| (hit, true)).collect();
    opened_with(sequence, &hits)
}

/// The same; a hit that is not direct is sent to an address of another interface, so 0.8 does not see it.
fn opened_with(sequence: &[u16], hits: &[(HitAt, bool)]) -> Vec<usize> {
    let steps = sequence.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    let config = format!(
        "[door]\nSequence = {steps}\nSeq_Timeout = {SEQ_TIMEOUT}\n[elsewhere]\nSequence = 99,{ELSEWHERE}\n"
    );
    let config: Config = config.parse().unwrap();
    let mut matcher = Matcher::new(&config.doors, Options::DEFAULT_MAX_ATTEMPTS, Seed::new(1, 2));
    matcher.set_addresses([OwnAddress { address: packet(1).destination, interface: 1 }]);
    let mut opens = |&((at, port), is_direct): &(HitAt, bool)| {
        let passage = Passage { interface: if is_direct { 1 } else { 2 }, ..packet(port).passage };
        let packet = Packet { passage, ..packet(port) };
        let events = matcher.handle_packet(&packet, milliseconds(at)).iter();
        let count = events.filter(|event| event.kind == EventKind::Opened).count();
        assert!(count <= 1, "one hit opens a door twice");
        count == 1
    };
    (0..hits.len()).filter(|&index| opens(&hits[index])).collect()
}

/// All sequences of so many steps over three ports.
fn sequences(steps: usize) -> Vec<Vec<u16>> {
    let longer = |sequence: &Vec<u16>| {
        let sequence = sequence.clone();
        (1..=3).map(move |port| [&sequence[..], &[port]].concat())
    };
    (0..steps).fold(vec![vec![]], |sequences, _| sequences.iter().flat_map(longer).collect())
}

/// All orders in which the hits of two knocks can come: which knock the next hit is of.
fn interleavings(first: usize, second: usize) -> Vec<Vec<bool>> {
    if first == 0 || second == 0 {
        return vec![vec![first == 0; first + second]];
    }
    let after = |is_second: bool, rest: Vec<Vec<bool>>| {
        rest.into_iter().map(move |order| [&[is_second], &order[..]].concat())
    };
    let first_next = after(false, interleavings(first - 1, second));
    first_next.chain(after(true, interleavings(first, second - 1))).collect()
}

/// Two knocks in this order, one second from hit to hit.
fn two_knocks(sequence: &[u16], order: &[bool], from: u64) -> Vec<HitAt> {
    let mut knocks = [sequence.iter(), sequence.iter()];
    let mut next = |is_second: &bool| *knocks[usize::from(*is_second)].next().unwrap();
    (0..).zip(order).map(|(index, of)| (from + 1000 * index, next(of))).collect()
}

#[test]
fn of_two_knocks_in_any_order_one_opens_whatever_was_left_over_from_before() {
    for steps in 2..=4 {
        let orders = interleavings(steps, steps);
        for sequence in sequences(steps) {
            // A knock that stopped at some step. It ends while the others are under way, unless their beginning
            // continues it.
            let is_clear = !sequence[1..].contains(&sequence[0]);
            let starts = if is_clear { &[1, 3, 6, 9][..] } else { &[1] };
            for (left, start) in (0..steps).flat_map(|left| starts.iter().map(move |start| (left, start))) {
                let left_over: Vec<_> = sequence[..left].iter().map(|port| (0, *port)).collect();
                for order in &orders {
                    let hits = [left_over.clone(), two_knocks(&sequence, order, start * 1000)].concat();
                    assert_ne!(opened_by(&sequence, &hits), [], "{sequence:?} by {hits:?}");
                }
            }
        }
    }
}

#[test]
fn two_knocks_of_a_sequence_without_repeated_ports_open_whatever_their_shift() {
    let sequence = [7101, 8202, 9303];
    for shift in (0..1000).step_by(10) {
        let knock = |from: u64| sequence.iter().zip(0..).map(move |(port, step)| (from + 200 * step, *port));
        let mut hits: Vec<_> = knock(0).chain(knock(shift)).collect();
        hits.sort_by_key(|(at, _)| *at);
        let opened = opened_by(&sequence, &hits);
        assert!(!opened.is_empty(), "{shift} ms apart");
        assert!(shift < 600 || opened.len() == 2, "{shift} ms apart, one after the other");
    }
}

#[test]
fn a_packet_that_comes_again_late_costs_no_knock() {
    // Each connection attempt lasts longer than the pause, so the SYN of every step comes again before the next one.
    let repeated = [(0, 1), (1000, 1), (1800, 2), (2800, 2), (3000, 1), (3600, 3)];
    assert_eq!(opened_by(&[1, 2, 3], &repeated), [5]);
    for sequence in sequences(4) {
        for at in 1..4 {
            // The repeat of any step already done, in front of any other.
            for step in 0..at {
                let hits = [&sequence[..at], &[sequence[step]], &sequence[at..]].concat();
                let hits: Vec<_> = hits.into_iter().map(|port| (0, port)).collect();
                assert_ne!(opened_by(&sequence, &hits), [], "{sequence:?} by {hits:?}");
            }
        }
    }
}

#[test]
fn an_attempt_of_0_8_outlives_another_that_opens_and_a_beginning_that_ends() {
    let early = [2, 1, 1, 1, 1, 2, 1, 2, 1].map(|port| (0, port));
    let late = [(966, 2), (3348, 1), (10_000, 2), (10_000, 1), (10_000, 2)];
    let hits = [&early[..], &late].concat();
    assert_eq!(opened_by(&[1, 2, 1, 2], &hits).last(), Some(&13), "0.8 begins with 10 and opens with 13");
}

/// What knockd 0.8 does with one door: the hits that open it, each with the one that began the attempt.
fn opened_in_0_8(sequence: &[u16], all: &[(HitAt, bool)]) -> Vec<(usize, usize)> {
    let mut attempt: Option<(usize, usize)> = None;
    let mut opened = Vec::new();
    let hits = all.iter().map(|(hit, is_direct)| is_direct.then_some(hit)).enumerate();
    let hits = hits.filter_map(|(index, hit)| Some((index, *hit?)));
    for (index, (at, port)) in hits.filter(|(_, (_, port))| *port == ELSEWHERE || sequence.contains(port)) {
        let is_over = |(begun, _): &(usize, usize)| at >= all[*begun].0.0 + 1000 * u64::from(SEQ_TIMEOUT);
        attempt = attempt.filter(|attempt| !is_over(attempt));
        attempt = match attempt {
            None => (port == sequence[0]).then_some((index, 1)),
            Some((begun, stage)) if port == sequence[stage] && stage + 1 == sequence.len() => {
                opened.push((begun, index));
                None
            }
            Some((begun, stage)) => (port == sequence[stage]).then_some((begun, stage + 1)),
        };
    }
    opened
}

/// Steps of few ports, so that they repeat themselves and each other's beginnings.
fn stories() -> impl Strategy<Value = (Vec<u16>, Vec<HitAt>)> {
    let sequences = prop_oneof![3 => vec(1..4_u16, 2..6), 1 => vec(1..3_u16, 6..12)];
    let pieces = |sequence: &[u16]| {
        let whole = sequence.to_vec();
        let begin = (1..=whole.len()).prop_map(move |length| whole[..length].to_vec());
        prop_oneof![3 => begin, 2 => vec(1..4_u16, 1..3), 1 => Just(vec![ELSEWHERE])]
    };
    let waits = prop_oneof![6 => Just(0), 2 => 0..3000_u64, 1 => 0..12_000_u64];
    sequences.prop_flat_map(move |sequence| {
        let hits = (vec(pieces(&sequence), 1..12), vec(waits.clone(), 150)).prop_map(|(pieces, waits)| {
            let mut now = 0;
            let times = waits.into_iter().map(move |wait| {
                now += wait;
                now
            });
            times.zip(pieces.concat()).collect()
        });
        (Just(sequence), hits)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    /// Ours may open before the last hit, or with the first, because it has not given up what 0.8 has.
    #[test]
    fn what_opens_in_0_8_opens_no_later((sequence, hits) in stories(), seen in vec(weighted(0.9), 150)) {
        let hits: Vec<_> = hits.into_iter().zip(seen).collect();
        let opened = opened_with(&sequence, &hits);
        for (begun, last) in opened_in_0_8(&sequence, &hits) {
            prop_assert!(
                opened.iter().any(|hit| (begun..=last).contains(hit)),
                "{sequence:?} by {hits:?} from {begun} to {last}, but only {opened:?}",
            );
        }
    }
}
