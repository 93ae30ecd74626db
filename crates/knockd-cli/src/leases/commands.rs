//! Runs commands: nothing else in the program executes anything.
//!
//! One thread serves all commands. It waits only for new ones, for shells to end, for their stderr and for the
//! earliest deadline: neither a command nor a slow reader of our stderr can delay another command.

pub(super) mod identity;
pub(super) mod leftovers;
mod process;
mod stderr;
mod thread;

use std::io::{self, PipeWriter, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender};
use knockd_core::{LeaseId, ProcessId, Run};
use rustix::io::ioctl_fionbio;

use self::stderr::Sink;
use self::thread::CommandThread;

/// A command that runs this long is reported, once.
const LONG: Duration = Duration::from_secs(60);

/// A report about a command.
#[derive(Debug)]
pub(crate) enum Report {
    /// Its shell, which is this process if that is known, waits for [`Runner::go`].
    Waits(LeaseId, Option<ProcessId>),
    /// It has run for a minute and continues.
    Long(Run),
    /// It has reached `CommandLimit` and is being terminated.
    Limit(Run),
    Ended(Ended),
}

/// A command that ended, or could not start.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) run: Run,
    pub(crate) reason: ExitReason,
    /// The first and the last line on the command's stderr that say something, without control characters; empty if
    /// there is none or the command succeeded.
    pub(crate) message: String,
}

/// How a command ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ExitReason {
    Status(i32),
    Signal(i32),
    /// It could not start, for this reason.
    NotStarted(String),
}

impl ExitReason {
    fn of(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Status(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::NotStarted(format!("unknown exit status: {status}")),
        }
    }

    /// Says how the command failed, if it did.
    pub(crate) fn problem(&self) -> Option<String> {
        match self {
            Self::Status(0) => None,
            Self::Status(code) => Some(format!("command returned non-zero status code ({code})")),
            Self::Signal(signal) => Some(format!("command killed by signal {signal}")),
            Self::NotStarted(reason) => Some(format!("cannot start command: {reason}")),
        }
    }
}

impl Ended {
    /// Says how it failed and what it said, if it failed.
    pub(crate) fn problem(&self) -> Option<String> {
        let problem = self.reason.problem()?;
        Some(if self.message.is_empty() { problem } else { format!("{problem}: {}", self.message) })
    }
}

/// Something for the thread to do.
#[derive(Debug)]
enum Job {
    Start { run: Run, limit: Option<Duration>, waits: bool },
    Go(LeaseId),
    End(LeaseId),
}

/// Passes commands to the thread that runs them.
#[derive(Clone, Debug)]
pub(crate) struct Runner {
    jobs: Sender<Job>,
    /// Wakes the thread. It is closed after the channel, so the thread knows that nothing more will come.
    wake: Arc<PipeWriter>,
}

impl Runner {
    /// Starts the thread and returns the channel on which it reports. The thread ends when no runner is left and no
    /// command runs.
    ///
    /// A process has one such thread, which relies on being the only one that starts commands.
    ///
    /// # Errors
    /// When the system has no thread or descriptor left.
    pub(crate) fn new(is_in_background: bool) -> anyhow::Result<(Self, Receiver<Report>)> {
        let sink = stderr::ours(is_in_background).context("cannot start the command thread")?;
        Self::with(RunnerSettings { long: LONG, uses_pidfds: true, sink })
            .context("cannot start the command thread")
    }

    fn with(settings: RunnerSettings) -> io::Result<(Self, Receiver<Report>)> {
        let (incoming, wake) = io::pipe()?;
        ioctl_fionbio(&incoming, true)?;
        ioctl_fionbio(&wake, true)?;
        let (jobs, new_jobs) = crossbeam_channel::unbounded();
        let (reports, reported) = crossbeam_channel::unbounded();
        let thread = CommandThread::new(settings, new_jobs, incoming, reports)?;
        Builder::new().name("commands".to_owned()).spawn(move || thread.run())?;
        Ok((Self { jobs, wake: Arc::new(wake) }, reported))
    }

    /// Runs a command with `/bin/sh -c` and returns at once; exactly one [`Report::Ended`] follows.
    ///
    /// The command inherits our stdout, its stderr is copied to ours, and its stdin is empty. It has its own process
    /// group, so a signal to ours does not end it. It ends when its shell exits, whatever that leaves behind. When it
    /// has run for `limit`, its process group is terminated.
    pub(crate) fn start(&self, run: Run, limit: Option<Duration>) {
        self.send(Job::Start { run, limit, waits: false });
    }

    /// Starts the shell of a lease's command. It executes the command only after [`Self::go`], or never if this process
    /// ends before. [`Report::Waits`] comes before [`Report::Ended`], unless there is no shell.
    pub(crate) fn prepare(&self, run: Run, limit: Option<Duration>) {
        self.send(Job::Start { run, limit, waits: true });
    }

