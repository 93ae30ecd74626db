//! What is measured, and how: both programs do the same in turns, on two hosts of `testbed`.

mod client;
mod filter;
mod guard;
mod knocks;
mod peer;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use testbed::Net;

use crate::daemon::{Daemon, Programs, Whose};
use crate::flood::Flood;
use crate::micro;
use crate::rate::{Round, at_one_rate};
use crate::results::{BOUND, Cost, Guard, KNOCKS, LiveRow, Pair, Results, Spread};
use crate::scale::Scale;

const BOTH: [Whose; 2] = [Whose::C, Whose::Ours];

pub(crate) fn all(scale: Scale, client: PathBuf, peer: Option<PathBuf>) -> Result<Results> {
    let programs = Programs::find(client, peer)?;
    let net = Net::new()?;
    // With addresses of both families, C's filter is too long for the kernel long before 330 doors.
    net.server.run(&["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6"])?;
    // Arriving packets are dropped where that costs least, after the daemons have seen them.
    let drop = "add table netdev bench
                add chain netdev bench arriving { type filter hook ingress device eth0 priority 0; policy drop; }";
    net.server.run_with_input(&["nft", "-f", "-"], drop.as_bytes()).context("cannot drop packets by nft")?;
    let bench = Bench { programs, net, scale };
    let start = Instant::now();
    let say = |what: &str| anstream::eprintln!("{:4} s: measuring {what} …", start.elapsed().as_secs());
    say("the core alone");
    let micro = micro::all(&bench.programs.micro, scale)?;
    say("the filter in the kernel");
    let filter = bench.filter()?;
    say("packets that pass, by number of attempts");
    let live = bench.live()?;
    say("the scanner guard");
    let guard = bench.guard()?;
    say("knocks in a flood");
    let knocks = bench.knocks()?;
    say("knocks without a flood");
    let idle_latency = bench.idle_latency()?;
    say("the firewall of its own");
    let native = guard::all(&bench.programs, scale)?;
    say("rest and memory");
    let (wakes, memory) = bench.idle()?;
    let full_memory = bench.full_memory()?;
    say("10,000 doors");
    let (start, reload, many_doors) = bench.many_doors()?;
    say("the client");
    let client = bench.client()?;
    say("knock-rs");
    let peer = bench.peer()?;
    Ok(Results {
        filter,
        guard,
        live,
        knocks,
        idle_latency,
        native,
        wakes,
        memory,
        full_memory,
        start,
        reload,
        many_doors,
        micro,
        client,
        peer,
    })
}

struct Bench {
    programs: Programs,
    net: Net,
    scale: Scale,
}

/// Returns the ports of this many doors of three steps, all different and none adjacent.
fn ports(doors: usize) -> Vec<u16> {
    (2000..=u16::MAX).step_by(61).take(doors * 3).collect()
}

fn doors(ports: &[u16], more: &str) -> String {
    let door = |(number, steps): (usize, &[u16])| {
        let steps: Vec<_> = steps.iter().map(ToString::to_string).collect();
        format!(
            "[door{number}]\nsequence = {}\ntcpflags = syn\nseq_timeout = 3600\n{more}\n",
            steps.join(",")
        )
    };
    ports.chunks(3).enumerate().map(door).collect()
}

