//! Where outcomes go: to the log, the trace feed, the counters, the executor of leases, and the packet filter.

use std::path::PathBuf;
use std::sync::Arc;

use knockd_core::config::LogFormat;
use knockd_core::{BurnId, Config, DoorId, Event, EventKind, LeaseId, OpeningResult, Outcome, Timestamp};

use super::setup::Setup;
use crate::args::Args;
use crate::capture::listener::Fault;
use crate::capture::listeners::{FilterSpec, Listeners, Sockets};
use crate::control::explain;
use crate::control::trace_feed::TraceFeed;
use crate::leases::commands::Report;
use crate::leases::executor::Executor;
use crate::leases::one_time_file::StrikeError;
use crate::leases::writer::Progress;
use crate::log::rate_limiter::DropReport;
use crate::log::{Line, Log};
use crate::system::helper::Rights;
use crate::system::text::count;

/// Carries out and reports what the gate decides.
pub(super) struct Dispatcher {
    config: Arc<Config>,
    only_ip_v4: bool,
    pub(super) log: Log,
    drops: DropReport,
    pub(super) feed: TraceFeed,
    pub(super) counters: Counters,
    pub(super) executor: Executor,
    pub(super) listeners: Listeners,
    /// What the decoders could not give up.
    pub(super) kept: Option<String>,
}

/// Counters since startup.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Counters {
    pub(super) packets: u64,
    pub(super) dropped: u64,
    pub(super) attempts: u64,
    pub(super) timeouts: u64,
    pub(super) spoiled: u64,
    pub(super) evicted: u64,
    pub(super) opens: u64,
    pub(super) scanners: u64,
}

impl Counters {
    fn count(&mut self, kind: EventKind) {
        match kind {
            EventKind::Stage(1) => self.attempts += 1,
            EventKind::Opened => self.opens += 1,
            EventKind::TimedOut(_) => self.timeouts += 1,
            EventKind::Spoiled(_) => self.spoiled += 1,
            EventKind::Evicted(_) => self.evicted += 1,
            EventKind::Stage(_)
            | EventKind::Repeated(_)
            | EventKind::WrongFlags(_)
            | EventKind::Elsewhere(_)
            | EventKind::Cooling => {}
        }
    }
}

impl Dispatcher {
    /// Starts the threads of the listeners, the writer and the commands; returns once packets are read.
    ///
    /// # Errors
    /// When the system has no thread left, or packets cannot be read.
    pub(super) fn start(
        setup: &Setup,
        args: &Args,
        directory: PathBuf,
        sockets: Sockets,
        log: Log,
        rights: &Rights,
    ) -> anyhow::Result<Self> {
        let listeners = Listeners::start(sockets, rights.clone())?;
        Ok(Self {
            config: Arc::clone(&setup.config),
            only_ip_v4: args.only_ip_v4,
            log,
            drops: DropReport::default(),
            feed: TraceFeed::default(),
            counters: Counters::default(),
            executor: Executor::start(directory, args.daemon, rights.clone())?,
            listeners,
            kept: None,
        })
    }

    /// Takes door names and limits from this configuration from now on.
    pub(super) fn set_config(&mut self, config: Arc<Config>) {
        self.config = config;
        // `MaxCommands` may be higher now.
        self.executor.run_start_commands(&self.config.options, &self.log);
    }

    /// Tells the subscribers of the trace feed what an outcome means.
    pub(super) fn trace(&mut self, outcome: &Outcome, now: Timestamp) {
        if !self.feed.is_empty()
            && let Some(note) = explain::of_outcome(outcome, &self.config.doors)
        {
            self.feed.tell_note(&note, now);
        }
    }

