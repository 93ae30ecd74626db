//! The processes of a command: a shell, and everything that it starts in its process group.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::io::{Errno, fcntl_dupfd_cloexec, ioctl_fionbio};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, WaitOptions, getrlimit,
    kill_process_group, pidfd_open, setrlimit, waitid, waitpgid,
};

use crate::system::BACKGROUND;

/// What a shell that has to wait executes first: it waits for a line on its stdin, and exits if nobody is left who
/// could write one. It is on the same line as the command, so a shell that finds a syntax error in that does not wait.
const WAIT: &str = "read -r _ || exit; exec </dev/null; ";

/// A shell that was started.
pub(super) struct Shell {
    pub(super) child: Child,
    /// A non-blocking end of its stderr.
    pub(super) stderr: Option<File>,
    /// What it waits for, if it does: see [`go`].
    pub(super) waits: Option<OwnedFd>,
}

/// Starts a shell with a command; if it `waits`, it does nothing until [`go`].
///
/// What the command inherits is right before its first instruction, because nothing of ours has to be undone: std
/// clears the signal mask and resets SIGPIPE, exec(2) drops our handlers and descriptors, and the descriptor limit is
/// the usual one, which this thread never raises while it starts something (see [`out_of_the_way`]).
pub(super) fn spawn(command: &str, waits: bool) -> io::Result<Shell> {
    let (stdin, prelude) = if waits { (Stdio::piped(), WAIT) } else { (Stdio::null(), "") };
    let mut child = Command::new("/bin/sh")
        // The shell puts this name in front of its own messages.
        .arg0("sh")
        .arg("-c")
        .arg(format!("{prelude}{command}"))
        .stdin(stdin)
        .stdout(Stdio::inherit())
        .stderr(Stdio::piped())
        .process_group(0)
        // They concern only us: a command is not part of the service's protocol.
        .env_remove(BACKGROUND)
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_PID")
        .env_remove("WATCHDOG_USEC")
        .spawn()?;
    let stderr = child.stderr.take().map(|pipe| File::from(out_of_the_way(pipe.into())));
    // Only our end of the pipe is non-blocking; a command waits when the pipe is full.
    let stderr = stderr.filter(|pipe| ioctl_fionbio(pipe, true).is_ok());
    let waits = child.stdin.take().map(|pipe: ChildStdin| out_of_the_way(pipe.into()));
    Ok(Shell { child, stderr, waits })
}

/// Lets a shell execute its command. An empty pipe has room for a byte.
pub(super) fn go(waits: &OwnedFd) {
    let _ = rustix::io::write(waits, b"\n");
}

/// Opens a descriptor that becomes readable when the shell ends; `None` before Linux 5.3.
pub(super) fn watch(shell: &Child) -> Option<OwnedFd> {
    pidfd_open(Pid::from_child(shell), PidfdFlags::empty()).ok().map(out_of_the_way)
}

/// Says whether the shell has ended. Its process ID, which is also its group's, stays reserved until it is reaped.
pub(super) fn has_ended(shell: &Child) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::Pid(Pid::from_child(shell)), options), Ok(None))
}

/// Sends a signal to all processes of a command whose shell has not been reaped yet.
pub(super) fn signal(shell: &Child, signal: Signal) {
    let _ = kill_process_group(Pid::from_child(shell), signal);
}

/// Reaps the ended processes of a command's group, and says whether more remain that are ours to reap.
///
/// Some do if we are process 1, as in a container: orphans become our children, and become zombies unless we reap
/// them. For other processes' children, the system answers that there are none.
pub(super) fn reap(group: Pid) -> bool {
    loop {
        match waitpgid(group, WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// Moves a descriptor above the usual limit, if more than half of the numbers below are in use; everything else, such
/// as the control socket, finds room below.
///
/// The limit is raised only while the descriptor moves, by the thread that starts the commands, so no command
/// inherits it: the usual limit is low for the sake of programs that use select(2). A descriptor keeps its number
/// when the limit is low again.
fn out_of_the_way(descriptor: OwnedFd) -> OwnedFd {
    let usual = getrlimit(Resource::Nofile);
    let Some(soft) = usual.current.and_then(|limit| i32::try_from(limit).ok()) else { return descriptor };
    if descriptor.as_raw_fd() < soft / 2 {
        return descriptor;
    }
    // A process may always raise it that far (getrlimit(2)). If that is no further, the descriptor stays where it is.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: usual.maximum, ..usual });
    let moved = raised.and_then(|()| fcntl_dupfd_cloexec(&descriptor, soft));
    let _ = setrlimit(Resource::Nofile, usual);
    moved.unwrap_or(descriptor)
}
