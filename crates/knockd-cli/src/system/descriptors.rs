//! Descriptors of processes.

use std::os::fd::OwnedFd;

use rustix::io::Result;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Returns a descriptor of our own for what a descriptor of a process is for, see `pidfd_getfd(2)`: since Linux 5.6, and for the processes
/// that we may debug.
///
/// # Errors
/// When the system refuses, or there is no such process or descriptor.
pub(crate) fn copy(process: i32, number: i32) -> Result<OwnedFd> {
    let process = Pid::from_raw(process).ok_or(rustix::io::Errno::SRCH)?;
    pidfd_getfd(pidfd_open(process, PidfdFlags::empty())?, number, PidfdGetfdFlags::empty())
}
