//! What the engine answers to requests: values of their own, made at once, for whoever may be slow.

use std::net::IpAddr;
use std::time::Duration;

use knockd_core::{DoorId, EventKind, LeaseKey, Timestamp, similar};

use super::Engine;
use crate::control::socket::Ask;
use crate::control::{
    AttemptStatus, Attempts, DoorStatus, Health, InterfaceStatus, LeaseState, LeaseStatus, Leases, Reply,
    Request, Status,
};
use crate::log::Line;
use crate::system::text::count;

/// How many attempts are listed.
const MAX_ATTEMPTS: usize = 100;

/// How many leases are listed.
const MAX_LEASES: usize = 1000;

impl Engine {
    pub(super) fn answer(&mut self, ask: Ask) {
        let Ask { request, who, reply, listening } = ask;
        let answer = match &request {
            Request::Status {} => Reply::Status(Box::new(self.status())),
            Request::Trace { address } => {
                self.log(&Line::request(&who, &request.to_string()));
                let addresses: Vec<_> = self.ears.addresses().collect();
                return self.tracers.add(*address, reply, listening, &addresses);
            }
            _ => self.obey(&request, &who).map_or_else(Reply::refused, Reply::done),
        };
        // The client may have gone.
        let _ = reply.try_send(answer);
    }

    /// Does what is asked for, and says what was done, or why not.
    fn obey(&mut self, request: &Request, who: &str) -> Result<String, String> {
        if let Request::Close { door: Some(door), .. }
        | Request::Extend { door, .. }
        | Request::Open { door, .. } = request
        {
            self.find(door)?;
        }
        // Names of doors have no line ends, so neither has this.
        self.log(&Line::request(who, &request.to_string()));
        match request {
            Request::Status {} | Request::Trace { .. } => Err("this is no order".to_owned()),
            Request::Reload {} => {
                self.reload().map(|()| format!("{} is in force", self.setup.config_path.display()))
            }
            Request::Open { door, address } => self.open_for(door, *address),
            Request::Close { door, address } => {
                let is_meant = |key: &LeaseKey| {
                    door.as_ref().is_none_or(|door| *door == key.door)
                        && address.is_none_or(|address| address == key.source)
                };
                match self.doors.close(is_meant, &self.setup.options, &self.log) {
                    0 if address.is_some() => Err(self.not_open(door.as_deref(), *address)),
                    closing => Ok(format!("{} closing", being(closing))),
                }
            }
            Request::Extend { door, address, seconds } => {
                let is_meant = |key: &LeaseKey| key.door == *door && key.source == *address;
                let time = seconds.map(|seconds| Duration::from_secs(seconds.into()));
                match self.doors.extend(is_meant, time, &self.setup.options, &self.log) {
                    0 if self.doors.leases().iter().any(|lease| is_meant(lease.key)) => Err(format!(
                        "{door} is just being closed for {address}; `knockd open` opens it again"
                    )),
                    0 => Err(self.not_open(Some(door), Some(*address))),
                    extended => Ok(format!("{} extended", being(extended))),
                }
            }
        }
    }

    /// Fails when there is no such door, neither in the configuration nor open from an earlier one.
    fn find(&self, name: &str) -> Result<(), String> {
        let configured = || self.setup.doors.iter().map(|door| door.name.as_str());
        let known = || configured().chain(self.doors.leases().iter().map(|lease| lease.key.door.as_str()));
        if known().any(|known| known == name) {
            return Ok(());
        }
        let help = similar(name, known()).map(|known| format!(", did you mean {known:?}?"));
        let all: Vec<_> = configured().take(MAX_ATTEMPTS).collect();
        Err(format!(
            "there is no door {name:?}{}",
            help.unwrap_or_else(|| format!("; there are: {}", all.join(", ")))
        ))
    }

    fn open_for(&mut self, name: &str, source: IpAddr) -> Result<String, String> {
        let mut opened = 0;
        for door in self.setup.doors.iter().filter(|door| door.name == name) {
            if door.start.expand(source).is_none() {
                continue;
            }
            if let Some(line) = Line::event(source, &door.name, EventKind::Opened) {
                self.log.write(&line);
            }
            self.doors
                .open(door, source, &self.setup.options, &self.log, |_| {})
                .map_err(|full| format!("{name} stays closed: {full}"))?;
            opened += 1;
        }
        match opened {
            0 => Err(format!("{name} has no start command for {source}")),
            _ => Ok(format!("{name} is opened for {source}")),
        }
    }

