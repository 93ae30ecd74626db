//! The clients: how soon a knock is on its way.

use anyhow::Result;

use super::Bench;
use crate::results::{Client, Pair, Spread};
use crate::scale::Scale;

impl Bench {
    /// Measures both clients in turns.
    pub(super) fn client(&self) -> Result<Client> {
        let runs = match self.scale {
            Scale::Quick => "20",
            Scale::Full => "100",
        };
        let helper = self.programs.start_to_last.as_os_str();
        let mut taken = [const { Vec::new() }; 2];
        for _ in 0..self.scale.rounds() {
            for (client, taken) in
                [&self.programs.c_client, &self.programs.our_client].into_iter().zip(&mut taken)
            {
                let printed = self.net.client.run(&[helper, client.as_os_str(), runs.as_ref()])?;
                for line in printed.lines() {
                    taken.push(line.parse::<f64>()? / 1e6);
                }
            }
        }
        let [c, ours] = taken.map(Spread::of);
        let size = std::fs::metadata(&self.programs.our_client)?.len();
        Ok(Client { start: Pair { c: c?, ours: ours? }, size: size as f64 / 1e6 })
    }
}
