//! A caller of the leases: it carries out what they say, and asserts at every step what is right.

mod doors;
mod knock;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use knockd_core::config::Reopen;
use knockd_core::parts::Leases;
use knockd_core::{
    DoorName, Effect, LeaseFilter, LeaseId, LeaseKey, LeaseRecord, Now, Run, RunKind, StartState, Timestamp,
    UnixTime,
};
use proptest::sample::Index;

pub(crate) use self::doors::doors;
use self::doors::{MAX_OPEN_OF_B, command_of, network};

/// `MaxOpen` of most callers.
const MAX_OPEN: NonZeroU32 = NonZeroU32::new(6).unwrap();

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Wait(Duration),
    Knock {
        door: Index,
        source: IpAddr,
    },
    Exit {
        which: usize,
        succeeded: bool,
    },
    /// A control client closes what is open at doors of this name for this source, or for everybody.
    Close {
        name: &'static str,
        source: Option<IpAddr>,
    },
    /// A control client extends it.
    Extend {
        name: &'static str,
        source: IpAddr,
        time: Option<Duration>,
    },
    Timeout,
    TimeoutWhenDue,
    CloseAll,
    /// The daemon dies, and its successor takes over what it had stored.
    Restart,
}

/// What a caller knows about a lease.
#[derive(Debug)]
struct Known {
    key: Arc<LeaseKey>,
    reopen: Reopen,
    cmd_timeout: Duration,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Running {
        kind: RunKind,
        knocked: bool,
        /// It is to be closed when its start command has ended.
        closes: bool,
    },
    /// The command has just ended.
    Ended {
        kind: RunKind,
        succeeded: bool,
        closes: bool,
    },
    Open {
        until: Timestamp,
        failed: bool,
    },
    /// The stop command has failed and will run again.
    Failing,
}

pub(crate) struct Caller {
    max_open: NonZeroU32,
    pub(crate) leases: Leases,
    pub(crate) now: Timestamp,
    pub(crate) closing: bool,
    pub(crate) running: Vec<Run>,
    stored: BTreeMap<LeaseId, LeaseRecord>,
    known: BTreeMap<LeaseId, Known>,
    /// The `Reopen` of the door that is being knocked at.
    reopen: Reopen,
    /// A control client is closing doors.
    asked: bool,
}

impl Default for Caller {
    fn default() -> Self {
        Self::new(MAX_OPEN)
    }
}

impl Caller {
    pub(crate) fn new(max_open: NonZeroU32) -> Self {
        Self {
            max_open,
            leases: Leases::default(),
            now: Timestamp::default(),
            closing: false,
            running: Vec::new(),
            stored: BTreeMap::new(),
            known: BTreeMap::new(),
            reopen: Reopen::default(),
            asked: false,
        }
    }

    /// Says whether no door is open, and none is remembered.
    pub(crate) fn has_closed_all(&self) -> bool {
        self.known.is_empty() && self.stored.is_empty()
    }

    pub(crate) fn do_op(&mut self, op: &Op) {
        match op {
            Op::Wait(wait) => self.now = self.now.after(*wait),
            Op::Knock { door, source } => self.knock(door.get(&doors()), *source),
            Op::Exit { which, succeeded } if !self.running.is_empty() => {
                self.exit(which % self.running.len(), *succeeded);
            }
            Op::Exit { .. } => (),
            Op::Close { name, source } => {
                self.close(&filter(name, *source));
            }
            Op::Extend { name, source, time } => {
                self.extend(&filter(name, Some(*source)), *time);
            }
            Op::Timeout => self.timeout(),
            Op::TimeoutWhenDue => {
                self.now = self.leases.poll_timeout().map_or(self.now, |due| due.max(self.now));
                self.timeout();
            }
            Op::CloseAll => {
                self.closing = true;
                let effects = self.leases.close_all(self.both_clocks());
                self.carry_out(effects);
                assert_eq!(self.leases.poll_timeout(), None);
            }
            Op::Restart => self.restart(),
        }
        self.check();
    }

    /// The calendar has another origin, and its time is as fine as that of operations.
    pub(crate) fn both_clocks(&self) -> Now {
        let since_origin = self.now.since(Timestamp::ZERO);
        Now {
            monotonic: self.now,
            calendar: UnixTime::new(Duration::from_secs(1_800_000_000) + since_origin),
        }
    }

