//! The thread that serves all commands: what it waits for, and what it does about it.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use knockd_core::{LeaseId, Run};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};

use super::identity::Place;
use super::process::Shell;
use super::stderr::Words;
use super::{Ended, ExitReason, Job, Report, RunnerSettings, process};

/// How long to wait for the last stderr output after a shell failed. Only a command that left a process in the
/// background, which still holds the pipe, takes that long.
const MESSAGE_WAIT: Duration = Duration::from_secs(1);

/// How long a command has to exit by itself after it exceeded its `CommandLimit`.
const GRACE: Duration = Duration::from_secs(2);

/// How many pipes of ended commands stay open because a process in the background holds them. One more closes the
/// oldest: that process's next write fails or kills it (SIGPIPE).
const LEFT_PIPES: usize = 64;

/// How often to check whether a shell without a pidfd has ended.
const LOOK: Duration = Duration::from_millis(100);

/// How often process 1 checks whether background processes of commands have ended, while there are any.
const REAP: Duration = Duration::from_secs(1);

/// How many descriptors are handled at a time.
const BATCH: usize = 64;

/// How much is read from a pipe at a time.
const CHUNK: usize = 4096;

/// How many chunks of an ended command are read at once: as much as a pipe holds (pipe(7)).
const FULL_PIPE: usize = 16;

/// The thread's state. Each command has a number, under which epoll(7) reports both its descriptors.
pub(super) struct CommandThread {
    settings: RunnerSettings,
    jobs: Receiver<Job>,
    /// `None` once nobody is left who could start a command.
    wake: Option<PipeReader>,
    reports: Sender<Report>,
    /// The pidfds of running shells.
    exits: OwnedFd,
    /// The pipes of `pipes`.
    readable: OwnedFd,
    running: BTreeMap<u64, Running>,
    /// Commands and their background processes write to these.
    pipes: BTreeMap<u64, File>,
    /// The numbers in `pipes` whose command has ended, oldest first.
    left: VecDeque<u64>,
    /// Process groups of ended commands with processes that became our children. Each has a living process.
    groups: Vec<Pid>,
    /// When to check them next.
    next_reap: Option<Instant>,
    /// The number of the latest command.
    last: u64,
    /// Where our processes are.
    place: Option<Place>,
}

/// A command whose end has not been reported.
struct Running {
    run: Run,
    shell: Child,
    /// What the shell waits for before it executes the command.
    waits: Option<OwnedFd>,
    pidfd: Option<OwnedFd>,
    words: Words,
    /// How long it may run.
    limit: Option<Duration>,
    /// When that is over.
    end: Option<Instant>,
    /// What to do next, unless the command ends first.
    next: Option<(Instant, Deadline)>,
    /// Whether its processes have been told to terminate.
    is_ending: bool,
    /// How it ended, while the thread waits for its last words.
    reason: Option<ExitReason>,
}

/// The steps in the life of a command, in order, each with a time.
#[derive(Clone, Copy)]
enum Deadline {
    ReportLong,
    End,
    Kill,
    /// The wait for its last words is over.
    ReportExit,
}

impl CommandThread {
    /// Sets up the thread's state. `wake` wakes it; the other end of `wake` is closed after the sender of `jobs`.
    pub(super) fn new(
        settings: RunnerSettings,
        jobs: Receiver<Job>,
        wake: PipeReader,
        reports: Sender<Report>,
    ) -> io::Result<Self> {
        Ok(Self {
            settings,
            jobs,
            wake: Some(wake),
            reports,
            exits: epoll::create(CreateFlags::CLOEXEC)?,
            readable: epoll::create(CreateFlags::CLOEXEC)?,
            running: BTreeMap::new(),
            pipes: BTreeMap::new(),
            left: VecDeque::new(),
            groups: Vec::new(),
            next_reap: None,
            last: 0,
            place: Place::here(),
        })
    }

