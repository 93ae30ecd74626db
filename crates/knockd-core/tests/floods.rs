//! Honest knocks in the midst of floods of attempts, each packet at its exact moment.
//!
//! The table has a hundredth of its default size, and the rates are a hundredth of those in the names of the tests,
//! which comes to the same, as `cargo xtask test --long` shows.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use knockd_core::parts::Matcher;
use knockd_core::{Config, DoorId, EventKind, Hit, Packet, Seed, TcpFlags, Timestamp};

/// The steps of the doors: one that the attacker knows nothing of, and two of which they know the first two steps.
const DOORS: [[u16; 3]; 3] = [[7000, 8000, 9000], [1001, 1002, 1003], [2001, 2002, 2003]];

/// The same with a fourth, of one step and a `Cooldown`.
fn config(seq_timeout: u32) -> Config {
    let doors = (0..).zip(DOORS).map(|(index, [a, b, c])| {
        format!("[door{index}]\nSequence = {a},{b},{c}\nTCPFlags = syn\nSeq_Timeout = {seq_timeout}\n")
    });
    let wake = "[wake]\nSequence = 3001\nTCPFlags = syn\nCooldown = 3600\n";
    doors.chain([wake.to_owned()]).collect::<String>().parse().unwrap()
}

/// A flood: who sends the packet of this number, and to which port.
type Pattern = fn(u64) -> (IpAddr, u16);

/// How much of the table's default size, and of the rates in the names of the tests, there is here.
fn hundredths() -> u32 {
    testbed::scale(1, 100)
}

/// The size of the table.
fn limit() -> u32 {
    2621 * hundredths()
}

/// So many packets bring as many attempts to their second stage as there is room for.
fn filling() -> u64 {
    2 * u64::from(limit())
}

const KNOCKS: usize = 20;

fn forged(number: u64) -> IpAddr {
    Ipv4Addr::from_bits((16 << 24) + u32::try_from(number).unwrap()).into()
}

fn of_one_network(number: u64) -> IpAddr {
    Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(number)).into()
}

fn of_many_networks(number: u64) -> IpAddr {
    Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(number) << 64).into()
}

/// Every source goes to the second stage of one door at once.
fn two_steps(number: u64) -> (IpAddr, u16) {
    (forged(number / 2), DOORS[1][usize::from(number % 2 == 1)])
}

/// The table is filled with first steps; all of them become second ones afterwards, and so on.
fn two_steps_in_waves(number: u64) -> (IpAddr, u16) {
    let size = u64::from(limit());
    let (wave, place) = (number / size, number % size);
    (forged(wave / 2 * size + place), DOORS[1][usize::from(wave % 2 == 1)])
}

/// The second stages of two doors are filled; first steps at one of them follow.
fn two_doors_then_first_steps(number: u64) -> (IpAddr, u16) {
    let door = 1 + usize::from(number % 4 >= 2);
    let step = usize::from(number < filling() && number % 2 == 1);
    (
        forged(if number < filling() { number / 2 } else { number }),
        DOORS[if step == 0 && number >= filling() { 1 } else { door }][step],
    )
}

fn two_steps_from_one_network(number: u64) -> (IpAddr, u16) {
    (of_one_network(number / 2), two_steps(number).1)
}

fn two_steps_from_many_networks(number: u64) -> (IpAddr, u16) {
    (of_many_networks(number / 2), two_steps(number).1)
}

/// Second stages, and sources that open a door with a `Cooldown`.
fn two_steps_and_cooldowns(number: u64) -> (IpAddr, u16) {
    if number.is_multiple_of(3) {
        (forged((1 << 27) + number), 3001)
    } else {
        two_steps(number / 3 * 2 + number % 3 - 1)
    }
}

/// The packets of one source to the door of this index, which stand apart by this delay.
fn knock(
    source: IpAddr,
    door: usize,
    start: Duration,
    delay: Duration,
) -> impl Iterator<Item = (Duration, IpAddr, u16)> {
    DOORS[door].into_iter().zip(0..).map(move |(port, step)| (start + delay * step, source, port))
}

fn syn(source: IpAddr, port: u16) -> Packet {
    let destination = match source {
        IpAddr::V4(_) => [192, 0, 2, 1].into(),
        IpAddr::V6(_) => "2001:db8:ffff::1".parse().unwrap(),
    };
    Packet::incoming(source, destination, Hit::Tcp { port, flags: TcpFlags::SYN })
}

fn matcher(seq_timeout: u32, max_attempts: NonZeroU32) -> Matcher {
    let mut matcher = Matcher::new(&config(seq_timeout).doors, max_attempts, Seed::new(1, 2));
    matcher.set_addresses([syn(forged(0), 1), syn(of_one_network(0), 1)].map(|packet| packet.destination));
    matcher
}

