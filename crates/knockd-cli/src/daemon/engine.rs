//! The loop: packets, ends of commands, signals, changes of the links, requests and one timer, all in one place and without
//! locks.

mod answers;
mod one_time;
mod reload;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crossbeam_channel::{Receiver, never, select};
use knockd_capture::LinkWatch;
use knockd_core::config::LogFormat;
use knockd_core::{Door, DoorId, Event, EventKind, Matcher, Packet, Sighting, Timestamp};
use signal_hook::consts::SIGHUP;

use super::guard::Guard;
use super::service_manager::{self, Watchdog};
use super::setup::Setup;
use super::startup::Prepared;
use crate::args::Args;
use crate::capture::listener::Message;
use crate::capture::listeners::{Listeners, Wanted};
use crate::control::Counters;
use crate::control::explain;
use crate::control::metrics::Metrics;
use crate::control::socket::Control;
use crate::control::trace_feed::Tracers;
use crate::judge::judge;
use crate::leases::executor::Executor;
use crate::leases::one_time_file::Striker;
use crate::log::rate_limiter::{DropReport, RateLimiter};
use crate::log::{Line, Log};
use crate::system::clock::Clock;

/// How long the loop waits when nothing has a deadline.
const IDLE: Duration = Duration::from_secs(3600);

