//! The fate of knocks, in a flood and without one.

use std::collections::HashMap;
use std::fs;
use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context, Result};

use super::{BOTH, Bench, doors, list, peer, ports};
use crate::daemon::Whose;
use crate::flood::{Flood, knocks};
use crate::rate::{Round, at_one_rate};
use crate::results::{DELAYS, IdleLatency, KNOCKS, KnockRow, Pair, Spread};
use crate::scale::Scale;

impl Bench {
    /// Creates a door that notes when it opens.
    pub(super) fn stamping(&self, whose: Whose, more: &str) -> Result<(String, Vec<u16>)> {
        let ports = ports(1);
        let stamp = self.programs.stamp.to_str().context("a path that is no text")?;
        let command = format!("{stamp} /run/stamps %IP%");
        let config = match whose {
            Whose::Peer => peer::config(&ports, &command),
            Whose::C | Whose::Ours => {
                doors(&ports, &format!("start_command = {command}\ncmd_timeout = 3600\n{more}"))
            }
        };
        Ok((config, ports))
    }

    /// Returns when each knock was answered.
    pub(super) fn stamps(&self) -> HashMap<Ipv4Addr, i128> {
        knocks(&self.net.server.run(&["cat", "/run/stamps"]).unwrap_or_default())
    }

    pub(super) fn clear_stamps(&self) -> Result<()> {
        self.net.server.run(&["rm", "-f", "/run/stamps"]).map(drop)
    }

    pub(super) fn knocks(&self) -> Result<Vec<KnockRow>> {
        let rates: &[u64] = match self.scale {
            Scale::Quick => &[10_000, 500_000],
            Scale::Full => &[1_000, 10_000, 50_000, 500_000],
        };
        let row = |&wanted: &u64| {
            let (rate, rounds) = at_one_rate(wanted, self.scale.rounds(), |rate| {
                // Both need the same rate, or there is nothing to compare.
                let mut both = Vec::new();
                for whose in BOTH {
                    match self.knocks_in_flood(whose, rate)? {
                        Round::Kept(opened) => both.push(opened),
                        Round::Slower(rate) => return Ok(Round::Slower(rate)),
                    }
                }
                Ok(Round::Kept(both))
            })?;
            let of = |index: usize| {
                let rounds = rounds.iter().filter_map(|both| both.get(index));
                let (counts, latencies): (Vec<_>, Vec<_>) = rounds.cloned().unzip();
                Ok::<_, anyhow::Error>((Spread::of_each(&counts)?, Spread::of(latencies.concat()).ok()))
            };
            let ((c, c_latency), (ours, ours_latency)) = (of(0)?, of(1)?);
            Ok(KnockRow { rate, c, ours, c_latency, ours_latency })
        };
        rates.iter().map(row).collect()
    }

    /// Counts the knocks with each delay that opened while others' first steps arrived at this rate, and measures how
    /// long those without a delay took, in milliseconds.
    pub(super) fn knocks_in_flood(&self, whose: Whose, rate: u64) -> Result<Round<(Vec<f64>, Vec<f64>)>> {
        let (config, ports) = self.stamping(whose, "")?;
        let delays = DELAYS.map(|delay| delay.to_string()).join(",");
        let arguments = format!(
            "--count {} --ports {} --knocks {KNOCKS} --delays {delays} --sequence {}",
            rate * 5,
            ports.first().context("no port")?,
            list(&ports)
        );
        let before = || {
            self.clear_stamps()?;
            self.start(whose, &config)
        };
        self.flood(rate, &arguments, before, |daemon, flood| {
            daemon.settle()?;
            Ok(Some(counts_and_latencies(flood, self.stamps())))
        })
    }

    /// Measures how long each knock takes without a flood, in milliseconds.
    pub(super) fn idle_knocks(&self, whose: Whose, config: &str, ports: &[u16]) -> Result<Vec<f64>> {
        self.clear_stamps()?;
        let daemon = self.start(whose, config)?;
        let arguments =
            format!("--rate 1 --count 0 --knocks {KNOCKS} --delays 0 --pause 157 --sequence {}", list(ports));
        let flood = Flood::send(&self.net, &self.programs, &arguments)?;
        daemon.settle()?;
        let taken = |(source, at): (&Ipv4Addr, &i128)| Some((at - flood.knocks.get(source)?) as f64 / 1e6);
        Ok(self.stamps().iter().filter_map(taken).collect())
    }

    pub(super) fn idle_latency(&self) -> Result<IdleLatency> {
        let directory = testbed::target_directory()?.join("bench-state");
        fs::create_dir_all(&directory)?;
        let directory = directory.canonicalize()?;
        let (plain, ports) = self.stamping(Whose::Ours, "")?;
        let (stopping, _) = self.stamping(Whose::Ours, "stop_command = true")?;
        let stopping = format!(
            "[options]\nStateDir = {}\nOnExit = close\n{stopping}",
            directory.join("knockd").display()
        );
        let cases = [(Whose::C, &plain), (Whose::Ours, &plain), (Whose::Ours, &stopping)];
        let mut taken = [const { Vec::new() }; 3];
        let mut opened = [KNOCKS as usize; 3];
        for _ in 0..self.scale.rounds() {
            for (((whose, config), taken), opened) in cases.into_iter().zip(&mut taken).zip(&mut opened) {
                let round = self.idle_knocks(whose, config, &ports)?;
                *opened = round.len().min(*opened);
                taken.extend(round);
            }
            let _ = fs::remove_dir_all(directory.join("knockd"));
        }
        let disk = (0..20).map(|_| store_time(&directory)).collect::<Result<_>>()?;
        let [c, ours, with_stop] = taken.map(Spread::of);
        Ok(IdleLatency {
            plain: Pair { c: c?, ours: ours? },
            with_stop: with_stop?,
            disk: Spread::of(disk)?,
            opened,
        })
    }
}

/// Returns how many knocks with each delay opened, and how long those without a delay took, in milliseconds.
fn counts_and_latencies(flood: &Flood, stamps: HashMap<Ipv4Addr, i128>) -> (Vec<f64>, Vec<f64>) {
    let (mut counts, mut latencies) = (vec![0.0; DELAYS.len()], Vec::new());
    for (source, at) in stamps {
        // The generator assigns addresses to the knocks of each delay in turns.
        let index = source.to_bits() as usize % DELAYS.len();
        // The turns start at 11.0.0.0 modulo 3.
        let index = (index + DELAYS.len() - (11 << 24) % DELAYS.len()) % DELAYS.len();
        if let Some(count) = counts.get_mut(index) {
            *count += 1.0;
        }
        if let Some(hit) = flood.knocks.get(&source)
            && index == 0
        {
            latencies.push((at - hit) as f64 / 1e6);
        }
    }
    (counts, latencies)
}

/// Measures how long the disk takes to store a file durably, in milliseconds.
fn store_time(directory: &std::path::Path) -> Result<f64> {
    let start = Instant::now();
    let temporary = directory.join("new");
    fs::write(&temporary, [b'x'; 300])?;
    fs::File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, directory.join("file"))?;
    fs::File::open(directory)?.sync_all()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}
