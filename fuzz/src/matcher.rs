//! The matcher against the naive model.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use knockd_core::config::Key;
use knockd_core::{Door, DoorName, FlagRule, Hit, Packet, Protocol, Seconds, Sequence, Step, TcpFlags, Text};

use crate::model::{Op, compare};

const MAX_OPS: usize = 120;

/// Reads doors and operations from the bytes and compares both matchers on them.
///
/// Everything is one byte, so that seeds can be written by hand: bound, number of doors and their cooldown, doors,
/// operations until the end.
pub fn matcher(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let _ = run(&mut input);
}

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let bound = match byte(input)? {
        small if small % 4 == 3 => u32::from(small / 4 % 4 + 1),
        _ => 1_000_000,
    };
    let bits = byte(input)?;
    let with_cooldown = |mut door: Door| {
        door.cooldown = Seconds::new((bits >> 4 & 3).into());
        door
    };
    let doors = (0..=bits % 4).map(|_| door(input).map(with_cooldown)).collect::<Result<Vec<_>>>()?;
    let mut ops = Vec::new();
    while !input.is_empty() && ops.len() < MAX_OPS {
        ops.push(op(input, &doors)?);
    }
    compare(&doors, NonZeroU32::new(bound).unwrap_or(NonZeroU32::MIN), &addresses()[..2], &ops);
    Ok(())
}

/// Two bits each for `Seq_Timeout`, `TCPFlags` and `Target`, one for a one-time door, one for its name; then the
/// sequence.
fn door(input: &mut Unstructured<'_>) -> Result<Door> {
    let bits = byte(input)?;
    let sequence = sequence(input)?;
    let is_one_time = bits & 0x40 != 0;
    let syn = FlagRule::ANY.and_set(TcpFlags::SYN);
    let key = if is_one_time {
        Key::OneTime(Text::new("file").expect("a path"))
    } else {
        Key::Sequence(sequence)
    };
    let name = DoorName::new(if bits & 0x80 == 0 { "a" } else { "b" }).expect("a name");
    let mut door = Door::new(name, key);
    door.seq_timeout = Seconds::new((bits & 3).into());
    door.tcp_flags =
        [FlagRule::ANY, FlagRule::ANY, syn, syn.and_clear(TcpFlags::ACK)][usize::from(bits >> 2 & 3)];
    door.target = [None, None, Some(addresses()[0]), Some(addresses()[2])][usize::from(bits >> 4 & 3)];
    Ok(door)
}

/// The number of further steps, 0 to 4, and the steps.
fn sequence(input: &mut Unstructured<'_>) -> Result<Sequence> {
    let rest = byte(input)? % 5;
    let first = step(input)?;
    let rest = (0..rest).map(|_| step(input)).collect::<Result<Vec<_>>>()?;
    Ok(Sequence::new(first, rest).expect("at most 5 steps"))
}

/// Ports 1 to 4; from 0x80 on UDP.
fn step(input: &mut Unstructured<'_>) -> Result<Step> {
    let byte = byte(input)?;
    let protocol = if byte < 0x80 { Protocol::Tcp } else { Protocol::Udp };
    Ok(Step { port: (byte % 4 + 1).into(), protocol })
}

/// The lower four bits say which, the upper ones are its first argument.
fn op(input: &mut Unstructured<'_>, doors: &[Door]) -> Result<Op> {
    let bits = byte(input)?;
    let argument = bits >> 4;
    Ok(match bits & 0x0f {
        // A SYN or a datagram to the first address.
        0..=7 => Op::Packet(packet(argument, addresses()[0], step(input)?, TcpFlags::SYN)),
        8 => {
            let to = byte(input)?;
            let flags = TcpFlags::from_wire(byte(input)?);
            Op::Packet(packet(argument, addresses()[usize::from(to % 4)], step(input)?, flags))
        }
        9 => Op::Wait(Duration::from_millis(u64::from(argument) * 250)),
        10 => Op::Wait(Duration::from_secs(argument.into()) - Duration::from_nanos((argument > 0).into())),
        11 => Op::Timeout,
        12 if argument < 8 => Op::TimeoutWhenDue,
        12 => Op::Forget(source(argument)),
        13 => Op::Sequence(usize::from(argument), Some(sequence(input)?)),
        14 if argument < 8 => Op::Sequence(usize::from(argument), None),
        14 => Op::Addresses(addresses()[usize::from(argument % 4)..].iter().copied().map(Into::into).collect()),
        _ => {
            let mut doors = doors.to_vec();
            let count = doors.len().max(1);
            doors.rotate_left(usize::from(argument) % count);
            if argument >= 8 {
                doors.pop();
            }
            Op::Doors(doors)
        }
    })
}

fn packet(source: u8, destination: IpAddr, step: Step, flags: TcpFlags) -> Packet {
    let hit = match step.protocol {
        Protocol::Tcp => Hit::Tcp { port: step.port, flags },
        Protocol::Udp => Hit::Udp { port: step.port },
    };
    Packet::incoming(self::source(source), destination, hit)
}

fn source(number: u8) -> IpAddr {
    IpAddr::from([203, 0, 113, number % 4])
}

/// The first two are the interface's own until something else is said.
fn addresses() -> [IpAddr; 4] {
    [[192, 0, 2, 1], [192, 0, 2, 2], [198, 51, 100, 1], [198, 51, 100, 2]].map(IpAddr::from)
}

fn byte(input: &mut Unstructured<'_>) -> Result<u8> {
    input.arbitrary()
}
