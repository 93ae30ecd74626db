//! Leases: which door is open for whom until when, and what has to be done and stored because of that.
//!
//! A lease goes through these phases. A knock at an open door moves its deadline; one that arrives while a command runs
//! waits for the command to end.
//!
//! ```text
//!   knock ──▶ Starting ──start command ends──▶ Open ──its time is over──▶ Stopping ──▶ gone
//!                ▲                                                         │    ▲
//!                └────────────── there was a knock meanwhile ──────────────┤    │ again
//!                                                                 it fails └▶ Failing
//! ```

mod control;
mod due;
mod effect;
mod follow;
mod index;
mod life;
mod record;
mod restore;
mod slots;
mod table;
mod wish;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

pub use self::control::{LeaseFilter, LeaseState, LeaseView};
pub use self::effect::{Access, Admission, Burn, BurnId, Effect, LeaseId, LeaseKey, Run, RunKind, Sight};
use self::life::{Lease, Phase};
pub use self::record::{LeaseRecord, LeaseRecordError, ProcessId, ProcessIdError, StartState};
use self::slots::Slot;
use self::table::Table;
use self::wish::{Wish, wishes};
use crate::config::{Door, Reopen};
use crate::outcome::OpeningResult;
use crate::seed::Seed;
use crate::time::{Now, Timestamp};

/// How long to wait after the n-th failure of a stop command before a retry; after the last one, it is given up.
const RETRIES: [Duration; 5] = [
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(30),
    Duration::from_secs(60),
];

/// The open doors.
///
/// A pure state machine: the caller carries out the returned [`Effect`]s in order and at once, and reports the end of
/// every command to [`Self::handle_exit`]; it owns the clock and calls [`Self::handle_timeout`] at
/// [`Self::poll_timeout`]. The start and stop commands of a lease never run at the same time.
#[derive(Default, Debug)]
pub struct Leases {
    table: Table,
    last_id: u64,
    closing: bool,
}

/// Why a knock does not open a door: a limit on leases is reached.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Full {
    /// The limit over all doors.
    #[error("`MaxOpen` reached")]
    Everywhere,
    /// The limit of this door.
    #[error("`Max_Open` reached")]
    Door,
    /// The limit of this door for one network: [`Leases::MAX_OF_NETWORK`].
    #[error("lease limit ({}) for one IPv6 /64 or IPv4 address reached", Leases::MAX_OF_NETWORK)]
    Network,
}

impl Leases {
    /// How many leases of a door one IPv6 /64 may have, and with `Reopen = run` one IPv4 address.
    ///
    /// One host can use every address of its /64, so without a limit somebody who knows a single knock could fill the
    /// firewall, and use up `MaxOpen` for everybody. All devices of a home or an office usually share a /64.
    pub const MAX_OF_NETWORK: u32 = 32;

    /// Creates a state in which every door is closed, with hashes whose key everybody knows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a state in which every door is closed.
    pub fn with_seed(seed: Seed) -> Self {
        Self { table: Table::new(seed), ..Self::default() }
    }

    /// Opens a door for a source that has knocked, and returns the result.
    ///
    /// The firewall comes first; if it lets the source through already, or now, the commands run as well. Of the results, the
    /// first counts.
    ///
    /// Without a start command for the source's address family, no command runs. Without a stop command, it has no
    /// lease: every knock runs the start command. While a lease is open, a knock moves its deadline to a full
    /// `Cmd_Timeout` from now, if that is later, and runs nothing, with two exceptions: a failed start command runs
    /// again, and with `Reopen = run` every knock has its own lease. If a knock arrives while the stop command is
    /// running, the start command runs after it; if it arrives while a failed stop command waits for a retry, the
    /// start command runs now and there are no more retries.
    pub fn open(
        &mut self,
        door: &Door,
        source: IpAddr,
        max_open: NonZeroU32,
        now: Now,
    ) -> (OpeningResult, Vec<Effect>) {
        if self.closing {
            return (OpeningResult::Closing, Vec::new());
        }
        let [first, second] = wishes(door, source);
        let Some(wish) = first else { return (OpeningResult::NothingToRun, Vec::new()) };
        let (result, mut effects) = self.grant(wish, door, source, Some(max_open), now);
        if let Some(wish) = second.filter(|_| !matches!(result, OpeningResult::Full(_))) {
            effects.extend(self.grant(wish, door, source, None, now).1);
        }
        (result, effects)
    }

