//! The knock daemon: everything that `knockd` needs from the operating system, around the decisions of `knockd-core`.
//!
//! [`daemon::run`] is the daemon. A packet travels from the decoder process through the listener's thread to the
//! loop, which asks the core what the packet means and carries out the result.

pub mod args;
pub mod capture;
pub mod control;
pub mod daemon;
mod firewall;
#[doc(hidden)]
pub mod leases;
mod log;
#[doc(hidden)]
pub mod system;
pub mod tools;

use std::io;
use std::process::ExitCode;

use crate::system::config_file::ConfigFileError;

/// The exit status of `knockd` and `knockd-tools`. clap itself exits with 2 after a usage error, and with `Succeeded`
/// after `--help` and `--version`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// A signal stopped it, or the command succeeded.
    Succeeded = 0,
    /// It could not start, or the command failed.
    Failed = 1,
}

/// Turns the result of a command into the exit status, and prints an error on standard error.
pub fn exit(result: anyhow::Result<Exit>) -> ExitCode {
    let exit = result.unwrap_or_else(|error| {
        // A reader that closed the pipe has seen enough.
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return Exit::Succeeded;
        }
        complain_of(&error);
        Exit::Failed
    });
    ExitCode::from(exit as u8)
}

/// Prints on standard error why the program exits; if that is closed, the exit status still tells.
fn complain_of(error: &anyhow::Error) {
    // Findings get their colours only here, at the border.
    let coloured = error.downcast_ref::<ConfigFileError>().and_then(ConfigFileError::coloured);
    let text = coloured.unwrap_or_else(|| format!("{error:#}"));
    let hint = args::hint().map(|hint| format!("\nknockd: {hint}")).unwrap_or_default();
    log::complain(&format!("knockd: {text}{hint}"), log::Level::Error);
}
