//! The core alone: the time per packet, and the number of instructions, which does not depend on how busy a machine
//! is.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::results::Micro;
use crate::scale::Scale;

/// Measures every case of this crate's program `micro`.
pub(crate) fn all(micro: &Path, scale: Scale) -> Result<Vec<Micro>> {
    let names = run(Command::new(micro).arg("list"))?;
    let has_valgrind = Command::new("valgrind").arg("--version").output().is_ok();
    let mut results = Vec::new();
    for name in names.lines() {
        let mut times = Vec::new();
        for _ in 0..scale.rounds() {
            times.push(
                run(Command::new("taskset").args(["-c", "1"]).arg(micro).args(["time", name]))?
                    .trim()
                    .parse()?,
            );
        }
        times.sort_by(f64::total_cmp);
        let nanoseconds = times.get(times.len() / 2).copied().context("nothing was measured")?;
        let instructions =
            (has_valgrind && scale == Scale::Full).then(|| instructions(micro, name)).transpose()?;
        results.push(Micro { name: name.to_owned(), nanoseconds, instructions });
    }
    Ok(results)
}

/// Returns the instructions per operation: the difference between two counts of operations, divided.
fn instructions(micro: &Path, name: &str) -> Result<f64> {
    const COUNT: u32 = 20_000;
    let of = |count: u32| -> Result<f64> {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(micro)
            .args(["count", name, &count.to_string()])
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = said
            .lines()
            .find_map(|line| line.split_once("Collected : "))
            .context("no count from valgrind")?;
        Ok(line.1.trim().parse()?)
    };
    Ok((of(2 * COUNT)? - of(COUNT)?) / f64::from(COUNT))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
