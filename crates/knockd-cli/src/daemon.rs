//! The daemon: startup, the loop around the core, reloads, signals, the service manager and the PID file.
//!
//! This folder owns all state and joins the other folders. It may know all of them except the tools, and none of them
//! knows it.

mod answers;
mod closings;
mod dispatcher;
mod engine;
mod pid_file;
mod reload;
mod request_limits;
mod service_manager;
mod setup;
mod shutdown;
mod startup;

use std::sync::Arc;

use anyhow::Context;
use crossbeam_channel::Receiver;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use self::engine::Engine;
use self::pid_file::PidFile;
use self::setup::Setup;
use self::startup::Prepared;
use crate::args::Args;
use crate::log::{Destinations, Level, Line, Log, complain, debug_output};
use crate::system::config_file::Style;
use crate::system::spawn;

/// Runs the daemon until a signal ends it.
///
/// For each interface it starts its own program again under the name [`crate::capture::decoder::NAME`]; that program
/// must then call [`crate::capture::decoder::run`] before anything else.
///
/// With `-d` this returns only in the background process; the foreground process has exited with status 0.
///
/// # Errors
/// When the configuration is missing or invalid, the interface does not exist, or capturing is not permitted.
pub fn run(args: Args) -> anyhow::Result<()> {
    // Without a handler, a file that is as long as it may become (setrlimit(2)) would end the daemon while doors are open.
    // With one, writing fails as on a full disk; and commands start without it, because exec(2) drops it.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).context("cannot catch signals")?;
    let directory = std::env::current_dir().context("cannot determine the current directory")?;
    let setup = Setup::load(&args, &directory, None)?;
    for warning in setup.warnings.lines(Style::Coloured) {
        complain(&warning, Level::Warning);
    }
    let prepared = Prepared::new(args, directory, setup)?;
    let Prepared { args, setup, .. } = &prepared;
    let mut destinations = Destinations::open(&setup.log_settings(args));
    // Everything that can fail has failed by now, while there is a terminal for the message and no thread for the
    // fork to lose.
    if args.daemon {
        nix::unistd::daemon(false, false).context("cannot detach")?;
        destinations.detach();
    }
    let level = if args.debug { log::LevelFilter::Debug } else { log::LevelFilter::Off };
    let mut debugging = env_logger::Builder::new();
    let target = env_logger::Target::Pipe(Box::new(debug_output()));
    debugging.filter_level(level).parse_default_env().target(target).init();
    let pid_file = args.daemon.then(|| PidFile::write(&setup.pid_file)).transpose();
    let log = Log::new(destinations, args.lookup, prepared.clock)?;
    let pid_file = pid_file.unwrap_or_else(|error| {
        log.write(&Line::warning(format!("cannot create pid file {error}")));
        None
    });
    let signals = signals()?;
    Engine::start(prepared, log)?.run(&signals);
    drop(pid_file);
    Ok(())
}

/// Catches the signals that the daemon handles.
fn signals() -> anyhow::Result<Receiver<i32>> {
    let (caught, signals) = crossbeam_channel::unbounded();
    let mut incoming = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot catch signals")?;
    spawn("signals", move || {
        for signal in incoming.forever() {
            if caught.send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok(signals)
}
