//! The daemon: startup, the loop around the core, reloads, signals, the service manager and the PID file.
//!
//! This folder owns all state and joins the other folders. It may know all of them except the tools, and none of them
//! knows it.

mod answers;
mod background;
mod closings;
mod dispatcher;
mod engine;
mod guarding;
mod helper;
mod packets;
mod pid_file;
mod problems;
mod reload;
mod request_limits;
mod results;
mod rights;
mod service_manager;
mod setup;
mod shutdown;
mod startup;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use crossbeam_channel::Receiver;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use self::background::Foreground;
use self::engine::Engine;
pub use self::helper::run as run_helper;
use self::pid_file::{PidFile, PidFileError};
use self::setup::Setup;
use self::startup::Prepared;
use crate::Exit;
use crate::args::Args;
use crate::firewall;
use crate::leases::store::LeaseStore;
use crate::log::{Level, Line, Log, complain, debug_output};
use crate::system::config_file::Style;
pub use crate::system::helper::NAME as HELPER;
use crate::system::helper::{Helper, Rights};
use crate::system::spawn;

/// Runs the daemon until a signal ends it.
///
/// For each interface it starts its own program again under the name [`crate::capture::decoder::NAME`]; that program
/// must then call [`crate::capture::decoder::run`] before anything else.
///
/// With `-d`, it starts its own program again as well: that is the daemon, and this returns once it is ready.
///
/// # Errors
/// When the configuration is missing or invalid, the interface does not exist, capturing is not permitted, or another
/// daemon does the same.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let foreground = if args.daemon { Foreground::find()? } else { None };
    if args.daemon && foreground.is_none() {
        return background::start();
    }
    // Without a handler, a file that is as long as it may become (setrlimit(2)) would end the daemon while doors are
    // open. With one, writing fails as on a full disk; and commands start without it, because exec(2) drops it.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).context("cannot catch signals")?;
    print_debug_messages(&args);
    let directory = std::env::current_dir().context("cannot determine the current directory")?;
    let kept_socket = service_manager::kept();
    let setup = Setup::load_at_start(&args, &directory)?;
    for line in setup.unusable.iter().flat_map(|reason| reason.lines()) {
        complain(line, Level::Error);
    }
    for warning in setup.warnings.lines(Style::Coloured) {
        complain(&warning, Level::Warning);
    }
    let rights = rights_for(&args, &setup, &directory)?;
    let pid_file = match args.daemon.then(|| PidFile::write(&setup.pid_file, rights.clone())).transpose() {
        Err(error @ PidFileError::InUse { .. }) => return Err(error.into()),
        pid_file => pid_file,
    };
    let kept_socket = match &rights {
        Rights::Own => kept_socket,
        Rights::Helper(_) => kept_socket.or_else(firewall::left_socket),
    };
    let prepared = Prepared::new(args, directory, setup, rights, kept_socket)?;
    let Prepared { args, setup, rights, .. } = &prepared;
    // Capabilities belong to threads, so this comes before there are others.
    let kept = if let Rights::Helper(_) = rights { rights::leave_to_helper() } else { None };
    let log = Log::new(&setup.log_settings(args, rights.clone()), args.lookup, prepared.clock)?;
    let pid_file = pid_file.unwrap_or_else(|error| {
        log.write(&Line::warning(error.to_string()));
        None
    });
    let signals = signals()?;
    let mut engine = Engine::start(prepared, kept, pid_file, log)?;
    engine.begin();
    if let Some(foreground) = foreground {
        background::detach()?;
        engine.reopen_log();
        foreground.release()?;
    }
    Ok(engine.run(&signals))
}

/// Starts the helper if no door has a command; what an earlier daemon has left open takes commands as well.
fn rights_for(args: &Args, setup: &Setup, directory: &Path) -> anyhow::Result<Rights> {
    if !setup.config.is_native() {
        return Ok(Rights::Own);
    }
    if LeaseStore::has_leases(&setup.state_dir) {
        let text = format!(
            "knockd: {} has doors that commands have opened; knockd keeps the rights to close them until it is restarted",
            setup.state_dir.display()
        );
        complain(&text, Level::Warning);
        return Ok(Rights::Own);
    }
    let files = setup::files(&setup.config, args, directory);
    let helper = Helper::start(&files).context("cannot start the helper process")?;
    Ok(Rights::Helper(helper))
}

/// Prints debug messages on stdout, if wanted.
fn print_debug_messages(args: &Args) {
    let level = if args.debug { log::LevelFilter::Debug } else { log::LevelFilter::Off };
    let target = env_logger::Target::Pipe(Box::new(debug_output(args.daemon)));
    env_logger::Builder::new().filter_level(level).parse_default_env().target(target).init();
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
