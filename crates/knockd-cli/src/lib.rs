//! The knock daemon: everything that `knockd` asks of the operating system, around the decisions of `knockd-core`.
//!
//! [`daemon::run`] is the daemon. A packet goes from the decoder's process through the listener's thread to the loop, which asks
//! the core what it means and carries out what follows.

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

/// How `knockd` ends. clap itself ends with 2 after a usage error, and with `Succeeded` after `--help` and `--version`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// A signal has asked for it, or what was asked for is done.
    Succeeded = 0,
    /// It could not start, or what was asked for could not be done.
    Failed = 1,
}

/// Says on standard error why the program ends; it may be closed, then the exit status still tells.
pub fn complain_of(error: &anyhow::Error) {
    // The border at which a drawing gets its colours.
    let coloured = error.downcast_ref::<ConfigFileError>().and_then(ConfigFileError::coloured);
    let text = coloured.unwrap_or_else(|| format!("{error:#}"));
    log::complain(&format!("knockd: {text}"), log::Level::Error);
}