/// How many knocks open each door, of 20 whose hits are 1 ms apart and of 20 whose hits are 100 ms apart, while this
/// many packets a second of the flood come, or a hundredth of them. The knocks begin when the flood has filled the
/// table.
fn opened_amid(pattern: Pattern, full_rate: u64, seq_timeout: u32) -> [[usize; 2]; 3] {
    let rate = full_rate / 100 * u64::from(hundredths());
    let moment = |number: u64| {
        Duration::from_nanos(u64::try_from(u128::from(number) * 1_000_000_000 / u128::from(rate)).unwrap())
    };
    let mut hits = Vec::new();
    for door in 0..DOORS.len() {
        for (group, delay) in [(0, 1), (1, 100)] {
            for number in 0..KNOCKS {
                let host = u8::try_from(number).unwrap();
                let source = [203, u8::try_from(door).unwrap(), group, host].into();
                let start = moment(filling()) + Duration::from_millis(20) * u32::from(host);
                hits.extend(knock(source, door, start, Duration::from_millis(delay)));
            }
        }
    }
    hits.sort_by_key(|&(due, ..)| due);

    let mut matcher = matcher(seq_timeout, NonZeroU32::new(limit()).unwrap());
    let mut number = 0;
    let mut opened = HashSet::new();
    for (due, source, port) in hits {
        while moment(number) <= due {
            let (source, port) = pattern(number);
            matcher.handle_packet(&syn(source, port), Timestamp::new(moment(number)));
            number += 1;
        }
        let events = matcher.handle_packet(&syn(source, port), Timestamp::new(due));
        opened.extend(
            events
                .iter()
                .filter(|event| event.kind == EventKind::Opened)
                .map(|event| (event.source, event.door)),
        );
    }
    [0, 1, 2].map(|door: u8| {
        [0, 1].map(|group: u8| {
            let is_it = |&(source, opened): &(IpAddr, DoorId)| {
                opened.index() == usize::from(door)
                    && matches!(source, IpAddr::V4(address) if address.octets()[..3] == [203, door, group])
            };
            opened.iter().copied().filter(is_it).count()
        })
    })
}

const ALL: [[usize; 2]; 3] = [[KNOCKS; 2]; 3];

mod at_scale {
    use super::*;

    #[test]
    fn all_knocks_open_amid_second_steps_at_25_000_a_second() {
        assert_eq!(opened_amid(two_steps, 25_000, 25), ALL);
    }

    #[test]
    fn all_knocks_open_amid_second_steps_at_500_000_a_second() {
        assert_eq!(opened_amid(two_steps, 500_000, 60), ALL);
    }

    #[test]
    fn all_knocks_open_amid_waves_of_first_and_second_steps() {
        assert_eq!(opened_amid(two_steps_in_waves, 500_000, 60), ALL);
    }

    #[test]
    fn all_knocks_open_amid_first_steps_after_others_have_been_filled() {
        // Nearly as many as there is room for.
        assert_eq!(opened_amid(two_doors_then_first_steps, 1_200_000, 60), ALL);
    }

    #[test]
    fn all_knocks_open_amid_second_steps_from_one_ipv6_network() {
        assert_eq!(opened_amid(two_steps_from_one_network, 500_000, 60), ALL);
    }

    #[test]
    fn all_knocks_open_amid_second_steps_from_many_ipv6_networks() {
        assert_eq!(opened_amid(two_steps_from_many_networks, 500_000, 60), ALL);
    }

    #[test]
    fn all_knocks_open_amid_second_steps_and_cooldowns() {
        assert_eq!(opened_amid(two_steps_and_cooldowns, 500_000, 60), ALL);
    }
}

#[test]
fn no_rate_at_one_door_takes_the_room_of_a_knock_at_another() {
    // A table of a thousandth, and between two hits 1000 times as many packets as it holds.
    let mut matcher = matcher(60, NonZeroU32::new(262).unwrap());
    let mut number = 0;
    let mut opened = Vec::new();
    for port in DOORS[0] {
        for _ in 0..262_000 {
            let (source, port) = two_steps(number);
            matcher.handle_packet(&syn(source, port), Timestamp::ZERO);
            number += 1;
        }
        opened = matcher.handle_packet(&syn([203, 0, 113, 1].into(), port), Timestamp::ZERO).to_vec();
    }
    assert!(opened.iter().any(|event| event.kind == EventKind::Opened), "{opened:?}");
}

#[test]
fn all_knocks_open_amid_first_steps_after_a_hundred_other_doors_were_filled() {
    const LIMIT: u32 = 26_214;
    let ports = |door: u16| [10 * door, 10 * door + 1, 10 * door + 2];
    let doors = (100..200).map(|door| {
        let [a, b, c] = ports(door);
        format!("[door{door}]\nSequence = {a},{b},{c}\nTCPFlags = syn\nSeq_Timeout = 60\n")
    });
    let config: Config = doors.collect::<String>().parse().unwrap();
    let mut matcher = Matcher::new(&config.doors, NonZeroU32::new(LIMIT).unwrap(), Seed::new(1, 2));
    matcher.set_addresses([syn(forged(0), 1).destination]);
    let mut number = 0;
    let mut send = |matcher: &mut Matcher, ports: &[u16]| {
        for &port in ports {
            matcher.handle_packet(&syn(forged(number), port), Timestamp::ZERO);
        }
        number += 1;
    };
    for round in 0..u16::try_from(LIMIT / 50).unwrap() {
        let [a, b, _] = ports(101 + round % 99);
        (0..100).for_each(|source| send(&mut matcher, &[a, b][..=source % 2]));
    }
    let mut opened = 0;
    for host in 0..20 {
        for port in ports(100) {
            // For a tenth of the table, what comes at 500,000 a second in 100 ms.
            (0..5_000).for_each(|_| send(&mut matcher, &ports(100)[..1]));
            let events = matcher.handle_packet(&syn([203, 0, 113, host].into(), port), Timestamp::ZERO);
            opened += events.iter().filter(|event| event.kind == EventKind::Opened).count();
        }
    }
    assert_eq!(opened, 20);
}
