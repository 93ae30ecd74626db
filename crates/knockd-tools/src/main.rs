//! The `knockd-tools` program, which `knockd` becomes for the commands that do not belong in the daemon.

use std::process::ExitCode;

use anyhow::bail;
use knockd_cli::Exit;
use knockd_cli::args::{Args, Command, Format};
use knockd_tools::{check, replay, watch};

fn main() -> ExitCode {
    knockd_cli::exit(run(&Args::of_process()))
}

fn run(args: &Args) -> anyhow::Result<Exit> {
    match &args.command {
        None if args.test => check::run(&args.config, false, false, Format::Text),
        Some(Command::Check(check)) => {
            check::run(check.path(), check.strict, check.accept_lockout, check.format)
        }
        Some(Command::Replay(replay)) => replay::run(replay),
        Some(Command::Watch(watch)) => watch::run(&watch.socket.path),
        _ => bail!("this program is a part of knockd; run knockd instead"),
    }
}
