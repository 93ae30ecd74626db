//! The `knockd` program.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use knockd_cli::args::{Args, Command, Format};
use knockd_cli::{Exit, check, decoder};

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == decoder::NAME) {
        return decoder::run();
    }
    let exit = run(Args::parse()).unwrap_or_else(|error| {
        // Standard error may be closed; the exit status still tells.
        let _ = writeln!(anstream::stderr(), "knockd: {error:#}");
        Exit::Failed
    });
    ExitCode::from(exit as u8)
}

fn run(mut args: Args) -> anyhow::Result<Exit> {
    match args.command.take() {
        None if args.test => check::run(&args.config, false, Format::Text),
        None => knockd_cli::run(args).map(|()| Exit::Succeeded),
        Some(Command::Check(check)) => check::run(&check.file, check.strict, check.format),
    }
}
