//! Replies to requests: owned values, made at once, because clients may be slow.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::time::Duration;

use crossbeam_channel::Sender;
use knockd_core::config::Extend;
use knockd_core::{
    DoorId, DoorName, Effect, LeaseFilter, LeaseId, LeaseKey, LeaseState, OpeningResult, Outcome, Timestamp,
    similar,
};

use super::engine::Engine;
use super::request_limits::MAX_RELOADS;
use crate::control::socket::{Answer, QueuedRequest, Who};
use crate::control::{
    AttemptStatus, AttemptsStatus, CommandsStatus, CountersStatus, DoorStatus, Health, InterfaceStatus,
    KeptOpenBy, LeasePhase, LeaseStatus, LeasesStatus, LogEvent, Reply, Request, ScannerStatus,
    ScannersStatus, Status,
};
use crate::leases::executor::Tally;
use crate::log::{Line, RecentLine};
use crate::system::helper::Rights;
use crate::system::text::{count, span};

/// How many attempts a status lists.
const MAX_ATTEMPTS: usize = 100;

/// How many leases a status lists.
const MAX_LEASES: usize = 1000;

/// How many scanners are listed.
const MAX_SCANNERS: usize = 1000;

impl Engine {
    pub(super) fn answer(&mut self, queued: QueuedRequest) {
        let QueuedRequest { request, who, reply, connected } = queued;
        let answer = match &request {
            Request::Status {} => return self.reply_with_status(reply),
            Request::Scanners {} => Reply::Scanners(self.scanners()),
            Request::Events {} => Reply::Events { events: self.events() },
            Request::Trace { address } => {
                self.log(&Line::request(who.user, &who.text, &request.to_string()));
                let addresses: Vec<_> = self.dispatcher.listeners.addresses().collect();
                return self.dispatcher.feed.add(*address, reply, connected, &addresses);
            }
            Request::Close { door, address } => match self.close(&request, &who, door.as_deref(), *address) {
                // The reply comes when the stop commands have ended.
                Ok(closing) => {
                    let now = self.clock.now();
                    return self.closings.add(closing.iter().map(|(id, key)| (*id, key)), reply, now);
                }
                Err(reason) => Reply::refused(reason),
            },
            Request::Guard { .. } | Request::Unguard {} => match self.order(&request, &who, &reply) {
                Ok(()) => return,
                Err(reason) => Reply::refused(reason),
            },
            _ => self.obey(&request, &who).map_or_else(Reply::refused, Reply::done),
        };
        // The client may be gone.
        let _ = reply.try_send(Answer::Reply(answer));
    }

