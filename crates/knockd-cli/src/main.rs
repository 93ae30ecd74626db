//! The `knockd` program.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use knockd_cli::args::Args;
use knockd_cli::decoder;

/// How `knockd` ends. clap itself ends with 2 after a usage error, and with `Stopped` after `--help` and `--version`.
#[derive(Clone, Copy)]
enum Exit {
    /// A signal asked for it.
    Stopped = 0,
    /// It could not start.
    Failed = 1,
}

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == decoder::NAME) {
        return decoder::run();
    }
    let exit = match knockd_cli::run(Args::parse()) {
        Ok(()) => Exit::Stopped,
        Err(error) => {
            // Standard error may be closed; the exit status still tells.
            let _ = writeln!(anstream::stderr(), "knockd: {error:#}");
            Exit::Failed
        }
    };
    ExitCode::from(exit as u8)
}
