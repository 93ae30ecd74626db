//! The machine as the other folders need it: its clock, users, sockets, threads, and the configuration file.
//!
//! It knows the core and nothing of this program.

pub(crate) mod clock;
pub(crate) mod config_file;
pub(crate) mod listening;
pub(crate) mod local_ports;
pub(crate) mod programs;
pub(crate) mod selection;
pub(crate) mod text;
pub(crate) mod users;

use anyhow::Context;

/// Starts a thread with this name.
///
/// # Errors
/// When the system has no thread left.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(body).with_context(|| format!("cannot start the {name} thread"))?;
    Ok(())
}
