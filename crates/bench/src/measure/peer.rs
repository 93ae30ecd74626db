//! knock-rs, the other knock daemon in Rust, in the same situations.
//!
//! It is in the package registry as `knockd` 0.1.0 and under the Apache licence. It sees TCP SYN over IPv4 only, keeps every
//! port of a sequence that a source has hit as an attempt, in any order, and cannot be told the interface.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, Scale, Spread, list};
use crate::daemon::Whose;

/// The only interface that it knows (its `main.rs`).
const INTERFACE: &str = "enp3s0";

/// What was measured of it.
#[derive(Debug)]
pub(crate) struct Peer {
    /// CPU for a packet to a port of a sequence, by number of live attempts; nanoseconds.
    pub(crate) live: Vec<(u32, Spread)>,
    /// How many knocks opened in a flood of so many packets a second, for each delay.
    pub(crate) knocks: Vec<(u64, Vec<Spread>)>,
    /// From the last hit to the command on an idle machine, in milliseconds.
    pub(crate) idle_latency: Spread,
    /// How often a second it wakes up when idle, and its memory then, in KiB.
    pub(crate) at_rest: (f64, f64),
}

/// One door, as it wants it.
pub(super) fn config(ports: &[u16], command: &str) -> String {
    let sequence = list(ports);
    format!(
        "interface: {INTERFACE}\ntimeout: 3600\nrules:\n- name: door\n  command: \"{command}\"\n  sequence: [{sequence}]\n"
    )
}

impl Bench {
    pub(super) fn peer(&self) -> Result<Option<Peer>> {
        if self.programs.peer.is_none() || self.scale == Scale::Quick {
            return Ok(None);
        }
        let rename = |from, to| self.net.server.run(&["ip", "link", "set", from, "name", to]);
        rename("eth0", INTERFACE)?;
        let peer = self.measure_peer();
        rename(INTERFACE, "eth0")?;
        peer.map(Some)
    }

    fn measure_peer(&self) -> Result<Peer> {
        const ROUNDS: usize = 3;
        let mut live = Vec::new();
        for attempts in [0, 1_000, 10_000] {
            let costs =
                (0..ROUNDS).map(|_| self.cost(Whose::Peer, attempts, 5_000)).collect::<Result<_>>()?;
            live.push((attempts, Spread::of(costs)?));
        }
        let mut knocks = Vec::new();
        for rate in [1_000, 10_000, 50_000] {
            let mut rounds: Vec<Vec<f64>> = Vec::new();
            for _ in 0..ROUNDS {
                rounds.push(self.knocks_in_flood(Whose::Peer, rate)?.0);
            }
            knocks.push((rate, Spread::of_each(&rounds)?));
        }
        let (config, ports) = self.stamping(Whose::Peer, "")?;
        let idle_latency = Spread::of(self.idle_knocks(Whose::Peer, &config, &ports)?)?;
        let at_rest = self.at_rest(Whose::Peer, Duration::from_secs(20))?;
        Ok(Peer { live, knocks, idle_latency, at_rest })
    }
}
