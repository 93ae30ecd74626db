//! The loop: packets, ends of commands, signals, changes of the links and one timer, all in one place and without locks.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use crossbeam_channel::{Receiver, never, select};
use knockd_capture::{Capture, Interface, LinkWatch, Program, interfaces};
use knockd_core::config::{Commands, OnExit};
use knockd_core::{DoorId, Effect, EventKind, Leases, Matcher, Packet, Run, RunKind, Timestamp};
use signal_hook::consts::SIGHUP;

use crate::args::Args;
use crate::clock::Clock;
use crate::keeper::Keeper;
use crate::listener::{Heard, Listener};
use crate::logging::{Destinations, Line, Log};
use crate::runner::{Exit, Outcome, Report, Runner};
use crate::setup::{Setup, SetupError};
use crate::state::{Restored, StateDir};

/// How long the stop commands of open doors may take when the daemon ends.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// How many start commands wait while `MaxCommands` are running; a knock that comes then runs nothing.
const MAX_WAITING: usize = 4096;

/// How long the loop waits when nothing has a deadline.
const IDLE: Duration = Duration::from_secs(3600);

/// What has to succeed before the daemon goes to the background. It has no thread, so it survives the fork.
pub(crate) struct Prepared {
    pub(crate) args: Args,
    /// Where relative paths start.
    pub(crate) directory: PathBuf,
    pub(crate) setup: Setup,
    matcher: Matcher,
    interface: Interface,
    capture: Capture,
    links: LinkWatch,
    clock: Clock,
    /// The state directory, or why there is none; `None` when no door needs one.
    state: Option<anyhow::Result<StateDir>>,
}

impl Prepared {
    /// Finds the interface and begins to listen; what comes from now on waits in the kernel's buffer.
    ///
    /// # Errors
    /// When the interface does not exist or may not be listened to.
    pub(crate) fn new(args: Args, directory: PathBuf, setup: Setup) -> anyhow::Result<Self> {
        let links = LinkWatch::open().context("cannot watch the network interfaces")?;
        let interface = find_interface(&setup.interface)?;
        let mut matcher = Matcher::new(&setup.doors, setup.options.max_attempts);
        arm(&mut matcher, &setup);
        matcher.set_addresses(interface.addresses.iter().copied());
        let program = Program::new(&matcher.interests(), &interface, args.only_ip_v4);
        let capture = Capture::open(&interface, &program)?;
        let clock = Clock::start();
        // A container without a writable directory needs none as long as no door has anything to undo.
        let needs_state = setup.doors.iter().any(|door| door.stop != Commands::default());
        let state =
            (needs_state || setup.state_dir.exists()).then(|| StateDir::open(setup.state_dir.clone(), clock));
        Ok(Self { args, directory, setup, matcher, interface, capture, links, clock, state })
    }
}

/// The running daemon.
pub(crate) struct Engine {
    args: Args,
    directory: PathBuf,
    setup: Setup,
    matcher: Matcher,
    leases: Leases,
    log: Log,
    runner: Runner,
    reports: Receiver<Report>,
    keeper: Keeper,
    /// Whether leases survive this process.
    remembers: bool,
    /// How many start commands are running.
    starting: u32,
    /// Start commands that wait until fewer than `MaxCommands` are running.
    waiting: VecDeque<Run>,
    listener: Listener,
    /// A message whenever an interface has changed.
    links: Receiver<io::Result<()>>,
    clock: Clock,
}

impl Engine {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start(prepared: Prepared, log: Log) -> anyhow::Result<Self> {
        let Prepared { args, directory, setup, matcher, interface, capture, links, clock, state } = prepared;
        let (state, problem) = match state.transpose() {
            Ok(state) => (state, None),
            Err(error) => (None, Some(format!("{error:#}; open doors are kept in memory only"))),
        };
        let remembers = state.is_some();
        let Restored { records, problems } = state.as_ref().map(StateDir::restore).unwrap_or_default();
        let mut leases = Leases::new();
        if !records.is_empty() {
            log.write(&Line::notice(format!(
                "{} open doors are taken over from an earlier run",
                records.len()
            )));
        }
        leases.restore(records);
        for problem in problem.into_iter().chain(problems) {
            log.write(&Line::warning(problem));
        }
        let (runner, reports) = Runner::new();
        let keeper = Keeper::start(state, runner.clone())?;
        let listener = Listener::start(capture, interface)?;
        let links = watch(links)?;
        let waiting = VecDeque::new();
        Ok(Self {
            args,
            directory,
            setup,
            matcher,
            leases,
            log,
            runner,
            reports,
            keeper,
            remembers,
            starting: 0,
            waiting,
            listener,
            links,
            clock,
        })
    }

