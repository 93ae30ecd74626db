//! The `knockd` program.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use knockd_cli::args::{Args, CloseArgs, Command, ControlArgs, ExtendArgs, Format, OpenArgs, TraceArgs};
use knockd_cli::capture::decoder;
use knockd_cli::control::Request;
use knockd_cli::tools::{check, client, replay, trace, watch};
use knockd_cli::{Exit, daemon};

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == decoder::NAME) {
        return decoder::run();
    }
    let exit = run(Args::parse()).unwrap_or_else(|error| {
        // A reader that closed the pipe has seen enough.
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return Exit::Succeeded;
        }
        knockd_cli::complain_of(&error);
        Exit::Failed
    });
    ExitCode::from(exit as u8)
}

fn run(mut args: Args) -> anyhow::Result<Exit> {
    match args.command.take() {
        None if args.test => check::run(&args.config, false, Format::Text),
        None => daemon::run(args).map(|()| Exit::Succeeded),
        Some(Command::Check(check)) => check::run(&check.file, check.strict, check.format),
        Some(Command::Replay(replay)) => replay::run(&replay),
        Some(Command::Status(status)) => ask(&status.control, &Request::Status {}),
        Some(Command::Watch(watch)) => watch::run(&watch.socket.path),
        Some(Command::Trace(TraceArgs { address, control })) => {
            trace::run(&control.socket.path, address, control.format)
        }
        Some(Command::Close(CloseArgs { door, address, control, .. })) => {
            ask(&control, &Request::Close { door, address })
        }
        Some(Command::Extend(ExtendArgs { door, address, seconds, control })) => {
            ask(&control, &Request::Extend { door, address, seconds })
        }
        Some(Command::Open(OpenArgs { door, address, control })) => {
            ask(&control, &Request::Open { door, address })
        }
        Some(Command::Reload(reload)) => ask(&reload.control, &Request::Reload {}),
    }
}

fn ask(control: &ControlArgs, request: &Request) -> anyhow::Result<Exit> {
    client::run(&control.socket.path, request, control.format)
}
