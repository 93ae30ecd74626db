//! `cargo xtask bench`: our knockd beside the C program.

use std::process::ExitCode;

use anyhow::Result;
use bench::Scale;

use crate::tools::{IP, NFT, NSENTER, TASKSET, UNSHARE, VALGRIND, ensure_original, ensure_present};

/// Installs what is missing, measures, and says what is not as it should be.
pub(crate) fn run(quick: bool) -> ExitCode {
    let measured = || -> Result<Vec<String>> {
        ensure_present(&[IP, NFT, NSENTER, TASKSET, UNSHARE, VALGRIND])?;
        ensure_original()?;
        bench::run(if quick { Scale::Quick } else { Scale::Full })
    };
    match measured() {
        Ok(missed) if missed.is_empty() => ExitCode::SUCCESS,
        Ok(missed) => {
            for target in missed {
                anstream::eprintln!("missed by more than a fifth: {target}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            anstream::eprintln!("\nThe benchmark failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
