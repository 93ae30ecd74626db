//! The program that follows a knock.

use std::ffi::OsString;
use std::io;
use std::process::{Command, ExitCode};

/// Runs a program in place of this one.
///
/// # Errors
///
/// The system's error if it does not start.
#[cfg(unix)]
pub(crate) fn run(program: &OsString, arguments: &[OsString]) -> io::Result<ExitCode> {
    use std::os::unix::process::CommandExt as _;

    Err(Command::new(program).args(arguments).exec())
}

/// Runs a program, waits for it, and returns its exit status.
///
/// # Errors
///
/// The system's error if it does not start.
#[cfg(not(unix))]
pub(crate) fn run(program: &OsString, arguments: &[OsString]) -> io::Result<ExitCode> {
    let status = Command::new(program).args(arguments).status()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
