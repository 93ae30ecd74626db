//! Runs commands: the only place that executes anything.

use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use knockd_core::Run;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, getrlimit, kill_process_group, pidfd_open,
    prlimit, setrlimit, waitpgid,
};

use crate::log::output::Output;

/// How long to wait, after a shell has failed, for what it last said on stderr. Only a command that left a process in the
/// background, which still holds the pipe, makes us wait that long.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The most that is kept of a line on stderr, in bytes.
const LINE_LIMIT: usize = 512;

/// A command that has run for that long is reported, once.
const LONG: Duration = Duration::from_secs(60);

/// How long a command that is ended for its `CommandLimit` has to end by itself.
const GRACE: Duration = Duration::from_secs(2);

/// What the runner says about a command.
#[derive(Debug)]
pub(crate) enum Report {
    /// It has run for a minute and goes on.
    Long(Run),
    /// It has run for as long as `CommandLimit` allows and is being ended.
    Limit(Run),
    Exit(Exit),
}

/// A command that has ended, or could not begin.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) run: Run,
    pub(crate) outcome: Outcome,
    /// The last line on the command's stderr that is not blank, without control characters; empty if there is none, or if the
    /// command has succeeded.
    pub(crate) last_words: String,
}

/// How a command ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Status(i32),
    Signal(i32),
    /// It could not be started, for this reason.
    NotStarted(String),
}

/// Starts commands, each in a thread of its own, and reports what becomes of them.
#[derive(Clone, Debug)]
pub(crate) struct Runner {
    reports: Sender<Report>,
}

impl Runner {
    /// Makes a runner and the channel on which it reports.
    pub(crate) fn new() -> (Self, Receiver<Report>) {
        raise_limit();
        let (reports, incoming) = crossbeam_channel::unbounded();
        (Self { reports }, incoming)
    }

    /// Runs a command with `/bin/sh -c` and returns at once; exactly one [`Report::Exit`] follows.
    ///
    /// The command gets our stdout, its stderr is copied to ours, its stdin is empty. It has a process group of its own, so
    /// that a signal to ours does not end it. It has ended when its shell has exited, whatever that left behind. When it
    /// has run for as long as `limit`, its process group is ended.
    pub(crate) fn start(&self, run: Run, limit: Option<Duration>) {
        let reports = self.reports.clone();
        let job = run.clone();
        let thread = thread::Builder::new().name("command".to_owned());
        let started = thread.spawn(move || {
            let (group, outcome, last_words) = execute(&job, limit, &reports);
            // The engine is gone only when the process is about to end.
            let _ = reports.send(Report::Exit(Exit { run: job, outcome, last_words }));
            group.into_iter().for_each(reap);
        });
        if let Err(error) = started {
            let outcome = Outcome::NotStarted(error.to_string());
            let _ = self.reports.send(Report::Exit(Exit { run, outcome, last_words: String::new() }));
        }
    }
}

/// Allows this process as many descriptors as it may have, and returns what was usual before.
///
/// The usual limit is low only for the sake of programs that use select(2). A running command takes two here.
fn raise_limit() -> Rlimit {
    static USUAL: OnceLock<Rlimit> = OnceLock::new();
    *USUAL.get_or_init(|| {
        let usual = getrlimit(Resource::Nofile);
        // It may always be raised that far (getrlimit(2)).
        let _ = setrlimit(Resource::Nofile, Rlimit { current: usual.maximum, ..usual });
        usual
    })
}

/// Runs a command to its end and returns its process group, if it could be started, how it ended, and its last words.
fn execute(run: &Run, limit: Option<Duration>, reports: &Sender<Report>) -> (Option<Pid>, Outcome, String) {
    let child = Command::new("/bin/sh")
        // The name in front of the shell's own messages.
        .arg0("sh")
        .arg("-c")
        .arg(&*run.command)
        .stdin(Stdio::null())
        .stdout(Stdio::inherit())
        .stderr(Stdio::piped())
        .process_group(0)
        // They concern us alone: a command is no part of the service's protocol.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_PID")
        .env_remove("WATCHDOG_USEC")
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return (None, Outcome::NotStarted(error.to_string()), String::new()),
    };
    let group = Pid::from_child(&child);
    // As whoever started us wanted it to be. A command that ended at once has none any more.
    let _ = prlimit(Some(group), Resource::Nofile, raise_limit());
    let stderr = child.stderr.take().map(Stderr::copy);
    watch(&child, run, limit, reports);
    let outcome = match child.wait() {
        Ok(status) => Outcome::of(status),
        Err(error) => Outcome::NotStarted(error.to_string()),
    };
    let last_words = match outcome {
        Outcome::Status(0) => None,
        _ => stderr.map(Stderr::last_words),
    };
    (Some(group), outcome, last_words.unwrap_or_default())
}

