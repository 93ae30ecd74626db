//! The odds of finding a sequence by guessing or by a scan.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU32;

use crate::sequence::{Protocol, Sequence};

/// The number of ports per protocol that can be hit.
const PORTS: u32 = 65_535;

/// Odds of one in this many.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub(super) struct Odds {
    /// Up to 10^164, with 32 steps over both protocols.
    times: f64,
}

impl Odds {
    /// Returns the odds of one guess: a sequence of the same length, with the protocols that this one uses.
    pub(super) fn of_a_guess(sequence: &Sequence) -> Self {
        Self { times: sequence.steps().map(|_| f64::from(ports(sequence))).product() }
    }

    /// Returns the odds of one scan of all ports in random order, cut short by `limit` (docs/threat-model.md).
    pub(super) fn of_a_scan(sequence: &Sequence, limit: Option<NonZeroU32>) -> Self {
        Self::of_a_scan_of(ports(sequence), sequence.len(), limit)
    }

    /// Returns the odds of the best that a scan can do before `limit` cuts it short: it hits the same ports in every
    /// order.
    pub(super) fn of_every_order(sequence: &Sequence, limit: Option<NonZeroU32>) -> Self {
        let steps: BTreeSet<_> = sequence.steps().collect();
        Self::of_every_order_of(ports(sequence), steps.len(), limit)
    }

    /// Returns the odds of a scan of `ports` ports that has to hit `steps` of them in the right order, and before
    /// more than `limit` others.
    ///
    /// Of all C(n, k) sets of places that the k steps can take among the n, those within the first limit + k count:
    /// the last step is hit while at most limit others have been. In one of k! orders the door opens.
    fn of_a_scan_of(ports: u32, steps: usize, limit: Option<NonZeroU32>) -> Self {
        let places = places(ports, steps, limit);
        let times = (0..steps).map(|step| {
            let step = count(step);
            // n (n - 1) … / (L + k) (L + k - 1) …, and k!.
            (f64::from(ports) - step) / (f64::from(places) - step) * (step + 1.0)
        });
        Self { times: times.product() }
    }

    /// Returns the odds of a scan that hits as many of `ports` ports as the limit allows, in every order, among which
    /// have to be `steps` different steps.
    ///
    /// All guesses that can be made of limit + k ports, one after the other, open the door if all steps are among them;
    /// if one is not, nothing does.
    fn of_every_order_of(ports: u32, steps: usize, limit: Option<NonZeroU32>) -> Self {
        let places = places(ports, steps, limit);
        let times = (0..steps).map(count).map(|step| (f64::from(ports) - step) / (f64::from(places) - step));
        Self { times: times.product() }
    }
}

/// Returns how many different ports a scan can hit, `steps` of them steps of the door.
fn places(ports: u32, steps: usize, limit: Option<NonZeroU32>) -> u32 {
    let steps = u32::try_from(steps).unwrap_or(0);
    limit.map_or(ports, |limit| limit.get().saturating_add(steps)).min(ports)
}

fn ports(sequence: &Sequence) -> u32 {
    let has = |protocol| sequence.steps().any(|step| step.protocol == protocol);
    if has(Protocol::Tcp) && has(Protocol::Udp) { 2 * PORTS } else { PORTS }
}

/// A sequence has at most 32 steps.
fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