    /// Does one thing that an opening does, within the limits if there are any for it.
    fn grant(
        &mut self,
        wish: Wish,
        door: &Door,
        source: IpAddr,
        max_open: Option<NonZeroU32>,
        now: Now,
    ) -> (OpeningResult, Vec<Effect>) {
        let (key, reopen) = match wish {
            Wish::Once(command) => {
                let (id, kind, door) = (self.fresh_id(), RunKind::Start, door.name.clone());
                let run = Effect::Run(Run { id, kind, door, source, command });
                return (OpeningResult::Opened, vec![run]);
            }
            Wish::Lease(key, reopen) => (key, reopen),
        };
        let current = match reopen {
            Reopen::Extend => self.table.current(&key),
            Reopen::Run => None,
        };
        if let Some(slot) = current {
            return self.knock_again(slot, door.cmd_timeout.into(), now);
        }
        if let Some(full) = max_open.and_then(|max_open| self.limit_reached(door, &key, max_open)) {
            return (OpeningResult::Full(full), Vec::new());
        }
        // Only the firewall knows connections.
        let extend = door.extend.filter(|_| key.admitted().is_some());
        let counts = max_open.is_some();
        let id = self.fresh_id();
        let mut lease = Lease { counts, ..Lease::new(id, key, door.cmd_timeout.into(), extend) };
        let effects = lease.start(now);
        self.table.add(lease, reopen == Reopen::Extend);
        (OpeningResult::Opened, effects)
    }

    /// Returns the limit that keeps another lease from beginning, if any.
    fn limit_reached(&self, door: &Door, key: &LeaseKey, max_open: NonZeroU32) -> Option<Full> {
        if self.len() >= max_open.get() as usize {
            return Some(Full::Everywhere);
        }
        if door.max_open.is_some_and(|limit| self.table.at_door(&door.name) >= limit.get()) {
            return Some(Full::Door);
        }
        (self.table.at_door_of_network(key) >= Self::MAX_OF_NETWORK).then_some(Full::Network)
    }

    /// Handles the end of a command. `succeeded` says whether its exit status was 0. An unknown `id` is ignored.
    pub fn handle_exit(&mut self, id: LeaseId, succeeded: bool, now: Now) -> Vec<Effect> {
        let closing = self.closing;
        let Some(slot) = self.table.find(id) else { return Vec::new() };
        let Some(lease) = self.table.get_mut(slot) else { return Vec::new() };
        let effects = match lease.phase {
            Phase::Starting { closes } if closes || closing => lease.close_early(now),
            Phase::Starting { .. } => {
                let until = now.monotonic.after(lease.cmd_timeout);
                lease.keep_open(until, !succeeded, now);
                lease.store(until, !succeeded, now).into_iter().collect()
            }
            Phase::Stopping { knocked: true, .. } if !closing => lease.start(now),
            Phase::Stopping { .. } if succeeded => {
                let is_stored = lease.is_stored();
                self.table.remove(slot);
                is_stored.then_some(Effect::Forget(id)).into_iter().collect()
            }
            Phase::Stopping { failures, .. } => match RETRIES.get(failures) {
                // The record stays, so the next start retries.
                _ if closing => {
                    self.table.remove(slot);
                    Vec::new()
                }
                Some(&wait) => {
                    let again = now.monotonic.after(wait);
                    lease.phase = Phase::Failing { failures: failures + 1, again };
                    Vec::new()
                }
                None => {
                    // What the firewall does not close now, the kernel closes in time.
                    let record = lease.is_stored().then(|| lease.record(now.monotonic, true, now));
                    self.table.remove(slot);
                    record.map(Effect::SetAside).into_iter().collect()
                }
            },
            // The firewall cannot look.
            Phase::Open { is_looked_at: true, .. } if !succeeded => {
                self.handle_sight(id, Sight::Connections(0), now)
            }
            // The firewall lets the source through for longer, or refuses.
            Phase::Open { until, next, is_looked_at, .. } if lease.key.admitted().is_some() => {
                lease.phase = Phase::Open { until, failed: !succeeded, next, is_looked_at };
                Vec::new()
            }
            Phase::Open { .. } | Phase::Failing { .. } => Vec::new(),
        };
        self.table.note_due(slot);
        effects
    }