    /// Carries out an outcome, logs it and counts it.
    pub(super) fn dispatch(&mut self, outcome: Outcome, now: Timestamp) {
        match outcome {
            Outcome::Attempt(event) => {
                self.counters.count(event.kind);
                log::debug!("{}: {}: {:?}", event.source, self.door_name(event.door), event.kind);
                self.log_event(&event, now);
            }
            Outcome::Scanner(source) => {
                self.counters.scanners += 1;
                // Forged addresses can make scanners of any number of sources.
                self.log.write_attempt(source, now, || Some(Line::scanner(source)));
            }
            Outcome::Opening { door, source, result: OpeningResult::Full(full) } => {
                self.log.write(&Line::full(source, &door, full));
            }
            // The other results lead to lines of their own.
            Outcome::Opening { .. } => {}
            Outcome::Effect(effect) => self.executor.carry_out(effect, &self.config.options, &self.log),
            Outcome::UsedUp(door) => self.log.write(&Line::used_up(self.door_name(door))),
            Outcome::Wanted(wanted) => {
                let filter = FilterSpec { wanted, only_ipv4: self.only_ip_v4 };
                self.listeners.set_filter(filter, &self.log, now);
            }
        }
    }

    /// Handles a report about a command; returns its lease if it ended, and whether it succeeded.
    pub(super) fn handle_report(&mut self, report: &Report) -> Option<(LeaseId, bool)> {
        self.executor.handle_report(report, &self.config.options, &self.log)
    }

    /// Handles the writer's progress; returns the one-time line that was struck out, or could not be.
    pub(super) fn handle_progress(
        &mut self,
        progress: Progress,
    ) -> Option<(BurnId, Result<(), StrikeError>)> {
        self.executor.handle_progress(progress, &self.log)
    }

    pub(super) fn handle_dropped(&mut self, count: u32, now: Timestamp) {
        self.counters.dropped += u64::from(count);
        self.drops.add(count, now);
    }

    pub(super) fn handle_reading(&mut self, listener: u64, kept: Option<String>, now: Timestamp) {
        self.listeners.handle_reading(listener, &self.log, now);
        // All decoders report the same, so it is logged once.
        if let Some(text) = kept.as_ref().filter(|_| self.kept != kept) {
            self.log.write(&Line::notice(text.clone()));
        }
        self.kept = kept;
    }

    pub(super) fn handle_deaf(&mut self, listener: u64, fault: &Fault, now: Timestamp) {
        self.listeners.handle_deaf(listener, fault, &self.log, now);
    }

    /// Logs the number of suppressed lines and dropped packets, when that is due.
    pub(super) fn handle_timeout(&mut self, now: Timestamp) {
        self.log.handle_timeout(now);
        if let Some(dropped) = self.drops.handle_timeout(now) {
            let packets = count(usize::try_from(dropped).unwrap_or(usize::MAX), "packet");
            self.log.write(&Line::warning(format!("kernel dropped {packets}")));
        }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub(super) fn poll_timeout(&self) -> Option<Timestamp> {
        self.log.poll_timeout().into_iter().chain(self.drops.poll_timeout()).min()
    }

    /// Logs what happened to an attempt, unless strangers cause too many such lines.
    fn log_event(&mut self, event: &Event, now: Timestamp) {
        let kind = event.kind;
        // 0.8 does not log this.
        if matches!(kind, EventKind::Spoiled(_)) && self.config.options.log_format == LogFormat::Classic {
            return;
        }
        let line = || Line::event(event.source, self.door_name(event.door), kind);
        match kind {
            EventKind::Stage(_) | EventKind::TimedOut(_) | EventKind::Spoiled(_) => {
                self.log.write_attempt(event.source, now, line);
            }
            EventKind::Opened => line().iter().for_each(|line| self.log.write(line)),
            EventKind::Evicted(_)
            | EventKind::Repeated(_)
            | EventKind::WrongFlags(_)
            | EventKind::Elsewhere(_)
            | EventKind::Cooling => {}
        }
    }

    fn door_name(&self, door: DoorId) -> &str {
        self.config.door(door).map_or("?", |door| &door.name)
    }
}