    /// Carries out a request and says what was done, or why not.
    fn obey(&mut self, request: &Request, who: &Who) -> Result<String, String> {
        if let Request::Extend { door, .. } | Request::Open { door, .. } = request {
            self.find(door)?;
        }
        // Door names contain no line ends, so neither does this.
        self.log(&Line::request(who.user, &who.text, &request.to_string()));
        match request {
            Request::Status {}
            | Request::Scanners {}
            | Request::Events {}
            | Request::Trace { .. }
            | Request::Guard { .. }
            | Request::Unguard {}
            | Request::Close { .. } => Err("unsupported request".to_owned()),
            Request::Forgive { address } => {
                let now = self.clock.now();
                if self.gate.forgive(*address, now) {
                    Ok(format!("{address} is no longer ignored"))
                } else {
                    Err(format!("{address} is not ignored: it is no scanner"))
                }
            }
            Request::Dismiss { door, address } => {
                let which = filter(door.as_deref(), *address)?;
                match self.dispatcher.executor.dismiss(&which) {
                    0 if which != LeaseFilter::default() => {
                        Err("no such door may still be open; `knockd status` lists those that may".to_owned())
                    }
                    dismissed => Ok(format!("dismissed {}", count(dismissed, "problem"))),
                }
            }
            Request::Reload {} if !self.request_limits.admits_reload(self.clock.now()) => {
                Err(format!("more than {MAX_RELOADS} reloads within a minute; try again later"))
            }
            Request::Reload {} => {
                self.reload().map(|()| format!("reloaded {}", self.setup.config_path.display()))
            }
            Request::Open { door, address } => self.open_for(door, *address),
            Request::Extend { door, address, seconds } => {
                let which = filter(Some(door), Some(*address))?;
                let time = seconds.map(|seconds| Duration::from_secs(seconds.into()));
                match self.extend(&which, time) {
                    Extended { longer: 0, left: Some(left) } => {
                        let left = left.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX);
                        let left = span(left);
                        Ok(format!("{door} stays open for {address} for {left} anyway; nothing changed"))
                    }
                    Extended { longer: 0, .. }
                        if self.gate.leases().any(|lease| which.includes(lease.key)) =>
                    {
                        Err(format!(
                            "{door} is already closing for {address}; run `knockd open` to open it again"
                        ))
                    }
                    Extended { longer: 0, .. } => Err(self.not_open(Some(door), Some(*address))),
                    Extended { longer, .. } => Ok(format!("extended {}", count(longer, "open door"))),
                }
            }
        }
    }

    /// Closes leases and returns them.
    fn close(
        &mut self,
        request: &Request,
        who: &Who,
        door: Option<&str>,
        address: Option<IpAddr>,
    ) -> Result<Vec<(LeaseId, LeaseKey)>, String> {
        door.map_or(Ok(()), |door| self.find(door))?;
        self.log(&Line::request(who.user, &who.text, &request.to_string()));
        let which = filter(door, address)?;
        let meant = self.gate.leases().filter(|lease| which.includes(lease.key));
        let closing: Vec<_> = meant.map(|lease| (lease.id, lease.key.clone())).collect();
        self.apply(|gate, now| gate.close(&which, now));
        if closing.is_empty() && address.is_some() { Err(self.not_open(door, address)) } else { Ok(closing) }
    }

    /// Extends leases and says what came of it.
    fn extend(&mut self, which: &LeaseFilter, time: Option<Duration>) -> Extended {
        let meant = self.gate.leases().filter(|lease| which.includes(lease.key));
        let before: Vec<_> = meant.map(|lease| (lease.id, end_of(lease.state))).collect();
        let now = self.clock.now();
        let mut extended = Extended { longer: 0, left: None };
        self.apply_and_look(
            |gate, now| gate.extend(which, time, now),
            |outcome, _| {
                let Outcome::Effect(Effect::EndMoved(id, end)) = outcome else { return };
                if before.contains(&(*id, Some(*end))) {
                    extended.left = extended.left.max(Some(end.since(now)));
                } else {
                    extended.longer += 1;
                }
            },
        );
        extended
    }

    /// Opens doors by hand and returns the results.
    fn open(&mut self, door: &str, source: IpAddr) -> Vec<OpeningResult> {
        let mut results = Vec::new();
        self.apply_and_look(
            |gate, now| gate.open(door, source, now),
            |outcome, log| {
                let Outcome::Opening { door, result, .. } = outcome else { return };
                if *result != OpeningResult::NothingToRun {
                    log.write(&Line::opened(source, door));
                }
                results.push(*result);
            },
        );
        results
    }

    /// Fails if no door has this name, neither in the configuration nor open from an earlier one.
    fn find(&self, name: &str) -> Result<(), String> {
        let configured = || self.setup.config.doors.iter().map(|door| &*door.name);
        let known = || configured().chain(self.gate.leases().map(|lease| &*lease.key.door));
        if known().any(|known| known == name) {
            return Ok(());
        }
        let help = similar(name, known()).map(|known| format!("; did you mean {known:?}?"));
        let all: Vec<_> = configured().take(MAX_ATTEMPTS).collect();
        Err(format!(
            "no such door: {name:?}{}",
            help.unwrap_or_else(|| format!("; doors: {}", all.join(", ")))
        ))
    }

    fn open_for(&mut self, name: &str, source: IpAddr) -> Result<String, String> {
        let results = self.open(name, source);
        let full = results.iter().find_map(|result| match result {
            OpeningResult::Full(full) => Some(full),
            _ => None,
        });
        match full {
            Some(full) => Err(format!("{name} stays closed: {full}")),
            None if results.iter().all(|result| *result == OpeningResult::NothingToRun) => {
                Err(format!("{name} has no start command or service for {source}"))
            }
            None => Ok(format!("opened {name} for {source}")),
        }
    }

    fn not_open(&self, door: Option<&str>, address: Option<IpAddr>) -> String {
        let what = door.unwrap_or("no door");
        let is = if door.is_some() { "is not open" } else { "is open" };
        let whom = address.map(|address| format!(" for {address}")).unwrap_or_default();
        let others = self.gate.leases().filter(|lease| door.is_none_or(|door| *door == *lease.key.door));
        let mut others: Vec<_> = others.take(MAX_ATTEMPTS).map(|lease| lease.key.source).collect();
        others.sort_unstable();
        let others: Vec<_> = others.iter().map(IpAddr::to_string).collect();
        let but = if others.is_empty() { String::new() } else { format!("; open for {}", others.join(", ")) };
        let which = filter(door, address).unwrap_or_default();
        let is_left_open = self.dispatcher.executor.left_open().iter().any(|left| left.is_meant(&which));
        let may = if is_left_open { "; it may still be open, see: knockd status" } else { "" };
        format!("{what} {is}{whom}{may}{but}")
    }

    /// Replies with the status. How long packets still keep doors open, and whether a single use is over, only the firewall knows.
    fn reply_with_status(&self, reply: Sender<Answer>) {
        let mut status = self.status();
        // The client may be gone.
        let send = move |status| drop(reply.try_send(Answer::Reply(Reply::Status(Box::new(status)))));
        let firewall = self.dispatcher.executor.firewall();
        let asked = status.leases.listed.iter().filter(|lease| is_changed_by_packets(lease));
        let asked = asked.filter_map(|lease| Some((DoorName::new(&lease.door).ok()?, lease.source)));
        let asked: Vec<_> = asked.collect();
        let Some(firewall) = firewall.filter(|_| !asked.is_empty()) else { return send(status) };
        firewall.ask(asked, move |left| {
            let listed = &mut status.leases.listed;
            let changed = listed.iter_mut().filter(|lease| is_changed_by_packets(lease));
            for (lease, left) in changed.zip(left) {
                lease.left = Some(left.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX));
                if lease.single_use && left.is_zero() {
                    lease.state = LeasePhase::Used;
                }
            }
            listed.sort_by_key(|lease| (lease.left, lease.source));
            send(status);
        });
    }

    /// The contents of `knockd status`. The cost does not depend on the number of attempts.
    fn status(&self) -> Status {
        let now = self.clock.now();
        let listeners = &self.dispatcher.listeners;
        let interfaces = listeners.interfaces().map(|(interface, is_read, problem)| InterfaceStatus {
            name: interface.name.clone(),
            listening: is_read,
            up: interface.up,
            addresses: interface.addresses.clone(),
            problem: problem.map(str::to_owned),
        });
        let missing = listeners.missing().into_iter().map(|name| InterfaceStatus {
            name: name.to_owned(),
            listening: false,
            up: false,
            addresses: Vec::new(),
            problem: None,
        });
        let doors = self.setup.config.doors.iter().enumerate().map(|(index, door)| {
            let id = DoorId::new(index);
            DoorStatus {
                name: door.name.to_string(),
                steps: self.gate.steps_of(id),
                one_time: door.key.one_time_file().is_some(),
            }
        });
        let attempts = self.gate.attempts().take(MAX_ATTEMPTS).map(|attempt| AttemptStatus {
            source: attempt.source,
            door: self.setup.door_name(attempt.door).to_owned(),
            stage: attempt.stage,
            age: now.since(attempt.begun).as_secs(),
        });
        Status {
            problems: self.problems(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            config: self.setup.config_path.display().to_string(),
            uptime: now.since(Timestamp::ZERO).as_secs(),
            interfaces: interfaces.chain(missing).collect(),
            doors: doors.collect(),
            attempts: AttemptsStatus { total: self.gate.attempt_count(), listed: attempts.collect() },
            leases: self.leases(now),
            counters: self.counters(),
            commands: self.commands(),
            health: Health {
                state_directory: self.dispatcher.executor.state().map(|path| path.display().to_string()),
                state_problem: self.dispatcher.executor.state_problem().map(str::to_owned),
                filter_exact: self.dispatcher.listeners.surplus() == 0,
                decoder: self.dispatcher.kept.clone(),
                native: matches!(self.rights, Rights::Helper(_)),
                engine: self.kept.clone(),
                capture_problem: self.dispatcher.listeners.problem(self.clock.now()).map(str::to_owned),
                longest_iteration_us: self.longest_iteration.as_micros().try_into().unwrap_or(u64::MAX),
            },
        }
    }

    fn scanners(&self) -> ScannersStatus {
        let now = self.clock.now();
        let mut found: Vec<_> = self.gate.scanners(now).collect();
        let total = found.len();
        found.sort_unstable_by_key(|scanner| (Reverse(scanner.until), scanner.source));
        let listed = found.iter().take(MAX_SCANNERS);
        let listed = listed
            .map(|scanner| ScannerStatus { source: scanner.source, left: seconds_until(scanner.until, now) });
        ScannersStatus { total, listed: listed.collect() }
    }

    fn events(&self) -> Vec<LogEvent> {
        let lines = self.dispatcher.log.recent().into_iter();
        let event = |line: RecentLine| LogEvent {
            time: line.time.to_string(),
            event: line.event.to_owned(),
            text: line.text,
        };
        lines.map(event).collect()
    }

    fn counters(&self) -> CountersStatus {
        let super::dispatcher::Counters {
            packets,
            dropped,
            attempts,
            timeouts,
            spoiled,
            evicted,
            opens,
            scanners,
        } = self.dispatcher.counters;
        let visible = self.gate.visible_packets();
        CountersStatus { packets, dropped, visible, attempts, opens, timeouts, spoiled, evicted, scanners }
    }

    fn commands(&self) -> CommandsStatus {
        let Tally { run, failed, closed, given_up } = self.dispatcher.executor.tally();
        let (starting, waiting) = self.dispatcher.executor.commands();
        CommandsStatus { run, failed, closed, given_up, starting, waiting }
    }

    fn is_for_single_use(&self, door: &DoorName) -> bool {
        self.setup.config.doors.iter().any(|other| other.name == *door && other.single_use)
    }

    fn leases(&self, now: Timestamp) -> LeasesStatus {
        let mut leases = LeasesStatus {
            total: self.gate.lease_count(),
            starting: 0,
            open: 0,
            closing: 0,
            retrying: 0,
            listed: Vec::new(),
        };
        // Those that end first. Of very many leases, a list of all would take half as much memory as the leases themselves.
        let mut first = BinaryHeap::new();
        for lease in self.gate.leases() {
            *match state_of(lease.state) {
                LeasePhase::Starting => &mut leases.starting,
                LeasePhase::Open | LeasePhase::Used => &mut leases.open,
                LeasePhase::Closing => &mut leases.closing,
                LeasePhase::Retrying => &mut leases.retrying,
            } += 1;
            first.push((end_of(lease.state), lease.key.source, lease.id));
            if first.len() > MAX_LEASES {
                first.pop();
            }
        }
        let first = first.into_sorted_vec().into_iter();
        let first = first.filter_map(|(end, _, id)| Some((end, self.gate.lease(id)?)));
        let listed = first.map(|(end, lease)| LeaseStatus {
            door: lease.key.door.to_string(),
            source: lease.key.source,
            state: state_of(lease.state),
            left: end.map(|end| seconds_until(end, now)),
            kept_open_by: lease.extend.map(|extend| match extend {
                Extend::Idle(_) => KeptOpenBy::Packets,
                Extend::Connected { .. } => KeptOpenBy::Connections,
            }),
            connections: lease.connections,
            single_use: lease.key.admitted().is_some() && self.is_for_single_use(&lease.key.door),
            failed: matches!(
                lease.state,
                LeaseState::Open { failed: true, .. } | LeaseState::Retrying { .. }
            ),
        });
        leases.listed = listed.collect();
        leases
    }
}

