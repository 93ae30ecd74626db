//! The traffic generator: TCP packets out of `eth0` of a test host, at an even pace, with knocks between them.
//!
//! It is bounded in count and time, and refuses to run unless `eth0` is the end of a test's virtual cable.

use std::io::{self, IoSlice, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::deaf_socket;
use clap::Parser;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{LinkAddr, MsgFlags, MultiHeaders, sendmmsg};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use pnet::datalink;
use socket2::{Socket, Type};
use testbed::{Flags, Frame};

/// How many packets one system call sends.
const BATCH: usize = 32;

/// After this long it stops, and reports how far it got.
const MOST_SECONDS: f64 = 60.0;

/// The server of a test net.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

/// The hardware address of a test net's client.
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 9, 2];

/// The positions of these bytes in a frame: source address, destination port.
const SOURCE: std::ops::Range<usize> = 26..30;
const PORT: std::ops::Range<usize> = 36..38;

/// Sends packets to the server of a test net
#[derive(Parser)]
struct Arguments {
    /// Packets a second; 0 is as many as possible
    #[arg(long)]
    rate: u64,
    /// How many packets
    #[arg(long)]
    count: u64,
    /// Run on this processor
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// The ports that are hit, in turns
    #[arg(long, value_delimiter = ',')]
    ports: Vec<u16>,
    /// Hit all ports from 1024 on but these, in no order
    #[arg(long, value_delimiter = ',')]
    stray_from: Vec<u16>,
    /// With `--in-turns`: so many packets in a row are from one source, to one port after the other
    #[arg(long, default_value_t = 1)]
    packets_per_source: u32,
    /// The number of the first source; the next packets have others, up to `--sources`
    #[arg(long, default_value_t = 0)]
    first_source: u32,
    /// How many sources there are
    #[arg(long, default_value_t = 1 << 28)]
    sources: u32,
    /// Sources in turns instead of in no order
    #[arg(long)]
    in_turns: bool,
    /// How many knocks to send meanwhile, with each of the delays
    #[arg(long, default_value_t = 0)]
    knocks: u32,
    /// Milliseconds between the hits of a knock
    #[arg(long, value_delimiter = ',')]
    delays: Vec<u64>,
    /// Milliseconds from one knock to the next
    #[arg(long, default_value_t = 100)]
    pause: u64,
    /// The ports of a knock
    #[arg(long, value_delimiter = ',')]
    sequence: Vec<u16>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let interfaces = datalink::interfaces();
    let eth0 = interfaces.iter().find(|found| found.name == "eth0").context("there is no eth0")?;
    ensure!(
        eth0.mac.is_some_and(|mac| mac.octets() == OWN_MAC),
        "this sends only from the client of a test net"
    );
    let mut cpus = CpuSet::new();
    cpus.set(arguments.cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;

    // So the kernel has no more work than with a network card.
    let socket = deaf_socket(eth0, Type::RAW)?;
    let template = Frame::tcp(Ipv4Addr::UNSPECIFIED, SERVER, 0, Flags::SYN).bytes()?;
    let mut frames = vec![template.clone(); BATCH];
    let mut packets = Packets::new(&arguments);
    let mut hits = Hits::new(&arguments);
    let mut headers = MultiHeaders::<LinkAddr>::preallocate(BATCH, None);
    let mut sent = 0;
    let start = Instant::now();
    while sent < arguments.count || !hits.waiting.is_empty() {
        let elapsed = start.elapsed();
        if elapsed.as_secs_f64() > MOST_SECONDS {
            break;
        }
        hits.send_due(elapsed, &socket, &template)?;
        let due = if arguments.rate == 0 {
            arguments.count
        } else {
            u64::try_from(elapsed.as_nanos() * u128::from(arguments.rate) / 1_000_000_000)?
        };
        let batch = usize::try_from(due.min(arguments.count).saturating_sub(sent))?.min(BATCH);
        if batch == 0 {
            std::hint::spin_loop();
            continue;
        }
        for frame in frames.iter_mut().take(batch) {
            packets.fill(frame);
        }
        let slices: Vec<_> = frames.iter().take(batch).map(|frame| [IoSlice::new(frame)]).collect();
        let none = vec![None; batch];
        let messages =
            sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &none, [], MsgFlags::empty())?.count();
        sent += u64::try_from(messages)?;
    }
    let elapsed = start.elapsed();
    let mut out = io::stdout().lock();
    for Hit { source, at, .. } in &hits.done {
        writeln!(out, "knock {source} {at}")?;
    }
    writeln!(out, "sent {sent} in {} ns", elapsed.as_nanos())?;
    Ok(())
}

