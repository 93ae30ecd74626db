//! Carries out the effects of the core's leases: on disk, and as commands within their limits.

mod queues;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::Receiver;
use knockd_core::config::Options;
use knockd_core::{Admission, BurnId, Effect, LeaseFilter, LeaseId, LeaseRecord, ProcessId, RunKind};

use self::queues::CommandQueue;
use super::commands::identity::boot_id;
use super::commands::{Report, Runner, leftovers};
use super::left_open::{AllLeftOpen, LeftOpen};
use super::one_time_file::StrikeError;
use super::starting::Starting;
use super::store::{LeaseStore, Restored};
use super::writer::{Change, Progress, Ticket, Writer};
use crate::firewall::Firewall;
use crate::log::{Line, Log};
use crate::system::helper::Rights;
use crate::system::text::count;

/// Stores leases and runs commands.
#[derive(Debug)]
pub(crate) struct Executor {
    /// Where relative paths start.
    directory: PathBuf,
    runner: Runner,
    /// Reports about commands; pass each to [`Self::handle_report`].
    pub(crate) reports: Receiver<Report>,
    writer: Writer,
    /// Progress of changes; pass each to [`Self::handle_progress`].
    pub(crate) progress: Receiver<Progress>,
    /// Lets knockers in, if any door wants that.
    firewall: Option<Firewall>,
    /// Where leases survive this process, if anywhere.
    state: Option<PathBuf>,
    /// Why they do not, or might not.
    state_problem: Option<String>,
    starting: Starting,
    /// Start commands and stop commands do not wait for each other.
    starts: CommandQueue,
    stops: CommandQueue,
    /// Commands that ended before they started, because too many were waiting or nothing is to open any more.
    refused: Vec<LeaseId>,
    /// Whether nothing is to open any more.
    is_closing: bool,
    tally: Tally,
    /// The run of the system, which every record gets.
    boot: Option<u128>,
    /// The leases that were opened in an earlier run of the system, until their door is opened anew.
    of_other_boot: BTreeSet<LeaseId>,
    /// How the stop command failed that has ended last: the gate may give it up at once.
    last_failure: String,
    left_open: AllLeftOpen,
}

/// Counters since startup.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Tally {
    /// Commands run.
    pub(crate) run: u64,
    /// Commands that failed.
    pub(crate) failed: u64,
    /// Doors closed by their stop command.
    pub(crate) closed: u64,
    /// Doors that may still be open because their stop command failed for good.
    pub(crate) given_up: u64,
}

