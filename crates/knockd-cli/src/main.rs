//! The `knockd` program.

use std::process::ExitCode;

use knockd_cli::args::{
    Args, CloseArgs, Command, ControlArgs, DismissArgs, ExtendArgs, ForgiveArgs, OpenArgs, TraceArgs,
};
use knockd_cli::capture::decoder;
use knockd_cli::control::Request;
use knockd_cli::tools::{client, guard, program, trace};
use knockd_cli::{Exit, daemon};

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == decoder::NAME) {
        return decoder::run();
    }
    if std::env::args_os().next().is_some_and(|name| name == daemon::HELPER) {
        return daemon::run_helper();
    }
    knockd_cli::exit(run(Args::of_process()))
}

fn run(mut args: Args) -> anyhow::Result<Exit> {
    match args.command.take() {
        None if args.test => Err(program::become_tools()),
        None => daemon::run(args),
        Some(Command::Check(_) | Command::Replay(_) | Command::Watch(_)) => Err(program::become_tools()),
        Some(Command::Status(status)) => ask(&status.control, &Request::Status {}),
        Some(Command::Trace(TraceArgs { address, control })) => {
            trace::run(&control.socket.path, address, control.format)
        }
        Some(Command::Close(CloseArgs { door, address, control, .. })) => {
            ask(&control, &Request::Close { door, address })
        }
        Some(Command::Dismiss(DismissArgs { door, address, control, .. })) => {
            ask(&control, &Request::Dismiss { door, address })
        }
        Some(Command::Scanners(scanners)) => ask(&scanners.control, &Request::Scanners {}),
        Some(Command::Forgive(ForgiveArgs { address, control })) => {
            ask(&control, &Request::Forgive { address })
        }
        Some(Command::Extend(ExtendArgs { door, address, seconds, control })) => {
            ask(&control, &Request::Extend { door, address, seconds })
        }
        Some(Command::Open(OpenArgs { door, address, control })) => {
            ask(&control, &Request::Open { door, address })
        }
        Some(Command::Guard(arguments)) => guard::run(&arguments).map(|()| Exit::Succeeded),
        Some(Command::Reload(reload)) => ask(&reload.control, &Request::Reload {}),
    }
}

fn ask(control: &ControlArgs, request: &Request) -> anyhow::Result<Exit> {
    client::run(&control.socket.path, request, control.format)
}
