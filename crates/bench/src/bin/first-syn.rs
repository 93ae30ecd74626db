//! Knocks from one address of the client after the other, and tries the port behind the door until it answers: prints
//! the nanoseconds from each last hit to the first SYN that was accepted.

use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

/// The server of a test net, and the port behind the door.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const PORT: u16 = 22;

/// From one attempt to the next.
const PACE: Duration = Duration::from_micros(20);
/// How many attempts may wait for an answer.
const WAITING: usize = 32;
const PATIENCE: Duration = Duration::from_secs(20);

/// Measures how long a knock takes to open port 22 of the server of a test net
#[derive(Parser)]
struct Arguments {
    /// The ports of a knock
    #[arg(long, value_delimiter = ',')]
    sequence: Vec<u16>,
    /// The last number of the first address that knocks, of 10.9.0.0/24
    #[arg(long, default_value_t = 10)]
    first: u8,
    /// How many addresses knock
    #[arg(long)]
    count: u8,
    /// Milliseconds from one knock to the next
    #[arg(long, default_value_t = 20)]
    pause: u64,
}

fn main() -> Result<()> {
    let Arguments { sequence, first, count, pause } = Arguments::parse();
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    for number in (first..).take(count.into()) {
        let taken = knock(Ipv4Addr::new(10, 9, 0, number), &sequence)?;
        writeln!(io::stdout(), "{}", taken.as_nanos())?;
        std::thread::sleep(Duration::from_millis(pause));
    }
    Ok(())
}

/// Returns the time from the last hit to the first SYN that is accepted.
fn knock(source: Ipv4Addr, sequence: &[u16]) -> Result<Duration> {
    let mut hits = Vec::new();
    let mut last = Instant::now();
    for &port in sequence {
        last = Instant::now();
        hits.push(begin(source, port)?);
    }
    let mut attempts: Vec<(Instant, Socket)> = Vec::new();
    loop {
        let at = Instant::now();
        ensure!(at - last < PATIENCE, "port {PORT} does not open for {source}");
        attempts.push((at, begin(source, PORT)?));
        // Only a connected socket has a peer.
        if let Some((at, _)) = attempts.iter().find(|(_, socket)| socket.peer_addr().is_ok()) {
            return Ok(*at - last);
        }
        if attempts.len() > WAITING {
            attempts.remove(0);
        }
        while at.elapsed() < PACE {
            std::hint::spin_loop();
        }
    }
}

/// Sends a SYN, and does not wait for the answer.
fn begin(source: Ipv4Addr, port: u16) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(source, 0).into())?;
    match socket.connect(&SocketAddrV4::new(SERVER, port).into()) {
        Err(error)
            if error.kind() != ErrorKind::ConnectionRefused
                && error.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) =>
        {
            Err(error.into())
        }
        _ => Ok(socket),
    }
}
