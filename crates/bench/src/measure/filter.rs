//! The cost of the filters, in the kernel, for packets that no door wants.

use std::time::Duration;

use anyhow::Result;

use super::{BOTH, Bench, doors, list, ports};
use crate::daemon::Whose;
use crate::flood::Flood;
use crate::results::{Pair, Spread};
use crate::scale::Scale;

impl Bench {
    /// Measures the cost of the filter: how much more a packet takes than with a socket that wants nothing.
    pub(super) fn filter(&self) -> Result<Vec<(usize, Pair)>> {
        const FLOODS: usize = 6;
        let (count, rounds) = match self.scale {
            Scale::Quick => (30_000, 2),
            Scale::Full => (60_000, 9),
        };
        let numbers: &[usize] = if self.scale == Scale::Quick { &[1, 100] } else { &[1, 100, 330] };
        let mut rows = Vec::new();
        for &number in numbers {
            let ports = ports(number);
            // With its scanner guard, ours would look at all of them.
            let config = |whose| match whose {
                Whose::C | Whose::Peer => doors(&ports, ""),
                Whose::Ours => format!("[options]\nScanLimit = 0\nControlSocket =\n{}", doors(&ports, "")),
            };
            // Many copies at the same time, so their cost stands out from the other costs of a packet.
            let copies: u16 = if number == 1 { 16 } else { 4 };
            let arguments = format!("--count {count} --stray-from {}", list(&ports));
            let pace = || self.fastest(FLOODS, &arguments);
            let mut costs = [Vec::new(), Vec::new()];
            for _ in 0..rounds {
                let tap = || -> Result<_> {
                    let mut tap = self.net.server.spawn(&[&self.programs.tap])?;
                    tap.wait_for_line("listening", Duration::from_secs(10))?;
                    Ok(tap)
                };
                let taps = (0..copies).map(|_| tap()).collect::<Result<Vec<_>>>()?;
                let without = pace()?;
                drop(taps);
                for (whose, costs) in BOTH.into_iter().zip(&mut costs) {
                    let start = || self.start(whose, &config(whose));
                    let daemons = (0..copies).map(|_| start()).collect::<Result<Vec<_>>>()?;
                    costs.push((pace()? - without) / f64::from(copies));
                    drop(daemons);
                }
            }
            let [c, ours] = costs;
            rows.push((number, Pair { c: Spread::of(c)?, ours: Spread::of(ours)? }));
        }
        Ok(rows)
    }

    /// Returns the nanoseconds per packet in the fastest of several floods: other work on the machine only makes them
    /// slower.
    fn fastest(&self, floods: usize, arguments: &str) -> Result<f64> {
        let mut fastest = f64::INFINITY;
        for _ in 0..floods {
            let flood = Flood::send(&self.net, &self.programs, &format!("--rate 0 {arguments}"))?;
            fastest = fastest.min(flood.pace());
        }
        Ok(fastest)
    }
}
