//! `cargo xtask conformance`: our knockd beside the C program.

use std::process::{Command, ExitCode};

use testbed::workspace_root;

use crate::tools;

/// Runs the suite and prints the comparison, or writes the page that is made of its rules.
pub(crate) fn run(write_page: bool) -> ExitCode {
    if let Err(error) = tools::ensure_original() {
        anstream::eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["test", "--quiet", "--package", "conformance", "--test", "knockd", "--", "--quiet"])
        .env("CONFORMANCE", if write_page { "write" } else { "table" })
        .current_dir(workspace_root())
        .status();
    if status.is_ok_and(|status| status.success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
