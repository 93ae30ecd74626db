//! The loop: packets, ends of commands, progress of the disk, signals, link changes, requests and one timer, all in
//! one place and without locks.

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use knockd_capture::LinkWatch;
use knockd_core::{DoorId, Gate, LocalPorts, Now, Outcome, Outcomes, Timestamp};
use signal_hook::consts::SIGHUP;

use super::closings::Closings;
use super::dispatcher::Dispatcher;
use super::guarding::Guarding;
use super::pid_file::PidFile;
use super::request_limits::RequestLimits;
use super::service_manager::{self, Watchdog};
use super::setup::Setup;
use super::startup::Prepared;
use crate::Exit;
use crate::args::Args;
use crate::capture::listener::Message;
use crate::control::metrics::Metrics;
use crate::control::socket::{Control, QueuedRequest};
use crate::firewall;
use crate::leases::commands::Report;
use crate::leases::writer::Progress;
use crate::log::{Line, Log};
use crate::system::clock::{self, Clock};
use crate::system::helper::Rights;
use crate::system::local_ports;
use crate::system::text::count;

/// How many log lines of other threads wait for the loop.
const LINES: usize = 16;

/// The running daemon.
pub(super) struct Engine {
    pub(super) args: Args,
    pub(super) directory: PathBuf,
    pub(super) setup: Setup,
    /// Who opens files and starts decoders.
    pub(super) rights: Rights,
    /// What this process could not give up, if it has a helper.
    pub(super) kept: Option<String>,
    /// With `-d`.
    pub(super) pid_file: Option<PidFile>,
    /// Makes all decisions that belong to the core.
    pub(super) gate: Gate,
    /// Carries out what the gate decides.
    pub(super) dispatcher: Dispatcher,
    pub(super) control: Control,
    pub(super) metrics: Option<Metrics>,
    pub(super) clock: Clock,
    watchdog: Watchdog,
    /// Reads the ports in use.
    pub(super) ports: local_ports::Reader,
    /// What the firewall has done.
    pub(super) firewall_reports: Receiver<firewall::Report>,
    pub(super) guarding: Guarding,
    /// A message whenever an interface changes.
    links: Receiver<io::Result<()>>,
    /// A message whenever the machine has slept.
    clock_jumps: Receiver<()>,
    /// Disconnected when the helper has ended.
    helper_end: Receiver<()>,
    /// Whether that is why the daemon ends.
    has_failed: bool,
    /// Log lines of other threads.
    log_lines: Receiver<Line>,
    pub(super) line_sender: Sender<Line>,
    pub(super) request_limits: RequestLimits,
    /// Requests whose replies wait for stop commands.
    pub(super) closings: Closings,
    pub(super) longest_iteration: Duration,
}

/// What one iteration of the loop is about.
enum Work {
    /// Only what is due.
    None,
    Message(Message),
    Report(Report),
    Progress(Progress),
    Firewall(firewall::Report),
    Request(QueuedRequest),
    /// `None` if there will be no more.
    Ports(Option<LocalPorts>),
    Line(Line),
    /// `None` if there will be no more.
    Links(Option<io::Result<()>>),
    ClockJump(Option<()>),
    HelperEnded,
    /// `None` if there will be no more.
    Signal(Option<i32>),
}

impl Engine {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(super) fn start(
        prepared: Prepared,
        kept: Option<String>,
        pid_file: Option<PidFile>,
        log: Log,
    ) -> anyhow::Result<Self> {
        let Prepared {
            args,
            directory,
            setup,
            rights,
            mut gate,
            sockets,
            links,
            clock,
            kept_socket,
            store,
            control,
        } = prepared;
        let control = control.transpose().unwrap_or_else(|error| {
            log.write(&Line::no_control(setup.control_socket.as_deref(), &error));
            None
        });
        let (bound, notice) = control.unzip();
        notice.flatten().into_iter().for_each(|notice| log.write(&Line::notice(notice)));
        let control = Control::start(bound)?;
        let mut dispatcher = Dispatcher::start(&setup, &args, directory.clone(), sockets, log, &rights)?;
        if let Some(store) = store {
            let restored = dispatcher.executor.remember(store, &dispatcher.log);
            gate.restore(restored.records, restored.last_id, clock.both());
        }
        let links = watch(links)?;
        let (line_sender, log_lines) = bounded(LINES);
        let sender = || (control.sender(), line_sender.clone());
        let metrics =
            setup.metrics.clone().map(|path| Metrics::start(path, sender(), rights.clone())).transpose()?;
        let helper_end = rights.watch()?;
        let mut engine = Self {
            args,
            directory,
            rights,
            kept,
            firewall_reports: never(),
            guarding: Guarding::default(),
            setup,
            pid_file,
            gate,
            dispatcher,
            control,
            metrics,
            clock,
            watchdog: Watchdog::new(clock.now()),
            ports: local_ports::Reader::start(clock.now())?,
            links,
            clock_jumps: clock::watch()?,
            helper_end,
            has_failed: false,
            log_lines,
            line_sender,
            request_limits: RequestLimits::default(),
            closings: Closings::default(),
            longest_iteration: Duration::ZERO,
        };
        let config = Arc::clone(&engine.setup.config);
        engine.guard(&config, kept_socket).context("cannot guard the services of doors")?;
        Ok(engine)
    }