/// Prints an approximate number: `6`, `281,000` or `10^14`.
impl fmt::Display for Odds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.times < 1e3 {
            return write!(f, "{:.0}", self.times);
        }
        if self.times < 1e6 {
            return write!(f, "{:.0},000", self.times / 1000.0);
        }
        // Logarithms would need a library that the daemon does not otherwise load.
        let (mut rest, mut exponent) = (self.times, 0);
        while rest >= 10.0 {
            rest /= 10.0;
            exponent += 1;
        }
        // Rounds to the nearest power: √10 is halfway between two of them.
        let exponent = if rest * rest > 10.0 { exponent + 1 } else { exponent };
        write!(f, "10^{exponent}")
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::config::Config;
    use crate::gate::{Gate, OneTimeFiles};
    use crate::outcome::Outcome;
    use crate::packet::{Hit, Packet};
    use crate::seed::Seed;
    use crate::tcp_flags::TcpFlags;
    use crate::time::Now;

    fn scan(ports: u32, steps: usize, limit: u32) -> String {
        Odds::of_a_scan_of(ports, steps, NonZeroU32::new(limit)).to_string()
    }

    #[test]
    fn the_odds_are_those_of_the_threat_model() {
        assert_eq!(scan(PORTS, 3, 10), "10^12");
        assert_eq!(scan(1000, 3, 10), "10^7", "3,500,000");
        assert_eq!(scan(28, 3, 10), "69");
        assert_eq!(scan(25, 3, 10), "48");
    }

    #[test]
    fn without_a_limit_only_the_order_counts() {
        assert_eq!(scan(PORTS, 3, 0), "6");
        assert_eq!(scan(PORTS, 4, 0), "24");
    }

    #[test]
    fn a_scan_in_every_order_only_has_to_find_the_ports() {
        let odds = |text: &str, limit| {
            Odds::of_every_order(&text.parse().unwrap(), NonZeroU32::new(limit)).to_string()
        };
        assert_eq!(odds("7,8,9", 10), "10^11");
        assert_eq!(odds("7,8:udp,9", 10), "10^12");
        assert_eq!(odds("7,8,7,8", 10), "10^8", "there are two ports to find");
        assert_eq!(odds("7,8,9", 0), "1");
    }

    /// Whether these hits of one source open the door. Of the ports from 1 to [`PORTS`], only its own are no strays.
    fn opens(sequence: &str, limit: u32, hits: &[u16]) -> bool {
        let config = format!("[options]\nScanLimit = {limit}\n[door]\nSequence = {sequence}\n");
        let mut gate = Gate::new(config.parse::<Config>().unwrap(), OneTimeFiles::new(), Seed::new(1, 2));
        let [own, source] = [1, 2].map(|host| IpAddr::from([192, 0, 2, host]));
        gate.set_addresses([own]);
        let mut opens = false;
        for &port in hits {
            let hit = Hit::Tcp { port, flags: TcpFlags::SYN };
            let packet = Packet::incoming(source, own, hit);
            let outcomes = gate.handle_packet(&packet, Now::default());
            opens |= outcomes.into_iter().any(|outcome| matches!(outcome, Outcome::Opening { .. }));
        }
        opens
    }

    /// A machine with so few ports that everything can be tried.
    const FEW: u16 = 6;

    /// All orders of so many of the first ports.
    fn orders(length: usize, is_wanted: fn(&[u16]) -> bool) -> Vec<Vec<u16>> {
        let longer = |order: &Vec<u16>| {
            let order = order.clone();
            (1..=FEW).map(move |port| [&order[..], &[port]].concat()).filter(|order| is_wanted(order))
        };
        (0..length).fold(vec![vec![]], |orders, _| orders.iter().flat_map(longer).collect())
    }

    fn are_different(order: &[u16]) -> bool {
        order.iter().collect::<BTreeSet<_>>().len() == order.len()
    }

    fn fraction(of: &[Vec<u16>], opens: impl Fn(&[u16]) -> bool) -> f64 {
        let opened = of.iter().filter(|order| opens(order)).count();
        count(of.len()) / count(opened)
    }

    #[test]
    fn a_guess_of_as_many_hits_as_steps_opens_only_the_sequence_that_it_is() {
        let guesses = orders(3, |_| true);
        for sequence in ["1,2,3", "1,2,1", "1,1,2", "1,1,1"] {
            let times = fraction(&guesses, |order| opens(sequence, 10, order));
            assert!((times - f64::from(FEW).powi(3)).abs() < 1e-9, "{sequence}: {times}");
        }
    }

    #[test]
    fn the_odds_of_a_scan_in_random_order_are_those_of_all_orders() {
        let scans = orders(FEW.into(), are_different);
        for (sequence, steps) in [("1,2", 2), ("1,2,3", 3)] {
            for limit in 0..4 {
                let times = fraction(&scans, |order| opens(sequence, limit, order));
                let odds = Odds::of_a_scan_of(FEW.into(), steps, NonZeroU32::new(limit)).times;
                assert!((times - odds).abs() < 1e-9, "{sequence}, {limit}: {times} and not {odds}");
            }
        }
    }

    #[test]
    fn the_odds_of_a_scan_in_every_order_are_those_of_all_sets_of_ports() {
        for (sequence, steps, length) in [("1,2", 2, 2), ("1,2,3", 3, 3), ("1,2,1", 2, 3)] {
            let guesses = orders(length, |_| true);
            for limit in 1..4 {
                let ascending = |order: &[u16]| order.is_sorted_by(|a, b| a < b);
                let sets = orders(usize::try_from(limit).unwrap() + steps, ascending);
                let is_of = |guess: &&Vec<u16>, set: &[u16]| guess.iter().all(|port| set.contains(port));
                let scan = |set: &[u16]| -> Vec<u16> {
                    guesses.iter().filter(|guess| is_of(guess, set)).flatten().copied().collect()
                };
                let times = fraction(&sets, |set| opens(sequence, limit, &scan(set)));
                let odds = Odds::of_every_order_of(FEW.into(), steps, NonZeroU32::new(limit)).times;
                assert!((times - odds).abs() < 1e-9, "{sequence}, {limit}: {times} and not {odds}");
            }
        }
    }

    /// So no hits at limit + k ports have better odds than all guesses of these ports.
    #[test]
    fn no_hits_open_a_sequence_that_they_do_not_contain() {
        let contains = |hits: &[u16], steps: &[u16]| {
            let mut hits = hits.iter();
            steps.iter().all(|step| hits.any(|hit| hit == step))
        };
        let of_three = |order: &[u16]| order.iter().all(|port| *port <= 3);
        for steps in orders(3, of_three) {
            let sequence = steps.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
            for hits in orders(6, of_three) {
                let opens = opens(&sequence, 0, &hits);
                assert!(!opens || contains(&hits, &steps), "{sequence} by {hits:?}");
            }
        }
    }

    #[test]
    fn a_guess_has_to_be_right_in_every_port() {
        let odds = |text: &str| Odds::of_a_guess(&text.parse().unwrap()).to_string();
        assert_eq!(odds("7"), "66,000");
        assert_eq!(odds("7,8:udp"), "10^10");
        assert_eq!(odds(&vec!["7"; 32].join(",")), "10^154");
    }
}
