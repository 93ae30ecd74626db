//! knock-rs, the other knock daemon in Rust, in the same situations.
//!
//! It is in the package registry as `knockd` 0.1.0, under the Apache licence. It sees only TCP SYN over IPv4, keeps
//! every port of a sequence that a source has hit as an attempt, in any order, and has a fixed interface.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, list};
use crate::daemon::Whose;
use crate::rate::{Round, at_one_rate};
use crate::results::{Peer, Spread};
use crate::scale::Scale;

/// The only interface that it knows (its `main.rs`).
const INTERFACE: &str = "enp3s0";

/// Returns one door in its configuration format.
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
            live.push((attempts, self.cost(Whose::Peer, attempts, 5_000, ROUNDS)?));
        }
        let mut knocks = Vec::new();
        for rate in [1_000, 10_000, 50_000] {
            let (rate, rounds) = at_one_rate(rate, ROUNDS, |rate| {
                Ok(match self.knocks_in_flood(Whose::Peer, rate)? {
                    Round::Kept((counts, _)) => Round::Kept(counts),
                    Round::Slower(rate) => Round::Slower(rate),
                })
            })?;
            knocks.push((rate, Spread::of_each(&rounds)?));
        }
        let (config, ports) = self.stamping(Whose::Peer, "")?;
        let idle_latency = Spread::of(self.idle_knocks(Whose::Peer, &config, &ports)?)?;
        let at_rest = self.at_rest(Whose::Peer, Duration::from_secs(20))?;
        Ok(Peer { live, knocks, idle_latency, at_rest })
    }
}
