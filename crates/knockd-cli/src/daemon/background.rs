//! `-d`: the daemon in the background, and the process in the foreground that waits until it is ready.
//!
//! The foreground process starts its own program once more, because a process with threads cannot be forked safely. So
//! the daemon has a terminal for its messages until it reads packets and has written the PID file.

use std::env;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;

use anyhow::{Context, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::unistd::{chdir, close, dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use crate::Exit;
use crate::system::BACKGROUND;

/// Starts the daemon and waits until it is ready.
///
/// # Errors
/// When it cannot be started, or a signal ends it. If it fails otherwise, it has said why, and the result is
/// [`Exit::Failed`].
pub(super) fn start() -> anyhow::Result<Exit> {
    let (mut ready, report) = std::io::pipe().context("cannot detach")?;
    fcntl(&report, FcntlArg::F_SETFD(FdFlag::empty())).context("cannot detach")?;
    let program =
        env::current_exe().ok().context("cannot detach without /proc; run: mount -t proc proc /proc")?;
    let mut arguments = env::args_os();
    let mut daemon = Command::new(program)
        .arg0(arguments.next().unwrap_or_default())
        .args(arguments)
        // Its end of the pipe.
        .env(BACKGROUND, report.as_raw_fd().to_string())
        .spawn()
        .context("cannot detach")?;
    drop(report);
    let mut said = Vec::new();
    ready.read_to_end(&mut said).context("cannot detach")?;
    if !said.is_empty() {
        return Ok(Exit::Succeeded);
    }
    let status = daemon.wait().context("cannot detach")?;
    if let Some(signal) = status.signal() {
        bail!("killed by signal {signal} at startup");
    }
    Ok(Exit::Failed)
}

/// The foreground process, as the daemon sees it.
pub(super) struct Foreground {
    pipe: std::fs::File,
}

impl Foreground {
    /// Finds the process that has started this one, and leaves its session; `None` if this one was not started by
    /// [`start`].
    ///
    /// # Errors
    /// When that process has ended.
    pub(super) fn find() -> anyhow::Result<Option<Self>> {
        let Some(number) = env::var(BACKGROUND).ok().and_then(|number| number.parse::<RawFd>().ok()) else {
            return Ok(None);
        };
        // Commands would inherit the descriptor as it is.
        let pipe = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(format!("/proc/self/fd/{number}"))
            .context("the foreground process has ended")?;
        let _ = close(number);
        setsid().context("cannot detach")?;
        Ok(Some(Self { pipe }))
    }

    /// Lets it end.
    ///
    /// # Errors
    /// When it has ended already: somebody has changed their mind.
    pub(super) fn release(mut self) -> anyhow::Result<()> {
        self.pipe.write_all(b"\n").context("the foreground process has ended")
    }
}

/// Lets go of the directory and the standard streams of this process.
///
/// # Errors
/// When there is no `/dev/null`.
pub(super) fn detach() -> anyhow::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.context("cannot detach: /dev/null")?;
    chdir("/").context("cannot detach")?;
    dup2_stdin(&null)
        .and_then(|()| dup2_stdout(&null))
        .and_then(|()| dup2_stderr(&null))
        .context("cannot detach")
}
