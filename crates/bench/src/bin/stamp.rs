//! The command of the benchmark's doors: appends its argument and the time on the monotonic clock to a file.

use std::fs::OpenOptions;
use std::io::Write;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

fn main() -> Result<()> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().context("no file")?;
    let name = arguments.next().context("no name")?;
    let at = i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec());
    let mut file = OpenOptions::new().append(true).create(true).open(file)?;
    // One write, so the lines of several commands do not mix.
    file.write_all(format!("knock {name} {at}\n").as_bytes())?;
    Ok(())
}
