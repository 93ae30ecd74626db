//! Rates that a machine can keep: the wanted ones, lowered as far as necessary.

use anyhow::{Result, ensure};

use crate::results::Rate;

/// How often a round is tried at the same rate.
const TRIES: usize = 3;

/// The result of a round.
#[derive(Debug)]
pub(crate) enum Round<T> {
    /// The packets arrived at the wanted rate, and none was lost.
    Kept(T),
    /// Only this many packets per second arrived, or can arrive.
    Slower(f64),
}

/// Runs all rounds at the same rate: the wanted one, or else the highest rate tried that every round keeps.
///
/// A rate that three tries do not keep is lowered, by a tenth at least, and all rounds start over.
///
/// # Errors
///
/// When a round fails, or not even one packet per second can be kept.
pub(crate) fn at_one_rate<T>(
    wanted: u64,
    rounds: usize,
    mut round: impl FnMut(u64) -> Result<Round<T>>,
) -> Result<(Rate, Vec<T>)> {
    let mut kept = wanted;
    'rate: loop {
        ensure!(kept > 0, "not even a packet a second can be kept here, of {wanted}");
        let mut results = Vec::new();
        while results.len() < rounds {
            let mut fastest: f64 = 0.0;
            let mut result = None;
            for _ in 0..TRIES {
                match round(kept)? {
                    Round::Kept(value) => {
                        result = Some(value);
                        break;
                    }
                    Round::Slower(rate) => fastest = fastest.max(rate),
                }
            }
            let Some(result) = result else {
                let lower = below(kept, fastest);
                anstream::eprintln!(
                    "        {kept} packets a second cannot be kept, only {fastest:.0}: trying {lower}"
                );
                kept = lower;
                continue 'rate;
            };
            results.push(result);
        }
        return Ok((Rate { wanted, kept }, results));
    }
}

/// Returns a rate of two digits and zeros, below one that was not kept and not above the one that arrived instead.
#[allow(clippy::cast_sign_loss, reason = "rates are not negative")]
fn below(rate: u64, came: f64) -> u64 {
    let highest = (rate * 9 / 10).min(came.max(0.0) as u64);
    let unit = 10_u64.pow(highest.checked_ilog10().unwrap_or(0).saturating_sub(1));
    highest / unit * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator with this maximum rate, and how often it was asked for which rate.
    fn rounds_with(most: u64, wanted: u64) -> (Rate, Vec<u64>, Vec<u64>) {
        let mut asked = Vec::new();
        let (rate, kept) = at_one_rate(wanted, 2, |rate| {
            asked.push(rate);
            Ok(if rate <= most { Round::Kept(rate) } else { Round::Slower(most as f64) })
        })
        .unwrap();
        (rate, kept, asked)
    }

    #[test]
    fn a_rate_that_can_be_kept_stays() {
        let (rate, kept, asked) = rounds_with(400_000, 400_000);
        assert_eq!(rate, Rate { wanted: 400_000, kept: 400_000 });
        assert_eq!((kept.len(), asked.len()), (2, 2));
    }

    #[test]
    fn one_that_cannot_becomes_the_highest_that_can() {
        let (rate, kept, asked) = rounds_with(283_000, 400_000);
        assert_eq!(rate, Rate { wanted: 400_000, kept: 280_000 });
        assert_eq!(kept, [280_000, 280_000]);
        assert_eq!(asked, [400_000, 400_000, 400_000, 280_000, 280_000]);
    }

    #[test]
    fn all_rounds_are_at_the_same_rate_though_only_a_later_one_is_too_slow() {
        let mut tries = 0;
        let (rate, kept) = at_one_rate(1000, 3, |rate| {
            tries += 1;
            Ok(if tries > 1 && rate > 500 { Round::Slower(990.0) } else { Round::Kept(rate) })
        })
        .unwrap();
        assert!(rate.kept <= 500, "{rate:?}");
        assert_eq!(kept, [rate.kept; 3]);
    }

    #[test]
    fn one_bad_try_does_not_lower_it() {
        let mut tries = 0;
        let (rate, _) = at_one_rate(1000, 2, |_| {
            tries += 1;
            Ok(if tries % 3 == 0 { Round::Kept(()) } else { Round::Slower(1.0) })
        })
        .unwrap();
        assert_eq!((rate.kept, tries), (1000, 6));
    }

    #[test]
    fn it_ends_where_nothing_can_be_kept_and_where_a_round_fails() {
        assert!(at_one_rate(1000, 1, |_| Ok(Round::<()>::Slower(0.0))).is_err());
        assert!(at_one_rate(1000, 1, |_| Err::<Round<()>, _>(anyhow::anyhow!("no"))).is_err());
        // More packets may arrive than were wanted if some are lost.
        assert!(at_one_rate(1_000_000, 1, |_| Ok(Round::<()>::Slower(2e6))).is_err());
    }
}
