//! `cargo xtask bench`: our knockd compared with the C program.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use bench::Scale;

use crate::client;
use crate::tools::{IP, NFT, NSENTER, TASKSET, Tools, UNSHARE, VALGRIND};

/// Builds knock-rs from the package registry and returns its path; `None` if that fails.
fn peer(tools: &Tools) -> Option<PathBuf> {
    let root = tools.target_directory().join("knock-rs");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["install", "--quiet", "knockd@0.1.0", "--root"]).arg(&root);
    let is_built = command.status().is_ok_and(|status| status.success());
    Some(root.join("bin/knockd")).filter(|program| is_built && program.exists())
}

fn needed_tools(tools: &mut Tools) -> Result<()> {
    tools.ensure_present(&[IP, NFT, NSENTER, TASKSET, UNSHARE, VALGRIND])?;
    ensure!(
        tools.ensure_original()?,
        "the C program 0.8 cannot be had here: it takes Debian's package knockd"
    );
    Ok(())
}

/// Installs what is missing, measures, and reports missed targets.
pub(crate) fn run(quick: bool) -> ExitCode {
    let measured = || -> Result<Vec<String>> {
        let mut tools = Tools::new()?;
        let outcome = needed_tools(&mut tools);
        tools.report();
        outcome?;
        let client = client::build_static(&mut tools)?;
        if quick {
            bench::run(Scale::Quick, client, None)
        } else {
            bench::run(Scale::Full, client, peer(&tools))
        }
    };
    match measured() {
        Ok(missed) if missed.is_empty() => ExitCode::SUCCESS,
        Ok(missed) => {
            for target in missed {
                anstream::eprintln!("missed by more than a fifth, or not measurable: {target}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            anstream::eprintln!("\nThe benchmark failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