    pub(crate) fn check(&self) {
        let known: Vec<_> = self.known.keys().collect();
        assert_eq!(self.leases.len(), known.len());
        assert!(known.len() <= self.max_open.get() as usize);
        let at_b = self.known.values().filter(|known| known.key.door == "b").count();
        assert!(at_b <= MAX_OPEN_OF_B.get() as usize);
        let mut of_network: BTreeMap<_, u32> = BTreeMap::new();
        for Known { key, .. } in self.known.values() {
            let count = of_network.entry((&key.door, network(key.source))).or_default();
            *count += 1;
            assert!(*count <= Leases::MAX_OF_NETWORK, "{key:?}");
        }
        if self.closing {
            assert!(known.iter().all(|id| self.stored.contains_key(id)));
        } else {
            assert_eq!(known, self.stored.keys().collect::<Vec<_>>(), "what is stored is what is open");
        }
        let ends = self.known.values().filter_map(|known| match known.state {
            State::Open { until, .. } => Some(until),
            _ => None,
        });
        let is_failing = self.known.values().any(|known| known.state == State::Failing);
        match (self.leases.poll_timeout(), ends.min()) {
            (Some(due), Some(end)) => assert!(due == end || (is_failing && due < end)),
            (due, None) => assert_eq!(due.is_some(), is_failing),
            (None, Some(_)) => panic!("an open door is forgotten"),
        }
        for known in self.known.values().filter(|known| known.reopen == Reopen::Extend) {
            let alike = self.known.values().filter(|other| other.key == known.key);
            assert_eq!(alike.count(), 1, "{:?} has two leases", known.key);
        }
    }

    fn exit(&mut self, which: usize, succeeded: bool) {
        let Run { id, .. } = self.running.remove(which);
        let mut was_knocked = false;
        if let Some(known) = self.known.get_mut(&id) {
            let State::Running { kind, knocked, closes } = known.state else { panic!("{known:?}") };
            (known.state, was_knocked) = (State::Ended { kind, succeeded, closes }, knocked);
        }
        let effects = self.leases.handle_exit(id, succeeded, self.both_clocks());
        self.carry_out(effects);
        let now = self.both_clocks();
        let Some(known) = self.known.get_mut(&id) else { return };
        match known.state {
            State::Ended { kind: RunKind::Start, closes, .. } => {
                assert!(!self.closing && !closes, "it stays open");
                let until = self.now.after(known.cmd_timeout);
                assert_eq!(self.stored[&id].until, now.calendar_at(until));
                known.state = State::Open { until, failed: !succeeded };
            }
            State::Ended { kind: RunKind::Stop, .. } if self.closing => {
                assert!(!succeeded, "its door is closed");
                self.known.remove(&id);
            }
            State::Ended { kind: RunKind::Stop, .. } => {
                assert!(!succeeded && !was_knocked, "its door is closed, or a knock is lost");
                known.state = State::Failing;
            }
            _ => (),
        }
    }

    fn close(&mut self, which: &LeaseFilter) {
        let mut stops = 0;
        for known in self.known.values_mut().filter(|known| which.includes(&known.key)) {
            match &mut known.state {
                State::Running { knocked, closes, kind } => {
                    *knocked &= *kind == RunKind::Start;
                    *closes |= *kind == RunKind::Start;
                }
                State::Open { .. } | State::Failing => stops += 1,
                State::Ended { .. } => panic!("{known:?}"),
            }
        }
        let now = self.both_clocks();
        let effects = self.leases.close(which, now);
        let runs =
            effects.iter().filter(|effect| matches!(effect, Effect::Run(run) if run.kind == RunKind::Stop));
        assert_eq!(runs.count(), stops);
        for effect in effects.iter().filter(|effect| !matches!(effect, Effect::Run(_))) {
            let Effect::Store(record) = effect else { panic!("{effect:?}") };
            assert_eq!((record.until, record.failed), (now.calendar, true), "it is overdue");
        }
        self.asked = true;
        self.carry_out(effects);
        self.asked = false;
    }

