//! Commands within their limits: which run, which wait, and what comes of them.

use std::collections::VecDeque;
use std::time::Duration;

use knockd_core::config::Options;
use knockd_core::{LeaseId, Run, RunKind};

use super::Executor;
use crate::leases::commands::{Ended, ExitReason};
use crate::log::{Line, Log};
use crate::system::{programs, unit};

/// How many start commands wait while `MaxCommands` are running; a further knock runs nothing.
const MAX_WAITING: usize = 4096;

/// How many stop commands run at a time, so that many doors closing at once exhaust neither processes nor
/// descriptors. `MaxCommands` may be 1, and a stop command that hangs must not prevent the others from closing their
/// doors.
const MAX_STOPPING: u32 = 256;

/// The exit statuses of a shell that cannot execute or find a command's program (POSIX.1-2024, section 2.8.2).
const CANNOT_EXECUTE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// Commands of one kind, with a limit on how many run at a time.
#[derive(Default, Debug)]
pub(super) struct CommandQueue {
    pub(super) running: u32,
    pub(super) waiting: VecDeque<Run>,
}

impl Executor {
    pub(super) fn say_running(&mut self, run: &Run, log: &Log) {
        self.tally.run += 1;
        log.write(&Line::running(run));
    }

    pub(super) fn refuse(&mut self, id: LeaseId) {
        self.starting.end(id);
        self.refused.push(id);
    }

    /// Runs a start command, or queues it until another one ends.
    pub(super) fn start_command(&mut self, run: Run, options: &Options, log: &Log) {
        let running = self.starts.running;
        if self.is_closing {
            self.refuse(run.id);
        } else if running < options.max_commands.get() {
            self.starts.running += 1;
            self.run(run, options, log);
        } else if self.starts.waiting.len() < MAX_WAITING {
            log.write(&Line::queued(&run, running));
            self.starts.waiting.push_back(run);
        } else {
            log.write(&Line::not_run(&run, MAX_WAITING));
            self.refuse(run.id);
        }
    }

    /// Runs start commands that wait, as many at a time as allowed.
    pub(crate) fn run_start_commands(&mut self, options: &Options, log: &Log) {
        while self.starts.running < options.max_commands.get()
            && let Some(next) = self.starts.waiting.pop_front()
        {
            self.start_command(next, options, log);
        }
    }

    /// Runs stop commands, as many at a time as allowed. At most one per lease waits.
    pub(super) fn run_stop_commands(&mut self, options: &Options, log: &Log) {
        while self.stops.running < MAX_STOPPING
            && let Some(run) = self.stops.waiting.pop_front()
        {
            self.stops.running += 1;
            log.write(&Line::command_timeout(run.source, &run.door));
            self.run(run, options, log);
        }
    }

    fn run(&mut self, run: Run, options: &Options, log: &Log) {
        let limit = options.command_limit.map(|seconds| Duration::from_secs(seconds.get().into()));
        if self.starting.prepare(&run) && self.state.is_some() {
            return self.runner.prepare(run, limit);
        }
        self.starting.begin(run.id);
        self.say_running(&run, log);
        self.runner.start(run, limit);
    }

    pub(super) fn handle_exit(&mut self, exit: &Ended, options: &Options, log: &Log) -> (LeaseId, bool) {
        let Ended { run, reason, message } = exit;
        if self.starting.end(run.id).is_some() {
            // There was no shell, or it found an error before it executed anything.
            self.say_running(run, log);
        }
        if let Some(problem) = reason.problem() {
            self.tally.failed += 1;
            log.write(&Line::failed(run, &problem));
            self.last_failure = exit.problem().unwrap_or_default();
            if !message.is_empty() {
                log.write(&Line::words(run, message));
            }
            let signal = if let ExitReason::Signal(signal) = reason { Some(*signal) } else { None };
            if let Some((unit, setting)) = unit::suspect(message, signal) {
                log.write(&Line::restricted(run, &unit, setting));
            }
            if let ExitReason::Status(CANNOT_EXECUTE | NOT_FOUND) = reason
                && let Some(program) = programs::missing(&run.command)
            {
                log.write(&Line::missing_program(run, program));
            }
        }
        match run.kind {
            RunKind::Stop => {
                self.stops.running -= 1;
                self.run_stop_commands(options, log);
            }
            RunKind::Start => {
                self.starts.running -= 1;
                self.run_start_commands(options, log);
            }
        }
        (run.id, *reason == ExitReason::Status(0))
    }
}