    fn not_open(&self, door: Option<&str>, address: Option<IpAddr>) -> String {
        let what = door.unwrap_or("no door");
        let is = if door.is_some() { "is not open" } else { "is open" };
        let whom = address.map(|address| format!(" for {address}")).unwrap_or_default();
        let others =
            self.doors.leases().iter().filter(|lease| door.is_none_or(|door| door == lease.key.door));
        let mut others: Vec<_> = others.take(MAX_ATTEMPTS).map(|lease| lease.key.source).collect();
        others.sort_unstable();
        let others: Vec<_> = others.iter().map(IpAddr::to_string).collect();
        let but = if others.is_empty() { String::new() } else { format!(", but for {}", others.join(", ")) };
        format!("{what} {is}{whom}{but}")
    }

    /// What `knockd status` shows. The cost does not depend on how many attempts there are.
    fn status(&self) -> Status {
        let now = self.clock.now();
        let interfaces = self.ears.interfaces().map(|interface| InterfaceStatus {
            name: interface.name.clone(),
            listening: true,
            up: interface.up,
            addresses: interface.addresses.clone(),
        });
        let missing = self.ears.missing().map(|name| InterfaceStatus {
            name: name.to_owned(),
            listening: false,
            up: false,
            addresses: Vec::new(),
        });
        let doors = self.setup.doors.iter().enumerate().map(|(index, door)| {
            let id = DoorId::new(index);
            DoorStatus {
                name: door.name.clone(),
                steps: self.matcher.steps_of(id),
                one_time: self.setup.one_time.contains_key(&id),
            }
        });
        let attempts = self.matcher.underway().take(MAX_ATTEMPTS).map(|attempt| AttemptStatus {
            source: attempt.source,
            door: self.setup.door_name(attempt.door).to_owned(),
            stage: attempt.stage,
            age: now.since(attempt.begun).as_secs(),
        });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: now.since(Timestamp::ZERO).as_secs(),
            interfaces: interfaces.chain(missing).collect(),
            doors: doors.collect(),
            attempts: Attempts { total: self.matcher.underway_count(), listed: attempts.collect() },
            leases: self.leases(now),
            counters: crate::control::Counters { visible: self.matcher.visible_packets(), ..self.counters },
            commands: self.doors.commands(),
            health: Health {
                state_directory: self.doors.state().map(|path| path.display().to_string()),
                state_problem: self.doors.state_problem().map(str::to_owned),
                filter_exact: self.ears.surplus() == 0,
                decoder: self.kept.clone(),
            },
        }
    }

    fn leases(&self, now: Timestamp) -> Leases {
        let mut leases = Leases {
            total: self.doors.leases().len(),
            starting: 0,
            open: 0,
            closing: 0,
            retrying: 0,
            listed: Vec::new(),
        };
        let mut found: Vec<_> =
            self.doors.leases().iter().map(|lease| (end_of(lease.state), lease)).collect();
        for (_, lease) in &found {
            *match state_of(lease.state) {
                LeaseState::Starting => &mut leases.starting,
                LeaseState::Open => &mut leases.open,
                LeaseState::Closing => &mut leases.closing,
                LeaseState::Retrying => &mut leases.retrying,
            } += 1;
        }
        let order = |(end, lease): &(Option<Timestamp>, knockd_core::LeaseView<'_>)| (*end, lease.key.source);
        if found.len() > MAX_LEASES {
            // The rest need not be sorted.
            found.select_nth_unstable_by_key(MAX_LEASES, order);
            found.truncate(MAX_LEASES);
        }
        found.sort_by_key(order);
        let listed = found.into_iter().map(|(end, lease)| LeaseStatus {
            door: lease.key.door.clone(),
            source: lease.key.source,
            state: state_of(lease.state),
            // 0 only when it is over.
            left: end.map(|end| end.since(now).as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)),
            failed: matches!(
                lease.state,
                knockd_core::LeaseState::Open { failed: true, .. } | knockd_core::LeaseState::Retrying { .. }
            ),
        });
        leases.listed = listed.collect();
        leases
    }
}

const fn state_of(state: knockd_core::LeaseState) -> LeaseState {
    match state {
        knockd_core::LeaseState::Starting => LeaseState::Starting,
        knockd_core::LeaseState::Open { .. } => LeaseState::Open,
        knockd_core::LeaseState::Closing => LeaseState::Closing,
        knockd_core::LeaseState::Retrying { .. } => LeaseState::Retrying,
    }
}

/// When something is due; nothing is while a command runs.
const fn end_of(state: knockd_core::LeaseState) -> Option<Timestamp> {
    match state {
        knockd_core::LeaseState::Open { until: end, .. }
        | knockd_core::LeaseState::Retrying { again: end, .. } => Some(end),
        knockd_core::LeaseState::Starting | knockd_core::LeaseState::Closing => None,
    }
}

/// That many doors are.
fn being(doors: usize) -> String {
    format!("{} {}", count(doors, "open door"), if doors == 1 { "is" } else { "are" })
}