    pub(super) fn log(&self, line: &Line) {
        self.dispatcher.log.write(line);
    }

    /// Opens the log's destinations again: a log file may have been moved, or the standard streams replaced.
    pub(super) fn reopen_log(&mut self) {
        self.dispatcher.log.reopen(self.setup.log_settings(&self.args, self.rights.clone()));
    }

    /// Says that packets are read.
    pub(super) fn begin(&mut self) {
        self.keep_configuration();
        self.log(&Line::starting_up(&self.setup.selection.to_string()));
        self.kept.iter().for_each(|kept| self.log(&Line::warning(kept.clone())));
        self.log_one_time_files();
        self.log_filter();
        // Follow changes since startup, and report interfaces above the limit.
        self.follow_interfaces();
        service_manager::ready(&self.summary());
        // What is overdue is being closed before anybody knocks: the knock then opens anew.
        self.apply(Gate::handle_timeout);
    }

    /// Runs until SIGINT or SIGTERM, and then closes the open doors; fails if the helper ends.
    pub(super) fn run(mut self, signals: &Receiver<i32>) -> Exit {
        loop {
            let work = self.wait(signals);
            let start = self.clock.now();
            if self.handle(work).is_break() {
                break;
            }
            self.handle_timeouts();
            self.finish_iteration(start);
        }
        let exit = if self.has_failed { Exit::Failed } else { Exit::Succeeded };
        self.shut_down(signals);
        exit
    }

    /// Waits for something to do, but not beyond the next deadline.
    fn wait(&self, signals: &Receiver<i32>) -> Work {
        let now = self.clock.now();
        let nobody = never();
        let is_resting = self.request_limits.poll_timeout(now).is_some();
        let requests = if is_resting { &nobody } else { &self.control.requests };
        select! {
            recv(self.dispatcher.listeners.messages) -> message => message.map_or(Work::None, Work::Message),
            recv(self.dispatcher.executor.reports) -> report => report.map_or(Work::None, Work::Report),
            recv(self.dispatcher.executor.progress) -> progress => progress.map_or(Work::None, Work::Progress),
            recv(self.firewall_reports) -> report => report.map_or(Work::None, Work::Firewall),
            recv(requests) -> request => request.map_or(Work::None, Work::Request),
            recv(self.ports.answers) -> ports => Work::Ports(ports.ok()),
            recv(self.log_lines) -> line => line.map_or(Work::None, Work::Line),
            recv(self.links) -> change => Work::Links(change.ok()),
            recv(self.clock_jumps) -> jump => Work::ClockJump(jump.ok()),
            recv(self.helper_end) -> _ => Work::HelperEnded,
            recv(signals) -> signal => Work::Signal(signal.ok()),
            default(self.until_next_timeout(now)) => Work::None,
        }
    }

    /// Does the work; breaks if it is to end the daemon.
    fn handle(&mut self, work: Work) -> ControlFlow<()> {
        match work {
            // After a jump of the clock, the wait for the next timeout begins anew.
            Work::None | Work::ClockJump(Some(())) => {}
            Work::Message(message) => self.handle_message(message),
            Work::Report(report) => self.handle_report(&report),
            Work::Progress(progress) => self.handle_progress(progress),
            Work::Firewall(report) => self.handle_firewall(&report),
            Work::Request(request) => self.handle_request(request),
            Work::Ports(Some(ports)) => self.handle_ports(ports),
            Work::Ports(None) => self.ports.answers = never(),
            Work::Line(line) => self.log(&line),
            Work::Links(Some(Ok(()))) => self.follow_interfaces(),
            Work::Links(Some(Err(error))) => {
                self.log(&Line::warning(format!("cannot watch the network interfaces: {error}")));
            }
            Work::Links(None) => self.links = never(),
            Work::ClockJump(None) => self.clock_jumps = never(),
            Work::HelperEnded => {
                // Without decoders and files it is of no use; the service manager starts another one.
                self.log(&Line::warning("the helper process has ended, so knockd ends".to_owned()));
                self.has_failed = true;
                return ControlFlow::Break(());
            }
            // Errors in the new configuration are in the log.
            Work::Signal(Some(SIGHUP)) => drop(self.reload()),
            Work::Signal(_) => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    /// Remembers how long the loop did nothing else.
    fn finish_iteration(&mut self, start: Timestamp) {
        self.longest_iteration = self.longest_iteration.max(self.clock.now().since(start));
    }

    fn handle_request(&mut self, request: QueuedRequest) {
        let start = self.clock.now();
        self.answer(request);
        self.request_limits.note(start, self.clock.now());
    }

    /// Lets the gate decide, then traces and carries out its decisions.
    pub(super) fn apply(&mut self, decide: impl for<'g> FnOnce(&'g mut Gate, Now) -> Outcomes<'g>) {
        self.apply_and_look(decide, |_, _| {});
    }

    /// Does the same, and passes each outcome to the caller before carrying it out.
    pub(super) fn apply_and_look(
        &mut self,
        decide: impl for<'g> FnOnce(&'g mut Gate, Now) -> Outcomes<'g>,
        mut look: impl FnMut(&Outcome, &Log),
    ) {
        let now = self.clock.both();
        for outcome in decide(&mut self.gate, now) {
            look(&outcome, &self.dispatcher.log);
            self.dispatcher.trace(&outcome, now.monotonic);
            self.dispatcher.dispatch(outcome, now.monotonic);
        }
        self.end_refused();
    }

