//! Decoder and gate alone: `micro list`, `micro time NAME`, `micro count NAME OPERATIONS`.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use knockd_capture::decode;
use knockd_core::{Config, Gate, Hit, Now, OneTimeFiles, Packet, Seed, TcpFlags};
use testbed::{Flags, Frame};

const CONFIG: &str = "[door]\nsequence = 2000,2061,2122\ntcpflags = syn\nseq_timeout = 3600\n";

const BOUND: u32 = 262_144;

/// A name, and a function that creates the operation.
type Case = (&'static str, fn() -> Result<Box<dyn FnMut()>>);

const CASES: [Case; 9] = [
    ("decode TCP over IPv4", || decoding([10, 9, 0, 2].into(), [10, 9, 0, 1].into())),
    ("decode TCP over IPv6", || decoding("fd00:9::2".parse()?, "fd00:9::1".parse()?)),
    ("match, 0 attempts", || matching(0, 2061)),
    ("match, 1,000 attempts", || matching(1_000, 2061)),
    ("match, 10,000 attempts", || matching(10_000, 2061)),
    ("match, 50,000 attempts", || matching(50_000, 2061)),
    ("match, 262,144 attempts", || matching(BOUND, 2061)),
    ("begin, 262,144 attempts", || matching(BOUND, 2000)),
    ("judge a stray, table full", straying),
];

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let make = |name: &str| {
        let case = CASES.iter().find(|(known, _)| *known == name).context("an unknown name")?;
        case.1()
    };
    match arguments.as_slice() {
        ["list"] => CASES.iter().for_each(|(name, _)| println!("{name}")),
        ["time", name] => println!("{}", time(&mut make(name)?)),
        ["count", name, count] => {
            let mut operation = make(name)?;
            (0..count.parse::<u32>()?).for_each(|_| operation());
        }
        _ => bail!("usage: micro list | micro time NAME | micro count NAME OPERATIONS"),
    }
    Ok(())
}

/// Returns nanoseconds per operation: the best of many rounds, because other work on the machine only adds to it.
fn time(operation: &mut dyn FnMut()) -> f64 {
    const ROUND: u32 = 20_000;
    let end = Instant::now() + Duration::from_millis(300);
    let mut best = f64::MAX;
    while Instant::now() < end {
        let start = Instant::now();
        (0..ROUND).for_each(|_| operation());
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUND));
    }
    best
}

fn decoding(source: IpAddr, destination: IpAddr) -> Result<Box<dyn FnMut()>> {
    let frame = Frame::tcp(source, destination, 2000, Flags::SYN).bytes()?;
    let packet = frame.get(14..).context("a short frame")?.to_vec();
    Ok(Box::new(move || {
        let _ = black_box(decode(black_box(&packet)));
    }))
}

/// A packet from the source with this number; the first are in 16.0.0.0/8.
fn packet(source: u32, port: u16) -> Packet {
    Packet::incoming(
        Ipv4Addr::from_bits((16 << 24) + source).into(),
        Ipv4Addr::new(10, 9, 0, 1).into(),
        Hit::Tcp { port, flags: TcpFlags::SYN },
    )
}

/// Creates a gate with one door, with or without the scanner guard.
fn gate(guarded: bool) -> Result<Gate> {
    let mut config: Config = CONFIG.parse()?;
    if !guarded {
        config.options.scan_limit = None;
    }
    let mut gate = Gate::new(config, OneTimeFiles::new(), Seed::new(1, 2));
    gate.set_addresses([IpAddr::from([10, 9, 0, 1])]);
    Ok(gate)
}

/// Packets to this port, each from a source without an attempt, while others have this many.
fn matching(attempts: u32, port: u16) -> Result<Box<dyn FnMut()>> {
    let mut gate = gate(false)?;
    for source in 0..attempts {
        gate.handle_packet(&packet(source, 2000), Now::default()).for_each(drop);
    }
    let mut source = 1 << 24;
    Ok(Box::new(move || {
        source += 1;
        black_box(gate.handle_packet(black_box(&packet(source, port)), Now::default()).count());
    }))
}

/// Strays, each from another source, once the guard is full.
fn straying() -> Result<Box<dyn FnMut()>> {
    let mut gate = gate(true)?;
    let mut source = 0_u32;
    let mut next = move || {
        source += 1;
        black_box(gate.handle_packet(black_box(&packet(source, 80)), Now::default()).count());
    };
    (0..200_000).for_each(|_| next());
    Ok(Box::new(next))
}
