//! The doors that are open: what their leases ask for is carried out here, within the limits on commands.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};
use knockd_core::config::{OnExit, Options};
use knockd_core::{Door, Effect, Full, LeaseId, LeaseKey, Leases, Run, RunKind, Timestamp};
use signal_hook::consts::SIGHUP;

use crate::control;
use crate::leases::commands::{Exit, Outcome, Report, Runner};
use crate::leases::programs;
use crate::leases::store::{LeaseStore, Restored};
use crate::leases::writer::Writer;
use crate::log::{Line, Log};
use crate::system::clock::Clock;

/// How long the stop commands of open doors may take when the daemon ends.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// How many start commands wait while `MaxCommands` are running; a knock that comes then runs nothing.
const MAX_WAITING: usize = 4096;

/// How many stop commands run at a time: so many doors that close at once use up neither processes nor descriptors. `MaxCommands`
/// may be 1, and a stop command that hangs must not keep the others from closing their doors.
const MAX_STOPPING: u32 = 256;

/// The exit statuses of a shell that cannot execute the program of a command, or cannot find it (POSIX.1-2024, section 2.8.2).
const CANNOT_EXECUTE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// Opens and closes doors.
#[derive(Debug)]
pub(crate) struct Executor {
    leases: Leases,
    clock: Clock,
    runner: Runner,
    /// What became of commands; each has to be passed to [`Self::handle_report`].
    pub(crate) reports: Receiver<Report>,
    keeper: Writer,
    /// What the disk cannot do, in words, or that it can again; each has to be passed to [`Self::handle_problem`].
    pub(crate) problems: Receiver<Result<(), String>>,
    /// Where leases survive this process, if anywhere.
    state: Option<PathBuf>,
    /// Why they do not, or may not.
    state_problem: Option<String>,
    /// What was done so far.
    tally: control::Commands,
    /// Start commands and stop commands do not wait for each other.
    starts: Queue,
    stops: Queue,
}

/// Commands of one kind, of which only so many run at a time.
#[derive(Default, Debug)]
struct Queue {
    running: u32,
    waiting: VecDeque<Run>,
}