/// Waits for what the command has left in the background, as long as that is ours to do.
///
/// It is when we are process 1, as in a container: whoever has lost his parent becomes our child, and without this stays as
/// a zombie when he ends. To anybody else's child the system answers at once that there is none.
fn reap(group: Pid) {
    while matches!(waitpgid(group, WaitOptions::empty()), Ok(_) | Err(Errno::INTR)) {}
}

/// Waits until the command has ended, reports it when that takes long, and ends its process group when it takes too long.
fn watch(child: &Child, run: &Run, limit: Option<Duration>, reports: &Sender<Report>) {
    // Without pidfds (Linux before 5.3) there is neither report nor limit; the caller waits all the same.
    let Ok(pidfd) = pidfd_open(Pid::from_child(child), PidfdFlags::empty()) else { return };
    let ends_within = |time: Duration| loop {
        let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
        let time = Timespec::try_from(time).ok();
        match poll(&mut polled, time.as_ref()) {
            Err(Errno::INTR) => {}
            // When it cannot be known, the caller's wait decides.
            Err(_) => return true,
            Ok(ready) => return ready > 0,
        }
    };
    let first = limit.map_or(LONG, |limit| limit.min(LONG));
    if ends_within(first) {
        return;
    }
    if first == LONG {
        let _ = reports.send(Report::Long(run.clone()));
    }
    let Some(limit) = limit else { return };
    if ends_within(limit.saturating_sub(first)) {
        return;
    }
    let _ = reports.send(Report::Limit(run.clone()));
    // The process has not been waited for, so its number is still its own.
    let group = Pid::from_child(child);
    let _ = kill_process_group(group, Signal::TERM);
    ends_within(GRACE);
    // Also when the shell has ended: others of its group may have paid no attention.
    let _ = kill_process_group(group, Signal::KILL);
}

impl Outcome {
    fn of(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Status(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::NotStarted(format!("it ended in an unknown way: {status}")),
        }
    }
}

/// A command's stderr while it is being copied to ours.
struct Stderr {
    tail: Arc<Mutex<Tail>>,
    /// Disconnects when the pipe is closed.
    closed: Receiver<()>,
}

/// The last line of a stream that is not blank.
#[derive(Default)]
struct Tail {
    last: Vec<u8>,
    current: Vec<u8>,
}

impl Stderr {
    fn copy(mut pipe: ChildStderr) -> Self {
        let (closing, closed) = crossbeam_channel::bounded(0);
        let tail = Arc::new(Mutex::new(Tail::default()));
        let shared = Arc::clone(&tail);
        let thread = thread::Builder::new().name("command-stderr".to_owned());
        // Without the thread the pipe is closed at once: the command then cannot write to it, but still runs.
        let _ = thread.spawn(move || {
            let _closing = closing;
            let mut buffer = [0; 4096];
            let ours = Output::new(io::stderr());
            while let Ok(length @ 1..) = read(&mut pipe, &mut buffer) {
                let chunk = buffer.get(..length).unwrap_or_default();
                // Ours may be closed or stuck; the command must be able to go on writing all the same.
                ours.write(chunk);
                shared.lock().unwrap_or_else(PoisonError::into_inner).push(chunk);
            }
        });
        Self { tail, closed }
    }

    fn last_words(self) -> String {
        match self.closed.recv_timeout(LAST_WORDS) {
            Ok(()) | Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {}
        }
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).line()
    }
}

