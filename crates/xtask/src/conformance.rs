//! `cargo xtask conformance`: our knockd compared with the C program.

use std::process::{Command, ExitCode};

use testbed::workspace_root;

use crate::tools::Tools;

/// Runs the suite and prints the comparison, or writes the page generated from its rules.
pub(crate) fn run(write_page: bool) -> ExitCode {
    let original = Tools::new().and_then(|mut tools| {
        let original = tools.ensure_original();
        tools.report();
        original
    });
    match original {
        Ok(true) => {}
        Ok(false) => {
            anstream::println!("Without apt there is no knockd 0.8: the suite runs against ours only.");
        }
        Err(error) => {
            anstream::eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["test", "--quiet", "--package", "conformance", "--test", "knockd", "--", "--quiet"])
        .env("CONFORMANCE", if write_page { "write" } else { "table" })
        .current_dir(workspace_root())
        .status();
    if status.is_ok_and(|status| status.success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
