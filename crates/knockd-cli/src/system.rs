//! The machine, as the other folders need it: its clock, users, sockets, threads, and the configuration file.
//!
//! This folder knows the core and nothing else of this program.

pub(crate) mod clock;
pub mod config_file;
pub mod local_ports;
pub mod programs;
pub mod selection;
pub mod text;
pub(crate) mod users;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::Context;
use rustix::fs::{Mode, OFlags};

/// Starts a thread with this name.
///
/// # Errors
/// When the system has no thread left.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(body).with_context(|| format!("cannot start the {name} thread"))?;
    Ok(())
}

/// Reopens a terminal or a pipe: one with some room may lack room for a line, and the non-blocking mode belongs to the
/// open file, which other processes share.
pub(crate) fn reopen(to: BorrowedFd<'_>) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", to.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}