fn read(pipe: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match pipe.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl Tail {
    fn push(&mut self, chunk: &[u8]) {
        for &byte in chunk {
            if byte == b'\n' {
                if !self.current.trim_ascii().is_empty() {
                    std::mem::swap(&mut self.last, &mut self.current);
                }
                self.current.clear();
            } else if self.current.len() < LINE_LIMIT {
                self.current.push(byte);
            }
        }
    }

    fn line(&self) -> String {
        let unfinished = self.current.trim_ascii();
        let line = if unfinished.is_empty() { self.last.trim_ascii() } else { unfinished };
        String::from_utf8_lossy(line).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }
}

#[cfg(test)]
mod tests {
    use knockd_core::{DoorName, LeaseId, RunKind};

    use super::*;

    /// Time enough for a shell to begin, also on a busy machine.
    const LIMIT: Duration = Duration::from_secs(2);

    fn exit_within(command: &str, limit: Option<Duration>) -> Exit {
        let (runner, reports) = Runner::new();
        let (id, kind, door) = (LeaseId(1), RunKind::Start, DoorName::new("door").unwrap());
        let source = "192.0.2.1".parse().unwrap();
        runner.start(Run { id, kind, door, source, command: command.into() }, limit);
        loop {
            if let Report::Exit(exit) = reports.recv_timeout(Duration::from_secs(30)).unwrap() {
                return exit;
            }
        }
    }

    fn exit_of(command: &str) -> Exit {
        exit_within(command, None)
    }

    #[test]
    fn the_status_and_the_last_line_on_stderr_are_reported() {
        let exit = exit_of("printf 'one\\n\\033two\\n\\n' >&2; exit 3");
        assert_eq!((exit.outcome, exit.last_words.as_str()), (Outcome::Status(3), " two"));
        assert_eq!(exit_of("true").outcome, Outcome::Status(0));
    }

    #[test]
    fn commands_have_the_limit_of_descriptors_that_we_were_started_with() {
        let usual = raise_limit();
        assert_eq!(getrlimit(Resource::Nofile).current, usual.maximum);
        let exit = exit_of("sleep 1; ulimit -Sn >&2; false");
        assert_eq!(exit.last_words.parse().ok(), usual.current);
    }

    #[test]
    fn a_signal_is_told_from_a_status() {
        assert_eq!(exit_of("kill -9 $$").outcome, Outcome::Signal(9));
    }

    #[test]
    fn a_command_ends_with_its_shell_not_with_its_pipes() {
        let exit = exit_of("echo early >&2; sleep 5 & exit 1");
        assert_eq!((exit.outcome, exit.last_words.as_str()), (Outcome::Status(1), "early"));
    }

    #[test]
    fn of_a_long_line_the_beginning_is_kept() {
        let mut tail = Tail::default();
        for _ in 0..LINE_LIMIT {
            tail.push(b"xyz");
        }
        assert_eq!((tail.line().len(), tail.current.len()), (LINE_LIMIT, LINE_LIMIT));
        tail.push(b"\n\n  \n");
        assert_eq!(tail.line().len(), LINE_LIMIT);
        tail.push(b"short\n");
        assert_eq!(tail.line(), "short");
    }

    #[test]
    fn a_command_that_runs_too_long_is_ended_with_all_its_processes() {
        let exit = exit_within("sleep 60 & echo $! >&2; wait", Some(LIMIT));
        assert_eq!(exit.outcome, Outcome::Signal(15));
        assert!(is_soon_gone(exit.last_words.parse().unwrap()));
    }

    #[test]
    fn a_command_that_ignores_the_signal_is_killed_and_so_are_its_children_that_do() {
        let exit = exit_within("trap '' TERM; sleep 60", Some(LIMIT));
        assert_eq!(exit.outcome, Outcome::Signal(9));
        let child = "(trap '' TERM; while :; do sleep 60; done) & echo $! >&2; wait";
        let exit = exit_within(child, Some(LIMIT));
        assert_eq!(exit.outcome, Outcome::Signal(15));
        assert!(is_soon_gone(exit.last_words.parse().unwrap()));
    }

    /// A child of a command becomes somebody else's; it is gone as soon as that has noticed.
    fn is_soon_gone(child: i32) -> bool {
        let gone = || !std::path::Path::new(&format!("/proc/{child}/status")).exists() || is_zombie(child);
        (0..100).any(|_| {
            thread::sleep(Duration::from_millis(20));
            gone()
        })
    }

    fn is_zombie(pid: i32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains("State:\tZ")
    }
}
