//! Which results are held against a target, and whether they meet it.

use crate::page::{grouped, number, rate};
use crate::results::{BOUND, Client, DELAYS, KNOCKS, LEASES, Native, Pair, Results};

/// A figure that must not be on the wrong side of another one.
pub(crate) struct Target {
    pub(crate) what: String,
    /// `None` if the machine was too busy to tell.
    figure: Option<f64>,
    bound: Bound,
    unit: &'static str,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    fn is_met(&self) -> bool {
        self.is_met_within(1.0)
    }

    fn is_met_within(&self, factor: f64) -> bool {
        self.figure.is_some_and(|figure| match self.bound {
            Bound::AtLeast(least) => figure * factor >= least,
            Bound::AtMost(most) => figure <= most * factor,
        })
    }

    pub(crate) fn text(&self) -> String {
        match self.bound {
            Bound::AtLeast(least) => format!("at least {least}{}", self.unit),
            Bound::AtMost(most) => format!("at most {most}{}", self.unit),
        }
    }

    pub(crate) fn verdict(&self) -> &'static str {
        match self.figure {
            None => "**not told**",
            Some(_) if self.is_met() => "met",
            Some(_) => "**missed**",
        }
    }

    pub(crate) fn measured(&self) -> String {
        self.figure.map_or("hidden by noise".to_owned(), |figure| format!("{}{}", number(figure), self.unit))
    }
}

/// Returns the targets missed by more than a fifth, and those that could not be measured.
pub(crate) fn missed(results: &Results) -> Vec<String> {
    targets(results)
        .into_iter()
        .filter(|target| !target.is_met_within(1.2))
        .map(|target| format!("{}: {}, wanted {}", target.what, target.measured(), target.text()))
        .collect()
}

/// Returns what the results are held against.
pub(crate) fn targets(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut add = |what: String, figure: f64, bound: Bound, unit: &'static str| {
        targets.push(Target { what, figure: Some(figure).filter(|figure| figure.is_finite()), bound, unit });
    };
    for (doors, pair) in &results.filter {
        let times = match doors {
            1 => 1.0,
            100 => 5.0,
            _ => 12.0,
        };
        let what = format!(
            "a packet that no door wants, {doors} door{}: kernel time, C to ours",
            if *doors == 1 { "" } else { "s" }
        );
        add(what, pair.ratio().unwrap_or(f64::NAN), Bound::AtLeast(times), " times");
    }
    let guard = &results.guard;
    let what = "a stray connection attempt with the scanner guard on: CPU of the daemon";
    add(what.to_owned(), guard.cost.spread.median, Bound::AtMost(400.0), " ns");
    let what = format!("knocks of {KNOCKS} that open amid {} strays a second", rate(guard.cost.rate));
    add(what, guard.opened.median, Bound::AtLeast(KNOCKS.into()), "");
    for row in &results.live {
        let times = match row.attempts {
            0 => 2.0,
            1_000 => 15.0,
            10_000 => 100.0,
            _ => 1000.0,
        };
        if let Some(c) = row.c {
            let (attempts, ours) = (grouped(row.attempts), row.ours);
            let what = format!(
                "a packet that passes, {attempts} attempts: CPU, C at {} a second to ours at {}",
                rate(c.rate),
                rate(ours.rate)
            );
            let pair = Pair { c: c.spread, ours: ours.spread };
            add(what, pair.ratio().unwrap_or(f64::NAN), Bound::AtLeast(times), " times");
        }
    }
    let ours = || results.live.iter().map(|row| row.ours.spread.median);
    let flat = ours().fold(0.0, f64::max) / ours().fold(f64::MAX, f64::min);
    let rates = || results.live.iter().map(|row| row.ours.rate.kept);
    let at = match (rates().min(), rates().max()) {
        (Some(low), Some(high)) if low < high => {
            format!(", at rates from {} to {} a second", grouped(low), grouped(high))
        }
        _ => String::new(),
    };
    add(
        format!("the same, ours alone, dearest to cheapest up to {} attempts{at}", grouped(BOUND)),
        flat,
        Bound::AtMost(2.0),
        " times",
    );
    for row in &results.knocks {
        for (delay, opened) in DELAYS.iter().zip(&row.ours) {
            if row.rate.wanted >= 10_000 && (row.rate.wanted < 500_000 || *delay < 1000) {
                let rate = rate(row.rate);
                let what = format!(
                    "knocks of {KNOCKS} that open in a flood of {rate} a second, {delay} ms between hits"
                );
                add(what, opened.median, Bound::AtLeast(KNOCKS.into()), "");
            }
        }
        if let Some(taken) = row.ours_latency {
            let what = format!("from knock to command in a flood of {} a second", rate(row.rate));
            add(what, taken.median, Bound::AtMost(8.0), " ms");
        }
    }
    let idle = &results.idle_latency;
    let [_, opened, opened_with_stop] = idle.opened;
    let what = format!("knocks of {KNOCKS} that open without a flood");
    add(what, opened.min(opened_with_stop) as f64, Bound::AtLeast(KNOCKS.into()), "");
    let latency = idle.plain;
    add("from knock to command without a flood".to_owned(), latency.ours.median, Bound::AtMost(3.0), " ms");
    add("the same, C to ours".to_owned(), latency.ratio().unwrap_or(f64::NAN), Bound::AtLeast(8.0), " times");
    leases(results.native, &mut add);
    add("wake-ups when idle".to_owned(), results.wakes.ours.median, Bound::AtMost(0.0), " a second");
    add(
        "memory when idle, ours to C".to_owned(),
        results.memory.ours.median / results.memory.c.median,
        // This includes code pages that only startup needs: they are clean, and the kernel frees them on demand.
        Bound::AtMost(2.5),
        " times",
    );
    let more = (results.full_memory - results.memory.ours.median) / 1024.0;
    add(format!("more memory with {} attempts", grouped(BOUND)), more, Bound::AtMost(32.0), " MiB");
    add("start with 10,000 doors".to_owned(), results.start.median, Bound::AtMost(200.0), " ms");
    add("reload with 10,000 doors".to_owned(), results.reload.median, Bound::AtMost(200.0), " ms");
    for micro in &results.micro {
        let most = match micro.name.split([' ', ',']).next() {
            Some("decode") => 10.0,
            Some("match") => 50.0,
            _ => continue,
        };
        add(format!("core: {}", micro.name), micro.nanoseconds, Bound::AtMost(most), " ns");
    }
    client(results.client, &mut add);
    targets
}