/// What came of extending leases.
struct Extended {
    /// How many now last longer.
    longer: usize,
    /// The longest time for which one of the others stays open.
    left: Option<Duration>,
}

/// Says whether packets change whom the firewall lets in.
fn is_changed_by_packets(lease: &LeaseStatus) -> bool {
    lease.state == LeasePhase::Open && (lease.single_use || lease.kept_open_by == Some(KeptOpenBy::Packets))
}

/// Rounds up: 0 only once it is due.
fn seconds_until(end: Timestamp, now: Timestamp) -> u64 {
    end.since(now).as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)
}

const fn state_of(state: LeaseState) -> LeasePhase {
    match state {
        LeaseState::Starting => LeasePhase::Starting,
        LeaseState::Open { .. } => LeasePhase::Open,
        LeaseState::Closing => LeasePhase::Closing,
        LeaseState::Retrying { .. } => LeasePhase::Retrying,
    }
}

/// When a lease is due; `None` while a command runs.
const fn end_of(state: LeaseState) -> Option<Timestamp> {
    match state {
        LeaseState::Open { until: end, .. } | LeaseState::Retrying { again: end, .. } => Some(end),
        LeaseState::Starting | LeaseState::Closing => None,
    }
}

/// Fails if no door can have this name.
fn filter(door: Option<&str>, source: Option<IpAddr>) -> Result<LeaseFilter, String> {
    let door = door.map(DoorName::new).transpose().map_err(|error| error.to_string())?;
    Ok(LeaseFilter { door, source })
}