impl Executor {
    /// Starts the threads. Until [`Self::remember`], open doors are kept only in memory.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(directory: PathBuf, is_in_background: bool, rights: Rights) -> anyhow::Result<Self> {
        let (runner, reports) = Runner::new(is_in_background)?;
        let (writer, progress) = Writer::start(rights)?;
        Ok(Self {
            directory,
            runner,
            reports,
            writer,
            progress,
            firewall: None,
            state: None,
            state_problem: None,
            starting: Starting::default(),
            starts: CommandQueue::default(),
            stops: CommandQueue::default(),
            refused: Vec::new(),
            is_closing: false,
            tally: Tally::default(),
            boot: boot_id(),
            of_other_boot: BTreeSet::new(),
            last_failure: String::new(),
            left_open: AllLeftOpen::default(),
        })
    }

    /// Says whether no start command runs or waits.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.starts.running == 0 && self.starting.is_empty()
    }

    /// Stores open doors there from now on, and returns those that an earlier daemon left open, after ending its start
    /// commands; or logs why it cannot.
    pub(crate) fn remember(&mut self, store: anyhow::Result<LeaseStore>, log: &Log) -> Restored {
        match store {
            Ok(store) => {
                let mut restored = store.restore();
                for problem in &restored.problems {
                    log.write(&Line::warning(problem.clone()));
                }
                if !restored.records.is_empty() {
                    let doors = count(restored.records.len(), "open door");
                    log.write(&Line::notice(format!("restored {doors}")));
                }
                leftovers::end_of(&restored.records, log);
                let boot = self.boot;
                let of_other_boot = restored.records.iter().filter(|record| record.is_of_other_boot(boot));
                self.of_other_boot = of_other_boot.map(|record| record.id).collect();
                restored.records = restored.records.into_iter().map(|record| record.in_boot(boot)).collect();
                let left_open = std::mem::take(&mut restored.left_open);
                if !left_open.is_empty() {
                    let doors = count(left_open.len(), "door");
                    let text = format!("{doors} may still be open; run: knockd status");
                    log.write(&Line::warning(text));
                }
                for (id, door) in left_open {
                    self.left_open.add(Some(id), door);
                }
                self.state = Some(store.path().to_owned());
                self.state_problem = None;
                self.writer.remember(store);
                restored
            }
            Err(error) => {
                let text = format!("{error:#}; keeping open doors in memory only");
                log.write(&Line::warning(text.clone()));
                self.state_problem = Some(text);
                Restored::default()
            }
        }
    }

    /// Returns where leases are stored, if anywhere.
    pub(crate) fn state(&self) -> Option<&Path> {
        self.state.as_deref()
    }

    /// Returns the problem with storing them.
    pub(crate) fn state_problem(&self) -> Option<&str> {
        self.state_problem.as_deref()
    }

    /// Returns the doors that may still be open although their time is over.
    pub(crate) const fn left_open(&self) -> &AllLeftOpen {
        &self.left_open
    }

    /// Forgets those that a person has dealt with, and returns how many there were.
    pub(crate) fn dismiss(&mut self, which: &LeaseFilter) -> usize {
        let dismissed = self.left_open.dismiss(which);
        for &id in dismissed.iter().flatten() {
            self.change(id, Change::Dismiss);
        }
        dismissed.len()
    }

    /// Returns the counters.
    pub(crate) const fn tally(&self) -> Tally {
        self.tally
    }

    /// Returns the number of running start commands and of waiting commands.
    pub(crate) fn commands(&self) -> (usize, usize) {
        let running = usize::try_from(self.starts.running).unwrap_or(usize::MAX);
        (running, self.starts.waiting.len() + self.stops.waiting.len())
    }

    /// Carries out an effect without blocking.
    pub(crate) fn carry_out(&mut self, effect: Effect, options: &Options, log: &Log) {
        match effect {
            Effect::Run(run) => match run.kind {
                RunKind::Start => {
                    self.of_other_boot.remove(&run.id);
                    self.start_command(run, options, log);
                }
                RunKind::Stop => {
                    self.stops.waiting.push_back(run);
                    self.run_stop_commands(options, log);
                }
            },
            Effect::Store(mut record) => {
                record.boot = self.boot;
                if let Some(record) = self.starting.take(record) {
                    self.change(record.id, Change::Store(record));
                }
            }
            Effect::Forget(id) => {
                self.tally.closed += 1;
                self.of_other_boot.remove(&id);
                self.change(id, Change::Forget);
            }
            Effect::SetAside(record) => self.set_aside(record, log),
            Effect::Burn(burn) => {
                self.writer.burn(burn.id, self.directory.join(&*burn.file), burn.line);
            }
            Effect::Admit(admission, time) => self.set(admission, Some(time)),
            Effect::Prolong(admission, time) => match &self.firewall {
                Some(firewall) => firewall.prolong(admission, time),
                None => self.refused.push(admission.id),
            },
            Effect::Look(admission) => match &self.firewall {
                Some(firewall) => firewall.look(admission),
                None => self.refused.push(admission.id),
            },
            Effect::Shut(admission) => self.set(admission, None),
            // Its record is on its way to disk, and a command does not know the deadline.
            Effect::EndMoved(..) => {}
        }
    }

    fn set(&mut self, admission: Admission, time: Option<Duration>) {
        match &self.firewall {
            Some(firewall) => firewall.set(admission, time),
            None => self.refused.push(admission.id),
        }
    }

    /// Guards the services of doors from now on.
    pub(crate) fn guard(&mut self, firewall: Firewall) {
        self.firewall = Some(firewall);
    }

    /// Returns what guards them, if anything.
    pub(crate) const fn firewall(&self) -> Option<&Firewall> {
        self.firewall.as_ref()
    }

    /// Handles the writer's progress; returns the one-time line that was struck out, or could not be.
    pub(crate) fn handle_progress(
        &mut self,
        progress: Progress,
        log: &Log,
    ) -> Option<(BurnId, Result<(), StrikeError>)> {
        match progress {
            Progress::Done(done) => {
                while let Some(run) = self.starting.next(done) {
                    self.say_running(&run, log);
                    self.runner.go(run.id);
                }
                None
            }
            Progress::Problem(problem) => {
                self.state_problem = problem.err();
                self.state_problem.iter().for_each(|problem| log.write(&Line::warning(problem.clone())));
                None
            }
            Progress::Burnt(id, result) => Some((id, result)),
        }
    }

    /// Handles a report about a command; returns its lease if it ended, and whether it succeeded.
    pub(crate) fn handle_report(
        &mut self,
        report: &Report,
        options: &Options,
        log: &Log,
    ) -> Option<(LeaseId, bool)> {
        match report {
            Report::Waits(id, process) => self.handle_shell(*id, *process),
            Report::Long(run) => log.write(&Line::long(run)),
            Report::Limit(run) => log.write(&Line::limit(run)),
            Report::Ended(exit) => return Some(self.handle_exit(exit, options, log)),
        }
        None
    }

    /// Returns a command that ended before it started, because too many were waiting.
    pub(crate) fn take_refused(&mut self) -> Option<LeaseId> {
        self.refused.pop()
    }

    /// Gives up start commands that have not started: nothing more is to open.
    pub(crate) fn refuse_waiting(&mut self) {
        self.is_closing = true;
        for run in std::mem::take(&mut self.starts.waiting) {
            self.refuse(run.id);
        }
    }

    /// Says whether the start command of any lease runs.
    pub(crate) fn is_starting(&self) -> bool {
        !self.starting.is_empty()
    }

    /// Terminates the start commands of leases, with all their processes; returns how many there are. Those of doors
    /// without a stop command go on: nothing would undo what they have done so far.
    pub(crate) fn end_start_commands(&self) -> usize {
        let ids = self.starting.ids();
        let number = ids.len();
        ids.for_each(|id| self.runner.end(id));
        number
    }

    /// Says whether everything is on disk, after retrying failed writes; `false` if that takes too long.
    pub(crate) fn has_saved_all(&self, limit: Duration) -> bool {
        self.state.is_some() && self.writer.has_saved_all(limit)
    }

    /// Waits for the disk.
    pub(crate) fn finish(self) {
        if let Some(firewall) = self.firewall {
            firewall.finish();
        }
        self.writer.finish();
    }

    /// Stores the lease of a shell that waits, which may go on once that is durable.
    fn handle_shell(&mut self, id: LeaseId, process: Option<ProcessId>) {
        if let Some(record) = self.starting.handle_shell(id, process)
            && let Some(ticket) = self.change(id, Change::Store(record))
        {
            self.starting.wait(id, ticket);
        }
    }

    /// Keeps a lease for a person to deal with.
    fn set_aside(&mut self, record: LeaseRecord, log: &Log) {
        self.tally.given_up += 1;
        log.write(&Line::given_up(&record.key));
        let record = LeaseRecord { boot: self.boot, ..record };
        let mut reason = std::mem::take(&mut self.last_failure);
        if self.of_other_boot.remove(&record.id) {
            reason += "; the machine has restarted since the door opened, which may have closed it";
        }
        let id = record.id;
        let change = Change::SetAside(record.clone(), reason.clone());
        let file = self.change(id, change).map(|_| id);
        self.left_open.add(file, LeftOpen::GivenUp { record, reason });
    }

    /// Without a store, there is nothing to wait for.
    fn change(&mut self, id: LeaseId, change: Change) -> Option<Ticket> {
        self.state.is_some().then(|| self.writer.change(id, change))
    }
}
