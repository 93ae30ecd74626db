//! The guard: how soon it lets a knocker in, what it costs other packets, and very many leases.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testbed::{Net, Running};

use super::{list, ports};
use crate::daemon::{Daemon, Programs, Whose};
use crate::flood::Flood;
use crate::results::{Crowd, KNOCKS, LEASES, Native, Spread};
use crate::scale::Scale;

/// The last numbers of the client's addresses, each of which knocks once at a daemon.
const FIRST: u8 = 10;
const MOST: u8 = 200;

/// What a person would write for a door with commands: the same check at the same place.
const TABLE: &str = "table inet doors {
    set ssh { type ipv4_addr; }
    chain guard {
        type filter hook prerouting priority -160; policy accept;
        tcp dport 22 ct state != established ip saddr != @ssh iif != lo drop
    }
}";

/// A host's own firewall, which knows connections whether there is a guard or not.
const INPUT: &str = "table inet host {
    chain input {
        type filter hook input priority 0; policy drop;
        ct state established accept
    }
}";

/// A chain at the guard's place that does nothing.
const EMPTY: &str = "table inet empty {
    chain before {
        type filter hook prerouting priority -160; policy accept;
    }
}";

struct Bench<'a> {
    programs: &'a Programs,
    net: Net,
    scale: Scale,
    _service: Running,
}

pub(super) fn all(programs: &Programs, scale: Scale) -> Result<Native> {
    let net = Net::new()?;
    let (mut addresses, mut neighbours) = (String::new(), String::new());
    for number in (FIRST..).take(MOST.into()) {
        writeln!(addresses, "address add 10.9.0.{number}/24 dev eth0")?;
        // Nobody has to ask for the hardware address meanwhile.
        writeln!(
            neighbours,
            "neighbour add 10.9.0.{number} lladdr 02:00:00:00:09:02 dev eth0 nud permanent"
        )?;
    }
    net.client.run_with_input(&["ip", "-batch", "-"], addresses.as_bytes())?;
    net.server.run_with_input(&["ip", "-batch", "-"], neighbours.as_bytes())?;
    let service = net.server.listen(22)?;
    let bench = Bench { programs, net, scale, _service: service };
    let packet = bench.packet()?;
    let (c, command, guard, nft) = bench.idle()?;
    let crowd = bench.crowd()?;
    Ok(Native { c, command, guard, nft, packet, crowd })
}

/// Returns a configuration with one door that is open for an hour.
fn config(sequence: &[u16], action: &str) -> String {
    format!("[door]\nsequence = {}\ntcpflags = syn\nseq_timeout = 3600\n{action}\n", list(sequence))
}

fn guarding(sequence: &[u16]) -> String {
    let options = format!("[options]\nFirewall = nftables\nMaxOpen = {}\n", 2 * LEASES);
    options + &config(sequence, "open = tcp/22\nlease = 3600")
}