    /// Tells the gate about start commands that ended before they started.
    pub(super) fn end_refused(&mut self) {
        while let Some(id) = self.dispatcher.executor.take_refused() {
            self.apply(|gate, now| gate.handle_exit(id, false, now));
        }
    }

    fn handle_timeouts(&mut self) {
        let now = self.clock.now();
        if self.dispatcher.listeners.poll_timeout().is_some_and(|due| due <= now) {
            self.follow_interfaces();
        }
        if self.gate.poll_timeout().is_some_and(|due| due <= now) {
            self.apply(Gate::handle_timeout);
        }
        self.dispatcher.handle_timeout(now);
        self.closings.handle_timeout(now);
        self.watchdog.handle_timeout(now, !self.dispatcher.listeners.are_deaf(now));
    }

    /// `Duration::MAX` if nothing has a deadline.
    fn until_next_timeout(&self, now: Timestamp) -> Duration {
        let timeouts = [
            self.request_limits.poll_timeout(now),
            self.gate.poll_timeout(),
            self.dispatcher.poll_timeout(),
            self.closings.poll_timeout(),
            self.dispatcher.listeners.poll_timeout(),
            self.watchdog.poll_timeout(),
        ];
        let next = timeouts.into_iter().flatten().min();
        // As long as a channel can wait.
        next.map_or(Duration::MAX, |next| next.since(now))
    }

    /// Looks at the interfaces again because some have changed.
    pub(super) fn follow_interfaces(&mut self) {
        self.dispatcher.listeners.follow(&self.dispatcher.log, self.clock.now());
        self.gate.set_addresses(self.dispatcher.listeners.own_addresses().iter().copied());
        service_manager::status(&self.summary());
    }

    pub(super) fn log_filter(&self) {
        let surplus = self.dispatcher.listeners.surplus();
        if surplus > 0 {
            let text = format!(
                "too many ports for the kernel filter: it also passes packets to {surplus} other ports, \
                 which knockd ignores"
            );
            self.log(&Line::notice(text));
        }
    }

    /// Logs which doors have no sequence left, and which lines of their files are not sequences.
    pub(super) fn log_one_time_files(&self) {
        for (index, door) in self.setup.config.doors.iter().enumerate() {
            let Some(path) = door.key.one_time_file() else { continue };
            if self.gate.steps_of(DoorId::new(index)).is_none() {
                self.log(&Line::used_up(&door.name));
            }
            let file = self.gate.one_time_files().get(path);
            for line in file.map(knockd_core::OneTime::passed_over).unwrap_or_default() {
                let path = self.directory.join(&**path);
                let text = format!("{}: {}:{line}: not a sequence; skipped", door.name, path.display());
                self.log(&Line::warning(text));
            }
        }
    }

    /// The status text for a service manager.
    pub(super) fn summary(&self) -> String {
        let (names, doors) = (self.dispatcher.listeners.names(), self.setup.config.doors.len());
        format!("Listening on {names}; {}", count(doors, "door"))
    }
}

/// Turns the wake-ups of a [`LinkWatch`] into messages.
fn watch(links: LinkWatch) -> anyhow::Result<Receiver<io::Result<()>>> {
    let (changes, receiver) = bounded(1);
    crate::system::spawn("links", move || {
        loop {
            let change = links.wait();
            let failed = change.is_err();
            if changes.send(change).is_err() || failed {
                return;
            }
        }
    })?;
    Ok(receiver)
}