    pub(crate) fn log(&self, line: &Line) {
        self.log.write(line);
    }

    /// Does the daemon's work until SIGINT or SIGTERM comes, and closes the open doors then.
    pub(crate) fn run(mut self, signals: &Receiver<i32>) {
        self.log(&Line::starting_up(&self.listener.interface.name));
        self.log_passed_over();
        self.log_filter(&self.program());
        loop {
            select! {
                recv(self.listener.heard) -> heard => match heard {
                    Ok(Heard::Packet(packet)) => self.handle_packet(&packet),
                    Ok(Heard::Failed(error)) => self.log(&Line::notice(format!("{:#}", anyhow!(error)))),
                    // The thread ends with its interface; a new one is opened when that comes back.
                    Err(_) => self.listener.heard = never(),
                },
                recv(self.reports) -> report => if let Ok(report) = report { self.handle_report(&report); },
                recv(self.keeper.problems) -> problem => if let Ok(problem) = problem { self.log(&Line::warning(problem)); },
                recv(self.links) -> change => match change {
                    Ok(Ok(())) => self.follow_interface(),
                    Ok(Err(error)) => self.log(&Line::warning(format!("cannot watch the network interfaces: {error}"))),
                    Err(_) => self.links = never(),
                },
                recv(signals) -> signal => match signal {
                    Ok(SIGHUP) => self.reload(),
                    _ => break,
                },
                default(self.until_next_timeout()) => {}
            }
            self.handle_timeouts();
        }
        self.shut_down(signals);
    }

    fn handle_packet(&mut self, packet: &Packet) {
        if self.args.only_ip_v4 && packet.source.is_ipv6() {
            return;
        }
        let now = self.now();
        let mut opened = Vec::new();
        for event in self.matcher.handle_packet(packet, now) {
            let door = self.setup.door_name(event.door);
            log::debug!("{packet:?}: {door}: {:?}", event.kind);
            if let Some(line) = Line::event(event.source, door, event.kind) {
                self.log.write(&line);
            }
            if event.kind == EventKind::Opened {
                opened.push((event.door, event.source));
            }
        }
        for (door, source) in opened {
            self.open(door, source, now);
        }
    }

    fn handle_timeouts(&mut self) {
        let now = self.now();
        for event in self.matcher.handle_timeout(now) {
            if let Some(line) = Line::event(event.source, self.setup.door_name(event.door), event.kind) {
                self.log.write(&line);
            }
        }
        let effects = self.leases.handle_timeout(now);
        self.carry_out(effects);
    }

    fn open(&mut self, id: DoorId, source: IpAddr, now: Timestamp) {
        if self.setup.one_time.contains_key(&id) && !self.use_up_sequence(id) {
            return;
        }
        let Some(door) = self.setup.doors.get(id.index()) else { return };
        match self.leases.open(door, source, self.setup.options.max_open, now) {
            Ok(effects) => self.carry_out(effects),
            Err(full) => self.log(&Line::full(source, self.setup.door_name(id), full)),
        }
    }

