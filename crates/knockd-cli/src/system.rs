//! The machine, as the other folders need it: its clock, users, sockets, threads, and the configuration file.
//!
//! This folder knows the core and nothing else of this program.

pub(crate) mod clock;
pub mod config_file;
pub(crate) mod connections;
pub(crate) mod descriptors;
pub(crate) mod helper;
mod include;
pub(crate) mod last_good;
pub mod local_ports;
pub mod programs;
pub(crate) mod seccomp;
pub mod selection;
pub mod text;
pub mod time_zone;
pub(crate) mod unit;
pub(crate) mod users;

use std::fs::{File, TryLockError};
use std::io::IsTerminal;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use anyhow::Context;
use rustix::fs::{FileType, Mode, OFlags};

/// The environment variable that makes a process the daemon in the background; it concerns nobody else.
pub(crate) const BACKGROUND: &str = "KNOCKD_BACKGROUND";

/// Starts a thread with this name.
///
/// # Errors
/// When the system has no thread left.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(body).with_context(|| format!("cannot start the {name} thread"))?;
    Ok(())
}

/// Locks a file for this process. A child that a killed daemon was starting holds its files for a moment, so this tries
/// for up to 2 seconds.
///
/// # Errors
/// When another process keeps the lock, or the system refuses.
pub(crate) fn lock(file: &File) -> Result<(), TryLockError> {
    patiently(|| file.try_lock(), |error| matches!(error, TryLockError::WouldBlock))
}

/// Tries for up to 2 seconds, as long as it fails for a reason that may pass.
pub(crate) fn patiently<T, E>(
    attempt: impl Fn() -> Result<T, E>,
    may_pass: impl Fn(&E) -> bool,
) -> Result<T, E> {
    const LOOK_AGAIN: Duration = Duration::from_millis(50);
    let mut rounds = 1..9;
    loop {
        match (attempt(), rounds.next()) {
            (Err(error), Some(round)) if may_pass(&error) => std::thread::sleep(LOOK_AGAIN * round),
            (result, _) => return result,
        }
    }
}

/// Reopens a terminal or a pipe so that writing to it does not block, if it is one of these and allows it.
///
/// One with some room may lack room for a line, or others may take the room; and the non-blocking mode belongs to the
/// open file, which other processes share. A socket or a file cannot be reopened.
pub(crate) fn reopen(to: BorrowedFd<'_>) -> Option<File> {
    let is_pipe = || rustix::fs::fstat(to).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_fifo());
    if !to.is_terminal() && !is_pipe() {
        return None;
    }
    let path = format!("/proc/self/fd/{}", to.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok().map(File::from)
}