    /// Runs commands until nobody is left who could start one, and all have ended.
    pub(super) fn run(mut self) {
        while self.wake.is_some() || !self.running.is_empty() {
            self.wait();
            self.do_jobs();
            self.copy_stderr();
            self.handle_exits();
            self.handle_timeout(Instant::now());
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) {
        let sink = &self.settings.sink;
        let look = self.running.values().any(Running::is_without_notice).then_some(LOOK);
        let deadlines = self.running.values().filter_map(|command| command.next.map(|(at, _)| at));
        let deadline = deadlines.chain(sink.deadline()).chain(self.next_reap).min();
        let time = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let time = time.into_iter().chain(look).min().and_then(|time| Timespec::try_from(time).ok());
        let mut polled = vec![PollFd::new(&self.exits, PollFlags::IN)];
        polled.extend(self.wake.as_ref().map(|wake| PollFd::new(wake, PollFlags::IN)));
        polled.push(if sink.is_waiting() {
            PollFd::new(sink, PollFlags::OUT)
        } else {
            PollFd::new(&self.readable, PollFlags::IN)
        });
        // Whatever the result, checking does no harm.
        let _ = poll(&mut polled, time.as_ref());
    }

    fn do_jobs(&mut self) {
        // The pipe is emptied before the channel, so nothing is left without a wake-up.
        if let Some(wake) = &mut self.wake
            && matches!(wake.read(&mut [0; BATCH]), Ok(0))
        {
            self.wake = None;
        }
        while let Ok(job) = self.jobs.try_recv() {
            match job {
                Job::Start { run, limit, waits } => self.start(run, limit, waits),
                Job::Go(id) => {
                    let long = self.settings.long;
                    self.of_lease(id).for_each(|command| command.go(long));
                }
                Job::End(id) => self.of_lease(id).for_each(|command| command.end(Instant::now())),
            }
        }
    }

    fn start(&mut self, run: Run, limit: Option<Duration>, waits: bool) {
        let Shell { child: shell, stderr, waits } = match process::spawn(&run.command, waits) {
            Ok(started) => started,
            Err(error) => {
                return self.report_exit(run, ExitReason::NotStarted(error.to_string()), String::new());
            }
        };
        self.last += 1;
        let pidfd = if self.settings.uses_pidfds { process::watch(&shell) } else { None };
        let pidfd = pidfd.filter(|pidfd| add(&self.exits, pidfd, self.last));
        if let Some(pipe) = stderr.filter(|pipe| add(&self.readable, pipe, self.last)) {
            self.pipes.insert(self.last, pipe);
        }
        let (id, number) = (run.id, shell.id());
        let (words, end, next) = (Words::default(), None, None);
        let mut command =
            Running { run, shell, waits, pidfd, words, limit, end, next, is_ending: false, reason: None };
        if command.waits.is_some() {
            let process = self.place.and_then(|place| place.identify(number));
            let _ = self.reports.send(Report::Waits(id, process));
        } else {
            command.go(self.settings.long);
        }
        self.running.insert(self.last, command);
    }

    /// Returns the command of a lease that has not been reported as ended.
    fn of_lease(&mut self, id: LeaseId) -> impl Iterator<Item = &mut Running> {
        self.running.values_mut().filter(move |command| command.run.id == id)
    }

    /// Copies the stderr of commands to ours, as long as ours takes it.
    fn copy_stderr(&mut self) {
        self.settings.sink.flush(Instant::now());
        for number in ready(&self.readable) {
            if self.settings.sink.is_waiting() {
                return;
            }
            self.copy(number, 1);
        }
    }

    /// Copies up to this many chunks of a command's stderr.
    fn copy(&mut self, number: u64, chunks: usize) {
        let mut buffer = [0; CHUNK];
        for _ in 0..chunks {
            let Some(pipe) = self.pipes.get_mut(&number) else { return };
            match pipe.read(&mut buffer) {
                Ok(length @ 1..) => {
                    let chunk = buffer.get(..length).unwrap_or_default();
                    if let Some(command) = self.running.get_mut(&number) {
                        command.words.push(chunk);
                    }
                    self.settings.sink.write(chunk, Instant::now());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => {
                    self.close(number);
                    if self.running.get(&number).is_some_and(|command| command.reason.is_some()) {
                        self.finish(number);
                    }
                    return;
                }
            }
        }
    }

    fn handle_exits(&mut self) {
        let mut numbers = ready(&self.exits);
        let unnoticed = self.running.iter().filter(|(_, command)| command.is_without_notice());
        numbers.extend(unnoticed.map(|(number, _)| number));
        for number in numbers {
            self.handle_exit(number);
        }
    }

    /// Reaps a shell if it has ended.
    fn handle_exit(&mut self, number: u64) {
        let Some(command) = self.running.get_mut(&number) else { return };
        if command.reason.is_some() || !process::has_ended(&command.shell) {
            return;
        }
        if command.is_ending {
            // Other processes of its group may have ignored the signal.
            process::signal(&command.shell, Signal::KILL);
        }
        let reason = match command.shell.wait() {
            Ok(status) => ExitReason::of(status),
            Err(error) => ExitReason::NotStarted(error.to_string()),
        };
        if let Some(pidfd) = command.pidfd.take() {
            // A process that is just being started may hold it a moment longer.
            let _ = epoll::delete(&self.exits, pidfd);
        }
        let group = Pid::from_child(&command.shell);
        if process::reap(group) {
            self.groups.push(group);
            self.next_reap.get_or_insert_with(|| Instant::now() + REAP);
        }
        self.copy(number, FULL_PIPE);
        let is_complete = reason == ExitReason::Status(0) || !self.pipes.contains_key(&number);
        if let Some(command) = self.running.get_mut(&number) {
            command.reason = Some(reason);
            command.next = Some((Instant::now() + MESSAGE_WAIT, Deadline::ReportExit));
        }
        if is_complete {
            self.finish(number);
        }
    }

    /// Does everything that is due.
    fn handle_timeout(&mut self, now: Instant) {
        self.settings.sink.flush(now);
        let due = |command: &Running| command.next.filter(|(at, _)| *at <= now).map(|(_, step)| step);
        let steps = self.running.iter().filter_map(|(number, command)| Some((*number, due(command)?)));
        for (number, step) in steps.collect::<Vec<_>>() {
            self.take(step, number, now);
        }
        if self.next_reap.is_some_and(|at| at <= now) {
            self.groups.retain(|group| process::reap(*group));
            self.next_reap = (!self.groups.is_empty()).then_some(now + REAP);
        }
    }

    fn take(&mut self, step: Deadline, number: u64, now: Instant) {
        let Some(command) = self.running.get_mut(&number) else { return };
        match step {
            Deadline::ReportLong => {
                command.next = command.end.map(|end| (end, Deadline::End));
                let _ = self.reports.send(Report::Long(command.run.clone()));
            }
            Deadline::End => {
                let _ = self.reports.send(Report::Limit(command.run.clone()));
                command.end(now);
            }
            Deadline::Kill => {
                command.next = None;
                process::signal(&command.shell, Signal::KILL);
            }
            Deadline::ReportExit => {
                // Even if our own stderr takes nothing.
                self.copy(number, FULL_PIPE);
                self.finish(number);
            }
        }
    }

    /// Reports how a command ended. Its background processes may still hold its pipe.
    fn finish(&mut self, number: u64) {
        let Some(Running { run, reason: Some(reason), words, .. }) = self.running.remove(&number) else {
            return;
        };
        let message = if reason == ExitReason::Status(0) { String::new() } else { words.text() };
        self.report_exit(run, reason, message);
        if self.pipes.contains_key(&number) {
            self.left.push_back(number);
            if self.left.len() > LEFT_PIPES
                && let Some(oldest) = self.left.pop_front()
            {
                self.close(oldest);
            }
        }
    }

    fn close(&mut self, number: u64) {
        if let Some(pipe) = self.pipes.remove(&number) {
            let _ = epoll::delete(&self.readable, pipe);
            self.left.retain(|left| *left != number);
        }
    }

    fn report_exit(&self, run: Run, reason: ExitReason, message: String) {
        // The engine is gone only when the process is about to exit.
        let _ = self.reports.send(Report::Ended(Ended { run, reason, message }));
    }
}

impl Running {
    /// Lets the shell execute its command; its time begins.
    fn go(&mut self, long: Duration) {
        self.waits.take().iter().for_each(process::go);
        let now = Instant::now();
        let long = now + long;
        self.end = self.limit.and_then(|limit| now.checked_add(limit));
        if !self.is_ending && self.reason.is_none() {
            self.next = Some(match self.end {
                Some(end) if end < long => (end, Deadline::End),
                _ => (long, Deadline::ReportLong),
            });
        }
    }

    /// Tells all its processes to terminate, and kills them later.
    fn end(&mut self, now: Instant) {
        if self.reason.is_none() {
            self.is_ending = true;
            self.next = Some((now + GRACE, Deadline::Kill));
            process::signal(&self.shell, Signal::TERM);
        }
    }

    /// Says whether nothing announces its end.
    const fn is_without_notice(&self) -> bool {
        self.pidfd.is_none() && self.reason.is_none()
    }
}

/// Watches a command's descriptor for readability.
fn add(epoll: &OwnedFd, descriptor: impl AsFd, number: u64) -> bool {
    epoll::add(epoll, descriptor, EventData::new_u64(number), EventFlags::IN).is_ok()
}

/// Returns the commands that have a ready descriptor.
fn ready(epoll: &OwnedFd) -> Vec<u64> {
    let mut events = Vec::with_capacity(BATCH);
    let _ = epoll::wait(epoll, spare_capacity(&mut events), Some(&Timespec::default()));
    events.into_iter().map(|event| event.data.u64()).collect()
}