fn list(ports: &[u16]) -> String {
    ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl Bench {
    fn start(&self, whose: Whose, config: &str) -> Result<Daemon<'_>> {
        Daemon::start(&self.net.server, &self.programs, whose, config)
    }

    /// Sends packets at this rate. `before` prepares the run, and `after` evaluates it; `None` means that packets
    /// were lost, so a lower rate has to be tried.
    fn flood<T, U>(
        &self,
        rate: u64,
        arguments: &str,
        before: impl FnOnce() -> Result<T>,
        after: impl FnOnce(T, &Flood) -> Result<Option<U>>,
    ) -> Result<Round<U>> {
        let ready = before()?;
        let flood = Flood::send(&self.net, &self.programs, &format!("--rate {rate} {arguments}"))?;
        let outcome = after(ready, &flood)?;
        if !flood.kept_pace(rate) {
            return Ok(Round::Slower(flood.rate()));
        }
        Ok(outcome.map_or(Round::Slower(rate as f64 / 2.0), Round::Kept))
    }

    fn live(&self) -> Result<Vec<LiveRow>> {
        // The number of attempts, and the rate that the C program can follow with it, in packets per second.
        let rows: &[(u32, Option<u64>)] = match self.scale {
            Scale::Quick => {
                &[(0, Some(200_000)), (1_000, Some(50_000)), (10_000, Some(5_000)), (BOUND, None)]
            }
            Scale::Full => &[
                (0, Some(200_000)),
                (1_000, Some(50_000)),
                (10_000, Some(5_000)),
                (50_000, Some(500)),
                (BOUND, None),
            ],
        };
        let rounds = self.scale.rounds();
        let mut results = Vec::new();
        for &(attempts, c_rate) in rows {
            let c = c_rate.map(|rate| self.cost(Whose::C, attempts, rate, rounds)).transpose()?;
            results.push(LiveRow { attempts, c, ours: self.cost(Whose::Ours, attempts, 400_000, rounds)? });
        }
        Ok(results)
    }

    /// Measures the cost of a packet that hits the second step, from sources without an attempt.
    fn cost(&self, whose: Whose, attempts: u32, rate: u64, rounds: usize) -> Result<Cost> {
        let ports = ports(1);
        let second = ports.get(1).context("no port")?;
        let (rate, costs) = at_one_rate(rate, rounds, |rate| {
            // Lasts a second.
            let arguments = format!("--count {rate} --ports {second} --first-source {}", 1 << 24);
            let before = || {
                let daemon = self.with_attempts(whose, &ports, attempts)?;
                daemon.lost()?;
                let cpu = daemon.cpu()?;
                Ok((daemon, cpu))
            };
            self.flood(rate, &arguments, before, |(daemon, cpu): (Daemon, Duration), flood| {
                daemon.settle()?;
                let cpu = daemon.cpu()?.saturating_sub(cpu);
                // A lost packet costs nothing, so it would flatter the result.
                Ok((daemon.lost()? == 0).then(|| cpu.as_secs_f64() * 1e9 / flood.sent as f64))
            })
        })?;
        Ok(Cost { rate, spread: Spread::of(costs)? })
    }

    /// Starts a daemon with this many live attempts.
    fn with_attempts(&self, whose: Whose, ports: &[u16], attempts: u32) -> Result<Daemon<'_>> {
        let config = if whose == Whose::Peer { peer::config(ports, "true") } else { doors(ports, "") };
        let first = ports.first().context("no port")?;
        let (mut pace, mut at_once) = match whose {
            Whose::C | Whose::Peer => (50_000, 1000),
            Whose::Ours => (50_000, 50_000),
        };
        loop {
            let daemon = self.start(whose, &config)?;
            daemon.lost()?;
            let mut made = 0;
            while made < attempts {
                let portion = at_once.min(attempts - made);
                let arguments = format!(
                    "--rate {pace} --count {portion} --ports {first} --in-turns --first-source {made} --sources {BOUND}"
                );
                let flood = Flood::send(&self.net, &self.programs, &arguments)?;
                daemon.settle()?;
                made += u32::try_from(flood.sent)?;
            }
            if daemon.lost()? == 0 {
                return Ok(daemon);
            }
            // Lost packets have started no attempt.
            (pace, at_once) = (pace / 2, (at_once / 2).max(1));
            ensure!(pace > 100, "{whose:?} loses packets, however slowly they come");
        }
    }

    fn guard(&self) -> Result<Guard> {
        const SECONDS: u64 = 4;
        let (config, ports) = self.stamping(Whose::Ours, "")?;
        let (rate, rounds) = at_one_rate(500_000, self.scale.rounds(), |rate| {
            let arguments = format!(
                "--count {} --stray-from {} --knocks {KNOCKS} --delays 0 --sequence {}",
                rate * SECONDS,
                list(&ports),
                list(&ports)
            );
            let before = || {
                self.clear_stamps()?;
                let daemon = self.start(Whose::Ours, &config)?;
                let cpu = daemon.cpu()?;
                Ok((daemon, cpu))
            };
            self.flood(rate, &arguments, before, |(daemon, cpu): (Daemon, Duration), flood| {
                daemon.settle()?;
                let cpu = daemon.cpu()?.saturating_sub(cpu);
                let cost = cpu.as_secs_f64() * 1e9 / flood.sent as f64;
                Ok((daemon.lost()? == 0).then(|| (cost, self.stamps().len() as f64)))
            })
        })?;
        let (costs, opened): (Vec<_>, Vec<_>) = rounds.into_iter().unzip();
        Ok(Guard { cost: Cost { rate, spread: Spread::of(costs)? }, opened: Spread::of(opened)? })
    }

    fn idle(&self) -> Result<(Pair, Pair)> {
        let time = match self.scale {
            Scale::Quick => Duration::from_secs(3),
            Scale::Full => Duration::from_secs(20),
        };
        let mut wakes = Vec::new();
        let mut memory = Vec::new();
        for whose in BOTH {
            let (woken, size) = self.at_rest(whose, time)?;
            wakes.push(woken);
            memory.push(size);
        }
        let pair = |figures: &[f64]| -> Result<Pair> {
            let [c, ours] = figures else { bail!("not of both") };
            Ok(Pair { c: Spread::of(vec![*c])?, ours: Spread::of(vec![*ours])? })
        };
        Ok((pair(&wakes)?, pair(&memory)?))
    }

    /// Measures how often per second it wakes up when idle, and its memory then, in KiB.
    fn at_rest(&self, whose: Whose, time: Duration) -> Result<(f64, f64)> {
        let (config, _) = self.stamping(whose, "")?;
        let daemon = self.start(whose, &config)?;
        // Ours looks once more, a third of a second after its decoder has begun to read.
        std::thread::sleep(Duration::from_secs(1));
        let before = daemon.sleeps()?;
        std::thread::sleep(time);
        let wakes = (daemon.sleeps()? - before) as f64 / time.as_secs_f64();
        Ok((wakes, daemon.memory()? as f64))
    }

    fn full_memory(&self) -> Result<f64> {
        let (config, ports) = self.stamping(Whose::Ours, "")?;
        let daemon = self.start(Whose::Ours, &config)?;
        let first = ports.first().context("no port")?;
        let mut sent = 0;
        // Somewhat more than there is room for, because some may be lost.
        while sent < u64::from(BOUND) + 10_000 || daemon.attempts()? < u64::from(BOUND) {
            let arguments =
                format!("--rate 100000 --count 50000 --ports {first} --in-turns --first-source {sent}");
            sent += Flood::send(&self.net, &self.programs, &arguments)?.sent;
            daemon.settle()?;
            ensure!(sent < 10 * u64::from(BOUND), "the table of attempts does not fill");
        }
        Ok(daemon.memory()? as f64)
    }

    fn many_doors(&self) -> Result<(Spread, Spread, String)> {
        // 30,000 steps: every other port from 2000 on, in no helpful order.
        let ports: Vec<u16> =
            (0..30_000_u32).filter_map(|n| u16::try_from(2000 + n * 7919 % 31_700 * 2).ok()).collect();
        let config = doors(&ports, "");
        let program = self.programs.ours.to_str().context("a path that is no text")?;
        let (mut starts, mut reloads, mut said) = (Vec::new(), Vec::new(), String::new());
        for _ in 0..self.scale.rounds() {
            self.net.server.write_file("/run/knockd.conf", &config)?;
            let start = Instant::now();
            let mut running =
                self.net.server.spawn(&[program, "-v", "-i", "eth0", "-c", "/run/knockd.conf"])?;
            let line =
                running.wait_for_line("too many ports for the kernel filter", Duration::from_secs(20))?;
            starts.push((line.at - start).as_secs_f64() * 1e3);
            let start = Instant::now();
            running.signal(Signal::SIGHUP)?;
            let line =
                running.wait_for_line("too many ports for the kernel filter", Duration::from_secs(20))?;
            reloads.push((line.at - start).as_secs_f64() * 1e3);
            said = line.text;
        }
        Ok((Spread::of(starts)?, Spread::of(reloads)?, said))
    }
}
