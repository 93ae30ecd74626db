//! What is measured, and how.

mod filter;
mod knocks;
mod peer;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use testbed::Net;

use crate::daemon::{Daemon, Programs, Whose};
use crate::flood::Flood;
use crate::micro::{self, Micro};
pub(crate) use peer::Peer;

/// How much is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scale {
    /// Everything that has a target, in less than two minutes.
    Quick,
    /// Everything, in some twenty minutes.
    Full,
}

impl Scale {
    const fn rounds(self) -> usize {
        match self {
            Self::Quick => 1,
            Self::Full => 5,
        }
    }
}

/// The middle of some figures, and their ends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    pub(crate) fn of(mut figures: Vec<f64>) -> Result<Self> {
        figures.sort_by(f64::total_cmp);
        let median = figures.get(figures.len() / 2).copied().context("nothing was measured")?;
        let (low, high) = (figures.first().copied(), figures.last().copied());
        Ok(Self { median, low: low.unwrap_or(median), high: high.unwrap_or(median) })
    }

    /// For each of several figures, that of all rounds.
    pub(crate) fn of_each(rounds: &[Vec<f64>]) -> Result<Vec<Self>> {
        let of = |index| rounds.iter().filter_map(move |figures| figures.get(index).copied());
        (0..rounds.first().map_or(0, Vec::len)).map(|index| Self::of(of(index).collect())).collect()
    }
}

/// The same of both programs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) c: Spread,
    pub(crate) ours: Spread,
}

impl Pair {
    /// How many times less ours takes.
    pub(crate) fn ratio(&self) -> f64 {
        self.c.median / self.ours.median
    }
}

/// What both do with knocks during a flood of so many packets a second.
#[derive(Debug)]
pub(crate) struct KnockRow {
    pub(crate) rate: u64,
    /// How many of [`KNOCKS`] opened, for each of [`DELAYS`].
    pub(crate) c: Vec<Spread>,
    pub(crate) ours: Vec<Spread>,
    /// From the last hit to the command, without delays between the hits; milliseconds.
    pub(crate) c_latency: Option<Spread>,
    pub(crate) ours_latency: Option<Spread>,
}

/// Everything that was measured.
#[derive(Debug)]
pub(crate) struct Results {
    /// What the filter costs the kernel for a packet that no door wants, by number of doors; nanoseconds.
    pub(crate) filter: Vec<(usize, Pair)>,
    /// What a connection attempt that no door wants costs with the scanner guard on, in nanoseconds, and how many of
    /// [`KNOCKS`] opened meanwhile.
    pub(crate) guard: (Spread, Spread),
    /// What a packet that passes the filter costs, by number of live attempts; nanoseconds. The last is ours alone.
    pub(crate) live: Vec<(u32, Option<Spread>, Spread)>,
    pub(crate) knocks: Vec<KnockRow>,
    /// From the last hit to the command on an idle machine, in milliseconds: without a stop command, with one, and the
    /// disk's own time for what has to be stored then.
    pub(crate) idle_latency: (Pair, Spread, Spread),
    /// How often a second an idle daemon wakes up, all threads together.
    pub(crate) wakes: Pair,
    /// KiB when idle, and ours with as many attempts as are allowed.
    pub(crate) memory: Pair,
    pub(crate) full_memory: f64,
    /// Start and reload with 10,000 doors, in milliseconds, and what ours says about its filter then.
    pub(crate) start: Spread,
    pub(crate) reload: Spread,
    pub(crate) many_doors: String,
    pub(crate) micro: Vec<Micro>,
    /// None where it was not measured.
    pub(crate) peer: Option<Peer>,
}

pub(crate) const KNOCKS: u32 = 20;

/// Milliseconds between the hits of a knock.
pub(crate) const DELAYS: [u64; 3] = [0, 100, 1000];

/// The default bound on attempts.
pub(crate) const BOUND: u32 = 262_144;

const BOTH: [Whose; 2] = [Whose::C, Whose::Ours];

pub(crate) fn all(scale: Scale, peer: Option<PathBuf>) -> Result<Results> {
    let programs = Programs::find(peer)?;
    let net = Net::new()?;
    // With addresses of both families C's filter is too long for the kernel long before 330 doors.
    net.server.run(&["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6"])?;
    // What arrives is dropped where it costs least, after the daemons have seen it.
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
    say("rest and memory");
    let (wakes, memory) = bench.idle()?;
    let full_memory = bench.full_memory()?;
    say("10,000 doors");
    let (start, reload, many_doors) = bench.many_doors()?;
    say("knock-rs");
    let peer = bench.peer()?;
    Ok(Results {
        filter,
        guard,
        live,
        knocks,
        idle_latency,
        wakes,
        memory,
        full_memory,
        start,
        reload,
        many_doors,
        micro,
        peer,
    })
}

struct Bench {
    programs: Programs,
    net: Net,
    scale: Scale,
}

