//! The results, as `docs/benchmarks.md`.

use std::fmt::Write as _;
use std::time::Duration;

use crate::results::{BOUND, Cost, Crowd, DELAYS, KNOCKS, LEASES, Native, Pair, Rate, Results, Spread};
use crate::targets::targets;

/// Returns the page.
pub(crate) fn of(results: &Results, took: Duration) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = write_page(&mut page, results, took);
    page
}

fn write_page(page: &mut String, results: &Results, took: Duration) -> std::fmt::Result {
    writeln!(
        page,
        "# Benchmarks\n\n\
         `cargo xtask bench` has written this page, on {} in {} minutes. Both programs, the C program 0.8 of Debian and ours, \
         did the same things in turns; each figure is the median of its rounds, and behind it stand the lowest and the \
         highest. Times differ from machine to machine, and from run to run; what counts is how the two compare.\n\n\
         The traffic generator had one processor and the daemon, with all that it starts, the other. A run in which the \
         generator did not keep its pace, or in which a daemon whose CPU time was wanted lost packets, was thrown away; \
         where that was so three times, the rate was lowered for all rounds, and the figures are those at the lower rate. CPU time is the scheduler's account of all processes of the \
         daemon. Behind the packet sockets, the server drops everything that arrives.\n",
        machine(),
        took.as_secs().div_ceil(60)
    )?;
    writeln!(page, "## In short\n\n| what | target | measured | |\n| --- | --- | ---: | --- |")?;
    for target in targets(results) {
        writeln!(
            page,
            "| {} | {} | {} | {} |",
            target.what,
            target.text(),
            target.measured(),
            target.verdict()
        )?;
    }
    write_lowered(page, results)?;

    writeln!(
        page,
        "\n## Packets that no door wants\n\nWhat the filter adds to the kernel's time for a SYN to a port that no door uses, \
         in nanoseconds: more than with a socket whose filter rejects everything. A round takes the fastest of six floods, flat out, past \
         several copies of each program at once: 16 with one door, else 4. The daemons do not run meanwhile. The scanner guard \
         is off, and doors have three steps and `TCPFlags = syn`. The interface has an IPv4 address only: with IPv6 \
         C's filter is too long for the kernel before there are 300 doors, and then every packet wakes the program.\n\n\
         | doors | C | ours | |\n| ---: | ---: | ---: | ---: |"
    )?;
    for (doors, pair) in &results.filter {
        writeln!(page, "| {doors} {}", row(pair))?;
    }
    let guard = &results.guard;
    writeln!(
        page,
        "\nWith the scanner guard on, every connection attempt is looked at: {} ns of the daemon's CPU for each of {} a second, \
         from sources that change all the time; {} knocks of {KNOCKS} opened meanwhile. Other packets never leave the \
         kernel.\n\nWith 10,000 doors of three steps, knockd says: {}.",
        spread(guard.cost.spread),
        rate(guard.cost.rate),
        spread(guard.opened),
        results.many_doors
    )?;

    writeln!(
        page,
        "\n## Packets that pass the filter\n\nCPU of the daemon for a SYN to the second port of a sequence, from sources that \
         have no attempt, while others have that many; in nanoseconds, each at a rate that the program can follow.\n\n\
         ![CPU of the daemon for a packet, over the number of live attempts](benchmarks-cpu.svg)\n\n\
         | attempts | C | packets a second | ours | packets a second | |\n| ---: | ---: | ---: | ---: | ---: | ---: |"
    )?;
    for row in &results.live {
        let (attempts, ours) = (grouped(row.attempts), cost(&row.ours));
        match row.c {
            Some(c) => {
                let pair = Pair { c: c.spread, ours: row.ours.spread };
                writeln!(page, "| {attempts} | {} | {ours} | {} |", cost(&c), times(&pair))?;
            }
            None => writeln!(page, "| {attempts} | | | {ours} | |")?,
        }
    }

    write_knocks(page, results)?;
    write_guard(page, results)?;

    writeln!(
        page,
        "\n## At rest\n\n| | C | ours |\n| --- | ---: | ---: |\n\
         | wake-ups a second, all threads | {} | {} |\n\
         | memory in KiB (proportional set size of all processes, rings left out) | {} | {} |\n\n\
         With {} attempts it is {} KiB.\n\n\
         Start with 10,000 doors: {} ms; reload: {} ms.",
        spread(results.wakes.c),
        spread(results.wakes.ours),
        spread(results.memory.c),
        spread(results.memory.ours),
        grouped(BOUND),
        number(results.full_memory),
        spread(results.start),
        spread(results.reload)
    )?;

    writeln!(page, "\n## The core alone\n\n| | ns | instructions |\n| --- | ---: | ---: |")?;
    for micro in &results.micro {
        let instructions = micro.instructions.map(number).unwrap_or_default();
        writeln!(page, "| {} | {} | {instructions} |", micro.name, number(micro.nanoseconds))?;
    }
    let client = results.client;
    writeln!(
        page,
        "\n## The client\n\nFrom the start of `knock` to the arrival of the last of three hits, at its own host and without a \
         delay, in milliseconds. Ours is the static build, one file of {} MB that needs no library; that of C is Debian's.\n\n\
         | C | ours | |\n| ---: | ---: | ---: |\n{}",
        number(client.size),
        row(&client.start)
    )?;
    write_peer(page, results)
}