/// The running daemon.
pub(crate) struct Engine {
    args: Args,
    directory: PathBuf,
    setup: Setup,
    matcher: Matcher,
    guard: Guard,
    doors: Executor,
    striker: Striker,
    log: Log,
    flood: RateLimiter,
    losses: DropReport,
    watchdog: Watchdog,
    ears: Listeners,
    control: Control,
    counters: Counters,
    /// What the decoders could not give up.
    kept: Option<String>,
    metrics: Option<Metrics>,
    tracers: Tracers,
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
        let Prepared { args, directory, setup, matcher, guard, sockets, links, clock, state, control } =
            prepared;
        let control = control.transpose().unwrap_or_else(|error| {
            log.write(&Line::no_control(setup.control_socket.as_deref(), &error));
            None
        });
        let (bound, notice) = control.unzip();
        notice.flatten().into_iter().for_each(|notice| log.write(&Line::notice(notice)));
        let control = Control::start(bound)?;
        let mut doors = Executor::start(clock)?;
        if let Some(state) = state {
            doors.remember(state, &log);
        }
        let ears = Listeners::start(sockets)?;
        let links = watch(links)?;
        let asking = || (control.asking(), ears.speaker());
        let metrics = setup.metrics.clone().map(|path| Metrics::start(path, asking())).transpose()?;
        let (flood, losses, watchdog) =
            (RateLimiter::default(), DropReport::default(), Watchdog::new(clock.now()));
        Ok(Self {
            args,
            directory,
            setup,
            matcher,
            guard,
            doors,
            striker: Striker::start()?,
            log,
            flood,
            losses,
            watchdog,
            ears,
            control,
            counters: Counters::default(),
            kept: None,
            metrics,
            tracers: Tracers::default(),
            links,
            clock,
        })
    }

    pub(crate) fn log(&self, line: &Line) {
        self.log.write(line);
    }

    /// Does the daemon's work until SIGINT or SIGTERM comes, and closes the open doors then.
    pub(crate) fn run(mut self, signals: &Receiver<i32>) {
        self.log(&Line::starting_up(&self.setup.selection.to_string()));
        self.log_one_time_files();
        self.log_filter();
        // What has changed since is followed, and what there is no room for is said.
        self.follow_interfaces();
        service_manager::ready(&self.summary());
        loop {
            select! {
                recv(self.ears.heard) -> heard => match heard {
                    Ok(Message::Packets(packets)) => {
                        // A batch has come within milliseconds.
                        let now = self.clock.now();
                        for packet in &packets {
                            self.handle_packet(packet, now);
                        }
                    }
                    Ok(Message::Dropped(count)) => {
                        self.counters.dropped += u64::from(count);
                        self.losses.add(count, self.clock.now());
                    }
                    Ok(Message::Line(line)) => self.log(&line),
                    Ok(Message::Ready(kept)) => {
                        // It is the same for all decoders, so it is said once.
                        if let Some(text) = kept.as_ref().filter(|_| self.kept != kept) {
                            self.log(&Line::notice(text.clone()));
                        }
                        self.kept = kept;
                    }
                    Ok(Message::Gone(index)) => {
                        self.ears.forget(index, &self.log);
                        self.follow_interfaces();
                    }
                    // The ears hold a sender themselves.
                    Err(_) => {}
                },
                recv(self.doors.reports) -> report => if let Ok(report) = report {
                    self.doors.handle_report(&report, &self.setup.options, &self.log);
                },
                recv(self.doors.problems) -> problem => if let Ok(problem) = problem {
                    self.doors.handle_problem(problem, &self.log);
                },
                recv(self.striker.struck) -> struck => if let Ok(struck) = struck { self.handle_struck(struck); },
                recv(self.control.asks) -> ask => if let Ok(ask) = ask { self.answer(ask); },
                recv(self.links) -> change => match change {
                    Ok(Ok(())) => self.follow_interfaces(),
                    Ok(Err(error)) => self.log(&Line::warning(format!("cannot watch the network interfaces: {error}"))),
                    Err(_) => self.links = never(),
                },
                recv(signals) -> signal => match signal {
                    // What is wrong with the new configuration is in the log.
                    Ok(SIGHUP) => drop(self.reload()),
                    _ => break,
                },
                default(self.until_next_timeout()) => {}
            }
            self.handle_timeouts();
        }
        self.shut_down(signals);
    }

    fn handle_packet(&mut self, packet: &Packet, now: Timestamp) {
        if self.args.only_ip_v4 && packet.source.is_ipv6() {
            return;
        }
        self.counters.packets += 1;
        let visibility = (!self.tracers.is_empty()).then(|| self.matcher.visibility(packet));
        let (scanners, leases) = (&mut self.guard.scanners, self.doors.leases());
        let judgement = judge(packet, now, scanners, &mut self.matcher, leases, &self.setup.doors);
        let mut opened = Vec::new();
        for event in judgement.events() {
            self.counters.count(event.kind);
            log::debug!("{packet:?}: {}: {:?}", self.setup.door_name(event.door), event.kind);
            log_event(event, &self.setup, &mut self.flood, now, &self.log);
            if event.kind == EventKind::Opened {
                opened.push((event.door, event.source));
            }
        }
        self.counters.scanners += u64::from(judgement.sighting == Sighting::NewScanner);
        if let Some(visibility) = visibility {
            let (sighting, doors) = (judgement.sighting, &self.setup.doors);
            let notes = explain::of_packet(packet, sighting, visibility, judgement.events(), doors);
            self.tracers.tell_packet(packet, &notes);
        }
        // Whoever forges addresses can make scanners of them all.
        if judgement.sighting == Sighting::NewScanner && self.flood.admits(packet.source, now) {
            self.log(&Line::scanner(packet.source));
        }
        for (door, source) in opened {
            self.open(door, source);
        }
    }

    fn handle_timeouts(&mut self) {
        let now = self.clock.now();
        if self.guard.handle_timeout(now) {
            self.refresh_filter();
        }
        if self.ears.poll_timeout().is_some_and(|due| due <= now) {
            self.follow_interfaces();
        }
        for event in self.matcher.handle_timeout(now) {
            self.counters.count(event.kind);
            log_event(event, &self.setup, &mut self.flood, now, &self.log);
            if !self.tracers.is_empty() {
                self.tracers.tell_note(&explain::of_event(event, &self.setup.doors, None));
            }
        }
        let tracers = &mut self.tracers;
        self.doors.handle_timeout(now, &self.setup.options, &self.log, |effects| {
            if !tracers.is_empty() {
                effects.iter().filter_map(explain::of_effect).for_each(|note| tracers.tell_note(&note));
            }
        });
        if let Some(count) = self.flood.handle_timeout(now) {
            let text = format!(
                "{count} lines about stages, sequence timeouts and scanners were left out, there are too many of them"
            );
            self.log(&Line::notice(text));
        }
        if let Some(count) = self.losses.handle_timeout(now) {
            let text = format!(
                "{count} packets came faster than they could be read and were lost, perhaps knocks among them"
            );
            self.log(&Line::warning(text));
        }
        self.watchdog.handle_timeout(now);
    }

    fn open(&mut self, id: DoorId, source: IpAddr) {
        if !self.use_up_sequence(id, source)
            && let Some(door) = self.setup.doors.get(id.index()).cloned()
        {
            self.open_door(&door, source);
        }
    }

    fn open_door(&mut self, door: &Door, source: IpAddr) {
        // That too much is open is in the log.
        let tracers = &mut self.tracers;
        let _ = self.doors.open(door, source, &self.setup.options, &self.log, |effects| {
            if !tracers.is_empty() {
                tracers.tell_note(&explain::of_opening(door, source, effects));
            }
        });
    }

    /// Looks again at the interfaces, because some have changed.
    fn follow_interfaces(&mut self) {
        self.ears.follow(&self.log, self.clock.now());
        self.matcher.set_addresses(self.ears.addresses());
        self.guard.watch(&self.matcher.interests(), self.ears.addresses(), self.clock.now());
        service_manager::status(&self.summary());
    }

    fn shut_down(self, signals: &Receiver<i32>) {
        let Self { doors, log, setup, control, .. } = self;
        // Whoever asks now is told that this is the end.
        drop(control);
        service_manager::stopping();
        log.write(&Line::waiting_for_children());
        doors.finish(signals, &setup.options, &log);
        log.write(&Line::shutting_down());
        log.finish();
    }

    fn refresh_filter(&mut self) {
        let interests = self.matcher.interests();
        self.guard.watch(&interests, self.ears.addresses(), self.clock.now());
        let wanted = Wanted { interests, guard: self.guard.local_ports(), ipv4_only: self.args.only_ip_v4 };
        self.ears.want(wanted, &self.log, self.clock.now());
    }

    fn log_filter(&self) {
        let surplus = self.ears.surplus();
        if surplus > 0 {
            let text = format!(
                "the doors use more ports than fit into the packet filter of the kernel, which lets packets to {surplus} others \
                 through; they are ignored here"
            );
            self.log(&Line::notice(text));
        }
    }

    /// Says which doors have no sequence left, and which lines of their files are none.
    fn log_one_time_files(&self) {
        for (door, file) in &self.setup.one_time {
            if file.sequence().is_none() {
                self.log(&Line::used_up(self.setup.door_name(*door)));
            }
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

    fn until_next_timeout(&self) -> Duration {
        let timeouts = [
            self.matcher.poll_timeout(),
            self.doors.poll_timeout(),
            self.flood.poll_timeout(),
            self.losses.poll_timeout(),
            self.guard.poll_timeout(),
            self.ears.poll_timeout(),
            self.watchdog.poll_timeout(),
        ];
        let next = timeouts.into_iter().flatten().min();
        next.map_or(IDLE, |next| next.since(self.clock.now()))
    }

    /// What a service manager shows of the daemon.
    fn summary(&self) -> String {
        format!("Listening on {}; doors: {}", self.ears.names(), self.setup.doors.len())
    }
}

/// Logs what happened to an attempt, unless strangers cause too many such lines.
fn log_event(event: &Event, setup: &Setup, flood: &mut RateLimiter, now: Timestamp, log: &Log) {
    let kind = event.kind;
    // 0.8 does not tell.
    if matches!(kind, EventKind::Spoiled(_)) && setup.options.log_format == LogFormat::Classic {
        return;
    }
    let is_limited = matches!(kind, EventKind::Stage(_) | EventKind::TimedOut(_) | EventKind::Spoiled(_));
    if is_limited && !flood.admits(event.source, now) {
        return;
    }
    if let Some(line) = Line::event(event.source, setup.door_name(event.door), event.kind) {
        log.write(&line);
    }
}

/// Turns the wake-ups of a [`LinkWatch`] into messages.
fn watch(links: LinkWatch) -> anyhow::Result<Receiver<io::Result<()>>> {
    let (changes, receiver) = crossbeam_channel::bounded(1);
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
