//! Two gates that get the same calls, one of them called early besides.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use knockd_core::{DoorName, Hit, LeaseFilter, Packet, Seed, TcpFlags};

use crate::gates::{Burnt, Call, NAMES, check, destinations};

const MAX_CALLS: usize = 200;

/// Reads a seed and calls from the bytes, makes them, and checks what comes of them.
///
/// Everything is one byte, so that seeds can be written by hand.
pub fn gate(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let Ok(seed) = byte(&mut input) else { return };
    let mut calls = Vec::new();
    while calls.len() < MAX_CALLS {
        let Ok(call) = call(&mut input) else { break };
        calls.push(call);
    }
    check(Seed::new(seed.into(), 0), &calls);
}

/// The lower four bits say which, the upper ones are its first argument.
fn call(input: &mut Unstructured<'_>) -> Result<Call> {
    let bits = byte(input)?;
    let argument = bits >> 4;
    Ok(match bits & 0x0f {
        // A SYN or, from 0x80 on, a datagram to the first address.
        0..=4 => {
            let hit = hit(byte(input)?, TcpFlags::SYN);
            Call::Packet(Packet::incoming(source(argument), destinations()[0], hit))
        }
        5 => {
            let destination = destinations()[usize::from(byte(input)? % 3)];
            let flags = TcpFlags::from_wire(byte(input)?);
            Call::Packet(Packet::incoming(source(argument), destination, hit(byte(input)?, flags)))
        }
        6 => Call::Wait(Duration::from_millis(u64::from(argument) * 250)),
        7 => Call::TimeoutWhenDue,
        8 => Call::Exit { which: usize::from(argument >> 1), succeeded: argument & 1 == 0 },
        9 => {
            let how = match argument & 3 {
                0 | 1 => Burnt::Struck,
                failed => Burnt::Failed { is_readable: failed == 2 },
            };
            Call::Burnt { which: usize::from(argument >> 2), how }
        }
        10 => Call::Open(NAMES[usize::from(argument) % NAMES.len()], source(byte(input)?)),
        11 => Call::Close(filter(argument, input)?),
        12 => {
            let which = filter(argument, input)?;
            let time = byte(input)?;
            Call::Extend(which, (time > 0).then(|| Duration::from_millis(u64::from(time) * 100)))
        }
        13 => Call::Reload(argument.into()),
        14 => match argument {
            0..=3 => Call::Addresses(destinations()[..usize::from(argument.min(3))].to_vec()),
            4..=7 => Call::Ports(u16::from(byte(input)?), vec![u16::from(byte(input)?)]),
            _ => Call::Timeout,
        },
        _ => match argument {
            0 => Call::CloseAll,
            1..=7 => Call::Restart,
            _ => Call::RestoreAgain,
        },
    })
}

/// Ports of doors, and each of the rest a stray's.
fn hit(byte: u8, flags: TcpFlags) -> Hit {
    let port = u16::from(byte & 0x7f);
    if byte < 0x80 { Hit::Tcp { port, flags } } else { Hit::Udp { port } }
}

fn filter(argument: u8, input: &mut Unstructured<'_>) -> Result<LeaseFilter> {
    let door = NAMES.get(usize::from(argument)).map(|name| DoorName::new(*name).expect("a name"));
    let source = Some(byte(input)?).filter(|&byte| byte < 0x80).map(self::source);
    Ok(LeaseFilter { door, source })
}

fn source(number: u8) -> IpAddr {
    match number % 4 {
        3 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        host => [203, 0, 113, host].into(),
    }
}

fn byte(input: &mut Unstructured<'_>) -> Result<u8> {
    if input.is_empty() { Err(arbitrary::Error::NotEnoughData) } else { input.arbitrary() }
}
