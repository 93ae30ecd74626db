//! The results.

use anyhow::{Context, Result};

/// How many knocks are sent with each of [`DELAYS`].
pub(crate) const KNOCKS: u32 = 20;

/// Milliseconds between the hits of a knock.
pub(crate) const DELAYS: [u64; 3] = [0, 100, 1000];

/// The default limit on attempts.
pub(crate) const BOUND: u32 = 262_144;

/// How many leases make a crowd.
pub(crate) const LEASES: u32 = 100_000;

/// The middle of several figures, and their range.
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

    /// Returns the spread of each figure over all rounds.
    pub(crate) fn of_each(rounds: &[Vec<f64>]) -> Result<Vec<Self>> {
        let of = |index| rounds.iter().filter_map(move |figures| figures.get(index).copied());
        (0..rounds.first().map_or(0, Vec::len)).map(|index| Self::of(of(index).collect())).collect()
    }
}

/// The same figure of both programs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) c: Spread,
    pub(crate) ours: Spread,
}

impl Pair {
    /// Returns by which factor ours takes less; `None` if noise hides one of the two.
    pub(crate) fn ratio(&self) -> Option<f64> {
        (self.c.median > 0.0 && self.ours.median > 0.0).then(|| self.c.median / self.ours.median)
    }
}

/// Packets per second: the wanted rate, and the rate of the measurement. The latter is lower if the generator cannot
/// keep the wanted rate, or a daemon cannot follow it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rate {
    pub(crate) wanted: u64,
    pub(crate) kept: u64,
}

/// The cost of a packet at some rate, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) rate: Rate,
    pub(crate) spread: Spread,
}

/// The cost of a packet that passes the filter, with this many live attempts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LiveRow {
    pub(crate) attempts: u32,
    /// `None` if it was not measured.
    pub(crate) c: Option<Cost>,
    pub(crate) ours: Cost,
}

/// How the scanner guard handles connection attempts that no door wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    pub(crate) cost: Cost,
    /// How many of [`KNOCKS`] opened meanwhile.
    pub(crate) opened: Spread,
}

/// How both handle knocks during a flood.
#[derive(Debug)]
pub(crate) struct KnockRow {
    pub(crate) rate: Rate,
    /// How many of [`KNOCKS`] opened, for each of [`DELAYS`].
    pub(crate) c: Vec<Spread>,
    pub(crate) ours: Vec<Spread>,
    /// From the last hit to the command, without delays between the hits; milliseconds.
    pub(crate) c_latency: Option<Spread>,
    pub(crate) ours_latency: Option<Spread>,
}

/// From the last hit to the command on an idle machine, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdleLatency {
    /// Without a stop command.
    pub(crate) plain: Pair,
    /// Ours with a stop command.
    pub(crate) with_stop: Spread,
    /// The disk's own time for what has to be stored then.
    pub(crate) disk: Spread,
    /// How many of [`KNOCKS`] opened in the worst round: of C, of ours, of ours with a stop command.
    pub(crate) opened: [usize; 3],
}

/// The guard, and the doors that it opens. Times from a knock are those to the first SYN that is accepted, in
/// milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Native {
    /// Without other traffic: a door of C and of ours that runs `nft`, and a door of the guard.
    pub(crate) c: Spread,
    pub(crate) command: Spread,
    pub(crate) guard: Spread,
    /// What `nft` takes alone, in milliseconds.
    pub(crate) nft: Spread,
    /// What the guard adds to a packet to another port, in nanoseconds.
    pub(crate) packet: Spread,
    pub(crate) crowd: Crowd,
}

/// A door of the guard with [`LEASES`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crowd {
    /// From a knock, in milliseconds, and the 99th percentile.
    pub(crate) first_syn: Spread,
    pub(crate) p99: f64,
    /// Seconds until all are let in.
    pub(crate) fill: Spread,
    /// The daemon's MiB for them.
    pub(crate) memory: Spread,
    /// Milliseconds for its status.
    pub(crate) status: Spread,
}

/// The cost of one operation in the core alone.
#[derive(Debug)]
pub(crate) struct Micro {
    pub(crate) name: String,
    pub(crate) nanoseconds: f64,
    /// `None` if it was not counted.
    pub(crate) instructions: Option<f64>,
}

/// The clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    /// From the start of the program to the last of three hits, in milliseconds; ours is the static one.
    pub(crate) start: Pair,
    /// The megabytes of ours.
    pub(crate) size: f64,
}

/// The results of knock-rs.
#[derive(Debug)]
pub(crate) struct Peer {
    /// CPU per packet to a port of a sequence, by number of live attempts.
    pub(crate) live: Vec<(u32, Cost)>,
    /// How many knocks opened in a flood, for each delay.
    pub(crate) knocks: Vec<(Rate, Vec<Spread>)>,
    /// From the last hit to the command on an idle machine, in milliseconds.
    pub(crate) idle_latency: Spread,
    /// How often per second it wakes up when idle, and its memory then, in KiB.
    pub(crate) at_rest: (f64, f64),
}

/// All results.
#[derive(Debug)]
pub(crate) struct Results {
    /// The filter's cost in the kernel for a packet that no door wants, by number of doors; nanoseconds.
    pub(crate) filter: Vec<(usize, Pair)>,
    pub(crate) guard: Guard,
    /// By number of live attempts. The last row is ours alone.
    pub(crate) live: Vec<LiveRow>,
    pub(crate) knocks: Vec<KnockRow>,
    pub(crate) idle_latency: IdleLatency,
    pub(crate) native: Native,
    /// How often per second an idle daemon wakes up, all threads together.
    pub(crate) wakes: Pair,
    /// KiB when idle, and ours with the maximum number of attempts.
    pub(crate) memory: Pair,
    pub(crate) full_memory: f64,
    /// Startup and reload with 10,000 doors, in milliseconds, and what ours reports about its filter then.
    pub(crate) start: Spread,
    pub(crate) reload: Spread,
    pub(crate) many_doors: String,
    pub(crate) micro: Vec<Micro>,
    pub(crate) client: Client,
    /// `None` if it was not measured.
    pub(crate) peer: Option<Peer>,
}