fn write_peer(page: &mut String, results: &Results) -> std::fmt::Result {
    writeln!(page, "\n## knock-rs\n")?;
    let Some(peer) = &results.peer else {
        return writeln!(
            page,
            "It is measured in a full run, if it can be installed from the package registry."
        );
    };
    writeln!(
        page,
        "The other knock daemon in Rust (`knockd` 0.1.0 in the package registry) sees TCP over IPv4 only, looks at every packet \
         of the interface, and tells stdout of each that hits a port of a sequence. CPU for such a packet, in nanoseconds:\n\n\
         | attempts | knock-rs | packets a second | ours | packets a second | |\n| ---: | ---: | ---: | ---: | ---: | ---: |"
    )?;
    for (attempts, theirs) in &peer.live {
        if let Some(row) = results.live.iter().find(|row| row.attempts == *attempts) {
            let pair = Pair { c: theirs.spread, ours: row.ours.spread };
            writeln!(
                page,
                "| {} | {} | {} | {} |",
                grouped(*attempts),
                cost(theirs),
                cost(&row.ours),
                times(&pair)
            )?;
        }
    }
    writeln!(
        page,
        "\nKnocks of {KNOCKS} that opened in a flood of first steps:\n\n\
         | flood, packets a second | between hits | knock-rs |\n| ---: | ---: | ---: |"
    )?;
    for (at, opened) in &peer.knocks {
        for (delay, opened) in DELAYS.iter().zip(opened) {
            writeln!(page, "| {} | {delay} ms | {} |", rate(*at), spread(*opened))?;
        }
    }
    let (wakes, memory) = peer.at_rest;
    writeln!(
        page,
        "\nFrom knock to command without a flood: {} ms. At rest it wakes up {} times a second and takes {} KiB.",
        spread(peer.idle_latency),
        number(wakes),
        number(memory)
    )
}

fn write_knocks(page: &mut String, results: &Results) -> std::fmt::Result {
    writeln!(
        page,
        "\n## Knocks in a flood\n\nOf {KNOCKS} knocks of three hits, how many opened while strangers sent first steps, each \
         from another address. With the default bound of {} attempts, an attempt stays until at least half as many others have \
         come, which is a quarter of a second at 500,000 a second. So a first step may be gone before a second one that \
         comes a second later.\n\n\
         ![Honest knocks that opened, over the rate of the flood](benchmarks-knocks.svg)\n\n\
         | flood, packets a second | between hits | C | ours |\n| ---: | ---: | ---: | ---: |",
        grouped(BOUND)
    )?;
    for row in &results.knocks {
        for ((delay, c), ours) in DELAYS.iter().zip(&row.c).zip(&row.ours) {
            writeln!(page, "| {} | {delay} ms | {} | {} |", rate(row.rate), spread(*c), spread(*ours))?;
        }
    }
    writeln!(
        page,
        "\nFrom the last hit, without delays between hits, to the start of the command, in milliseconds:\n\n\
         | flood, packets a second | C | ours |\n| ---: | ---: | ---: |"
    )?;
    let idle = &results.idle_latency;
    writeln!(page, "| none | {} | {} |", spread(idle.plain.c), spread(idle.plain.ours))?;
    for row in &results.knocks {
        let taken = |latency: Option<Spread>| latency.map_or("none opened".to_owned(), spread);
        writeln!(page, "| {} | {} | {} |", rate(row.rate), taken(row.c_latency), taken(row.ours_latency))?;
    }
    writeln!(
        page,
        "\nFor a door with a stop command, ours first stores on disk that it is open: {} ms, of which the disk alone takes {}.",
        spread(idle.with_stop),
        spread(idle.disk)
    )?;
    let [c, ours, with_stop] = idle.opened;
    if [c, ours, with_stop].iter().any(|&opened| opened < KNOCKS as usize) {
        writeln!(
            page,
            "\nWithout a flood not all {KNOCKS} knocks opened in every round; in the worst one {c} of C, {ours} of ours, and \
             {with_stop} of ours with a stop command. The times are those of the knocks that opened."
        )?;
    }
    Ok(())
}

fn write_guard(page: &mut String, results: &Results) -> std::fmt::Result {
    let Native { c, command, guard, nft, packet, crowd } = results.native;
    let Crowd { first_syn, p99, fill, memory, status } = crowd;
    writeln!(
        page,
        "\n## The guard\n\nFrom the last hit of a knock to the first SYN to the port behind the door that is accepted, in \
         milliseconds. The client sends one every 20 µs or so.\n\n\
         | the door | ms |\n| --- | ---: |\n\
         | C, runs `nft add element` | {} |\n\
         | ours, runs the same | {} |\n\
         | ours, with `Open` | {} |\n\
         | ours, with `Open`, {leases} leases | {}; 99th percentile {} |\n\n\
         `nft add element` alone takes {} ms.\n\n\
         To a packet to another port, the guard adds {} ns over an empty chain at its place: the median of nine rounds that \
         take turns, each the fastest of three floods. In both, the kernel follows connections, and the packet is dropped \
         in the host's own input chain.\n\n\
         {leases} sources that knock at 200,000 a second are all let in after {} s. The daemon takes {} MiB more then, and \
         `knockd status` {} ms.",
        spread(c),
        spread(command),
        spread(guard),
        spread(first_syn),
        number(p99),
        spread(nft),
        spread(packet),
        spread(fill),
        spread(memory),
        spread(status),
        leases = grouped(LEASES)
    )
}

