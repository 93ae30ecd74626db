//! The odds of finding a sequence by guessing or by a scan.

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

    /// Returns the odds of a scan of `ports` ports that has to hit `steps` of them in the right order, and before
    /// more than `limit` others.
    ///
    /// Of all C(n, k) sets of places that the k steps can take among the n, those within the first limit + k count:
    /// the last step is hit while at most limit others have been. In one of k! orders the door opens.
    fn of_a_scan_of(ports: u32, steps: usize, limit: Option<NonZeroU32>) -> Self {
        let places = limit
            .map_or(ports, |limit| limit.get().saturating_add(u32::try_from(steps).unwrap_or(0)))
            .min(ports);
        let times = (0..steps).map(|step| {
            let step = count(step);
            // n (n - 1) … / (L + k) (L + k - 1) …, and k!.
            (f64::from(ports) - step) / (f64::from(places) - step) * (step + 1.0)
        });
        Self { times: times.product() }
    }
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
    use super::*;

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
    fn a_guess_has_to_be_right_in_every_port() {
        let odds = |text: &str| Odds::of_a_guess(&text.parse().unwrap()).to_string();
        assert_eq!(odds("7"), "66,000");
        assert_eq!(odds("7,8:udp"), "10^10");
        assert_eq!(odds(&vec!["7"; 32].join(",")), "10^154");
    }
}
