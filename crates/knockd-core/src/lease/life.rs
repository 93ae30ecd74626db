//! One lease: its phase, and what each change of that takes.

use std::sync::Arc;
use std::time::Duration;

use super::{Access, Admission, Effect, LeaseId, LeaseKey, LeaseRecord, Run, RunKind, StartState};
use crate::config::Extend;
use crate::time::{Milliseconds, Now, Timestamp};

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) id: LeaseId,
    pub(super) key: LeaseKey,
    pub(super) cmd_timeout: Duration,
    pub(super) phase: Phase,
    /// What keeps it open beyond its time.
    pub(super) extend: Option<Extend>,
    /// How many connections kept it open when the caller looked last.
    pub(super) connections: Option<u32>,
    /// Whether limits count it: of the leases of one opening, the first.
    pub(super) counts: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The start command is running; `closes` says whether the stop command follows at once.
    Starting { closes: bool },
    /// The start command ended, successfully or not.
    ///
    /// At `next`, it closes, or the caller looks whether it stays open, if it does not already.
    Open { until: Timestamp, failed: bool, next: Timestamp, is_looked_at: bool },
    /// The stop command is running after this many failures; `knocked` says whether a knock arrived meanwhile.
    Stopping { failures: usize, knocked: bool },
    /// The stop command failed this many times and will run again.
    Failing { failures: usize, again: Timestamp },
}

impl Phase {
    /// Returns when something has to be done, unless a command runs or the caller looks.
    pub(super) const fn due(self) -> Option<Timestamp> {
        match self {
            Self::Open { next, is_looked_at: false, .. } => Some(next),
            Self::Failing { again, .. } => Some(again),
            Self::Starting { .. } | Self::Open { .. } | Self::Stopping { .. } => None,
        }
    }
}

impl Lease {
    pub(super) const fn new(
        id: LeaseId,
        key: LeaseKey,
        cmd_timeout: Duration,
        extend: Option<Extend>,
    ) -> Self {
        let phase = Phase::Starting { closes: false };
        Self { id, key, cmd_timeout, phase, extend, connections: None, counts: true }
    }

    pub(super) fn start(&mut self, now: Now) -> Vec<Effect> {
        self.phase = Phase::Starting { closes: false };
        let until = now.monotonic.after(self.cmd_timeout);
        self.store(until, false, now).into_iter().chain([self.act(RunKind::Start)]).collect()
    }

    /// Returns what has to be done because the end has moved.
    pub(super) fn move_end(&self, until: Timestamp, failed: bool, now: Now) -> Vec<Effect> {
        let (store, admit) = (self.store(until, failed, now), self.admit(until, now));
        store.into_iter().chain(admit).chain([Effect::EndMoved(self.id, until)]).collect()
    }

    /// Moves the deadline of an open lease to `time` from now, but never earlier than it was; returns the new one.
    pub(super) fn prolong(&mut self, until: Timestamp, failed: bool, time: Duration, now: Now) -> Timestamp {
        let later = now.monotonic.after(time);
        if later >= until {
            self.cmd_timeout = time;
        }
        let until = until.max(later);
        self.keep_open(until, failed, now);
        until
    }

    /// Lets the door be open until then.
    pub(super) fn keep_open(&mut self, until: Timestamp, failed: bool, now: Now) {
        let next = match self.extend {
            // A packet may have replaced the time of the knock by this one, which is then over.
            Some(idle @ Extend::Idle(_)) => until.min(now.monotonic.after(idle.time())),
            Some(Extend::Connected { .. }) | None => until,
        };
        self.phase = Phase::Open { until, failed, next, is_looked_at: false };
    }

    /// Does what is due: looks whether the door stays open, or stops.
    pub(super) fn end(&mut self) -> Effect {
        match &mut self.phase {
            Phase::Open { is_looked_at, .. } if self.extend.is_some() => {
                *is_looked_at = true;
                Effect::Look(self.admission())
            }
            _ => self.stop(self.failures()),
        }
    }

    /// Stops before the deadline. The record says that it is overdue from now on, and that another knock has to run the
    /// start command, in case the daemon does not live to see the end of the stop command.
    pub(super) fn close_early(&mut self, now: Now) -> Vec<Effect> {
        let failures = self.failures();
        let stop = self.stop(failures);
        // One that has failed before is overdue already.
        let store = if failures == 0 { self.store(now.monotonic, true, now) } else { None };
        store.into_iter().chain([stop]).collect()
    }

    pub(super) fn stop(&mut self, failures: usize) -> Effect {
        self.phase = Phase::Stopping { failures, knocked: false };
        self.act(RunKind::Stop)
    }

    pub(super) fn act(&self, kind: RunKind) -> Effect {
        let LeaseKey { door, source, access } = &self.key;
        match (access, kind) {
            (Access::Commands { start: command, .. }, RunKind::Start)
            | (Access::Commands { stop: command, .. }, RunKind::Stop) => {
                let (door, source, command) = (door.clone(), *source, command.clone());
                Effect::Run(Run { id: self.id, kind, door, source, command })
            }
            (Access::Firewall | Access::Network, RunKind::Start) => {
                Effect::Admit(self.admission(), self.cmd_timeout)
            }
            (Access::Firewall | Access::Network, RunKind::Stop) => Effect::Shut(self.admission()),
        }
    }

    pub(super) fn admission(&self) -> Admission {
        let source = self.key.admitted().unwrap_or(self.key.source.into());
        Admission { id: self.id, door: self.key.door.clone(), source }
    }

    /// Returns how to tell the firewall that the end has moved, if it keeps the time.
    pub(super) fn admit(&self, until: Timestamp, now: Now) -> Option<Effect> {
        self.key.admitted().map(|_| Effect::Admit(self.admission(), until.since(now.monotonic)))
    }

    /// Returns how to tell the firewall that connections have moved the end.
    pub(super) fn prolong_admission(&self, until: Timestamp, now: Now) -> Vec<Effect> {
        let time = until.since(now.monotonic);
        vec![Effect::Prolong(self.admission(), time), Effect::EndMoved(self.id, until)]
    }

    /// Says whether a record of it is stored; the firewall's own are not.
    pub(super) fn is_stored(&self) -> bool {
        self.key.admitted().is_none()
    }

    pub(super) fn store(&self, until: Timestamp, failed: bool, now: Now) -> Option<Effect> {
        self.is_stored().then(|| Effect::Store(self.record(until, failed, now)))
    }

    pub(super) fn record(&self, until: Timestamp, failed: bool, now: Now) -> LeaseRecord {
        let (key, cmd_timeout) = (Arc::new(self.key.clone()), Milliseconds::new(self.cmd_timeout));
        let start = match self.phase {
            Phase::Starting { .. } => StartState::Running(None),
            Phase::Open { .. } | Phase::Stopping { .. } | Phase::Failing { .. } => StartState::Ended,
        };
        LeaseRecord {
            id: self.id,
            key,
            cmd_timeout,
            until: now.calendar_at(until),
            failed,
            start,
            boot: None,
        }
    }

    /// Returns how often the stop command has failed so far.
    pub(super) const fn failures(&self) -> usize {
        match self.phase {
            Phase::Stopping { failures, .. } | Phase::Failing { failures, .. } => failures,
            Phase::Starting { .. } | Phase::Open { .. } => 0,
        }
    }
}
