//! knockd compared with the C program: both do the same things in turns within one run, and their costs are compared.
//!
//! The hosts are those of `testbed`: nothing leaves this machine. The traffic generator has the first processor; each
//! daemon, with everything that it starts, has the second.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "figures for people to compare"
)]

mod daemon;
mod flood;
mod measure;
mod micro;
mod page;
mod plot;
mod rate;
mod results;
mod scale;
mod targets;

use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pnet::datalink::{self, NetworkInterface};
use socket2::{Domain, SockFilter, Socket, Type};

pub use scale::Scale;

/// Opens a packet socket that receives nothing on an interface.
///
/// # Errors
///
/// When that is not permitted, or the interface is down.
pub fn deaf_socket(interface: &NetworkInterface, kind: Type) -> Result<Socket> {
    let socket = Socket::new(Domain::PACKET, kind, None)?;
    // The one instruction `return 0` (linux/filter.h).
    socket.attach_filter(&[SockFilter::new(6, 0, 0, 0)])?;
    let config = datalink::Config {
        socket_fd: Some(socket.try_clone()?.into_raw_fd()),
        promiscuous: false,
        ..datalink::Config::default()
    };
    datalink::channel(interface, config)?;
    Ok(socket)
}

/// Measures everything and writes `docs/benchmarks.md` with its plots; returns what missed its target by more than a
/// fifth.
///
/// With [`Scale::Quick`] it measures less, in about three minutes, and writes nothing. `client` is the path of our
/// static `knock`, `peer` that of knock-rs, if available.
///
/// # Errors
///
/// When this does not run as root on a machine with two processors, a program is missing, or something cannot be
/// measured.
pub fn run(scale: Scale, client: PathBuf, peer: Option<PathBuf>) -> Result<Vec<String>> {
    ensure!(nix::unistd::geteuid().is_root(), "the C program needs root");
    let cpus = std::thread::available_parallelism().context("cannot count the processors")?;
    ensure!(cpus.get() >= 2, "this takes two processors: one for the traffic, one for the daemon");
    let start = Instant::now();
    let results = measure::all(scale, client, peer)?;
    let page = page::of(&results, start.elapsed());
    anstream::println!("\n{page}");
    if scale == Scale::Full {
        let docs = testbed::workspace_root().join("docs");
        let write = |name: &str, text: &str| {
            let path: PathBuf = docs.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("benchmarks.md", &page)?;
        write("benchmarks-cpu.svg", &plot::cpu_over_attempts(&results.live)?)?;
        write("benchmarks-knocks.svg", &plot::knocks_over_rate(&results.knocks)?)?;
    }
    Ok(targets::missed(&results))
}