    /// Lets the shell of a lease's command go on; its time begins.
    pub(crate) fn go(&self, id: LeaseId) {
        self.send(Job::Go(id));
    }

    /// Terminates the process group of a lease's command. [`Report::Ended`] follows as usual.
    pub(crate) fn end(&self, id: LeaseId) {
        self.send(Job::End(id));
    }

    fn send(&self, job: Job) {
        // The thread lives as long as a runner does. A full pipe wakes it as well.
        let _ = self.jobs.send(job);
        let _ = (&*self.wake).write(&[0]);
    }
}

/// Differences for tests.
#[derive(Debug)]
struct RunnerSettings {
    long: Duration,
    uses_pidfds: bool,
    sink: Sink,
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::PipeReader;
    use std::thread;

    use knockd_core::{DoorName, LeaseId, RunKind};

    use super::*;

    /// Long enough for a shell to start, even on a busy machine.
    const LIMIT: Duration = Duration::from_secs(2);

    fn run(command: &str) -> Run {
        let (id, kind, door) = (LeaseId(1), RunKind::Start, DoorName::new("door").unwrap());
        let source = "192.0.2.1".parse().unwrap();
        Run { id, kind, door, source, command: command.parse().unwrap() }
    }

    fn next(reports: &Receiver<Report>) -> Report {
        reports.recv_timeout(Duration::from_secs(30)).unwrap()
    }

    fn next_exit(reports: &Receiver<Report>) -> Ended {
        loop {
            if let Report::Ended(exit) = next(reports) {
                return exit;
            }
        }
    }

    fn exit_within(command: &str, limit: Option<Duration>) -> Ended {
        let (runner, reports) = Runner::new(false).unwrap();
        runner.start(run(command), limit);
        next_exit(&reports)
    }

    fn exit_of(command: &str) -> Ended {
        exit_within(command, None)
    }

    fn settings() -> RunnerSettings {
        RunnerSettings { long: LONG, uses_pidfds: true, sink: stderr::ours(false).unwrap() }
    }

    /// A pipe as our stderr, and its other end.
    fn piped() -> (RunnerSettings, PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        (RunnerSettings { sink: Sink::new(writer.into()), ..settings() }, reader)
    }

    #[test]
    fn the_status_and_the_first_and_last_line_on_stderr_are_reported() {
        let exit = exit_of("printf 'one\\n\\033two\\n\\n' >&2; exit 3");
        assert_eq!((exit.reason, exit.message.as_str()), (ExitReason::Status(3), "one / two"));
        assert_eq!(exit_of("true").reason, ExitReason::Status(0));
    }

    #[test]
    fn a_command_that_cannot_be_started_is_reported_with_the_reason() {
        // One argument of exec(2) has at most 128 KiB.
        let exit = exit_of(&format!("true {}", "x".repeat(200_000)));
        let ExitReason::NotStarted(reason) = exit.reason else { panic!("{exit:?}") };
        assert!(reason.contains("Argument list too long"), "{reason}");
    }

    #[test]
    fn a_long_command_is_reported_once_and_goes_on() {
        let (runner, reports) =
            Runner::with(RunnerSettings { long: Duration::from_millis(10), ..settings() }).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("end");
        runner.start(run(&format!("while [ ! -e {} ]; do sleep 0.1; done; exit 7", file.display())), None);
        assert!(matches!(next(&reports), Report::Long(_)));
        File::create(&file).unwrap();
        let Report::Ended(exit) = next(&reports) else { panic!("it was reported twice") };
        assert_eq!(exit.reason, ExitReason::Status(7));
    }

    #[test]
    fn when_nobody_reads_our_stderr_no_command_waits_and_the_last_line_is_still_known() {
        let (settings, _reader) = piped();
        let (runner, reports) = Runner::with(settings).unwrap();
        let talk = "yes | head -n 1000000 >&2; echo told >&2; exit 3";
        for _ in 0..2 {
            runner.start(run(talk), None);
        }
        runner.start(run("true"), None);
        assert_eq!(next_exit(&reports).reason, ExitReason::Status(0));
        for _ in 0..2 {
            let exit = next_exit(&reports);
            assert_eq!((exit.reason, exit.message.as_str()), (ExitReason::Status(3), "y [...] told"));
        }
    }

    #[test]
    fn what_two_commands_say_at_once_is_copied_to_our_stderr_whole() {
        let (settings, mut reader) = piped();
        let (runner, reports) = Runner::with(settings).unwrap();
        for _ in 0..2 {
            // It all fits into the pipe, so a reader that comes late costs nothing.
            runner.start(run("yes | head -n 7000 >&2"), None);
        }
        drop(runner);
        // When the commands have ended, the thread ends and closes the pipe.
        assert_eq!(io::copy(&mut reader, &mut io::sink()).unwrap(), 2 * 14_000);
        for _ in 0..2 {
            assert_eq!(next_exit(&reports).reason, ExitReason::Status(0));
        }
    }