/// The contents of the packets.
struct Packets {
    ports: Vec<u16>,
    first_source: u32,
    sources: u32,
    in_turns: bool,
    in_a_row: u32,
    number: u32,
    random: u64,
}

impl Packets {
    fn new(arguments: &Arguments) -> Self {
        let strays = 1024..=u16::MAX;
        let ports = if arguments.stray_from.is_empty() {
            arguments.ports.clone()
        } else {
            strays.filter(|port| !arguments.stray_from.contains(port)).collect()
        };
        let &Arguments { first_source, sources, in_turns, packets_per_source, .. } = arguments;
        let in_a_row = packets_per_source.max(1);
        let random = 0x9e37_79b9_7f4a_7c15;
        Self { ports, first_source, sources, in_turns, in_a_row, number: 0, random }
    }

    fn fill(&mut self, frame: &mut [u8]) {
        // xorshift64 (Marsaglia): good enough for addresses that nobody chooses.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        #[allow(clippy::cast_possible_truncation, reason = "some of the bits are wanted")]
        let (random, other) = ((self.random >> 32) as u32, self.random as u32);
        let source = if self.in_turns { self.number / self.in_a_row } else { random } % self.sources;
        // From 16.0.0.0 on.
        let source = Ipv4Addr::from_bits((16 << 24) + self.first_source + source);
        let count = u32::try_from(self.ports.len()).unwrap_or(1).max(1);
        let port = self.ports.get((if self.in_turns { self.number } else { other } % count) as usize);
        self.number = self.number.wrapping_add(1);
        put(frame, SOURCE, &source.octets());
        put(frame, PORT, &port.copied().unwrap_or_default().to_be_bytes());
    }
}

fn put(frame: &mut [u8], place: std::ops::Range<usize>, bytes: &[u8]) {
    if let Some(place) = frame.get_mut(place) {
        place.copy_from_slice(bytes);
    }
}

/// The hits of honest knocks.
struct Hits {
    /// Latest due time first.
    waiting: Vec<Hit>,
    /// The last hit of each knock, once sent.
    done: Vec<Hit>,
}

struct Hit {
    source: Ipv4Addr,
    port: u16,
    due: Duration,
    is_last: bool,
    /// Nanoseconds on the monotonic clock.
    at: i128,
}

impl Hits {
    fn new(arguments: &Arguments) -> Self {
        let mut waiting = Vec::new();
        let mut knock = 0;
        for number in 0..arguments.knocks {
            for &delay in &arguments.delays {
                let source = Ipv4Addr::from_bits((11 << 24) + knock);
                knock += 1;
                let start = Duration::from_millis(500 + u64::from(number) * arguments.pause);
                for (step, &port) in (0..).zip(&arguments.sequence) {
                    let due = start + Duration::from_millis(delay) * step;
                    let is_last = step as usize + 1 == arguments.sequence.len();
                    waiting.push(Hit { source, port, due, is_last, at: 0 });
                }
            }
        }
        // Hits without a delay between them keep their order.
        waiting.sort_by_key(|hit| hit.due);
        waiting.reverse();
        Self { waiting, done: Vec::new() }
    }

    fn send_due(&mut self, elapsed: Duration, socket: &Socket, template: &[u8]) -> Result<()> {
        while let Some(hit) = self.waiting.pop_if(|hit| hit.due <= elapsed) {
            let mut frame = template.to_vec();
            put(&mut frame, SOURCE, &hit.source.octets());
            put(&mut frame, PORT, &hit.port.to_be_bytes());
            let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
            nix::sys::socket::send(socket.as_raw_fd(), &frame, MsgFlags::empty())?;
            if hit.is_last {
                let at = i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec());
                self.done.push(Hit { at, ..hit });
            }
        }
        Ok(())
    }
}
