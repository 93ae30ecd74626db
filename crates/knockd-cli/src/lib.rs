//! The knock daemon: everything that `knockd` needs from the operating system, around the decisions of `knockd-core`.
//!
//! [`daemon::run`] is the daemon. A packet travels from the decoder process through the listener's thread to the
//! loop, which asks the core what the packet means and carries out the result.

pub mod args;
pub mod capture;
pub mod control;
pub mod daemon;
#[doc(hidden)]
pub mod leases;
mod log;
mod system;
pub mod tools;

use crate::system::config_file::ConfigFileError;

/// The exit status of `knockd`. clap itself exits with 2 after a usage error, and with `Succeeded` after `--help` and
/// `--version`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// A signal stopped it, or the command succeeded.
    Succeeded = 0,
    /// It could not start, or the command failed.
    Failed = 1,
}

/// Prints on standard error why the program exits; if that is closed, the exit status still tells.
pub fn complain_of(error: &anyhow::Error) {
    // Findings get their colours only here, at the border.
    let coloured = error.downcast_ref::<ConfigFileError>().and_then(ConfigFileError::coloured);
    let text = coloured.unwrap_or_else(|| format!("{error:#}"));
    log::complain(&format!("knockd: {text}"), log::Level::Error);
}