/// The ports of that many doors of three steps, all different and none next to another.
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
    fn start(&self, whose: Whose, config: &str) -> Result<Daemon> {
        Daemon::start(&self.net, &self.programs, whose, config)
    }

    /// Sends packets until they came at the wanted rate, `before` each try; gives up after some tries.
    fn flood<T>(
        &self,
        rate: u64,
        arguments: &str,
        mut around: impl FnMut(&dyn Fn() -> Result<Flood>) -> Result<(Flood, T)>,
    ) -> Result<(Flood, T)> {
        let arguments = format!("--rate {rate} {arguments}");
        let send = || Flood::send(&self.net, &self.programs, &arguments);
        let mut last = 0.0;
        for _ in 0..8 {
            let (flood, result) = around(&send)?;
            if rate == 0 || flood.kept_pace(rate) {
                return Ok((flood, result));
            }
            last = flood.rate();
        }
        anyhow::bail!("the generator cannot keep {rate} packets a second here, only {last:.0}")
    }

    fn live(&self) -> Result<Vec<(u32, Option<Spread>, Spread)>> {
        // How many attempts there are, and which rate the C program can follow then, in packets a second.
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
        let mut results = Vec::new();
        for &(attempts, c_rate) in rows {
            let (mut c, mut ours) = (Vec::new(), Vec::new());
            for _ in 0..self.scale.rounds() {
                if let Some(rate) = c_rate {
                    c.push(self.cost(Whose::C, attempts, rate)?);
                }
                ours.push(self.cost(Whose::Ours, attempts, 400_000)?);
            }
            let c = c_rate.map(|_| Spread::of(c)).transpose()?;
            results.push((attempts, c, Spread::of(ours)?));
        }
        Ok(results)
    }

    /// What a packet that hits the second step costs, from sources of which none has an attempt; nanoseconds.
    fn cost(&self, whose: Whose, attempts: u32, rate: u64) -> Result<f64> {
        let ports = ports(1);
        let [first, second, ..] = ports.as_slice() else { anyhow::bail!("no ports") };
        let config = if whose == Whose::Peer { peer::config(&ports, "true") } else { doors(&ports, "") };
        let daemon = self.start(whose, &config)?;
        let mut made = 0;
        while made < attempts {
            let portion = match whose {
                Whose::C | Whose::Peer => 1000.min(attempts - made),
                Whose::Ours => 50_000.min(attempts - made),
            };
            let arguments = format!(
                "--rate 50000 --count {portion} --ports {first} --in-turns --first-source {made} --sources {BOUND}"
            );
            Flood::send(&self.net, &self.programs, &arguments)?;
            daemon.settle()?;
            made += portion;
        }
        let arguments = format!("--count {rate} --ports {second} --first-source {}", 1 << 24);
        let (flood, (cpu, packets)) = self.flood(rate, &arguments, |send| {
            daemon.packets()?;
            let before = daemon.cpu()?;
            let flood = send()?;
            daemon.settle()?;
            let cpu = daemon.cpu()?.saturating_sub(before);
            let packets = match whose {
                Whose::C | Whose::Peer => daemon.packets()?,
                Whose::Ours => knockd_capture::Statistics::default(),
            };
            Ok((flood, (cpu, packets)))
        })?;
        let lost = daemon.lines().iter().any(|line| line.contains("were lost"));
        ensure!(!lost && packets.drops == 0, "{whose:?} has lost packets: {packets:?}");
        Ok(cpu.as_secs_f64() * 1e9 / flood.sent as f64)
    }

    fn guard(&self) -> Result<(Spread, Spread)> {
        let (config, ports) = self.stamping(Whose::Ours, "")?;
        let (rate, seconds) = (500_000, 4);
        let arguments = format!(
            "--count {} --stray-from {} --knocks {KNOCKS} --delays 0 --sequence {}",
            rate * seconds,
            list(&ports),
            list(&ports)
        );
        let (mut costs, mut opened) = (Vec::new(), Vec::new());
        for _ in 0..self.scale.rounds() {
            let (_, (cost, opens)) = self.flood(rate, &arguments, |send| {
                self.clear_stamps()?;
                let daemon = self.start(Whose::Ours, &config)?;
                let before = daemon.cpu()?;
                let flood = send()?;
                daemon.settle()?;
                let cpu = daemon.cpu()?.saturating_sub(before);
                let cost = cpu.as_secs_f64() * 1e9 / flood.sent as f64;
                Ok((flood, (cost, self.stamps().len() as f64)))
            })?;
            costs.push(cost);
            opened.push(opens);
        }
        Ok((Spread::of(costs)?, Spread::of(opened)?))
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
            let [c, ours] = figures else { anyhow::bail!("not of both") };
            Ok(Pair { c: Spread::of(vec![*c])?, ours: Spread::of(vec![*ours])? })
        };
        Ok((pair(&wakes)?, pair(&memory)?))
    }

    /// How often a second it wakes up when idle, and its memory then, in KiB.
    fn at_rest(&self, whose: Whose, time: Duration) -> Result<(f64, f64)> {
        let (config, _) = self.stamping(whose, "")?;
        let daemon = self.start(whose, &config)?;
        let before = daemon.sleeps()?;
        std::thread::sleep(time);
        let wakes = (daemon.sleeps()? - before) as f64 / time.as_secs_f64();
        Ok((wakes, daemon.memory()? as f64))
    }

    fn full_memory(&self) -> Result<f64> {
        let (config, ports) = self.stamping(Whose::Ours, "")?;
        let daemon = self.start(Whose::Ours, &config)?;
        let arguments = format!(
            "--rate 100000 --count {} --ports {} --in-turns",
            BOUND + 10_000,
            ports.first().context("no port")?
        );
        Flood::send(&self.net, &self.programs, &arguments)?;
        daemon.settle()?;
        Ok(daemon.memory()? as f64)
    }

    fn many_doors(&self) -> Result<(Spread, Spread, String)> {
        // 30,000 steps: all ports from 2000 on but every other one, in no order that helps.
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
            let line = running.wait_for_line("the doors use more ports", Duration::from_secs(20))?;
            starts.push((line.at - start).as_secs_f64() * 1e3);
            let start = Instant::now();
            running.signal(Signal::SIGHUP)?;
            let line = running.wait_for_line("the doors use more ports", Duration::from_secs(20))?;
            reloads.push((line.at - start).as_secs_f64() * 1e3);
            said = line.text;
        }
        Ok((Spread::of(starts)?, Spread::of(reloads)?, said))
    }
}