impl Bench<'_> {
    fn nft(&self, script: &str) -> Result<()> {
        self.net.server.run_with_input(&["nft", "-f", "-"], script.as_bytes()).map(drop)
    }

    fn knockd(&self, arguments: &[&str]) -> Result<()> {
        let program = self.programs.ours.to_str().context("a path that is no text")?;
        self.net.server.run(&[&[program], arguments].concat()).map(drop)
    }

    fn start(&self, whose: Whose, config: &str) -> Result<Daemon<'_>> {
        Daemon::start(&self.net.server, self.programs, whose, config)
    }

    /// Returns the milliseconds from each of so many knocks to the first SYN that is accepted.
    fn first_syns(&self, sequence: &[u16], count: u8) -> Result<Vec<f64>> {
        let program = self.programs.first_syn.to_str().context("a path that is no text")?;
        let count = count.to_string();
        let arguments = [program, "--sequence", &list(sequence), "--count", &count];
        let printed = self.net.client.run(&arguments)?;
        printed.lines().map(|line| Ok(line.parse::<f64>()? / 1e6)).collect()
    }

    /// Measures without other traffic: C's door and ours with `nft` as their command, ours with the guard, and `nft`
    /// alone.
    fn idle(&self) -> Result<(Spread, Spread, Spread, Spread)> {
        let sequence = ports(1);
        let nft = self.net.server.run(&["sh", "-c", "command -v nft"])?;
        let command = format!("start_command = {} add element inet doors ssh '{{ %IP% }}'", nft.trim_end());
        let command = config(&sequence, &command);
        let guarding = guarding(&sequence);
        let cases = [(Whose::C, &command), (Whose::Ours, &command), (Whose::Ours, &guarding)];
        let mut taken = [const { Vec::new() }; 3];
        let mut alone = Vec::new();
        for _ in 0..self.scale.rounds() {
            for ((whose, config), taken) in cases.into_iter().zip(&mut taken) {
                let has_commands = config == &command;
                if has_commands {
                    self.nft(TABLE)?;
                }
                let daemon = self.start(whose, config)?;
                taken.extend(self.first_syns(&sequence, u8::try_from(KNOCKS)?)?);
                drop(daemon);
                if has_commands {
                    self.nft("delete table inet doors")?;
                } else {
                    self.knockd(&["guard", "--remove"])?;
                }
            }
            alone.extend(self.nft_alone()?);
        }
        let [c, ours, guard] = taken.map(Spread::of);
        Ok((c?, ours?, guard?, Spread::of(alone)?))
    }

    /// Measures how long `nft` takes to add an element, in milliseconds.
    fn nft_alone(&self) -> Result<Vec<f64>> {
        self.nft(TABLE)?;
        // In one shell, and without the time that `date` takes, so that only `nft` counts.
        let script = "for number in $(seq 20); do
                a=$(date +%s%N); nft add element inet doors ssh \"{ 10.1.1.$number }\"; b=$(date +%s%N)
                c=$(date +%s%N); echo $((b - a - (c - b)))
            done";
        let printed = self.net.server.run(&["taskset", "-c", "1", "sh", "-c", script])?;
        self.nft("delete table inet doors")?;
        printed.lines().map(|line| Ok(line.parse::<f64>()? / 1e6)).collect()
    }

    /// Measures what the guard adds to a packet to another port, over an empty chain at its place, in nanoseconds.
    fn packet(&self) -> Result<Spread> {
        const ROUNDS: usize = 9;
        let count = match self.scale {
            Scale::Quick => 60_000,
            Scale::Full => 300_000,
        };
        self.nft(INPUT)?;
        self.net.server.write_file("/run/guard.conf", &guarding(&ports(1)))?;
        let pace = || -> Result<f64> {
            let mut fastest = f64::INFINITY;
            for _ in 0..3 {
                let arguments = format!("--rate 0 --count {count} --ports 9 --sources 1");
                fastest = fastest.min(Flood::send(&self.net, self.programs, &arguments)?.pace());
            }
            Ok(fastest)
        };
        let mut costs = Vec::new();
        for _ in 0..ROUNDS {
            self.nft(EMPTY)?;
            let without = pace()?;
            self.nft("delete table inet empty")?;
            self.knockd(&["guard", "-c", "/run/guard.conf"])?;
            costs.push(pace()? - without);
            self.knockd(&["guard", "--remove"])?;
        }
        self.nft("delete table inet host")?;
        Spread::of(costs)
    }

    /// Measures with very many leases: how long it takes until all are let in, memory, the time of `knockd status`, and
    /// how soon the next knockers are in.
    fn crowd(&self) -> Result<Crowd> {
        const RATE: u64 = 200_000;
        // One hit a lease.
        let sequence = [2000];
        let config = guarding(&sequence);
        let (mut fills, mut memory, mut statuses, mut taken) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.scale.rounds() {
            let daemon = self.start(Whose::Ours, &config)?;
            let before = daemon.memory()?;
            let start = Instant::now();
            let arguments =
                format!("--rate {RATE} --count {LEASES} --ports 2000 --in-turns --sources {LEASES}");
            let mut sent = 0;
            while daemon.leases()? < u64::from(LEASES) {
                // Again, if packets were lost.
                if sent == 0 || start.elapsed() > Duration::from_secs(2) * sent {
                    Flood::send(&self.net, self.programs, &arguments)?;
                    sent += 1;
                }
                ensure!(sent < 10, "not all are let in");
            }
            fills.push(start.elapsed().as_secs_f64());
            daemon.settle()?;
            memory.push((daemon.memory()?.saturating_sub(before)) as f64 / 1024.0);
            let start = Instant::now();
            daemon.leases()?;
            statuses.push(start.elapsed().as_secs_f64() * 1e3);
            taken.extend(self.first_syns(&sequence, MOST)?);
            drop(daemon);
            self.knockd(&["guard", "--remove"])?;
        }
        taken.sort_by(f64::total_cmp);
        let p99 = taken.get(taken.len() * 99 / 100).copied().context("nobody was let in")?;
        Ok(Crowd {
            first_syn: Spread::of(taken)?,
            p99,
            fill: Spread::of(fills)?,
            memory: Spread::of(memory)?,
            status: Spread::of(statuses)?,
        })
    }
}
