//! Runs commands: the only place that executes anything.

use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use knockd_core::Run;

/// How long to wait, after a shell has exited, for what it last said on stderr. Only a command that left a process in the
/// background, which still holds the pipe, makes us wait that long.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// The most that is kept of a line on stderr, in bytes.
const LINE_LIMIT: usize = 512;

/// A command that has ended, or could not begin.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) run: Run,
    pub(crate) outcome: Outcome,
    /// The last line on the command's stderr that is not blank, without control characters; empty if there is none.
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

/// Starts commands, each in a thread of its own, and reports their ends.
#[derive(Debug)]
pub(crate) struct Runner {
    exits: Sender<Exit>,
}

impl Runner {
    /// Makes a runner and the channel on which it reports.
    pub(crate) fn new() -> (Self, Receiver<Exit>) {
        let (exits, reports) = crossbeam_channel::unbounded();
        (Self { exits }, reports)
    }

    /// Runs a command with `/bin/sh -c` and returns at once; exactly one [`Exit`] follows.
    ///
    /// The command gets our stdout, its stderr is copied to ours, its stdin is empty. It has a process group of its own, so
    /// that a signal to ours does not end it. It has ended when its shell has exited, whatever that left behind.
    pub(crate) fn start(&self, run: Run) {
        let exits = self.exits.clone();
        let job = run.clone();
        let thread = thread::Builder::new().name("command".to_owned());
        let started = thread.spawn(move || {
            let exit = execute(job);
            // The engine is gone only when the process is about to end.
            let _ = exits.send(exit);
        });
        if let Err(error) = started {
            let outcome = Outcome::NotStarted(error.to_string());
            let _ = self.exits.send(Exit { run, outcome, last_words: String::new() });
        }
    }
}

fn execute(run: Run) -> Exit {
    let child = Command::new("/bin/sh")
        .arg("-c")
        .arg(&run.command)
        .stdin(Stdio::null())
        .stdout(Stdio::inherit())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            let outcome = Outcome::NotStarted(error.to_string());
            return Exit { run, outcome, last_words: String::new() };
        }
    };
    let stderr = child.stderr.take().map(Stderr::copy);
    let outcome = match child.wait() {
        Ok(status) => Outcome::of(status),
        Err(error) => Outcome::NotStarted(error.to_string()),
    };
    let last_words = stderr.map(Stderr::last_words).unwrap_or_default();
    Exit { run, outcome, last_words }
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
            while let Ok(length @ 1..) = read(&mut pipe, &mut buffer) {
                let chunk = buffer.get(..length).unwrap_or_default();
                // Ours may be closed; the command must be able to go on writing all the same.
                let _ = io::stderr().write_all(chunk);
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
    use knockd_core::config::{Commands, Secret};
    use knockd_core::{CommandTemplate, Door, Leases, Timestamp};

    use super::*;

    fn exit_of(command: &str) -> Exit {
        let (runner, exits) = Runner::new();
        let mut door = Door::new("door", Secret::Sequence("1".parse().unwrap()));
        door.start = CommandTemplate::parse(command).map(Commands::both).unwrap();
        let source = "192.0.2.1".parse().unwrap();
        runner.start(Leases::new().open(&door, source, Timestamp::ZERO).unwrap());
        exits.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    #[test]
    fn the_status_and_the_last_line_on_stderr_are_reported() {
        let exit = exit_of("printf 'one\\n\\033two\\n\\n' >&2; exit 3");
        assert_eq!((exit.outcome, exit.last_words.as_str()), (Outcome::Status(3), " two"));
        assert_eq!(exit_of("true").outcome, Outcome::Status(0));
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
}
