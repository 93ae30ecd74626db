//! Runs the traffic generator on the client of a test net.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use testbed::Net;

use crate::daemon::Programs;

/// How far below the wanted rate a run may fall.
const TOLERANCE: f64 = 0.97;

/// The result of a run of the generator.
#[derive(Debug)]
pub(crate) struct Flood {
    pub(crate) sent: u64,
    pub(crate) took: Duration,
    /// When the last hit of each knock was sent, in nanoseconds.
    pub(crate) knocks: HashMap<Ipv4Addr, i128>,
}

impl Flood {
    /// Sends packets with these arguments for this crate's `flood`; waits until it is done.
    pub(crate) fn send(net: &Net, programs: &Programs, arguments: &str) -> Result<Self> {
        let flood = programs.flood.to_str().context("a path that is no text")?;
        let words: Vec<_> = std::iter::once(flood).chain(arguments.split_whitespace()).collect();
        let printed = net.client.run(&words)?;
        let (mut sent, mut took) = (0, Duration::ZERO);
        for line in printed.lines() {
            let words: Vec<_> = line.split(' ').collect();
            if let ["sent", count, "in", time, "ns"] = words.as_slice() {
                (sent, took) = (count.parse()?, Duration::from_nanos(time.parse()?));
            }
        }
        Ok(Self { sent, took, knocks: knocks(&printed) })
    }

    /// Says whether the packets were sent at this rate, in packets per second.
    pub(crate) fn kept_pace(&self, rate: u64) -> bool {
        self.rate() >= rate as f64 * TOLERANCE
    }

    pub(crate) fn rate(&self) -> f64 {
        self.sent as f64 / self.took.as_secs_f64()
    }

    /// Returns the time per packet, in nanoseconds.
    pub(crate) fn pace(&self) -> f64 {
        self.took.as_secs_f64() * 1e9 / self.sent as f64
    }
}

/// Reads the lines about knocks: their source and time.
pub(crate) fn knocks(printed: &str) -> HashMap<Ipv4Addr, i128> {
    let knock = |line: &str| {
        let (source, at) = line.strip_prefix("knock ")?.split_once(' ')?;
        Some((source.parse().ok()?, at.parse().ok()?))
    };
    printed.lines().filter_map(knock).collect()
}