    /// Strikes out the sequence that has just been knocked; says whether that worked, so that the door may open.
    fn use_up_sequence(&mut self, id: DoorId) -> bool {
        let Some(file) = self.setup.one_time.get_mut(&id) else { return false };
        let struck = file.strike_out();
        let next = file.sequence().cloned();
        let door = self.setup.door_name(id);
        if let Err(error) = &struck {
            let path = self.setup.one_time.get(&id).map(|file| file.path().display().to_string());
            let text = format!(
                "{door}: the door stays closed, since its sequence cannot be struck out in {}: {error}",
                path.unwrap_or_default()
            );
            self.log(&Line::warning(text));
        }
        if next.is_none() {
            let text = format!(
                "no more sequences left in the one time sequences file for door {door} --> disabling the door"
            );
            self.log(&Line::warning(text));
        }
        self.matcher.set_sequence(id, next);
        self.refresh_filter();
        struck.is_ok()
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Run(run) if run.kind == RunKind::Stop => self.stop(run),
                Effect::Run(run) if self.starting < self.setup.options.max_commands.get() => {
                    self.start_command(run);
                }
                Effect::Run(run) => self.wait(run),
                effect => {
                    if let Effect::SetAside(_, key) = &effect {
                        self.log(&Line::given_up(key));
                    }
                    self.keeper.carry_out(effect, None);
                }
            }
        }
    }

    /// Runs a start command, after everything on disk that it depends on.
    fn start_command(&mut self, run: Run) {
        self.starting += 1;
        self.log(&Line::running(&run.door, &run.command));
        self.keeper.carry_out(Effect::Run(run), self.setup.options.command_limit);
    }

    /// Runs a stop command; it waits for nothing.
    fn stop(&self, run: Run) {
        self.log(&Line::command_timeout(run.source, &run.door));
        self.log(&Line::running(&run.door, &run.command));
        self.runner.start(run, self.setup.options.command_limit);
    }

    /// Lets a start command wait until another one has ended.
    fn wait(&mut self, run: Run) {
        let running = self.starting;
        if self.waiting.len() < MAX_WAITING {
            let text =
                format!("{}: the command waits, since {running} are running (`MaxCommands`)", run.door);
            self.log(&Line::notice(text));
            self.waiting.push_back(run);
            return;
        }
        let text = format!("{}: the command is not run, since {MAX_WAITING} are waiting already", run.door);
        self.log(&Line::warning(text));
        let effects = self.leases.handle_exit(run.id, false, self.now());
        self.carry_out(effects);
    }

    fn handle_report(&mut self, report: &Report) {
        match report {
            Report::Long(run) => {
                self.log(&Line::notice(format!(
                    "{}: the command has been running for a minute: {}",
                    run.door, run.command
                )));
            }
            Report::Limit(run) => {
                let text = format!(
                    "{}: the command takes longer than `CommandLimit` allows, it is ended: {}",
                    run.door, run.command
                );
                self.log(&Line::warning(text));
            }
            Report::Exit(exit) => self.handle_exit(exit),
        }
    }

    fn handle_exit(&mut self, exit: &Exit) {
        let Exit { run, outcome, last_words } = exit;
        if let Some(line) = Line::failed(&run.door, outcome) {
            self.log(&line);
            if !last_words.is_empty() {
                self.log(&Line::last_words(&run.door, last_words));
            }
        }
        if run.kind == RunKind::Start {
            self.starting -= 1;
            if let Some(next) = self.waiting.pop_front() {
                self.start_command(next);
            }
        }
        let effects = self.leases.handle_exit(run.id, *outcome == Outcome::Status(0), self.now());
        self.carry_out(effects);
    }

    /// Looks again at the interface that is listened to, because some interface has changed.
    fn follow_interface(&mut self) {
        let Some(found) = interfaces().into_iter().find(|known| known.name == self.setup.interface) else {
            return;
        };
        if found.index != self.listener.interface.index {
            if let Err(error) = self.listen_to(found) {
                self.log(&Line::warning(format!("{error:#}")));
            }
        } else if found.addresses != self.listener.interface.addresses {
            let text = format!("{} now has {}", found.name, addresses_of(&found));
            self.listener.interface = found;
            self.matcher.set_addresses(self.listener.interface.addresses.iter().copied());
            self.refresh_filter();
            self.log(&Line::notice(text));
        }
    }

    /// Leaves the interface that is listened to for another one.
    fn listen_to(&mut self, interface: Interface) -> anyhow::Result<()> {
        let program = Program::new(&self.matcher.interests(), &interface, self.args.only_ip_v4);
        let capture = Capture::open(&interface, &program)?;
        self.matcher.set_addresses(interface.addresses.iter().copied());
        self.listener = Listener::start(capture, interface)?;
        self.log_filter(&program);
        let Interface { name, .. } = &self.listener.interface;
        self.log(&Line::notice(format!("listening on {name} ({})", addresses_of(&self.listener.interface))));
        Ok(())
    }

    /// Reads the configuration again. One that cannot be used changes nothing.
    fn reload(&mut self) {
        self.log(&Line::rereading(&self.setup.config_path));
        let setup = match Setup::load(&self.args, &self.directory) {
            Ok(setup) => setup,
            Err(error) => return self.log_refusal(&error),
        };
        let interface = if setup.interface == self.listener.interface.name {
            None
        } else {
            match find_interface(&setup.interface) {
                Ok(interface) => Some(interface),
                Err(error) => {
                    let text = format!("{error:#}; the old configuration stays in force");
                    return self.log(&Line::warning(text));
                }
            }
        };
        for warning in &setup.warnings {
            self.log(&Line::warning(plain(warning)));
        }
        self.matcher.set_doors(&setup.doors, setup.options.max_attempts);
        arm(&mut self.matcher, &setup);
        let old_log = std::mem::replace(&mut self.setup, setup).log_file;
        if let Some(path) = &old_log {
            self.log(&Line::closing_log(path));
        }
        self.log.redirect(Destinations::open(&self.args, &self.setup));
        if let Some(path) = &self.setup.log_file {
            self.log(&Line::reopening_log(path));
        }
        self.log_passed_over();
        match interface {
            None => {
                self.refresh_filter();
                self.log_filter(&self.program());
            }
            Some(interface) => {
                if let Err(error) = self.listen_to(interface) {
                    self.log(&Line::warning(format!("{error:#}")));
                }
            }
        }
    }

    fn shut_down(mut self, signals: &Receiver<i32>) {
        self.log(&Line::waiting_for_children());
        if self.remembers && self.setup.options.on_exit == OnExit::Keep {
            if !self.leases.is_empty() {
                self.log(&Line::notice(format!(
                    "{} doors stay open until the next start",
                    self.leases.len()
                )));
            }
        } else {
            self.close_doors(signals);
        }
        self.keeper.finish();
        self.log.write(&Line::shutting_down());
        self.log.finish();
    }

    /// Runs the stop commands of all open doors and waits for them.
    fn close_doors(&mut self, signals: &Receiver<i32>) {
        let effects = self.leases.close_all();
        self.carry_out(effects);
        let end = Instant::now() + SHUTDOWN_LIMIT;
        while !self.leases.is_empty() {
            select! {
                recv(self.reports) -> report => if let Ok(report) = report { self.handle_report(&report); },
                recv(signals) -> signal => if !matches!(signal, Ok(SIGHUP)) { break },
                default(end.saturating_duration_since(Instant::now())) => break,
            }
        }
        if !self.leases.is_empty() {
            let left = self.leases.len();
            let text = format!(
                "{left} doors are not closed yet, their commands are still running; the next start tries again"
            );
            self.log(&Line::warning(text));
        }
    }

    fn program(&self) -> Program {
        Program::new(&self.matcher.interests(), &self.listener.interface, self.args.only_ip_v4)
    }

    fn refresh_filter(&self) {
        if let Err(error) = self.listener.set_filter(&self.program()) {
            self.log(&Line::warning(format!("{error:#}")));
        }
    }

    fn log_filter(&self, program: &Program) {
        if !program.is_exact() {
            let text = "the doors use more ports than fit into the packet filter of the kernel, which lets some others \
                        through; they are ignored here";
            self.log(&Line::notice(text.to_owned()));
        }
    }

    fn log_passed_over(&self) {
        for (door, file) in &self.setup.one_time {
            for line in file.passed_over() {
                let door = self.setup.door_name(*door);
                let text = format!(
                    "{door}: {}:{line}: this line is no sequence, it is passed over",
                    file.path().display()
                );
                self.log(&Line::warning(text));
            }
        }
    }

    /// Logs why a new configuration was refused, a line for each finding.
    fn log_refusal(&self, error: &SetupError) {
        let error = plain(&format!("{:#}", anyhow!("{error}")));
        for line in error.lines() {
            self.log(&Line::warning(line.to_owned()));
        }
        self.log(&Line::warning("the old configuration stays in force".to_owned()));
    }

    fn until_next_timeout(&self) -> Duration {
        let now = self.now();
        let next = self.matcher.poll_timeout().into_iter().chain(self.leases.poll_timeout()).min();
        next.map_or(IDLE, |next| next.since(now))
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

/// Turns the wake-ups of a [`LinkWatch`] into messages.
fn watch(links: LinkWatch) -> anyhow::Result<Receiver<io::Result<()>>> {
    let (changes, receiver) = crossbeam_channel::bounded(1);
    crate::spawn("links", move || {
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

/// Gives the doors with one-time sequences the ones that their files say.
fn arm(matcher: &mut Matcher, setup: &Setup) {
    for (door, file) in &setup.one_time {
        matcher.set_sequence(*door, file.sequence().cloned());
    }
}

fn find_interface(name: &str) -> anyhow::Result<Interface> {
    let all = interfaces();
    let names: Vec<_> = all.iter().map(|interface| interface.name.clone()).collect();
    all.into_iter().find(|interface| interface.name == name).ok_or_else(|| {
        anyhow!(
            "there is no network interface {name}; there are: {} (choose one with -i or `Interface`)",
            names.join(", ")
        )
    })
}

fn addresses_of(interface: &Interface) -> String {
    let addresses: Vec<_> = interface.addresses.iter().map(ToString::to_string).collect();
    if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") }
}

/// Drops the colours of a drawing.
fn plain(drawn: &str) -> String {
    anstream::adapter::strip_str(drawn).to_string()
}
