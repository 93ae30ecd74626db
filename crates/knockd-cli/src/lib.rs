//! The knock daemon: everything that `knockd` asks of the operating system, around the decisions of `knockd-core`.
//!
//! [`run`] is the whole program. A packet goes from the decoder's process through the listener's thread to the engine's
//! loop, which asks the core what it means and has the runner execute what follows.

mod accounts;
pub mod args;
#[doc(hidden)]
pub mod capture_file;
pub mod check;
mod clock;
pub mod control;
pub mod decoder;
mod doors;
mod ears;
mod engine;
mod file_pages;
mod flood;
mod guard;
mod judge;
mod keeper;
#[doc(hidden)]
pub mod link_layer;
mod listener;
mod listening;
mod local_ports;
mod logging;
mod metrics;
mod names;
mod one_time_file;
mod outlets;
mod pid_file;
mod programs;
#[doc(hidden)]
pub mod record;
pub mod replay;
mod report;
mod runner;
mod sandbox;
mod selection;
mod service;
mod setup;
pub mod state;
mod story;
pub mod trace;
pub mod watch;

use std::io::Write;

use anyhow::Context;
use crossbeam_channel::Receiver;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::args::Args;
use crate::engine::{Engine, Prepared};
use crate::logging::{Destinations, Journal, Level, Line, Log, prefixed};
use crate::pid_file::PidFile;
use crate::setup::Setup;

/// How `knockd` ends. clap itself ends with 2 after a usage error, and with `Succeeded` after `--help` and `--version`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// A signal has asked for it, or what was asked for is done.
    Succeeded = 0,
    /// It could not start, or what was asked for could not be done.
    Failed = 1,
}

/// Runs the daemon until a signal ends it.
///
/// It starts the program that it is part of once more for each interface, as [`decoder::NAME`]; that has to call
/// [`decoder::run`] then, before anything else.
///
/// With `-d` this returns only in the background process; the foreground one has exited with status 0.
///
/// # Errors
/// When the configuration is missing or wrong, when the interface does not exist, or when capturing is not permitted.
pub fn run(args: Args) -> anyhow::Result<()> {
    let level = if args.debug { log::LevelFilter::Debug } else { log::LevelFilter::Off };
    let mut debugging = env_logger::Builder::new();
    debugging.filter_level(level).parse_default_env().target(env_logger::Target::Stdout).init();
    let directory = std::env::current_dir().context("cannot find the current directory")?;
    let setup = Setup::load(&args, &directory, None)?;
    for warning in &setup.warnings {
        complain(warning, Level::Warning);
    }
    let prepared = Prepared::new(args, directory, setup)?;
    let Prepared { args, setup, .. } = &prepared;
    let destinations = Destinations::open(args, setup);
    // Everything that can fail has failed by now, while there is a terminal to say so and no thread that a fork would lose.
    if args.daemon {
        nix::unistd::daemon(false, false).context("cannot go to the background")?;
    }
    let pid_file = args.daemon.then(|| PidFile::write(&setup.pid_file)).transpose();
    let log = Log::new(destinations, args.lookup)?;
    let pid_file = pid_file.unwrap_or_else(|error| {
        log.write(&Line::warning(format!("could not create pid file {error}")));
        None
    });
    let signals = signals()?;
    Engine::start(prepared, log)?.run(&signals);
    drop(pid_file);
    Ok(())
}

/// Says on standard error why the program ends; it may be closed, then the exit status still tells.
pub fn complain_of(error: &anyhow::Error) {
    complain(&format!("knockd: {error:#}"), Level::Error);
}

fn complain(text: &str, level: Level) {
    let text = prefixed(text, level, Journal::find().stderr);
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Catches the signals that the daemon answers to.
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

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(body).with_context(|| format!("cannot start the {name} thread"))?;
    Ok(())
}