/// Adds what the client is held against.
fn client(client: Client, mut add: impl FnMut(String, f64, Bound, &'static str)) {
    let what = "the client, from its start to the last of three hits";
    add(what.to_owned(), client.start.ours.median, Bound::AtMost(5.0), " ms");
    add("the client as one static file".to_owned(), client.size, Bound::AtMost(2.0), " MB");
}

/// Adds what the guard and its leases are held against.
fn leases(native: Native, mut add: impl FnMut(String, f64, Bound, &'static str)) {
    let what = "from knock to the first SYN that the guard accepts, without a flood";
    add(what.to_owned(), native.guard.median, Bound::AtMost(1.5), " ms");
    let many = grouped(LEASES);
    add(
        format!("the same with {many} leases, 99th percentile"),
        native.crowd.p99,
        Bound::AtMost(20.0),
        " ms",
    );
    let what = "what the guard adds to a packet to another port, over an empty chain at its place";
    add(what.to_owned(), native.packet.median, Bound::AtMost(500.0), " ns");
    add(format!("{many} knocks until all are let in"), native.crowd.fill.median, Bound::AtMost(1.0), " s");
    add(format!("memory for {many} leases"), native.crowd.memory.median, Bound::AtMost(32.0), " MiB");
    add(
        format!("`knockd status` with {many} leases"),
        native.crowd.status.median,
        Bound::AtMost(1000.0),
        " ms",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_noise_has_hidden_is_not_met() {
        let target = Target { what: String::new(), figure: None, bound: Bound::AtMost(1.0), unit: " ms" };
        assert!(!target.is_met_within(1.2));
        assert_eq!((target.verdict(), target.measured()), ("**not told**", "hidden by noise".to_owned()));
    }

    #[test]
    fn a_target_is_met_on_its_side_and_missed_by_a_fifth_beyond_the_other() {
        let of = |figure, bound| Target { what: String::new(), figure: Some(figure), bound, unit: "" };
        assert!(of(2.0, Bound::AtLeast(2.0)).is_met() && of(2.0, Bound::AtMost(2.0)).is_met());
        assert!(!of(1.9, Bound::AtLeast(2.0)).is_met() && of(1.9, Bound::AtLeast(2.0)).is_met_within(1.2));
        assert!(!of(1.6, Bound::AtLeast(2.0)).is_met_within(1.2));
        assert!(
            of(2.3, Bound::AtMost(2.0)).is_met_within(1.2) && !of(2.5, Bound::AtMost(2.0)).is_met_within(1.2)
        );
    }
}