    #[test]
    fn without_pidfds_ends_are_noticed_and_limits_kept() {
        let (runner, reports) = Runner::with(RunnerSettings { uses_pidfds: false, ..settings() }).unwrap();
        runner.start(run("echo why >&2; exit 3"), None);
        let exit = next_exit(&reports);
        assert_eq!((exit.reason, exit.message.as_str()), (ExitReason::Status(3), "why"));
        runner.start(run("sleep 60 & echo $! >&2; wait"), Some(LIMIT));
        assert!(matches!(next(&reports), Report::Limit(_)));
        let exit = next_exit(&reports);
        assert_eq!(exit.reason, ExitReason::Signal(15));
        assert!(is_soon_gone(exit.message.parse().unwrap()));
    }

    /// Starts a shell that waits, and returns the report about that.
    fn prepare(command: &str, limit: Option<Duration>) -> (Runner, Receiver<Report>, ProcessId) {
        let (runner, reports) = Runner::new(false).unwrap();
        runner.prepare(run(command), limit);
        let Report::Waits(LeaseId(1), Some(process)) = next(&reports) else { panic!("it does not wait") };
        (runner, reports, process)
    }

    #[test]
    fn a_shell_that_waits_executes_nothing_before_it_may_go_on_and_its_time_begins_then() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        let command = format!("[ -e {} ] && exit 3", file.display());
        let (runner, reports, _) = prepare(&command, Some(LIMIT));
        // It has time to go wrong.
        assert!(reports.recv_timeout(LIMIT + Duration::from_millis(100)).is_err());
        File::create(&file).unwrap();
        runner.go(LeaseId(1));
        let Report::Ended(exit) = next(&reports) else { panic!("its time is over") };
        assert_eq!(exit.reason, ExitReason::Status(3));
    }

    #[test]
    fn a_shell_that_waits_ends_with_us_and_so_does_one_that_is_told_to() {
        let (runner, reports, process) = prepare("sleep 60", None);
        runner.end(LeaseId(1));
        assert_eq!(next_exit(&reports).reason, ExitReason::Signal(15));
        assert!(is_soon_gone(i32::try_from(process.number).unwrap()));
        // As when we die: the other end of the pipe is closed.
        let shell = process::spawn("sleep 60", true).unwrap();
        drop(shell.waits);
        let mut child = shell.child;
        assert_eq!(child.wait().unwrap().code(), Some(1));
    }

    #[test]
    fn a_syntax_error_ends_a_shell_that_waits() {
        let (_runner, reports, _) = prepare("if", None);
        assert_eq!(next_exit(&reports).reason, ExitReason::Status(2));
    }

    #[test]
    fn a_command_that_has_waited_is_like_any_other() {
        let command = "cat; echo $? $# $0 $$ >&2; exit 3";
        let (runner, reports, process) = prepare(command, None);
        runner.go(LeaseId(1));
        let exit = next_exit(&reports);
        assert_eq!(
            (exit.reason, exit.message),
            (ExitReason::Status(3), format!("0 0 sh {}", process.number))
        );
    }

    #[test]
    fn the_processes_of_a_command_that_is_ended_are_killed_if_they_ignore_the_signal() {
        let (runner, reports, process) = prepare("trap '' TERM; echo >&2; sleep 60 & sleep 60", None);
        runner.go(LeaseId(1));
        thread::sleep(Duration::from_millis(500));
        runner.end(LeaseId(1));
        assert!(matches!(next_exit(&reports).reason, ExitReason::Signal(9 | 15)));
        assert!(is_soon_gone(i32::try_from(process.number).unwrap()));
    }

    #[test]
    fn a_signal_is_told_from_a_status() {
        assert_eq!(exit_of("kill -9 $$").reason, ExitReason::Signal(9));
    }

    #[test]
    fn a_command_ends_with_its_shell_not_with_its_pipes() {
        let exit = exit_of("echo early >&2; sleep 5 & exit 1");
        assert_eq!((exit.reason, exit.message.as_str()), (ExitReason::Status(1), "early"));
    }

    #[test]
    fn a_command_that_runs_too_long_is_ended_with_all_its_processes() {
        let exit = exit_within("sleep 60 & echo $! >&2; wait", Some(LIMIT));
        assert_eq!(exit.reason, ExitReason::Signal(15));
        assert!(is_soon_gone(exit.message.parse().unwrap()));
    }

    #[test]
    fn a_command_that_ignores_the_signal_is_killed_and_so_are_its_children_that_do() {
        let exit = exit_within("trap '' TERM; sleep 60", Some(LIMIT));
        assert_eq!(exit.reason, ExitReason::Signal(9));
        let child = "(trap '' TERM; while :; do sleep 60; done) & echo $! >&2; wait";
        let exit = exit_within(child, Some(LIMIT));
        assert_eq!(exit.reason, ExitReason::Signal(15));
        assert!(is_soon_gone(exit.message.parse().unwrap()));
    }

    /// Another process adopts an orphan; the orphan disappears once that process reaps it.
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