/// Names the rates that are lower than wanted.
fn write_lowered(page: &mut String, results: &Results) -> std::fmt::Result {
    let live = results.live.iter().flat_map(|row| {
        let of = |whose, cost: Cost| (format!("{whose} with {} attempts", grouped(row.attempts)), cost.rate);
        row.c.map(|cost| of("C", cost)).into_iter().chain([of("ours", row.ours)])
    });
    let guard = [("strays".to_owned(), results.guard.cost.rate)];
    let knocks = results.knocks.iter().map(|row| ("the flood amid knocks".to_owned(), row.rate));
    let peer = results.peer.iter().flat_map(|peer| {
        let live = peer
            .live
            .iter()
            .map(|(attempts, cost)| (format!("knock-rs with {} attempts", grouped(*attempts)), cost.rate));
        let knocks =
            peer.knocks.iter().map(|(rate, _)| ("the flood amid knocks at knock-rs".to_owned(), *rate));
        live.chain(knocks)
    });
    let all = guard.into_iter().chain(live).chain(knocks).chain(peer);
    let lowered: Vec<_> = all
        .filter(|(_, rate)| rate.kept < rate.wanted)
        .map(|(what, rate)| format!("- {what}: {} instead of {}", grouped(rate.kept), grouped(rate.wanted)))
        .collect();
    if lowered.is_empty() {
        return Ok(());
    }
    writeln!(
        page,
        "\nThis machine could not keep these rates, in packets a second, or the program lost packets at them, so that all was \
         measured and is judged at lower ones:\n\n{}",
        lowered.join("\n")
    )
}

/// Formats the packets per second that were kept, and those that were wanted if these are more.
pub(crate) fn rate(rate: Rate) -> String {
    let Rate { wanted, kept } = rate;
    if kept < wanted { format!("{} ({} wanted)", grouped(kept), grouped(wanted)) } else { grouped(kept) }
}

/// Formats two columns: the cost, and the rate.
fn cost(cost: &Cost) -> String {
    format!("{} | {}", spread(cost.spread), rate(cost.rate))
}

fn times(pair: &Pair) -> String {
    pair.ratio().map_or("hidden by noise".to_owned(), |ratio| format!("{} times", number(ratio)))
}

/// Formats the last columns of a table that compares.
fn row(pair: &Pair) -> String {
    format!("| {} | {} | {} |", spread(pair.c), spread(pair.ours), times(pair))
}

fn spread(spread: Spread) -> String {
    let Spread { median, low, high } = spread;
    let wide = (low - high).abs() > f64::EPSILON;
    if wide { format!("{} ({}–{})", number(median), number(low), number(high)) } else { number(median) }
}

/// Formats three significant digits.
pub(crate) fn number(figure: f64) -> String {
    match figure.abs() {
        size if size >= 1000.0 => grouped(figure.round() as i64),
        size if size >= 100.0 || figure.fract() == 0.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

/// Formats digits in groups of three.
pub(crate) fn grouped(number: impl Into<i128>) -> String {
    let number: i128 = number.into();
    let digits = number.to_string();
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |digits| ("-", digits));
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    format!("{sign}{}", groups.join(","))
}

/// Describes this machine.
fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = kernel.split('-').next().unwrap_or_default().trim().to_owned();
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!("{cpus} processors ({}), Linux {version}", model.unwrap_or("of an unknown kind").trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let figures = [0.0, 0.123, 9.87, 20.0, 45.67, 456.7, 45_678.9, -1_234_567.0];
        assert_eq!(figures.map(number), ["0", "0.12", "9.87", "20", "45.7", "457", "45,679", "-1,234,567"]);
    }

    #[test]
    fn a_rate_that_was_lowered_says_so() {
        assert_eq!(rate(Rate { wanted: 500_000, kept: 500_000 }), "500,000");
        assert_eq!(rate(Rate { wanted: 500_000, kept: 280_000 }), "280,000 (500,000 wanted)");
    }

    #[test]
    fn a_ratio_that_noise_has_hidden_is_given_no_number() {
        let spread = |median| Spread { median, low: median, high: median };
        let hidden = Pair { c: spread(20.0), ours: spread(-3.0) };
        assert_eq!((hidden.ratio(), times(&hidden)), (None, "hidden by noise".to_owned()));
        assert_eq!(times(&Pair { c: spread(20.0), ours: spread(10.0) }), "2 times");
    }
}
