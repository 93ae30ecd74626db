//! knockd beside the C program: both do the same things in one run, in turns, and what they cost is compared.
//!
//! The hosts are those of `testbed`: nothing leaves this machine. The traffic generator has the first processor and each
//! daemon, with everything that it starts, the second.
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

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

pub use measure::Scale;

/// Measures everything and writes `docs/benchmarks.md` with its plots; returns what has missed its target by more than a
/// fifth.
///
/// With [`Scale::Quick`] it measures less, in less than two minutes, and writes nothing.
///
/// # Errors
///
/// When this is not root on a machine with two processors, when a program is missing, and when something cannot be measured.
pub fn run(scale: Scale) -> Result<Vec<String>> {
    ensure!(nix::unistd::geteuid().is_root(), "the C program needs root");
    let cpus = std::thread::available_parallelism().context("cannot count the processors")?;
    ensure!(cpus.get() >= 2, "this takes two processors: one for the traffic, one for the daemon");
    let start = Instant::now();
    let results = measure::all(scale)?;
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
    Ok(page::missed(&results))
}