impl Executor {
    /// Starts the threads. Until [`Self::remember`] open doors are kept in memory only.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(clock: Clock) -> anyhow::Result<Self> {
        let (runner, reports) = Runner::new();
        let (keeper, problems) = Writer::start(runner.clone())?;
        Ok(Self {
            leases: Leases::new(),
            clock,
            runner,
            reports,
            keeper,
            problems,
            state: None,
            state_problem: None,
            tally: control::Commands::default(),
            starts: Queue::default(),
            stops: Queue::default(),
        })
    }

    /// Whether nothing is open and no command runs, so that the doors of an earlier run can be taken over.
    pub(crate) fn are_at_rest(&self) -> bool {
        self.leases.is_empty() && self.starts.running == 0
    }

    /// Remembers open doors there from now on, and takes over those that an earlier daemon left open; or logs why it cannot.
    /// The doors have to be at rest.
    pub(crate) fn remember(&mut self, state: anyhow::Result<LeaseStore>, log: &Log) {
        match state {
            Ok(state) => {
                let Restored { records, last_id, problems } = state.restore();
                for problem in problems {
                    log.write(&Line::warning(problem));
                }
                if !records.is_empty() {
                    let text = format!("open doors taken over from an earlier run: {}", records.len());
                    log.write(&Line::notice(text));
                }
                self.leases.restore(records, last_id);
                self.state = Some(state.path().to_owned());
                self.state_problem = None;
                self.keeper.remember(state);
            }
            Err(error) => {
                let text = format!("{error:#}; open doors are kept in memory only");
                log.write(&Line::warning(text.clone()));
                self.state_problem = Some(text);
            }
        }
    }

    /// Opens a door for a source that has knocked at it. `told` gets what comes of it.
    ///
    /// # Errors
    /// When too much is open already; that is logged.
    pub(crate) fn open(
        &mut self,
        door: &Door,
        source: IpAddr,
        options: &Options,
        log: &Log,
        told: impl FnOnce(&Result<Vec<Effect>, Full>),
    ) -> Result<(), Full> {
        let opened = self.leases.open(door, source, options.max_open, self.clock.now());
        told(&opened);
        opened.map(|effects| self.carry_out(effects, options, log)).inspect_err(|&full| {
            log.write(&Line::full(source, &door.name, full));
        })
    }

    /// Closes what is meant before its time, and returns how many leases that are.
    pub(crate) fn close(
        &mut self,
        is_meant: impl Fn(&LeaseKey) -> bool,
        options: &Options,
        log: &Log,
    ) -> usize {
        let (count, effects) = self.leases.close(is_meant);
        self.carry_out(effects, options, log);
        count
    }

    /// Keeps open what is meant, for that long or its own time, and returns how many leases that are.
    pub(crate) fn extend(
        &mut self,
        is_meant: impl Fn(&LeaseKey) -> bool,
        time: Option<Duration>,
        options: &Options,
        log: &Log,
    ) -> usize {
        let (count, effects) = self.leases.extend(is_meant, time, self.clock.now());
        self.carry_out(effects, options, log);
        count
    }

    /// What was done so far, and what is to be done.
    pub(crate) fn commands(&self) -> control::Commands {
        let starting = usize::try_from(self.starts.running).unwrap_or(usize::MAX);
        let waiting = self.starts.waiting.len() + self.stops.waiting.len();
        control::Commands { starting, waiting, ..self.tally }
    }

    /// Where leases are stored, if anywhere.
    pub(crate) fn state(&self) -> Option<&Path> {
        self.state.as_deref()
    }

    /// What is wrong with storing them.
    pub(crate) fn state_problem(&self) -> Option<&str> {
        self.state_problem.as_deref()
    }

    /// Takes note of what the disk cannot do, or that it can again.
    pub(crate) fn handle_problem(&mut self, problem: Result<(), String>, log: &Log) {
        self.state_problem = problem.err();
        self.state_problem.iter().for_each(|problem| log.write(&Line::warning(problem.clone())));
    }

    pub(crate) const fn leases(&self) -> &Leases {
        &self.leases
    }

    pub(crate) fn handle_report(&mut self, report: &Report, options: &Options, log: &Log) {
        match report {
            Report::Long(run) => log.write(&Line::long(run)),
            Report::Limit(run) => log.write(&Line::limit(run)),
            Report::Exit(exit) => self.handle_exit(exit, options, log),
        }
    }

    /// Runs the stop commands whose time has come; `told` gets them. Calling it early or twice is harmless.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Timestamp,
        options: &Options,
        log: &Log,
        told: impl FnOnce(&[Effect]),
    ) {
        let effects = self.leases.handle_timeout(now);
        told(&effects);
        self.carry_out(effects, options, log);
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` while no door waits for its end.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        self.leases.poll_timeout()
    }

    /// Ends: closes the doors or, if they are on disk and `OnExit` says so, leaves them to the next start; waits for the disk.
    ///
    /// Closing takes [`SHUTDOWN_LIMIT`] at most, and another SIGTERM cuts it short.
    pub(crate) fn finish(mut self, signals: &Receiver<i32>, options: &Options, log: &Log) {
        let keeps = options.on_exit == OnExit::Keep
            && self.state.is_some()
            && self.keeper.has_saved_all(SHUTDOWN_LIMIT);
        if !keeps {
            self.close_all(signals, options, log);
        } else if !self.leases.is_empty() {
            log.write(&Line::notice(format!(
                "doors that stay open until the next start: {}",
                self.leases.len()
            )));
        }
        self.keeper.finish();
    }

    fn close_all(&mut self, signals: &Receiver<i32>, options: &Options, log: &Log) {
        let effects = self.leases.close_all();
        self.carry_out(effects, options, log);
        // Nothing more is opened.
        for run in std::mem::take(&mut self.starts.waiting) {
            self.ended(run.id, false, options, log);
        }
        let end = Instant::now() + SHUTDOWN_LIMIT;
        while !self.leases.is_empty() {
            select! {
                recv(self.reports) -> report => if let Ok(report) = report { self.handle_report(&report, options, log); },
                recv(signals) -> signal => if !matches!(signal, Ok(SIGHUP)) { break },
                default(end.saturating_duration_since(Instant::now())) => break,
            }
        }
        if !self.leases.is_empty() {
            let left = self.leases.len();
            let text =
                format!("doors that are not closed yet, since their commands are still running: {left}");
            log.write(&Line::warning(text));
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>, options: &Options, log: &Log) {
        for effect in effects {
            match effect {
                Effect::Run(run) if run.kind == RunKind::Stop => {
                    self.stops.waiting.push_back(run);
                    self.run_stop_commands(options, log);
                }
                Effect::Run(run) if self.starts.running < options.max_commands.get() => {
                    self.start_command(run, options, log);
                }
                Effect::Run(run) => self.wait(run, options, log),
                effect => {
                    if let Effect::SetAside(_, key) = &effect {
                        self.tally.given_up += 1;
                        log.write(&Line::given_up(key));
                    }
                    self.tally.closed += u64::from(matches!(effect, Effect::Forget(_)));
                    self.keeper.carry_out(effect, None);
                }
            }
        }
    }

    /// Runs stop commands, as many at a time as there may be. No more wait than there are leases.
    fn run_stop_commands(&mut self, options: &Options, log: &Log) {
        while self.stops.running < MAX_STOPPING
            && let Some(run) = self.stops.waiting.pop_front()
        {
            self.stops.running += 1;
            self.tally.run += 1;
            log.write(&Line::command_timeout(run.source, &run.door));
            log.write(&Line::running(&run));
            self.runner.start(run, options.command_limit);
        }
    }

    /// Runs a start command, after everything on disk that it depends on.
    fn start_command(&mut self, run: Run, options: &Options, log: &Log) {
        self.starts.running += 1;
        self.tally.run += 1;
        log.write(&Line::running(&run));
        self.keeper.carry_out(Effect::Run(run), options.command_limit);
    }

    /// Lets a start command wait until another one has ended.
    fn wait(&mut self, run: Run, options: &Options, log: &Log) {
        let Run { id, door, .. } = &run;
        if self.starts.waiting.len() < MAX_WAITING {
            let running = self.starts.running;
            log.write(&Line::notice(format!(
                "{door}: the command waits, since {running} are running (`MaxCommands`)"
            )));
            self.starts.waiting.push_back(run);
        } else {
            let text = format!("{door}: the command is not run, since {MAX_WAITING} are waiting already");
            log.write(&Line::warning(text));
            self.ended(*id, false, options, log);
        }
    }

    fn handle_exit(&mut self, exit: &Exit, options: &Options, log: &Log) {
        let Exit { run, outcome, last_words } = exit;
        if let Some(line) = Line::failed(run, outcome) {
            self.tally.failed += 1;
            log.write(&line);
            if !last_words.is_empty() {
                log.write(&Line::last_words(run, last_words));
            }
            if let Outcome::Status(CANNOT_EXECUTE | NOT_FOUND) = outcome
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
                if let Some(next) = self.starts.waiting.pop_front() {
                    self.start_command(next, options, log);
                }
            }
        }
        self.ended(run.id, *outcome == Outcome::Status(0), options, log);
    }

    fn ended(&mut self, id: LeaseId, succeeded: bool, options: &Options, log: &Log) {
        let effects = self.leases.handle_exit(id, succeeded, self.clock.now());
        self.carry_out(effects, options, log);
    }
}