    fn extend(&mut self, which: &LeaseFilter, time: Option<Duration>) {
        let mut ends = Vec::new();
        for (&id, known) in self.known.iter_mut().filter(|(_, known)| which.includes(&known.key)) {
            let Known { state, cmd_timeout, .. } = known;
            let time = time.unwrap_or(*cmd_timeout);
            match state {
                State::Open { until, .. } => {
                    prolong(until, cmd_timeout, time, self.now);
                    ends.push((id, *until));
                }
                State::Running { kind: RunKind::Start, closes: false, .. } => {
                    *cmd_timeout = time.max(*cmd_timeout);
                    ends.push((id, self.now.after(*cmd_timeout)));
                }
                _ => {}
            }
        }
        let now = self.both_clocks();
        let effects = self.leases.extend(which, time, now);
        let told: Vec<_> = effects
            .chunks(2)
            .map(|effects| match effects {
                [Effect::Store(record), Effect::EndMoved(id, until)] => {
                    assert_eq!((record.id, record.until), (*id, now.calendar_at(*until)));
                    (*id, *until)
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(told, ends);
        self.carry_out(effects);
    }

    fn timeout(&mut self) {
        let effects = self.leases.handle_timeout(self.now);
        assert!(effects.iter().all(|effect| matches!(effect, Effect::Run(run) if run.kind == RunKind::Stop)));
        self.carry_out(effects);
        assert_eq!(self.leases.handle_timeout(self.now), [], "a second call did something");
        assert!(self.leases.poll_timeout().is_none_or(|due| due > self.now), "asks for the present again");
    }

    fn restart(&mut self) {
        self.leases = Leases::new();
        let now = self.both_clocks();
        self.leases.restore(self.stored.values().cloned(), LeaseId(0), now);
        self.closing = false;
        self.running.clear();
        let reopen_of = |key: &LeaseKey| if key.door == "c" { Reopen::Run } else { Reopen::Extend };
        let known = |record: &LeaseRecord| Known {
            key: record.key.clone(),
            reopen: reopen_of(&record.key),
            cmd_timeout: record.cmd_timeout.duration(),
            state: State::Open {
                until: now.moment_at(record.until, record.cmd_timeout.duration()),
                failed: record.failed || record.start != StartState::Ended,
            },
        };
        self.known = self.stored.iter().map(|(&id, record)| (id, known(record))).collect();
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Store(record) => {
                    self.stored.insert(record.id, record);
                }
                Effect::Forget(id) => {
                    self.end(id, true);
                }
                Effect::SetAside(record) => {
                    self.end(record.id, false);
                }
                Effect::Run(run) => self.run(run),
                Effect::EndMoved(..) => {}
                Effect::Admit(..)
                | Effect::Prolong(..)
                | Effect::Look(_)
                | Effect::Shut(_)
                | Effect::Burn(_) => panic!("{effect:?}"),
            }
        }
    }

    fn end(&mut self, id: LeaseId, succeeded: bool) {
        self.stored.remove(&id).unwrap();
        let known = self.known.remove(&id).unwrap();
        assert_eq!(known.state, State::Ended { kind: RunKind::Stop, succeeded, closes: false });
    }

    fn run(&mut self, run: Run) {
        assert!(self.running.iter().all(|other| other.id != run.id), "start and stop command overlap");
        if let Some(record) = self.stored.get(&run.id) {
            let known = self.known.entry(run.id).or_insert(Known {
                key: record.key.clone(),
                reopen: self.reopen,
                cmd_timeout: record.cmd_timeout.duration(),
                state: State::Failing,
            });
            match (run.kind, known.state) {
                (RunKind::Start, _) => {
                    assert!(!self.closing);
                    assert_eq!(&*run.command, command_of(&known.key, RunKind::Start));
                    assert_eq!(record.start, StartState::Running(None), "a crash would not be noticed");
                }
                (RunKind::Stop, State::Open { until, failed }) => {
                    assert!(failed || record.start == StartState::Ended);
                    assert!(until <= self.now || self.closing || self.asked, "too early");
                    assert_eq!(&*run.command, command_of(&known.key, RunKind::Stop));
                }
                (RunKind::Stop, State::Failing) => {
                    assert_eq!(&*run.command, command_of(&known.key, RunKind::Stop));
                }
                (RunKind::Stop, State::Ended { kind: RunKind::Start, closes, .. }) => {
                    assert!(self.closing || closes);
                }
                (RunKind::Stop, _) => panic!("{run:?} after {known:?}"),
            }
            known.state = State::Running { kind: run.kind, knocked: false, closes: false };
        } else {
            assert_eq!(run.door, "d", "a command runs for a lease that is not stored");
        }
        self.running.push(run);
    }
}

fn filter(name: &str, source: Option<IpAddr>) -> LeaseFilter {
    LeaseFilter { door: Some(DoorName::new(name).unwrap()), source }
}

/// Moves the end of an open lease to `time` from now, but never nearer.
fn prolong(until: &mut Timestamp, cmd_timeout: &mut Duration, time: Duration, now: Timestamp) {
    if now.after(time) >= *until {
        (*until, *cmd_timeout) = (now.after(time), time);
    }
}
