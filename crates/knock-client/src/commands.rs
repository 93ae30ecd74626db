//! What `knock` does besides knocking: it keeps profiles, and is the proxy of ssh.

mod add;
mod edit;
mod export;
mod import;
mod knockonports;
mod show;

use std::io::{self, Write};

use clap_complete::env::Shells;
use knock_client::args::{Command, Completions, Shell};
use knock_client::hosts::{Hosts, HostsError};
use knock_client::one_time::OneTimeError;
use knock_client::uri::UriError;

use crate::exit::Exit;
use crate::lock::Lock;
use crate::proxy::proxy;
use crate::qr::TooLong;
use crate::report;

/// The variable with which a shell's script asks `knock` for completions.
pub(crate) const COMPLETE: &str = "KNOCK_COMPLETE";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The file with the profiles is not usable, or a profile is missing.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// A link is not usable.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// A link does not fit into a QR code.
    #[error(transparent)]
    Qr(#[from] TooLong),
    /// A one-time file is not usable.
    #[error(transparent)]
    OneTime(#[from] OneTimeError),
    /// Standard output is closed, or full.
    #[error("cannot write: {0}")]
    Output(io::Error),
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Runs a command, and returns how to end.
///
/// # Errors
///
/// When it did not do what it was asked for.
pub(crate) fn run(command: &Command) -> Result<Exit, CommandError> {
    let result = match command {
        Command::Proxy(args) => return Ok(proxy(args)),
        Command::Add(add) => add::run(add),
        Command::List => show::list(),
        Command::Show(show) => show::run(show),
        Command::Edit(edit) => edit::run(edit),
        Command::Remove(remove) => {
            let hosts = change(|hosts| Ok(hosts.without(&remove.name)?))?;
            say(&format!("removed {} from {}", remove.name, hosts.path().display()));
            Ok(())
        }
        Command::Import(import) => import::run(import),
        Command::Export(export) => export::run(export),
        Command::Completions(completions) => print_completions(completions),
    };
    result.map(|()| Exit::Done)
}

/// Reads the file with the profiles, and warns if others can use it.
fn read() -> Result<Hosts, HostsError> {
    let hosts = Hosts::read()?;
    if let Some(exposure) = hosts.exposure() {
        warn(&exposure);
    }
    Ok(hosts)
}

/// Changes the file with the profiles. Nobody else changes it meanwhile, so what two people add at once is all there.
fn change(with: impl FnOnce(&Hosts) -> Result<Hosts, CommandError>) -> Result<Hosts, CommandError> {
    let _lock = lock();
    let hosts = with(&read()?)?;
    hosts.write()?;
    Ok(hosts)
}

/// Keeps other processes from changing the file with the profiles.
fn lock() -> Lock {
    // No profile has this name.
    Lock::take("", || {})
}

fn print_completions(completions: &Completions) -> Result<(), CommandError> {
    let shell = match completions.shell {
        Shell::Bash => "bash",
        Shell::Elvish => "elvish",
        Shell::Fish => "fish",
        Shell::Powershell => "powershell",
        Shell::Zsh => "zsh",
    };
    let mut script = Vec::new();
    if let Some(completer) = Shells::builtins().completer(shell) {
        completer
            .write_registration(COMPLETE, "knock", "knock", "knock", &mut script)
            .map_err(CommandError::Output)?;
    }
    print(&String::from_utf8_lossy(&script))
}

/// Writes to standard output, without colours where they are not wanted. A reader that is gone has read enough.
fn print(text: &str) -> Result<(), CommandError> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CommandError::Output(error)),
        _ => Ok(()),
    }
}

/// Tells a person what was done.
fn say(message: &str) {
    report::error(message);
}

fn warn(message: &str) {
    report::error(&format!("warning: {message}"));
}

/// Returns `1 step` or `3 steps`.
fn steps(count: usize) -> String {
    format!("{count} {}", if count == 1 { "step" } else { "steps" })
}