    /// Returns what is due, earliest first: stop commands, and leases to look at. Calling it early or twice is
    /// harmless.
    pub fn handle_timeout(&mut self, now: Timestamp) -> Vec<Effect> {
        let mut effects = Vec::new();
        while let Some(slot) = self.table.first_due()
            && let Some(lease) = self.table.get_mut(slot)
            && lease.phase.due().is_some_and(|at| at <= now)
        {
            effects.push(lease.end());
            self.table.note_due(slot);
        }
        effects
    }

    /// Returns when [`Self::handle_timeout`] wants to be called; `None` if no lease has a deadline.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.table.first_due().and_then(|slot| self.table.get(slot)?.phase.due())
    }

    /// Returns what lets in again everybody whom the firewall should have let in by now.
    pub fn admit_again(&self, now: Now) -> Vec<Effect> {
        let admit = |lease: &Lease| match lease.phase {
            Phase::Open { until, failed: false, .. } => lease.admit(until, now),
            _ => None,
        };
        let all = self.table.oldest_first(|_| true).into_iter();
        all.filter_map(|slot| self.table.get(slot).and_then(admit)).collect()
    }

    /// Closes every door early: returns the stop commands of all open leases, each after its record.
    ///
    /// From now on nothing opens, a lease whose start command is still running closes once that ends, and a failed
    /// stop command is left to the next start of the daemon.
    pub fn close_all(&mut self, now: Now) -> Vec<Effect> {
        self.closing = true;
        let mut effects = Vec::new();
        let is_looked_at = |lease: &Lease| matches!(lease.phase, Phase::Open { is_looked_at: true, .. });
        let mut looked_at = self.table.oldest_first(is_looked_at).into_iter();
        while let Some(slot) = self.table.first_due().or_else(|| looked_at.next()) {
            effects.extend(self.table.get_mut(slot).into_iter().flat_map(|lease| lease.close_early(now)));
            self.table.note_due(slot);
        }
        effects
    }

    /// Says whether any door is open for a source.
    pub fn holds_any(&self, source: IpAddr) -> bool {
        self.table.has_any_for(source)
    }

    /// Says whether a knock at this door would use an existing lease.
    pub fn holds(&self, door: &Door, source: IpAddr) -> bool {
        wishes(door, source).into_iter().flatten().any(|wish| match wish {
            Wish::Lease(key, Reopen::Extend) => self.table.current(&key).is_some(),
            Wish::Lease(_, Reopen::Run) | Wish::Once(_) => false,
        })
    }

    /// Returns the number of leases, including those whose stop command is still running.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Says whether every door is closed and no stop command is running.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn knock_again(&mut self, slot: Slot, cmd_timeout: Duration, now: Now) -> (OpeningResult, Vec<Effect>) {
        let Some(lease) = self.table.get_mut(slot) else { return (OpeningResult::Queued, Vec::new()) };
        let result = match lease.phase {
            // The time starts at the end of the start command, which is still to come.
            Phase::Starting { .. } => {
                lease.cmd_timeout = lease.cmd_timeout.max(cmd_timeout);
                lease.phase = Phase::Starting { closes: false };
                let until = now.monotonic.after(lease.cmd_timeout);
                (OpeningResult::Queued, lease.admit(until, now).into_iter().collect())
            }
            Phase::Open { until, failed, .. } => {
                let until = lease.prolong(until, failed, cmd_timeout, now);
                if failed {
                    (OpeningResult::Opened, lease.start(now))
                } else {
                    (OpeningResult::Extended { until }, lease.move_end(until, failed, now))
                }
            }
            Phase::Stopping { failures, .. } => {
                lease.cmd_timeout = cmd_timeout;
                lease.phase = Phase::Stopping { failures, knocked: true };
                (OpeningResult::Queued, Vec::new())
            }
            Phase::Failing { .. } => {
                lease.cmd_timeout = cmd_timeout;
                (OpeningResult::Opened, lease.start(now))
            }
        };
        self.table.note_due(slot);
        result
    }

    fn fresh_id(&mut self) -> LeaseId {
        self.last_id += 1;
        LeaseId(self.last_id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::command::CommandTemplate;
    use crate::config::{Action, Commands, Key, Options};
    use crate::text::DoorName;
    use crate::time::UnixTime;

    const SECOND: Duration = Duration::from_secs(1);

    fn door(start: &str, stop: &str) -> Door {
        let commands = |text| CommandTemplate::parse(text).map(Commands::both).unwrap_or_default();
        Door {
            action: Action::Commands { start: commands(start), stop: commands(stop) },
            ..Door::new(DoorName::new("ssh").unwrap(), Key::Sequence("1,2".parse().unwrap()))
        }
    }

    fn at(seconds: u32) -> Timestamp {
        Timestamp::ZERO.after(SECOND * seconds)
    }

    /// The calendar has the same origin.
    fn on(seconds: u32) -> Now {
        Now { monotonic: at(seconds), calendar: UnixTime::new(SECOND * seconds) }
    }

    fn source() -> IpAddr {
        "192.0.2.1".parse().unwrap()
    }

    /// Returns the effects in short form: `store 13`, `run a`, `forget`.
    fn told(effects: Vec<Effect>) -> Vec<String> {
        let tell = |effect: Effect| match effect {
            Effect::Store(record) => format!("store {}", record.until.since_epoch().as_secs()),
            Effect::EndMoved(_, until) => format!("until {}", until.since(Timestamp::ZERO).as_secs()),
            Effect::Burn(_) => panic!("{effect:?}"),
            Effect::Forget(_) => "forget".to_owned(),
            Effect::SetAside(..) => "set aside".to_owned(),
            Effect::Run(run) => format!("run {}", run.command),
            Effect::Admit(Admission { source, .. }, time) => format!("admit {source} {}", time.as_secs()),
            Effect::Prolong(Admission { source, .. }, time) => format!("prolong {source} {}", time.as_secs()),
            Effect::Look(Admission { source, .. }) => format!("look {source}"),
            Effect::Shut(Admission { source, .. }) => format!("shut {source}"),
        };
        effects.into_iter().map(tell).collect()
    }

    fn id_of(effects: &[Effect]) -> LeaseId {
        effects
            .iter()
            .find_map(|effect| match effect {
                Effect::Run(run) => Some(run.id),
                Effect::Admit(admission, _) => Some(admission.id),
                _ => None,
            })
            .unwrap()
    }

    fn open(leases: &mut Leases, door: &Door, source: IpAddr, seconds: u32) -> Vec<Effect> {
        leases.open(door, source, Options::DEFAULT_MAX_OPEN, on(seconds)).1
    }

    /// Opens the door at 0 and lets its start command end at once.
    fn opened(leases: &mut Leases, door: &Door, succeeded: bool) -> LeaseId {
        let id = id_of(&open(leases, door, source(), 0));
        leases.handle_exit(id, succeeded, on(0));
        id
    }

    #[test]
    fn the_stop_command_runs_cmd_timeout_after_the_start_command_has_ended() {
        let mut leases = Leases::new();
        let effects = open(&mut leases, &door("open %IP%", "close %IP%"), source(), 0);
        let id = id_of(&effects);
        assert_eq!(
            (told(effects), leases.poll_timeout()),
            (vec!["store 10".into(), "run open 192.0.2.1".into()], None)
        );
        assert_eq!(told(leases.handle_exit(id, true, on(3))), ["store 13"]);
        assert_eq!(leases.poll_timeout(), Some(at(13)));
        assert_eq!(leases.handle_timeout(at(12)), []);
        assert_eq!(told(leases.handle_timeout(at(13))), ["run close 192.0.2.1"]);
        assert_eq!(leases.handle_timeout(at(14)), []);
        assert_eq!(told(leases.handle_exit(id, true, on(14))), ["forget"]);
        assert!(leases.is_empty());
    }

    #[test]
    fn a_knock_at_an_open_door_moves_its_end_and_runs_nothing() {
        let (mut leases, door) = (Leases::new(), door("a", "b"));
        let id = id_of(&open(&mut leases, &door, source(), 0));
        assert_eq!(open(&mut leases, &door, source(), 1), [], "while the start command is running");
        leases.handle_exit(id, true, on(2));
        assert_eq!(told(open(&mut leases, &door, source(), 8)), ["store 18", "until 18"]);
        assert_eq!(leases.poll_timeout(), Some(at(18)));
        assert_eq!((leases.len(), leases.handle_timeout(at(18)).len()), (1, 1));
    }

    #[test]
    fn sources_have_leases_of_their_own() {
        let (mut leases, door) = (Leases::new(), door("a", "b"));
        assert_eq!(open(&mut leases, &door, source(), 0).len(), 2);
        assert_eq!(open(&mut leases, &door, "192.0.2.2".parse().unwrap(), 0).len(), 2);
        assert_eq!(leases.len(), 2);
    }

    #[test]
    fn with_reopen_run_every_knock_has_a_lease_of_its_own() {
        let mut leases = Leases::new();
        let door = Door { reopen: Reopen::Run, ..door("a", "b") };
        let ids: BTreeSet<_> = (0..3).map(|_| opened(&mut leases, &door, true)).collect();
        assert_eq!((ids.len(), leases.handle_timeout(at(10)).len()), (3, 3));
    }

    #[test]
    fn a_failed_start_command_runs_again_at_the_next_knock_and_the_stop_command_once() {
        let (mut leases, door) = (Leases::new(), door("a", "b"));
        let id = opened(&mut leases, &door, false);
        assert_eq!(told(open(&mut leases, &door, source(), 5)), ["store 15", "run a"]);
        leases.handle_exit(id, true, on(5));
        assert_eq!(leases.handle_timeout(at(14)), []);
        assert_eq!(told(leases.handle_timeout(at(15))), ["run b"]);
        assert_eq!(leases.handle_timeout(at(100)), []);
    }

    #[test]
    fn a_failed_start_command_is_followed_by_its_stop_command() {
        let (mut leases, door) = (Leases::new(), door("a", "b"));
        opened(&mut leases, &door, false);
        assert_eq!(told(leases.handle_timeout(at(10))), ["run b"]);
    }

    #[test]
    fn a_door_without_a_stop_command_runs_at_every_knock_and_has_no_lease() {
        let (mut leases, door) = (Leases::new(), door("a", ""));
        let first = open(&mut leases, &door, source(), 0);
        let second = open(&mut leases, &door, source(), 0);
        assert_ne!(id_of(&first), id_of(&second));
        assert_eq!((leases.handle_exit(id_of(&first), true, on(1)), leases.is_empty()), (vec![], true));
        assert_eq!(told(first), ["run a"]);
    }

    #[test]
    fn a_door_without_a_start_command_runs_nothing_at_all() {
        let mut leases = Leases::new();
        assert_eq!(open(&mut leases, &door("", "b"), source(), 0), []);
        assert!(leases.is_empty());
    }

    #[test]
    fn a_knock_during_the_stop_command_runs_the_start_command_after_it() {
        for succeeded in [true, false] {
            let (mut leases, door) = (Leases::new(), door("a", "b"));
            let id = opened(&mut leases, &door, true);
            leases.handle_timeout(at(10));
            assert_eq!(open(&mut leases, &door, source(), 11), []);
            assert_eq!(told(leases.handle_exit(id, succeeded, on(12))), ["store 22", "run a"]);
            leases.handle_exit(id, true, on(12));
            assert_eq!(leases.poll_timeout(), Some(at(22)));
        }
    }

    #[test]
    fn a_failed_stop_command_is_tried_five_times_more_within_two_minutes_and_then_set_aside() {
        let (mut leases, door) = (Leases::new(), door("a", "b"));
        let id = opened(&mut leases, &door, true);
        let mut runs = 0;
        let mut now = at(10);
        let end = loop {
            runs += leases.handle_timeout(now).len();
            let effects =
                leases.handle_exit(id, false, Now { monotonic: now, calendar: UnixTime::default() });
            match leases.poll_timeout() {
                Some(next) => now = next,
                None => break effects,
            }
        };
        assert_eq!((runs, told(end)), (6, vec!["set aside".to_owned()]));
        assert!(now.since(at(10)) <= SECOND * 120 && leases.is_empty());
    }

    #[test]
    fn a_stop_command_that_works_at_last_ends_the_lease() {
        let (mut leases, door) = (Leases::new(), door("a", "b"));
        let id = opened(&mut leases, &door, true);
        leases.handle_timeout(at(10));
        assert_eq!(leases.handle_exit(id, false, on(10)), []);
        assert_eq!(told(leases.handle_timeout(at(12))), ["run b"]);
        assert_eq!(told(leases.handle_exit(id, true, on(12))), ["forget"]);
    }

    #[test]
    fn a_knock_ends_the_trying_of_a_failed_stop_command() {
        let (mut leases, door) = (Leases::new(), door("a", "b"));
        let id = opened(&mut leases, &door, true);
        leases.handle_timeout(at(10));
        leases.handle_exit(id, false, on(10));
        assert_eq!(told(open(&mut leases, &door, source(), 11)), ["store 21", "run a"]);
        assert_eq!(leases.handle_timeout(at(20)), []);
        leases.handle_exit(id, true, on(20));
        assert_eq!(told(leases.handle_timeout(at(30))), ["run b"]);
    }

    #[test]
    fn an_ipv6_knocker_gets_the_commands_for_ipv6() {
        let mut leases = Leases::new();
        let mut door = door("four", "stop");
        let Action::Commands { start, .. } = &mut door.action;
        start.v6 = CommandTemplate::parse("six %IP%");
        let effects = open(&mut leases, &door, "2001:db8::1".parse().unwrap(), 0);
        assert_eq!(told(effects), ["store 10", "run six 2001:db8::1"]);
        let Action::Commands { start, .. } = &mut door.action;
        start.v6 = None;
        assert_eq!(open(&mut leases, &door, "2001:db8::2".parse().unwrap(), 0), []);
    }

    #[test]
    fn closing_stops_what_is_open_now_and_what_is_starting_when_it_has_started() {
        let mut leases = Leases::new();
        let first = opened(&mut leases, &door("a", "b"), true);
        let starting = id_of(&open(&mut leases, &door("c", "d"), source(), 0));
        assert_eq!(told(leases.close_all(on(0))), ["store 0", "run b"]);
        assert_eq!(open(&mut leases, &door("e", "f"), source(), 1), []);
        assert_eq!(told(leases.handle_exit(starting, true, on(1))), ["store 1", "run d"]);
        assert_eq!(leases.len(), 2);
        assert_eq!(told(leases.handle_exit(starting, true, on(1))), ["forget"]);
        assert_eq!(leases.handle_exit(first, false, on(1)), [], "what is stored stays for the next start");
        assert!(leases.is_empty());
    }

    fn stored(effects: &[Effect]) -> LeaseRecord {
        let [Effect::Store(record), ..] = effects else { panic!("{effects:?}") };
        record.clone()
    }

    #[test]
    fn a_lease_whose_start_command_was_cut_off_is_closed_at_its_time_and_a_knock_before_starts_it_again() {
        for knocks in [false, true] {
            let door = door("a", "b");
            let record = stored(&open(&mut Leases::new(), &door, source(), 0));
            assert_eq!(record.start, StartState::Running(None));
            let mut after = Leases::new();
            after.restore([record], LeaseId(0), on(3));
            if knocks {
                assert_eq!(told(open(&mut after, &door, source(), 5)), ["store 15", "run a"]);
            } else {
                assert_eq!(told(after.handle_timeout(at(10))), ["run b"]);
            }
        }
    }

    #[test]
    fn after_a_restart_of_the_machine_a_lease_is_closed_at_once_and_a_knock_opens_anew() {
        for knocks_first in [false, true] {
            let door = door("a", "b");
            let mut before = Leases::new();
            let id = id_of(&open(&mut before, &door, source(), 0));
            let record = stored(&before.handle_exit(id, true, on(0)));
            let record = LeaseRecord { boot: Some(1), ..record }.in_boot(Some(2));
            let mut after = Leases::new();
            after.restore([record], LeaseId(0), on(1));
            assert_eq!(after.poll_timeout(), Some(at(1)));
            if !knocks_first {
                assert_eq!(told(after.handle_timeout(at(1))), ["run b"]);
                assert_eq!(told(after.handle_exit(id, true, on(2))), ["forget"]);
            }
            assert_eq!(told(open(&mut after, &door, source(), 3)), ["store 13", "run a"]);
        }
    }

    #[test]
    fn a_restored_lease_is_closed_at_its_time_and_extended_by_a_knock() {
        let door = door("a", "b");
        let mut before = Leases::new();
        let id = id_of(&open(&mut before, &door, source(), 0));
        let record = stored(&before.handle_exit(id, true, on(0)));
        assert_eq!(record.start, StartState::Ended);
        let mut after = Leases::new();
        after.restore([record], LeaseId(0), on(0));
        assert_eq!(told(open(&mut after, &door, source(), 5)), ["store 15", "until 15"]);
        assert_eq!(told(after.handle_timeout(at(15))), ["run b"]);
        assert_eq!(told(after.handle_exit(id, true, on(15))), ["forget"]);
        assert_ne!(id_of(&open(&mut after, &door, source(), 16)), id, "its number is not used again");
    }

    #[test]
    fn no_more_doors_open_than_allowed_and_those_that_are_open_can_be_extended() {
        let mut leases = Leases::new();
        let two = NonZeroU32::new(2).unwrap();
        let door = Door { max_open: NonZeroU32::new(1), ..door("a", "b") };
        let other = Door { name: DoorName::new("other").unwrap(), max_open: None, ..door.clone() };
        let [first, second, third] =
            ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|source| source.parse().unwrap());
        assert_eq!(leases.open(&door, first, two, on(0)).0, OpeningResult::Opened);
        assert_eq!(leases.open(&door, second, two, on(0)).0, OpeningResult::Full(Full::Door));
        let id = id_of(&leases.open(&other, second, two, on(0)).1);
        assert_eq!(leases.open(&other, third, two, on(0)).0, OpeningResult::Full(Full::Everywhere));
        assert_eq!(leases.open(&door, first, two, on(0)).0, OpeningResult::Queued);
        leases.handle_exit(id, true, on(0));
        leases.handle_timeout(at(10));
        leases.handle_exit(id, true, on(10));
        assert_eq!(leases.open(&other, third, two, on(10)).0, OpeningResult::Opened);
    }

    #[test]
    fn an_ipv6_network_opens_a_door_32_times_and_everybody_else_still_gets_in() {
        let (mut leases, door) = (Leases::new(), door("a", "b"));
        let other = Door { name: DoorName::new("other").unwrap(), ..door.clone() };
        let host = |network: u128, host: u128| {
            IpAddr::from(std::net::Ipv6Addr::from_bits((0x2001_0db8 << 96) | network << 64 | host))
        };
        let knock = |leases: &mut Leases, door: &Door, source: IpAddr| {
            leases.open(door, source, Options::DEFAULT_MAX_OPEN, on(0))
        };
        let results: Vec<_> = (0..2001).map(|i| knock(&mut leases, &door, host(1, i << 40 | i))).collect();
        let opened = results.iter().filter(|(result, _)| *result == OpeningResult::Opened).count();
        assert_eq!(opened, 32);
        assert_eq!(results[32], (OpeningResult::Full(Full::Network), vec![]));
        assert_eq!(knock(&mut leases, &door, host(1, 0)).0, OpeningResult::Queued, "it is open already");
        for (door, source) in [(&door, host(2, 0)), (&other, host(1, 99)), (&door, source())] {
            assert_eq!(knock(&mut leases, door, source).0, OpeningResult::Opened, "{source}");
        }
        let id = id_of(&results[0].1);
        leases.handle_exit(id, true, on(0));
        leases.handle_timeout(at(10));
        assert_eq!(knock(&mut leases, &door, host(1, 99)).0, OpeningResult::Full(Full::Network), "it closes");
        leases.handle_exit(id, true, on(10));
        assert_eq!(knock(&mut leases, &door, host(1, 99)).0, OpeningResult::Opened);
    }

    #[test]
    fn with_reopen_run_one_ipv4_address_opens_a_door_32_times_and_its_neighbour_too() {
        let mut leases = Leases::new();
        let door = Door { reopen: Reopen::Run, ..door("a", "b") };
        for last in [1, 2] {
            let opened =
                (0..100).filter(|_| !open(&mut leases, &door, [192, 0, 2, last].into(), 0).is_empty());
            assert_eq!(opened.count(), 32);
        }
    }

    #[test]
    fn restored_leases_count_for_their_network() {
        let door = door("a", "b");
        let host = |host: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, host]);
        let mut before = Leases::new();
        let stored =
            (0..32).flat_map(|i| open(&mut before, &door, host(i), 0)).filter_map(|effect| match effect {
                // As it is once the start command has ended.
                Effect::Store(record) => Some(LeaseRecord { start: StartState::Ended, ..record }),
                _ => None,
            });
        let mut after = Leases::new();
        after.restore(stored.collect::<Vec<_>>(), LeaseId(0), on(0));
        let open = |leases: &mut Leases, i| leases.open(&door, host(i), Options::DEFAULT_MAX_OPEN, on(1)).0;
        assert_eq!(open(&mut after, 32), OpeningResult::Full(Full::Network));
        assert!(matches!(open(&mut after, 31), OpeningResult::Extended { .. }));
    }

    #[test]
    fn who_holds_a_lease_is_known_until_it_ends() {
        let (mut leases, door) = (Leases::new(), door("a", "b"));
        let other = Door { name: DoorName::new("other").unwrap(), ..door.clone() };
        assert!(!leases.holds_any(source()) && !leases.holds(&door, source()));
        let id = opened(&mut leases, &door, true);
        assert!(
            leases.holds_any(source()) && leases.holds(&door, source()) && !leases.holds(&other, source())
        );
        leases.handle_timeout(at(10));
        leases.handle_exit(id, true, on(10));
        assert!(!leases.holds_any(source()) && !leases.holds(&door, source()));
    }

    #[test]
    fn a_lease_of_a_network_is_held_by_all_its_addresses_until_it_ends() {
        let mut leases = Leases::new();
        let services = Some("tcp/22".parse().unwrap());
        let door = Door { open: services, open_for: "/24".parse().unwrap(), ..door("", "") };
        let [first, neighbour, stranger] =
            ["192.0.2.7", "192.0.2.200", "192.0.3.7"].map(|source| source.parse().unwrap());
        let id = id_of(&open(&mut leases, &door, first, 0));
        for source in [first, neighbour] {
            assert!(leases.holds_any(source) && leases.holds(&door, source), "{source}");
        }
        assert!(!leases.holds_any(stranger) && !leases.holds(&door, stranger));
        leases.handle_exit(id, true, on(0));
        assert_eq!(told(leases.handle_timeout(at(10))), ["shut 192.0.2.0/24"]);
        leases.handle_exit(id, true, on(10));
        assert!(!leases.holds_any(first) && leases.is_empty());
    }
}
